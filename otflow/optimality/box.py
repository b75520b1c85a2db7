"""Gaps over all measures on a box."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from otflow._validation import non_negative_int, positive
from otflow.errors import InvalidFunctional, NonFinite
from otflow.functionals import Functional
from otflow.measures import GridDensity, Measure, Particles
from otflow.numerics.enclosed_sums import weighted
from otflow.numerics.enclosures import Enclosure, NotEnclosed
from otflow.numerics.intervals import EPS, Interval
from otflow.optimality.domains import Domain, corner_of, text_of_corner
from otflow.optimality.enclosing import effect_of_rescaling, variation_on_boxes
from otflow.optimality.gap import Gap, GapKind, shown_place
from otflow.optimality.proofs import STARTS, bound_below
from otflow.optimality.search import search
from otflow.optimality.trials import try_enclosure

__all__ = ["BoxDomain"]

Result = TypeVar("Result")

# A bracket of so many units of the round-off in the mean of F' is sharp enough.
ROUND = 1000.0
# Newton steps converge quadratically: more of them are of no use.
NEWTON = 12
# In more dimensions a sharp bound may need more cells than anyone has.
PROVABLE = 4


class BoxDomain(Domain):
    r"""All probability measures on the box with corners `lower` and `upper`.

    On particles the least :math:`F'[\mu]` is bounded from below by branch and bound.
    The box is cut into cells. On each cell, interval arithmetic with outward rounding
    :cite:p:`moore2009introduction` bounds :math:`F'[\mu]`, its gradient and Hessian. A
    cell that cannot hold the minimum is left out, the others are cut again.

    Parameters
    ----------
    lower, upper : float, sequence of float, Tensor or ndarray
        Corners: one number per axis, or one number for all axes. They are rounded to
        the dtype of the measure. For a function of period L any box of side L will do.
    max_cells : int
        Most cells. With fewer than a sharp bound needs the bound is proved all the
        same.
    sharpness : float
        The share of the found gap by which a proved value may exceed it. At a minimum,
        where the gap is 0, it may by 1,000 times the round-off in the mean of F'.

    Attributes
    ----------
    lower, upper : tuple of float
        Corners; one number stands for all axes.
    max_cells, sharpness
        As above.

    Raises
    ------
    TypeError, ValueError
        If a corner is no number, or NaN, or `lower` does not lie below `upper`.

    Notes
    -----
    Time O(n d^2) for a cell and n atoms, and as much for each atom of the mean. The
    number of cells for a sharp bound grows exponentially in the dimension: it suffices
    for d up to about 4. In more dimensions take a small box, or read ``value - found``,
    which is at most what the bound has lost. F' is enclosed some ten times, on up to 64
    cells at once. With 500 to 2,000 atoms or neurons all of it takes 2 to 9 velocities
    of F. An enclosure is at least some 200 operations of torch, so it takes as long as
    several velocities of a few dozen atoms.

    A measure with mass where F' is NaN does not compete, as F is not defined there. F'
    must be finite at the atoms of the measure itself.

    Examples
    --------
    >>> import otflow as of
    >>> of.optimality.BoxDomain(0, [1, 2])
    BoxDomain(0.0, (1.0, 2.0))
    """

    def __init__(
        self,
        lower: Any,
        upper: Any,
        *,
        max_cells: int = 20_000,
        sharpness: float = 0.01,
    ) -> None:
        self.lower, self.upper = corner_of(lower, "lower"), corner_of(upper, "upper")
        if 1 < len(self.lower) != len(self.upper) > 1:
            msg = (
                f"lower has {len(self.lower)} numbers and upper {len(self.upper)}; "
                f"give one per axis, or one for all axes"
            )
            raise ValueError(msg)
        self._check_order(np.array(self.lower), np.array(self.upper), "")
        self.max_cells = non_negative_int(max_cells, "max_cells", minimum=1)
        self.sharpness = positive(sharpness, "sharpness")

    def gap(self, F: Functional, mu: Measure, descend: int) -> Gap:
        lower, upper = self._corners(mu)
        if not bool(torch.isfinite(torch.stack([lower, upper, upper - lower])).all()):
            reason = f"the domain is unbounded: {self!r}; give finite corners"
            if all(map(math.isfinite, self.lower + self.upper)):
                reason = f"the domain is too wide for {mu.dtype}: {self!r}"
            return Gap(math.inf, None, GapKind.NONE, reason, math.inf)
        self._check_order(
            lower.cpu().numpy(), upper.cpu().numpy(), f" once rounded to {mu.dtype}"
        )
        # What F cannot do on such a measure no larger box cures. And a proof computes
        # in float64 all the same, and would hide another dtype in F.
        told: Tensor | NonFinite
        try:
            told = F.first_variation(mu).detach()
        except NonFinite as error:
            told = error
        self._check_inside(mu, lower, upper)
        try:
            return self._proved(F, mu, told, descend)
        except NotEnclosed as missing:
            reason = f"not proved: {missing}"
        found = search(F, mu, lower, upper, descend)
        best = found.places[0]
        return Gap(found.gap, best, GapKind.SEARCHED, reason, found.gap)

    def _proved(
        self, F: Functional, mu: Measure, told: Tensor | NonFinite, descend: int
    ) -> Gap:
        if not isinstance(mu, Particles):
            msg = f"F' is enclosed on Particles alone, and mu is a {type(mu).__name__}"
            if isinstance(mu, GridDensity):
                msg += "; on a grid OnGrid() is a domain with a proof"
            raise NotEnclosed(msg)
        kind = mu.points.dtype
        lower, upper = (corner.to(torch.float64) for corner in self._corners(mu))
        own = mu
        # The same numbers: a move to float64 would change the masses to the sum 1.
        points, weights = (t.detach().double() for t in (mu.points, mu.weights))
        mu = mu.with_free_atoms(points, weights, is_uniform=mu.is_uniform)
        enclose = _guarded(_guarded(variation_on_boxes)(F, mu))
        at = enclose(Enclosure.of(mu.points, mu.points, 0)).value
        low, mean = weighted(at[:, None], mu.weights)[:, 0].tolist()
        if not math.isfinite(mean):
            reason = "no finite bound of F' at the atoms of mu was found"
            return Gap(math.inf, None, GapKind.NONE, reason, math.inf)
        # Enclosures hold where F' is a number: a sigmoid of NaN too lies in [0, 1].
        if isinstance(told, NonFinite):
            raise told
        if not bool(torch.isfinite(told).all()):
            reason = "F' is not finite at an atom of mu"
            return Gap(math.inf, None, GapKind.NONE, reason, math.inf)
        proof = bound_below(
            enclose,
            lower,
            upper,
            _lowest(mu, at, lower, upper),
            sharp=lambda best: max(
                self.sharpness * (mean - best), ROUND * (mean - low)
            ),
            max_cells=self.max_cells,
            steps=min(descend, NEWTON),
        )
        corners = torch.stack([proof.argmin.to(lower), lower, upper])
        try_enclosure(F, own, enclose, torch.cat([corners, mu.points[:STARTS]]))
        if not math.isfinite(proof.bound):
            reason = (
                f"no lower bound of F' was found on {proof.cells} cells: F' may fall "
                f"without bound near {shown_place(proof.argmin)}, where it is "
                f"{proof.best:.3g}; take a box without this place, or fewer max_cells "
                f"to be told sooner"
            )
            return Gap(math.inf, None, GapKind.NONE, reason, mean - proof.best)
        reason = f"F' was bounded from below on {proof.cells} cells"
        if not proof.finished:
            reason += "; " + _advice(mu.dim)
        value, found = mean - proof.bound, mean - proof.best
        if excess := abs(float(weights.sum()) - 1.0):
            # The measures that compete have mass 1 or that of mu.
            value += excess * (2 * abs(mean) + value)
            if kind != torch.float64:
                level = abs(float(told.double() @ weights))
                value += excess * level
        if kind != torch.float64:
            value += 2 * effect_of_rescaling(F, mu, lower, upper)
        value = math.nextafter(value * (1 + 8 * EPS), math.inf)  # these sums round
        return Gap(value, proof.argmin.to(kind), GapKind.PROVED, reason, found)

    def _corners(self, mu: Measure) -> tuple[Tensor, Tensor]:
        """Return the corners as tensors (d,) of the dtype of the measure."""
        for name in ("lower", "upper"):
            held = len(getattr(self, name))
            if held not in (1, mu.dim):
                msg = (
                    f"{name} has {held} numbers and the measure has dimension "
                    f"{mu.dim}; give one per axis, or one for all axes"
                )
                raise ValueError(msg)
        low = mu.points.detach().new_tensor(self.lower).expand(mu.dim)
        high = mu.points.detach().new_tensor(self.upper).expand(mu.dim)
        return low, high

    def _check_order(self, lower: Any, upper: Any, where: str) -> None:
        """Raise ValueError if an axis has no length."""
        if not (lower < upper).all():
            msg = (
                f"lower must lie below upper on every axis{where}, got "
                f"{text_of_corner(self.lower)} and {text_of_corner(self.upper)}"
            )
            raise ValueError(msg)

    def _check_inside(self, mu: Measure, lower: Tensor, upper: Tensor) -> None:
        """Raise ValueError if an atom with mass lies outside, or the box off a grid."""
        if isinstance(mu, GridDensity):
            ends = torch.tensor([mu.box.lower, mu.box.upper]).to(lower)
            if bool(((lower < ends[0]) | (upper > ends[1])).any()):
                a, b = (torch.maximum(lower, ends[0]), torch.minimum(upper, ends[1]))
                msg = (
                    f"{self!r} reaches beyond the grid of mu, where its densities have "
                    f"no mass; take BoxDomain({a.tolist()}, {b.tolist()}), or OnGrid() "
                    f"for a proof"
                )
                raise ValueError(msg)
        points = mu.points.detach()
        outside = ((points < lower) | (points > upper)).any(1) & (mu.weights > 0)
        if not bool(outside.any()):
            return
        k = int(outside.nonzero()[0])
        held = points[mu.weights > 0]
        low = torch.minimum(lower, held.amin(0)).tolist()
        high = torch.maximum(upper, held.amax(0)).tolist()
        msg = (
            f"the domain misses {int(outside.sum())} of {mu.n} points of mu, such as "
            f"{points[k].tolist()} at index {k}; take BoxDomain({low}, {high})"
        )
        raise ValueError(msg)

    def __repr__(self) -> str:
        return f"BoxDomain({text_of_corner(self.lower)}, {text_of_corner(self.upper)})"


def _guarded(function: Callable[..., Result]) -> Callable[..., Result]:
    """Return a function of a user's functions that raises `NotEnclosed` for any fault.

    A fault that has nothing to do with intervals shows in a search. A wrong shape,
    `InvalidFunctional`, is one.
    """

    def guarded(*args: Any) -> Result:
        try:
            return function(*args)
        except (NotEnclosed, InvalidFunctional):
            raise
        except Exception as error:
            msg = f"F' cannot be enclosed: {type(error).__name__}: {error}"
            raise NotEnclosed(msg) from error

    return guarded


def _advice(dim: int) -> str:
    """Return what makes a bound sharper for which the cells did not suffice."""
    if dim <= PROVABLE:
        return "more of them, max_cells, make the bound sharper"
    return (
        f"what a sharp bound needs grows exponentially in the dimension, here {dim}, "
        f"and value - found is at most what is lost; take a smaller box, or a larger "
        f"sharpness"
    )


def _lowest(mu: Measure, at: Interval, lower: Tensor, upper: Tensor) -> Tensor:
    """Return the lowest atoms inside the box, or its middle if there are none."""
    inside = ((mu.points >= lower) & (mu.points <= upper)).all(1)
    values = torch.where(inside, at[1], math.inf)
    order = values.argsort()[: min(STARTS, int(inside.sum()))]
    return mu.points[order] if len(order) else (0.5 * (lower + upper))[None]
