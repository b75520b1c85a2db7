"""Objects as a tree of JSON beside named tensors, and back; no code is run."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from types import NoneType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from otflow._validation import check_kind
from otflow.errors import CorruptFile, OtflowError, Unsupported
from otflow.measures import Measure
from otflow.storage.tensors import Shelf, taken

__all__ = ["Reader", "data_classes", "encode"]

# The key of a node that is no plain JSON.
TAG = "$"
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
        If a part is no data, as a function, or a tensor that no file holds.
    """
    for kinds, write in _WRITERS:
        if isinstance(thing, kinds):
            return write(thing, shelf, at)
    names = _names(thing)
    if names is not None:
        held = {
            name: encode(getattr(thing, name), shelf, f"{at}.{name}") for name in names
        }
        return {TAG: "object", **_home(type(thing)), "is": held}
    for kinds, write in _CONTAINERS:
        if isinstance(thing, kinds):
            return write(thing, shelf, at)
    kind = type(thing).__name__
    what = "this object" if at == kind else at
    msg = f"{what} is of class {kind}, which no file holds: {CURE}"
    raise Unsupported(msg)


def _names(thing: Any) -> list[str] | None:
    """Return the names of what a dataclass, measure or named tuple holds, or None."""
    if is_dataclass(thing) and not isinstance(thing, type):
        return [field.name for field in fields(thing)]
    if isinstance(thing, Measure):
        return sorted(thing.__getstate__())
    names = getattr(thing, "_fields", None) if isinstance(thing, tuple) else None
    return None if names is None else list(names)


def _plain(thing: Any, _: Shelf, __: str) -> Any:
    return thing


def _enum(thing: Any, _: Shelf, __: str) -> Any:
    return {TAG: "enum", **_home(type(thing)), "is": thing.value}


def _float(thing: Any, _: Shelf, __: str) -> Any:
    return thing if math.isfinite(thing) else {TAG: "float", "is": repr(thing)}


def _tensor(thing: Any, shelf: Shelf, at: str) -> Any:
    return {TAG: "tensor", **shelf.put(thing, at)}


def _array(thing: Any, shelf: Shelf, at: str) -> Any:
    if thing.dtype.kind not in "biuf":
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
    ((np.ndarray, np.generic), _array),
    ((bool, int, str, NoneType), _plain),
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
        self.types = {_own_name(kind): kind for kind in types or ()}
        self.closed = types is not None
        self.device = device
        self.tensors: Mapping[str, Tensor] = {}
        self._taken: dict[str, Tensor] = {}

    def decode(self, tree: Any, tensors: Mapping[str, Tensor]) -> Any:
        """Return the object of a file: its JSON and its tensors."""
        self.tensors, self._taken = tensors, {}
        return self._made(tree)

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
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            if isinstance(error, OtflowError):
                raise
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
        return kind(node["is"])

    def _make_object(self, node: Any) -> Any:
        held = {str(name): self._made(part) for name, part in node["is"].items()}
        try:
            kind = self._kind(node)
        except Unsupported:
            if self.closed:
                raise
            return held
        if issubclass(kind, tuple) and hasattr(kind, "_fields"):
            _check_names(kind, held, list(kind._fields), [])
            return kind(**held)
        if not _holds_data(kind):
            msg = f"{kind.__name__} holds no data that a file could set"
            raise CorruptFile(msg)
        thing: Any = object.__new__(kind)
        if is_dataclass(kind):
            # A field that is newer than the file has its default.
            spare = {f.name: f for f in fields(kind) if _has_default(f)}
            _check_names(kind, held, [f.name for f in fields(kind)], list(spare))
            for name in spare.keys() - held.keys():
                held[name] = _default(spare[name])
        for name, value in held.items():
            object.__setattr__(thing, name, value)
        if isinstance(thing, Measure):
            _check_measure(thing)
        elif hasattr(thing, "__post_init__"):
            thing.__post_init__()
        return thing

    def _kind(self, node: Any) -> type:
        """Return the class of a node: the caller's, or one that otflow has loaded."""
        name, module = str(node["class"]), str(node["module"])
        for known in (f"{module}.{name}", name):
            if known in self.types:
                return self.types[known]
        if module.partition(".")[0] == "otflow":
            found = getattr(sys.modules.get(module), name, None)
            if isinstance(found, type) and found.__module__ == module:
                return found
            msg = (
                f"the file holds a {name} of {module}, which this version of otflow "
                f"does not have; read it with the version that wrote it"
            )
            raise CorruptFile(msg)
        msg = (
            f"the file holds a {name} of the module {module}, and load makes no class "
            f"that it is not told; hand it over: load(path, types=[{name}])"
        )
        raise Unsupported(msg)


def data_classes() -> list[Any]:
    """Return the classes of otflow that hold data: measures, dataclasses and so on."""
    found: set[type] = set()
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "otflow":
            kinds = (k for k in vars(module).values() if isinstance(k, type))
            found.update(k for k in kinds if k.__module__ == name and _holds_data(k))
    return sorted(found, key=lambda kind: f"{kind.__module__}.{kind.__qualname__}")


def _holds_data(kind: type) -> bool:
    named = issubclass(kind, tuple) and hasattr(kind, "_fields")
    return is_dataclass(kind) or issubclass(kind, (Measure, Enum)) or named


def _own_name(kind: type) -> str:
    check_kind(kind, type, "an entry of types", cure="e.g. types=[MyMeasure]")
    return kind.__qualname__


def _check_names(
    kind: type, held: Mapping[str, Any], names: list[str], spare: list[str]
) -> None:
    unknown = sorted(held.keys() - set(names))
    missing = sorted(set(names) - held.keys() - set(spare))
    if unknown or missing:
        what = f"unknown fields {unknown}" if unknown else f"no {missing}"
        msg = (
            f"the {kind.__name__} of the file has {what}; it was damaged, or written "
            f"by another version"
        )
        raise CorruptFile(msg)


def _has_default(field: Any) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def _default(field: Any) -> Any:
    return field.default if field.default is not MISSING else field.default_factory()


def _check_measure(mu: Measure) -> None:
    """Raise CorruptFile unless the arrays are those of a measure."""
    x, w, kind = mu.points, mu.weights, type(mu).__name__
    if x.ndim != 2 or w.shape != x.shape[:1] or x.dtype != w.dtype or not len(w):
        what = f"points {tuple(x.shape)} {x.dtype}, weights {tuple(w.shape)} {w.dtype}"
    elif x.dtype not in (torch.float32, torch.float64):
        what = f"points of {x.dtype}"
    elif not bool(x.isfinite().all() & w.isfinite().all()):
        what = "points or weights that are not finite"
    elif bool((w < 0).any()) or abs(float(w.double().sum()) - 1) > 1e-3:
        what = f"weights that are negative or of sum {float(w.double().sum()):g}, not 1"
    else:
        return
    msg = f"the file holds a {kind} with {what}: it was damaged or changed"
    raise CorruptFile(msg)
