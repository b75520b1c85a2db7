"""The architecture, enforced on the syntax trees of the sources.

Floor = what it does; folder = for which representation; one file stays a file; what all
share lies beside ``base``. Imports point down the floors, ``ROWS``; heavy or delicate
third-party modules each have one door; a name with a leading underscore stays in its
folder; every file has little code and says what it is for.
"""

from __future__ import annotations

import ast
import graphlib
import io
import re
import tokenize
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "otflow"
# Whoever uses the package from outside, as a user does.
OUTSIDE = ("tests", "tools", "demo", "benchmarks", "tutorials")

# A module imports first-party modules of the rows above its own. Modules that share a
# row, or a package, may import one another as long as no cycle arises.
ROWS = [
    {
        "errors",
        "_typing",
        "_algebra",
        "_bounds",
        "_claims",
        "_fixed",
        "_lazy",
        "_memory",
        "_missing",
        "_holding",
        "_moving",
        "_paths",
        "_progress",
        "_radial",
        "_svg",
        "_versions",
        "_warn",
        "_words",
        "_made",
        "_validation",
        "_arrays",
        "_graphs",
        "_autodiff",
        "_pairs",
        "_known",
    },
    {"numerics"},
    {"kernels"},
    {"measures"},
    {"metrics"},
    {"functionals"},
    {"optimality"},
    {"proximal"},
    {"schemes"},
    {"_views"},
    {"trajectory"},
    {"storage"},
    {"callbacks"},
    {"_snapshots", "_column", "_context", "_recorder", "_journal"},
    {"flow"},
    {"meanfield"},
    {"analysis"},
    {"plotting"},
    {"testing"},
    {"estimators"},
]
ROW = {name: depth for depth, names in enumerate(ROWS) for name in names}

MAXIMUM_CODE = 250
OPTIMAL_TRANSPORT = {"ot", "geomloss"}
DRAWING = "otflow/plotting/"
DIFFERENTIATION = ("torch.autograd", "torch.func")
DIFFERENTIATED = {"otflow/_autodiff.py", "otflow/_known.py", "otflow/_pairs.py"}
# One loads what others name; the other loads its own files when they are asked for.
UNNAMED = {"otflow/_lazy.py", "otflow/testing/__init__.py"}
IMPORTERS = {"lazy_import", "importlib.import_module", "import_module", "__import__"}


def module_name(path: str) -> str:
    """Return the dotted module name of a source path such as ``otflow/flow.py``."""
    parts = path.removesuffix(".py").split("/")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def top_name(module: str) -> str:
    """Return the row entry a first-party module belongs to: ``a.b.c`` gives ``b``."""
    return module.split(".")[1] if "." in module else ""


@lru_cache(maxsize=1)
def nodes_of(tree: ast.Module) -> tuple[ast.AST, ...]:
    """Return all nodes of a tree: the rules ask for those of one tree in a row."""
    return tuple(ast.walk(tree))


def imports(
    tree: ast.Module, path: str, modules: set[str]
) -> Iterator[tuple[ast.stmt | ast.Call, str]]:
    """Yield each import with each module that it imports.

    ``from a import b`` imports the module ``a.b`` if there is one, and else ``a``;
    ``lazy_import("a")`` imports ``a``.
    """
    package = path.split("/")[:-1]
    for node in nodes_of(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                kept = package[: len(package) - node.level + 1]
                base = ".".join([*kept, *filter(None, [base])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                external = not base.startswith("otflow")
                yield node, full if full in modules or external else base
        elif isinstance(node, ast.Call) and dotted(node.func) in IMPORTERS:
            name = node.args[0] if node.args else None
            yield node, str(name.value) if isinstance(name, ast.Constant) else "?"


@lru_cache(maxsize=1)
def inside_functions(tree: ast.Module) -> set[ast.AST]:
    """Return every node that stands inside a function."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    return {
        inner
        for node in nodes_of(tree)
        if isinstance(node, functions)
        for inner in ast.walk(node)
        if inner is not node
    }


def dotted(node: ast.AST) -> str:
    """Return ``a.b.c`` for the expression ``a.b.c``, and else the empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        prefix = dotted(node.value)
        return f"{prefix}.{node.attr}" if prefix else ""
    return ""


def is_part_of(module: str, *wholes: str) -> bool:
    """Return whether `module` is one of `wholes` or lies inside one."""
    return any(module == whole or module.startswith(f"{whole}.") for whole in wholes)


def first_party_faults(
    path: str, tree: ast.Module, modules: set[str]
) -> Iterator[tuple[int, str]]:
    """Check the direction of the imports of otflow's own modules."""
    own = top_name(module_name(path))
    local = inside_functions(tree)
    for node, target in imports(tree, path, modules):
        if not is_part_of(target, "otflow"):
            continue
        if node in local:
            yield node.lineno, f"imports {target} inside a function"
        if target == "otflow":
            if own:
                yield node.lineno, "imports from the top level of otflow"
            continue
        other = top_name(target)
        if own in {"", other}:
            continue
        if other not in ROW:
            yield node.lineno, f"imports {target}, which has no row"
        elif own in ROW and ROW[other] > ROW[own]:
            yield node.lineno, f"imports {target}, which lies below it"


def third_party_faults(
    path: str, tree: ast.Module, modules: set[str]
) -> Iterator[tuple[int, str]]:
    """Check that heavy and delicate third-party modules are used at their one door."""
    local = inside_functions(tree)
    for node, target in imports(tree, path, modules):
        root = target.split(".")[0]
        if root == "?" and path not in UNNAMED:
            yield node.lineno, "imports a module that is not named literally"
        if root in OPTIMAL_TRANSPORT:
            if not path.startswith("otflow/metrics/"):
                yield node.lineno, f"imports {root} outside metrics/"
            elif node not in local:
                yield node.lineno, f"imports {root} outside a function"
        if root in {"matplotlib", "mpl_toolkits"} and not path.startswith(DRAWING):
            yield node.lineno, f"imports {root} outside plotting/"
        if is_part_of(target, *DIFFERENTIATION) and path not in DIFFERENTIATED:
            yield node.lineno, f"imports {target} outside _autodiff.py"
    if path not in DIFFERENTIATED:
        for used in nodes_of(tree):
            if isinstance(used, ast.Attribute) and dotted(used) in DIFFERENTIATION:
                yield used.lineno, f"uses {dotted(used)} outside _autodiff.py"


def code_lines(source: str, tree: ast.Module) -> set[int]:
    """Return the numbers of the lines that hold code: no docstring, no comment."""
    prose: set[int] = set()
    for node in nodes_of(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            prose |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    silent = {
        tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE,
        tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
    }  # fmt: skip
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in silent:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return lines - prose


def form_faults(path: str, source: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Check what concerns one file alone: its length, its docstring, no printing."""
    lines, code = len(source.splitlines()), len(code_lines(source, tree))
    if code > MAXIMUM_CODE:
        yield lines, f"has {code} lines of code, more than {MAXIMUM_CODE}"
    summary = (ast.get_docstring(tree, clean=False) or "").split("\n")[0]
    if not summary.strip().endswith("."):
        yield 1, "has no docstring whose first line is a sentence on what it is for"
    for node in nodes_of(tree):
        if isinstance(node, ast.Call) and dotted(node.func) == "print":
            yield node.lineno, "prints"


def is_private(name: str) -> bool:
    """Return whether a name starts with one underscore.

    A name such as ``_repr_html_`` is a protocol of others: a notebook calls it.
    """
    return name.startswith("_") and not (name.startswith("__") or name.endswith("_"))


def private_names(tree: ast.Module) -> set[str]:
    """Return the private functions, classes, constants and attributes of a module."""
    found = set()
    for node in nodes_of(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return {name for name in found if is_private(name)}


def private_uses(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the line and the name of each private name of another object or module.

    A class may use the private names that it inherits, through ``self`` or ``cls``.
    """
    for node in nodes_of(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            inherited = isinstance(node.value, ast.Call) and dotted(node.value.func)
            if dotted(node.value) not in {"self", "cls"} and inherited != "super":
                yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom) and is_part_of(
            node.module or "", "otflow"
        ):
            yield from ((node.lineno, a.name) for a in node.names if is_private(a.name))


def private_faults(
    trees: Mapping[str, ast.Module], package: Mapping[str, ast.Module]
) -> Iterator[str]:
    """Check that private names of `package` are used in the folder that has them."""
    owners: dict[str, set[str]] = {}
    ours = {Path(path).stem for path in package if is_private(Path(path).stem)}
    for path, tree in {**package, **trees}.items():
        for name in private_names(tree):
            owners.setdefault(name, set()).add(str(Path(path).parent))
            if path in package:
                ours.add(name)
    for path, tree in trees.items():
        folder = str(Path(path).parent)
        for line, name in private_uses(tree):
            inside = path in package and f"otflow/{name}.py" in package
            if name in ours and not inside and folder not in owners.get(name, set()):
                yield f"{path}:{line}: uses {name}, which is private to another folder"


def cycle_faults(trees: Mapping[str, ast.Module], modules: set[str]) -> Iterator[str]:
    """Check that the modules of each row and of each package import without a cycle."""
    graph = {
        module_name(path): {
            target
            for _, target in imports(tree, path, modules)
            if target in modules
            and ROW.get(top_name(target)) == ROW.get(top_name(module_name(path)))
        }
        for path, tree in trees.items()
        if module_name(path) != "otflow"
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        yield "modules import in a cycle: " + " <- ".join(error.args[1])


def faults(sources: Mapping[str, str]) -> list[str]:
    """Return every breach of the architecture in `sources`, a mapping path -> text."""
    trees = {path: ast.parse(text) for path, text in sources.items()}
    modules = {module_name(path) for path in sources}
    found = [
        f"otflow/{name}: has no row in tests/test_layers.py"
        for name in sorted({top_name(module) for module in modules} - {"", *ROW})
    ]
    for path, tree in trees.items():
        rules = [
            *first_party_faults(path, tree, modules),
            *third_party_faults(path, tree, modules),
            *form_faults(path, sources[path], tree),
        ]
        found += [f"{path}:{line}: {text}" for line, text in sorted(rules)]
    return [*found, *private_faults(trees, trees), *cycle_faults(trees, modules)]


def test_the_package_keeps_its_architecture():
    sources = sources_of(PACKAGE)
    assert "otflow/__init__.py" in sources
    assert not faults(sources), "\n" + "\n".join(faults(sources))


def test_private_names_are_used_nowhere_else():
    package = {path: ast.parse(text) for path, text in sources_of(PACKAGE).items()}
    outside = [path for root in OUTSIDE for path in sources_of(ROOT / root).items()]
    assert len(outside) > 100
    trees = {path: ast.parse(text) for path, text in outside}
    found = list(private_faults(trees, package))
    assert not found, "\n" + "\n".join(found)


def test_the_picture_of_the_floors_shows_the_rows():
    picture = (ROOT / "docs" / "_static" / "floors.svg").read_text("utf-8")
    labels = re.findall(r'font-weight="bold"[^>]*>([^<]+)<', picture)
    shown = [name for label in reversed(labels) for name in label.split(", ")]
    assert shown[0] == "foundations"
    assert set(shown[1:]) == {
        name for row in ROWS[1:] for name in row if name[0] != "_"
    }
    depths = [ROW[name] for name in shown[1:]]
    assert depths == sorted(depths)


def sources_of(folder: Path) -> dict[str, str]:
    """Return the texts of the modules in a folder by their paths."""
    return {
        path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
        for path in sorted(folder.rglob("*.py"))
    }


GOOD = {
    "otflow/__init__.py": '"""All."""\nfrom otflow.flow import flow',
    "otflow/_lazy.py": (
        '"""Lazy."""\nimport importlib\n'
        "def lazy_import(name):\n    return importlib.import_module(name)"
    ),
    "otflow/errors.py": '"""Errors."""',
    "otflow/_validation.py": '"""Checks."""\nfrom otflow.errors import OtflowError',
    "otflow/_autodiff.py": '"""Gradients."""\nimport torch\ng = torch.autograd.grad',
    "otflow/kernels.py": '"""Kernels."""\nfrom otflow import errors\nimport torch',
    "otflow/measures/__init__.py": (
        '"""Measures."""\nfrom otflow.measures.base import Measure\n'
        "from .particles import Particles"
    ),
    "otflow/measures/base.py": (
        '"""Base."""\nfrom otflow.errors import OtflowError\n'
        "def _helper():\n    return 1\n"
        "class Measure:\n    def _held(self):\n        return _helper()"
    ),
    "otflow/measures/particles.py": (
        '"""Atoms."""\nfrom .base import Measure, _helper\n'
        "def total(mu):\n    return mu._held()"
    ),
    "otflow/schemes/own.py": (
        '"""A child elsewhere."""\nfrom otflow.measures import Measure\n'
        "class Child(Measure):\n"
        "    def held(self):\n        return self._held() + super()._held()"
    ),
    "otflow/metrics/__init__.py": '"""Distances."""',
    "otflow/metrics/distances.py": (
        '"""Distance."""\nfrom otflow.measures import Particles\n'
        "def plan():\n    import ot\n    return lazy_import('geomloss')"
    ),
    "otflow/flow.py": '"""Loop."""\nfrom otflow.measures.base import Measure',
    "otflow/plotting/__init__.py": '"""Figures."""\nimport matplotlib.pyplot as plt',
}

BAD = {
    "upwards": ("otflow/kernels.py", '"""K."""\nfrom otflow.flow import flow', "below"),
    "upwards, as a package": (
        "otflow/measures/base.py",
        '"""B."""\nfrom otflow import metrics',
        "below",
    ),
    "upwards, relatively": (
        "otflow/measures/base.py",
        '"""B."""\nfrom ..flow import flow',
        "below",
    ),
    "upwards, for the types": (
        "otflow/kernels.py",
        '"""K."""\nif TYPE_CHECKING:\n    import otflow.plotting',
        "below",
    ),
    "from the top level": (
        "otflow/flow.py",
        '"""F."""\nfrom otflow import Particles',
        "top level",
    ),
    "first-party inside a function": (
        "otflow/flow.py",
        '"""F."""\ndef f():\n    from otflow.measures import Measure',
        "inside a function",
    ),
    "cycle in a package": (
        "otflow/measures/base.py",
        '"""B."""\nfrom otflow.measures.particles import Particles',
        "cycle",
    ),
    "cycle through a package": (
        "otflow/measures/base.py",
        '"""B."""\nfrom otflow.measures import Particles',
        "cycle",
    ),
    "cycle in a row": (
        "otflow/errors.py",
        '"""E."""\nfrom otflow import _validation',
        "cycle",
    ),
    "no row": ("otflow/utils.py", '"""U."""', "no row"),
    "import of no row": (
        "otflow/flow.py",
        '"""F."""\nfrom otflow.utils import helper',
        "no row",
    ),
    "autograd by attribute": (
        "otflow/kernels.py",
        '"""K."""\nimport torch\ng = torch.autograd.grad',
        "outside _autodiff.py",
    ),
    "autograd by import": (
        "otflow/kernels.py",
        '"""K."""\nfrom torch import autograd',
        "outside _autodiff.py",
    ),
    "func by import": (
        "otflow/kernels.py",
        '"""K."""\nfrom torch.func import vmap',
        "outside _autodiff.py",
    ),
    "ot outside metrics": (
        "otflow/kernels.py",
        '"""K."""\ndef f():\n    import ot',
        "outside metrics/",
    ),
    "ot at import time": (
        "otflow/metrics/distances.py",
        '"""W."""\nimport ot.lp',
        "outside a function",
    ),
    "ot outside metrics, lazily": (
        "otflow/proximal/particles.py",
        '"""P."""\ndef f():\n    ot = lazy_import("ot")',
        "outside metrics/",
    ),
    "geomloss by call at import time": (
        "otflow/metrics/divergences.py",
        '"""S."""\ngeomloss = lazy_import("geomloss")',
        "outside a function",
    ),
    "import by an unknown name": (
        "otflow/flow.py",
        '"""F."""\nimport importlib\nm = importlib.import_module("o" + "t")',
        "not named literally",
    ),
    "geomloss at import time": (
        "otflow/metrics/divergences.py",
        '"""S."""\nfrom geomloss import SamplesLoss',
        "outside a function",
    ),
    "matplotlib elsewhere": (
        "otflow/analysis.py",
        '"""A."""\ndef f():\n    import matplotlib.pyplot',
        "outside plotting/",
    ),
    "a private method of another folder": (
        "otflow/flow.py",
        '"""F."""\ndef f(mu):\n    return mu._held()',
        "private to another folder",
    ),
    "a private function of another folder": (
        "otflow/flow.py",
        '"""F."""\nfrom otflow.measures.base import _helper',
        "private to another folder",
    ),
    "too long": ("otflow/flow.py", '"""F."""' + "\nx = 1" * 251, "251 lines of code"),
    "no docstring": ("otflow/flow.py", "x = 1", "no docstring"),
    "docstring starts late": ("otflow/flow.py", '"""\nF.\n"""', "no docstring"),
    "prints": ("otflow/flow.py", '"""F."""\nprint(1)', "prints"),
}


def test_the_checker_accepts_a_good_package():
    assert faults(GOOD) == []


@pytest.mark.parametrize("case", BAD)
def test_the_checker_refuses(case):
    path, text, message = BAD[case]
    found = faults(GOOD | {path: text})
    assert len(found) == 1, found
    assert message in found[0]


def test_lists_of_words_have_one_base():
    """Each member of a list of words is shown as its text, by one line of code."""
    bases: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                names = {ast.unparse(base).split(".")[-1] for base in node.bases}
                bases[node.name] = bases.get(node.name, set()) | names
    assert {name for name, own in bases.items() if "StrEnum" in own} == {"Word"}
    lists = {name for name, own in bases.items() if "Word" in own}
    assert lists >= {"Curvature", "GapKind", "Guarantee", "Verdict"}
