"""Every tutorial runs to its last assertion, and so does the code of the manual."""

from __future__ import annotations

import ast
import runpy
import tomllib
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.axes import Axes

from tests.marks import slow

ROOT = Path(__file__).parent.parent
TUTORIALS = sorted((ROOT / "tutorials").glob("plot_*.py"))
PAGES = [
    ROOT / "docs" / f"{name}.rst"
    for name in (
        "conventions",
        "distances",
        "norms",
        "concepts",
        "solvers",
        "extending",
        "watching",
        "keeping",
        "reading_a_certificate",
        "faq",
    )
]

# Those that take a second or two; the documentation runs all of them too.
QUICK = {1, 2, 3, 4, 5, 6, 11, 13}
MAXIMUM_LINES = 150
ALTERNATIVES = tomllib.loads((ROOT / "tutorials" / "alt.toml").read_text("utf-8"))


@pytest.fixture(autouse=True)
def _no_windows():
    """Draw off screen, from matplotlib's defaults, and leave no figure behind."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.use("agg")
        yield
        plt.close("all")


def code_blocks(page: Path) -> Iterator[tuple[int, str]]:
    """Yield each Python code block of a page with the number of its first line."""
    lines = [*page.read_text("utf-8").splitlines(), "end"]
    start, block = 0, list[str]()
    for number, line in enumerate(lines, 1):
        if start and line[:1].strip():  # back at the margin: the block is over
            yield start, "\n".join(block)
            start = 0
        if line.strip() == ".. code-block:: python":
            start, block = number + 1, []
        elif start:
            block.append(line.removeprefix("   "))


def test_no_block_of_code_is_passed_over(tmp_path):
    page = tmp_path / "page.rst"
    block = ".. code-block:: python\n\n   x = {}\n\n"
    page.write_text(block.format(1) + block.format(2) + "Text.\n", "utf-8")
    assert [code.strip() for _, code in code_blocks(page)] == ["x = 1", "x = 2"]


def is_labelled(ax: Axes) -> bool:
    """Return whether both axes of a drawing say what they show."""
    return not ax.axison or bool(ax.get_xlabel() and ax.get_ylabel())


def is_quick(path: Path) -> bool:
    """Return whether a tutorial, plot_<number>_<name>.py, is one of the quick ones."""
    return int(path.stem.split("_")[1]) in QUICK


@pytest.mark.parametrize(
    "path",
    [
        *filter(is_quick, TUTORIALS),
        *slow(*(path for path in TUTORIALS if not is_quick(path))),
    ],
    ids=lambda path: path.stem,
)
def test_tutorial_runs(path):
    state = torch.random.get_rng_state()
    namespace = runpy.run_path(str(path))  # holds on to animations, which need it
    figures = [plt.figure(number) for number in plt.get_fignums()]
    assert figures, "a tutorial shows something"
    texts = ALTERNATIVES[path.stem]
    assert len(texts) == len(figures), "alt.toml has one text for each figure"
    assert all(len(text) > 40 and '"' not in text for text in texts)
    for figure in figures:
        figure.canvas.draw()
        assert all(is_labelled(ax) for ax in figure.axes), figure
    # Seeds are passed, not set: the same numbers come out in any order of pages.
    assert torch.equal(state, torch.random.get_rng_state())
    assert "of" in namespace


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_is_short_and_ends_with_an_assertion(path):
    source = path.read_text("utf-8")
    assert len(source.splitlines()) < MAXIMUM_LINES
    last = ast.parse(source).body[-1]
    assert isinstance(last, ast.Assert)
    assert any(isinstance(node, ast.Name) for node in ast.walk(last.test)), (
        "it can fail"
    )


def test_there_are_tutorials():
    assert len(TUTORIALS) >= 3


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_of_the_manual_runs(page):
    namespace = {"__name__": page.stem}
    blocks = list(code_blocks(page))
    assert blocks
    for start, block in blocks:
        # Empty lines in front give tracebacks the line numbers of the page.
        exec(compile("\n" * start + block, str(page), "exec"), namespace)


def test_code_blocks_are_found_with_their_lines(tmp_path):
    page = tmp_path / "page.rst"
    page.write_text(
        "Text.\n\n.. code-block:: python\n\n   a = 1\n\n   b = 2\n\nText.\n"
    )
    ((start, block),) = code_blocks(page)
    assert block.strip() == "a = 1\n\nb = 2"
    assert page.read_text().splitlines()[start] == "   a = 1"
