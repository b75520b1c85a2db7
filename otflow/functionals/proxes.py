"""Potentials with proximal maps in closed form: norms and boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from otflow._typing import ArrayLike
from otflow._validation import non_negative_int
from otflow.errors import InvalidFunctional
from otflow.functionals.potential import Potential

__all__ = ["box", "group_norm", "l1_norm"]


def l1_norm(weights: ArrayLike | float = 1.0) -> Potential:
    r"""Return the potential :math:`V(x) = \sum_j s_j |x_j|`, with its proximal map.

    The map is the soft threshold: each coordinate moves by :math:`\tau s_j` towards 0
    and stops there. So coordinates become exactly 0 :cite:p:`beck2009fast`.

    Parameters
    ----------
    weights : float or array, shape (d,)
        The factors :math:`s_j \ge 0`, one for all coordinates or one for each. A
        coordinate with the factor 0 is free: ``l1_norm([1.0, 0.0, 0.0])`` is the total
        variation of neurons (a, w) with w on a sphere.

    Returns
    -------
    Potential
        0-convex.

    Raises
    ------
    ValueError
        If a factor is negative or not finite.
    InvalidFunctional
        From V and its map, if points have another number of coordinates.

    Examples
    --------
    >>> import torch, otflow as of
    >>> mu = of.Particles(torch.tensor([[3.0], [-0.5]]))
    >>> of.flow(of.functionals.l1_norm(), mu, of.JKO(), dt=1.0, steps=1).final.points
    tensor([[2.],
            [0.]])
    """
    l1 = L1Norm(_factors(weights))
    return Potential(l1, modulus=0.0, prox=l1.prox)


def group_norm(
    groups: Sequence[Sequence[int]] | None = None, weights: ArrayLike | float = 1.0
) -> Potential:
    r"""Return :math:`V(x) = \sum_g s_g |x_g|_2` over groups, with its proximal map.

    The map shortens the coordinates :math:`x_g` of each group by :math:`\tau s_g`, to 0
    at most. So a group becomes 0 as a whole :cite:p:`parikh2014proximal`.

    Parameters
    ----------
    groups : sequence of sequences of int, optional
        The coordinates of each group, counted from 0, without overlap. By default all
        coordinates are one group. A coordinate of no group is free.
    weights : float or array, shape (number of groups,)
        The factors :math:`s_g \ge 0`.

    Returns
    -------
    Potential
        0-convex.

    Raises
    ------
    ValueError
        If groups overlap or are empty, or a factor is negative or not finite.
    TypeError
        If groups are not lists of integers.
    InvalidFunctional
        From V and its map, if points lack a coordinate of a group.

    Examples
    --------
    >>> import torch, otflow as of
    >>> mu = of.Particles(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))
    >>> of.flow(of.functionals.group_norm(), mu, of.JKO(), dt=1.0, steps=1).final.points
    tensor([[2.4000, 3.2000],
            [0.0000, 0.0000]])
    """
    factors, index = _factors(weights), None
    if groups is not None:
        if not all(isinstance(group, Sequence) for group in groups):
            msg = (
                f"groups must be a list of groups, each a list of coordinates, got "
                f"{groups!r:.60}; write [[0, 1]] for one group of two"
            )
            raise TypeError(msg)
        index = tuple(
            tuple(non_negative_int(j, "a coordinate of a group") for j in group)
            for group in groups
        )
        flat = [j for group in index for j in group]
        if not index or not all(index) or len(set(flat)) < len(flat):
            msg = (
                f"groups must be disjoint and not empty, got {index}; the proximal map "
                f"of overlapping groups has no closed form"
            )
            raise ValueError(msg)
    count = 1 if index is None else len(index)
    if factors.ndim and len(factors) != count:
        msg = f"weights must be one number or one for each of the {count} groups"
        raise ValueError(msg)
    norm = GroupNorm(index, factors)
    return Potential(norm, modulus=0.0, prox=norm.prox)


def box(lower: ArrayLike | float, upper: ArrayLike | float) -> Potential:
    r"""Return the indicator of a box, 0 in it and infinite outside of it.

    .. math:: V(x) = 0 \text{ if } l_j \le x_j \le u_j \text{ for all } j,
        \quad \infty \text{ otherwise.}

    The proximal map is the projection onto the box for every tau
    :cite:p:`parikh2014proximal`. A flow must start in the box: F is infinite outside.

    Parameters
    ----------
    lower, upper : float or array, shape (d,)
        The ends :math:`l_j < u_j`, one for all coordinates or one for each; they may be
        infinite.

    Returns
    -------
    Potential
        0-convex. Inside of the box its velocity is 0. A scheme without proximal steps
        does not see the walls: it leaves the box, and the flow raises Diverged. The
        steps of `otflow.schemes.MALA` stay inside: it rejects the others.

    Raises
    ------
    ValueError
        If an end is NaN, or a lower end is not below its upper end.
    InvalidFunctional
        From V and its map, if points have another number of coordinates.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * (x - 3).square().sum(-1))
    >>> F = F + of.functionals.box(-1.0, 1.0)
    >>> mu = of.Particles(torch.zeros(1, 1))
    >>> scheme = of.schemes.ForwardBackward()
    >>> of.flow(F, mu, scheme, dt=0.5, steps=3).final.points
    tensor([[1.]])
    """
    low, high = (
        torch.as_tensor(end, dtype=torch.float64).clone() for end in (lower, upper)
    )
    if low.ndim > 1 or high.ndim > 1 or not bool((low < high).all()):
        msg = (
            f"a box needs lower < upper, each one number or one for each coordinate, "
            f"got lower={lower!r:.60} and upper={upper!r:.60}"
        )
        raise ValueError(msg)
    inside = Box(low, high)
    return Potential(inside, modulus=0.0, prox=inside.prox)


@dataclass(frozen=True, eq=False)
class L1Norm:
    """The function sum_j s_j |x_j| and its proximal map."""

    factors: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        _check_width(x, self.factors, "weights of the l1 norm")
        return (x.abs() * self.factors.to(x)).sum(-1)

    def prox(self, x: Tensor, tau: float) -> Tensor:
        """Return the minimisers of V(y) + |y - x|^2 / (2 tau)."""
        _check_width(x, self.factors, "weights of the l1 norm")
        reach = (tau * self.factors.to(x)).expand(x.shape)
        return torch.where(x.abs() > reach, x - reach * x.sign(), 0.0)


@dataclass(frozen=True, eq=False)
class GroupNorm:
    """The function sum_g s_g |x_g| and its proximal map."""

    groups: tuple[tuple[int, ...], ...] | None
    factors: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        self._check(x)
        parts = [x] if self.groups is None else [x[..., list(g)] for g in self.groups]
        sizes = torch.stack([torch.linalg.vector_norm(p, dim=-1) for p in parts], -1)
        return (sizes * self.factors.to(x)).sum(-1)

    def prox(self, x: Tensor, tau: float) -> Tensor:
        """Return the minimisers of V(y) + |y - x|^2 / (2 tau)."""
        self._check(x)
        groups = self.groups or (tuple(range(x.shape[-1])),)
        factors, y = self.factors.to(x).expand(len(groups)), x.clone()
        for group, factor in zip(groups, factors, strict=True):
            own = x[..., list(group)]
            size = torch.linalg.vector_norm(own, dim=-1, keepdim=True)
            share = 1 - tau * factor / size.clamp_min(torch.finfo(x.dtype).tiny)
            y[..., list(group)] = own * share.clamp_min(0.0)
        return y

    def _check(self, x: Tensor) -> None:
        last = max((j for group in self.groups or () for j in group), default=0)
        if last >= x.shape[-1]:
            msg = (
                f"a group holds the coordinate {last}, and points have {x.shape[-1]}, "
                f"counted from 0; leave it out of the groups"
            )
            raise InvalidFunctional(msg)


@dataclass(frozen=True, eq=False)
class Box:
    """The indicator of a box and the projection onto it."""

    lower: Tensor
    upper: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        self._check(x)
        inside = (x >= self.lower.to(x)) & (x <= self.upper.to(x))
        return torch.where(inside, 0.0 * x, torch.inf).sum(-1)

    def prox(self, x: Tensor, tau: float) -> Tensor:
        """Return the minimisers of V(y) + |y - x|^2 / (2 tau)."""
        self._check(x)
        return torch.minimum(torch.maximum(x, self.lower.to(x)), self.upper.to(x))

    def _check(self, x: Tensor) -> None:
        _check_width(x, self.lower, "lower ends of the box")
        _check_width(x, self.upper, "upper ends of the box")


def _factors(weights: ArrayLike | float) -> Tensor:
    s = torch.as_tensor(weights, dtype=torch.float64).clone()
    if s.ndim > 1 or not bool(((s >= 0) & torch.isfinite(s)).all()):
        msg = f"weights must be numbers >= 0, one or a row of them, got {weights!r:.60}"
        raise ValueError(msg)
    return s


def _check_width(x: Tensor, row: Tensor, name: str) -> None:
    """Raise InvalidFunctional if a row of numbers is not one of points (..., d)."""
    if row.ndim and len(row) != x.shape[-1]:
        msg = (
            f"there are {len(row)} {name} for points of {x.shape[-1]} coordinates; "
            f"give one number, or one for each coordinate"
        )
        raise InvalidFunctional(msg)
