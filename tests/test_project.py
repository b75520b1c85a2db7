"""What the project's own pages promise: the README runs, the files agree."""

from __future__ import annotations

import ast
import io
import os
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator, Mapping
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def code_blocks(page: str, language: str) -> list[str]:
    """Return the fenced code blocks of one language in a Markdown text."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def test_the_readme_shows_the_two_commands_on_its_first_screen():
    first_screen = (ROOT / "README.md").read_text("utf-8").splitlines()[:25]
    for command in ("make demo", "make test"):
        assert any(line.startswith(command) for line in first_screen)


def test_the_readme_runs():
    blocks = code_blocks((ROOT / "README.md").read_text("utf-8"), "python")
    assert blocks
    for block in blocks:
        subprocess.run([sys.executable, "-c", block], check=True, timeout=120, cwd=ROOT)


def test_the_makefile_has_every_target_that_is_written_about():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    pages = ["README.md", "CONTRIBUTING.md", ".ci/run"]
    text = "".join((ROOT / page).read_text("utf-8") for page in pages)
    mentioned = set(re.findall(r"\bmake ([a-z]+(?:-[a-z]+)*)\b(?=[`\n ])", text))
    named = {name for name in mentioned if f"`make {name}" in text} | set(
        re.findall(r'^section "[^"]+" make ([a-z-]+)', text, re.MULTILINE)
    )
    assert {"demo", "test", "docs", "lint", "types"} <= named
    assert named <= targets


def declared(extra: str, project: dict) -> set[str]:
    """Return what an extra of pyproject.toml installs by name, and the core with it."""
    found = set()
    for line in project["optional-dependencies"][extra] + project["dependencies"]:
        if line.startswith("otflow["):
            parts = line.removeprefix("otflow[").removesuffix("]").split(",")
            found |= {name for part in parts for name in declared(part, project)}
        else:
            found.add(re.split(r"[^\w.-]", line)[0].lower())
    return found


def imported(folder: str, homes: Mapping[str, list[str]]) -> set[str]:
    """Return the distributions that the modules of a folder import as they load."""
    ours = {path.name for path in ROOT.iterdir() if path.is_dir()}
    modules: set[str] = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(str(node.module).split(".")[0])
    return {
        homes.get(module, [module])[0].lower().replace("_", "-")
        for module in modules - ours - set(sys.stdlib_module_names)
    }


@pytest.mark.parametrize(
    ("target", "folders"),
    {
        "demo": ["demo"],
        "bench": ["benchmarks"],
        "test": ["otflow", "tests", "demo", "benchmarks", "tutorials", "tools"],
        "campaign": ["tools/campaigns"],
        "docstrings": ["otflow"],
        "docs": ["otflow", "tutorials"],
    }.items(),
)
def test_each_target_installs_what_it_imports(target, folders):
    makefile = (ROOT / "Makefile").read_text("utf-8")
    extra = re.findall(rf"^{target}:.*installed-(\w+)", makefile, re.MULTILINE)[0]
    with (ROOT / "pyproject.toml").open("rb") as file:
        installed = declared(extra, tomllib.load(file)["project"])
    homes = packages_distributions()
    wanted = {name for folder in folders for name in imported(folder, homes)}
    if target == "test":  # this one script has a target of its own, with numpydoc
        wanted.discard("numpydoc")
    assert "torch" in wanted
    assert wanted <= installed


def test_continuous_integration_can_be_started():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize(
    "page", ["conventions", "concepts", "extending", "survey", "references"]
)
def test_each_page_is_in_the_table_of_contents(page):
    assert f"\n   {page}\n" in (ROOT / "docs" / "index.rst").read_text("utf-8")


def test_each_command_that_prints_a_figure_exists():
    pages = [
        *(ROOT / "docs").glob("*.rst"),
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
    ]
    text = " ".join(page.read_text("utf-8") for page in pages)
    commands = set(re.findall(r"python\s+-m\s+(benchmarks[.\w]*)", text))
    assert {"benchmarks.grids", "benchmarks.ornstein_uhlenbeck"} <= commands
    for command in commands:
        path = ROOT / command.replace(".", "/")
        path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        assert '__name__ == "__main__"' in path.read_text("utf-8"), command


def test_every_file_that_the_pages_name_exists():
    files = [
        f"/{path.relative_to(ROOT).as_posix()}"
        for folder in (
            "benchmarks",
            "demo",
            "docs",
            "otflow",
            "tests",
            "tools",
            "tutorials",
        )
        for path in (ROOT / folder).rglob("*.py")
    ]
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.rst")]
    other = {"CHANGELOG.md", "sg_execution_times.rst"}  # history; written by the build
    named = {
        (page.name, name)
        for page in pages
        if page.name not in other and "_build" not in page.parts
        for name in re.findall(r"`([\w/]+\.py)`", page.read_text("utf-8"))
    }
    assert ("architecture.rst", "proximal/grid/sinkhorn/solver.py") in named
    missing = {
        (page, name)
        for page, name in named
        if not any(path.endswith(f"/{name}") for path in files)
    }
    assert not missing


def test_every_cited_work_is_in_the_bibliography():
    keys = set(
        re.findall(r"^@\w+\{(\w+),$", (ROOT / "docs/references.bib").read_text(), re.M)
    )
    cited = {
        key.strip()
        for folder in ("otflow", "docs", "tutorials", "tests", "benchmarks", "demo")
        for pattern in ("*.py", "*.rst")
        for path in (ROOT / folder).rglob(pattern)
        if "_build" not in path.parts
        for keys_of_one in re.findall(r":cite:\w*:?`([^`]+)`", path.read_text("utf-8"))
        for key in keys_of_one.split(",")
    }
    assert len(keys) > 20
    assert cited <= keys


# A label of a list outside the repository: a letter and a number, or a word for such a
# list. The dtypes F32 and F64 are no labels, nor are W2, L1, L2 and R0^2.
LABEL = re.compile(
    r"\b(oracle|trap|erratum|errata)s? [A-Z]?\d|\b[A-K](?<!F)\d{1,2}\b(?!\^)"
)


def prose(path: Path) -> Iterator[str]:
    """Yield the comments and the docstrings of a file, and the names of its tests."""
    text = path.read_text("utf-8")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and "noqa" not in token.string:
            yield token.string
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            yield ast.get_docstring(node) or ""
        if isinstance(node, ast.FunctionDef):
            yield node.name.replace("_", " ")


def test_nothing_cites_a_document_outside_the_repository():
    folders = ("otflow", "tests", "tutorials", "benchmarks", "demo", "tools")
    found = [
        f"{path.relative_to(ROOT)}: {text}"
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        for text in prose(path)
        if LABEL.search(text)
    ]
    assert not found, "\n".join(found)
    for text in ("# A4: lost", "rows D3 and E5", "trap 8", "(C3, errata E1-E3)"):
        assert LABEL.search(text)
