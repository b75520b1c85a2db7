"""What a notebook shows of a run: the curve of its energy, its facts, certificates."""

from __future__ import annotations

from html import escape

import numpy as np

from otflow._svg import Picture, figure, harmless, table, thinned
from otflow._views.facts import certificates, facts
from otflow._views.run import Run

__all__ = ["page"]

COLUMNS = ("guarantee", "steps", "converged", "certified", "worst residual")


def page(run: Run) -> str:
    """Return HTML, or a line of text on why there is none."""

    def drawn() -> str:
        parts = [harmless(run, lambda: _energy(run)), table(facts(run))]
        rows = certificates(run)
        if rows:
            parts.append(table(rows, COLUMNS))
        inner = "".join(f'<div style="margin-right:1em">{part}</div>' for part in parts)
        return (
            f"<div><code>{escape(repr(run))}</code>"
            f'<div style="display:flex;flex-wrap:wrap">{inner}</div></div>'
        )

    return harmless(run, drawn)


def _energy(run: Run) -> str:
    """Return the curve of the energy against time, of `MOST` records at most."""
    rows = len(run.times)
    if not rows:
        return figure("energy", "", "no time was recorded")
    chosen = thinned(rows)
    times = run.times.numpy()[chosen]
    energies = run.records["energy"][chosen.tolist()].detach().cpu().double().numpy()
    low, high = float(energies.min()), float(energies.max())
    air = 0.04 * (high - low)
    picture = Picture(
        (times[0], times[-1]), (low - air, high + air), "energy against time"
    )
    picture.line(times, energies)
    if len(chosen) == 1:
        picture.dots(times, energies, np.array([3.0]))
    caption = "energy against time"
    if len(chosen) < rows:
        caption += f"; {len(chosen)} of {rows} records"
    return figure("energy", picture.svg(), caption)
