"""Forward-backward on grids: order 1 in time, 2 in space, against the exact law."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.analysis import observed_order

F64 = torch.float64
# A bell under a spring, with diffusion, from N(1, 0.3).
HEAT = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0) + of.Entropy()
MEAN, WIDE, TIME = 1.0, 0.3, 1.0


def after(n, dt):
    """Return mean and variance at the end, of a density on n cells."""
    rho = of.GridDensity.from_function(
        lambda x: torch.exp(-0.5 * (x[..., 0] - MEAN) ** 2 / WIDE), -7, 7, n, dtype=F64
    )
    scheme = of.schemes.ForwardBackward()
    run = of.flow(HEAT, rho, scheme, dt=dt, steps=round(TIME / dt))
    assert run.converged
    assert {info.dt for info in run.info} == {dt}
    mean = float(run.final.expectation(lambda x: x[:, 0]))
    return mean, float(run.final.expectation(lambda x: x[:, 0] ** 2)) - mean**2


def exact_step(dt):
    """Return mean and variance by the same steps on Gaussians, without a grid."""
    mu = of.Gaussian(torch.tensor([MEAN], dtype=F64), torch.tensor([[WIDE]], dtype=F64))
    scheme = of.schemes.ForwardBackward()
    end = of.flow(HEAT, mu, scheme, dt=dt, steps=round(TIME / dt)).final
    return float(end.mean), float(end.covariance)


@pytest.mark.slow
def test_order_one_in_time():
    steps = (0.2, 0.1, 0.05)
    mean = MEAN * math.exp(-TIME)
    wide = 1 + (WIDE - 1) * math.exp(-2 * TIME)
    found = [after(200, dt) for dt in steps]
    means = [abs(m - mean) for m, _ in found]
    assert observed_order(steps, means) == pytest.approx(1.0, abs=0.1)
    for (m, v), dt in zip(found, steps, strict=True):
        assert m == pytest.approx(exact_step(dt)[0], abs=1e-4)
        assert v == pytest.approx(exact_step(dt)[1], abs=6e-4)
    # The variance of these steps without a grid. Its errors in longer steps cancel.
    steps = (0.05, 0.025, 0.0125)
    wides = [abs(exact_step(dt)[1] - wide) for dt in steps]
    assert observed_order(steps, wides) == pytest.approx(1.0, abs=0.1)


def test_order_two_in_space():
    cells, dt = (50, 100, 200), 0.1
    mean, wide = exact_step(dt)
    found = [after(n, dt) for n in cells]
    errors = [abs(v - wide) for _, v in found]
    assert 1.8 <= observed_order([1 / n for n in cells], errors) <= 2.5
    assert max(abs(m - mean) for m, _ in found) <= 1e-3
