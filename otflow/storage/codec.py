"""Objects as a tree of JSON beside named tensors, and back; no code is run."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterable, Mapping
from enum import Enum
from types import NoneType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from otflow._validation import check_kind
from otflow.errors import CorruptFile, OtflowError, Unsupported
from otflow.storage.classes import held_names, made_of, spare_names
from otflow.storage.tensors import Shelf, taken

__all__ = ["Reader", "encode"]

# The key of a node that is no plain JSON.
TAG = "$"
# Python reads longer integers as text only if it is told to.
LONGEST = 10_000  # bits
CURE = (
    "keep numbers, text, tensors, measures, and lists, dicts, dataclasses of these; "
    "make functionals and schemes, which are code, anew in your script"
)


def encode(thing: Any, shelf: Shelf, at: str = "it") -> Any:
    """Return JSON for an object; its tensors go to the shelf.

    Parameters
    ----------
    thing : object
        Tensors, arrays, numbers, strings, None, lists, tuples, mappings, dataclasses
        and named tuples of these; so measures, certificates and runs.
    shelf : Shelf
        Receives the tensors.
    at : str
        Where the object stands, for messages.

    Returns
    -------
    object
        What `Reader.decode` takes back.

    Raises
    ------
    Unsupported
        If a part is no data, as a function, or a tensor that no file holds, or if the
        parts are nested too deeply, as those of a list that holds itself.
    """
    for kinds, write in _WRITERS:
        if isinstance(thing, kinds):
            return write(thing, shelf, at)
    with shelf.level(at):
        return _parts(thing, shelf, at)


def _parts(thing: Any, shelf: Shelf, at: str) -> Any:
    """Return JSON for an object that is made of others."""
    kind = type(thing)
    names = held_names(thing)
    if names is not None:
        held = {
            name: encode(getattr(thing, name), shelf, f"{at}.{name}") for name in names
        }
        node = {TAG: "object", **_home(kind), "is": held}
        also = _beside(thing, names, shelf, at)
        return {**node, "also": also} if also else node
    for kinds, write in _CONTAINERS:
        if isinstance(thing, kinds):
            return write(thing, shelf, at)
    what = "this object" if at == kind.__name__ else at
    msg = f"{what} is of class {kind.__name__}, which no file holds: {CURE}"
    raise Unsupported(msg)


def _beside(
    thing: Any, names: Collection[str], shelf: Shelf, at: str
) -> dict[str, Any]:
    """Return JSON for the attributes beside the fields."""
    also = {}
    for name in spare_names(thing, names):
        try:
            also[name] = encode(getattr(thing, name), shelf, f"{at}.{name}")
        except Unsupported:
            # What is no data may be made anew from the fields, and only so.
            if not hasattr(thing, "__post_init__"):
                raise
    return also


def _plain(thing: Any, _: Shelf, __: str) -> Any:
    return thing


def _int(thing: int, _: Shelf, at: str) -> Any:
    if thing.bit_length() > LONGEST:
        msg = f"{at} is an integer of {thing.bit_length()} bits, which no file holds"
        msg += "; keep it as text in hexadecimal, hex(n)"
        raise Unsupported(msg)
    return thing


def _enum(thing: Any, shelf: Shelf, at: str) -> Any:
    value = encode(thing.value, shelf, f"{at}.value")
    return {TAG: "enum", **_home(type(thing)), "is": value}


def _float(thing: Any, _: Shelf, __: str) -> Any:
    return thing if math.isfinite(thing) else {TAG: "float", "is": repr(thing)}


def _tensor(thing: Any, shelf: Shelf, at: str) -> Any:
    return {TAG: "tensor", **shelf.put(thing, at)}


def _array(thing: Any, shelf: Shelf, at: str) -> Any:
    masked = isinstance(thing, np.ma.MaskedArray)
    if thing.dtype.kind not in "biuf" or thing.dtype.itemsize > 8 or masked:
        msg = f"{at} is an array of {thing.dtype}, which no file holds: {CURE}"
        raise Unsupported(msg)
    kind = "array" if isinstance(thing, np.ndarray) else "number"
    x = torch.from_numpy(np.array(thing, dtype=thing.dtype.newbyteorder("=")))
    return {TAG: kind, **shelf.put(x, at)}


def _dtype(thing: Any, _: Shelf, __: str) -> Any:
    return {TAG: "dtype", "is": str(thing).removeprefix("torch.")}


def _device(thing: Any, _: Shelf, __: str) -> Any:
    return {TAG: "device", "is": str(thing)}


def _mapping(thing: Any, shelf: Shelf, at: str) -> Any:
    pairs = [
        [encode(k, shelf, at), encode(v, shelf, f"{at}[{k!r}]")]
        for k, v in thing.items()
    ]
    return {TAG: "dict", "is": pairs}


def _list(thing: Any, shelf: Shelf, at: str) -> Any:
    return [encode(v, shelf, f"{at}[{k}]") for k, v in enumerate(thing)]


def _tuple(thing: Any, shelf: Shelf, at: str) -> Any:
    return {TAG: "tuple", "is": _list(thing, shelf, at)}


# Members of an enumeration of strings are strings, and NumPy's float64 is a float: the
# first kind that fits counts.
_WRITERS: list[tuple[Any, Any]] = [
    (Enum, _enum),
    ((bool, str, NoneType), _plain),
    ((np.ndarray, np.generic), _array),
    (int, _int),
    (float, _float),
    (Tensor, _tensor),
    (torch.dtype, _dtype),
    (torch.device, _device),
]
# Certificates are mappings, and named tuples are tuples: these come after their names.
_CONTAINERS: list[tuple[Any, Any]] = [
    (Mapping, _mapping),
    (list, _list),
    (tuple, _tuple),
]


def _home(kind: type) -> dict[str, str]:
    return {"class": kind.__qualname__, "module": kind.__module__}


class Reader:
    """Makes objects of the tree of a file.

    Only classes of otflow, and those that the caller names, are made. Their fields are
    set; no function that a file names is called.

    Parameters
    ----------
    types : iterable of type or None
        The caller's own classes. With None an object of an unknown class becomes a dict
        of its fields.
    device : str, optional
        Where to put the tensors.
    """

    def __init__(
        self, types: Iterable[type] | None = (), device: str | None = None
    ) -> None:
        self.types = [_checked(kind) for kind in types or ()]
        self.closed = types is not None
        self.device = device
        self.tensors: Mapping[str, Tensor] = {}
        self._taken: dict[str, Tensor] = {}

    def decode(self, tree: Any, tensors: Mapping[str, Tensor]) -> Any:
        """Return the object of a file: its JSON and its tensors."""
        self.tensors, self._taken = tensors, {}
        try:
            return self._made(tree)
        except (RecursionError, MemoryError) as error:
            msg = f"the file asks for more than there is: {error!r:.80}"
            raise CorruptFile(msg) from error

    def _made(self, node: Any) -> Any:
        """Return the object of a node."""
        if isinstance(node, list):
            return [self._made(part) for part in node]
        if not isinstance(node, dict):
            return node
        try:
            make = getattr(self, f"_make_{node[TAG]}", None)
            if make is not None:
                return make(node)
        except (OtflowError, RecursionError, MemoryError):
            raise
        except Exception as error:
            # A note that otflow never writes may fail in any way.
            msg = f"the entry {node!r:.80} of the file has no meaning: {error!r:.80}"
            raise CorruptFile(msg) from error
        msg = f"the file has an entry of unknown kind, {node!r:.80}; it may be newer"
        raise CorruptFile(msg)

    def _make_float(self, node: Any) -> float:
        return float(node["is"])

    def _make_tensor(self, node: Any) -> Tensor:
        # Equal notes give one tensor: what was shared is shared.
        note = repr(sorted(node.items()))
        if note not in self._taken:
            self._taken[note] = taken(node, self.tensors, self.device)
        return self._taken[note]

    def _make_array(self, node: Any) -> Any:
        return taken(node, self.tensors, "cpu").numpy()

    def _make_number(self, node: Any) -> Any:
        return taken(node, self.tensors, "cpu").numpy()[()]

    def _make_dtype(self, node: Any) -> torch.dtype:
        dtype = getattr(torch, str(node["is"]))
        check_kind(dtype, torch.dtype, "a dtype of the file")
        return dtype  # type: ignore[no-any-return]

    def _make_device(self, node: Any) -> torch.device:
        return torch.device(node["is"] if self.device is None else self.device)

    def _make_dict(self, node: Any) -> dict[Any, Any]:
        return {self._made(k): self._made(v) for k, v in node["is"]}

    def _make_tuple(self, node: Any) -> tuple[Any, ...]:
        return tuple(self._made(part) for part in node["is"])

    def _make_enum(self, node: Any) -> Any:
        kind = self._kind(node)
        if not issubclass(kind, Enum):
            msg = f"{kind.__name__} is no enumeration"
            raise CorruptFile(msg)
        return kind(self._made(node["is"]))

    def _make_object(self, node: Any) -> Any:
        held = {str(name): self._made(part) for name, part in node["is"].items()}
        try:
            kind = self._kind(node)
        except Unsupported:
            if self.closed:
                raise
            return held
        also = node.get("also", {})
        spare = {str(name): self._made(part) for name, part in also.items()}
        return made_of(kind, held, spare)

    def _kind(self, node: Any) -> type:
        """Return the class of a node: the caller's, or one that otflow has loaded."""
        name, module = str(node["class"]), str(node["module"])
        for kind in self.types:
            if (kind.__module__, kind.__qualname__) == (module, name):
                return kind
        if module.partition(".")[0] == "otflow":
            found = getattr(sys.modules.get(module), name, None)
            if isinstance(found, type) and found.__module__ == module:
                return found
            msg = (
                f"the file holds a {name} of {module}, which this version of otflow "
                f"does not have; read it with the version that wrote it"
            )
            raise CorruptFile(msg)
        # A class of a script has another module where it is imported.
        alike = [kind for kind in self.types if kind.__qualname__ == name]
        if len(alike) == 1:
            return alike[0]
        msg = (
            f"the file holds a {name} of the module {module}, and load makes no class "
            f"that it is not told; hand it over: load(path, types=[{name}])"
        )
        raise Unsupported(msg)


def _checked(kind: type) -> type:
    check_kind(kind, type, "an entry of types", cure="e.g. types=[MyMeasure]")
    return kind
