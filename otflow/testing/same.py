"""Whether two results are the same to the bit, whatever they are made of."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from otflow.measures import Measure

__all__ = ["assert_same"]


def assert_same(a: Any, b: Any, *, but: Collection[str] = (), at: str = "it") -> None:
    """Raise AssertionError, which says where, unless a and b are equal to the bit.

    Tensors, arrays, numbers (NaN equals NaN), measures, trajectories, certificates,
    mappings, sequences and any object with attributes are compared part by part.

    Parameters
    ----------
    a, b : object
        What to compare.
    but : collection of str
        Attributes of `a` and `b` themselves that may differ.
    at : str
        Name of the two in the message.

    Raises
    ------
    AssertionError
        If a part differs.

    Examples
    --------
    >>> import torch, otflow as of
    >>> mu = of.Particles(torch.ones(2, 1))
    >>> of.testing.assert_same(mu, of.Particles(torch.ones(2, 1)))
    """
    assert type(a) is type(b), f"{at}: {type(a).__name__} and {type(b).__name__}"
    if isinstance(a, Tensor):
        same = a.dtype == b.dtype and a.device == b.device and a.shape == b.shape
        assert same, f"{at}: {a.dtype} {tuple(a.shape)}, {b.dtype} {tuple(b.shape)}"
        nans = a.isnan() & b.isnan() if a.is_floating_point() else None
        equal = a == b if nans is None else (a == b) | nans
        assert bool(equal.all()), f"{at}: {int((~equal).sum())} entries differ"
    elif isinstance(a, float):
        both_nan = math.isnan(a) and math.isnan(b)
        assert both_nan or a == b, f"{at}: {a!r} and {b!r}"
    elif isinstance(a, Mapping):
        assert list(a) == list(b), f"{at}: keys {list(a)} and {list(b)}"
        for key in a:
            assert_same(a[key], b[key], at=f"{at}[{key!r}]")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), f"{at}: lengths {len(a)} and {len(b)}"
        for k, (one, two) in enumerate(zip(a, b, strict=True)):
            assert_same(one, two, at=f"{at}[{k}]")
    elif isinstance(a, Measure):
        _same_parts(_state(a), _state(b), (), at)
    elif hasattr(a, "tolist"):
        assert a.dtype == b.dtype, f"{at}: {a.dtype} and {b.dtype}"
        assert_same(torch.tensor(a.copy()), torch.tensor(b.copy()), at=at)
    elif (
        hasattr(a, "__dict__") and type(a).__module__ != "builtins" and not callable(a)
    ):
        _same_parts(vars(a), vars(b), but, at)
    else:
        assert a is b or a == b, f"{at}: {a!r} and {b!r}"


def _state(mu: Measure) -> dict[str, Any]:
    """Return what defines a measure, without what it computes on first use."""
    state: dict[str, Any] = mu.__getstate__()
    return {name: held for name, held in state.items() if name[0] != "_"}


def _same_parts(
    a: Mapping[str, Any], b: Mapping[str, Any], but: Collection[str], at: str
) -> None:
    for name in sorted({*a, *b} - {*but}):
        if name[0] != "_":
            assert {name} <= {*a} & {*b}, f"{at}.{name}: on one side only"
            assert_same(a[name], b[name], at=f"{at}.{name}")
