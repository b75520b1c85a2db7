"""The same network with its units in the order of another: descent over layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from otflow._arrays import unit_of
from otflow._validation import check_kind, check_like, non_negative_int
from otflow.meanfield.networks.dense import Weights
from otflow.meanfield.networks.multilayer import MultiLayer
from otflow.measures import Measure, Particles, Parts
from otflow.metrics import Bracket, assignment

__all__ = ["Alignment", "align_networks"]

# A descent accepts no gain below this share of the cost, which may be round-off.
ROUND_OFF = 1e-12
# `assignment` leaves a gap up to this share of its cost, between many points.
GAP = 1e-6


@dataclass(frozen=True, eq=False)
class Alignment:
    """A network in the order of another, and bounds of their distance.

    Parameters
    ----------
    measure : Parts
        The network `nu` with its units reordered; it computes the same outputs.
    orders : tuple of Tensor, shapes (N_l,)
        The permutation of each hidden layer, as `MultiLayer.permuted` takes them.
    distance : Bracket
        Bounds of the least distance over all orders. The upper one is the distance to
        `measure`.
    squares : tuple of float
        Squared distance at the start of the descent that was kept, and after each
        sweep. It never increases. Squares outside of the range of float64 are 0 or
        infinite, `distance` is not.
    converged : bool
        Whether the last sweep changed no layer, so that no order of one layer alone is
        better.

    Attributes
    ----------
    measure, orders, distance, squares, converged
        As above.

    See Also
    --------
    align_networks : What makes one.

    Examples
    --------
    >>> import torch, otflow as of
    >>> network = of.meanfield.networks.MultiLayer((4, 3), "tanh")
    >>> mu = network.draw(2, torch.Generator().manual_seed(0))
    >>> found = of.meanfield.networks.align_networks(network, mu, mu)
    >>> [order.tolist() for order in found.orders]
    [[0, 1, 2, 3], [0, 1, 2]]
    """

    measure: Parts
    orders: tuple[Tensor, ...]
    distance: Bracket
    squares: tuple[float, ...]
    converged: bool

    def __repr__(self) -> str:
        low, high = self.distance.lower, self.distance.upper
        end = "converged" if self.converged else "not converged"
        return (
            f"Alignment(distance in [{low:.6g}, {high:.6g}], {end}, "
            f"sweeps={len(self.squares) - 1})"
        )


def align_networks(
    network: MultiLayer, mu: Measure, nu: Measure, *, sweeps: int = 100
) -> Alignment:
    r"""Return a network with its units in the order of another, as near as was found.

    .. math:: \tilde d(\mu, \nu)^2 = \min_{\sigma_1, \dots, \sigma_L}\;
        \frac1{N_1}\sum_j |\theta_j - \theta'_{\sigma_1(j)}|^2 +
        \sum_l \frac1{N_l N_{l+1}}\sum_{jk} \bigl|W^l_{kj} -
        W'^l_{\sigma_{l+1}(k)\sigma_l(j)}\bigr|^2 + \dots

    The sum is the squared distance of `Parts`, with one term for each part. Its minimum
    over all permutations at once is a hard problem. In one layer, with the others
    fixed, it is an assignment and exact. The descent takes the layers in turn until no
    layer changes: so no step increases the distance, and the end is a local minimum
    :cite:p:`ainsworth2023git`. It starts twice, from the given order and from the
    matching of a relaxation, and keeps the better end.

    The relaxation gives the lower bound: each unit compares its own weights and half of
    the squares of its incoming and of its outgoing weights, these sorted by size. No
    order of the other layers makes those nearer than sorted.

    Parameters
    ----------
    network : MultiLayer
        What both measures parametrise.
    mu : Parts
        The network whose order stays.
    nu : Parts
        The network to reorder.
    sweeps : int
        Most sweeps over the layers, from each start.

    Returns
    -------
    Alignment
        The reordered network and bounds of the distance.

    Raises
    ------
    ValueError, TypeError
        If a measure is none of the network, or units have other masses than 1/N.

    See Also
    --------
    otflow.metrics.aligned_networks : One hidden layer, by one exact plan.

    Notes
    -----
    Assignments are solved in float64 on the CPU. A sweep takes time O(N^3) for each
    layer of width N, and memory O(N^2). Signs of odd units are not matched.

    Examples
    --------
    >>> import torch, otflow as of
    >>> network = of.meanfield.networks.MultiLayer((6, 5), "tanh")
    >>> stream = torch.Generator().manual_seed(0)
    >>> mu = network.draw(2, stream)
    >>> orders = [torch.randperm(N, generator=stream) for N in network.widths]
    >>> found = of.meanfield.networks.align_networks(
    ...     network, mu, network.permuted(mu, orders)
    ... )
    >>> found.distance.upper
    0.0
    """
    check_kind(network, MultiLayer, "network", cure="give the MultiLayer of both")
    sweeps = non_negative_int(sweeps, "sweeps", minimum=1)
    x, y = (_weights(network, law, name) for law, name in ((mu, "mu"), (nu, "nu")))
    assert isinstance(mu, Parts)
    assert isinstance(nu, Parts)
    check_like(nu, mu, "nu", "mu")
    # In a unit of their own squares neither overflow nor underflow.
    unit = unit_of(*x.tensors(), *y.tensors())
    p, q = (w.map(lambda z: z / unit) for w in (x, y))
    start, below = _relaxed(p, q)
    given = [torch.arange(N) for N in network.widths]
    descents = [_descend(p, q, orders, sweeps) for orders in (given, start)]
    orders, squares, converged = min(descents, key=lambda found: found[1][-1])
    upper = _distance(x, y, orders) * (1 + ROUND_OFF)
    orders = [order.to(nu.device) for order in orders]
    return Alignment(
        measure=network.permuted(nu, orders),
        orders=tuple(orders),
        distance=Bracket(min(unit * below, upper), upper),
        squares=tuple(unit * (unit * square) for square in squares),
        converged=converged,
    )


def _weights(network: MultiLayer, mu: Measure, name: str) -> Weights:
    """Return the checked weights of a network in float64, on the CPU."""
    check_kind(mu, Parts, name, cure="network.draw(d, generator) makes one")
    assert isinstance(mu, Parts)
    network.check_measure(mu, network.inputs_of(mu))
    for key in ("inner", "outer"):
        law = mu[key]
        if not (isinstance(law, Particles) and law.is_uniform):
            msg = (
                f"the masses of {name}[{key!r}] differ, and permutations match units "
                f"of equal mass; give units of mass 1/N, "
                f"{name}.replace({key}=Particles({name}[{key!r}].points))"
            )
            raise ValueError(msg)
    w = network.weights(mu)

    def exact(tensor: Tensor) -> Tensor:
        return tensor.detach().to("cpu", torch.float64)

    return w.map(exact)


def _descend(
    x: Weights, y: Weights, orders: Sequence[Tensor], sweeps: int
) -> tuple[list[Tensor], list[float], bool]:
    """Return orders that no layer alone improves, the squares, whether it is so."""
    orders, depth = list(orders), len(orders)
    squares = [_square(x, y, orders)]
    for _ in range(sweeps):
        changed = False
        for layer in range(depth):
            a = torch.cat(_own(x, layer) + _ways(x, layer, [None] * depth), dim=1)
            b = torch.cat(_own(y, layer) + _ways(y, layer, orders), dim=1)
            order = assignment(a, b)
            old, new = (
                float((a - b[o]).square().sum()) for o in (orders[layer], order)
            )
            if old - new > ROUND_OFF * old:
                orders[layer], changed = order, True
        squares.append(_square(x, y, orders))
        if not changed:
            return orders, squares, True
    return orders, squares, False


def _relaxed(x: Weights, y: Weights) -> tuple[list[Tensor], float]:
    """Return an order of each layer, and a lower bound of the distance."""
    orders, below, sizes = [], 0.0, 0.0
    for layer in range(len(x.masses)):
        a, b = (_sorted_features(w, layer) for w in (x, y))
        order = assignment(a, b)
        orders.append(order)
        below += float((a - b[order]).square().sum()) / len(a)
        sizes += float(a.square().sum() + b.square().sum()) / len(a)
    # Features are rounded, and a distance changes by no more than its ends do.
    noise = 4 * torch.finfo(torch.float64).eps * math.sqrt(sizes)
    return orders, max(0.0, math.sqrt(below * (1 - GAP)) - noise)


def _sorted_features(w: Weights, layer: int) -> Tensor:
    """Return rows of units that no order of the other layers changes."""
    halves = [math.sqrt(0.5) * z for z in _ways(w, layer, None)]
    return torch.cat(_own(w, layer) + halves, dim=1)


def _own(w: Weights, layer: int) -> list[Tensor]:
    """Return the weights that the units of a layer share with no other layer."""
    own = [w.inner] if layer == 0 else [b[:, None] for b in w.biases[layer - 1 : layer]]
    return [*own, w.outer] if layer == len(w.masses) - 1 else own


def _ways(
    w: Weights, layer: int, orders: Sequence[Tensor | None] | None
) -> list[Tensor]:
    """Return incoming and outgoing weights of units, the other ends in some order.

    The squares of a row are means over the other ends. Without `orders` each row is
    sorted; without that of a layer its units stay.
    """
    ends = [(layer - 1, w.middle[layer - 1])] if layer > 0 else []
    if layer < len(w.masses) - 1:
        ends.append((layer + 1, w.middle[layer].T))
    found = []
    for other, rows in ends:
        order = None if orders is None else orders[other]
        if orders is None:
            arranged = rows.sort(dim=1).values
        else:
            arranged = rows if order is None else rows[:, order]
        found.append(arranged / math.sqrt(rows.shape[1]))
    return found


def _distance(x: Weights, y: Weights, orders: Sequence[Tensor]) -> float:
    """Return the distance at given orders, in a unit of the differences."""
    gaps = _gaps(x, y, orders)
    unit = unit_of(*(gap for gap, _ in gaps))
    return unit * math.sqrt(sum(_total(gap / unit, n) for gap, n in gaps))


def _square(x: Weights, y: Weights, orders: Sequence[Tensor]) -> float:
    """Return the squared distance at given orders."""
    return sum(_total(gap, n) for gap, n in _gaps(x, y, orders))


def _total(gap: Tensor, n: int) -> float:
    return float(gap.square().sum()) / n


def _gaps(x: Weights, y: Weights, orders: Sequence[Tensor]) -> list[tuple[Tensor, int]]:
    """Return the differences of each part, and what divides the sum of their squares.

    It is the number of units of a law, and the number of parameters of a matrix.
    """
    first, last = orders[0], orders[-1]
    gaps = [
        (x.inner - y.inner[first], len(first)),
        (x.outer - y.outer[last], len(last)),
    ]
    for a, b, order in zip(x.biases, y.biases, orders[1:], strict=False):
        gaps.append((a - b[order], len(order)))
    both = zip(x.middle, y.middle, orders, orders[1:], strict=False)
    for a, b, before, after in both:
        gaps.append((a - b[after][:, before], a.numel()))
    return gaps
