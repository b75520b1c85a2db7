"""Paths that users give: typed errors with a cure."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from otflow._validation import shown

__all__ = ["a_path", "check_folder"]


def a_path(value: Any, name: str, *, cure: str = "") -> Path:
    """Return a path; what is neither text nor a path raises TypeError."""
    if not isinstance(value, (str, os.PathLike)):
        hint = f"; {cure}" if cure else ""
        msg = f"{name} must be a path, got {shown(value)}{hint}"
        raise TypeError(msg)
    return Path(value)


def check_folder(path: Path) -> None:
    """Raise FileNotFoundError if there is no folder for a new file."""
    if not path.parent.is_dir():
        msg = f"there is no folder {path.parent} for {path.name}; make it first"
        raise FileNotFoundError(msg)
