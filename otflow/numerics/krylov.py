"""GMRES, for matrices that are known by their products with vectors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["gmres"]

# This GMRES works on tensors of any device. SciPy's takes arrays of the CPU: each
# product on a GPU would copy vectors there and back.

# A direction is exhausted if orthogonalisation leaves less than this share of it: the
# rest is round-off.
EXHAUSTED = 1e-14


def gmres(
    apply: Callable[[Tensor], Tensor],
    precondition: Callable[[Tensor], Tensor],
    right: Tensor,
    tolerance: float,
    limit: int,
) -> tuple[Tensor, float]:
    """Return x = My with :math:`|b - Ax|` least for y in a Krylov space of AM.

    Parameters
    ----------
    apply : callable
        Returns Ax.
    precondition : callable
        Returns Mr, an approximate solution of Ax = r.
    right : Tensor, shape (n,)
        The right-hand side b.
    tolerance : float
        Stop when the residual is below `tolerance` times the norm of b.
    limit : int
        Most products with A.

    Returns
    -------
    x : Tensor, shape (n,)
        The solution.
    residual : float
        Norm of b - Ax over the norm of b.

    Examples
    --------
    >>> import torch
    >>> from otflow.numerics.krylov import gmres
    >>> A = torch.tensor([[2.0, 1.0], [0.0, 4.0]], dtype=torch.float64)
    >>> b = torch.tensor([4.0, 8.0], dtype=torch.float64)
    >>> x, residual = gmres(lambda x: A @ x, lambda r: r / 3, b, 1e-10, 5)
    >>> [round(a, 6) for a in x.tolist()], residual < 1e-10
    ([1.0, 2.0], True)
    """
    size = float(right.norm())
    if not size > 0:
        return torch.zeros_like(right), 0.0
    basis, images = [right / size], []
    H = torch.zeros(limit + 1, limit, dtype=torch.float64)
    goal = torch.zeros(limit + 1, dtype=torch.float64)
    goal[0] = size
    for k in range(limit):
        images.append(precondition(basis[k]))
        w = apply(images[k])
        whole = float(w.norm())
        Q = torch.stack(basis)
        # Gram-Schmidt loses orthogonality to round-off; a second pass restores it.
        for _ in range(2):
            share = Q @ w
            H[: k + 1, k] += share.to("cpu", torch.float64)
            w = w - share @ Q
        rest = float(w.norm())
        H[k + 1, k] = rest
        left = H[: k + 2, : k + 1]
        y = torch.linalg.lstsq(left, goal[: k + 2, None]).solution
        residual = float((goal[: k + 2] - (left @ y)[:, 0]).norm()) / size
        if residual <= tolerance or not rest > EXHAUSTED * whole:
            break
        basis.append(w / rest)
    x: Tensor = y[:, 0].to(right) @ torch.stack(images)
    return x, residual
