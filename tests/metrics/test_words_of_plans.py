"""What a plan says of itself, and a full matrix that does not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch

import otflow as of
from otflow.testing.clouds import normal

X, Y = normal(300, 2), normal(400, 2, seed=1)
MADE: dict[str, Callable[[], Any]] = {
    "Plan": lambda: of.metrics.transport_plan(X, Y),
    "Bounds": lambda: of.metrics.wasserstein2_bounds(X, Y),
    "EntropicPlan": lambda: of.metrics.entropic_plan(X, Y, blur=1.0),
}


@pytest.mark.parametrize("kind", MADE)
def test_a_plan_prints_its_numbers_in_one_line_and_not_its_tensors(kind):
    found = MADE[kind]()
    words = repr(found)
    assert words.startswith(f"{kind}(")
    assert len(words) < 200
    assert "300 points to 400" in words
    assert "tensor" not in words
    number = found.value if kind == "EntropicPlan" else found.bracket.upper
    assert f"{float(number):.6g}" in words


def test_a_full_matrix_that_does_not_fit_raises_and_its_cells_remain():
    plan = of.metrics.transport_plan(X, Y)
    with (
        mock.patch("otflow._memory.total_memory", return_value=300 * 400 * 8),
        pytest.raises(MemoryError, match=r"read the cells of the plan: rows, columns"),
    ):
        plan.dense()
    full = torch.zeros(300, 400, dtype=torch.float64)
    full[plan.rows, plan.columns] = plan.masses
    assert torch.equal(plan.dense(), full)
