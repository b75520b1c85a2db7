"""Flows that the callbacks watch."""

from __future__ import annotations

import warnings

import torch

import otflow as of
from otflow.testing.clouds import normal

F64 = torch.float64
SPRING = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
ATOM = of.Particles(torch.ones(1, 1, dtype=F64))
CLOUD = of.Particles(normal(6, 2))


def flow(callbacks, scheme=None, F=SPRING, mu=ATOM, **options):
    """Run a flow under the eyes of callbacks."""
    words = {"dt": 0.1, "steps": 10, "generator": 0} | options
    scheme = scheme or of.ExplicitEuler()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", of.errors.NotConvergedWarning)
        return of.flow(F, mu, scheme, on_step=callbacks, **words)


class Scripted(of.schemes.Scheme):
    """Moves the first atom by the next number of a list, and reports what it is told.

    A report of None is that of the step alone.
    """

    def __init__(self, moves, report=None):
        self.moves, self.report = list(moves), report or {}

    def init(self, F, mu):
        return 0

    def step(self, F, mu, dt, state, generator):
        tangent = torch.zeros_like(mu.points)
        tangent[0, 0] = self.moves[state]
        moved = of.Particles(mu.points + tangent, mu.weights)
        report = self.report(state) if callable(self.report) else self.report
        return of.schemes.Step(moved, state + 1, report)


def place(mu):
    """Return where the first atom is."""
    return mu.points[0, 0]
