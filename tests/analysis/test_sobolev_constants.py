"""Log-Sobolev constants: below those of laws on a grid, and the rates of flows."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.analysis import log_sobolev
from otflow.optimality import gibbs
from tests import exact
from tests.optimality.test_gibbs import bump, network

F64 = torch.float64
X = torch.linspace(-7, 7, 1401, dtype=F64)
STEP = float(X[1] - X[0])


def ripple(size, temperature, lam=1.0):
    """Return a potential with a bounded part, its free energy and the law on a grid."""
    bounded = of.Potential(lambda x: size * torch.cos(3 * x[:, 0]) / 2)
    F = exact.quadratic(lam) + bounded + temperature * of.Entropy()
    V = 0.5 * lam * X.square() + size * torch.cos(3 * X) / 2
    return F, torch.softmax(-V / temperature, 0)


def rate_of(found):
    """Return the rate, which must be known."""
    assert found.rate is not None
    return found.rate


def spectral_gap(p):
    """Return the least eigenvalue > 0 of the Dirichlet form of a law on the grid.

    The gap is at least the log-Sobolev constant.
    """
    edges = (p[1:] * p[:-1]).sqrt() / STEP**2
    form = torch.diag(
        torch.cat([edges, edges[:1] * 0]) + torch.cat([edges[:1] * 0, edges])
    )
    form = form - torch.diag(edges, 1) - torch.diag(edges, -1)
    scale = p.rsqrt()
    return float(torch.linalg.eigvalsh(scale[:, None] * form * scale)[1])


def information(q, p):
    """Return KL(q|p) and the Fisher information of q with respect to p on the grid."""
    ratio = (q / p).log()
    slope = torch.gradient(ratio, spacing=STEP)[0]
    return float(q @ ratio), float(q @ slope.square())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("size", [0.0, 0.7, 2.0])
def test_the_constant_is_below_that_of_the_law(size, temperature):
    F, p = ripple(size, temperature)
    found = log_sobolev(F, oscillation=size)
    wide = p > 1e-12
    alpha = found.constant
    assert alpha == pytest.approx(math.exp(-size / temperature) / temperature)
    assert alpha <= spectral_gap(p[wide]) * (1 + 1e-3)
    generator = torch.Generator().manual_seed(0)
    tightest = math.inf
    for _ in range(60):
        centre, width = torch.randn(2, generator=generator, dtype=F64)
        q = torch.softmax(-((X - centre) ** 2) / (2 * (0.2 + width.abs())), 0)
        # Laws that are close to p are among the worst for a Gaussian.
        q = (0.3 * q + 0.7 * p) if centre > 0 else q
        kl, fisher = information(q[wide] / q[wide].sum(), p[wide] / p[wide].sum())
        tightest = min(tightest, fisher / (2 * kl))
    assert alpha <= tightest * (1 + 1e-2)
    # A Gaussian translated attains the constant of a Gaussian.
    if size == 0:
        q = torch.softmax(-((X - 0.5) ** 2) / (2 * temperature), 0)
        kl, fisher = information(q[wide] / q[wide].sum(), p[wide] / p[wide].sum())
        assert fisher / (2 * kl) == pytest.approx(alpha, rel=1e-3)


def test_the_rate_is_attained_by_a_translated_gaussian():
    # The excess of a mean m is lam m^2 / 2, and m falls like e^(-lam t).
    lam, temperature, m, t = 0.8, 0.3, 2.0, 1.7
    F = exact.quadratic(lam) + temperature * of.Entropy()
    rate = rate_of(log_sobolev(F))
    variance = torch.full((1, 1), temperature / lam, dtype=F64)
    energies = [
        float(F.value(of.Gaussian(torch.tensor([mean], dtype=F64), variance)))
        for mean in (0.0, m, m * math.exp(-lam * t))
    ]
    ratio = (energies[2] - energies[0]) / (energies[1] - energies[0])
    assert ratio == pytest.approx(math.exp(-rate * t), rel=1e-10)


def test_a_linear_quadratic_network_falls_faster_than_its_rate():
    # k/2 (E theta - m)^2 has an affine first variation, and the mean falls like
    # e^(-(k + lam) t).
    k, lam, temperature = 3.0, 0.5, 0.5
    layer = of.meanfield.CustomLayer(lambda x, theta: theta[:, 0].expand(len(x), -1))
    one = torch.ones(1, 1, dtype=F64)
    risk = k * of.meanfield.Risk(layer, one, 2.0 * one[:, 0])
    F = of.meanfield.free_energy(risk, temperature, lam)
    found = log_sobolev(F, convexity=0.0)
    assert found.rate == pytest.approx(2 * lam)
    rest, t = 12 / 7, 0.9
    variance = torch.full((1, 1), temperature / lam, dtype=F64)
    value = lambda mean: float(
        F.value(of.Gaussian(torch.tensor([mean], dtype=F64), variance))
    )
    fallen = value(rest + math.exp(-(k + lam) * t)) - value(rest)
    ratio = fallen / (value(rest + 1.0) - value(rest))
    assert ratio == pytest.approx(math.exp(-2 * (k + lam) * t), rel=1e-9)
    assert ratio < math.exp(-rate_of(found) * t)


@pytest.mark.slow
def test_the_free_energy_of_a_network_falls_at_least_at_the_rate():
    # f = E tanh(w x), so that |f - y| <= 1 + |y| and the first variation of the risk
    # oscillates by at most twice its mean.
    risk, temperature, ridge = network(), 1.0, 0.5
    F = of.meanfield.free_energy(risk, temperature, ridge)
    H = 2 * float((1 + risk.y.abs()).mean())
    found = log_sobolev(F, oscillation=H)
    assert 0 < rate_of(found) < 2 * ridge
    rho = bump(0.3, cells=120, side=8.0, centre=2.0)
    best = gibbs(F, rho)
    dt, steps = 0.05, 60
    run = of.flow(F, rho, of.JKO(), dt=dt, steps=steps, every=10)
    excess = run.records["energy"] - best.energy
    assert bool((run.records["energy"].diff() < 0).all())
    assert float(run.final.weights.sum()) == pytest.approx(1.0, abs=1e-12)
    # A JKO step is slower than the flow, by the factor of an implicit step.
    slower = math.log1p(rate_of(found) / 2 * dt) / dt * 2
    for t, e in zip(run.times.tolist(), excess.tolist(), strict=True):
        assert e <= float(excess[0]) * math.exp(-slower * t)
    # And the bound says something: at this time it is below 1.
    assert math.exp(-slower * float(run.times[-1])) < 0.99


def test_the_oscillation_declared_of_the_network_is_true():
    risk, rho = network(), bump(cells=200)
    H = 2 * float((1 + risk.y.abs()).mean())
    for centre in (-3.0, 0.0, 0.4, 5.0):
        first = risk.first_variation(bump(0.2, centre=centre), rho.points)
        assert 0.02 * H < float(first.max() - first.min()) <= H


def test_without_mixture_convexity_there_is_no_rate():
    F = exact.quadratic() - of.Interaction(of.kernels.Gaussian(1.0)) + of.Entropy()
    found = log_sobolev(F, oscillation=2.0)
    assert found.rate is None
    assert found.constant == pytest.approx(math.exp(-2.0))


@pytest.mark.parametrize("value", [-1.0, math.nan])
def test_an_oscillation_that_is_none_raises(value):
    with pytest.raises(ValueError, match="oscillation"):
        log_sobolev(exact.quadratic() + of.Entropy(), oscillation=value)


# Against other means ------------------------------------------------------------------


def gap_of(V, temperature, most=6.0, n=1201):
    """Return the spectral gap of the law e^(-V / T) on the line, by differences.

    A log-Sobolev constant is at most the gap: for q near the law its inequality is that
    of Poincare.
    """
    x = torch.linspace(-most, most, n, dtype=torch.float64)
    h = float(x[1] - x[0])
    at, between = V(x), V(0.5 * (x[1:] + x[:-1]))
    p = torch.exp(-(at - at.min()) / temperature)
    edge = torch.exp(-(between - at.min()) / temperature)
    matrix = torch.zeros(n, n, dtype=torch.float64)
    i = torch.arange(n - 1)
    matrix[i, i] += edge
    matrix[i + 1, i + 1] += edge
    matrix[i, i + 1] -= edge
    matrix[i + 1, i] -= edge
    root = p.rsqrt() / h
    return float(torch.linalg.eigvalsh(root[:, None] * matrix * root)[1])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("height", [0.0, 0.5, 1.5])
def test_the_constant_is_at_most_the_spectral_gap(temperature, height):
    """Under a spring with a bump of a given height; without one they are equal."""

    def bump(x):
        return height * torch.cos(3 * x)

    F = of.Potential(lambda x: x.square().sum(-1), modulus=2.0)
    F = F + of.Potential(lambda x: bump(x[..., 0])) + temperature * of.Entropy()
    found = log_sobolev(F, oscillation=2 * height)
    gap = gap_of(lambda x: x.square() + bump(x), temperature)
    by_hand = 2 / temperature * math.exp(-2 * height / temperature)
    assert found.constant == pytest.approx(by_hand, rel=1e-12)
    assert found.constant <= gap * (1 + 1e-3)
    if height == 0:
        assert found.constant == pytest.approx(gap, rel=1e-3)


@pytest.mark.parametrize("dim", [2, 3, 6])
def test_a_modulus_that_depends_on_the_dimension_is_none(dim):
    """F does not know its dimension; in one the penalty of norm l1 looks convex."""
    ridge = of.Potential(lambda x: 0.3 * x.square().sum(-1), modulus=0.6)
    path = of.meanfield.PathPenalty("l1")
    F = ridge + 0.5 * path + of.Entropy()
    with pytest.raises(ValueError, match=r"nothing is declared .* PathPenalty"):
        log_sobolev(F)
    own = -0.5 * (dim - 1) ** 0.5
    assert path.modulus(dim) == 2 * own
    if 0.6 + own > 0:
        assert log_sobolev(F, convexity=own).constant == pytest.approx(0.6 + own)
    # The norm l2 has one modulus for all.
    F = ridge + 0.5 * of.meanfield.PathPenalty("l2") + of.Entropy()
    assert log_sobolev(F).constant == pytest.approx(0.1)
