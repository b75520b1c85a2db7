"""The progress bar of a flow, or nothing."""

from __future__ import annotations

from typing import Any

from otflow._lazy import lazy_import

__all__ = ["ProgressBar", "progress_bar"]


class ProgressBar:
    """Stands in for a bar where no progress is wanted."""

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def show_energy(self, energy: str) -> None:
        """Show an energy from the next refresh on."""

    def update(self, certified: bool | None = None) -> None:
        """Count a step, and whether it was certified if its report says so."""


class _Bar(ProgressBar):
    """A bar of tqdm with the energy and the share of certified steps."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._words: dict[str, str] = {}
        self._judged = self._certified = 0

    def __exit__(self, *error: object) -> None:
        self._show()
        self._bar.close()

    def show_energy(self, energy: str) -> None:
        self._words["energy"] = energy
        self._show()

    def update(self, certified: bool | None = None) -> None:
        if certified is not None:
            self._judged += 1
            self._certified += certified
            # Rounded down: 100 % means every step.
            share = 100 * self._certified // self._judged
            self._words["certified"] = f"{share} %"
            self._show()
        self._bar.update()

    def _show(self) -> None:
        self._bar.set_postfix(self._words, refresh=False)


def progress_bar(steps: int, progress: bool, done: int = 0) -> ProgressBar:
    """Return a context: a bar of ``tqdm.auto``, or one that does nothing.

    Parameters
    ----------
    steps : int
        How many steps the bar counts to.
    progress : bool
        Whether to show a bar.
    done : int
        How many of them were made before, by a run that is resumed.
    """
    if not progress:
        return ProgressBar()
    bar = lazy_import("tqdm.auto").tqdm(total=steps, initial=done, unit="step")
    return _Bar(bar)
