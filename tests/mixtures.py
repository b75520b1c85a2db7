"""A mixture of Gaussians learnt by one of Gaussian units, in closed form.

The example of Rotskoff, Jelassi, Bruna and Vanden-Eijnden (2019).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

import otflow as of

CENTRES, VARIANCES, FACTORS = (-2.0, 0.0, 2.0), (0.5, 1.0, 0.5), (1.0, -2.0, 1.0)
UNIT = 0.5


def bell(z: Tensor, variance: Tensor | float) -> Tensor:
    """Return the density of N(0, variance) at z."""
    scale = torch.as_tensor(2 * math.pi * variance, dtype=z.dtype).sqrt()
    return torch.exp(-z.square() / (2 * variance)) / scale


class Mixture(of.Functional):
    r"""Half of :math:`\int (\int c\,\phi(x - y)\,d\mu(c, y) - f(x))^2 dx`."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.y, self.s, self.c = (
            torch.tensor(v, dtype=dtype) for v in (CENTRES, VARIANCES, FACTORS)
        )
        self.c = self.c / len(self.c)

    def value(self, mu: of.Measure) -> Tensor:
        mass, y = mu.weights * mu.points[:, 0], mu.points[:, 1]
        both = bell(self.y[:, None] - self.y, self.s[:, None] + self.s)
        cross = bell(y[:, None] - self.y, self.s + UNIT)
        own = bell(y[:, None] - y, 2 * UNIT)
        return (
            0.5 * self.c @ both @ self.c
            - mass @ cross @ self.c
            + 0.5 * mass @ own @ mass
        )

    def mixture_curvature(self) -> str:
        return "convex"


def start(n: int = 200, seed: int = 0, *, far: bool = False) -> of.Particles:
    """Return the start of the paper, or the one beside the first centre alone."""
    generator = torch.Generator().manual_seed(seed)
    c = torch.randn(n, dtype=torch.float64, generator=generator)
    if far:
        y = 0.1 * torch.randn(n, dtype=torch.float64, generator=generator) - 2
    else:
        y = 4 * torch.rand(n, dtype=torch.float64, generator=generator) - 2
    return of.Particles(torch.stack([c, y], 1))
