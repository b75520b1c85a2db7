r"""Gaps with entropy, on a grid: two divergences between which the gap lies."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from otflow._validation import check_kind
from otflow.errors import NonFinite
from otflow.functionals import Functional, Potential
from otflow.functionals.base import check_functional
from otflow.functionals.reasons import not_convex
from otflow.functionals.stated_terms import check_terms
from otflow.measures import GridDensity, Measure
from otflow.measures.grid.checks import check_same_obstacles
from otflow.metrics.bracket import Bracket
from otflow.optimality.declared import with_words_tried
from otflow.optimality.domains import Domain
from otflow.optimality.gap import Gap, GapKind

__all__ = ["OnGrid", "ProximalLaw", "entropic_bracket", "entropic_gap", "heat_of"]

# Round-off of F' of a user's functional, in units of the last place.
NOISE = 64
EPS = torch.finfo(torch.float64).eps

DISCRETE = (
    "the infimum is over the densities on the cells of this grid: it is that of the "
    "discretised problem"
)


def heat_of(F: Functional) -> tuple[float, Functional]:
    """Return the temperature > 0 and the rest of F; raise ValueError without it."""
    check_functional(F)
    temperature, rest = F.split_entropy()
    if not temperature > 0:
        msg = (
            f"F must hold a positive multiple of the entropy, got the temperature "
            f"{temperature:g}; add T * Entropy() with T > 0, or use "
            f"optimality_gap(F, rho, OnGrid())"
        )
        raise ValueError(msg)
    return temperature, rest


def check_grid(rho: Measure, name: str) -> None:
    """Raise TypeError unless a measure is a density on a grid."""
    check_kind(rho, GridDensity, name)


@dataclass(frozen=True, eq=False)
class ProximalLaw:
    r"""The law :math:`p_\rho \propto e^{-G'[\rho]/T}` of a density, on its free cells.

    All of it is in logarithms: at a small T the law underflows, its logarithm does not.

    Parameters
    ----------
    temperature : float
        The temperature T > 0.
    slopes : Tensor, shape (k,)
        The slopes :math:`G'[\rho]` of the rest, less their minimum.
    logs : Tensor, shape (k,)
        Logarithms of the masses of the law.
    normalisation : float
        The logarithm of the sum of :math:`e^{-s/T}` over these slopes s, at least 0.
    sizes : Tensor, shape (k,)
        What the slopes are sums of: of a potential its modulus in the cell, of all else
        the largest modulus, since a convolution spreads round-off over the grid.
    constant : float
        The c with :math:`G'[\rho] = c - T\log p`.
    free : Tensor of bool, shape (n,)
        The free cells.
    """

    temperature: float
    slopes: Tensor
    logs: Tensor
    normalisation: float
    sizes: Tensor
    constant: float
    free: Tensor

    @classmethod
    def of(cls, rest: Functional, temperature: float, rho: GridDensity) -> ProximalLaw:
        """Return the law of a density, with one first variation of the rest."""
        slopes = rest.first_variation(rho.detach()).detach()[rho.is_free]
        least = float(slopes.min())
        shifted = slopes - least
        # In float64, where a small T is not 0.
        exponent = -shifted.double() / temperature
        normalisation = max(0.0, float(torch.logsumexp(exponent, 0)))
        logs = (exponent - normalisation).to(shifted)
        constant = least - temperature * normalisation
        # No logarithm of a mass is larger than 1,000.
        if not math.isfinite(abs(constant) + float(shifted.max()) + 1e3 * temperature):
            msg = (
                f"at the temperature {temperature:g} the free energy of {rest!r} is "
                f"not finite in float64"
            )
            raise NonFinite(msg)
        potential = torch.zeros_like(slopes)
        for c, term in rest.terms():
            if isinstance(term, Potential):
                own = term.first_variation(rho.detach()).detach()[rho.is_free]
                potential = potential + c * own
        sizes = potential.abs() + (slopes - potential).abs().max()
        return cls(
            temperature, shifted, logs, normalisation, sizes, constant, rho.is_free
        )

    def distance(self, rho: GridDensity) -> float:
        r"""Return the sum of the differences of masses, :math:`\sum|w - p|`."""
        return float((rho.weights.detach()[self.free] - self.logs.exp()).abs().sum())

    def energy_to(self, rho: GridDensity) -> float:
        r"""Return :math:`T\,\mathrm{KL}(\rho\,|\,p)`, at least 0.

        The sum of :math:`w\log(w/p) - w + p` has no negative term, and so no
        cancellation where w is close to p.
        """
        w = rho.weights.detach()[self.free]
        held = w > 0
        w, logs = w[held], self.logs[held]
        if self._underflows(held):
            # The law underflows where there is mass: T log p is finite, log p is not.
            own = torch.xlogy(w, w).sum(dtype=torch.float64) + self.normalisation
            mean = w.double() @ self.slopes[held].double()
            return max(0.0, float(mean + self.temperature * own))
        r = w.log() - logs
        near = (torch.expm1(-r) + r) * w
        # e^(-r) overflows where p is much larger than w; p itself does not.
        apart = w * r - w + logs.exp()
        terms = torch.where(r.abs() < 1, near, apart).clamp_min(0)
        empty = self.logs[~held].exp().sum(dtype=torch.float64)
        return self.temperature * float(terms.sum(dtype=torch.float64) + empty)

    def _underflows(self, held: Tensor) -> bool:
        """Return whether the logarithm of the law is infinite where there is mass."""
        return bool(torch.isinf(self.logs[held]).any())

    def size(self, rho: GridDensity) -> float:
        """Return the mean modulus of the slopes under the law and a density."""
        w = rho.weights.detach()[self.free]
        return float((w + self.logs.exp()) @ self.sizes)

    def noise(self, rho: GridDensity) -> float:
        r"""Return the round-off of `energy_to`, and of a mass that is not exactly 1."""
        eps, temperature = torch.finfo(rho.dtype).eps, self.temperature
        # In float64, where no product with T overflows.
        w, p = rho.weights.detach()[self.free].double(), self.logs.double().exp()
        logs = torch.where(w > 0, w, 1.0).log().abs()
        # The modulus of T log p, where log p itself may be infinite.
        cold = self.slopes.double() + temperature * self.normalisation
        # Each logarithm is off by some units of its own size, and a term w log(w/p) by
        # some of w where the logarithms are small.
        wrong = NOISE * eps * (self.sizes + cold + temperature * (1 + logs))
        # Errors e of the slopes change the energy by sum (w - p) e, and to the second
        # order by at most sum (w + p) e^2 / T, and not by more than sum (w + p) e.
        second = wrong * (wrong / temperature).clamp_max(1)
        moved = float((w - p).abs() @ wrong + (w + p) @ second)
        found = self.energy_to(rho)
        summed = NOISE * EPS * found
        if self._underflows(w > 0):
            # Then the energy is a sum of terms of both signs.
            spread = float(w @ logs) + self.normalisation
            summed += 2 * NOISE * eps * (found + temperature * spread)
        # The sum of the masses, exactly, and what F and the energy hold of it.
        excess = abs(math.fsum([*w.tolist(), -1.0]))
        parts = 1 + abs(math.log(rho.box.cell_volume))
        mass = excess * (abs(self.constant) + temperature * parts + found)
        return moved + summed + mass + math.ulp(0.0)


def entropic_gap(F: Functional, rho: GridDensity) -> Gap:
    r"""Return the gap of an F with entropy at a density on a grid.

    Let :math:`F = G + T\int\rho\log\rho` with G convex along mixtures, and let
    :math:`p_\rho \propto e^{-G'[\rho]/T}` be the *proximal Gibbs law* of
    :math:`\rho`. Then

    .. math:: F(\rho) - \inf F \le T\,\mathrm{KL}(\rho\,|\,p_\rho)

    :cite:p:`nitanda2022convex,chizat2022mean`. The infimum is over all densities on the
    free cells of the grid. The bound holds exactly for them: G is a convex function of
    the masses w of the cells, so :math:`F(\nu) \ge G(\rho) + \int G'[\rho]\,d(\nu -
    \rho) + T\int\nu\log\nu`, and the minimum of the right-hand side over :math:`\nu` is
    attained at :math:`p_\rho`, where it is :math:`F(\rho) - T\,\mathrm{KL}(\rho\,|\,
    p_\rho)`.

    Parameters
    ----------
    F : Functional
        A functional with a positive multiple T of the entropy, convex along mixtures.
    rho : GridDensity
        Where to bound F. Cells of zero mass are welcome; obstacles do not count.

    Returns
    -------
    Gap
        ``value`` is the right-hand side with its round-off, in the units of F. The
        round-off of G' is taken to be 64 units in the last place: of a potential in
        each cell, of all other terms at their largest entry. ``argmin`` is the centre
        of the cell that misses most mass, where :math:`p_\rho - \rho` is largest. The
        kind is "proved", or "none" if G is not known to be convex along mixtures, or
        if values contradict its declared convexity, as in `optimality_gap`.

    Raises
    ------
    ValueError
        If F holds no entropy, or a negative multiple.
    TypeError
        If `rho` is no `GridDensity`.

    See Also
    --------
    entropic_bracket : A bound from below too.
    gibbs : The minimiser.

    Notes
    -----
    It costs one first variation of G and O(n) beside. The logarithm of :math:`p_\rho`
    is used, so that any T may be given.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: x.square().sum(-1)) + 0.5 * of.Entropy()
    >>> uniform = of.GridDensity.from_function(
    ...     lambda x: torch.ones(len(x)), -3, 3, 60, walls=True
    ... )
    >>> gap = of.optimality.entropic_gap(F, uniform)
    >>> gap.kind, round(gap.value, 2)
    ('proved', 2.22)
    """
    return with_words_tried(F, rho, _entropic_gap(F, rho))


def _entropic_gap(F: Functional, rho: GridDensity) -> Gap:
    temperature, rest = heat_of(F)
    check_grid(rho, "rho")
    check_terms(F, rho)
    if not rest.mixture_convex:
        reason = not_convex(rest, Functional)
        return Gap(math.inf, None, GapKind.NONE, reason, math.inf)
    law = ProximalLaw.of(rest, temperature, rho)
    found = law.energy_to(rho)
    w = rho.weights.detach()[law.free]
    most = int((law.logs.exp() - w).argmax())
    place = rho.points[law.free][most]
    value = _above(found + law.noise(rho))
    return Gap(value, place, GapKind.PROVED, DISCRETE, found)


def entropic_bracket(F: Functional, rho: GridDensity, optimum: GridDensity) -> Bracket:
    r"""Return bounds of :math:`F(\rho) - \inf F` from both sides.

    With F, T and :math:`p` as in `entropic_gap`, and :math:`\hat\rho` close to the
    minimiser :math:`\rho^* = p_{\rho^*}`,

    .. math:: T\,\mathrm{KL}(\rho\,|\,p_{\hat\rho})
        - T\,\mathrm{KL}(\hat\rho\,|\,p_{\hat\rho})
        \le F(\rho) - \inf F \le T\,\mathrm{KL}(\rho\,|\,p_\rho).

    At :math:`\hat\rho = \rho^*` the left-hand side is :math:`T\,\mathrm{KL}(\rho\,|\,
    \rho^*)`, and this is the sandwich of :cite:t:`nitanda2022convex` and
    :cite:t:`chizat2022mean`. It is true for any :math:`\hat\rho`: as G is convex,
    :math:`F(\rho) - F(\hat\rho) \ge \int G'[\hat\rho]\,d(\rho - \hat\rho) + T\int
    \rho\log\rho - T\int\hat\rho\log\hat\rho`, where :math:`G'[\hat\rho] = -T\log
    p_{\hat\rho}` up to a constant; and :math:`F(\hat\rho) \ge \inf F`.

    Parameters
    ----------
    F : Functional
        A functional with a positive multiple T of the entropy, convex along mixtures.
    rho : GridDensity
        Where to bound F.
    optimum : GridDensity
        A density on the same grid, as ``gibbs(F, rho).measure``.

    Returns
    -------
    Bracket
        The two bounds, in the units of F, each with its round-off; the lower one is at
        least 0. Both are true if F is convex along mixtures: where that is only
        declared, they rest on the declaration, and ``entropic_gap(F, rho).reason``
        names it.

    Raises
    ------
    ValueError
        If F holds no entropy, or is not known to be convex along mixtures, or values of
        F contradict that it is; if both densities live on different grids or among
        different obstacles.
    TypeError
        If one of them is no `GridDensity`.

    See Also
    --------
    entropic_gap : The upper bound alone.

    Notes
    -----
    It costs two first variations of G.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: x.square().sum(-1)) + 0.5 * of.Entropy()
    >>> rho = of.GridDensity.from_function(
    ...     lambda x: (-5 * x.square().sum(-1)).exp(), -4, 4, 80, dtype=torch.float64
    ... )
    >>> best = of.optimality.gibbs(F, rho).measure
    >>> bracket = of.optimality.entropic_bracket(F, rho, best)
    >>> excess = float(F.value(rho) - F.value(best))
    >>> round(bracket.lower, 4), round(excess, 4), round(bracket.upper, 4)
    (0.0791, 0.0791, 0.0791)
    """
    temperature, rest = heat_of(F)
    check_grid(rho, "rho")
    check_grid(optimum, "optimum")
    rho.check_same_grid(optimum)
    check_same_obstacles(rho.is_free, optimum.is_free)
    upper = entropic_gap(F, rho)
    if upper.kind != GapKind.PROVED:
        msg = (
            f"{upper.reason}, and without convexity along mixtures neither bound is "
            f"true; compare F.value(rho) with F.value(optimum)"
        )
        raise ValueError(msg)
    best = ProximalLaw.of(rest, temperature, optimum)
    # What is taken off is rounded up.
    less = best.energy_to(optimum) + best.noise(rho) + best.noise(optimum)
    lower = best.energy_to(rho) * (1 - 4 * EPS) - _above(less)
    return Bracket(min(max(lower, 0.0), upper.value), upper.value)


def _above(value: float) -> float:
    """Return a number that no few roundings of this one exceed."""
    return math.nextafter(value * (1 + 8 * EPS), math.inf)


class OnGrid(Domain):
    r"""All probability densities on the free cells of the grid of the measure.

    They are finitely many masses, so a gap over them is always finite and proved: with
    entropy it is :math:`T\,\mathrm{KL}(\rho\,|\,p_\rho)`, see `entropic_gap`; without
    it :math:`\int F'\,d\rho - \min_i F'_i` over the free cells. Both bound the excess
    over the infimum of the discretised problem, on this grid.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: x.square().sum(-1))
    >>> rho = of.GridDensity(torch.full((3,), 0.5), -1, 1, walls=True)
    >>> gap = of.optimality.optimality_gap(F, rho, of.optimality.OnGrid())
    >>> gap.kind, round(gap.value, 4), gap.argmin  # centres at -2/3, 0 and 2/3
    ('proved', 0.2963, tensor([0.]))
    """

    def gap(self, F: Functional, mu: Measure, descend: int) -> Gap:
        check_grid(mu, "the measure of a gap over OnGrid()")
        assert isinstance(mu, GridDensity)
        check_terms(F, mu)
        temperature, _ = F.split_entropy()
        if temperature > 0:
            return _entropic_gap(F, mu)
        slopes = F.first_variation(mu).detach()[mu.is_free]
        w = mu.weights.detach()[mu.is_free]
        least = int(slopes.argmin())
        found = float(w.double() @ (slopes.double() - slopes[least].double()))
        excess = abs(math.fsum([*w.tolist(), -1.0]))
        size = float(slopes.abs().max())
        noise = (2 * NOISE * torch.finfo(w.dtype).eps + excess) * size
        noise += len(w) * EPS * found
        place = mu.points[mu.is_free][least]
        return Gap(_above(found + noise), place, GapKind.PROVED, DISCRETE, found)

    def __repr__(self) -> str:
        return "OnGrid()"
