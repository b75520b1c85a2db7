"""Newton directions for the semi-dual of entropic transport."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from otflow.numerics.krylov import conjugate_gradients

__all__ = ["Curvature"]

# Up to this size eigenvectors solve; beyond it, conjugate gradients multiply by the
# matrix. If they take more than FEW products and a tenth of the size, as for a small
# blur, a factor of the matrix takes less time, up to a size of FACTORED.
DIRECT = 200
FEW = 40
FACTORED = 3000
MAX_CONJUGATE = 400


@dataclass(frozen=True)
class Curvature:
    r"""The matrix diag(diagonal) - shares^T diag(rows) shares, :math:`\succeq 0`.

    Parameters
    ----------
    shares : Tensor, shape (n, m)
        Matrix with row sums 1.
    rows : Tensor, shape (n,)
        Non-negative weights of the rows.
    diagonal : Tensor, shape (m,)
        Non-negative diagonal.
    is_singular : bool
        Whether the kernel of the matrix contains the constants.
    """

    shares: Tensor
    rows: Tensor
    diagonal: Tensor
    is_singular: bool

    def solver(self) -> Callable[[Tensor, float], Tensor]:
        """Return a map from a slope and a radius to a step no longer than the radius.

        Lengths are largest entries. The step is the regularised Newton step.
        """
        if len(self.diagonal) <= DIRECT:
            return self._by_eigenvectors()
        factor: Callable[[Tensor, float], Tensor] | None = None

        def solve(slope: Tensor, radius: float) -> Tensor:
            nonlocal factor
            if factor is None:
                limit = max(FEW, len(slope) // 10)
                if len(slope) > FACTORED:
                    limit = MAX_CONJUGATE
                move = self._by_cg(slope, radius, limit)
                if move is not None:
                    return move
                factor = self.by_factors()
            return factor(slope, radius)

        return solve

    @property
    def _scale(self) -> Tensor:
        tiny = torch.finfo(self.diagonal.dtype).tiny
        return self.diagonal.clamp_min(tiny).rsqrt()

    @cached_property
    def _half(self) -> Tensor:
        """The B of the scaled matrix I - B^T B, whose columns are at most 1 long."""
        half = self.rows.sqrt()[:, None] * self.shares * self._scale
        # Their squares would be subnormal numbers, which take ten times as long.
        return half.masked_fill(half < 1e-40, 0.0)

    @property
    def _matrix(self) -> Tensor:
        """The scaled matrix, of norm 1."""
        matrix: Tensor = -(self._half.T @ self._half)
        matrix.diagonal().add_(1.0)
        return matrix

    @property
    def _flat(self) -> Tensor:
        """The unit vector of the kernel in the singular case, else 0."""
        flat = 1.0 / self._scale if self.is_singular else torch.zeros_like(self._scale)
        size = torch.linalg.vector_norm(flat)
        unit: Tensor = flat / size.masked_fill(size == 0, 1.0)
        return unit

    def by_factors(self) -> Callable[[Tensor, float], Tensor]:
        """Shift the scaled matrix until it has a factor and the step is short."""
        scale, flat = self._scale, self._flat
        # The step has no part along the kernel, which is lifted.
        matrix = self._matrix + flat[:, None] * flat

        def solve(slope: Tensor, radius: float) -> Tensor:
            part, shift = scale * slope, 1e-16
            part = part - (flat @ part) * flat
            while shift < 1e20:
                shifted = matrix.clone()
                shifted.diagonal().add_(shift)
                factor, failed = torch.linalg.cholesky_ex(shifted)
                if not int(failed):
                    found = torch.cholesky_solve(part[:, None], factor)[:, 0]
                    move: Tensor = scale * (found - (flat @ found) * flat)
                    if float(move.abs().max()) <= radius:
                        return move
                shift *= 16.0
            return torch.zeros_like(part)

        return solve

    def _by_eigenvectors(self) -> Callable[[Tensor, float], Tensor]:
        """Shift the scaled matrix until the step lies within the radius."""
        scale, matrix = self._scale, self._matrix
        values, vectors = torch.linalg.eigh(matrix)
        values = values.clamp_min(0.0)

        def solve(slope: Tensor, radius: float) -> Tensor:
            # The scaled matrix has norm 1: the first shift is its round-off.
            part, shift = vectors.T @ (scale * slope), 1e-16
            while True:
                move: Tensor = scale * (vectors @ (part / (values + shift)))
                if self.is_singular:
                    move = move - 0.5 * (move.max() + move.min())
                longest = float(move.abs().max())
                if longest <= radius:
                    return move
                # Far above the norm the move is the slope over the shift: scale it.
                if not shift < 1e12:
                    return (
                        move * (radius / longest)
                        if longest < float("inf")
                        else (torch.zeros_like(move))
                    )
                shift *= 4.0

        return solve

    def _by_cg(self, slope: Tensor, radius: float, limit: int) -> Tensor | None:
        """Stop conjugate gradients at the radius; None if the limit is too low."""
        # In the singular case constants are in the kernel: project out their round-off.
        scale, flat = self._scale, self._flat
        way: Tensor | None = None
        products, stopped = 0, False

        def project(r: Tensor) -> Tensor:
            rest: Tensor = r - (flat @ r) * flat
            return rest

        def times(p: Tensor, _: Tensor) -> Tensor:
            nonlocal way, products
            products += 1
            image = p - self._half.T @ (self._half @ p)
            if float(p @ image) > 1e-15 * float(p @ p):
                return image
            way = p
            return torch.zeros_like(p)

        def beyond(x: Tensor, _: Tensor) -> bool:
            nonlocal stopped
            stopped = float((scale * x).abs().max()) > radius
            return stopped

        # In the norm of the scaled slope 1e-10 is left, enough for a Newton step.
        x = conjugate_gradients(
            times,
            project,
            project(scale * slope),
            1e-10,
            limit,
            beyond,
        )
        if products == limit < MAX_CONJUGATE and way is None and not stopped:
            return None
        # Along a way that is flat up to round-off the step goes to the radius.
        move: Tensor = scale * (x if way is None else way)
        longest = float(move.abs().max())
        share = radius / longest if longest > 0 else 0.0
        return move * (min(1.0, share) if way is None else share)
