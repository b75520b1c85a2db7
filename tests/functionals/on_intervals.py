"""The laws of functionals, tried on a step density on the line."""

from __future__ import annotations

import torch

from otflow.testing import FunctionalContract
from otflow.testing.clouds import normal
from tests.measures.intervals import Intervals, uniform


class OnIntervals(FunctionalContract):
    has_first_variation = False

    def measure(self, dtype=torch.float64, seed=0):
        gaps = 0.5 + normal(9, seed=seed, dtype=dtype).sigmoid()
        return Intervals(gaps.cumsum(0) - 4.0)

    def measures(self):
        return [self.measure(), uniform(-1.0, 2.0)]

    def tangent(self, mu, seed=0):
        # Small beside the gaps, so that a push for time 1 does not cross.
        return 0.05 * normal(mu.n + 1, 1, seed=seed + 55, dtype=mu.dtype).tanh()
