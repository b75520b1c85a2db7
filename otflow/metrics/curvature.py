"""Newton directions for the semi-dual of entropic transport."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from otflow.numerics.krylov import conjugate_gradients

__all__ = ["Curvature"]

# Up to this size the matrix is formed; beyond it, conjugate gradients multiply by it.
DIRECT = 200
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
        return self._by_eigenvectors() if len(self.diagonal) <= DIRECT else self._by_cg

    @property
    def _scale(self) -> Tensor:
        tiny = torch.finfo(self.diagonal.dtype).tiny
        return self.diagonal.clamp_min(tiny).rsqrt()

    def _by_eigenvectors(self) -> Callable[[Tensor, float], Tensor]:
        """Shift the scaled matrix until the step lies within the radius."""
        scale = self._scale
        scaled = self.shares * scale
        matrix = -(scaled.T @ (self.rows[:, None] * scaled))
        matrix.diagonal().add_(1.0)
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

    def _by_cg(self, slope: Tensor, radius: float) -> Tensor:
        """Stop conjugate gradients at the radius."""
        scale = self._scale
        # In the singular case constants are in the kernel: project out their round-off.
        flat = 1.0 / scale if self.is_singular else torch.zeros_like(scale)
        size = torch.linalg.vector_norm(flat)
        flat = flat / size.masked_fill(size == 0, 1.0)
        way: Tensor | None = None

        def project(r: Tensor) -> Tensor:
            rest: Tensor = r - (flat @ r) * flat
            return rest

        def times(p: Tensor, _: Tensor) -> Tensor:
            nonlocal way
            image = self.shares.T @ (self.rows * (self.shares @ (scale * p)))
            image = p - scale * image
            if float(p @ image) > 1e-15 * float(p @ p):
                return image
            way = p
            return torch.zeros_like(p)

        # In the norm of the scaled slope 1e-10 is left, enough for a Newton step.
        x = conjugate_gradients(
            times,
            project,
            project(scale * slope),
            1e-10,
            MAX_CONJUGATE,
            lambda x, _: float((scale * x).abs().max()) > radius,
        )
        # Along a way that is flat up to round-off the step goes to the radius.
        move: Tensor = scale * (x if way is None else way)
        longest = float(move.abs().max())
        share = radius / longest if longest > 0 else 0.0
        return move * (min(1.0, share) if way is None else share)
