"""The laws of distances, tried on other libraries: what is known of them.

An upstream release that mends a fault makes its test fail: then the test goes.
"""

from __future__ import annotations

import re

import pytest
import torch

import otflow as of
from otflow.metrics import entropic_plan, sinkhorn_divergence, wasserstein2
from otflow.testing import check_distance
from tests.marks import slow

ot = pytest.importorskip("ot")
geomloss = pytest.importorskip("geomloss")
solve_sample = pytest.importorskip("geomloss.ot").solve_sample

BLUR = 0.7
REG = 2 * BLUR**2


def squares(x, y):
    return (x[:, None] - y).square().sum(-1)


def particles(distance, **options):
    """Return a distance of otflow as a function of points and weights."""

    def wrapped(x, a, y, b):
        return distance(of.Particles(x, a), of.Particles(y, b), **options)

    return wrapped


def factor(message):
    """Return how many times as much as finite differences a gradient is."""
    match = re.search(r", (\S+) times as much", message)
    assert match
    return float(match[1])


def failures(distance, **options):
    """Return the laws that fail, with what the error says of each."""
    with pytest.raises(AssertionError, match="the distance fails") as caught:
        check_distance(distance, large=0, **options)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"the distance fails {len(lines) - 1} of")
    return dict(line.strip().split(": ", 1) for line in lines[1:])


@pytest.mark.slow
@pytest.mark.parametrize("reach", [None, 1.0])
@pytest.mark.parametrize("blur", [0.7, *slow(0.3)])
def test_own_entropic_distances_pass(blur, reach):
    options = {"blur": blur, "reach": reach}
    check_distance(
        particles(sinkhorn_divergence, **options), of="divergence", **options
    )

    def value(x, a, y, b):
        return entropic_plan(of.Particles(x, a), of.Particles(y, b), **options).value

    check_distance(value, of="entropic", **options)


@pytest.mark.slow
def test_own_exact_distances_pass():
    square = of.metrics.wasserstein2_squared
    check_distance(particles(square), large=1200)
    check_distance(square, weights=False, sizes=(6, 6))
    check_distance(particles(wasserstein2), of="W2")
    check_distance(lambda *state: 0.5 * particles(square)(*state), of="W2^2/2")


@pytest.mark.slow
def test_trusted_calls_of_others_pass():
    # POT's costs lose digits far from the origin: give it costs of differences.
    check_distance(lambda x, a, y, b: ot.emd2(a, b, squares(x, y)))
    loss = geomloss.SamplesLoss("sinkhorn", p=2, blur=0.01, scaling=0.99)
    check_distance(
        lambda x, a, y, b: loss(a, x, b, y),
        of="W2^2/2",
        tolerance=0.05,
        gradients=["points"],
        skip=["Diracs"],  # it raises there
        large=0,
    )


@pytest.mark.slow
def test_the_new_functions_of_geomloss_double_the_gradient():
    def divergence(x, a, y, b):
        found = solve_sample(x, y, a=a, b=b, debias=True, reg=REG, max_iter=200)
        return 0.5 * found.value

    found = failures(divergence, of="divergence", blur=BLUR, tolerance=1e-2)
    assert "value" not in found
    assert "weights" not in found
    assert factor(found["points"]) == pytest.approx(2, abs=0.02)


@pytest.mark.slow
def test_pot_hands_the_doubled_gradient_on():
    def entropic(x, a, y, b):
        found = ot.solve_sample(x, y, a, b, reg=REG, method="geomloss", max_iter=200)
        return 0.5 * found.value

    found = failures(entropic, of="entropic", blur=BLUR, tolerance=1e-2)
    assert "value" not in found
    assert factor(found["points"]) == pytest.approx(2, abs=0.02)


def test_the_value_of_relaxed_transport_is_zero():
    def relaxed(x, a, y, b):
        return 0.5 * ot.solve(squares(x, y), a, b, reg=REG, unbalanced=2.0).value

    found = failures(relaxed, of="entropic", blur=BLUR, reach=1.0, tolerance=1e-3)
    assert found["value"].endswith("no value at all")
    assert "positive" in found


@pytest.mark.slow
def test_a_batch_has_the_cost_of_the_independent_coupling():
    def batch(x, a, y, b):
        found = ot.batch.solve_sample_batch(x[None], y[None], a=a[None], b=b[None])
        return found.value_linear[0]

    found = failures(batch, tolerance=1e-3)
    assert "the cost of the independent coupling" in found["value"]


def test_the_envelope_has_a_wrong_gradient_in_the_weights():
    def envelope(x, a, y, b):
        cost = squares(x, y)
        return 0.5 * ot.solve(cost, a, b, reg=REG, grad="envelope", tol=1e-12).value

    found = failures(envelope, of="entropic", blur=BLUR, tolerance=1e-3)
    assert set(found) == {"weights"}


def test_the_last_step_has_not_the_gradient_of_the_value():
    def last(x, a, y, b):
        cost = squares(x, y)
        return 0.5 * ot.solve(cost, a, b, reg=REG, grad="last_step", tol=1e-12).value

    found = failures(last, of="entropic", blur=BLUR, tolerance=1e-3)
    assert "value" not in found
    assert "finite differences" in found["points"]


def test_a_lazy_value_has_a_graph_without_a_gradient():
    def lazy(x, a, y, b):
        return ot.solve_sample(x, y, a, b, lazy=True).value

    found = failures(lazy, skip=["far"])
    assert found["points"] == "no gradient arrives in the points of x: it is None"
    assert "value" not in found
    assert "weights" not in found


def test_an_early_stop_shows_between_many_points():
    def stopped(x, a, y, b):
        return ot.emd2(a, b, squares(x, y), numItermax=1000)

    with pytest.raises(AssertionError, match="its limit of iterations") as caught:
        check_distance(stopped, large=1000)
    assert "fails 1 of" in str(caught.value)


def test_a_wrong_factor_far_away_is_not_said_to_be_of_float32():
    half = failures(lambda *s: 0.5 * EXACT(*s))
    numbers = re.findall(r"(\d\.\d+)", half["far"])
    in_float32, in_float64, exact = (float(number) for number in numbers)
    assert in_float32 == pytest.approx(in_float64, rel=1e-4)
    assert in_float64 == pytest.approx(exact / 2, rel=1e-4)


def test_costs_that_cancel_show_far_away():
    found = failures(lambda x, a, y, b: ot.emd2(a, b, ot.dist(x, y)))
    assert set(found) == {"far"}


def test_a_root_without_a_gradient_at_zero_shows():
    def naive(x, a, y, b):
        return particles(of.metrics.wasserstein2_squared)(x, a, y, b).sqrt()

    found = failures(naive, of="W2")
    assert set(found) == {"coincidence", "Diracs"}
    assert "are not finite" in found["Diracs"]


def test_a_crash_at_diracs_shows():
    loss = geomloss.SamplesLoss("sinkhorn", p=2, blur=0.1, scaling=0.9)
    found = failures(lambda x, a, y, b: loss(a, x, b, y), of="W2^2/2", tolerance=0.5)
    assert "raises ValueError" in found["Diracs"]


EXACT = particles(of.metrics.wasserstein2_squared)


@pytest.mark.parametrize(
    ("wrong", "law", "words"),
    [
        (lambda *s: 2 * EXACT(*s), "value", "twice the exact value"),
        (lambda *s: 0.5 * EXACT(*s), "value", "half of the exact value"),
        (lambda *s: EXACT(*s).sqrt(), "value", "the root of the exact value"),
        (lambda *s: EXACT(*s) * 1.01, "value", "wrong by +0.01 of it"),
        (lambda *s: EXACT(*s) + 0.1, "coincidence", "not 0"),
        (lambda *s: -EXACT(*s), "positive", "between clouds that differ"),
        (lambda *s: EXACT(*s) * float("nan"), "positive", "the value is nan"),
        (
            lambda x, a, y, b: EXACT(x, a, y, b) * (1 + x[0, 0] - y[0, 0]),
            "symmetric",
            "one way",
        ),
        (lambda *s: EXACT(*s).detach(), "points", "has no graph"),
        (lambda *s: float(EXACT(*s)), "points", "returns float: no graph"),
        (
            lambda x, a, y, b: EXACT(x, a.detach(), y, b),
            "weights",
            "no gradient arrives",
        ),
        (lambda *_: "nought", "value", "returns str, which is no number"),
        (lambda *_: 1 / 0, "value", "raises ZeroDivisionError"),
    ],
)
def test_each_law_can_fail(wrong, law, words):
    assert words in failures(wrong)[law]


def test_a_complex_number_is_no_distance():
    with pytest.raises(AssertionError, match=r"a number in torch\.complex128"):
        check_distance(lambda *s: particles(wasserstein2)(*s) + 0j, of="W2", large=0)


class Breaks(torch.autograd.Function):
    @staticmethod
    def forward(_, value):
        return value.clone()

    @staticmethod
    def backward(_, __):
        msg = "no derivative"
        raise RuntimeError(msg)


def test_a_gradient_that_raises_is_a_failure():
    def breaks(*state):
        return Breaks.apply(particles(wasserstein2)(*state))

    with pytest.raises(AssertionError, match="its gradient raises RuntimeError: no"):
        check_distance(breaks, of="W2", large=0)


def test_parameters_of_a_distance_get_no_gradient():
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)
    check_distance(
        lambda *state: factor * particles(wasserstein2)(*state), of="W2", large=0
    )
    assert factor.grad is None


def test_laws_can_be_left_out():
    def rough(*state):
        return float(EXACT(*state).float())

    check_distance(rough, gradients=[], tolerance=1e-5)
    check_distance(lambda *s: EXACT(*s).detach(), gradients=[])
    check_distance(lambda *s: 2 * EXACT(*s), skip=["value", "far", "large"], large=10)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"of": "W1"}, ValueError, "of must be one of"),
        ({"of": "entropic"}, ValueError, "use e.g. blur=0.5"),
        ({"blur": 0.1}, ValueError, "of='divergence'"),
        ({"reach": 0.1}, ValueError, "of='divergence'"),
        ({"skip": ["points", "near"]}, ValueError, "did you mean|must be one of"),
        ({"gradients": ["masses"]}, ValueError, "gradients must be one of"),
        ({"tolerance": -1}, ValueError, "tolerance must be positive"),
        ({"weights": 1}, TypeError, "weights must be True or False"),
        ({"sizes": (1, 4)}, ValueError, "at least 2"),
    ],
)
def test_wrong_options_are_named(options, kind, words):
    with pytest.raises(kind, match=words):
        check_distance(EXACT, **options)
    with pytest.raises(TypeError, match="distance must take"):
        check_distance(3)
