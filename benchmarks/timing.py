"""Ratios of times measured side by side in one process."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Row", "interleaved", "seconds", "show"]


@dataclass(frozen=True)
class Row:
    """One measured figure beside its target."""

    label: str
    measured: float
    target: str
    met: bool

    def __str__(self) -> str:
        verdict = "ok" if self.met else "MISSED"
        return f"{self.label:<66} {self.measured:8.3g}   {self.target:<10} {verdict}"


def at_most(label: str, measured: float, limit: float, unit: str = "") -> Row:
    """Return a row whose target is an upper limit."""
    return Row(label, measured, f"<= {limit:g}{unit}", measured <= limit)


def at_least(label: str, measured: float, limit: float, unit: str = "") -> Row:
    """Return a row whose target is a lower limit."""
    return Row(label, measured, f">= {limit:g}{unit}", measured >= limit)


def seconds(function: Callable[[], object]) -> float:
    """Return the time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def interleaved(
    *functions: Callable[[], object], repeats: int = 15, warmup: int = 2
) -> list[float]:
    """Return each function's least time in seconds, their calls interleaved.

    Interleaving exposes all of them to the same disturbances; the least time is the
    one with the fewest.
    """
    for _ in range(warmup):
        for function in functions:
            function()
    best = [float("inf")] * len(functions)
    for _ in range(repeats):
        for i, function in enumerate(functions):
            best[i] = min(best[i], seconds(function))
    return best


def show(rows: list[Row]) -> None:
    """Print the rows."""
    for row in rows:
        print(row, flush=True)
