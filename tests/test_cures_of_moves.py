"""Cures of moves to another dtype or device, of arrays, and of the algebra."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import otflow as of
from otflow import kernels
from otflow.errors import Unsupported
from otflow.testing.clouds import normal
from tests.cures import Case, check_cures

F32, F64 = torch.float32, torch.float64
CLOUD: Any = of.Particles(normal(5, 2))
UNEVEN: Any = of.Particles(normal(2, 2), torch.tensor([0.25, 0.75], dtype=F64))
LINE: Any = of.Quantiles(torch.linspace(-1, 1, 9, dtype=F64))
BELL: Any = of.Gaussian(torch.zeros(1, dtype=F64), torch.eye(1, dtype=F64))
CELLS: Any = of.GridDensity(torch.ones(4, dtype=F64), 0, 1, walls=True)
LIVE: Any = of.Particles(normal(5, 2).requires_grad_())
F: Any = of.Potential(lambda x: x.square().sum(-1))
W: Any = kernels.Gaussian(1.0)


def centred(c):
    """Return a potential whose function holds a tensor."""
    return of.Potential(lambda x: (x - c).square().sum(-1))


class Centred:
    """The same as an object with a tensor."""

    def __init__(self, c):
        self.c = c

    def __call__(self, x):
        return (x - self.c).square().sum(-1)


def network():
    return torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Flatten(0))


def narrow():
    covariance = torch.tensor([1.0, 1e-14], dtype=F64).diag()
    return of.Gaussian(torch.zeros(2, dtype=F64), covariance)


def written():
    """Return a measure of one's own after a write, and how it was made."""
    mu = of.Particles(normal(3, 2))
    mu.points.zero_()
    return mu


LOW = CLOUD.to(F32)
C = normal(2)
CASES: dict[str, Case] = {
    "a place that is none": (
        TypeError,
        r"write \.to\(torch\.float64\), \.to\('cpu'\) or \.to\(x\)",
        lambda: CLOUD.to(np.float32),
        [lambda: CLOUD.to(F64), lambda: CLOUD.to("cpu"), lambda: LOW.to(C)],
    ),
    "the name of a dtype": (
        TypeError,
        r"^'float64' is the name of a dtype; write \.to\(torch\.float64\)",
        lambda: LOW.to("float64"),
        [lambda: LOW.to(torch.float64)],
    ),
    "two dtypes": (
        TypeError,
        r"^to got torch\.float64 and torch\.float32; give one dtype",
        lambda: LOW.to(F32, dtype=F64),
        [lambda: LOW.to(F64), lambda: LOW.to(C), lambda: LOW.to(C, F64)],
    ),
    "half precision": (
        ValueError,
        r"use \.to\(torch\.float32\)",
        lambda: CLOUD.to(torch.float16),
        [lambda: CLOUD.to(F32)],
    ),
    "integers": (
        TypeError,
        r"use \.to\(torch\.float64\)",
        lambda: F.to(torch.int32),
        [lambda: F.to(F64)],
    ),
    "a device without numbers": (
        TypeError,
        r"use \.to\('cpu'\)",
        lambda: CLOUD.to("meta"),
        [lambda: CLOUD.to("cpu")],
    ),
    "a covariance too narrow for float32": (
        ValueError,
        r"keep torch\.float64",
        lambda: narrow().to(F32),
        [lambda: narrow().to(F64)],
    ),
    "a tensor of a function": (
        Unsupported,
        r"make the function with c\.to\(\.\.\.\)",
        lambda: centred(C).to(F32),
        [
            lambda: centred(C.to(F32)).value(LOW),
            lambda: of.Potential(Centred(C)).to(F32).value(LOW),
        ],
    ),
    "a module": (
        Unsupported,
        r"write V\.to\(\.\.\.\), which moves it in place",
        lambda: of.Potential(network()).to(F64),
        [lambda: of.Potential(network().to(F64)).value(CLOUD)],
    ),
    "weights beside an array": (
        Unsupported,
        r"use mu\.points\.numpy\(\) and mu\.weights\.numpy\(\)",
        lambda: np.asarray(UNEVEN),
        [lambda: (UNEVEN.points.numpy(), UNEVEN.weights.numpy())],
    ),
    "a graph beside an array": (
        Unsupported,
        r"use mu\.detach\(\)",
        lambda: np.asarray(LIVE),
        [lambda: np.asarray(LIVE.detach())],
    ),
    "an array without a copy": (
        ValueError,
        r"use numpy\.asarray\(mu, dtype\), which may copy",
        lambda: CLOUD.__array__(np.float32, copy=False),
        [lambda: np.asarray(CLOUD, np.float32)],
    ),
    "quantiles as an array": (
        Unsupported,
        r"use mu\.edges\.numpy\(\), mu\.density\(\)\.numpy\(\) or mu\.weights",
        lambda: np.asarray(LINE),
        [lambda: (LINE.edges.numpy(), LINE.density().numpy(), LINE.weights.numpy())],
    ),
    "a law as an array": (
        Unsupported,
        r"use mu\.mean\.numpy\(\) and mu\.covariance\.numpy\(\)",
        lambda: np.asarray(BELL),
        [lambda: (BELL.mean.numpy(), BELL.covariance.numpy())],
    ),
    "cells as an array": (
        Unsupported,
        r"use mu\.grid\.numpy\(\), the density on the cells, or mu\.weights",
        lambda: np.asarray(CELLS),
        [lambda: (CELLS.grid.numpy(), CELLS.weights.numpy())],
    ),
    "the length of a law": (
        Unsupported,
        r"use mu\.n, of its nodes",
        lambda: len(BELL),
        [lambda: BELL.n],
    ),
    "a functional over 0": (
        ZeroDivisionError,
        r"divide by another number, or leave the term out of the sum",
        lambda: F + F / 0,
        [lambda: F + F / 2, lambda: F],
    ),
    "a kernel over 0": (
        ZeroDivisionError,
        r"divide by another number, or leave the term out of the sum",
        lambda: W + W / 0,
        [lambda: W + W / 2, lambda: W],
    ),
    "a function among kernels": (
        TypeError,
        r"wrap a function: kernels\.Function\(W\)",
        lambda: kernels.Combination(((2.0, torch.sum),)),
        [lambda: kernels.Combination(((2.0, kernels.Function(torch.sum)),))],
    ),
    "no kernels": (
        ValueError,
        r"a kernel that is 0 is 0 \* Quadratic\(\)",
        lambda: kernels.Combination(()),
        [lambda: CLOUD.interaction(0 * kernels.Quadratic())],
    ),
    "a write into a measure": (
        of.errors.ModifiedInPlace,
        r"write into a copy, mu\.points\.clone\(\), and make a new measure of it",
        lambda: F.value(written()),
        [lambda: F.value(of.Particles(CLOUD.points.clone().zero_()))],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_cure_works(name):
    check_cures(CASES[name])
