"""W2 between two step densities on the line, against closed forms."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.metrics import wasserstein2, wasserstein2_squared
from otflow.testing.clouds import normal
from otflow.testing.differences import derivative


def make(seed, n=8):
    gaps, masses = normal(n + 1, seed=seed).exp(), normal(n, seed=seed + 50).exp()
    return of.Quantiles(gaps.cumsum(0) - 5.0, masses, normalize=True)


def test_a_translation_and_a_dilation():
    mu = make(0)
    moved = of.Quantiles(mu.edges + 1.5, mu.weights)
    assert float(wasserstein2(mu, moved)) == pytest.approx(1.5, rel=1e-14)
    one = of.Quantiles(torch.tensor([0.0, 1.0], dtype=torch.float64))
    two = of.Quantiles(torch.tensor([0.0, 3.0], dtype=torch.float64))
    # Of the uniform laws on [0, 1] and [0, 3]: int (2 s)^2 ds = 4/3.
    assert float(wasserstein2_squared(one, two)) == pytest.approx(4 / 3, rel=1e-14)


def test_masses_may_differ():
    # The same density in two cells and in one.
    one = of.Quantiles(torch.tensor([0.0, 2.0], dtype=torch.float64))
    masses = torch.tensor([0.25, 0.75], dtype=torch.float64)
    two = of.Quantiles(torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64), masses)
    assert float(wasserstein2(one, two)) == pytest.approx(0, abs=1e-15)
    mu, nu = make(1, 5), make(2, 9)
    s = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000

    def quantile(mu):
        levels = torch.cat([torch.zeros(1, dtype=torch.float64), mu.weights.cumsum(0)])
        k = (torch.searchsorted(levels, s) - 1).clamp(0, mu.n - 1)
        return mu.edges[k] + (s - levels[k]) / mu.density()[k]

    expected = (quantile(mu) - quantile(nu)).square().mean()
    found = wasserstein2_squared(mu, nu)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=0)
    torch.testing.assert_close(wasserstein2_squared(nu, mu), found)


def test_it_is_a_functional_with_a_gradient():
    mu, nu = make(3), make(4, 6)
    v = normal(mu.n + 1, 1, seed=5)
    value = lambda m: wasserstein2_squared(m, nu)
    expected = derivative(lambda t: value(mu.push(v, t)), h=1e-4)
    found = mu.inner(mu.position_gradient(value), v)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_two_kinds_or_two_dtypes_are_refused():
    mu = make(0)
    normal_law = of.Gaussian(mu.points[0], torch.eye(1, dtype=torch.float64))
    with pytest.raises(TypeError, match="must be Particles or points"):
        wasserstein2(mu, normal_law)
    single = of.Quantiles(mu.edges.float())
    with pytest.raises(TypeError, match="nothing is cast silently"):
        wasserstein2(mu, single)


# Grids on the line --------------------------------------------------------------------


def grid(density, lower=-1.0, upper=1.0, **options):
    rho = torch.tensor(density, dtype=torch.float64)
    return of.GridDensity(rho, lower, upper, walls=True, normalize=True, **options)


def test_a_grid_on_the_line_is_a_step_density_too():
    mu = grid([1.0, 2.0, 3.0, 2.0])
    same = of.Quantiles(
        torch.linspace(-1, 1, 5, dtype=torch.float64), mu.weights, normalize=True
    )
    nu = make(6, 5)
    expected = wasserstein2_squared(same, nu)
    torch.testing.assert_close(wasserstein2_squared(mu, nu), expected)
    torch.testing.assert_close(wasserstein2_squared(nu, mu), expected)
    assert float(wasserstein2(mu, same)) < 1e-14


def test_mass_crosses_a_vacuum():
    # Half of the mass on [-1, -0.5] goes to [0.5, 1]: every bit of it by 1.5.
    left, both = grid([1.0, 0.0, 0.0, 0.0]), grid([1.0, 0.0, 0.0, 1.0])
    s = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    at = torch.where(s < 0.5, s - 1, s)  # the quantile function of both
    expected = (at - (0.5 * s - 1)).square().mean()
    found = wasserstein2_squared(left, both)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=0)
    shifted = grid([0.0, 0.0, 0.0, 1.0])
    assert float(wasserstein2(left, shifted)) == pytest.approx(1.5, rel=1e-14)


def test_the_distance_of_grids_has_a_gradient_in_the_masses():
    mu, nu = grid([1.0, 2.0, 3.0, 2.0]), grid([2.0, 1.0, 1.0, 1.0, 3.0])
    rate = normal(mu.n, seed=1)
    value = lambda m: wasserstein2_squared(m, nu)
    expected = derivative(lambda t: value(mu.reweight(rate, t)))
    change = mu.weights * (rate - mu.weights @ rate)
    found = mu.mass_gradient(value) @ change
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-10)


def test_a_divergence_of_grids_is_refused_with_the_cure():
    mu = of.GridDensity.from_function(
        lambda x: torch.ones_like(x[:, 0]), 0, 1, (3, 3), walls=True
    )
    with pytest.raises(TypeError, match=r"Particles\(mu\.points, mu\.weights\)"):
        of.metrics.sinkhorn_divergence(mu, mu, blur=0.1)


# Atoms against a density on the line --------------------------------------------------


def law(n, seed):
    return of.Particles(
        normal(n, 1, seed=seed), normal(n, seed=seed + 9).exp(), normalize=True
    )


def test_one_atom_and_many_in_closed_form():
    uniform = grid([1.0, 1.0, 1.0, 1.0], 0.0, 1.0)
    for n in (1, 2, 7):
        # The middles of n equal parts: each part has the variance 1 / (12 n^2).
        middles = (torch.arange(n, dtype=torch.float64)[:, None] + 0.5) / n
        found = wasserstein2_squared(middles, uniform)
        assert float(found) == pytest.approx(1 / (12 * n * n), rel=1e-13)
    far = torch.tensor([[1e9]], dtype=torch.float64)
    assert float(wasserstein2(uniform, far)) == pytest.approx(1e9 - 0.5, rel=1e-15)


@pytest.mark.parametrize("kind", ["grid", "quantiles"])
def test_atoms_in_the_cells_of_a_density_approach_it(kind):
    """W2 of atoms at the middles of q parts of each cell: the error is h^2/(12 q^2)."""
    mu, q = law(6, 1), 4000
    nu = grid([1.0, 0.0, 3.0, 2.0]) if kind == "grid" else make(2, 5)
    ends = nu.edges if kind == "quantiles" else torch.linspace(-1, 1, 5).double()
    parts = (torch.arange(q, dtype=torch.float64) + 0.5) / q
    places = ends[:-1, None] + parts * ends.diff()[:, None]
    masses = (nu.weights[:, None] / q).expand(-1, q)
    fine = of.Particles(
        places.reshape(-1, 1), masses.reshape(-1).clone(), normalize=True
    )
    expected = wasserstein2_squared(mu, fine)
    found = wasserstein2_squared(mu, nu)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(wasserstein2_squared(nu, mu), found)
    torch.testing.assert_close(wasserstein2(nu, mu).square(), found)
    torch.testing.assert_close(of.metrics.wasserstein(mu, nu, 2.0).square(), found)


def test_atoms_may_coincide_come_in_any_order_and_have_no_mass():
    mu, nu = law(5, 3), grid([1.0, 2.0, 0.0, 1.0])
    order = torch.tensor([3, 0, 4, 1, 2])
    found = wasserstein2_squared(mu, nu)
    turned = of.Particles(mu.points[order], mu.weights[order])
    torch.testing.assert_close(wasserstein2_squared(turned, nu), found)
    twice = of.Particles(mu.points.repeat(2, 1), mu.weights.repeat(2) / 2)
    torch.testing.assert_close(wasserstein2_squared(twice, nu), found)
    zero = torch.zeros(1, dtype=torch.float64)
    more = of.Particles(
        torch.cat([mu.points, zero[:, None] + 5.0]), torch.cat([mu.weights, zero])
    )
    torch.testing.assert_close(wasserstein2_squared(more, nu), found)


def test_the_derivative_in_the_mass_of_an_atom_without_mass_is_one_sided():
    nu = grid([1.0, 2.0, 1.0, 3.0])
    w = torch.tensor([0.3, 0.7, 0.0], dtype=torch.float64)
    one = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    mu = of.Particles(torch.tensor([[-0.5], [0.4], [0.1]], dtype=torch.float64), w)
    value = lambda m: wasserstein2_squared(m, nu)
    slope = mu.mass_gradient(value) @ (one - w)
    rise = lambda e: value(mu.with_free_atoms(mu.points, (1 - e) * w + e * one))
    e = 1e-6
    forward = (4 * rise(e) - rise(2 * e) - 3 * rise(0.0)) / (2 * e)
    torch.testing.assert_close(slope, forward, rtol=1e-6, atol=0)


def test_atoms_of_the_line_meet_a_density_of_the_line_only():
    nu = grid([1.0, 1.0])
    with pytest.raises(
        ValueError, match="mu lies in dimension 2 but nu in dimension 1"
    ):
        wasserstein2(normal(4, 2), nu)
    with pytest.raises(TypeError, match="nothing is cast silently"):
        wasserstein2(normal(4, 1).float(), nu)
