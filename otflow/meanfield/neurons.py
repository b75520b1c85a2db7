"""Which parameters of a torch module are the coordinates of its neurons."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from otflow._validation import positive
from otflow.errors import Unsupported

__all__ = [
    "Group",
    "check_group",
    "check_once",
    "coordinates",
    "groups_of",
    "placed",
]

Group: TypeAlias = dict[str, Any]

ENTRIES = ("params", "axis", "factor", "lr", "temperature", "mobility", "name")
CURE = (
    'give groups, [{"params": [p], "axis": k}], with the axis k of the neurons in each '
    "parameter p"
)


def coordinates(parameter: Tensor, axis: int) -> Tensor:
    """Return a parameter as rows, one for each neuron, (N, q)."""
    rows = parameter.movedim(axis, 0)
    return rows.reshape(len(rows), -1)


def placed(rows: Tensor, parameter: Tensor, axis: int) -> Tensor:
    """Return rows (N, q) in the shape of a parameter, the inverse of `coordinates`."""
    shape = list(parameter.shape)
    del shape[axis]
    return rows.reshape(len(rows), *shape).movedim(0, axis)


def groups_of(neurons: nn.Module | Iterable[Group], *, averages: bool) -> list[Group]:
    """Return the groups "outer", "inner" and "constant" of a module, or those given."""
    if isinstance(neurons, nn.Module):
        return _of_module(neurons, averages=averages)
    groups = list(neurons) if isinstance(neurons, Iterable) else [neurons]
    if not groups or not all(isinstance(group, dict) for group in groups):
        got = type(groups[0]).__name__ if groups else "nothing"
        msg = (
            f"neurons must be a torch module or a list of parameter groups, got {got}; "
            f"give the module itself, as FlowOptimizer(module, dt), or {CURE}"
        )
        raise TypeError(msg)
    if averages:
        msg = (
            "averages=True is about a module, and groups are given; state the factor "
            'of the outer weights in their group, {"factor": 1.0}'
        )
        raise ValueError(msg)
    return [dict(group) for group in groups]


def _of_module(module: nn.Module, *, averages: bool) -> list[Group]:
    inner, outer = _layers(module)
    count = inner.out_features
    groups: list[Group] = [
        {
            "name": "outer",
            "params": [outer.weight],
            "axis": 1,
            "factor": 1.0 if averages else float(count),
        },
        {"name": "inner", "params": [inner.weight], "axis": 0},
    ]
    if inner.bias is not None:
        groups[1]["params"].append(inner.bias)
    if outer.bias is not None:
        groups.append({"name": "constant", "params": [outer.bias], "axis": None})
    own = {id(p) for group in groups for p in group["params"]}
    others = [
        name
        for name, p in module.named_parameters()
        if p.requires_grad and id(p) not in own
    ]
    if others:
        msg = (
            f"{', '.join(others[:4])} of {type(module).__name__} belong to no neuron "
            f"of the two layers; fix them by requires_grad_(False), or {CURE}"
        )
        raise Unsupported(msg)
    return groups


def _layers(module: nn.Module) -> tuple[nn.Linear, nn.Linear]:
    """Return the inner and the outer layer."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    for layer in layers:
        if isinstance(layer.weight, UninitializedParameter):
            msg = (
                "a lazy layer has no weights yet; call the module on one batch of "
                "inputs first"
            )
            raise Unsupported(msg)
        if not isinstance(layer.weight, nn.Parameter):
            msg = (
                "the weight of a layer is computed from other parameters, which are "
                "none of its neurons; remove that, as by torch.nn.utils.parametrize."
                "remove_parametrizations(layer, 'weight')"
            )
            raise Unsupported(msg)
    if len(layers) > 2:  # frozen layers, as those of a feature map, are no neurons
        layers = [layer for layer in layers if layer.weight.requires_grad]
    orders = (layers, layers[::-1]) if len(layers) == 2 else ()
    pairs = [(a, b) for a, b in orders if a.out_features == b.in_features]
    # Where inputs and outputs have one dimension, both orders fit. A layer that is
    # registered first and is the wider one is the hidden layer.
    certain = isinstance(module, nn.Sequential)
    if len(pairs) == 2 and (
        certain or pairs[0][0].out_features > pairs[1][0].out_features
    ):
        pairs = pairs[:1]
    if len(pairs) != 1:
        shapes = [f"Linear({a.in_features}, {a.out_features})" for a in layers]
        found = ", ".join(shapes) or "no Linear layer"
        msg = (
            f"no hidden layer is found in {type(module).__name__}, which trains "
            f"{found}: two layers are needed whose order is certain, as in "
            f"Sequential(Linear(d, N), activation, Linear(N, m)); else {CURE}"
        )
        raise Unsupported(msg)
    return pairs[0]


def check_group(groups: list[Group]) -> None:
    """Raise unless the last group fits those before, and itself."""
    group = groups[-1]
    if not group["params"]:
        msg = "a group has no parameters; leave it out, or give its tensors"
        raise ValueError(msg)
    _check_entries(group)
    for name in ("lr", "temperature", "mobility"):
        positive(group[name], name, or_zero=True)
    positive(group["factor"], "factor")
    first: Tensor = groups[0]["params"][0]
    for p in group["params"]:
        if p.dtype != first.dtype or not p.is_floating_point():
            msg = (
                f"parameters have dtypes {first.dtype} and {p.dtype}, and one real "
                f"dtype is needed; convert the module, as by module.to(torch.float32)"
            )
            raise Unsupported(msg)
        if torch.finfo(p.dtype).eps > torch.finfo(torch.float32).eps:
            msg = (
                f"parameters have the dtype {p.dtype}, in which short steps are lost; "
                f"keep parameters of float32, and evaluate the module under "
                f"torch.autocast"
            )
            raise Unsupported(msg)
        if p.device != first.device:
            msg = (
                f"parameters are on {first.device} and on {p.device}; move the module "
                f"to one device, as by module.to(device)"
            )
            raise ValueError(msg)
    _check_counts(groups)


def check_once(params: Any) -> None:
    """Raise for a list that holds a parameter twice, of which torch only warns."""
    held = params if isinstance(params, (list, tuple)) else ()
    if len({id(p) for p in held}) < len(held):
        msg = (
            "a group holds a parameter twice, which would be two coordinates of a "
            "neuron; give it once"
        )
        raise ValueError(msg)


def _check_entries(group: Group) -> None:
    """Raise for an entry that no step would read."""
    # A schedule writes rates of its own, as "initial_lr".
    unknown = [
        name
        for name in group
        if name not in (*ENTRIES, "param_names") and not str(name).endswith("_lr")
    ]
    if unknown:
        msg = (
            f"a group has the entry {unknown[0]!r}, which no step reads; give entries "
            f"of {', '.join(ENTRIES)} alone, and a weight decay as a penalty in the "
            f"loss"
        )
        raise ValueError(msg)


def _check_counts(groups: list[Group]) -> None:
    counts: dict[int, torch.Size] = {}
    for group in groups:
        axis = group["axis"]
        for p in group["params"] if axis is not None else ():
            known = isinstance(axis, int) and not isinstance(axis, bool)
            if not known or not -p.dim() <= axis < p.dim():
                cure = f"an integer below {p.dim()}" if p.dim() else "None"
                msg = (
                    f"axis must be an axis of a parameter of shape {tuple(p.shape)}, "
                    f"or None for constants, got {axis!r}; give {cure}"
                )
                raise ValueError(msg)
            if p.shape[axis] == 0:
                msg = (
                    f"a parameter of shape {tuple(p.shape)} holds no neuron along the "
                    f"axis {axis}; give modules of at least one hidden unit"
                )
                raise ValueError(msg)
            counts.setdefault(p.shape[axis], p.shape)
    if len(counts) > 1:
        shown = ", ".join(f"{n} in {tuple(shape)}" for n, shape in counts.items())
        msg = (
            f"the parameters have different numbers of neurons, {shown}; give the axis "
            f'of the neurons in each group, {{"axis": 1}} for the weight of an outer '
            f"Linear"
        )
        raise ValueError(msg)
