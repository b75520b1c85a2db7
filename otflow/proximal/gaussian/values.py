"""The gradient of a functional on Gaussians from its values, without derivatives."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from otflow._autodiff import value_and_gradient
from otflow._graphs import kept
from otflow.functionals import Functional
from otflow.measures import Gaussian
from otflow.measures.gaussian.quadrature import Nodes, finer_nodes
from otflow.proximal.gaussian.maps import norm

__all__ = ["LINES", "Gap", "gap_by_nodes", "gap_on_lines"]

# Lines in random directions. Their error in the size of a jump falls with the root of
# their number.
LINES = 64
# Round-off of a sum of values, in units of eps times their mean size.
ROUND_OFF = 64.0


@dataclass(frozen=True)
class Gap:
    """The gradient by values minus the gradient by derivatives."""

    tangent: Tensor  # (1 + d, d), of F
    size: float  # mean length of the derivatives

    @property
    def share(self) -> float:
        """The gap over the mean length of the derivatives."""
        length = norm(self.tangent)
        return length / self.size if self.size > 0 else (math.inf if length else 0.0)


def gap_by_nodes(F: Functional, mu: Gaussian) -> Gap:
    r"""Return the failure of Stein's identity at the nodes, as a gradient of F.

    On Gaussians F is a function of the masses w and the white nodes z. Let f be its
    derivatives by the masses and :math:`w \nabla f` those by the nodes. If f is smooth,

    .. math:: E\,fz = E\,\nabla f, \qquad E\,f(zz^\top - I) = E\,(\nabla f)\,z^\top.

    The gradients by the mean and the factor are :math:`L^{-\top}` times the right
    sides. A jump adds a surface integral to the left sides alone. A spike changes the
    two sides differently. A detached part of F changes the left sides alone. If the
    nodes resolve F, both sides agree to the error of the rule.

    Parameters
    ----------
    F : Functional
        The functional without its terms in closed form, whose sides are both zero.
    mu : Gaussian
        A law on a symmetric and white rule.

    Returns
    -------
    Gap
        The left sides minus the right sides.
    """
    f, slopes = _derivatives(F, mu)
    z, w = mu.nodes, mu.weights
    # Stein's identity holds exactly for a quadratic function. After the quadratic that
    # the derivatives give is subtracted from f, the left sides are the gap itself, with
    # less round-off.
    b, A = slopes.sum(0), slopes.T @ z
    quadratic = z @ b + 0.5 * ((z @ A) * z).sum(-1)
    rest = w * (f - w @ f - quadratic + w @ quadratic)
    vector = rest @ z
    matrix = (z.T * rest) @ z - rest.sum() * torch.eye(mu.dim).to(z)
    return _gap(mu, vector, matrix, f, slopes)


def gap_on_lines(F: Functional, mu: Gaussian, per_line: int) -> Gap:
    r"""Return the failure of Stein's identity on lines in random directions.

    Equal steps on a line fulfil Stein's identity in its direction, to the error of the
    steps. Scattered nodes would fulfil the identity only to the inverse root of their
    number. A line resolves a feature as narrow as its steps, in any dimension.

    Parameters
    ----------
    F, mu
        As for `gap_by_nodes`.
    per_line : int
        Number of nodes on each of 64 lines, even.

    Returns
    -------
    Gap
        The mean over the lines of the left sides minus the right sides.
    """
    dim = mu.dim
    directions, feet, rule = _lines(dim, per_line)
    there = mu.with_nodes(rule)
    f, slopes = _derivatives(F, there)
    u, feet = directions.to(f), feet.to(f)
    t = finer_nodes(1, per_line).points[:, 0].to(f)
    w = there.weights.reshape(LINES, -1)
    values = f.reshape(LINES, -1)
    # A constant in f cancels in exact arithmetic; taken out first, it leaves no
    # round-off.
    values = w * (values - (w * values).sum(1, keepdim=True) * LINES)
    along = (slopes.reshape(LINES, -1, dim) @ u[:, :, None])[..., 0]
    # For each line: E f t - E f' and E f (t^2 - 1) - E f' t, divided by LINES.
    first = values @ t - along.sum(1)
    second = values @ (t.square() - 1) - along @ t
    vector = dim * first @ u
    matrix = dim * u.T @ (first[:, None] * feet + second[:, None] * u)
    # Random directions make the mean matrix unsymmetric; that of the law is symmetric.
    return _gap(there, vector, 0.5 * (matrix + matrix.T), f, slopes)


def _derivatives(F: Functional, mu: Gaussian) -> tuple[Tensor, Tensor]:
    """Return the derivatives of F by the masses (n,) and by the white nodes (n, d)."""
    # Only masses and nodes carry a graph: a user's recorded state would be in the way.
    fixed = mu.detach()

    def value(both: Tensor) -> Tensor:
        return F.value(fixed.with_free_nodes(both[:, 1:], both[:, 0]))

    both = torch.cat([mu.weights[:, None], mu.nodes], 1).detach()
    found = value_and_gradient(value, both, unused=True)[1]
    return found[:, 0], found[:, 1:]


def _gap(
    mu: Gaussian, vector: Tensor, matrix: Tensor, f: Tensor, slopes: Tensor
) -> Gap:
    """Return the gap in the coordinates of the law; a gap of round-off is zero."""
    # Derivatives by white nodes become those by the state through the inverse factor.
    inverse = torch.linalg.inv(mu.factor)
    tangent = torch.cat([vector[None], matrix]) @ inverse
    lengths, radii = slopes.norm(dim=-1), mu.nodes.norm(dim=-1)
    sums = mu.weights * f.abs() @ (1 + radii.square()) + lengths @ (1 + radii)
    floor = ROUND_OFF * torch.finfo(f.dtype).eps * float(sums)
    if math.hypot(norm(vector), norm(matrix)) <= floor:
        tangent = torch.zeros_like(tangent)
    return Gap(tangent, float((slopes @ inverse).norm(dim=-1).sum()))


@kept
def _lines(dim: int, per_line: int) -> tuple[Tensor, Tensor, Nodes]:
    """Return directions (k, d), feet (k, d) normal to them, and the nodes on all."""
    # The same lines for each step: a solve does not change the state of torch's random
    # numbers, and a repeated solve gives the same certificate.
    generator = torch.Generator().manual_seed(0)
    u, feet = torch.randn(2, LINES, dim, generator=generator, dtype=torch.float64)
    u = u / u.norm(dim=-1, keepdim=True)
    feet = feet - (feet * u).sum(-1, keepdim=True) * u
    axis = finer_nodes(1, per_line)
    points = feet[:, None, :] + axis.points * u[:, None, :]
    weights = axis.weights.repeat(LINES) / LINES
    rule = f"{LINES} lines in random directions, {per_line} nodes on each"
    return u, feet, Nodes(points.reshape(-1, dim), weights, rule, 0)
