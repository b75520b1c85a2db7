"""Levels of mass, and the quantiles of a density at them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from otflow._arrays import coordinate_limit
from otflow._graphs import refuse_graph
from otflow._typing import Ground
from otflow._validation import check_tensor, non_negative_int, real
from otflow.errors import InvalidFunctional, NotConverged
from otflow.measures.quantiles.panels import Panels, adapt, rule
from otflow.numerics.quadrature import gauss_legendre
from otflow.numerics.roots import bisect

__all__ = ["check_increasing", "graded_masses", "inverse_distribution"]

# Newton steps, kept between bounds that halve where it leaves them.
MAX_STEPS = 60
# Halvings that find where the support of a density ends.
HALVINGS = 60


def check_increasing(edges: Tensor) -> None:
    """Raise ValueError if quantiles cross or coincide, and name the first."""
    edges = edges.detach()
    wrong = edges.diff() <= 0
    if bool(wrong.any()):
        i = int(wrong.nonzero()[0])
        msg = (
            f"quantiles must increase strictly, but edges[{i}] = {float(edges[i]):.9g} "
            f">= edges[{i + 1}] = {float(edges[i + 1]):.9g}; sort them, and merge "
            f"cells whose edges coincide"
        )
        raise ValueError(msg)


def graded_masses(n: int, grading: float) -> tuple[Tensor, Tensor]:
    r"""Return masses (n,) and levels (n + 1,) with small cells at both ends.

    The levels are :math:`s(k/n)` with :math:`s(u) = u^\gamma/(u^\gamma+(1-u)^\gamma)`.
    They are symmetric. For :math:`\gamma = 1` masses are equal; for a larger
    :math:`\gamma` the mass of the k-th cell from an end grows like
    :math:`(k/n)^{\gamma-1}`.

    Parameters
    ----------
    n : int
        Number of cells, >= 1.
    grading : float
        The exponent, >= 1.

    Returns
    -------
    masses, levels : Tensor
        float64.
    """
    n = non_negative_int(n, "n", minimum=1)
    gamma = real(grading, "grading")
    if gamma < 1:
        msg = f"grading must be at least 1 (equal masses), got {gamma:g}"
        raise ValueError(msg)
    u = torch.arange(n + 1, dtype=torch.float64) / n
    left, right = u.pow(gamma), (1.0 - u).pow(gamma)
    levels = left / (left + right)
    # The right half mirrors the left, where differences of small levels are exact.
    masses = levels.diff()
    half = n // 2
    if half:
        masses[n - half :] = masses[:half].flip(0)
    return masses / masses.sum(), levels


def inverse_distribution(
    f: Ground,
    lower: float,
    upper: float,
    levels: Tensor,
    like: Tensor,
    around: Sequence[float] = (),
) -> tuple[Tensor, float]:
    """Return quantiles of the density f / int f, float64 on the CPU, and its variance.

    `panels.adapt` finds the masses. The ends of the support are found to a panel, then
    by bisection. In the panel that holds a level, Newton's method solves for the
    quantile and is kept inside the panel.

    Parameters
    ----------
    f : callable
        Batched (m, 1) -> (m,), non-negative.
    lower, upper : float
        The interval outside of which f counts as 0.
    levels : Tensor
        Increasing, from 0 to 1, symmetric about 1/2.
    like : Tensor
        Gives the dtype and device of the points that `f` is called with.
    around : sequence of float
        Places where f may be narrow. The ends of the interval and 0 always count.

    Returns
    -------
    quantiles : Tensor
        Of the shape of `levels`.
    variance : float
        That of the density, to the width of the panels.

    Raises
    ------
    NotConverged
        If the masses below the quantiles are not known to eps^(2/3) of the levels.
    """
    lower, upper = _interval(lower, upper, like)
    places = _places(around, lower, upper)
    density = _Density(f, like, lower, upper)
    places += [x for x in (lower, upper, 0.0) if lower <= x <= upper]
    eps = torch.finfo(like.dtype).eps
    found = adapt(density, lower, upper, places, float(levels[1]), eps)
    scale = density.highest
    if scale == 0.0:
        msg = (
            f"f is 0 at all {density.calls} places where it was evaluated in "
            f"[{lower:g}, {upper:g}]; name one where it is positive, around=(x,), or "
            f"take an interval that is close about it"
        )
        raise ValueError(msg)
    if not 0.0 < float(found.masses.sum()) < math.inf:
        msg = (
            f"the integral of f over [{lower:g}, {upper:g}] leaves the floating-point "
            f"numbers, with values up to {scale:g}; divide f by {scale:g}"
        )
        raise ValueError(msg)
    # Levels close to 1 are found from above: 1 - level is exact for small masses.
    n = len(levels) - 1
    low = _from_below(density, found, levels[: n // 2 + 1], eps)
    density.sign = -1.0
    high = _from_below(density, found.mirrored(), levels[: n - n // 2], eps)
    return torch.cat([low, -high.flip(0)]), found.variance()


def _interval(lower: float, upper: float, like: Tensor) -> tuple[float, float]:
    lower, upper = real(lower, "lower"), real(upper, "upper")
    limit = coordinate_limit(like.dtype)
    if not max(abs(lower), abs(upper)) < limit:
        msg = (
            f"lower and upper must be within {limit:g} in {like.dtype}, got "
            f"{lower:g} and {upper:g}; take a shorter interval"
        )
        raise ValueError(msg)
    if not lower < upper:
        msg = f"lower must be below upper, got {lower:g} and {upper:g}"
        raise ValueError(msg)
    return lower, upper


def _places(around: Sequence[float], lower: float, upper: float) -> list[float]:
    if isinstance(around, str) or not isinstance(around, Iterable):
        msg = f"around must be a sequence of numbers, got {around!r}; use around=(x,)"
        raise TypeError(msg)
    places = [real(x, "around") for x in around]
    for x in places:
        if not lower <= x <= upper:
            msg = f"around holds {x:g}, outside of [{lower:g}, {upper:g}]; leave it out"
            raise ValueError(msg)
    return places


class _Density:
    """A function that is called with float64 places of any shape, checked."""

    def __init__(self, f: Ground, like: Tensor, lower: float, upper: float) -> None:
        self.f, self.like, self.sign = f, like, 1.0
        self.lower, self.upper = lower, upper
        self.calls, self.highest = 0, 0.0

    def __call__(self, x: Tensor) -> Tensor:
        at = (self.sign * x).reshape(-1, 1).to(self.like)
        values = self.f(at)
        check_tensor(values, "f")
        if values.shape != at.shape[:1]:
            msg = (
                f"f must map points (m, 1) = {tuple(at.shape)} to ({len(at)},), got "
                f"{tuple(values.shape)}; reduce over the last axis, e.g. .sum(-1)"
            )
            raise InvalidFunctional(msg)
        if values.is_complex():
            msg = f"f must be real, got {values.dtype}; take .real or .abs() of it"
            raise InvalidFunctional(msg)
        refuse_graph(
            "quantiles of a density",
            "levels are found by iteration, without a derivative in its parameters",
            values,
            cure="Quantiles(edges, weights), or from_quantile, which keep it",
        )
        values = values.detach().to("cpu", torch.float64)
        if bool((values == torch.inf).any()):
            values = self._beside(at, values)
        bad = ~(values >= 0) | torch.isinf(values)
        if bool(bad.any()):
            i = int(bad.nonzero()[0])
            msg = (
                f"f must be finite and non-negative, got {float(values[i]):g} at "
                f"x = {float(at[i, 0]):g}"
            )
            if float(values[i]) == math.inf:
                msg = (
                    f"{msg} and next to it; if f is singular there, take dtype="
                    f"torch.float64 if it is not, or smooth f, or use from_quantile"
                )
            raise ValueError(msg)
        self.calls += len(at)
        self.highest = max(self.highest, float(values.max()))
        return values.reshape(x.shape)

    def _beside(self, at: Tensor, values: Tensor) -> Tensor:
        """Return values in which an infinite one is replaced by the value next to it.

        At most one place meets a singularity exactly.
        """
        i = (values == torch.inf).nonzero()[:, 0]
        x = at[i.to(at.device)]
        sides = [
            self.f(torch.nextafter(x, torch.full_like(x, end)))
            for end in (self.lower, self.upper)
        ]
        values = values.clone()
        values[i] = torch.minimum(*sides).detach().to(values)
        return values


def _from_below(density: _Density, found: Panels, levels: Tensor, eps: float) -> Tensor:
    ends, parts = found.ends, found.masses
    below = torch.cat([parts.new_zeros(1), parts.cumsum(0)])
    total = float(below[-1])
    filled = (parts > 0).nonzero()[:, 0]
    first, last = int(filled[0]), int(filled[-1])
    targets = levels * total
    k = (torch.searchsorted(below, targets, right=True) - 1).clamp(first, last)
    low, high = ends[k].clone(), ends[k + 1].clone()
    wanted, width = targets - below[k], high - low
    # Only to divide: a share of the highest value would stop steps far from a pole.
    least = torch.finfo(torch.float64).tiny
    share = wanted / parts[k].clamp_min(1e-300 * total)
    x = low + width * share.clamp(0.0, 1.0)
    settled = targets == 0
    for _ in range(MAX_STEPS):
        excess = rule(density, ends[k], x)[0] - wanted
        low, high = torch.where(excess < 0, x, low), torch.where(excess < 0, high, x)
        step = x - excess / density(x).clamp_min(least)
        inside = (step > low) & (step < high)
        new = torch.where(inside, step, 0.5 * (low + high))
        place = 2.0**-51 * torch.maximum(new.abs(), width)
        # A settled place stays. It is one of the bounds, so its next step would leave
        # them.
        least_step = torch.minimum((step - x).abs(), (new - x).abs())
        settled = settled | (least_step <= place)
        x = torch.where(settled, x, new)
        if bool(settled.all()):
            break
    _refuse(found, k, x, targets, density.sign, eps)
    x[0] = _support_end(density, ends, first)
    return x


def _refuse(
    found: Panels, k: Tensor, x: Tensor, targets: Tensor, sign: float, eps: float
) -> None:
    """Raise NotConverged if masses below levels are not known well enough.

    They may be unknown because the density is rough, or because a singularity has mass
    that places do not resolve.
    """
    errors, places = found.errors.cumsum(0), found.places.cumsum(0)
    total, promised = float(found.masses.sum()), eps ** (2 / 3)
    # The parts of one panel share its error: that of the next one counts too.
    k = (k + 1).clamp_max(len(errors) - 1)
    rough = (errors[k] - places[k]).clamp_min(0.0)[1:] / targets[1:]
    rough = torch.cat([rough, (errors - places)[-1:] / total])
    below, at = found.hidden_below(x[1:])
    # A wrong total moves all levels; not that of a quantile at the singularity itself.
    rest = found.hidden.sum() - at
    hidden = below / targets[1:] + torch.where(at > 0, 0.0, rest / total)
    for doubt in (rough, hidden):
        worst = float(doubt.max()) if len(doubt) else 0.0
        if worst <= promised:
            continue
        info: dict[str, float] = {"error": worst, "tolerance": promised}
        if doubt is rough:
            info["panels"] = len(found.masses)
            cause = (
                f"rough or noisy on {len(found.masses)} panels; take a shorter "
                f"interval, a smoother f, dtype=torch.float64 where it is not, or "
                f"from_quantile or from_samples, which need no integral"
            )
        else:
            i, digits = int(found.hidden.argmax()), 17 if eps < 1e-9 else 9
            info["place"] = sign * float(found.spots[i])
            cause = (
                f"singular near x = m = {info['place']:.{digits}g}, and places there "
                f"are known to {float(found.near[i]):.2g}; write f in y = x - m, with "
                f"lower and upper less m, since places are fine at y = 0, and add m to "
                f"the edges; or smooth f over a length that places resolve, with "
                f"around=(m,); or use from_quantile, which needs no integral"
            )
        msg = (
            f"the masses below the quantiles are known to {worst:.2g} of themselves "
            f"only, not to {promised:.2g}: f is {cause}"
        )
        raise NotConverged(msg, info=info)


def _support_end(density: _Density, ends: Tensor, first: int) -> float:
    """Return the least point above which the density is positive, to a panel."""
    start, stop = ends[first : first + 1], ends[first + 1 : first + 2]
    inside, outside = start, ends[max(first - 1, 0)][None]
    if float(density(start)[0]) == 0:
        values = rule(density, start, stop)[1]
        share = gauss_legendre(values.shape[1])[0][(values[0] > 0).nonzero()[0]]
        inside, outside = start + share * (stop - start), start
    return float(bisect(lambda x: density(x) > 0, inside, outside, HALVINGS)[1])
