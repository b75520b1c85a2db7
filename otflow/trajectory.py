"""What a flow leaves behind: times, records, snapshots, reports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, Self, TypeVar, overload

import torch
from torch import Tensor

from otflow import _views
from otflow._moving import move_of, moved_object
from otflow._validation import check_option
from otflow._warn import warn
from otflow.errors import NotConvergedWarning
from otflow.measures import Measure
from otflow.proximal import Certificate
from otflow.schemes import reports
from otflow.schemes.time_error import time_error

__all__ = ["Bookmark", "Trajectory"]

M = TypeVar("M", bound=Measure)

# Relative round-off of an energy, in units of that of its dtype.
ROUND_OFF = 64.0
# What `to` moves: all that is made of measures, and of tensors in their dtype.
MOVED = ("records", "snapshots", "final")


def _none() -> Tensor:
    return torch.empty(0)


@dataclass(frozen=True, eq=False)
class Bookmark:
    """Where a flow stands: what it needs, beside its measure, to go on exactly.

    Parameters
    ----------
    made : int
        Number of steps that led to the measure ``Trajectory.final``.
    time : float
        The time of that measure.
    state : object
        What the scheme carries to the next step, as `Scheme.state_dict` packs it.
    stream : Tensor of uint8
        The state of the stream of random numbers, as
        ``torch.Generator.get_state`` returns it.
    context : mapping of str to str
        What the numbers of the run depend on: the functional and the scheme as text,
        the dtype, the device, the versions and the number of threads.
    before : float, optional
        The time one step before. None in a bookmark of an earlier release.

    Attributes
    ----------
    made, time, state, stream, context, before
        As above.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    >>> mu = of.Particles(torch.ones(1, 1))
    >>> run = of.flow(F, mu, of.ExplicitEuler(), dt=0.5, steps=2)
    >>> run.bookmark.made, run.bookmark.context["scheme"]
    (2, 'ExplicitEuler(backtracking=False, ...)')
    """

    made: int
    time: float
    state: Any
    stream: Tensor
    context: Mapping[str, str]
    before: float | None = None


@dataclass(frozen=True, eq=False)
class Trajectory(Generic[M]):
    """The record of a flow.

    Parameters
    ----------
    times : Tensor, shape (K,)
        Recorded times, float64, from 0 to the end. A time is the sum of the steps taken
        before.
    records : mapping of str to Tensor
        One row for each recorded time. The key ``"energy"`` always exists.
    snapshots : tuple of Measure
        The measure at each time of `snapshot_times`: those of `times`, unless the flow
        was asked for other ``snapshots``.
    final : Measure
        The last good measure.
    info : tuple of Certificate
        The report of every step, recorded or not.
    seed : int
        The integer from which the flow made its random numbers. The same flow with
        ``generator=run.seed`` repeats the run bit for bit.
    status : str
        ``"finished"``, ``"stopped"`` (by a predicate or a callback), ``"unfinished"``
        (too few steps for ``until``), ``"diverged"``, ``"interrupted"``, ``"failed"``,
        or ``"running"`` (seen by a callback).
    message : str
        One line on how the flow ended.
    steps : Tensor, shape (K,)
        Number of steps before each recorded time, int64.
    snapshot_times : Tensor, shape (S,)
        Times of the snapshots, float64.
    snapshot_steps : Tensor, shape (S,)
        Number of steps before each snapshot, int64.
    bookmark : Bookmark, optional
        What ``flow(..., resume=run)`` needs beside the measure. None if the flow failed
        before its first step.

    Attributes
    ----------
    times, records, snapshots, final, info, seed, status, message
        As above.
    steps, snapshot_times, snapshot_steps, bookmark
        As above.

    Notes
    -----
    A run is a sequence of its snapshots: ``run[k]`` is ``run.snapshots[k]``, the
    measure at ``run.snapshot_times[k]``; ``run[-1]`` is the last one; a slice gives a
    tuple; ``len(run)`` counts them. `final` is the last good measure, kept or not.

    S snapshots take memory O(S n d); ``flow(..., snapshots=)`` says how many are kept.

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
    steps: Tensor = field(default_factory=_none)
    snapshot_times: Tensor = field(default_factory=_none)
    snapshot_steps: Tensor = field(default_factory=_none)
    bookmark: Bookmark | None = None

    def __post_init__(self) -> None:
        # Made by hand: the records and the snapshots are those of all steps.
        state = self.__dict__
        if not len(self.steps):
            state["steps"] = torch.arange(len(self.times))
        if not len(self.snapshot_times) and len(self.snapshots) == len(self.times):
            state["snapshot_times"] = self.times
            state["snapshot_steps"] = self.steps

    __array_ufunc__ = None  # beside an array it is one object, not its snapshots

    def __len__(self) -> int:
        return len(self.snapshots)

    def __bool__(self) -> bool:
        return True  # a run is there, even one that recorded nothing

    def __iter__(self) -> Iterator[M]:
        return iter(self.snapshots)

    @overload
    def __getitem__(self, k: int) -> M: ...
    @overload
    def __getitem__(self, k: slice) -> tuple[M, ...]: ...
    def __getitem__(self, k: int | slice) -> M | tuple[M, ...]:
        """Return ``snapshots[k]``: a measure, or for a slice a tuple of measures."""
        kept = len(self.snapshots)
        if isinstance(k, int) and not -kept <= k < kept:
            msg = (
                f"the run kept {kept} snapshots, and there is no number {k}; read "
                f"run.final for the end, or keep more by flow(..., snapshots=)"
            )
            raise IndexError(msg)
        return self.snapshots[k]

    def to(self, *place: Any, dtype: Any = None, device: Any = None) -> Self:
        """Return the run with its measures and records in another dtype or device.

        The measures move as by ``mu.to(...)``, and share what they shared. The times
        stay float64, and the reports of the steps stay as they are: their numbers are
        about the flow in the dtype in which it ran. The bookmark is dropped: a moved
        run does not go on to the bit. Begin a new flow from its end,
        ``run.to(...).final``.

        Parameters
        ----------
        *place
            A dtype, a device, both, or a tensor or a measure that has them.
        dtype, device : optional
            The same by name.

        Returns
        -------
        Trajectory
            Itself if nothing changes.

        Raises
        ------
        TypeError, ValueError
            If the dtype is not float32 or float64, or cannot hold a measure.

        Examples
        --------
        >>> import torch, otflow as of
        >>> F = of.Potential(lambda x: x.square().sum(-1))
        >>> mu = of.Particles(torch.ones(1, 1))
        >>> run = of.flow(F, mu, of.ExplicitEuler(), dt=0.1, steps=1)
        >>> run.to(torch.float64)[-1].dtype
        torch.float64
        """
        move = move_of(*place, dtype=dtype, device=device)
        held = {name: getattr(self, name) for name in MOVED}
        new = {name: moved_object(value, move, name) for name, value in held.items()}
        if all(new[name] is value for name, value in held.items()):
            return self
        return replace(self, **new, bookmark=None)

    @property
    def converged(self) -> bool | None:
        """Whether the flow ended as asked and every solve of its steps converged.

        False if the flow diverged, was interrupted, failed or had too few steps for
        `until`, or if one solve of a step, or of a part of it, did not converge. None
        if the flow ended as asked and no step solved anything, as with explicit
        schemes.
        """
        if self.status not in ("finished", "stopped", "running"):
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
        """Number of steps that raised the energy beyond round-off.

        If each report holds both energies, this counts steps. Otherwise it counts the
        intervals between successive records in which the energy rose.
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
        r"""Return bounds on the distance of a JKO flow from the exact gradient flow.

        Let :math:`\mu(t)` be the exact gradient flow in the representation. The bound
        uses the energies and lengths of the steps alone. For a convex F

        .. math:: W_2^2(\mu(t_n), \mu^n) \le \sum_{k \le n} \tau_k^2 E_k, \qquad
            E_k = \frac{F(\mu^{k-1}) - F(\mu^k)}{\tau_k}
            - \frac{W_2^2(\mu^{k-1}, \mu^k)}{\tau_k^2},

        the a-posteriori estimate of :cite:t:`nochetto2000posteriori` in Hilbert spaces,
        carried to W2 by :cite:t:`ambrosio2008gradient`, chapter 4. The bound is of
        order 1 in dt. For a modulus :math:`\lambda \ne 0` the bound accounts for errors
        that decay (:math:`\lambda > 0`) or grow (:math:`\lambda < 0`) in time.

        Parameters
        ----------
        inner : bool
            Whether to include the errors of the inner solves (``info["bound"]``). With
            True the result bounds the distance to the computed measures. With False the
            solves are taken as exact, and the result estimates the error of the time
            steps.

        Returns
        -------
        Tensor, shape (K,)
            One bound for each of ``times``.

        Raises
        ------
        Unsupported
            If a step is not one of ``JKO()`` of order 1, if the convexity of F or a
            distance is unknown, or, with ``inner=False``, if a step lost less energy
            than an exact step does. The message names the cure.

        Notes
        -----
        Hypotheses: F is :math:`\lambda`-convex along generalised geodesics, as
        ``F.modulus(d)`` promises, and :math:`1 + \tau\lambda > 0`. The estimate follows
        from the evolution variational inequalities of the flow and of the step
        (``otflow/schemes/time_error.py``).
        With :math:`E_k \le \tfrac12(|v^{k-1}|^2 - |v^k|^2)` and equal steps it gives
        the a-priori bound :math:`\tau\,|v^0|/\sqrt2`. The error of the representation
        (number of atoms, quantiles, the family of Gaussians) is not included.
        Differences of energies lose digits: use float64.

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
        # Recorded times and sums of steps may differ by round-off: compare at middles.
        middle = 0.5 * (reached[1:] + reached[:-1])
        return at[torch.searchsorted(middle, self.times)]

    def summary(self) -> str:
        """Return a text of some lines on how the run went, and what to do about it.

        Returns
        -------
        str
            Status, steps, times, energies; how many solves converged, how many steps
            are certified and by which guarantee, the worst residual; in how many steps
            the energy rose; and a cure for each thing that went wrong. A step of
            several parts counts as certified if each part that solves is.

        Examples
        --------
        >>> import torch, otflow as of
        >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
        >>> mu = of.Particles(torch.ones(1, 1, dtype=torch.float64))
        >>> run = of.flow(F, mu, of.JKO(), dt=0.5, steps=2)
        >>> "certified       2 of 2 steps (100 %)" in run.summary().splitlines()
        True
        """
        return _views.summary(self)

    def to_pandas(self, table: Literal["records", "info"] = "records") -> Any:
        """Return the records, or the reports of the steps, as a table of pandas.

        Parameters
        ----------
        table : {"records", "info"}
            Which table: one row for each recorded time, or one for each step.

        Returns
        -------
        pandas.DataFrame
            For ``"records"`` the index is ``time``. A record of one number is a column
            of its name. The entry (i, j) of a record of more is the column
            ``name[i,j]``. For ``"info"`` the index is ``step``, and each word of a
            report is a column (see `otflow.proximal.Certificate`). A word that a step
            does not have is None or NaN. Reports of parts are lists of dicts.

        Raises
        ------
        ImportError
            Without pandas (extra ``table``).
        ValueError
            If `table` is another word, or two columns would have one name.

        Examples
        --------
        >>> import torch, otflow as of
        >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1))
        >>> mu = of.Particles(torch.ones(1, 1))
        >>> run = of.flow(F, mu, of.ExplicitEuler(), dt=0.5, steps=2)
        >>> run.to_pandas()["energy"].to_dict()
        {0.0: 0.5, 0.5: 0.125, 1.0: 0.03125}
        >>> run.to_pandas("info")["energy_before"].tolist()
        [0.5, 0.125]
        """
        if check_option(table, "table", ("records", "info")) == "info":
            return _views.reports_frame(self)
        return _views.records_frame(self)

    def to_xarray(self) -> Any:
        """Return the records and the snapshots as a dataset of xarray.

        Returns
        -------
        xarray.Dataset
            Each record over ``time``, a record of several numbers also over axes
            ``name_0``, ``name_1`` of its own. ``points`` over (time, particle, dim) and
            ``weights`` over (time, particle) are those of the snapshots. Where
            snapshots were not taken at all recorded times, their axis is
            ``snapshot_time``. The attributes say status, message, steps and seed.

        Raises
        ------
        ImportError
            Without xarray (extra ``table``).
        ValueError
            If the number of points changes along the run, or a record has the name of
            a coordinate or of an axis of another record.

        Notes
        -----
        The points are copied: memory O(K n d). Points that never change, as the
        centres of a grid, are stored once.

        Examples
        --------
        >>> import torch, otflow as of
        >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1))
        >>> mu = of.Particles(torch.ones(3, 2))
        >>> run = of.flow(F, mu, of.ExplicitEuler(), dt=0.5, steps=2)
        >>> dict(run.to_xarray().sizes)
        {'time': 3, 'particle': 3, 'dim': 2}
        """
        return _views.dataset(self)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the energy, the facts, the certificates."""
        return _views.page(self)

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


def _fell(report: Certificate) -> bool:
    """Return whether a step is known to have lowered the energy."""
    before, after = report.energy_before, report.energy_after
    return before is not None and after is not None and after < before


def warn_of_solves(trajectory: Trajectory[Any]) -> None:
    """Warn once of the steps that did not converge, at the line of flow's caller."""
    info = trajectory.info
    bad = {k: found for k, step in enumerate(info) if (found := reports.failed(step))}
    if not bad:
        return
    solves = [solve for found in bad.values() for solve in found]
    sizes = [solve.residual for solve in solves if solve.residual is not None]
    what = f"{len(bad)} of {len(info)} steps did not converge, the first is step "
    what += str(min(bad)) + (f", the worst residual {max(sizes):.3g}" if sizes else "")
    larger = ", or JKO(solver) with a larger budget or tolerance" if sizes else ""
    cure = "take a smaller dt" + larger
    ailing = [solve for solve in solves if "cause" in solve]
    if ailing:
        cause, cure = ailing[0]["cause"], ailing[0]["cure"]
        count = sum(any("cause" in solve for solve in found) for found in bad.values())
        what += f"; in {count} of them {cause}"
    words = "the measure may have stayed"
    if all(map(_fell, (info[k] for k in bad))):
        words = "each lowered the energy all the same"
    msg = f"{what}; they are not certified, and {words}: {cure}"
    warn(NotConvergedWarning(msg, trajectory=trajectory))
