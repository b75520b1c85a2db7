"""Sums over atoms and over data, of functions that are enclosed on boxes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

import otflow.numerics.enclosed_choices
import otflow.numerics.enclosed_shapes  # noqa: F401  # they fill the table
from otflow.errors import InvalidFunctional
from otflow.numerics.enclosed_operations import add, times
from otflow.numerics.enclosures import Enclosure, NotEnclosed, constant_rows
from otflow.numerics.intervals import EPS, Interval, dot, exact, outward

__all__ = [
    "Enclosed",
    "Enclosure",
    "as_enclosure",
    "combination",
    "enclosed_terms",
    "over_atoms",
    "over_columns",
    "over_rows",
    "weighted",
    "zero",
]

Enclosed: TypeAlias = Callable[[Enclosure], Enclosure]
"""A function of enclosed points (m, d) to enclosed values (m,)."""


class HasTerms(Protocol):
    """What is asked of a functional."""

    def terms(self) -> tuple[tuple[float, Any], ...]:
        """Return factors and terms."""


# Numbers in a block: a few arrays of that size stay in the second-level cache.
BLOCK = 2**16


def zero(like: Enclosure) -> Enclosure:
    """Return the function 0 of the points `like`, (C, d), as an enclosure (C,)."""
    return like.like(torch.zeros_like(like.rows[..., 0]))


def as_enclosure(values: Tensor, like: Enclosure) -> Enclosure:
    """Return values as an enclosure; a tensor does not depend on x."""
    if values.shape != like.shape[:-1]:
        msg = (
            f"a first variation must map points {tuple(like.shape)} to "
            f"{tuple(like.shape[:-1])}, got {tuple(values.shape)}; reduce over the "
            f"last axis: .sum(-1)"
        )
        raise InvalidFunctional(msg)
    if isinstance(values, Enclosure):
        return values
    return like.like(constant_rows(values, like))


def combination(parts: Iterable[tuple[float, Tensor]], like: Enclosure) -> Enclosure:
    """Return a sum of multiples of enclosures (C,)."""
    total = zero(like)
    for c, values in parts:
        part = as_enclosure(values, like)
        total = add(total, part if c == 1 else times(part, c))
    return total


def enclosed_terms(F: HasTerms, mu: Any) -> Enclosed:
    """Return the sum of c times F' of the terms of F, as a function on boxes."""
    terms = F.terms()
    if any(term is F for _, term in terms):
        msg = f"{F!r} does not state enclosed_variation(mu)"
        raise NotEnclosed(msg)
    parts = [(c, term.enclosed_variation(mu)) for c, term in terms]
    return lambda x: combination(((c, part(x)) for c, part in parts), x)


def over_atoms(
    function: Callable[[Enclosure, Tensor], Tensor],
    x: Enclosure,
    points: Tensor,
    masses: Tensor,
) -> Enclosure:
    """Return the sum over j of masses_j f(x, y_j), block by block.

    Parameters
    ----------
    function : callable
        Maps x (C, 1, d) and atoms (k, d) to (C, k).
    x : Enclosure, shape (C, d)
        Points.
    points : Tensor, shape (n, d)
        Atoms y.
    masses : Tensor, shape (n,)
        Masses of either sign.

    Returns
    -------
    Enclosure, shape (C,)
        The sum.
    """
    points, masses = points.to(x.rows), masses.to(x.rows)
    size = max(1, BLOCK // (x.rows[0, :, :, 0].numel() or 1))
    rows = zero(x).rows
    column = x.like(x.rows[..., None, :])
    for start in range(0, len(points), size):
        part = slice(start, start + size)
        values = function(column, points[part])
        if not isinstance(values, Enclosure):
            constant = values.expand(*x.shape[:1], len(points[part]))
            values = x.like(constant_rows(constant, x))
        rows = outward(rows + weighted(values.rows, masses[part]))
    return x.like(rows)


def weighted(rows: Interval, masses: Tensor) -> Interval:
    """Return the sum over the last axis, with real numbers as weights."""
    return dot(rows, masses[:, None])[..., 0]


def over_columns(values: Tensor, masses: Tensor) -> Tensor:
    """Return the sum over axis 1 of values (k, n) or (k, n, m), with masses (n,)."""
    if not isinstance(values, Enclosure):
        return torch.einsum("kn...,n->k...", values.to(masses), masses)
    return values.like(weighted(values.rows.movedim(3, -1), masses))


def over_rows(
    function: Callable[[slice, Enclosure], Tensor], x: Enclosure, slopes: Interval
) -> Enclosure:
    """Return the sum over rows k of slopes_k . f_k(x), block by block.

    Parameters
    ----------
    function : callable
        Maps a block of k rows, and x, to (k, C) or (k, C, m).
    x : Enclosure, shape (C, p)
        Points.
    slopes : Tensor, shape (2, n) or (2, n, m)
        Intervals.

    Returns
    -------
    Enclosure, shape (C,)
        The sum.
    """
    middle = 0.5 * slopes[0] + 0.5 * slopes[1]
    radius = torch.maximum(slopes[1] - middle, middle - slopes[0]) * (1 + 4 * EPS)
    size = max(1, BLOCK // (x.rows[0, :, :, 0].numel() or 1))
    rows = zero(x).rows
    for start in range(0, slopes.shape[1], size):
        part = slice(start, start + size)
        values = function(part, x)
        if not isinstance(values, Enclosure):
            values = x.like(constant_rows(values, x))
        columns = values.rows.movedim(2, 3).flatten(3)  # (2, r, C, k m)
        within = weighted(columns, middle[part].flatten())
        slack = weighted(exact(columns.abs().amax(0)), radius[part].flatten())[1]
        rows = outward(rows + torch.stack([within[0] - slack, within[1] + slack]), 2.0)
    return x.like(rows)
