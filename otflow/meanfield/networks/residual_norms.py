"""Compositional norms of residual networks, and the complexity of balls of these."""

from __future__ import annotations

import math

from torch import Tensor

from otflow._validation import check_kind, non_negative_int, positive
from otflow.errors import Unsupported
from otflow.meanfield.networks.residual import Residual
from otflow.meanfield.networks.residual_pass import Blocks
from otflow.meanfield.units import UNITS
from otflow.measures import Particles

__all__ = ["compositional_norm", "rademacher_bound"]


def compositional_norm(
    network: Residual,
    mu: Particles,
    inputs: int,
    *,
    p: float = 1.0,
    factor: float = 1.0,
) -> Tensor:
    r"""Return a bound of the compositional norm of the outputs.

    .. math:: |R|\,N(1), \qquad \dot N = c\,\Bigl(\int (|u||w|^\top)^p
        \,d\rho_t\Bigr)^{1/p} N, \qquad N(0) = |A|\,e .

    Absolute values and powers are those of entries, e is the vector of ones
    :cite:p:`e2022barron`. A bias is the weight of one more input, 1. The norm of a
    function is the least of these numbers over all networks that give it.

    Parameters
    ----------
    network : Residual
        The network.
    mu : Particles
        Particles, points (N, p).
    inputs : int
        Number d of inputs.
    p : float
        The power, at least 1. At each time :math:`\rho_t` is made a probability
        for the mean, and its mass is a factor of the speed.
    factor : float
        The number c; the path norm of generalisation bounds has c = 3.

    Returns
    -------
    Tensor, shape () or (m,)
        One number for each output; the solver is that of the network. For c = 1
        and :math:`\max_j|x_j| \le 1` no output is larger, apart from the offset.

    Raises
    ------
    Unsupported
        If the activation is not "relu" or "tanh", which have :math:`|\varphi(z)|
        \le |z|`.

    Notes
    -----
    Time O(N D) for p = 1, O(N D^2) else.

    Examples
    --------
    >>> import torch
    >>> from otflow.meanfield.networks import Residual, compositional_norm
    >>> network = Residual("relu", layers=2, bias=False)
    >>> mu = network.from_blocks(  # u, w of one neuron a layer; the state is (x, 0)
    ...     torch.tensor([[[2.0, 2.0]], [[0.0, 2.0]]]),
    ...     torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]]),
    ... )
    >>> compositional_norm(network, mu, 1)  # N = (1, 0), (2, 1), (2, 3)
    tensor(3.)
    >>> compositional_norm(network, mu, 1, factor=3.0)
    tensor(15.)
    """
    _check_growth(network)
    check_kind(mu, Particles, "mu")
    network._check_particles(mu.points, inputs)
    power = positive(p, "p")
    if power < 1:
        msg = f"p must be at least 1, got {p:g}; the norm of p = 1 is the least"
        raise ValueError(msg)
    blocks = network._blocks(mu.points, mu.weights)
    one = mu.points.new_ones(1, inputs)
    start = network._ends(one, absolute=True).embed(one)[0]
    end = _path_sums(blocks, start, power, positive(factor, "factor"))
    return network._ends(one, absolute=True).read_out(end[None])[0]


def rademacher_bound(network: Residual, mu: Particles, inputs: int, n: int) -> Tensor:
    r"""Return a bound of the Rademacher complexity of networks no larger than this.

    .. math:: \mathrm{Rad}_n \le Q\sqrt{\frac{2\log(2d + 2)}{n}}, \qquad
        Q = \text{compositional norm with } p = 1,\ c = 3 .

    The class is that of all relu networks with the same number of layers or any
    other, of which the norm Q is at most this, on inputs of
    :math:`\max_j|x_j| \le 1` :cite:p:`e2019residual`.

    Parameters
    ----------
    network : Residual
        The network.
    mu : Particles
        Particles, points (N, p).
    inputs : int
        Number d of inputs.
    n : int
        Number of data.

    Returns
    -------
    Tensor, shape () or (m,)
        One bound for each output.

    Raises
    ------
    Unsupported
        If the activation is not "relu", on which the proof rests; or if the solver
        is not "euler".

    Notes
    -----
    Let N be the norm of a neuron, :math:`c|w|` times the path sum before it. A
    network is a sum of linear functions and neurons, of total norm Q. With A(Q) the
    complexity of neurons of norm at most Q and :math:`r =
    \sqrt{2\log(2d + 2)/n}`, contraction gives :math:`A(1) \le \max(r, 2A(1))/c`,
    so that :math:`A(1) \le r/3` for c = 3, and the bound follows. Without biases the
    number 2 d + 2 is 2 d.

    Examples
    --------
    >>> import torch
    >>> from otflow.meanfield.networks import Residual, rademacher_bound
    >>> network = Residual("relu", layers=2, bias=False)
    >>> mu = network.from_blocks(  # u, w of one neuron a layer; the state is (x, 0)
    ...     torch.tensor([[[2.0, 2.0]], [[0.0, 2.0]]]),
    ...     torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]]),
    ... )
    >>> rademacher_bound(network, mu, 1, 10_000)  # 15 (2 log 2 / n)^(1/2)
    tensor(0.1766)
    """
    if network.activation is not UNITS["relu"] or network.solver != "euler":
        msg = (
            f"the bound is proved for Residual('relu') with solver='euler', not "
            f"for {network!r}"
        )
        raise Unsupported(msg)
    count = non_negative_int(n, "n", minimum=1)
    norm = compositional_norm(network, mu, inputs, factor=3.0)
    return norm * math.sqrt(2 * math.log(2 * (inputs + int(network.bias))) / count)


def _path_sums(blocks: Blocks, start: Tensor, power: float, factor: float) -> Tensor:
    r"""Return N(1) for :math:`\dot N = c\,(\int(|u||w|^\top)^p\,d\rho_t)^{1/p}N`.

    Parameters
    ----------
    blocks : Blocks
        The weights of the layers, and the solver.
    start : Tensor, shape (q,)
        N(0), with a last coordinate 1 for the biases.
    power : float
        The number p >= 1.
    factor : float
        The number c.

    Returns
    -------
    Tensor, shape (q,)
        Differentiable in the measure.
    """
    sums = start
    for part in blocks.layers.parts:
        masses = blocks.masses[part]
        u, w = blocks.outer[part].abs(), blocks.inner[part].abs()
        if power == 1.0:

            def field(
                N: Tensor, u: Tensor = u, w: Tensor = w, m: Tensor = masses
            ) -> Tensor:
                return factor * ((m * (w @ N)) @ u)

        else:
            total = masses.sum()
            share = masses / total.clamp_min(
                1e-300 if total.dtype.itemsize == 8 else 1e-37
            )
            mean = (share[:, None] * u.pow(power)).T @ w.pow(power)
            matrix = total * mean.pow(1 / power)

            def field(N: Tensor, matrix: Tensor = matrix) -> Tensor:  # type: ignore[misc]
                return factor * (matrix @ N)

        sums = blocks.tableau.step(field, sums)
    return sums


def _check_growth(network: Residual) -> None:
    if not any(network.activation is UNITS[name] for name in ("relu", "tanh")):
        msg = (
            f"the compositional norm bounds outputs where |phi(z)| <= |z|, got "
            f"{network!r}; use Residual('relu') or Residual('tanh')"
        )
        raise Unsupported(msg)
