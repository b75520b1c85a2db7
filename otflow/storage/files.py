"""One file: tensors by safetensors, the rest as JSON in its header, a checksum."""

from __future__ import annotations

import json
import os
import secrets
import stat
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from otflow._lazy import lazy_import
from otflow._paths import check_folder
from otflow.errors import CorruptFile
from otflow.storage.codec import Reader, encode
from otflow.storage.tensors import Shelf, aligned

__all__ = ["checksum_of", "read", "replace", "write"]

FORMAT = "otflow"
# The number rises when an older reader could not make sense of a file.
VERSION = 1
# How text that is no JSON, or other JSON, fails.
UNREADABLE = (ValueError, KeyError, AttributeError, TypeError, RecursionError)


def write(path: Path, thing: Any, *, unless_there: bool = False) -> None:
    """Write a file as a whole or not at all.

    With `unless_there` a file that holds the same already is left as it is.
    """
    check_folder(path)
    shelf = Shelf()
    tree = json.dumps(encode(thing, shelf, type(thing).__name__), allow_nan=False)
    head = {"format": FORMAT, "version": str(VERSION), "tree": tree}
    head["checksum"] = checksum_of(tree, shelf.tensors)
    if unless_there and _stands(path, head):
        return
    replace(path, lazy_import("safetensors.torch").save(shelf.tensors, metadata=head))


def _stands(path: Path, head: dict[str, str]) -> bool:
    try:
        return _head(path.read_bytes()) == head
    except (FileNotFoundError, *UNREADABLE):
        return False


def replace(path: Path, data: bytes) -> None:
    """Write bytes beside their place, sync them, and rename.

    The file that a link points to is replaced, not the link. The new file has the
    permissions of the old one.
    """
    path = Path(os.path.realpath(path))
    beside = path.with_name(f".{path.name:.40}.{secrets.token_hex(4)}")
    try:
        with beside.open("xb") as file:
            with suppress(OSError):
                beside.chmod(stat.S_IMODE(path.stat().st_mode))
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
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
        tensors = aligned(tensors_of(data))
        head = _head(data)
        kind, tree, checksum = (head.get(k) for k in ("format", "tree", "checksum"))
    except (broken, *UNREADABLE) as error:
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
        content = json.loads(tree)
    except UNREADABLE as error:
        msg = f"{path} holds text that is no JSON: {error!s:.80}"
        raise CorruptFile(msg) from error
    try:
        return reader.decode(content, tensors)
    except CorruptFile as error:
        error.add_note(f"in {path}")
        raise


def _head(data: bytes) -> dict[str, str]:
    """Return the metadata in the header of a file of safetensors."""
    length = int.from_bytes(data[:8], "little")
    head: dict[str, str] = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    return head


def checksum_of(tree: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the CRC-32 of the JSON and of all entries of the tensors."""
    number = zlib.crc32(tree.encode())
    for key in sorted(tensors):
        x = tensors[key]
        number = zlib.crc32(f"{key} {x.dtype} {tuple(x.shape)}".encode(), number)
        number = zlib.crc32(x.reshape(-1).view(torch.uint8).numpy().data, number)
    return f"{number:08x}"


def _sync_folder(folder: Path) -> None:
    """Make a renaming last through a loss of power, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
