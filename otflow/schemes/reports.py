"""What the reports of steps say together, however schemes are nested."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["converged", "remedies", "rose", "solves", "worst_residual"]

Report = Mapping[str, Any]

# Under these names a report holds those of the steps that it is made of.
NESTED = ("parts", "substeps", "stages")


def solves(report: Report) -> Iterator[Report]:
    """Yield a report, and all those within it, that say whether a solve converged.

    Parameters
    ----------
    report : mapping
        The ``info`` of a step, which may hold ``parts``, ``substeps`` or ``stages``.

    Yields
    ------
    mapping
        Those with an entry ``converged``.
    """
    if report.get("converged") is not None:
        yield report
    for name in NESTED:
        for inner in report.get(name, ()):
            yield from solves(inner)


def converged(report: Report) -> bool | None:
    """Return whether every solve of a step converged; None if there was none.

    Parameters
    ----------
    report : mapping
        The ``info`` of a step.

    Returns
    -------
    bool or None
        The verdict of the step and of all that it is made of.

    Examples
    --------
    >>> from otflow.schemes.reports import converged
    >>> converged({"parts": ({"converged": True}, {"effective_size": 3.0})})
    True
    """
    verdicts = [bool(solve["converged"]) for solve in solves(report)]
    return all(verdicts) if verdicts else None


def remedies(report: Report) -> list[tuple[str, str]]:
    """Return what ailed the solves of a step that did not converge, and the cures.

    Parameters
    ----------
    report : mapping
        The ``info`` of a step.

    Returns
    -------
    list of tuple of str
        ``cause`` and ``cure`` of each solve that names them.

    Examples
    --------
    >>> from otflow.schemes.reports import remedies
    >>> remedies({"converged": False, "cause": "a kink", "cure": "smooth it"})
    [('a kink', 'smooth it')]
    """
    return [
        (str(solve["cause"]), str(solve["cure"]))
        for solve in solves(report)
        if not solve["converged"] and "cause" in solve
    ]


def worst_residual(report: Report) -> float | None:
    """Return the largest residual among the solves that did not converge.

    Parameters
    ----------
    report : mapping
        The ``info`` of a step.

    Returns
    -------
    float or None
        None where none is known.
    """
    found = [
        float(solve["residual"])
        for solve in solves(report)
        if not solve["converged"] and solve.get("residual") is not None
    ]
    return max(found, default=None)


def rose(report: Report, noise: float) -> bool | None:
    """Return whether a step raised the energy; None if its report does not say.

    Parameters
    ----------
    report : mapping
        The ``info`` of a step.
    noise : float
        Round-off of an energy, relative to its size.

    Returns
    -------
    bool or None
        Whether ``energy_after`` exceeds ``energy_before`` by more than that and, if the
        solve converged, by more than the ``noise`` of its certificate. Else the noise
        is the residual of a solve that went wrong, and hides what it did.
    """
    if "temperature" in report:
        return False  # noise stands for the entropy, whose energy is not recorded
    parts = [rose(part, noise) for part in report.get("parts", ())]
    if parts:
        return None if all(part is None for part in parts) else any(parts)
    before, after = report.get("energy_before"), report.get("energy_after")
    if before is None or after is None:
        return None
    a, b = float(before), float(after)
    known = 0.0 if report.get("converged") is False else report.get("noise", 0.0)
    return b - a > max(noise * max(abs(a), abs(b)), float(known))
