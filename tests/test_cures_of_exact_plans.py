"""Cures of plans between particles that are asked for what they cannot give."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from unittest import mock

import pytest
import torch

import otflow as of
from otflow.testing.clouds import normal
from tests.cures import Case, check_cures

X, Y = normal(30, 2), normal(30, 2, seed=1)
plan = of.metrics.transport_plan


def matched_in_one_round(n):
    """Match n points by columns, without rounds that improve the first cells."""
    settings = {
        "otflow.metrics.assignments.MANY": 50,
        "otflow.metrics.columns.FEW": 50,
        "otflow.metrics.columns.ROUNDS": 1,
        "otflow.metrics.columns.NEIGHBOURS": 1,
    }
    with ExitStack() as stack:
        for name, value in settings.items():
            stack.enter_context(mock.patch(name, value))
        return of.metrics.assignment(normal(n, 2), normal(n, 2, seed=1))


def picture(shift):
    rho = 2.0 + normal(5, 5, seed=shift).tanh()
    return of.GridDensity(rho, 0, 1, walls=True, normalize=True)


def bracket(*measures):
    blur = 0.3 if isinstance(measures[0], of.GridDensity) else None
    return of.metrics.barycenter(measures, blur=blur).bracket()


MANY = torch.zeros(1).expand(10**8)  # one number in memory
LAW = of.Gaussian(torch.zeros(2), torch.eye(2))
WIDE = of.Gaussian(torch.ones(2), 2 * torch.eye(2))
ATOMS = of.Particles(torch.tensor([[0.0], [1.0]]))
LINE = of.Quantiles(torch.tensor([0.0, 1.0, 3.0]))


def drawn(law):
    return of.Particles(law.sample(50, torch.Generator().manual_seed(0)))


CASES: dict[str, Case] = {
    **{
        f"no blur in {call.__name__}": (
            ValueError,
            r"blur is a length and must be positive, got 0; take a tenth of the spread",
            lambda call=call: call(X, Y, blur=0.0),
            [
                lambda call=call: call(X, Y, blur=0.1 * float(X.std())),
                lambda: of.metrics.wasserstein2_squared(X, Y) / 2,
            ],
        )
        for call in (of.metrics.sinkhorn_divergence, of.metrics.entropic_plan)
    },
    "a full matrix that does not fit": (
        MemoryError,
        "read the cells of the plan: rows, columns and masses",
        lambda: replace(plan(X, Y), f=MANY, g=MANY).dense(),
        [lambda: (plan(X, Y).rows, plan(X, Y).columns, plan(X, Y).masses)],
    ),
    "a map that splits atoms": (
        of.errors.Unsupported,
        r"use plan.inverse\(\), the map from the density to the atoms",
        lambda: plan(ATOMS, LINE)(ATOMS.points),
        [lambda: plan(ATOMS, LINE).inverse()(ATOMS.points)],
    ),
    "the distance from a law to atoms": (
        TypeError,
        r"bracket; for atoms draw them, Particles\(mu.sample\(2000, generator\)\)",
        lambda: of.metrics.wasserstein2_bounds(LAW, WIDE),
        [
            lambda: of.metrics.wasserstein2(LAW, WIDE),
            lambda: plan(LAW, WIDE).bracket,
            lambda: of.metrics.wasserstein2(drawn(LAW), X.float()),
        ],
    ),
    "a simplex between Gaussians": (
        ValueError,
        r"use method=None, or Particles\(mu.sample\(1000, generator\)\)",
        lambda: plan(LAW, WIDE, method="simplex"),
        [
            lambda: plan(LAW, WIDE, method=None),
            lambda: plan(drawn(LAW), drawn(WIDE), method="simplex"),
        ],
    ),
    "the Bures map between atoms": (
        ValueError,
        "use method=None, which chooses",
        lambda: plan(X, Y, method="bures"),
        [lambda: plan(X, Y)],
    ),
    "a map in another dimension": (
        ValueError,
        r"give points of shape \(k, 2\)",
        lambda: plan(LAW, WIDE)(torch.zeros(4, 3)),
        [lambda: plan(LAW, WIDE)(torch.zeros(4, 2))],
    ),
    "an assignment with a gap": (
        of.errors.NotConverged,
        "take fewer points, or use transport_plan with a tolerance",
        lambda: matched_in_one_round(300),
        [
            lambda: matched_in_one_round(40),
            lambda: plan(normal(300, 2), normal(300, 2, seed=1), tolerance=0.1),
        ],
    ),
    "a tolerance that allows anything": (
        ValueError,
        "use e.g. tolerance=0.01",
        lambda: plan(X, Y, tolerance=1.0),
        [lambda: plan(X, Y, tolerance=0.01)],
    ),
    "sorting in the plane": (
        ValueError,
        "use method=None, which chooses",
        lambda: plan(X, Y, method="sorted"),
        [lambda: plan(X, Y, method=None)],
    ),
    "bounds of a Sinkhorn barycentre": (
        TypeError,
        r"barycenter\(\[Particles\(mu.points, mu.weights\) for mu in measures",
        lambda: bracket(picture(0), picture(1)),
        [
            lambda: bracket(
                *[of.Particles(m.points, m.weights) for m in map(picture, (0, 1))]
            )
        ],
    ),
    "points that are no copy in order": (
        ValueError,
        "use method=None, which tries it first",
        lambda: plan(X, Y, method="identity"),
        [lambda: plan(X, Y, method=None)],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_cures_that_an_error_names_work(case):
    check_cures(CASES[case])
