"""Cures of mobilities, momentum and random features."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.meanfield import CustomLayer, RandomFeatures, Risk, TwoLayer
from otflow.schemes import MALA, Adam, ForwardBackward, Mobility, Momentum
from otflow.testing.clouds import normal
from tests.cures import Case, check_cures

F64 = torch.float64
SQUARE = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
STEEP = of.Potential(lambda x: x.square().square().sum(-1))
SPARSE = of.functionals.l1_norm(0.01)
SMOOTH = of.Potential(lambda x: 0.01 * (x.square() + 1e-6).sqrt().sum(-1))
HEAT = 0.1 * of.Entropy()
CLOUD = of.Particles(normal(6, 2))
SINGLE = of.Particles(torch.ones(2, 2))
LINE = of.Quantiles(torch.linspace(-1, 1, 9, dtype=F64))
EULER = of.ExplicitEuler()
NETWORK = TwoLayer("tanh")
X, Y = normal(9, 2, seed=1), normal(9, 1, seed=2)[:, 0]
NEURONS = of.Particles(normal(5, 4))
PRIOR = of.Particles(normal(4, 2, seed=3))


def flow(F, mu, scheme, dt=0.1, steps=2):
    return of.flow(F, mu, scheme, dt=dt, steps=steps, generator=0)


def draws():
    return of.Particles(LINE.sample(6, torch.Generator()))


def sinkhorn():
    return of.JKO(of.proximal.SinkhornParticles(0.5, tolerance=0.1))


def freeze(dim):
    return Mobility(EULER, NETWORK.mobility(dim, inner=0.0))


CASES: dict[str, Case] = {
    "one number as a mobility": (
        TypeError,
        r"e\.g\. \[1\.0, 0\.1\].*is the flow of m \* F",
        lambda: Mobility(EULER, 2.0),
        [
            lambda: flow(SQUARE, CLOUD, Mobility(EULER, [1.0, 0.1])),
            lambda: flow(2.0 * SQUARE, CLOUD, EULER),
        ],
    ),
    "no mobility at all": (
        ValueError,
        r"give one that is positive",
        lambda: Mobility(EULER, [0.0, 0.0]),
        [lambda: flow(SQUARE, CLOUD, Mobility(EULER, [0.0, 1.0]))],
    ),
    "a mobility that single precision has not": (
        ValueError,
        r"give 0 for a coordinate that hardly moves, or rescale F",
        lambda: flow(SQUARE, SINGLE, Mobility(EULER, [1, 1e-60])),
        [
            lambda: flow(SQUARE, SINGLE, Mobility(EULER, [1, 0])),
            lambda: flow(1e-60 * SQUARE, SINGLE, Mobility(EULER, [1, 1e-6])),
        ],
    ),
    "too few mobilities": (
        ValueError,
        r"as network\.mobility\(inputs, outer=1\.0, inner=0\.1\) does",
        lambda: flow(SQUARE, NEURONS, Mobility(EULER, [1.0, 0.1])),
        [
            lambda: flow(
                SQUARE, NEURONS, Mobility(EULER, NETWORK.mobility(2, inner=0.1))
            )
        ],
    ),
    "a mobility of a density": (
        of.errors.Unsupported,
        r"use Particles\(mu\.sample\(n, generator\)\).*the flow of m \* F",
        lambda: flow(SQUARE, LINE, Mobility(EULER, [2.0])),
        [
            lambda: flow(SQUARE, draws(), Mobility(EULER, [2.0])),
            lambda: flow(2.0 * SQUARE, LINE, EULER),
        ],
    ),
    "noise on fixed coordinates": (
        of.errors.Unsupported,
        r"use Langevin\(\) for noise, or give each coordinate a mobility > 0",
        lambda: flow(SQUARE + HEAT, CLOUD, Mobility(MALA(), [1.0, 0.0])),
        [
            lambda: flow(SQUARE + HEAT, CLOUD, Mobility(of.Langevin(), [1.0, 0.0])),
            lambda: flow(SQUARE + HEAT, CLOUD, Mobility(MALA(), [1.0, 0.1])),
        ],
    ),
    "a mobility of a reaction": (
        ValueError,
        r"chain\(Mobility\(ExplicitEuler\(\), m\), BirthDeath\(\.\.\.\)\)",
        lambda: Mobility(of.BirthDeath(), [1.0, 2.0]),
        [
            lambda: flow(
                SQUARE,
                CLOUD,
                of.chain(Mobility(EULER, [1.0, 2.0]), of.BirthDeath()),
            )
        ],
    ),
    "a prior in other coordinates": (
        ValueError,
        r"prior of BirthDeath is a measure.*chain\(Mobility\(ExplicitEuler\(\), m\)",
        lambda: Mobility(of.chain(EULER, of.BirthDeath(prior=PRIOR)), [1.0, 2.0]),
        [
            lambda: flow(
                SQUARE,
                CLOUD,
                of.chain(Mobility(EULER, [1.0, 2.0]), of.BirthDeath(prior=PRIOR)),
            )
        ],
    ),
    "a proximal map in another metric": (
        ValueError,
        r"use JKO\(\), or ExplicitEuler\(\) with a smooth term",
        lambda: Mobility(ForwardBackward(), [1.0, 2.0]),
        [
            lambda: flow(SQUARE + SPARSE, CLOUD, Mobility(of.JKO(), [1.0, 2.0])),
            lambda: flow(SQUARE + SMOOTH, CLOUD, Mobility(EULER, [1.0, 2.0])),
        ],
    ),
    "blurred couplings of labels": (
        of.errors.Unsupported,
        r"use JKO\(\) without a solver",
        lambda: flow(SQUARE, CLOUD, Mobility(sinkhorn(), [1.0, 0.0])),
        [lambda: flow(SQUARE, CLOUD, Mobility(of.JKO(), [1.0, 0.0]))],
    ),
    "friction beyond the step": (
        ValueError,
        r"take dt < 0\.2, or a smaller friction",
        lambda: flow(SQUARE, CLOUD, Momentum(10.0), dt=0.5),
        [
            lambda: flow(SQUARE, CLOUD, Momentum(10.0), dt=0.19),
            lambda: flow(SQUARE, CLOUD, Momentum(3.0), dt=0.5),
        ],
    ),
    "one factor of moments": (
        TypeError,
        r"e\.g\. \(0\.9, 0\.999\)",
        lambda: Adam(0.9),
        [lambda: flow(SQUARE, CLOUD, Adam((0.9, 0.999)))],
    ),
    "a factor that forgets nothing": (
        ValueError,
        r"take e\.g\. \(0\.9, 0\.999\)",
        lambda: Adam((0.9, 1.0)),
        [lambda: flow(SQUARE, CLOUD, Adam((0.9, 0.999)))],
    ),
    "momentum of a density": (
        of.errors.Unsupported,
        r"use ExplicitEuler\(\), or Particles\(mu\.sample\(n, generator\)\)",
        lambda: flow(SQUARE, LINE, Momentum()),
        [
            lambda: flow(SQUARE, LINE, EULER),
            lambda: flow(SQUARE, draws(), Momentum()),
        ],
    ),
    "momentum that diverges": (
        of.errors.Diverged,
        r"take a smaller dt$",
        lambda: flow(STEEP, CLOUD, Momentum(), dt=9.0, steps=60),
        [lambda: flow(STEEP, CLOUD, Momentum(), dt=0.02, steps=60)],
    ),
    "a step to where F is not finite": (
        of.errors.Diverged,
        r"a step went where it is not finite: take a smaller dt$",
        lambda: flow(STEEP, CLOUD, EULER, dt=9.0, steps=60),
        [lambda: flow(STEEP, CLOUD, EULER, dt=0.02, steps=60)],
    ),
    "random features of a logistic risk": (
        of.errors.Unsupported,
        r"make steps of schemes\.Mobility\(ExplicitEuler\(\), network\.mobility\(d, ",
        lambda: RandomFeatures(Risk(NETWORK, X, Y.sign(), loss="logistic"), NEURONS),
        [lambda: flow(Risk(NETWORK, X, Y.sign(), loss="logistic"), NEURONS, freeze(2))],
    ),
    "random features of an own layer": (
        of.errors.Unsupported,
        r"take a TwoLayer with an activation of your own",
        lambda: RandomFeatures(
            Risk(CustomLayer(lambda x, theta: (x @ theta.T).cos()), X, Y), CLOUD
        ),
        [lambda: RandomFeatures(Risk(TwoLayer(torch.cos), X, Y), NEURONS).flow(1.0)],
    ),
    "random features with a graph": (
        of.errors.Unsupported,
        r"mu\.detach\(\)",
        lambda: RandomFeatures(
            Risk(NETWORK, X, Y), of.Particles(normal(5, 4).requires_grad_())
        ),
        [
            lambda: RandomFeatures(
                Risk(NETWORK, X, Y),
                of.Particles(normal(5, 4).requires_grad_()).detach(),
            )
        ],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_cure_that_an_error_names_works(case):
    check_cures(case)
