"""Compositional norms of residual networks, and the complexity of balls of these."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from otflow._validation import check_kind, non_negative_int, positive
from otflow.errors import NonFinite, Unsupported
from otflow.meanfield.networks.residual import Residual
from otflow.meanfield.networks.residual_pass import Blocks
from otflow.meanfield.networks.residual_structure import check_residual, ends
from otflow.meanfield.units import is_unit
from otflow.measures import Particles

__all__ = ["compositional_norm", "compositional_rademacher_bound"]


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
        One number for each output, differentiable in the measure; the solver is that
        of the network. For c = 1 and :math:`\max_j|x_j| \le 1` no output is larger,
        apart from the offset and round-off.

    Raises
    ------
    Unsupported
        If the activation is not "relu" or "tanh", which have :math:`|\varphi(z)|
        \le |z|`; or if a subclass computes other outputs.
    NonFinite
        If the number is too large for the dtype.
    ValueError, TypeError
        If p is less than 1, or the particles are none of the network.

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
    check_residual(network)
    if not is_unit(network.activation, "relu", "tanh"):
        msg = (
            f"the compositional norm bounds outputs where |phi(z)| <= |z|, got "
            f"{network!r}; use Residual('relu') or Residual('tanh')"
        )
        raise Unsupported(msg)
    check_kind(mu, Particles, "mu")
    network._check_particles(mu.points, inputs)
    power = positive(p, "p")
    if power < 1:
        msg = f"p must be at least 1, got {p:g}; the norm of p = 1 is the least"
        raise ValueError(msg)
    blocks = network._blocks(mu.points, mu.weights)
    one = mu.points.new_ones(1, inputs)
    ends = network._ends(absolute=True)
    start = ends.embed(one)[0]
    end = _path_sums(blocks, start, power, positive(factor, "factor"))
    norm = ends.read_out(end[None])[0]
    if not bool(torch.isfinite(norm).all()):
        msg = (
            f"the compositional norm is too large for {norm.dtype}: it grows like the "
            f"exponential of the weights; give particles of smaller weights"
        )
        raise NonFinite(msg)
    return norm


def compositional_rademacher_bound(
    network: Residual, mu: Particles, inputs: int, n: int
) -> Tensor:
    r"""Return a bound of the Rademacher complexity of networks no larger than this.

    .. math:: \mathrm{Rad}_n \le \kappa\,Q\sqrt{\frac{2\log(2d + 2)}{n}}, \qquad
        Q = \text{compositional norm with } p = 1,\ c = 3 .

    The class is that of all relu networks with the same number of layers or any
    other, of which the norm Q is at most this, on inputs of
    :math:`\max_j|x_j| \le 1` :cite:p:`e2019residual`. The number :math:`\kappa` is 2
    for networks of which no input passes by all layers, R A = 0 as by default, and 3
    for all.

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
        One bound for each output, differentiable in the measure.

    Raises
    ------
    Unsupported
        If the activation is not "relu", on which the proof rests; if the solver is
        not "euler"; or if a subclass computes other outputs.
    NonFinite, ValueError, TypeError
        As `compositional_norm` does.

    See Also
    --------
    otflow.analysis.rademacher_bound : The complexity of two-layer networks.

    Notes
    -----
    Let the norm of a neuron be :math:`c|w|` times the path sum before it, and T the
    hull of linear functions and of neurons of either sign, all of norm at most 1, with
    complexities :math:`\tau` of T, :math:`\alpha` of the neurons, and :math:`r =
    \sqrt{2\log(2d + 2)/n}` of the linear functions. A neuron is relu of an element of
    T/c. So :math:`\alpha \le \tau/c` by contraction, and :math:`\tau \le r + 2\alpha`.
    For c = 3 follow :math:`\tau \le 3r` and :math:`\alpha \le r`. A network is Q times
    an element of T. Without linear part it is Q times one of the hull of neurons of
    either sign, of complexity :math:`2\alpha`. Without biases 2 d stands for 2 d + 2.

    Examples
    --------
    >>> import torch
    >>> from otflow.meanfield.networks import Residual, compositional_rademacher_bound
    >>> network = Residual("relu", layers=2, bias=False)
    >>> mu = network.from_blocks(  # u, w of one neuron a layer; the state is (x, 0)
    ...     torch.tensor([[[2.0, 2.0]], [[0.0, 2.0]]]),
    ...     torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]]),
    ... )
    >>> compositional_rademacher_bound(network, mu, 1, 10_000)  # 30 (2 log 2 / n)^(1/2)
    tensor(0.3532)
    """
    check_residual(network)
    if not is_unit(network.activation, "relu") or network.solver != "euler":
        msg = (
            f"the bound is proved for Residual('relu') with solver='euler', not "
            f"for {network!r}"
        )
        raise Unsupported(msg)
    count = non_negative_int(n, "n", minimum=1)
    norm = compositional_norm(network, mu, inputs, factor=3.0)
    eye = torch.eye(network.width(inputs), dtype=mu.dtype, device=mu.device)
    A, R = ends(network, eye, inputs)
    kappa = 3 if bool((R @ A).any()) else 2
    corners = 2 * (inputs + int(network.bias))
    return kappa * norm * math.sqrt(2 * math.log(corners) / count)


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
            # The same products as those of the outputs, which it bounds.
            pushes = masses[:, None] * u

            def field(N: Tensor, w: Tensor = w, pushes: Tensor = pushes) -> Tensor:
                return factor * ((w @ N) @ pushes)

        else:
            rows = [_power_mean(z[:, None] * w, masses, power) for z in u.unbind(1)]
            matrix = torch.stack(rows)

            def field(N: Tensor, matrix: Tensor = matrix) -> Tensor:  # type: ignore[misc]
                return factor * (matrix @ N)

        sums = blocks.tableau.step(field, sums)
    return sums


def _power_mean(x: Tensor, masses: Tensor, power: float) -> Tensor:
    r"""Return :math:`T(\sum_i (m_i/T) x_{ij}^p)^{1/p}` for the total mass T.

    Powers of tiny and of large numbers leave the range of the dtype. So each column is
    measured in its largest entry that has mass.
    """
    masses = masses[:, None]
    total, x0 = masses.sum(), x.detach()
    top = torch.where(masses.detach() > 0, x0, 0.0).amax(0)
    seen = top > 0
    ratios = (x / torch.where(seen, top, 1.0)).pow(power)
    # Entries without mass may be larger by any factor.
    ratios = torch.where(torch.isfinite(ratios), ratios, 0.0)
    mean = (masses * ratios).sum(0) / torch.where(total > 0, total, 1.0)
    # The root has no slope at 0, where all entries with mass are 0.
    return total * top * torch.where(seen, mean, 1.0).pow(1 / power)
