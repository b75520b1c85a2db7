"""Random features: the exact flow, its Lyapunov function, the same flow by steps."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

import otflow as of
from otflow.meanfield import RandomFeatures, Risk, TwoLayer
from otflow.schemes import Mobility
from otflow.testing.clouds import normal

F64 = torch.float64
TIMES = [float(t) for t in torch.logspace(-2, 4, 61, dtype=F64)]


def problem(n=40, N=300, *, realizable, activation="relu"):
    X = normal(n, 3, seed=1)
    network = TwoLayer(activation)
    mu = of.Particles(normal(N, 5, seed=2))
    if realizable:
        teacher = mu.with_free_atoms(
            torch.cat([normal(N, 1, seed=3), mu.points[:, 1:]], 1)
        )
        y = network(teacher, X)
    else:
        # Fewer features than data: the least risk is positive.
        mu = of.Particles(mu.points[:15])
        y = normal(n, 1, seed=4)[:, 0]
    return Risk(network, X, y), mu


CASES = [True, False]


def norm(mu, nu):
    return float(mu.norm(nu.points - mu.points))


@pytest.mark.parametrize("realizable", CASES)
def test_the_flow_solves_its_equation(realizable):
    risk, mu = problem(realizable=realizable)
    features = RandomFeatures(risk, mu)
    for t in (0.0, 0.3, 5.0):
        here, h = features.flow(t), 1e-4
        later = features.flow(t + h)
        middle = features.flow(t + h / 2)
        rate = (later.points - here.points) / h
        velocity = risk.velocity(middle)
        torch.testing.assert_close(rate[:, 0], velocity[:, 0], rtol=1e-5, atol=1e-7)
        assert torch.equal(here.points[:, 1:], mu.points[:, 1:])
    assert torch.equal(features.flow(0.0).points, mu.points)


@pytest.mark.parametrize("realizable", CASES)
def test_the_lyapunov_function_does_not_increase_and_gives_the_rate(realizable):
    risk, mu = problem(realizable=realizable)
    features = RandomFeatures(risk, mu)
    assert (features.infimum > 1e-2) != realizable
    best = features.minimizer
    assert float(risk.value(best)) == pytest.approx(features.infimum, abs=1e-12)
    # By the risk and the norm of the neurons themselves.
    values, ratios, literal = [], [], []
    for t in TIMES:
        nu = features.flow(t)
        excess = float(risk.value(nu)) - features.infimum
        half = 0.5 * norm(best, nu) ** 2
        values.append(t * excess + half)
        literal.append(t * float(risk.value(nu)) + half)
        ratios.append(2 * t * excess / norm(best, mu) ** 2)
        assert features.excess(t) == pytest.approx(excess, rel=1e-6, abs=1e-14)
        noise = 1e-12 * (1 + t)
        assert features.lyapunov(t) == pytest.approx(values[-1], rel=1e-6, abs=noise)
        assert excess <= features.bound(t) + 1e-15
    told = [features.lyapunov(t) for t in TIMES]
    assert all(b <= a for a, b in pairwise(told))
    slack = [1e-12 * (1 + t) for t in TIMES]
    falls = [a - b for a, b in pairwise(values)]
    assert all(fall > -eps for fall, eps in zip(falls, slack[1:], strict=True))
    assert 0.05 < max(ratios) <= 1 / (2 * math.e)
    # The literal form of the survey increases where the least risk is positive.
    assert (literal[-1] > 1.1 * min(literal)) != realizable


def test_the_bound_is_attained_by_an_eigenvector():
    risk, mu = problem(realizable=False)
    features = RandomFeatures(risk, mu)
    H = risk.network.hidden(risk.network.encode(risk.X), mu.points)
    rates, vectors = torch.linalg.eigh(H.T @ H / (len(H) * mu.n))
    rate, direction = float(rates[-4]), vectors[:, -4]
    assert float(features.eigenvalues[3]) == pytest.approx(rate, rel=1e-10)
    x = features.minimizer.points.clone()
    x[:, 0] += 2.0 * direction
    again = RandomFeatures(risk, of.Particles(x))
    t = 1 / (2 * rate)
    assert again.excess(t) == pytest.approx(again.bound(t), rel=1e-9)


def test_the_limit_is_the_minimiser_nearest_to_the_start():
    risk, mu = problem(realizable=True)
    features = RandomFeatures(risk, mu)
    best = features.minimizer.points[:, 0]
    H = risk.network.hidden(risk.network.encode(risk.X), mu.points) / mu.n
    lacking = risk.y - H @ mu.points[:, 0]
    nearest = mu.points[:, 0] + torch.linalg.lstsq(H, lacking, driver="gelsd").solution
    torch.testing.assert_close(best, nearest, rtol=1e-8, atol=1e-8)
    late = features.flow(1e9).points[:, 0]
    torch.testing.assert_close(late, best, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("realizable", CASES)
def test_gradient_descent_of_the_longest_step_keeps_the_bound(realizable):
    risk, mu = problem(realizable=realizable)
    features = RandomFeatures(risk, mu)
    dt = 1 / float(features.eigenvalues[0])
    freeze = Mobility(of.ExplicitEuler(), risk.network.mobility(3, inner=0.0))
    run = of.flow(risk, mu, freeze, dt=dt, steps=3000, every=20)
    excess = run.records["energy"] - features.infimum
    ratios = 2 * run.times * excess / features.distance**2
    best, x = features.minimizer, run.snapshots
    values = run.times * excess + torch.tensor(
        [0.5 * norm(best, nu) ** 2 for nu in x], dtype=F64
    )
    assert bool((values.diff() <= 1e-12).all())
    assert 0.04 < float(ratios.max()) < 1 / (2 * math.e)


@pytest.mark.parametrize(
    ("scheme", "order"), [(of.ExplicitEuler(), 1), (of.JKO(order=2), 2)], ids=["1", "2"]
)
def test_steps_of_the_outer_layer_converge_to_the_flow(scheme, order):
    risk, mu = problem(realizable=True, N=60)
    features, freeze = RandomFeatures(risk, mu), risk.network.mobility(3, inner=0.0)
    errors = []
    for dt in (0.2, 0.1):
        solver = of.proximal.ParticleProximal(tolerance=1e-10)
        inner = of.JKO(solver, order=2) if order == 2 else scheme
        run = of.flow(risk, mu, Mobility(inner, freeze), dt=dt, steps=round(2 / dt))
        errors.append(norm(features.flow(2.0), run.final))
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.15)


def test_logistic_loss_against_a_comparator():
    # For a convex loss: t (L(a_t) - L(a)) <= |a_0 - a|^2 / 2, for every a.
    X = normal(40, 3, seed=1)
    y = torch.sign(X[:, 0] + 0.3 * X[:, 1])
    network = TwoLayer("relu")
    risk, mu = (
        Risk(network, X, y, loss="logistic"),
        of.Particles(normal(300, 5, seed=2)),
    )
    freeze = Mobility(of.ExplicitEuler(), network.mobility(3, inner=0.0))
    run = of.flow(risk, mu, freeze, dt=0.2, steps=2000, every=20)
    largest = []
    for goal in run.snapshots[5::10]:
        excess = run.records["energy"] - float(risk.value(goal))
        ratios = 2 * run.times * excess / norm(goal, mu) ** 2
        largest.append(float(ratios.max()))
    assert 0.1 < max(largest) <= 1


@pytest.mark.parametrize("scaling", ["mean-field", "ntk", "sum"])
@pytest.mark.parametrize("outputs", [None, 2])
def test_scalings_outputs_offsets_and_masses(scaling, outputs):
    network = TwoLayer(
        torch.sin, outputs=outputs, scaling=scaling, bias=False,
        offset=[0.5, -1.0] if outputs else 0.5,
    )  # fmt: skip
    X, y = normal(12, 2, seed=1), normal(12, outputs or 1, seed=2)
    risk = Risk(network, X, y if outputs else y[:, 0])
    theta, w = normal(9, (outputs or 1) + 2, seed=3), None
    if scaling == "mean-field":
        w = torch.arange(9.0, dtype=F64).softmax(0)
    mu = of.Particles(theta, w)
    features, t, h = RandomFeatures(risk, mu), 0.2, 1e-5
    m = outputs or 1
    rate = (features.flow(t + h).points - features.flow(t).points) / h
    velocity = risk.velocity(features.flow(t + h / 2))
    torch.testing.assert_close(rate[:, :m], velocity[:, :m], rtol=1e-5, atol=1e-6)
    value = float(risk.value(features.flow(t)))
    assert features.infimum + features.excess(t) == pytest.approx(value, rel=1e-10)


def test_features_that_vanish_and_atoms_without_mass():
    X, y = torch.zeros(4, 1, dtype=F64), torch.ones(4, dtype=F64)
    risk = Risk(TwoLayer("relu", bias=False), X, y)
    mu = of.Particles(normal(3, 2))
    features = RandomFeatures(risk, mu)
    assert torch.equal(features.flow(2.0).points, mu.points)
    assert (features.infimum, features.distance, len(features.eigenvalues)) == (
        0.5,
        0,
        0,
    )
    assert features.lyapunov(1.0) == features.bound(1.0) == 0
    # An atom without mass moves as a test particle.
    risk, mu = problem(realizable=False)
    weights = torch.ones(mu.n, dtype=F64)
    weights[3] = 0
    mu = of.Particles(mu.points, weights, normalize=True)
    features, h = RandomFeatures(risk, mu), 1e-5
    rate = (features.flow(1.0 + h).points - features.flow(1.0).points) / h
    velocity = risk.velocity(features.flow(1.0 + h / 2))
    torch.testing.assert_close(rate[:, 0], velocity[:, 0], rtol=1e-5, atol=1e-7)


def test_single_precision():
    X = normal(12, 2, seed=1).float()
    risk = Risk(TwoLayer("tanh"), X, X[:, 0])
    mu = of.Particles(normal(9, 4, seed=3).float())
    features = RandomFeatures(risk, mu)
    assert features.flow(1.0).points.dtype == torch.float32
    double = RandomFeatures(risk.to(F64), mu.to(F64))
    for t in (0.1, 10.0):
        torch.testing.assert_close(
            features.flow(t).points.double(),
            double.flow(t).points,
            rtol=1e-4,
            atol=1e-4,
        )


def test_bad_input():
    risk, mu = problem(realizable=True)
    features = RandomFeatures(risk, mu)
    for t in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="t must"):
            features.flow(t)
    with pytest.raises(ValueError, match="t must"):
        features.bound(0.0)
    logistic = Risk(risk.network, risk.X, risk.y.sign(), loss="logistic")
    with pytest.raises(of.errors.Unsupported, match=r"schemes\.Mobility"):
        RandomFeatures(logistic, mu)
    layer = of.meanfield.CustomLayer(lambda x, t: x @ t.T)
    with pytest.raises(of.errors.Unsupported, match="take a TwoLayer"):
        RandomFeatures(Risk(layer, risk.X, risk.y), of.Particles(normal(4, 3)))
    with pytest.raises(ValueError, match="p = m"):
        RandomFeatures(risk, of.Particles(normal(4, 3)))
    live = of.Particles(mu.points.clone().requires_grad_())
    with pytest.raises(of.errors.Unsupported, match=r"mu\.detach\(\)"):
        RandomFeatures(risk, live)
    with pytest.raises(TypeError, match="mu"):
        RandomFeatures(risk, mu.points)


def test_targets_whose_squares_overflow_raise():
    risk, mu = problem(realizable=False)
    huge = Risk(risk.network, risk.X, 1e200 * risk.y)
    with pytest.raises(of.errors.NonFinite, match="the least risk is inf"):
        RandomFeatures(huge, mu)
