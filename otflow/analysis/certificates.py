"""Certificates of a flow: how fast the energy must fall, and whether it did."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from otflow._validation import check_kind
from otflow.errors import Unsupported
from otflow.functionals.base import Functional, check_functional
from otflow.measures import Measure, Particles
from otflow.metrics import wasserstein2_squared
from otflow.trajectory import Trajectory

__all__ = [
    "DissipationReport",
    "check_each_step",
    "dissipation",
    "energy_dissipation",
    "minimizing_movement",
]


def dissipation(F: Functional, mu: Measure) -> Tensor:
    r"""Return :math:`\int |\nabla F'[\mu]|^2 d\mu`, the rate at which F falls.

    Along :math:`\partial_t\mu = \nabla\cdot(\mu\nabla F'[\mu])` the dissipation is
    :math:`-\frac{d}{dt}F(\mu_t)`. It vanishes at critical points only.

    Parameters
    ----------
    F : Functional
        The energy.
    mu : Measure
        Where to evaluate the dissipation.

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
        Energy lost between successive times.
    dissipated : Tensor, shape (K - 1,)
        Energy that should have been lost between successive times.

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
        """Total energy lost minus total energy dissipated."""
        return float(self.drop.sum() - self.dissipated.sum())

    @property
    def slack(self) -> float:
        """Smallest value of drop - dissipated over the intervals."""
        return float((self.drop - self.dissipated).min())


def energy_dissipation(F: Functional, trajectory: Trajectory[Any]) -> DissipationReport:
    r"""Compare :math:`F(\mu_s) - F(\mu_t)` with :math:`\int_s^t\!\int|v|^2 d\mu\,dr`.

    Both are equal along the gradient flow, by the energy-dissipation identity
    :cite:p:`ambrosio2008gradient`. The trapezoidal rule over the recorded times gives
    the integral, so the residual has the order of the scheme in dt and order 2 in the
    spacing of the records.

    Parameters
    ----------
    F : Functional
        The functional that the flow minimised, by transport alone.
    trajectory : Trajectory
        The record of the flow.

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
    Cost: one value and one velocity of F for each snapshot.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    >>> mu = of.Particles(torch.ones(1, 1, dtype=torch.float64))
    >>> run = of.flow(F, mu, of.ExplicitEuler(), dt=0.01, steps=100)
    >>> abs(of.analysis.energy_dissipation(F, run).residual) < 0.01
    True
    """
    check_functional(F)
    _check_recorded(trajectory, 2)
    pairs = [F.value_and_velocity(nu) for nu in trajectory.snapshots]
    energy = torch.stack([value for value, _ in pairs]).double().cpu()
    rates = [
        nu.inner(v, v) for nu, (_, v) in zip(trajectory.snapshots, pairs, strict=True)
    ]
    rate = torch.stack(rates).double().cpu()
    times = trajectory.snapshot_times
    integral = 0.5 * times.diff() * (rate[1:] + rate[:-1])
    return DissipationReport(times=times, drop=-energy.diff(), dissipated=integral)


def minimizing_movement(trajectory: Trajectory[Any]) -> DissipationReport:
    r"""Compare the energy lost in each step with :math:`W_2^2(\mu^k, \mu^{k+1})/2dt`.

    For every dt a JKO step loses at least that much energy, :math:`F(\mu^{k+1}) +
    W_2^2/2dt \le F(\mu^k)`, since :math:`\mu^k` is a candidate of the minimisation
    :cite:p:`jordan1998variational`. So ``slack`` is not negative.

    Between particles an exact transport gives the distances. Otherwise the distances
    are those of the reports, ``info["w2"]``: exact on Gaussians, the lumped length on
    quantiles (at least W2), an estimate on a grid.

    Parameters
    ----------
    trajectory : Trajectory
        A flow in which each step is recorded.

    Returns
    -------
    DissipationReport
        One entry for each step.

    Raises
    ------
    ValueError
        If a step was not recorded: take ``every=1``.
    Unsupported
        If the measures are not particles and a step does not report its length.

    Notes
    -----
    Cost: one exact transport problem for each step of particles.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    >>> mu = of.Particles(torch.tensor([[1.0], [3.0]], dtype=torch.float64))
    >>> run = of.flow(F, mu, of.JKO(), dt=0.5, steps=4)
    >>> of.analysis.minimizing_movement(run).slack > 0
    True
    """
    check_each_step(trajectory)
    squares = torch.tensor(_squared_lengths(trajectory), dtype=torch.float64)
    energy = trajectory.records["energy"].double().cpu()
    times = trajectory.times
    steps = times.diff()
    # A stalled step takes no time and has length 0: avoid 0 / 0.
    rested = (steps == 0) & (squares == 0)
    return DissipationReport(
        times=times,
        drop=-energy.diff(),
        dissipated=squares / (2 * steps.masked_fill(rested, 1.0)),
    )


def check_each_step(trajectory: Trajectory[Any]) -> None:
    """Raise ValueError unless a trajectory recorded and kept each of its measures."""
    _check_recorded(trajectory, 2)
    if len(trajectory.times) != len(trajectory.info) + 1:
        msg = (
            f"{len(trajectory.info)} steps were made and {len(trajectory.times)} "
            f"measures recorded; record every step: flow(..., every=1)"
        )
        raise ValueError(msg)
    if not torch.equal(trajectory.snapshot_steps, trajectory.steps):
        msg = (
            "the run keeps other measures than it records, and each step is compared "
            "with both; flow again without snapshots=, and with every=1"
        )
        raise ValueError(msg)


def _squared_lengths(trajectory: Trajectory[Any]) -> list[float]:
    """Return W2 squared of each step."""
    atoms = [nu for nu in trajectory.snapshots if isinstance(nu, Particles)]
    if len(atoms) == len(trajectory.snapshots):
        return [float(wasserstein2_squared(mu, nu)) for mu, nu in pairwise(atoms)]
    # Other measures are not compared again: their solvers know the length of a step.
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
    check_kind(trajectory, Trajectory, "trajectory", cure="pass what flow returned")
    if len(trajectory.snapshots) < least:
        msg = (
            f"the trajectory has {len(trajectory.snapshots)} records; at least {least} "
            f"are needed"
        )
        raise ValueError(msg)
