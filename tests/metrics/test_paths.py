"""Length and action of paths of measures :cite:p:`benamou2000computational`."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.metrics import action, length, wasserstein2_squared
from otflow.testing.clouds import normal, weighted


def straight(x, y, times):
    return [x + t * (y - x) for t in times]


def unit(count):
    return [k / count for k in range(count + 1)]


@pytest.fixture(scope="module")
def ends():
    x, y = normal(60, 2), 1.5 * normal(60, 2, seed=1) + 3
    y = y[of.metrics.assignment(x, y)]
    return x, y, float(wasserstein2_squared(x, y))


def test_a_geodesic_has_the_distance_as_length_and_its_square_as_action(ends):
    x, y, square = ends
    path = straight(x, y, unit(10))
    assert float(length(path)) == pytest.approx(math.sqrt(square), rel=1e-10)
    assert float(action(path)) == pytest.approx(square, rel=1e-10)


def test_another_speed_keeps_the_length_and_raises_the_action(ends):
    """At speed 2t the action is 4/3 of the square of the length."""
    x, y, square = ends
    times = unit(400)
    path = straight(x, y, [t**2 for t in times])
    assert float(length(path)) == pytest.approx(math.sqrt(square), rel=1e-10)
    expected = (4 / 3 - 1 / (3 * 400**2)) * square
    assert float(action(path, times)) == pytest.approx(expected, rel=1e-9)


def test_a_detour_costs_its_own_action(ends):
    """Bent by sin(pi t)/2 in one direction, the action grows by pi^2/8."""
    x, y, square = ends
    times = unit(200)
    bend = torch.tensor([0.5, 0.0], dtype=torch.float64)
    path = [
        z + math.sin(math.pi * t) * bend
        for t, z in zip(times, straight(x, y, times), strict=True)
    ]
    excess = float(action(path)) - square
    assert excess == pytest.approx(math.pi**2 / 8, rel=1e-3)
    assert float(length(path)) > math.sqrt(square)


def test_a_wrong_coupling_has_more_action(ends):
    x, y, square = ends
    wrong = y[torch.randperm(60, generator=torch.Generator().manual_seed(0))]
    path = straight(x, wrong, unit(60))
    assert float(action(path)) > 1.1 * square


def test_times_set_the_unit(ends):
    x, y, square = ends
    path = straight(x, y, unit(4))
    assert float(action(path, [2 * t for t in unit(4)])) == pytest.approx(square / 2)


def test_weighted_measures_and_gradients():
    mu, nu = weighted(8), weighted(9, seed=1)
    half = of.metrics.geodesic(mu, nu, 0.5)
    whole = float(wasserstein2_squared(mu, nu))
    assert float(action([mu, half, nu])) == pytest.approx(whole, rel=1e-9)
    z = normal(5, 2).requires_grad_()
    (grad,) = torch.autograd.grad(action([z.detach(), z, z.detach() + 1]), z)
    assert torch.allclose(grad, torch.full_like(grad, -4 / 5))


@pytest.mark.parametrize(
    ("path", "times", "message"),
    [
        ([normal(3, 2)], None, "two measures or more, got 1"),
        ([normal(3, 2)] * 3, [0, 1], "one per measure, 3 of them, got 2"),
        ([normal(3, 2)] * 3, [0, 1, 1], "must increase, got 1 and then 1"),
        ([normal(3, 2)] * 2, [0, math.inf], "times must be finite"),
        ([normal(3, 2), normal(3, 1)], None, "needs one space"),
    ],
)
def test_refusals(path, times, message):
    with pytest.raises(ValueError, match=message):
        action(path, times)
    if times is None:
        with pytest.raises(ValueError, match=message):
            length(path)


@pytest.mark.parametrize(
    ("path", "times", "kind", "words"),
    [
        (3, None, TypeError, "a path must be a sequence of measures, got 3"),
        ("ab", None, TypeError, "a path must be a sequence of measures, got 'ab'"),
        ([[0.0], [1.0]], "ab", TypeError, "times must be numbers, one per measure"),
        ([[0.0], [1.0]], [0.0, None], TypeError, "times must be a real number"),
    ],
)
def test_what_is_no_path_raises(path, times, kind, words):
    clouds = path
    if isinstance(path, list):
        clouds = [torch.tensor([x]) for x in path]
    with pytest.raises(kind, match=words):
        action(clouds, times)


def test_a_path_may_be_an_iterator():
    clouds = [torch.tensor([[z]]) for z in (0.0, 1.0, 3.0)]
    assert float(length(x for x in clouds)) == 3.0
    assert float(action(iter(clouds), torch.tensor([0.0, 1.0, 2.0]))) == 5.0
