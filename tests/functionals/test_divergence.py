"""Relative entropy: to a potential, and to a density on the same grid."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.testing.clouds import normal
from tests import exact
from tests.functionals.on_intervals import OnIntervals


def well(x):
    return 0.5 * x.square().sum(-1)


class TestKL(OnIntervals):
    def make(self, dtype=torch.float64):
        return of.KL(well, modulus=1.0)


class TestHotKL(OnIntervals):
    def make(self, dtype=torch.float64):
        return 0.5 * of.KL(lambda x: x.square().square().sum(-1))


def grid(seed=0, shape=(6, 5), **options):
    rho = normal(*shape, seed=seed).exp()
    return of.GridDensity(rho, -1.0, 1.0, walls=True, normalize=True, **options)


# Values -------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 6])
def test_it_is_the_divergence_of_gaussians(d):
    zero, eye = (f(d, dtype=torch.float64) for f in (torch.zeros, torch.eye))
    m, S = normal(d), exact.spd(d)
    mu = of.Gaussian(m, S)
    F = of.KL(well, modulus=1.0)
    expected = exact.gaussian_kl(m, S, zero, eye)
    normalisation = 0.5 * d * math.log(2 * math.pi)
    assert float(F.value(mu)) + normalisation == pytest.approx(expected, rel=1e-12)


def test_a_grid_is_compared_with_a_grid():
    mu, nu = grid(0), grid(1)
    F = of.KL(nu)
    expected = (mu.weights * (mu.weights / nu.weights).log()).sum()
    torch.testing.assert_close(F.value(mu), expected)
    assert float(F.value(nu)) == pytest.approx(0, abs=1e-15)
    assert float(F.value(mu)) > 0
    torch.testing.assert_close(F.velocity(nu), torch.zeros(nu.box.n_faces).double())
    first = F.first_variation(mu)
    torch.testing.assert_close(first, 1 + (mu.weights / nu.weights).log())


def test_the_grid_of_a_potential_is_that_potential():
    nu = of.GridDensity.from_function(
        lambda x: torch.exp(-well(x)), -3, 3, (30,), dtype=torch.float64, walls=True
    )
    mu = of.GridDensity.from_function(
        lambda x: torch.exp(-well(x - 1)), -3, 3, (30,), dtype=torch.float64, walls=True
    )
    shift = of.KL(nu).value(mu) - of.KL(well).value(mu)
    torch.testing.assert_close(of.KL(nu).value(nu) - of.KL(well).value(nu), shift)
    torch.testing.assert_close(of.KL(nu).velocity(mu), of.KL(well).velocity(mu))


def test_a_flow_ends_at_the_density_of_another_grid():
    """Every step lowers it; rest is the target, up to the blur of the solver."""

    def density(f):
        return of.GridDensity.from_function(
            f, -1.0, 1.0, (24, 20), walls=True, dtype=torch.float64
        )

    nu = density(lambda x: 1.5 + (3 * x[:, 0]).sin() * (2 * x[:, 1]).cos())
    mu = density(lambda x: torch.exp(-4 * (x - 0.3).square().sum(-1)))
    run = of.flow(of.KL(nu), mu, of.JKO(), dt=0.1, steps=25)
    energy = run.records["energy"]
    assert all(info["converged"] for info in run.info)
    assert float(energy[0]) > 0.5
    assert bool((energy.diff() < 1e-9).all())
    assert 0 <= float(energy[-1]) < 1e-5
    assert float((run.final.weights - nu.weights).abs().sum()) < 5e-3


def test_the_divergence_from_a_gaussian_is_normalised():
    nu = of.Gaussian(normal(3, seed=4), exact.spd(3, seed=4))
    mu = of.Gaussian(normal(3), exact.spd(3))
    F = of.KL(nu)
    expected = exact.gaussian_kl(mu.mean, mu.covariance, nu.mean, nu.covariance)
    assert float(F.value(mu)) == pytest.approx(float(expected), rel=1e-12)
    assert float(F.value(nu)) == pytest.approx(0, abs=1e-14)
    assert float(F.velocity(nu).abs().max()) < 1e-13


def test_the_modulus_of_a_gaussian_is_its_least_precision():
    nu = of.Gaussian(normal(3), exact.spd(3))
    least = float(torch.linalg.eigvalsh(torch.linalg.inv(nu.covariance))[0])
    F = of.KL(nu)
    found = F.modulus(3)
    assert found == F.convexity == pytest.approx(least, rel=1e-12)
    assert found is not None
    assert found <= least * (1 + 1e-15)
    assert of.KL(nu, modulus=0.1).modulus(3) == 0.1
    mu = of.Gaussian(normal(3, seed=1), exact.spd(3, seed=1))
    info = of.JKO().step(F, mu, 0.5, None, torch.Generator()).info
    assert info["guarantee"] == "exact"


def test_a_gaussian_is_a_target_of_every_density():
    nu = of.Gaussian(torch.full((1,), 0.4).double(), torch.full((1, 1), 0.2).double())
    mu = of.Quantiles.from_function(
        lambda x: torch.exp(-well(x)), -5, 5, 400, grading=2, dtype=torch.float64
    )
    rho = of.GridDensity.from_function(
        lambda x: torch.exp(-well(x)), -6, 6, (600,), dtype=torch.float64
    )
    expected = exact.gaussian_kl(
        torch.zeros(1).double(), torch.eye(1).double(), nu.mean, nu.covariance
    )
    for measure, error in ((mu, 2e-2), (rho, 1e-3)):
        found = float(of.KL(nu).value(measure))
        assert found == pytest.approx(float(expected), rel=error)
    first = of.KL(nu).first_variation(rho)
    witness = 1 + rho.density().log() - nu.log_density(rho.points)
    torch.testing.assert_close(first, witness)


def test_a_flow_ends_at_a_gaussian():
    nu = of.Gaussian(normal(2, seed=4), exact.spd(2, seed=4))
    mu = of.Gaussian(normal(2), exact.spd(2))
    run = of.flow(of.KL(nu), mu, of.JKO(), dt=1.0, steps=40, every=40)
    torch.testing.assert_close(run.final.covariance, nu.covariance)
    target = of.KL(nu).to(torch.float32).target
    assert isinstance(target, of.Gaussian)
    assert target.dtype == torch.float32


# Parts --------------------------------------------------------------------------------


def test_its_parts_are_entropy_and_potential():
    F = of.KL(well, modulus=1.0)
    temperature, V = F.split_entropy()
    assert temperature == 1.0
    assert isinstance(V, of.Potential)
    assert V.modulus(2) == F.modulus(2) == F.modulus(3) == 1.0
    assert [(c, type(term)) for c, term in F.terms()] == [
        (1.0, of.Entropy),
        (1.0, of.Potential),
    ]
    assert of.KL(well).modulus(2) is None
    assert (2 * F).split_entropy()[0] == 2.0
    particles = of.Particles(normal(5, 2))
    torch.testing.assert_close(V.value(particles), of.Potential(well).value(particles))


def test_its_repr_names_the_target():
    class Module:
        def __call__(self, x):
            return x.sum(-1)

    assert repr(of.KL(well)) == "KL(well)"
    assert repr(of.KL(Module())) == "KL(Module)"
    assert (
        repr(of.KL(grid())) == "KL(GridDensity(n=30, d=2, dtype=float64, device=cpu))"
    )


# Refusals -----------------------------------------------------------------------------


@pytest.mark.parametrize("target", [1.0, None, of.Entropy(), of.Entropy, normal(3)])
def test_what_is_no_target_is_refused(target):
    with pytest.raises(TypeError, match=r"^the target must be a function V"):
        of.KL(target)
    with pytest.raises(TypeError, match=r"^modulus must be a real number"):
        of.KL(well, modulus="1")


def test_another_grid_is_refused():
    F = of.KL(grid())
    gaussian = of.Gaussian(torch.zeros(2).double(), torch.eye(2).double())
    finer = grid(shape=(12, 5))
    with pytest.raises(ValueError, match=r"must live on the same grid, got"):
        F.value(finer)
    for mu in (gaussian, of.Particles(normal(4, 2))):
        for ask in (F.value, F.velocity, F.split_entropy()[1].velocity):
            with pytest.raises(of.errors.Unsupported, match=r"give KL a smooth poten"):
                ask(mu)


def test_a_target_that_vanishes_is_refused():
    rho = torch.ones(6, 5)
    rho[1:3, 2] = 0
    nu = of.GridDensity(rho, -1.0, 1.0, walls=True, normalize=True)
    with pytest.raises(ValueError, match=r"vanishes in 2 of 30 cells, .* uniform mass"):
        of.KL(nu)


def test_obstacles_of_the_target_bind_the_measure():
    obstacles = torch.zeros(6, 5, dtype=torch.bool)
    obstacles[2, 1:3] = True
    rho = torch.where(obstacles, 0.0, normal(6, 5).exp())
    walls = {"obstacles": obstacles, "walls": True, "normalize": True}
    nu = of.GridDensity(rho, -1.0, 1.0, **walls)
    mu = of.GridDensity(rho.square(), -1.0, 1.0, **walls)
    F = of.KL(nu)
    assert float(F.value(nu)) == pytest.approx(0, abs=1e-15)
    assert 0 < float(F.value(mu)) < math.inf
    assert bool(torch.isfinite(F.velocity(mu)).all())
    with pytest.raises(ValueError, match=r"may enter obstacles .* give it obstacles="):
        F.value(grid())
    # The other way round the target says nothing of where the measure cannot go.
    assert math.isfinite(float(of.KL(grid()).value(mu)))
