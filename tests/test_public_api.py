"""What a user sees: the names, their documentation, the cost of the import."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import traceback
from pathlib import Path

import jinja2
import pytest

import otflow

ROOT = Path(__file__).parent.parent

SUBMODULES = [
    name for name in otflow.__all__ if inspect.ismodule(getattr(otflow, name))
]

# What `import otflow` does not load, since it needs an extra.
OPTIONAL = ["estimators"]

EXPECTED = [
    "analysis",
    "JKO",
    "KL",
    "KSD",
    "BirthDeath",
    "Blob",
    "Bookmark",
    "Congestion",
    "EnergyDistanceTo",
    "Entropy",
    "ExplicitEuler",
    "Functional",
    "Gaussian",
    "GridDensity",
    "Interaction",
    "Internal",
    "Langevin",
    "MMDTo",
    "Measure",
    "OfExpectation",
    "Particles",
    "Potential",
    "PowerEntropy",
    "Quantiles",
    "SinkhornDivergenceTo",
    "SlicedWassersteinTo",
    "SquaredDistanceTo",
    "Trajectory",
    "callbacks",
    "chain",
    "errors",
    "flow",
    "functionals",
    "kernels",
    "load",
    "meanfield",
    "measures",
    "metrics",
    "optimality",
    "plotting",
    "proximal",
    "save",
    "schemes",
    "show_versions",
    "storage",
    "testing",
]

# Packages that take long to import, and that most programs never need. torch imports
# some of them when they are installed; the question is what otflow adds.
HEAVY = [
    "geomloss",
    "imageio_ffmpeg",
    "matplotlib",
    "networkx",
    "numba",
    "ot",
    "pandas",
    "pytest",
    "safetensors",
    "scipy",
    "sklearn",
    "tensorboard",
    "tqdm",
    "xarray",
]


def namespaces(name: str = "otflow") -> list[str]:
    """Return a module and all that are public names within it, at any depth."""
    space = importlib.import_module(name)
    within = [n for n in space.__all__ if inspect.ismodule(getattr(space, n))]
    return [name, *(found for n in within for found in namespaces(f"{name}.{n}"))]


# Every namespace in which a user looks for names.
NAMESPACES = [*namespaces(), *(f"otflow.{name}" for name in OPTIONAL)]


def public_objects() -> dict[str, object]:
    """Return every public class and function under the name a user writes."""
    modules = {name: importlib.import_module(name) for name in NAMESPACES}
    return {
        f"{prefix}.{name}": getattr(module, name)
        for prefix, module in modules.items()
        for name in module.__all__
        if inspect.isclass(getattr(module, name))
        or inspect.isfunction(getattr(module, name))
    }


def test_namespaces_within_a_namespace_are_found():
    assert {"otflow.meanfield.networks", "otflow.metrics.symmetries"} < set(NAMESPACES)
    assert len(set(NAMESPACES)) == len(NAMESPACES)


def test_top_level_names():
    assert sorted(EXPECTED) == sorted(otflow.__all__)


@pytest.mark.parametrize("name", NAMESPACES)
def test_all_is_true_and_without_doubles(name):
    module = sys.modules[name]
    assert sorted(module.__all__) == sorted(set(module.__all__))
    assert [n for n in module.__all__ if not hasattr(module, n)] == []


@pytest.mark.parametrize("name", public_objects())
def test_every_public_object_has_an_example(name):
    documentation = inspect.getdoc(public_objects()[name]) or ""
    assert re.search(r"^Examples\n-{8}$", documentation, re.MULTILINE), name
    assert ">>> " in documentation, name


@pytest.mark.parametrize("name", public_objects())
def test_every_public_object_hides_its_module_of_definition_only(name):
    thing = public_objects()[name]
    assert thing.__module__.startswith("otflow."), f"{name} is not otflow's own"


@pytest.mark.parametrize("name", NAMESPACES)
def test_completion_shows_public_names_only(name):
    space = importlib.import_module(name)
    assert dir(space) == sorted(space.__all__)
    assert not [shown for shown in dir(space) if shown.startswith("_")]


@pytest.mark.parametrize("name", NAMESPACES)
def test_a_public_name_is_a_module_only_if_it_is_a_namespace(name):
    space = importlib.import_module(name)
    modules = {n for n in space.__all__ if inspect.ismodule(getattr(space, n))}
    assert {f"{name}.{module}" for module in modules} <= set(NAMESPACES)


def modules_within(space) -> set[str]:
    """Return the names of the modules that a package holds, public or not."""
    found = pkgutil.iter_modules(getattr(space, "__path__", ()))
    return {module.name for module in found if not module.name.startswith("_")}


# The one loop, and the one way to compose schemes: their modules have their names.
SAME = {"otflow": {"flow"}, "otflow.schemes": {"chain"}}


@pytest.mark.parametrize("name", NAMESPACES)
def test_no_module_is_taken_for_a_function(name):
    # "sinkhorn" would be taken for "sinkhorn_divergence", and called.
    space = importlib.import_module(name)
    functions = {n for n in space.__all__ if inspect.isfunction(getattr(space, n))}
    hidden = modules_within(space) - SAME.get(name, set())
    confused = {
        (module, function)
        for module in hidden
        for function in functions
        if function.startswith(module)
    }
    assert not confused


@pytest.mark.parametrize("name", SAME)
def test_a_function_comes_before_the_module_of_its_name(name):
    for same in SAME[name]:
        program = (
            f"import {name}, {name}.{same} as by_import\n"
            f"from {name}.{same} import {same}\n"
            f"from {name} import {same} as again\n"
            f"assert callable({name}.{same}) and callable({same})\n"
            f"assert {name}.{same} is again is {same} is by_import"
        )
        subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_a_guessed_name_is_told_with_the_public_one():
    with pytest.raises(AttributeError, match="no attribute 'sinkhorn'") as caught:
        getattr(otflow.metrics, "sinkhorn")  # noqa: B009
    shown = "".join(traceback.format_exception_only(caught.value))
    assert sys.version_info < (3, 12) or "'sinkhorn_divergence'" in shown


def modules_added(statement: str) -> list[str]:
    """Return the heavy modules that a statement loads in a fresh interpreter."""
    program = (
        "import sys, torch, numpy; before = set(sys.modules)\n"
        f"{statement}\n"
        f"print(*sorted((set(sys.modules) - before) & {set(HEAVY)!r}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert run.stderr == ""
    return run.stdout.split()


def test_the_import_is_light():
    assert modules_added("import otflow") == []


@pytest.mark.parametrize("state", ["enable", "disable"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_import_leaves_the_garbage_collector_as_it_was(state, fails):
    spoil = "sys.modules['torch'] = None" if fails else "pass"
    program = (
        f"import contextlib, gc, sys; gc.{state}(); {spoil}\n"
        "with contextlib.suppress(ImportError):\n"
        "    import otflow\n"
        "print(gc.isenabled(), 'otflow' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert run.stdout.split() == [str(state == "enable"), str(not fails)]


def test_the_list_of_heavy_modules_can_fail():
    assert "scipy" in modules_added("import scipy.sparse")


def test_the_api_pages_list_every_public_submodule():
    page = (ROOT / "docs" / "api" / "index.rst").read_text("utf-8")
    listed = re.findall(r"^   (otflow[\w.]*)$", page, re.MULTILINE)
    assert sorted(listed) == sorted(NAMESPACES)


def listed_on_pages() -> set[str]:
    """Return the full names for which the template of the API pages makes a page."""
    sys.path.insert(0, str(ROOT / "docs" / "_ext"))
    try:
        pages = importlib.import_module("pages")
    finally:
        sys.path.pop(0)
    template = (ROOT / "docs/_templates/autosummary/module.rst").read_text("utf-8")
    environment = jinja2.Environment(autoescape=False)
    environment.filters["underline"] = str
    index = (ROOT / "docs/api/index.rst").read_text("utf-8")
    found = set()
    for module in re.findall(r"^   (otflow[\w.]*)$", index, re.MULTILINE):
        names = importlib.import_module(module).__all__
        members = {name: getattr(sys.modules[module], name) for name in names}
        classes = {n: m for n, m in members.items() if inspect.isclass(m)}
        text = environment.from_string(template).render(
            fullname=module,
            classes=[n for n, m in classes.items() if not issubclass(m, Exception)],
            exceptions=[n for n, m in classes.items() if issubclass(m, Exception)],
            functions=[n for n, m in members.items() if inspect.isfunction(m)],
            at_the_top=pages.at_the_top(otflow),
        )
        found |= {f"{module}.{name}" for name in re.findall(r"^   (\w+)$", text, re.M)}
    return found


def test_every_public_object_has_one_page():
    listed = listed_on_pages()
    homes: dict[int, list[str]] = {}
    for name, thing in public_objects().items():
        homes.setdefault(id(thing), []).append(name)
    for names in homes.values():
        assert len(listed & set(names)) == 1, names
    assert {"otflow.Gaussian", "otflow.kernels.Gaussian"} <= listed


def test_no_cell_of_a_table_is_read_as_a_numbered_list():
    for page in (ROOT / "docs").glob("*.rst"):
        cells = re.findall(
            r"^ +(?:\* )?- (\(?\w{1,3}[.)]) *$", page.read_text("utf-8"), re.M
        )
        assert not cells, f"{page.name}: {cells}; write \\(2)"


def test_the_package_says_that_it_is_typed():
    assert (Path(otflow.__file__).parent / "py.typed").exists()
