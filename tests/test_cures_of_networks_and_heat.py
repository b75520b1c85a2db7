"""Cures of gaps of networks and of gaps with entropy that cannot be given."""

from __future__ import annotations

import re

import pytest
import torch

import otflow as of
from otflow.testing.clouds import normal
from tests.cures import Case, check_cures

F64 = torch.float64
Entropy, Potential, Risk = of.Entropy, of.Potential, of.meanfield.Risk
TwoLayer, PathBall = of.meanfield.TwoLayer, of.meanfield.PathBall
OnGrid, gap_of = of.optimality.OnGrid, of.optimality.optimality_gap
gibbs, entropic_gap = of.optimality.gibbs, of.optimality.entropic_gap

SQUARE = Potential(lambda x: x.square().sum(-1))
PULL = of.Interaction(lambda z: -(-z.square().sum(-1)).exp())
LINE = of.GridDensity.from_function(
    lambda x: (-(x - 0.3).square().sum(-1)).exp(), -5, 5, 50, dtype=F64
)
DOUBLE_WELL = Potential(lambda x: (x.square().sum(-1) - 1).square() + 0.05 * x[:, 0])
LUMPS = DOUBLE_WELL + 4 * of.Interaction(lambda z: z.square().sum(-1)) + 0.1 * Entropy()
NARROW = of.GridDensity.from_function(
    lambda x: (-9 * (x - 1).square().sum(-1)).exp(),
    -2.5,
    2.5,
    60,
    dtype=F64,
    walls=True,
)
NEURONS = of.Particles(normal(4, 3))
X, Y = normal(6, 1, seed=1), normal(6, 1, seed=2)[:, 0]


def risk(activation="relu", loss="square", **options):
    return Risk(TwoLayer(activation, **options), X, Y, loss=loss)


class MyRelu(of.meanfield.Unit):
    name = "my relu"
    homogeneous = True

    def __call__(self, z):
        return torch.relu(z)

    def slope(self, z, value, out):
        return torch.sign(value, out=out)


class Squared(of.meanfield.Unit):
    """Of degree 2, which the word may be taken for."""

    name = "relu squared"
    homogeneous = True

    def __call__(self, z):
        return torch.relu(z).square()

    def slope(self, z, value, out):
        return out.copy_(2 * torch.relu(z))


class SquaredOfDegreeTwo(Squared):
    homogeneous = False


CORNER = torch.full((2,), 4.0, dtype=F64)


def variation(radius=100.0, side=1.0):
    return of.meanfield.VariationBall(radius, -side * CORNER, side * CORNER)


OUTER = float(NEURONS.weights @ NEURONS.points[:, 0].abs())
SIZE = float(of.meanfield.path_norm(TwoLayer("relu"), NEURONS))


def halved():
    scaled = NEURONS.points.clone()
    scaled[:, 0] /= 2
    return of.Particles(scaled)


def told_tolerance():
    """Return the tolerance that the warning after two iterations names."""
    with pytest.warns(of.errors.NotConvergedWarning) as caught:
        gibbs(SQUARE + PULL + 0.1 * Entropy(), LINE, max_iterations=2, starts=0)
    found = re.search(r"tolerance=([-.e0-9]+)", str(caught[0].message))
    assert found is not None
    return float(found[1])


CASES: dict[str, Case] = {
    "a network outside the ball": (
        ValueError,
        r"take PathBall\(.*\), or divide the outer weights by 2\.000002",
        lambda: gap_of(risk(), NEURONS, PathBall(SIZE / 2)),
        [
            lambda: gap_of(risk(), NEURONS, PathBall(SIZE * (1 + 1e-6))),
            lambda: gap_of(risk(), halved(), PathBall(SIZE / 2)),
        ],
    ),
    "a ball for a risk beside a penalty": (
        of.errors.Unsupported,
        r"got beside it Potential.*give the risk alone.*meanfield\.fenchel_gap",
        lambda: gap_of(risk() + SQUARE, NEURONS, PathBall(100.0)),
        [
            lambda: gap_of(risk(), NEURONS, PathBall(100.0)),
            lambda: of.meanfield.fenchel_gap(risk(), NEURONS, 0.1),
        ],
    ),
    "a path norm without homogeneity": (
        of.errors.Unsupported,
        r"or a Unit with homogeneous = True, or meanfield\.VariationBall",
        lambda: of.meanfield.path_norm(TwoLayer("tanh"), NEURONS),
        [
            lambda: gap_of(risk("tanh"), NEURONS, variation()),
            lambda: of.meanfield.path_norm(TwoLayer("relu"), NEURONS),
            lambda: of.meanfield.path_norm(TwoLayer(MyRelu()), NEURONS),
        ],
    ),
    "a unit that is not homogeneous, though it is declared so": (
        of.errors.InvalidFunctional,
        r"phi\(1\) = 1 is not twice .*leave homogeneous = False.*VariationBall",
        lambda: gap_of(risk(Squared()), NEURONS, PathBall(100.0)),
        [lambda: gap_of(risk(SquaredOfDegreeTwo()), NEURONS, variation())],
    ),
    "a path norm of neurons of one's own": (
        TypeError,
        r"network must be a TwoLayer.*use TwoLayer\('relu'\)",
        lambda: of.meanfield.path_norm(
            of.meanfield.CustomLayer(lambda x, t: x @ t.T),
            NEURONS,
        ),
        [lambda: of.meanfield.path_norm(TwoLayer("relu"), NEURONS)],
    ),
    "outer weights above the radius": (
        ValueError,
        r"take a radius of .*, or divide the outer weights by 2\.000002",
        lambda: gap_of(risk("tanh"), NEURONS, variation(OUTER / 2)),
        [
            lambda: gap_of(risk("tanh"), NEURONS, variation(OUTER * (1 + 1e-6))),
            lambda: gap_of(risk("tanh"), halved(), variation(OUTER / 2)),
        ],
    ),
    "neurons outside the box": (
        ValueError,
        r"the smallest box of all neurons has the corners .*: enlarge the box to hold",
        lambda: gap_of(risk("tanh"), NEURONS, variation(side=0.05)),
        [lambda: gap_of(risk("tanh"), NEURONS, variation())],
    ),
    "a box of another dimension": (
        ValueError,
        "a neuron 2 inner weights; give 2 numbers, or one for all",
        lambda: gap_of(
            risk("tanh"),
            NEURONS,
            of.meanfield.VariationBall(100.0, [-4.0] * 3, [4.0] * 3),
        ),
        [
            lambda: gap_of(risk("tanh"), NEURONS, variation()),
            lambda: gap_of(
                risk("tanh"),
                NEURONS,
                of.meanfield.VariationBall(100.0, -CORNER[:1], CORNER[:1]),
            ),
        ],
    ),
    "a ball of a plain function": (
        of.errors.Unsupported,
        r"use a built-in unit by its name, or state the slope in a meanfield\.Unit",
        lambda: gap_of(risk(torch.tanh), NEURONS, variation()),
        [
            lambda: gap_of(risk("tanh"), NEURONS, variation()),
            lambda: gap_of(risk(MyRelu()), NEURONS, variation()),
        ],
    ),
    "a path norm in another scaling": (
        of.errors.Unsupported,
        "use scaling='mean-field'",
        lambda: of.meanfield.fenchel_gap(risk(scaling="ntk"), NEURONS, 0.1),
        [lambda: of.meanfield.fenchel_gap(risk(), NEURONS, 0.1)],
    ),
    "a penalty inside the functional": (
        TypeError,
        "risk must be a Risk.*give the penalty as a number beside it",
        lambda: of.meanfield.fenchel_gap(
            risk() + SQUARE,
            NEURONS,
            0.1,
        ),
        [lambda: of.meanfield.fenchel_gap(risk(), NEURONS, 0.1)],
    ),
    "a Gibbs law without entropy": (
        ValueError,
        r"add T \* Entropy\(\) with T > 0, or use optimality_gap\(F, rho, OnGrid\(\)\)",
        lambda: gibbs(SQUARE, LINE),
        [
            lambda: gibbs(SQUARE + 0.1 * Entropy(), LINE),
            lambda: gap_of(SQUARE, LINE, OnGrid()),
        ],
    ),
    "a Gibbs law under congestion": (
        of.errors.Unsupported,
        r"minimise F by a flow with JKO\(\) on the grid",
        lambda: gibbs(SQUARE + of.Congestion(0.6) + 0.1 * Entropy(), LINE),
        [
            lambda: of.flow(
                SQUARE + of.Congestion(0.6) + 0.1 * Entropy(),
                LINE,
                of.JKO(),
                dt=0.1,
                steps=2,
            )
        ],
    ),
    "a Gibbs law of particles": (
        TypeError,
        r"make one by GridDensity\.from_function or GridDensity\.from_samples\(",
        lambda: entropic_gap(
            SQUARE + Entropy(),
            of.Particles(X),
        ),
        [
            lambda: entropic_gap(SQUARE + Entropy(), LINE),
            lambda: entropic_gap(
                SQUARE + Entropy(),
                of.GridDensity.from_samples(
                    of.Particles(X).sample(100_000, torch.Generator().manual_seed(0)),
                    -5,
                    5,
                    50,
                ),
            ),
        ],
    ),
    "a sandwich without convexity": (
        ValueError,
        r"compare F\.value\(rho\) with F\.value\(optimum\)",
        lambda: of.optimality.entropic_bracket(PULL + Entropy(), LINE, LINE),
        [lambda: (PULL + Entropy()).value(LINE)],
    ),
    "a Gibbs fixed point that is not reached": (
        of.errors.NotConvergedWarning,
        r"take max_iterations=20 or tolerance=",
        lambda: gibbs(
            SQUARE + PULL + 0.1 * Entropy(), LINE, max_iterations=2, starts=0
        ),
        [
            lambda: gibbs(
                SQUARE + PULL + 0.1 * Entropy(), LINE, max_iterations=20, starts=0
            ),
            lambda: gibbs(
                SQUARE + PULL + 0.1 * Entropy(),
                LINE,
                max_iterations=2,
                tolerance=told_tolerance(),
                starts=0,
            ),
        ],
    ),
    "several Gibbs fixed points": (
        of.errors.FixedPointWarning,
        r"further starts may find a lower one: give starts=",
        lambda: gibbs(LUMPS, NARROW),
        [lambda: gibbs(LUMPS, NARROW, starts=0)],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_cures_that_an_error_names_work(case):
    check_cures(CASES[case])
