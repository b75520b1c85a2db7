"""What a flow leaves behind: times, records, snapshots, reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from otflow.measures import Measure

__all__ = ["Trajectory"]


@dataclass(frozen=True)
class Trajectory:
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
    info : tuple of mapping
        The report of every step, recorded or not.
    seed : int
        Seed of the generator that the flow used; reruns give the same run.
    status : str
        ``"finished"``, ``"stopped"`` (by the predicate), ``"diverged"``,
        ``"interrupted"`` or ``"failed"``.
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
    snapshots: tuple[Measure, ...]
    final: Measure
    info: tuple[Mapping[str, Any], ...]
    seed: int
    status: str
    message: str

    @property
    def converged(self) -> bool:
        """Whether the flow ended as asked: all its steps, or the stop predicate."""
        return self.status in ("finished", "stopped")

    def __repr__(self) -> str:
        head = f"{self.status} after {len(self.info)} steps"
        if not len(self.times):
            return f"Trajectory({head})"
        energy = self.records["energy"]
        return (
            f"Trajectory({head}, t = {float(self.times[-1]):.6g}: "
            f"energy {float(energy[0]):.6g} -> {float(energy[-1]):.6g})"
        )
