"""Explicit schemes on grids, against exact solutions of their equations.

The upwind flux is of order 1 in space: so are these errors. In time the order is 1.
"""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

import otflow as of
from otflow.analysis import observed_order
from otflow.testing import SchemeContract
from otflow.testing.clouds import normal
from tests import exact
from tests.exact_densities import barenblatt, barenblatt_scale
from tests.exact_gaussians import cosine_cells, fokker_planck, gaussian_cells

QUADRATIC = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)


def bump(dtype=torch.float64, shape=(12, 10)):
    return of.GridDensity.from_function(
        lambda x: 0.2 + torch.exp(-2 * (x - 0.3).square().sum(-1)),
        -1.5,
        1.5,
        shape,
        walls=True,
        dtype=dtype,
    )


class OnGrids(SchemeContract):
    small = 2e-3
    steps = ()

    def problem(self, dtype=torch.float64):
        F = QUADRATIC + 0.2 * of.Entropy() + of.Interaction(of.kernels.Gaussian(1.0))
        return F, bump(dtype)


class TestEuler(OnGrids):
    def make(self):
        return of.ExplicitEuler()

    cure = "use JKO"

    def test_a_huge_dt_is_caught_and_what_was_good_is_kept(self):
        F, mu = self.problem()
        with pytest.raises(of.errors.Diverged, match=rf"CFL .* {self.cure}") as caught:
            of.flow(F, mu, self.make(), dt=1e9, steps=3)
        assert caught.value.step == 0
        assert caught.value.measure is mu


class TestBacktracking(OnGrids):
    diverges = False

    def make(self):
        return of.ExplicitEuler(backtracking=True)


class TestBirthDeath(OnGrids):
    diverges = False

    def make(self):
        return of.BirthDeath()

    def test_a_huge_dt_is_caught_and_what_was_good_is_kept(self):
        # All the mass goes to one cell, and there the entropy has no slope elsewhere.
        _, mu = self.problem()
        run = of.flow(QUADRATIC, mu, self.make(), dt=1e9, steps=3)
        assert float(run.final.weights.max()) > 0.2


class TestChain(TestEuler):
    def make(self):
        return of.chain(of.ExplicitEuler(), of.BirthDeath(rate=0.5))


class TestLangevin(TestEuler):
    """On a grid the noise of Langevin is the heat flow itself."""

    descends = False  # what it reports is the energy without the entropy
    cure = r"take \|dt\| <= "

    def make(self):
        return of.Langevin()


def run(F, mu, t, dt, scheme=None):
    """Return the trajectory up to time t by steps of about dt."""
    steps = math.ceil(t / dt - 1e-9)
    scheme = scheme or of.ExplicitEuler()
    result = of.flow(F, mu, scheme, dt=t / steps, steps=steps, record={"F": F})
    assert bool((result.final.weights >= 0).all())
    assert float(result.final.weights.sum()) == pytest.approx(1, abs=1e-13)
    assert bool((result.records["F"].diff() <= 0).all())
    return result.final


def distance(mu, rho):
    """Return the L1 distance to a density on the same cells."""
    return float((mu.weights - rho.reshape(-1) * mu.box.cell_volume).abs().sum())


# Heat between walls -------------------------------------------------------------------


def heat(n, t, dt, k=1):
    mu = of.GridDensity(cosine_cells(n, 0, k=k), 0, 1, walls=True)
    return run(of.Entropy(), mu, t, dt)


@pytest.mark.parametrize("k", [1, 2])
def test_heat_between_walls_has_order_one_in_space(k):
    errors, sizes = [], (16, 32, 64)
    for n in sizes:
        errors.append(
            distance(heat(n, 0.02, 0.2 / n**2, k), cosine_cells(n, 0.02, k=k))
        )
    assert observed_order([1 / n for n in sizes], errors) == pytest.approx(1, abs=0.15)
    assert errors[-1] < 5e-3


def test_heat_between_walls_has_order_one_in_time():
    # On one grid the error in space is the same: it drops out of differences.
    dts = [4e-4, 2e-4, 1e-4, 5e-5]
    ends = [heat(16, 0.04, dt).weights for dt in dts]
    gaps = [float((a - b).abs().sum()) for a, b in pairwise(ends)]
    assert observed_order(dts[:-1], gaps) == pytest.approx(1, abs=0.1)


def test_above_the_parabolic_limit_the_cfl_check_speaks():
    with pytest.raises(of.errors.Diverged, match=r"take \|dt\| <= .* or use JKO\(\)"):
        heat(32, 1.0, 0.01)


# Fokker-Planck ------------------------------------------------------------------------


def fokker_planck_cells(n, t, d):
    mean = torch.full((d,), 0.8, dtype=torch.float64)
    identity = torch.eye(d, dtype=torch.float64)
    mean, covariance = fokker_planck(mean, 0.5 * identity, t, A=identity, b=0 * mean)
    return gaussian_cells(mean, covariance.diagonal(), -5, 5, (n,) * d)


@pytest.mark.parametrize(("d", "sizes"), [(1, (30, 60, 120)), (2, (20, 40))])
@pytest.mark.parametrize("scheme", [of.ExplicitEuler(), of.Langevin()])
def test_fokker_planck_has_order_one_in_space(d, sizes, scheme):
    errors = []
    for n in sizes:
        mu = of.GridDensity(fokker_planck_cells(n, 0, d), -5, 5, normalize=True)
        end = run(QUADRATIC + of.Entropy(), mu, 0.3, 10 / n**2, scheme)
        errors.append(distance(end, fokker_planck_cells(n, 0.3, d)))
    # Rough grids are short of their order, as h is beside the deviation.
    assert observed_order([1 / n for n in sizes], errors) == pytest.approx(1, abs=0.25)
    assert errors[-1] < 8 / sizes[-1]


# Porous medium ------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "sizes"), [(1, (25, 50, 100)), (2, (24, 48))])
def test_a_barenblatt_profile_spreads_with_order_one_in_space(d, sizes):
    t, errors = 0.05, []
    end = barenblatt(2, d, barenblatt_scale(2, d, 0.5, t))
    for n in sizes:
        rho = barenblatt(2, d, 0.5).cells(-1.5, 1.5, (n,) * d)
        mu = of.GridDensity(rho, -1.5, 1.5, normalize=True)
        final = run(of.PowerEntropy(2), mu, t, 0.35 / n**2)
        errors.append(distance(final, end.cells(-1.5, 1.5, (n,) * d)))
        # The front moves at finite speed: far away it is vacuum.
        outside = mu.points.norm(dim=-1) > end.scale + 12 / n
        assert float(final.weights[outside].sum()) < 1e-3
    assert observed_order([1 / n for n in sizes], errors) == pytest.approx(1, abs=0.3)
    assert errors[-1] < 3 / sizes[-1]


# Birth and death ----------------------------------------------------------------------


def test_birth_death_of_a_potential_is_exact_for_any_step():
    mu = bump()
    V = QUADRATIC.first_variation(mu)
    for dt in (0.05, 0.5):
        end = of.flow(QUADRATIC, mu, of.BirthDeath(), dt=dt, steps=int(1 / dt)).final
        expected = exact.tilted(mu.weights, V, 1.0)
        torch.testing.assert_close(end.weights, expected, rtol=1e-12, atol=1e-16)


def test_wasserstein_fisher_rao_dissipates_by_both():
    F = QUADRATIC + 0.3 * of.Entropy()
    mu, dt = bump(), 1e-5
    f, v = F.value_and_velocity(mu)
    rate = F.first_variation(mu)
    spread = mu.weights @ (rate - mu.weights @ rate).square()
    nu = of.flow(F, mu, of.chain(of.ExplicitEuler(), of.BirthDeath()), dt=dt, steps=1)
    fall = float((f - F.value(nu.final)) / dt)
    # Along -grad F' the flux is one-sided: the mean of both sides is not its slope.
    upwind = float((f - F.value(mu.push(v, dt))) / dt)
    assert fall == pytest.approx(upwind + float(spread), rel=1e-3)
    assert upwind == pytest.approx(float(mu.inner(v, v)), rel=0.2)


def test_explicit_flows_keep_to_their_room():
    mask = torch.zeros(12, 12, dtype=torch.bool)
    mask[5:7] = True
    mask[5:7, 5:7] = False
    mu = of.GridDensity.from_function(
        lambda x: torch.exp(-4 * (x + 0.6).square().sum(-1)),
        -1,
        1,
        (12, 12),
        obstacles=mask,
        walls=True,
        dtype=torch.float64,
    )
    F = of.Potential(lambda x: (x - 0.6).square().sum(-1)) + 0.2 * of.Entropy()
    end = run(F, mu, 1.0, 2e-3)
    room = end.weights.reshape(12, 12)
    assert bool((room[mask] == 0).all())
    before = float(mu.weights.reshape(12, 12)[7:].sum())
    assert float(room[7:].sum()) > before + 0.2  # through the door


def test_rough_masses_stay_non_negative():
    rho = normal(9, 9, seed=1).exp()
    mu = of.GridDensity(rho, 0, 1, walls=True, normalize=True)
    scheme = of.ExplicitEuler(backtracking=True)
    run(of.PowerEntropy(3) + 0.1 * of.Entropy(), mu, 1.0, 0.1, scheme)
