"""Two thousand random problems: brackets, axioms, symmetries, gradients."""

from __future__ import annotations

import importlib

import ot
import pytest
import torch

import otflow as of
from otflow.metrics import transport_plan, wasserstein2, wasserstein2_squared

CHUNKS, TRIALS = 20, 100
METHODS = (None, "simplex", "columns")


def draw(seed: int) -> tuple[of.Particles, of.Particles, of.Particles]:
    """Return three measures of one random family."""
    g = torch.Generator().manual_seed(seed)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=g))

    d, kind, weighted = integer(1, 5), integer(0, 4), integer(0, 1)
    scale = 10.0 ** integer(-6, 6)
    found = []
    for _ in range(3):
        n = integer(1, 40)
        x = torch.randn(n, d, generator=g, dtype=torch.float64)
        if kind == 1:
            x = (2 * x).round()
        elif kind == 2:
            x = 0.01 * x + torch.randint(0, 3, (n, 1), generator=g)
        elif kind == 3:
            x = x + 100 * torch.randn(d, generator=g, dtype=torch.float64)
        elif kind == 4:
            x = x[torch.randint(0, n, (n,), generator=g)]
        w = torch.rand(n, generator=g, dtype=torch.float64) + 0.01
        if integer(0, 3) == 0 and n > 3:
            w[: n // 3] = 0.0
        w = w if weighted else torch.ones_like(w)
        found.append(of.Particles(scale * x, w, normalize=True))
    return found[0], found[1], found[2]


def exact(mu: of.Particles, nu: of.Particles) -> float:
    C = (mu.points[:, None] - nu.points).square().sum(-1)
    size = float(C.max()) or 1.0
    a, b = mu.weights.numpy(), nu.weights.numpy()
    return size * float(ot.emd2(a, b, (C / size).numpy(), numItermax=10**7))


def moved(mu: of.Particles, seed: int) -> tuple[of.Particles, of.Particles]:
    """Return mu turned, and mu shifted by about its own size."""
    g = torch.Generator().manual_seed(seed)
    d = mu.dim
    turn = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64))[0]
    size = float(mu.points.abs().max()) or 1.0
    shift = size * torch.randn(d, generator=g, dtype=torch.float64)
    turned = of.Particles(mu.points @ turn.T, mu.weights)
    return turned, of.Particles(mu.points + shift, mu.weights)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_problems(chunk, monkeypatch):
    monkeypatch.setattr(importlib.import_module("otflow.metrics.columns"), "FEW", 8)
    narrow = 0
    for seed in range(chunk * TRIALS, (chunk + 1) * TRIALS):
        mu, nu, xi = draw(seed)
        value = exact(mu, nu)
        size = float(torch.cat([mu.points, nu.points]).var(0, correction=0).sum())
        room = 1e-13 * size
        method = METHODS[seed % 3]
        tolerance = (0.0, 0.2, 0.01)[seed // 3 % 3]
        plan = transport_plan(mu, nu, tolerance=tolerance, method=method)
        assert plan.bracket.lower <= value * (1 + 1e-12) + room
        assert value <= plan.bracket.upper * (1 + 1e-12) + room
        assert plan.bracket.width <= tolerance * plan.bracket.upper + 1e3 * room
        narrow += plan.bracket.relative <= 1e-9

        ways = wasserstein2(mu, nu), wasserstein2(nu, xi), wasserstein2(mu, xi)
        one, two, both = (float(z) for z in ways)
        slack = 1e-6 * size**0.5
        assert both <= one + two + slack * 1e-3
        assert float(wasserstein2(nu, mu)) == pytest.approx(one, rel=1e-9, abs=slack)
        assert float(wasserstein2(mu, mu)) == 0.0
        assert one**2 == pytest.approx(value, rel=1e-9, abs=room)
        (turned, shifted), (other, beside) = moved(mu, seed), moved(nu, seed)
        far = 1e-7 * (size + float(shifted.points.square().sum(1).max())) ** 0.5
        assert float(wasserstein2(turned, other)) == pytest.approx(
            one, rel=1e-9, abs=far
        )
        if torch.equal(shifted.points - mu.points, beside.points[:1] - nu.points[:1]):
            assert float(wasserstein2(shifted, beside)) == pytest.approx(one, rel=1e-9)
        wide = of.Particles(8 * mu.points, mu.weights)
        assert float(
            wasserstein2(wide, of.Particles(8 * nu.points, nu.weights))
        ) == pytest.approx(8 * one, rel=1e-12)
    assert narrow >= TRIALS / 4


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_gradients(chunk):
    """Central differences to 1e-6 of the gradient, where the plan does not change."""
    told = 0
    for seed in range(chunk * TRIALS, (chunk + 1) * TRIALS):
        mu, nu, _ = draw(seed)
        g = torch.Generator().manual_seed(seed)
        x, w = mu.points.clone().requires_grad_(), mu.weights.clone().requires_grad_()
        value = wasserstein2_squared(of.Particles(x, w, normalize=True), nu)
        in_x, in_w = torch.autograd.grad(value, (x, w))
        move = torch.randn(x.shape, generator=g, dtype=torch.float64)
        flow = torch.randn(w.shape, generator=g, dtype=torch.float64) * w.detach()
        unit = float(mu.points.abs().max() + nu.points.abs().max()) or 1.0
        h = 1e-7

        def at(t: float, s: float, x=x, w=w, nu=nu, move=move, flow=flow, unit=unit):
            y = of.Particles(
                x.detach() + t * unit * move, w.detach() + s * flow, normalize=True
            )
            return float(wasserstein2_squared(y, nu))

        middle = at(0, 0)
        for ahead, back, slope in (
            (at(h, 0), at(-h, 0), float((in_x * move).sum()) * unit),
            (at(0, h), at(0, -h), float(in_w @ flow)),
        ):
            # Where both sides disagree the plan changes: a kink, without a derivative.
            one, other = (ahead - middle) / h, (middle - back) / h
            # Otherwise they differ by the curvature, of the size of the costs, times h.
            size = abs(slope) + unit**2
            if abs(one - other) > 1e-6 * size:
                continue
            told += 1
            assert (one + other) / 2 == pytest.approx(slope, abs=1e-6 * size)
    assert told > TRIALS / 2
