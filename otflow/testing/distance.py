"""The laws of a distance, of any library: its values, its gradients, its limits."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
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
from otflow.measures import Particles
from otflow.metrics import entropic_plan, sinkhorn_divergence, wasserstein2_squared
from otflow.testing.clouds import normal
from otflow.testing.differences import derivative

__all__ = ["check_distance"]

KINDS = ("W2^2", "W2^2/2", "W2", "entropic", "divergence")
GRADIENTS = ("points", "weights")
# Round-off of a value, relative to the largest value that the law compares.
ROUND_OFF = 1e-9
# How far the clouds of the law of translation lie from the origin, in diameters.
FAR = 1e3
# Step of the finite differences: far below the spacing of the points.
STEP = 1e-4

Cloud: TypeAlias = tuple[Tensor, Tensor]
Law: TypeAlias = Callable[["_Check"], None]


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

    An exact distance takes seconds. A distance that passes is right on these clouds,
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
    check = _Check(
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
        except _Failure as failure:
            failures.append(f"  {name}: {failure}")
    if failures:
        head = f"the distance fails {len(failures)} of {len(laws)} laws of {of}"
        raise AssertionError("\n".join([head, *failures]))


class _Failure(Exception):
    """A law that fails, with its numbers."""


def _require(is_true: Any, message: str) -> None:
    if not bool(is_true):
        raise _Failure(message)


@dataclass(frozen=True)
class _Check:
    """A distance, what it should be, and clouds on which to try it."""

    distance: Callable[..., Any]
    of: str
    weights: bool
    blur: float | None
    reach: float | None
    tolerance: float
    sizes: tuple[int, ...]
    large: int
    gradients: frozenset[str]

    def pairs(self) -> Iterator[tuple[Cloud, Cloud]]:
        """Yield clouds that differ: in the plane, in dimension 3, apart, on a line."""
        n, m = self.sizes
        for k, (d, shift) in enumerate(((2, 0.5), (3, 0.5), (2, 6.0), (1, 0.5))):
            yield self.cloud(n, d, 2 * k), self.cloud(m, d, 2 * k + 1, shift)

    def cloud(self, n: int, d: int, seed: int, shift: float = 0.0) -> Cloud:
        x = normal(n, d, seed=seed) + shift
        a = torch.ones(n, dtype=x.dtype)
        if self.weights:
            a = a + 2 * torch.sigmoid(normal(n, seed=seed + 100))
        return x, a / a.sum()

    def raw(self, x: Tensor, a: Tensor, y: Tensor, b: Tensor) -> Any:
        """Call the distance; what it raises is a failure, what it warns of is not."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return (
                    self.distance(x, a, y, b) if self.weights else self.distance(x, y)
                )
            except Exception as error:
                msg = f"it raises {type(error).__name__}: {error!s:.200}"
                raise _Failure(msg) from error

    def number(self, x: Tensor, a: Tensor, y: Tensor, b: Tensor) -> float:
        found = self.raw(x, a, y, b)
        try:
            return float(found.detach() if isinstance(found, Tensor) else found)
        except (TypeError, ValueError, RuntimeError) as error:
            msg = f"it returns {type(found).__name__}, which is no number"
            raise _Failure(msg) from error

    def exact(self, x: Tensor, a: Tensor, y: Tensor, b: Tensor) -> float:
        """Return the exact value between these numbers."""
        mu = Particles(x.double(), a.double(), normalize=True)
        nu = Particles(y.double(), b.double(), normalize=True)
        if self.blur is None:
            square = float(wasserstein2_squared(mu, nu))
            return self.of_square(square)
        if self.of == "entropic":
            plan = entropic_plan(mu, nu, blur=self.blur, reach=self.reach)
            return float(plan.value)
        return float(sinkhorn_divergence(mu, nu, blur=self.blur, reach=self.reach))

    @property
    def asked(self) -> frozenset[str]:
        """The gradients to check."""
        return self.gradients - (set() if self.weights else {"weights"})

    def of_square(self, square: float) -> float:
        if self.of == "W2":
            return math.sqrt(square)
        return square if self.of == "W2^2" else 0.5 * square

    def gradient(
        self, kind: str, x: Tensor, a: Tensor, y: Tensor, b: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients in the points, or the weights, of both clouds."""
        # Everything that is asked for has a graph at once, as in a user's program.
        state = [t.clone() for t in (x, a, y, b)]
        for k, t in enumerate(state):
            t.requires_grad_(GRADIENTS[k % 2] in self.asked)
        at = (state[0], state[2]) if kind == "points" else (state[1], state[3])
        with torch.enable_grad():
            value = self.raw(*state)
        _require(
            isinstance(value, Tensor), f"it returns {type(value).__name__}: no graph"
        )
        _require(value.requires_grad, f"the value has no graph of the {kind}")
        value.sum().backward()
        for t, side in zip(at, "xy", strict=True):
            where = (
                f"the {kind} of {side}" if kind == "points" else f"{kind} beside {side}"
            )
            _require(t.grad is not None, f"no gradient arrives in {where}: it is None")
            assert t.grad is not None
            bad = int((~t.grad.isfinite()).sum())
            _require(
                bad == 0, f"{bad} entries of the gradient in {where} are not finite"
            )
        assert at[0].grad is not None
        assert at[1].grad is not None
        return at[0].grad, at[1].grad


def _value(check: _Check) -> None:
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
        raise _Failure(msg)


def _positive(check: _Check) -> None:
    for (x, a), (y, b) in check.pairs():
        found, exact = check.number(x, a, y, b), check.exact(x, a, y, b)
        _require(math.isfinite(found), f"the value is {found}")
        least = 1e-6 * exact
        _require(
            found > least, f"{found:.6g} between clouds that differ; exact: {exact:.6g}"
        )


def _symmetric(check: _Check) -> None:
    for (x, a), (y, b) in check.pairs():
        one, other = check.number(x, a, y, b), check.number(y, b, x, a)
        _require(
            abs(one - other) <= check.tolerance * abs(one),
            f"{one:.9g} one way, {other:.9g} the other way",
        )


def _gradient(kind: str, check: _Check) -> None:
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
                raise _Failure(msg)


def _difference(
    check: _Check, state: tuple[Tensor, ...], place: int, way: Tensor
) -> float:
    """Return the derivative of the distance as one argument moves."""

    def along(t: float) -> Tensor:
        moved = list(state)
        moved[place] = state[place] + t * way
        return torch.tensor(check.number(*moved), dtype=torch.float64)

    return float(derivative(along, STEP))


def _same(check: _Check, mu: Cloud, nu: Cloud, size: float) -> None:
    """Check the value between equal measures, and that its gradient is finite."""
    found, exact = check.number(*mu, *nu), check.exact(*mu, *nu)
    near = check.tolerance * size
    if check.of == "W2":
        near = math.sqrt(ROUND_OFF) * size  # the root of round-off
    _require(abs(found - exact) <= near, f"the value is {found:.6g}, not {exact:.6g}")
    if "points" in check.gradients:
        check.gradient("points", *mu, *nu)


def _coincidence(check: _Check) -> None:
    for mu, nu in check.pairs():
        _same(check, mu, mu, max(1e-3, check.exact(*mu, *nu)))
        _same(check, nu, nu, max(1e-3, check.exact(*mu, *nu)))


def _diracs(check: _Check) -> None:
    (x, a), (y, b) = next(check.pairs())
    point = x[:1]
    _same(check, (point.expand_as(x), a), (point.expand_as(y), b), 1.0)


def _far(check: _Check) -> None:
    for (x, a), (y, b) in check.pairs():
        state = [t.float() for t in (x + FAR, a, y + FAR, b)]
        found, exact = check.number(*state), check.exact(*state)
        near = max(check.tolerance, 1e-3) * abs(exact)
        _require(
            abs(found - exact) <= near,
            f"{found:.6g} in float32 at {FAR:g}, where the same numbers in float64 "
            f"have {exact:.6g}",
        )


def _large(check: _Check) -> None:
    n = check.large
    (x, a), (y, b) = check.cloud(n, 2, 11), check.cloud(n, 2, 12, 0.5)
    found, exact = check.number(x, a, y, b), check.exact(x, a, y, b)
    _require(
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
