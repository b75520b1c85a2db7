"""Proved gaps of networks and densities, in velocities of the same functional."""

from __future__ import annotations

from collections.abc import Callable

import torch

import otflow as of
from benchmarks.timing import Row, at_most, interleaved

F64 = torch.float64


def run() -> list[Row]:
    """Return gaps in velocities: of networks of 1 and 2 inputs, and with entropy."""
    ball = of.meanfield.PathBall
    return [
        *(on_ball("relu", 1, n, ball(50.0, norm), 10) for n in (100, 1000)
          for norm in ("l1", "l2")),
        *(on_ball("relu", 2, n, ball(50.0, norm), 10) for n in (100, 1000)
          for norm in ("l1", "l2")),
        *(on_ball("tanh", d, n, box(d + 1), 10) for n in (100, 1000) for d in (1, 2)),
        on_grid(),
    ]  # fmt: skip


def box(q: int) -> of.optimality.Domain:
    side = 3 * torch.ones(q, dtype=F64)
    return of.meanfield.VariationBall(50.0, -side, side)


def on_ball(
    unit: str, d: int, n: int, domain: of.optimality.Domain, limit: float
) -> Row:
    """Return the time of a gap over that of a velocity, for n data and n neurons."""
    generator = torch.Generator().manual_seed(n)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=F64)
    X, neurons = draw(n, d), of.Particles(draw(n, d + 2).clamp(-3, 3))
    risk = of.meanfield.Risk(of.meanfield.TwoLayer(unit), X, X[:, 0].sin())
    kind = f"{type(domain).__name__} {getattr(domain, 'norm', '')}"
    label = f"gap, {unit}, n = N = {n}, d = {d}, {kind}"
    return compared(
        label,
        lambda: of.optimality.optimality_gap(risk, neurons, domain),
        lambda: risk.velocity(neurons),
        limit,
    )


def on_grid() -> Row:
    """Return the time of a gap with entropy over that of a velocity, on a grid."""
    layer = of.meanfield.CustomLayer(lambda x, t: t[:, 0] * torch.tanh(x @ t[:, 1:].T))
    X = torch.linspace(-1, 1, 16, dtype=F64)[:, None]
    F = of.meanfield.Risk(layer, X, X[:, 0].abs()) + 0.02 * of.Entropy()
    rho = of.GridDensity.from_function(
        lambda x: (-x.square().sum(-1) / 2).exp(), -6, 6, (64, 64), dtype=F64
    )
    return compared(
        "gap with entropy, a grid of 64 x 64",
        lambda: of.optimality.entropic_gap(F, rho),
        lambda: F.velocity(rho),
        10,
    )


def compared(
    label: str, gap: Callable[[], object], velocity: Callable[[], object], limit: float
) -> Row:
    mine, other = interleaved(gap, velocity)
    return at_most(f"{label}: / velocity", mine / other, limit)
