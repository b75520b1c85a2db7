"""Branch and bound: the largest value of a function, on cells that are cut."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

__all__ = ["Bracket", "Cells", "Found", "Problem", "branch_and_bound"]

Cells: TypeAlias = tuple[Tensor, ...]
"""Tensors that describe cells: entry k along each first axis belongs to cell k."""


@dataclass
class Found:
    """What is known of a batch of B cells.

    Parameters
    ----------
    upper : Tensor, shape (B,)
        No value on the cell is larger; minus infinity if the cell may be left out.
    value : float
        The largest value that was found on the way.
    place : Tensor, shape (q,)
        Its place.
    cut : callable
        Maps indices of cells (k,) to the parts into which those are cut, and to the
        place (c,) of the cell among the k of which each is a part. A cell without a
        part is not cut any more.
    """

    upper: Tensor
    value: float
    place: Tensor
    cut: Callable[[Tensor], tuple[Cells, Tensor]]


class Problem(Protocol):
    """A function of which the largest value is sought."""

    def bound(self, cells: Cells) -> Found:
        """Bound the function on cells."""

    def goal(self, value: float) -> float:
        """Return the bound that is sharp enough where this value was found."""


@dataclass
class Bracket:
    """The largest value of a function lies between `value` and `upper`.

    Parameters
    ----------
    value : float
        The largest value that was found.
    upper : float
        No value is larger.
    place : Tensor, shape (q,)
        Where the function takes the value.
    spent : int
        Number of cells that were bounded.
    closed : bool
        Whether the bound is as sharp as was asked for.
    """

    value: float
    upper: float
    place: Tensor
    spent: int
    closed: bool


def branch_and_bound(
    problem: Problem,
    cells: Cells,
    value: float,
    place: Tensor,
    *,
    budget: int,
    at_once: int,
) -> Bracket:
    """Bracket the largest value of a function on the union of cells.

    The cells of the largest bounds come first. A cell is dropped once its bound is
    sharp enough beside the largest value that was found; the others are cut.

    Parameters
    ----------
    problem : Problem
        The function.
    cells : tuple of Tensor, each of shape (C, ...)
        Cells that cover its domain.
    value : float
        A value of the function.
    place : Tensor, shape (q,)
        Its place.
    budget : int
        Most cells to bound.
    at_once : int
        Most cells to bound together.

    Returns
    -------
    Bracket
        The bracket. It is not closed where the budget ended the search.
    """
    upper = cells[0].new_full((len(cells[0]),), math.inf)
    spent, dropped = 0, -math.inf
    while len(upper) and spent < budget:
        count = min(at_once, budget - spent)
        now, rest = cells, _take(cells, slice(0))
        inherited, waiting = upper, upper[:0]
        if len(upper) > count:
            order = upper.argsort(descending=True)
            first, last = order[:count], order[count:]
            now, rest = _take(cells, first), _take(cells, last)
            inherited, waiting = upper[first], upper[last]
        found = problem.bound(now)
        spent += len(inherited)
        if found.value > value:
            value, place = found.value, found.place
        # A bound that is NaN says nothing, and the one of the whole cell holds.
        bounds = torch.fmin(found.upper, inherited)
        goal = problem.goal(value)
        kept = (bounds > goal).nonzero()[:, 0]
        new, parents = _take(now, slice(0)), kept
        if len(kept):
            new, parents = found.cut(kept)
        # What is not cut counts by its bound.
        ended = bounds.index_fill(0, kept[parents], -math.inf)
        dropped = max(dropped, float(ended.max()))
        cells, upper = new, bounds[kept[parents]]
        if len(waiting):
            open_ = waiting > goal
            if not bool(open_.all()):
                dropped = max(dropped, float(waiting[~open_].max()))
                waiting, rest = waiting[open_], _take(rest, open_)
            cells = tuple(torch.cat(pair) for pair in zip(rest, new, strict=True))
            upper = torch.cat([waiting, upper])
    closed = not len(upper)
    top = max(dropped, value, -math.inf if closed else float(upper.max()))
    return Bracket(value, top, place, spent, closed)


def _take(cells: Cells, index: Tensor | slice) -> Cells:
    return tuple(t[index] for t in cells)
