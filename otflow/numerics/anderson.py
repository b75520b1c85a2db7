"""Anderson acceleration of a fixed-point iteration."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Anderson"]

# Share of the trace that is added to the normal equations. Differences smaller than the
# others by the root of this share count less: in float32 they are round-off.
RIDGE = 1e-12


class Anderson:
    r"""Find x = T(x) from the earlier values of T :cite:p:`walker2011anderson`.

    Let g = T(x) - x. The next point is x + g minus a combination of the last
    differences of x + g. The coefficients are those with which the differences of g fit
    g best in the squared norm :math:`\sum_i w_i g_i^2`. For a linear T the iteration is
    as fast as GMRES.

    Parameters
    ----------
    memory : int
        Differences that are kept; 0 gives the plain iteration.
    weights : Tensor
        The weights w of the norm, fixed for the whole iteration.

    Attributes
    ----------
    memory, weights
        As above.

    Notes
    -----
    A step costs O(memory n); 2 memory n numbers are kept.
    """

    def __init__(self, memory: int, weights: Tensor) -> None:
        self.memory, self.weights = memory, weights
        self._root = weights.sqrt().reshape(-1)
        n = len(self._root)
        self._moves = self._root.new_zeros(memory, n)
        self._changes = self._root.new_zeros(memory, n)
        self._gram = torch.zeros(
            memory, memory, dtype=torch.float64, device=weights.device
        )
        self._count = 0
        self._last: tuple[Tensor, Tensor] | None = None

    @property
    def has_learnt(self) -> bool:
        """Whether the next point will be more than a plain step."""
        return self.memory > 0 and (self._last is not None or self._count > 0)

    def pause(self) -> None:
        """Keep the differences for a similar T; form none between the two maps."""
        self._last = None

    def forget(self) -> None:
        """Drop all differences."""
        self._count, self._last = 0, None

    def advance(self, x: Tensor, g: Tensor) -> Tensor:
        """Return the next point after x, given the residual g = T(x) - x."""
        new = x + g
        if self.memory == 0:
            return new
        weighted = g.reshape(-1) * self._root
        if self._last is not None:
            i = self._count % self.memory
            torch.sub(new.reshape(-1), self._last[0], out=self._moves[i])
            torch.sub(weighted, self._last[1], out=self._changes[i])
            self._count += 1
            k = min(self._count, self.memory)
            row = (self._changes[:k] @ self._changes[i]).to(torch.float64)
            self._gram[i, :k] = row
            self._gram[:k, i] = row
        self._last = (new.reshape(-1), weighted)
        k = min(self._count, self.memory)
        if k == 0:
            return new
        gram = self._gram[:k, :k]
        right = (self._changes[:k] @ weighted).to(torch.float64)
        # Differences that are all 0 leave the trace 0: a tiny ridge keeps the system
        # regular.
        ridge = RIDGE * gram.trace() + torch.finfo(torch.float64).tiny
        identity = torch.eye(k, dtype=torch.float64, device=gram.device)
        share: Tensor = torch.linalg.solve_ex(gram + ridge * identity, right)[0]
        if not bool(torch.isfinite(share).all()):
            return new
        past: Tensor = share.to(x.dtype) @ self._moves[:k]
        return new - past.reshape(x.shape)
