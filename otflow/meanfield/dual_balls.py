"""The balls of data that are dual to the norms of neurons."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from otflow._arrays import as_points
from otflow._typing import ArrayLike
from otflow._validation import check_option
from otflow.errors import Unsupported
from otflow.meanfield.layers import TwoLayer
from otflow.meanfield.residuals import NORMS, check_network, kinks_of

__all__ = ["data_in_ball", "ordinary", "reach"]

# Round-off of data that were scaled into the ball, in units of the dtype.
SLACK = 16.0


def ordinary(network: TwoLayer | None) -> TwoLayer:
    """Return a checked network of homogeneous units, a ReLU network by default.

    The contraction of Ledoux and Talagrand is one of numbers: of one output.
    """
    if network is None:
        return TwoLayer("relu")
    layer = check_network(network, homogeneous=True)
    if layer.outputs is not None:
        msg = (
            f"the complexity is that of networks of one output, got {layer!r}; take "
            f"outputs=None, and bound one output at a time"
        )
        raise Unsupported(msg)
    return layer


def data_in_ball(X: ArrayLike, norm: str, name: str = "X") -> Tensor:
    """Return detached inputs (n, d); raise ValueError outside of the dual unit ball."""
    check_option(norm, "norm", NORMS)
    x = as_points(X, name).detach()
    order = math.inf if norm == "l1" else 2
    sizes = torch.linalg.vector_norm(x, order, dim=1)
    top = float(sizes.max())
    if top > 1 + SLACK * torch.finfo(x.dtype).eps:
        k = int(sizes.argmax())
        ball = "[-1, 1]^d" if norm == "l1" else "the Euclidean unit ball"
        msg = (
            f"{name} must lie in {ball}, in which a neuron of the norm {norm} is "
            f"bounded, got {name}[{k}] of norm {top:.6g}; divide the data by that, "
            f"{name} / {top * (1 + 1e-6):.9g}"
        )
        raise ValueError(msg)
    return x


def reach(network: TwoLayer, norm: str) -> float:
    r"""Return the largest :math:`|\varphi(w\cdot x + b)|` for :math:`|(w, b)| \le 1`.

    That is over all data of the dual unit ball, times the steepest slope of the unit.
    """
    straight, bent = kinks_of(network)
    steep = max(abs(straight), abs(straight + bent))
    return steep * (math.sqrt(2.0) if norm == "l2" and network.bias else 1.0)
