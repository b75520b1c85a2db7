"""Losses of samples that have weights."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from otflow.meanfield import Risk, TwoLayer
from otflow.meanfield.losses import as_loss

__all__ = ["Weighted", "relative", "risk_of", "with_weights"]

Array = NDArray[Any]


class Weighted:
    r"""The loss :math:`p_k\,\ell(f_k, y_k)`, where the targets carry the weights.

    Parameters
    ----------
    name : str
        The name of the loss :math:`\ell`.
    """

    def __init__(self, name: str) -> None:
        self.loss = as_loss(name)
        self.__name__ = f"weighted {name}"

    def __call__(self, f: Tensor, y: Tensor) -> Tensor:
        """Return the losses, (n,), of outputs f and of rows (targets, weight)."""
        targets, weights = y[:, :-1], y[:, -1]
        if self.loss.name == "cross-entropy":
            targets = targets[:, 0].long()
        elif f.ndim == 1:
            targets = targets[:, 0]
        return weights * self.loss.values(f, targets)


def with_weights(y: Tensor, weights: Tensor) -> Tensor:
    """Return rows (targets, weight); a class is an exact number in either precision."""
    columns = y if y.ndim == 2 else y[:, None]
    return torch.cat([columns.to(weights.dtype), weights[:, None]], dim=1)


def relative(weights: Array) -> Array:
    """Return the weights over the largest.

    Parameters
    ----------
    weights : ndarray, shape (n,)
        Weights >= 0.

    Returns
    -------
    ndarray, shape (n,)
        Weights of the largest 1.

    Raises
    ------
    ValueError
        If none is positive.
    """
    if not weights.any():
        msg = "all samples have the weight zero; give some of them a positive weight"
        raise ValueError(msg)
    shares: Array = weights / weights.max()
    return shares


def risk_of(
    network: TwoLayer,
    X: Array,
    y: Array,
    weights: Array,
    loss: str,
    batch: int | None,
) -> Risk:
    """Return the risk on samples that have weights.

    Parameters
    ----------
    network : TwoLayer
        The network.
    X, y, weights : ndarray
        Inputs (n, d), targets, and weights > 0 (n,).
    loss : str
        The name of the loss.
    batch : int or None
        Number of samples of a batch; None for all.

    Returns
    -------
    Risk
        The mean over the samples with their weights over the mean weight.
    """
    inputs, targets = torch.from_numpy(X), torch.from_numpy(y)
    if (weights == weights[0]).all():
        return Risk(network, inputs, targets, loss=loss, batch_size=batch)
    shares = torch.from_numpy(weights / weights.mean()).to(inputs.dtype)
    rows, own = with_weights(targets, shares), Weighted(loss)
    return Risk(network, inputs, rows, loss=own, mixture="convex", batch_size=batch)
