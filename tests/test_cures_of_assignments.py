"""Cures of attributes that are fixed, and of operations without a derivative."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.errors import InvalidFunctional
from otflow.schemes import Langevin
from tests.cures import Case, check_cures

F64 = torch.float64
MU = of.Particles(torch.tensor([[0.9], [-0.2]], dtype=F64))


def bowl(x):
    return x.square().sum(-1)


def steps(x):
    return torch.floor_divide(x, 0.3).sum(-1)


def jump(x):
    return torch.heaviside(x[..., 0], torch.tensor(0.0, dtype=x.dtype))


class Multiple(of.Functional):
    def __init__(self, told):
        self.told = told

    def value(self, mu):
        return 5 * mu.expectation(bowl)

    def terms(self):
        return ((self.told, of.Potential(bowl)),)


class Whole(of.Functional):
    def value(self, mu):
        return 5 * mu.expectation(bowl)


def go(F):
    return of.flow(F, MU, Langevin(), dt=0.1, steps=1, generator=0)


CASES: dict[str, Case] = {
    "another kernel": (
        AttributeError,
        "kernel of Interaction is fixed.*make a new Interaction",
        lambda: setattr(of.Interaction(bowl), "kernel", of.kernels.Gaussian(0.3)),
        [lambda: of.Interaction(of.kernels.Gaussian(0.3)).value(MU)],
    ),
    "another function of a kernel": (
        AttributeError,
        "function of Function is fixed.*make a new Function",
        lambda: setattr(of.kernels.Function(bowl), "function", steps),
        [lambda: of.kernels.Function(steps)],
    ),
    "a quotient that is rounded": (
        InvalidFunctional,
        r"floor_divide has no derivative in torch; write torch\.floor\(a / b\)",
        lambda: of.Potential(steps).velocity(MU),
        [lambda: of.Potential(lambda x: (x / 0.3).floor().sum(-1)).velocity(MU)],
    ),
    "a step function": (
        InvalidFunctional,
        r"heaviside has no derivative in torch; write torch\.where\(x > 0, ",
        lambda: of.Potential(jump).velocity(MU),
        [
            lambda: of.Potential(
                lambda x: torch.where(x[..., 0] > 0, 1.0, 0.0).to(x.dtype)
            ).velocity(MU, MU.points),
            lambda: of.Potential(lambda x: (9 * x[..., 0]).sigmoid()).velocity(MU),
        ],
    ),
    "another operation": (
        InvalidFunctional,
        "igamma has no derivative in torch; write operations that torch differentiates",
        lambda: of.Potential(
            lambda x: torch.special.gammainc(x[..., 0] + 3, torch.ones_like(x[..., 0]))
        ).velocity(MU),
        [lambda: of.Potential(lambda x: 1 - (-x[..., 0] - 3).exp()).velocity(MU)],
    ),
    "terms of another sum": (
        ValueError,
        "let `terms` return factors and functionals that sum to `value`, or leave",
        lambda: go(Multiple(1.0)),
        [lambda: go(Multiple(5.0)), lambda: go(Whole())],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_cure_cures(name):
    check_cures(CASES[name])
