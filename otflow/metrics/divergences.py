r"""The debiased Sinkhorn divergence; raises NotConverged if it is not converged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from otflow._known import known_derivatives
from otflow._validation import positive
from otflow.errors import NotConverged
from otflow.measures import Particles
from otflow.metrics.implicit import Atoms, dual_value, half_squares
from otflow.metrics.inputs import CloudLike, clouds
from otflow.metrics.semidual import Entropy, Outcome
from otflow.metrics.sides import (
    WIDE,
    Side,
    check_blur,
    check_size,
    falling_blurs,
    inverse_square,
    length_of,
    soft_minimum,
)

__all__ = ["sinkhorn_divergence"]

# Convergence: the sum of the errors of the marginals bounds the errors of the value and
# of the velocity. The error of the potentials over their unit is the error of the first
# variation over epsilon.
RESIDUAL = 1e-8
POTENTIALS = 1e-2


def sinkhorn_divergence(
    mu: CloudLike,
    nu: CloudLike,
    *,
    blur: float,
    scaling: float = 0.9,
    reach: float | None = None,
) -> Tensor:
    r"""Return the debiased Sinkhorn divergence, which tends to :math:`\tfrac12 W_2^2`.

    .. math:: S_\varepsilon(\mu, \nu) = \mathrm{OT}_\varepsilon(\mu, \nu)
        - \tfrac12\mathrm{OT}_\varepsilon(\mu, \mu)
        - \tfrac12\mathrm{OT}_\varepsilon(\nu, \nu), \qquad
        \varepsilon = \mathrm{blur}^2, \quad c(x, y) = \tfrac12|x - y|^2

    :cite:p:`feydy2019interpolating`. The cost has the factor 1/2: compare twice the
    divergence with `wasserstein2_squared`. A JKO step divides the divergence by dt, not
    by 2 dt.

    Parameters
    ----------
    mu, nu : Particles, Tensor or ndarray
        Measures; points (n, d) stand for equal weights 1/n.
    blur : float
        Length below which the divergence does not see details, > 0. For a gradient
        close to that of W2 take it much smaller than the spacing of the points.
    scaling : float
        Ratio of successive blurs in the annealing that finds a start, in (0, 1). It
        changes the time but not the result, which Newton's method computes.
    reach : float, optional
        Length beyond which mass is destroyed and created rather than moved, at the cost
        :math:`\mathrm{reach}^2\,\mathrm{KL}` of either marginal. The default is the
        balanced problem, without destruction.

    Returns
    -------
    Tensor
        0-d, in the dtype and on the device of `mu`. It is differentiable in points and
        weights up to three times; the derivatives are those of the converged
        divergence.

    Raises
    ------
    ValueError
        If a number is out of range, if the blur is below the round-off of the points in
        their dtype, if the reach is below 1e-140 (its square underflows), if the
        measures differ in dimension or device, or if a point is not finite.
    TypeError
        If dtypes differ, or a measure is not made of atoms.
    MemoryError
        If the arrays exceed half of the memory.
    NotConverged
        If the error of the marginals exceeds 1e-8, or if a gradient in weights is
        needed and the error of the potentials exceeds a hundredth of
        :math:`\varepsilon`. Both happen only for a blur far below the spacing of the
        points. The error's ``info`` holds the accuracy reached, ``result`` the value.

    See Also
    --------
    otflow.metrics.wasserstein2_squared : Exact, with kinks in the weights.
    otflow.metrics.entropic_plan : The plan and the value without debiasing.

    Notes
    -----
    Let D be the diameter of both clouds together. For a blur above 4e5 D the result is
    the limit blur -> infinity, half the squared distance of the means, whatever the
    reach. Its error is at most 1e-12 D^2.

    The term of `nu` alone is solved once for a `Particles` object, and kept while the
    object lives: evaluations at other `mu` take about two thirds of the time.

    Otherwise the problem is solved in float64: by Sinkhorn sweeps down to a blur of
    D / 20, then by Newton's method on the concave semi-dual. Weights are divided by
    their sums. Time O((n + m)^2 (d + sweeps)); memory 80 bytes for each of max(n, m)^2
    pairs, with a gradient. Second derivatives take about 350 bytes.

    Below the spacing of the points Newton's systems are nearly singular, and a factor
    of each is computed, O(n^3). So the time grows tenfold: 400 points take 0.1 s at a
    blur of half their spread, and 2 s at a twentieth. Take a blur above the spacing
    there, or `wasserstein2_squared`.

    Examples
    --------
    >>> import torch, otflow as of
    >>> x = torch.tensor([[0.0], [1.0]])
    >>> of.metrics.sinkhorn_divergence(x, x + 4.0, blur=0.01)
    tensor(8.)
    """
    blur = length_of(blur)
    reach = None if reach is None else positive(reach, "reach")
    scaling = positive(scaling, "scaling")
    if scaling >= 1:
        msg = f"scaling must lie in (0, 1), got {scaling}; try 0.9"
        raise ValueError(msg)
    p, q = clouds(mu, nu)
    together = torch.cat([p.points.detach(), q.points.detach()]).double()
    lower, upper = together.amin(0), together.amax(0)
    diameter = float((upper - lower).norm())
    check_blur(blur, diameter, p.points.dtype)
    first, second = Side.of(p), Side.of(q)
    if blur > WIDE * diameter:
        gap = first.a @ (first.x - lower) - second.a @ (second.x - lower)
        return (0.5 * gap.square().sum()).to(p.points.dtype)
    check_size(len(p.points), len(q.points), p.points.device)
    inverse_rho = 0.0 if reach is None else inverse_square(reach, blur)
    units = Entropy(blur * blur, inverse_rho)
    owner = nu if type(nu) is Particles else None
    own = _own_term(units, *first.atoms), _kept_term(owner, units, *second.atoms)
    blurs = falling_blurs(blur, diameter, scaling)
    return _divergence(units, first, second, blurs, own).to(p.points.dtype)


class _Kept(NamedTuple):
    """A term of a measure with itself, and the problem that it solves."""

    units: Entropy
    points: Tensor
    masses: Tensor
    outcome: Outcome


_TERMS: WeakKeyDictionary[Particles, _Kept] = WeakKeyDictionary()


def _own_term(units: Entropy, x: Tensor, a: Tensor) -> Outcome:
    """Solve between atoms with mass and themselves."""
    return units.symmetric(half_squares(x, x), a)


def _kept_term(
    owner: Particles | None, units: Entropy, x: Tensor, a: Tensor
) -> Outcome:
    """Return the term of a measure with itself, solved once for each state of it.

    The answer is that of `_own_term` to the bit: it depends on nothing else. Atoms are
    compared by value, since some tensors have no counter of writes.
    """
    if owner is None:
        return _own_term(units, x, a)
    kept = _TERMS.get(owner)
    if (
        kept is not None
        and kept.units == units
        and torch.equal(kept.points, x)
        and torch.equal(kept.masses, a)
    ):
        return kept.outcome
    # Tensors of torch.inference_mode() could not be used outside of it.
    with torch.inference_mode(mode=False):
        x, a = x.clone(), a.clone()
        kept = _Kept(units, x, a, _own_term(units, x, a))
    _TERMS[owner] = kept
    return kept.outcome


def _divergence(
    units: Entropy,
    mu: Side,
    nu: Side,
    blurs: tuple[list[float], list[float]],
    own: tuple[Outcome, Outcome],
) -> Tensor:
    (x, a), (y, b) = mu.atoms, nu.atoms
    cross = units.solve(half_squares(x, y), a, b, *blurs)
    costs = [half_squares(z, z) for z in (x, y)]
    # The dual values of g, and of h between a measure and itself.
    eps, g = units.epsilon, cross.g
    worths = units.worth(soft_minimum(units, half_squares(x, y), g, b), eps)
    parts = []
    for w, c, o, worth in zip(
        (a, b), costs, own, (worths, units.worth(g)), strict=True
    ):
        h = soft_minimum(units, c, o.f, w)
        parts.append(w @ (worth - 0.5 * (units.worth(h, eps) + units.worth(o.f))))
    value = parts[0] + parts[1]
    # The round-off of the costs enters the marginals divided by epsilon.
    size = float((x.mean(0) - y.mean(0)).norm())
    size += sum(float((z - z.mean(0)).norm(dim=1).max()) for z in (x, y))
    round_off = 8 * torch.finfo(x.dtype).eps * size * size / units.epsilon
    allowed = max(RESIDUAL, min(round_off, 1e-4))
    steps, blur = max(o.step for o in own), units.epsilon**0.5
    info = {
        "residual": cross.residual,
        "step": max(cross.step, steps),
        "iterations": cross.iterations,
        "sweeps": cross.sweeps + own[0].sweeps + own[1].sweeps,
    }
    if not max(cross.residual, steps) <= allowed or not bool(value.isfinite()):
        msg = (
            f"the Sinkhorn divergence stopped after {cross.iterations} Newton steps "
            f"with marginals wrong by {cross.residual:.3g} in sum; take a larger blur "
            f"than {blur:.3g}, or the exact wasserstein2_squared"
        )
        raise NotConverged(msg, info=info, result=value)
    asked = torch.is_grad_enabled() and (mu.a.requires_grad or nu.a.requires_grad)
    if asked and not cross.step <= POTENTIALS:
        msg = (
            f"the gradient in weights is not determined at the blur {blur:.3g}, where "
            f"parts of the measures exchange no mass: potentials known to "
            f"{cross.step:.3g} blur^2; take a larger blur"
        )
        raise NotConverged(msg, info=info, result=value)
    solved = _Solved(units, (cross.f, cross.g), own)
    state = mu.x, mu.a, nu.x, nu.a
    return known_derivatives(value, state, solved.gradients, solved.value)


@dataclass(frozen=True)
class _Solved:
    """The optimal potentials of atoms with mass, which give the derivatives."""

    units: Entropy
    cross: tuple[Tensor, Tensor]
    own: tuple[Outcome, Outcome]

    def gradients(self, *state: Tensor) -> list[Tensor]:
        """Return the derivatives in points and masses of both, detached.

        Those of a side without a graph are not asked for, and are 0. At the optimum the
        derivatives in the potentials vanish, so they do not contribute.
        """
        grads = []
        mu, nu = Side.pair(*state)
        for side, other, g, o in zip(
            (mu, nu), (nu, mu), reversed(self.cross), self.own, strict=True
        ):
            if not (side.x.requires_grad or side.a.requires_grad):
                grads += [torch.zeros_like(side.x), torch.zeros_like(side.a)]
                continue
            potential, slope = _variation(self.units, side, other.atoms, g, o)
            a = side.a.detach()[:, None]
            # Beside a far cloud the slope of an atom without mass overflows.
            grads += [(a * slope).masked_fill(a == 0, 0.0), potential]
        return grads

    def value(self, *state: Tensor) -> Tensor:
        """Return the divergence, with the graphs of both, right to third order."""
        mu, nu = Side.pair(*state)
        units, (x, y) = self.units, (mu.x.detach(), nu.x.detach())
        f = units.potential(half_squares(x, nu.atoms[0]), self.cross[1], nu.atoms[1])
        g = units.potential(half_squares(y, mu.atoms[0]), self.cross[0], mu.atoms[1])
        total = dual_value(units, Atoms(mu.x, mu.a, f), Atoms(nu.x, nu.a, g))
        for side, own in zip((mu, nu), self.own, strict=True):
            cost = half_squares(side.x.detach(), side.atoms[0])
            h = units.potential(cost, own.f, side.atoms[1])
            atoms = Atoms(side.x, side.a, h)
            total = total - 0.5 * dual_value(units, atoms, atoms)
        return total


def _variation(
    units: Entropy, side: Side, others: tuple[Tensor, Tensor], g: Tensor, own: Outcome
) -> tuple[Tensor, Tensor]:
    """Return the first variation at every atom, and its gradient, detached."""
    x = side.x.detach()
    potential, slope = torch.zeros_like(side.a.detach()), torch.zeros_like(x)
    for sign, (y, b), h in ((1.0, others, g), (-1.0, side.atoms, own.f)):
        cost = half_squares(x, y)
        f = soft_minimum(units, cost, h, b)
        potential = potential + sign * units.worth(f, units.epsilon)
        pull = x - units.shares(cost, h, b) @ y
        slope = slope + sign * units.kept(f)[:, None] * pull
    return potential, slope
