"""The laws of every proximal solver; the test of each class inherits them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from otflow.functionals import Functional, Potential
from otflow.measures import Measure
from otflow.metrics import wasserstein2_squared
from otflow.proximal import ProximalSolver, ProxResult
from otflow.proximal.certificate import CERTIFYING, WORDS, Guarantee
from otflow.testing.clouds import (
    assert_plain,
    assert_untouched,
    global_state,
    moving,
    state,
    weighted,
)

__all__ = ["Problem", "ProximalContract", "check_certificate", "check_flags"]


@dataclass(frozen=True)
class Problem:
    """A step, the W2 distance of measures, and the exact step if it is known.

    Parameters
    ----------
    functional : Functional
        The functional to minimise.
    start : Measure
        The measure to step from.
    dt : float
        Length of the step in time.
    distance : callable
        Returns the W2 distance of two measures, by a method that shares no code with
        the solver.
    exact : callable, optional
        Returns the distance of a measure from the exact step.
    slack : float
        Error of distances in this representation.

    Attributes
    ----------
    functional, start, dt, distance, exact, slack
        As above.

    Examples
    --------
    >>> import torch, otflow as of
    >>> from otflow.testing import Problem
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    >>> mu = of.Particles(torch.ones(3, 2))
    >>> Problem(F, mu, 0.1, lambda a, b: float(of.metrics.wasserstein2(a, b))).dt
    0.1
    """

    functional: Functional
    start: Measure
    dt: float
    distance: Callable[[Any, Any], float]
    exact: Callable[[Any], float] | None = None
    slack: float = 1e-9


def check_certificate(
    report: Mapping[str, Any], problem: Problem, end: Measure
) -> None:
    """Check all words of a report of a step from the problem's start to `end`.

    Parameters
    ----------
    report : mapping
        The certificate of the step.
    problem : Problem
        The problem of the step.
    end : Measure
        The measure that the solver returned.

    Examples
    --------
    >>> import torch, otflow as of
    >>> from otflow.testing import Problem, check_certificate
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    >>> mu = of.Particles(torch.ones(3, 2, dtype=torch.float64))
    >>> problem = Problem(F, mu, 0.1, lambda a, b: float(of.metrics.wasserstein2(a, b)))
    >>> result = of.proximal.ParticleProximal().solve(F, mu, 0.1)
    >>> check_certificate(result.certificate, problem, result.measure)
    """
    F, mu, dt = problem.functional, problem.start, problem.dt
    assert set(report) >= set(WORDS)
    before, after, w2 = (report[k] for k in ("energy_before", "energy_after", "w2"))
    # Energies are those of the functional.
    assert before == pytest.approx(float(F.value(mu)), rel=1e-9, abs=1e-9)
    assert after == pytest.approx(float(F.value(end)), rel=1e-9, abs=1e-9)
    # The distance is one, or an upper bound.
    if w2 is None:
        assert report["decrease"] is None
    else:
        found = problem.distance(mu, end)
        assert math.isfinite(w2)
        assert w2 >= found - problem.slack - 1e-6 * found
        lost = before - after - w2 * w2 / (2 * dt)
        assert report["decrease"] == pytest.approx(lost, rel=1e-9, abs=1e-12)
    check_flags(report)
    bound = report["bound"]
    if bound is not None and problem.exact is not None:
        assert problem.exact(end) <= bound + problem.slack


def check_flags(report: Mapping[str, Any]) -> None:
    """Check that the certificate claims no more than its numbers show.

    Parameters
    ----------
    report : mapping
        The certificate of a step.

    Examples
    --------
    >>> import torch, otflow as of
    >>> from otflow.testing import check_flags
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    >>> mu = of.Particles(torch.ones(3, 2))
    >>> check_flags(of.proximal.ParticleProximal().solve(F, mu, 0.1).certificate)
    """
    assert isinstance(report["converged"], bool)
    assert isinstance(report["certified"], bool)
    assert report["guarantee"] in list(Guarantee)
    assert report["certified"] == (report["guarantee"] in CERTIFYING)
    before, after = report["energy_before"], report["energy_after"]
    if not report["converged"]:
        assert report["guarantee"] == "none"
    if report["guarantee"] != "exact":
        assert report["bound"] is None
    else:
        assert report["bound"] is not None
    if report["certified"]:
        noise = report.get("noise", 0.0) + 1e-9 * (1 + abs(before) + abs(after))
        numbers = [before, after, report["residual"]]
        numbers += [report[k] for k in ("w2", "bound", "decrease")]
        assert all(x is None or math.isfinite(x) for x in numbers)
        assert after <= before + noise
        assert report["decrease"] is None or report["decrease"] >= -noise


class ProximalContract:
    """The laws of a proximal solver; a test class inherits them.

    A subclass makes the solver (`make`) and the measure to step from (`start`). If the
    exact step is known, or found by brute force, it overrides `exact`.

    Attributes
    ----------
    dt : float
        Length of the step in time.
    small : float
        Length of a short step, as a share of `dt`.
    accuracy : float
        Largest distance of two solutions of one problem, as a share of the step.
    slack : float
        Error of distances in this representation.
    seeds : tuple of int
        Seeds of the starts.

    Examples
    --------
    >>> import torch, otflow as of
    >>> from otflow.testing import ProximalContract
    >>> class TestParticles(ProximalContract):
    ...     def make(self):
    ...         return of.proximal.ParticleProximal()
    >>> TestParticles().test_a_warm_start_changes_nothing_but_time()
    """

    dt: float = 0.3
    small: float = 1e-6
    accuracy: float = 1e-3
    slack: float = 1e-9
    seeds: tuple[int, ...] = (0, 1, 2)

    # What a subclass states ----------------------------------------------------------

    def make(self) -> ProximalSolver[Any]:
        """Return the solver."""
        raise NotImplementedError

    def crude(self) -> ProximalSolver[Any] | None:
        """Return a solver that stops before a long step has converged, or None."""
        return None

    def start(
        self, dtype: torch.dtype = torch.float64, seed: int = 0, scale: float = 1.0
    ) -> Any:
        """Return a measure to step from, in units of `scale`; by default atoms."""
        mu = weighted(7, 2, seed=seed, dtype=dtype)
        return mu.push((scale - 1) * mu.points, 1.0)

    def functional(self, scale: float = 1.0) -> Functional:
        """Return the functional in units of `scale`: F(mu) is scale^2 F(mu/scale).

        The default is a smooth convex potential with one minimum.
        """
        return Potential(
            lambda x: scale**2 * (1 + (x / scale - 0.5).square().sum(-1)).sqrt(),
            modulus=0.0,
        )

    def exact(self, F: Functional, mu: Any, dt: float) -> Any:
        """Return the exact step, or None if it is not known."""
        return None

    def distance(self, mu: Any, nu: Any) -> float:
        """Return the W2 distance of two measures, or a lower bound of it.

        The default calls `wasserstein2_squared`. A measure that it does not know
        returns the distance of two clouds at its points, for one.
        """
        return math.sqrt(max(float(wasserstein2_squared(mu, nu)), 0.0))

    def coordinates(self, mu: Any) -> Tensor:
        """Return the tensor that a step moves, in units of length or of none."""
        return moving(mu)

    def permuted(self, mu: Any, order: Tensor) -> Any:
        """Return the measure with its points permuted; None if their order is fixed."""
        return None

    def scaled(self, coordinates: Tensor, scale: float) -> Tensor | None:
        """Return coordinates in units of `scale`; None if they have no unit."""
        return coordinates * scale

    # ----------------------------------------------------------------------------------

    def problem(self, seed: int = 0) -> Problem:
        """Return the problem of a seed."""
        F, mu = self.functional(), self.start(seed=seed)
        goal = self.exact(F, mu, self.dt)
        known = None if goal is None else lambda nu: self.distance(nu, goal)
        return Problem(F, mu, self.dt, self.distance, known, self.slack)

    def solve(self, problem: Problem) -> ProxResult[Any]:
        """Return the step of a problem."""
        return self.make().solve(problem.functional, problem.start, problem.dt)

    def solved(self, F: Functional, mu: Any, dt: float, **options: Any) -> Any:
        """Return the measure of a step that has converged."""
        result = self.make().solve(F, mu, dt, **options)
        report = result.certificate
        assert report["converged"], (
            f"not converged from a start in {mu.dtype}: {report['residual']=}, "
            f"{report['iterations']=}; `make` may give another tolerance or budget"
        )
        return result.measure

    def length(self, seed: int = 0) -> float:
        """Return the largest change of a coordinate in the step of a seed."""
        F, mu = self.functional(), self.start(seed=seed)
        nu = self.solved(F, mu, self.dt)
        return float((self.coordinates(nu) - self.coordinates(mu)).abs().max())

    # Laws -----------------------------------------------------------------------------

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_a_step_keeps_class_dtype_and_mass(self, dtype: torch.dtype) -> None:
        """Check that a step keeps class, dtype and mass, and carries no graph."""
        mu = self.start(dtype)
        nu = self.solved(self.functional(), mu, self.dt)
        assert type(nu) is type(mu)
        assert {tensor.dtype for tensor in nu.tensors()} == {dtype}
        assert not nu.fault()
        assert_plain(*nu.tensors())

    def test_a_step_keeps_the_laws_of_its_certificate(self) -> None:
        """Check every word of the certificate against other means."""
        for seed in self.seeds:
            problem = self.problem(seed)
            result = self.solve(problem)
            check_certificate(result.certificate, problem, result.measure)
            assert result.certificate["converged"]
            assert result.iterations >= 0
            assert result.residual == result.certificate["residual"]

    def test_a_certificate_is_written_as_json(self) -> None:
        """Check that JSON writes the whole certificate, without an infinity or NaN."""
        hasty = self.crude() or self.make()
        for solver, dt in ((self.make(), self.dt), (hasty, 100 * self.dt)):
            report = solver.solve(self.functional(), self.start(), dt).certificate
            written = report.to_dict()
            assert set(written) == set(report)
            assert json.loads(json.dumps(written, allow_nan=False)) == written

    def test_a_step_lowers_the_objective(self) -> None:
        """Check that F falls by no less than the transport cost, up to round-off."""
        for seed in self.seeds:
            report = self.solve(self.problem(seed)).certificate
            noise = report.get("noise", 0.0) + 1e-12
            assert report["energy_after"] <= report["energy_before"] + noise
            if report["w2"] is not None:
                assert report["decrease"] >= -noise

    def test_a_step_is_the_exact_one(self) -> None:
        """Check that the step is the exact one, where that is known."""
        for seed in self.seeds:
            problem = self.problem(seed)
            if problem.exact is not None:
                nu = self.solve(problem).measure
                moved = problem.distance(problem.start, nu)
                assert problem.exact(nu) <= self.accuracy * moved + problem.slack

    def test_a_step_that_stops_early_claims_nothing(self) -> None:
        """Check the flags of long steps by a solver that stops at once."""
        solver = self.crude()
        if solver is None:
            return
        verdicts = []
        for seed in self.seeds:
            F, mu = self.functional(), self.start(seed=seed)
            report = solver.solve(F, mu, 100 * self.dt).certificate
            check_flags(report)
            verdicts.append(report["converged"])
        assert not all(verdicts)

    def test_the_step_vanishes_with_dt(self) -> None:
        """Check that a step of no time goes nowhere."""
        F, mu = self.functional(), self.start()
        nu = self.make().solve(F, mu, self.small * self.dt).measure
        gap = (self.coordinates(nu) - self.coordinates(mu)).abs().max()
        assert float(gap) <= 10 * self.small * self.length()

    def test_a_warm_start_changes_nothing_but_time(self) -> None:
        """Check that the second step is the same, warm or cold."""
        F, mu, dt = self.functional(), self.start(), self.dt
        first = self.make().solve(F, mu, dt)
        assert first.certificate["converged"]
        cold = self.solved(F, first.measure, dt)
        warm = self.solved(F, first.measure, dt, warm=first.warm)
        gap = (self.coordinates(warm) - self.coordinates(cold)).abs().max()
        assert float(gap) <= self.accuracy * self.length()

    def test_a_solve_is_pure(self) -> None:
        """Check that the same arguments give the same step, and nothing is written."""
        F, mu, solver = self.functional(), self.start(), self.make()
        before, surroundings = state(mu), global_state()
        one, two = (solver.solve(F, mu, self.dt) for _ in range(2))
        assert one.certificate["converged"]
        assert two.certificate["converged"]
        assert_untouched(mu, before)
        assert global_state() == surroundings
        assert torch.equal(self.coordinates(one.measure), self.coordinates(two.measure))

    def test_the_order_of_the_points_is_immaterial(self) -> None:
        """Check that points in another order take the same step."""
        F, mu = self.functional(), self.start()
        order = torch.randperm(mu.n, generator=torch.Generator().manual_seed(6))
        other = self.permuted(mu, order)
        if other is not None:
            one, two = (self.solved(F, start, self.dt) for start in (mu, other))
            gap = self.coordinates(self.permuted(one, order)) - self.coordinates(two)
            assert float(gap.abs().max()) <= self.accuracy * self.length()

    @pytest.mark.parametrize("scale", [2.0**-10, 2.0**10])
    def test_units_of_length_are_immaterial(self, scale: float) -> None:
        """Check that a step in other units is the same step."""
        one = self.solved(self.functional(), self.start(), self.dt)
        expected = self.scaled(self.coordinates(one), scale)
        unit = self.scaled(torch.ones_like(self.coordinates(one)[:1]), scale)
        if expected is None or unit is None:
            return
        other = self.solved(self.functional(scale), self.start(scale=scale), self.dt)
        gap = (self.coordinates(other) - expected).abs().max()
        assert float(gap) <= self.accuracy * self.length() * float(unit.abs().max())

    def test_float32_agrees_with_float64(self) -> None:
        """Check that a step in single precision is the one in double precision."""
        F = self.functional()
        single, double = (
            self.solved(F, self.start(dtype), self.dt)
            for dtype in (torch.float32, torch.float64)
        )
        gap = self.coordinates(single).double() - self.coordinates(double)
        size = float(self.coordinates(double).abs().max())
        assert float(gap.abs().max()) <= self.accuracy * self.length() + 1e-5 * size
