"""Cures of plans from a density to atoms."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from scipy.spatial import QhullError

import otflow as of
from otflow.metrics import (
    semidiscrete_plan,
    sinkhorn_divergence,
    transport_plan,
    wasserstein,
    wasserstein2,
)
from otflow.testing.clouds import normal
from tests.cures import Case, check_cures

F64 = torch.float64
Y = normal(6, 2)
W = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.2, 0.2], dtype=F64)
TWICE = torch.cat([Y, Y[:2]])
CLOSE = torch.cat([Y, Y + 1e-12])


def square(n=6):
    rho = torch.linspace(1, 2, n * n, dtype=F64).reshape(n, n)
    return of.GridDensity(rho, -1, 1, walls=True, normalize=True)


def line(unit=1.0):
    rho = torch.linspace(1, 2, 6, dtype=F64)
    return of.GridDensity(rho, 0, unit, walls=True, normalize=True)


def bell():
    law = of.Gaussian(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64))
    return semidiscrete_plan(law, Y)


def as_grid():
    f = lambda x: torch.exp(-0.5 * x.square().sum(-1))
    return of.GridDensity.from_function(f, -5, 5, (20, 20), dtype=F64)


def merged():
    weights = torch.full((len(TWICE),), 1 / len(TWICE), dtype=F64)
    y, k = TWICE.unique(dim=0, return_inverse=True)
    w = torch.zeros_like(y[:, 0]).index_add(0, k, weights)
    return semidiscrete_plan(square(), of.Particles(y, w))


def without_hull():
    with mock.patch("scipy.spatial.ConvexHull", side_effect=QhullError("flat")):
        semidiscrete_plan(square(), CLOSE)


def twice(value):
    y = Y.clone().requires_grad_()
    (slope,) = torch.autograd.grad(value(y), y, create_graph=True)
    slope.square().sum().backward()


def once():
    y = Y.clone().requires_grad_()
    semidiscrete_plan(square(), y).cost.backward()


CASES: dict[str, Case] = {
    "atoms before their density": (
        TypeError,
        "the density comes first: swap the arguments",
        lambda: semidiscrete_plan(Y, square()),
        [lambda: semidiscrete_plan(square(), Y)],
    ),
    "no density": (
        TypeError,
        "for two clouds use transport_plan",
        lambda: semidiscrete_plan(Y, Y),
        [lambda: transport_plan(Y, Y)],
    ),
    "a density that is no grid": (
        TypeError,
        r"use GridDensity\.from_function\(f, lower, upper, shape\)",
        bell,
        [lambda: semidiscrete_plan(as_grid(), Y)],
    ),
    "an atom without mass": (
        ValueError,
        r"leave such atoms out: Particles\(points\[weights > 0\]",
        lambda: semidiscrete_plan(square(), of.Particles(Y, W)),
        [lambda: semidiscrete_plan(square(), of.Particles(Y[W > 0], W[W > 0]))],
    ),
    "two atoms in one place": (
        ValueError,
        r"coincide.*make them one: y, k = points\.unique",
        lambda: semidiscrete_plan(square(), TWICE),
        [merged],
    ),
    "atoms closer than round-off": (
        of.errors.NotConvergedWarning,
        "make one atom of those that lie close together",
        lambda: semidiscrete_plan(square(), CLOSE),
        [lambda: semidiscrete_plan(square(), Y)],
    ),
    "a tolerance below the round-off of close atoms": (
        of.errors.NotConvergedWarning,
        "take a larger tolerance",
        lambda: semidiscrete_plan(square(), torch.cat([Y, Y + 1e-8]), tolerance=1e-11),
        [lambda: semidiscrete_plan(square(), torch.cat([Y, Y + 1e-8]), tolerance=1e-6)],
    ),
    "atoms without cells": (
        of.errors.NotConverged,
        "are not known to round-off; make one atom",
        without_hull,
        [lambda: semidiscrete_plan(square(), Y)],
    ),
    "a line too long to be squared": (
        of.errors.NonFinite,
        "divide them by a length of the problem",
        lambda: semidiscrete_plan(line(1e200), Y[:, :1]),
        [lambda: semidiscrete_plan(line(1e200 / 1e200), Y[:, :1])],
    ),
    "a second derivative of a semi-discrete plan": (
        of.errors.Unsupported,
        "differentiate once, or use sinkhorn_divergence between atoms",
        lambda: twice(lambda y: semidiscrete_plan(square(), y).cost),
        [
            once,
            lambda: twice(
                lambda y: sinkhorn_divergence(
                    of.Particles(square().points, square().weights), y, blur=0.5
                )
            ),
        ],
    ),
    "another power against a density on the line": (
        TypeError,
        "wasserstein2 and semidiscrete_plan take it as a density",
        lambda: wasserstein(Y[:, :1], line(), 3.0),
        [
            lambda: wasserstein2(Y[:, :1], line()),
            lambda: semidiscrete_plan(line(), Y[:, :1]),
            lambda: wasserstein(
                Y[:, :1], of.Particles(line().points, line().weights), 3.0
            ),
        ],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_cures_that_an_error_names_work(case):
    check_cures(CASES[case])
