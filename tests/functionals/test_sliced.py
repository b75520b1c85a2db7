"""Half the squared sliced distance to a measure."""

from __future__ import annotations

import ot
import pytest
import torch

import otflow as of
from otflow.testing import FunctionalContract
from otflow.testing.clouds import normal, uniform, weighted
from otflow.testing.differences import mean_derivative

F64 = torch.float64


def unit(k, d, seed=0):
    v = normal(k, d, seed=seed)
    return v / v.norm(dim=1, keepdim=True)


class TestSliced(FunctionalContract):
    def make(self, dtype=F64):
        return of.SlicedWassersteinTo(weighted(5, 2, seed=8, dtype=dtype), 6)

    def measures(self):
        masses = torch.tensor([0.2, 0.1, 0.3, 0.15, 0.0, 0.0, 0.25], dtype=F64)
        light = of.Particles(normal(7, 2, seed=3), masses)
        return [self.measure(), uniform(6, 2), light]

    def test_velocity_is_minus_the_gradient_of_the_first_variation(self):
        """Check it at atoms that are split in no direction."""
        F = self.make()
        for mu in self.measures():
            whole = torch.ones(mu.n, dtype=torch.bool)
            for v in F.directions:
                plan = of.metrics.transport_plan(
                    of.Particles((mu.points @ v)[:, None], mu.weights),
                    of.Particles((F.target.points @ v)[:, None], F.target.weights),
                )
                whole &= torch.bincount(plan.rows, minlength=mu.n) == 1
            assert bool(whole.any())
            expected = -self.slopes(F, mu)
            torch.testing.assert_close(F.velocity(mu)[whole], expected[whole])

    def test_the_velocity_anywhere_is_minus_the_slope_of_the_first_variation(self):
        """Check it where the slopes on both sides agree: at most probes."""
        F, h = self.make(), 1e-5
        for mu in self.measures():
            x = self.probes(mu, 0.3)
            here = F.first_variation(mu, x)
            for axis in torch.eye(2, dtype=F64):
                ahead = (F.first_variation(mu, x + h * axis) - here) / h
                back = (here - F.first_variation(mu, x - h * axis)) / h
                smooth = (ahead - back).abs() < 2 * h  # the curvature is at most 1
                assert float(smooth.double().mean()) > 0.8
                found = F.velocity(mu, x) @ axis
                torch.testing.assert_close(
                    found[smooth], -(ahead + back)[smooth] / 2, rtol=0, atol=1e-8
                )


class TestSlicedOfEqualAtoms(FunctionalContract):
    """Without weights a sort gives all: the first variation has kinks at ties."""

    dim = 3

    def make(self, dtype=F64):
        v = unit(5, 3).to(dtype)
        return of.SlicedWassersteinTo(uniform(7, 3, seed=8, dtype=dtype), v)

    def measure(self, dtype=F64, seed=0):
        return uniform(7, 3, seed=seed, dtype=dtype)

    def measures(self):
        return [self.measure(), self.measure(seed=2)]

    def test_velocity_is_minus_the_gradient_of_the_first_variation(self):
        """Check that between two atoms the slope leads to the mean of their places."""
        F, mu = self.make(), self.measure()
        v = F.directions[0]
        one = of.SlicedWassersteinTo(F.target, v[None])
        order = (mu.points @ v).argsort()
        ends = (F.target.points @ v).sort().values[3:5]
        x = mu.points[order[3:5]].mean(0, keepdim=True).requires_grad_()
        (slope,) = torch.autograd.grad(one.first_variation(mu, x).sum(), x)
        expected = v * (x.detach()[0] @ v - ends.mean())
        torch.testing.assert_close(slope[0], expected)

    def test_first_variation_is_the_derivative_in_the_masses(self):
        """Check the mean of both one-sided derivatives, at a kink."""
        F = self.make()
        for mu in self.measures():
            found = F.first_variation(mu)
            for seed in range(3):
                rate = normal(mu.n, seed=seed)
                change = mu.weights * (rate - rate.mean())
                expected = mean_derivative(
                    lambda t, mu=mu, rate=rate: F.value(mu.reweight(rate, t))
                )
                torch.testing.assert_close(
                    found @ change, expected, rtol=1e-7, atol=1e-9
                )


@pytest.mark.parametrize(("n", "m"), [(8, 8), (8, 5), (1, 4)])
@pytest.mark.parametrize("make", [uniform, weighted])
def test_it_is_half_the_mean_square_of_the_distances_of_pot(n, m, make):
    mu, nu, v = make(n, 3), make(m, 3, seed=1), unit(6, 3)
    found = of.SlicedWassersteinTo(nu, v).value(mu)
    each = ot.wasserstein_1d(
        mu.points @ v.T, nu.points @ v.T, mu.weights, nu.weights, p=2
    )
    torch.testing.assert_close(found, 0.5 * each.mean())


def test_on_the_line_it_is_the_distance_itself():
    mu, nu = weighted(9, 1), weighted(6, 1, seed=1)
    F, G = of.SlicedWassersteinTo(nu, 1), of.SquaredDistanceTo(nu)
    torch.testing.assert_close(F.value(mu), G.value(mu))
    torch.testing.assert_close(F.velocity(mu), G.velocity(mu))
    x = normal(5, 1, seed=3)
    for found, expected in (
        (F.first_variation(mu), G.first_variation(mu)),
        (F.first_variation(mu, x), G.first_variation(mu, x)),
    ):
        torch.testing.assert_close(found - found[0], expected - expected[0])


@pytest.mark.parametrize("d", [1, 2, 5])
def test_a_translation_costs_its_square_over_twice_the_dimension(d):
    nu, v = weighted(6, d), normal(d, seed=2)
    mu = nu.push(v.expand(6, d), 1.0)
    found = of.SlicedWassersteinTo(nu, 4 * d).value(mu)
    torch.testing.assert_close(found, v.square().sum() / (2 * d))


def test_gradients_are_finite_where_atoms_coincide():
    nu = uniform(6)
    F = of.SlicedWassersteinTo(nu, 8)
    assert float(F.value(nu)) == 0
    assert not F.velocity(nu).any()
    assert not F.first_variation(nu).any()
    heap = of.Particles(torch.zeros(6, 2, dtype=F64))
    assert bool(F.velocity(heap).isfinite().all())
    torch.testing.assert_close(
        F.velocity(heap).mean(0),
        (F.directions.T @ F.directions / 8) @ nu.points.mean(0),
    )
    assert bool(of.SlicedWassersteinTo(heap, 8).first_variation(heap).isfinite().all())


def test_digits_are_kept_far_from_the_origin():
    """Points that float32 holds exactly: their projections would be rounded."""
    x, y = (torch.round(16 * normal(50, 2, seed=k)) / 16 for k in (0, 1))
    expected = of.SlicedWassersteinTo(y, 8).value(of.Particles(x))
    single = of.SlicedWassersteinTo((1e5 + y).float(), 8)
    assert torch.equal((1e5 + x).float().double(), 1e5 + x)
    assert float(single.value(of.Particles((1e5 + x).float()))) == pytest.approx(
        float(expected), rel=1e-5
    )


# Directions ---------------------------------------------------------------------------


def test_directions_are_orthonormal_in_groups():
    v = of.SlicedWassersteinTo(uniform(4, 3), 7).directions
    assert v.shape == (7, 3)
    for group in (v[:3], v[3:6]):
        torch.testing.assert_close(group @ group.T, torch.eye(3, dtype=F64))
    torch.testing.assert_close(v[6].norm(), torch.ones((), dtype=F64))


def test_directions_are_uniform_on_the_sphere():
    v = of.SlicedWassersteinTo(uniform(4, 3), 30_000).directions
    assert float(v.mean(0).abs().max()) < 0.02
    torch.testing.assert_close(
        v.T @ v / len(v), torch.eye(3, dtype=F64) / 3, rtol=0, atol=1e-12
    )
    # One coordinate of a uniform point on the sphere in space is uniform on (-1, 1).
    for axis in range(3):
        levels = v[:, axis].sort().values
        even = torch.linspace(-1, 1, len(v), dtype=F64)
        assert float((levels - even).abs().max()) < 0.05


def test_a_seed_gives_the_same_directions_everywhere():
    nu = uniform(4)
    first, same = (of.SlicedWassersteinTo(nu, 4, generator=3) for _ in range(2))
    assert torch.equal(first.directions, same.directions)
    other = of.SlicedWassersteinTo(nu, 4, generator=4)
    assert not torch.equal(first.directions, other.directions)
    drawn = of.SlicedWassersteinTo(nu, 4, generator=torch.Generator().manual_seed(1))
    assert drawn.directions.shape == (4, 2)
    before = torch.get_rng_state()
    of.SlicedWassersteinTo(nu, 4)
    assert torch.equal(torch.get_rng_state(), before)


def test_given_directions_are_divided_by_their_lengths_and_stay():
    v = 3.0 * unit(4, 2)
    F = of.SlicedWassersteinTo(uniform(4), v.numpy())
    torch.testing.assert_close(F.directions, v / 3.0)
    assert F.resample(torch.Generator()) is F


def test_the_mean_over_draws_is_the_distance_over_the_sphere():
    mu, nu = weighted(6), weighted(5, seed=1)
    angles = torch.pi * (torch.arange(2000, dtype=F64) + 0.5) / 2000
    sphere = of.SlicedWassersteinTo(nu, torch.stack([angles.cos(), angles.sin()], 1))
    F, g = of.SlicedWassersteinTo(nu, 2), torch.Generator().manual_seed(0)
    draws = torch.stack([F.resample(g).value(mu) for _ in range(500)])
    error = 4 * float(draws.std()) / 500**0.5
    assert float(draws.mean()) == pytest.approx(float(sphere.value(mu)), abs=error)
    assert error < 0.05 * float(sphere.value(mu))


def test_a_flow_on_fresh_directions_comes_to_the_target():
    mu, nu = uniform(40), uniform(40, seed=1)
    F = of.SlicedWassersteinTo(nu, 4)
    scheme = of.schemes.Minibatch(of.ExplicitEuler())
    run = of.flow(F, mu, scheme, dt=1.0, steps=200, every=200, generator=0)
    distances = [float(of.metrics.wasserstein2(m, nu)) for m in (mu, run.final)]
    assert distances[1] < 0.05 * distances[0]


def test_a_move_takes_the_directions_along():
    F = of.SlicedWassersteinTo(uniform(5), 4).to(torch.float32)
    assert F.directions.dtype == F.target.dtype == torch.float32
    assert F.value(uniform(5, dtype=torch.float32)).dtype == torch.float32
    assert F.modulus(2) is None


def test_a_sum_of_masses_above_one_keeps_its_derivative():
    """The masses add to 1 + 2.2e-16, and the probe lies beyond all atoms."""
    x = torch.tensor([-0.125387525, 0.560533141, -0.422567079]).double()[:, None]
    masses = [0.3770226243776614, 0.13394484469868564, 0.48903253092365306]
    w = torch.tensor(masses, dtype=torch.float64)
    target = torch.tensor([[1.1684558832867076]]).double()
    mu, probe = of.Particles(x, w), torch.tensor([[1.4390177264607749]]).double()
    F = of.SlicedWassersteinTo(target, torch.ones(1, 1).double())
    G = of.SquaredDistanceTo(target)
    found, exact = (
        H.first_variation(mu, probe) - w @ H.first_variation(mu, x) for H in (F, G)
    )
    torch.testing.assert_close(found, exact)
