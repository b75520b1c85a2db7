"""The table of the runs, and what their certificates say."""

from __future__ import annotations

from dataclasses import dataclass

import otflow as of

SEED = 0


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    gradients: int | None = None
    accuracy: str = "-"
    energy: str = "-"
    certificate: str = "-"
    seconds: float | None = None


def certificates(run: of.Trajectory) -> str:
    """Say how many steps were certified, or in how many the energy rose."""
    certified = [bool(info["certified"]) for info in run.info if "certified" in info]
    if certified:
        return f"{sum(certified)}/{len(certified)} steps certified"
    energy = run.records["energy"]
    # Round-off in float32 is not a rise.
    rises = int((energy.diff() > 1e-6 * energy.abs().max()).sum())
    return f"none; energy rose in {rises} of {len(run.info)} steps"


def table(rows: list[Row]) -> str:
    """Return the rows as aligned text."""
    head = ("run", "gradients", "test acc.", "energy", "certificate", "seconds")
    cells = [head] + [
        (
            r.what,
            "-" if r.gradients is None else str(r.gradients),
            r.accuracy,
            r.energy,
            r.certificate,
            "-" if r.seconds is None else f"{r.seconds:.1f}",
        )
        for r in rows
    ]
    widths = [max(len(c[k]) for c in cells) for k in range(len(head))]
    lines = ["  ".join(c[k].ljust(widths[k]) for k in range(len(head))) for c in cells]
    rule = "-" * len(lines[0].rstrip())
    return "\n".join([lines[0].rstrip(), rule, *(line.rstrip() for line in lines[1:])])
