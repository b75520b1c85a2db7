"""Which public objects have their page at the top level of the package."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

__all__ = ["at_the_top"]


def at_the_top(package: ModuleType) -> set[str]:
    """Return the full names of objects that `package` itself holds under their name.

    The object decides, not the name: ``otflow.kernels.Gaussian`` is another class than
    ``otflow.Gaussian``.
    """
    found = set()
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if info.name.rsplit(".", 1)[-1].startswith("_"):
            continue
        module = importlib.import_module(info.name)
        found |= {
            f"{info.name}.{name}"
            for name in getattr(module, "__all__", ())
            if getattr(package, name, None) is getattr(module, name)
        }
    return found
