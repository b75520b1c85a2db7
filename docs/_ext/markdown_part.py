"""Show a part of a Markdown page of the repository, so that each text has one home.

``.. markdown-part:: ../README.md`` with ``:section: Which library does what`` shows
the text below that heading; without a section, the whole page below its title. It reads
what these pages use: headings, paragraphs, lists, tables, fenced code, code spans, bold
and links. Anything else is shown as it is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx

__all__ = ["section", "to_rst"]

HEADING = re.compile(r"^(#+) (.*)$")
# One of: code that holds backticks, code, a link, bold.
INLINE = re.compile(
    r"``\s?(.+?)\s?``(?!`)|`([^`]+)`|\[([^\]]+)\]\(([^)]+)\)|\*\*([^*]+)\*\*", re.DOTALL
)
UNDERLINES = "=-~^"


def section(page: str, title: str) -> str:
    """Return what stands below a heading, up to the next one of its level or above."""
    lines = iter(page.splitlines())
    for line in lines:
        found = HEADING.match(line)
        if found and found[2].strip("[]") == title:
            level = len(found[1])
            break
    else:
        message = f"no heading {title!r}"
        raise ValueError(message)
    body, fenced = [], False
    for line in lines:
        fenced ^= line.startswith("```")
        found = None if fenced else HEADING.match(line)
        if found and len(found[1]) <= level:
            break
        body.append(line)
    return "\n".join(body)


def inline(text: str) -> str:
    """Return a run of text in reStructuredText."""
    parts, end = [], 0
    for found in INLINE.finditer(text):
        parts.append(escaped(text[end : found.start()]))
        quoted, code, label, address, bold = found.groups()
        if quoted or code:
            parts.append(f"``{quoted or code}``")
        elif label:
            outside = re.match(r"\w+:", address)
            parts.append(f"`{label} <{address}>`__" if outside else label)
        else:
            parts.append(f"**{bold}**")
        end = found.end()
        if text[end : end + 1].isalnum():  # markup ends before a letter: say so
            parts.append("\\ ")
    return "".join([*parts, escaped(text[end:])])


def escaped(text: str) -> str:
    """Return plain text in which nothing is markup."""
    return re.sub(r"([\\*`|]|_\b)", r"\\\1", text)


def table(lines: list[str]) -> Iterator[str]:
    """Yield a table in reStructuredText."""
    rows = [
        [cell.strip() for cell in row.strip().strip("|").split("|")] for row in lines
    ]
    yield from (".. list-table::", "   :header-rows: 1", "   :stub-columns: 1", "")
    for row in [rows[0], *rows[2:]]:
        for i, cell in enumerate(row):
            yield f"   {' ' if i else '*'} - {inline(cell)}".rstrip()
    yield ""


def to_rst(markdown: str) -> str:
    """Return a Markdown text in reStructuredText; its headings begin at level 2."""
    out: list[str] = []
    lines = markdown.splitlines()
    while lines:
        line = lines.pop(0)
        if line.startswith("```"):
            out += [f".. code-block:: {line[3:] or 'text'}", ""]
            while lines and not lines[0].startswith("```"):
                out.append(f"   {lines.pop(0)}".rstrip())
            lines = lines[1:]
            out.append("")
        elif found := HEADING.match(line):
            title = inline(found[2].replace("[", "").replace("]", ""))
            underline = UNDERLINES[max(len(found[1]) - 2, 0)]
            out += ["", title, underline * len(title), ""]
        elif line.startswith("|"):
            rows = [line]
            while lines and lines[0].startswith("|"):
                rows.append(lines.pop(0))
            out += table(rows)
        else:
            # Code and links may go on in the next line of the paragraph.
            block = [line]
            while (
                line.strip() and lines and re.match(r"\s*[^\s#|`-]|\s*`[^`]", lines[0])
            ):
                block.append(lines.pop(0))
            indent = line[: len(line) - len(line.lstrip())]
            bullet = "- " if line.lstrip().startswith("- ") else ""
            text = "\n".join(part.strip() for part in block).removeprefix(bullet)
            first, *rest = inline(text).split("\n")
            if bullet:  # in reStructuredText a list stands apart
                out.append("")
            out.append(f"{indent}{bullet}{first}".rstrip())
            out += [f"{indent}{' ' * len(bullet)}{part}" for part in rest]
    return "\n".join(out) + "\n"


class MarkdownPart(SphinxDirective):
    """Show a section of a Markdown page, or the page below its title."""

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {"section": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        """Return the nodes of the text."""
        _, path = self.env.relfn2path(self.arguments[0])
        self.env.note_dependency(path)
        page = Path(path).read_text("utf-8")
        title = self.options.get("section")
        if title is None:
            body = page.split("\n", 1)[1]
        else:
            try:
                body = section(page, title)
            except ValueError as error:
                message = f"{self.arguments[0]}: {error}"
                raise self.error(message) from error
        return self.parse_text_to_nodes(to_rst(body), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directive."""
    app.add_directive("markdown-part", MarkdownPart)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
