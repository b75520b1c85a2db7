"""What the numbers of a run depend on, and whether a run can go on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, cached_property
from itertools import zip_longest
from types import FunctionType, ModuleType, NoneType
from typing import Any, TypeVar

import torch
from torch import Tensor

from otflow._validation import check_kind
from otflow._versions import installed
from otflow._warn import warn
from otflow.errors import ResumeWarning
from otflow.functionals.base import Functional
from otflow.measures import Measure
from otflow.schemes import Scheme
from otflow.trajectory import Trajectory

__all__ = ["compare_contexts", "context_of", "continued"]

M = TypeVar("M", bound=Measure)
_release = cache(installed)
# What the start and the end of a run have in common.
SHARED = ("dtype", "device", "dim")
# What changes the last bits of a sum, and no more.
BITS = ("threads", "processor", "otflow", "torch")
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
# A functional of a user may hold anything: the search for tensors ends somewhere.
MOST = 500
SILENT: tuple[Any, ...] = (object.__repr__, Functional.__repr__)
# What an object says of itself by its numbers and words, and what it is no part of.
PLAIN = (bool, int, float, str)
NO_PARTS = (*PLAIN, type, FunctionType, ModuleType, NoneType)


def context_of(F: Functional, mu: Measure, scheme: Scheme) -> dict[str, str]:
    """Return the functional and the scheme as text, dtype, device, versions, threads.

    The tensors that F holds count by their names and shapes. Where a part of F has no
    `__repr__` of its own, its public numbers and words count too.
    """
    parts = ", ".join(_parts(F, "F", set()))
    return {
        "functional": _text(F) + (f" with {parts}" if parts else ""),
        "scheme": _text(scheme),
        "measure": type(mu).__name__,
        "dtype": str(mu.dtype),
        "device": mu.device.type,
        "threads": str(torch.get_num_threads()) if mu.device.type == "cpu" else "any",
        "processor": torch.backends.cpu.get_cpu_capability(),
        "otflow": _release("otflow"),
        "torch": str(torch.__version__),
    }


def continued(
    run: Trajectory[M], mu: M, records: Iterable[str], end: float, generator: Any
) -> M:
    """Return the measure from which a run goes on; raise if it cannot go on."""
    check_kind(run, Trajectory, "resume", cure="hand over what a flow has returned")
    _check_end(run, mu)
    here = run.bookmark
    assert here is not None
    if here.time >= end:
        msg = (
            f"resume: the run is at time {here.time:g} and until is {end:g}: there is "
            f"nothing to do; give a later until"
        )
        raise ValueError(msg)
    if generator is not None and generator != run.seed:
        msg = (
            "resume: the run goes on with its own random numbers; leave generator out, "
            "or begin a new flow from run.final"
        )
        raise ValueError(msg)
    asked, held = sorted(records), sorted(run.records)
    if asked != held:
        msg = (
            f"resume: the run records {held} and the flow would record {asked}; give "
            f"the same names in `record`"
        )
        raise ValueError(msg)
    return run.final


def _check_end(run: Trajectory[Any], mu: Measure) -> None:
    """Raise ValueError if a run cannot go on from its end, or not with this measure."""
    if run.status == "diverged":
        msg = (
            "resume: the run diverged, and the same step would diverge again; begin a "
            "new flow from its last good measure, flow(F, run.final, ...), with a "
            "smaller dt"
        )
        raise ValueError(msg)
    if run.bookmark is None:
        msg = (
            "resume: the run has no bookmark, so the state of its scheme and its "
            "random numbers are unknown; begin a new flow from run.final"
        )
        raise ValueError(msg)
    there, here = run.bookmark.context.get("device"), mu.device.type
    if there not in (None, here):
        msg = (
            f"resume: the run was made on {there} and mu is on {here}, which draws "
            f"other random numbers; load it to where it was, or begin a new flow from "
            f"run.final"
        )
        raise ValueError(msg)
    end = run.final
    for what, own, given in (
        ("kind", type(end).__name__, type(mu).__name__),
        *((what, getattr(end, what), getattr(mu, what)) for what in SHARED),
    ):
        if own != given:
            msg = (
                f"resume: the {what} of the run is {own} and that of mu is {given}; "
                f"hand over flow(F, run.final, ..., resume=run), or begin a new flow "
                f"from mu"
            )
            raise ValueError(msg)
    known = [end, *run.snapshots[:1]] if _holds_start(run) else None
    if known and not any(_equal(mu, nu) for nu in known):
        msg = (
            "resume: mu is neither the start nor the end of the run, which goes on "
            "from its end; hand over flow(F, run.final, ..., resume=run), or begin a "
            "new flow from mu"
        )
        raise ValueError(msg)


def compare_contexts(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return what a resumed run does not share with its first part; warn once."""
    changed = [name for name in now if then.get(name) != now[name]]
    if not changed:
        return changed
    what = "; ".join(f"{k} was {then.get(k)!r} and is {now[k]!r}" for k in changed)
    if set(changed) <= set(BITS):
        result = "the run goes on, but its last bits may differ"
    else:
        result = "the run goes on as another problem; begin a new flow if unintended"
    if "scheme" in changed:
        what += "; the state of the scheme begins anew"
    warn(f"resume: {what}: {result}", ResumeWarning)
    return changed


def _holds_start(run: Trajectory[Any]) -> bool:
    return len(run.snapshots) > 0 and int(run.snapshot_steps[0]) == 0


def _equal(mu: Measure, nu: Measure) -> bool:
    pairs = list(zip_longest(mu.tensors(), nu.tensors()))
    return all(x is not None and y is not None and torch.equal(x, y) for x, y in pairs)


def _text(thing: Any) -> str:
    return ADDRESS.sub("", repr(thing))


def _parts(thing: Any, name: str, seen: set[int]) -> Iterator[str]:
    """Yield what an object holds: names and shapes of tensors, numbers not in its text.

    Private attributes are left out, and cached ones: they may hold what is computed on
    first use.
    """
    if len(seen) >= MOST or id(thing) in seen or isinstance(thing, NO_PARTS):
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield f"{name} {tuple(thing.shape)}"
    elif isinstance(thing, (list, tuple)):
        for i, part in enumerate(thing):
            yield from _parts(part, f"{name}[{i}]", seen)
    elif isinstance(thing, torch.nn.Module):
        for key, held in thing.state_dict().items():
            yield f"{name}.{key} {tuple(held.shape)}"
    else:
        kind = type(thing)
        silent = kind.__repr__ in SILENT
        for key, part in getattr(thing, "__dict__", {}).items():
            cached = isinstance(getattr(kind, key, None), cached_property)
            if key.startswith("_") or cached:
                continue
            if silent and isinstance(part, PLAIN):
                yield f"{name}.{key} {part!r}"
            yield from _parts(part, f"{name}.{key}", seen)
