"""Scores beside the networks of scikit-learn of the same width."""

from __future__ import annotations

import pytest

from benchmarks import estimators as benchmark

pytestmark = [
    pytest.mark.slow,
    # 200 epochs are the limit of both, and not all fits converge in these.
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]


@pytest.mark.parametrize("name", ["digits", "breast cancer", "4 classes, n = 20,000"])
def test_labels_are_found_within_a_point(name):
    found = benchmark.scores(name, 128)
    assert found["otflow"][0] > found["MLP"][0] - 0.01
    assert found["MLP"][0] > 0.85


@pytest.mark.parametrize("name", ["diabetes", "Friedman, n = 20,000"])
def test_numbers_are_found_within_three_hundredths(name):
    found = benchmark.scores(name, 128)
    best = max(score for model, (score, _) in found.items() if model != "otflow")
    assert found["otflow"][0] > best - 0.03
    assert best > 0.3


def test_a_time_to_a_loss_is_the_first():
    curve = [(1.0, 0.5), (2.0, 0.2), (3.0, 0.3), (4.0, 0.1)]
    assert benchmark.seconds_to(curve, 0.25) == 2.0
    assert benchmark.seconds_to(curve, 0.05) == float("inf")
