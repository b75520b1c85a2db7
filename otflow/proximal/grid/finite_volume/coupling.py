"""Interactions in a step by finite volumes: their field, and its modes for Newton."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from otflow._lazy import lazy_import
from otflow.functionals import Interaction
from otflow.measures import GridDensity
from otflow.measures.grid.convolution import convolution
from otflow.proximal.grid.finite_volume.factors import Array, Index

__all__ = ["Coupling", "Modes", "Response", "coupling_of"]

# Cells up to which all modes are found by a dense matrix; beyond, by a sketch.
DENSE = 700
# Modes below that share of the largest are left out of Newton's matrix: more than the
# round-off of a dense matrix, and less than a tolerance would see. What they add to
# the second derivative is made up for by the next step.
LEAST = 1e-12
# Numbers that the modes may have: beyond, the terms are linearised in rounds.
MOST_ENTRIES = 5_000_000
# Modes of the first sketch, what it has beyond those that count, and its powers.
FIRST, SPARE, POWERS = 64, 8, 2
# Of the convexity that local terms and transport give to a mode, the share that a step
# leaves to it at least. Along a nearly flat direction, as of a lump that drifts, more
# would hold the step back; less would not help, as the line search cuts the step.
FLOOR = 1e-3


@dataclass(frozen=True)
class Modes:
    r"""The second derivative :math:`R\,\mathrm{diag}(s)\,R^T` on densities of sum 0.

    Parameters
    ----------
    columns : ndarray, shape (n, r)
        R.
    signs : ndarray, shape (r,)
        s, 1 or -1; those of 1 come first.
    left_out : float
        No other mode has more than that, up or down.
    """

    columns: Array
    signs: Array
    left_out: float


class Coupling:
    r"""A quadratic energy of the densities, :math:`\tfrac12 |K|\, r^T W r`.

    Per unit of the volume :math:`|K|` of a cell, as all energies of a step are.

    Parameters
    ----------
    interactions : tuple of (float, Interaction)
        Factors and terms.
    mu : GridDensity
        Gives the grid and the device where kernels are convolved, in float64.
    cells : ndarray of int, shape (n,)
        The cells of the room.
    """

    def __init__(
        self,
        interactions: tuple[tuple[float, Interaction], ...],
        mu: GridDensity,
        cells: Index,
    ) -> None:
        self.cells = cells
        self.n, self.volume = mu.box.n, mu.box.cell_volume
        like = mu.weights.detach().double()
        self.device, self.parts = like.device, []
        with torch.no_grad():
            for c, term in interactions:
                self.parts.append((c, convolution(mu.box, term.kernel, like)))

    def is_same(self, other: Coupling) -> bool:
        """Whether both are one energy, by the numbers: a kernel may have changed."""
        return (
            self.n == other.n
            and np.array_equal(self.cells, other.cells)
            and len(self.parts) == len(other.parts)
            and all(
                a == b and one.is_same(two)
                for (a, one), (b, two) in zip(self.parts, other.parts, strict=True)
            )
        )

    def field(self, density: Array) -> Array:
        """Return the first variation at a density, also one of any sign."""
        masses = np.zeros(self.n)
        masses[self.cells] = self.volume * density
        w = torch.from_numpy(masses).to(self.device)
        total = torch.zeros_like(w)
        for c, kernel in self.parts:
            total = total + c * kernel(w)
        field: Array = total.cpu().numpy()[self.cells]
        return field

    @cached_property
    def modes(self) -> Modes | None:
        """The modes that count, None if there are too many."""
        n = len(self.cells)
        if n == 1:
            return Modes(np.zeros((1, 0)), np.zeros(0), 0.0)
        size = FIRST if n > DENSE else n
        generator = np.random.default_rng(0)
        while min(size, n) * n <= MOST_ENTRIES:
            if size >= n:
                matrix = self._centred(np.eye(n))
                values, vectors = np.linalg.eigh(0.5 * (matrix + matrix.T))
                return _counted(values, vectors)
            basis = generator.standard_normal((n, size))
            for _ in range(POWERS):
                basis = np.linalg.qr(self._centred(basis))[0]
            small = basis.T @ self._centred(basis)
            values, turn = np.linalg.eigh(0.5 * (small + small.T))
            kept = np.abs(values) > LEAST * np.abs(values).max()
            if kept.sum() <= size - SPARE:
                return _counted(values, basis @ turn)
            size *= 2
        return None

    @cached_property
    def convex(self) -> bool:
        """Whether no density of sum 0 lowers the energy, up to round-off."""
        return self.modes is not None and bool((self.modes.signs > 0).all())

    @property
    def doubt(self) -> float:
        r"""What modes that are left out may add to a gap, for densities of mass 1.

        :math:`\tfrac12 |K|\,\lambda\,|r - \rho|^2`, both norms at most :math:`1/|K|`.
        """
        return 0.0 if self.modes is None else 2 * self.modes.left_out / self.volume

    def _centred(self, vectors: Array) -> Array:
        """Apply the second derivative on both sides of taking away the mean."""
        vectors = vectors - vectors.mean(0)
        image = np.stack([self.field(v) for v in vectors.T], axis=1)
        centred: Array = image - image.mean(0)
        return centred


def _counted(values: Array, vectors: Array) -> Modes:
    """Return the eigenvectors that count, scaled by the roots of their values."""
    size = np.abs(values).max(initial=0.0)
    up = np.flatnonzero(values > LEAST * size)
    down = np.flatnonzero(values < -LEAST * size)
    order = np.concatenate([up, down])
    columns = vectors[:, order] * np.sqrt(np.abs(values[order]))
    return Modes(columns, np.sign(values[order]), LEAST * float(size))


def coupling_of(
    interactions: tuple[tuple[float, Interaction], ...],
    mu: GridDensity,
    cells: Index,
    old: Coupling | None = None,
) -> Coupling | None:
    """Return interactions as an energy of the densities of some cells.

    The old one if it is the same energy, as its modes are known; None without any.
    """
    if not interactions:
        return None
    new = Coupling(interactions, mu, cells)
    return old if old is not None and old.is_same(new) else new


class Response:
    r"""How modes answer a push, in Newton's system of a step.

    A slope f of the energy moves the density by :math:`-P f`, with the local terms
    alone. With :math:`T = R^T P R` the amplitudes z of the modes after a local step of
    change c follow from :math:`(1 + s T)\,z = s R^T c`. Where modes that bend down
    outweigh all else, the system has no minimum; each combination of them that does is
    turned round, so that the step goes down.

    Parameters
    ----------
    modes : Modes
        R and s.
    answers : ndarray, shape (n, r)
        P R.
    """

    def __init__(self, modes: Modes, answers: Array) -> None:
        R = modes.columns
        T = R.T @ answers
        T = 0.5 * (T + T.T)
        self.R, rank = R, len(modes.signs)
        self.weights = np.diag(modes.signs)
        up = int((modes.signs > 0).sum())
        if up < rank:
            self._bend(T, up)
        matrix = np.eye(rank) + self.weights @ T
        self.factors: Any = lazy_import("scipy.linalg").lu_factor(
            matrix, check_finite=False
        )

    def _bend(self, T: Array, up: int) -> None:
        """Change the weights of the modes that bend down until the sum is convex."""
        left = T[up:, up:]
        if up:
            inner = np.linalg.solve(np.eye(up) + T[:up, :up], T[:up, up:])
            left = left - T[up:, :up] @ inner
        try:
            np.linalg.cholesky((1 - FLOOR) * np.eye(len(left)) - left)
        except np.linalg.LinAlgError:
            pass
        else:
            return
        values, vectors = np.linalg.eigh(0.5 * (left + left.T))
        rest = 1 - values  # what is left of the convexity, in its own unit
        bent = rest < FLOOR
        if bent.any():
            wanted = np.maximum(np.abs(rest), FLOOR)
            share = np.ones(len(values))
            share[bent] = (1 - wanted[bent]) / values[bent]
            self.weights[up:, up:] = -(vectors * share) @ vectors.T

    def amplitudes(self, change: Array, before: Array | None = None) -> Array:
        """Return z, given the change that a local step makes with z before, or 0."""
        late = self.weights @ (self.R.T @ change)
        if before is not None:
            late = late - before
        z: Array = lazy_import("scipy.linalg").lu_solve(
            self.factors, late, check_finite=False
        )
        return z if before is None else before + z
