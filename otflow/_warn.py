"""Warn where the user's own code called otflow, however deep the cause."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

__all__ = ["warn"]

# The standard library may stand between: `abc` makes a class whose definition warns,
# and `Mapping.get` reads an entry.
PASSED = {"otflow", *sys.stdlib_module_names}


def warn(message: str | Warning, category: type[Warning] | None = None) -> None:
    """Issue a warning at the innermost line outside otflow and the standard library.

    Python shows a `DeprecationWarning` only where it points into ``__main__``, and it
    shows a warning once for each line that it points at.
    """
    level = 2
    frame: FrameType | None = sys._getframe(1)
    while frame and frame.f_globals.get("__name__", "").split(".")[0] in PASSED:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
