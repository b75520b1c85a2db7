"""What `propagation_of_chaos` is given, checked: sizes, starts and functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from otflow._arrays import as_points
from otflow._typing import Ground, Seed
from otflow._validation import check_function, non_negative_int
from otflow.errors import InvalidFunctional, NonFinite
from otflow.functionals import Functional
from otflow.measures import Measure, Particles

__all__ = [
    "Initial",
    "check_law_alone",
    "counts_of",
    "device_of",
    "observed",
    "one_for_each",
    "start_of",
]

Initial: TypeAlias = Measure | Callable[[int, torch.Generator], Tensor]
"""A measure to sample, or a function of n and a generator to points (n, d)."""

# Particles whose velocity is tried twice, and the share by which it may change: kernels
# that leave out the pairs i = j change by 1/n.
TRIED, CHANGE = 64, 0.2


def counts_of(sizes: Sequence[int], reference: int) -> tuple[int, ...]:
    """Return the sizes; raise unless each is from 2 to below `reference`."""
    if not isinstance(sizes, Iterable):
        msg = f"sizes must be several numbers, e.g. [16, 64, 256], got {sizes!r:.60}"
        raise TypeError(msg)
    counts = tuple(
        non_negative_int(n, f"sizes[{k}]", minimum=2) for k, n in enumerate(sizes)
    )
    reference = non_negative_int(reference, "reference", minimum=2)
    if not counts or max(counts) >= reference:
        msg = (
            f"sizes must be one number or more below reference = {reference}, the "
            f"particles of the limit, got {list(counts)}; take a larger reference"
        )
        raise ValueError(msg)
    return counts


def device_of(initial: Any, generator: Seed) -> torch.device:
    """Return the device of the generator that draws the start."""
    if isinstance(generator, torch.Generator):
        return generator.device
    if isinstance(initial, Measure):
        return initial.points.device
    return torch.device("cpu")


def start_of(initial: Any, n: int, stream: torch.Generator) -> Tensor:
    """Return n independent points."""
    if isinstance(initial, Measure):
        return initial.sample(n, stream).detach()
    check_function(initial, "initial must be a Measure or a function of (n, generator)")
    points = initial(n, stream)
    if isinstance(points, np.ndarray):
        points = as_points(points, "initial(n, generator)")
    if not isinstance(points, Tensor) or points.ndim != 2 or len(points) != n:
        got = tuple(points.shape) if isinstance(points, Tensor) else type(points)
        msg = (
            f"initial(n, generator) must return points of shape (n, d), n = {n}, got "
            f"{got!r:.80}; e.g. torch.randn(n, d, generator=generator)"
        )
        raise ValueError(msg)
    return points.detach()


def check_law_alone(rest: Functional, x: Tensor) -> None:
    """Raise InvalidFunctional if the velocity depends on the number of particles."""
    x = x[:TRIED]
    try:
        once = rest.velocity(Particles(x))
        twice = rest.velocity(Particles(torch.cat([x, x])))[: len(x)]
    except NonFinite:  # a kernel without a value at 0: no two particles may coincide
        return
    far, size = float((twice - once).norm()), float(once.norm())
    rounded = torch.finfo(x.dtype).eps ** 0.5 * max(1.0, float(x.norm()))
    if far > CHANGE * size + rounded:
        share = 100.0 * far / max(size, rounded)
        msg = (
            f"the velocity of {rest!r:.80} depends on the number of particles: it "
            f"changes by {share:.0f} % where every one is there twice, which leaves "
            f"their law alone; take scaling='mean-field' for a network, and "
            f"integrals over the measure, mu.expectation(f), for a functional of your "
            f"own"
        )
        raise InvalidFunctional(msg)


def one_for_each(psi: Ground, x: Tensor) -> Tensor:
    """Return the numbers of `pair`, one for each particle."""
    values = psi(x)
    shape = tuple(values.shape) if isinstance(values, Tensor) else type(values)
    if shape != (len(x),):
        msg = (
            f"pair must map points {tuple(x.shape)} to one number for each, "
            f"({len(x)},), got {shape!r:.60}; e.g. x[:, 0]"
        )
        raise InvalidFunctional(msg)
    return values.detach()


def observed(
    phi: Callable[[Any], Any], mu: Particles, count: int | None = None
) -> Tensor:
    """Return the entries of an observable, of which there must be `count`."""
    value = phi(mu)
    if not isinstance(value, Tensor):
        msg = (
            f"observable must return a tensor, got {type(value).__name__}; for a Risk "
            f"risk.outputs is one"
        )
        raise InvalidFunctional(msg)
    if count is not None and value.numel() != count:
        msg = (
            f"observable returned {count} numbers for the limit and {value.numel()} "
            f"for {mu.n} particles; return a function of the law, e.g. "
            f"mu.expectation(f)"
        )
        raise InvalidFunctional(msg)
    return value.detach().reshape(-1)
