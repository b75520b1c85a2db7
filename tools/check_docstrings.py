"""Check the docstring of every public object against the numpydoc rules.

An object is public when a public module lists it in ``__all__``. The rules are those of
``[tool.otflow.docstrings]`` in pyproject.toml: some hold everywhere; sections on
parameters and results, and an example, are asked of every function and class.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import tomllib
from pathlib import Path
from types import FunctionType, ModuleType

from numpydoc.docscrape import get_doc_object
from numpydoc.validate import validate

ROOT = Path(__file__).parent.parent


def public_modules(top: ModuleType) -> list[ModuleType]:
    """Return `top` and its public submodules and subpackages, sorted by name."""
    folder = Path(top.__file__ or "").parent
    names = {
        path.stem if path.suffix == ".py" else path.name
        for path in folder.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    public = sorted(name for name in names if not name.startswith("_"))
    return [top, *(importlib.import_module(f"{top.__name__}.{n}") for n in public)]


def own_methods(cls: type) -> list[str]:
    """Return the names of the public methods and properties that `cls` defines."""
    kinds = (FunctionType, classmethod, staticmethod, property)
    return [
        name
        for name, member in vars(cls).items()
        if not name.startswith("_") and isinstance(member, kinds)
    ]


def main() -> int:
    """Print one line for each fault and return the exit status."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    rules = {k: set(v) for k, v in settings["tool"]["otflow"]["docstrings"].items()}
    always = rules["always"]
    everything = always | rules["sections"] | rules["examples"]
    checked: set[int] = set()
    faults: list[str] = []

    def check(name: str, thing: object, wanted: set[str]) -> None:
        faults.extend(
            f"{name}: {code} {text}"
            for code, text in validate(get_doc_object(thing))["errors"]
            if code in wanted
        )

    for module in public_modules(importlib.import_module("otflow")):
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            if id(thing) in checked or not (
                inspect.isclass(thing) or inspect.isfunction(thing)
            ):
                continue
            checked.add(id(thing))
            path = f"{module.__name__}.{name}"
            check(path, thing, everything)
            if inspect.isclass(thing):
                for method in own_methods(thing):
                    check(f"{path}.{method}", getattr(thing, method), always)
    for fault in faults:
        print(fault)
    print(f"{len(checked)} public objects checked, {len(faults)} faults")
    return 1 if faults or not checked else 0


if __name__ == "__main__":
    sys.exit(main())
