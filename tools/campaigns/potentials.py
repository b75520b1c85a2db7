"""Potentials on the line in two languages: torch for otflow, NumPy for references."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from tools.campaigns.protocol import Trial

__all__ = ["Potential1D", "draw_potential"]


@dataclass(frozen=True)
class Potential1D:
    """V with its derivatives, a torch twin, and its modulus."""

    name: str
    torch_V: Callable[[torch.Tensor], torch.Tensor]
    V: Callable[[np.ndarray], np.ndarray]
    slope: Callable[[np.ndarray], np.ndarray]
    curvature: Callable[[np.ndarray], np.ndarray]
    modulus: float


def draw_potential(
    trial: Trial, *, convex: bool = False, said: bool = True
) -> Potential1D:
    """Draw a quadratic, a tilt, a quartic, log cosh, or a double well."""
    kinds = ["quadratic", "tilt", "quartic", "logcosh"] + ["double-well"] * (not convex)
    kind = trial.choice(*kinds)
    m = float(trial.rng.normal())
    k = trial.log_uniform(0.1, 10.0)
    if said:
        trial.says(V=kind, m=m, k=k)
    if kind == "quadratic":
        return Potential1D(
            kind,
            lambda z: 0.5 * k * (z - m).square(),
            lambda z: 0.5 * k * (z - m) ** 2,
            lambda z: k * (z - m),
            lambda z: np.full_like(z, k),
            k,
        )
    if kind == "tilt":
        return Potential1D(
            kind,
            lambda z: m * z,
            lambda z: m * z,
            lambda z: np.full_like(z, m),
            np.zeros_like,
            0.0,
        )
    if kind == "quartic":
        return Potential1D(
            kind,
            lambda z: 0.25 * k * (z - m).pow(4),
            lambda z: 0.25 * k * (z - m) ** 4,
            lambda z: k * (z - m) ** 3,
            lambda z: 3 * k * (z - m) ** 2,
            0.0,
        )
    if kind == "logcosh":
        return Potential1D(
            kind,
            lambda z: k * ((z - m).abs() + torch.log1p((-2 * (z - m).abs()).exp())),
            lambda z: k * (np.abs(z - m) + np.log1p(np.exp(-2 * np.abs(z - m)))),
            lambda z: k * np.tanh(z - m),
            lambda z: k * (1 - np.tanh(z - m) ** 2),
            0.0,
        )
    return Potential1D(
        kind,
        lambda z: 0.25 * k * (z.square() - 1).square(),
        lambda z: 0.25 * k * (z**2 - 1) ** 2,
        lambda z: k * (z**3 - z),
        lambda z: k * (3 * z**2 - 1),
        -k,
    )
