"""Optimal maps from one Gaussian, in coordinates where the transport cost is |c|^2."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["OptimalMaps", "entropy_gradient", "entropy_hessian", "mean_hessian", "norm"]


class OptimalMaps:
    r"""The maps :math:`x \mapsto m' + B(x - m)`, B symmetric, from a Gaussian.

    With the factor's singular values :math:`L = U\sigma V^\top`, symmetric C and

    .. math:: B - I = U\Big(C_{ij}\sqrt{2/(\sigma_i^2 + \sigma_j^2)}\Big)U^\top

    the cost is :math:`\|BL - L\|_F^2 = \|C\|_F^2`. The coordinates c = (m' - m, C), of
    shape (1 + d, d), map isometrically to tangents.

    Parameters
    ----------
    factor : Tensor, shape (d, d)
        The factor L.

    Attributes
    ----------
    degrees : int
        Number of independent coordinates.
    """

    def __init__(self, factor: Tensor) -> None:
        self.factor = factor
        self._u, s, self._vh = torch.linalg.svd(factor)
        # The entry C_ij moves L by C_ij (s_i, s_j) (2 / (s_i^2 + s_j^2))^(1/2) at the
        # places ij and ji. The factor makes both together as long as C_ij and C_ji.
        both = torch.hypot(s[:, None], s[None, :])
        self._scale = math.sqrt(2.0) / both
        self._ratio = math.sqrt(2.0) * s[:, None] / both
        d = len(s)
        self.degrees = d + d * (d + 1) // 2

    def tangent(self, coordinates: Tensor) -> Tensor:
        """Return the tangent of the map, (1 + d, d): rows m' - m and (BL - L)^T."""
        rows = self._vh.T @ (self._ratio * coordinates[1:]) @ self._u.T
        return torch.cat([coordinates[:1], rows])

    def project(self, tangent: Tensor) -> Tensor:
        """Return the coordinates nearest to a tangent: the adjoint of `tangent`."""
        C = self._ratio * (self._vh @ tangent[1:] @ self._u)
        # A tangent turns L too, at no gain: only the symmetric part is a coordinate.
        return torch.cat([tangent[:1], 0.5 * (C + C.T)])

    def is_optimal(self, coordinates: Tensor) -> bool:
        """Whether B is positive semi-definite, up to round-off."""
        B = self._scale * coordinates[1:]
        B = B + torch.eye(len(B), dtype=B.dtype, device=B.device)
        # A map that is not quite optimal by round-off only is taken as optimal.
        slack = 8 * len(B) * torch.finfo(B.dtype).eps
        values = torch.linalg.eigvalsh(B)
        return float(values[0]) >= -slack * float(values.abs().max())

    def quadratic_step(
        self,
        mean: Tensor,
        curvature: Tensor,
        stiffness: Tensor,
        force: Tensor,
        dt: float,
        strength: float,
    ) -> Tensor | None:
        r"""Return the JKO step of a quadratic energy and entropy, in closed form.

        Parameters
        ----------
        mean : Tensor, shape (d,)
            Mean of the source.
        curvature, stiffness : Tensor, shape (d, d)
            Hessians of the potential that act on the spread and on the mean.
        force : Tensor, shape (d,)
            Gradient of the potential at 0.
        dt : float
            Length of the step in time.
        strength : float
            Temperature times dt.

        Returns
        -------
        Tensor or None
            Coordinates of the map; None if the objective has no minimum.
        """
        eye = torch.eye(len(mean), dtype=mean.dtype, device=mean.device)
        spread, fault = torch.linalg.cholesky_ex(eye + dt * curvature)
        shift, second = torch.linalg.cholesky_ex(eye + dt * stiffness)
        # The potential is more concave than the cost is convex: the model has no
        # minimum.
        if bool(fault) or bool(second):
            return None
        goal = torch.cholesky_solve((mean - dt * force)[:, None], shift)[:, 0]
        # In the coordinates y = R^T x the potential vanishes, and the entropy alone
        # moves R^{-1} L.
        inner = torch.linalg.solve_triangular(spread, self.factor, upper=False)
        u, s, vh = torch.linalg.svd(inner)
        # For each singular value: minimise s'^2/2 - s s' - strength log s'.
        s = 0.5 * (s + torch.hypot(s, s.new_tensor(2.0 * math.sqrt(strength))))
        factor = torch.linalg.solve_triangular(spread.T, (u * s) @ vh, upper=True)
        moved = torch.cat([(goal - mean)[None], (factor - self.factor).T])
        return self.project(moved)


def entropy_gradient(factor: Tensor) -> Tensor:
    r"""Return the gradient of :math:`-\log|\det L|`, a tangent: 0 and -L^{-1}."""
    rows = -torch.linalg.inv(factor)
    return torch.cat([torch.zeros_like(rows[:1]), rows])


def entropy_hessian(factor: Tensor, tangent: Tensor) -> Tensor:
    r"""Return the derivative of `entropy_gradient` along a tangent with rows P.

    .. math:: 0 \quad\text{and}\quad L^{-1}P^\top L^{-1}
    """
    # Two solves keep the digits that an inverse and two products would lose.
    inner = torch.linalg.solve(factor, tangent[1:].T)
    rows = torch.linalg.solve(factor, inner, left=False)
    return torch.cat([torch.zeros_like(rows[:1]), rows])


def mean_hessian(factor: Tensor, gradient: Tensor) -> Tensor:
    r"""Return the mean Hessian A of a potential, from the gradient AL by the factor."""
    A: Tensor = torch.linalg.solve(factor.T, gradient[1:])
    # The rule's error makes A a little unsymmetric; the exact A is symmetric.
    return 0.5 * (A + A.T)


def norm(x: Tensor) -> float:
    """Return the Frobenius norm."""
    return float(torch.linalg.vector_norm(x))
