"""The quotient by permutations and symmetries: when two networks are the same."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from otflow._arrays import unit_of
from otflow._graphs import refuse_graph
from otflow._validation import check_function
from otflow.measures import Particles
from otflow.metrics.assignments import (
    assignment,
    check_pairs,
    match,
    squared_distances,
)
from otflow.metrics.costs import least_cost_plan, transport_cost
from otflow.metrics.distances import root
from otflow.metrics.inputs import Cloud, CloudLike, clouds
from otflow.metrics.symmetries import Symmetry, Trivial

__all__ = ["align", "aligned_networks", "best_matching", "quotient_distance"]

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
    r"""Return the distance between two clouds of points up to permutation.

    .. math:: \tilde d(\Theta, \Xi)^2 = \frac1N \min_\sigma
        \sum_{i=1}^N d\bigl(\theta_i, \xi_{\sigma(i)}\bigr)^2

    For the Euclidean d this is :math:`W_2` between the empirical measures
    :cite:p:`yang2020meanfield`. Remark 1 there omits the factor 1/N; without it the
    distance grows like :math:`\sqrt N`. For N and M points, or unequal weights, it is

    .. math:: \tilde d(\mu, \nu)^2 = \min_P \sum_{ij} P_{ij}\,
        \min_g d(\theta_i, g\,\xi_j)^2,

    :math:`W_2` between the measures of neurons, carried to the quotient by the symmetry
    g. A neuron of a network of width N in mean-field scaling has the weight 1/N.

    Parameters
    ----------
    theta, xi : Particles, or Tensor or ndarray of shapes (N, p) and (M, p)
        Points, or neurons as rows; points stand for equal weights.
    ground : callable, optional
        The ground metric, (N, p), (M, p) -> (N, M) distances d; Euclidean by default.
    symmetry : Symmetry, optional
        A symmetry of neurons, from `metrics.symmetries`, up to which d is taken.
        Networks that differ by the symmetry and by the order of their neurons have
        distance 0.
    normalize : bool
        Whether to divide by N; False gives the formula of Remark 1, between N and N
        points of equal weights.

    Returns
    -------
    Tensor
        0-d; differentiable once, at a fixed matching, in points and weights. At
        distance 0 the gradient is 0.

    Raises
    ------
    ValueError, TypeError
        If the clouds differ in dimension, dtype or device, or `ground` does not return
        an (N, M) tensor; without `normalize`, if they differ in size.

    See Also
    --------
    aligned_networks : The two networks, neuron by neuron.

    Notes
    -----
    Time O(N^2 p) if the identity is the best matching, O(N^3) at worst; memory O(N^2),
    for each image of the symmetry.

    Examples
    --------
    >>> import torch, otflow as of
    >>> theta = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> of.metrics.quotient_distance(theta, theta.flip(0))
    tensor(0.)
    """
    p, q = clouds(theta, xi, ("theta", "xi"))
    if not _one_to_one(p, q):
        if not normalize:
            msg = (
                f"without the factor 1/N the distance is between N and N points of "
                f"equal weights, got {len(p.points)} and {len(q.points)}; take "
                f"normalize=True"
            )
            raise ValueError(msg)
        cost = _Cost(p, q, ground, symmetry)
        return cost.unit * root(transport_cost(theta, xi, cost))
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


def aligned_networks(
    theta: CloudLike,
    xi: CloudLike,
    *,
    ground: GroundMetric | None = None,
    symmetry: Symmetry | None = None,
) -> tuple[Particles, Particles]:
    r"""Return two networks neuron by neuron, so that the segment joins them straight.

    With :math:`P` and g the plan and the images that attain `quotient_distance`, both
    measures are split into the cells of the plan:

    .. math:: \mu = \sum_k P_k\, \delta_{\theta_{i_k}}, \qquad
        \nu = \sum_k P_k\, \delta_{g_k \xi_{j_k}}, \qquad
        \mu_t = \sum_k P_k\, \delta_{(1 - t)\, \theta_{i_k} + t\, g_k \xi_{j_k}} .

    They compute the functions of `theta` and `xi`, in mean-field scaling. For the
    Euclidean metric :math:`\mu_t` is ``mu.push(mu.displacement_to(nu), t)``, a geodesic
    of :math:`W_2`, and of the quotient if the symmetry consists of isometries. `Scale`
    does not: its distance is a chord between balanced neurons, and neurons between them
    need not be balanced.

    Parameters
    ----------
    theta, xi : Particles, or Tensor or ndarray of shapes (N, p) and (M, p)
        Neurons as rows; points stand for equal weights.
    ground, symmetry
        As `quotient_distance`.

    Returns
    -------
    tuple of Particles
        Measures of equal size and weights: N atoms between N and N neurons of equal
        weights, at most N + M - 1 with mass otherwise. Under a symmetry both consist of
        canonical representatives and their images.

    Raises
    ------
    Unsupported
        If weights that are not equal carry a graph: the masses of the plan have no
        derivative here.
    ValueError, TypeError
        As `quotient_distance`.

    See Also
    --------
    align : For equal sizes, the second network alone.
    otflow.metrics.aligned_ends : Without a symmetry.

    Notes
    -----
    Differentiable in the points, at a fixed plan. In the scalings "ntk" and "sum" the
    output depends on the number of atoms, which the split changes.

    The offset of a network is no part of its measure. Between networks of the offsets c
    and c' take the offset :math:`(1 - t)\,c + t\,c'` at :math:`\mu_t`: without it the
    ends of the path do not compute what the networks do.

    Examples
    --------
    >>> import torch, otflow as of
    >>> wide = torch.tensor([[1.0, 2.0], [-1.0, -2.0], [3.0, 0.0]])
    >>> slim = torch.tensor([[1.0, 2.0]])
    >>> sign = of.metrics.symmetries.Sign()
    >>> a, b = of.metrics.aligned_networks(wide, slim, symmetry=sign)
    >>> a.points - b.points
    tensor([[ 0.,  0.],
            [ 0.,  0.],
            [ 2., -2.]])
    """
    p, q = clouds(theta, xi, ("theta", "xi"))
    if _one_to_one(p, q):
        _, x, y = _matched(theta, xi, ground, symmetry)
        return Particles(x), Particles(y)
    for measure in (p, q):
        if measure.weights is not None:
            refuse_graph(
                "an alignment",
                "its masses are those of a plan, solved without a graph",
                measure.weights,
                cure="measure.detach()",
            )
    cost = _Cost(p, q, ground, symmetry)
    plan = least_cost_plan(theta, xi, cost)
    x, y = p.points[plan.rows], q.points[plan.columns]
    x, images = cost.sides(x, y)
    _, choice = cost.least(x, images)
    y = torch.stack(images)[choice, torch.arange(len(x), device=x.device)]
    a, b = (Particles(z, plan.masses, normalize=True) for z in (x, y))
    return a, b


def _matched(
    theta: CloudLike,
    xi: CloudLike,
    ground: GroundMetric | None,
    symmetry: Symmetry | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the permutation, canonical `theta`, and the copy of `xi` beside it."""
    x, y = _pair(theta, xi)
    group = _group(symmetry)
    x, images = group.canonical(x), group.orbit(group.canonical(y))
    sigma, choice = _match(x.detach(), [z.detach() for z in images], ground)
    return sigma, x, torch.stack(images)[choice, sigma]


def _group(symmetry: Symmetry | None) -> Symmetry:
    group = Trivial() if symmetry is None else symmetry
    if not isinstance(group, Symmetry):
        got = group if isinstance(group, type) else type(group)
        msg = (
            f"symmetry must be a Symmetry, got {got.__name__}; e.g. "
            f"otflow.metrics.symmetries.Sign(), or None"
        )
        raise TypeError(msg)
    return group


def _one_to_one(p: Cloud, q: Cloud) -> bool:
    """Return whether both clouds have N points of equal weights."""
    return len(p.points) == len(q.points) and p.is_uniform and q.is_uniform


def _pair(theta: CloudLike, xi: CloudLike) -> tuple[Tensor, Tensor]:
    p, q = clouds(theta, xi, ("theta", "xi"))
    if not _one_to_one(p, q):
        n, m = len(p.points), len(q.points)
        what = f"{n} and {m} points" if n != m else "unequal weights"
        msg = (
            f"neurons are matched one to one, at equal weights, got {what}; use "
            f"aligned_networks, which splits them, and quotient_distance"
        )
        raise ValueError(msg)
    return p.points, q.points


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


class _Cost:
    """The squared distance up to a symmetry, in a unit of the neurons.

    A function of points (n, 1, p) and (1, m, p), or of pairs (k, p), as
    `transport_cost` takes it.
    """

    def __init__(
        self,
        p: Cloud,
        q: Cloud,
        ground: GroundMetric | None,
        symmetry: Symmetry | None,
    ) -> None:
        self.ground, self.group = ground, _group(symmetry)
        x, images = self.sides(p.points.detach(), q.points.detach())
        self.unit = unit_of(x, *images) if ground is None else 1.0

    def sides(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return canonical neurons, and the images of the others."""
        return self.group.canonical(x), self.group.orbit(self.group.canonical(y))

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        if x.ndim == 2:
            return self.least(*self.sides(x, y))[0]
        x, images = self.sides(x[:, 0], y[0])
        check_pairs(len(images) * len(x), len(images[0]), x.device)
        return torch.stack([self._table(x, z) for z in images]).amin(dim=0)

    def least(self, x: Tensor, images: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the squared distances of pairs (k,), and which image is nearest."""
        if self.ground is None:
            parts = [((x - z) / self.unit).square().sum(dim=1) for z in images]
        else:
            ground = self.ground
            parts = [_distances(ground, x, z).diagonal().square() for z in images]
        return torch.stack(parts).min(dim=0)

    def _table(self, x: Tensor, z: Tensor) -> Tensor:
        if self.ground is not None:
            return _distances(self.ground, x, z).square()
        return squared_distances(x / self.unit, z / self.unit).to(x)
