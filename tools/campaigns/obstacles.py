"""Steps beside obstacles by the default solver: nothing passes a closed wall."""

from __future__ import annotations

import numpy as np
import torch

import otflow as of
from tools.campaigns.boxes import draw_cells
from tools.campaigns.protocol import Family, Trial

__all__ = ["FAMILIES"]


def room(trial: Trial) -> None:
    """Push a density at a wall for some steps; what is behind it is counted."""
    rng = trial.rng
    dim = int(trial.choice(1, 2, 2, 2, 3))
    kind = trial.choice("entropy", "congestion", "power", "none")
    dt = trial.log_uniform(1e-3, 1e2)
    trial.says(kind=kind, dt=dt)
    cells = draw_cells(trial, dim)
    scale, offset = trial.scale_and_offset(1e2)
    wide = int(np.argmax(cells.shape))
    n = cells.shape[wide]
    first = int(rng.integers(n // 2, n - 2)) if n > 4 else 2
    thick = int(rng.integers(1, max(2, min(4, n - first))))
    wall = np.zeros(cells.shape, dtype=bool)
    slab = [slice(None)] * dim
    slab[wide] = slice(first, first + thick)
    wall[tuple(slab)] = True
    behind = np.zeros(cells.shape, dtype=bool)
    slab[wide] = slice(first + thick, None)
    behind[tuple(slab)] = True
    trial.says(wall=(wide, first, thick))
    masses = np.where(behind | wall, 0.0, cells.masses())
    if not masses.sum() > 1e-6:
        masses = np.where(behind | wall, 0.0, 1.0)
    masses = masses / masses.sum()
    d = len(cells.shape)
    mu = of.GridDensity(
        torch.as_tensor(masses / cells.volume / scale**d),
        [offset + scale * float(a) for a in cells.lower],
        [offset + scale * float(b) for b in cells.upper],
        obstacles=torch.as_tensor(wall),
        walls=True,
        normalize=True,
    )
    push = trial.log_uniform(0.1, 10.0)
    trial.says(push=push)
    square = scale**2
    F: of.Functional = of.Potential(
        lambda x: -push * square * (x[..., wide] - offset) / scale, modulus=0.0
    )
    if kind == "entropy":
        F = F + 0.3 * square * of.Entropy()
    if kind == "power":
        F = F + 0.3 * square * scale**d * of.PowerEntropy(2.0)
    if kind == "congestion":
        F = F + of.Congestion(float(mu.density().max()) * (1 + rng.random()))
    run = of.flow(F, mu, of.JKO(), dt=dt, steps=2)
    nu = run.final.weights.double().numpy().reshape(cells.shape)
    trial.finite(masses=nu, energy=run.records["energy"])
    trial.false_if(nu[wall].sum() != 0, f"mass in the wall {nu[wall].sum():.3g}")
    passed = nu[behind].sum()
    certified = all(info["certified"] for info in run.info)
    trial.false_if(
        passed > 0, f"mass behind the wall {passed:.3g}, certified {certified}"
    )
    trial.false_if(abs(nu.sum() - 1) > 1e-12, f"mass {nu.sum():.15g}")
    for info in run.info:
        size = abs(info["energy_before"]) + abs(info["energy_after"])
        trial.obeys(info, dt, 1e-4 * (size + square * (push + 1)))


FAMILIES = [Family("obstacles", room, 200)]
