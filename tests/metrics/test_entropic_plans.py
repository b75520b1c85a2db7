"""The plan of entropic transport, balanced and relaxed, against a generic solver."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import otflow as of
from otflow.metrics import entropic_plan, sinkhorn_divergence, transport_plan
from otflow.testing.clouds import degenerate, normal, uniform, weighted
from otflow.testing.differences import derivative

F64 = torch.float64
REACHES = [None, 0.3, 1.0, 30.0]


def divergence(p, q):
    """Return KL of finite measures, with 0 log 0 = 0."""
    full = p > 0
    return (p[full] * np.log(p[full] / q[full])).sum() - p.sum() + q.sum()


def objective(plan, a, b, cost, blur, reach):
    """Return what the plan minimises, by its definition."""
    total = (plan * cost).sum() + blur**2 * divergence(plan, np.outer(a, b))
    if reach is not None:
        total += reach**2 * divergence(plan.sum(1), a)
        total += reach**2 * divergence(plan.sum(0), b)
    return total


def generic_minimum(a, b, cost, blur, reach):
    """Return the least objective that SciPy finds over P > 0, from a x b."""
    n, m = cost.shape

    def split(z):
        """Return P and its derivative: the balanced case solves for a row, a column."""
        if reach is not None:
            return np.exp(z.reshape(n, m))
        plan = np.zeros((n, m))
        plan[:-1, :-1] = z.reshape(n - 1, m - 1)
        plan[:-1, -1] = a[:-1] - plan[:-1].sum(1)
        plan[-1] = b - plan.sum(0)
        return plan

    def function(z):
        plan = split(z)
        if plan.min() <= 0:
            return 1e6
        return objective(plan, a, b, cost, blur, reach)

    start = np.outer(a, b)
    start = start[:-1, :-1] / a.sum() if reach is None else np.log(start)
    options = {"xatol": 1e-10, "fatol": 1e-14, "maxiter": 10**5, "maxfev": 10**5}
    at = start.ravel()
    for _ in range(4):
        at = minimize(function, at, method="Nelder-Mead", options=options).x
    return function(at)


def numbers(mu, nu):
    """Return the masses of both and the costs as arrays."""
    cost = 0.5 * torch.cdist(mu.points, nu.points).square()
    return mu.weights.numpy(), nu.weights.numpy(), cost.numpy()


@pytest.mark.parametrize(
    ("reach", "masses"),
    [
        (None, (1.0, 1.0)),
        (0.3, (1.0, 1.0)),
        (1.0, (1.0, 1.0)),
        (3.0, (1.0, 1.0)),
        (None, (2.0, 2.0)),
        (1.0, (0.5, 2.0)),
        (0.6, (3.0, 1.0)),
    ],
)
def test_the_value_is_the_least_of_the_problem(reach, masses):
    mu, nu = weighted(3), weighted(3, seed=1)
    a, b, cost = numbers(mu, nu)
    a, b = masses[0] * a, masses[1] * b
    plan = entropic_plan(mu, nu, blur=0.7, reach=reach, masses=masses)
    best = generic_minimum(a, b, cost, 0.7, reach)
    assert float(plan.value) == pytest.approx(best, rel=1e-6)
    own = objective(plan.dense().numpy(), a, b, cost, 0.7, reach)
    assert float(plan.value) == pytest.approx(own, rel=1e-12)
    assert own <= best + 1e-9


@pytest.mark.parametrize("mass", [1e-6, 2.0, 1e6])
@pytest.mark.parametrize("reach", [None, 1.0])
def test_total_masses_of_any_size(mass, reach):
    mu, nu = weighted(6), weighted(5, seed=1)
    masses = (mass, mass if reach is None else 3 * mass)
    a, b, cost = numbers(mu, nu)
    a, b = masses[0] * a, masses[1] * b
    plan = entropic_plan(mu, nu, blur=0.5, reach=reach, masses=masses)
    assert plan.residual <= 1e-9 * max(masses)
    own = objective(plan.dense().numpy(), a, b, cost, 0.5, reach)
    assert float(plan.value) == pytest.approx(own, rel=1e-9)


def test_two_diracs_of_different_masses():
    # One number, the mass of the plan, in closed form.
    x, y = torch.zeros(1, 1, dtype=F64), torch.full((1, 1), 2.0, dtype=F64)
    blur, reach, (m, k) = 0.5, 1.5, (2.0, 0.7)
    eps, rho = blur**2, reach**2
    plan = entropic_plan(x, y, blur=blur, reach=reach, masses=(m, k))
    kept = (eps * np.log(m * k) + rho * np.log(m * k) - 2.0) / (eps + 2 * rho)
    assert float(plan.masses) == pytest.approx(np.exp(kept), rel=1e-12)


@pytest.mark.parametrize("reach", REACHES)
@pytest.mark.parametrize("blur", [0.03, 0.5, 20.0, 1e5])
@pytest.mark.parametrize("far", [0.0, 1e4])
def test_parts_belong_together(reach, blur, far):
    mu, nu = degenerate(), weighted(5, seed=2)
    nu = of.Particles(nu.points + far, nu.weights)
    plan = entropic_plan(mu, nu, blur=blur, reach=reach)
    dense, (a, b, cost) = plan.dense(), numbers(mu, nu)
    assert plan.residual <= 1e-9
    assert torch.allclose(plan.shares.sum(1), torch.ones(7, dtype=F64), atol=1e-12)
    if reach is None:
        assert torch.allclose(dense.sum(1), mu.weights, atol=1e-12)
        assert torch.allclose(dense.sum(0), nu.weights, atol=1e-9)
        heights = (mu.weights @ plan.f, nu.weights @ plan.g)
        assert float(heights[0]) == pytest.approx(float(heights[1]), rel=1e-9)
        assert float(sum(heights)) == pytest.approx(float(plan.value), rel=1e-9)
    if far == 0:
        exponent = (plan.f[:, None] + plan.g - torch.as_tensor(cost)) / blur**2
        product = mu.weights[:, None] * nu.weights * exponent.exp()
        assert torch.allclose(dense, product, rtol=1e-6, atol=1e-12)
        value = objective(dense.numpy(), a, b, cost, blur, reach)
        noise = 1e-15 * blur**2  # the round-off of this sum
        assert value == pytest.approx(float(plan.value), rel=1e-7, abs=noise)
    assert float((dense.numpy() * cost).sum()) == pytest.approx(
        float(plan.transport_cost), rel=1e-10
    )
    full = mu.weights > 0
    means = (dense @ nu.points)[full] / dense.sum(1)[full, None]
    if float(dense.sum()) > 1e-200:
        assert torch.allclose(plan.barycentric()[full], means)


@pytest.mark.parametrize("reach", REACHES)
@pytest.mark.parametrize("of_points", [True, False])
@pytest.mark.parametrize("far", [0.0, 50.0])
def test_the_value_has_its_derivatives(reach, of_points, far):
    mu, nu = weighted(4), weighted(3, seed=1)
    y = nu.points + far

    masses = (1.0, 1.0) if reach is None else (2.0, 0.5)

    def value(x, a, y, b):
        plan = entropic_plan(
            of.Particles(x, a),
            of.Particles(y, b),
            blur=0.8,
            reach=reach,
            masses=masses,
        )
        return plan.value

    parts = [mu.points, mu.weights, y, nu.weights]
    state = [t.clone().requires_grad_() for t in parts]
    ways = []
    for k, t in enumerate(state):
        way = normal(*t.shape, seed=k)
        way = way - way.mean() if k % 2 else way
        ways.append(way if (k % 2 == 0) == of_points else 0.0 * way)
    grads = torch.autograd.grad(value(*state), state, create_graph=True)
    slope = torch.stack([(g * w).sum() for g, w in zip(grads, ways, strict=True)]).sum()
    seconds = torch.autograd.grad(slope, state)

    def along(t):
        return [p + t * w for p, w in zip(parts, ways, strict=True)]

    expected = derivative(lambda t: value(*along(t)))
    assert float(slope.detach()) == pytest.approx(float(expected), rel=1e-6, abs=1e-8)

    def inner(t):
        at = [p.requires_grad_() for p in along(t)]
        grads = torch.autograd.grad(value(*at), at)
        return sum((g * w).sum() for g, w in zip(grads, ways, strict=True))

    found = sum((g * w).sum() for g, w in zip(seconds, ways, strict=True))
    assert float(found) == pytest.approx(float(derivative(inner)), rel=1e-5, abs=1e-7)


def test_a_small_blur_gives_the_exact_plan():
    mu, nu = weighted(6), weighted(5, seed=1)
    exact = transport_plan(mu, nu)
    plan = entropic_plan(mu, nu, blur=0.02)
    assert float(2 * plan.transport_cost) == pytest.approx(float(exact.cost), rel=1e-3)
    assert torch.allclose(plan.dense(), exact.dense(), atol=1e-3)


def test_debiasing_the_values_gives_the_divergence():
    mu, nu = weighted(6), weighted(5, seed=1)
    for reach in REACHES:

        def value(p, q, reach=reach):
            return entropic_plan(p, q, blur=0.3, reach=reach).value

        debiased = value(mu, nu) - 0.5 * (value(mu, mu) + value(nu, nu))
        other = sinkhorn_divergence(mu, nu, blur=0.3, reach=reach)
        assert float(debiased) == pytest.approx(float(other), rel=1e-9)


def test_gaussians_have_the_plan_of_the_bridge():
    # Between N(0, 1) and itself the plan is Gaussian, with the correlation c that
    # solves c / (1 - c^2) = 1 / eps.
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    x = torch.from_numpy(nodes)[:, None]
    mu = of.Particles(x, torch.from_numpy(weights / weights.sum()))
    eps = 0.5
    plan = entropic_plan(mu, mu, blur=eps**0.5)
    c = (-eps + (eps**2 + 4) ** 0.5) / 2
    assert float(plan.transport_cost) == pytest.approx(1 - c, rel=1e-9)
    middle = slice(20, 40)
    assert torch.allclose(plan.barycentric()[middle], c * x[middle], atol=1e-9)
    entropy = -0.5 * np.log(1 - c * c)
    assert float(plan.value) == pytest.approx(1 - c + eps * entropy, rel=1e-9)


def test_float32_agrees():
    mu, nu = uniform(6), uniform(5, seed=1)
    for reach in REACHES:
        wide = entropic_plan(mu, nu, blur=0.4, reach=reach)
        plan = entropic_plan(
            mu.to(torch.float32), nu.to(torch.float32), blur=0.4, reach=reach
        )
        assert plan.value.dtype == plan.dense().dtype == torch.float32
        assert torch.allclose(plan.dense().double(), wide.dense(), atol=1e-5)
        assert float(plan.value) == pytest.approx(float(wide.value), rel=1e-5)


def test_an_unfinished_plan_raises_with_its_result():
    mu, nu = uniform(6), uniform(5, seed=1)
    with (
        mock.patch("otflow.metrics.semidual.MAX_NEWTON", 1),
        pytest.raises(of.errors.NotConverged, match="larger blur") as caught,
    ):
        entropic_plan(mu, nu, blur=0.02)
    assert caught.value.result.dense().shape == (6, 5)
    assert caught.value.info["residual"] == caught.value.result.residual > 1e-9


@pytest.mark.parametrize("distance", [sinkhorn_divergence, None])
def test_second_derivatives_exist_where_all_mass_is_destroyed(distance):
    x, y = normal(4, 2).requires_grad_(), normal(3, 2, seed=1) + 50
    options = {"blur": 0.8, "reach": 0.3}
    value = (
        entropic_plan(x, y, **options).value
        if distance is None
        else distance(x, y, **options)
    )
    (grad,) = torch.autograd.grad(value, x, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), x)
    assert bool(second.isfinite().all())
    # A plan of no mass has a value that does not depend on the points.
    assert distance is not None or not bool(second.any())


def test_the_value_and_the_plan_are_those_of_others():
    """GeomLoss has the value; of POT's relaxed problem the plan is right."""
    ot, geomloss = pytest.importorskip("ot"), pytest.importorskip("geomloss")
    mu, nu = weighted(6), weighted(5, seed=1)
    (x, a), (y, b) = ((m.points, m.weights) for m in (mu, nu))
    blur, reach = 0.6, 1.2
    plan = entropic_plan(mu, nu, blur=blur, reach=reach)
    options = {"p": 2, "blur": blur, "reach": reach, "scaling": 0.99, "debias": False}
    other = geomloss.SamplesLoss("sinkhorn", **options)(a, x, b, y)
    assert float(plan.value) == pytest.approx(float(other), rel=1e-3)
    costs = torch.cdist(x, y).square()
    sums = {"reg": 2 * blur**2, "reg_m": 2 * reach**2, "reg_type": "kl"}
    found = ot.unbalanced.sinkhorn_unbalanced(
        a, b, costs, **sums, numItermax=10**5, stopThr=1e-13
    )
    assert torch.allclose(found, plan.dense(), atol=1e-9)


def test_an_atom_without_mass_near_the_target_of_a_far_cloud():
    # Its potential is so low that its exponential overflows.
    x = torch.tensor([[0.0], [50.0]], dtype=F64, requires_grad=True)
    mu = of.Particles(torch.zeros(2, 1), torch.tensor([1.0, 0.0])).to(F64)
    mu = mu.with_free_atoms(x, mu.weights)
    nu = of.Particles(torch.tensor([[50.0], [51.0]], dtype=F64))
    plan = entropic_plan(mu, nu, blur=0.01, reach=0.03)
    alone = entropic_plan(x[:1].detach(), nu, blur=0.01, reach=0.03)
    assert float(plan.value.detach()) == pytest.approx(float(alone.value), rel=1e-12)
    assert plan.residual <= 1e-9
    assert bool(plan.dense().isfinite().all())
    divergence = sinkhorn_divergence(mu, nu, blur=0.01, reach=0.03)
    for value in (plan.value, divergence):
        (grad,) = torch.autograd.grad(value, x)
        assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("blur", [1.0, 1e3, 1e6, 1e9])
@pytest.mark.parametrize("reach", [1e-3, 2.0, 50.0])
def test_different_masses_at_any_blur(blur, reach):
    """Between one atom and another the plan is one number p, known in closed form."""
    m, k, cost = 1.0, 7.0, 0.5
    plan = entropic_plan(
        torch.zeros(1, 1, dtype=F64),
        torch.ones(1, 1, dtype=F64),
        blur=blur,
        reach=reach,
        masses=(m, k),
    )
    eps, rho = blur**2, reach**2
    # d/dp: cost + eps log(p / m k) + rho log(p / m) + rho log(p / k) = 0.
    less = -(cost + rho * np.log(m * k)) / (eps + 2 * rho)
    p = m * k * np.exp(less)
    exact = -eps * m * k * np.expm1(less) + rho * (m + k - 2 * p)
    assert float(plan.value) == pytest.approx(exact, rel=1e-12)
    assert float(plan.masses.sum()) == pytest.approx(p, rel=1e-12)


@pytest.mark.parametrize("reach", [None, 1.0])
def test_a_common_offset_costs_no_digits(reach):
    """Both clouds are moved by 2^27, and all coordinates remain exact numbers."""
    x, y = ((2.0**20 * normal(5, 2, seed=s)).round() / 2.0**20 for s in range(2))
    near = entropic_plan(x, y, blur=0.5, reach=reach)
    far = entropic_plan(x + 2.0**27, y + 2.0**27, blur=0.5, reach=reach)
    for name in ("value", "transport_cost", "masses", "shares", "f", "g"):
        one, other = getattr(near, name), getattr(far, name)
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)
    assert torch.equal(far.targets, y + 2.0**27)


def test_the_largest_points_have_a_plan():
    """The square of 4000 diameters is no float64."""
    x = torch.full((3, 50), 9e149, dtype=F64)
    plan = entropic_plan(x, -x, blur=1e149, reach=1e149)
    assert float(plan.value) == pytest.approx(3e298)  # blur^2 + 2 reach^2
