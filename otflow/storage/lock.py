"""A file that one process at a time holds; it is free again when the process ends."""

from __future__ import annotations

import errno
import os
import sys
import weakref
from contextlib import suppress
from pathlib import Path

from otflow.errors import DirectoryInUse

__all__ = ["Lock", "forget"]

# What a system says of a file that another one holds.
HELD = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)

if sys.platform == "win32":
    import msvcrt

    def _take(handle: int) -> None:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)

    def _free(handle: int) -> None:
        msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)
else:
    import fcntl

    def _take(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _free(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_UN)


class Lock:
    """Holds a file for this object alone.

    The system frees the file when the process ends, however it ends. So no lock
    outlives a kill. A process that is forked meanwhile holds nothing.

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
            self._handle = None
            if error.errno not in HELD:
                raise  # as from a file system without locks
            msg = (
                f"another flow writes to {path.parent}; wait for its end, or take "
                f"another directory"
            )
            raise DirectoryInUse(msg) from error

        _ALIVE.add(self)

    @property
    def held(self) -> bool:
        """Whether this process holds the file still."""
        return self._handle is not None

    def release(self) -> None:
        """Free the file."""
        if self._handle is not None:
            # A process that was forked shares the handle: closing it is not enough.
            with suppress(OSError):
                _free(self._handle)
        self._close()

    def _close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


_ALIVE: weakref.WeakSet[Lock] = weakref.WeakSet()


def forget() -> None:
    """Close the locks of the parent in a process that was forked from it.

    The child shares them: open there, they would hold when the parent has ended, and
    freed there, they would be free in the parent.
    """
    for lock in list(_ALIVE):
        lock._close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget)
