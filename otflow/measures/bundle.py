"""An immutable bundle of tensors: its copies, its moves, its graph and its pickle."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Self, final

import torch
from torch import Tensor

from otflow._graphs import (
    keep_assigned_immutable,
    keep_fields_immutable,
    refuse_graph,
    without_counters,
)
from otflow._moving import Move, move_of
from otflow.measures.moving import carried

__all__ = ["Bundle"]


class Bundle(ABC):  # a measure has abstract verbs
    """What holds tensors as attributes, and is never changed: the base of measures.

    Tensors among its attributes are moved, copied, detached and pickled, also those of
    bundles that it holds, alone or in a tuple.

    Attributes
    ----------
    dtype : torch.dtype
        Floating-point type of the tensors.

    Examples
    --------
    >>> import torch, otflow as of
    >>> from otflow.measures.bundle import Bundle
    >>> isinstance(of.Particles(torch.zeros(1, 1)), Bundle)
    True
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    if TYPE_CHECKING:

        @property
        def dtype(self) -> torch.dtype: ...

    def __init_subclass__(cls, **options: Any) -> None:
        """Let tensors of a representation of your own raise after a write into them."""
        super().__init_subclass__(**options)
        keep_fields_immutable(cls)

    if not TYPE_CHECKING:  # it would allow any attribute

        def __setattr__(self, name: str, value: Any) -> None:
            keep_assigned_immutable(self, name, value)
            super().__setattr__(name, value)

    def detach(self) -> Self:
        """Return the same measure without the graph of its tensors.

        Nothing is copied. A measure without a graph is returned itself.

        Examples
        --------
        >>> import torch, otflow as of
        >>> x = torch.ones(3, 2, requires_grad=True)
        >>> of.Particles(x).detach().points.requires_grad
        False
        """
        if any(tensor.requires_grad for tensor in _tensors_in(self._held())):
            return self.map_tensors(Tensor.detach)
        return self

    @final
    def to(self, *place: Any, dtype: Any = None, device: Any = None) -> Self:
        """Return the same measure in another dtype or on another device.

        The arguments are those of ``Tensor.to``: a dtype, a device, both, or a tensor
        or measure that has them. Graphs stay. What follows from other tensors, such as
        the centres of cells, is computed again in the new dtype.

        From float32 to float64 the weights are renormalised. In float32 they sum to 1
        to about 1e-7 only, in float64 to round-off: equal weights become 1/n, others
        are divided by their sum, which counts as a constant in derivatives. From
        float64 to float32 each weight is rounded, and the sum is 1 to round-off of
        float32; a mass below 1e-45 becomes 0. Weights that are no probability, such as
        those of `with_free_atoms`, are never renormalised.

        Parameters
        ----------
        *place
            A dtype, a device, both, or a tensor or a measure that has them.
        dtype, device : optional
            The same by name.

        Returns
        -------
        Measure
            Of the same kind; itself if nothing changes.

        Raises
        ------
        ValueError
            If the dtype is a half precision, or float32 cannot hold the measure: points
            are too large, quantiles coincide, a covariance becomes singular.
        TypeError
            If the dtype is not real floating-point, or the device holds no numbers.

        Examples
        --------
        >>> import torch, otflow as of
        >>> mu = of.Particles(torch.zeros(3, 2)).to(torch.float64)
        >>> mu, float(mu.weights.sum())
        (Particles(n=3, d=2, dtype=float64, device=cpu), 1.0)
        """
        return self.carry(move_of(*place, dtype=dtype, device=device))

    def carry(self, move: Move) -> Self:
        """Return the measure after a move: what `to` does.

        By default every attribute is moved, and then replaced by that of `_retyped`.
        """
        return carried(self, move)

    @final
    def clone(self) -> Self:
        """Return the same measure, with its graph, in tensors of its own.

        A moved measure shares the tensors that did not change, such as weights. A clone
        shares nothing.

        Examples
        --------
        >>> import torch, otflow as of
        >>> mu = of.Particles(torch.zeros(3, 2))
        >>> mu.clone().points.data_ptr() == mu.points.data_ptr()
        False
        """
        return self.map_tensors(Tensor.clone)

    @final
    def refuse_graph(self, what: str, why: str, cure: str) -> None:
        """Raise `Unsupported` if a tensor of this measure carries a graph.

        A verb calls it before it would lose the graph.

        Parameters
        ----------
        what, why : str
            What would lose the graph, and why.
        cure : str
            What to use in its place.
        """
        refuse_graph(what, why, *_tensors_in(self._held()), cure=cure)

    @final
    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Return the same measure with each tensor replaced; nothing is checked.

        Parameters
        ----------
        change : callable
            Takes a tensor of the measure to the tensor that replaces it.

        Returns
        -------
        Measure
            Of the same kind.

        Examples
        --------
        >>> import torch, otflow as of
        >>> mu = of.Particles(torch.zeros(3, 2)).map_tensors(torch.Tensor.double)
        >>> mu.dtype
        torch.float64
        """
        new = object.__new__(type(self))
        new._hold(**{k: _mapped(v, change) for k, v in self._attributes().items()})
        return new

    def _retyped(self, before: Self, move: Move) -> dict[str, Any]:
        """Return the attributes that follow from others, after a change of dtype.

        It raises ValueError if the new dtype cannot hold the measure.
        """
        return {}

    def _hold(self, **attributes: Any) -> None:
        """Set the attributes of the measure; from then on it is immutable."""
        for name, value in attributes.items():
            object.__setattr__(self, name, value)

    def _changed(self, **attributes: Any) -> Self:
        """Return a copy with these attributes replaced; nothing is checked."""
        new = object.__new__(type(self))
        for name in _field_names(type(self)):
            value = attributes[name] if name in attributes else getattr(self, name)
            object.__setattr__(new, name, value)
        return new

    def _held(self) -> list[Any]:
        """Return what the attributes hold, slots and counters of writes too."""
        held = list(vars(self).values())
        for name in _slots(type(self)):
            held.append(getattr(self, name, None))
        return held

    def _attributes(self) -> dict[str, Any]:
        """Return all attributes, slots too, without the counters of writes."""
        # A copy has new counters: a tensor that was written into must raise here.
        names = (*without_counters(vars(self)), *_slots(type(self)))
        return {name: getattr(self, name) for name in names if hasattr(self, name)}

    def __getstate__(self) -> Any:
        return self._attributes()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._hold(**state)  # writes are counted from now on


def _tensors_in(held: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among attributes, those of measures held and of tuples too."""
    for value in held:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Bundle):
            yield from _tensors_in(value._held())
        elif isinstance(value, tuple):
            yield from _tensors_in(value)


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return an attribute with its tensors replaced, see `_tensors_in`."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Bundle):
        return value.map_tensors(change)
    if type(value) is tuple:
        return tuple(_mapped(part, change) for part in value)
    return value


@lru_cache
def _field_names(kind: type[Any]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


@lru_cache
def _slots(kind: type) -> tuple[str, ...]:
    return tuple(s for k in kind.__mro__ for s in getattr(k, "__slots__", ()))
