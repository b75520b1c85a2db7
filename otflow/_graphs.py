"""Graphs of tensors: whether they are kept, what they lead to, who may write."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable
from functools import lru_cache, wraps
from operator import attrgetter
from types import MemberDescriptorType
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from otflow.errors import InvalidFunctional, ModifiedInPlace, Unsupported

__all__ = [
    "Immutable",
    "alias",
    "attached",
    "differentiating",
    "keep_assigned_immutable",
    "keep_fields_immutable",
    "keep_immutable",
    "kept",
    "leaf",
    "only_without_mass",
    "recording",
    "records",
    "refuse_graph",
    "value_of",
    "with_value",
    "without_counters",
]


# Prefix of the attributes that hold the counters of writes into a measure's tensors.
_COUNTER = "_writes_into_"
# How often a tensor was written into. A comprehension would cost a frame each time.
_VERSION = attrgetter("_version")
T = TypeVar("T")
P = ParamSpec("P")


class _Mode(threading.local):
    detached = False
    only_without_mass = False


_MODE = _Mode()


class differentiating:
    """Record gradients; those of parameters too if asked. See `recording`.

    It is on the path of every step, so it is lean.
    """

    __slots__ = ("before", "parameters")

    def __init__(self, *, parameters: bool) -> None:
        self.parameters = parameters

    def __enter__(self) -> None:
        self.before = torch.is_grad_enabled(), _MODE.detached
        if not self.before[0]:
            torch.set_grad_enabled(True)
        _MODE.detached = _MODE.detached or not self.parameters

    def __exit__(self, *_: object) -> None:
        if not self.before[0]:
            torch.set_grad_enabled(False)
        _MODE.detached = self.before[1]


class only_without_mass:
    """Ask, in this context, only for derivatives in the places of atoms without mass.

    A distance has these derivatives even where its potentials have no others.
    """

    def __enter__(self) -> None:
        _MODE.only_without_mass = True

    def __exit__(self, *_: object) -> None:
        _MODE.only_without_mass = False

    @staticmethod
    def active() -> bool:
        """Return whether only these derivatives are asked for."""
        return _MODE.only_without_mass


def recording() -> bool:
    """Return whether graphs of parameters, such as those of a kernel, are wanted.

    They are not wanted for a gradient in the measure whose graph is not kept: so
    training and flows do not pay for them.
    """
    return torch.is_grad_enabled() and not _MODE.detached


def records(*tensors: Tensor) -> bool:
    """Return whether the result of an operation on these tensors carries a graph."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor.requires_grad:
                return True
    return False


def leaf(x: Tensor) -> Tensor:
    """Return a detached alias of `x` that records gradients."""
    return x.detach().requires_grad_()


def alias(x: Tensor) -> Tensor:
    """Return `x` as a variable of its own, in the graph of `x` if `x` has one.

    The derivative in it is partial: it does not pass through other tensors computed
    from `x`, such as weights that depend on the points.
    """
    return x.view_as(x) if x.requires_grad else leaf(x)


def with_value(z: Tensor, value: Tensor) -> Tensor:
    """Return `z` with another value, equal up to round-off, and the graph of `z`.

    Clipping what round-off adds would set derivatives to 0.
    """
    return z + (value - z).detach()


def attached(value: Any, tensors: Iterable[Tensor]) -> Any:
    """Return a value in the graphs of tensors on which it need not depend.

    Its derivative in a tensor that it does not see is 0, and no error.
    """
    live = [tensor for tensor in tensors if records(tensor)]
    if not live or not isinstance(value, Tensor):
        return value
    return value + 0.0 * sum(tensor.sum() for tensor in live)


def kept(function: Callable[P, T]) -> Callable[P, T]:
    """Keep the tensors that a function makes, for further calls with equal arguments.

    Autograd cannot use a tensor that was made in ``torch.inference_mode()``. So the
    tensors are made outside of that mode, whoever asks first.
    """

    @wraps(function)
    def make(*args: P.args, **options: P.kwargs) -> T:
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **options)

    return cast("Callable[P, T]", lru_cache(maxsize=32)(make))


def refuse_graph(what: str, why: str, *tensors: Tensor, cure: str) -> None:
    """Raise `Unsupported` if a graph on one of the tensors would be lost."""
    if records(*tensors):
        msg = f"{what} would lose a graph: {why}; use {cure}"
        raise Unsupported(msg)


def value_of(mu: Any, value: Callable[[Any], T], *, by: str = "the functional") -> T:
    """Return a value at a measure; one that writes into its tensors raises."""
    tensors = mu.tensors()
    before = _versions(tensors)
    try:
        answer = value(mu)
    except ModifiedInPlace:
        if before == _versions(tensors):
            raise
    else:
        if before == _versions(tensors):
            return answer
    msg = f"{by} modified the measure in place; work on a copy: mu.points.clone()"
    raise InvalidFunctional(msg)


def _versions(tensors: tuple[Tensor, ...]) -> list[int]:
    try:
        return list(map(_VERSION, tensors))
    except RuntimeError:  # tensors of torch.inference_mode() have no counter
        return []


class Immutable:
    """An attribute that holds a tensor; it raises `ModifiedInPlace` after a write.

    Measures share the tensors that a step does not change, so a write would change all
    of them in silence. Torch counts the writes into a tensor and its views.
    """

    def __init__(self, name: str) -> None:
        self.name, self.counter = name, _COUNTER + name

    def __set__(self, owner: Any, tensor: Tensor) -> None:
        state = owner.__dict__
        state[self.name] = tensor
        try:
            state[self.counter] = tensor._version
        except RuntimeError:  # tensors of torch.inference_mode() have no counter
            state[self.counter] = 0

    def __get__(self, owner: Any, kind: type) -> Any:
        # This is on the path of every access: the good case comes first.
        if owner is None:  # to a dataclass, a default that the field does not have
            raise AttributeError(self.name)
        state = owner.__dict__
        try:
            tensor = state[self.name]
            if state[self.counter] == tensor._version:
                return tensor
        except (KeyError, RuntimeError):
            return self._ask_first(owner)
        msg = (
            f"the {self.name} of {kind.__name__} were modified in place; a measure is "
            f"immutable and shares its tensors with others: write into a copy, "
            f"mu.{self.name}.clone(), and make a new measure of it"
        )
        raise ModifiedInPlace(msg)

    def _ask_first(self, owner: Any) -> Any:
        """Return a tensor without a counter: that of a copy or an unpickled measure."""
        state = owner.__dict__
        if self.name not in state:
            raise AttributeError(self.name)
        if self.counter not in state:
            self.__set__(owner, state[self.name])
        return state[self.name]


class _Beside(Immutable):
    """The same, beside tensors that say the same, such as centres beside edges.

    They cost time at each access: name no more than are needed.
    """

    def __init__(self, name: str, others: str) -> None:
        super().__init__(name)
        self.others = tuple((other, _COUNTER + other) for other in others.split())

    def __get__(self, owner: Any, kind: type) -> Any:
        # The good case first, as above, and without a call of another function.
        try:
            state = owner.__dict__
            tensor = state[self.name]
            if state[self.counter] == tensor._version:
                for other, counter in self.others:
                    if state[counter] != state[other]._version:
                        break
                else:
                    return tensor
        except (AttributeError, KeyError, RuntimeError):
            pass
        return self._look(owner, kind)

    def _look(self, owner: Any, kind: type) -> Any:
        """Return the tensor, or tell of a write; counters may be missing."""
        tensor = super().__get__(owner, kind)
        state = owner.__dict__
        for other, counter in self.others:
            if counter in state and state[counter] != _version_of(state[other]):
                getattr(owner, other)  # which tells of the write
        return tensor


def _version_of(tensor: Tensor) -> int:
    try:
        return tensor._version
    except RuntimeError:  # tensors of torch.inference_mode() have no counter
        return 0


def keep_immutable(kind: type[Any], *names: str, **beside: str) -> None:
    """Make these attributes raise `ModifiedInPlace` after a write into them.

    A name with others `beside` it, separated by spaces, says the same as they: to ask
    for it tells of a write into one of them.
    """
    for name in names:
        setattr(kind, name, Immutable(name))
    for name, others in beside.items():
        setattr(kind, name, _Beside(name, others))


def keep_fields_immutable(kind: type[Any]) -> None:
    """Make the attributes that a class annotates as tensors immutable.

    The slots of a class become attributes, where writes are counted.
    """
    own = vars(kind)
    for name, annotation in inspect.get_annotations(kind).items():
        free = name not in own or isinstance(own[name], MemberDescriptorType)
        if free and annotation in (Tensor, "Tensor", "torch.Tensor"):
            keep_immutable(kind, name)


def keep_assigned_immutable(owner: Any, name: str, value: Any) -> None:
    """Make a public attribute immutable that is about to be given its first tensor."""
    if isinstance(value, Tensor) and not name.startswith("_"):
        kinds = type(owner).__mro__
        if not any(name in vars(kind) for kind in kinds):
            keep_immutable(type(owner), name)


def without_counters(state: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes of a measure without its counters of writes."""
    return {
        name: value for name, value in state.items() if not name.startswith(_COUNTER)
    }
