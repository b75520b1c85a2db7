"""The crowd leaves by the door alone, and its pressure is that of the bound."""

from __future__ import annotations

import math

import pytest
import torch

from demo import crowd

STEPS = 8


@pytest.fixture(scope="module")
def found() -> crowd.Crowd:
    return crowd.leave_room(STEPS)


@pytest.mark.slow
def test_whoever_is_outside_came_through_the_door(found):
    assert found.outside > 0.01
    assert abs(found.outside - found.through_door) < 1e-12


def test_nobody_stands_in_the_wall_or_vanishes(found):
    assert found.in_wall == 0
    for mu in found.run.snapshots:
        assert abs(float(mu.weights.sum()) - 1) < 1e-12


def test_nobody_is_squeezed_and_nobody_returns(found):
    for mu in found.run.snapshots:
        assert float(mu.density().max()) <= found.bound
    inside = torch.tensor([found.inside(k) for k in range(STEPS + 1)])
    assert (inside.diff() <= 1e-9).all()


def test_every_step_is_certified(found):
    assert found.row.certificate == f"{STEPS}/{STEPS} steps certified"


def test_pressure_is_where_the_crowd_is_packed_and_nowhere_else(found):
    p, rho = found.pressure(STEPS), found.run.final.density() / found.bound
    seen = ~p.isnan()
    packed, loose = seen & (rho > 0.999), seen & (rho < 0.9)
    assert packed.sum() > 100
    assert loose.sum() > 500
    # The fluxes are known up to the tolerance of the solver.
    assert float(p[loose].abs().max()) < 1e-3
    assert float(p[packed].min()) > 0
    assert float(p[packed].max()) > 0.1


def test_pressure_is_highest_beside_the_door(found):
    p = found.pressure(STEPS).nan_to_num().reshape(crowd.WIDTH, crowd.HEIGHT)
    column = int(p.argmax()) // crowd.HEIGHT
    assert abs(column - crowd.WALL.start) <= 1


def test_the_way_out_avoids_the_wall(found):
    ways = found.ways.reshape(crowd.WIDTH, crowd.HEIGHT)
    # From a corner of the room at best straight to the door, and straight on then.
    # Moves of a knight make a way longer by 3 % at most.
    door, beyond = crowd.DOOR.start, crowd.WIDTH - 1 - crowd.WALL.start
    best = (math.hypot(crowd.WALL.start, door) + beyond) * crowd.SIDE
    assert best <= float(ways[0, 0]) <= 1.03 * best
    assert float(ways[-1].max()) == 0


def test_the_figure_is_written(found, tmp_path):
    crowd.draw(found, tmp_path / "crowd.png")
    assert (tmp_path / "crowd.png").stat().st_size > 10_000
