"""The order of the tutorials: by their number, 9 before 10."""

from __future__ import annotations

from pathlib import Path

__all__ = ["ByNumber"]


class ByNumber:
    """Sort key of ``plot_NUMBER_name.py``."""

    def __init__(self, src_dir: str) -> None:
        self.src_dir = src_dir

    def __call__(self, filename: str) -> tuple[int, str]:
        """Return the number and the name."""
        name = Path(filename).name
        return int(name.split("_")[1]), name

    def __repr__(self) -> str:
        return "<ByNumber>"
