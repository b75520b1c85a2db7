"""The laws of a distance, of any library: its values, its gradients, its limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from otflow._validation import (
    check_function,
    check_option,
    non_negative_int,
    positive,
    true_or_false,
)
from otflow.testing.clouds import normal
from otflow.testing.differences import derivative
from otflow.testing.trial import GRADIENTS, Cloud, Failure, Trial, require

__all__ = ["check_distance"]

KINDS = ("W2^2", "W2^2/2", "W2", "entropic", "divergence")
# Round-off of a value, relative to values of its size.
ROUND_OFF = 1e-13
# Error of a root at 0, where the square has round-off.
AT_ZERO = 1e-5
# How far the clouds of the law of translation lie from the origin, in diameters.
FAR = 1e3
# Step of the finite differences: far below the spacing of the points.
STEP = 1e-4

Law: TypeAlias = Callable[["Trial"], None]


def check_distance(
    distance: Callable[..., Any],
    *,
    of: str = "W2^2",
    weights: bool = True,
    blur: float | None = None,
    reach: float | None = None,
    tolerance: float = 1e-6,
    gradients: Collection[str] = GRADIENTS,
    sizes: tuple[int, int] = (7, 5),
    large: int = 500,
    skip: Collection[str] = (),
) -> None:
    r"""Check a distance between clouds, of any library, against exact answers.

    Gradients g are compared with finite differences along random directions v,

    .. math:: \langle g, v\rangle = \frac{d}{dt} D(\mu + t v, \nu)\Big|_{t=0},

    and values with exact ones. All laws are tried, and one error names those that fail,
    with the numbers.

    Parameters
    ----------
    distance : callable
        Takes ``(x, a, y, b)``, points (n, d) and (m, d) and weights (n,) and (m,) of
        sum 1; with ``weights=False`` it takes ``(x, y)``. It returns a number: a 0-d
        tensor with a graph if gradients are checked. All arguments are float64 tensors,
        except in the law "far".
    of : {"W2^2", "W2^2/2", "W2", "entropic", "divergence"}
        What it should be. ``"W2"``: :math:`W_2` for the cost :math:`|x-y|^2`.
        ``"entropic"``: the value of `otflow.metrics.entropic_plan`. ``"divergence"``:
        `otflow.metrics.sinkhorn_divergence`. Both have the cost :math:`|x-y|^2/2` and
        :math:`\varepsilon = \mathrm{blur}^2`; wrap a distance of another scale in a
        lambda that divides.
    weights : bool
        Whether the distance takes weights.
    blur, reach : float, optional
        Those of the last two kinds; the clouds have a spacing of about 1.
    tolerance : float
        Largest error relative to the exact value, or to the size of the gradient.
    gradients : collection of {"points", "weights"}
        Which gradients to check.
    sizes : tuple of int
        Numbers of points of the small clouds.
    large : int
        Number of points of the large clouds, which find a solver's limit of iterations;
        0 leaves the law out.
    skip : collection of str
        Names of laws to leave out.

    Raises
    ------
    AssertionError
        If a law fails. The message names each law that fails.
    ValueError
        If an option is unknown, or blur or reach do not belong to the kind.
    TypeError
        If an argument has the wrong type.

    Notes
    -----
    The laws, by their names:

    "value"
        The exact value of clouds that differ; the message names a factor 2, and the
        cost of the independent coupling.
    "positive"
        Values are finite and not negative, and positive between clouds that differ.
    "symmetric"
        D(mu, nu) = D(nu, mu).
    "points", "weights"
        The result has a graph, a gradient arrives, and it is that of the value.
    "coincidence"
        Between a measure and itself the value is right, 0 but for "entropic", and its
        gradient in the points finite.
    "Diracs"
        All points of both clouds coincide: value 0, a finite gradient.
    "far"
        Clouds in float32, far from the origin: the value of the same numbers in
        float64, to 1e-3.
    "large"
        The value between many points: it is wrong where a solver stops at its limit of
        iterations.

    An exact distance takes seconds. The default limit of POT's network simplex, 1e5
    pivots, shows with ``large=4000``. A distance that passes is right on these clouds,
    not everywhere.

    Examples
    --------
    >>> import otflow as of
    >>> def mine(x, a, y, b):
    ...     mu, nu = of.Particles(x, a), of.Particles(y, b)
    ...     return of.metrics.wasserstein2_squared(mu, nu)
    >>> of.testing.check_distance(mine, of="W2^2")
    >>> of.testing.check_distance(mine, of="W2^2/2", large=0)
    Traceback (most recent call last):
    ...
    AssertionError: the distance fails 2 of 8 laws of W2^2/2
      value: ... instead of ..., twice the exact value
      ...
    """
    check_function(distance, "distance must take (x, a, y, b) or (x, y) to a number")
    check_option(of, "of", KINDS)
    soft = of in {"entropic", "divergence"}
    if soft == (blur is None) or (reach is not None and not soft):
        msg = (
            f"blur and reach belong to an entropic or a debiased distance, which needs "
            f"a blur; got of={of!r}, blur={blur}, reach={reach}: use e.g. "
            f"{'blur=0.5' if soft else 'of=' + repr('divergence')}"
        )
        raise ValueError(msg)
    laws = _laws(gradients, true_or_false(weights, "weights"), large)
    for name in skip:
        check_option(name, "skip", LAWS)
    laws = {name: law for name, law in laws.items() if name not in skip}
    check = Trial(
        distance,
        of,
        weights,
        None if blur is None else positive(blur, "blur"),
        None if reach is None else positive(reach, "reach"),
        positive(tolerance, "tolerance"),
        tuple(non_negative_int(n, "sizes", minimum=2) for n in sizes),
        non_negative_int(large, "large"),
        frozenset(gradients),
    )
    failures = []
    for name, law in laws.items():
        try:
            law(check)
        except Failure as failure:
            failures.append(f"  {name}: {failure}")
    if failures:
        head = f"the distance fails {len(failures)} of {len(laws)} laws of {of}"
        raise AssertionError("\n".join([head, *failures]))


def _value(check: Trial) -> None:
    for (x, a), (y, b) in check.pairs():
        found, exact = check.number(x, a, y, b), check.exact(x, a, y, b)
        error = abs(found - exact)
        if error <= check.tolerance * abs(exact):
            continue
        msg = f"{found:.6g} instead of {exact:.6g}"
        independent = float(a @ (x[:, None] - y).square().sum(-1) @ b)
        near = max(check.tolerance, 1e-6)
        for guess, words in (
            (2 * exact, "twice the exact value"),
            (0.5 * exact, "half of the exact value"),
            (check.of_square(independent), "the cost of the independent coupling"),
            (independent, "the cost of the independent coupling for |x-y|^2"),
            (math.sqrt(abs(exact)), "the root of the exact value"),
            (exact * exact, "the square of the exact value"),
            (0.0, "no value at all"),
        ):
            if abs(found - guess) <= near * abs(exact):
                msg += f", {words}"
                break
        else:
            msg += f", wrong by {found / exact - 1:+.3g} of it"
        raise Failure(msg)


def _positive(check: Trial) -> None:
    for (x, a), (y, b) in check.pairs():
        found, exact = check.number(x, a, y, b), check.exact(x, a, y, b)
        require(math.isfinite(found), f"the value is {found}")
        least = 1e-6 * exact
        require(
            found > least, f"{found:.6g} between clouds that differ; exact: {exact:.6g}"
        )


def _symmetric(check: Trial) -> None:
    for (x, a), (y, b) in check.pairs():
        one, other = check.number(x, a, y, b), check.number(y, b, x, a)
        require(
            abs(one - other) <= check.tolerance * abs(one),
            f"{one:.9g} one way, {other:.9g} the other way",
        )


def _gradient(kind: str, check: Trial) -> None:
    for k, (mu, nu) in enumerate(check.pairs()):
        state = (*mu, *nu)
        grads = check.gradient(kind, *state)
        for side, grad in enumerate(grads):
            place = 2 * side + (kind == "weights")
            way = normal(*grad.shape, seed=50 + k)
            if kind == "weights":
                way = 0.1 * (way - way.mean())  # masses keep the sum 1
            slope = float((grad * way).sum())
            expected = _difference(check, state, place, way)
            rest = grad if kind == "points" else grad - grad.mean()
            size = float(rest.norm() * way.norm()) + abs(expected)
            noise = ROUND_OFF * abs(check.number(*state)) / STEP
            if abs(slope - expected) > check.tolerance * size + noise:
                ratio = f", {slope / expected:.4g} times as much" if expected else ""
                msg = (
                    f"the gradient in the {kind} of the "
                    f"{('first', 'second')[side]} cloud gives the slope {slope:.6g}, "
                    f"finite differences {expected:.6g}{ratio}"
                )
                raise Failure(msg)


def _difference(
    check: Trial, state: tuple[Tensor, ...], place: int, way: Tensor
) -> float:
    """Return the derivative of the distance as one argument moves."""

    def along(t: float) -> Tensor:
        moved = list(state)
        moved[place] = state[place] + t * way
        return torch.tensor(check.number(*moved), dtype=torch.float64)

    return float(derivative(along, STEP))


def _same(check: Trial, mu: Cloud, nu: Cloud, size: float) -> None:
    """Check the value between equal measures, and that its gradient is finite."""
    found, exact = check.number(*mu, *nu), check.exact(*mu, *nu)
    near = check.tolerance * size
    if check.of == "W2":
        near = AT_ZERO * size
    require(abs(found - exact) <= near, f"the value is {found:.6g}, not {exact:.6g}")
    if "points" in check.gradients:
        check.gradient("points", *mu, *nu)


def _coincidence(check: Trial) -> None:
    for mu, nu in check.pairs():
        _same(check, mu, mu, max(1e-3, check.exact(*mu, *nu)))
        _same(check, nu, nu, max(1e-3, check.exact(*mu, *nu)))


def _diracs(check: Trial) -> None:
    (x, a), (y, b) = next(check.pairs())
    point = x[:1]
    _same(check, (point.expand_as(x), a), (point.expand_as(y), b), 1.0)


def _far(check: Trial) -> None:
    for (x, a), (y, b) in check.pairs():
        state = [t.float() for t in (x + FAR, a, y + FAR, b)]
        found, exact = check.number(*state), check.exact(*state)
        near = max(check.tolerance, 1e-3) * abs(exact)
        if abs(found - exact) <= near:
            continue
        # A wrong factor shows in float64 too; digits that are lost do not.
        u, p, v, q = (t.double() for t in state)
        fine = check.number(u, p / p.sum(), v, q / q.sum())
        require(
            False,
            f"{found:.6g} in float32 at {FAR:g}, and {fine:.6g} of the same numbers in "
            f"float64, where the exact value is {exact:.6g}",
        )


def _large(check: Trial) -> None:
    n = check.large
    (x, a), (y, b) = check.cloud(n, 2, 11), check.cloud(n, 2, 12, 0.5)
    found, exact = check.number(x, a, y, b), check.exact(x, a, y, b)
    require(
        abs(found - exact) <= check.tolerance * abs(exact),
        f"{found:.8g} between {n} points each, {found / exact - 1:+.3g} off the exact "
        f"{exact:.8g}; did the solver stop at its limit of iterations?",
    )


LAWS: dict[str, Law] = {
    "value": _value,
    "positive": _positive,
    "symmetric": _symmetric,
    "points": partial(_gradient, "points"),
    "weights": partial(_gradient, "weights"),
    "coincidence": _coincidence,
    "Diracs": _diracs,
    "far": _far,
    "large": _large,
}


def _laws(gradients: Collection[str], weights: bool, large: int) -> dict[str, Law]:
    for name in gradients:
        check_option(name, "gradients", GRADIENTS)
    out = set(GRADIENTS) - set(gradients)
    if not weights:
        out.add("weights")
    if not large:
        out.add("large")
    return {name: law for name, law in LAWS.items() if name not in out}
