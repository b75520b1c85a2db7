"""Atoms far below the round-off of 1, in both measures: each has its own mass."""

from __future__ import annotations

import pytest
import torch

import otflow as of

F64 = torch.float64


def clouds_with_tiny_atoms(seed):
    """Return two clouds some of whose masses are powers of ten down to 1e-30."""
    g = torch.Generator().manual_seed(seed)

    def cloud(d):
        n = int(torch.randint(3, 9, (), generator=g))
        x = torch.randn(n, d, generator=g, dtype=F64)
        w = torch.rand(n, generator=g, dtype=F64) + 0.05
        tiny = int(torch.randint(0, n, (), generator=g))
        powers = torch.randint(6, 30, (tiny,), generator=g)
        w[:tiny] = 10.0 ** -powers.double()
        return of.Particles(x, w, normalize=True)

    d = 1 + seed % 3 % 2
    return cloud(d), cloud(d)


@pytest.mark.parametrize("block", range(10))
def test_sums_of_a_plan_are_the_masses_to_their_own_digits(block):
    for seed in range(20 * block, 20 * block + 20):
        mu, nu = clouds_with_tiny_atoms(seed)
        plan = of.metrics.transport_plan(mu, nu)
        dense = plan.dense()
        for sums, wanted in ((dense.sum(1), mu.weights), (dense.sum(0), nu.weights)):
            torch.testing.assert_close(sums, wanted, rtol=1e-10, atol=0)
        assert bool((plan.masses > 0).all())
        reduced = torch.cdist(mu.points, nu.points).square() - plan.f[:, None] - plan.g
        assert float(reduced.min()) > -1e-12
        # Where the mass can be seen beside 1 the plan is optimal.
        assert float((dense * reduced).sum()) < 1e-13


def distances(x, y):
    return (x - y).norm(dim=-1)


@pytest.mark.parametrize("block", range(10))
def test_plans_for_other_costs_have_the_masses_to_their_own_digits(block):
    for seed in range(10 * block, 10 * block + 10):
        mu, nu = clouds_with_tiny_atoms(seed)
        plan = of.metrics.least_cost_plan(mu, nu, distances)
        dense = plan.dense()
        for sums, wanted in ((dense.sum(1), mu.weights), (dense.sum(0), nu.weights)):
            torch.testing.assert_close(sums, wanted, rtol=1e-10, atol=0)
        reduced = torch.cdist(mu.points, nu.points) - plan.f[:, None] - plan.g
        assert float(reduced.min()) > -1e-12
        assert float((dense * reduced).sum()) < 1e-13


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("d", [1, 2])
def test_measures_that_differ_in_tiny_atoms_are_apart(d, p):
    """Unit masses coincide in 0; tiny ones move from 1 and 1.5 to 2."""
    places = torch.zeros(5, d, dtype=F64)
    places[:, 0] = torch.tensor([0.0, 1.0, 1.5, 0.0, 2.0])
    a = torch.tensor([1.0, 3e-30, 1e-30], dtype=F64)
    b = torch.tensor([1.0, 4e-30], dtype=F64)
    x = places[:3].clone().requires_grad_()
    value = of.metrics.wasserstein(of.Particles(x, a), of.Particles(places[3:], b), p)
    total = 3e-30 + 1e-30 * 0.5**p
    assert float(value.detach()) == pytest.approx(total ** (1 / p), rel=1e-12, abs=0)
    (slope,) = torch.autograd.grad(value, x)
    factor = total ** (1 / p - 1)
    exact = torch.tensor([0.0, -3e-30, -1e-30 * 0.5 ** (p - 1)], dtype=F64) * factor
    torch.testing.assert_close(slope[:, 0], exact, rtol=1e-9, atol=0)


@pytest.mark.parametrize("seed", range(20))
def test_the_velocity_of_a_tiny_atom_leads_to_its_partner(seed):
    """One tiny atom in each measure, whatever the power: a barycentre of partners."""
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, 5, 2, generator=g, dtype=F64)
    a, b = torch.rand(2, 5, generator=g, dtype=F64) + 0.1
    a[0], b[1] = 10.0 ** -(12 + seed), 10.0 ** -(31 - seed)
    live = x.clone().requires_grad_()
    mu = of.Particles(live, a, normalize=True)
    nu = of.Particles(y, b, normalize=True)
    (grad,) = torch.autograd.grad(of.metrics.wasserstein2_squared(mu, nu), live)
    reached = x[0] - grad[0] / (2 * mu.weights[0])
    low, high = y.amin(0) - 1e-6, y.amax(0) + 1e-6
    assert bool(((low <= reached) & (reached <= high)).all())


def test_on_the_line_the_least_masses_keep_their_partners():
    x = torch.tensor([[0.0], [4.0], [9.0], [20.0]], dtype=torch.float64)
    a = torch.tensor([1.0, 1e-20, 1e-40, 1e-200], dtype=torch.float64)
    for masses in (a, a.flip(0)):
        mu, nu = (of.Particles(z, masses, normalize=True) for z in (x, x + 0.5))
        plan = of.metrics.transport_plan(mu, nu, method="sorted")
        assert torch.equal(plan.rows, plan.columns)
        torch.testing.assert_close(
            of.SquaredDistanceTo(nu).velocity(mu), torch.full_like(x, 0.5)
        )
