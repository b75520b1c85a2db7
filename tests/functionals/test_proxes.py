"""Proximal maps: against brute force, by their laws, and what is none."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.errors import Diverged, InvalidFunctional, Unsupported
from otflow.functionals import box, group_norm, l1_norm
from otflow.meanfield import PathPenalty
from otflow.testing.clouds import normal

F64 = torch.float64
# A potential in some dimension, and steps that its map has.
READY = {
    "l1": (l1_norm(), 3, (0.1, 1.0, 7.0)),
    "weighted l1": (l1_norm([1.0, 0.0, 2.0]), 3, (0.1, 1.0)),
    "norm": (group_norm(), 3, (0.1, 1.0, 7.0)),
    "groups": (group_norm([[0, 2], [1]], [1.0, 0.5]), 4, (0.1, 1.0)),
    "box": (box(-0.5, [0.5, 1.0, 0.1]), 3, (0.1, 1.0)),
    "path l1": (PathPenalty("l1"), 4, (0.05, 0.3, 0.57)),
    "path l2": (PathPenalty("l2"), 4, (0.05, 0.5, 0.99)),
    "path of one input": (PathPenalty("l1"), 2, (0.5, 0.99)),
}


def searched(psi, x, rounds=3000):
    """Return the least values that a random search from points finds."""
    generator = torch.Generator().manual_seed(0)
    best = x.clone()
    value = psi(best)
    for k in range(rounds):
        noise = torch.randn(x.shape, generator=generator, dtype=F64)
        tried = best + 0.997**k * noise
        if k % 3 == 0:  # kinks are at coordinates 0
            zero = torch.rand(x.shape, generator=generator) < 0.4
            tried = tried.masked_fill(zero, 0.0)
        found = psi(tried)
        lower = found < value
        best = torch.where(lower[:, None], tried, best)
        value = torch.minimum(value, found)
    return value


@pytest.mark.slow
@pytest.mark.parametrize("name", READY)
def test_no_search_finds_a_lower_objective_than_the_map(name):
    V, dim, steps = READY[name]
    x = normal(60, dim, seed=1)
    x[::7, 0] = 0.0
    for tau in steps:
        y = V.proximal(x, tau)

        def psi(z, tau=tau):
            return V.V(z) + (z - x).square().sum(-1) / (2 * tau)

        start = box(-0.5, 0.1).proximal(x, 1.0) if name == "box" else x
        gap = searched(psi, start) - psi(y)
        assert float(gap.min()) >= -1e-12
        # The search comes close: the map is a minimiser and no lower value is missed.
        assert float(gap.median()) <= 1e-4


@pytest.mark.parametrize("name", READY)
def test_the_map_is_that_of_float32_and_of_the_moved_potential(name):
    V, dim, steps = READY[name]
    x = normal(40, dim, seed=2)
    y = V.proximal(x, steps[0])
    coarse = V.proximal(x.float(), steps[0])
    assert coarse.dtype == torch.float32
    torch.testing.assert_close(coarse.double(), y, rtol=0, atol=1e-5)
    moved = V.to(torch.float32)
    assert torch.equal(moved.proximal(x.float(), steps[0]), coarse)


def test_exact_zeros_and_exact_walls():
    x = normal(300, 3)
    zeros = (l1_norm().proximal(x, 0.7) == 0) == (x.abs() <= 0.7)
    assert bool(zeros.all())
    whole = (group_norm().proximal(x, 1.0) == 0).all(1) == (x.norm(dim=1) <= 1.0)
    assert bool(whole.all())
    for dtype in (torch.float32, F64):
        walls = box(-0.3, 0.7)
        y = walls.proximal(x.to(dtype), 3.0)
        assert float(walls.value(of.Particles(y))) == 0.0
    w = normal(300, 3, seed=5)
    t = PathPenalty("l1").proximal(w, 0.3)
    off = w[:, 0].abs() <= 0.3 * w[:, 1:].abs().sum(1)
    assert torch.equal(t[:, 0] == 0, off)
    assert torch.equal(t[off, 1:], w[off, 1:])


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_the_path_penalty_is_the_path_norm(norm):
    mu = of.Particles(normal(20, 4))
    network = of.meanfield.TwoLayer("relu")
    V = PathPenalty(norm)
    torch.testing.assert_close(
        V.value(mu), of.meanfield.path_norm(network, mu, norm), rtol=1e-14, atol=0
    )
    assert V.modulus(5) == (-2.0 if norm == "l1" else -1.0)
    assert "convex" in V.why(5)
    # A search for less convexity finds the modulus itself, and no less.
    found = of.analysis.falsify(V, mu, evaluations=200)
    assert found.witness is not None
    assert found.witness.curvature == pytest.approx(V.modulus(4), rel=1e-6)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_the_path_modulus_cannot_be_larger(norm):
    """Along (a, w) = t (sqrt m, -1, ..., -1) from an orthant the value is concave."""
    V, m = PathPenalty(norm), 4
    x = torch.ones(1, 1 + m, dtype=F64)
    u = -torch.ones(1, 1 + m, dtype=F64)
    u[0, 0] = m**0.5 if norm == "l1" else float(x[0, 1:].norm())
    h = 1e-3
    bend = (V.V(x + h * u) + V.V(x - h * u) - 2 * V.V(x)) / (h * h * u.square().sum())
    assert float(bend) == pytest.approx(V.modulus(1 + m), abs=1e-4)


@pytest.mark.parametrize("name", [n for n in READY if n != "box"])
def test_the_velocity_is_minus_the_gradient(name):
    V, dim, _ = READY[name]
    mu = of.Particles(normal(9, dim, seed=4))
    h, v = 1e-6, V.velocity(mu)
    for j in range(dim):
        e = torch.zeros(dim, dtype=F64)
        e[j] = h
        slope = (V.V(mu.points + e) - V.V(mu.points - e)) / (2 * h)
        torch.testing.assert_close(-slope, v[:, j], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", [n for n in READY if n != "box"])
def test_the_first_variation_is_enclosed(name):
    V, dim, _ = READY[name]
    nu, domain = (
        of.Particles(normal(3, dim)),
        of.optimality.BoxDomain([-3.0] * dim, 3.0),
    )
    gap = of.optimality.optimality_gap(V, nu, domain)
    assert gap.kind == "proved"
    assert float(gap) >= float(V.value(nu)) - 1e-12
    assert float(gap) == pytest.approx(float(V.value(nu)), rel=0.02)


# What is no proximal map --------------------------------------------------------------


def absolute(x):
    return x.abs().sum(-1)


BAD = {
    "shrinks by a factor": lambda x, tau: x / (1 + tau),
    "moves too far": lambda x, tau: x - x.clamp(-2 * tau, 2 * tau),
    "does nothing": lambda x, _: x,
    "forgets tau": lambda x, _: x - x.clamp(-1, 1),
    "gives NaN": lambda x, _: x * float("nan"),
    "moves uphill": lambda x, tau: x + tau * x.sign(),
    "stops short of the kink": lambda x, tau: x - tau * x.tanh(),
}


@pytest.mark.parametrize("name", BAD)
def test_a_prox_that_is_none_is_found_where_it_is_declared(name):
    with pytest.raises(InvalidFunctional, match="is no proximal map of V: at x = "):
        of.Potential(absolute, prox=BAD[name])


def test_a_prox_of_a_false_convexity_is_found():
    def bent(x):
        return -0.1 * x.square().sum(-1)

    def prox(x, tau):
        if tau >= 5:
            raise ValueError
        return x / (1 - 0.2 * tau)

    assert of.Potential(bent, modulus=-0.2, prox=prox).prox is prox
    with pytest.raises(InvalidFunctional, match=r"modulus=0 .* at distance"):
        of.Potential(bent, modulus=0.0, prox=prox)


def test_a_prox_of_one_dimension_is_tried_at_its_step():
    def good(x):
        return (x[:, 6] - 1).abs()

    def bad(x, tau):
        y = x.clone()
        y[:, 6] = 0.5
        return y

    F = of.Potential(good, prox=bad)  # in dimensions up to 5 there is no V
    with pytest.raises(InvalidFunctional, match="no proximal map"):
        F.proximal(normal(4, 7), 0.1)


@pytest.mark.parametrize("tau", [0.02, 0.3])
def test_what_a_map_returns_is_checked(tau):
    F = of.Potential(absolute, prox=lambda x, _: x[:1])
    with pytest.raises(InvalidFunctional, match=r"must map points \(60, 2\)"):
        F.proximal(normal(4, 2), tau)
    F = of.Potential(absolute, prox=lambda *_: None)
    with pytest.raises(InvalidFunctional, match="got NoneType"):
        F.proximal(normal(4, 2), tau)


def test_a_map_that_leaves_the_finite_numbers_diverges():
    def prox(x, tau):
        y = x - x.clamp(-tau, tau)
        return torch.where(x.abs() > 1e6, torch.inf, y)

    F = of.Potential(absolute, prox=prox)
    with pytest.raises(Diverged, match="left the finite numbers"):
        F.proximal(torch.full((1, 2), 1e7, dtype=F64), 0.1)


def test_wrong_arguments():
    with pytest.raises(TypeError, match="prox must be a function"):
        of.Potential(absolute, prox=3)
    with pytest.raises(Unsupported, match="has no proximal map"):
        of.Potential(absolute).proximal(normal(2, 2), 1.0)
    with pytest.raises(ValueError, match="tau must be positive"):
        l1_norm().proximal(normal(2, 2), 0.0)
    for weights in (-1.0, [1.0, float("inf")], [[1.0]]):
        with pytest.raises(ValueError, match="weights must be numbers >= 0"):
            l1_norm(weights)
    for ends in ((1.0, 1.0), (0.0, [1.0, float("nan")]), ([[0.0]], 1.0)):
        with pytest.raises(ValueError, match="a box needs lower < upper"):
            box(*ends)
    none: list[list[int]] = []
    for groups in (none, [none], [[0, 1], [1, 2]]):
        with pytest.raises(ValueError, match="groups must be disjoint and not empty"):
            group_norm(groups)
    with pytest.raises(ValueError, match="one for each of the 2 groups"):
        group_norm([[0], [1]], [1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="norm"):
        PathPenalty("linf")


def test_a_subclass_of_other_values_has_no_map():
    class Twice(PathPenalty):
        def value(self, mu):
            return 2 * super().value(mu)

    mu = of.Particles(normal(5, 3))
    solver = of.proximal.default_solver(mu, Twice())
    assert isinstance(solver, of.proximal.ParticleProximal)
    solver = of.proximal.default_solver(mu, 2 * PathPenalty())
    assert isinstance(solver, of.proximal.PointwiseProximal)
