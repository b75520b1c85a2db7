"""W_p and transport for any cost: against SciPy, finite differences, and duality."""

from __future__ import annotations

import importlib
import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from scipy.stats import wasserstein_distance

import otflow as of
from otflow.metrics import (
    least_cost_plan,
    transport_cost,
    transport_plan,
    wasserstein,
    wasserstein2,
)
from otflow.metrics.ground import Ground
from otflow.testing.clouds import degenerate, normal, uniform, weighted
from otflow.testing.differences import derivative

F64 = torch.float64
POWERS = [1.0, 1.5, 3.0, 7.0]


def least(costs, a, b):
    """Return the least cost of a plan by linear programming."""
    n, m = costs.shape
    sums = np.vstack([np.kron(np.eye(n), np.ones(m)), np.tile(np.eye(m), n)])
    found = linprog(costs.ravel(), A_eq=sums, b_eq=np.concatenate([a, b]))
    assert found.status == 0
    return found.fun


def taxi(x, y):
    return (x - y).abs().sum(-1)


def attraction(x, y):
    return (x * y).sum(-1) - 3.0


PAIRS = [
    (weighted(6), weighted(5, seed=1)),
    (uniform(6), uniform(6, seed=1)),
    (degenerate(), degenerate(seed=1)),
    (weighted(6, 1), degenerate(1, seed=1)),
    (weighted(6, 3), uniform(1, 3, seed=1)),
]


@pytest.mark.parametrize(("mu", "nu"), PAIRS)
@pytest.mark.parametrize("p", POWERS)
def test_powers_have_the_least_cost(mu, nu, p):
    costs = torch.cdist(mu.points, nu.points) ** p
    best = least(costs.numpy(), mu.weights.numpy(), nu.weights.numpy())
    assert float(wasserstein(mu, nu, p)) ** p == pytest.approx(best, rel=1e-9)
    assert float(wasserstein(nu, mu, p)) ** p == pytest.approx(best, rel=1e-9)
    assert float(wasserstein(mu, mu, p)) == 0.0


@pytest.mark.parametrize(("mu", "nu"), PAIRS)
@pytest.mark.parametrize("cost", [taxi, attraction])
@pytest.mark.parametrize("is_matrix", [False, True])
def test_any_cost_has_its_plan_and_its_proof(mu, nu, cost, is_matrix):
    costs = cost(mu.points[:, None], nu.points)
    plan = least_cost_plan(mu, nu, costs if is_matrix else cost)
    best = least(costs.numpy(), mu.weights.numpy(), nu.weights.numpy())
    assert float(plan.cost) == pytest.approx(best, rel=1e-9)
    assert best in plan.bracket
    assert plan.bracket.width <= 1e-12 * (1 + float(costs.abs().max()))
    dense = plan.dense()
    assert torch.allclose(dense.sum(1), mu.weights, atol=1e-14)
    assert torch.allclose(dense.sum(0), nu.weights, atol=1e-14)
    assert float((dense * costs).sum()) == pytest.approx(best, rel=1e-9)
    assert bool((plan.f[:, None] + plan.g <= costs + 1e-12).all())
    heights = float(mu.weights @ plan.f), float(nu.weights @ plan.g)
    assert heights == pytest.approx((best / 2, best / 2), rel=1e-9)
    value = transport_cost(mu, nu, costs if is_matrix else cost)
    assert float(value) == pytest.approx(best, rel=1e-9)


def test_squares_agree_with_the_plan_for_squares():
    mu, nu = weighted(6), weighted(5, seed=1)
    exact = transport_plan(mu, nu)
    plan = least_cost_plan(mu, nu, lambda x, y: (x - y).square().sum(-1))
    assert torch.allclose(plan.dense(), exact.dense())
    assert torch.allclose(plan.f, exact.f)
    assert float(wasserstein(mu, nu, 2)) == float(wasserstein2(mu, nu))
    near = float(wasserstein(mu, nu, 2 + 1e-9))
    assert near == pytest.approx(float(wasserstein2(mu, nu)), rel=1e-8)


def test_the_line_agrees_with_scipy():
    mu, nu = weighted(40, 1), weighted(30, 1, seed=1)
    (x, a), (y, b) = ((m.points[:, 0].numpy(), m.weights.numpy()) for m in (mu, nu))
    expected = wasserstein_distance(x, y, a, b)
    assert float(wasserstein(mu, nu)) == pytest.approx(expected, rel=1e-12)


def test_translations_and_dirac():
    x = normal(5, 3)
    way = torch.tensor([1.0, 2.0, 2.0], dtype=F64)
    for p in POWERS:
        assert float(wasserstein(x, x + way, p)) == pytest.approx(3.0, rel=1e-12)
        value = float(wasserstein(x, torch.zeros(1, 3, dtype=F64), p))
        assert value == pytest.approx(float((x.norm(dim=1) ** p).mean() ** (1 / p)))
    # W_p rises with p, to the largest distance.
    values = [float(wasserstein(x, normal(5, 3, seed=1), p)) for p in (1, 2, 8, 20)]
    assert values == sorted(values)


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("kind", [*POWERS, "taxi", "attraction"])
def test_gradients(d, kind):
    def value(x, a, y, b):
        mu, nu = of.Particles(x, a, normalize=True), of.Particles(y, b, normalize=True)
        if isinstance(kind, float):
            return wasserstein(mu, nu, kind)
        return transport_cost(mu, nu, taxi if kind == "taxi" else attraction)

    mu, nu = weighted(6, d), weighted(5, d, seed=1)
    parts = [mu.points, mu.weights, nu.points, nu.weights]
    state = [t.clone().requires_grad_() for t in parts]
    grads = torch.autograd.grad(value(*state), state)
    for k, grad in enumerate(grads):
        way = normal(*grad.shape, seed=k) * (0.05 if k % 2 else 1.0)

        def along(t, k=k, way=way):
            return value(*[p + t * way if i == k else p for i, p in enumerate(parts)])

        expected = float(derivative(along, 1e-4))
        assert float((grad * way).sum()) == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_second_derivatives_in_the_points():
    x, y = normal(6, 2), normal(5, 2, seed=1)
    way = normal(6, 2, seed=2)

    def slope(t):
        at = (x + t * way).requires_grad_()
        value = wasserstein(at, y, 3.0)
        return (torch.autograd.grad(value, at, create_graph=True)[0] * way).sum()

    free = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(wasserstein(free, y, 3.0), free, create_graph=True)
    (second,) = torch.autograd.grad((grad * way).sum(), free)
    expected = derivative(lambda t: slope(t).detach())
    assert float((second * way).sum()) == pytest.approx(float(expected), rel=1e-6)


def test_the_gradient_in_the_costs_is_the_plan():
    mu, nu = weighted(6), weighted(5, seed=1)
    costs = torch.rand(6, 5, dtype=F64, requires_grad=True)
    transport_cost(mu, nu, costs).backward()
    assert costs.grad is not None
    assert torch.equal(costs.grad, least_cost_plan(mu, nu, costs).dense())


@pytest.mark.parametrize("p", [1.0, 3.0])
@pytest.mark.parametrize("d", [1, 2])
def test_at_distance_zero_the_gradient_is_zero(p, d):
    x = normal(5, d)
    w = torch.full((5,), 0.2, dtype=F64, requires_grad=True)
    at = x.clone().requires_grad_()
    wasserstein(at, x, p).backward()
    assert at.grad is not None
    assert torch.equal(at.grad, torch.zeros_like(x))
    wasserstein(of.Particles(x, w), of.Particles(x), p).backward()
    assert w.grad is not None
    assert bool(w.grad.isfinite().all())


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("p", [1.0, 3.0, 20.0])
def test_scales(p, d):
    x, y = normal(6, d), normal(5, d, seed=1)
    one = float(wasserstein(x, y, p))
    for scale in (1e-150, 1e-3, 1e140):
        value = float(wasserstein(scale * x, scale * y, p))
        assert value == pytest.approx(scale * one, rel=1e-12)
    far = float(wasserstein(x + 1e6, y + 1e6, p))
    assert far == pytest.approx(one, rel=1e-8)
    near = float(wasserstein(x, x + 1e-9, p))
    assert near == pytest.approx(1e-9 * d**0.5, rel=1e-5)


@pytest.mark.parametrize("p", [10.0, 20.0])
def test_high_powers_against_all_permutations(p):
    for seed in range(20):
        x, y = normal(6, 2, seed=seed), normal(6, 2, seed=seed + 100)
        distances = torch.cdist(x, y)
        index = torch.tensor(list(itertools.permutations(range(6))))
        moved = distances[torch.arange(6), index]
        top = moved.amax(1).min()
        best = top * ((moved / top) ** p).mean(1).min() ** (1 / p)
        assert float(wasserstein(x, y, p)) == pytest.approx(float(best), rel=1e-9)


@pytest.mark.slow
def test_costs_of_any_contrast_are_right_or_raise():
    raised = 0
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        exponents = 1.5 * seed * torch.rand(8, 8, generator=generator, dtype=F64)
        costs = 10**exponents
        index = torch.tensor(list(itertools.permutations(range(8))))
        best = float(costs[torch.arange(8), index].mean(1).min())
        try:
            plan = least_cost_plan(normal(8, 2), normal(8, 2, seed=1), costs)
        except of.errors.NotConverged:
            raised += 1
            assert seed > 10
        else:
            assert float(plan.cost) == pytest.approx(best, rel=1e-6)
            assert best in plan.bracket
    assert raised > 0


@pytest.mark.parametrize("d", [1, 2])
def test_float32(d):
    mu, nu = weighted(6, d), weighted(5, d, seed=1)
    for p in POWERS:
        value = wasserstein(mu.to(torch.float32), nu.to(torch.float32), p)
        assert value.dtype == torch.float32
        assert float(value) == pytest.approx(float(wasserstein(mu, nu, p)), rel=1e-5)
    plan = least_cost_plan(mu.to(torch.float32), nu.to(torch.float32), taxi)
    assert plan.cost.dtype == plan.f.dtype == torch.float32


@pytest.mark.parametrize("p", [1.0, 3.0])
def test_atoms_without_mass_need_no_array_of_all_pairs(p, monkeypatch):
    """On the line the largest array of costs is a tile; all pairs may not fit."""
    powers = importlib.import_module("otflow.metrics.powers")
    sizes = []

    def recorded(table, pairs):
        def own(i, j):
            sizes.append(len(i) * len(j))
            return table(i, j)

        return Ground(own, pairs)

    monkeypatch.setattr(powers, "Ground", recorded)
    n = 2000
    weights = torch.ones(n, dtype=F64)
    weights[::2] = 0.0
    mu, nu = (
        of.Particles(normal(n, 1, seed=seed), weights, normalize=True)
        for seed in range(2)
    )
    exact = wasserstein(mu.points[1::2], nu.points[1::2], p)
    assert float(wasserstein(mu, nu, p)) == pytest.approx(float(exact), rel=1e-12)
    assert 0 < max(sizes) <= 256 * n
