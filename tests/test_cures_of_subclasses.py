"""Cures of subclasses that evaluate otherwise than the class that they inherit from."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.errors import Unsupported
from otflow.numerics.enclosures import Enclosure, NotEnclosed
from otflow.testing.clouds import normal
from tests.cures import Case, check_cures

F64 = torch.float64
M = of.meanfield
X, Y = normal(5, 1, seed=1), normal(5, seed=2)
NEURONS = of.Particles(normal(4, 3, seed=3))
ATOMS = of.Particles(normal(4, 1, seed=4))
BALL = M.PathBall(1000.0)


class FiveTimes(M.Risk):
    def value(self, mu):
        return 5 * super().value(mu)

    def mixture_curvature(self):
        return "convex"


class Steep(M.TwoLayer):
    def hidden(self, inputs, theta):
        return 5 * super().hidden(inputs, theta)


class SteepRelu(M.Unit):
    name, homogeneous = "steep", True

    def __call__(self, z):
        return 5 * torch.relu(z)

    def slope(self, z, value, out):
        return torch.mul(torch.sign(value), 5, out=out)


class Linear(M.Risk):
    def mixture_curvature(self):
        return "convex"


class Flat(of.kernels.Gaussian):
    def even(self, z):
        return 2 * super().even(z)


class Stated(Flat):
    def enclosed_field(self, x, points, masses):
        return 2 * of.kernels.Gaussian(1.0).enclosed_field(x, points, masses)


def square(f, y):
    return 2.5 * (f - y).square()


def five_relus(x, theta):
    return 5 * theta[:, 0] * (x * theta[:, 1] + theta[:, 2]).relu()


def gap(F):
    found = of.optimality.optimality_gap(F, NEURONS, BALL)
    assert found.kind == "proved"
    return found


def enclosed(W):
    return of.Interaction(W).enclosed_variation(ATOMS)(
        Enclosure.of(ATOMS.points, ATOMS.points, 0)
    )


def risk(kind=M.Risk, network=None, **options):
    return kind(network or M.TwoLayer("relu"), X, Y, **options)


CASES: dict[str, Case] = {
    "a ball and another risk": (
        Unsupported,
        r"FiveTimes.value changes the risk, .*; write a multiple .* or another loss",
        lambda: gap(risk(FiveTimes)),
        [
            lambda: gap(5 * risk()),
            lambda: gap(risk(loss=square, mixture="convex")),
        ],
    ),
    "a ball and other outputs": (
        Unsupported,
        r"Steep.hidden changes the outputs, .*; state other values in a meanfield.Unit",
        lambda: gap(risk(Linear, Steep("relu"))),
        [lambda: gap(risk(network=M.TwoLayer(SteepRelu())))],
    ),
    "parts of other outputs": (
        Unsupported,
        r"Steep.hidden changes the risk, .*; state neurons of your own as CustomLayer",
        lambda: risk(network=Steep("relu")).decompose(),
        [lambda: risk(network=M.CustomLayer(five_relus)).decompose()],
    ),
    "a module of other outputs": (
        Unsupported,
        r"Steep.hidden changes the outputs, .*; state other values in the activation",
        lambda: M.to_module(NEURONS, Steep("relu")),
        [lambda: M.to_module(NEURONS, M.TwoLayer(SteepRelu()))],
    ),
    "bounds of another kernel": (
        NotEnclosed,
        r"Flat\(sigma=1.0\) evaluates otherwise .*; state its enclosed_field",
        lambda: enclosed(Flat(1.0)),
        [lambda: enclosed(Stated(1.0))],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_cure_works(name):
    check_cures(CASES[name])


def test_a_risk_of_other_outputs_says_what_to_state():
    plain = risk(network=Steep("relu"))
    assert plain.mixture_curvature() is None
    assert "state mixture_curvature in a subclass of Risk" in plain.why()
    assert risk(Linear, Steep("relu")).mixture_convex
