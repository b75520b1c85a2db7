"""The room of the tutorial on crowds: a shut door, an open one, orders in dt and h."""

import functools

import numpy as np
import pytest
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra
from sklearn.datasets import load_sample_image

import otflow as of

# Fine cells along each side of one of 1/12: the tutorial's are 4.
FINENESS = [2, pytest.param(4, marks=pytest.mark.slow)]


def ways_out(free, h):
    """Return the length of the shortest way to the right end over free cells."""
    width, height = free.shape
    index = np.arange(width * height).reshape(width, height)
    rows, columns, lengths = [], [], []
    for dx, dy in [(1, 0), (0, 1), (1, 1), (1, -1), (2, 1), (1, 2), (2, -1), (1, -2)]:
        a = index[: width - dx, max(0, -dy) : height - max(0, dy)]
        b = index[dx:, max(0, dy) : height + min(0, dy)]
        both = free.ravel()[a] & free.ravel()[b]
        rows.append(a[both])
        columns.append(b[both])
        lengths.append(np.full(both.sum(), h * np.hypot(dx, dy)))
    pairs = (np.concatenate(rows), np.concatenate(columns))
    graph = coo_array((np.concatenate(lengths), pairs), (width * height,) * 2).tocsr()
    ways = dijkstra(graph, directed=False, indices=index[-1], min_only=True)
    ways[~np.isfinite(ways)] = ways[np.isfinite(ways)].max()
    return torch.from_numpy(ways)


def photograph():
    """Return the tutorial's crowd, 40 x 36: dark is dense."""
    picture = load_sample_image("china.jpg")[::6, 60:540:6]
    photo = of.GridDensity.from_image(
        picture, (0.0, 0.0), (1.0, 0.9), invert=True, walls=True, dtype=torch.float64
    )
    return photo.grid.reshape(40, 2, 36, 2).mean((1, 3))


@functools.cache
def room(fine, *, door=True):
    """Return the crowd at first and F, on 24 fine x 12 fine cells."""
    width, height, h = 24 * fine, 12 * fine, 1 / (12 * fine)
    blocked = torch.zeros(width, height, dtype=torch.bool)
    wall = slice(23 * fine // 2, 25 * fine // 2)
    blocked[wall] = True
    # The door's way is wanted even where it is shut: people push against it.
    blocked[wall, 5 * fine : 7 * fine] = False
    ways = ways_out(~blocked.numpy(), h)
    if not door:
        blocked[wall] = True
    rho = torch.zeros(width, height, dtype=torch.float64)
    crowd = photograph()
    if fine < 4:
        crowd = crowd.reshape(20, 2, 18, 2).mean((1, 3))
    else:
        crowd = crowd.repeat_interleave(fine // 4, 0).repeat_interleave(fine // 4, 1)
    x, y = 3 * fine // 4, 3 * fine // 2
    rho[x : x + 10 * fine, y : y + 9 * fine] = crowd
    start = of.GridDensity(
        rho, (0.0, 0.0), (2.0, 1.0), obstacles=blocked, walls=True, normalize=True
    )
    bound = float(start.density().max())
    D = of.Potential(lambda x: ways[start.box.cell_of(x)])
    return start, D + of.Congestion(bound), bound


def inside(mu, fine):
    """Return the mass on the left of the wall."""
    return float(mu.weights.reshape(mu.shape)[: 23 * fine // 2].sum())


@pytest.mark.parametrize("fine", FINENESS)
@pytest.mark.parametrize("dt", [0.1, 0.05, 0.01])
def test_nobody_is_beyond_a_shut_door(fine, dt):
    start, F, bound = room(fine, door=False)
    steps = 36 if fine == 4 else 8
    run = of.flow(F, start, of.JKO(), dt=dt, steps=steps)
    assert all(report["certified"] for report in run.info)
    last = run.final
    assert float(last.weights.reshape(last.shape)[23 * fine // 2 :].sum()) == 0
    assert float(last.density().max()) <= bound
    assert float(last.weights.sum()) == pytest.approx(1, abs=1e-13)


@pytest.mark.parametrize("fine", FINENESS)
def test_whoever_is_beyond_has_passed_the_door(fine):
    start, F, bound = room(fine)
    run = of.flow(F, start, of.JKO(), dt=0.1, steps=36 if fine == 4 else 8)
    assert all(report["certified"] for report in run.info)
    line = 12 * fine - 1
    passed = sum(
        start.box.split_faces(report["fluxes"])[0][line, 5 * fine : 7 * fine].sum()
        for report in run.info
    )
    beyond = run.final.weights.reshape(start.shape)[line + 1 :].sum()
    assert float(beyond) > 0.1
    assert abs(float(beyond - passed)) < 1e-12
    assert float(run.final.density().max()) <= bound


def left_at(fine, dt, time=0.4):
    """Return the mass that is inside at a time."""
    start, F, _ = room(fine)
    run = of.flow(F, start, of.JKO(), dt=dt, steps=round(time / dt))
    assert all(report["converged"] for report in run.info)
    return inside(run.final, fine)


@pytest.mark.slow
def test_the_room_empties_at_a_rate_of_first_order_in_dt():
    left = [left_at(4, dt) for dt in (0.05, 0.025, 0.0125)]
    first, second = left[1] - left[0], left[2] - left[1]
    assert np.log2(first / second) >= 0.9


@pytest.mark.slow
def test_the_room_empties_as_on_a_grid_twice_as_fine():
    coarse, fine = left_at(4, 0.025), left_at(8, 0.025)
    assert abs(coarse - fine) <= 0.01 * fine
