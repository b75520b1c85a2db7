"""Steps toward the proximal Gibbs law: fictitious play and dual averaging."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from otflow._arrays import coordinate_limit
from otflow._validation import non_negative_int, positive
from otflow.errors import Diverged, NonFinite, Unsupported
from otflow.functionals import Functional
from otflow.measures import GridDensity, Measure, Particles
from otflow.optimality.densities import ProximalLaw
from otflow.optimality.fixed_points import check_unbounded
from otflow.proximal.certificate import Certificate
from otflow.schemes.base import Scheme, Step, check_exchangeable
from otflow.schemes.langevin import split_heat

__all__ = ["DualAveraging", "EntropicFictitiousPlay"]


class EntropicFictitiousPlay(Scheme):
    r"""Entropic fictitious play for :math:`F = G + \tau\,\mathrm{Entropy}`.

    .. math:: \partial_t \mu = \alpha\,(p_\mu - \mu), \qquad
        p_\mu \propto e^{-G'[\mu]/\tau}

    :cite:p:`chen2022entropic`. The proximal Gibbs law :math:`p_\mu` is the best answer
    to :math:`\mu`: it minimises the linear part of G with the entropy. If G is convex
    along mixtures, then :math:`F(\mu_t) - \inf F \le e^{-\alpha t}(F(\mu_0) - \inf F)`:
    the rate needs no log-Sobolev inequality. It is one of the flow: steps follow the
    flow with an error of order dt, and long ones may be slower.

    On a `GridDensity` the law is exact, and a step is :math:`\mu + (1 -
    e^{-\alpha\,dt})(p_\mu - \mu)`. On `Particles` each atom is replaced with the
    probability :math:`1 - e^{-\alpha\,dt}`: it makes the inner steps of Langevin in the
    potential :math:`G'[\mu]` that stays, of the :math:`\mu` before. It comes the closer
    to a draw from :math:`p_\mu` the longer these last.

    Parameters
    ----------
    rate : float
        The rate :math:`\alpha > 0`, one over a time.
    inner_dt : float, optional
        Length of an inner step, > 0; needed on particles alone.
    inner_steps : int
        Number of inner steps, at least 1.

    Attributes
    ----------
    rate, inner_dt, inner_steps
        As above.

    Raises
    ------
    ValueError
        If a number is out of range; from `init` and `step`, if F holds no positive
        multiple of the entropy, or if `inner_dt` is missing.
    Unsupported
        From `init` and `step`, on other representations, or if F bounds the density, as
        by `Congestion`.
    Diverged
        From `step`, if inner steps leave the finite numbers.

    Notes
    -----
    Cost: one first variation on a grid; on particles one value, and for each inner step
    one field of G at the chosen atoms. ``info["replaced"]`` is the share of mass that
    was replaced. On particles the recorded energy is G.

    Examples
    --------
    >>> import torch, otflow as of
    >>> square = lambda z: z.square().sum(-1)
    >>> F = of.Potential(square) + of.Interaction(square) + 0.5 * of.Entropy()
    >>> rho = of.GridDensity.from_function(
    ...     lambda x: (-square(x - 1)).exp(), -5, 5, 100, dtype=torch.float64
    ... )
    >>> scheme = of.schemes.EntropicFictitiousPlay()
    >>> run = of.flow(F, rho, scheme, dt=0.5, steps=60)
    >>> round(float(run.final.expectation(square)), 6)  # T / (2 + 2)
    0.125
    """

    effects = frozenset({"transport", "reaction"})

    def __init__(
        self,
        rate: float = 1.0,
        *,
        inner_dt: float | None = None,
        inner_steps: int = 50,
    ) -> None:
        self.rate = positive(rate, "rate")
        self.inner_dt, self.inner_steps = _inner(inner_dt, inner_steps)

    def init(self, F: Functional, mu: Measure) -> Any:
        _parts(self, F, mu)
        return None

    def step(
        self,
        F: Functional,
        mu: Measure,
        dt: float,
        state: Any,
        generator: torch.Generator,
    ) -> Step[Any]:
        temperature, rest = _parts(self, F, mu)
        share = -math.expm1(-self.rate * dt)
        own: dict[str, Any] = {"temperature": temperature, "replaced": share}
        if isinstance(mu, GridDensity):
            law = ProximalLaw.of(rest, temperature, mu)
            mixed = mu.mix(_on_grid(mu, law.logs), share)
            return Step(mixed, None, Certificate(entries={"replaced": share}))
        assert isinstance(mu, Particles)
        energy, x = rest.value(mu), mu.points
        u = torch.rand(mu.n, generator=generator, dtype=x.dtype, device=x.device)
        chosen = u < share
        own["replaced"] = float(mu.weights.detach()[chosen].sum())
        y = _draws(
            self, x[chosen], lambda y: rest.velocity(mu, y), temperature, mu, generator
        )
        new = mu.with_free_atoms(x.index_put((chosen,), y))
        return Step(new, None, Certificate(float(energy.detach()), entries=own), energy)

    def energy(self, F: Functional, mu: Measure) -> Tensor:
        return _energy(F, mu)


class DualAveraging(Scheme):
    r"""Particle dual averaging for :math:`F = G + \tau\,\mathrm{Entropy}`.

    .. math:: \bar g_{k+1} = (1 - \gamma_k)\,\bar g_k + \gamma_k\,G'[\mu_k], \qquad
        \mu_{k+1} \propto e^{-\bar g_{k+1}/\tau}, \qquad
        \gamma_k = \min\Bigl(dt, \frac2{k + 2}\Bigr)

    for k = 0, 1, ... :cite:p:`nitanda2021particle`. With dt = 1 this is the average of
    the first variations seen so far, with weights that grow like k + 1. Time is the sum
    of the :math:`\gamma_k`, as in `FrankWolfe`.

    On a `GridDensity` the laws are exact, and the average starts from the density:
    :math:`\mu_{k+1} \propto \mu_k^{1-\gamma_k}\, p_{\mu_k}^{\gamma_k}`, with the
    proximal law :math:`p_\mu \propto e^{-G'[\mu]/\tau}`. For a small dt this is the
    Fisher-Rao gradient flow of F. A cell that starts empty stays empty, unless the
    first :math:`\gamma` is 1. On `Particles` each step moves all atoms by the inner
    steps of Langevin in the potential :math:`\bar g_{k+1}`, which begins with
    :math:`G'[\mu_0]`, whatever dt.

    Parameters
    ----------
    inner_dt : float, optional
        Length of an inner step, > 0; needed on particles alone.
    inner_steps : int
        Number of inner steps, at least 1.

    Attributes
    ----------
    inner_dt, inner_steps
        As above.

    Raises
    ------
    ValueError
        If a number is out of range; from `init` and `step`, if F holds no positive
        multiple of the entropy, or if `inner_dt` is missing.
    Unsupported
        From `init` and `step`, on other representations, or if F bounds the density, as
        by `Congestion`.
    Diverged
        From `step`, if inner steps leave the finite numbers.

    Notes
    -----
    Cost: one first variation on a grid. On particles the k-th step takes k fields of G
    for each inner step, since the average refers to all measures so far, and the state
    holds these: memory O(k n d). ``info["share"]`` is :math:`\gamma_k`. On particles
    the recorded energy is G.

    Examples
    --------
    >>> import torch, otflow as of
    >>> square = lambda z: z.square().sum(-1)
    >>> F = of.Potential(square) + of.Interaction(square) + 0.5 * of.Entropy()
    >>> rho = of.GridDensity.from_function(
    ...     lambda x: (-square(x - 1)).exp(), -5, 5, 100, dtype=torch.float64
    ... )
    >>> run = of.flow(F, rho, of.schemes.DualAveraging(), dt=1.0, steps=200)
    >>> round(float(run.final.expectation(square)), 3)  # T / (2 + 2)
    0.125
    """

    effects = frozenset({"transport", "reaction"})

    def __init__(self, *, inner_dt: float | None = None, inner_steps: int = 50) -> None:
        self.inner_dt, self.inner_steps = _inner(inner_dt, inner_steps)

    def init(self, F: Functional, mu: Measure) -> Any:
        _parts(self, F, mu)
        return 0, (), ()

    def step(
        self,
        F: Functional,
        mu: Measure,
        dt: float,
        state: Any,
        generator: torch.Generator,
    ) -> Step[Any]:
        temperature, rest = _parts(self, F, mu)
        count, seen, weights = state
        share = min(dt, 2.0 / (count + 2))
        own: dict[str, Any] = {"share": share}
        if isinstance(mu, GridDensity):
            law = ProximalLaw.of(rest, temperature, mu)
            before = mu.weights[mu.is_free].log()
            # An empty cell has the logarithm -inf, and 0 times it is no number.
            logs = law.logs if share == 1 else (1 - share) * before + share * law.logs
            report = Certificate(dt=share, entries=own)
            return Step(_on_grid(mu, logs), (count + 1, (), ()), report)
        assert isinstance(mu, Particles)
        energy = rest.value(mu)
        kept = tuple((1 - share) * w for w in weights)
        weights = (*kept, share if seen else 1.0)
        seen = (*seen, mu)

        def field(y: Tensor) -> Tensor:
            """Return minus the gradient of the averaged first variation."""
            total = torch.zeros_like(y)
            for w, nu in zip(weights, seen, strict=True):
                total = total + w * rest.velocity(nu, y) if w else total
            return total

        y = _draws(self, mu.points, field, temperature, mu, generator)
        own["temperature"] = temperature
        report = Certificate(float(energy.detach()), dt=share, entries=own)
        new = mu.with_free_atoms(y)
        return Step(new, (count + 1, seen, weights), report, energy)

    def energy(self, F: Functional, mu: Measure) -> Tensor:
        return _energy(F, mu)


def _inner(inner_dt: float | None, inner_steps: int) -> tuple[float | None, int]:
    """Return the checked length and number of the inner steps."""
    length = None if inner_dt is None else positive(inner_dt, "inner_dt")
    return length, non_negative_int(inner_steps, "inner_steps", minimum=1)


def _parts(
    scheme: EntropicFictitiousPlay | DualAveraging, F: Functional, mu: Measure
) -> tuple[float, Functional]:
    """Return the temperature and the rest, if a step on this measure is possible."""
    name = type(scheme).__name__
    temperature, rest = split_heat(F)
    if temperature == 0:
        msg = (
            f"F holds no entropy, and without it there is no Gibbs law for {name}; "
            f"add temperature * Entropy(), or use FrankWolfe(domain)"
        )
        raise ValueError(msg)
    if not isinstance(mu, (GridDensity, Particles)):
        msg = (
            f"{name} needs a GridDensity or Particles, not {type(mu).__name__}; "
            f"use JKO(), or {mu.as_particles}"
        )
        raise Unsupported(msg)
    check_unbounded(rest)
    if isinstance(mu, Particles):
        check_exchangeable(F, scheme, does="replaces atoms")
    if isinstance(mu, Particles) and scheme.inner_dt is None:
        msg = (
            f"on particles {name} draws from the Gibbs law by inner steps of "
            f"Langevin, and needs their length; give inner_dt=..., or use a "
            f"GridDensity"
        )
        raise ValueError(msg)
    return temperature, rest


def _draws(
    scheme: EntropicFictitiousPlay | DualAveraging,
    y: Tensor,
    field: Callable[[Tensor], Tensor],
    temperature: float,
    mu: Measure,
    generator: torch.Generator,
) -> Tensor:
    """Return points after the inner Langevin steps along a field that stays."""
    assert scheme.inner_dt is not None
    scale = math.sqrt(2.0 * temperature * scheme.inner_dt)
    limit = coordinate_limit(y.dtype)
    msg = (
        f"the inner steps of {type(scheme).__name__} left the finite numbers; take a "
        f"smaller inner_dt"
    )
    for _ in range(scheme.inner_steps if len(y) else 0):
        noise = torch.empty_like(y).normal_(generator=generator)
        try:
            y = y + scheme.inner_dt * field(y) + scale * noise
        except NonFinite as error:
            raise Diverged(msg, measure=mu) from error
        if not bool((y.abs() < limit).all()):
            raise Diverged(msg, measure=mu)
    return y


def _energy(F: Functional, mu: Measure) -> Tensor:
    """Return F, on particles without the entropy."""
    return (split_heat(F)[1] if isinstance(mu, Particles) else F).value(mu)


def _on_grid(rho: GridDensity, logs: Tensor) -> GridDensity:
    """Return the density whose free masses have these logarithms, up to their sum."""
    masses = rho.weights.new_zeros(rho.n)
    masses[rho.is_free] = torch.softmax(logs, 0)
    return rho.with_weights(masses)
