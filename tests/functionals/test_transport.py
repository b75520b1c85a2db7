"""Half the squared distance to a measure, and its entropic version."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

import otflow as of
from otflow.metrics import sinkhorn_divergence, wasserstein2, wasserstein2_squared
from otflow.testing import FunctionalContract
from otflow.testing.clouds import normal, uniform, weighted
from otflow.testing.differences import derivative, gradient_field
from tests import exact
from tests.functionals.on_grids import OnGrids, rough

F64 = torch.float64


def bent(n=20, shift=3.0, power=3, weights=None):
    """Return quantiles that no affine map carries to even ones."""
    q = torch.linspace(-1, 1, n + 1, dtype=F64)
    return of.Quantiles(q + 2 * q**power + shift, weights)


def even(n=20):
    return of.Quantiles(torch.linspace(-1, 1, n + 1, dtype=F64))


def gaussian(d=2, seed=0):
    return of.Gaussian(normal(d, seed=seed), exact.spd(d, seed=seed))


def pairs():
    """Return two measures of each kind on which a step contracts by one factor."""
    return {
        "quantiles": (even(), bent()),
        "Gaussians": (gaussian(), gaussian(seed=4)),
        "particles": (uniform(30), uniform(30, seed=5)),
        "particles on the line": (uniform(30, 1), uniform(30, 1, seed=5)),
    }


# The flow -----------------------------------------------------------------------------


@pytest.mark.parametrize("dt", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("name", pairs())
def test_a_jko_step_contracts_the_distance_by_one_over_one_plus_dt(name, dt):
    mu, nu = pairs()[name]
    step = of.JKO().step(of.SquaredDistanceTo(nu), mu, dt, None, torch.Generator())
    assert step.info["converged"]
    found = float(wasserstein2(step.measure, nu) / wasserstein2(mu, nu))
    assert found == pytest.approx(1 / (1 + dt), rel=1e-9)


@pytest.mark.parametrize("name", pairs())
def test_an_euler_step_contracts_the_distance_by_one_minus_dt(name):
    mu, nu = pairs()[name]
    run = of.flow(
        of.SquaredDistanceTo(nu), mu, of.ExplicitEuler(), dt=0.25, steps=4, every=1
    )
    found = (2 * run.records["energy"]).sqrt()
    expected = 0.75 ** torch.arange(5, dtype=F64) * found[0]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    distance = float(wasserstein2(run.final, nu) / wasserstein2(mu, nu))
    assert distance == pytest.approx(0.75**4, rel=1e-9)


def test_a_jko_step_on_quantiles_is_proved_exact():
    F = of.SquaredDistanceTo(bent())
    info = of.JKO().step(F, even(), 0.5, None, torch.Generator()).info
    assert info["guarantee"] == "exact"
    assert 0 <= info["bound"] < 1e-11


def test_a_step_of_length_one_ends_at_the_barycentres():
    mu, nu = uniform(4), weighted(9, seed=3)
    F = of.SquaredDistanceTo(nu)
    P = of.metrics.transport_plan(mu, nu).dense()
    expected = P @ nu.points / mu.weights[:, None]
    torch.testing.assert_close(mu.points + F.velocity(mu), expected)


# Laws ---------------------------------------------------------------------------------


def light(d=2):
    """Return atoms apart from one another, two of them without mass."""
    masses = torch.tensor([0.2, 0.1, 0.3, 0.15, 0.0, 0.0, 0.25], dtype=F64)
    return of.Particles(normal(7, d, seed=3), masses)


class WithoutKinks(FunctionalContract):
    """On atoms that do not coincide: there the optimal plan is not unique."""

    def measures(self):
        return [self.measure(), uniform(6, self.dim), light(self.dim)]

    def test_velocity_is_minus_the_gradient_of_the_first_variation(self):
        """Check it at atoms that go to one place: others have a c-transform's kink."""
        F: Any = self.make()
        for mu in self.measures():
            plan = of.metrics.transport_plan(mu, F.target)
            whole = torch.bincount(plan.rows, minlength=mu.n) == 1
            assert int(whole.sum()) >= 2
            expected = -self.slopes(F, mu)
            torch.testing.assert_close(F.velocity(mu)[whole], expected[whole])


class TestSquaredDistance(WithoutKinks):
    def make(self, dtype=F64):
        return of.SquaredDistanceTo(weighted(5, 2, seed=8, dtype=dtype))


class TestSquaredDistanceOnTheLine(WithoutKinks):
    dim = 1

    def make(self, dtype=F64):
        return of.SquaredDistanceTo(weighted(5, 1, seed=8, dtype=dtype))


class TestSquaredDistanceOfQuantiles(FunctionalContract):
    dim = 1
    has_first_variation = False

    def make(self, dtype=F64):
        return of.SquaredDistanceTo(bent(13).to(dtype))

    def measure(self, dtype=F64, seed=0):
        gaps = 0.5 + normal(9, seed=seed, dtype=dtype).sigmoid()
        return of.Quantiles(gaps.cumsum(0) - 4.0)

    def measures(self):
        return [self.measure(), even(13)]

    def tangent(self, mu, seed=0):
        return 0.01 * normal(mu.n + 1, 1, seed=seed + 55, dtype=mu.dtype).tanh()


class TestSquaredDistanceOfGaussians(FunctionalContract):
    has_first_variation = False

    def make(self, dtype=F64):
        return of.SquaredDistanceTo(gaussian(seed=4).to(dtype))

    def measure(self, dtype=F64, seed=0):
        return gaussian(seed=seed).to(dtype)

    def measures(self):
        return [self.measure(), self.measure(seed=2)]

    def tangent(self, mu, seed=0):
        return 0.1 * normal(3, 2, seed=seed + 55, dtype=mu.dtype)


class TestSquaredDistanceOfGrids(OnGrids):
    dim = 1

    def make(self, dtype=F64):
        return of.SquaredDistanceTo(rough(9, seed=7, dtype=dtype))

    def measure(self, dtype=F64, seed=0):
        return rough(11, seed=seed, dtype=dtype)

    def measures(self):
        return [self.measure(), self.measure(seed=1)]


class TestSinkhorn(FunctionalContract):
    def make(self, dtype=F64):
        nu = weighted(5, 2, seed=8, dtype=dtype)
        return of.SinkhornDivergenceTo(nu, blur=0.4)


class TestUnbalancedSinkhorn(FunctionalContract):
    def make(self, dtype=F64):
        nu = weighted(5, 2, seed=8, dtype=dtype)
        return of.SinkhornDivergenceTo(nu, blur=0.5, reach=1.0)


# Values -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mu", "nu"),
    [
        (uniform(6), weighted(4, seed=2)),
        (gaussian(3), gaussian(3, seed=1)),
        (rough(12), rough(9, seed=1)),
        (rough(12), bent()),
    ],
    ids=["particles", "Gaussians", "grids", "grid to quantiles"],
)
def test_it_is_half_the_squared_distance(mu, nu):
    found = of.SquaredDistanceTo(nu).value(mu)
    torch.testing.assert_close(found, 0.5 * wasserstein2_squared(mu, nu))


def test_points_stand_for_equal_weights():
    mu, y = uniform(6), normal(4, 2, seed=1)
    for F in (of.SquaredDistanceTo, lambda nu: of.SinkhornDivergenceTo(nu, 0.3)):
        expected = F(of.Particles(y)).value(mu)
        assert torch.equal(F(y).value(mu), expected)
        assert torch.equal(F(y.numpy()).value(mu), expected)


def test_off_the_atoms_the_first_variation_is_the_c_transform():
    mu, nu, x = uniform(6), weighted(9, seed=2), normal(20, 2, seed=4)
    F = of.SquaredDistanceTo(nu)
    plan = of.metrics.transport_plan(mu, nu)

    def transform(x):
        costs = (x[:, None] - nu.points).square().sum(-1)
        return 0.5 * (costs - plan.g).amin(1)

    found = torch.cat([F.first_variation(mu, x), F.first_variation(mu)])
    expected = transform(torch.cat([x, mu.points]))
    torch.testing.assert_close(found - found[0], expected - expected[0])


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("mu", [uniform(9), weighted(7)], ids=["equal", "weighted"])
@pytest.mark.parametrize("tolerance", [0.0, 0.1])
def test_off_the_atoms_the_velocity_is_the_slope_of_the_first_variation(
    mu, dtype, tolerance
):
    """Between equal weights a derivative of the first variation is refused."""
    mu, nu = mu.to(dtype), uniform(9, seed=2, dtype=dtype)
    x = normal(40, 2, seed=4, dtype=dtype)
    F = of.SquaredDistanceTo(nu, tolerance=tolerance)
    found = F.velocity(mu, x)
    assert found.dtype == dtype
    # Each probe goes to an atom of the target.
    ends = (x + found).double()
    assert float(torch.cdist(ends, nu.points.double()).amin(1).max()) < 1e-5
    if dtype == F64:
        expected = -gradient_field(lambda z: F.first_variation(mu, z), x)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_the_velocity_anywhere_of_one_pair_is_the_way_to_the_target():
    F = of.SquaredDistanceTo(torch.tensor([[3.0, 1.0]]))
    x = torch.tensor([[0.0, 0.0], [5.0, 5.0]])
    v = F.velocity(of.Particles(torch.zeros(1, 2)), x)
    assert torch.equal(v, torch.tensor([[3.0, 1.0], [-2.0, -4.0]]))


def test_quantiles_meet_the_distance_of_densities_with_finer_cells():
    """The lumped sum differs in second order."""
    errors = []
    for n in (20, 40, 80):
        mu, nu = even(n), bent(7)
        found = of.SquaredDistanceTo(nu).value(mu)
        errors.append(abs(float(found - 0.5 * wasserstein2_squared(mu, nu))))
    assert errors[0] > 3 * errors[1] > 9 * errors[2] > 0


def test_a_translation_of_quantiles_has_its_exact_distance():
    nu = bent(17)
    mu = nu.push(torch.ones(18, 1, dtype=F64), 0.7)
    F = of.SquaredDistanceTo(nu)
    assert float(F.value(mu)) == pytest.approx(0.5 * 0.7**2, rel=1e-14)
    assert float(F.value(nu)) == 0
    assert not F.velocity(nu).any()


def test_quantiles_at_other_levels_rest_on_the_target():
    """Levels between those of the target, on them, and on a jump over a hole."""
    nu = of.GridDensity(
        torch.tensor([1.0, 1.0, 0.0, 0.0, 2.0], dtype=F64),
        0,
        5,
        walls=True,
        normalize=True,
    )
    masses = torch.tensor([0.125, 0.375, 0.25, 0.25], dtype=F64)
    mu = of.Quantiles(torch.linspace(0, 1, 5, dtype=F64), masses)
    end = mu.edges + of.SquaredDistanceTo(nu).velocity(mu)[:, 0]
    expected = torch.tensor([0.0, 0.5, 3.0, 4.5, 5.0], dtype=F64)
    torch.testing.assert_close(end, expected)


def test_small_masses_at_both_ends_keep_their_digits():
    tail = torch.tensor([1e-30, 1e-20, 0.5, 0.5, 1e-20, 1e-30], dtype=F64)
    nu = of.Quantiles(torch.arange(7, dtype=F64), tail, normalize=True)
    halves = tail.repeat_interleave(2) / 2
    mu = of.Quantiles(torch.arange(13, dtype=F64), halves, normalize=True)
    end = mu.edges + of.SquaredDistanceTo(nu).velocity(mu)[:, 0]
    torch.testing.assert_close(end, torch.arange(13, dtype=F64) / 2)


@pytest.mark.parametrize(
    ("nu", "mu"),
    [
        ([0.1, 0.2, 0.7], [0.3, 0.7]),
        ([0.3, 0.7], [0.1, 0.2, 0.7]),
        ([0.1, 0.2, 1e-15, 0.7], [0.3, 0.7]),
    ],
    ids=["from below", "from above", "a light cell"],
)
def test_levels_that_differ_by_round_off_are_one_level(nu, mu):
    """0.1 + 0.2 is not 0.3; the mean of both ends of a hole does not depend on it."""
    where = 2 if len(nu) > 2 else 1
    rho = [*nu[:where], 0.0, *nu[where:]]
    target = of.GridDensity(
        torch.tensor(rho, dtype=F64), 0, len(rho), walls=True, normalize=True
    )
    masses = torch.tensor(mu, dtype=F64)
    start = of.Quantiles(torch.arange(len(mu) + 1, dtype=F64), masses, normalize=True)
    end = start.edges + of.SquaredDistanceTo(target).velocity(start)[:, 0]
    hole = float(end[len(mu) - 1])
    if len(nu) < 4:
        assert hole == pytest.approx(where + 0.5, rel=1e-14)
    else:  # a cell lighter than round-off: the level is anywhere in it
        assert where + 0.5 <= hole <= where + 2


def test_a_light_cell_between_equal_levels_keeps_its_ends():
    """Its mass is below the round-off of a level in its middle."""
    masses = torch.tensor([0.2, 0.1, 1e-13, 0.7], dtype=F64)
    nu = of.Quantiles(torch.arange(5, dtype=F64), masses, normalize=True)
    halves = torch.tensor([0.1, 0.1, 0.1, 1e-13, 0.7], dtype=F64)
    start = torch.arange(6, dtype=F64)
    mu = of.Quantiles(start, halves, normalize=True)
    end = mu.edges + of.SquaredDistanceTo(nu).velocity(mu)[:, 0]
    expected = torch.tensor([0.0, 0.5, 1.0, 2.0, 3.0, 4.0], dtype=F64)
    torch.testing.assert_close(end, expected, rtol=0, atol=1e-14)


def test_a_tolerance_is_passed_on():
    mu, nu = uniform(60), uniform(50, seed=1)
    value = float(of.SquaredDistanceTo(nu, tolerance=0.1).value(mu))
    best = float(of.SquaredDistanceTo(nu).value(mu))
    assert best * (1 - 1e-12) <= value <= best / 0.9


@pytest.mark.parametrize("blur", [0.05, 1.0])
def test_the_divergence_is_that_of_the_metric_and_zero_at_the_target(blur):
    mu, nu = weighted(6), weighted(7, seed=1)
    F = of.SinkhornDivergenceTo(nu, blur)
    assert torch.equal(F.value(mu), sinkhorn_divergence(mu, nu, blur=blur))
    short = sinkhorn_divergence(mu, nu, blur=blur, reach=0.5)
    assert torch.equal(of.SinkhornDivergenceTo(nu, blur, 0.5).value(mu), short)
    assert float(short) < float(F.value(mu))
    assert float(F.value(nu)) == pytest.approx(0, abs=1e-10)
    assert float(F.velocity(nu).abs().max()) < 1e-6


def test_a_small_blur_gives_the_exact_velocity():
    mu, nu = uniform(8), uniform(8, seed=1)
    F, G = of.SinkhornDivergenceTo(nu, 0.02), of.SquaredDistanceTo(nu)
    torch.testing.assert_close(F.velocity(mu), G.velocity(mu), rtol=0, atol=2e-3)


def test_a_kink_gives_the_velocity_between_both_sides():
    """Coincident atoms of the target: the derivative of a swap is finite."""
    mu, nu = of.Particles(torch.zeros(4, 2, dtype=F64)), uniform(4, seed=1)
    for F in (of.SquaredDistanceTo(nu), of.SinkhornDivergenceTo(nu, 0.3)):
        velocity = F.velocity(mu)
        assert bool(velocity.isfinite().all())
        torch.testing.assert_close(velocity.mean(0), nu.points.mean(0))


def test_moduli_are_stated_where_they_hold():
    assert of.SquaredDistanceTo(bent()).modulus(1) == 1.0
    assert of.SquaredDistanceTo(rough(9)).modulus(1) == 1.0
    assert of.SquaredDistanceTo(uniform(5, 1)).modulus(1) is None
    assert of.SquaredDistanceTo(uniform(5)).modulus(2) is None
    assert of.SquaredDistanceTo(gaussian()).modulus(2) is None
    assert of.SinkhornDivergenceTo(uniform(5), 0.1).modulus(2) is None


def test_atoms_on_the_line_have_no_modulus_along_every_coupling():
    """Two atoms that change places leave the target and come back."""
    nu = of.Particles(torch.tensor([[-1.0], [1.0]], dtype=F64))
    F = of.SquaredDistanceTo(nu)
    half = nu.push(nu.displacement_to(of.Particles(-nu.points)), 0.5)
    assert float(F.value(nu)) == 0
    assert float(F.value(half)) == 0.5


def test_a_move_keeps_the_target_and_the_numbers():
    F = of.SinkhornDivergenceTo(uniform(5), 0.1, reach=2.0).to(torch.float32)
    assert (F.target.dtype, F.blur, F.reach) == (torch.float32, 0.1, 2.0)
    G = of.SquaredDistanceTo(gaussian()).to(torch.float32)
    assert G.target.dtype == torch.float32
    assert G.value(gaussian(seed=1).to(torch.float32)).dtype == torch.float32


def test_a_graph_of_the_target_is_kept():
    y = normal(5, 2, seed=1).requires_grad_()
    mu = uniform(5)
    u = normal(5, 2, seed=2)
    for make in (of.SquaredDistanceTo, partial(of.SinkhornDivergenceTo, blur=0.3)):
        (slope,) = torch.autograd.grad(make(y).value(mu), y)

        def moved(t, make=make):
            return make(y.detach() + t * u).value(mu)

        torch.testing.assert_close((slope * u).sum(), derivative(moved, 1e-4))


@pytest.mark.parametrize("seed", range(10))
def test_the_field_between_atoms_of_equal_weights(seed):
    """Their plans fall into parts; the field is minus the slope of F'."""
    r = torch.Generator().manual_seed(seed)
    n, m, d = (int(torch.randint(1, 6, (), generator=r)) for _ in range(3))
    p, q, x = (torch.randn(k, d, generator=r).double() for k in (n, m, 4))
    F, mu = of.SquaredDistanceTo(q), of.Particles(p)
    field, h = F.velocity(mu, x), 1e-5
    for axis, step in enumerate(h * torch.eye(d).double()):
        slope = (F.first_variation(mu, x + step) - F.first_variation(mu, x - step)) / h
        torch.testing.assert_close(field[:, axis], -0.5 * slope, rtol=0, atol=1e-9)


def test_levels_that_meet_have_the_mean_of_both_derivatives():
    w = torch.tensor([0.2, 0.3, 0.1, 0.4], dtype=F64)
    edges = torch.tensor([-1.0, 0.0, 0.5, 2.0, 2.3]).double()
    F = of.SquaredDistanceTo(
        of.Quantiles(torch.tensor([0.0, 1.0, 1.5, 1.7, 4.0]).double(), w)
    )

    def value(weights):
        return F.value(of.Quantiles(edges, weights))

    live, along = w.clone().requires_grad_(), torch.tensor([1.0, -2, 3, -2]).double()
    (slope,) = torch.autograd.grad(value(live), live)
    h = 1e-7
    sides = [(value(w + t * along) - value(w)) / t for t in (h, -h)]
    assert abs(sides[0] - sides[1]) > 0.1
    torch.testing.assert_close(slope @ along, sum(sides) / 2, rtol=1e-5, atol=0)
