"""Particles for contracts, some degenerate, and checks that nothing is modified."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from otflow.measures import Measure, Particles


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return standard normal numbers that depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def uniform(
    n: int = 7, d: int = 2, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Particles:
    """Return n equal atoms."""
    return Particles(normal(n, d, seed=seed, dtype=dtype))


def weighted(
    n: int = 7, d: int = 2, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Particles:
    """Return n atoms with masses that differ by factors of about ten."""
    masses = normal(n, seed=seed + 1000, dtype=dtype).exp()
    return Particles(normal(n, d, seed=seed, dtype=dtype), masses, normalize=True)


def degenerate(
    d: int = 2, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Particles:
    """Return weighted atoms: two coincide, two have no mass, one of these coincides."""
    x = normal(7, d, seed=seed, dtype=dtype)
    x[1] = x[0]
    x[5] = x[3]
    masses = torch.tensor([0.2, 0.1, 0.3, 0.15, 0.0, 0.0, 0.25], dtype=dtype)
    return Particles(x, masses, normalize=True)


def state(mu: Measure) -> list[tuple[Tensor, int]]:
    """Return copies of the tensors of a measure, with their version counters."""
    return [(tensor.clone(), tensor._version) for tensor in mu.tensors()]


def assert_untouched(mu: Measure, before: list[tuple[Tensor, int]]) -> None:
    """Check that since `before` nothing wrote into the measure or attached a graph."""
    tensors = mu.tensors()
    for tensor, (copy, version) in zip(tensors, before, strict=True):
        assert torch.equal(tensor, copy)
        assert tensor._version == version
    assert_plain(*tensors)


def assert_plain(*tensors: Tensor) -> None:
    """Check that tensors carry no graph."""
    for tensor in tensors:
        assert not tensor.requires_grad
        assert tensor.grad_fn is None
        assert tensor.grad is None


def global_state() -> tuple[Any, ...]:
    """Return what a library must leave alone; compare two such tuples with ==."""
    return (
        torch.get_rng_state().tolist(),
        str(np.random.get_state()),  # noqa: NPY002 - the global state is the point
        random.getstate(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        list(warnings.filters),
        np.geterr(),
    )
