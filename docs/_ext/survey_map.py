"""The map of the survey: one table a chapter, from the rows of ``docs/survey.toml``.

The directive ``survey-map`` shows a section with a table for each ``[[section]]`` of
the file that it names, ``survey-readings`` the table of the ``[[reading]]`` blocks,
and ``survey-outside`` the list of the ``[[outside]]`` blocks. The file says in its head
what a row holds. A key that it does not name is an error.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx

__all__ = ["load", "plain", "sections", "test_of", "words"]

KEYS = {
    "section": {"title", "intro", "row"},
    "row": {
        "labels",
        "where",
        "says",
        "corrections",
        "objects",
        "note",
        "tests",
        "tutorials",
        "measured",
    },
    "measured": {"what", "theory", "bound", "by", "value", "found", "within"},
    "reading": {"labels", "where", "survey", "here"},
    "outside": {"says"},
}
OPTIONAL = {"note", "corrections", "theory", "tutorials", "measured", "bound", "within"}


def check(kind: str, block: dict[str, Any]) -> None:
    """Raise ValueError if a block lacks a key, or has one of another name."""
    missing = KEYS[kind] - OPTIONAL - block.keys()
    unknown = block.keys() - KEYS[kind]
    if missing or unknown:
        shown = block.get("says") or block.get("title") or block
        message = (
            f"{kind} {shown!r}: missing {missing or '-'}, not known {unknown or '-'}"
        )
        raise ValueError(message)


def load(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the blocks of the file, after a check of their keys."""
    data = tomllib.loads(path.read_text("utf-8"))
    for section in data["section"]:
        check("section", section)
        for row in section["row"]:
            check("row", row)
            for number in row.get("measured", ()):
                check("measured", number)
    for kind in ("reading", "outside"):
        for block in data[kind]:
            check(kind, block)
    return data


def test_of(entry: str | dict[str, str]) -> str:
    """Return "file::function" of an entry of ``tests``."""
    return entry if isinstance(entry, str) else entry["test"]


def plain(by: str) -> str:
    """Return "file::function" of a test with the id of parameters, or in a class."""
    file, *_, name = by.partition("[")[0].split("::")
    return f"{file}::{name}"


def words(test: str) -> str:
    """Return the name of a test as a sentence: test_it_is_so becomes "It is so"."""
    name = test.partition("::")[2].partition("[")[0].removeprefix("test_")
    name = name.replace("_", " ")
    return name[:1].upper() + name[1:]


def heading(title: str) -> list[str]:
    """Return the lines of a heading."""
    return ["", title, "-" * len(title), ""]


def cell(lines: Iterable[str], mark: str) -> Iterator[str]:
    """Yield a cell of a list-table; an empty one has a line of its own."""
    lines = list(lines) or [""]
    yield f"   {mark} - {lines[0]}".rstrip()
    yield from (f"       {line}".rstrip() for line in lines[1:])


def table(
    head: list[str], widths: list[int], rows: Iterable[list[list[str]]]
) -> Iterator[str]:
    """Yield a table whose cells are lists of lines."""
    yield from (".. list-table::", "   :header-rows: 1", "   :class: otflow-survey")
    yield f"   :widths: {' '.join(map(str, widths))}"
    yield ""
    for row in [[[title] for title in head], *rows]:
        for k, lines in enumerate(row):
            yield from cell(lines, " " if k else "*")
    yield ""


def statement(row: dict[str, Any]) -> list[str]:
    """Return the first cell: where, what, and the labels of the row."""
    lines = [f"**{row['where']}** {labels(row)}", "", row["says"]]
    if "corrections" in row:
        lines += ["", f"Read differently: *{', '.join(row['corrections'])}*"]
    return lines


def labels(block: dict[str, Any]) -> str:
    """Return the labels of a block in italics."""
    return f"*{', '.join(block['labels'])}*" if block["labels"] else ""


def home(row: dict[str, Any]) -> list[str]:
    """Return the second cell: objects and tutorials."""
    lines: list[str] = []
    for name in row["objects"]:
        lines += [f"| :py:obj:`{short(name)} <{name}>`"]
    if "note" in row:
        lines += ["", row["note"]]
    for name in row.get("tutorials", ()):
        lines += ["", f":doc:`/tutorials/{name}`"]
    return lines


def short(name: str) -> str:
    """Return a full name without packages: otflow.metrics.length is length."""
    first, *rest = name.removeprefix("otflow.").split(".")
    return ".".join(rest if rest and first.islower() else [first, *rest])


def numbers(row: dict[str, Any]) -> list[str]:
    """Return the third cell: each number, its theory, and what is asserted."""
    tests = [test_of(entry) for entry in row["tests"]]
    lines: list[str] = []
    for number in row.get("measured", ()):
        text = f"{number['what']}: **{number['found']}**"
        if "theory" in number:
            text += f"; theory {number['theory']}"
        if "bound" in number:
            text += f"; asserted {number['bound']}"
        if len(tests) > 1:
            text += f" [{tests.index(plain(number['by'])) + 1}]"
        lines += ["", text]
    return lines[1:]


def proofs(row: dict[str, Any]) -> list[str]:
    """Return the fourth cell: the files of the tests, and each test in words."""
    lines: list[str] = []
    file = ""
    for k, entry in enumerate(row["tests"], 1):
        test = test_of(entry)
        if test.split("::")[0] != file:
            file = test.split("::")[0]
            lines += ["", f"``{file}``"]
        note = "" if isinstance(entry, str) else f" ({entry['note']})"
        mark = f"[{k}] " if len(row["tests"]) > 1 else ""
        lines += ["", f"{mark}{words(test)}{note}"]
    return lines[1:]


def sections(data: dict[str, list[dict[str, Any]]]) -> str:
    """Return the chapters in reStructuredText."""
    lines: list[str] = []
    for section in data["section"]:
        lines += [*heading(section["title"]), section["intro"], ""]
        lines += table(
            ["Statement", "Object, tutorial", "Measured beside theory", "Tests"],
            [26, 21, 26, 27],
            (
                [statement(row), home(row), numbers(row), proofs(row)]
                for row in section["row"]
            ),
        )
    return "\n".join(lines) + "\n"


def readings(data: dict[str, list[dict[str, Any]]]) -> str:
    """Return the table of corrections in reStructuredText."""
    rows = (
        [
            [f"{r['where']} {labels(r)}"],
            [r["survey"].strip()],
            [r["here"].strip()],
        ]
        for r in data["reading"]
    )
    return "\n".join(table(["Where", "The survey", "Here"], [22, 36, 42], rows)) + "\n"


def outside(data: dict[str, list[dict[str, Any]]]) -> str:
    """Return the list of what is no aim of the library."""
    return "\n".join(f"- {block['says'].strip()}." for block in data["outside"]) + "\n"


PARTS = {
    "survey-map": sections,
    "survey-readings": readings,
    "survey-outside": outside,
}


class SurveyPart(SphinxDirective):
    """A part of the page; the name of the directive tells which."""

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {}

    def run(self) -> list[nodes.Node]:
        """Return the nodes of the tables."""
        _, path = self.env.relfn2path(self.arguments[0])
        self.env.note_dependency(path)
        try:
            data = load(Path(path))
        except ValueError as error:
            message = f"{self.arguments[0]}: {error}"
            raise self.error(message) from error
        text = PARTS[self.name](data)
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directives."""
    for name in PARTS:
        app.add_directive(name, SurveyPart)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
