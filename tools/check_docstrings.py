"""Check the docstrings, own or inherited, of the whole package.

Every function, class and method without a leading underscore has a docstring; a method
that only fulfils the contract of its base inherits the base's. What a public module
lists in ``__all__`` follows the numpydoc rules of ``[tool.otflow.docstrings]`` in
pyproject.toml: some hold everywhere; sections on parameters and results, and an
example, are asked of every function and class.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
import tomllib
from enum import Enum
from pathlib import Path
from types import FunctionType, ModuleType

from numpydoc.docscrape import get_doc_object
from numpydoc.validate import validate

ROOT = Path(__file__).parent.parent


def public_modules(top: ModuleType) -> list[ModuleType]:
    """Return `top`, its public submodules and subpackages by name, and those listed."""
    folder = Path(top.__file__ or "").parent
    names = {
        path.stem if path.suffix == ".py" else path.name
        for path in folder.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    public = sorted(name for name in names if not name.startswith("_"))
    found = [importlib.import_module(f"{top.__name__}.{n}") for n in public]
    listed = [
        getattr(module, name)
        for module in found
        for name in getattr(module, "__all__", ())
        if inspect.ismodule(getattr(module, name))
    ]
    return [top, *found, *listed]


def own_methods(cls: type) -> list[str]:
    """Return the names of the public methods and properties that `cls` defines."""
    kinds = (FunctionType, classmethod, staticmethod, property)
    return [
        name
        for name, member in vars(cls).items()
        if not name.startswith("_") and isinstance(member, kinds)
    ]


def undocumented(top: ModuleType) -> list[str]:
    """Return what has no docstring, neither of its own nor inherited."""
    found = []
    for entry in pkgutil.walk_packages(top.__path__, f"{top.__name__}."):
        module = importlib.import_module(entry.name)
        if not module.__doc__:
            found.append(module.__name__)
        for name, thing in vars(module).items():
            if name.startswith("_") or getattr(thing, "__module__", "") != entry.name:
                continue
            if not inspect.isclass(thing) and not inspect.isfunction(thing):
                continue
            members = own_methods(thing) if inspect.isclass(thing) else []
            things = {name: thing} | {f"{name}.{m}": getattr(thing, m) for m in members}
            found += [f"{entry.name}.{k}" for k, v in things.items() if not doc_of(v)]
    return found


def doc_of(thing: object) -> str | None:
    """Return the docstring of a function, a class or a method, which may inherit it."""
    return thing.__doc__ if inspect.isclass(thing) else inspect.getdoc(thing)


def main() -> int:
    """Print one line for each fault and return the exit status."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    rules = {k: set(v) for k, v in settings["tool"]["otflow"]["docstrings"].items()}
    always = rules["always"]
    everything = always | rules["sections"] | rules["examples"]
    checked: set[int] = set()
    package = importlib.import_module("otflow")
    faults = [f"{name}: GL08 no docstring" for name in undocumented(package)]

    def check(name: str, thing: object, wanted: set[str]) -> None:
        faults.extend(
            f"{name}: {code} {text}"
            for code, text in validate(get_doc_object(thing))["errors"]
            if code in wanted
        )

    for module in public_modules(package):
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            if id(thing) in checked or not (
                inspect.isclass(thing) or inspect.isfunction(thing)
            ):
                continue
            checked.add(id(thing))
            path = f"{module.__name__}.{name}"
            is_enum = inspect.isclass(thing) and issubclass(thing, Enum)
            check(path, thing, everything - {"PR01"} if is_enum else everything)
            if inspect.isclass(thing):
                for method in own_methods(thing):
                    if not getattr(thing, method).__doc__:
                        continue  # inherited, and checked where it stands
                    check(f"{path}.{method}", getattr(thing, method), always)
    for fault in faults:
        print(fault)
    print(f"{len(checked)} public objects checked, {len(faults)} faults")
    return 1 if faults or not checked else 0


if __name__ == "__main__":
    sys.exit(main())
