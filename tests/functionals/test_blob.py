"""Blobs: internal energies of particles, against autodiff and exact solutions."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import otflow as of
from otflow.testing import FunctionalContract, clouds
from otflow.testing.clouds import normal
from tests import exact_densities

F64 = torch.float64


class TestEntropy(FunctionalContract):
    def make(self, dtype=F64):
        return of.Blob(of.Entropy(), 0.7)


class TestPorousMedium(FunctionalContract):
    dim = 3

    def make(self, dtype=F64):
        return of.Blob(of.PowerEntropy(3.0), 0.9)


class TestOwnEnergy(FunctionalContract):
    dim = 1

    def make(self, dtype=F64):
        return of.Blob(of.Internal(lambda r: (1 + r).log()), 0.5)


def test_with_squares_it_is_an_interaction():
    mu, sigma = clouds.weighted(), 0.8
    W = 2 * (2 * math.pi * sigma**2) ** -1 * of.kernels.Gaussian(sigma)
    F, G = of.Blob(of.Internal(lambda r: r), sigma), of.Interaction(W)
    x = normal(4, 2, seed=3)
    torch.testing.assert_close(F.value(mu), G.value(mu))
    torch.testing.assert_close(F.velocity(mu), G.velocity(mu))
    torch.testing.assert_close(F.first_variation(mu, x), G.first_variation(mu, x))


def test_on_a_gaussian_it_is_the_energy_of_the_wider_one():
    sigma, width = 1.3, 0.4
    rho = of.Gaussian(torch.zeros(1, dtype=F64), torch.tensor([[sigma**2]], dtype=F64))
    wide = math.hypot(sigma, width)
    # int log N(0, s^2 + w^2) dN(0, s^2)
    expected = -0.5 * math.log(2 * math.pi * wide**2) - 0.5 * (sigma / wide) ** 2
    found = of.Blob(of.Entropy(), width).value(rho)
    assert float(found) == pytest.approx(expected, rel=1e-8)


def test_as_the_width_falls_it_tends_to_the_internal_energy():
    law = of.Gaussian(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64))
    F = of.PowerEntropy(2.0)
    errors = [
        abs(float(of.Blob(F, width).value(law) - F.value(law)))
        for width in (0.2, 0.1, 0.05)
    ]
    for wide, narrow in itertools.pairwise(errors):
        assert wide / narrow == pytest.approx(4, rel=0.02)


def barenblatt_error(n, m=2.0, T=0.05):
    """Return the L1 error of the smoothed density at time T, width = spacing^0.95."""
    start = 0.5
    profile = exact_densities.barenblatt(m, 1, start)
    h = 2 * start / n
    centres = (torch.arange(n, dtype=F64) + 0.5) * h - start
    weights = profile.density(centres[:, None])
    mu = of.Particles(centres[:, None], weights, normalize=True)
    F = of.Blob(of.PowerEntropy(m), h**0.95)
    steps = math.ceil(T / (0.4 * h**2))  # an explicit step is stable below width^2
    end = of.flow(F, mu, Heun(), dt=T / steps, steps=steps, every=steps).final
    R = exact_densities.barenblatt_scale(m, 1, start, T)
    x = torch.linspace(-1.5 * R, 1.5 * R, 1001, dtype=F64)[:, None]
    found = F.density(end, x)
    expected = exact_densities.barenblatt(m, 1, R).density(x)
    return float(torch.trapezoid((found - expected).abs(), x[:, 0]))


class Heun(of.schemes.Scheme):
    """The explicit midpoint rule, of order two in time."""

    def step(self, F, mu, dt, state, generator):
        middle = mu.push(F.velocity(mu), dt / 2)
        return of.schemes.Step(mu.push(F.velocity(middle), dt), state)


@pytest.mark.slow
def test_a_porous_medium_converges_to_barenblatt():
    errors = [barenblatt_error(n) for n in (16, 32, 64)]
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert min(orders) > 1.5, (errors, orders)


def test_heat_adds_twice_the_time_to_the_variance():
    h, T = 0.1, 0.5
    x = torch.arange(-30, 31, dtype=F64) * h * 1.5
    mu = of.Particles(x[:, None], (-0.5 * x.square()).exp(), normalize=True)
    F = of.Blob(of.Entropy(), h**0.95 * 1.5)
    end = of.flow(F, mu, Heun(), dt=0.01, steps=50, every=50).final
    before, after = (nu.weights @ nu.points.square()[:, 0] for nu in (mu, end))
    assert float(after - before) == pytest.approx(2 * T, rel=0.02)


def test_a_probe_far_away_of_an_entropy_is_an_error():
    F, mu = of.Blob(of.Entropy(), 0.1), clouds.weighted()
    far = torch.full((1, 2), 100.0, dtype=F64)
    for ask in (F.first_variation, F.velocity):
        with pytest.raises(of.errors.NonFinite):
            ask(mu, far)
    G = of.Blob(of.PowerEntropy(2.0), 0.1)
    assert float(G.velocity(mu, far).abs().max()) == 0


def test_its_repr_reads_as_it_is_made():
    assert repr(of.Blob(of.Entropy(), 0.25)) == "Blob(Entropy(), width=0.25)"
