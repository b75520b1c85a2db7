"""Each measure of the library says why it lacks a capability, and what to use."""

from __future__ import annotations

import pytest

import otflow as of
from otflow.testing.capabilities import CAPABILITIES

MEASURES = [of.Particles, of.Quantiles, of.Gaussian, of.GridDensity]


@pytest.mark.parametrize("kind", MEASURES)
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_missing_capability_has_a_cure_of_its_own(kind, capability):
    has_it = getattr(kind, capability) is not getattr(of.Measure, capability)
    assert has_it != (capability in kind.cures)
