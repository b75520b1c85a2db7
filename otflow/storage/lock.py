"""A file that one process at a time holds; it is free again when the process ends."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from otflow.errors import DirectoryInUse

__all__ = ["Lock"]

if sys.platform == "win32":
    import msvcrt

    def _take(handle: int) -> None:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _take(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


class Lock:
    """Holds a file for this object alone.

    The system frees the file when the process ends, however it ends. So no lock
    outlives a kill.

    Parameters
    ----------
    path : Path
        The file. It stays when the lock is released.

    Raises
    ------
    DirectoryInUse
        If it is held already, by this process too.
    OSError
        If it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._handle: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _take(self._handle)
        except OSError as error:
            os.close(self._handle)
            msg = (
                f"another flow writes to {path.parent}; wait for its end, or take "
                f"another directory"
            )
            raise DirectoryInUse(msg) from error

    def release(self) -> None:
        """Free the file."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
