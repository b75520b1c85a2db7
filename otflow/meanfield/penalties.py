"""Penalties of neurons with proximal maps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from otflow._validation import check_option
from otflow.errors import InvalidFunctional
from otflow.functionals import Potential
from otflow.meanfield.residuals import NORMS

__all__ = ["NeuronNorm", "PathPenalty"]

# Halvings after which an interval is as short as round-off in float64.
HALVINGS = 60


class PathPenalty(Potential):
    r"""The path norm of a neuron, :math:`V(a, w) = |a|\,\|w\|`, with its proximal map.

    Points are neurons (a, w) with one outer weight a; the inner weights w hold the bias
    too. The integral of V is `path_norm`. A ReLU network stays the same if a neuron
    becomes (a/c, c w), and so does the penalty :cite:p:`bach2017breaking`. The map
    makes outer weights exactly 0. The penalty does not know the network: beside the
    risk of one with several outputs it would count all outer weights but the first as
    inner ones. There take `PathNorm`, which knows the network.

    With :math:`t = |b|` the map :math:`(a, w) \mapsto (b, v)` keeps all signs, and

    .. math:: \text{l2: } t = \frac{(|a| - \tau|w|)^+}{1 - \tau^2}, \quad
        |v| = |w| - \tau t, \qquad
        \text{l1: } t - |a| + \tau \sum_j (|w_j| - \tau t)^+ = 0, \quad
        |v_j| = (|w_j| - \tau t)^+,

    where v is a multiple of w in l2, and t = 0 in l1 if :math:`|a| \le \tau\|w\|_1`. If
    the :math:`|v|` of l2 is negative, v = 0 and t = :math:`|a|`. The minimiser is
    unique where :math:`V + |x|^2/(2\tau)` is strictly convex: for :math:`\tau < 1` in
    l2, for :math:`\tau\sqrt m < 1` in l1, with m inner weights.

    Parameters
    ----------
    norm : str
        "l1" or "l2", of w.

    Attributes
    ----------
    norm
        As above.
    V, prox, convexity
        As of a `Potential`.

    Raises
    ------
    ValueError
        From a step, if :math:`\tau`, which is dt times the factor of the penalty, is
        not below the limit above.

    See Also
    --------
    otflow.meanfield.PathNorm : The same of a given network, with several outputs too.

    Notes
    -----
    It is :math:`-\sqrt m`-convex in l1, and -1-convex in l2, since :math:`(|a|+|w|)^2`
    is convex. The map costs O(n d) in l2 and O(n d log d) in l1.

    Examples
    --------
    >>> import torch, otflow as of
    >>> V = of.meanfield.PathPenalty("l2")
    >>> V.proximal(torch.tensor([[1.0, 3.0, 4.0], [0.5, 3.0, 4.0]]), 0.1)
    tensor([[0.5051, 2.9697, 3.9596],
            [0.0000, 3.0000, 4.0000]])
    """

    _fixed = frozenset({"V", "norm"})

    def __init__(self, norm: str = "l1") -> None:
        self.norm = check_option(norm, "norm", NORMS)
        path = NeuronNorm(self.norm)
        super().__init__(path, prox=path.prox)

    def modulus(self, dim: int) -> float | None:
        return -NeuronNorm(self.norm).curvature(dim)

    def why_modulus(self, dim: int) -> str:
        return "as (|a| + |w|)^2 is convex"

    def __repr__(self) -> str:
        return f"PathPenalty({self.norm!r})"


@dataclass(frozen=True)
class NeuronNorm:
    """The function |a| |w| of rows (a, w), and its proximal map.

    Parameters
    ----------
    norm : str
        "l1" or "l2", of the outer weights a and of the inner ones w.
    outputs : int
        Number of outer weights.
    """

    norm: str
    outputs: int = 1

    def __call__(self, x: Tensor) -> Tensor:
        _check_neurons(x, self.outputs)
        a, w = self._split(x)
        if self.norm == "l1":
            return a.abs().sum(-1) * w.abs().sum(-1)
        outer: Tensor = torch.linalg.vector_norm(a, dim=-1)
        size: Tensor = torch.linalg.vector_norm(w, dim=-1)
        return outer * size

    def curvature(self, dim: int) -> float:
        """Return the least number c for which |a| |w| is -c-convex."""
        inner = dim - self.outputs
        return 1.0 if self.norm == "l2" else math.sqrt(self.outputs * inner)

    def prox(self, x: Tensor, tau: float) -> Tensor:
        """Return the minimisers of V(y) + |y - x|^2 / (2 tau)."""
        _check_neurons(x, self.outputs)
        root = self.curvature(x.shape[1])
        if not tau * root < 1:
            msg = (
                f"the proximal map of |a| |w| is unique for steps tau below "
                f"{1 / root:.6g} in {self.norm}, got {tau:.6g}; take a smaller dt: tau "
                f"is dt times the factor of the penalty"
            )
            raise ValueError(msg)
        a, w = self._split(x)
        if self.norm == "l1":
            if self.outputs == 1:
                t = _root(a[:, 0].abs(), w.abs(), tau)
            else:
                t = _root_of_outputs(a.abs(), w.abs(), tau)
            v = w.sign() * (w.abs() - tau * t[:, None]).clamp_min(0.0)
            if self.outputs == 1:
                outer = a.sign() * t[:, None]
            else:
                load = tau * v.abs().sum(-1, keepdim=True)
                outer = a.sign() * (a.abs() - load).clamp_min(0.0)
            return torch.cat([outer, v], dim=1)
        size = torch.linalg.vector_norm(w, dim=-1)
        reach = torch.linalg.vector_norm(a, dim=-1)
        t = (reach - tau * size).clamp_min(0.0) / (1 - tau * tau)
        length = (size - tau * t).clamp_min(0.0)
        t = torch.where(length > 0, t, reach)
        tiny = torch.finfo(x.dtype).tiny
        v = w * (length / size.clamp_min(tiny))[:, None]
        # A neuron whose outer weights are 0 keeps its inner weights to the bit.
        v = torch.where((t > 0)[:, None], v, w)
        if self.outputs == 1:
            outer = a.sign() * t[:, None]
        else:
            outer = a * (t / reach.clamp_min(tiny))[:, None]
        return torch.cat([outer, v], dim=1)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[..., : self.outputs], x[..., self.outputs :]


def _check_neurons(x: Tensor, outputs: int) -> None:
    """Raise InvalidFunctional for rows that hold no inner weight."""
    if x.shape[-1] <= outputs > 1:
        msg = (
            f"a neuron (a, w) of {outputs} outputs has at least {outputs + 1} "
            f"coordinates, and points have {x.shape[-1]}; give points of the network"
        )
        raise InvalidFunctional(msg)
    if x.shape[-1] < 2:
        msg = (
            f"a neuron (a, w) has at least 2 coordinates, and points have "
            f"{x.shape[-1]}; take functionals.l1_norm() for |a| alone"
        )
        raise InvalidFunctional(msg)


def _root(a: Tensor, w: Tensor, tau: float) -> Tensor:
    """Return the root t >= 0 of t - a + tau sum_j (w_j - tau t)^+, 0 if none is."""
    w = w.sort(dim=-1, descending=True).values
    count = torch.arange(1, w.shape[1] + 1, dtype=w.dtype, device=w.device)
    sums = w.cumsum(-1)
    # The function at t = w_k / tau, times tau, is increasing in t: beyond the root it
    # is positive, and there the weight w_k is still > tau t at the root.
    active = w - tau * a[:, None] + tau**2 * (sums - count * w) > 0
    number = active.sum(-1).to(w)  # an integer times tau would be in float32
    total = torch.where(active, w, 0.0).sum(-1)
    t = (a - tau * total) / (1 - tau**2 * number)
    return torch.where(a > tau * sums[:, -1], t.clamp_min(0.0), 0.0)


def _root_of_outputs(a: Tensor, w: Tensor, tau: float) -> Tensor:
    """Return the root t of t = sum_i (a_i - tau s)^+ with s = sum_j (w_j - tau t)^+.

    The difference of both sides increases in t, since tau^2 m q < 1. It is piecewise
    linear: halvings find the piece, on which the root is known.
    """
    low, high = torch.zeros_like(a[:, 0]), a.sum(-1)
    for _ in range(HALVINGS):
        t = (low + high) / 2
        s = (w - tau * t[:, None]).clamp_min(0.0).sum(-1)
        above = t >= (a - tau * s[:, None]).clamp_min(0.0).sum(-1)
        low, high = torch.where(above, low, t), torch.where(above, t, high)
    inner = w > tau * high[:, None]
    s = (w - tau * high[:, None]).clamp_min(0.0).sum(-1)
    outer = a > tau * s[:, None]
    k, m = inner.sum(-1).to(w), outer.sum(-1).to(w)
    # On the piece s = W - k tau t and t = A - m tau s.
    total, sums = (
        torch.where(on, x, 0.0).sum(-1) for on, x in ((inner, w), (outer, a))
    )
    t = (sums - m * tau * total) / (1 - m * k * tau * tau)
    return t.clamp_min(0.0)
