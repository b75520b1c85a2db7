"""Gaps of networks over balls of the path norm, against problems solved exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import otflow as of
from otflow.meanfield.circle import largest_on_circle
from otflow.meanfield.cones import largest_on_cones, largest_on_sphere
from otflow.meanfield.kinks import Kinks
from otflow.meanfield.relaxations import relaxed_bound
from otflow.testing.clouds import normal
from tests.meanfield.convex_fits import RELU, features, fit, neurons, rays

F64 = torch.float64
PathBall, Risk, TwoLayer = (
    of.meanfield.PathBall,
    of.meanfield.Risk,
    of.meanfield.TwoLayer,
)
gap_of = of.optimality.optimality_gap


class Leaky(of.meanfield.Unit):
    """A homogeneous unit of one's own."""

    name = "leaky"
    homogeneous = True

    def __call__(self, z):
        return torch.nn.functional.leaky_relu(z, 0.25)

    def slope(self, z, value, out):
        return torch.where(z > 0, 1.0, 0.25).to(out)


def data(n, d, seed=0):
    X = normal(n, d, seed=seed)
    return torch.cat([X, X.new_ones(n, 1)], 1), normal(n, 1, seed=seed + 1)[:, 0] / n


# The maximum on the sphere ------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("n", [4, 25])
def test_the_maximum_on_the_l1_sphere_is_that_over_rays(n, d):
    z, q = data(n, d)
    g = Kinks(z, q[:, None], (0.0, 1.0), "l1")
    found = largest_on_sphere(g, z[:1], budget=20_000, ascents=0)
    exact = float(g.size_of(g(torch.from_numpy(rays(z.numpy())))).max())
    assert found.closed
    assert found.lower <= exact + g.noise
    assert exact <= found.upper <= exact + 100 * g.noise


@pytest.mark.parametrize("outputs", [1, 3])
def test_the_maximum_on_the_circle_is_that_of_its_arcs(outputs):
    # With one output the sum is s.v on each arc: its maximum is |s|, or at an end.
    z, _ = data(12, 1)
    q = normal(12, outputs, seed=5) / 12
    g = Kinks(z, q, (0.0, 1.0), "l2")
    found = largest_on_sphere(g, z[:1], budget=20_000, ascents=0)
    angles = torch.linspace(0, 2 * math.pi, 200_001, dtype=F64)
    dense = g.size_of(g(torch.stack([angles.cos(), angles.sin()], 1)))
    k = int(dense.argmax())
    fine = torch.linspace(
        float(angles[k - 1]), float(angles[k + 1]), 200_001, dtype=F64
    )
    exact = float(g.size_of(g(torch.stack([fine.cos(), fine.sin()], 1))).max())
    assert found.closed
    # The grid of angles misses a kink by up to 3e-10.
    assert exact - g.noise <= found.upper
    assert found.lower == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("kind", ["plain", "repeated", "through 0", "far", "one"])
def test_the_circle_and_the_cones_agree(norm, kind):
    for seed in range(10):
        z, _ = data(1 if kind == "one" else 14, 1, seed=seed)
        if kind == "repeated":
            z = torch.cat([z[:5], z[:5], z[:4]])
        if kind == "through 0":
            z = z.round()
            z[:3] = 0.0
        if kind == "far":
            z[:, 0] *= 10.0 ** torch.linspace(-6, 6, len(z), dtype=F64)
        for outputs in (1, 3):
            g = Kinks(z, normal(len(z), outputs, seed=seed), (0.25, 0.75), norm)
            one = largest_on_circle(g)
            other = largest_on_cones(g, z, budget=20_000, ascents=10)
            assert other.closed
            assert other.lower <= one.upper
            assert one.lower <= other.upper
            assert abs(one.lower - other.lower) <= 20 * g.noise
            assert one.upper - one.lower <= 20 * g.noise


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("unit", [(0.0, 1.0), (0.25, 0.75), (-1.0, 2.0)])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_no_place_lies_above_the_bracket(norm, outputs, unit, d):
    z, _ = data(15, d)
    g = Kinks(z, normal(15, outputs, seed=6), unit, norm)
    found = largest_on_sphere(g, z[:1], budget=4000, ascents=20)
    v = normal(20_000, d + 1, seed=7)
    around = found.place + 1e-3 * normal(2000, d + 1, seed=8)
    for places in (v, around):
        sizes = g.size_of(g(places)) / g.length(places)
        assert float(sizes.max()) <= found.upper
    at = found.place[None]
    assert float(g.length(at)[0]) == pytest.approx(1, abs=1e-14)
    assert float(g.size_of(g(at))[0]) == pytest.approx(found.lower, rel=1e-12)
    assert float(g(at)[0] @ found.direction) == pytest.approx(found.lower, rel=1e-12)


def test_a_small_budget_gives_a_true_bracket_that_is_not_closed():
    z, q = data(60, 3)
    for norm in ("l1", "l2"):
        g = Kinks(z, q[:, None], (0.0, 1.0), norm)
        sharp = largest_on_sphere(g, z, budget=100_000, ascents=20)
        rough = largest_on_sphere(g, z[:1], budget=20, ascents=0)
        assert sharp.closed
        assert not rough.closed
        assert rough.lower <= sharp.upper
        assert sharp.lower <= rough.upper
        assert rough.upper > 1.01 * sharp.upper


def test_in_many_dimensions_the_bound_is_true_and_finite():
    z, q = data(40, 15)
    for norm in ("l1", "l2"):
        g = Kinks(z, q[:, None], (0.0, 1.0), norm)
        found = largest_on_sphere(g, z, budget=100, ascents=100)
        places = normal(20_000, 16, seed=9)
        sizes = g.size_of(g(places)) / g.length(places)
        assert float(sizes.max()) <= found.lower  # ascent finds more than chance
        assert found.lower < found.upper < 4 * found.lower
        assert "relaxation" in found.advice


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("outputs", [1, 3])
def test_the_relaxation_bounds_what_the_cones_find(norm, outputs):
    for d in (1, 2, 3):
        for seed in range(10):
            z, _ = data(10, d, seed=seed)
            q = normal(10, outputs, seed=seed + 50)
            g = Kinks(z, q, (0.25, 0.75), norm)
            found = largest_on_sphere(g, z, budget=20_000, ascents=20)
            assert found.lower <= relaxed_bound(g)
            assert relaxed_bound(g) <= 5 * found.lower
    # Kinks that bend up alone are largest at a corner: the relaxation is exact.
    if norm == "l1":
        g = Kinks(z, q.abs(), (0.0, 1.0), norm)
        corners = torch.cat([torch.eye(4, dtype=F64), -torch.eye(4, dtype=F64)])
        exact = float(g.size_of(g(corners)).max())
        assert relaxed_bound(g) == pytest.approx(exact, rel=1e-12)


# The gap ------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2])
def test_the_gap_bounds_the_excess_over_the_exact_minimum(d):
    n = 7 if d == 1 else 5
    X = normal(n, d, seed=10 + d)
    y = normal(n, 1, seed=20)[:, 0]
    v, values = features(X.numpy())
    risk = Risk(RELU, X, y)
    for radius in (0.5, 2.0):
        least, c = fit(values, y.numpy(), radius=radius)
        ball = PathBall(radius, sharpness=0)
        for seed in range(20):
            theta = normal(6, d + 2, seed=100 + seed)
            mu = of.Particles(theta)
            size = float(of.meanfield.path_norm(RELU, mu))
            theta[:, 0] *= radius * (0.1 + 0.9 * (seed / 19)) / size
            mu = of.Particles(theta)
            gap = gap_of(risk, mu, ball)
            assert gap.kind == "proved"
            assert float(risk.value(mu)) - least <= gap.value
            assert gap.value - gap.found <= 1e-10 * (1 + gap.value)
        # SLSQP is exact to about 1e-9, and the gap is of the first order in c.
        best = neurons(v, c * min(1, radius / np.abs(c).sum()))
        gap = gap_of(risk, best, ball)
        assert float(risk.value(best)) == pytest.approx(least, abs=1e-9)
        assert gap.value < 1e-6


@pytest.mark.slow
def test_no_gap_lies_below_a_known_one_in_1000_random_problems():
    # Data of a teacher in the ball: the infimum is 0, and the gap of a student is F.
    draw = np.random.default_rng(1)
    smallest = math.inf
    for _ in range(1000):
        d = int(draw.integers(1, 3))
        n = int(draw.integers(2, 9 if d == 1 else 5))
        X = draw.normal(size=(n, d)) * 10 ** draw.uniform(-1, 1)
        v, values = features(X)
        c = np.zeros(len(v))
        held = draw.choice(len(v), int(draw.integers(1, 4)))
        c[held] = draw.normal(size=len(held)) * 10 ** draw.uniform(-2, 2)
        risk = Risk(RELU, torch.from_numpy(X), torch.from_numpy(values @ c))
        mu = neurons(v, c * (1 - 10 ** draw.uniform(-9, 0)))
        norm = "l1" if draw.random() < 0.5 else "l2"
        order = 1 if norm == "l1" else 2
        radius = float(np.abs(c) @ np.linalg.norm(v, order, axis=1)) * (1 + 1e-14)
        gap = gap_of(risk, mu, PathBall(radius, norm))
        assert gap.kind == "proved"
        assert float(risk.value(mu)) <= gap.value
        smallest = min(smallest, gap.value)
    assert smallest < 1e-8


def test_the_gap_vanishes_at_the_optimum():
    # Two points and one kink: f = 2 relu(x) has path norm 2 and fits y = (0, 2).
    X, y = torch.tensor([[-1.0], [1.0]], dtype=F64), torch.tensor([0.0, 2.0], dtype=F64)
    risk = Risk(RELU, X, y)
    # Over R = 1: f(1) = t costs the path norm t (w = 1/2, b = 1/2), so f(1) = 1.
    best = of.Particles(torch.tensor([[1.0, 0.5, 0.5]], dtype=F64))
    gap = gap_of(risk, best, PathBall(1.0))
    assert float(risk.value(best)) == pytest.approx(0.25)
    assert 0 <= gap.found <= gap.value < 1e-12


def test_the_neuron_to_add_lowers_the_risk_as_the_gap_says():
    X, y = normal(20, 2, seed=1), normal(20, 2, seed=2)
    network = TwoLayer("relu", outputs=2, offset=[0.3, -0.2])
    risk = Risk(network, X, y)
    mu = of.Particles(normal(5, 5, seed=3))
    for norm in ("l1", "l2"):
        radius = 1.5 * float(of.meanfield.path_norm(network, mu, norm))
        gap = gap_of(risk, mu, PathBall(radius, norm))
        assert gap.argmin is not None
        best = of.Particles(gap.argmin[None])
        size = float(of.meanfield.path_norm(network, best, norm))
        assert size == pytest.approx(radius, rel=1e-12)
        # The slope of F along the mixture towards the neuron is minus the gap.
        slope = risk.first_variation(mu, gap.argmin[None])[0]
        slope = slope - mu.weights @ risk.first_variation(mu)
        assert -float(slope) == pytest.approx(gap.found, rel=1e-10)


def test_multiples_and_other_units_and_networks_without_bias():
    X, y = normal(12, 2, seed=4), normal(12, 1, seed=5)[:, 0]
    network = TwoLayer(Leaky(), bias=False)
    risk, mu = Risk(network, X, y), of.Particles(normal(4, 3, seed=6))
    ball = PathBall(10.0, "l2")
    gap = gap_of(risk, mu, ball)
    assert gap.value - gap.found <= 1e-10 * gap.value
    assert gap_of(3.0 * risk, mu, ball).value == pytest.approx(3 * gap.value, rel=1e-12)
    probes = normal(20_000, 2, seed=7)
    probes = probes / probes.norm(dim=1, keepdim=True)
    around = torch.cat([torch.full((20_000, 1), -10.0, dtype=F64), probes], 1)
    around = torch.cat([around, around * around.new_tensor([-1.0, 1, 1])])
    slopes = risk.first_variation(mu, around)
    best = float(mu.weights @ risk.first_variation(mu) - slopes.min())
    assert best <= gap.value
    assert best == pytest.approx(gap.value, rel=1e-5)


def test_single_precision_is_bounded_in_double():
    X, y = normal(12, 1, seed=4), normal(12, 1, seed=5)[:, 0]
    mu = of.Particles(normal(4, 3, seed=6).float())
    single = gap_of(Risk(RELU, X.float(), y.float()), mu, PathBall(20.0))
    X, y = X.float().double(), y.float().double()
    double = gap_of(Risk(RELU, X, y), mu.to(F64), PathBall(20.0))
    assert single.argmin is not None
    assert single.argmin.dtype == torch.float32
    assert single.value == pytest.approx(double.value, rel=1e-13)


@pytest.mark.parametrize("loss", ["logistic", "cross-entropy"])
def test_losses_of_classes(loss):
    X = normal(15, 1, seed=4)
    if loss == "logistic":
        network, y = RELU, X[:, 0].sign()
    else:
        network, y = TwoLayer("relu", outputs=3), torch.arange(15) % 3
    risk = Risk(network, X, y, loss=loss)
    mu = of.Particles(0.3 * normal(5, 3 if loss == "logistic" else 5, seed=6))
    radius = 4.0
    gap = gap_of(risk, mu, PathBall(radius, "l2"))
    lowest = math.inf
    for seed in range(200):
        theta = normal(8, mu.dim, seed=seed)
        nu = of.Particles(theta)
        theta = theta / float(of.meanfield.path_norm(network, nu, "l2")) ** 0.5 * 2.0
        nu = of.Particles(theta)
        assert float(of.meanfield.path_norm(network, nu, "l2")) <= radius * (1 + 1e-12)
        lowest = min(lowest, float(risk.value(nu)))
    assert float(risk.value(mu)) - lowest <= gap.value


# What has no such gap -----------------------------------------------------------------


def test_losses_of_ones_own_and_other_scalings_have_no_gap():
    X, y = normal(5, 1), normal(5, 1, seed=1)[:, 0]
    mu = of.Particles(normal(3, 3))
    own = Risk(RELU, X, y, loss=lambda f, y: (f - y).pow(4))
    ntk = Risk(TwoLayer("relu", scaling="ntk"), X, y)
    for risk in (own, ntk):
        gap = gap_of(risk, mu, PathBall(10.0))
        assert gap.kind == "none"
        assert math.isinf(gap.value)
