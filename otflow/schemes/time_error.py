"""A bound on the accumulated error of the time steps of a JKO flow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from otflow._bounds import at_most
from otflow.errors import Unsupported

__all__ = ["time_error"]

# Constants c of Young's inequality. Each gives a bound; the least is returned.
YOUNG = torch.logspace(-3, 3, 25, dtype=torch.float64)
# Round-off of a float64 energy, relative to its size. A report's noise is that of its
# own dtype.
ROUND_OFF = 64 * torch.finfo(torch.float64).eps
# Relative difference of the energy at the end of a step from that at the start of the
# next, which may round the cells of the measure once more.
SAME = 1e-9
# Largest missing dissipation times tau, as a share of the squared estimate plus the
# squared length of the step. A solve that misses more dominates the estimate.
CONTRADICTION = 0.1


def time_error(reports: Iterable[Mapping[str, Any]], *, inner: bool) -> list[float]:
    r"""Return bounds on :math:`W_2(\mu(t_n), \mu^n)` for n = 0, 1, ....

    Parameters
    ----------
    reports : iterable of mapping
        The ``info`` of successive steps of ``JKO()``.
    inner : bool
        Whether to include the errors of the inner solves.

    Returns
    -------
    list of float
        One bound for the start, 0, and one for each single step; the two halves of a
        doubled step count as two.

    Raises
    ------
    Unsupported
        If a report lacks an entry that the bound needs. The message names the entry and
        the cure.

    Notes
    -----
    Let d be W2. Let :math:`\tau` be the time of a step, :math:`\delta` its length and
    :math:`\Delta` the energy that it loses. Let D(s) be the linear interpolation in
    time of :math:`d^2(\mu(s), \mu^{n-1})` and :math:`d^2(\mu(s), \mu^n)`. The step
    satisfies, for every :math:`\nu`,

    .. math:: \tfrac{1}{2\tau}\big(d^2(\mu^n, \nu) - d^2(\mu^{n-1}, \nu)\big)
        + \tfrac\lambda2 d^2(\mu^n, \nu)
        \le F(\nu) - F(\mu^n) - \tfrac{\delta^2}{2\tau},

    and the flow satisfies :math:`\tfrac12\frac{d}{ds} d^2(\mu(s), \nu) +
    \tfrac\lambda2 d^2(\mu(s), \nu) \le F(\nu) - F(\mu(s))`. Take :math:`\nu = \mu(s)`
    in the first inequality, and both ends of the step in the second. With the weights
    :math:`1 - \ell` and :math:`\ell = s/\tau` of the ends they add up to

    .. math:: D' \le 2(1-\ell)\Delta - \tfrac{\delta^2}{\tau} - \lambda D
        - \lambda\, d^2(\mu^n, \mu(s)).

    For :math:`\lambda = 0` the integral of the right side is :math:`\tau^2 E` of
    :cite:t:`nochetto2000posteriori`. Otherwise the triangle inequality and Young's
    inequality bound the last term by D; the constant that gives the least bound is
    taken.

    A result at distance :math:`\beta` from the exact step exceeds the least value of
    the JKO objective by at most :math:`\beta^2 (1/\tau + \lambda)`. This bounds
    :math:`\Delta` and :math:`\delta` of the exact step; :math:`\beta` is added to the
    root of D. The round-off of the energies is added to :math:`\Delta`.
    """
    errors = [0.0]
    before: float | None = None
    nodes = None
    for k, report in enumerate(_single(reports)):
        step = _checked(report, k, inner=inner)
        # On Gaussians a step may refine its quadrature, which changes every energy.
        rule = step.get("nodes")
        start, end = step["energy_before"], step["energy_after"]
        size = max(abs(start), abs(start - end))
        if before is not None and rule == nodes and abs(start - before) > SAME * size:
            _refuse(
                k,
                f"starts at the energy {start:.17g} where the step "
                f"before ended at {before:.17g}: the functional or the measure changed "
                f"in between",
                "flow one functional by JKO() alone",
            )
        before, nodes = end, rule
        if not inner:
            _check_dissipation(k, step, errors[-1])
        errors.append(_advance(k, errors[-1], step, inner=inner))
    return errors


def _single(reports: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield the reports of single steps; an adaptive step may hold two."""
    for report in reports:
        yield from report.get("substeps", (report,))


def _checked(report: Mapping[str, Any], k: int, *, inner: bool) -> Mapping[str, Any]:
    """Raise Unsupported if a report lacks an entry that the bound needs."""
    if report.get("order") != 1 or "energy_after" not in report:
        cure = "use JKO() of order 1, whose steps the estimate is about"
        order = report.get("order")
        what = "a proximal step" if order in (None, 1) else "of order 1"
        if "mobility" in report:
            what = "a proximal step of W2, but one in the metric of a mobility"
        _refuse(k, f"is not {what}", cure)
    modulus, dt = report["modulus"], report["dt"]
    if modulus is None:
        cure = "state it where you know it, e.g. Potential(V, modulus=0.0)"
        _refuse(k, "minimised a functional of unknown convexity", cure)
    if 1 + dt * modulus <= 0:
        cure = f"take dt < {at_most(-1 / modulus, 3)}"
        _refuse(k, f"is too long for the modulus {modulus:g}", cure)
    if report["w2"] is None:
        cure = "use a solver that knows it (without blur)"
        _refuse(k, "does not know its length", cure)
    if inner and (report["bound"] is None or "w2_upper" in report):
        cure = "estimate the error of the time steps alone: time_error(inner=False)"
        _refuse(k, "bounds neither its length nor its error exactly", cure)
    return report


def _check_dissipation(k: int, step: Mapping[str, Any], error: float) -> None:
    """Raise Unsupported if a step lost less energy than an exact step of its length.

    An exact step loses at least (1/tau + modulus/2) length^2. Tau times the missing
    energy, the square of a length, must be small beside the estimate.
    """
    tau, square = step["dt"], step["w2"] ** 2
    least = (1 / tau + 0.5 * step["modulus"]) * square
    missing = least - (step["energy_before"] - step["energy_after"]) - _round_off(step)
    if tau * missing > CONTRADICTION * (error**2 + square):
        what = (
            f"lost less energy than an exact step of its length, by {missing:.3g} of "
            f"{least:.3g}: errors of the inner solves outweigh those of the time steps"
        )
        cure = "take a smaller tolerance of the solver, or a finer grid, or a longer dt"
        _refuse(k, what, cure)


def _round_off(step: Mapping[str, Any]) -> float:
    """Return the round-off of the energy that a step loses."""
    size = max(abs(step["energy_before"]), abs(step["energy_after"]))
    return float(max(ROUND_OFF * size, step.get("noise", 0.0)))


def _advance(k: int, error: float, step: Mapping[str, Any], *, inner: bool) -> float:
    """Return the bound after a step, from the bound `error` before the step."""
    tau, modulus, length = step["dt"], step["modulus"], step["w2"]
    off = step["bound"] if inner else 0.0
    gap = off**2 * (1 / tau + modulus)
    lost = step["energy_before"] - step["energy_after"] + _round_off(step)
    rate, extra = _rates(modulus)
    # Integrals over the step of exp(-rate s), and of that times s / tau.
    whole, ramp = moments(rate * tau)
    whole, ramp = whole * tau, ramp * tau
    # 2 lost <= surplus + length^2 / tau for the exact step.
    surplus = 2 * (lost - length**2 / (2 * tau) + gap)
    factor = (ramp - whole) / tau + extra * ramp
    least, most = max(length - off, 0.0) ** 2, (length + off) ** 2
    squared = (-rate * tau).exp() * error**2 + surplus * ramp
    squared = squared + torch.where(factor < 0, factor * least, factor * most)
    # Where a large constant lets exp(-rate tau) overflow, it gives no bound.
    squared = squared[squared.isfinite()]
    if not len(squared):
        _refuse(k, "lets the bound overflow", "ask for the error of fewer steps")
    return math.sqrt(max(float(squared.min()), 0.0)) + off


def _rates(modulus: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rates r and factors e of D' <= ... - r D + e (1 - l) length^2."""
    if modulus > 0:
        # d^2(mu_n, .) >= D / (1 + c) - (1 - l) length^2 / c. The last rate drops d^2.
        rate = modulus * (1 + 1 / (1 + YOUNG))
        extra = modulus / YOUNG
        return (
            torch.cat([rate, rate.new_tensor([modulus])]),
            torch.cat([extra, extra.new_zeros(1)]),
        )
    # d^2(mu_n, .) <= (1 + c) D + (1 - l) (1 + 1/c) length^2.
    return modulus * (2 + YOUNG), -modulus * (1 + 1 / YOUNG)


def moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the integrals over [0, 1] of exp(-x u) and of u exp(-x u)."""
    # For small x the closed form of the second loses digits by cancellation. Below 1e-3
    # the series are right to x^4/120 < 1e-14.
    small = x.abs() < 1e-3
    y = torch.where(small, 1.0, x)
    whole = -torch.expm1(-y) / y
    ramp = (whole - (-y).exp()) / y
    series = 1 - x / 2 + x**2 / 6 - x**3 / 24
    ramp_series = 0.5 - x / 3 + x**2 / 8 - x**3 / 30
    return torch.where(small, series, whole), torch.where(small, ramp_series, ramp)


def _refuse(k: int, what: str, cure: str) -> None:
    msg = f"no bound on the error of the time steps: step {k} {what}; {cure}"
    raise Unsupported(msg)
