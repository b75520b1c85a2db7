"""Gradients of W2 in points and weights, at the degenerate measures too."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.metrics import transport_plan, wasserstein2, wasserstein2_squared
from otflow.testing.clouds import degenerate, normal, uniform, weighted

STEP = 1e-6


class Half(of.Functional):
    """W2^2/2 to a target, whose velocity is T(x) - x."""

    def __init__(self, target):
        self.target = target

    def value(self, mu):
        return 0.5 * wasserstein2_squared(mu, self.target)


def leaves(mu):
    """Return a copy of a measure on two leaves of the graph."""
    x, w = (t.clone().requires_grad_() for t in (mu.points, mu.weights))
    return mu.with_free_atoms(x, w), x, w


PAIRS = {
    "plan": lambda d: (weighted(6, d), weighted(8, d, seed=1)),
    "unequal numbers": lambda d: (uniform(6, d), uniform(9, d, seed=1)),
    "index": lambda d: (
        (mu := weighted(7, d)),
        mu.push(0.1 * mu.points.tanh() + 1.0, 1.0),
    ),
}


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("distance", [wasserstein2, wasserstein2_squared])
@pytest.mark.parametrize("pair", PAIRS)
def test_finite_differences_in_points_and_weights_of_both(pair, distance, d):
    mu, nu = PAIRS[pair](d)
    (p, x, a), (q, y, b) = leaves(mu), leaves(nu)
    grads = torch.autograd.grad(distance(p, q), (x, a, y, b))
    for k, (leaf, grad) in enumerate(zip((x, a, y, b), grads, strict=True)):
        if pair != "plan" and k in (1, 3):
            continue  # a kink, of equal masses: tested below
        u = normal(*leaf.shape, seed=20 + k)
        tensors = [t.detach() for t in (x, a, y, b)]
        values = []
        for sign in (1, -1):
            moved = list(tensors)
            moved[k] = moved[k] + sign * STEP * u
            values.append(
                float(
                    distance(
                        mu.with_free_atoms(*moved[:2]), nu.with_free_atoms(*moved[2:])
                    )
                )
            )
        expected = (values[0] - values[1]) / (2 * STEP)
        assert float((grad * u).sum()) == pytest.approx(expected, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("d", [1, 2])
def test_at_equal_masses_the_weight_gradient_is_a_subgradient(d):
    """W2^2 is convex in the weights; there it has a kink."""
    x, y = normal(6, d), normal(6, d, seed=1)
    mu, nu = of.Particles(x), of.Particles(y)
    p, _, a = leaves(mu)
    (grad,) = torch.autograd.grad(wasserstein2_squared(p, nu), a)
    base = float(wasserstein2_squared(mu, nu))
    kinks = 0.0
    for seed in range(8):
        u = normal(6, seed=seed)
        u -= u.mean()
        slopes = [
            (
                float(wasserstein2_squared(mu.with_free_atoms(weights=a + s * u), nu))
                - base
            )
            / s
            for s in (1e-6, -1e-6)
            for a in [mu.weights]
        ]
        predicted = float(grad @ u)
        assert slopes[1] - 1e-6 <= predicted <= slopes[0] + 1e-6
        kinks = max(kinks, slopes[0] - slopes[1])
    assert kinks > 0.1


def test_weight_gradient_at_a_measure_from_itself_is_zero():
    """Of the subgradients at the kink, the central one."""
    for d in (1, 2):
        p, _, a = leaves(weighted(6, d))
        value = wasserstein2_squared(p, weighted(6, d))
        (grad,) = torch.autograd.grad(value, a)
        assert float(value.detach()) <= 1e-28
        assert float(grad.abs().max()) < 1e-13


def test_weights_count_by_their_ratios():
    mu, nu = weighted(5), weighted(6, seed=1)
    p, _, a = leaves(mu)
    (grad,) = torch.autograd.grad(wasserstein2_squared(p, nu), a)
    assert abs(float(grad @ mu.weights)) < 1e-14
    twice = mu.with_free_atoms(weights=2 * mu.weights)
    assert float(wasserstein2_squared(twice, nu)) == pytest.approx(
        float(wasserstein2_squared(mu, nu)), rel=1e-13
    )


@pytest.mark.parametrize("d", [1, 2])
def test_velocity_at_atoms_without_mass_is_that_of_a_probe(d):
    """The limit of a small mass there: a partner's position minus its own."""
    mu, target = degenerate(d), uniform(5, d, seed=3)
    velocity = Half(target).velocity(mu)
    assert torch.isfinite(velocity).all()
    plan = transport_plan(mu, target)
    costs = (mu.points[:, None] - target.points).square().sum(-1) - plan.g
    for i in (4, 5):
        partner = (target.points - mu.points[i] - velocity[i]).abs().sum(1).argmin()
        goal = target.points[partner]
        assert torch.allclose(velocity[i], goal - mu.points[i], atol=1e-12)
        assert float(costs[i, partner]) <= float(costs[i].min()) + 1e-12


def test_first_variation_at_atoms_without_mass_is_one_sided_derivative():
    mu, target = degenerate(), weighted(5, seed=3)
    slope = Half(target).first_variation(mu)
    base = float(Half(target)(mu))
    for i in (4, 5):
        direction = -mu.weights.clone()
        direction[i] += 1.0
        moved = of.Particles(mu.points, mu.weights + 1e-6 * direction)
        expected = (float(Half(target)(moved)) - base) / 1e-6
        assert float(slope @ direction) == pytest.approx(expected, rel=1e-5)


def test_velocity_moves_to_the_target_and_stops():
    """The flow of W2^2/2: x' = T(x) - x, a geodesic run exponentially slowly."""
    mu, target = uniform(20), uniform(20, seed=1)
    square = 2 * float(Half(target)(mu))
    half_way = mu.push(Half(target).velocity(mu), 0.5)
    assert 2 * float(Half(target)(half_way)) == pytest.approx(square / 4, rel=1e-12)
    there = mu.push(Half(target).velocity(mu), 1.0)
    assert float(wasserstein2(there, target)) < 1e-14
    assert float(Half(target).velocity(there).abs().max()) < 1e-14


@pytest.mark.parametrize("make", [degenerate, weighted, uniform])
@pytest.mark.parametrize("d", [1, 2])
def test_distance_zero_has_gradient_zero(make, d):
    p, x, a = leaves(make(d=d))
    value = wasserstein2(p, make(d=d))
    for grad in torch.autograd.grad(value, (x, a)):
        assert torch.isfinite(grad).all()
        assert float(grad.abs().max()) < 1e-6
    assert float(value.detach()) < 1e-14


def test_second_derivative_in_points_is_that_of_the_fixed_plan():
    mu, nu = weighted(4), weighted(5, seed=1)

    def value(x):
        return wasserstein2_squared(mu.with_free_atoms(x), nu)

    hessian = torch.autograd.functional.hessian(value, mu.points).reshape(8, 8)
    expected = torch.diag(2 * mu.weights.repeat_interleave(2))
    assert torch.allclose(hessian, expected, atol=1e-13)


@pytest.mark.parametrize("d", [1, 2])
def test_float32_gradients(d):
    mu = weighted(6, d, dtype=torch.float32)
    nu = weighted(7, d, seed=1, dtype=torch.float32)
    p, x, a = leaves(mu)
    value = wasserstein2_squared(p, nu)
    assert value.dtype == torch.float32
    grads = torch.autograd.grad(value, (x, a))
    q, y, b = leaves(weighted(6, d))
    exact = torch.autograd.grad(wasserstein2_squared(q, weighted(7, d, seed=1)), (y, b))
    for grad, reference in zip(grads, exact, strict=True):
        assert grad.dtype == torch.float32
        assert torch.allclose(grad.double(), reference, atol=1e-5)


def test_float32_away_from_the_origin():
    """Expanded squares would give 0 or 0.125 here (ot.dist does)."""
    x = 1000 + torch.tensor([[0.0, 0.0], [0.5, 0.5], [0.25, 0.0]])
    y = x + torch.tensor([0.01, 0.01])
    expected = (y.double() - x.double()).square().sum(1).mean()
    for nu in (y, of.Particles(y, torch.tensor([0.25, 0.25, 0.5]))):
        square = float(wasserstein2_squared(of.Particles(x), nu))
        if isinstance(nu, torch.Tensor):
            assert square == pytest.approx(float(expected), rel=1e-6)
        else:
            mu = of.Particles(x.double())
            exact = wasserstein2_squared(
                mu, of.Particles(nu.points.double(), nu.weights.double())
            )
            assert square == pytest.approx(float(exact), rel=1e-6)


def test_graphs_are_recorded_only_where_wanted():
    x = normal(4, 2)
    assert not wasserstein2_squared(x, x + 1).requires_grad
    with torch.no_grad():
        assert not wasserstein2(x.clone().requires_grad_(), x + 1).requires_grad
    y = x.clone().requires_grad_()
    plan = transport_plan(y, x[:3])
    assert not any(t.requires_grad for t in (plan.cost, plan.f, plan.g, plan.masses))
