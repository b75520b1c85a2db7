"""What values of a functional say of its gradient on Gaussians, without derivatives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from otflow._autodiff import value_and_gradient
from otflow.functionals import Functional
from otflow.measures import Gaussian
from otflow.measures.gaussian.quadrature import Nodes, finer_nodes
from otflow.proximal.gaussian.maps import norm

__all__ = ["LINES", "Gap", "gap_by_nodes", "gap_on_lines"]

# Lines in random directions; what they miss of a jump is about its size over the root.
LINES = 64
# Round-off of a sum of values, in units of their mean size.
ROUND_OFF = 64.0


@dataclass(frozen=True)
class Gap:
    """The gradient by values less that by derivatives."""

    tangent: Tensor  # (1 + d, d), of F
    size: float  # mean length of the derivatives

    @property
    def share(self) -> float:
        """The gap over the mean length of the derivatives."""
        length = norm(self.tangent)
        return length / self.size if self.size > 0 else (math.inf if length else 0.0)


def gap_by_nodes(F: Functional, mu: Gaussian) -> Gap:
    r"""Return how far Stein's identity fails at the nodes, as a gradient of F.

    On Gaussians F is a function of the masses w and the white nodes z. With its
    derivatives f by the masses and :math:`w \nabla f` by the nodes,

    .. math:: E\,fz = E\,\nabla f, \qquad E\,f(zz^\top - I) = E\,(\nabla f)\,z^\top

    where f is smooth; :math:`L^{-\top}` times the right sides are the gradients by the
    mean and the factor. A jump adds a surface integral to the left sides alone, a spike
    between the nodes is a part of them, and a part of F that is detached has no right
    side. Where F is resolved both agree to the error of the rule.

    Parameters
    ----------
    F : Functional
        Without what is in closed form on Gaussians, of which both sides are zero.
    mu : Gaussian
        On a rule that is symmetric and white.
    """
    f, slopes = _derivatives(F, mu)
    z, w = mu.nodes, mu.weights
    # Both sides of a quadratic function are the same. Without the one that derivatives
    # tell, the left sides are the gap itself, and less round-off.
    b, A = slopes.sum(0), slopes.T @ z
    quadratic = z @ b + 0.5 * ((z @ A) * z).sum(-1)
    rest = w * (f - w @ f - quadratic + w @ quadratic)
    vector = rest @ z
    matrix = (z.T * rest) @ z - rest.sum() * torch.eye(mu.dim).to(z)
    return _gap(mu, vector, matrix, f, slopes)


def gap_on_lines(F: Functional, mu: Gaussian, per_line: int) -> Gap:
    r"""Return the same on lines in random directions.

    Equal steps on each line fulfil Stein's identity in its direction, to their own
    error: scattered nodes would fulfil it to the inverse root of their number. Lines
    see on each of them what is as narrow as its steps, in any dimension.

    Parameters
    ----------
    F, mu
        As above.
    per_line : int
        Nodes on each of 64 lines, even.
    """
    dim = mu.dim
    directions, feet, rule = _lines(dim, per_line)
    there = mu.with_nodes(rule)
    f, slopes = _derivatives(F, there)
    u, feet = directions.to(f), feet.to(f)
    t = finer_nodes(1, per_line).points[:, 0].to(f)
    w = there.weights.reshape(LINES, -1)
    values = f.reshape(LINES, -1)
    values = w * (values - (w * values).sum(1, keepdim=True) * LINES)
    along = (slopes.reshape(LINES, -1, dim) @ u[:, :, None])[..., 0]
    # Of each line E f t - E f' and E f (t^2 - 1) - E f' t, over the number of lines.
    first = values @ t - along.sum(1)
    second = values @ (t.square() - 1) - along @ t
    vector = dim * first @ u
    matrix = dim * u.T @ (first[:, None] * feet + second[:, None] * u)
    return _gap(there, vector, 0.5 * (matrix + matrix.T), f, slopes)


def _derivatives(F: Functional, mu: Gaussian) -> tuple[Tensor, Tensor]:
    """Return the derivatives of F by the masses (n,) and by the white nodes (n, d)."""
    fixed = mu.detach()

    def value(both: Tensor) -> Tensor:
        return F.value(fixed.with_free_nodes(both[:, 1:], both[:, 0]))

    both = torch.cat([mu.weights[:, None], mu.nodes], 1).detach()
    found = value_and_gradient(value, both, unused=True)[1]
    return found[:, 0], found[:, 1:]


def _gap(
    mu: Gaussian, vector: Tensor, matrix: Tensor, f: Tensor, slopes: Tensor
) -> Gap:
    """Return the gap of the white coordinates, or zero where it is round-off."""
    inverse = torch.linalg.inv(mu.factor)
    tangent = torch.cat([vector[None], matrix]) @ inverse
    lengths, radii = slopes.norm(dim=-1), mu.nodes.norm(dim=-1)
    sums = mu.weights * f.abs() @ (1 + radii.square()) + lengths @ (1 + radii)
    floor = ROUND_OFF * torch.finfo(f.dtype).eps * float(sums)
    if math.hypot(norm(vector), norm(matrix)) <= floor:
        tangent = torch.zeros_like(tangent)
    return Gap(tangent, float((slopes @ inverse).norm(dim=-1).sum()))


@lru_cache(maxsize=8)
def _lines(dim: int, per_line: int) -> tuple[Tensor, Tensor, Nodes]:
    """Return directions (k, d), feet (k, d) normal to them, and the nodes on all."""
    generator = torch.Generator().manual_seed(0)
    u, feet = torch.randn(2, LINES, dim, generator=generator, dtype=torch.float64)
    u = u / u.norm(dim=-1, keepdim=True)
    feet = feet - (feet * u).sum(-1, keepdim=True) * u
    axis = finer_nodes(1, per_line)
    points = feet[:, None, :] + axis.points * u[:, None, :]
    weights = axis.weights.repeat(LINES) / LINES
    rule = f"{LINES} lines in random directions, {per_line} nodes on each"
    return u, feet, Nodes(points.reshape(-1, dim), weights, rule, 0)
