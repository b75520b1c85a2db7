"""Steps far too long, callables of the wrong kind: typed errors, cures that work."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch

import otflow as of
from otflow.proximal import QuantileProximal
from otflow.proximal.certificate import certify
from otflow.schemes import Adaptive
from tests.cures import check_cures

F64 = torch.float64


def well(x):
    return 0.25 * (x.square() - 1).square().sum(-1)


def wave(x):
    return (3 * x).cos().sum(-1)


def hill(x):
    return -0.5 * x.square().sum(-1)


def line():
    return of.Quantiles(torch.linspace(-1, 1, 9, dtype=F64))


def step(V, dt, solver=None):
    return of.flow(of.Potential(V), line(), of.JKO(solver), dt=dt, steps=1)


@pytest.mark.parametrize("dt", [1e16, 1e18, 1e30])
@pytest.mark.parametrize("V", [well, wave])
def test_a_step_whose_hessian_drowns_is_refused(V, dt):
    def cure():
        assert step(V, 1.0).converged

    check_cures((of.errors.Diverged, "smaller dt", lambda: step(V, dt), [cure]))
    with pytest.raises(of.errors.NonFinite, match="smaller dt"):
        QuantileProximal().solve(of.Potential(V), line(), dt)


@pytest.mark.parametrize("dt", [1e3, 1e6])
def test_a_step_without_a_minimum_names_other_cures_than_the_scheme_in_use(dt):
    def smaller():
        assert step(hill, 0.5).converged

    def walls():
        scheme = of.JKO(QuantileProximal(lower=-2.0, upper=2.0))
        F = of.Potential(hill) + of.Entropy()
        run = of.flow(F, line(), scheme, dt=dt, steps=1)
        assert run.converged
        assert float(run.final.edges.abs().max()) <= 2.0

    wrong = (of.errors.Diverged, "walls", lambda: step(hill, dt), [smaller, walls])
    check_cures(wrong)
    with pytest.raises(of.errors.Diverged) as error:
        step(hill, dt)
    assert "JKO()" not in str(error.value)


@pytest.mark.filterwarnings("ignore::otflow.errors.NotConvergedWarning")
@pytest.mark.parametrize("dt", [1e6, 1e20])
def test_no_number_of_a_certificate_of_particles_is_infinite(dt):
    mu = of.Particles(torch.linspace(-1, 1, 5, dtype=F64)[:, None])
    F = of.Potential(hill, modulus=-1.0)
    info = of.flow(F, mu, of.JKO(), dt=dt, steps=1).info[0]
    assert not info["converged"]
    numbers = [x for x in info.values() if isinstance(x, float)]
    assert all(math.isfinite(x) for x in numbers)


@pytest.mark.parametrize("wrong", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("word", ["residual", "noise"])
def test_what_overflowed_is_the_largest_float_and_claims_nothing(word, wrong):
    words = {
        "energy_before": 2.0,
        "energy_after": 1.0,
        "dt": 0.5,
        "w2": 0.5,
        "residual": 1e-9,
        "converged": True,
        "guarantee": "stationary",
    }
    assert certify(**words)["certified"]
    made = certify(**{**words, word: wrong})
    assert made[word] == sys.float_info.max
    assert not made["converged"]
    assert made["guarantee"] == "none"


X, Y = torch.zeros(3, 2), torch.ones(3, 2)
METRICS = (of.metrics.quotient_distance, of.metrics.best_matching, of.metrics.align)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_a_ground_of_another_dtype_is_refused(metric, dtype):
    def ground(x, y):
        return torch.ones(len(x), len(y), dtype=dtype)

    cures = [lambda: metric(X, Y, ground=lambda x, y: ground(x, y).to(x.dtype))]
    if dtype.is_complex:
        cures = [lambda: metric(X, Y, ground=lambda x, y: ground(x, y).abs())]
    check_cures(
        (TypeError, "floating-point", lambda: metric(X, Y, ground=ground), cures)
    )


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("wrong", ["l1", 1.0, X, ()])
def test_what_is_no_ground_or_symmetry_is_refused(metric, wrong):
    def manhattan():
        metric(X, Y, ground=lambda x, y: torch.cdist(x, y, p=1.0))

    case = (TypeError, "function", lambda: metric(X, Y, ground=wrong), [manhattan])
    check_cures(case)
    cures = [
        lambda: metric(X, Y, symmetry=of.metrics.symmetries.Sign()),
        lambda: metric(X, Y, symmetry=None),
    ]
    check_cures((TypeError, "Symmetry", lambda: metric(X, Y, symmetry=wrong), cures))
    kind = of.metrics.symmetries.Sign
    check_cures((TypeError, "Sign", lambda: metric(X, Y, symmetry=kind), cures))


@pytest.mark.parametrize(
    "returned", [-1.0, None, "far", math.nan, 1j, torch.ones(2), torch.tensor(1j), []]
)
def test_a_distance_that_is_no_distance_is_refused(returned):
    V = of.Potential(lambda x: x.square().sum(-1))
    mu = of.Particles(torch.ones(2, 1, dtype=F64))

    def run(distance):
        scheme = Adaptive(of.ExplicitEuler(), tolerance=0.1, distance=distance)
        return of.flow(V, mu, scheme, dt=0.1, steps=2)

    wrong = (ValueError, "distance must return", lambda: run(lambda *_: returned))
    check_cures((*wrong, [lambda: run(of.metrics.wasserstein2)]))


@pytest.mark.parametrize(
    "wrong", [["a", "b"], "ab", None, [None, 1.0], [1j, 2j], {}, np.array(["a", "b"])]
)
def test_numbers_that_are_none_are_refused(wrong):
    rate, order = of.analysis.exponential_rate, of.analysis.observed_order
    right = [1.0, 2.0]
    for call in (
        lambda x: rate(x, right),
        lambda x: rate(right, x),
        lambda x: order(x, right),
        lambda x: order(right, x),
    ):
        cure = lambda call=call: call([float(x) for x in ("1", "3")])
        check_cures((TypeError, "real", lambda call=call: call(wrong), [cure]))
