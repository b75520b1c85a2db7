"""Potential energies."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.testing import FunctionalContract, clouds
from otflow.testing.clouds import normal
from tests import exact


class TestQuadratic(FunctionalContract):
    def make(self, dtype=torch.float64):
        return exact.quadratic(lam=1.7, center=0.3)


class TestConcave(FunctionalContract):
    def make(self, dtype=torch.float64):
        return exact.quadratic(lam=-0.8)


class TestDoubleWell(FunctionalContract):
    dim = 3

    def make(self, dtype=torch.float64):
        # V'' = 3x^2 - 1 >= -1
        return of.Potential(
            lambda x: 0.25 * (x.square() - 1).square().sum(-1), modulus=-1.0
        )


class TestOscillating(FunctionalContract):
    dim = 1

    def make(self, dtype=torch.float64):
        return of.Potential(lambda x: (3 * x).cos().sum(-1), modulus=-9.0)


def test_first_variation_is_the_potential_and_velocity_minus_its_gradient():
    F, mu = of.Potential(lambda x: x.pow(3).sum(-1)), clouds.degenerate()
    x = normal(5, 2, seed=3)
    torch.testing.assert_close(F.first_variation(mu, x), x.pow(3).sum(-1))
    torch.testing.assert_close(F.first_variation(mu), mu.points.pow(3).sum(-1))
    torch.testing.assert_close(F.velocity(mu), -3 * mu.points.square())


def test_the_modulus_is_that_declared():
    V = lambda x: x.sum(-1)
    assert of.Potential(V).modulus(2) is None
    assert of.Potential(V, modulus=-2).modulus(2) == -2.0
    with pytest.raises(ValueError, match=r"^modulus must be finite, got nan"):
        of.Potential(V, modulus=float("nan"))
    with pytest.raises(TypeError, match=r"^modulus must be a real number, got str"):
        of.Potential(V, modulus="1")


def test_it_takes_a_module():
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(2, 4),
        torch.nn.Tanh(),
        torch.nn.Linear(4, 1),
        torch.nn.Flatten(0),
    ).double()
    mu = clouds.weighted()
    F = of.Potential(network)
    assert repr(F) == "Potential(Sequential)"
    velocity = F.velocity(mu)
    clouds.assert_plain(velocity)
    assert all(p.grad is None for p in network.parameters())
    x = mu.points.clone().requires_grad_()
    (expected,) = torch.autograd.grad(network(x).sum(), x)
    torch.testing.assert_close(velocity, -expected)


@pytest.mark.parametrize("bad", [None, 3.0, torch.ones(2)])
def test_it_refuses_what_is_no_function(bad):
    with pytest.raises(TypeError, match=r"^V must be a function \(\.\.\., d\)"):
        of.Potential(bad)


def test_the_velocity_anywhere_on_every_representation():
    F = of.Potential(lambda x: x.square().sum(-1))
    x = torch.tensor([[0.31], [-0.4]], dtype=torch.float64)
    law = of.Gaussian(torch.zeros(1).double(), torch.eye(1).double())
    line = of.Quantiles(torch.linspace(-1, 1, 9, dtype=torch.float64))
    rho = of.GridDensity(torch.ones(40).double(), -2, 2, walls=True, normalize=True)
    cloud = of.Particles(torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None])
    for mu, rtol in ((cloud, 1e-12), (rho, 0.2)):
        torch.testing.assert_close(F.velocity(mu, x), -2 * x, rtol=rtol, atol=0)
        torch.testing.assert_close(
            (2 * F + F).velocity(mu, x.numpy()), 3 * F.velocity(mu, x)
        )
    for nu in (law, line):
        with pytest.raises(of.errors.Unsupported, match="mass gradient"):
            F.velocity(nu, x)
    with pytest.raises(ValueError, match=r"x must have shape \(m, 1\)"):
        F.velocity(cloud, torch.zeros(2, 3).double())
