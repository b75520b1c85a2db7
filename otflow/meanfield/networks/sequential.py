"""Networks of several layers from torch modules, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from otflow._validation import check_kind
from otflow.errors import Unsupported
from otflow.meanfield.model import redefined
from otflow.meanfield.modules import activation_of, layers_of, module_of
from otflow.meanfield.networks.multilayer import MultiLayer
from otflow.meanfield.units import Elementwise
from otflow.measures import Measure, Parts

__all__ = ["from_sequential", "to_sequential"]

OWN: Final = "from_sequential(module, units=list(module[1::2]))"


def to_sequential(mu: Measure, network: MultiLayer) -> nn.Sequential:
    r"""Return a network as ``Sequential(Linear, activation, ..., Linear)``.

    The weights of the module are :math:`w_j`, :math:`W^l_{kj}/N_l` and
    :math:`a_k/N_L`; its biases are those of the network. It computes the outputs of the
    network, always with an axis for them. Its parameters are trainable copies, of the
    dtype and on the device of `mu`.

    Parameters
    ----------
    mu : Parts
        A measure of the network.
    network : MultiLayer
        The network.

    Returns
    -------
    torch.nn.Sequential
        Of L + 1 linear layers.

    Raises
    ------
    TypeError, ValueError
        If `mu` is no measure of the network.
    Unsupported
        If a subclass of `MultiLayer` computes other outputs.

    See Also
    --------
    from_sequential : The way back.

    Notes
    -----
    Let V be a weight of the module. Gradient descent on the module follows the flow if
    the learning rates are :math:`N_1 dt` for the first layer,
    :math:`(N_{l+1}/N_l)\,dt` for the middle ones, :math:`dt/N_L` for the last, and
    :math:`N_{l+1}\,dt` for biases of the layers 2 to L.

    Examples
    --------
    >>> import torch, otflow as of
    >>> network = of.meanfield.networks.MultiLayer((8, 6), "tanh")
    >>> mu = network.draw(2, torch.Generator().manual_seed(0))
    >>> module, x = of.meanfield.networks.to_sequential(mu, network), torch.ones(3, 2)
    >>> torch.allclose(module(x)[:, 0], network(mu, x), atol=1e-6)
    True
    """
    check_kind(network, MultiLayer, "network", cure="to_module is for a TwoLayer")
    check_kind(mu, Parts, "mu", cure="network.draw(d, generator) makes one")
    assert isinstance(mu, Parts)
    if (name := redefined(network)) is not None:
        msg = (
            f"{type(network).__name__}.{name} changes the outputs, so that no Linear "
            f"layers compute them; state other values in the units, "
            f"MultiLayer(widths, units)"
        )
        raise Unsupported(msg)
    d = network.inputs_of(mu)
    network.check_measure(mu, d)
    w = network.weights(mu)
    inner = (w.inner[:, :d], w.inner[:, d]) if network.bias else (w.inner, None)
    biases: Sequence[Tensor | None] = w.biases or [None] * len(w.middle)
    offset = network.offset
    rows = [
        inner,
        *zip(w.products(), biases, strict=True),
        (
            (w.masses[-1][:, None] * w.outer).T,
            None if offset is None else w.outer.new_tensor(offset).reshape(-1),
        ),
    ]
    layers = [_linear(weight, bias) for weight, bias in rows]
    modules: list[nn.Module] = [layers[0]]
    for unit, layer in zip(network.units, layers[1:], strict=True):
        modules += [module_of(unit), layer]
    return nn.Sequential(*modules)


def from_sequential(
    module: nn.Sequential,
    *,
    units: str | Elementwise | Sequence[str | Elementwise] | None = None,
) -> tuple[Parts, MultiLayer]:
    r"""Return a torch network of several hidden layers as a measure of parts.

    Let V be the weights of the module. Those of the measure are :math:`w_j` for the
    first layer, :math:`N_l V_{kj}` for the middle ones and :math:`N_L V_k` for the
    last. `to_sequential` is the inverse.

    Parameters
    ----------
    module : torch.nn.Sequential
        ``Sequential(Linear, activation, ..., Linear)``, of three Linear layers at
        least. It is not modified.
    units : str, callable, or sequence of these
        The activations, as for `MultiLayer`. By default they are read off ``ReLU``,
        ``Tanh``, ``Sigmoid``, or the layers of a `to_sequential`.

    Returns
    -------
    mu : Parts
        The weights, copied.
    network : MultiLayer
        The network. If the module has one output, ``outputs`` is None. The last bias is
        the `offset`, a constant.

    Raises
    ------
    TypeError
        If `module` is not a ``Sequential``.
    Unsupported
        If its layers are others, if some of the hidden ones have biases and some have
        none, or if something else acts on them: hooks, or the ``forward`` of a
        subclass.
    ValueError
        If a hidden layer has one unit.

    See Also
    --------
    to_sequential : The way back.
    otflow.meanfield.from_module : One hidden layer.

    Notes
    -----
    torch draws weights of the order :math:`N^{-1/2}`, so that here the middle weights
    are of the order :math:`N^{1/2}`: at width N the network is that of the module, but
    for N to infinity these starts have no limit in this scaling.

    Examples
    --------
    >>> import torch, otflow as of
    >>> mlp = torch.nn.Sequential(
    ...     torch.nn.Linear(2, 32),
    ...     torch.nn.ReLU(),
    ...     torch.nn.Linear(32, 16),
    ...     torch.nn.ReLU(),
    ...     torch.nn.Linear(16, 1),
    ... )
    >>> mu, network = of.meanfield.networks.from_sequential(mlp)
    >>> x = torch.randn(5, 2)
    >>> torch.allclose(network(mu, x), mlp(x)[:, 0], atol=1e-5)
    True
    """
    form = "Sequential(Linear, activation, ..., Linear)"
    linear, between = layers_of(
        module,
        form,
        f"{form} of three Linear layers at least",
        "from_module takes one of two; leave out Dropout, which acts in training "
        "alone, and a Softmax at the end, which the loss of a Risk contains",
        lambda count: count > 2,
    )
    *hidden, last = linear
    biased = {layer.bias is not None for layer in hidden}
    if len(biased) > 1:
        msg = (
            "some hidden layers of the module have biases and some have none; give all "
            "of them biases, Linear(..., bias=True), with zeros where there are none"
        )
        raise Unsupported(msg)
    network = MultiLayer(
        [layer.out_features for layer in hidden],
        [activation_of(layer, OWN) for layer in between] if units is None else units,
        outputs=None if last.out_features == 1 else last.out_features,
        bias=biased.pop(),
        offset=None if last.bias is None else last.bias.detach().squeeze(0),
    )
    first, *middle = hidden
    with torch.no_grad():
        inner = first.weight
        if first.bias is not None:
            inner = torch.cat([inner, first.bias[:, None]], dim=1)
        values = [
            inner,
            *(layer.in_features * layer.weight for layer in middle),
            *(layer.bias for layer in middle if layer.bias is not None),
            last.in_features * last.weight.T,
        ]
    return network.measure([tensor.detach() for tensor in values]), network


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a linear layer of copies, without draws from the global random state."""
    options: dict[str, Any] = {"dtype": weight.dtype, "device": weight.device}
    empty: Any = nn.utils.skip_init
    after, before = weight.shape
    layer: nn.Linear = empty(nn.Linear, before, after, bias=bias is not None, **options)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer
