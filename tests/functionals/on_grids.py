"""The laws of functionals, tried on densities on grids."""

from __future__ import annotations

import torch

import otflow as of
from otflow.testing import FunctionalContract
from tests.clouds import normal
from tests.differences import mean_derivative


def rough(*shape, seed=0, dtype=torch.float64, obstacles=None):
    """Return positive masses that differ by factors of a few, on [-3, 3]^d."""
    rho = (0.7 * normal(*shape, seed=seed, dtype=dtype)).exp()
    if obstacles is not None:
        rho = rho * ~obstacles
    return of.GridDensity(rho, -3, 3, obstacles=obstacles, walls=True, normalize=True)


def pillar():
    """Return an obstacle in the middle of 6 x 5 cells."""
    mask = torch.zeros(6, 5, dtype=torch.bool)
    mask[2:4, 2] = True
    return mask


class OnGrids(FunctionalContract):
    pushes_along_geodesics = False

    def measure(self, dtype=torch.float64, seed=0):
        return rough(6, 5, seed=seed, dtype=dtype)

    def measures(self):
        return [
            self.measure(),
            rough(11, seed=1),
            rough(3, 4, 3, seed=2),
            rough(6, 5, seed=3, obstacles=pillar()),
        ]

    def tangent(self, mu, seed=0):
        return normal(mu.box.n_faces, seed=seed + 55, dtype=mu.dtype)

    def probes(self, mu, shift):
        return (mu.points + shift).clamp_max(3.0)

    def derivative_along(self, F, mu, v):
        # An upwind flux has two one-sided derivatives; `inner` is their mean.
        return mean_derivative(lambda t: F.value(mu.push(v, t)))

    def slopes(self, F, mu):
        return mu.box.gradient(F.first_variation(mu)) * mu.open_faces(mu.dtype)
