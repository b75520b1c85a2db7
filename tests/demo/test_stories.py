"""The whole demonstration, in small; its promises, and its table."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib as mpl
import pytest

from demo.__main__ import main
from demo.stories import STORIES, Told
from demo.style import sheet
from demo.table import Row, table

ROOT = Path(__file__).parent.parent.parent


def test_a_table_aligns_its_columns_and_marks_what_is_not_known():
    text = table([Row("a long name", gradients=7, seconds=1.25), Row("b")])
    head, rule, first, second = text.splitlines()
    assert set(rule) == {"-"}
    assert first.split()[-1] == "1.2"
    assert second.split()[1:] == ["-"] * 5
    assert first.index("7") == head.index("gradients")


def test_a_promise_that_is_missed_is_noted(tmp_path):
    told = Told(tmp_path)
    told.promise("kept", True)
    told.promise("broken", False)
    assert told.missed == ["broken"]


def test_a_figure_leaves_the_settings_alone(tmp_path):
    before = dict(mpl.rcParams)
    with sheet(tmp_path / "new" / "a.png", size=(2, 2)) as (_, ax):
        ax.plot([0, 1])
    assert dict(mpl.rcParams) == before
    assert (tmp_path / "new" / "a.png").exists()


def test_the_readme_tells_the_stories_of_the_demonstration():
    page = (ROOT / "README.md").read_text("utf-8")
    for k, title in enumerate(STORIES, 1):
        assert f"{k}. {title}\n" in page


def test_the_readme_shows_each_figure_and_says_what_is_on_it():
    page = (ROOT / "README.md").read_text("utf-8")
    shown = dict(re.findall(r"!\[([^]]*)\]\(([^)]+)\)", page))
    files = {path.name for path in (ROOT / "docs/_static/demo").glob("*.[gp]*")}
    assert {Path(path).name for path in shown.values()} == files
    assert all((ROOT / path).is_file() for path in shown.values())
    assert all(len(text.split()) > 10 for text in shown)
    # The film opens the page.
    assert page.splitlines()[2].startswith("![")
    assert "words.gif" in page.splitlines()[2]


def test_the_links_of_the_readme_lead_somewhere():
    page = (ROOT / "README.md").read_text("utf-8")
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert len(links) > 8
    assert all((ROOT / link).exists() for link in links if "://" not in link)


@pytest.mark.slow
def test_the_demonstration_runs_in_small(tmp_path, capsys):
    assert main(["--quick", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    names = {path.name for path in tmp_path.iterdir()}
    for name in ("words.gif", "digits.png", "networks.png", "stiff.png"):
        assert name in names
    assert {"front.png", "crowd.png", "disk.png"} <= names
    assert all(name in printed for name in names)
    assert "raised Diverged" in printed
