r"""Correlations of neurons with data, enclosed on boxes of parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from otflow.meanfield.fused import hidden_blocks
from otflow.meanfield.layers import TwoLayer
from otflow.meanfield.network import Network
from otflow.meanfield.units import UNITS, Erf, Sigmoid, Tanh, Unit
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
    total,
)

__all__ = ["correlation", "enclosed_outputs", "two_layer_enclosure"]

# Units of round-off in a hidden value, of numbers of inputs up to a few dozens.
ULPS = 64
# The built-in units whose ranges are known, by class: a subclass may differ.
KNOWN: dict[type, Ranges] = {
    type(unit): FUNCTIONS[name] for name, unit in UNITS.items()
}
Bend: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
# Second derivatives of the smooth ones: of the argument, the value and the slope.
BENDS: dict[type, Bend] = {
    Tanh: lambda _, value, slope: -2 * value * slope,
    Sigmoid: lambda _, value, slope: (1 - 2 * value) * slope,
    Erf: lambda z, _, slope: -2 * z * slope,
}


def correlation(
    network: Network, inputs: Tensor, theta: Enclosure, slopes: Interval
) -> Enclosure | None:
    """Return the enclosure of a network of built-in units, None for another one."""
    ranges = KNOWN.get(type(getattr(network, "activation", None)))
    if ranges is None or type(network) is not TwoLayer or not theta.is_point:
        return None
    slopes = slopes if slopes.ndim == 3 else slopes[..., None]
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
    unit = network.activation
    assert isinstance(unit, Unit)
    sums, sizes = [], (masses[:, None] * a).abs()
    for _, hidden in hidden_blocks(unit, inputs, u):
        sums.append(hidden @ (masses[:, None] * a))
    f = torch.cat(sums)
    # A hidden value is at most 1 + |u| . |x|, and is off by some units of that.
    heights = sizes.sum(0) + inputs.abs() @ (u.abs().T @ sizes)
    units = ULPS + 2 * inputs.shape[1] + len(theta)
    reach = heights * (units * EPS)
    ends = outward(torch.stack([f - reach, f + reach]))
    ends = ends[..., 0] if network.outputs is None else ends
    return Enclosure(ends[:, None], theta.shape[1], 0)


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
    unit = network.activation
    assert isinstance(unit, Unit)
    bend = BENDS.get(type(unit))
    if (bend or not order) and bool((u[0] == u[1]).all()):
        sums = _sums_at_points(unit, bend, inputs, u[0], slopes, order)
    else:
        sums = _sums(ranges, inputs, u, slopes, order)
    q = p - m
    rows = theta.rows.new_zeros(2, row_count(p, order), count)
    rows[:, 0] = total(multiply(a, sums[0][..., 0]), -1)
    if order:
        rows[:, 1 : 1 + m] = sums[0][..., 0].mT
        rows[:, 1 + m : 1 + p] = total(multiply(a[..., None], sums[1]), -2).mT
    if order > 1:
        i_, j_ = pairs(q)
        bends = total(multiply(a[..., None], sums[2]), -2)
        at = {pair: k for k, pair in enumerate(zip(i_, j_, strict=True))}
        for k, (i, j) in enumerate(zip(*pairs(p), strict=True), start=1 + p):
            if j >= m > i:
                rows[:, k] = sums[1][:, :, i, j - m]
            elif i >= m:
                rows[:, k] = bends[..., at[i - m, j - m]]
    return theta.like(rows)


def _features(inputs: Tensor) -> list[Tensor]:
    """Return the tensor powers of rows: (n, 1), (n, q), (n, q (q + 1) / 2)."""
    i, j = pairs(inputs.shape[1])
    return [torch.ones_like(inputs[:, :1]), inputs, inputs[:, i] * inputs[:, j]]


def _sums_at_points(
    unit: Unit,
    bend: Bend | None,
    inputs: Tensor,
    u: Tensor,
    slopes: Interval,
    order: int,
) -> list[Interval]:
    """Return the sums at inner weights (C, q), with a bound on their round-off."""
    middle = 0.5 * slopes[0] + 0.5 * slopes[1]
    radius = torch.maximum(slopes[1] - middle, middle - slopes[0])
    n, q = inputs.shape
    # A smooth unit and its derivatives are at most 1.2, have slopes below 2.4, and are
    # off by at most 32 units of 1. Their arguments are off by q/2 units of |u| . |x|.
    size = middle.abs() + radius
    flat, tilted = size * ((40 + n) * EPS), size * (2 * (q + 1) * EPS)
    if bend is None:  # a kink: its value is at most |u| . |x|
        tilted = tilted + flat
    features = _features(inputs)[: 1 + order]
    found = [u.new_zeros(2, len(u), slopes.shape[2] * f.shape[1]) for f in features]
    for rows, value in hidden_blocks(unit, inputs, u):
        parts = [value]
        if order:
            assert bend is not None
            z = inputs[rows] @ u.T
            parts.append(unit.slope(z, value, torch.empty_like(value)))
            parts.append(bend(z, value, parts[1]))
        for summed, part, f in zip(found, parts, features, strict=False):
            weights = (middle[rows, :, None] * f[rows, None]).flatten(1)
            spread = (radius[rows, :, None] * f[rows, None].abs()).flatten(1)
            summed[0].addmm_(part.T, weights)
            summed[1].addmm_(part.abs_().T, spread)
    sums = []
    for (summed, spread), f in zip(found, features, strict=True):
        even, steep = (
            (t[:, :, None] * f[:, None].abs()).flatten(1) for t in (flat, tilted)
        )
        reach = even.sum(0) + u.abs() @ (inputs.abs().T @ steep) + spread
        reach *= 1 + (2 * n + q + 8) * EPS
        ends = outward(torch.stack([summed - reach, summed + reach]))
        sums.append(ends.reshape(2, len(u), slopes.shape[2], -1))
    return sums


def _sums(
    ranges: Ranges, inputs: Tensor, u: Interval, slopes: Interval, order: int
) -> list[Interval]:
    """Return the sums over data, (2, C, m, 1), (2, C, m, q) and (2, C, m, q(q+1)/2)."""
    middle = 0.5 * slopes[0] + 0.5 * slopes[1]
    radius = torch.maximum(slopes[1] - middle, middle - slopes[0]) * (1 + 4 * EPS)
    features = _features(inputs)
    found: list[Interval] = []
    size = max(1, BLOCK // (2 * u.shape[1]))  # an interval is two numbers
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
