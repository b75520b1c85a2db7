"""Duality gaps of risks with a path norm as penalty, against exact problems."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import otflow as of
from otflow.meanfield.duality import CONJUGATES
from otflow.meanfield.losses import LOSSES
from otflow.testing.clouds import normal
from tests.meanfield.convex_fits import RELU, features, fit, neurons

F64 = torch.float64
Risk, TwoLayer = of.meanfield.Risk, of.meanfield.TwoLayer
fenchel_gap = of.meanfield.fenchel_gap


def objective(risk, mu, penalty, norm="l1"):
    size = of.meanfield.path_norm(risk.network, mu, norm)
    return float(risk.value(mu) + penalty * size)


def data(n, d, loss="square"):
    X, y = normal(n, d, seed=30 + d), normal(n, 1, seed=40)[:, 0]
    return X, y.sign() if loss == "logistic" else y


# Conjugates ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(CONJUGATES))
def test_conjugates_obey_fenchel_with_equality_at_slopes(name):
    f, other = 2 * normal(40, 3, seed=1), 2 * normal(40, 3, seed=2)
    y = {
        "square": normal(40, 3, seed=3),
        "logistic": normal(40, 3, seed=3).sign(),
        "cross-entropy": torch.arange(40) % 3,
    }[name]
    loss, conjugate = LOSSES[name], CONJUGATES[name]
    slope = loss.total_and_slope(f, y)[1]
    at_slope = conjugate(slope, y).sum(1)
    equal = loss.values(f, y) + at_slope - (slope * f).sum(1)
    assert float(equal.abs().max()) < 1e-12
    # l(g) >= p g - l*(p) for every g, also at shares of the slope.
    for share in (0.0, 0.3, 1.0):
        p = share * slope
        young = loss.values(other, y) + conjugate(p, y).sum(1) - (p * other).sum(1)
        assert float(young.min()) >= -1e-12


# The gap ------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["square", "logistic"])
@pytest.mark.parametrize("d", [1, 2])
def test_the_gap_bounds_the_excess_and_vanishes_at_the_optimum(loss, d):
    X, y = data(7 if d == 1 else 5, d, loss)
    v, values = features(X.numpy())
    risk = Risk(RELU, X, y, loss=loss)
    for penalty in (0.02, 0.1):
        least, c = fit(values, y.numpy(), penalty=penalty, loss=loss)
        best = neurons(v, c)
        assert objective(risk, best, penalty) == pytest.approx(least, rel=1e-9)
        gap = fenchel_gap(risk, best, penalty)
        assert gap.kind == "proved"
        assert 0 <= gap.found <= gap.value < 1e-7
        for seed in range(20):
            mu = of.Particles(normal(5, d + 2, seed=seed) * 10 ** (-seed / 10))
            gap = fenchel_gap(risk, mu, penalty, sharpness=0)
            # The least value is known from above; the gap bounds the true excess.
            assert objective(risk, mu, penalty) - least <= gap.value
            assert gap.value - gap.found <= 1e-10 * (1 + gap.value)


def test_the_gap_is_1e_8_at_an_optimum_found_to_round_off():
    # Two points: P = (1/4)(2 - t)^2 + penalty t over f = t relu((x + 1)/2), so t = 2
    # - 2 penalty.
    X, y = torch.tensor([[-1.0], [1.0]], dtype=F64), torch.tensor([0.0, 2.0], dtype=F64)
    risk = Risk(RELU, X, y)
    for penalty in (0.01, 0.1, 0.5):
        t = 2 - 2 * penalty
        best = of.Particles(torch.tensor([[t, 0.5, 0.5]], dtype=F64))
        gap = fenchel_gap(risk, best, penalty)
        assert gap.value < 1e-13
        near = of.Particles(torch.tensor([[t + 1e-3, 0.5, 0.5]], dtype=F64))
        excess = objective(risk, near, penalty) - objective(risk, best, penalty)
        assert excess == pytest.approx(0.25e-6, rel=1e-6)
        assert excess <= fenchel_gap(risk, near, penalty).value < 1e-2


def test_above_a_large_penalty_zero_is_optimal():
    X, y = data(6, 1)
    risk, zero = Risk(RELU, X, y), of.Particles(torch.zeros(1, 3, dtype=F64))
    _, values = features(X.numpy())
    largest = float(np.abs(values.T @ y.numpy()).max() / len(y))
    assert fenchel_gap(risk, zero, largest * (1 + 1e-12)).value < 1e-12
    assert fenchel_gap(risk, zero, 0.9 * largest).value > 1e-3


def test_outputs_separate_in_the_l1_norm():
    # |a|_1 is a sum over outputs, so the least objectives of the outputs add up.
    X = normal(6, 1, seed=50)
    y, penalty = normal(6, 2, seed=51), 0.03
    v, values = features(X.numpy())
    offset = [0.1, -0.2]
    fits = [fit(values, y[:, j].numpy() - offset[j], penalty=penalty) for j in range(2)]
    risk = Risk(TwoLayer("relu", outputs=2, offset=offset), X, y)
    inner = torch.from_numpy(v)
    outer = len(v) * torch.from_numpy(np.stack([c for _, c in fits], 1))
    best = of.Particles(torch.cat([outer, inner], 1))
    least = sum(value for value, _ in fits)
    assert objective(risk, best, penalty) == pytest.approx(least, rel=1e-9)
    assert fenchel_gap(risk, best, penalty).value < 1e-7
    for seed in range(20):
        mu = of.Particles(normal(5, 4, seed=seed))
        excess = objective(risk, mu, penalty) - least
        assert excess <= fenchel_gap(risk, mu, penalty).value


@pytest.mark.parametrize("loss", ["square", "logistic"])
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_adding_the_best_neuron_leads_to_the_optimum(loss, norm):
    X, y = data(8, 1, loss)
    z, penalty = np.concatenate([X.numpy(), np.ones((8, 1))], 1), 0.03
    risk = Risk(RELU, X, y, loss=loss)
    v = np.array([[1.0, 0.0]])
    gaps, values = [], []
    for _ in range(25):
        columns = np.maximum(z @ v.T, 0)
        _, c = fit(columns, y.numpy(), penalty=penalty, loss=loss)
        mu = neurons(v, c)
        gaps.append(fenchel_gap(risk, mu, penalty, norm))
        values.append(objective(risk, mu, penalty, norm))
        neuron = gaps[-1].argmin
        assert neuron is not None
        v = np.concatenate([v, neuron[None, 1:].numpy()])
    for value, gap in zip(values, gaps, strict=True):
        assert value - values[-1] <= gap.value
    assert gaps[-1].value < 1e-6
    assert gaps[0].value > 1e-2


@pytest.mark.parametrize("loss", ["square", "logistic", "cross-entropy"])
def test_training_with_several_outputs_stays_above_the_bound(loss):
    # In the l2 norm the penalty is that of weight decay, |a||v| <= (|a|^2 + |v|^2)/2.
    X, penalty = normal(8, 1, seed=50), 0.05
    y = {
        "square": normal(8, 2, seed=51),
        "logistic": normal(8, 2, seed=51).sign(),
        "cross-entropy": torch.arange(8) % 2,
    }[loss]
    risk = Risk(TwoLayer("relu", outputs=2, offset=[0.1, -0.2]), X, y, loss=loss)
    theta = torch.zeros(1, 4, dtype=F64)
    gaps, values = [], []
    for _ in range(8):
        mu = of.Particles(theta)
        gaps.append(fenchel_gap(risk, mu, penalty, "l2"))
        values.append(objective(risk, mu, penalty, "l2"))
        neuron = gaps[-1].argmin
        assert neuron is not None
        kept = theta * (1 + 1 / len(theta)) ** 0.5
        theta = trained(risk, torch.cat([kept, 0.3 * neuron[None]]), penalty)
    for value, gap in zip(values, gaps, strict=True):
        assert value - min(values) <= gap.value
    assert gaps[-1].value < 0.3 * gaps[0].value


def trained(risk, theta, penalty):
    theta = theta.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [theta], max_iter=500, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        decay = 0.5 * penalty * theta.square().sum(1).mean()
        value = risk.value(of.Particles(theta)) + decay
        value.backward()
        return value

    optimizer.step(closure)
    return theta.detach()


def test_a_small_budget_gives_a_larger_bound():
    X, y = data(40, 3)
    risk, mu = Risk(RELU, X, y), of.Particles(normal(10, 5, seed=1))
    sharp = fenchel_gap(risk, mu, 0.1, budget=100_000, sharpness=0)
    rough = fenchel_gap(risk, mu, 0.1, budget=10)
    assert sharp.value - sharp.found <= 1e-9 * sharp.value
    assert rough.value > sharp.value
    assert rough.kind == "proved"
    assert "a larger budget" in rough.reason


def test_single_precision_and_losses_of_ones_own():
    X, y = data(6, 1)
    mu = of.Particles(normal(4, 3).float())
    gap = fenchel_gap(Risk(RELU, X.float(), y.float()), mu, 0.1)
    assert gap.argmin is not None
    assert gap.argmin.dtype == torch.float32
    double = Risk(RELU, X.float().double(), y.float().double())
    assert gap.value == pytest.approx(fenchel_gap(double, mu.to(F64), 0.1).value)
    own = Risk(RELU, X.float(), y.float(), loss=lambda f, y: (f - y).abs())
    gap = fenchel_gap(own, mu, 0.1)
    assert gap.kind == "none"
    assert math.isinf(gap.value)


# Weight decay -------------------------------------------------------------------------


DECAY = of.Potential(lambda theta: 0.5 * theta.square().sum(-1))


def test_weight_decay_is_at_least_the_path_norm():
    network = TwoLayer("relu", outputs=2)
    mu = of.Particles(normal(30, 5, seed=1), normal(30, seed=2).exp(), normalize=True)
    size = of.meanfield.path_norm(network, mu, "l2")
    assert float(DECAY.value(mu)) > 1.05 * float(size)
    scale = of.metrics.symmetries.Scale(outputs=2)
    balanced = of.Particles(scale.canonical(mu.points), mu.weights)
    assert float(DECAY.value(balanced)) == pytest.approx(float(size), rel=1e-12)


@pytest.mark.parametrize("steps", [0, 200])
def test_the_gap_bounds_the_excess_with_weight_decay_too(steps):
    X, y = data(12, 1)
    risk, penalty = Risk(TwoLayer("relu"), X, y), 0.05
    F = risk + penalty * DECAY
    start = of.Particles(normal(20, 3, seed=5))
    mu = start
    if steps:
        mu = of.flow(F, start, of.ExplicitEuler(), dt=0.05, steps=steps).final
    size = of.meanfield.path_norm(risk.network, mu, "l2")
    gap = fenchel_gap(risk, mu, penalty, "l2").value
    gap += penalty * float(DECAY.value(mu) - size)
    best = of.flow(F, start, of.ExplicitEuler(), dt=0.05, steps=1500).final
    excess = float(F.value(mu) - F.value(best))
    assert 0 < excess <= gap
    assert gap < 3 * excess + 0.05
