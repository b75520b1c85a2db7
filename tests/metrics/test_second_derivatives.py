"""Second derivatives of distances: those of the distance, or refused."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import otflow as of
from otflow.metrics import curvature, sinkhorn_divergence, wasserstein2_squared
from otflow.testing.differences import derivative

F64 = torch.float64


def draws(seed):
    g = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=g, dtype=F64)


def masses(draw, n):
    return 0.5 + draw(n).sigmoid()


def distance(kind):
    if kind == "exact":
        return wasserstein2_squared
    reach = 0.8 if kind == "unbalanced" else None
    return lambda mu, nu: sinkhorn_divergence(mu, nu, blur=0.5, reach=reach)


KINDS = ["exact", "blurred", "unbalanced"]


# Against finite differences, in everything at once ------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("seed", range(2))
def test_clouds(kind, d, seed):
    draw, metric = draws(seed), distance(kind)

    def value(x, a, y, b):
        mu = of.Particles(x, a, normalize=True)
        return metric(mu, of.Particles(y, b, normalize=True))

    n, m = (4, 3) if seed else (3, 4)
    state = draw(n, d), masses(draw, n), draw(m, d), masses(draw, m)
    state = tuple(t.requires_grad_() for t in state)
    assert gradcheck(value, state, fast_mode=True)
    assert gradgradcheck(value, state, fast_mode=True)


@pytest.mark.parametrize("seed", range(3))
def test_densities_on_the_line(seed):
    draw = draws(seed)

    def between(edges, w, others, v):
        mu = of.Quantiles(edges.exp().cumsum(0), w, normalize=True)
        return wasserstein2_squared(
            mu, of.Quantiles(others.exp().cumsum(0), v, normalize=True)
        )

    state = draw(5), masses(draw, 4), draw(4), masses(draw, 3)
    state = tuple(t.requires_grad_() for t in state)
    assert gradcheck(between, state)
    assert gradgradcheck(between, state)

    grid = of.GridDensity(masses(draw, 5), 0, 1, walls=True, normalize=True)
    target = masses(draw, 5)
    target[2] = 0.0  # a vacuum, across which mass jumps
    target = grid.with_weights(target / target.sum())

    def from_cells(w):
        return wasserstein2_squared(grid.with_weights(w / w.sum()), target)

    w = masses(draw, 5).requires_grad_()
    assert gradcheck(from_cells, w)
    assert gradgradcheck(from_cells, w)


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("alike", [False, True])
def test_gaussians(d, alike):
    """Also where the covariances commute and their eigenvalues are all alike."""
    draw = draws(d)
    unit = torch.eye(d, dtype=F64)

    def value(m, a, k, b):
        laws = [
            of.Gaussian(mean, root @ root.T + 0.3 * unit)
            for mean, root in ((m, a), (k, b))
        ]
        return wasserstein2_squared(*laws)

    roots = (unit.clone(), 2 * unit) if alike else (draw(d, d), draw(d, d))
    tensors = draw(d), roots[0], draw(d), roots[1]
    state = tuple(t.requires_grad_() for t in tensors)
    assert gradcheck(value, state)
    assert gradgradcheck(value, state)


# Of velocities and first variations ---------------------------------------------------


class Distance(of.Functional):
    """A distance to fixed atoms."""

    def __init__(self, kind):
        draw = draws(5)
        self.metric = distance(kind)
        self.target = of.Particles(draw(5, 2), masses(draw, 5), normalize=True)

    def value(self, mu):
        return self.metric(mu, self.target)


def two_steps(F, mu, c):
    nu = mu.push(F.velocity(mu), 0.1)
    return (nu.push(F.velocity(nu), 0.1).points * c).sum()


VERBS = {
    "velocity": lambda F, mu, c: (F.velocity(mu) * c).sum(),
    "first variation": lambda F, mu, c: (
        F.first_variation(mu) @ (c[:, 0] - c[:, 0].mean())
    ),
    "away from the atoms": lambda F, mu, c: (
        F.first_variation(mu, c) @ (c[:, 0] - c[:, 0].mean())
    ),
    "two steps": two_steps,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("what", ["points", "weights"])
def test_a_verb_has_the_derivative_of_its_numbers(kind, verb, what):
    F, draw = Distance(kind), draws(6)
    x, c, w = draw(6, 2), draw(6, 2), masses(draw, 6)

    def run(v):
        state = (v, w) if what == "points" else (x, v)
        return VERBS[verb](F, of.Particles(*state, normalize=True), c)

    at = x if what == "points" else w
    along = c if what == "points" else c[:, 0] - c[:, 0].mean()
    live = at.clone().requires_grad_()
    (slope,) = torch.autograd.grad(run(live), live)
    wanted = derivative(lambda t: run(at + t * along))
    torch.testing.assert_close((slope * along).sum(), wanted, rtol=1e-5, atol=1e-7)


def test_third_derivatives_of_the_divergence():
    draw, F = draws(7), Distance("blurred")
    x, u, w = draw(4, 2), draw(4, 2), masses(draw, 4)

    def bend(t, *, graph=True):
        s = torch.as_tensor(t, dtype=F64).clone().requires_grad_()
        value = F.value(of.Particles(x + s * u, w + s * s * w[0], normalize=True))
        (first,) = torch.autograd.grad(value, s, create_graph=True)
        (second,) = torch.autograd.grad(first, s, create_graph=graph)
        return second, s

    (third,) = torch.autograd.grad(*bend(0.0))
    wanted = derivative(lambda t: bend(t, graph=False)[0].detach())
    torch.testing.assert_close(third, wanted, rtol=1e-6, atol=1e-8)


def test_many_atoms_take_conjugate_gradients(monkeypatch):
    F, draw = Distance("blurred"), draws(8)
    x, w, c = draw(7, 2), masses(draw, 7), draw(7, 2)
    found = []
    for limit in (curvature.DIRECT, 2):
        monkeypatch.setattr(curvature, "DIRECT", limit)
        live = w.clone().requires_grad_()
        value = VERBS["velocity"](F, of.Particles(x, live, normalize=True), c)
        found += torch.autograd.grad(value, live)
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_atoms_of_mass_zero(kind):
    """Their velocity moves with the points, and is that of a light atom nearly."""
    F, draw = Distance(kind), draws(9)
    x, c = draw(5, 2), draw(5, 2)
    w = torch.tensor([0.3, 0.0, 0.25, 0.45, 0.0], dtype=F64)
    light = (w + 1e-9 * (w == 0)) / (1 + 2e-9)
    torch.testing.assert_close(
        F.velocity(of.Particles(x, w)),
        F.velocity(of.Particles(x, light)),
        rtol=1e-4,
        atol=1e-5,
    )
    live = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(VERBS["velocity"](F, of.Particles(live, w), c), live)
    wanted = derivative(lambda t: VERBS["velocity"](F, of.Particles(x + t * c, w), c))
    torch.testing.assert_close((slope * c).sum(), wanted, rtol=1e-5, atol=1e-7)


# Refusals -----------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2])
def test_at_equal_weights_the_kink_is_told_and_the_cures_work(d):
    draw = draws(10)
    x, y, c = draw(4, d), draw(4, d), draw(4, d)
    w = torch.full((4,), 0.25, dtype=F64, requires_grad=True)

    class Exact(of.Functional):
        def value(self, mu):
            return wasserstein2_squared(mu, y)

    F = Exact()
    live = x.clone().requires_grad_()
    first = F.first_variation(of.Particles(live, w.detach()))
    with pytest.raises(of.errors.Unsupported, match=r"kink.*weights\.detach\(\)"):
        torch.autograd.grad(first @ (c[:, 0] - c[:, 0].mean()), live)
    velocity = F.velocity(of.Particles(x, w))
    with pytest.raises(of.errors.Unsupported, match="kink in the weights"):
        torch.autograd.grad((velocity * c).sum(), w)
    assert bool(velocity.detach().isfinite().all())

    # The cures: the velocity in the points alone, and the divergence.
    velocity = F.velocity(of.Particles(live, w.detach()))
    (slope,) = torch.autograd.grad((velocity * c).sum(), live)
    torch.testing.assert_close(slope, -2 * c)
    smooth = lambda mu: sinkhorn_divergence(mu, y, blur=0.5)
    first = of.Particles(live, w.detach()).mass_gradient(smooth)
    (slope,) = torch.autograd.grad(first @ (c[:, 0] - c[:, 0].mean()), live)
    assert bool(slope.any())


def test_atoms_of_mass_zero_beside_equal_weights_are_no_kink():
    draw = draws(11)
    y, x = draw(3, 2), draw(4, 2)
    w = torch.tensor([0.0, 1.0, 1.0, 1.0], dtype=F64) / 3

    class Exact(of.Functional):
        def value(self, mu):
            return wasserstein2_squared(mu, y)

    velocity = Exact().velocity(of.Particles(x, w))
    plan = of.metrics.transport_plan(of.Particles(x, w), y)
    partner = int(plan.columns[plan.rows == 0][0])
    torch.testing.assert_close(velocity[0], -2 * (x[0] - y[partner]))


def test_where_round_off_decides_the_blur_is_told_to_be_too_small():
    x = torch.tensor([[0.0], [1.0], [50.0], [51.0]], dtype=F64, requires_grad=True)
    y = torch.tensor([[0.2], [1.1], [50.3], [51.2]], dtype=F64)

    def bend(blur):
        value = sinkhorn_divergence(x, y, blur=blur)
        (slope,) = torch.autograd.grad(value, x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), x)[0]

    assert bool(bend(20.0).isfinite().all())
    w = torch.tensor([0.2, 0.3, 0.3, 0.2], dtype=F64, requires_grad=True)
    nu = of.Particles(y, torch.tensor([0.25, 0.25, 0.3, 0.2], dtype=F64))

    def bend_in_weights():
        value = sinkhorn_divergence(of.Particles(x.detach(), w), nu, blur=0.3)
        (slope,) = torch.autograd.grad(value, w, create_graph=True)
        return torch.autograd.grad(slope[0], w)

    with pytest.raises(of.errors.NotConverged, match="larger blur"):
        bend_in_weights()
