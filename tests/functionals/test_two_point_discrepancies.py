"""A discrepancy of a kernel of two points is that of the same kernel of differences."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.testing.clouds import normal


def alike(x, y):
    return torch.exp(-(x - y).square().sum(-1) / 2)


@pytest.mark.parametrize("weighted", [False, True])
def test_two_spellings_of_one_kernel(weighted):
    x, y = normal(20, 2), normal(15, 2, seed=1)
    w = torch.linspace(1, 2, 20, dtype=torch.float64) if weighted else torch.ones(20)
    mu = of.Particles(x, w.double(), normalize=True)
    one = of.MMDTo(y, of.kernels.Gaussian(1.0))
    two = of.MMDTo(y, of.kernels.TwoPoint(alike))
    torch.testing.assert_close(two.value(mu), one.value(mu), rtol=1e-12, atol=1e-14)
    for a, b in (
        (one.velocity(mu), two.velocity(mu)),
        (one.first_variation(mu, y), two.first_variation(mu, y)),
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert float(two.value(of.Particles(y))) == pytest.approx(0.0, abs=1e-15)
