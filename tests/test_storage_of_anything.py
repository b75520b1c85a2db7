"""All kinds of data and of damage: equal to the bit, or an error of otflow."""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
import stat
from dataclasses import InitVar, dataclass, field
from enum import Enum, Flag
from functools import cached_property
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import otflow as of
from otflow.errors import CorruptFile, ModifiedInPlace, Unsupported
from otflow.storage import files
from otflow.testing import assert_same
from tests.test_resume import flown
from tests.test_storage import MEASURES, there_and_back

safetensors = pytest.importorskip("safetensors.torch")

F64 = torch.float64
FLOATS = [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
WHOLE = [torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16]


# ---- tensors -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*FLOATS, *WHOLE, torch.int32, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3)])
def test_all_types_of_numbers_come_back(dtype, shape, tmp_path):
    x = torch.arange(6.0)[: max(1, int(np.prod(shape)))]
    x = x[: int(np.prod(shape))].reshape(shape).to(dtype)
    again = there_and_back(x, tmp_path)
    assert (again.dtype, again.shape) == (x.dtype, x.shape)
    assert torch.equal(
        again.reshape(-1).view(torch.uint8), x.reshape(-1).view(torch.uint8)
    )


def test_bits_of_nan_and_of_minus_zero_come_back(tmp_path):
    bits = torch.tensor([0x7FF8000000000123, -1, -(2**63)])
    again = there_and_back(bits.view(F64), tmp_path)
    assert torch.equal(again.view(torch.int64), bits)


def views():
    x = torch.arange(24.0, dtype=F64).reshape(4, 6)
    z = torch.complex(x, x + 1)
    return {
        "rows apart": x[::2],
        "columns apart": x[:, ::3],
        "columns": x[:, 1:3],
        "transposed and apart": x.T[::2],
        "one of many": x.reshape(-1)[::23],
        "overlapping": x.reshape(-1).unfold(0, 3, 1),
        "expanded": x[:1, :].expand(5, 6),
        "expanded and apart": x[:1, ::2].expand(5, 3),
        "imaginary": z.imag,
        "of a conjugate": z.conj().imag,
        "diagonal": x.diagonal(),
        "flipped": x.flip(0),
    }


@pytest.mark.parametrize("name", views())
def test_views_come_back_to_the_bit_and_to_the_last_bit_of_their_sums(name, tmp_path):
    x = views()[name]
    again = there_and_back(x, tmp_path)
    assert torch.equal(again, x)
    if name not in ("one of many", "overlapping", "of a conjugate"):
        assert again.stride() == x.stride()
    y = 0.1 * x.clone()
    assert there_and_back(y, tmp_path).sum() == y.sum()


def test_sums_over_gaps_come_back_to_the_last_bit(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for n in (101, 1001, 5003):
        x = torch.randn(n, generator=generator, dtype=F64)[::2]
        assert there_and_back(x, tmp_path).sum() == x.sum()


def test_views_that_differ_in_sign_alone_are_not_one_tensor(tmp_path):
    z = torch.tensor([1 + 2j, 3 - 4j])
    pair = [z.imag, z.conj().imag]
    assert_same(there_and_back(pair, tmp_path), pair)


def test_what_is_read_lies_in_memory_as_tensors_of_torch_do(tmp_path):
    things = [torch.ones(n, dtype=dtype) for n in (1, 3, 70) for dtype in (F64, *WHOLE)]
    again = there_and_back(things, tmp_path)
    assert {x.data_ptr() % 64 for x in again} == {0}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.ones(2, device="meta"),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        lambda: torch.ones(2).to_sparse(),
        lambda: torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8),
        lambda: np.ma.array([1.0, 2.0], mask=[False, True]),
        lambda: np.longdouble(1.5),
        lambda: np.ones(2, np.longdouble),
        lambda: np.ones(2, np.complex128),
        lambda: np.array(["2020-01-01"], dtype="M8[D]"),
        lambda: b"bytes",
        lambda: 1j,
        lambda: {1, 2},
        lambda: torch.Generator(),
        lambda: SimpleNamespace(a=1),
        lambda: of.Particles,
        lambda: of.ExplicitEuler(),
        lambda: of.Entropy(),
    ],
)
def test_what_no_file_holds_is_refused_and_the_old_file_stays(make, tmp_path):
    path = tmp_path / "thing.safetensors"
    of.save(path, 1)
    with pytest.raises(Unsupported, match="no file"):
        of.save(path, {"a": [make()]})
    assert of.load(path) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_words_and_integers_of_all_sizes(tmp_path):
    for thing in ("\ud800", "a\0b", "é漢字", "", np.str_("x"), 2**9000, -(2**9000)):
        assert there_and_back(thing, tmp_path) == thing
    with pytest.raises(Unsupported, match=r"hex\(n\)"):
        there_and_back([2**20_000], tmp_path)
    cure = there_and_back(hex(2**20_000), tmp_path)
    assert int(cure, 16) == 2**20_000


def test_depth_ends_with_a_word(tmp_path):
    def nested(n, thing=1):
        for k in range(n):
            thing = [{"a": (thing,)}, [thing], {"b": thing}][k % 3]
        return thing

    assert there_and_back(nested(48), tmp_path) == nested(48)
    holds_itself: list[Any] = []
    holds_itself.append(holds_itself)
    for thing in (nested(400), holds_itself, {"a": [holds_itself]}):
        with pytest.raises(Unsupported, match="what holds itself"):
            of.save(tmp_path / "thing.safetensors", thing)


# ---- classes of one's own ------------------------------------------------------------


class Colour(Enum):
    PAIR = (1, 2)
    FAR = float("inf")
    NAME = "name"


class Sides(Flag):
    LEFT = 1
    RIGHT = 2


class Pair(NamedTuple):
    a: int
    b: Any = 2.0


class Doubling(Pair):
    """A named tuple whose constructor takes other arguments."""

    def __new__(cls, a):
        return super().__new__(cls, 2 * a, torch.ones(a))


@dataclass(frozen=True)
class Halving:
    """A dataclass whose constructor changes what it is given."""

    x: float

    def __post_init__(self):
        object.__setattr__(self, "x", self.x / 2)
        object.__setattr__(self, "square", self.x**2)
        object.__setattr__(self, "pairs", lambda: (self, self.x))


@dataclass
class Asking:
    x: int
    more: InitVar[int] = 3

    def __post_init__(self, more):
        self.x += more


@dataclass(frozen=True, slots=True)
class Slotted:
    x: int
    y: torch.Tensor = field(default_factory=lambda: torch.ones(2))


@dataclass(frozen=True)
class Outer(Halving):
    inner: Slotted = field(default_factory=lambda: Slotted(3))
    hidden: Any = field(default=None, repr=False, compare=False)
    derived: int = field(init=False, default=7)

    @cached_property
    def cache(self):
        return lambda: self


OWN = [Colour, Sides, Pair, Doubling, Halving, Asking, Slotted, Outer]


@pytest.mark.parametrize(
    "thing",
    [
        *Colour,
        Sides.LEFT | Sides.RIGHT,
        Pair(1),
        Pair(1, Pair(2)),
        Doubling(3),
        Halving(3.0),
        Asking(1, 4),
        Slotted(1),
        Outer(3.0, hidden={"a": Colour.PAIR}),
        {Colour.NAME: [Slotted(2)], Pair(1, 2): ()},
    ],
    ids=repr,
)
def test_classes_of_one_s_own_come_back(thing, tmp_path):
    again = there_and_back(thing, tmp_path, types=OWN)
    assert_same(again, thing)
    assert type(again) is type(thing)


def test_what_a_class_derives_is_derived_again_and_a_cache_is_not_kept(tmp_path):
    thing = Outer(3.0)
    assert thing.cache() is thing
    again = there_and_back(thing, tmp_path, types=OWN)
    assert again.square == thing.square == 2.25
    assert again.pairs()[0] is again
    assert "cache" not in vars(again)


class More(Slotted):
    """No dataclass of its own: no field tells what else it holds."""

    def __init__(self, x):
        super().__init__(x)
        object.__setattr__(self, "more", 5)


class MorePair(Pair):
    more: Any


def test_attributes_that_no_field_tells_are_kept_too(tmp_path):
    pair, thing = MorePair(1), More(3)
    pair.more = 5
    for one in (pair, thing):
        again = there_and_back(one, tmp_path, types=[More, MorePair])
        assert vars(again) == vars(one) == {"more": 5}
        assert_same(again, one)
    pair.more = print
    object.__setattr__(thing, "more", print)
    for one in (pair, thing):
        with pytest.raises(Unsupported, match=r"\.more is of class builtin_function"):
            there_and_back(one, tmp_path, types=[More, MorePair])


class Labelled(of.Particles):
    """A measure with an attribute more, and one with a slot."""

    __slots__ = ("place",)

    def __init__(self, points, labels):
        super().__init__(points)
        self._hold(labels=labels, place="here")


@pytest.mark.parametrize(
    "kept",
    [
        lambda mu, folder: there_and_back(mu, folder, types=[Labelled]),
        lambda mu, _: pickle.loads(pickle.dumps(mu)),
        lambda mu, _: copy.deepcopy(mu),
    ],
    ids=["file", "pickle", "copy"],
)
def test_a_measure_of_one_s_own_keeps_all_it_holds(kept, tmp_path):
    again = kept(Labelled(torch.rand(3, 2), torch.arange(3)), tmp_path)
    assert again.labels.tolist() == [0, 1, 2]
    assert again.place == "here"


def test_a_measure_that_was_read_is_as_immutable_as_any(tmp_path):
    F = of.Potential(lambda x: x.square().sum(-1))
    mu = there_and_back(of.Particles(torch.rand(3, 2)), tmp_path)
    mu.points.add_(1)
    with pytest.raises(ModifiedInPlace):
        F.value(mu)


def state_of(module):
    @dataclass
    class State:
        x: int

    State.__module__, State.__qualname__ = module, "State"
    return State


def test_classes_of_one_name_are_told_apart(tmp_path):
    one, two, three = map(state_of, ("one", "two", "three"))
    for types in ([one, two], [two, one]):
        assert type(there_and_back(one(1), tmp_path, types=types)) is one
    # A script is the module __main__, and another one where it is imported.
    assert type(there_and_back(one(1), tmp_path, types=[two])) is two
    with pytest.raises(Unsupported, match=r"types=\[State\]"):
        there_and_back(one(1), tmp_path, types=[two, three])


def test_a_class_of_one_s_own_does_not_take_the_place_of_otflow_s(tmp_path):
    mu = of.Particles(torch.rand(3, 2))
    same_name = state_of("mine")
    same_name.__qualname__ = "Particles"
    assert_same(there_and_back(mu, tmp_path, types=[same_name]), mu)


# ---- files ---------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_file_has_the_permissions_of_any_new_file_or_those_it_had(tmp_path):
    path = tmp_path / "x"
    for mask in (0o022, 0o077, 0o002):
        before = os.umask(mask)
        try:
            of.save(path, 1)
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
        path.unlink()
    of.save(path, 1)
    path.chmod(0o640)
    of.save(path, 2)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_link_stays_a_link_and_long_names_and_words_of_all_scripts_serve(tmp_path):
    link, target = tmp_path / "link", tmp_path / "target"
    link.symlink_to(target)
    for value in (1, 2):  # the target is made, then replaced
        of.save(link, value)
        assert link.is_symlink()
        assert of.load(target) == of.load(str(link)) == value
    for name in ("n" * 255, "漢" * 85, "a b\nc", "%s", "."[:0] + "..x"):
        of.save(tmp_path / name, name)
        assert of.load(tmp_path / name) == name
    assert len(list(tmp_path.iterdir())) == 7
    with pytest.raises(OSError, match="directory"):
        of.save(tmp_path, 1)


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
@pytest.mark.parametrize("fault", [OSError(28, "No space"), KeyboardInterrupt()])
def test_a_file_that_cannot_be_written_leaves_the_old_one(
    call, fault, tmp_path, monkeypatch
):
    path = tmp_path / "x"
    of.save(path, 1)

    def fail(*_):
        raise fault

    if call == "write":
        opened = type(path).open

        class Spoilt:
            def __init__(self, *args):
                self.file = opened(*args)

            def __enter__(self):
                return SimpleNamespace(write=self.write)

            def __exit__(self, *_):
                self.file.close()

            def write(self, data):
                self.file.write(data[: len(data) // 2])
                raise fault

        monkeypatch.setattr(type(path), "open", lambda *args: Spoilt(*args))
    else:
        monkeypatch.setattr(os, call, fail)
    with pytest.raises(type(fault)):
        of.save(path, 2)
    monkeypatch.undo()
    assert of.load(path) == 1
    assert list(tmp_path.iterdir()) == [path]


# ---- damage --------------------------------------------------------------------------


def small():
    return {"mu": of.Particles(torch.rand(2, 1)), "n": 3, "x": torch.arange(3)}


@pytest.mark.slow
def test_every_flipped_bit_and_every_cut_is_seen(tmp_path):
    path = tmp_path / "x"
    thing = small()
    of.save(path, thing)
    data = path.read_bytes()
    for at in range(len(data)):
        for bit in range(8):
            path.write_bytes(
                data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]
            )
            try:
                again = of.load(path)
            except CorruptFile:
                continue
            assert_same(again, thing)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(CorruptFile):
            of.load(path)
        path.write_bytes(data[length:] + data[:length])
        if length:
            with pytest.raises(CorruptFile):
                of.load(path)


def written(path, head, tensors):
    """Write a file of safetensors whose checksum is right."""
    head["checksum"] = files.checksum_of(head["tree"], tensors)
    path.write_bytes(safetensors.save(tensors, metadata=head))


def contents(path):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + length])
    return head, head["__metadata__"], safetensors.load(data), data[8 + length :]


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"$":' * 3000 + "1" + "}" * 3000,
        "1" * 5000,
        '{"$": "tuple", "is": [' * 3000 + "]}" * 3000,
        "{",
        "",
        "\x00",
    ],
    ids=["deep", "deep dict", "long", "deep tuples", "open", "empty", "zero"],
)
def test_a_tree_that_is_none_is_damage(text, tmp_path):
    path = tmp_path / "x"
    of.save(path, small())
    _, head, tensors, _ = contents(path)
    written(path, {**head, "tree": text}, tensors)
    with pytest.raises(CorruptFile):
        of.load(path)


def places(tree, at=()):
    yield at
    keys = list(tree) if isinstance(tree, dict) else []
    for key in range(len(tree)) if isinstance(tree, list) else keys:
        yield from places(tree[key], (*at, key))


def part_at(tree, at):
    for key in at:
        tree = tree[key]
    return tree


def tensor(**note):
    return {"$": "tensor", "key": "t0", "device": "cpu", **note}


def thing_of(kind, module, tag="object", **held):
    return {"$": tag, "class": kind, "module": module, "is": held}


ODD: list[Any] = [
    *[None, True, -1, 0, 1e308, 10**30, float("nan"), "", "cpu", "t0", "t1", "load"],
    *[[], {}, [[]], {"$": "x"}, {"$": []}, {"$": "float", "is": []}],
    {"$": "float", "is": "1e5"},
    *[{"$": "dict", "is": part} for part in ([[[], 1]], [[1]], 3, [["a", 1, 2]])],
    *[{"$": "device", "is": "x"}, {"$": "dtype", "is": "load"}],
    thing_of("Popen", "subprocess"),
    thing_of("Event", "otflow.callbacks.base"),
    thing_of("Guarantee", "otflow.proximal.certificate", "enum"),
    thing_of("Particles", "otflow.measures.particles", points=tensor()),
    *[tensor(shape=shape) for shape in ([10**14], [-5], [2**64], "x", [1.5], [])],
    *[tensor(order=order) for order in ([0, 0], [5], "01", [0.0])],
    *[tensor(stride=stride) for stride in ([10**15], ["a"], [-1], [2**70])],
    *[tensor(device=device) for device in ("meta", "mars", "cuda:99", 3)],
    {"$": "array", "key": "t0", "device": "cpu"},
    {"$": "number", "key": "t0", "device": "cpu"},
]
NAMES = ["shape", "order", "stride", "is", "$", "key", "__class__", "__dict__", "extra"]


def spoilt(tree, draw):
    """Return a tree with one part replaced, swapped, removed or added."""
    at = draw.choice([at for at in places(tree) if at])
    parent, odd = part_at(tree, at[:-1]), copy.deepcopy(draw.choice(ODD))
    how = draw.randrange(4)
    if how == 0:
        parent[at[-1]] = odd
    elif how == 1:
        parent[at[-1]] = copy.deepcopy(part_at(tree, draw.choice(list(places(tree)))))
    elif how == 2:
        del parent[at[-1]]
    elif isinstance(parent, list):
        parent.append(odd)
    else:
        parent[draw.choice(NAMES)] = odd
    return tree


KINDS = {
    **MEASURES,
    "run": lambda: flown("JKO", 2),
    "grid run": lambda: flown("finite volume", 2),
    "data": lambda: [
        *[torch.float32, torch.device("cpu"), np.float32(1), np.arange(3)],
        *[float("inf"), {1: (2,)}, of.proximal.Guarantee.EXACT, torch.rand(3, 4).T],
        *[torch.ones(1).expand(3), torch.rand(4, 6)[:, ::2]],
        of.proximal.Certificate(1.0, 0.5, entries={"a": 1}),
    ],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_tree_changed_at_random_gives_data_or_an_error_of_otflow(kind, tmp_path):
    draw, path = random.Random(kind), tmp_path / "x"
    of.save(path, KINDS[kind]())
    _, head, tensors, _ = contents(path)
    refused = 0
    for _ in range(80):
        tree = json.dumps(spoilt(json.loads(head["tree"]), draw))
        written(path, {**head, "tree": tree}, tensors)
        try:
            of.load(path)
        except (CorruptFile, Unsupported):
            refused += 1
    assert refused > 30


def test_a_header_changed_at_random_is_seen(tmp_path):
    draw, path = random.Random(0), tmp_path / "x"
    thing = small()
    of.save(path, thing)
    head, _, _, rest = contents(path)
    odd = ["F64", "BF16", "U64", "F8_E4M3", "C64", [2**62, 4], [-1], [0, 10**9], [8, 0]]
    for _ in range(300):
        new = copy.deepcopy(head)
        spots = [at for at in places(new) if at and at[0] != "__metadata__"]
        at = draw.choice(spots)
        part_at(new, at[:-1])[at[-1]] = draw.choice([*odd, *ODD])
        text = json.dumps(new).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + rest)
        try:
            again = of.load(path)
        except CorruptFile:
            continue
        assert_same(again, thing)
    for text in (b"[" * 100_000, b'{"__metadata__": []}', b"\xff", b'{"t0": NaN}'):
        path.write_bytes(len(text).to_bytes(8, "little") + text + rest)
        with pytest.raises(CorruptFile):
            of.load(path)
