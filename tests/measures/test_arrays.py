"""Measures beside NumPy and Python: arrays of points, lengths, truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import otflow as of
from otflow.errors import Unsupported
from otflow.testing.clouds import normal
from tests.curves import ALL
from tests.test_moving import OWN

F64 = torch.float64
ZERO = torch.zeros((), dtype=F64)


def cloud(dtype=F64) -> Any:
    return of.Particles(normal(5, 2).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_uniform_particles_are_the_array_of_their_points(dtype):
    mu = cloud(dtype)
    for array in (np.asarray(mu), np.array(mu), mu.__array__(), mu.__array__(None)):
        assert array.dtype == mu.points.numpy().dtype
        assert np.array_equal(array, mu.points.numpy())
    assert np.array_equal(np.concatenate([mu, mu])[5:], mu.points.numpy())
    equal = of.Particles(mu.points, torch.full((5,), 0.2, dtype=dtype))
    assert np.asarray(equal).shape == (5, 2)


def test_the_array_shares_memory_and_may_not_be_written_into():
    mu = cloud()
    before = mu.points.clone()
    shared = np.asarray(mu)
    assert shared.ctypes.data == mu.points.data_ptr()
    with pytest.raises(ValueError, match="read-only"):
        shared[0] = 0
    own = np.array(mu)
    own[:] = 0  # a copy
    assert torch.equal(mu.points, before)


def test_dtype_and_copy_are_those_of_the_protocol():
    mu = cloud()
    for array in (
        np.asarray(mu, dtype=np.float32),
        np.array(mu, dtype=np.float32),
        mu.__array__(np.float32),
        mu.__array__(dtype="float32", copy=True),
    ):
        assert array.dtype == np.float32
        assert np.array_equal(array, mu.points.numpy().astype(np.float32))
        array[0] = 0  # its own memory
    assert mu.__array__(copy=False).ctypes.data == mu.points.data_ptr()
    assert mu.__array__(F64_NUMPY, copy=False).ctypes.data == mu.points.data_ptr()
    copied = mu.__array__(copy=True)
    assert copied.ctypes.data != mu.points.data_ptr()
    assert copied.flags.writeable
    with pytest.raises(ValueError, match="which may copy"):
        mu.__array__(np.float32, copy=False)


F64_NUMPY = np.dtype("float64")


def test_weights_that_differ_are_not_lost():
    mu = of.Particles(normal(2, 1), torch.tensor([0.25, 0.75], dtype=F64))
    for ask in (np.asarray, np.array, np.mean):
        with pytest.raises(Unsupported, match=r"use mu\.points\.numpy\(\)"):
            ask(mu)


def test_a_graph_is_not_lost():
    mu = of.Particles(normal(2, 1).requires_grad_())
    with pytest.raises(Unsupported, match=r"use mu\.detach\(\)"):
        np.asarray(mu)
    np.asarray(mu.detach())


CURES = {
    "quantiles": lambda mu: (mu.edges.numpy(), mu.density().numpy()),
    "gaussian": lambda mu: (mu.mean.numpy(), mu.covariance.numpy()),
    "grid": lambda mu: mu.grid.numpy(),
    "fields": lambda mu: (mu.points.numpy(), mu.weights.numpy()),
}


@pytest.mark.parametrize("kind", CURES)
def test_other_measures_are_no_array_and_say_what_is(kind):
    mu = {**ALL, **OWN}[kind](ZERO)
    with pytest.raises(Unsupported, match=r"no form as an array.*mu\..*\.numpy\(\)"):
        np.asarray(mu)
    CURES[kind](mu)


@pytest.mark.parametrize("kind", [*ALL, *OWN])
def test_the_length_is_the_number_of_points_and_every_measure_is_true(kind):
    mu = {**ALL, **OWN}[kind](ZERO)
    assert bool(mu) is True
    if isinstance(mu, of.Gaussian):
        with pytest.raises(Unsupported, match=r"Gaussian has no length.*mu\.n"):
            len(mu)
        return
    assert len(mu) == mu.n == len(mu.points)


def test_a_measure_of_no_points_is_true_too():
    none = cloud().with_free_atoms(torch.zeros(0, 2), torch.zeros(0))
    assert len(none) == 0
    assert bool(none) is True
