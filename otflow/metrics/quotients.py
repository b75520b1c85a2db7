"""The permutation quotient: whether two clouds, or two networks, are the same."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from otflow._arrays import unit_of
from otflow._validation import check_function
from otflow.metrics.assignments import (
    assignment,
    check_pairs,
    match,
    squared_distances,
)
from otflow.metrics.distances import root
from otflow.metrics.inputs import CloudLike, clouds
from otflow.metrics.symmetries import Symmetry, Trivial

__all__ = ["align", "best_matching", "quotient_distance"]

GroundMetric = Callable[[Tensor, Tensor], Tensor]
"""Distances of rows to rows: (N, p), (N, p) -> (N, N)."""


def quotient_distance(
    theta: CloudLike,
    xi: CloudLike,
    *,
    ground: GroundMetric | None = None,
    symmetry: Symmetry | None = None,
    normalize: bool = True,
) -> Tensor:
    r"""Return the distance between two clouds of N points up to permutation.

    .. math:: \tilde d(\Theta, \Xi)^2 = \frac1N \min_\sigma
        \sum_{i=1}^N d\bigl(\theta_i, \xi_{\sigma(i)}\bigr)^2

    For the Euclidean d this is :math:`W_2` between the empirical measures
    :cite:p:`yang2020meanfield`. Remark 1 there omits the factor 1/N; without it the
    distance grows like :math:`\sqrt N`.

    Parameters
    ----------
    theta, xi : Particles, or Tensor or ndarray of shape (N, p)
        Points, or neurons as rows; of equal weights.
    ground : callable, optional
        The ground metric, (N, p), (N, p) -> (N, N) distances d; Euclidean by default.
    symmetry : Symmetry, optional
        A symmetry of neurons, from `metrics.symmetries`, up to which d is taken.
        Networks that differ by the symmetry and by the order of their neurons have
        distance 0.
    normalize : bool
        Whether to divide by N; False gives the formula of Remark 1.

    Returns
    -------
    Tensor
        0-d; differentiable once, at a fixed matching. At distance 0 the gradient is 0.

    Raises
    ------
    ValueError, TypeError
        If the clouds differ in size, dimension, dtype or device, or `ground` does not
        return an (N, N) tensor.

    Notes
    -----
    Time O(N^2 p) if the identity is the best matching, O(N^3) at worst; memory O(N^2).

    Examples
    --------
    >>> import torch, otflow as of
    >>> theta = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> of.metrics.quotient_distance(theta, theta.flip(0))
    tensor(0.)
    """
    _, x, y = _matched(theta, xi, ground, symmetry)
    moves = x - y if ground is None else _distances(ground, x, y).diagonal()[:, None]
    unit = unit_of(moves)
    squares = (moves / unit).square().sum(1)
    return unit * root(squares.mean() if normalize else squares.sum())


def best_matching(
    theta: CloudLike,
    xi: CloudLike,
    *,
    ground: GroundMetric | None = None,
    symmetry: Symmetry | None = None,
) -> Tensor:
    r"""Return the permutation :math:`\sigma` that attains `quotient_distance`.

    Parameters
    ----------
    theta, xi : Particles, or Tensor or ndarray of shape (N, p)
        Points, or neurons as rows; of equal weights.
    ground, symmetry
        As `quotient_distance`.

    Returns
    -------
    Tensor, shape (N,), int64
        ``xi[sigma[i]]`` is matched with ``theta[i]``.

    Examples
    --------
    >>> import torch, otflow as of
    >>> theta = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> of.metrics.best_matching(theta, theta.flip(0))
    tensor([1, 0])
    """
    return _matched(theta, xi, ground, symmetry)[0]


def align(
    theta: CloudLike,
    xi: CloudLike,
    *,
    ground: GroundMetric | None = None,
    symmetry: Symmetry | None = None,
) -> Tensor:
    r"""Return the copy of `xi`, permuted and transformed, that lies nearest to `theta`.

    The copy computes the same function as `xi`. Under a symmetry that changes distances
    (`symmetries.Scale`) the copy consists of canonical representatives; compare it with
    ``symmetry.canonical(theta)``.

    Parameters
    ----------
    theta, xi : Particles, or Tensor or ndarray of shape (N, p)
        Points, or neurons as rows; of equal weights.
    ground, symmetry
        As `quotient_distance`.

    Returns
    -------
    Tensor, shape (N, p)
        Row i is the neuron of `xi` matched with ``theta[i]``.

    Examples
    --------
    >>> import torch, otflow as of
    >>> theta = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> sign = of.metrics.symmetries.Sign()
    >>> of.metrics.align(theta, -theta.flip(0), symmetry=sign)
    tensor([[1., 2.],
            [3., 4.]])
    """
    return _matched(theta, xi, ground, symmetry)[2]


def _matched(
    theta: CloudLike,
    xi: CloudLike,
    ground: GroundMetric | None,
    symmetry: Symmetry | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the permutation, canonical `theta`, and the copy of `xi` beside it."""
    x, y = _pair(theta, xi)
    group = Trivial() if symmetry is None else symmetry
    if not isinstance(group, Symmetry):
        got = group if isinstance(group, type) else type(group)
        msg = (
            f"symmetry must be a Symmetry, got {got.__name__}; e.g. "
            f"otflow.metrics.symmetries.Sign(), or None"
        )
        raise TypeError(msg)
    x, images = group.canonical(x), group.orbit(group.canonical(y))
    sigma, choice = _match(x.detach(), [z.detach() for z in images], ground)
    return sigma, x, torch.stack(images)[choice, sigma]


def _pair(theta: CloudLike, xi: CloudLike) -> tuple[Tensor, Tensor]:
    p, q = clouds(theta, xi, ("theta", "xi"))
    x, y = p.points, q.points
    if not (p.is_uniform and q.is_uniform):
        msg = "neurons are matched one to one, at equal weights; use wasserstein2"
        raise ValueError(msg)
    if x.shape != y.shape:
        msg = (
            f"theta has shape {tuple(x.shape)} but xi has {tuple(y.shape)}: the "
            f"quotient is between clouds of one size; for two sizes use wasserstein2"
        )
        raise ValueError(msg)
    return x, y


def _match(
    x: Tensor, images: list[Tensor], ground: GroundMetric | None
) -> tuple[Tensor, Tensor]:
    """Return the permutation, and which image of each matched neuron is nearest."""
    if ground is None:
        unit = unit_of(x, *images)
        x, images = x / unit, [image / unit for image in images]
        if len(images) == 1:
            sigma = assignment(x, images[0])
            return sigma, torch.zeros_like(sigma)

    def cost(x: Tensor, y: Tensor) -> Tensor:
        """Return squared distances, float64, on the CPU."""
        if ground is not None:
            return _distances(ground, x, y).detach().to("cpu", torch.float64).square()
        return squared_distances(*(z.to("cpu", torch.float64) for z in (x, y)))

    check_pairs(len(images) * len(x), len(x), x.device)
    costs = torch.stack([cost(x, image) for image in images])
    best = costs.min(dim=0)
    sigma = match(best.values.contiguous())
    choice = best.indices[torch.arange(len(sigma)), sigma]
    return sigma.to(x.device), choice.to(x.device)


def _distances(ground: GroundMetric, x: Tensor, y: Tensor) -> Tensor:
    demand = (
        "ground must be a function (N, p), (N, p) -> (N, N), such as "
        "lambda x, y: torch.cdist(x, y, p=1.0)"
    )
    check_function(ground, demand)
    d = ground(x, y)
    if not isinstance(d, Tensor) or d.shape != (len(x), len(y)):
        got = tuple(d.shape) if isinstance(d, Tensor) else type(d).__name__
        msg = f"ground must return distances ({len(x)}, {len(y)}), got {got}"
        raise ValueError(msg)
    if not d.is_floating_point():
        msg = (
            f"ground must return real floating-point distances, got {d.dtype}; convert "
            f"them, e.g. .to(x), or .abs() of complex ones"
        )
        raise TypeError(msg)
    if not bool(torch.isfinite(d.detach()).all()) or bool((d.detach() < 0).any()):
        msg = "ground returned a negative or non-finite distance"
        raise ValueError(msg)
    return d
