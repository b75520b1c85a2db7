"""Digits are learnt within the budget, and alignment lowers the barrier."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from demo import networks
from demo.digits import Digits, draw, train_by_flow, train_by_hand

BUDGET = 40


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits.load()


@pytest.fixture(scope="module")
def trained(digits):
    scheme = of.ExplicitEuler()
    return [
        train_by_flow(digits, "explicit Euler", scheme, 3.0, BUDGET, seed=seed)
        for seed in (0, 1)
    ]


def test_a_barrier_is_the_height_over_the_line_of_the_ends():
    t = torch.linspace(0, 1, 3)
    assert networks.Barrier(t, torch.tensor([1.0, 5.0, 3.0])).height == 3
    assert networks.Barrier(t, torch.tensor([1.0, 2.0, 3.0])).height == 0


def test_a_shuffled_and_scaled_copy_has_no_barrier_once_aligned(digits):
    generator = torch.Generator().manual_seed(3)
    theta = torch.randn(60, 75, dtype=torch.float32, generator=generator)
    scale = torch.rand(60, 1, generator=generator) + 0.5
    copy = torch.cat([theta[:, :10] / scale, theta[:, 10:] * scale], dim=1)
    copy = copy[torch.randperm(60, generator=generator)]
    found = networks.barriers(digits, of.Particles(theta), of.Particles(copy), 5)
    apart, aligned = found[networks.APART], found[networks.ALIGNED]
    assert aligned.height < 1e-5
    torch.testing.assert_close(apart.losses[[0, -1]], aligned.losses[[0, -1]])
    assert (apart.losses - apart.losses[0]).abs().max() > 1e-3


@pytest.mark.slow
def test_alignment_lowers_the_barrier_between_trained_networks(
    digits, trained, tmp_path
):
    found = networks.barriers(digits, *(training.final for training in trained))
    apart, aligned = found[networks.APART], found[networks.ALIGNED]
    torch.testing.assert_close(apart.losses[[0, -1]], aligned.losses[[0, -1]])
    assert aligned.height < 0.2 * apart.height
    networks.draw(found, tmp_path / "networks.png")
    assert (tmp_path / "networks.png").stat().st_size > 10_000


@pytest.mark.slow
def test_no_training_overspends_its_gradients(digits, trained, tmp_path):
    prox = of.proximal.ParticleProximal(tolerance=0.2, max_gradients=12)
    jko = train_by_flow(digits, "JKO", of.JKO(prox), 10.0, BUDGET, 13)
    by_hand = train_by_hand(digits, BUDGET)
    for training in (by_hand, trained[0], jko):
        assert BUDGET - 13 < training.gradients[-1] <= BUDGET
        assert len(training.losses) == len(training.gradients) == len(training.seconds)
        assert training.seconds == sorted(training.seconds)
        assert training.losses[-1] < 0.7 * training.losses[0]
        assert training.accuracy > 0.8
    draw([by_hand, trained[0], jko], tmp_path / "digits.png")
    assert (tmp_path / "digits.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="no flow"):
        _ = by_hand.final
