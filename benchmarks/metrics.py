"""Finding the assignment between both ends of a JKO step, against POT."""

from __future__ import annotations

import torch

import otflow as of
from benchmarks.timing import Row, at_least, interleaved


def run() -> list[Row]:
    """Return how much faster the near-identity assignment is found than by ot.emd."""
    return [compare(2000, d) for d in (2, 20)]


def compare(n: int, d: int) -> Row:
    """Return the ratio for both ends of one JKO step of n particles.

    POT is given its cost matrix ready made; ours starts from the points.
    """
    import ot

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    F = of.Potential(
        lambda x: 0.25 * (x.square() - 1).square().sum(-1)
    ) + of.Interaction(of.kernels.Gaussian(0.5))
    y = of.proximal.ParticleProximal().solve(F, of.Particles(x), 0.1).measure.points
    cost = torch.cdist(x, y).square().numpy()
    mass = torch.full((n,), 1 / n, dtype=torch.float64).numpy()

    def by_pot() -> object:
        return ot.emd(mass, mass, cost, numItermax=10**8)

    plan = by_pot()
    sigma = of.metrics.assignment(x, y)
    ours = float((x - y[sigma]).square().sum(1).mean())
    assert abs(ours - float((plan * cost).sum())) < 1e-9, "both must be optimal"
    mine, theirs = interleaved(
        lambda: of.metrics.assignment(x, y), by_pot, repeats=7, warmup=1
    )
    label = f"assignment between a JKO step's ends, n = {n}, d = {d}: ot.emd /"
    return at_least(label, theirs / mine, 5.0)
