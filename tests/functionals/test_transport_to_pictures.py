"""Half the squared distance to a grid in the plane, and of densities to atoms."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.testing.clouds import normal, weighted
from otflow.testing.differences import derivative, gradient_field

F64 = torch.float64


def picture(seed: int, n: int = 6, dtype: torch.dtype = F64) -> of.GridDensity:
    r = torch.Generator().manual_seed(seed)
    rho = torch.rand(n, n, generator=r, dtype=dtype) + 0.1
    return of.GridDensity(rho, -2, 2, walls=True, normalize=True)


def atoms(grid: of.GridDensity) -> of.Particles:
    return of.Particles(grid.points, grid.weights)


def test_a_picture_is_the_target_that_its_atoms_are():
    mu, x, nu = weighted(12, 2), normal(7, 2, seed=5), picture(0)
    F, G = of.SquaredDistanceTo(nu), of.SquaredDistanceTo(atoms(nu))
    for found, expected in (
        (F.value(mu), G.value(mu)),
        (F.velocity(mu), G.velocity(mu)),
        (F.velocity(mu, x), G.velocity(mu, x)),
        (F.first_variation(mu, x), G.first_variation(mu, x)),
    ):
        torch.testing.assert_close(found, expected)


def test_between_pictures_the_first_variation_is_the_slope():
    mu, F = picture(1), of.SquaredDistanceTo(picture(2))
    exact = of.metrics.wasserstein2_squared(atoms(mu), atoms(F.target)) / 2
    torch.testing.assert_close(F.value(mu), exact)
    along = picture(7).weights - mu.weights

    def value(t):
        return F.value(mu.moved(mu.weights + t * along))

    slope = derivative(value, 1e-6)
    torch.testing.assert_close(F.first_variation(mu) @ along, slope, rtol=1e-6, atol=0)


@pytest.mark.slow
def test_a_step_of_pictures_goes_along_the_geodesic_to_the_size_of_a_cell():
    """The step would multiply the distance by 1/(1 + dt) if cells had no size."""
    mu, nu, dt = picture(1, 12), picture(2, 12), 1.0
    F = of.SquaredDistanceTo(nu)
    run = of.flow(F, mu, dt=dt, steps=1, scheme=of.JKO())
    before, after = (of.metrics.wasserstein2(m, nu) for m in (mu, run.final))
    assert run.converged
    assert abs(float(after - before / (1 + dt))) <= 4 / 12


@pytest.mark.parametrize("kind", ["quantiles", "grid"])
def test_densities_on_the_line_have_atoms_as_a_target(kind):
    mu: of.GridDensity | of.Quantiles
    if kind == "grid":
        rho = torch.tensor([0.2, 1.0, 0.5, 0.4, 0.7, 0.1], dtype=F64)
        mu = of.GridDensity(rho, -2, 2, walls=True, normalize=True)
    else:
        edges = torch.tensor([-2.0, -1.0, 0.5, 0.7, 3.0], dtype=F64)
        mu = of.Quantiles(edges)
    nu = weighted(9, 1, seed=4)
    F = of.SquaredDistanceTo(nu)
    fine = of.metrics.transport_plan(mu, nu)
    assert isinstance(fine, of.metrics.TransportMap)
    assert float(2 * F.value(mu)) == pytest.approx(float(fine.cost), rel=1e-12)
    x, g = mu.points, torch.Generator().manual_seed(0)
    mean = fine.f(mu.sample(200_000, g)).mean() / 2
    torch.testing.assert_close(mean, 0.5 * F.value(mu), rtol=0.02, atol=0)
    h = 1e-6
    slope = (fine.f(x + h) - fine.f(x - h)) / (2 * h)
    torch.testing.assert_close(slope, 2 * (x - fine(x))[:, 0], rtol=1e-6, atol=1e-6)
    assert F.modulus(1) is None


@pytest.mark.parametrize("seed", range(8))
def test_nothing_moves_to_an_empty_cell(seed):
    r = torch.Generator().manual_seed(seed)
    rho = torch.rand(5, 5, generator=r, dtype=F64)
    empty = torch.rand(5, 5, generator=r, dtype=F64) < 0.5
    nu = of.GridDensity(rho.masked_fill(empty, 0.0), -2, 2, walls=True, normalize=True)
    mu, x = weighted(7, 2, seed=seed), normal(20, 2, seed=seed + 50)
    for target in (nu, of.Particles(nu.points, nu.weights)):
        F = of.SquaredDistanceTo(target)
        slope = gradient_field(lambda z, F=F: F.first_variation(mu, z), x, 1e-5)
        torch.testing.assert_close(F.velocity(mu, x), -slope, rtol=1e-6, atol=1e-6)
