"""The round-off inside of a function, made visible."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from math import comb, sqrt
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

__all__ = ["Shaken", "roughness", "shaken"]

T = TypeVar("T")

# Operations that move numbers, or change their sign, and round nothing.
EXACT = frozenset(
    [
        "_to_copy",
        "abs",
        "amax",
        "amin",
        "arange",
        "broadcast_tensors",
        "cat",
        "clamp",
        "clamp_max",
        "clamp_min",
        "clone",
        "constant_pad_nd",
        "copy",
        "copy_",
        "detach",
        "diag_embed",
        "diagonal_backward",
        "empty",
        "empty_like",
        "empty_strided",
        "expand_copy",
        "eye",
        "fill",
        "fill_",
        "flip",
        "full",
        "full_like",
        "gather",
        "index",
        "index_select",
        "lift_fresh",
        "linspace",
        "max",
        "masked_fill",
        "masked_select",
        "maximum",
        "min",
        "minimum",
        "neg",
        "new_empty",
        "new_empty_strided",
        "new_full",
        "new_ones",
        "new_zeros",
        "ones",
        "ones_like",
        "relu",
        "repeat",
        "roll",
        "scalar_tensor",
        "select_backward",
        "set_",
        "sgn",
        "sign",
        "slice_backward",
        "sort",
        "stack",
        "take",
        "threshold",
        "threshold_backward",
        "topk",
        "tril",
        "triu",
        "unfold_backward",
        "where",
        "zero_",
        "zeros",
        "zeros_like",
    ]
)
# Differences of this order, of so many values at steps of this share of a segment: a
# smooth function adds 0.0019^6 = 5e-17 of its size. A power of two as step might be a
# multiple of the grain of single precision, which then rounds all values alike.
ORDER, VALUES, STEP = 6, 13, 0.0019
# Where on the segment: kinks are often half way.
PLACE = 0.618


class Shaken(TorchDispatchMode):  # type: ignore[no-untyped-call]
    r"""A mode that multiplies results of operations by :math:`1 + u\varepsilon`.

    Here :math:`|u| \le 1` is random, and the operands of sums are multiplied too.
    This is Monte Carlo arithmetic. What changes in the answer is its round-off, to
    first order, in the dtype in which each operation is computed: a cancellation of
    large terms shows, and so does a cast to single precision. Derivatives are shaken
    if they are taken within. See :cite:t:`parker2000monte`.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seed, self.generators = seed, dict[torch.device, torch.Generator]()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Else torch loads its compiler, in two seconds, at the first operation.
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        is_exact, copies, writes, sums = _kind(func)
        if is_exact and not (copies and _narrows(args, options)):
            return func(*args, **options)
        if sums:
            args = tree_map_only(Tensor, self.shake, args)
        out = func(*args, **options)
        if writes:
            # The caller keeps the operand that was written to.
            tree_map_only(Tensor, lambda y: y.copy_(self.shake(y)), out)
            return out
        if isinstance(out, Tensor):
            return self.shake(out)
        return tree_map_only(Tensor, self.shake, out)

    def shake(self, y: Tensor) -> Tensor:
        """Return a tensor with other last places; integers as they are."""
        if not (y.is_floating_point() or y.is_complex()) or not y.numel():
            return y
        if y.layout != torch.strided:
            return y
        device = y.device
        if device not in self.generators:
            generator = torch.Generator(device)
            self.generators[device] = generator.manual_seed(self.seed)
        real = y.real if y.is_complex() else y
        eps = torch.finfo(y.dtype).eps
        places = torch.empty_like(real).uniform_(
            -eps, eps, generator=self.generators[device]
        )
        return torch.addcmul(y, y, places.to(y.dtype))


@cache
def _kind(func: Any) -> tuple[bool, bool, bool, bool]:
    """Return whether an operation is exact, copies, writes to operands, and sums."""
    schema = func._schema
    aliases = [result.alias_info for result in schema.returns]
    writes = any(info is not None and info.is_write for info in aliases)
    name = schema.name.split("::")[-1]
    is_exact = name in EXACT or (any(aliases) and not writes)
    sums = not is_exact and not writes and torch.Tag.pointwise not in func.tags
    return is_exact, name in ("_to_copy", "copy_"), writes, sums


def _narrows(args: tuple[Any, ...], options: Mapping[str, Any]) -> bool:
    """Return whether a copy has fewer digits than the original."""
    tensors = [x for x in args if isinstance(x, Tensor)]
    new = options.get("dtype") or tensors[0].dtype
    old = tensors[-1].dtype
    if not (new.is_floating_point and old.is_floating_point):
        return False
    return bool(torch.finfo(new).eps > torch.finfo(old).eps)


def shaken(function: Callable[[Tensor], T], x: Tensor, seed: int) -> T:
    """Return a function of x whose operations are shaken.

    A function that takes no other last places, as one that asks for exact equality, is
    evaluated as it is.
    """
    # Errors of any kind may come from within a function of the user.
    with suppress(Exception), Shaken(seed):
        return function(x)
    return function(x)


def roughness(
    function: Callable[[Tensor], Tensor], low: Tensor, high: Tensor
) -> Tensor:
    r"""Return how far a function is from smooth on a short part of a segment.

    The largest sixth difference, divided by the root of the sum of the squares of its
    coefficients: independent errors of the size e give about e. So are seen those of
    operations that are not torch's.
    """
    places = (PLACE + STEP * (k - VALUES // 2) for k in range(VALUES))
    values = torch.stack([function(torch.lerp(low, high, s)) for s in places])
    size = sqrt(comb(2 * ORDER, ORDER))
    return values.diff(ORDER, dim=0).abs().amax(0) / size
