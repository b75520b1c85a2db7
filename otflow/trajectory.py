"""What a flow leaves behind: times, records, snapshots, reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from otflow.measures import Measure
from otflow.proximal import Certificate
from otflow.schemes import reports
from otflow.schemes.time_error import time_error

__all__ = ["Trajectory"]

M = TypeVar("M", bound=Measure)

# Relative round-off of an energy, in units of that of its dtype.
ROUND_OFF = 64.0


@dataclass(frozen=True, eq=False)
class Trajectory(Generic[M]):
    """The record of a flow.

    Parameters
    ----------
    times : Tensor, shape (K,)
        Recorded times, float64, from 0 to the end; all times are sums of steps taken.
    records : mapping of str to Tensor
        One row per recorded time; ``"energy"`` is always there.
    snapshots : tuple of Measure
        The measure at each recorded time.
    final : Measure
        The last good measure.
    info : tuple of Certificate
        The report of every step, recorded or not.
    seed : int
        The integer from which the flow made its random numbers: the same flow with
        ``generator=run.seed`` repeats the run bit for bit.
    status : str
        ``"finished"``, ``"stopped"`` (by the predicate), ``"unfinished"`` (too few
        steps for ``until``), ``"diverged"``, ``"interrupted"`` or ``"failed"``.
    message : str
        One line on how it ended.

    Attributes
    ----------
    times, records, snapshots, final, info, seed, status, message
        As above.

    Notes
    -----
    Memory O(K n d) for the snapshots; thin them with ``every``.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    >>> run = of.flow(
    ...     F, of.Particles(torch.ones(1, 1)), of.ExplicitEuler(), dt=0.5, steps=2
    ... )
    >>> run
    Trajectory(finished after 2 steps, t = 1: energy 0.5 -> 0.03125)
    >>> run.times
    tensor([0.0000, 0.5000, 1.0000], dtype=torch.float64)
    """

    times: Tensor
    records: Mapping[str, Tensor]
    snapshots: tuple[M, ...]
    final: M
    info: tuple[Certificate, ...]
    seed: int
    status: str
    message: str

    @property
    def converged(self) -> bool | None:
        """Whether the flow ended as asked and every solve of its steps converged.

        False if it diverged, was interrupted, failed or had too few steps for `until`,
        or if one solve did not converge, however schemes are nested. None if it ended
        as asked and no step solved anything, as with explicit schemes.
        """
        if self.status not in ("finished", "stopped"):
            return False
        verdicts = self._verdicts
        return all(verdicts) if verdicts else None

    @property
    def _verdicts(self) -> list[bool]:
        """Whether each step converged, of those that say so."""
        found = (reports.converged(report) for report in self.info)
        return [verdict for verdict in found if verdict is not None]

    @property
    def rises(self) -> int:
        """How many steps raised the energy, beyond round-off, as far as is known.

        A step whose report holds no energy of both ends counts by the energies of
        successive snapshots; where only some steps are recorded, so many intervals.
        """
        energies = self.records.get("energy", torch.empty(0))
        dtype = energies.dtype if energies.is_floating_point() else torch.float64
        noise = ROUND_OFF * torch.finfo(dtype).eps
        told = [reports.rose(report, noise) for report in self.info]
        if None not in told:
            return sum(map(bool, told))
        size = torch.maximum(energies[1:].abs(), energies[:-1].abs())
        return int((energies.diff() > noise * size).sum())

    def time_error(self, *, inner: bool = True) -> Tensor:
        r"""Return bounds on :math:`W_2(\mu(t), \mu_t)` of a JKO flow to the exact one.

        Here :math:`\mu(t)` is the exact gradient flow in the representation. From
        energies and lengths of the steps alone, at no cost: for a convex F

        .. math:: W_2^2(\mu(t_n), \mu^n) \le \sum_{k \le n} \tau_k^2 E_k, \qquad
            E_k = \frac{F(\mu^{k-1}) - F(\mu^k)}{\tau_k}
            - \frac{W_2^2(\mu^{k-1}, \mu^k)}{\tau_k^2},

        the a-posteriori estimate of :cite:t:`nochetto2000posteriori` in Hilbert spaces,
        carried to W2 by :cite:t:`ambrosio2008gradient`, chapter 4. It is of order 1 in
        dt. If F is :math:`\lambda`-convex, of either sign, it is sharpened or mended
        accordingly: errors decay, or grow, in time.

        Parameters
        ----------
        inner : bool
            Whether to count the errors of the inner solves (``info["bound"]``), so that
            the bound is one on the distance to the measures in fact computed. Without,
            they are taken for exact and what is returned is an estimate of the error of
            the time steps.

        Returns
        -------
        Tensor, shape (K,)
            One bound for each of ``times``.

        Raises
        ------
        Unsupported
            If a step was not one of ``JKO()`` of order 1, the convexity of F is not
            known, or a distance is not; or, without `inner`, if a step lost less energy
            than an exact one does. The message names the cure.

        Notes
        -----
        Hypotheses: F is :math:`\lambda`-convex along generalised geodesics, as
        ``F.modulus(d)`` promises, and :math:`1 + \tau\lambda > 0`. The estimate
        is derived from the evolution variational inequalities of the flow and of the
        step (``otflow/schemes/time_error.py``).
        With :math:`E_k \le \tfrac12(|v^{k-1}|^2 - |v^k|^2)` and equal steps it gives
        their a-priori bound :math:`\tau\,|v^0|/\sqrt2`. What the representation itself
        leaves out (number of atoms, quantiles, the family of Gaussians) is no part of
        it. Differences of energies lose digits: use float64.

        Examples
        --------
        >>> import torch, otflow as of
        >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
        >>> mu = of.Particles(torch.ones(1, 1, dtype=torch.float64))
        >>> run = of.flow(F, mu, of.JKO(), dt=0.1, steps=10)
        >>> error = abs(run.final.points.item() - 2.718281828**-1)
        >>> bound = run.time_error()[-1].item()
        >>> bool(error < bound < 2 * error)
        True
        """
        errors, ends = time_error(self.info, inner=inner), [0]
        for report in self.info:
            ends.append(ends[-1] + len(report.get("substeps", (report,))))
        at = torch.tensor([errors[k] for k in ends], dtype=torch.float64)
        taken = torch.tensor([0.0, *(r["dt"] for r in self.info)], dtype=torch.float64)
        reached = taken.cumsum(0)
        middle = 0.5 * (reached[1:] + reached[:-1])
        return at[torch.searchsorted(middle, self.times)]

    def __repr__(self) -> str:
        head = f"{self.status} after {len(self.info)} steps"
        if not len(self.times):
            return f"Trajectory({head})"
        energy, verdicts = self.records["energy"], self._verdicts
        words = [f"energy {float(energy[0]):.6g} -> {float(energy[-1]):.6g}"]
        if verdicts:
            words.append(f"{sum(verdicts)}/{len(verdicts)} steps converged")
        if self.rises:
            words.append(f"energy rose in {self.rises}")
        return (
            f"Trajectory({head}, t = {float(self.times[-1]):.6g}: {', '.join(words)})"
        )
