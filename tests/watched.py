"""Certificates that know whether anyone asked if the step converged."""

from __future__ import annotations

import sys
from dataclasses import fields
from types import FrameType
from typing import Any

from otflow.proximal import Certificate

__all__ = ["Watched", "inside_a_flow", "watch"]

FLAGS = {"converged", "certified", "guarantee"}


class Watched(Certificate):
    """A certificate; `asked` says whether one of its flags was read."""

    asked = False

    def __getattribute__(self, name: str) -> Any:
        """Return an attribute, and note that a flag was read, but by its own module."""
        if name in FLAGS:
            reader = sys._getframe(1).f_globals["__name__"]
            if reader != Certificate.__module__:
                object.__setattr__(self, "asked", True)
        return super().__getattribute__(name)

    def __getitem__(self, key: str) -> Any:
        """Return an entry, and note that it was read."""
        if key in FLAGS:
            object.__setattr__(self, "asked", True)
        return super().__getitem__(key)

    @property
    def is_taken_for_a_solution(self) -> bool:
        """Whether the step did not converge and nobody asked."""
        return not self.asked and object.__getattribute__(self, "converged") is False


def watch(certificate: Certificate) -> Watched:
    """Return a certificate that is watched."""
    words = {f.name: getattr(certificate, f.name) for f in fields(certificate)}
    return Watched(**words)


def inside_a_flow() -> bool:
    """Return whether a scheme of otflow is what called."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("otflow.schemes"):
            return True
        frame = frame.f_back
    return False
