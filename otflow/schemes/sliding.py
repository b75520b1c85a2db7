"""Masses and places of a few atoms, minimised together: the slide of a sparse measure.

Each part lowers F or leaves the measure as it is, up to round-off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from otflow.errors import Diverged, NonFinite
from otflow.functionals import Functional
from otflow.measures import Particles
from otflow.numerics.lbfgs import GOLDEN, Memory, Point, last_places, minimise
from otflow.numerics.simplex_quadratics import least_on_simplex

__all__ = ["Box", "Slid", "best_masses", "round_off", "size_at", "slide"]

# Most evaluations of one descent, of a slide, and of a trial beside a kink.
BUDGET, TOTAL, TRY = 500, 1500, 125
# Most Newton steps for the masses, and rounds of a slide.
NEWTON, ROUNDS = 30, 4
# A short way, as a share of the box.
REACH = 1e-2
# Atoms nearer than this share of the box are tried as one, and lighter ones as none.
NEAR, LIGHT = 1e-2, 1e-6


@dataclass(frozen=True)
class Box:
    """Corners of a box, in the dtype and on the device of a measure."""

    lower: Tensor
    upper: Tensor

    @property
    def width(self) -> Tensor:
        """The widths."""
        return self.upper - self.lower

    def share(self, x: Tensor) -> Tensor:
        """Return places as shares of the box; 0.5 where it is flat."""
        flat = self.width == 0
        return torch.where(
            flat, 0.5, (x - self.lower) / self.width.masked_fill(flat, 1)
        )

    def place(self, y: Tensor) -> Tensor:
        """Return the places of shares, inside the box."""
        # Exact at both corners: lower + (upper - lower) need not be upper.
        return self.inside(torch.lerp(self.lower, self.upper, y))

    def inside(self, x: Tensor) -> Tensor:
        """Return the nearest places in the box."""
        return x.clamp(self.lower, self.upper)


@dataclass(frozen=True)
class Slid:
    """The end of a slide: the measure, the residual, the evaluations, success.

    The residual is a share of the size of F' near the measure.
    """

    measure: Particles
    residual: float
    used: int
    converged: bool


def slide(F: Functional, mu: Particles, box: Box, widest: float, *, thin: bool) -> Slid:
    """Return a stationary measure near `mu`, of few atoms.

    `widest` is the largest size that F' may count for, see `_Descent.size`. Atoms that
    are light or near others vanish if F then does not rise by more than its round-off.
    With `thin` the lightest atom and the nearest pair are tried so, however heavy and
    far, with a descent for each. All descents share one budget of evaluations.
    """
    end = _settled(F, mu, box, widest, TOTAL)
    while thin and end.measure.n > 1 and end.used < TOTAL:
        # Where one descent ends at a kink, the others will not become stationary.
        budget = TOTAL - end.used if end.converged else TRY
        value = float(F.value(end.measure))
        most = value + round_off(F, end.measure, value)
        for tried in (_left_out(end.measure), _joined(end.measure, box)):
            other = _settled(F, tried, box, widest, budget)
            used = end.used + other.used
            if float(F.value(other.measure)) <= most:
                end = replace(other, used=used)
                break
            end = replace(end, used=used)
        else:
            break
    return end


def _settled(F: Functional, mu: Particles, box: Box, widest: float, most: int) -> Slid:
    """Return the end of descents in masses, then in masses and places, by turns."""
    used = 0
    for _ in range(ROUNDS):
        mu, newton = best_masses(F, mu)
        descent = _Descent(F, mu, box, widest)
        end = minimise(
            descent,
            descent.start,
            Memory(),
            converged=descent.is_stationary,
            budget=min(BUDGET, max(most - used - newton, 1)),
        )
        used += newton + descent.used
        fewer = _fewer(F, end.point.measure, box)
        if fewer is None or used >= most:
            break
        mu = fewer
    residual = descent.residual(end.point)
    return Slid(end.point.measure, residual, used, end.converged)


def round_off(F: Functional, mu: Particles, value: float) -> float:
    """Return the round-off of F at a measure, which F and F' at its atoms tell."""
    rates = F.first_variation(mu)
    # Of F' that vanishes because its parts cancel, another measure shows the size.
    masses = 0.5 * mu.weights
    masses[mu.weights.argmin()] += 0.5
    other = F.first_variation(_of_masses(mu, masses))
    sizes = 8 * abs(value) + rates.abs().max() + 2 * (other - rates).abs().max()
    return torch.finfo(mu.dtype).eps * float(sizes)


def size_at(F: Functional, mu: Particles, box: Box, widest: float) -> float:
    """Return the size of F' near a measure, at most `widest`."""
    descent = _Descent(F, mu, box, widest)
    return descent.size(descent.start, (REACH,))


# Masses ------------------------------------------------------------------------------


def best_masses(F: Functional, mu: Particles) -> tuple[Particles, int]:
    """Return the best masses on the atoms of `mu`, and the number of evaluations.

    Newton's method on the simplex: the quadratic model is minimised exactly, so that
    atoms without use get the mass zero, and vanish. The gap over the atoms judges.
    """
    value, used, last, small = float(F.value(mu)), 0, float("inf"), False
    steep = 0.0
    eps = torch.finfo(mu.dtype).eps
    for _ in range(NEWTON):
        rates = F.first_variation(mu)
        size, used = float(rates.abs().max()), used + 1
        # Masses have the sum 1, so that a constant counts for nothing but round-off.
        rates = rates - mu.weights @ rates
        gap = -float(rates.min())
        # Where F falls by less than its round-off, the gap shows whether a step helps.
        noise = eps * max(size, steep)
        if mu.n == 1 or gap <= noise or (small and gap > last / 4):
            break
        curvature = _curvature(F, mu, rates)
        used, steep = used + mu.n, float(curvature.abs().max())
        goal = least_on_simplex(rates - curvature @ mu.weights, curvature, mu.weights)
        slope, last = float(rates @ (goal - mu.weights)), gap
        noise = 8 * eps * max(abs(value), size)
        share, found, small = 1.0, None, -slope <= noise
        while slope < 0 and share > 1e-6:
            tried = _of_masses(mu, (1 - share) * mu.weights + share * goal)
            there = float(F.value(tried))
            enough = noise if small else 1e-4 * share * slope
            if there <= value + enough:
                found, value = tried, there
                break
            share *= 0.5
        if found is None:
            break
        mu = found
    return _of_masses(mu, mu.weights, drop=True), used


def _curvature(F: Functional, mu: Particles, rates: Tensor) -> Tensor:
    """Return the second derivative of F along mixtures with the atoms of `mu`."""
    # Mixtures with one atom are probabilities, where free masses might not be.
    eps = torch.finfo(mu.dtype).eps
    h = eps ** (1 / 3)
    columns = []
    for j in range(mu.n):
        weights = (1 - h) * mu.weights
        weights[j] += h
        change = (F.first_variation(_of_masses(mu, weights)) - rates) / h
        columns.append(change - mu.weights @ change)
    A = torch.stack(columns, dim=1)
    A = 0.5 * (A + A.T)
    values, vectors = torch.linalg.eigh(A)
    # Positive definite, also where atoms coincide or F is not convex.
    least = eps ** (2 / 3) * float(values.abs().max()) + torch.finfo(A.dtype).tiny
    convex: Tensor = vectors @ torch.diag(values.abs().clamp_min(least)) @ vectors.T
    return convex


def _of_masses(mu: Particles, weights: Tensor, *, drop: bool = False) -> Particles:
    points = mu.points
    if drop:
        points, weights = points[weights > 0], weights[weights > 0]
    return Particles(points, weights / weights.sum())


# Masses and places -------------------------------------------------------------------


@dataclass(frozen=True)
class _Place(Point):
    """A measure, its coordinates, and the value and gradient there."""

    measure: Particles
    at: Tensor
    noise: float  # round-off of the gradient


class _Descent:
    """The space of L-BFGS: roots of the masses beside places in the unit box.

    The roots lie near the unit sphere, where no mass is negative. Places count by the
    mass that their atom has at the start.
    """

    def __init__(self, F: Functional, mu: Particles, box: Box, widest: float) -> None:
        self.F, self.box, self.widest, self.used = F, box, widest, 0
        masses = mu.weights[:, None].expand(-1, mu.dim)
        self.metric = torch.cat([torch.ones_like(masses[:, :1]), masses], dim=1)
        roots = mu.weights.sqrt()[:, None]
        self.start = self._at(torch.cat([roots, box.share(mu.points)], dim=1))

    def inner(self, u: Tensor, v: Tensor) -> Tensor:
        return (self.metric * u * v).sum()

    def norm(self, u: Tensor) -> float:
        return float(self.inner(u, u).sqrt())

    def move(self, point: _Place, vector: Tensor, length: float) -> _Place:
        at = point.at + length * vector
        if not bool(torch.isfinite(at).all()):
            msg = "the masses and places of the atoms left the finite numbers"
            raise Diverged(msg, measure=point.measure)
        return self._at(torch.cat([at[:, :1], at[:, 1:].clamp(0.0, 1.0)], dim=1))

    def difference(self, start: _Place, end: _Place) -> Tensor:
        return end.at - start.at

    def unit(self, point: _Place) -> Tensor:
        return last_places(point.at)

    def is_stationary(self, point: _Place) -> bool:
        """Return whether the gradient is small beside F', or beside its round-off."""
        share: float = torch.finfo(point.at.dtype).eps ** (2 / 3)
        if point.size > share * self.widest + point.noise:
            return False
        return point.size <= share * self.size(point) + point.noise

    def residual(self, point: _Place) -> float:
        """Return the gradient as a share of the size of F'."""
        size = self.size(point)
        return point.size / size if size > 0 else point.size

    def size(self, point: _Place, reaches: Sequence[float] = ()) -> float:
        """Return the size of F' near a measure, in units of the box.

        The gradient changes along a short way into the box: that change, for a way of
        unit length. Places far away do not count, where F' may be steeper by ten
        orders. A spike of F', narrower than the way, counts only as much as F' spreads
        over the box: `widest`.
        """
        x = point.at
        count = torch.arange(1, x.numel() + 1, device=x.device, dtype=x.dtype)
        way = (0.5 + 0.5 * (count * GOLDEN) % 1.0).reshape(x.shape)  # without symmetry
        way[:, 0] *= x[:, 0]
        way[:, 1:] = torch.where(x[:, 1:] > 0.5, -way[:, 1:], way[:, 1:])
        whole, sizes = self.norm(way), [0.0]
        for reach in reaches or (REACH, torch.finfo(x.dtype).eps ** 0.5):
            try:
                moved = self.move(point, way, reach)
            except NonFinite:
                continue
            change = self.norm(moved.gradient - point.gradient)
            sizes.append(change / (reach * whole))
        return min(self.widest, max(sizes))

    def _at(self, at: Tensor) -> _Place:
        self.used += 1
        roots, y = at[:, 0], at[:, 1:]
        square = roots @ roots
        mu = Particles(self.box.place(y), roots.square() / square)
        value, velocity = self.F.value_and_velocity(mu)
        rates = self.F.first_variation(mu)
        turn = 2 * roots / square * (rates - mu.weights @ rates)
        pull = -velocity * self.box.width
        # At a wall a place cannot follow a descent that leaves the box.
        stuck = ((y <= 0) & (pull > 0)) | ((y >= 1) & (pull < 0))
        pull = torch.where(stuck, 0.0, pull) * (
            mu.weights[:, None] / self.metric[:, 1:]
        )
        gradient = torch.cat([turn[:, None], pull], dim=1)
        noise = 8 * torch.finfo(at.dtype).eps * float(rates.abs().max())
        return _Place(float(value), gradient, self.norm(gradient), mu, at, noise)


def _fewer(F: Functional, mu: Particles, box: Box) -> Particles | None:
    """Return a measure of fewer atoms that does not raise F; None if there is none."""
    found, value = None, float(F.value(mu))
    while mu.n > 1:
        if float(mu.weights.min()) <= LIGHT:
            tried = _left_out(mu)
        elif float(_apart(mu, box).min()) <= NEAR:
            tried = _joined(mu, box)
        else:
            break
        if not (there := float(F.value(tried))) <= value + round_off(F, mu, value):
            break
        found = mu = tried
        value = min(value, there)
    return found


def _left_out(mu: Particles) -> Particles:
    """Return the measure without its lightest atom."""
    weights = mu.weights.clone()
    weights[weights.argmin()] = 0.0
    return _of_masses(mu, weights, drop=True)


def _apart(mu: Particles, box: Box) -> Tensor:
    """Return the distances of the atoms, in units of the box; infinity to itself."""
    y = box.share(mu.points)
    return (y[:, None] - y[None]).abs().amax(dim=2).fill_diagonal_(torch.inf)


def _joined(mu: Particles, box: Box) -> Particles:
    """Return the measure with its two nearest atoms at their centre of mass."""
    i, j = divmod(int(_apart(mu, box).argmin()), mu.n)
    points, weights = mu.points.clone(), mu.weights.clone()
    both = weights[i] + weights[j]
    points[i] = (weights[i] * points[i] + weights[j] * points[j]) / both
    weights[i], weights[j] = both, 0.0
    return _of_masses(mu.with_free_atoms(points, weights), weights, drop=True)
