"""Branch and bound brackets a maximum, whatever its bounds are worth."""

import math

import pytest
import torch

from otflow.numerics.branching import Found, branch_and_bound

F64 = torch.float64


class Wave:
    """The function sin(3 x) + x / 4 on intervals, bounded by its slope."""

    def __init__(self, width=1e-6, *, least=0.0, broken=()):
        self.width, self.least, self.broken = width, least, broken
        self.batches = []

    def goal(self, value):
        return value + self.width

    def bound(self, cells):
        lower, upper = cells
        self.batches.append(len(lower))
        middle, half = 0.5 * (lower + upper), 0.5 * (upper - lower)
        values = torch.sin(3 * middle) + middle / 4
        bounds = values + 3.25 * half
        if len(self.batches) in self.broken:
            bounds = torch.full_like(bounds, math.nan)
        best = int(values.argmax())

        def cut(index):
            wide = (half[index] > self.least).nonzero()[:, 0]
            a, m, b = (t[index][wide] for t in (lower, middle, upper))
            return (torch.cat([a, m]), torch.cat([m, b])), wide.repeat(2)

        return Found(bounds, float(values[best]), middle[best : best + 1], cut)


def bracket(problem, budget=10_000, at_once=16, parts=5):
    edges = torch.linspace(0, 5, parts + 1, dtype=F64)
    cells = edges[:-1], edges[1:]
    return branch_and_bound(
        problem, cells, 0.0, edges[:1], budget=budget, at_once=at_once
    )


# At the last peak within 5: cos(3 x) = -1/12.
PEAK = (math.acos(-1 / 12) + 4 * math.pi) / 3
LARGEST = math.sin(3 * PEAK) + PEAK / 4


@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_the_bracket_is_as_narrow_as_was_asked_for(at_once):
    found = bracket(Wave(), at_once=at_once)
    assert found.closed
    assert found.value <= LARGEST + 1e-15
    assert found.upper >= LARGEST - 1e-15
    assert found.upper - found.value <= 1e-6
    assert abs(float(found.place) - PEAK) < 1e-3


@pytest.mark.parametrize("budget", [1, 4, 9, 30])
def test_a_budget_leaves_a_bracket_that_holds(budget):
    problem = Wave()
    found = bracket(problem, budget=budget)
    assert not found.closed
    assert found.spent == sum(problem.batches) == budget
    assert found.value <= LARGEST <= found.upper
    # Cells that were not bounded may hold any value.
    assert (found.upper == math.inf) == (budget < 5)


@pytest.mark.parametrize("broken", [(1,), (2, 3), range(1, 1000)])
def test_a_bound_that_is_nan_drops_no_cell(broken):
    found = bracket(Wave(width=1e-3, broken=broken), budget=500)
    assert found.value <= LARGEST <= found.upper
    always = len(broken) > 2
    assert found.closed != always
    assert (found.upper == math.inf) == always


def test_a_cell_that_is_not_cut_counts_by_its_bound():
    found = bracket(Wave(least=0.01))
    assert found.closed
    assert found.value <= LARGEST <= found.upper
    assert 1e-3 < found.upper - LARGEST < 3.25 * 0.01


def test_no_cell_is_bounded_once_its_bound_is_sharp_enough():
    rough, fine = Wave(width=0.5), Wave(width=1e-6)
    bracket(rough)
    bracket(fine)
    assert sum(rough.batches) < sum(fine.batches) / 3
