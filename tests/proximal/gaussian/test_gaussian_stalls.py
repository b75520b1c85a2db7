"""Gaussian steps whose nodes cross kinks end soon, with a word; smooth ones go on."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.errors import NotConvergedWarning
from otflow.proximal import GaussianProximal
from otflow.proximal.gaussian import stall
from otflow.testing.clouds import normal
from tests import exact

F64 = torch.float64
# Most evaluations of a step among kinks, and the share of its fall that it may leave.
# Up to 30 of them are the trials of one line search across kinks.
MOST, LEFT = 450, 1e-3


def absolute(x):
    return x.abs().sum(-1)


def off_centre(x):
    return absolute(x) + 0.5 * (x - 0.3).square().sum(-1)


KINKED = {
    "|x|": of.Potential(absolute),
    "|x| and a spring": of.Potential(off_centre),
    "two kinks": of.Potential(lambda x: absolute(x - 1) + absolute(x + 0.5)),
    "with heat": of.Potential(off_centre) + 0.1 * of.Entropy(),
}


def unit(dim):
    return of.Gaussian(torch.ones(dim, dtype=F64), torch.eye(dim, dtype=F64))


@pytest.mark.slow
@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("name", KINKED)
def test_a_step_among_kinks_ends_soon(name, dim, monkeypatch):
    F, mu, dt = KINKED[name], unit(dim), 1.0
    known = GaussianProximal().solve(F, mu, dt).certificate
    assert known["iterations"] <= MOST
    if known.converged:
        return
    assert known.guarantee == "none"
    # On few nodes in the plane, values show another slope than derivatives.
    assert known["cause"].startswith(
        "the objective stopped falling" if dim == 1 else "the derivatives of F"
    )
    with monkeypatch.context() as patch:
        patch.setattr(stall, "JUMP", torch.inf)
        long = GaussianProximal().solve(F, mu, dt).certificate
    assert long["iterations"] > 2 * known["iterations"]
    assert not long.converged
    if long["nodes"] == known["nodes"]:
        # What both lost, the cost of transport included.
        fall = [c["decrease"] for c in (known, long)]
        assert fall[1] - fall[0] <= LEFT * fall[1]


def test_some_do_stall():
    known = GaussianProximal().solve(KINKED["|x|"], unit(1), 1.0).certificate
    assert known["stalled"]
    assert not known.converged


def test_the_cures_of_a_stall():
    run = lambda F, mu, dt: of.flow(F, mu, of.JKO(), dt=dt, steps=1)
    F = KINKED["with heat"]
    words = r"smooth the kink \(\|x\| by \(x\^2.*or flow a GridDensity"
    with pytest.warns(NotConvergedWarning, match=words):
        run(F, unit(1), 1.0)
    smooth = of.Potential(
        lambda x: (x.square() + 0.1).sqrt().sum(-1) + 0.5 * (x - 0.3).square().sum(-1)
    )
    assert run(smooth + 0.1 * of.Entropy(), unit(1), 1.0).converged
    rho = of.GridDensity.from_function(
        lambda x: torch.exp(-0.5 * (x - 1).square().sum(-1)), -5, 7, 120, dtype=F64
    )
    assert run(F, rho, 1.0).converged


SMOOTH = {
    "wells": lambda k: of.Potential(
        lambda x: 10**k * (x.square() - 1).square().sum(-1)
    ),
    "quartic": lambda k: of.Potential(lambda x: 10**k * x.pow(4).sum(-1)),
    "cosine": lambda k: of.Potential(lambda x: 10**k * (2 * x).cos().sum(-1)),
    "softened |x|": lambda k: of.Potential(
        lambda x: (x.square() + 10.0 ** (-k)).sqrt().sum(-1)
    ),
    "bells": lambda k: -(10**k) * of.Interaction(of.kernels.Gaussian(0.7)),
    "quadratic": lambda k: (
        10**k * exact.quadratic_form(exact.spd(2, seed=3), normal(2))
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("heat", [0.0, 0.1])
@pytest.mark.parametrize("power", [-1, 0, 1, 2])
@pytest.mark.parametrize("name", SMOOTH)
def test_no_smooth_step_that_converges_stalls(name, power, heat, monkeypatch):
    F = SMOOTH[name](power) + heat * of.Entropy()
    for dt in (0.1, 1.0, 100.0):
        for seed in (0, 1):
            mu = of.Gaussian(normal(2, seed=seed), exact.spd(2, seed=seed))
            solver = GaussianProximal(max_gradients=300, max_nodes=3000)
            known = solver.solve(F, mu, dt).certificate
            with monkeypatch.context() as patch:
                patch.setattr(stall, "JUMP", torch.inf)
                other = solver.solve(F, mu, dt).certificate
            assert known["converged"] >= other["converged"]
            assert not (known["stalled"] and other.converged)
