"""What the project's own pages promise: the README runs, the files agree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
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


def test_every_cited_work_is_in_the_bibliography():
    keys = set(
        re.findall(r"^@\w+\{(\w+),$", (ROOT / "docs/references.bib").read_text(), re.M)
    )
    cited = {
        key.strip()
        for folder in ("otflow", "docs", "tutorials")
        for pattern in ("*.py", "*.rst")
        for path in (ROOT / folder).rglob(pattern)
        if "_build" not in path.parts
        for keys_of_one in re.findall(r":cite:\w*:?`([^`]+)`", path.read_text("utf-8"))
        for key in keys_of_one.split(",")
    }
    assert len(keys) > 20
    assert cited <= keys
