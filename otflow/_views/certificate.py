"""A certificate of a run as lines of text and as a page of a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from otflow._svg import harmless, table, thinned

__all__ = ["certificate_page", "certificate_text"]

# Rows of the table of steps that a text and a page show.
SHOWN = 12

Rows = Sequence[tuple[str, ...]]


def certificate_text(
    head: str, groups: Mapping[str, Rows], why: str, steps: Rows, columns: Sequence[str]
) -> str:
    """Return the findings under their verdicts, the convexities and the steps."""
    lines = [head]
    width = 2 + max(
        (len(row[0]) for rows in groups.values() for row in rows), default=0
    )
    for verdict, rows in groups.items():
        if rows:
            lines += ["", verdict]
            lines += [f"    {name:{width}}{text}" for name, text in rows]
    lines += ["", "convexity", *(f"    {line}" for line in why.splitlines())]
    if steps:
        lines += ["", *_table(columns, _chosen(steps))]
        lines += _left_out(steps)
    return "\n".join(lines)


def certificate_page(
    thing: object,
    head: str,
    groups: Mapping[str, Rows],
    why: str,
    steps: Rows,
    columns: Sequence[str],
) -> str:
    """Return HTML, or a line of text on why there is none."""

    def drawn() -> str:
        findings = [(verdict, *row) for verdict, rows in groups.items() for row in rows]
        parts = [table(findings), f"<pre>{escape(why)}</pre>"]
        if steps:
            note = "".join(f"<div>{escape(line)}</div>" for line in _left_out(steps))
            parts.append(table(_chosen(steps), columns) + note)
        inner = "".join(f'<div style="margin-right:1em">{part}</div>' for part in parts)
        return f"<div><code>{escape(head)}</code>{inner}</div>"

    return harmless(thing, drawn)


def _chosen(steps: Rows) -> list[tuple[str, ...]]:
    return [steps[k] for k in thinned(len(steps), SHOWN).tolist()]


def _left_out(steps: Rows) -> list[str]:
    if len(steps) <= SHOWN:
        return []
    return [f"{SHOWN} of {len(steps)} steps; all are in .steps and .to_dict()"]


def _table(columns: Sequence[str], rows: Rows) -> list[str]:
    cells = [tuple(columns), *rows]
    widths = [max(len(row[k]) for row in cells) + 2 for k in range(len(columns))]
    return [
        "".join(
            f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in cells
    ]
