"""The sliced Wasserstein distance to a given measure."""

from __future__ import annotations

import copy
from typing import Self

import numpy as np
import torch
from torch import Tensor

from otflow._algebra import Curvature
from otflow._arrays import as_points
from otflow._graphs import records, with_value
from otflow._typing import ArrayLike, Seed
from otflow._validation import (
    check_generator,
    check_like,
    non_negative_int,
    seed_and_stream,
)
from otflow.functionals.base import Functional
from otflow.functionals.targets import as_atoms, atoms_of
from otflow.measures import Measure, Particles

__all__ = ["SlicedWassersteinTo"]


class SlicedWassersteinTo(Functional):
    r"""Half the squared sliced distance, :math:`F(\mu) = \tfrac12 SW_2^2(\mu, \nu)`.

    .. math:: F(\mu) = \frac1{2K}\sum_{k=1}^K
        W_2^2(\theta_k \cdot \mu,\; \theta_k \cdot \nu), \qquad |\theta_k| = 1,

    where :math:`\theta \cdot \mu` is the law of :math:`\theta \cdot x`
    :cite:p:`bonneel2015sliced`. The velocity at an atom is the mean over k of
    :math:`\theta_k` times the move of its projection. It has about 1/d of the length of
    that of `SquaredDistanceTo`: for a translation by v the mean over the sphere is
    :math:`F = |v|^2/2d`.

    Parameters
    ----------
    nu : Particles, Tensor or ndarray
        The target; points (m, d) stand for equal weights 1/m.
    directions : int or Tensor or ndarray, shape (K, d)
        The number K of directions, which are drawn in orthonormal groups of d; or the
        directions themselves, which are divided by their lengths. On the line one
        direction is enough.
    generator : int or torch.Generator
        Seed, or source, of the directions that are drawn.

    Attributes
    ----------
    target : Particles
        The measure nu.
    directions : Tensor, shape (K, d)
        Unit vectors.
    is_drawn : bool
        Whether the directions were drawn, so that `resample` draws others.

    Raises
    ------
    ValueError
        If a direction is 0, or dimensions or devices differ.
    TypeError
        If the target has no atoms, or dtypes differ.
    Unsupported
        If the measure has no atoms.

    See Also
    --------
    otflow.SquaredDistanceTo : Without slices.

    Notes
    -----
    Exact in each direction, by sorting, for any weights. Time O(K (n + m) (d + log(n +
    m))), memory O(K (n + m)). Gradients are finite where points coincide. F is a
    function of the given directions: a finite number of them need not tell all measures
    apart. No modulus is known. F is convex along mixtures, as
    `SquaredDistanceTo` is.

    Examples
    --------
    >>> import torch, otflow as of
    >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    >>> F = of.SlicedWassersteinTo(x + torch.tensor([3.0, 4.0]), 8)
    >>> F.value(of.Particles(x))  # 5^2 / (2 d)
    tensor(6.2500)
    """

    def __init__(
        self,
        nu: Particles | ArrayLike,
        directions: int | ArrayLike = 64,
        *,
        generator: Seed = 0,
    ) -> None:
        self.target = as_atoms(nu, "SlicedWassersteinTo")
        points = self.target.points
        self.is_drawn = not isinstance(directions, (Tensor, np.ndarray))
        if isinstance(directions, (Tensor, np.ndarray)):
            self.directions = _unit(directions, points)
        else:
            count = non_negative_int(directions, "directions", minimum=1)
            device = getattr(generator, "device", torch.device("cpu"))
            _, stream = seed_and_stream(generator, device)
            self.directions = _drawn(count, points, stream)

    def value(self, mu: Measure) -> Tensor:
        p, q = atoms_of(mu, self.target, "SlicedWassersteinTo"), self.target
        centre = q.points.detach().mean(0)  # products lose digits far from the origin
        x, y = (self.directions @ (m.points - centre).T for m in (p, q))
        live = records(p.weights, q.weights)
        if p.is_uniform and q.is_uniform and p.n == q.n and not live:
            return 0.5 * (x.sort(1).values - y.sort(1).values).square().mean()
        costs = _on_lines((x.double(), p.weights), (y.double(), q.weights), live)
        return 0.5 * costs.mean().to(p.dtype)

    def mixture_curvature(self) -> Curvature:
        return Curvature.CONVEX

    def why_mixture(self) -> str:
        return (
            "since plans of two measures mix to a plan of their mixture, on each line"
        )

    def resample(self, generator: torch.Generator) -> Self:
        """Return the functional of as many other directions, if they were drawn.

        The mean over draws is the distance averaged over the sphere, which F estimates.
        """
        if not self.is_drawn:
            return self
        check_generator(generator)
        draw = copy.copy(self)
        draw.directions = _drawn(len(self.directions), self.target.points, generator)
        return draw

    def __repr__(self) -> str:
        return f"SlicedWassersteinTo({self.target!r}, {len(self.directions)})"


def _unit(directions: ArrayLike, points: Tensor) -> Tensor:
    """Return given directions over their lengths, checked."""
    v = as_points(directions, "directions")
    check_like(v, points, "directions", "the target")
    lengths = v.norm(dim=1, keepdim=True)
    if v.shape[1] != points.shape[1] or bool((lengths == 0).any()):
        msg = (
            f"directions must be K vectors other than 0 of dimension "
            f"{points.shape[1]}, got {tuple(v.shape)} with a least length of "
            f"{float(lengths.min()):g}; give their number, to draw them"
        )
        raise ValueError(msg)
    units: Tensor = v / lengths
    return units


def _drawn(count: int, points: Tensor, generator: torch.Generator) -> Tensor:
    """Return unit vectors, uniform on the sphere, orthonormal in groups of d.

    The vectors of a group see different sides of a measure: the mean over them varies
    less than over independent ones.
    """
    d = points.shape[1]
    groups = -(-count // d)
    normal = torch.empty(groups, d, d, dtype=torch.float64, device=generator.device)
    q, r = torch.linalg.qr(normal.normal_(generator=generator))
    # The signs of the diagonal make the law of q invariant under rotations.
    q = q * r.diagonal(dim1=1, dim2=2).sign()[:, None]
    units: Tensor = q.transpose(1, 2).reshape(-1, d)[:count].to(points)
    return units


def _on_lines(
    mu: tuple[Tensor, Tensor], nu: tuple[Tensor, Tensor], live: bool
) -> Tensor:
    r"""Return :math:`W_2^2` in each direction, (K,), float64; projections (K, n).

    The quantile functions of both are steps. Between neighbouring levels of either,
    one atom of each is coupled, for the mass between the levels. Where both have the
    same level either may step first. The cost is the same, but not its derivative in
    the masses: then the mean of both orders is taken.
    """
    (x, a), (y, b) = _sorted(*mu), _sorted(*nu)
    own, other = (z.cumsum(1)[:, :-1] for z in (a, b))
    own, other = (with_value(z, z.clamp_max(1.0)) for z in (own, other))
    other = _snapped(other, own.detach())
    levels, marks = torch.cat([own, other], 1), torch.cat([other, own], 1)
    order = levels.detach().argsort(dim=1, stable=True)
    cost = _cost(levels, order, order < own.shape[1], x, y)
    if not live:
        return cost
    order = marks.detach().argsort(dim=1, stable=True)
    return 0.5 * (cost + _cost(marks, order, order >= other.shape[1], x, y))


def _sorted(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return sorted projections and their masses, both (K, n)."""
    masses = weights.double()
    x, order = x.sort(dim=1, stable=True)
    return x, (masses / masses.sum())[order]


def _snapped(levels: Tensor, marks: Tensor) -> Tensor:
    """Return levels (K, m) moved to marks (K, n) that they equal up to round-off."""
    if not marks.shape[1]:
        return levels
    value = levels.detach().contiguous()
    slack = (value.shape[1] + marks.shape[1]) * torch.finfo(value.dtype).eps
    above = torch.searchsorted(marks.contiguous(), value).clamp_max(marks.shape[1] - 1)
    for at in (above, (above - 1).clamp_min(0)):
        mark = marks.gather(1, at)
        value = torch.where((value - mark).abs() <= slack, mark, value)
    return with_value(levels, value)


def _cost(
    levels: Tensor, order: Tensor, is_own: Tensor, x: Tensor, y: Tensor
) -> Tensor:
    """Return the cost of the coupling along sorted levels, (K,)."""
    ends = torch.nn.functional.pad(levels.gather(1, order), (1, 0))
    lengths = torch.nn.functional.pad(ends, (0, 1), value=1.0).diff(dim=1)
    rows, columns = (
        torch.nn.functional.pad(steps.long().cumsum(1), (1, 0))
        for steps in (is_own, ~is_own)
    )
    return (lengths * (x.gather(1, rows) - y.gather(1, columns)).square()).sum(1)
