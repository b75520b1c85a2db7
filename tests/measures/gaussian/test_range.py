"""Gaussians in many dimensions: default nodes, densities out of a dtype's range."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.measures.gaussian.quadrature import gaussian_nodes
from otflow.testing.clouds import normal
from otflow.testing.differences import derivative
from tests import exact


@pytest.mark.parametrize("d", [1, 2, 3, 4, 100, 257, 512])
def test_default_nodes_integrate_quadratics_in_every_dimension(d):
    mean = normal(d)
    mu = of.Gaussian(mean, torch.eye(d, dtype=torch.float64))
    found = mu.expectation(lambda x: x.square().sum(-1))
    assert float(found) == pytest.approx(d + float(mean @ mean), rel=1e-9)
    # The radius has the variance 2 d in |x|^2: the nodes are not bent out of shape.
    fourth = mu.expectation(lambda x: (x - mean).square().sum(-1).square())
    assert float(fourth) == pytest.approx(d * (d + 2), rel=0.03)


def test_a_thousand_dimensions_by_default():
    mu = of.Gaussian(torch.zeros(1024), torch.eye(1024))
    found = float(mu.expectation(lambda x: x.square().sum(-1)))
    assert found == pytest.approx(1024, rel=1e-4)


def test_dimensions_without_a_rule_are_refused_with_the_cure():
    with pytest.raises(ValueError, match="flow them as Particles"):
        gaussian_nodes(30_000)


ENERGIES = {
    "log": (of.Entropy(), lambda r: r.log()),
    "square": (of.PowerEntropy(2.0), lambda r: r),
    "root": (of.PowerEntropy(0.5), lambda r: -2 * r.rsqrt()),
    "cube": (of.PowerEntropy(3.0), lambda r: 0.5 * r.square()),
}


@pytest.mark.parametrize("name", ENERGIES)
@pytest.mark.parametrize("d", [1, 2, 3])
def test_closed_forms_are_those_of_the_quadrature(name, d):
    closed, e = ENERGIES[name]
    mu = of.Gaussian(normal(d), exact.spd(d, seed=2), nodes=(60, 40, 30)[d - 1])
    found, expected = closed.value(mu), of.Internal(e).value(mu)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=0)
    t = normal(1 + d, d, seed=4)
    slope = derivative(lambda h: closed.value(mu.push(t, h)))
    torch.testing.assert_close(-mu.inner(closed.velocity(mu), t), slope)


@pytest.mark.parametrize("m", [0.5, 0.9, 2.0, 3.5])
def test_the_power_of_a_standard_gaussian(m):
    # Int rho^m dx = (2 pi)^{(1 - m)/2} m^{-1/2} by hand.
    mu = of.Gaussian(torch.zeros(1).double(), torch.eye(1).double())
    by_hand = (2 * math.pi) ** ((1 - m) / 2) / math.sqrt(m) / (m - 1)
    assert float(of.PowerEntropy(m).value(mu)) == pytest.approx(by_hand, rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [1, 8, 40, 70])
@pytest.mark.parametrize("variance", [1e-6, 1.0, 1e6])
def test_no_energy_is_infinite_whatever_the_scale(dtype, d, variance):
    # The entropy of N(0, v I) is -d/2 (log 2 pi v + 1).
    mu = of.Gaussian(torch.zeros(d, dtype=dtype), variance * torch.eye(d, dtype=dtype))
    expected = -0.5 * d * (math.log(2 * math.pi * variance) + 1)
    assert float(of.Entropy().value(mu)) == pytest.approx(expected, rel=1e-5)
    alone = of.Internal(lambda r: r.log())
    assert float(alone.value(mu)) == pytest.approx(expected, rel=1e-5)
    root = of.Internal(lambda r: r.pow(0.01))
    power = math.exp(
        -0.005 * d * math.log(2 * math.pi * variance) - 0.5 * d * math.log(1.01)
    )
    assert float(root.value(mu)) == pytest.approx(power, rel=1e-3)


def test_what_leaves_the_range_is_an_error_whose_cure_works():
    narrow = of.Gaussian(torch.zeros(200).double(), 1e-8 * torch.eye(200).double())
    with pytest.raises(of.errors.NonFinite, match=r"use Entropy\(\)"):
        of.Internal(lambda r: r.log()).value(narrow)
    expected = -100 * (math.log(2e-8 * math.pi) + 1)
    assert float(of.Entropy().value(narrow)) == pytest.approx(expected, rel=1e-12)
    single = of.Gaussian(torch.zeros(40), 1e-6 * torch.eye(40))
    for energy in (of.PowerEntropy(2.0), of.Internal(lambda r: r)):
        with pytest.raises(of.errors.NonFinite):
            energy.value(single)
    double = of.Gaussian(torch.zeros(40).double(), 1e-6 * torch.eye(40).double())
    assert math.isfinite(float(of.PowerEntropy(2.0).value(double)))
    with pytest.raises(of.errors.NonFinite, match=r"log_density\(\)"):
        single.density()
    assert bool(single.log_density().isfinite().all())


def test_an_infinite_energy_is_an_error_on_every_density():
    steep = of.Internal(lambda r: r.pow(40.0))
    mu = of.Quantiles(torch.linspace(0.0, 1e-3, 5))
    with pytest.raises(of.errors.NonFinite, match="use float64"):
        steep.value(mu)
    assert math.isfinite(
        float(steep.value(of.Quantiles(torch.linspace(0.0, 1e-3, 5).double())))
    )
