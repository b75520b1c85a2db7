r"""Symmetries of neurons: changes of parameters that keep the function.

A neuron is a row (a_1..a_m, w_1..w_d[, b]): output weights, input weights, bias.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from otflow._validation import check_finite, check_option, non_negative_int

__all__ = ["Scale", "Sign", "Symmetry", "Trivial", "of_activation"]


def __dir__() -> list[str]:
    return __all__


class Symmetry(ABC):
    r"""A group that acts on neurons without changing what they compute.

    The distance between two neurons up to the symmetry is :math:`\min_g d(\theta,
    g\,\theta')`. If the group changes distances, :math:`\theta` and :math:`\theta'` are
    canonical representatives.

    Examples
    --------
    >>> import otflow as of
    >>> isinstance(of.metrics.symmetries.Sign(), of.metrics.symmetries.Symmetry)
    True
    """

    def canonical(self, theta: Tensor) -> Tensor:
        """Return the canonical representative of each neuron; by default itself.

        Parameters
        ----------
        theta : Tensor, shape (N, p)
            Neurons.

        Returns
        -------
        Tensor, shape (N, p)
            Neurons that compute the same, in the graph of `theta`.
        """
        return theta

    @abstractmethod
    def orbit(self, theta: Tensor) -> list[Tensor]:
        """Return the images of canonical neurons under the isometries of the group.

        Parameters
        ----------
        theta : Tensor, shape (N, p)
            Canonical neurons.

        Returns
        -------
        list of Tensor, each of shape (N, p)
            The images, one for each isometry.
        """

    def __repr__(self) -> str:
        values = ", ".join(f"{k}={v!r}" for k, v in vars(self).items())
        return f"{type(self).__name__}({values})"


class Trivial(Symmetry):
    """No symmetry but permutation.

    Examples
    --------
    >>> import torch, otflow as of
    >>> len(of.metrics.symmetries.Trivial().orbit(torch.ones(1, 3)))
    1
    """

    def orbit(self, theta: Tensor) -> list[Tensor]:
        return [theta]


class Sign(Symmetry):
    r"""Odd activations (tanh, erf): :math:`(a, w, b) \sim (-a, -w, -b)`.

    The change of sign is an isometry of every norm, so each neuron is canonical.

    Examples
    --------
    >>> import torch, otflow as of
    >>> of.metrics.symmetries.Sign().orbit(torch.tensor([[1.0, 2.0]]))
    [tensor([[1., 2.]]), tensor([[-1., -2.]])]
    """

    def orbit(self, theta: Tensor) -> list[Tensor]:
        return [theta, -theta]


class Scale(Symmetry):
    r"""Positively homogeneous activations (relu): :math:`(a, w, b) \sim (a/s, sw, sb)`.

    Scaling changes distances, so the canonical representative is balanced: :math:`|a| =
    |(w, b)|` with the same product, where :math:`|a|^2 + |(w, b)|^2` is least. A neuron
    that computes 0 (:math:`a = 0` or :math:`(w, b) = 0`) is represented by 0.

    Parameters
    ----------
    outputs : int
        Number m of output weights at the head of each row.

    Attributes
    ----------
    outputs
        As above.

    Examples
    --------
    >>> import torch, otflow as of
    >>> of.metrics.symmetries.Scale().canonical(torch.tensor([[1.0, 4.0]]))
    tensor([[2., 2.]])
    """

    def __init__(self, outputs: int = 1) -> None:
        self.outputs = non_negative_int(outputs, "outputs", minimum=1)

    def canonical(self, theta: Tensor) -> Tensor:
        r"""Return each neuron balanced, :math:`|a| = |(w, b)|`.

        Neurons may have any finite size: no norm or ratio overflows or underflows.

        Raises
        ------
        ValueError
            If there are no input weights.
        NonFinite
            If a balanced weight exceeds the range of the dtype.
        """
        if theta.shape[1] <= self.outputs:
            msg = (
                f"neurons of {theta.shape[1]} parameters have no input weights beside "
                f"{self.outputs} output weights; check Scale(outputs=...)"
            )
            raise ValueError(msg)
        a, w = theta[:, : self.outputs], theta[:, self.outputs :]
        dead = ((a == 0).all(dim=1) | (w == 0).all(dim=1))[:, None]
        # Directions times sqrt|a| sqrt|w|: the ratio |w| / |a| may overflow.
        (u, p), (v, q) = (_polar(y.masked_fill(dead, 1.0)) for y in (a, w))
        balanced = torch.cat([u * p * q, v * q * p], dim=1).masked_fill(dead, 0.0)
        check_finite(balanced, "a balanced weight")
        return balanced

    def orbit(self, theta: Tensor) -> list[Tensor]:
        return [theta]


def _polar(y: Tensor) -> tuple[Tensor, Tensor]:
    """Return directions of rows that are not zero, and the roots of their norms."""
    # Divided by the largest entry first: then no square overflows or is lost.
    largest = y.detach().abs().amax(dim=1, keepdim=True)
    y = y / largest
    norms = y.norm(dim=1, keepdim=True)
    return y / norms, norms.sqrt() * largest.sqrt()


def of_activation(name: str, outputs: int = 1) -> Symmetry:
    """Return the symmetry of neurons of a built-in activation.

    Parameters
    ----------
    name : str
        "relu", "tanh", "erf" or "sigmoid".
    outputs : int
        Number of output weights at the head of each row.

    Returns
    -------
    Symmetry
        `Scale` for relu, `Sign` for tanh and erf, `Trivial` for sigmoid.

    Examples
    --------
    >>> import otflow as of
    >>> of.metrics.symmetries.of_activation("relu", outputs=10)
    Scale(outputs=10)
    """
    known = {
        "relu": Scale(outputs),
        "tanh": Sign(),
        "erf": Sign(),
        "sigmoid": Trivial(),
    }
    return known[check_option(name, "name", known)]
