"""L-BFGS in any scalar product: solutions of SciPy, descent, stalls, budgets."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
import scipy.optimize
import torch
from torch import Tensor

from otflow.errors import Diverged
from otflow.numerics.lbfgs import Memory, Point, beside, last_places, minimise


@dataclass(frozen=True)
class At(Point):
    """A point of R^n."""

    x: Tensor


class Euclidean:
    """R^n with the product sum w u v and an objective; it counts evaluations."""

    def __init__(self, function, weights=None, limit=float("inf")):
        self.function, self.weights, self.limit = function, weights, limit
        self.seen = []

    def inner(self, u, v):
        return (u * v if self.weights is None else self.weights * u * v).sum()

    def norm(self, u):
        return float(self.inner(u, u).sqrt())

    def at(self, x):
        if float(x.abs().max()) > self.limit:
            msg = "outside"
            raise Diverged(msg)
        y = x.clone().requires_grad_()
        value = self.function(y)
        (slope,) = torch.autograd.grad(value, y)
        gradient = slope if self.weights is None else slope / self.weights
        point = At(float(value.detach()), gradient, self.norm(gradient), x)
        self.seen.append(point)
        return point

    def move(self, point, vector, length):
        return self.at(point.x + length * vector)

    def difference(self, start, end):
        return end.x - start.x

    def unit(self, point):
        return last_places(point.x)


def solve(space, start, *, tolerance=1e-9, budget=400, memory=None):
    memory = Memory(size=10) if memory is None else memory
    return minimise(
        space,
        space.at(torch.as_tensor(start, dtype=torch.float64)),
        memory,
        converged=lambda p: p.size <= tolerance,
        budget=budget,
    )


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1].square()).square() + (1 - x[:-1]).square()).sum()


@pytest.mark.parametrize("weighted", [False, True])
def test_it_finds_the_minimiser_that_scipy_finds(weighted):
    start = [-1.2, 1.0, 0.5, 2.0]
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4]).double() if weighted else None
    end = solve(Euclidean(rosenbrock, weights), start)
    assert end.converged
    assert not end.stalled
    other = scipy.optimize.minimize(
        scipy.optimize.rosen, start, jac=scipy.optimize.rosen_der, tol=1e-12
    )
    torch.testing.assert_close(
        end.point.x, torch.from_numpy(other.x), atol=1e-8, rtol=0
    )


def test_the_objective_never_rises_from_point_to_point():
    space = Euclidean(rosenbrock)
    point = space.at(torch.tensor([-1.2, 1.0, 0.5, 2.0]).double())
    memory, seen = Memory(size=5), [point.objective]
    for _ in range(60):
        count = len(space.seen)
        # Each call stops at the first point that it accepts.
        end = minimise(
            space,
            point,
            memory,
            converged=lambda p, start=point: p is not start,
            budget=40,
        )
        step = space.difference(point, end.point)
        change = end.point.gradient - point.gradient
        memory = end.memory.add(space.inner, step, change)
        point = end.point
        seen.append(point.objective)
        assert end.used == len(space.seen) - count
    # Up to the round-off of a value: some units in its last place.
    assert all(b <= a * (1 + 1e-14) for a, b in pairwise(seen))
    assert point.size < 1e-6


def test_a_direction_maps_the_last_change_to_the_last_step():
    """The secant equation holds in the product that the pairs were made in."""
    weights = torch.tensor([0.5, 1.0, 3.0]).double()
    inner = Euclidean(rosenbrock, weights).inner
    generator = torch.Generator().manual_seed(0)
    memory = Memory(size=3)
    stretch = torch.tensor([1.0, 2.0, 7.0]).double()
    for _ in range(5):
        s = torch.randn(3, generator=generator, dtype=torch.float64)
        memory = memory.add(inner, s, stretch * s)
    assert len(memory.pairs) == 3
    torch.testing.assert_close(-memory.direction(inner, stretch * s), s)
    assert 1.0 <= memory.stiffness <= 7.0


def test_pairs_are_good_in_another_product():
    first, second = (torch.tensor(w).double() for w in ([1.0, 1.0], [0.2, 0.8]))
    s, y = torch.tensor([1.0, 2.0]).double(), torch.tensor([2.0, 3.0]).double()
    one, two = (Euclidean(rosenbrock, w).inner for w in (first, second))
    moved = Memory().add(one, s, y).anew(two)
    fresh = Memory().add(two, s, y)
    assert moved.pairs[0].curvature == fresh.pairs[0].curvature == pytest.approx(5.2)
    g = torch.tensor([1.0, -1.0]).double()
    assert torch.equal(moved.direction(two, g), fresh.direction(two, g))


def test_a_pair_of_negative_curvature_is_left_out():
    inner = Euclidean(rosenbrock).inner
    s = torch.ones(2, dtype=torch.float64)
    assert Memory().add(inner, s, -s).pairs == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("short", ["step", "change"])
def test_a_pair_whose_squares_underflow_is_left_out(short, dtype):
    one = torch.ones(2, dtype=dtype)
    tiny = one * torch.finfo(dtype).tiny ** 0.6
    inner = Euclidean(rosenbrock).inner
    s, y = (tiny, one) if short == "step" else (one, tiny)
    memory = Memory().add(inner, s, y)
    assert memory.stiffness >= 1
    assert memory.direction(inner, one).isfinite().all()


def test_a_warm_memory_solves_a_like_problem_in_one_evaluation():
    stretch = torch.tensor([1.0, 4.0, 9.0]).double()
    space = Euclidean(lambda x: 0.5 * (stretch * x * x).sum())
    end = solve(space, [1.0, 1.0, 1.0], tolerance=1e-12)
    again = solve(space, [2.0, -1.0, 0.5], tolerance=1e-6, memory=end.memory)
    assert end.converged
    assert again.converged
    assert again.used < end.used


def test_a_kink_stalls_before_the_budget_is_spent():
    end = solve(Euclidean(lambda x: x.abs().sum()), [0.3, -0.7])
    assert end.stalled
    assert not end.converged
    assert end.used < 300
    assert end.point.objective < 1e-3


def test_a_spent_budget_is_no_stall():
    end = solve(Euclidean(rosenbrock), [-1.2, 1.0], budget=5)
    assert not end.converged
    assert not end.stalled
    assert end.used <= 5


def test_steps_that_leave_the_domain_are_shortened():
    space = Euclidean(lambda x: (x - 1).square().sum() * 50, limit=1.5)
    end = solve(space, [-1.0])
    assert end.converged
    assert float(end.point.x) == pytest.approx(1.0)
    # A step that ends outside is evaluated nowhere.
    assert max(float(p.x.abs().max()) for p in space.seen) <= 1.5


def test_points_beside_are_a_last_place_away():
    space = Euclidean(rosenbrock)
    point = space.at(torch.tensor([1.0, -1e6]).double())
    for near in beside(space, point):
        gap = (near.x - point.x).abs() / point.x.abs()
        assert bool((gap > 0).all())
        assert float(gap.max()) <= 2 * torch.finfo(torch.float64).eps


class Coarse(Euclidean):
    """An objective with an error that is the same in all last places of a point."""

    def at(self, x):
        point = super().at(x)
        error = 1e-12 * (round(float(x.sum()) * 1e12) % 7)
        return At(point.objective + error, point.gradient, point.size, x)


def test_a_coarse_objective_is_measured_once():
    # Neighbours of a point may have its very value by chance. The descent must then end
    # by its own rules, and not measure again until the budget is spent.
    for seed in range(20):
        x = torch.randn(3, generator=torch.Generator().manual_seed(seed)).double()
        space = Coarse(lambda y: 1e-3 * (1 + (y - 1).square().sum() + y[0].pow(4)))
        end = solve(space, x, tolerance=0.0, budget=400)
        assert end.converged or (end.stalled and end.used < 200)
        assert end.point.size < 1e-8
