"""Quantiles that cross kinks, with an entropy: steps end soon; smooth ones go on."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.proximal import QuantileProximal
from otflow.proximal.quantiles import stall

F64 = torch.float64
# The share of its fall that a step may leave. Each quantile crosses a kink alone: with
# little entropy the objective falls for as many evaluations.
LEFT = 1e-3


def absolute(x):
    return x.abs().sum(-1)


MIXED = of.Potential(lambda x: absolute(x) + 0.5 * (x - 0.3).square().sum(-1))
TWO = of.Potential(lambda x: absolute(x - 1) + absolute(x + 0.5))
# A functional, a number of quantiles, dt, and most evaluations.
KINKED = {
    "a spring": (MIXED + 0.1 * of.Entropy(), 24, 1.0, 50),
    "many quantiles": (MIXED + 0.1 * of.Entropy(), 200, 0.1, 60),
    "many, a long step": (MIXED + 0.1 * of.Entropy(), 200, 1.0, 60),
    "two kinks": (TWO + 0.01 * of.Entropy(), 200, 0.1, 60),
    "little entropy": (TWO + 0.01 * of.Entropy(), 24, 1.0, 140),
}


def line(n):
    return of.Quantiles(torch.linspace(-1.0, 3.0, n, dtype=F64))


@pytest.mark.parametrize("name", KINKED)
def test_a_step_among_kinks_ends_soon(name, monkeypatch):
    F, n, dt, most = KINKED[name]
    known = QuantileProximal().solve(F, line(n), dt).certificate
    assert known["stalled"]
    assert not known.converged
    assert known["cause"].startswith("the objective stopped falling")
    assert known["iterations"] <= most
    with monkeypatch.context() as patch:
        patch.setattr(stall, "JUMP", torch.inf)
        long = QuantileProximal().solve(F, line(n), dt).certificate
    assert not long.converged
    assert long["iterations"] > 1.3 * known["iterations"]
    fall = [c["decrease"] for c in (known, long)]
    assert fall[1] - fall[0] <= LEFT * fall[1]


SMOOTH = {
    "wells": lambda k: of.Potential(
        lambda x: 10**k * (x.square() - 1).square().sum(-1)
    ),
    "quartic": lambda k: of.Potential(lambda x: 10**k * x.pow(4).sum(-1)),
    "cosine": lambda k: of.Potential(lambda x: 10**k * (3 * x).cos().sum(-1)),
    "softened |x|": lambda k: of.Potential(
        lambda x: (x.square() + 10.0 ** (-k)).sqrt().sum(-1)
    ),
    "bells": lambda k: (
        -(10**k) * of.Interaction(of.kernels.Gaussian(0.7))
        + of.Potential(lambda x: x.square().sum(-1))
    ),
    "logarithm": lambda k: (
        of.Interaction(of.kernels.Log())
        + of.Potential(lambda x: 10**k * x.square().sum(-1))
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("n", [9, 40])
@pytest.mark.parametrize("power", [-1, 0, 1, 2])
@pytest.mark.parametrize("name", SMOOTH)
def test_no_smooth_step_that_converges_stalls(name, power, n, monkeypatch):
    for heat in (0.01, 1.0):
        F = SMOOTH[name](power) + heat * of.Entropy()
        for dt in (0.1, 100.0):
            known = QuantileProximal().solve(F, line(n), dt).certificate
            with monkeypatch.context() as patch:
                patch.setattr(stall, "JUMP", torch.inf)
                other = QuantileProximal().solve(F, line(n), dt).certificate
            assert known["converged"] >= other["converged"]
            assert not (known["stalled"] and other.converged)
