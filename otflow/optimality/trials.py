"""Enclosures of what users wrote are tried against the first variation itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from otflow.errors import InvalidFunctional, OtflowError
from otflow.functionals import Functional
from otflow.measures import Measure, Particles
from otflow.numerics.enclosures import Enclosure, NotEnclosed
from otflow.numerics.lbfgs import last_places
from otflow.optimality.gap import shown_place

__all__ = ["try_enclosure"]

# A wrong factor or a missing term changes differences of F' by more than this share.
SHARE = 1e-3
# Round-off of a first variation, in units of that of its dtype.
ROUND_OFF = 1e4
# And in units of what a move of each atom by a unit in its last place changes.
MOVED = 64
# What a functional states of its own F' beside its value.
STATED = ("enclosed_variation", "terms")
# Whose code the round-off and the sums of functions are known of.
LIBRARIES = ("otflow", "builtins", "torch", "collections", "numpy")


def try_enclosure(
    F: Functional,
    mu: Particles,
    enclose: Callable[[Enclosure], Enclosure],
    places: Tensor,
) -> None:
    """Raise if an enclosure is not of F', up to a constant, at some places.

    An enclosure follows from terms, from a method of the user's own, or from functions
    that see an `Enclosure` of float64 in the place of a tensor. These may differ.

    Parameters
    ----------
    F : Functional
        What is enclosed. Of the library alone, whose enclosures have tests of their
        own, it is not tried.
    mu : Particles
        Where F is differentiated, in its own dtype.
    enclose : callable
        The enclosure that is tried.
    places : Tensor, shape (k, d)
        Where it is compared; at least two.

    Raises
    ------
    InvalidFunctional
        If the user states the enclosure or the terms.
    NotEnclosed
        If a function gives other values.
    """
    parts = list(_parts(F))
    if all(map(_is_of_libraries, parts)):
        return
    x = places.detach().to(mu.points)
    mu = mu.detach()
    told = _told(F, mu, x)
    near = mu.with_free_atoms(
        mu.points + last_places(mu.points), mu.weights, is_uniform=mu.is_uniform
    )
    if not torch.equal(_told(F, mu, x).nan_to_num(), told.nan_to_num()):
        msg = "F' gives two values at one place"
        raise NotEnclosed(msg)
    # Two places alone tell a function of other rows.
    some = torch.tensor([0, len(x) - 1])
    alone = torch.cat([_alone(F, mu, x, int(k)) for k in some])
    moved = (_told(F, near, x) - told).abs().nan_to_num(0.0, 0.0, 0.0).max()
    differ = float((alone - told[some]).abs().nan_to_num(0.0).max())
    known = told.isfinite()
    told, x = told[known], x[known]
    if len(told) < 2:
        return
    low, high = enclose(Enclosure.of(x.double(), x.double(), 0)).value
    enclosed = 0.5 * (low + high)
    size = float(torch.stack([told, enclosed]).abs().max())
    noise = ROUND_OFF * torch.finfo(mu.dtype).eps * size + float((high - low).max())
    noise += MOVED * float(moved)
    if differ > SHARE * size + noise:
        msg = (
            f"F' at a place alone differs by {differ:.6g} from that among other "
            f"places; a function of x must not depend on its other rows"
        )
        raise NotEnclosed(msg)
    a, b = enclosed - enclosed[0], told - told[0]
    spread = float(torch.stack([a, b]).abs().max())
    k = int((a - b).abs().argmax())
    if float((a - b).abs()[k]) <= SHARE * spread + noise:
        return
    change = (
        f"from {shown_place(x[0])} to {shown_place(x[k])} it changes by "
        f"{float(a[k]):.6g}, and the first variation by {float(b[k]):.6g}"
    )
    for name in STATED:
        stated = [part for part in parts if _states(part, name)]
        if stated:
            msg = (
                f"{name} of {stated[0]!r} is not that of its value: {change}; correct "
                f"the factor or the term that differs, or leave the method out, and "
                f"the gap is searched"
            )
            raise InvalidFunctional(msg)
    msg = (
        f"F' on intervals is not F' on tensors: {change}; a function of x must not "
        f"depend on its dtype, its class or its other rows"
    )
    raise NotEnclosed(msg)


def _told(F: Functional, mu: Measure, x: Tensor) -> Tensor:
    """Return F' at places; NaN where it has no value."""
    try:
        return F.first_variation(mu, x).detach().double()
    except OtflowError:
        return torch.cat([_alone(F, mu, x, k) for k in range(len(x))])


def _alone(F: Functional, mu: Measure, x: Tensor, k: int) -> Tensor:
    """Return F' at one place (1,); NaN if it has no value there."""
    try:
        return F.first_variation(mu, x[k : k + 1]).detach().double()
    except OtflowError:
        return x.new_full((1,), torch.nan, dtype=torch.float64)


def _parts(thing: Any, seen: set[int] | None = None) -> Iterator[Any]:
    """Yield what F consists of: functionals, kernels, networks, functions."""
    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, (Tensor, Measure, str)):
        return
    seen.add(id(thing))
    yield thing
    if isinstance(thing, Mapping):
        inner = list(thing.values())
    elif isinstance(thing, (list, tuple)):
        inner = list(thing)
    else:
        inner = list(getattr(thing, "__dict__", {}).values()) if _opens(thing) else []
    for part in inner:
        yield from _parts(part, seen)


def _opens(thing: Any) -> bool:
    """Return whether what a thing consists of is in its attributes."""
    ours = type(thing).__module__.split(".")[0] == "otflow"
    return ours or isinstance(thing, (Functional, torch.nn.Module))


def _module(thing: Any) -> str:
    """Return the module of a function, or of the class of anything else."""
    name = getattr(thing, "__module__", None)
    return name if isinstance(name, str) else type(thing).__module__


def _is_of_libraries(thing: Any) -> bool:
    return _module(thing).split(".")[0] in LIBRARIES


def _states(thing: Any, name: str) -> bool:
    """Return whether a method of a functional is one of a class outside the library."""
    if not isinstance(thing, Functional):
        return False
    return not getattr(type(thing), name).__module__.startswith("otflow.")
