r"""Residuals of ReLU networks in twice the precision of float64."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["relu_residual", "two_product", "two_sum"]

# Round-off of an operation on pairs, with a margin: the bound of each is 2**-104.
PAIR = 2.0**-102
# Products whose last digits are lost by underflow are below this.
TINY = 2.0**-1000
# Splits 53 binary digits into 26 and 27.
SPLITTER = 2.0**27 + 1
# Numbers in a temporary array.
BLOCK = 2**20


def two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rounded sum and its error: both together are a + b."""
    total = a + b
    rest = total - a
    return total, (a - (total - rest)) + (b - rest)


def two_product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rounded product and its error, by the split of Dekker and Veltkamp."""
    product = a * b
    (a_high, a_low), (b_high, b_low) = _split(a), _split(b)
    error = a_high * b_high - product
    error = ((error + a_high * b_low) + a_low * b_high) + a_low * b_low
    return product, error


def relu_residual(
    z: Tensor, atoms: Tensor, coefficients: Tensor, rest: Tensor, f: Tensor
) -> tuple[Tensor, float]:
    r"""Return :math:`f_i - \sum_j (c_j + e_j)\,(z_i\cdot v_j)^+`, and its error.

    Sums and products are pairs of numbers of float64, whose round-off is the square of
    that of one number :cite:p:`dekker1971floating`.

    Parameters
    ----------
    z : Tensor, shape (n, q)
        Data with a column of ones, of entries of at most 1.
    atoms : Tensor, shape (m, q)
        Inner weights.
    coefficients, rest : Tensor, shape (m,)
        The parts c and e of the outer weights.
    f : Tensor, shape (n,)
        Values.

    Returns
    -------
    residual : Tensor, shape (n,)
        Rounded to float64.
    error : float
        A bound of the Euclidean norm of the error, with that of this rounding. Time
        O(n m q), memory O(n).
    """
    n, q = z.shape
    high, low = f.clone(), torch.zeros_like(f)
    columns = max(1, BLOCK // n)
    for first in range(0, len(atoms), columns):
        v, c, e = (t[first : first + columns] for t in (atoms, coefficients, rest))
        feature = (z.new_zeros(n, len(v)), z.new_zeros(n, len(v)))
        for k in range(q):
            feature = _add(feature, two_product(z[:, k, None], v[:, k]))
        on = (feature[0] > 0) | ((feature[0] == 0) & (feature[1] > 0))
        up, more = (torch.where(on, part, 0.0) for part in feature)
        product, error = two_product(up, -c)
        error = error - (more * c + up * e)
        for j in range(len(v)):
            high, low = _add((high, low), (product[:, j], error[:, j]))
    residual = high + low
    size = float((coefficients.abs() + rest.abs()) @ atoms.abs().sum(1))
    terms = 4 * (q + len(atoms) + 16)
    rounding = PAIR * terms * (size + float(f.abs().max())) + terms * TINY
    last = torch.finfo(f.dtype).eps * float(residual.norm())
    return residual, rounding * n**0.5 + last


def _split(a: Tensor) -> tuple[Tensor, Tensor]:
    large = SPLITTER * a
    high = large - (large - a)
    return high, a - high


def _add(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    total, error = two_sum(a[0], b[0])
    error = error + (a[1] + b[1])
    return two_sum(total, error)
