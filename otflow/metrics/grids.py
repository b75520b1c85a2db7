r"""Proof of the W2 distance between atoms on two lattices, without their pairs.

The lower bound comes from potentials with :math:`f(x) + g(y) \le |x - y|^2`, which the
c-transform makes of any others. The upper bound is the cost of the plan
:math:`a(x)\,b(y)\,e^{(f + g - |x - y|^2)/\varepsilon}` after its second marginal is
corrected :cite:p:`altschuler2017near`. Kernel and cost are sums or products over the
axes, so both bounds take time and memory of a few passes over the grids. The plan is
blurred over a length :math:`\sqrt{\varepsilon/2}`, which costs about :math:`d/2` times
:math:`\varepsilon`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from otflow.metrics.bracket import NOISE
from otflow.metrics.lattices import Lattice, soft_moments, soft_sums, transformed
from otflow.metrics.rounding import rounded_cost

__all__ = ["Proof", "between_lattices", "common_shift"]

# A lattice serves for eps down to FINE squares of its spacing; then a finer one does.
FINE = 2.0
# Largest eps on the given lattices, in squares of the spacing: a larger one takes more
# time, since more pairs count.
CHEAP = 4.0
# The iteration goes on to the last eps if it is more than this share of the one before.
NEXT = 0.35
# Least eps, in squares of the finest spacing. Below, the iteration takes too many steps
# for the mass of a cell to choose between two nodes.
LEAST = 0.5
# Share of the tolerance that the blur may take; the marginal takes the rest.
BLUR = 0.75
# Iterations for each eps, and the relaxation of the inner ones.
ITERATIONS, RELAXATION = 20, 1.7
# Rounds of more iterations, or of a smaller eps, after the first bounds.
ROUNDS = 6
# Exponents below the largest that count in an iteration, and in the bounds: e^-48 is
# 1e-21.
SEEN, ALL = 24.0, 48.0
# Round-off of a mass, a coordinate, and a sum of bounds, in units of the last digit.


class Proof(NamedTuple):
    """Potentials on the whole lattices, the bounds, and their round-off."""

    f: Tensor
    g: Tensor
    lower: float
    upper: float
    noise: float


@dataclass(frozen=True, eq=False)
class _Potentials:
    """Entropic potentials for one eps on a pair of lattices."""

    mu: Lattice
    nu: Lattice
    eps: float
    f: Tensor
    g: Tensor

    def forward(self, f: Tensor, axes: tuple[Tensor, ...], cut: float = SEEN) -> Tensor:
        """Return the g that f implies at these places."""
        v = f / self.eps + self.mu.log
        return -self.eps * soft_sums(v, self.mu.axes, axes, self.eps, cut)

    def back(self, g: Tensor, axes: tuple[Tensor, ...], cut: float = SEEN) -> Tensor:
        """Return the f that g implies at these places."""
        v = g / self.eps + self.nu.log
        return -self.eps * soft_sums(v, self.nu.axes, axes, self.eps, cut)

    def on(self, mu: Lattice, nu: Lattice) -> _Potentials:
        """Return the potentials at the nodes of other lattices."""
        g = self.forward(self.f, nu.axes)
        f = replace(self, nu=nu).back(g, mu.axes)
        return _Potentials(mu, nu, self.eps, f, g)

    def iterated(self, count: int) -> _Potentials:
        """Return the potentials after iterations of Sinkhorn, over-relaxed."""
        f, g = self.f, self.g
        for k in range(count):
            # Plain iterations first remove what the change of eps left, and at last
            # what the relaxation left.
            step = RELAXATION if 2 < k < count - 2 else 1.0
            g = g + step * (self.forward(f, self.nu.axes) - g)
            f = f + step * (self.back(g, self.mu.axes) - f)
        return replace(self, f=f, g=g)


def common_shift(mu: Lattice, nu: Lattice) -> Tensor | None:
    """Return the vector by which all atoms of nu are those of mu moved, or None."""
    (mu, _), (nu, _) = mu.trimmed(), nu.trimmed()
    if mu.masses.shape != nu.masses.shape:
        return None
    # Masses that were divided by their sum differ by its round-off.
    if not torch.allclose(mu.masses, nu.masses, rtol=NOISE, atol=0.0):
        return None
    gaps = [y - x for x, y in zip(mu.axes, nu.axes, strict=True)]
    size = max(float(z.abs().max()) for z in (*mu.axes, *nu.axes))
    if any(float(g.max() - g.min()) > NOISE * size for g in gaps):
        return None
    return torch.stack([g[0] for g in gaps])


def between_lattices(
    mu: Lattice, nu: Lattice, tolerance: float, *, always: bool = False
) -> Proof | None:
    """Return bounds that differ by a share `tolerance` of the upper one.

    None stands for a tolerance that needs a blur far below the spacing, unless `always`
    is true. The bounds are wider if the rounds end first.

    Time: some 100 iterations, each of a few exponentials for a node, an axis, and a
    spacing in the length sqrt(eps). Memory O(n d).
    """
    center, shift = mu.mean, common_shift(mu, nu)
    is_moved = shift is not None
    if shift is None:
        shift = nu.mean - center
    # Around both barycentres the costs are least, and the potentials have most digits.
    mu, nu = mu.moved(-center), nu.moved(-center - shift)
    far = float(shift @ shift)
    if is_moved:
        zero = torch.zeros_like
        same = torch.equal(mu.trimmed()[0].masses, nu.trimmed()[0].masses)
        noise = 0.0 if same else NOISE * _reach(mu, nu)
        best: Proof | None = Proof(zero(mu.masses), zero(nu.masses), 0.0, 0.0, noise)
    else:
        best = _between_centred(mu, nu, far, tolerance, always=always)
    if best is None:
        return None
    f, g = best.f, best.g + far
    for k, s in enumerate(shift):
        f, g = f - mu.on(k, 2 * s * mu.axes[k]), g + nu.on(k, 2 * s * nu.axes[k])
    noise = best.noise + NOISE * far
    return Proof(f, g, best.lower + far, best.upper + far, noise)


def _between_centred(
    mu: Lattice, nu: Lattice, far: float, tolerance: float, *, always: bool
) -> Proof | None:
    """Return bounds of the part of the cost that a common move does not explain."""
    (own, _), (other, _) = mu.trimmed(), nu.trimmed()
    if tolerance == 0 and not always:
        return None
    point = _on_the_lattices(own, other, far, tolerance, always=always)
    if point is None:
        return None
    d, least = mu.masses.ndim, _least(own, other)
    best = _bounds(point[-1], mu, nu)
    for _ in range(ROUNDS):
        total = best.upper + far
        if best.upper - best.lower + 2 * best.noise <= tolerance * total:
            break
        eps = point[-1].eps
        if 0.5 * d * eps > BLUR * tolerance * total and eps > least:
            point = _next(point, max(0.5 * eps, least), ITERATIONS)
        else:
            point = [point[0], point[-1].iterated(2 * ITERATIONS)]
        best = _better(_bounds(point[-1], mu, nu), best)
    return best


def _on_the_lattices(
    mu: Lattice, nu: Lattice, far: float, tolerance: float, *, always: bool
) -> list[_Potentials] | None:
    """Return potentials for the two last eps, from coarse lattices to the given ones.

    None stands for a tolerance out of reach, which coarse lattices tell.
    """
    levels = [(mu, nu)]
    while True:
        finer = levels[-1]
        pair = finer[0].coarser(), finer[1].coarser()
        if all(
            p.masses.shape == q.masses.shape for p, q in zip(pair, finer, strict=True)
        ):
            break
        levels.append(pair)
    level, least = len(levels) - 1, _least(mu, nu)
    own, other = levels[level]
    f, g = torch.zeros_like(own.masses), torch.zeros_like(other.masses)
    past = [_Potentials(own, other, _reach(mu, nu), f, g).iterated(ITERATIONS)]
    while True:
        goal = 2 * BLUR * tolerance * (_lower(past[-1]) + far) / mu.masses.ndim
        goal = min(goal, CHEAP * max(mu.spacing, nu.spacing) ** 2)
        if level == 0 and past[-1].eps <= max(goal, least):
            return past
        if not always and goal < least and level <= max(0, len(levels) - 2):
            return None
        eps, goal = past[-1].eps, max(goal, least)
        eps = goal if goal >= NEXT * eps else 0.5 * eps
        enough = [
            k
            for k, pair in enumerate(levels)
            if FINE * max(z.spacing for z in pair) ** 2 <= eps
        ]
        new = max(enough, default=0) if eps > goal else 0
        if new < level:
            level = new
            past = [p.on(*levels[level]) for p in past]
        past = _next(past, eps, ITERATIONS if level == 0 else 2 * ITERATIONS)


def _next(past: list[_Potentials], eps: float, count: int) -> list[_Potentials]:
    """Return the last potentials and those for a smaller eps."""
    before, last = past[0], past[-1]
    f, g = last.f, last.g
    if before.eps > last.eps:
        # The potentials are about linear in eps.
        s = (last.eps - eps) / (before.eps - last.eps)
        f, g = f + s * (f - before.f), g + s * (g - before.g)
    return [last, replace(last, eps=eps, f=f, g=g).iterated(count)]


def _reach(mu: Lattice, nu: Lattice) -> float:
    """Return a bound of the squared distance of two atoms."""
    return sum(
        max(float(y[-1] - x[0]), float(x[-1] - y[0])) ** 2
        for x, y in zip(mu.axes, nu.axes, strict=True)
    )


def _least(mu: Lattice, nu: Lattice) -> float:
    """Return the least eps."""
    return LEAST * max(mu.least_spacing, nu.least_spacing) ** 2


def _lower(point: _Potentials) -> float:
    mu, nu = point.mu, point.nu
    f = transformed(point.g, nu.axes, mu.axes)
    g = transformed(f, mu.axes, nu.axes)
    return float((mu.masses * f).sum() + (nu.masses * g).sum())


def _bounds(point: _Potentials, mu: Lattice, nu: Lattice) -> Proof:
    """Return the bounds that entropic potentials prove on the whole lattices."""
    own, other, eps = point.mu, point.nu, point.eps
    # With this f the first marginal is exact.
    f = point.back(point.g, own.axes, ALL)
    logs, means, squares = soft_moments(f / eps + own.log, own.axes, other.axes, eps)
    reached = other.masses * (point.g / eps + logs).exp()
    upper, _ = rounded_cost(other, reached / reached.sum(), means, squares)
    f = transformed(point.g, other.axes, mu.axes)
    g = transformed(f, mu.axes, nu.axes)
    lower = float((mu.masses * f).sum() + (nu.masses * g).sum())
    reach = _reach(mu, nu)
    sizes = float(f.abs().max() + g.abs().max()) + reach
    # The exponents of the plan have the round-off of sizes / eps. To mend marginals of
    # this relative error costs at most as much mass times the largest cost.
    noise = NOISE * (sizes + (sizes / eps + 100.0) * reach)
    return Proof(f, g, lower, upper, noise)


def _better(found: Proof, best: Proof) -> Proof:
    """Return the lower of two upper bounds, the higher of two lower ones."""
    dual = found if found.lower >= best.lower else best
    noise = max(found.noise, best.noise)
    return dual._replace(upper=min(found.upper, best.upper), noise=noise)
