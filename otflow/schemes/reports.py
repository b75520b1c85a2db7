"""Verdicts on a step from its report and the nested reports of its parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from otflow.proximal.certificate import (
    NESTED,
    Certificate,
    Guarantee,
    certify,
    round_off,
)

__all__ = [
    "certified",
    "composed",
    "converged",
    "failed",
    "levels_of",
    "may_rise",
    "parts_of",
    "prescribed",
    "rose",
    "solves",
]


def solves(report: Certificate) -> Iterator[Certificate]:
    """Yield each report of a solve: the report itself and those nested in it.

    Parameters
    ----------
    report : Certificate
        The ``info`` of a step, which may hold ``parts``, ``substeps`` or ``stages``.

    Yields
    ------
    Certificate
        Each report whose ``converged`` is not None.
    """
    if report.converged is not None:
        yield report
    for inner in _nested(report, NESTED):
        yield from solves(inner)


def converged(report: Certificate) -> bool | None:
    """Return whether every solve of a step converged; None if there was none.

    Parameters
    ----------
    report : Certificate
        The ``info`` of a step.

    Returns
    -------
    bool or None
        Whether all nested reports with a verdict say True.

    Examples
    --------
    >>> from otflow.proximal import Certificate
    >>> from otflow.schemes.reports import converged
    >>> parts = (Certificate(converged=True), Certificate())
    >>> converged(Certificate(entries={"parts": parts}))
    True
    """
    verdicts = [solve.converged for solve in solves(report)]
    return all(verdicts) if verdicts else None


def certified(report: Certificate) -> bool | None:
    """Return whether a step is certified; None if nothing in it claims a guarantee.

    A step of several parts has no guarantee of its own. It counts as certified if each
    part that claims a guarantee is certified.

    Parameters
    ----------
    report : Certificate
        The ``info`` of a step.

    Returns
    -------
    bool or None
        The verdict.

    Examples
    --------
    >>> from otflow.proximal import Certificate
    >>> from otflow.schemes.reports import certified
    >>> certified(Certificate()) is None
    True
    """
    if report.guarantee is not None:
        return report.certified
    inner = map(certified, _nested(report, NESTED))
    verdicts = [found for found in inner if found is not None]
    return all(verdicts) if verdicts else None


def composed(
    parts: Sequence[Certificate],
    *,
    dt: float,
    w2: float | None,
    eps: float,
    energy_before: float | None = None,
    **own: Any,
) -> Certificate:
    """Return the certificate of a step that is made of several solves.

    Parameters
    ----------
    parts : sequence of Certificate
        The certificates of the solves, in the order of time.
    dt : float
        Length of the whole step, > 0.
    w2 : float or None
        Length of the whole step, or an upper bound on it.
    eps : float
        Machine epsilon of the dtype in which the energies are computed.
    energy_before : float, optional
        F at the start, by default ``energy_before`` of the first part.
    **own : object
        Entries of the whole step.

    Returns
    -------
    Certificate
        Converged if all parts are, and certified (``"stages"``) at most if all parts
        are. ``residual`` is the largest of the parts, ``iterations`` their sum.
    """
    before = parts[0]["energy_before"] if energy_before is None else energy_before
    after = parts[-1]["energy_after"]
    certified = all(part.certified for part in parts)
    return certify(
        energy_before=before,
        energy_after=after,
        dt=dt,
        w2=w2,
        residual=max(part["residual"] for part in parts),
        converged=all(part.converged for part in parts),
        guarantee=Guarantee.STAGES if certified else Guarantee.NONE,
        noise=round_off(before, after, eps),
        iterations=sum(part.iterations or 0 for part in parts),
        **own,
    )


def failed(report: Certificate) -> list[Certificate]:
    """Return the reports of the solves of a step that did not converge.

    Parameters
    ----------
    report : Certificate
        The ``info`` of a step.

    Returns
    -------
    list of Certificate
        The reports, nested ones included. If the solver knows why it failed, its report
        holds ``cause`` and ``cure``.

    Examples
    --------
    >>> from otflow.proximal import Certificate
    >>> from otflow.schemes.reports import failed
    >>> known = {"converged": False, "cause": "a kink", "cure": "smooth it"}
    >>> [solve["cure"] for solve in failed(Certificate.of(known))]
    ['smooth it']
    """
    return [solve for solve in solves(report) if not solve.converged]


def rose(report: Certificate, noise: float) -> bool | None:
    """Return whether a step raised the energy; None if its report does not say.

    Parameters
    ----------
    report : Certificate
        The ``info`` of a step.
    noise : float
        Round-off of an energy, relative to its size.

    Returns
    -------
    bool or None
        Whether ``energy_after`` exceeds ``energy_before`` by more than the round-off
        and, if the solve converged, by more than the ``noise`` of its certificate.
    """
    # Langevin records the energy without the entropy, which may rise.
    if "temperature" in report.entries:
        return False
    # One part of a measure may fall where all together rise.
    inner = report.entries.get("parts", ())
    parts = [rose(part, noise) for part in inner if "part" not in part.entries]
    if parts:
        return None if all(part is None for part in parts) else any(parts)
    a, b = report.energy_before, report.energy_after
    if a is None or b is None:
        return None
    # Without convergence the noise is a residual, which may hide a rise.
    known = 0.0 if report.converged is False else report.noise or 0.0
    return b - a > max(noise * max(abs(a), abs(b)), known)


def parts_of(report: Certificate, *, of_all: bool = False) -> Iterator[Certificate]:
    """Yield the reports of the parts of a step that have no parts themselves.

    The stages of a step of higher order are no steps: it is one part.

    Parameters
    ----------
    report : Certificate
        The ``info`` of a step.
    of_all : bool
        Whether to leave out the steps of one part of a measure. Each of these lowers
        another functional than F, in which the other parts are frozen.

    Yields
    ------
    Certificate
        A report without parts.
    """
    if of_all and "part" in report.entries:
        return
    inner = _inner(report)
    if not inner:
        yield report
    for part in inner:
        yield from parts_of(part, of_all=of_all)


def levels_of(report: Certificate) -> Iterator[Certificate]:
    """Yield a report and all that it holds: a wrapper of parts has its own entries.

    Parameters
    ----------
    report : Certificate
        The ``info`` of a step.

    Yields
    ------
    Certificate
        The report, a part, or a part of a part.
    """
    yield report
    for part in _inner(report):
        yield from levels_of(part)


def _inner(report: Certificate) -> list[Certificate]:
    """Return the parts of a step; its stages are none."""
    return _nested(report, [name for name in NESTED if name != "stages"])


def _nested(report: Certificate, names: Sequence[str]) -> list[Certificate]:
    """Return the reports that the entries of these names hold."""
    return [part for name in names for part in report.entries.get(name, ())]


def may_rise(report: Certificate) -> bool:
    """Return whether a step need not lower the energy, as one with momentum.

    The report of a user's scheme says so by ``descends=False``.

    Parameters
    ----------
    report : Certificate
        The ``info`` of a step.

    Returns
    -------
    bool
        Whether the energy may rise.
    """
    return prescribed(report) or any(
        leaf.entries.get("descends") is False for leaf in parts_of(report)
    )


def prescribed(report: Certificate) -> bool:
    """Return whether a step has the length of a plain Frank-Wolfe step.

    That length depends on the number of the step alone. The sliding variant looks at
    the energy, and reports it.

    Parameters
    ----------
    report : Certificate
        The ``info`` of a step.

    Returns
    -------
    bool
        Whether a part of the step is such a one.
    """
    return any(
        "gap_kind" in leaf.entries and leaf.energy_after is None
        for leaf in parts_of(report)
    )
