"""Residual networks in other shapes: flattened to two layers, with layers permuted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from otflow._validation import check_kind
from otflow.errors import Unsupported
from otflow.meanfield.layers import TwoLayer
from otflow.meanfield.model import redefined
from otflow.meanfield.networks.arguments import as_permutation
from otflow.meanfield.networks.residual import Residual
from otflow.meanfield.networks.residual_layers import cells_of, reflected
from otflow.measures import Particles

__all__ = ["Flattened", "check_residual", "ends", "flatten", "permute_layers"]


@dataclass(frozen=True, eq=False)
class Flattened:
    r"""The two-layer network that a residual network is to first order.

    The outputs are :math:`f(x) = Sx + g(x) + O(\epsilon^2)`, with g the network on the
    measure.

    Parameters
    ----------
    network : TwoLayer
        The network g, with the offset.
    measure : Particles
        Its neurons.
    skip : Tensor, shape (m, d)
        The matrix S of the inputs that pass by all layers: read-out times embedding.

    Attributes
    ----------
    network, measure, skip
        As above.

    Examples
    --------
    >>> import torch
    >>> from otflow.meanfield.networks import Residual, flatten
    >>> network = Residual("relu", layers=2, bias=False)
    >>> mu = network.from_blocks(  # u, w of one neuron a layer; the state is (x, 0)
    ...     torch.tensor([[[2.0, 2.0]], [[0.0, 2.0]]]),
    ...     torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]]),
    ... )
    >>> flat, x = flatten(network, mu, 1), torch.tensor([[3.0]])
    >>> flat.network(flat.measure, x), network(mu, x)  # the layers are not small
    (tensor([6.]), tensor([9.]))
    """

    network: TwoLayer
    measure: Particles
    skip: Tensor

    def __repr__(self) -> str:
        passed = f"a skip of shape {tuple(self.skip.shape)}"
        if not bool(self.skip.any()):
            passed = "no skip"
        return f"Flattened({self.network!r} of {self.measure.n} neurons, {passed})"


def flatten(network: Residual, mu: Particles, inputs: int) -> Flattened:
    r"""Return the two-layer network of the same blocks, all fed by the input.

    Where all outer weights are :math:`O(\epsilon)`, each block sees z(0) up to
    :math:`O(\epsilon)`, and the outputs differ by :math:`O(\epsilon^2)`
    :cite:p:`lu2020mean`.

    Parameters
    ----------
    network : Residual
        The network.
    mu : Particles
        Particles, points (N, p).
    inputs : int
        Number d of inputs.

    Returns
    -------
    Flattened
        Network, measure of neurons (R u, A^T w, b) of the same weights, and the
        matrix R A, which is zero by default.

    Raises
    ------
    ValueError, TypeError
        If the particles are none of the network, or it is no `Residual`.
    Unsupported
        If a subclass computes other outputs.

    Examples
    --------
    >>> import torch, otflow as of
    >>> network = of.meanfield.networks.Residual("tanh")
    >>> mu = of.Particles(torch.rand(9, network.dim(2)))
    >>> flat = of.meanfield.networks.flatten(network, mu, 2)
    >>> flat.network, flat.measure.dim, float(flat.skip.norm())
    (TwoLayer('tanh'), 4, 0.0)
    """
    check_residual(network)
    check_kind(mu, Particles, "mu")
    network._check_particles(mu.points, inputs)
    _, u, w = network.split(mu.points)
    width = u.shape[1]
    eye = torch.eye(width, dtype=mu.dtype, device=mu.device)
    A, R = ends(network, eye, inputs)
    neurons = [u @ R.T, w[:, :width] @ A, w[:, width:]]
    two = TwoLayer(
        network.activation,
        outputs=network.outputs,
        bias=network.bias,
        offset=network.offset,
    )
    return Flattened(two, mu.with_free_atoms(torch.cat(neurons, 1)), R @ A)


def ends(network: Residual, eye: Tensor, inputs: int) -> tuple[Tensor, Tensor]:
    """Return the embedding A and the readout R, from the identity of the states."""
    A, R = network.embedding, network.readout
    A = eye[:, :inputs] if A is None else A
    return A, eye[-(network.outputs or 1) :] if R is None else R


def permute_layers(
    network: Residual, mu: Particles, order: Sequence[int] | Tensor
) -> Particles:
    r"""Return the network with its layers in another order.

    Parameters
    ----------
    network : Residual
        The network.
    mu : Particles
        Particles, points (N, p).
    order : sequence of int, Tensor or ndarray
        Layer l of the answer is layer ``order[l]`` of `mu`, a permutation of 0,
        ..., L - 1. A particle keeps its place in its cell, up to round-off.

    Returns
    -------
    Particles
        The atoms in the order of `mu`, with other times, all in [0, 1], differentiable
        in these.

    Raises
    ------
    ValueError
        If `order` is no permutation of the layers, if a fixed time is not in [0, 1], or
        if the particles are none of the network.
    TypeError
        If `order` is no sequence, `mu` is not made of particles, or `network` is no
        `Residual`.

    Notes
    -----
    With free times a particle away from the centre of its cell acts in the layer beside
    it too. Then that is the one beside it in the new order.

    Layers of independent particles of one law :math:`\rho` may be permuted: the
    outputs change by :math:`O(L^{-1/2})`, and by :math:`O(L^{-1})` if the field
    :math:`\int\sigma(z;\theta)\,d\rho` is zero, as for outer weights of mean 0
    that are independent of the inner ones.

    Examples
    --------
    >>> import torch
    >>> from otflow.meanfield.networks import Residual, permute_layers
    >>> network = Residual("relu", layers=2, bias=False)
    >>> mu = network.from_blocks(  # u, w of one neuron a layer; the state is (x, 0)
    ...     torch.tensor([[[2.0, 2.0]], [[0.0, 2.0]]]),
    ...     torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]]),
    ... )
    >>> x = torch.tensor([[3.0]])
    >>> network(mu, x), network(permute_layers(network, mu, [1, 0]), x)
    (tensor([9.]), tensor([6.]))
    """
    check_kind(network, Residual, "network")
    check_kind(mu, Particles, "mu")
    A, own = network.embedding, (mu.dim - 1 - int(network.bias)) // 2
    inputs = own - (network.outputs or 1) if A is None else A.shape[1]
    network._check_particles(mu.points, max(inputs, 1))
    places = as_permutation(order, network.layers, "order")
    place = torch.empty(network.layers, dtype=torch.long, device=mu.device)
    place[places] = torch.arange(network.layers, device=mu.device)
    t = reflected(mu.points[:, 0])
    moved = _moved(t.detach(), place, network.layers) + (t - t.detach())
    return mu.with_free_atoms(torch.cat([moved[:, None], mu.points[:, 1:]], dim=1))


def _moved(t: Tensor, place: Tensor, layers: int) -> Tensor:
    """Return the times in the new cells, each as far from the first end as before.

    Times at the ends of cells would leave these by round-off, and the time 1 belongs to
    the last cell alone.
    """
    before = cells_of(t, layers)
    after = place[before]
    moved = (t + (after - before).to(t) / layers).clamp(0, 1)
    found = cells_of(moved, layers)
    # An end of a cell, as a number, may lie on either side of it.
    first, stop = after.to(t) / layers, (after + 1).to(t) / layers
    first = torch.where(cells_of(first, layers) < after, first.nextafter(stop), first)
    last = stop.nextafter(first)
    last = torch.where(cells_of(last, layers) > after, last.nextafter(first), last)
    moved = torch.where(found < after, first, moved)
    return torch.where(found > after, last, moved)


def check_residual(network: Residual) -> None:
    """Raise unless a network is a `Residual` of which nothing is changed."""
    cure = "Residual('relu') is one"
    check_kind(network, Residual, "network", cure=cure)
    if (name := redefined(network)) is not None:
        msg = (
            f"{type(network).__name__}.{name} changes the outputs, for which this is "
            f"not known; state other values in the activation, Residual(activation)"
        )
        raise Unsupported(msg)
