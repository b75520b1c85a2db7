"""The progress bar of a flow, or nothing."""

from __future__ import annotations

from typing import Any

from otflow._lazy import lazy_import

__all__ = ["progress_bar"]


class _SilentBar:
    """Stands in for tqdm when no progress is wanted."""

    def __enter__(self) -> _SilentBar:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self) -> None:
        """Do nothing."""

    def set_postfix(self, **_: object) -> None:
        """Do nothing."""


def progress_bar(steps: int, progress: bool) -> Any:
    """Return a context: a tqdm bar, or one that does nothing."""
    return lazy_import("tqdm").tqdm(total=steps) if progress else _SilentBar()
