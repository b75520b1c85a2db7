"""Interaction velocity against what people write by hand."""

from __future__ import annotations

import torch
from torch import Tensor

import otflow as of
from benchmarks.memory import peak_extra_megabytes
from benchmarks.timing import Row, at_most, interleaved

N, D, SIGMA = 20_000, 2, 0.5


def tiled(x: Tensor, tile: int = 256) -> Tensor:
    """Gaussian interaction velocity, tiled by hand."""
    n = len(x)
    v = torch.zeros_like(x)
    for i in range(0, n, tile):
        a = x[i : i + tile]
        for j in range(0, n, tile):
            b = x[j : j + tile]
            s = (a.square().sum(-1)[:, None] + b.square().sum(-1)) - 2 * a @ b.T
            k = (s * (-0.5 / SIGMA**2)).exp_()
            v[i : i + tile] += k.sum(1)[:, None] * a - k @ b
    return v / (n * SIGMA**2)


def row_chunked(x: Tensor, chunk: int = 128) -> Tensor:
    """Gaussian interaction velocity by row chunks of cdist."""
    n = len(x)
    parts = []
    for i in range(0, n, chunk):
        a = x[i : i + chunk]
        k = (torch.cdist(a, x).square() * (-0.5 / SIGMA**2)).exp()
        parts.append(k.sum(1)[:, None] * a - k @ x)
    return torch.cat(parts) / (n * SIGMA**2)


def run() -> list[Row]:
    """Return the ratios and the memory."""
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
    mu = of.Particles(x)
    F = of.Interaction(of.kernels.Gaussian(SIGMA))
    ours = F.velocity(mu)
    assert torch.allclose(ours, tiled(x), atol=1e-4), "both must compute the same"
    assert torch.allclose(ours, row_chunked(x), atol=1e-4)
    mine, hand, rows = interleaved(
        lambda: F.value_and_velocity(mu),
        lambda: tiled(x),
        lambda: row_chunked(x),
        repeats=5,
        warmup=1,
    )
    setup = (
        "import torch, otflow as of\n"
        f"F = of.Interaction(of.kernels.Gaussian({SIGMA}))\n"
        "F.velocity(of.Particles(torch.randn(600, 2)))\n"
        f"mu = of.Particles(torch.randn({N}, {D}))"
    )
    megabytes = peak_extra_megabytes(setup, "F.value_and_velocity(mu)")
    other = torch.randn(N // 4, D, generator=torch.Generator().manual_seed(1))
    some = of.Particles(x[: N // 4])
    near = F.velocity(some, some.points)
    assert torch.allclose(near, F.velocity(some), atol=1e-4)
    at_atoms, anywhere = interleaved(
        lambda: F.velocity(some), lambda: F.velocity(some, other), repeats=5, warmup=1
    )
    fast = of.Interaction(of.kernels.Gaussian(SIGMA, tolerance=1e-6))
    assert torch.allclose(fast.velocity(mu), ours, atol=1e-5)
    pairwise, interpolated = interleaved(
        lambda: F.velocity(mu), lambda: fast.velocity(mu), repeats=3, warmup=1
    )
    label = f"Interaction value and velocity, n = {N}, d = {D}:"
    return [
        at_most(f"{label} / hand-written tiles", mine / hand, 1.0),
        at_most(f"{label} / row-chunked cdist", mine / rows, 1.0),
        # The atoms share each pair: twice the time would be the same for each pair.
        at_most(
            f"Velocity at {N // 4} probes / at as many atoms", anywhere / at_atoms, 3
        ),
        at_most(
            "Gaussian to 1e-6 by interpolation / all pairs",
            interpolated / pairwise,
            0.2,
        ),
        at_most(f"{label} peak extra MB", megabytes, 300),
    ]
