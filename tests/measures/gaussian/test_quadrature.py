"""Rules and grids that a machine has no room for are refused before any work."""

from __future__ import annotations

import pytest
import torch

import otflow as of


@pytest.mark.parametrize(
    "build",
    [
        lambda k: of.Gaussian(torch.zeros(3), torch.eye(3), nodes=k),
        lambda k: of.Gaussian(torch.zeros(2), torch.eye(2)).refined(k),
        lambda k: of.Gaussian(torch.zeros(9), torch.eye(9), nodes=k**3),
        lambda k: of.GridDensity.from_function(
            lambda x: x[:, 0], 0, 1, (k, k, k), walls=True
        ),
    ],
)
def test_what_does_not_fit_into_the_memory_is_refused_before_it_starts(
    build, monkeypatch
):
    monkeypatch.setattr("otflow._memory.total_memory", lambda _: 1_000_000)
    with pytest.raises(MemoryError, match="take fewer"):
        build(78)
    assert build(8).n <= 512


def test_a_rule_of_too_many_nodes_is_refused_on_a_real_machine():
    mu = of.Gaussian(torch.zeros(3), torch.eye(3))
    with pytest.raises(MemoryError, match="on each of 3 axes"):
        mu.refined(1_000_000)
