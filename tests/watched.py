"""Certificates that know whether anyone asked if the step converged."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["Watched", "inside_a_flow"]

FLAGS = {"converged", "certified", "guarantee"}


class Watched(dict):
    """A certificate; `asked` says whether one of its flags was read."""

    def __init__(self, certificate: Any) -> None:
        super().__init__(certificate)
        self.asked = False

    def __getitem__(self, key: str) -> Any:
        """Return an entry, and note that it was read."""
        self.asked = self.asked or key in FLAGS
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """Return an entry, and note that it was read."""
        self.asked = self.asked or key in FLAGS
        return super().get(key, default)

    @property
    def is_taken_for_a_solution(self) -> bool:
        """Whether the step did not converge and nobody asked."""
        return not self.asked and not super().get("converged", True)


def inside_a_flow() -> bool:
    """Return whether a scheme of otflow is what called."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("otflow.schemes"):
            return True
        frame = frame.f_back
    return False
