"""A distance on trial: clouds, exact values, and calls whose errors are failures."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from otflow.measures import Particles
from otflow.metrics import entropic_plan, sinkhorn_divergence, wasserstein2_squared
from otflow.testing.clouds import normal

__all__ = ["GRADIENTS", "Cloud", "Failure", "Trial", "require"]

GRADIENTS = ("points", "weights")
Cloud: TypeAlias = tuple[Tensor, Tensor]


class Failure(Exception):
    """A law that fails, with its numbers."""


def require(is_true: Any, message: str) -> None:
    """Raise a failure with this message unless it is true."""
    if not bool(is_true):
        raise Failure(message)


@dataclass(frozen=True)
class Trial:
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
        """Return n points, and weights that depend on the seed."""
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
                raise Failure(msg) from error

    def number(self, x: Tensor, a: Tensor, y: Tensor, b: Tensor) -> float:
        """Return the distance as a float."""
        found = self.raw(x, a, y, b)
        try:
            if isinstance(found, Tensor):
                found = found.detach()
                require(not found.is_complex(), f"it returns a number in {found.dtype}")
            return float(found)
        except (TypeError, ValueError, RuntimeError) as error:
            msg = f"it returns {type(found).__name__}, which is no number"
            raise Failure(msg) from error

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
        """Return the exact value for a squared distance."""
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
        require(
            isinstance(value, Tensor), f"it returns {type(value).__name__}: no graph"
        )
        require(value.requires_grad, f"the value has no graph of the {kind}")
        try:
            # No gradient is left in parameters of the distance.
            value.sum().backward(inputs=at)
        except Exception as error:
            msg = f"its gradient raises {type(error).__name__}: {error!s:.200}"
            raise Failure(msg) from error
        grads = []
        for t, side in zip(at, "xy", strict=True):
            where = (
                f"the {kind} of {side}" if kind == "points" else f"{kind} beside {side}"
            )
            require(t.grad is not None, f"no gradient arrives in {where}: it is None")
            assert t.grad is not None
            grads.append(t.grad)
            bad = int((~t.grad.isfinite()).sum())
            require(
                bad == 0, f"{bad} entries of the gradient in {where} are not finite"
            )
        return grads[0], grads[1]
