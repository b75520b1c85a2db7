"""Relative entropy to a density given as a function, and to one between quantiles."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.errors import InvalidFunctional, NonFinite, Unsupported
from otflow.testing import FunctionalContract
from otflow.testing.clouds import normal
from tests import exact
from tests.functionals.on_grids import OnGrids, rough
from tests.functionals.on_intervals import OnIntervals

F64 = torch.float64


def bump(x):
    return torch.exp(-x.square().sum(-1)) + 0.2 * torch.exp(-(x - 1).square().sum(-1))


def bell(x):
    return torch.exp(-0.5 * x.square().sum(-1))


def cells(n=9, seed=0, dtype=F64, half=3.0):
    """Return cells of different lengths and masses between -half and half."""
    edges = torch.cat([torch.zeros(1), 0.5 + normal(n, seed=seed).sigmoid()]).cumsum(0)
    edges = half * (2 * edges / edges[-1] - 1)
    masses = 0.5 + normal(n, seed=seed + 9).sigmoid()
    return of.Quantiles(edges.to(dtype), masses.to(dtype), normalize=True)


class TestToDensity(OnIntervals):
    def make(self, dtype=F64):
        return of.KL.to_density(bump, mass=None)


class TestToDensityOnGrids(OnGrids):
    def make(self, dtype=F64):
        return of.KL.to_density(bump, mass=2.0)


class TestToQuantiles(FunctionalContract):
    has_first_variation = False

    def make(self, dtype=F64):
        return of.KL(cells(seed=5, dtype=dtype))

    def measure(self, dtype=F64, seed=0):
        return cells(7, seed=seed, dtype=dtype, half=2.5)

    def measures(self):
        return [self.measure(), cells(1, half=2.0)]

    def tangent(self, mu, seed=0):
        return 0.05 * normal(mu.n + 1, 1, seed=seed + 55, dtype=mu.dtype).tanh()


class TestToQuantilesOnGrids(OnGrids):
    dim = 1

    def make(self, dtype=F64):
        return of.KL(cells(seed=5, dtype=dtype))

    def measure(self, dtype=F64, seed=0):
        return rough(8, seed=seed, dtype=dtype)

    def measures(self):
        blocked = torch.tensor([True] + [False] * 10)
        return [self.measure(), rough(11, seed=1, obstacles=blocked)]


# Densities that are functions ---------------------------------------------------------


@pytest.mark.parametrize("d", [1, 3])
def test_with_its_mass_the_value_is_the_divergence(d):
    mu = of.Gaussian(normal(d), exact.spd(d))
    zero, eye = torch.zeros(d, dtype=F64), torch.eye(d, dtype=F64)
    expected = float(exact.gaussian_kl(mu.mean, mu.covariance, zero, eye))
    mass = (2 * math.pi) ** (d / 2)
    by_density = of.KL.to_density(bell, mass=mass)
    by_potential = of.KL(lambda x: 0.5 * x.square().sum(-1), mass=mass)
    unknown = of.KL.to_density(bell, mass=None)
    assert float(by_potential.value(mu)) == pytest.approx(expected, rel=1e-12)
    assert float(by_density.value(mu)) == pytest.approx(expected, rel=1e-12)
    shift = math.log(mass)
    assert float(unknown.value(mu)) == pytest.approx(expected - shift, rel=1e-12)
    torch.testing.assert_close(by_density.velocity(mu), unknown.velocity(mu))
    assert by_density.is_normalized
    assert by_potential.is_normalized
    assert not unknown.is_normalized
    assert not of.KL(bell).is_normalized
    assert of.KL(mu).mass == 1.0


def test_the_terms_carry_the_mass():
    rho = rough(6, 5)
    F = of.KL.to_density(bump, mass=3.0, modulus=0.5)
    total = sum(float(c * term.value(rho)) for c, term in F.terms())
    assert float(F.value(rho)) == pytest.approx(total, rel=1e-14)
    assert F.modulus(2) == 0.5
    assert repr(F) == "KL(-log bump, mass=3)"
    assert repr(of.KL(bump, mass=3.0)) == "KL(bump, mass=3)"


def test_a_density_that_is_no_density_is_refused():
    far = of.GridDensity(torch.ones(4, dtype=F64) / 8, 96, 104, walls=True)
    with pytest.raises(NonFinite, match=r"not positive at 4 of 4 points.*KL\(V, mass"):
        of.KL.to_density(bell, mass=1.0).value(far)
    with pytest.raises(InvalidFunctional, match="a density must"):
        of.KL.to_density(lambda x: x.square(), mass=1.0).value(far)
    with pytest.raises(TypeError, match="density must be a function"):
        of.KL.to_density(3.0, mass=1.0)
    for wrong in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match="mass"):
            of.KL.to_density(bell, mass=wrong)
    with pytest.raises(ValueError, match="a measure has the mass 1"):
        of.KL(cells(), mass=1.0)


# Quantiles ----------------------------------------------------------------------------


def by_quadrature(mu, nu, lower, upper):
    """Return the divergence of two step functions by a fine midpoint rule."""
    edges = torch.linspace(lower, upper, 400_001, dtype=F64)
    x, h = 0.5 * (edges[1:] + edges[:-1]), (upper - lower) / 400_000

    def at(m):
        cell = torch.searchsorted(m.edges, x, right=True) - 1
        inside = (x >= m.edges[0]) & (x < m.edges[-1])
        return torch.where(inside, m.density()[cell.clamp(0, m.n - 1)], 0.0)

    p, q = at(mu), at(nu)
    return float(h * torch.special.xlogy(p, p / q.clamp_min(1e-300)).sum())


def test_the_divergence_of_step_densities_is_exact():
    mu, nu = cells(7, half=2.5), cells(seed=5)
    expected = by_quadrature(mu, nu, -2.5, 2.5)
    assert float(of.KL(nu).value(mu)) == pytest.approx(expected, abs=1e-4)
    assert float(of.KL(nu).value(mu)) > 0
    for dtype, error in ((F64, 1e-14), (torch.float32, 2e-6)):
        same = nu.to(dtype)
        assert float(of.KL(same).value(same)) == pytest.approx(0, abs=error)


def test_a_grid_and_quantiles_of_the_same_cells_have_one_divergence():
    nu, rho = cells(seed=5), rough(8)
    mu = of.Quantiles(torch.linspace(-3, 3, 9, dtype=F64), rho.weights)
    torch.testing.assert_close(of.KL(nu).value(mu), of.KL(nu).value(rho))
    # The first variation is the mean of the logarithm of the quotient, plus 1.
    first = of.KL(nu).first_variation(rho)
    torch.testing.assert_close(rho.weights @ first - 1, of.KL(nu).value(rho))


def test_where_edges_meet_the_slope_is_the_mean_of_both_sides():
    nu = cells(seed=5)
    mu = of.Quantiles(nu.edges[1:-1].clone())
    for i in range(mu.n + 1):
        v = torch.zeros(mu.n + 1, 1, dtype=F64)
        v[i] = 1.0
        F, h = of.KL(nu), 1e-6
        ends = [float(F.value(mu.push(v, t))) for t in (h, -h)]
        expected = (ends[0] - ends[1]) / (2 * h)
        found = -float(mu.inner(F.velocity(mu), v))
        assert found == pytest.approx(expected, abs=1e-6)


def test_a_flow_on_a_grid_ends_at_the_quantiles():
    nu = of.Quantiles.from_function(bell, -4, 4, 40, grading=2, dtype=F64)
    start = of.GridDensity.from_function(
        lambda x: torch.exp(-4 * (x[:, 0] - 1).square()) + 1e-4,
        float(nu.edges[0]),
        float(nu.edges[-1]),
        (60,),
        walls=True,
        dtype=F64,
    )
    run = of.flow(of.KL(nu), start, of.JKO(), dt=0.5, steps=30)
    energy = run.records["energy"]
    assert all(info["converged"] for info in run.info)
    assert bool((energy.diff() < 1e-9).all())
    # No density on these cells is closer than that of the means of the logarithms.
    rest = -(of.KL(nu).terms()[1][1].first_variation(start))
    floor = float(-torch.logsumexp(rest + math.log(start.box.cell_volume), 0))
    assert float(energy[0]) > 0.5
    assert floor - 1e-12 <= float(energy[-1]) < floor + 1e-3


def test_graphs_of_the_target_are_kept():
    nu, mu = cells(seed=5), cells(7, half=2.5)
    edges = nu.edges.clone().requires_grad_()
    value = of.KL(of.Quantiles(edges, nu.weights)).value(mu)
    (slope,) = torch.autograd.grad(value, edges)
    u, h = normal(len(edges)), 1e-6
    ends = [
        float(of.KL(of.Quantiles(nu.edges + t * u, nu.weights)).value(mu))
        for t in (h, -h)
    ]
    assert float(slope @ u) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-6)


def test_what_lies_beyond_the_target_or_has_no_cells_is_refused():
    F = of.KL(cells(half=1.0))
    for mu in (cells(half=1.001), rough(8)):
        with pytest.raises(NonFinite, match="beyond the target, which lies betw"):
            F.value(mu)
    bent = of.Gaussian(torch.zeros(1, dtype=F64), torch.eye(1, dtype=F64))
    for ask in (F.value, F.velocity):
        with pytest.raises(Unsupported, match=r"one of Quantiles or of a GridDensity"):
            ask(bent)
    with pytest.raises(Unsupported, match="has no density"):
        F.value(of.Particles(normal(4, 1)))
    with pytest.raises(ValueError, match="dimension 2"):
        F.value(rough(4, 4))
    with pytest.raises(TypeError, match="float32"):
        F.value(cells(dtype=torch.float32))


def test_it_moves_with_its_target():
    F = of.KL(cells()).to(torch.float32)
    assert F.value(cells(5, half=2.0, dtype=torch.float32)).dtype == torch.float32


@pytest.mark.parametrize("width", [1e-3, 1e-6, 1e-9, 1e-12])
def test_short_cells_keep_the_digits_of_the_relative_entropy(width):
    edges = torch.tensor([0.3, 1.4, 1.4 + width, 3.0], dtype=torch.float64)
    masses = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)
    shares = torch.tensor([0.4, 0.1, 0.3, 0.2], dtype=torch.float64)
    ends = torch.tensor([-1.0, 0.0, 1.0, 2.0, 5.0], dtype=torch.float64)
    V = (ends.diff() / shares).log()
    q = edges.clone().requires_grad_()
    first = (V[1] * (1 - q[0]) + V[2] * (q[1] - 1)) / (q[1] - q[0])
    last = (V[2] * (2 - q[2]) + V[3] * (q[3] - 2)) / (q[3] - q[2])
    expected = 0.25 * first + 0.5 * V[2] + 0.25 * last
    F = of.KL(of.Quantiles(ends, shares)) - of.Entropy()
    value = F.value(of.Quantiles(q, masses))
    entropy = (masses * (masses / edges.diff()).log()).sum()
    assert abs(float((value - expected).detach())) < 1e-14 * (1 + float(entropy.abs()))
    slopes, wanted = (
        torch.autograd.grad(z, q, retain_graph=True)[0] for z in (value, expected)
    )
    # The slopes of both entropies are 1/width, and cancel up to round-off.
    assert (slopes - wanted).abs().max() < 1e-13 + 1e-15 / width
