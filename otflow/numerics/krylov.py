"""Conjugate gradients and GMRES, for matrices known by products with vectors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["conjugate_gradients", "gmres"]

# This GMRES works on tensors of any device. SciPy's takes arrays of the CPU: each
# product on a GPU would copy vectors there and back.

# A direction is exhausted if orthogonalisation leaves less than this share of it: the
# rest is round-off.
EXHAUSTED = 1e-14


def conjugate_gradients(
    times: Callable[[Tensor, Tensor], Tensor],
    solve: Callable[[Tensor], Tensor | None],
    right: Tensor,
    accuracy: float,
    limit: int,
    seen: Callable[[Tensor, Tensor], bool] = lambda *_: False,
) -> Tensor:
    """Solve A x = b by conjugate gradients with a preconditioner M.

    The search stops along negative curvature. The solution so far is a direction of
    descent.

    Parameters
    ----------
    times : callable
        Maps p and M p to A p. If A contains M, the product adds M p itself, without
        the round-off of another product.
    solve : callable
        Returns the z with M z = r, or None if M is singular to round-off.
    right : Tensor
        The right-hand side b.
    accuracy : float
        Stop when the residual, in the norm of the inverse of M, is below this share.
    limit : int
        Most products with A.
    seen : callable
        Called with each iterate x and its residual b - A x. The search stops if it
        returns True.

    Returns
    -------
    Tensor
        The solution; zero if the first curvature is not positive.

    Examples
    --------
    >>> import torch
    >>> from otflow.numerics.krylov import conjugate_gradients
    >>> A = torch.tensor([[2.0, 1.0], [1.0, 4.0]], dtype=torch.float64)
    >>> b = torch.tensor([4.0, 9.0], dtype=torch.float64)
    >>> x = conjugate_gradients(lambda p, _: A @ p, lambda r: r, b, 1e-10, 5)
    >>> [round(a, 6) for a in x.tolist()]
    [1.0, 2.0]
    """
    x, r, z = torch.zeros_like(right), right, solve(right)
    if z is None:
        return x
    p, image, square = z, r, float((r * z).sum())
    target = accuracy**2 * square
    for _ in range(limit):
        product = times(p, image)
        curvature = float((p * product).sum())
        if not curvature > 0:
            break
        length = square / curvature
        x, r = x + length * p, r - length * product
        z = None if seen(x, r) else solve(r)
        if z is None:
            break
        before, square = square, float((r * z).sum())
        if square <= target:
            break
        p, image = z + (square / before) * p, r + (square / before) * image
    return x


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
        # Not the default driver: its pivots start from memory that nobody has set, so
        # the same call gives other bits.
        y = torch.linalg.lstsq(left, goal[: k + 2, None], driver="gelsd").solution
        residual = float((goal[: k + 2] - (left @ y)[:, 0]).norm()) / size
        if residual <= tolerance or not rest > EXHAUSTED * whole:
            break
        basis.append(w / rest)
    x: Tensor = y[:, 0].to(right) @ torch.stack(images)
    return x, residual
