"""Interactions in a step by finite volumes: their field, and its modes for Newton."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch

from otflow._lazy import lazy_import
from otflow.functionals import Interaction
from otflow.kernels import Kernel
from otflow.measures import GridDensity
from otflow.measures.grid.convolution import convolution
from otflow.proximal.grid.finite_volume.factors import Array, Index

__all__ = ["Coupling", "Modes", "Response", "coupling_of"]

# Up to so many cells a dense matrix gives all modes; beyond, a sketch gives them.
DENSE = 700
# Modes below this share of the largest are left out of Newton's matrix. The share is
# above the round-off of a dense matrix and below what a tolerance would see. The next
# step corrects the small error of the second derivative.
LEAST = 1e-12
# Most numbers in the modes; beyond, the terms are linearised in rounds.
MOST_ENTRIES = 5_000_000
# Modes of the first sketch, its columns beyond the modes that count, and its powers.
FIRST, SPARE, POWERS = 64, 8, 2
# Least share that a step leaves of the convexity that local terms and transport give
# to a mode. A larger share would hold back a step along a nearly flat direction, as of
# a lump that drifts. A smaller share would not help: the line search cuts the step.
FLOOR = 1e-3


@dataclass(frozen=True)
class Modes:
    r"""The second derivative :math:`R\,\mathrm{diag}(s)\,R^T` on densities of sum 0.

    Parameters
    ----------
    columns : ndarray, shape (n, r)
        The matrix R.
    signs : ndarray, shape (r,)
        The s, 1 or -1; the entries 1 come first.
    left_out : float
        Largest absolute eigenvalue of the modes that are left out.
    """

    columns: Array
    signs: Array
    left_out: float


class Coupling:
    r"""A quadratic energy of the densities, :math:`\tfrac12 |K|\, r^T W r`.

    Like all energies of a step it is stored per unit of the volume :math:`|K|` of a
    cell.

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
                W = cast("Kernel", term.kernel)  # `sort_terms` sees to it
                self.parts.append((c, convolution(mu.box, W, like)))

    def is_same(self, other: Coupling) -> bool:
        """Whether both energies are equal, by numbers: a kernel may have changed."""
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
        """Return the first variation at a density of any sign."""
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
        """The modes that count; None if there are too many."""
        n = len(self.cells)
        if n == 1:
            return Modes(np.zeros((1, 0)), np.zeros(0), 0.0)
        size = FIRST if n > DENSE else n
        # A fixed seed: the same step gives the same modes.
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
            # A sketch of which nearly every column counts may have missed modes.
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
        r"""Bound on the part of a gap from modes that are left out, for mass 1.

        :math:`\tfrac12 |K|\,\lambda\,|r - \rho|^2`, both norms at most :math:`1/|K|`.
        """
        return 0.0 if self.modes is None else 2 * self.modes.left_out / self.volume

    def _centred(self, vectors: Array) -> Array:
        """Apply the second derivative, with the mean removed before and after."""
        # A step keeps the mass: only changes of density whose sum is 0 count.
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

    The result is `old` if it is the same energy, since its modes are known, and None
    without interactions.
    """
    if not interactions:
        return None
    new = Coupling(interactions, mu, cells)
    return old if old is not None and old.is_same(new) else new


class Response:
    r"""The response of the modes in Newton's system of a step.

    With the local terms alone a slope f of the energy moves the density by
    :math:`-P f`. Let :math:`T = R^T P R`. The amplitudes z of the modes after a local
    step of change c solve :math:`(1 + s T)\,z = s R^T c`. Where concave modes outweigh
    all else, the system has no minimum. Each combination of modes that does so is
    reversed, so that the step goes down.

    Parameters
    ----------
    modes : Modes
        R and s.
    answers : ndarray, shape (n, r)
        The matrix P R.
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
        """Change the weights of the concave modes until the sum is convex."""
        left = T[up:, up:]
        if up:
            inner = np.linalg.solve(np.eye(up) + T[:up, :up], T[:up, up:])
            left = left - T[up:, :up] @ inner
        # A Cholesky factor proves convexity more cheaply than eigenvalues.
        try:
            np.linalg.cholesky((1 - FLOOR) * np.eye(len(left)) - left)
        except np.linalg.LinAlgError:
            pass
        else:
            return
        values, vectors = np.linalg.eigh(0.5 * (left + left.T))
        rest = 1 - values  # share of the convexity that the modes leave
        bent = rest < FLOOR
        if bent.any():
            wanted = np.maximum(np.abs(rest), FLOOR)
            share = np.ones(len(values))
            share[bent] = (1 - wanted[bent]) / values[bent]
            self.weights[up:, up:] = -(vectors * share) @ vectors.T

    def amplitudes(self, change: Array, before: Array | None = None) -> Array:
        """Return z from the change of a local step that was made with z = `before`."""
        late = self.weights @ (self.R.T @ change)
        if before is not None:
            late = late - before
        z: Array = lazy_import("scipy.linalg").lu_solve(
            self.factors, late, check_finite=False
        )
        return z if before is None else before + z
