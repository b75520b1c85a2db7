"""The Sinkhorn divergence: limit, signs, gradients, extreme blurs and masses."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.metrics import curvature, sinkhorn_divergence, wasserstein2_squared
from otflow.testing.clouds import degenerate, normal, weighted
from otflow.testing.differences import derivative

slow = pytest.mark.slow


def test_it_tends_to_half_w2_squared():
    x, y = normal(30, 2), normal(30, 2, seed=1) + 2
    half = 0.5 * float(wasserstein2_squared(x, y))
    errors = [
        abs(float(sinkhorn_divergence(x, y, blur=b, scaling=0.95)) - half)
        for b in (1.0, 0.1, 0.02)
    ]
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 2e-3 * half


def test_translation_is_exact_for_any_blur():
    """Debiasing: S(mu, mu + t) = |t|^2/2 whatever the blur."""
    x = normal(20, 2)
    t = torch.tensor([3.0, -4.0], dtype=torch.float64)
    for blur in (0.1, 1.0):
        value = sinkhorn_divergence(x, x + t, blur=blur, scaling=0.95)
        assert float(value) == pytest.approx(12.5, rel=2e-3)


def test_zero_at_itself_and_symmetric():
    mu, nu = weighted(10), weighted(12, seed=1)
    assert abs(float(sinkhorn_divergence(mu, mu, blur=0.1))) < 1e-12
    there = float(sinkhorn_divergence(mu, nu, blur=0.1))
    assert float(sinkhorn_divergence(nu, mu, blur=0.1)) == pytest.approx(there)
    assert there > 0


def plain_sinkhorn(cost, a, b, eps):
    """Return potentials and shares of a batch by plain iterations, run to 1e-12."""
    f, g, across = torch.zeros_like(a), torch.zeros_like(b), cost.mT.contiguous()
    log_a, log_b = (w.log()[:, None] for w in (a, b))
    for _ in range(40_000):
        f = -eps * ((g[:, None] - cost) / eps[:, None] + log_b).logsumexp(2)
        new = -eps * ((f[:, None] - across) / eps[:, None] + log_a).logsumexp(2)
        change, g = float(((new - g).abs() / eps).max()), new
        if change <= 1e-12:
            break
    assert change <= 1e-12
    shares = ((g[:, None] - cost) / eps[:, None] + log_b).softmax(2)
    return f, g, shares


def plain_symmetric(cost, a, eps):
    """Return potential and shares between a measure and itself, where f = g."""
    f, log_a = torch.zeros_like(a), a.log()[:, None]
    for _ in range(200):
        rows = (f[:, None] - cost) / eps[:, None] + log_a
        new = 0.5 * (f - eps * rows.logsumexp(2))
        change, f = float(((new - f).abs() / eps).max()), new
    assert change <= 1e-12
    return f, rows.softmax(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("blur", "count"), [(0.3, 50), (0.05, 6), pytest.param(0.05, 50, marks=slow)]
)
def test_value_and_gradients_of_weighted_clouds_are_the_converged_ones(
    blur, count, dtype
):
    """Value, velocity and first variation, whatever the annealing."""
    n, m = 12, 15
    x, y = normal(count, n, 2, dtype=dtype), normal(count, m, 2, seed=1, dtype=dtype)
    y = y + torch.arange(count)[:, None, None] % 3
    a, b = (normal(count, k, seed=k, dtype=dtype).exp() for k in (n, m))
    a, b = a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)
    both = torch.cat([x, y], dim=1).double()
    blurs = blur * (both.amax(1) - both.amin(1)).norm(dim=1)

    X, Y, A, B = (t.double() for t in (x, y, a, b))
    A, B = A / A.sum(1, keepdim=True), B / B.sum(1, keepdim=True)
    eps = blurs.square()[:, None]
    cost = lambda u, v: 0.5 * (u[:, :, None] - v[:, None]).square().sum(-1)
    f, g, cross = plain_sinkhorn(cost(X, Y), A, B, eps)
    f_own, own = plain_symmetric(cost(X, X), A, eps)
    variation, other = f - f_own, g - plain_symmetric(cost(Y, Y), B, eps)[0]
    values = (A * variation).sum(1) + (B * other).sum(1)
    velocities = cross @ Y - own @ X  # -(x - P y) + (x - Q x)
    variation = variation - (A * variation).sum(1, keepdim=True)

    for k in range(count):
        mu = of.Particles(x[k], a[k], normalize=True)
        nu = of.Particles(y[k], b[k], normalize=True)
        scaling = (0.3, 0.9, 0.99)[k % 3]
        p, w = (t.clone().requires_grad_() for t in (mu.points, mu.weights))
        value = sinkhorn_divergence(
            mu.with_free_atoms(p, w), nu, blur=float(blurs[k]), scaling=scaling
        )
        in_points, in_weights = torch.autograd.grad(value, (p, w))
        velocity = -in_points / mu.weights[:, None]
        rel = 1e-4 if dtype == torch.float32 else 1e-7
        assert float(value.detach()) == pytest.approx(float(values[k]), rel=rel)
        error = (velocity - velocities[k]).norm() / velocities[k].norm()
        assert float(error) <= rel
        error = (in_weights - variation[k]).norm() / variation[k].norm()
        assert float(error) <= rel


@pytest.mark.parametrize("blur", [1e-2, 1e-3, 1e-5])
@pytest.mark.parametrize("equal", [True, False])
def test_a_small_blur_is_converged_or_refused(blur, equal):
    """Towards W2^2/2 from near: the entropy of a plan is at most log n."""
    refused = 0
    for seed in range(6):
        mu, nu = (
            (of.Particles(normal(20, 2, seed=s)) if equal else weighted(20, seed=s))
            for s in (seed, seed + 100)
        )
        half = 0.5 * float(wasserstein2_squared(mu, nu))
        try:
            value = float(sinkhorn_divergence(mu, nu, blur=4 * blur))
        except of.errors.NotConverged:
            refused += 1
        else:
            slack = 16 * blur**2 * 2 * math.log(20) + 1e-12
            assert abs(value - half) <= slack
    assert refused <= (0 if blur >= 1e-2 else 3)


def test_what_is_not_determined_is_refused_and_the_cure_works():
    """At equal masses and a tiny blur the plan is a matching; its duals are free."""
    mu, nu = of.Particles(normal(12, 2)), of.Particles(normal(12, 2, seed=1))

    def gradient(blur):
        w = mu.weights.clone().requires_grad_()
        value = sinkhorn_divergence(mu.with_free_atoms(weights=w), nu, blur=blur)
        return torch.autograd.grad(value, w)[0]

    with pytest.raises(of.errors.NotConverged, match="take a larger blur") as caught:
        gradient(1e-4)
    assert caught.value.info["residual"] <= 1e-8
    half = 0.5 * float(wasserstein2_squared(mu, nu))
    assert float(caught.value.result) == pytest.approx(half, rel=1e-6)
    # The velocity is determined, and so is everything at a larger blur.
    x = mu.points.clone().requires_grad_()
    (slope,) = torch.autograd.grad(sinkhorn_divergence(x, nu, blur=1e-4), x)
    sigma = of.metrics.assignment(mu.points, nu.points)
    torch.testing.assert_close(slope, (mu.points - nu.points[sigma]) / 12)
    assert bool(gradient(0.3).isfinite().all())


@pytest.mark.parametrize("reach", [None, 0.7, 30.0])
def test_gradients_against_finite_differences(reach):
    mu, nu = weighted(8), weighted(9, seed=1)

    def value(x, a, y, b):
        options = {"blur": 0.3, "reach": reach}
        return sinkhorn_divergence(
            mu.with_free_atoms(x, a), nu.with_free_atoms(y, b), **options
        )

    tensors = [mu.points, mu.weights, nu.points, nu.weights]
    leaves = [t.clone().requires_grad_() for t in tensors]
    grads = torch.autograd.grad(value(*leaves), leaves)
    for k, grad in enumerate(grads):
        u = normal(*grad.shape, seed=k)
        if u.ndim == 1:
            u = tensors[k] * (u - tensors[k] @ u)

        def along(t, k=k, u=u):
            moved = list(tensors)
            moved[k] = moved[k] + t * u
            return value(*moved)

        expected = float(derivative(along))
        assert float((grad * u).sum()) == pytest.approx(expected, rel=1e-7, abs=1e-9)


def test_two_diracs_of_many_atoms():
    """Both clouds collapsed."""
    x = torch.zeros(5, 2, dtype=torch.float64, requires_grad=True)
    y = torch.full((4, 2), 3.0, dtype=torch.float64)
    value = sinkhorn_divergence(x, y, blur=0.1)
    assert float(value.detach()) == pytest.approx(9.0, rel=1e-13)
    (grad,) = torch.autograd.grad(value, x)
    assert torch.allclose(grad.sum(0), torch.full((2,), -3.0, dtype=torch.float64))
    same = sinkhorn_divergence(y, y, blur=0.1)
    assert abs(float(same)) < 1e-14


def test_one_dirac_against_itself_and_near_itself():
    """Diameter 0, and far below the blur; finite gradients in points and weights."""
    for apart in (0.0, 1e-9, 1e-200):
        x = torch.zeros(5, 2, dtype=torch.float64)
        mu = of.Particles(x).with_free_atoms(
            x.clone().requires_grad_(),
            torch.full((5,), 0.2, dtype=torch.float64, requires_grad=True),
        )
        value = sinkhorn_divergence(mu, x[:3] + apart, blur=0.1)
        assert float(value.detach()) == pytest.approx(apart**2, abs=1e-15)
        grads = torch.autograd.grad(value, (mu.points, mu.weights))
        expected = torch.full_like(x, -apart / 5)
        assert torch.allclose(grads[0], expected, rtol=1e-5, atol=1e-16)
        assert float(grads[1].abs().max()) < 1e-15


def test_float32_away_from_the_origin():
    """Squared distances expanded about 0 would cancel."""
    x, y = normal(20, 2), normal(20, 2, seed=1) + 1
    near = float(sinkhorn_divergence(x, y, blur=0.1))
    far = sinkhorn_divergence(x.float() + 1000, y.float() + 1000, blur=0.1)
    assert float(far) == pytest.approx(near, rel=1e-3)


def test_atoms_without_mass_do_not_count_and_have_a_first_variation():
    mu, nu = degenerate(), weighted(6, seed=2)
    kept = mu.weights > 0
    less = of.Particles(mu.points[kept], mu.weights[kept])
    value = float(sinkhorn_divergence(mu, nu, blur=0.5, scaling=0.99))
    other = float(sinkhorn_divergence(less, nu, blur=0.5, scaling=0.99))
    assert value == pytest.approx(other, rel=1e-10)

    class Divergence(of.Functional):
        def value(self, mu):
            return sinkhorn_divergence(mu, nu, blur=1.0, scaling=0.999)

    slope = Divergence().first_variation(mu)
    direction = -mu.weights.clone()
    direction[4] += 1.0
    moved = of.Particles(mu.points, mu.weights + 1e-5 * direction)
    expected = float(Divergence()(moved) - Divergence()(mu)) / 1e-5
    assert float(slope @ direction) == pytest.approx(expected, rel=1e-2)


def test_weights_count_by_their_ratios():
    mu, nu = weighted(5), weighted(6, seed=1)
    once = float(sinkhorn_divergence(mu, nu, blur=0.3))
    twice = sinkhorn_divergence(
        mu.with_free_atoms(weights=2 * mu.weights), nu, blur=0.3
    )
    assert float(twice) == pytest.approx(once, rel=1e-12)


def test_reach_bounds_the_cost_of_far_mass():
    """Two Diracs far apart: destroying and creating costs reach^2 each, no more."""
    x = torch.zeros(1, 1, dtype=torch.float64)
    far = [
        float(sinkhorn_divergence(x, x + t, blur=0.1, reach=1.0)) for t in (20.0, 40.0)
    ]
    assert far[0] == pytest.approx(far[1], rel=1e-6)
    assert far[0] == pytest.approx(2.0, rel=0.02)
    near = float(sinkhorn_divergence(x, x + 0.1, blur=0.1, reach=1e4))
    assert near == pytest.approx(0.005, rel=1e-3)


def test_gradient_mode_is_left_alone():
    """A caller who switched gradients off keeps that."""
    x = normal(4, 2).requires_grad_()
    with torch.no_grad():
        assert not sinkhorn_divergence(x, x.detach() + 1, blur=0.1).requires_grad
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


def test_memory_budget(monkeypatch):
    monkeypatch.setattr("otflow._memory.total_memory", lambda _: 100_000)
    with pytest.raises(MemoryError, match=r"needs 72000 bytes .*take fewer points"):
        sinkhorn_divergence(normal(30, 2), normal(5, 2), blur=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blur_below_round_off(dtype):
    """Its square would be 0, and the result NaN."""
    x = normal(5, 2, dtype=dtype)
    with pytest.raises(ValueError, match=r"lost in the round-off .* take at least"):
        sinkhorn_divergence(x, 3 * x, blur=1e-160)
    small = 2.0 * float(x.abs().max()) * 10 * float(torch.finfo(dtype).eps)
    half = 0.5 * float(wasserstein2_squared(x, 3 * x))
    value = float(sinkhorn_divergence(x, 3 * x, blur=small))
    assert value == pytest.approx(half, rel=0.02)


@pytest.mark.parametrize(
    ("nu", "error", "message"),
    [
        (normal(3, 3), ValueError, "mu lies in dimension 2 but nu in dimension 3"),
        (normal(3, 2).float(), TypeError, "nothing is cast silently"),
        (normal(3, 2) * math.nan, ValueError, "nu must be finite, got nan"),
        (normal(3), ValueError, r"nu must have shape \(n, d\)"),
        (normal(0, 2), ValueError, "nu is empty"),
        (normal(3, 2).half(), ValueError, "too coarse for transport"),
    ],
)
def test_bad_clouds(nu, error, message):
    with pytest.raises(error, match=message):
        sinkhorn_divergence(normal(3, 2), nu, blur=0.1)


def test_float32_is_kept():
    x = normal(6, 2).float()
    assert sinkhorn_divergence(x, x + 1, blur=0.1).dtype == torch.float32


@pytest.mark.parametrize("blur", [0, -1.0, math.nan, True, "0.1"])
def test_bad_blur(blur):
    x = normal(3, 2)
    with pytest.raises((TypeError, ValueError), match=r"^blur (must|is)"):
        sinkhorn_divergence(x, x, blur=blur)


def test_blur_is_mandatory():
    with pytest.raises(TypeError, match="blur"):
        sinkhorn_divergence(normal(3, 2), normal(3, 2))  # type: ignore[call-arg]


@pytest.mark.parametrize("scaling", [0.0, 1.0, 2.0])
def test_bad_scaling(scaling):
    with pytest.raises(ValueError, match="scaling must"):
        sinkhorn_divergence(normal(3, 2), normal(3, 2), blur=0.1, scaling=scaling)


def test_bad_reach():
    with pytest.raises(ValueError, match="reach must be positive"):
        sinkhorn_divergence(normal(3, 2), normal(3, 2), blur=0.1, reach=-1)


def test_too_many_points_are_refused_before_any_work():
    x = torch.zeros(5001, 1)
    with pytest.raises(MemoryError, match=r"densely .* take fewer points"):
        sinkhorn_divergence(x, x + 1, blur=0.1)


# Any blur -----------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-130, 1e-6, 1.0, 1e6])
@pytest.mark.parametrize("reach", [None, 0.3, 50.0])
def test_a_blur_of_any_width_gives_half_the_squared_distance_of_means(reach, scale):
    """To leading order; the next one is the fourth power of lengths over blur^2."""
    generator = torch.Generator().manual_seed(3)
    x, y = (torch.randn(n, 2, generator=generator, dtype=torch.float64) for n in (5, 7))
    a = torch.rand(5, generator=generator, dtype=torch.float64)
    y = y + 1
    gap = a @ x / a.sum() - y.mean(0)
    reach = None if reach is None else reach * scale
    for blur in (1e3, 1e4, 3e4, 1e5, 1e6, 1e9, 1e15, 1e60, 1e100, 1e154, 1e160, 1e300):
        if blur * scale > 1e307:
            continue
        z = (x * scale).requires_grad_()
        mu = of.Particles(z, a, normalize=True)
        value = of.metrics.sinkhorn_divergence(
            mu, y * scale, blur=blur * scale, reach=reach
        )
        (slope,) = torch.autograd.grad(value / scale**2, z)
        error = 100.0 / blur / blur + 3e-7
        assert float(value.detach()) / scale**2 == pytest.approx(
            0.5 * float(gap.square().sum()), abs=error
        )
        wanted = (a / a.sum())[:, None] * gap
        torch.testing.assert_close(slope * scale, wanted, rtol=0, atol=error)


def test_a_blur_too_large_to_be_squared_is_refused_and_its_cure_works():
    x = 1e149 * torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    distance = lambda blur: of.metrics.sinkhorn_divergence(x, x + 1e149, blur=blur)
    with pytest.raises(ValueError, match="too large to be squared; take at most 1e"):
        distance(2e150)
    assert bool(torch.isfinite(distance(1e150)))


@pytest.mark.parametrize("blur", [0.5, 10.0, 1e3, 1.1e4, 1e5, 1e7])
@pytest.mark.parametrize("reach", [None, 0.1, 2.0, 1e3])
def test_two_pairs_of_points_at_any_blur(blur, reach):
    """Between {-u, u} and {-v, v} the potentials are constant: a closed form."""
    u, v, eps = 0.3, 1.1, blur**2

    def own(u, v):
        near, far = (math.expm1(-((u + s * v) ** 2) / (2 * eps)) for s in (-1, 1))
        soft = -eps * math.log1p((near + far) / 2)
        if reach is None:
            return soft
        rho = reach**2
        return -(2 * rho + eps) * math.expm1(-soft / (2 * rho + eps))

    exact = own(u, v) - 0.5 * own(u, u) - 0.5 * own(v, v)
    x, y = (torch.tensor([[-z], [z]], dtype=torch.float64) for z in (u, v))
    found = float(sinkhorn_divergence(x, y, blur=blur, reach=reach))
    # Above 4e5 diameters the result is the limit.
    room = 1e-12 * (2 * v) ** 2 if blur > 4e5 * 2 * v else 1e-15
    assert found == pytest.approx(exact, rel=1e-10, abs=room)


@pytest.mark.parametrize("blur", [1.0, 1e3, 1.2e4, 1e6])
@pytest.mark.parametrize("reach", [None, 2.0])
def test_the_first_variation_at_a_large_blur(blur, reach):
    x, y = normal(4, 2, seed=1), normal(3, 2, seed=2)
    rate = torch.tensor([0.1, -0.2, 0.15, -0.05], dtype=torch.float64)

    def value(t):
        mu = of.Particles(x, 0.25 + t * rate)
        return sinkhorn_divergence(mu, y, blur=blur, reach=reach)

    weights = torch.full((4,), 0.25, dtype=torch.float64, requires_grad=True)
    divergence = sinkhorn_divergence(
        of.Particles(x, weights), y, blur=blur, reach=reach
    )
    (slope,) = torch.autograd.grad(divergence, weights)
    expected = float(derivative(value, 1e-2))
    assert float(slope @ rate) == pytest.approx(expected, rel=1e-9, abs=1e-11)


@pytest.mark.parametrize("reach", [None, 1.0])
@pytest.mark.parametrize("blur", [0.3, 0.1, 0.02])
def test_by_products_factors_or_eigenvectors_the_answer_is_one(
    blur, reach, monkeypatch
):
    """Beyond some size products solve for a large blur, factors for a small one."""
    x, y = normal(60, 2).requires_grad_(), 0.7 * normal(80, 2, seed=1) + 1.0
    made, found = [], []
    factors = curvature.Curvature.by_factors

    def counted(own):
        made.append(own)
        return factors(own)

    monkeypatch.setattr(curvature.Curvature, "by_factors", counted)
    for size in (1000, 0):
        monkeypatch.setattr(curvature, "DIRECT", size)
        value = sinkhorn_divergence(x, y, blur=blur, reach=reach)
        found.append([value, *torch.autograd.grad(value, x)])
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-11, atol=1e-12)
    assert bool(made) == (blur < 0.2)
