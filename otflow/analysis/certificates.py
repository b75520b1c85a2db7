"""Certificates of a flow: how fast the energy must fall, and whether it did."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from otflow.errors import Unsupported
from otflow.functionals import Functional
from otflow.measures import Measure, Particles
from otflow.metrics import wasserstein2_squared
from otflow.trajectory import Trajectory

__all__ = [
    "DissipationReport",
    "dissipation",
    "energy_dissipation",
    "minimizing_movement",
]


def dissipation(F: Functional, mu: Measure) -> Tensor:
    r"""Return :math:`\int |\nabla F'[\mu]|^2 d\mu`, the rate at which F falls.

    Along :math:`\partial_t\mu = \nabla\cdot(\mu\nabla F'[\mu])` it is
    :math:`-\frac{d}{dt}F(\mu_t)`; it vanishes at critical points only.

    Parameters
    ----------
    F : Functional
        The energy.
    mu : Measure
        Where.

    Returns
    -------
    Tensor
        0-d, non-negative.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    >>> of.analysis.dissipation(F, of.Particles(torch.tensor([[1.0], [3.0]])))
    tensor(5.)
    """
    velocity = F.velocity(mu)
    return mu.inner(velocity, velocity)


@dataclass(frozen=True, eq=False)
class DissipationReport:
    r"""Energy lost against energy dissipated, interval by interval of a trajectory.

    Parameters
    ----------
    times : Tensor, shape (K,)
        Times of the records.
    drop : Tensor, shape (K - 1,)
        Energy lost between two of them.
    dissipated : Tensor, shape (K - 1,)
        What should have been lost.

    Attributes
    ----------
    times, drop, dissipated
        As above.

    Examples
    --------
    >>> import torch
    >>> from otflow.analysis import DissipationReport
    >>> numbers = torch.tensor([0.0, 1.0]), torch.tensor([2.0]), torch.tensor([1.5])
    >>> DissipationReport(*numbers).residual
    0.5
    """

    times: Tensor
    drop: Tensor
    dissipated: Tensor

    @property
    def residual(self) -> float:
        """Energy lost in all, minus energy dissipated in all."""
        return float(self.drop.sum() - self.dissipated.sum())

    @property
    def slack(self) -> float:
        """The least of drop minus dissipated over the intervals."""
        return float((self.drop - self.dissipated).min())


def energy_dissipation(F: Functional, trajectory: Trajectory[Any]) -> DissipationReport:
    r"""Compare :math:`F(\mu_s) - F(\mu_t)` with :math:`\int_s^t\!\int|v|^2 d\mu\,dr`.

    They are equal along the gradient flow: the energy-dissipation identity
    :cite:p:`ambrosio2008gradient`. The integral is taken by the trapezoidal rule over
    the recorded times, so the residual is of the order of the scheme in dt and of order
    2 in the spacing of the records.

    Parameters
    ----------
    F : Functional
        What the flow minimised by transport alone.
    trajectory : Trajectory
        Its record.

    Returns
    -------
    DissipationReport
        One entry for each interval between records.

    Raises
    ------
    ValueError
        If fewer than two times are recorded.

    Notes
    -----
    One value and one velocity for each snapshot.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    >>> mu = of.Particles(torch.ones(1, 1, dtype=torch.float64))
    >>> run = of.flow(F, mu, of.ExplicitEuler(), dt=0.01, steps=100)
    >>> abs(of.analysis.energy_dissipation(F, run).residual) < 0.01
    True
    """
    _check_recorded(trajectory, 2)
    pairs = [F.value_and_velocity(nu) for nu in trajectory.snapshots]
    energy = torch.stack([value for value, _ in pairs]).double().cpu()
    rates = [
        nu.inner(v, v) for nu, (_, v) in zip(trajectory.snapshots, pairs, strict=True)
    ]
    rate = torch.stack(rates).double().cpu()
    times = trajectory.times
    integral = 0.5 * times.diff() * (rate[1:] + rate[:-1])
    return DissipationReport(times=times, drop=-energy.diff(), dissipated=integral)


def minimizing_movement(trajectory: Trajectory[Any]) -> DissipationReport:
    r"""Compare the energy lost in each step with :math:`W_2^2(\mu^k, \mu^{k+1})/2dt`.

    A JKO step loses at least that much, :math:`F(\mu^{k+1}) + W_2^2/2dt \le F(\mu^k)`,
    whatever dt, for :math:`\mu^k` itself competes in its minimisation
    :cite:p:`jordan1998variational`: ``slack`` is not negative.
    Between particles distances are computed anew, by exact transport. Otherwise they
    are those that the steps report, ``info["w2"]``: exact on Gaussians, the lumped
    length on quantiles (never less than W2), an estimate on a grid.

    Parameters
    ----------
    trajectory : Trajectory
        A flow whose every step is recorded.

    Returns
    -------
    DissipationReport
        One entry for each step.

    Raises
    ------
    ValueError
        If a step was not recorded: take ``every=1``.
    Unsupported
        If it is not a flow of particles and a step does not report its length.

    Notes
    -----
    One exact transport problem for each step of particles.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    >>> mu = of.Particles(torch.tensor([[1.0], [3.0]], dtype=torch.float64))
    >>> run = of.flow(F, mu, of.JKO(), dt=0.5, steps=4)
    >>> of.analysis.minimizing_movement(run).slack > 0
    True
    """
    _check_recorded(trajectory, 2)
    if len(trajectory.times) != len(trajectory.info) + 1:
        msg = (
            f"{len(trajectory.info)} steps were made and {len(trajectory.times)} "
            f"measures recorded; record every step: flow(..., every=1)"
        )
        raise ValueError(msg)
    squares = torch.tensor(_squared_lengths(trajectory), dtype=torch.float64)
    energy = trajectory.records["energy"].double().cpu()
    times = trajectory.times
    steps = times.diff()
    rested = (steps == 0) & (squares == 0)  # a step that stalled took no time
    return DissipationReport(
        times=times,
        drop=-energy.diff(),
        dissipated=squares / (2 * steps.masked_fill(rested, 1.0)),
    )


def _squared_lengths(trajectory: Trajectory[Any]) -> list[float]:
    """Return W2 squared of each step."""
    atoms = [nu for nu in trajectory.snapshots if isinstance(nu, Particles)]
    if len(atoms) == len(trajectory.snapshots):
        return [float(wasserstein2_squared(mu, nu)) for mu, nu in pairwise(atoms)]
    lengths = [report.get("w2") for report in trajectory.info]
    if None in lengths:
        msg = (
            f"exact distances are those between particles, got "
            f"{type(trajectory.final).__name__}, and step {lengths.index(None)} does "
            f"not report its own; flow it with JKO(), whose solver does"
        )
        raise Unsupported(msg)
    return [float(w2) ** 2 for w2 in lengths if w2 is not None]


def _check_recorded(trajectory: Trajectory[Any], least: int) -> None:
    if len(trajectory.snapshots) < least:
        msg = (
            f"the trajectory has {len(trajectory.snapshots)} records; at least {least} "
            f"are needed"
        )
        raise ValueError(msg)
