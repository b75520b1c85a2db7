"""What the reports of steps say together, however schemes are nested."""

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

__all__ = ["composed", "converged", "failed", "rose", "solves"]


def solves(report: Certificate) -> Iterator[Certificate]:
    """Yield a report, and all those within it, that say whether a solve converged.

    Parameters
    ----------
    report : Certificate
        The ``info`` of a step, which may hold ``parts``, ``substeps`` or ``stages``.

    Yields
    ------
    Certificate
        Those whose ``converged`` is not None.
    """
    if report.converged is not None:
        yield report
    for name in NESTED:
        for inner in report.entries.get(name, ()):
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
        The verdict of the step and of all that it is made of.

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


def composed(
    parts: Sequence[Certificate],
    *,
    dt: float,
    w2: float | None,
    eps: float,
    energy_before: float | None = None,
    **own: Any,
) -> Certificate:
    """Return the certificate of a step from those of the steps that it is made of.

    Parameters
    ----------
    parts : sequence of Certificate
        In the order of time, each of a solver.
    dt : float
        Step, > 0.
    w2 : float or None
        Length of the whole.
    eps : float
        That of the dtype in which the energies are computed.
    energy_before : float, optional
        F at the start, by default that of the first part.
    **own : object
        Entries of the whole.

    Returns
    -------
    Certificate
        It has converged if all parts have, is certified (``"stages"``) if all are,
        and has the worst residual and the sum of iterations.
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
    """Return the solves of a step that did not converge, however schemes are nested.

    Parameters
    ----------
    report : Certificate
        The ``info`` of a step.

    Returns
    -------
    list of Certificate
        Where the solver knows what ailed it they hold ``cause`` and ``cure``.

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
        Whether ``energy_after`` exceeds ``energy_before`` by more than that and, if the
        solve converged, by more than the ``noise`` of its certificate. Else the noise
        is the residual of a solve that went wrong, and hides what it did.
    """
    if "temperature" in report.entries:
        return False  # noise stands for the entropy, whose energy is not recorded
    parts = [rose(part, noise) for part in report.entries.get("parts", ())]
    if parts:
        return None if all(part is None for part in parts) else any(parts)
    a, b = report.energy_before, report.energy_after
    if a is None or b is None:
        return None
    known = 0.0 if report.converged is False else report.noise or 0.0
    return b - a > max(noise * max(abs(a), abs(b)), known)
