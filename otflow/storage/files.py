"""One file: tensors by safetensors, the rest as JSON in its header, a checksum."""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from otflow._lazy import lazy_import
from otflow._paths import check_folder
from otflow.errors import CorruptFile
from otflow.storage.codec import Reader, encode
from otflow.storage.tensors import Shelf

__all__ = ["checksum_of", "read", "replace", "write"]

FORMAT = "otflow"
# The number rises when an older reader could not make sense of a file.
VERSION = 1


def write(path: Path, thing: Any) -> None:
    """Write a file as a whole or not at all."""
    check_folder(path)
    shelf = Shelf()
    tree = json.dumps(encode(thing, shelf, type(thing).__name__), allow_nan=False)
    head = {"format": FORMAT, "version": str(VERSION), "tree": tree}
    head["checksum"] = checksum_of(tree, shelf.tensors)
    replace(path, lazy_import("safetensors.torch").save(shelf.tensors, metadata=head))


def replace(path: Path, data: bytes) -> None:
    """Write bytes beside their place, sync them, and rename."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise
    _sync_folder(path.parent)


def read(
    path: Path, *, types: Iterable[type] | None = (), device: str | None = None
) -> Any:
    """Return what a file holds; raise CorruptFile if it is not what was written."""
    reader = Reader(types, device)
    tensors_of = lazy_import("safetensors.torch").load
    broken = lazy_import("safetensors").SafetensorError
    data = path.read_bytes()
    try:
        tensors = tensors_of(data)
        length = int.from_bytes(data[:8], "little")
        head = json.loads(data[8 : 8 + length]).get("__metadata__", {})
        kind, tree, checksum = (head.get(k) for k in ("format", "tree", "checksum"))
    except (broken, ValueError, KeyError, AttributeError, TypeError) as error:
        msg = f"{path} is no file of otflow, or it was cut: {error!s:.80}"
        if data.startswith(b"PK"):  # the archive that torch.save writes
            msg = f"{path} is no file of otflow.save; read it by torch.load"
        raise CorruptFile(msg) from error
    if kind != FORMAT or not isinstance(tree, str):
        msg = f"{path} holds tensors, but not of otflow; read it with safetensors"
        raise CorruptFile(msg)
    if head.get("version") != str(VERSION):
        msg = (
            f"{path} is of version {head.get('version')} of the format and this otflow "
            f"reads {VERSION}; read it with the otflow that wrote it"
        )
        raise CorruptFile(msg)
    if checksum != checksum_of(tree, tensors):
        msg = f"{path} was damaged: its checksum is not that of its content"
        raise CorruptFile(msg)
    try:
        return reader.decode(json.loads(tree), tensors)
    except CorruptFile as error:
        error.add_note(f"in {path}")
        raise


def checksum_of(tree: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the CRC-32 of the JSON and of all entries of the tensors."""
    number = zlib.crc32(tree.encode())
    for key in sorted(tensors):
        x = tensors[key]
        number = zlib.crc32(f"{key} {x.dtype} {tuple(x.shape)}".encode(), number)
        number = zlib.crc32(x.reshape(-1).numpy().data, number)
    return f"{number:08x}"


def _sync_folder(folder: Path) -> None:
    """Make a renaming last through a loss of power, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
