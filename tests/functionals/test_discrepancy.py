"""Kernel distances to a measure."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest
import torch

import otflow as of
from otflow._autodiff import line_derivatives
from otflow.testing import FunctionalContract
from otflow.testing.clouds import normal, uniform, weighted
from tests import exact
from tests.functionals.on_grids import OnGrids, rough

F64 = torch.float64
BUMP = of.kernels.Gaussian(1.0)


class TestMMD(FunctionalContract):
    def make(self, dtype=F64):
        return of.MMDTo(weighted(5, 2, seed=8, dtype=dtype), BUMP)


class TestMMDOfAFunction(FunctionalContract):
    def make(self, dtype=F64):
        def kernel(z):
            return 1 / (1 + z.square().sum(-1))

        return of.MMDTo(weighted(5, 2, seed=8, dtype=dtype), kernel)


class TestMMDOfASum(FunctionalContract):
    def make(self, dtype=F64):
        kernel = 2 * BUMP + 0.5 * of.kernels.Gaussian(0.5)
        return of.MMDTo(weighted(5, 2, seed=8, dtype=dtype), kernel)


class TestEnergyDistance(FunctionalContract):
    def make(self, dtype=F64):
        return of.EnergyDistanceTo(weighted(5, 2, seed=8, dtype=dtype))

    def measures(self):
        """Return atoms that do not coincide: there the distance has a kink."""
        return [self.measure(), uniform(6)]


class TestMMDOnGrids(OnGrids):
    def make(self, dtype=F64):
        self.dtype = dtype
        return of.MMDTo(rough(5, 6, seed=8, dtype=dtype), BUMP)

    def measures(self):
        return [self.measure(), rough(6, 5, seed=1)]

    def probes(self, mu, shift):
        return mu.points.clamp(-2.4, 2.0) + 0.5 * shift


# Values -------------------------------------------------------------------------------


def by_hand(mu, nu, k):
    (x, a), (y, b) = ((m.points, m.weights) for m in (mu, nu))
    own = a @ k(x[:, None] - x) @ a + b @ k(y[:, None] - y) @ b
    return 0.5 * own - a @ k(x[:, None] - y) @ b


@pytest.mark.parametrize("d", [1, 3])
def test_it_is_half_the_squared_mean_discrepancy(d):
    mu, nu = weighted(300, d), weighted(270, d, seed=1)
    found = of.MMDTo(nu, BUMP).value(mu)
    torch.testing.assert_close(found, by_hand(mu, nu, BUMP))
    energy = of.EnergyDistanceTo(nu).value(mu)
    torch.testing.assert_close(energy, by_hand(mu, nu, lambda z: -z.norm(dim=-1)))
    assert float(found) > 0
    assert float(energy) > 0
    for F in (of.MMDTo(nu, BUMP), of.EnergyDistanceTo(nu)):
        assert float(F.value(nu)) == pytest.approx(0, abs=1e-14)


def test_on_the_line_the_energy_distance_compares_distribution_functions():
    mu, nu = weighted(7, 1), weighted(5, 1, seed=1)
    places = torch.cat([mu.points, nu.points])[:, 0].sort().values
    below = [
        (m.points[:, 0] <= places[:-1, None]).to(F64) @ m.weights for m in (mu, nu)
    ]
    expected = (below[0] - below[1]).square() @ places.diff()
    torch.testing.assert_close(of.EnergyDistanceTo(nu).value(mu), expected)


def test_gaussians_have_a_closed_form():
    """A kernel of width 1 between N(m, S) and N(0, T): a Gaussian integral."""
    mu = of.Gaussian(normal(2), exact.spd(2))
    nu = of.Gaussian(torch.zeros(2, dtype=F64), exact.spd(2, seed=3))
    eye = torch.eye(2, dtype=F64)

    def mean(m, S):
        power = -0.5 * m @ torch.linalg.solve(eye + S, m)
        return power.exp() / (eye + S).det().sqrt()

    S, T, m = mu.covariance, nu.covariance, mu.mean
    expected = 0.5 * (mean(0 * m, 2 * S) + mean(0 * m, 2 * T)) - mean(m, S + T)
    torch.testing.assert_close(of.MMDTo(nu, BUMP).value(mu), expected)


@pytest.mark.parametrize("measure", ["quantiles", "grid", "particles"])
def test_a_target_may_be_of_another_kind(measure):
    """All stand for the uniform law on (-1, 1); the target is another uniform law."""
    even = torch.linspace(-1, 1, 401, dtype=F64)
    mu = {
        "quantiles": of.Quantiles(even),
        "grid": of.GridDensity(torch.full((400,), 0.5, dtype=F64), -1, 1, walls=True),
        "particles": of.Particles(0.5 * (even[1:] + even[:-1])[:, None]),
    }[measure]
    nu = of.Quantiles(torch.linspace(0, 3, 301, dtype=F64))
    # F_mu - F_nu is (1 + x)/2 on (-1, 0), then (1 + x)/2 - x/3, then 1 - x/3.
    x = torch.linspace(-1, 3, 400_001, dtype=F64)
    gap = ((1 + x) / 2).clamp(0, 1) - (x / 3).clamp(0, 1)
    expected = float(torch.trapezoid(gap.square(), x))
    found = float(of.EnergyDistanceTo(nu).value(mu))
    assert found == pytest.approx(expected, rel=1e-3)


def test_the_first_variation_is_the_witness():
    mu, nu, x = weighted(6), weighted(5, seed=1), normal(9, 2, seed=2)
    found = of.MMDTo(nu, BUMP).first_variation(mu, x)
    expected = mu.convolve(BUMP, x) - nu.convolve(BUMP, x)
    torch.testing.assert_close(found - found[0], expected - expected[0])


def test_forces_at_coincidence_are_finite():
    nu = uniform(5)
    F = of.EnergyDistanceTo(nu)
    assert not (F.velocity(nu).abs() > 1e-14).any()
    heap = of.Particles(nu.points[:1].expand(4, 2).clone())
    velocity = F.velocity(heap)
    assert bool(velocity.isfinite().all())
    units = torch.nn.functional.normalize(nu.points[1:] - nu.points[0], dim=1)
    torch.testing.assert_close(velocity, (units.sum(0) / 5).expand(4, 2))


def test_a_far_point_is_drawn_by_a_force_of_size_one():
    F = of.EnergyDistanceTo(uniform(5))
    far = of.Particles(torch.tensor([[1e6, 0.0]], dtype=F64))
    torch.testing.assert_close(
        F.velocity(far), torch.tensor([[-1.0, 0.0]], dtype=F64), rtol=0, atol=1e-5
    )


def test_points_stand_for_equal_weights_and_graphs_stay():
    mu, y = uniform(6), normal(4, 2, seed=1)
    for F in (of.EnergyDistanceTo, lambda nu: of.MMDTo(nu, BUMP)):
        expected = F(of.Particles(y)).value(mu)
        assert torch.equal(F(y.numpy()).value(mu), expected)
        live = y.clone().requires_grad_()
        G = F(live)
        for _ in range(2):  # the graph of the term of the target is made anew
            (slope,) = torch.autograd.grad(G.value(mu), live)
        u, h = normal(4, 2, seed=2), 1e-5
        ends = [float(F(y + t * u).value(mu)) for t in (h, -h)]
        wanted = (ends[0] - ends[1]) / (2 * h)
        assert float((slope * u).sum()) == pytest.approx(wanted, rel=1e-6)


# Parts --------------------------------------------------------------------------------


def test_its_parts_are_an_interaction_and_a_potential():
    mu, F = weighted(6), of.MMDTo(weighted(5, seed=1), BUMP)
    terms = F.terms()
    assert [c for c, _ in terms] == [1.0, 1.0]
    assert type(terms[0][1]) is of.Interaction
    assert isinstance(terms[1][1], of.Potential)
    assert float(F.terms()[0][1].value(mu)) == float(mu.interaction(BUMP))


@pytest.mark.parametrize("sigma", [0.3, 2.0])
def test_the_modulus_of_a_bump_bounds_and_is_met_by_its_parts(sigma):
    F = of.MMDTo(torch.zeros(1, 1, dtype=F64), of.kernels.Gaussian(sigma))
    expected = -(1 + 2 * math.exp(-1.5)) / sigma**2
    assert F.modulus(1) == pytest.approx(expected)
    potential: Any = F.terms()[1][1]
    x = torch.linspace(-6 * sigma, 6 * sigma, 2001, dtype=F64)[:, None]
    curve = line_derivatives(potential.V, x)[2]
    assert float(curve.min()) == pytest.approx(potential.modulus(1), rel=1e-4)
    assert of.EnergyDistanceTo(uniform(3)).modulus(2) is None
    assert of.MMDTo(uniform(3), 2 * BUMP).modulus(2) is None


def test_a_draw_of_the_target_is_unbiased():
    mu, nu = weighted(6), weighted(9, seed=1)
    g = torch.Generator().manual_seed(0)
    for F in (
        of.MMDTo(nu, BUMP, batch_size=3),
        of.EnergyDistanceTo(nu, batch_size=3),
    ):
        pairs = [F.resample(g).value_and_velocity(mu) for _ in range(400)]
        values, velocities = (torch.stack(t) for t in zip(*pairs, strict=True))
        for draws, whole in ((values, F.value(mu)), (velocities, F.velocity(mu))):
            error = draws.std(0) / 20
            assert bool(((draws.mean(0) - whole).abs() <= 4 * error).all())
        draw = F.resample(g)
        assert draw.target.n == 3
        assert draw.resample(g) is draw
        assert type(draw) is type(F)
    still = of.MMDTo(nu, BUMP)
    assert still.resample(g) is still


def test_no_square_of_all_pairs_is_kept():
    """Of 4,000 points and 5,000, blocks alone are ever in memory."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 2, generator=generator) for n in (4000, 5000))
    biggest = []

    class Watched(of.kernels.Gaussian):
        def profile(self, s):
            biggest.append(s.numel())
            return super().profile(s)

        def profile_and_slope(self, s):
            biggest.append(s.numel())
            return super().profile_and_slope(s)

    F, mu = of.MMDTo(y, Watched(1.0)), of.Particles(x)
    F.value_and_velocity(mu)
    assert 0 < max(biggest) <= 4000 * 5000 / 50


@pytest.mark.parametrize("kernel", [BUMP, of.kernels.Energy(), BUMP + 2 * BUMP])
def test_the_velocity_anywhere_is_closed(kernel, monkeypatch):
    """No graph over all pairs is recorded: that takes 25 times as long."""
    mu, nu, x = weighted(6), weighted(5, seed=1), normal(9, 2, seed=2)
    F = of.MMDTo(nu, kernel)
    at = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(F.first_variation(mu, at).sum(), at)

    def refused(*_):
        pytest.fail("a profile was evaluated outside of the closed form")

    for kind in (of.kernels.Gaussian, of.kernels.Energy):
        profile = kind.profile
        monkeypatch.setattr(
            kind,
            "profile",
            lambda self, s, f=profile: refused() if s.requires_grad else f(self, s),
        )
    torch.testing.assert_close(F.velocity(mu, x), -slope)


def test_a_jko_step_lowers_it_on_particles_and_quantiles():
    nu = of.Quantiles(torch.linspace(0, 3, 21, dtype=F64))
    for mu in (uniform(10, 1), of.Quantiles(torch.linspace(-1, 1, 21, dtype=F64))):
        F = of.MMDTo(nu, BUMP)
        step = of.JKO().step(F, mu, 0.5, None, torch.Generator())
        assert step.info["converged"]
        fall = float(F.value(mu) - F.value(step.measure))
        assert fall >= float(step.info["w2"]) ** 2 / (2 * 0.5) > 0


@pytest.mark.parametrize("batch_size", [None, 3])
def test_a_move_and_a_copy_take_all_parts_along(batch_size):
    nu, mu = weighted(5), weighted(6, seed=1)
    F: Any = of.MMDTo(nu, BUMP, batch_size=batch_size)
    F = F.resample(torch.Generator().manual_seed(0))
    moved, copied = F.to(torch.float32), pickle.loads(pickle.dumps(F))
    assert moved.target.dtype == torch.float32
    assert moved.value(mu.to(torch.float32)).dtype == torch.float32
    for G, at, error in ((moved, mu.to(torch.float32), 1e-5), (copied, mu, 1e-15)):
        found, expected = G.value_and_velocity(at), F.value_and_velocity(mu)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=error, atol=error)
