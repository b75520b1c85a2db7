"""Cures of false declarations of convexity, and of reports on other runs."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.analysis import certify, evolution_variational_inequality
from otflow.errors import InvalidFunctional, Unsupported
from otflow.testing.clouds import normal
from tests.cures import Case, check_cures

CLOUD = of.Particles(normal(5, 2))


def square(x):
    return 0.5 * x.square().sum(-1)


def dented(r):
    return 3 * r - r * r


def sine(x):
    return x.sin().sum(-1)


def flowed(F, dt=0.1):
    return of.flow(F, CLOUD, of.JKO(), dt=dt, steps=2)


def answering(word):
    class Mine(of.Functional):
        def value(self, mu):
            return mu.weights.square().sum()

        def mixture_curvature(self):
            return word

    return Mine()


SPRING = of.Potential(square, modulus=1.0)
WAVES = of.Potential(sine, modulus=-1.0)


def along(F, a, b):
    return of.analysis.mixture_convexity(F, a, b, times=3)


class Pairs(of.Functional):
    """The energy of pairs of atoms, with or without i = j."""

    def __init__(self, *, own):
        self.own = own

    def value(self, mu):
        near = (-(mu.points[:, None] - mu.points).square().sum(-1)).exp()
        if not self.own:
            near = near - torch.eye(mu.n, dtype=mu.dtype)
        return mu.weights @ near @ mu.weights


CELLS = [
    of.GridDensity(normal(4, 4, seed=s).exp(), -2, 2, walls=True, normalize=True)
    for s in (1, 2)
]
BESIDE = of.Particles(normal(5, 2, seed=8))

CASES: dict[str, Case] = {
    "a mixture of a measure with itself": (
        ValueError,
        "there is no mixture to look along; change one of them",
        lambda: along(of.Potential(square), CLOUD, CLOUD),
        [lambda: along(of.Potential(square), CLOUD, BESIDE)],
    ),
    "mixtures under a kernel that is infinite at 0": (
        Unsupported,
        "use a kernel that is finite at 0, or take densities on a grid",
        lambda: along(of.Interaction(of.kernels.Log()), CLOUD, BESIDE),
        [
            lambda: along(of.Interaction(of.kernels.Gaussian(1.0)), CLOUD, BESIDE),
            lambda: along(of.Interaction(of.kernels.Log()), *CELLS),
        ],
    ),
    "mixtures and pairs without their own": (
        Unsupported,
        "weigh all pairs, i = j too",
        lambda: along(Pairs(own=False), CLOUD, BESIDE),
        [lambda: along(Pairs(own=True), CLOUD, BESIDE)],
    ),
    "an energy that McCann's condition refutes": (
        InvalidFunctional,
        r"they fall; leave modulus= out$",
        lambda: of.Internal(dented, modulus=0.0).modulus(2),
        [lambda: of.Internal(dented).modulus(2)],
    ),
    "an energy that is not convex": (
        InvalidFunctional,
        r"does not bend so: at the densities .*; leave mixture= out$",
        lambda: of.Internal(dented, mixture="convex").mixture_curvature(),
        [lambda: of.Internal(dented).mixture_curvature()],
    ),
    "a positive modulus of an internal energy": (
        ValueError,
        r"at most 0, since a translation .* got 1; take modulus=0\.0$",
        lambda: of.Internal(torch.log, modulus=1.0),
        [lambda: of.Internal(torch.log, modulus=0.0).modulus(3)],
    ),
    "a word of no curvature": (
        InvalidFunctional,
        r"must return one of \['linear', 'convex', 'concave'\], or None",
        lambda: answering("yes").mixture_curvature(),
        [
            lambda: answering("convex").mixture_curvature(),
            lambda: answering(None).mixture_curvature(),
        ],
    ),
    "an inequality without a modulus": (
        Unsupported,
        r"state it where you know it, or give modulus= to try one; F\.why\(2\) names",
        lambda: evolution_variational_inequality(
            of.Potential(sine), flowed(of.Potential(sine)), CLOUD
        ),
        [
            lambda: evolution_variational_inequality(WAVES, flowed(WAVES), CLOUD),
            lambda: evolution_variational_inequality(
                of.Potential(sine), flowed(of.Potential(sine)), CLOUD, modulus=-1.0
            ),
            lambda: of.Potential(sine).why(2),
        ],
    ),
    "an inequality of steps that are too long": (
        Unsupported,
        r"a step of length 2 is too long for the modulus -1: .*; take a smaller dt$",
        lambda: evolution_variational_inequality(WAVES, flowed(WAVES, 2.0), CLOUD),
        [lambda: evolution_variational_inequality(WAVES, flowed(WAVES, 0.5), CLOUD)],
    ),
    "an inequality of other steps": (
        Unsupported,
        r"step 0 is not one step of JKO\(\) of order 1, .*; flow with JKO\(\)$",
        lambda: evolution_variational_inequality(
            SPRING,
            of.flow(SPRING, CLOUD, of.ExplicitEuler(), dt=0.1, steps=2),
            CLOUD,
        ),
        [lambda: evolution_variational_inequality(SPRING, flowed(SPRING), CLOUD)],
    ),
    "a report by another functional": (
        InvalidFunctional,
        r"not the functional of the run: .*; pass the functional that was given to",
        lambda: certify(flowed(SPRING), 2 * SPRING),
        [lambda: certify(flowed(SPRING), SPRING)],
    ),
    "a report on a measure": (
        TypeError,
        "run must be .*; pass what flow returned$",
        lambda: certify(CLOUD, SPRING),
        [lambda: certify(flowed(SPRING), SPRING)],
    ),
    "a finding of another name": (
        KeyError,
        "the findings are status, functional, energy",
        lambda: certify(flowed(SPRING), SPRING)["convexity"],
        [lambda: certify(flowed(SPRING), SPRING)["energy"]],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_cure_works(name):
    check_cures(CASES[name])
