"""Cures of bounds on the error of time steps that cannot be given."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.schemes.time_error import time_error
from otflow.testing.clouds import normal
from tests.cures import Case, check_cures

F64 = torch.float64
SPRING = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
SQUARE = of.Potential(lambda x: x.square().sum(-1))
CLOUD = of.Particles(normal(5, 2))
CONCAVE = of.Potential(lambda x: -10 * x.square().sum(-1), modulus=-20.0)


def bound(F, mu, scheme=None, dt=0.1, **options):
    scheme = of.JKO() if scheme is None else scheme
    run = of.flow(F, mu, scheme, dt=dt, steps=2, generator=0)
    return run.time_error(**options)


def report(**changes):
    """Return what a step of a spring says, by the words of a certificate."""
    x, y, tau = 1.0, 1 / 1.1, 0.1
    words = {
        "order": 1,
        "dt": tau,
        "modulus": 1.0,
        "energy_before": 0.5 * x * x,
        "energy_after": 0.5 * y * y,
        "w2": x - y,
        "bound": 0.0,
    }
    return {**words, **changes}


STALE = report(
    dt=0.5, modulus=-1.0, energy_before=0.0, energy_after=0.0, w2=0.0, bound=1.0
)


class Changes(of.Functional):
    """A functional that is another one at each step."""

    def __init__(self, factor=1.0):
        self.factor = factor

    def value(self, mu):
        return self.factor * SPRING.value(mu)

    def resample(self, generator):
        return Changes(float(torch.rand((), generator=generator)))

    def modulus(self, dim):
        return 0.0


def blurred(blur):
    return of.proximal.SinkhornParticles(blur, tolerance=1e-2)


def line_of_cells():
    return of.GridDensity.from_function(
        lambda x: (-2 * (x - 0.5).square().sum(-1)).exp(), -4, 4, 64, dtype=F64
    )


CASES: dict[str, Case] = {
    "a functional that changes along a flow": (
        of.errors.Unsupported,
        r"flow one functional by JKO\(\) alone",
        lambda: bound(Changes(), CLOUD, of.schemes.Minibatch(of.JKO())),
        [lambda: bound(SPRING, CLOUD)],
    ),
    "an error of explicit steps": (
        of.errors.Unsupported,
        r"use JKO\(\) of order 1, whose steps the estimate is about",
        lambda: bound(SPRING, CLOUD, of.ExplicitEuler()),
        [lambda: bound(SPRING, CLOUD, of.JKO())],
    ),
    "an error under an unknown convexity": (
        of.errors.Unsupported,
        r"state it where you know it, e\.g\. Potential\(V, modulus=0\.0\)",
        lambda: bound(SQUARE, CLOUD),
        [lambda: bound(of.Potential(lambda x: x.square().sum(-1), modulus=0.0), CLOUD)],
    ),
    "an error of steps too long for the modulus": (
        of.errors.Unsupported,
        r"take dt < 0\.05",
        lambda: time_error([report(modulus=-20.0)], inner=True),
        [lambda: bound(CONCAVE, CLOUD, dt=0.049)],
    ),
    "an error of steps of unknown length": (
        of.errors.Unsupported,
        r"use a solver that knows it \(without blur\)",
        lambda: bound(SPRING, CLOUD, of.JKO(blurred(0.1))),
        [lambda: bound(SPRING, CLOUD, of.JKO(of.proximal.ParticleProximal()))],
    ),
    "an error of steps known by estimates": (
        of.errors.Unsupported,
        r"time_error\(inner=False\)",
        lambda: bound(SPRING + of.Entropy(), line_of_cells()),
        [lambda: bound(SPRING + of.Entropy(), line_of_cells(), inner=False)],
    ),
    "an error of steps that lost too little": (
        of.errors.Unsupported,
        "take a smaller tolerance of the solver, or a finer grid, or a longer dt",
        lambda: time_error([report(energy_after=0.4999)], inner=False),
        [lambda: time_error([report()], inner=False)],
    ),
    "an error that overflows": (
        of.errors.Unsupported,
        "ask for the error of fewer steps",
        lambda: time_error(2000 * [STALE], inner=True),
        [lambda: time_error(20 * [STALE], inner=True)],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_cures_that_an_error_names_work(case):
    check_cures(CASES[case])
