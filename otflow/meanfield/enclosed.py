r"""Correlations of neurons with data, enclosed on boxes of parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from otflow.meanfield.fused import hidden_blocks
from otflow.meanfield.layers import TwoLayer
from otflow.meanfield.network import Network
from otflow.meanfield.units import UNITS
from otflow.numerics.elementary import FUNCTIONS, Ranges
from otflow.numerics.enclosed_sums import BLOCK
from otflow.numerics.enclosures import Enclosure, pairs, row_count
from otflow.numerics.intervals import (
    EPS,
    Interval,
    dot,
    exact,
    multiply,
    outward,
)

__all__ = ["correlation", "enclosed_outputs", "two_layer_enclosure"]

# Units of round-off in a hidden value, of numbers of inputs up to a few dozens.
ULPS = 64
# The built-in units whose ranges are known, by class: a subclass may differ.
KNOWN: dict[type, Ranges] = {
    type(unit): FUNCTIONS[name] for name, unit in UNITS.items()
}


def correlation(
    network: Network, inputs: Tensor, theta: Enclosure, slopes: Interval
) -> Enclosure | None:
    """Return the enclosure of a network of built-in units, None for another one."""
    ranges = KNOWN.get(type(getattr(network, "activation", None)))
    if ranges is None or type(network) is not TwoLayer or not theta.is_point:
        return None
    slopes = slopes if slopes.ndim == 3 else slopes[..., None]
    if not theta.order and bool((theta.value[0] == theta.value[1]).all()):
        return theta.like(_at_points(network, inputs, theta.value[0], slopes)[:, None])
    return two_layer_enclosure(network, ranges, inputs, theta, slopes)


def enclosed_outputs(
    network: Network, inputs: Tensor, theta: Tensor, masses: Tensor
) -> Enclosure | None:
    """Return the outputs at the data, with a bound on their round-off, or None."""
    if not isinstance(network, TwoLayer) or type(network) is not TwoLayer:
        return None
    if type(network.activation) not in KNOWN:
        return None
    a, u = network.split(theta)
    sums, sizes = [], (masses[:, None] * a).abs()
    for _, hidden in hidden_blocks(network.activation, inputs, u):
        sums.append(hidden @ (masses[:, None] * a))
    f = torch.cat(sums)
    # A hidden value is at most 1 + |u| . |x|, and is off by some units of that.
    heights = sizes.sum(0) + inputs.abs() @ (u.abs().T @ sizes)
    units = ULPS + 2 * inputs.shape[1] + len(theta)
    reach = heights * (units * EPS)
    ends = outward(torch.stack([f - reach, f + reach]))
    ends = ends[..., 0] if network.outputs is None else ends
    return Enclosure(ends[:, None], theta.shape[1], 0)


def _at_points(
    network: TwoLayer, inputs: Tensor, theta: Tensor, slopes: Interval
) -> Interval:
    """Return the sums at neurons, with a bound on their round-off."""
    a, u = network.split(theta)
    middle = 0.5 * slopes[0] + 0.5 * slopes[1]
    radius = torch.maximum(slopes[1] - middle, middle - slopes[0])
    found = a.new_zeros(len(theta))
    for rows, hidden in hidden_blocks(network.activation, inputs, u):
        found += (a * (hidden.T @ middle[rows])).sum(1)
    units = ULPS + 2 * inputs.shape[1] + len(inputs)
    size = middle.abs() * (units * EPS) + radius * (1 + 8 * EPS)
    # A hidden value is at most 1 + |u| . |x|, and is off by so many units of that.
    heights = size.sum(0) + u.abs() @ (inputs.abs().T @ size)
    reach = (a.abs() * heights).sum(1) * (1 + units * EPS)
    return outward(torch.stack([found - reach, found + reach]))


def two_layer_enclosure(
    network: TwoLayer,
    ranges: Ranges,
    inputs: Tensor,
    theta: Enclosure,
    slopes: Interval,
) -> Enclosure:
    r"""Return :math:`\sum_k g_k\cdot a\,\varphi(u\cdot x_k)` for neurons in boxes.

    The neurons are :math:`\theta = (a, u)`. With the sums :math:`S^{(j)} = \sum_k g_k
    \varphi^{(j)}(u\cdot x_k)\,x_k^{\otimes j}` the derivatives are :math:`S`, :math:`a
    S'`, and then :math:`0`, :math:`S'`, :math:`a S''`.

    Parameters
    ----------
    network : TwoLayer
        Gives the number of outputs.
    ranges : callable
        Ranges of the activation and of its derivatives.
    inputs : Tensor, shape (n, q)
        Encoded inputs.
    theta : Enclosure, shape (C, p)
        Neurons, the points of boxes themselves.
    slopes : Tensor, shape (2, n, m)
        Intervals of g.

    Returns
    -------
    Enclosure, shape (C,)
        The sum.
    """
    m, order = network.outputs or 1, theta.order
    count, p = theta.shape
    a, u = theta.value[:, :, :m], theta.value[:, :, m:]
    sums = _sums(ranges, inputs, u, slopes, order)
    q = p - m
    rows = theta.rows.new_zeros(2, row_count(p, order), count)
    rows[:, 0] = outward(multiply(a, sums[0][..., 0]).sum(-1), 2.0 * m)
    if order:
        rows[:, 1 : 1 + m] = sums[0][..., 0].mT
        inner = multiply(a[..., None], sums[1]).sum(2)
        rows[:, 1 + m : 1 + p] = outward(inner, 2.0 * m).mT
    if order > 1:
        i_, j_ = pairs(q)
        bends = outward(multiply(a[..., None], sums[2]).sum(2), 2.0 * m)
        at = {pair: k for k, pair in enumerate(zip(i_, j_, strict=True))}
        for k, (i, j) in enumerate(zip(*pairs(p), strict=True), start=1 + p):
            if j >= m > i:
                rows[:, k] = sums[1][:, :, i, j - m]
            elif i >= m:
                rows[:, k] = bends[..., at[i - m, j - m]]
    return theta.like(rows)


def _sums(
    ranges: Ranges, inputs: Tensor, u: Interval, slopes: Interval, order: int
) -> list[Interval]:
    """Return the sums over data, (2, C, m, 1), (2, C, m, q) and (2, C, m, q(q+1)/2)."""
    middle = 0.5 * slopes[0] + 0.5 * slopes[1]
    radius = torch.maximum(slopes[1] - middle, middle - slopes[0]) * (1 + 4 * EPS)
    i, j = pairs(inputs.shape[1])
    features = [torch.ones_like(inputs[:, :1]), inputs, inputs[:, i] * inputs[:, j]]
    found: list[Interval] = []
    size = max(1, BLOCK // u.shape[1])
    for start in range(0, len(inputs), size):
        part = slice(start, start + size)
        phi = ranges(dot(u, inputs[part].T), order)  # (2, C, k)
        for k, t in enumerate(phi):
            f = features[k][part]
            weights = (middle[part, :, None] * f[:, None]).flatten(1)
            # A product of numbers in the weights is off by a unit.
            errors = radius[part, :, None] + 4 * EPS * middle[part, :, None].abs()
            spread = (errors * f[:, None].abs()).flatten(1)
            slack = dot(exact(t.abs().amax(0)), spread)[1]
            term = dot(t, weights) + torch.stack([-slack, slack])
            term = outward(term).reshape(2, u.shape[1], slopes.shape[2], -1)
            if start:
                found[k] = outward(found[k] + term)
            else:
                found.append(term)
    return found
