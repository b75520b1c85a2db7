"""Masses on a lattice, and the transforms of potentials that go axis by axis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from otflow.numerics.envelopes import lower_envelope
from otflow.numerics.gauss_sums import log_gauss_sums

__all__ = ["Lattice", "halved", "soft_moments", "soft_sums", "transformed"]

# Cells of the axes of the coarsest lattice.
SHORT = 16


@dataclass(frozen=True, eq=False)
class Lattice:
    """Atoms at the nodes of a lattice; float64, on the CPU.

    Parameters
    ----------
    axes : tuple of Tensor
        Increasing coordinates along each axis.
    masses : Tensor, shape (n_1, ..., n_d)
        Masses, >= 0, of sum 1.
    """

    axes: tuple[Tensor, ...]
    masses: Tensor

    @cached_property
    def log(self) -> Tensor:
        """The logarithms of the masses."""
        return self.masses.log()

    @cached_property
    def mean(self) -> Tensor:
        """The barycentre, (d,)."""
        d = self.masses.ndim
        means = []
        for k, x in enumerate(self.axes):
            others = [a for a in range(d) if a != k]
            means.append(self.masses.sum(others) @ x if others else self.masses @ x)
        return torch.stack(means)

    @property
    def spacing(self) -> float:
        """The longest side of a cell, 0 for one node."""
        return max((float(x[1] - x[0]) for x in self.axes if len(x) > 1), default=0.0)

    @property
    def least_spacing(self) -> float:
        """The shortest side of a cell, 0 for one node."""
        return min((float(x[1] - x[0]) for x in self.axes if len(x) > 1), default=0.0)

    def on(self, k: int, x: Tensor) -> Tensor:
        """Return numbers of axis k in a shape that spreads over the lattice."""
        return x.reshape([-1 if a == k else 1 for a in range(len(self.axes))])

    def moved(self, shift: Tensor) -> Lattice:
        """Return the lattice moved by a vector."""
        return replace(
            self, axes=tuple(x + s for x, s in zip(self.axes, shift, strict=True))
        )

    def over(self, unit: float) -> Lattice:
        """Return the lattice with lengths measured in another unit."""
        return replace(self, axes=tuple(x / unit for x in self.axes))

    def trimmed(self) -> tuple[Lattice, tuple[int, ...]]:
        """Return the smallest box that has all mass, and its first node."""
        masses, axes, starts = self.masses, [], []
        for k, x in enumerate(self.axes):
            others = [a for a in range(len(self.axes)) if a != k]
            full = self.masses.sum(others) if others else self.masses
            place = full.nonzero()[:, 0]
            low, high = int(place[0]), int(place[-1]) + 1
            masses = masses.narrow(k, low, high - low)
            axes.append(x[low:high])
            starts.append(low)
        return Lattice(tuple(axes), masses.contiguous()), tuple(starts)

    def coarser(self) -> Lattice:
        """Return the lattice of pairs of nodes along each long axis."""
        masses, axes = self.masses, list(self.axes)
        for k, x in enumerate(self.axes):
            if len(x) > SHORT:
                masses = halved(masses, k)
                step = 2 * (x[1] - x[0])
                count = torch.arange(masses.shape[k], dtype=x.dtype)
                axes[k] = 0.5 * (x[0] + x[1]) + step * count
        return Lattice(tuple(axes), masses)


def halved(array: Tensor, axis: int) -> Tensor:
    """Return the sums of pairs along an axis; the last entry may be alone."""
    if array.shape[axis] % 2:
        end = torch.zeros_like(array.narrow(axis, 0, 1))
        array = torch.cat([array, end], axis)
    shape = (*array.shape[:axis], -1, 2, *array.shape[axis + 1 :])
    return array.reshape(shape).sum(axis + 1)


def transformed(
    g: Tensor, axes: tuple[Tensor, ...], targets: tuple[Tensor, ...]
) -> Tensor:
    """Return the minimum over y of |x - y|^2 - g(y) at every node x."""

    def one(rows: Tensor, k: int) -> Tensor:
        return lower_envelope(rows, axes[k], targets[k], 1.0)[0]

    return _along_axes(-g, one)


def soft_sums(
    v: Tensor,
    axes: tuple[Tensor, ...],
    targets: tuple[Tensor, ...],
    eps: float,
    cut: float,
) -> Tensor:
    """Return the logarithm of the sum over y of exp(v(y) - |x - y|^2 / eps).

    Terms below the largest one by the factor e^-cut may be left out.
    """

    def one(rows: Tensor, k: int) -> Tensor:
        none = rows.new_zeros(*rows.shape, 0)
        return log_gauss_sums(rows, axes[k], targets[k], 1.0 / eps, none, cut)[0]

    return _along_axes(v, one)


def _along_axes(v: Tensor, one: Callable[[Tensor, int], Tensor]) -> Tensor:
    for k in range(v.ndim):
        rows = v.movedim(k, -1)
        found = one(rows.reshape(-1, rows.shape[-1]), k)
        v = found.reshape(*rows.shape[:-1], found.shape[-1]).movedim(-1, k)
    return v


def soft_moments(
    v: Tensor, axes: tuple[Tensor, ...], targets: tuple[Tensor, ...], eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return `soft_sums`, and two means under the terms of each sum.

    Returns
    -------
    logarithms : Tensor, shape (m_1, ..., m_d)
        The sums.
    means : Tensor, shape (m_1, ..., m_d, d)
        The mean of y.
    squares : Tensor, shape (m_1, ..., m_d)
        The mean of :math:`|x - y|^2`.
    """
    d = v.ndim
    # The mean of |x - y|^2 over the axes done, then the mean y of each of these axes.
    known = v.new_zeros(*v.shape, 1)
    for k in range(d):
        rows, values = v.movedim(k, -1), known.movedim(k, -2)
        n = rows.shape[-1]
        y = axes[k].expand(rows.shape)[..., None]
        values = torch.cat([values, y, y.square()], -1).reshape(-1, n, k + 3)
        log, means = log_gauss_sums(
            rows.reshape(-1, n), axes[k], targets[k], 1.0 / eps, values
        )
        x = targets[k][:, None]
        own, second = means[..., k + 1 : k + 2], means[..., k + 2 :]
        square = (means[..., :1] + second - 2 * x * own) + x.square()
        means = torch.cat([square, means[..., 1 : k + 2]], -1)
        shape = (*rows.shape[:-1], len(targets[k]))
        v = log.reshape(shape).movedim(-1, k)
        known = means.reshape(*shape, k + 2).movedim(-2, k)
    return v, known[..., 1:], known[..., 0]
