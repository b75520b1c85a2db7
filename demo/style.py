"""How the figures look: legible when projected, and to colour-blind readers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

# The colours of Okabe and Ito, one for each role in all figures.
JKO, EULER, BY_HAND, EXACT = "#0072B2", "#D55E00", "#009E73", "#000000"
GREY = "0.45"

# Dots for each inch of a PNG: twice the resolution of a screen.
RESOLUTION = 200

SETTINGS: Any = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 15,
    "axes.labelsize": 14,
    "figure.titlesize": 17,
    "font.size": 13,
    "legend.frameon": False,
    "legend.fontsize": 12,
    "lines.linewidth": 2.2,
}


@contextmanager
def sheet(
    path: Path, rows: int = 1, columns: int = 1, *, size: tuple[float, float]
) -> Iterator[tuple[Figure, Any]]:
    """Yield a figure with its axes; write it to a PNG and close it afterwards."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(SETTINGS)
        figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained")
        try:
            yield figure, axes
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=RESOLUTION)
        finally:
            plt.close(figure)
