"""The proof that the coupling by index is optimal: never wrong, seldom missing."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from otflow.metrics import assignment, transport_plan
from otflow.metrics.monotone import supporting_potential
from otflow.testing.clouds import normal, weighted


def least_cost(x, y):
    costs = (x[:, None] - y).square().sum(-1)
    rows = torch.arange(len(x))
    return min(
        float(costs[rows, list(p)].sum()) for p in itertools.permutations(range(len(x)))
    )


def assert_supports(phi, x, y):
    """Check phi_j >= phi_i + x_i.(y_j - y_i) for every pair."""
    planes = phi[:, None] + (x[:, None] * (y[None] - y[:, None])).sum(-1)
    excess = float((planes - phi).max())
    assert excess <= 1e-14 * (1 + float(x.abs().max() * y.abs().max()) * x.shape[1])


@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 6),
    d=st.integers(1, 3),
    step=st.floats(0.0, 2.0),
    is_grid=st.booleans(),
)
def test_a_proof_is_never_wrong_and_a_strict_optimum_is_proved(
    seed, n, d, step, is_grid
):
    """Integer grids are full of ties and of points that coincide."""
    x = normal(n, d, seed=seed)
    y = x + step * normal(n, d, seed=seed + 1)
    if is_grid:
        x, y = x.round(), y.round()
    own, best = float((x - y).square().sum()), least_cost(x, y)
    phi = supporting_potential(x, y)
    if phi is not None:
        assert own <= best + 1e-12
        assert_supports(phi, x, y)
    else:
        assert own > best + 1e-12


MAPS = {
    "identity": lambda x: x,
    "one point": torch.zeros_like,
    "two points": torch.sign,
    "plane": lambda x: torch.cat([x[:, :1], torch.zeros_like(x[:, 1:])], dim=1),
    "shrink": lambda x: 0.1 * x,
    "soft threshold": lambda x: x.sign() * (x.abs() - 0.5).clamp_min(0.0),
    "cubic": lambda x: x + x.pow(3),
    "wave": lambda x: x - 0.3 * torch.sin(3 * x),
    "shift": lambda x: x + 100.0,
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("d", [2, 3, 10])
def test_gradients_of_convex_functions_are_proved_optimal(name, d):
    x = normal(400, d)
    y = MAPS[name](x)
    x, y = x - x.mean(0), y - y.mean(0)
    phi = supporting_potential(x, y)
    assert phi is not None
    assert_supports(phi, x, y)


@pytest.mark.parametrize("angle", [0.1, 1.5, 3.1])
def test_rotations_are_not(angle):
    """No exchange of two points shortens a small rotation: a long cycle does."""
    t = 2 * torch.pi * torch.arange(60, dtype=torch.float64) / 60
    x = torch.stack([t.cos(), t.sin()], dim=1)
    y = torch.stack([(t + angle).cos(), (t + angle).sin()], dim=1)
    assert supporting_potential(x, y) is None
    turned = assignment(x, y)
    cost = float((x - y[turned]).square().sum())
    shift = round(angle / (2 * torch.pi / 60))
    remainder = angle - shift * 2 * torch.pi / 60
    chord = torch.tensor(remainder / 2, dtype=torch.float64).sin()
    assert cost == pytest.approx(60 * float(4 * chord**2), rel=1e-10)


def test_the_proof_takes_no_quadratic_memory(monkeypatch):
    """Not even one matrix (n, n) is in the budget here."""
    monkeypatch.setattr("otflow._memory.total_memory", lambda _: 0)
    x = normal(300, 2)
    y = x - 0.1 * torch.sin(3 * x)
    assert torch.equal(assignment(x, y), torch.arange(300))
    with pytest.raises(MemoryError, match=r"needs 4320000 bytes .* take fewer points"):
        assignment(x, normal(300, 2, seed=1))


def test_potentials_of_weighted_atoms_come_with_the_proof(monkeypatch):
    """Both ends of a JKO step of weighted particles: no solver runs."""
    monkeypatch.setattr("otflow._memory.total_memory", lambda _: 0)
    mu = weighted(50)
    nu = mu.push(-0.2 * torch.sin(2 * mu.points) + 3.0, 1.0)
    plan = transport_plan(mu, nu)
    assert torch.equal(plan.rows, plan.columns)
    costs = (mu.points[:, None] - nu.points).square().sum(-1)
    slack = costs - plan.f[:, None] - plan.g
    assert float(slack.min()) > -1e-12
    assert float(slack.diagonal().abs().max()) < 1e-12
    for w, potential in ((mu.weights, plan.f), (nu.weights, plan.g)):
        assert float(w @ potential) == pytest.approx(float(plan.cost) / 2, rel=1e-12)
