"""The assignment between a JKO step's ends against POT; Sinkhorn against GeomLoss."""

from __future__ import annotations

import torch

import otflow as of
from benchmarks.timing import Row, at_least, at_most, interleaved


def run() -> list[Row]:
    """Return the near-identity assignment against ot.emd, and converging's cost."""
    return [
        *(compare(2000, d) for d in (2, 20)),
        *(sinkhorn(n, blur) for n in (15, 500) for blur in (0.2, 0.05)),
    ]


def sinkhorn(n: int, blur: float) -> Row:
    """Return the converged divergence's time over GeomLoss's annealing at 0.9.

    Value and gradient, weighted clouds in the plane, the blur a share of the diameter.
    What GeomLoss's gradient is off is in the label.
    """
    import geomloss

    generator = torch.Generator().manual_seed(n)
    draw = lambda *s: torch.randn(*s, generator=generator, dtype=torch.float64)
    x, y, a, b = draw(n, 2), draw(n, 2) + 0.5, draw(n).exp(), draw(n).exp()
    a, b = a / a.sum(), b / b.sum()
    both = torch.cat([x, y])
    diameter = float((both.amax(0) - both.amin(0)).norm())
    mu, nu = of.Particles(x, a, normalize=True), of.Particles(y, b, normalize=True)
    F = _Sinkhorn(nu, blur * diameter)
    theirs = geomloss.SamplesLoss(
        "sinkhorn", blur=blur * diameter, diameter=diameter, scaling=0.9,
        backend="tensorized",
    )  # fmt: skip

    def annealed() -> torch.Tensor:
        z = x.clone().requires_grad_()
        theirs(a, z, b, y).backward()
        assert z.grad is not None
        return -z.grad / a[:, None]

    velocity = F.velocity(mu)
    off = float((annealed() - velocity).norm() / velocity.norm())
    mine, former = interleaved(lambda: F.velocity(mu), annealed, repeats=3, warmup=1)
    label = f"Sinkhorn, n = {n}, blur {blur:g}: / annealing, {off:.1%} off"
    return at_most(label, mine / former, 3.0)


class _Sinkhorn(of.Functional):
    def __init__(self, target: of.Particles, blur: float) -> None:
        self.target, self.blur = target, blur

    def value(self, mu: of.Measure) -> torch.Tensor:
        assert isinstance(mu, of.Particles)
        return of.metrics.sinkhorn_divergence(mu, self.target, blur=self.blur)


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
