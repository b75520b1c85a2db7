r"""Means :math:`E[\varphi(w\cdot x)\,\varphi(u\cdot x)]` over a law of x."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from otflow._graphs import with_value
from otflow._validation import check_option
from otflow.errors import Unsupported
from otflow.meanfield.units import UNITS

__all__ = ["INPUTS", "ClosedKernel", "closed_kernel"]

INPUTS: Final = ("gaussian", "sphere")
# Units whose kernel is known for a law of inputs.
CLOSED: Final = ("relu", "step", "erf")
TURN: Final = 2.0 * math.pi
# The cosine beyond which an angle is found by differences of directions.
NEARLY_PARALLEL: Final = 0.9


@dataclass(frozen=True)
class ClosedKernel(ABC):
    """A kernel of two inner weights, of which a closed form is known.

    Parameters
    ----------
    divisor : float
        Number by which the mean over Gaussian inputs is divided.
    """

    divisor: float = 1.0

    @abstractmethod
    def matrix(self, w: Tensor, u: Tensor) -> Tensor:
        """Return the kernel of (M, d) and (N, d), with its graph to every order."""

    @abstractmethod
    def with_slopes(self, w: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return K, alpha and beta, (M, N): the slope in w is alpha u + beta w."""


class Relu(ClosedKernel):
    r""":math:`\frac{|w||u|}{2\pi}(\sin t + (\pi - t)\cos t)`, t the angle.

    Its slope in w is :math:`\frac1{2\pi}(|u|\sin t\,\hat w + (\pi - t)\,u)`. Both are
    insensitive to the round-off of t, since errors of sin t and of t cancel.
    """

    def matrix(self, w: Tensor, u: Tensor) -> Tensor:
        (p, v), (q, z) = _polar(w), _polar(u)
        cosine = v @ z.T
        sine = _sine(cosine)
        arc = sine + (math.pi - torch.atan2(sine, cosine)) * cosine
        return p[:, None] * q * arc / (TURN * self.divisor)

    def with_slopes(self, w: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (p, v), (q, z) = _polar(w), _polar(u)
        cosine = v @ z.T
        sine = (1.0 - cosine.square()).clamp_(min=0).sqrt_()
        rest = math.pi - torch.atan2(sine, cosine)
        scale = TURN * self.divisor
        value = p[:, None] * q * (sine + rest * cosine) / scale
        # The slope of relu at 0 is 0, and so is that of the kernel at w = 0.
        alpha = (rest / scale).masked_fill_((p == 0)[:, None], 0.0)
        inverse = 1.0 / p
        inverse = inverse.masked_fill(torch.isinf(inverse), 0.0)
        return value, alpha, inverse[:, None] * q * sine / scale


class Step(ClosedKernel):
    r""":math:`(\pi - t)/2\pi`, t the angle; 0 if a weight vanishes.

    Its slope in w is :math:`(\hat u - \cos t\,\hat w)/(2\pi|w|\sin t)`. It jumps at t =
    0 and at t = pi, where the mean of all directions stands for it, which is 0. Up to
    the round-off of a direction, 8 eps, the slope counts as 0 beside them as well.
    """

    def matrix(self, w: Tensor, u: Tensor) -> Tensor:
        (p, v), (q, z) = _polar(w), _polar(u)
        cosine = v @ z.T
        exact, sine = _angle(v.detach(), z.detach(), cosine.detach())
        # The root of 1 - cos^2 loses the digits of a small sine, and its slope too.
        inside = ~_at_corner(sine)
        square = with_value(1.0 - cosine.square(), sine.square())
        root = torch.where(inside, square, torch.ones_like(square)).sqrt()
        root = torch.where(inside, root, torch.zeros_like(root))
        angle = with_value(torch.atan2(root, cosine), exact)
        alive = (p[:, None] > 0) & (q > 0)
        return torch.where(alive, (math.pi - angle) / TURN, torch.zeros_like(angle))

    def with_slopes(self, w: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (p, v), (q, z) = _polar(w), _polar(u)
        cosine = v @ z.T
        angle, sine = _angle(v, z, cosine)
        dead = (p[:, None] == 0) | (q == 0)
        value = ((math.pi - angle) / TURN).masked_fill_(dead, 0.0)
        corner = dead | _at_corner(sine)
        over = (1.0 / (TURN * p[:, None] * sine)).masked_fill_(corner, 0.0)
        alpha = (over / q).masked_fill_(corner, 0.0)
        beta = (-over * cosine / p[:, None]).masked_fill_(corner, 0.0)
        return value, alpha, beta


class Erf(ClosedKernel):
    r""":math:`\frac2\pi\arcsin\frac{2c}{\sqrt{AB}}` with c = w.u, A = 1 + 2 |w|^2.

    B is A of u. The slope in w is :math:`\frac4{\pi\sqrt D}(u - \frac{2c}A w)` with D =
    A B - 4 c^2.
    """

    def matrix(self, w: Tensor, u: Tensor) -> Tensor:
        c, root = _determinant(w, u)[1:]
        return torch.atan2(2.0 * c, root) * (2.0 / math.pi)

    def with_slopes(self, w: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, c, root = _determinant(w, u)
        alpha = (4.0 / math.pi) / root
        return torch.atan2(2.0 * c, root) * (2.0 / math.pi), alpha, -2.0 * c / a * alpha


def closed_kernel(unit: str, inputs: str, d: int) -> ClosedKernel:
    """Return the kernel of a unit for a law of inputs in d dimensions.

    Raises
    ------
    Unsupported
        If no closed form is known.
    """
    check_option(inputs, "inputs", INPUTS)
    cure = (
        "take the risk of sampled inputs, meanfield.Risk, or fresh ones at each step, "
        "meanfield.OnlineRisk"
    )
    if isinstance(unit, str) and unit in UNITS and unit not in CLOSED:
        msg = (
            f"no closed form is known of the kernel of {unit!r}; use 'relu', 'step' or "
            f"'erf', or {cure}"
        )
        raise Unsupported(msg)
    check_option(unit, "unit", CLOSED)
    if unit == "erf":
        if inputs == "sphere":
            msg = (
                f"no closed form is known of the kernel of 'erf' on the sphere; use "
                f"inputs='gaussian', or {cure}"
            )
            raise Unsupported(msg)
        return Erf()
    if unit == "step":
        return Step()
    # The length of a Gaussian input is independent of its direction, E|x|^2 = d.
    return Relu(float(d) if inputs == "sphere" else 1.0)


def _polar(w: Tensor) -> tuple[Tensor, Tensor]:
    """Return lengths and directions of rows; the direction of 0 is 0.

    The squares of a row may underflow where the row does not.
    """
    largest = w.detach().abs().amax(1)
    unit = largest.masked_fill(largest == 0, 1.0)
    scaled = w / unit[:, None]
    lengths = torch.linalg.vector_norm(scaled, dim=1)
    directions = scaled / lengths.masked_fill(lengths == 0, 1.0)[:, None]
    return lengths * unit, directions


def _sine(cosine: Tensor) -> Tensor:
    """Return sin t, of derivative 0 where cos t is 1 or -1 up to round-off.

    Elsewhere autograd of the arccosine or of the root is infinite. The kernel of relu
    has continuous second derivatives, to which the infinite terms contribute 0.
    """
    square = 1.0 - cosine.square()
    inside = square > 8 * torch.finfo(cosine.dtype).eps
    root = torch.where(inside, square, torch.ones_like(square)).sqrt()
    return torch.where(inside, root, torch.zeros_like(root))


def _angle(v: Tensor, z: Tensor, cosine: Tensor) -> tuple[Tensor, Tensor]:
    """Return angles of directions (M, d) and (N, d), and their sines, without graph.

    Near 1 or -1 the arccosine loses half of its digits. There Kahan's formula, by the
    lengths of the difference and of the sum, loses none.
    """
    near = cosine.abs() > NEARLY_PARALLEL
    i, j = near.nonzero(as_tuple=True)
    if len(i) * v.shape[1] > cosine.numel():  # the pairs would fill more than a matrix
        mode = "donot_use_mm_for_euclid_dist"
        apart = torch.cdist(v, z, compute_mode=mode)
        across = torch.cdist(v, -z, compute_mode=mode)
        return 2.0 * torch.atan2(apart, across), 0.5 * apart * across
    sine = (1.0 - cosine.square()).clamp_(min=0).sqrt_()
    angle = torch.atan2(sine, cosine)
    a, b = v[i], z[j]
    apart = torch.linalg.vector_norm(a - b, dim=1)
    across = torch.linalg.vector_norm(a + b, dim=1)
    angle[i, j] = 2.0 * torch.atan2(apart, across)
    sine[i, j] = 0.5 * apart * across
    return angle, sine


def _at_corner(sine: Tensor) -> Tensor:
    """Return where directions are parallel up to round-off."""
    return sine <= 8 * torch.finfo(sine.dtype).eps


def _determinant(w: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return A = 1 + 2 |w|^2 as a column, c = w.u, and the root of A B - 4 c^2."""
    a = (1.0 + 2.0 * w.square().sum(1))[:, None]
    b = 1.0 + 2.0 * u.square().sum(1)
    c = w @ u.T
    square = a * b - 4.0 * c.square()
    # By Cauchy and Schwarz; it is false by round-off alone.
    least = (a + b - 1.0).detach()
    return a, c, with_value(square, torch.maximum(square.detach(), least)).sqrt()
