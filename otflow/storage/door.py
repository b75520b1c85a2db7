"""What users call: save and load, a file or a directory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from otflow._paths import a_path
from otflow.storage.directory import read_run
from otflow.storage.files import read, write

__all__ = ["load", "save"]


def save(path: str | os.PathLike[str], thing: Any) -> None:
    """Write a measure, a run, a certificate or a scheme's state to a file.

    The file holds tensors, in the format safetensors, and JSON; no code, so it is safe
    to read. It appears as a whole or not at all: it is written beside its place, synced
    and renamed.

    Parameters
    ----------
    path : str or path
        The file. An existing one is replaced and keeps its permissions; of a link the
        file that it points to is replaced.
    thing : object
        A measure, `Trajectory`, `Certificate`, `Bookmark`; a tensor, array, number or
        string; a dataclass, named tuple, enumeration, list, tuple or dict of these.

    Raises
    ------
    Unsupported
        If a part is no data, as a function, or carries a graph, or holds itself.
    TypeError
        If the path is no path.
    ImportError
        If safetensors is missing (extra ``store``).
    OSError
        From the file system, as for a full disk or a missing folder. What was there
        before stays.

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
    cure = "the path comes first: write save(path, thing)"
    write(a_path(path, "path", cure=cure), thing)


def load(
    path: str | os.PathLike[str],
    *,
    types: Iterable[type] = (),
    device: str | None = None,
    strict: bool = True,
) -> Any:
    """Read what `save` has written, or the run in a directory of checkpoints.

    Parameters
    ----------
    path : str or path
        A file, or the ``checkpoint`` directory of a flow.
    types : iterable of type, optional
        Classes of your own that occur in the file: measures, or dataclasses of a
        scheme's state. No other class is made, and no code of a file is run. A class
        is known by its name and module, or by its name where one class has it.
    device : str, optional
        Where to put the tensors; by default where they were.
    strict : bool
        Of a directory: whether a damaged checkpoint raises. With False the checkpoint
        before it is read.

    Returns
    -------
    object
        What was saved, equal to the bit.

    Raises
    ------
    ForeignDirectory
        If the path is a directory that holds no run.
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
    path = a_path(path, "path", cure="name a file, or the `checkpoint` of a flow")
    if path.is_dir():
        return read_run(path, types=types, device=device, strict=strict)
    return read(path, types=types, device=device)
