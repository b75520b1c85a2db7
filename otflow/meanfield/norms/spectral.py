r"""Bounds of the Barron norm by a function's Fourier transform."""

from __future__ import annotations

import torch
from torch import Tensor

from otflow._arrays import as_points, as_tensor
from otflow._typing import ArrayLike
from otflow._validation import check_like, real, true_or_false

__all__ = ["spectral_barron_bound"]


def spectral_barron_bound(
    freqs: ArrayLike,
    amps: ArrayLike,
    f0: float | None = None,
    g0: ArrayLike | None = None,
    *,
    sharp: bool = False,
) -> Tensor:
    r"""Return a bound of the Barron norm on :math:`[0, 1]^d` by the Fourier transform.

    For :math:`f(x) = \mathrm{Re}\,\sum_k \hat f_k\,e^{i\xi_k\cdot x}`, up to an affine
    function, it is

    .. math:: |f|_{\mathcal B} \le 2\gamma + 2|\nabla f(0)|_1 + 2|f(0)|, \qquad
        \gamma = \sum_k |\xi_k|_1^2\,|\hat f_k|,

    with the path norm :math:`|a|(|w|_1 + |b|)`
    :cite:p:`e2022barron,breiman1993hinging`.

    Parameters
    ----------
    freqs : Tensor or ndarray, shape (K, d)
        Angular frequencies :math:`\xi_k`.
    amps : Tensor or ndarray, shape (K,)
        Amplitudes :math:`\hat f_k`, real or complex. For a transform that is a density,
        times the volume of a cell of frequencies.
    f0 : float, optional
        :math:`f(0)`; by default that of the sum.
    g0 : Tensor or ndarray, shape (d,), optional
        :math:`\nabla f(0)`; by default that of the sum.
    sharp : bool
        Whether to return the bound that the proof below gives, which is smaller.

    Returns
    -------
    Tensor
        0-d, with the graph of the frequencies and of the amplitudes.

    Raises
    ------
    ValueError
        If shapes do not fit or an entry is not finite.
    TypeError
        If dtypes differ.

    See Also
    --------
    barron_norm : A bound from below, from values at data.

    Notes
    -----
    The proof. For real z with :math:`-m \le z \le p`,

    .. math:: e^{iz} - 1 - iz = -\int_0^p (z - t)^+ e^{it}\,dt
        - \int_0^m (-z - t)^+ e^{-it}\,dt.

    Take :math:`z = \xi\cdot x` with :math:`x \in [0, 1]^d`. There p and m are the sums
    of the positive and of the negative parts of :math:`\xi`, with :math:`p + m =
    |\xi|_1`. The neuron :math:`(\xi\cdot x - t)^+` has the norm :math:`|\xi|_1 + t`. So
    the part of :math:`f - f(0) - \nabla f(0)\cdot x` at one frequency has at most the
    norm

    .. math:: |\hat f|\,\Bigl(\int_0^p (|\xi|_1 + t)\,dt +
        \int_0^m (|\xi|_1 + t)\,dt\Bigr) =
        |\hat f|\,\Bigl(|\xi|_1^2 + \frac{p^2 + m^2}2\Bigr)
        \le \tfrac32\,|\xi|_1^2\,|\hat f|.

    A constant c has at most the norm :math:`|c|`, and :math:`g\cdot x = \sum_j g_j
    x_j^+` the norm :math:`|g|_1`. Their sum is the sharp bound. It is at most
    :math:`\tfrac32 \gamma + |\nabla f(0)|_1 + |f(0)|`, which proves the one above.

    Examples
    --------
    >>> import torch, otflow as of
    >>> xi = torch.tensor([[2 * torch.pi]], dtype=torch.float64)  # cos(2 pi x)
    >>> one = torch.ones(1, dtype=torch.float64)
    >>> bound = of.meanfield.spectral_barron_bound
    >>> [round(float(bound(xi, one, sharp=s)), 2) for s in (False, True)]
    [80.96, 60.22]
    """
    xi = as_points(freqs, "freqs")
    sharp = true_or_false(sharp, "sharp")
    real_part, imaginary, size = _amplitudes(amps, xi)
    value = real_part.sum().abs() if f0 is None else abs(real(f0, "f0"))
    if g0 is None:
        slope = -(imaginary @ xi)
    else:
        slope = as_points(as_tensor(g0, "g0").reshape(1, -1), "g0")[0]
        check_like(slope, xi, "g0", "freqs")
        if slope.shape != xi.shape[1:]:
            msg = (
                f"g0 must hold {xi.shape[1]} numbers, one per coordinate of a "
                f"frequency, got {len(slope)}; leave g0 out to take that of the sum"
            )
            raise ValueError(msg)
    length = xi.abs().sum(1)
    if not sharp:
        return 2 * (size @ length.square()) + 2 * slope.abs().sum() + 2 * value
    plus, minus = xi.clamp_min(0).sum(1), (-xi).clamp_min(0).sum(1)
    squares = length.square() + (plus.square() + minus.square()) / 2
    return size @ squares + slope.abs().sum() + value


def _amplitudes(amps: ArrayLike, xi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return real parts, imaginary parts and moduli of amplitudes, checked."""
    c = as_tensor(amps, "amps")
    if c.shape != xi.shape[:1]:
        msg = (
            f"amps must hold one number for each of the {len(xi)} frequencies, got "
            f"shape {tuple(c.shape)}; give amps of shape ({len(xi)},)"
        )
        raise ValueError(msg)
    parts = (c.real, c.imag) if c.is_complex() else (c, torch.zeros_like(c))
    check_like(parts[0], xi, "amps", "freqs")
    if not bool(torch.isfinite(c).all()):
        k = int((~torch.isfinite(c)).nonzero()[0])
        msg = f"amps must be finite, got {c[k].item()} at index {k}; leave it out"
        raise ValueError(msg)
    return *parts, c.abs()
