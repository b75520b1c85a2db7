"""A report on a run: what is proved, what is only observed, what failed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from otflow._validation import check_kind, non_negative_int
from otflow._versions import installed
from otflow.analysis.charts import check_together
from otflow.analysis.findings import Finding, RunCertificate, StepFinding, Verdict
from otflow.analysis.run_descent import energy_of, settled
from otflow.analysis.run_dissipation import ENDED, dissipation_of
from otflow.analysis.run_energies import functional_of
from otflow.analysis.run_gaps import gap_of, slope_of
from otflow.analysis.run_mixture import mixture_of
from otflow.analysis.run_modulus import doubt_of_modulus, modulus_of
from otflow.analysis.run_steps import (
    gap_of_steps,
    has_mobility,
    lowers_another,
    steps_of,
)
from otflow.errors import Unsupported
from otflow.functionals.base import Functional, check_functional
from otflow.measures import Measure
from otflow.optimality import Domain
from otflow.optimality.domains import check_domain
from otflow.schemes import reports
from otflow.trajectory import Trajectory

__all__ = ["certify"]


def certify(
    run: Trajectory[Any],
    F: Functional,
    *,
    domain: Domain | None = None,
    descend: int = 50,
    against: Measure | Iterable[Measure] = (),
) -> RunCertificate:
    r"""Return a report on a run: what is proved, only observed, failed or unknown.

    ======================== ==========================================================
    Finding                  Verdict
    ======================== ==========================================================
    ``"status"``             observed, or failed if the run diverged or was interrupted
    ``"functional"``         observed: F gives the energies that the run recorded
    ``"energy"``             observed, or failed if a step raised the energy that has to
                             lower it
    ``"solves"``             observed, or failed if a solve did not converge
    ``"exact step"``         proved if each step bounds the distance to the exact one
    ``"time error"``         proved, by `~otflow.Trajectory.time_error`
    ``"modulus"``            observed, or failed if a step refutes it, by the energy it
                             lost or by `evolution_variational_inequality`
    ``"dissipation"``        observed, by `energy_dissipation`
    ``"slope"``              observed: :math:`F - \inf F \le |v|^2/2\lambda`, with the
                             infimum over the representation, as over all Gaussians
    ``"mixture"``            observed, or failed if values of F contradict its
                             `~otflow.Functional.mixture_curvature`
    ``"gap"``                proved or observed, by `otflow.optimality.optimality_gap`
    ``"step gap"``           proved or observed: the least ``info["gap"]`` of the steps
    ======================== ==========================================================

    Each is unknown where it has no meaning for the run, and its text says why. A proof
    rests on the convexities that are declared of F; the report says which, and where
    each comes from (`Functional.why`). What rests on a convexity that the run
    contradicts is failed, in the rows of the steps too.

    Parameters
    ----------
    run : Trajectory
        What `otflow.flow` returned, or the ``trajectory`` of a `Diverged`; by any
        scheme.
    F : Functional
        The functional of the run. The energies of the snapshots and of the end are
        computed again, and compared with the records.
    domain : Domain, optional
        Over which measures the optimality gap of the end is taken; without it there is
        none.
    descend : int
        Number of descent steps of the gap, see `optimality_gap`.
    against : Measure or iterable of Measure
        Measures to try the convexities of F against, as a minimiser or other snapshots.
        With a `domain` the place of the least F' is tried too.

    Returns
    -------
    RunCertificate
        The report, as text, HTML or JSON.

    Raises
    ------
    InvalidFunctional
        If F is not the functional of the run: it gives other energies, or holds another
        factor of `otflow.Entropy` than the noise of the run had.
    TypeError
        If an argument is of the wrong kind.

    See Also
    --------
    otflow.Trajectory.summary : How the run went, without any computation.

    Notes
    -----
    Cost: two values and a velocity of F for each snapshot, one gap, and for each
    measure of `against` two distances for each step and some ten values of F.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
    >>> mu = of.Particles(torch.tensor([[1.0], [3.0]], dtype=torch.float64))
    >>> run = of.flow(F, mu, of.JKO(), dt=0.5, steps=4)
    >>> report = of.analysis.certify(run, F)
    >>> [finding.name for finding in report.proved]
    ['exact step', 'time error']
    """
    check_kind(run, Trajectory, "run", cure="pass what flow returned")
    check_functional(F)
    if isinstance(against, (Tensor, np.ndarray, Trajectory)):  # iterable as well
        check_kind(against, Measure, "against")
    against = (against,) if isinstance(against, Measure) else tuple(against)
    named = {f"against[{i}]": nu for i, nu in enumerate(against)}
    check_together({"the end of the run": run.final, **named})
    if domain is not None:
        check_domain(domain)
    descend = non_negative_int(descend, "descend")
    functional = functional_of(run, F)
    steps = settled(run, F, tuple(steps_of(run)))
    dim = run.final.dim
    gap, place = gap_of(F, run.final, domain, descend)
    nus = [(f"the measure {name}", nu) for name, nu in named.items()]
    doubt, why = doubt_of_modulus(run, F, dim), F.why(dim)
    modulus, refuted = modulus_of(run, F, nus, place), None
    if modulus.verdict == Verdict.FAILED:
        doubt, refuted = doubt or modulus.text, modulus.text
        why += f"\nbut {refuted}"
    if doubt is not None:
        steps = tuple(map(_doubted, steps))
    mixture, gaps = mixture_of(run, F, (*nus, *place)), [gap, gap_of_steps(run)]
    if mixture.verdict == Verdict.FAILED:
        gaps = [_void(found, mixture) for found in gaps]
        why += f"\nbut {mixture.text}"
    findings = [
        _status(run),
        functional,
        energy_of(run, F, steps),
        _solves(run),
        _exact(steps, doubt, _metric_of(run)),
        _time_error(run, doubt),
        modulus,
        dissipation_of(run, F),
        slope_of(F, run.final, refuted),
        mixture,
        *gaps,
    ]
    count = len(run.info)
    head = f"{run.status} after {count} step{'s' * (count != 1)}"
    if len(run.times):
        head += f", t = {float(run.times[-1]):.6g}"
    about = {
        "functional": repr(F),
        "scheme": run.bookmark.context["scheme"] if run.bookmark else "not recorded",
        "measure": _size(run.final),
        "dt": _lengths(steps),
        "seed": str(run.seed),
        "domain": "none was given" if domain is None else repr(domain),
        "otflow": installed("otflow"),
    }
    return RunCertificate(head, tuple(findings), steps, why, about)


def _size(mu: Measure) -> str:
    return f"{type(mu).__name__}, n = {mu.n}, d = {mu.dim}, {mu.dtype}"


def _lengths(steps: Sequence[StepFinding]) -> str:
    """Return the lengths of the steps, as far as they are known."""
    known = [step.dt for step in steps if step.dt is not None]
    if not known:
        return "not recorded of single steps"
    low, high = f"{min(known):.6g}", f"{max(known):.6g}"
    return low if low == high else f"{low} to {high}"


def _void(gap: Finding, mixture: Finding) -> Finding:
    """Return a finding on a gap, which rests on a convexity that is contradicted."""
    if gap.verdict == Verdict.UNKNOWN:
        return gap
    return Finding(gap.name, Verdict.FAILED, None, f"nothing is proved: {mixture.text}")


def _doubted(step: StepFinding) -> StepFinding:
    """Return a step without the proof that rests on a modulus in doubt."""
    if step.exact != Verdict.PROVED:
        return step
    return replace(step, exact=Verdict.FAILED, bound=None)


def _status(run: Trajectory[Any]) -> Finding:
    verdict = Verdict.OBSERVED if run.status in ENDED else Verdict.FAILED
    return Finding("status", verdict, None, f"{run.status}: {run.message}")


def _solves(run: Trajectory[Any]) -> Finding:
    solved = [found for r in run.info if (found := reports.converged(r)) is not None]
    if not solved:
        return Finding("solves", Verdict.UNKNOWN, None, "no step solved anything")
    good, of = sum(solved), f"of {len(solved)} steps"
    if good < len(solved):
        text = f"converged in {good} {of}; run.summary() names the cures"
        return Finding("solves", Verdict.FAILED, float(good), text)
    return Finding("solves", Verdict.OBSERVED, float(good), f"converged in {good} {of}")


def _metric_of(run: Trajectory[Any]) -> str:
    """Return in which metric the JKO steps of a run are, if it is not that of W2."""
    return " in the metric of the mobility" if any(map(has_mobility, run.info)) else ""


def _exact(steps: Sequence[StepFinding], doubt: str | None, metric: str) -> Finding:
    name, of = "exact step", f"of {len(steps)} steps"
    proved = [s for s in steps if s.exact == Verdict.PROVED]
    if doubt is not None:
        return Finding(name, Verdict.FAILED, None, f"nothing is proved: {doubt}")
    if proved and len(proved) == len(steps):
        bound = max(s.bound or 0.0 for s in steps)
        text = (
            f"each step ended within W2 distance {bound:.3g} of the exact JKO step"
            f"{metric} from the same start, by the modulus of F"
        )
        return Finding(name, Verdict.PROVED, bound, text)
    failures = [s for s in steps if s.exact == Verdict.FAILED]
    if failures:
        text = f"no guarantee in {len(failures)} {of}, first in step {failures[0].step}"
        return Finding(name, Verdict.FAILED, float(len(failures)), text)
    critical = [s for s in steps if s.exact == Verdict.OBSERVED]
    partly = sum(" parts" in (s.guarantee or "") for s in critical)
    if proved or critical:
        text = (
            f"{len(proved)} {of} have a bound on the distance to the exact JKO step"
            f"{metric}; {len(critical)} ended at a critical point of the objective, to "
            f"the tolerance"
        )
        if partly:
            text += (
                f"; in {partly} that is so of the parts that solve something, and for "
                f"the step as a whole there is no exact JKO step"
            )
        return Finding(name, Verdict.OBSERVED, None, text)
    text = "no step says how far its end is from that of an exact JKO step"
    return Finding(name, Verdict.UNKNOWN, None, text)


def _time_error(run: Trajectory[Any], doubt: str | None) -> Finding:
    name = "time error"
    if doubt is not None:
        return Finding(name, Verdict.FAILED, None, f"nothing is proved: {doubt}")
    if not run.info or not len(run.times):
        return Finding(name, Verdict.UNKNOWN, None, "no step was made")
    if any(lowers_another(report) for report in run.info):
        text = (
            "the steps minimised other draws of data, F at another temperature, or F "
            "in one part of the measure"
        )
        return Finding(name, Verdict.UNKNOWN, None, text)
    try:
        bound = float(run.time_error()[-1])
    except Unsupported as error:
        return Finding(name, Verdict.UNKNOWN, None, str(error))
    text = (
        f"the exact flow is within W2 distance {bound:.3g} at the last record, in the "
        f"same representation, by the modulus of F"
    )
    way = sum(report.w2 or 0.0 for report in run.info)
    if bound > way:
        text += f"; that is more than the way of the run, {way:.3g}, and tells little"
    return Finding(name, Verdict.PROVED, bound, text)
