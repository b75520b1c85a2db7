"""Grids one cell wide along an axis: every step is that of the line."""

import pytest
import torch

import otflow as of

SOLVERS = [
    of.proximal.GridSinkhorn,
    of.proximal.BackAndForth,
    of.proximal.FiniteVolume,
]
SHAPES = [(40, 1), (1, 40), (1, 40, 1)]
LENGTH, WIDTH = 4.0, 0.7


def bell(shape):
    """Return a bell along the axis of 40 cells, and that axis."""
    axis = shape.index(40)
    half = [LENGTH / 2 if n == 40 else WIDTH / 2 for n in shape]
    rho = of.GridDensity.from_function(
        lambda x: torch.exp(-8 * x[:, axis].square()),
        tuple(-a for a in half),
        tuple(half),
        shape,
        dtype=torch.float64,
        walls=True,
    )
    return rho, axis


def objective(rho, axis, crowd):
    V = of.Potential(lambda x: (x[:, axis] - 0.3).square(), modulus=2.0)
    bound = 1.2 * float(rho.density().max())
    return V + (of.Congestion(bound) if crowd else of.Entropy())


@pytest.mark.parametrize("crowd", [False, True], ids=["heat", "crowd"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.__name__)
def test_a_step_is_that_of_the_line(solver, shape, crowd):
    ends = []
    for cells in (shape, (40,)):
        rho, axis = bell(cells)
        result = solver().solve(objective(rho, axis, crowd), rho, 0.1)
        assert result.certificate["converged"]
        assert result.certificate["certified"]
        ends.append(result.measure.weights)
    assert float((ends[0] - ends[1]).abs().sum()) < 4e-5  # twice the tolerance


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_verbs_are_those_of_the_line(shape):
    ends = []
    for cells in (shape, (40,)):
        rho, axis = bell(cells)
        velocity = of.Potential(lambda x, a=axis: x[:, a].square()).velocity(rho)
        moved = rho.push(velocity, 0.01).transport(velocity, 0.1)
        ends.append(moved.diffuse(0.01, torch.Generator()).weights)
    torch.testing.assert_close(*ends, rtol=0, atol=1e-14)
