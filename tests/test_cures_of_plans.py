"""Cures of entropic plans, of other costs, and of bounds of distances."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

import otflow as of
from otflow.metrics import (
    batched_wasserstein2_squared,
    entropic_plan,
    gelbrich,
    least_cost_plan,
    transport_cost,
    transport_plan,
    wasserstein,
    wasserstein2_squared,
)
from otflow.testing.clouds import normal
from tests.cures import Case, check_cures

F64 = torch.float64
X, Y = normal(6, 2), normal(5, 2, seed=1)
HUGE = torch.zeros(1, dtype=F64).expand(10**5, 2)


COSTS = torch.rand(6, 5, generator=torch.Generator().manual_seed(0), dtype=F64)
FORBIDDEN = COSTS.masked_fill(COSTS > 0.9, float("inf"))


def taxi(x, y):
    return (x - y).abs().sum(-1)


def contrast(decades):
    generator = torch.Generator().manual_seed(0)
    exponents = decades * torch.rand(30, 30, generator=generator, dtype=F64)
    least_cost_plan(normal(30, 2), normal(30, 2, seed=1), 10**exponents)


def unfinished(blur=0.02):
    """Solve with one step of Newton's method."""
    with mock.patch("otflow.metrics.semidual.MAX_NEWTON", 1):
        entropic_plan(X, Y, blur=blur)


def twice(x):
    """Differentiate Gelbrich's bound twice."""
    x = x.requires_grad_()
    (g,) = torch.autograd.grad(gelbrich(x, Y), x, create_graph=True)
    g.square().sum().backward()


def flat():
    return torch.cat([normal(6, 1), torch.zeros(6, 1, dtype=F64)], 1)


def negative():
    rho = of.GridDensity(torch.ones(4, dtype=F64), 0, 1, walls=True)
    return rho.with_free_weights(torch.tensor([-1.0, 1.0, 2.0, 2.0], dtype=F64))


def one():
    return of.GridDensity(torch.ones(4, dtype=F64), 0, 1, walls=True)


CASES: dict[str, Case] = {
    "pairs of clouds of two shapes": (
        ValueError,
        "use wasserstein2_squared for each pair",
        lambda: batched_wasserstein2_squared(X[None], Y[None]),
        [lambda: wasserstein2_squared(X, Y)],
    ),
    "one cloud in place of many": (
        ValueError,
        r"use x\[None\] for one cloud",
        lambda: batched_wasserstein2_squared(X, X),
        [lambda: batched_wasserstein2_squared(X[None], X[None])],
    ),
    "a power below 1": (
        ValueError,
        "take p=1 or p=2",
        lambda: wasserstein(X, Y, 0.5),
        [lambda: wasserstein(X, Y, p=1), lambda: wasserstein(X, Y, p=2)],
    ),
    "a matrix of costs of another shape": (
        ValueError,
        r"give the matrix \(6, 5\)",
        lambda: least_cost_plan(X, Y, COSTS.T),
        [lambda: least_cost_plan(X, Y, COSTS)],
    ),
    "a cost that is infinite": (
        ValueError,
        "forbid a pair by a finite cost",
        lambda: transport_cost(X, Y, FORBIDDEN),
        [lambda: transport_cost(X, Y, FORBIDDEN.clamp(max=1e6))],
    ),
    "a cost that is not reduced": (
        of.errors.InvalidFunctional,
        "reduce over the last axis",
        lambda: least_cost_plan(X, Y, lambda x, y: x - y),
        [lambda: least_cost_plan(X, Y, taxi)],
    ),
    "costs of much contrast": (
        of.errors.NotConverged,
        "take costs of less contrast",
        lambda: contrast(200),
        [lambda: contrast(3)],
    ),
    "an entropic plan that is not converged": (
        of.errors.NotConverged,
        "larger blur, or the exact transport_plan",
        unfinished,
        [lambda: unfinished(5.0), lambda: transport_plan(X, Y)],
    ),
    "an entropic plan of too many points": (
        MemoryError,
        "take fewer points",
        lambda: entropic_plan(HUGE, Y, blur=1.0),
        [lambda: entropic_plan(fewer(), Y, blur=1.0)],
    ),
    "masses that differ without a reach": (
        ValueError,
        "give a reach",
        lambda: entropic_plan(X, Y, blur=1.0, masses=(1.0, 2.0)),
        [lambda: entropic_plan(X, Y, blur=1.0, masses=(1.0, 2.0), reach=1.0)],
    ),
    "a second derivative of a bound at a singular covariance": (
        of.errors.Unsupported,
        "a covariance is singular",
        lambda: twice(flat()),
        [lambda: twice(normal(6, 2)), lambda: widened(flat())],
    ),
    "a bound for a negative mass": (
        of.errors.NonFinite,
        "look for the step",
        lambda: gelbrich(negative(), one()),
        [lambda: gelbrich(one(), one())],
    ),
}


def fewer():
    return of.Particles(HUGE).sample(50, torch.Generator().manual_seed(0))


def widened(x):
    """Differentiate the bound from a Gaussian twice."""
    moved = x - x.mean(0)
    covariance = moved.T @ moved / len(x) + 1e-6 * torch.eye(2, dtype=F64)
    mean = x.mean(0).requires_grad_()
    value = gelbrich(of.Gaussian(mean, covariance), Y)
    (g,) = torch.autograd.grad(value, mean, create_graph=True)
    g.square().sum().backward()


@pytest.mark.parametrize("case", CASES)
def test_the_cures_that_an_error_names_work(case):
    check_cures(CASES[case])
