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
from otflow.errors import CorruptFile
from otflow.storage.codec import Reader, encode
from otflow.storage.tensors import Shelf

__all__ = ["load", "read", "save", "write"]

FORMAT = "otflow"
# The number rises when an older reader could not make sense of a file.
VERSION = 1


def save(path: str | os.PathLike[str], thing: Any) -> None:
    """Write a measure, a run, a certificate or a scheme's state to a file.

    The file holds tensors, in the format safetensors, and JSON; no code, so it is safe
    to read. It appears as a whole or not at all: it is written beside its place, synced
    and renamed.

    Parameters
    ----------
    path : str or path
        The file. An existing one is replaced.
    thing : object
        A measure, `Trajectory`, `Certificate`, `Bookmark`; a tensor, array, number or
        string; a dataclass, list, tuple or dict of these.

    Raises
    ------
    Unsupported
        If a part is no data, as a function, or carries a graph.
    ImportError
        If safetensors is missing (extra ``store``).
    OSError
        From the file system, as for a full disk. What was there before stays.

    See Also
    --------
    load : Read the file.

    Notes
    -----
    Numbers keep all their bits. Tensors that share memory are written once. Time and
    memory O(bytes).

    Examples
    --------
    >>> import tempfile, torch, otflow as of
    >>> mu = of.Particles(torch.rand(5, 2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     of.save(f"{folder}/start.safetensors", mu)
    ...     again = of.load(f"{folder}/start.safetensors")
    >>> torch.equal(again.points, mu.points)
    True
    """
    write(Path(path), thing)


def load(
    path: str | os.PathLike[str],
    *,
    types: Iterable[type] = (),
    device: str | None = None,
) -> Any:
    """Read what `save` has written, or the run in a directory of checkpoints.

    Parameters
    ----------
    path : str or path
        A file, or the ``checkpoint`` directory of a flow.
    types : iterable of type, optional
        Classes of your own that occur in the file: measures, or dataclasses of a
        scheme's state. No other class is made, and no code of a file is run.
    device : str, optional
        Where to put the tensors; by default where they were.

    Returns
    -------
    object
        What was saved, equal to the bit.

    Raises
    ------
    CorruptFile
        If the file was damaged or changed, is none of otflow's, or is of another
        version.
    Unsupported
        If the file holds a class that `types` does not name, or tensors of a device
        that is not here.
    ImportError
        If safetensors is missing (extra ``store``).
    OSError
        From the file system, as for a missing file.

    See Also
    --------
    save : Write a file.

    Examples
    --------
    >>> import tempfile, torch, otflow as of
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     of.save(f"{folder}/numbers.safetensors", {"best": 0.5, "at": torch.ones(2)})
    ...     of.load(f"{folder}/numbers.safetensors")
    {'best': 0.5, 'at': tensor([1., 1.])}
    """
    return read(Path(path), types=types, device=device)


def write(path: Path, thing: Any) -> None:
    """Write a file as a whole or not at all."""
    shelf = Shelf()
    tree = json.dumps(encode(thing, shelf, type(thing).__name__), allow_nan=False)
    head = {"format": FORMAT, "version": str(VERSION), "tree": tree}
    head["checksum"] = checksum_of(tree, shelf.tensors)
    data = lazy_import("safetensors.torch").save(shelf.tensors, metadata=head)
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


def read(path: Path, *, types: Iterable[type] = (), device: str | None = None) -> Any:
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
