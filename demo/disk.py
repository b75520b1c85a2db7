"""A cloud under attraction and repulsion: it becomes the uniform unit disk."""

from __future__ import annotations

import time

import torch

import otflow as of
from demo.table import SEED, Row, certificates

DISK_ENERGY = 3 / 8  # of the uniform unit disk, exact for a continuum of particles


def relax_disk(
    name: str, scheme: of.schemes.Scheme, dt: float, steps: int, n: int
) -> tuple[Row, of.Trajectory]:
    """Flow particles under attraction and repulsion to the uniform disk."""
    F = of.Interaction(of.kernels.PowerLaw(2, 0))
    cloud = torch.randn(n, 2, generator=torch.Generator().manual_seed(SEED))
    start = time.perf_counter()
    run = of.flow(
        F, of.Particles(0.4 * cloud + 0.5), scheme, dt=dt, steps=steps, progress=True
    )
    seconds = time.perf_counter() - start
    gradients = sum(info.get("iterations", 1) for info in run.info)
    energy = f"{float(run.records['energy'][-1]):.4f} (exact {DISK_ENERGY:.4f})"
    row = Row(f"disk, {name}", gradients, "-", "-", energy, certificates(run), seconds)
    return row, run


def radius_check(mu: of.Measure) -> str:
    """Compare a cloud with the uniform unit disk."""
    centred = mu.points - mu.points.mean(0)
    radius = centred.norm(dim=1)
    inside = float((radius < 0.5**0.5).double().mean())
    return (
        f"radius {float(radius.max()):.3f} (exact 1), second moment "
        f"{float(radius.square().mean()):.4f} (exact 0.5), "
        f"mass within 1/sqrt(2) {inside:.3f} (exact 0.5)"
    )
