"""What is found of a run: proved, observed, failed or unknown."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from otflow import _views
from otflow._words import Word

__all__ = ["Finding", "RunCertificate", "StepFinding", "Verdict"]

COLUMNS = (
    "step",
    "dt",
    "energy after",
    "energy",
    "solver claims",
    "exact step within",
)

# What the value of a finding is.
QUANTITIES = {
    "functional": "largest relative difference of an energy from its record",
    "energy": "number of steps, or of pairs of records, that rose",
    "solves": "number of steps whose solves converged",
    "exact step": "bound of the W2 distance of a step from the exact one",
    "time error": "bound of the W2 distance from the exact flow at the end",
    "modulus": "least slack of the inequality of a step",
    "dissipation": "energy lost, less the integral of the squared velocity",
    "slope": "bound of F - inf F over the representation",
    "mixture": "least slack of the inequality at a mixture",
    "gap": "bound of F - inf F",
    "step gap": "bound of F - inf F",
}


class Verdict(Word):
    """How well something is known; each member equals its string.

    Examples
    --------
    >>> import otflow as of
    >>> of.analysis.Verdict.PROVED == "proved"
    True
    """

    PROVED = "proved"
    """It follows from what is declared of F, round-off included."""
    OBSERVED = "observed"
    """It was computed or searched for, and nothing is proved."""
    FAILED = "failed"
    """What a run should do, it did not."""
    UNKNOWN = "unknown"
    """Nothing can be said; the text says why."""


@dataclass(frozen=True)
class Finding:
    """One thing that is known of a run.

    Parameters
    ----------
    name : str
        What it is about.
    verdict : Verdict
        How well it is known.
    value : float or None
        The number, if it is one; `quantity` says of what.
    text : str
        The same in words, with the hypotheses of a proof.

    Attributes
    ----------
    name, verdict, value, text
        As above.

    Examples
    --------
    >>> from otflow.analysis import Finding, Verdict
    >>> found = Finding("gap", Verdict.OBSERVED, 0.5, "at most 0.5, as far as searched")
    >>> found.value, found.quantity
    (0.5, 'bound of F - inf F')
    """

    name: str
    verdict: Verdict
    value: float | None
    text: str

    @property
    def quantity(self) -> str:
        """What the number is; empty where there is none."""
        if self.value is None:
            return ""
        if self.name == "exact step" and self.verdict == Verdict.FAILED:
            return "number of steps without a guarantee"
        return QUANTITIES.get(self.name, "")


@dataclass(frozen=True)
class StepFinding:
    """What is known of one step of a run.

    Parameters
    ----------
    step : int
        Number of the step, from 0.
    dt : float or None
        The time that it took, if its report or the records say so.
    energy_before, energy_after : float or None
        F at both ends, from the report of the step or from the records.
    energy : Verdict
        "observed" if the energy did not rise, "failed" if it rose beyond round-off,
        also that inside of F; "unknown" if an end is not known, or if it rose as the
        scheme allows: by noise, by the prescribed length of a plain Frank-Wolfe step,
        or where its report says ``descends=False``.
    guarantee : str or None
        What its solver claims, or the solvers of its parts, and in how many parts; None
        if nothing was solved. The claim rests on the modulus of F.
    exact : Verdict
        What the claim is worth. "proved" if every part of the step is within `bound` of
        its exact JKO step; "observed" if what was solved ended at a critical point;
        "failed" if a solver gives no guarantee, or its modulus of F is contradicted;
        "unknown" if nothing was solved.
    bound : float or None
        W2 distance of the exact step from the same start, at most; the largest of a
        step of several parts.

    Attributes
    ----------
    step, dt, energy_before, energy_after, energy, guarantee, exact, bound
        As above.

    Examples
    --------
    >>> from otflow.analysis import StepFinding, Verdict
    >>> seen, unknown = Verdict.OBSERVED, Verdict.UNKNOWN
    >>> StepFinding(0, 0.1, 2.0, 1.5, seen, None, unknown, None).energy
    'observed'
    """

    step: int
    dt: float | None
    energy_before: float | None
    energy_after: float | None
    energy: Verdict
    guarantee: str | None
    exact: Verdict
    bound: float | None


@dataclass(frozen=True, eq=False)
class RunCertificate:
    """What is proved of a run, what is only observed, and what failed.

    ``print(report)`` shows it as text, a notebook as a page, and ``report.to_json()``
    writes it. It is a list of findings, each with its verdict, and one row for each
    step. ``report[name]`` is a finding, ``for finding in report`` runs through them.

    Parameters
    ----------
    head : str
        How the run ended.
    findings : tuple of Finding
        What is known of the whole run.
    steps : tuple of StepFinding
        What is known of each step.
    why : str
        The convexities of F and their reasons, as by `Functional.why`.
    about : mapping of str to str, optional
        What was certified: the functional, the scheme, the measure at the end, the
        step length and the seed, the domain and the version of otflow.

    Attributes
    ----------
    head, findings, steps, why, about
        As above.

    See Also
    --------
    otflow.analysis.certify : Makes one.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
    >>> mu = of.Particles(torch.ones(2, 1, dtype=torch.float64))
    >>> report = of.analysis.certify(of.flow(F, mu, of.JKO(), dt=0.5, steps=2), F)
    >>> report["time error"].verdict, len(report.failed)
    ('proved', 0)
    """

    head: str
    findings: tuple[Finding, ...]
    steps: tuple[StepFinding, ...]
    why: str
    about: Mapping[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __contains__(self, name: object) -> bool:
        """Return whether there is a finding of this name, or this finding."""
        return any(name in (finding.name, finding) for finding in self.findings)

    def __getitem__(self, name: str) -> Finding:
        """Return the finding of this name."""
        for finding in self.findings:
            if finding.name == name:
                return finding
        msg = f"{name!r}: the findings are {', '.join(f.name for f in self.findings)}"
        raise KeyError(msg)

    @property
    def proved(self) -> tuple[Finding, ...]:
        """The findings that are proved, under the hypotheses that they name."""
        return self._of(Verdict.PROVED)

    @property
    def observed(self) -> tuple[Finding, ...]:
        """The findings that were computed or searched for."""
        return self._of(Verdict.OBSERVED)

    @property
    def failed(self) -> tuple[Finding, ...]:
        """What the run should have done and did not."""
        return self._of(Verdict.FAILED)

    @property
    def unknown(self) -> tuple[Finding, ...]:
        """What nothing can be said of, and why."""
        return self._of(Verdict.UNKNOWN)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a dict that JSON can write."""
        return {
            "head": self.head,
            "about": dict(self.about),
            "findings": [
                _written(asdict(finding)) | {"quantity": finding.quantity}
                for finding in self.findings
            ],
            "steps": [_written(asdict(step)) for step in self.steps],
            "why": self.why.splitlines(),
        }

    def to_json(self) -> str:
        """Return the report as JSON; a number that is not finite is its text."""
        return json.dumps(self.to_dict(), allow_nan=False, indent=2)

    def _of(self, verdict: Verdict) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.verdict == verdict)

    def _groups(self) -> dict[str, list[tuple[str, ...]]]:
        order = (Verdict.FAILED, Verdict.PROVED, Verdict.OBSERVED, Verdict.UNKNOWN)
        about: dict[str, list[tuple[str, ...]]] = {"about": [*self.about.items()]}
        return about | {
            str(verdict): [(f.name, f.text) for f in self._of(verdict)]
            for verdict in order
        }

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                str(s.step),
                _short(s.dt),
                _short(s.energy_after),
                str(s.energy),
                f"{s.guarantee or '-'}",
                str(s.exact) if s.bound is None else f"{_short(s.bound)} ({s.exact})",
            )
            for s in self.steps
        ]

    def __str__(self) -> str:
        return _views.certificate_text(
            self.head, self._groups(), self.why, self._rows(), COLUMNS
        )

    def __repr__(self) -> str:
        counts = (f"{len(self._of(v))} {v}" for v in Verdict if self._of(v))
        return f"RunCertificate({self.head}: {', '.join(counts)})"

    def to_html(self) -> str:
        """Return a piece of HTML: the findings, the convexities, the steps.

        Returns
        -------
        str
            What a notebook shows. ``Path("report.html").write_text(report.to_html())``
            keeps it.
        """
        return _views.certificate_page(
            self, repr(self), self._groups(), self.why, self._rows(), COLUMNS
        )

    def _repr_html_(self) -> str:
        return self.to_html()


def _short(x: float | None) -> str:
    return "-" if x is None else f"{x:.4g}"


def _written(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without numbers that JSON does not have."""
    return {
        name: str(value)
        if isinstance(value, Word)
        or (isinstance(value, float) and not math.isfinite(value))
        else value
        for name, value in row.items()
    }
