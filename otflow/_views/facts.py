"""The facts of a run that a reader asks for first, as lines of text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from otflow._views.run import Run
from otflow.proximal import Certificate
from otflow.schemes import reports

__all__ = ["certificates", "facts", "summary"]

NO_CLAIM = "none claimed"
# What to try where a solver does not know the cause itself.
GENERAL = "take a smaller dt, or JKO(solver) with a larger budget or tolerance"
RISE = "take a smaller dt, or ExplicitEuler(backtracking=True)"


def summary(run: Run) -> str:
    """Return the facts of a run, one a line, below its status."""
    lines = facts(run)
    width = max(len(name) for name, _ in lines) + 2
    return "\n".join(f"{name:{width}}{text}" for name, text in lines)


def facts(run: Run) -> list[tuple[str, str]]:
    """Return the facts of a run, each with its name."""
    found = [("status", f"{run.status}: {run.message}")]
    found.append(("steps", str(len(run.info))))
    if len(run.times):
        times, energies = run.times, run.records["energy"]
        found += [
            ("time", f"{float(times[0]):.6g} to {float(times[-1]):.6g}"),
            ("energy", f"{float(energies[0]):.6g} -> {float(energies[-1]):.6g}"),
        ]
    found.append(("records", f"{len(run.times)} rows of {', '.join(run.records)}"))
    found.append(("snapshots", str(len(run.snapshots))))
    found.append(("seed", str(run.seed)))
    found += _verdicts(run)
    free = ", which the scheme does not exclude" if run.rises and _is_free(run) else ""
    found.append(("energy rose", f"in {run.rises} steps{free}"))
    return found + [("cure", cure) for cure in cures(run)]


def _verdicts(run: Run) -> list[tuple[str, str]]:
    """Return what the steps prove, and how well they were solved."""
    judged = [found for r in run.info if (found := reports.certified(r)) is not None]
    solved = [found for r in run.info if (found := reports.converged(r)) is not None]
    if not judged and not solved:
        return [("certified", "no step solved anything")]
    rows = []
    for name, verdicts in (("converged", solved), ("certified", judged)):
        count, of = sum(verdicts), len(verdicts)
        if of:
            # Rounded down: 100 % means every step.
            rows.append((name, f"{count} of {of} steps ({100 * count // of} %)"))
    counts = Counter(map(_claim, run.info))
    words = (f"{claim} {count}" for claim, count in counts.most_common())
    rows.append(("guarantees", ", ".join(words)))
    worst = _worst(run.info)
    if worst is not None:
        rows.append(("worst residual", f"{worst:.3g}"))
    return rows


def certificates(run: Run) -> list[tuple[str, ...]]:
    """Return one row for each guarantee: steps, converged, certified, residual."""
    rows: list[tuple[str, ...]] = []
    groups: dict[str, list[Certificate]] = {}
    for report in run.info:
        groups.setdefault(_claim(report), []).append(report)
    for claim, group in sorted(groups.items(), key=lambda item: -len(item[1])):
        worst = _worst(group)
        rows.append(
            (
                claim,
                str(len(group)),
                _share(reports.converged(r) for r in group),
                _share(reports.certified(r) for r in group),
                "-" if worst is None else f"{worst:.3g}",
            )
        )
    return rows


def cures(run: Run) -> list[str]:
    """Return what helps against what went wrong, each once."""
    found: Counter[str] = Counter()
    for report in run.info:
        words = {
            f"{solve['cause']}: {solve['cure']}" if "cause" in solve else GENERAL
            for solve in reports.failed(report)
        }
        found.update(words)
    lines = [f"{text} ({count} steps)" for text, count in found.most_common()]
    if run.rises and not _is_free(run):
        lines.append(RISE)
    return lines


def _is_free(run: Run) -> bool:
    """Return whether a step of the run promised no fall of the energy."""
    return any(map(reports.may_rise, run.info))


def _claim(report: Certificate) -> str:
    """Return the guarantee of a step, or those of its parts."""
    if report.guarantee is not None:
        return str(report.guarantee)
    inner = (s.guarantee for s in reports.solves(report) if s.guarantee is not None)
    return " + ".join(dict.fromkeys(map(str, inner))) or NO_CLAIM


def _worst(group: Iterable[Certificate]) -> float | None:
    """Return the largest residual of all solves."""
    sizes = [
        solve.residual
        for report in group
        for solve in reports.solves(report)
        if solve.residual is not None
    ]
    return max(sizes, default=None)


def _share(verdicts: Iterable[bool | None]) -> str:
    known = [verdict for verdict in verdicts if verdict is not None]
    return f"{sum(known)} of {len(known)}" if known else "-"
