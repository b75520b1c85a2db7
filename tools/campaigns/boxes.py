"""Random densities on grids, and their distances without otflow."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import ot
import torch

import otflow as of
from tools.campaigns.lines import step_w2
from tools.campaigns.protocol import Trial

__all__ = ["Cells", "distance", "draw_cells", "marginal"]

# Atoms beyond which POT's exact solver would take seconds.
MOST_ATOMS = 500


@dataclass(frozen=True)
class Cells:
    """A grid in units of the scale: its box, and a start that is a product."""

    shape: tuple[int, ...]
    lower: np.ndarray
    upper: np.ndarray
    factors: tuple[np.ndarray, ...]
    kind: str

    @property
    def spacing(self) -> np.ndarray:
        """Sides of a cell."""
        return (self.upper - self.lower) / np.array(self.shape)

    @property
    def volume(self) -> float:
        """Volume of a cell."""
        return float(self.spacing.prod())

    def edges(self, axis: int) -> np.ndarray:
        """Return the faces along an axis."""
        n = self.shape[axis]
        return self.lower[axis] + self.spacing[axis] * np.arange(n + 1)

    def centres(self) -> np.ndarray:
        """Return the centres of all cells in C order, (n, d)."""
        axes = [0.5 * (e[1:] + e[:-1]) for e in map(self.edges, range(len(self.shape)))]
        return np.stack([g.ravel() for g in np.meshgrid(*axes, indexing="ij")], 1)

    def masses(self) -> np.ndarray:
        """Return the start, of `shape`."""
        total = np.ones(())
        for factor in self.factors:
            total = total[..., None] * factor
        return total

    def measure(
        self,
        scale: float,
        offset: float,
        dtype: torch.dtype,
        obstacles: np.ndarray | None = None,
    ) -> of.GridDensity:
        """Return the start as otflow's."""
        masses = self.masses()
        if obstacles is not None:
            masses = np.where(obstacles, 0.0, masses)
            masses = masses / masses.sum()
        rho = masses / self.volume / scale ** len(self.shape)
        return of.GridDensity(
            torch.as_tensor(rho).to(dtype),
            [offset + scale * float(a) for a in self.lower],
            [offset + scale * float(b) for b in self.upper],
            obstacles=None if obstacles is None else torch.as_tensor(obstacles),
            walls=True,
            normalize=True,
        )


SHAPES = {
    1: ((20,), (41,), (80,), (128,), (200,)),
    2: ((8, 8), (16, 12), (24, 24), (40, 4), (64, 3), (30, 1), (5, 50), (20, 8)),
    3: ((6, 6, 6), (8, 8, 8), (16, 4, 2), (12, 6, 1), (20, 3, 3)),
}


def draw_cells(trial: Trial, dim: int | None = None) -> Cells:
    """Draw a grid of 1 to 3 dimensions and a product start on it."""
    rng = trial.rng
    dim = dim or int(trial.choice(1, 1, 1, 2, 2, 3))
    shape = trial.choice(*SHAPES[dim])
    width = rng.uniform(1.0, 5.0, dim)
    if rng.random() < 0.5:
        # Square cells; else each axis has its own.
        width = width[0] * np.array(shape) / max(shape)
    lower = -width * rng.uniform(0.3, 0.7, dim)
    kind = trial.choice("bell", "bell", "bell", "full", "indicator")
    factors, sizes = [], []
    for axis, n in enumerate(shape):
        cells = np.arange(n) + 0.5
        if kind == "full":
            f = np.ones(n)
        elif kind == "indicator":
            first = int(rng.integers(0, n))
            f = np.zeros(n)
            f[first : first + max(1, int(rng.integers(1, n + 1)))] = 1.0
        else:
            # Widths of one cell to twenty.
            size = min(trial.log_uniform(1.0, 20.0), n / 2)
            f = np.exp(-0.5 * ((cells - n * rng.uniform(0.2, 0.8)) / size) ** 2)
            sizes.append(round(size, 1))
        factors.append(f / f.sum())
        del axis
    trial.says(shape=shape, start=kind, cells=sizes)
    return Cells(shape, lower, lower + width, tuple(factors), kind)


def marginal(masses: np.ndarray, axis: int) -> np.ndarray:
    """Return the masses along one axis."""
    others = tuple(k for k in range(masses.ndim) if k != axis)
    return masses.sum(others)


def distance(cells: Cells, a: np.ndarray, b: np.ndarray) -> float | None:
    """Return W2 between two densities: exact on the line, else of atoms in cells.

    None where there are too many atoms.
    """
    long = [n > 1 for n in cells.shape]
    if sum(long) <= 1:
        axis = int(np.argmax(cells.shape))
        edges = cells.edges(axis)
        return step_w2(edges, marginal(a, axis), edges, marginal(b, axis))
    x = cells.centres()
    i, j = (np.flatnonzero(w.ravel() > 1e-9 * w.max()) for w in (a, b))
    if max(len(i), len(j)) > MOST_ATOMS:
        return None
    p, q = (w.ravel()[k] / w.ravel()[k].sum() for w, k in ((a, i), (b, j)))
    cost = ((x[i, None] - x[j]) ** 2).sum(-1)
    return math.sqrt(max(float(ot.emd2(p, q, cost, numItermax=10**6)), 0.0))
