"""Losses of samples that have weights."""

from __future__ import annotations

import torch
from torch import Tensor

from otflow.meanfield.losses import as_loss

__all__ = ["Weighted", "with_weights"]


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
