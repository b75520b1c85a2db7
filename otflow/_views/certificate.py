"""A certificate of a run as lines of text and as a page of a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from otflow._svg import harmless, table, thinned

__all__ = ["certificate_page", "certificate_text"]

# Rows of the table of steps that a text and a page show.
SHOWN = 12
ABOUT, FINDINGS = "about", ("verdict", "finding", "what is known")
# Cells that tell nothing.
UNKNOWN = frozenset(("-", "unknown"))

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
    columns, rows = _known(columns, steps)
    if rows:
        lines += ["", *_table(columns, _chosen(rows))]
    lines += _left_out(steps, rows)
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
        about = [
            row for verdict, rows in groups.items() if verdict == ABOUT for row in rows
        ]
        findings = [
            (verdict, *row)
            for verdict, rows in groups.items()
            if verdict != ABOUT
            for row in rows
        ]
        parts = [
            table(about, (ABOUT, "")),
            table(findings, FINDINGS),
            f"<div><b>convexity</b></div><pre>{escape(why)}</pre>",
        ]
        names, rows = _known(columns, steps)
        note = "".join(f"<div>{escape(line)}</div>" for line in _left_out(steps, rows))
        parts.append((table(_chosen(rows), names) if rows else "") + note)
        inner = "".join(f'<div style="margin-right:1em">{part}</div>' for part in parts)
        return f"<div><code>{escape(head)}</code>{inner}</div>"

    return harmless(thing, drawn)


def _chosen(steps: Rows) -> list[tuple[str, ...]]:
    return [steps[k] for k in thinned(len(steps), SHOWN).tolist()]


def _known(columns: Sequence[str], steps: Rows) -> tuple[Sequence[str], Rows]:
    """Return the columns and the rows in which something is known, besides the step."""
    rows = [row for row in steps if not UNKNOWN.issuperset(row[1:])]
    kept = [
        k for k in range(len(columns)) if any(row[k] not in UNKNOWN for row in rows)
    ]
    return [columns[k] for k in kept], [tuple(row[k] for k in kept) for row in rows]


def _left_out(steps: Rows, rows: Rows) -> list[str]:
    if len(rows) == len(steps) <= SHOWN:
        return []
    shown, of = min(len(rows), SHOWN), f"of {len(steps)} steps"
    text = f"{shown} {of}" if len(rows) == len(steps) else f"{shown} of {len(rows)}"
    if not rows:
        text = f"nothing is known of single steps, {len(steps)} of them"
    elif len(rows) < len(steps):
        text += f" steps of which something is known, {of}"
    return [f"{text}; all are in .steps and .to_dict()"]


def _table(columns: Sequence[str], rows: Rows) -> list[str]:
    cells = [tuple(columns), *rows]
    widths = [max(len(row[k]) for row in cells) + 2 for k in range(len(columns))]
    return [
        "".join(
            f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in cells
    ]
