"""A user's terms that see each cell by itself, as energies of the density."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from otflow.functionals import Functional
from otflow.measures import GridDensity
from otflow.proximal.grid.finite_volume.factors import Array, Index
from otflow.proximal.grid.finite_volume.problem import Pointwise

__all__ = ["cell_by_cell"]

# Two difference quotients may differ by that share.
ALIKE = 0.02
# Round-off of a value, in units of that of its dtype.
ROUND_OFF = 64.0


class _Term:
    """A functional in arrays of the densities of some cells, in the measure's dtype."""

    def __init__(self, G: Functional, mu: GridDensity, cells: Index) -> None:
        self.G, self.mu, self.volume = G, mu, mu.box.cell_volume
        self.cells = torch.from_numpy(cells)
        info = torch.finfo(mu.dtype)
        self.tiny, self.eps = info.tiny, info.eps
        self.change = self.eps ** (1 / 3)  # relative, of a central difference
        self.signs = np.where(np.arange(len(cells)) % 2, 1.0, -1.0)

    def measure(self, r: Array) -> GridDensity:
        """Return the measure of these densities."""
        masses = torch.zeros(self.mu.box.n, dtype=torch.float64)
        masses[self.cells] = torch.from_numpy(r * self.volume)
        return self.mu.with_free_weights(
            masses.to(self.mu.weights).clamp_min(self.tiny)
        )

    def array(self, x: Tensor) -> Array:
        """Return what a tensor says of the cells."""
        entries: Array = x.detach().double().cpu()[self.cells].numpy()
        return entries

    def energy(self, r: Array) -> Array:
        """Return the value, as if all cells had the same share of it."""
        value = float(self.G.value(self.measure(r)))
        return np.full(len(r), value / (self.volume * len(r)))

    def slope(self, r: Array) -> Array:
        """Return the first variation."""
        return self.array(self.G.first_variation(self.measure(r)))

    def quotient(self, r: Array, signs: Array) -> Array:
        """Return the second derivative, if that of each cell is by itself."""
        step = self.change * signs * r
        turned = self.slope(r + step) - self.slope(r - step)
        quotient: Array = turned / (2 * step)
        return quotient

    def curvature(self, r: Array) -> Array:
        """Return the second derivative where it is not negative, else 0."""
        found = self.quotient(np.maximum(r, self.tiny / self.volume), self.signs)
        return np.maximum(np.nan_to_num(found, posinf=0.0, neginf=0.0), 0.0)


def cell_by_cell(
    G: Functional, mu: GridDensity, cells: Index, density: Array
) -> Pointwise | None:
    """Return G as an energy of the density if its second derivative is diagonal.

    So has a potential, an entropy or a power that a user wrote. It is tried at a
    density, with changes of two different signs in the cells; that says only how to
    model G. Values and slopes are G's own.
    """
    term = _Term(G, mu, cells)
    generator = np.random.default_rng(0)
    signs = np.where(generator.random(len(cells)) < 0.5, -1.0, 1.0)
    first, second = term.quotient(density, term.signs), term.quotient(density, signs)
    slope = term.slope(density)
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return None
    # In units of the slope, for a change of the density by its own size.
    apart, size = (density @ np.abs(x * density) for x in (first - second, first))
    noise = ROUND_OFF * term.eps / term.change * float(density @ np.abs(slope))
    if apart > ALIKE * size + noise:
        return None
    value = abs(float(term.energy(density).sum())) + float(density @ np.abs(slope))
    noise = ROUND_OFF * term.eps * value
    return Pointwise(term.energy, term.slope, term.curvature, noise)
