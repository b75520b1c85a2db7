"""Cures of alignments and symmetries that do not fit their networks."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.errors import Unsupported
from otflow.metrics import align, aligned_networks, best_matching, quotient_distance
from otflow.metrics.symmetries import (
    Even,
    Periodic,
    Product,
    Scale,
    Sign,
    Trivial,
    of_activation,
)
from otflow.testing.clouds import normal
from tests.cures import Case, check_cures

X, Y = normal(4, 3), normal(6, 3, seed=1)


def live():
    w = torch.full((6,), 1 / 6, dtype=torch.float64)
    w[0], w[1] = 0.1, 1 / 3 - 0.1
    return of.Particles(Y, w.requires_grad_())


def wave(z):
    return torch.sin(3 * z)


CASES: dict[str, Case] = {
    "a matching of two widths": (
        ValueError,
        "got 4 and 6 points; use aligned_networks.*and quotient_distance",
        lambda: best_matching(X, Y),
        [lambda: aligned_networks(X, Y), lambda: quotient_distance(X, Y)],
    ),
    "an aligned copy of unequal weights": (
        ValueError,
        "got unequal weights; use aligned_networks",
        lambda: align(Y, live().detach()),
        [lambda: aligned_networks(Y, live().detach())],
    ),
    "two widths without the factor": (
        ValueError,
        "got 4 and 6; take normalize=True",
        lambda: quotient_distance(X, Y, normalize=False),
        [lambda: quotient_distance(X, Y, normalize=True)],
    ),
    "weights with a graph": (
        Unsupported,
        r"solved without a graph.*measure\.detach\(\)",
        lambda: aligned_networks(X, live()),
        [lambda: aligned_networks(X, live().detach())],
    ),
    "an unknown function": (
        ValueError,
        r"the activation wave is not known.*of_activation\('tanh'\).*'gelu'",
        lambda: of_activation(wave),
        [lambda: of_activation("tanh"), lambda: of_activation("gelu")],
    ),
    "a function without the group of its name": (
        ValueError,
        r"Hardtanh.* does not have the symmetry of hardtanh.*symmetries\.Trivial\(\)",
        lambda: of_activation(torch.nn.Hardtanh(-1.0, 2.0)),
        [lambda: quotient_distance(X, Y, symmetry=Trivial())],
    ),
    "a module of three channels": (
        ValueError,
        r"PReLU does not act on each entry.*of_activation\('prelu'\)",
        lambda: of_activation(torch.nn.PReLU(3)),
        [lambda: of_activation("prelu"), lambda: of_activation(torch.nn.PReLU())],
    ),
    "a function of one number": (
        ValueError,
        r"tanh does not act on each entry.*of_activation\('tanh'\)",
        lambda: of_activation(math.tanh),
        [lambda: of_activation("tanh"), lambda: of_activation(torch.tanh)],
    ),
    "a class of modules": (
        TypeError,
        r"write GELU\(\)",
        lambda: of_activation(torch.nn.GELU),
        [lambda: of_activation(torch.nn.GELU())],
    ),
    "a misspelt activation": (
        ValueError,
        "did you mean 'softplus'",
        lambda: of_activation("sofplus"),
        [lambda: of_activation("softplus")],
    ),
    "a product of what is no symmetry": (
        TypeError,
        r"give Product\(Scale\(\), Even\(\)\)",
        lambda: Product("scale", "even"),
        [lambda: Product(Scale(), Even())],
    ),
    "a wave without input weights": (
        ValueError,
        r"check Periodic\(outputs=\.\.\.\)",
        lambda: Periodic(outputs=3).canonical(X),
        [lambda: Periodic(outputs=1).canonical(X)],
    ),
    "a symmetry by name between two widths": (
        TypeError,
        r"symmetries\.Sign\(\), or None",
        lambda: aligned_networks(X, Y, symmetry="tanh"),
        [
            lambda: aligned_networks(X, Y, symmetry=Sign()),
            lambda: aligned_networks(X, Y, symmetry=None),
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_cure_cures(name):
    check_cures(CASES[name])
