"""Two isotropic Gaussians told apart by networks that are invariant under rotations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from otflow._validation import check_kind, non_negative_int, real
from otflow.functionals import OfExpectation

__all__ = ["RadialRisk", "Ramp"]

# Nodes of Gauss's rule over the lengths of the inputs. Where s = t, the mean over
# directions has about dim / 2 derivatives. From dim = 20 on the risk has errors below
# 1e-10 and the velocity below 1e-8; for dim = 10 the velocity would have 1e-5.
LENGTHS: Final = 32
LEAST_DIM: Final = 20


@dataclass(frozen=True)
class Ramp:
    r"""A piecewise linear activation, constant outside of an interval.

    .. math:: \varphi(z) = \ell + \frac{h - \ell}{r - t}\bigl((z - t)^+ - (z - r)^+
        \bigr)

    with :math:`\ell` = low, h = high, t = left and r = right. The default is the one of
    :cite:t:`mei2018mean`.

    Parameters
    ----------
    low, high : float
        Values on the left and on the right.
    left, right : float
        Ends of the interval, left < right.

    Raises
    ------
    ValueError
        If a number is not finite, or unless left < right.

    Examples
    --------
    >>> import torch, otflow as of
    >>> of.meanfield.Ramp()(torch.tensor([0.0, 1.0, 2.0]))
    tensor([-2.5000,  2.5000,  7.5000])
    """

    low: float = -2.5
    high: float = 7.5
    left: float = 0.5
    right: float = 1.5

    def __post_init__(self) -> None:
        for name in ("low", "high", "left", "right"):
            real(getattr(self, name), name)
        if not self.left < self.right:
            msg = (
                f"a ramp rises between two ends, got left={self.left} and "
                f"right={self.right}; give left < right"
            )
            raise ValueError(msg)

    @property
    def slope(self) -> float:
        """Return the slope between the ends."""
        return (self.high - self.low) / (self.right - self.left)

    def __call__(self, z: Tensor) -> Tensor:
        """Return the values, entry by entry."""
        return self.low + self.slope * (
            (z - self.left).relu() - (z - self.right).relu()
        )


class RadialRisk(OfExpectation):
    r"""The risk of telling two isotropic Gaussians apart, as one of lengths of neurons.

    Labels are y = 1 or -1 with probability 1/2 each, and inputs x of d dimensions are
    normal with covariance :math:`(1 + y\Delta)^2 I`. A network :math:`f(x) =
    \int\varphi(w\cdot x)\,d\rho(w)` learns y by the square loss. If :math:`\rho` is
    invariant under rotations, the risk depends on the law :math:`\bar\rho` of :math:`r
    = |w|` alone, and the flow of :math:`\rho` is that of :math:`\bar\rho`
    :cite:p:`mei2018mean`:

    .. math:: F(\bar\rho) = \tfrac12 E_{y,|x|}\Bigl(y - \int q(|x|\,r)\,d\bar\rho(r)
        \Bigr)^2, \qquad q(s) = E\,\varphi(s U_1),

    with U uniform on the unit sphere. As d grows, :math:`|x|U_1` tends to the normal
    variable :math:`(1 + y\Delta)G`, and with :math:`q(s) = E\,\varphi(sG)`

    .. math:: F(\bar\rho) = \tfrac14\sum_{y = \pm1}\Bigl(y - \int q((1 + y\Delta)\,r)\,
        d\bar\rho(r)\Bigr)^2.

    For the ramp, :math:`E(sG - t)^+ = s\,n(t/s) - t\,N(-t/s)`, n and N the density and
    the distribution function of G.

    Parameters
    ----------
    gap : float
        :math:`\Delta`, in [0, 1).
    unit : Ramp, optional
        The activation :math:`\varphi`.
    dim : int, optional
        Dimension d of the inputs, at least 20; by default the limit of large d.

    Attributes
    ----------
    gap, unit, dim
        As above.
    R, Phi, mixture
        As of an `OfExpectation`.

    Raises
    ------
    ValueError
        If gap is outside of [0, 1), dim is less than 20, or if points of a measure have
        another dimension than 1.

    See Also
    --------
    OnlineRisk : The same network with its weights w, trained on fresh data.
    PopulationRisk : Other laws of inputs, and teachers.

    Notes
    -----
    It is a functional of laws on the line, of points (n, 1). A point r stands for its
    absolute value. Time and memory are O(n) in the limit. In d dimensions they are
    :math:`O(n\sqrt d)`, with some 50 lengths and :math:`24 + 1.5\sqrt d` angles by
    Gauss's rules; errors of the value are below 1e-10, those of the velocity below
    1e-8.

    Neurons :math:`w \sim N(0, \sigma^2 I/d)` have lengths near :math:`\sigma`.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.meanfield.RadialRisk(0.8)
    >>> r = of.Particles(torch.full((4, 1), 0.8))
    >>> run = of.flow(F, r, of.ExplicitEuler(), dt=0.01, steps=500)
    >>> [round(float(e), 3) for e in run.records["energy"][[0, -1]]]
    [0.822, 0.493]
    """

    R: _SquareLoss
    Phi: _Features

    def __init__(
        self, gap: float, unit: Ramp | None = None, *, dim: int | None = None
    ) -> None:
        self.gap = real(gap, "gap")
        if not 0.0 <= self.gap < 1.0:
            msg = (
                f"gap must be at least 0 and below 1, got {gap}: 1 - gap scales inputs"
            )
            raise ValueError(msg)
        unit = Ramp() if unit is None else unit
        check_kind(unit, Ramp, "unit")
        self.unit = unit
        self.dim = (
            None if dim is None else non_negative_int(dim, "dim", minimum=LEAST_DIM)
        )
        scales, labels, masses = _inputs(self.gap, self.dim)
        features = _Features(self.unit, self.dim, scales)
        super().__init__(_SquareLoss(labels, masses), features, mixture="convex")

    def why_mixture(self) -> str:
        return "since the outputs are linear in the measure and the loss is a square"

    def __repr__(self) -> str:
        dim = "" if self.dim is None else f", dim={self.dim}"
        return f"RadialRisk(gap={self.gap:g}, unit={self.unit!r}{dim})"


@dataclass(frozen=True)
class _SquareLoss:
    """Half the mean square of labels minus outputs."""

    labels: tuple[float, ...]
    masses: tuple[float, ...]

    def __call__(self, outputs: Tensor) -> Tensor:
        labels, masses = (
            outputs.new_tensor(self.labels),
            outputs.new_tensor(self.masses),
        )
        return 0.5 * (masses * (labels - outputs).square()).sum()


@dataclass(frozen=True)
class _Features:
    """Means of the unit over directions of the inputs, one column for each length."""

    unit: Ramp
    dim: int | None
    scales: tuple[float, ...]

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[-1] != 1:
            msg = (
                f"lengths are points (n, 1), got dimension {x.shape[-1]}; take the "
                f"lengths of neurons, w.norm(dim=1, keepdim=True)"
            )
            raise ValueError(msg)
        s = x.abs() * x.new_tensor(self.scales)
        unit = self.unit
        return unit.low + unit.slope * (
            _above(s, unit.left, self.dim) - _above(s, unit.right, self.dim)
        )


def _above(s: Tensor, level: float, dim: int | None) -> Tensor:
    """Return E(sZ - t)+, Z normal, or the coordinate of a point on the unit sphere."""
    if level < 0:  # The mean of Z is 0, and (z)+ = z + (-z)+.
        return _above(s, -level, dim) - level
    if dim is None:
        if level == 0:
            return s / math.sqrt(2 * math.pi)
        alive = 40.0 * s > level  # else exp(-800) is 0, and its slope is no number
        at = level / torch.where(alive, s, level)
        density = torch.exp(-0.5 * at.square()) / math.sqrt(2 * math.pi)
        mean = s * density - level * torch.special.ndtr(-at)
        return torch.where(alive, mean, 0.0 * s)
    # s times the integral of (cos - c)+ over the angle, c = t/s, from 0 to arccos c.
    alive = s > level
    c = level / torch.where(alive, s, 2 * level + 1)
    # The density over angles has a width of 1 / sqrt(dim).
    count = 24 + int(1.5 * math.sqrt(dim))
    nodes, weights = (s.new_tensor(a) for a in np.polynomial.legendre.leggauss(count))
    end = c.acos()[..., None]
    angle = 0.5 * end * (nodes + 1)
    log_scale = (
        math.lgamma(dim / 2) - math.lgamma((dim - 1) / 2) - 0.5 * math.log(math.pi)
    )
    density = torch.exp(log_scale + (dim - 2) * angle.sin().log())
    mean = 0.5 * end[..., 0] * (((angle.cos() - c[..., None]) * density) @ weights)
    return torch.where(alive, s * mean, 0.0 * s)


def _inputs(
    gap: float, dim: int | None
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Return lengths of the inputs, their labels and probabilities."""
    if dim is None:
        return (1 + gap, 1 - gap), (1.0, -1.0), (0.5, 0.5)
    # Gauss's rule of |G|^2 / 2 by the Jacobi matrix of Laguerre's polynomials.
    k, alpha = np.arange(LENGTHS), dim / 2 - 1
    off = np.sqrt(k[1:] * (k[1:] + alpha))
    matrix = np.diag(2 * k + 1 + alpha) + np.diag(off, 1) + np.diag(off, -1)
    squares, vectors = np.linalg.eigh(matrix)
    lengths, masses = np.sqrt(2 * squares), vectors[0] ** 2
    keep = masses > 1e-18
    lengths, masses = lengths[keep], masses[keep] / masses[keep].sum()
    return (
        tuple(map(float, np.concatenate([(1 + gap) * lengths, (1 - gap) * lengths]))),
        (1.0,) * len(lengths) + (-1.0,) * len(lengths),
        tuple(map(float, np.tile(masses / 2, 2))),
    )
