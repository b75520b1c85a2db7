"""Masses and places of a few atoms, minimised together: the slide of a sparse measure.

Each part lowers F or leaves the measure as it is, up to round-off.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from otflow.errors import Diverged
from otflow.functionals import Functional
from otflow.measures import Particles
from otflow.numerics.lbfgs import Memory, Point, last_places, minimise
from otflow.numerics.simplex_quadratics import least_on_simplex

__all__ = ["Box", "Slid", "best_masses", "round_off", "slide"]

# Most evaluations of one descent, Newton steps for the masses, and rounds of a slide.
BUDGET, NEWTON, ROUNDS = 500, 30, 4
# Atoms nearer than this share of the box are tried as one, and lighter ones as none.
NEAR, LIGHT = 1e-2, 1e-6


@dataclass(frozen=True)
class Box:
    """Corner and widths of a box, in the dtype and on the device of a measure."""

    lower: Tensor
    width: Tensor

    def share(self, x: Tensor) -> Tensor:
        """Return places as shares of the box; 0.5 where it is flat."""
        flat = self.width == 0
        return torch.where(
            flat, 0.5, (x - self.lower) / self.width.masked_fill(flat, 1)
        )

    def place(self, y: Tensor) -> Tensor:
        """Return the places of shares, inside the box."""
        return self.inside(self.lower + self.width * y)

    def inside(self, x: Tensor) -> Tensor:
        """Return the nearest places in the box."""
        return x.clamp(self.lower, self.lower + self.width)


@dataclass(frozen=True)
class Slid:
    """The end of a slide: the measure, the residual, the evaluations, success."""

    measure: Particles
    residual: float
    used: int
    converged: bool


def slide(F: Functional, mu: Particles, box: Box, scale: float, *, thin: bool) -> Slid:
    """Return a stationary measure near `mu`, of few atoms.

    `scale` is a size of F': a residual below ``eps^(2/3) scale`` has converged. Atoms
    that are light or near others vanish if F then does not rise by more than its
    round-off. With `thin` the lightest atom and the nearest pair are tried so, however
    heavy and far, with a descent for each.
    """
    end = _settled(F, mu, box, scale)
    while thin and end.measure.n > 1:
        value = float(F.value(end.measure))
        for tried in (_left_out(end.measure), _joined(end.measure, box)):
            other = _settled(F, tried, box, scale)
            there, used = float(F.value(other.measure)), end.used + other.used
            if there <= value + round_off(value, scale, mu):
                end = replace(other, used=used)
                break
            end = replace(end, used=used)
        else:
            break
    return end


def _settled(F: Functional, mu: Particles, box: Box, scale: float) -> Slid:
    """Return the end of descents in masses, then in masses and places, by turns."""
    tolerance, used = torch.finfo(mu.dtype).eps ** (2 / 3) * scale, 0
    for _ in range(ROUNDS):
        mu, newton = best_masses(F, mu, tolerance)
        descent = _Descent(F, mu, box)
        end = minimise(
            descent,
            descent.start,
            Memory(),
            converged=lambda place: place.size <= tolerance,
            budget=BUDGET,
        )
        used += newton + end.used
        fewer = _fewer(F, end.point.measure, box, scale)
        if fewer is None:
            break
        mu = fewer
    return Slid(end.point.measure, end.point.size, used, end.converged)


def round_off(value: float, scale: float, mu: Particles) -> float:
    """Return the round-off of F, which the sizes of F and of F' tell."""
    return torch.finfo(mu.dtype).eps * (8 * abs(value) + scale)


# Masses ------------------------------------------------------------------------------


def best_masses(
    F: Functional, mu: Particles, tolerance: float
) -> tuple[Particles, int]:
    """Return the best masses on the atoms of `mu`, and the number of evaluations.

    Newton's method on the simplex: the quadratic model is minimised exactly, so that
    atoms without use get the mass zero, and vanish. The gap over the atoms judges.
    """
    value, used, last, small = float(F.value(mu)), 0, float("inf"), False
    eps = torch.finfo(mu.dtype).eps
    for _ in range(NEWTON):
        rates = F.first_variation(mu)
        size, used = float(rates.abs().max()), used + 1
        # Masses have the sum 1, so that a constant counts for nothing but round-off.
        rates = rates - mu.weights @ rates
        gap = -float(rates.min())
        # Where F falls by less than its round-off, the gap shows whether a step helps.
        if mu.n == 1 or gap <= eps ** (1 / 3) * tolerance or (small and gap > last / 4):
            break
        curvature = _curvature(F, mu, rates)
        used += mu.n
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


class _Descent:
    """The space of L-BFGS: roots of the masses beside places in the unit box.

    The roots lie near the unit sphere, where no mass is negative. Places count by the
    mass that their atom has at the start.
    """

    def __init__(self, F: Functional, mu: Particles, box: Box) -> None:
        self.F, self.box = F, box
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

    def _at(self, at: Tensor) -> _Place:
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
        return _Place(float(value), gradient, self.norm(gradient), mu, at)


def _fewer(F: Functional, mu: Particles, box: Box, scale: float) -> Particles | None:
    """Return a measure of fewer atoms that does not raise F; None if there is none."""
    found, value = None, float(F.value(mu))
    while mu.n > 1:
        if float(mu.weights.min()) <= LIGHT:
            tried = _left_out(mu)
        elif float(_apart(mu, box).min()) <= NEAR:
            tried = _joined(mu, box)
        else:
            break
        if not (there := float(F.value(tried))) <= value + round_off(value, scale, mu):
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
