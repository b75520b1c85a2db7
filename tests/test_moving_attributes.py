"""`to` finds the tensors of a functional wherever an object of Python keeps them."""

from __future__ import annotations

from collections import ChainMap, OrderedDict, UserList, defaultdict, deque
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import pytest
import torch

import otflow as of
from otflow.errors import Unsupported
from otflow.testing.clouds import normal

F32, F64 = torch.float32, torch.float64


class Two(NamedTuple):
    x: Any
    y: Any


class Slotted:
    __slots__ = ("__weakref__", "x")

    def __init__(self, x):
        self.x = x


class Single:
    __slots__ = "x"  # noqa: PLC0205  (one name without a tuple)

    def __init__(self, x):
        self.x = x


KEEP = {
    "tuple": (lambda t: (t, 1), lambda k: k[0]),
    "named tuple": (lambda t: Two(t, 1), lambda k: k.x),
    "list": (lambda t: [t], lambda k: k[0]),
    "set": (lambda t: {t}, lambda k: next(iter(k))),
    "frozenset": (lambda t: frozenset([t]), lambda k: next(iter(k))),
    "deque": (lambda t: deque([t], maxlen=3), lambda k: k[0]),
    "dict": (lambda t: {"x": t}, lambda k: k["x"]),
    "ordered": (lambda t: OrderedDict(x=t), lambda k: k["x"]),
    "default": (lambda t: defaultdict(list, x=t), lambda k: k["x"]),
    "proxy": (lambda t: MappingProxyType({"x": t}), lambda k: k["x"]),
    "chain of dicts": (lambda t: ChainMap({"x": t}), lambda k: k["x"]),
    "user's list": (lambda t: UserList([t]), lambda k: k[0]),
    "namespace": (lambda t: SimpleNamespace(x=t), lambda k: k.x),
    "slots": (Slotted, lambda k: k.x),
    "one slot": (Single, lambda k: k.x),
    "nested": (lambda t: [{"x": (Slotted(t),)}], lambda k: k[0]["x"][0].x),
}


class Keeper(of.Functional):
    def __init__(self, kept):
        self.kept = kept

    def value(self, mu):
        return mu.expectation(lambda x: x.sum(-1))


@pytest.mark.parametrize("way", KEEP)
def test_a_tensor_moves_wherever_it_is_kept(way):
    keep, read = KEEP[way]
    c = normal(2)
    F = Keeper(keep(c))
    low: Any = F.to(F32)
    assert read(low.kept).dtype == F32
    assert type(low.kept) is type(F.kept)
    assert read(F.kept) is c  # the original stays
    assert F.to(F64) is F
    assert Keeper(keep(3)).to(F32).kept is not None


def test_a_container_stays_what_it_was():
    default: Any = Keeper(defaultdict(list, x=normal(2))).to(F32)
    assert default.kept["missing"] == []
    short: Any = Keeper(deque([normal(2)], maxlen=3)).to(F32)
    assert short.kept.maxlen == 3


@pytest.mark.parametrize("way", KEEP)
def test_a_tensor_that_a_function_reaches_is_found(way):
    keep, read = KEEP[way]
    kept = keep(normal(2))
    F = of.Potential(lambda x: (x - read(kept)).square().sum(-1))
    assert F.to(F64) is F
    with pytest.raises(Unsupported, match=r"^V is a function that holds "):
        F.to(F32)


@dataclass(eq=False, slots=True)
class InASlot(of.Functional):
    c: torch.Tensor

    def value(self, mu):
        return mu.expectation(lambda x: (x - self.c).square().sum(-1))


@dataclass(frozen=True, eq=False, slots=True)
class Frozen(of.Functional):
    c: torch.Tensor

    def value(self, mu):
        return mu.expectation(lambda x: (x - self.c).square().sum(-1))


class OfTheClass(of.Functional):
    c: ClassVar[torch.Tensor] = normal(2)

    def value(self, mu):
        return mu.expectation(lambda x: (x - self.c).square().sum(-1))


class Inherited(OfTheClass):
    pass


class Replaced(OfTheClass):
    c = None  # type: ignore[assignment]

    def value(self, mu):
        return mu.expectation(lambda x: x.square().sum(-1))


@pytest.mark.parametrize(
    "make", [lambda: InASlot(normal(2)), lambda: Frozen(normal(2)), Inherited]
)
def test_slots_and_tensors_of_the_class_move(make):
    F, cloud = make(), of.Particles(normal(4, 2))
    low: Any = F.to(F32)
    assert low.c.dtype == F32
    assert F.c.dtype == F64 == OfTheClass.c.dtype
    assert low.to(F64).c.dtype == F64
    torch.testing.assert_close(
        low.velocity(cloud.to(F32)).to(F64), F.velocity(cloud), rtol=1e-5, atol=1e-5
    )


def test_what_a_child_puts_in_its_place_counts():
    F = Replaced()
    assert F.to(F32) is F


SHIFT = normal(2)
HOLDER = Slotted(SHIFT)


class FromOutside(of.Functional):
    def value(self, mu):
        return mu.expectation(lambda x: (x - SHIFT).square().sum(-1))


class FromAStaticMethod(of.Functional):
    @staticmethod
    def ground(x):
        return (x - HOLDER.x).square().sum(-1)

    def value(self, mu):
        return mu.expectation(self.ground)


class Caller:
    """An object whose method reads a tensor from outside."""

    def __call__(self, x):
        return (x - SHIFT).square().sum(-1)


CALLER = Caller()


class FromAClass(of.kernels.Kernel):
    def __call__(self, z):
        return (z - OfTheClass.c).square().sum(-1)


@pytest.mark.parametrize(
    ("F", "what"),
    [
        (FromOutside(), r"FromOutside\.value is a function that holds SHIFT, "),
        (
            FromAStaticMethod(),
            r"FromAStaticMethod\.ground is a function that holds x, ",
        ),
        (FromAClass(), r"FromAClass\.__call__ is a function that holds c, "),
        (of.Potential(CALLER), r"Caller\.__call__ is a function that holds SHIFT, "),
        (
            of.Potential(lambda x: CALLER(x)),
            "V is a function that holds SHIFT, ",
        ),
        (2 * FromOutside(), r"FromOutside\.value is a function"),
    ],
    ids=["value", "static", "kernel", "called", "function", "multiple"],
)
def test_what_a_method_reads_from_outside_is_named(F, what):
    assert F.to(F64) is F
    with pytest.raises(Unsupported, match=f"^{what}.*hold its tensors as attributes"):
        F.to(F32)
    assert InASlot(SHIFT).to(F32).c.dtype == F32  # the cure: an attribute


def test_what_an_init_reads_from_outside_moves_as_an_attribute():
    class Mine(of.Functional):
        def __init__(self):
            self.c = SHIFT

        def value(self, mu):
            return mu.expectation(lambda x: (x - self.c).square().sum(-1))

    assert Mine().to(F32).c.dtype == F32


class Shaped(of.Measure):
    """A user's measure: a shape that the class holds, and a place of its own."""

    shape: ClassVar[torch.Tensor] = normal(4, 2)

    def __init__(self, place):
        self.place = place

    @property
    def points(self):
        return self.place + self.shape

    @property
    def weights(self):
        return self.place.new_full((4,), 0.25)

    def push(self, tangent, dt):
        raise NotImplementedError

    value_and_position_gradient = inner = displacement_to = push  # type: ignore[assignment]


class Outside(Shaped):
    @property
    def points(self):
        return self.place + self._moved()

    def _moved(self):
        return SHIFT


def test_what_the_class_of_a_measure_holds_moves_too():
    mu = Shaped(torch.zeros(2, dtype=F64))
    low = mu.to(F32)
    assert (low.points.dtype, low.shape.dtype) == (F32, F32)
    assert Shaped.shape.dtype == F64
    assert mu.to(F64) is mu
    assert "cures" not in vars(low)
    assert low.expectation(lambda x: x.sum(-1)).dtype == F32
    with pytest.raises(Unsupported, match=r"^Outside\._moved is a function that holds"):
        Outside(torch.zeros(2, dtype=F64)).to(F32)
