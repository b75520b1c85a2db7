"""No result rests on the last bit: the same solve, with inputs times 1 + k 1e-13."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import otflow as of

__all__ = ["Outcome", "assert_stable", "of_step"]

# The last bits of float64, and more than its round-off after a few sums.
NUDGE = 1e-13


@dataclass(frozen=True)
class Outcome:
    """What must not change: the result, whether it converged, about what it cost."""

    value: Tensor
    converged: bool = True
    count: int = 0


def of_step(result: of.proximal.ProxResult) -> Outcome:
    """Return the outcome of a proximal step."""
    nu = result.measure
    value = nu.weights if isinstance(nu, of.GridDensity) else nu.points
    count = result.certificate.get("iterations", result.iterations)
    return Outcome(value, bool(result.certificate["converged"]), int(count))


def assert_stable(
    solve: Callable[[float], Outcome],
    *,
    tolerance: float,
    factor: float = 1.5,
    runs: int = 4,
) -> Outcome:
    """Check that `solve`, whose inputs are multiplied by its argument, is stable.

    It converges in every run, to one result up to `tolerance` (the sum of absolute
    differences over that of the result), and the counts are within `factor` of each
    other, up to three.
    """
    outcomes = [solve(1.0 + k * NUDGE) for k in range(runs)]
    first = outcomes[0]
    assert all(o.converged for o in outcomes), [o.converged for o in outcomes]
    size = float(first.value.abs().sum())
    for other in outcomes[1:]:
        assert bool(torch.isfinite(other.value).all())
        assert float((other.value - first.value).abs().sum()) <= tolerance * size
    counts = [o.count for o in outcomes]
    assert max(counts) <= factor * min(counts) + 3, counts
    return first
