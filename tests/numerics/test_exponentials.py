"""Exponentials without subnormal numbers, and narrow kernels made of them."""

from __future__ import annotations

import math
import time

import pytest
import torch

import otflow as of
from otflow.numerics.exponentials import exp_below_zero_

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@DTYPES
def test_only_subnormal_results_differ(dtype):
    tiny = torch.finfo(dtype).tiny
    lowest = math.log(tiny)
    t = torch.linspace(3 * lowest, 0, 10_001, dtype=dtype)
    found, expected = exp_below_zero_(t.clone()), t.exp()
    kept = expected > 1.001 * math.e * tiny
    torch.testing.assert_close(
        found[kept], expected[kept], rtol=4 * torch.finfo(dtype).eps, atol=0
    )
    assert not found[expected < 0.999 * math.e * tiny].any()
    assert bool((found[found > 0] >= tiny).all())


@DTYPES
@pytest.mark.parametrize("values", [[], [0.0], [-1e30], [-math.inf, -1.0]])
def test_extreme_and_no_exponents(dtype, values):
    t = torch.tensor(values, dtype=dtype)
    expected = torch.where(t < -1e4, 0.0, t.exp())
    torch.testing.assert_close(exp_below_zero_(t.clone()), expected)
    bad = torch.tensor([*values, math.nan], dtype=dtype)
    assert bool(exp_below_zero_(bad)[-1].isnan())


@DTYPES
def test_a_narrow_kernel_is_exact_and_leaves_torch_s_state_alone(dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(500, 2, generator=generator, dtype=torch.float64)
    sigma = 0.02 if dtype == torch.float64 else 0.04
    F = of.Interaction(of.kernels.Gaussian(sigma))
    value, velocity = F.value_and_velocity(of.Particles(x.to(dtype)))
    z = x[:, None] - x
    k = (-z.square().sum(-1) / (2 * sigma**2)).exp()
    pull = (k[:, :, None] * z).sum(1) / (len(x) * sigma**2)
    error = 1e-11 if dtype == torch.float64 else 1e-4
    assert float(value) == pytest.approx(float(0.5 * k.mean()), rel=error)
    scale = float(pull.abs().max())
    torch.testing.assert_close(velocity.double(), pull, rtol=0, atol=error * scale)
    assert float(torch.tensor(torch.finfo(dtype).tiny, dtype=dtype) * 0.5) > 0


def test_a_narrow_kernel_takes_about_the_time_of_a_wide_one():
    # With subnormal numbers it takes ten times as long.
    generator = torch.Generator().manual_seed(0)
    mu = of.Particles(torch.rand(3000, 2, generator=generator))

    def seconds(sigma):
        F = of.Interaction(of.kernels.Gaussian(sigma))
        F.value_and_velocity(mu)
        best = math.inf
        for _ in range(5):
            start = time.process_time()
            F.value_and_velocity(mu)
            best = min(best, time.process_time() - start)
        return best

    assert seconds(0.03) < 4 * seconds(1.0)
