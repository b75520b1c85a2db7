"""A descent among kinks ends soon, with its own word; a smooth one is left alone."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.functionals import l1_norm
from otflow.numerics import lbfgs
from otflow.proximal import ParticleProximal, PointwiseProximal, TangentProximal
from otflow.testing.clouds import normal

F64 = torch.float64
# Most gradients of a step among kinks, and the share of its fall that it may leave.
MOST, LEFT = 25, 1e-4


def network(path, dtype=F64, n=640):
    """Return a ReLU risk, with a path norm that is not known to have a map."""
    X = normal(200, 5, seed=1, dtype=dtype)
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0], dtype=dtype)
    y = (X @ normal(5, 5, seed=2, dtype=dtype).T).relu() @ signs
    F: of.Functional = of.meanfield.Risk(of.meanfield.TwoLayer("relu"), X, y)
    if path:
        V = of.meanfield.PathPenalty("l1").V
        F = F + path * of.Potential(V)
    return F, of.Particles(normal(n, 7, seed=3, dtype=dtype))


def long_descent(monkeypatch):
    """Let descents among kinks go on until nothing falls."""
    monkeypatch.setattr(lbfgs, "GROWTH", torch.inf)


def fall(result):
    """Return the fall of F, and the transport that it cost."""
    known = result.certificate
    return known["energy_before"] - known["energy_after"], known["w2"] ** 2 / 0.2


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("path", [0.0, 0.01])
def test_a_relu_risk_takes_few_gradients_a_step(path, dtype, monkeypatch):
    F, mu = network(path, dtype)
    solver, warm = ParticleProximal(certify=False), None
    for _ in range(4):
        result = solver.solve(F, mu, 0.1, warm)
        known = result.certificate
        assert known["stalled"]
        assert not known.converged
        assert known["cause"].startswith("the objective stopped falling")
        assert known["iterations"] <= MOST
        with monkeypatch.context() as patch:
            long_descent(patch)
            other = ParticleProximal(certify=False).solve(F, mu, 0.1)
        # In float32 the long one may take the jumps at a kink for round-off.
        assert not other.certificate.converged or dtype == torch.float32
        assert other.certificate["iterations"] > 2 * known["iterations"]
        # The objective is the energy and the transport.
        (lost, cost), (most, dear) = fall(result), fall(other)
        assert (most - dear) - (lost - cost) <= LEFT * (most - dear)
        mu, warm = result.measure, result.warm


@pytest.mark.parametrize("path", [0.0, 0.01])
def test_a_run_of_jko_on_a_relu_risk(path):
    F, mu = network(path)
    with pytest.warns(of.errors.NotConvergedWarning, match="smooth the kink"):
        run = of.flow(F, mu, of.JKO(), dt=0.1, steps=10)
    assert max(info["iterations"] for info in run.info) <= MOST
    assert bool((run.records["energy"].diff() < 0).all())


def test_pairs_among_kinks_are_not_carried():
    """With them the next step takes five times as many gradients."""
    F, mu = network(0.0, n=100)
    solver = ParticleProximal(certify=False)
    result = solver.solve(F, mu, 0.1)
    assert result.certificate["stalled"]
    assert not result.certificate.converged
    assert result.warm.memory.pairs == ()
    smooth = of.Potential(lambda x: (x.square() + 1).sqrt().sum(-1))
    result = solver.solve(smooth, mu, 0.1)
    assert result.certificate.converged
    assert len(result.warm.memory.pairs) > 0


def test_absolute_values_by_their_map_take_one_gradient():
    mu = of.Particles(normal(100, 2))
    known = PointwiseProximal().solve(l1_norm(), mu, 0.1).certificate
    assert (known.iterations, known["stalled"], known.guarantee) == (1, False, "exact")


def test_tangents_among_kinks_end_soon():
    F, mu = network(0.0, n=100)
    known = TangentProximal().solve(F, mu, 0.1).certificate
    assert known["stalled"]
    assert not known.converged
    assert known["iterations"] <= MOST


# Smooth problems are left alone -------------------------------------------------------

CENTRES = normal(5, 3, seed=7)
SMOOTH = {
    "stiff quadratic": lambda k: of.Potential(
        lambda x: (x.square() * torch.logspace(0, k, 3).to(x)).sum(-1)
    ),
    "wells": lambda k: of.Potential(
        lambda x: 10**k * (x.square() - 1).square().sum(-1)
    ),
    "quartic": lambda k: of.Potential(lambda x: 10**k * x.pow(4).sum(-1)),
    "a narrow valley": lambda k: of.Potential(
        lambda x: (
            10**k * (x[:, 1:] - x[:, :-1].square()).square() + (1 - x[:, :-1]).square()
        ).sum(-1)
    ),
    "a sharp mixture": lambda k: of.Potential(
        lambda x: (
            -torch.logsumexp(
                -(10**k) * (x[:, None] - CENTRES.to(x)).square().sum(-1), 1
            )
        )
    ),
    "smoothed |x|": lambda k: of.Potential(
        lambda x: (x.square() + 10.0 ** (-k)).sqrt().sum(-1)
    ),
    "Riesz": lambda k: (
        of.Interaction(of.kernels.Riesz(0.5))
        + of.Potential(lambda x: 10**k * x.square().sum(-1))
    ),
    "logarithm": lambda k: (
        of.Interaction(of.kernels.Log())
        + of.Potential(lambda x: 10**k * x.square().sum(-1))
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("power", [0, 2, 4, 6])
@pytest.mark.parametrize("name", SMOOTH)
def test_no_smooth_problem_that_converges_stalls(name, power, dtype, monkeypatch):
    F = SMOOTH[name](power)
    for dt in (0.01, 1.0, 100.0):
        for tolerance in (1e-4, 1e-7):
            mu = of.Particles(normal(9, 3, seed=power, dtype=dtype))
            solver = ParticleProximal(tolerance=tolerance, certify=False)
            known = solver.solve(F, mu, dt).certificate
            with monkeypatch.context() as patch:
                long_descent(patch)
                other = solver.solve(F, mu, dt).certificate
            assert known["converged"] >= other["converged"]
            assert known["stalled"] <= other["stalled"]
