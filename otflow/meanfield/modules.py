"""A measure of neurons from a torch module, and back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from otflow._validation import check_kind
from otflow.errors import Unsupported
from otflow.meanfield.layers import TwoLayer
from otflow.meanfield.model import redefined
from otflow.meanfield.units import UNITS, Elementwise, Relu, Sigmoid, Tanh, Unit
from otflow.measures import Particles

__all__ = ["activation_of", "from_module", "layers_of", "module_of", "to_module"]

_MODULES: dict[type[Unit], type[nn.Module]] = {
    Relu: nn.ReLU,
    Tanh: nn.Tanh,
    Sigmoid: nn.Sigmoid,
}


class _Activation(nn.Module):
    """A module for an activation that torch does not have as a module."""

    def __init__(self, activation: Elementwise) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, z: Tensor) -> Tensor:
        """Return the activation of each entry."""
        return self.activation(z)

    def extra_repr(self) -> str:
        """Return the name of the activation."""
        return repr(self.activation)


def to_module(mu: Particles, network: TwoLayer) -> nn.Sequential:
    r"""Return the network at a measure as ``Sequential(Linear, activation, Linear)``.

    The outer weights of the module are :math:`s_N w_i a_i`. It computes the outputs of
    the network, always with an axis for them: (n, 1) where ``network(mu, X)`` is (n,).
    Its parameters are trainable copies, of the dtype and on the device of `mu`.

    Parameters
    ----------
    mu : Particles
        Measure over neurons.
    network : TwoLayer
        What the neurons compute.

    Returns
    -------
    torch.nn.Sequential
        A torch network with one hidden unit for each atom of `mu`.

    Raises
    ------
    TypeError
        If `mu` is not made of particles or `network` is not a `TwoLayer`.
    Unsupported
        If a subclass of `TwoLayer` computes other outputs.
    ValueError
        If the dimension of the particles leaves no inputs.

    See Also
    --------
    from_module : The way back.

    Notes
    -----
    Gradient descent on the module follows the flow with learning rate N dt in the inner
    layer and dt/N in the outer layer (mean-field scaling, equal masses). `from_module`
    makes particles of the module again.

    Examples
    --------
    >>> import torch, otflow as of
    >>> network, mu = of.meanfield.TwoLayer("tanh"), of.Particles(torch.randn(50, 3))
    >>> module, x = of.meanfield.to_module(mu, network), torch.randn(7, 1)
    >>> torch.allclose(module(x)[:, 0], network(mu, x), atol=1e-6)
    True
    """
    check_kind(mu, Particles, "mu")
    if not isinstance(network, TwoLayer):
        msg = (
            f"network must be a TwoLayer, got {network!r:.80}: other neurons have no "
            f"torch module of two Linear layers"
        )
        raise TypeError(msg)
    if (name := redefined(network)) is not None:
        msg = (
            f"{type(network).__name__}.{name} changes the outputs, so that no two "
            f"Linear layers compute them; state other values in the activation, "
            f"TwoLayer(activation)"
        )
        raise Unsupported(msg)
    m = network.outputs or 1
    d = mu.dim - m - int(network.bias)
    network.check_neurons(mu.points, max(d, 1))
    a, w = network.split(mu.points)
    options: dict[str, Any] = {"dtype": mu.dtype, "device": mu.device}
    # Without initialisation, which would draw from the global random state.
    empty: Any = nn.utils.skip_init
    inner = empty(nn.Linear, d, mu.n, bias=network.bias, **options)
    has_offset = network.offset is not None
    outer = empty(nn.Linear, mu.n, m, bias=has_offset, **options)
    with torch.no_grad():
        inner.weight.copy_(w[:, :d])
        if network.bias:
            inner.bias.copy_(w[:, d])
        outer.weight.copy_((network.masses(mu.weights)[:, None] * a).T)
        if has_offset:
            outer.bias.copy_(outer.bias.new_tensor(network.offset))
    return nn.Sequential(inner, module_of(network.activation), outer)


def from_module(
    module: nn.Sequential,
    *,
    activation: str | Elementwise | None = None,
    scaling: str = "mean-field",
) -> tuple[Particles, TwoLayer]:
    r"""Return a two-layer torch network as equal particles and a `TwoLayer`.

    For N hidden units of outer weights :math:`c_i` the particles are
    :math:`\theta_i = (N c_i/s_N, w_i, b_i)`, each of mass 1/N. In the mean field the
    weight a_i is N times the outer weight :math:`c_i`. `to_module` is the inverse.

    Parameters
    ----------
    module : torch.nn.Sequential
        ``Sequential(Linear, activation, Linear)``. It is not modified.
    activation : str or callable, optional
        The function of the middle layer, as for `TwoLayer`. By default it is read off
        ``ReLU``, ``Tanh``, ``Sigmoid``, or the middle layer of a `to_module`.
    scaling : str
        "mean-field", "ntk" or "sum", as for `TwoLayer`.

    Returns
    -------
    mu : Particles
        The neurons, of mass 1/N each.
    network : TwoLayer
        The network. If the module has one output, ``outputs`` is None. The last bias is
        the `offset`, a constant.

    Raises
    ------
    TypeError
        If `module` is not a ``Sequential``.
    Unsupported
        If the layers are not Linear, activation, Linear, or something else acts on
        them: hooks, or the ``forward`` of a subclass.

    See Also
    --------
    to_module : The way back.

    Examples
    --------
    >>> import torch, otflow as of
    >>> mlp = torch.nn.Sequential(
    ...     torch.nn.Linear(2, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1)
    ... )
    >>> mu, network = of.meanfield.from_module(mlp)
    >>> x = torch.randn(5, 2)
    >>> torch.allclose(network(mu, x), mlp(x)[:, 0], atol=1e-5)
    True
    """
    form = "Sequential(Linear, activation, Linear)"
    (inner, outer), (middle,) = layers_of(
        module,
        form,
        form,
        "a deeper network is a measure of several parts: "
        "meanfield.networks.from_sequential(module)",
        lambda count: count == 2,
    )
    network = TwoLayer(
        activation_of(middle) if activation is None else activation,
        outputs=None if outer.out_features == 1 else outer.out_features,
        bias=inner.bias is not None,
        scaling=scaling,
        offset=None if outer.bias is None else outer.bias.detach().squeeze(0),
    )
    with torch.no_grad():
        columns = [outer.weight.T, inner.weight]
        if inner.bias is not None:
            columns.append(inner.bias[:, None])
        theta = torch.cat(columns, dim=1)
        mu = Particles(theta)
        theta[:, : outer.out_features] /= network.masses(mu.weights)[:, None]
    return Particles(theta), network


def layers_of(
    module: nn.Sequential,
    form: str,
    wanted: str,
    otherwise: str,
    fits: Callable[[int], bool],
) -> tuple[list[nn.Linear], list[nn.Module]]:
    """Return the Linear layers of a module and the activations between them.

    Parameters
    ----------
    module : torch.nn.Sequential
        A module of the user.
    form, wanted : str
        What the module must be, in short and in full.
    otherwise : str
        What takes a module of another number of layers.
    fits : callable
        Whether the number of Linear layers is right.

    Returns
    -------
    tuple of list
        The layers, and one activation fewer.

    Raises
    ------
    TypeError
        If `module` is not a ``Sequential``.
    Unsupported
        If its layers are others, or something else than these acts in it.
    """
    if not isinstance(module, nn.Sequential):
        msg = (
            f"module must be a torch.nn.Sequential, got {type(module).__name__}; write "
            f"{form} of its layers"
        )
        raise TypeError(msg)
    if type(module).forward is not nn.Sequential.forward:
        msg = (
            f"{type(module).__name__}.forward is not known; if the layers alone are "
            f"the network, give torch.nn.Sequential(*module)"
        )
        raise Unsupported(msg)
    modules = list(module)
    between = modules[1::2]
    # Only Linear itself: of its subclasses LazyLinear has no weights yet.
    linear = [m for m in modules[::2] if type(m) is nn.Linear]
    if (
        not fits(len(linear))
        or len(modules) != 2 * len(linear) - 1
        or any(type(layer) is nn.Linear for layer in between)
    ):
        names = ", ".join(type(layer).__name__ for layer in modules)
        msg = f"module must be {wanted}, got Sequential({names}); {otherwise}"
        raise Unsupported(msg)
    named = {"module": module, **{f"module[{2 * k}]": m for k, m in enumerate(linear)}}
    for name, layer in named.items():
        if hooked(layer):
            msg = (
                f"{name} has forward hooks, and what these do is not known; remove "
                f"them, by handle.remove(), or torch.nn.utils.prune.remove({name}, "
                f"'weight') of pruned weights"
            )
            raise Unsupported(msg)
    return linear, between


def hooked(module: nn.Module) -> bool:
    """Return whether something else than `forward` acts when a module is called."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def module_of(activation: Elementwise) -> nn.Module:
    """Return an activation as a module of torch."""
    if isinstance(activation, nn.Module):
        return copy.deepcopy(activation)
    kind = _MODULES.get(type(activation))  # type: ignore[arg-type]
    return _Activation(activation) if kind is None else kind()


def activation_of(
    module: nn.Module, cure: str = "from_module(module, activation=module[1])"
) -> Elementwise:
    """Return the activation that a module computes; Unsupported if it is unknown."""
    if isinstance(module, _Activation):
        return module.activation
    for unit, kind in _MODULES.items():
        if type(module) is kind and not hooked(module):
            return UNITS[unit.name]
    msg = (
        f"the activation must be ReLU, Tanh or Sigmoid, got {type(module).__name__}; "
        f"if it acts entry by entry, say so: {cure}"
    )
    raise Unsupported(msg)
