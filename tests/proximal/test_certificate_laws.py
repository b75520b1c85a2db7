"""Every solver and every scheme of steps: its words are what conventions say."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

import otflow as of
from otflow.proximal import (
    BackAndForth,
    FiniteVolume,
    GaussianProximal,
    GridSinkhorn,
    ParticleProximal,
    PointwiseProximal,
    ProximalSolver,
    QuantileProximal,
    SinkhornParticles,
    TangentProximal,
)
from otflow.schemes import Adaptive
from otflow.testing import check_certificate, check_flags
from tests.proximal import problems as law

# A solver, one that stops at once, its problems: a new solver is a line here, and
# `test_every_solver_has_its_laws` misses it.
SOLVERS: dict[str, tuple[Callable[..., Any], dict[str, int], Callable[..., Any]]] = {
    "particles": (ParticleProximal, {"max_gradients": 2}, law.particles),
    "wells": (
        ParticleProximal,
        {"max_gradients": 4},
        lambda seed: law.particles(seed, convex=False),
    ),
    "Sinkhorn particles": (
        partial(SinkhornParticles, 0.02, tolerance=1e-2),
        {"max_gradients": 3},
        lambda seed: law.particles(seed, convex=False),
    ),
    "a map": (PointwiseProximal, {}, law.mapped),
    "tangents of wells": (
        TangentProximal,
        {"max_gradients": 4},
        lambda seed: law.particles(seed, convex=False),
    ),
    "tangents of Gaussians": (TangentProximal, {"max_gradients": 3}, law.gaussians),
    "tangents of quantiles": (TangentProximal, {"max_gradients": 2}, law.quantiles),
    "Gaussians": (GaussianProximal, {"max_gradients": 1}, law.gaussians),
    "bent Gaussians": (GaussianProximal, {"max_gradients": 1}, law.bent),
    "quantiles": (QuantileProximal, {"max_iterations": 1}, law.quantiles),
    "GridSinkhorn": (GridSinkhorn, {"max_iterations": 2}, law.cells),
    "BackAndForth": (BackAndForth, {"max_iterations": 1}, law.cells),
    # Its first iterates are spread over the box.
    "FiniteVolume": (
        FiniteVolume,
        {"max_iterations": 1, "max_halvings": 0},
        lambda seed: law.cells(seed, walls=True),
    ),
}
# One step solves a quadratic problem, however crude, and a map needs one.
QUADRATIC = ("a map", "quantiles", "particles", "Gaussians", "tangents of quantiles")
FLAT = ("a map", "particles", "wells", "Gaussians", "bent Gaussians", "quantiles")
SEEDS = range(6)


def step(scheme, problem):
    F, mu = problem.functional, problem.start
    made = scheme.step(F, mu, problem.dt, scheme.init(F, mu), torch.Generator())
    return made.info, made.measure


def descendants(kind):
    """Return all classes of the library below a class that solve; bases do not."""
    for child in kind.__subclasses__():
        solves = not inspect.isabstract(child)
        if solves and child.__module__.startswith("otflow."):
            yield child
        yield from descendants(child)


def test_every_solver_has_its_laws():
    named = {getattr(of.proximal, name) for name in of.proximal.__all__}
    solvers = {
        x for x in named if isinstance(x, type) and issubclass(x, ProximalSolver)
    }
    held = {getattr(solver, "func", solver) for solver, _, _ in SOLVERS.values()}
    assert held == solvers - {ProximalSolver}
    assert held >= set(descendants(ProximalSolver))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_keeps_the_laws(name, seed):
    solver, _, problems = SOLVERS[name]
    problem = problems(seed)
    result = solver().solve(problem.functional, problem.start, problem.dt)
    check_certificate(result.certificate, problem, result.measure)
    assert result.certificate["converged"]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_that_stops_early_claims_nothing(name, seed):
    solver, crude, problems = SOLVERS[name]
    problem = problems(seed)
    result = solver(**crude).solve(problem.functional, problem.start, problem.dt)
    check_certificate(result.certificate, problem, result.measure)


# Where a crude solve at a long dt ends is no matter here.
@pytest.mark.filterwarnings("ignore::otflow.errors.BoxWarning")
@pytest.mark.parametrize("name", SOLVERS)
def test_some_crude_solves_do_not_converge(name):
    solver, crude, problems = SOLVERS[name]
    verdicts = []
    for seed in SEEDS:
        problem = replace(problems(seed), dt=10.0)
        result = solver(**crude).solve(problem.functional, problem.start, problem.dt)
        check_flags(result.certificate)
        verdicts.append(result.certificate["converged"])
    assert name in QUADRATIC or not all(verdicts)


SCHEMES = {
    "order 1": of.JKO,
    "order 2": lambda solver: of.JKO(solver, order=2),
    "order 3": lambda solver: of.JKO(solver, order=3),
    "adaptive": lambda solver: Adaptive(of.JKO(solver), tolerance=1e9),
    "adaptive of order 2": lambda solver: Adaptive(
        of.JKO(solver, order=2), tolerance=1e9
    ),
}


def orders(solver, name):
    """Return the orders that a solver carries, as digits."""
    # A generic step is of order 2 and 3 where the measure states flat tangents.
    if name in FLAT or name == "Sinkhorn particles" or name.startswith("tangents"):
        return "123"
    return "12" if solver.carries_order_2 else "1"


@pytest.mark.filterwarnings("ignore::otflow.errors.BlurWarning")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", SOLVERS)
def test_a_scheme_keeps_the_laws(name, scheme, seed):
    solver, crude, problems = SOLVERS[name]
    problem = problems(seed)
    if "order" in scheme and scheme[-1] not in orders(solver, name):
        with pytest.raises(of.errors.Unsupported, match="order"):
            step(SCHEMES[scheme](solver()), problem)
        return
    for options in ({}, crude):
        try:
            info, end = step(SCHEMES[scheme](solver(**options)), problem)
        except of.errors.NotConverged:
            assert options  # no step of a crude solver is good enough
            continue
        if info.get("stalled") and "guarantee" not in info:
            assert scheme.startswith("adaptive")
            continue
        check_certificate(info, replace(problem, dt=info["dt"], exact=None), end)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_chain_reports_each_part_and_whether_all_converged(name):
    solver, crude, problems = SOLVERS[name]
    problem = problems(1)

    class Watch(of.schemes.Scheme):
        effects = frozenset()

        def step(self, F, mu, dt, state, generator):
            return of.schemes.Step(mu, state)

    for options in ({}, crude):
        chain = of.chain(of.JKO(solver(**options)), Watch())
        info, end = step(chain, problem)
        check_certificate(info["parts"][0], replace(problem, exact=None), end)
        assert info["converged"] == info["parts"][0]["converged"]
        assert "certified" not in info


# Solvers that lie ---------------------------------------------------------------------


class Lying(ProximalSolver):
    """A solver whose certificate has been tampered with."""

    def __init__(self, solver, **lies):
        self.solver, self.lies, self.flat = solver, lies, solver.flat

    def solve(self, F, mu, dt, warm=None):
        result = self.solver.solve(F, mu, dt)
        return replace(result, certificate={**result.certificate, **self.lies})


LIES = [
    {"converged": False},
    {"certified": False},
    {"energy_after": 1e3},
    {"energy_after": math.inf},
    {"energy_after": math.nan},
    {"residual": math.nan},
    {"energy_before": math.nan},
]


@pytest.mark.parametrize("lie", LIES, ids=str)
@pytest.mark.parametrize("scheme", ["order 2", "order 3", "adaptive of order 2"])
def test_stages_are_not_certified_by_bad_numbers(scheme, lie):
    problem = law.particles(0)
    made = SCHEMES[scheme](Lying(ParticleProximal(), **lie))
    try:
        info, _ = step(made, problem)
    except of.errors.NotConverged:
        return  # no trial was good enough
    assert not info.get("certified", False)
    assert info.get("guarantee", "none") == "none"
    assert info.get("bound") is None


@pytest.mark.parametrize("lie", [*LIES[:2], {"w2": math.inf}, {"residual": math.nan}])
def test_a_trapezoidal_step_is_not_certified_by_bad_numbers(lie):
    problem = law.cells(0)
    info, _ = step(of.JKO(Lying(GridSinkhorn(), **lie), order=2), problem)
    assert not info["certified"]
    assert info["guarantee"] == "none"


def test_a_sum_of_two_steps_is_a_step():
    problem = law.particles(2, convex=False)
    adaptive = Adaptive(of.JKO(), tolerance=1e9)
    info, end = step(adaptive, problem)
    assert len(info["substeps"]) == 2
    assert info["guarantee"] == "stages"
    assert info["w2"] == pytest.approx(sum(s["w2"] for s in info["substeps"]))
    check_certificate(info, replace(problem, dt=info["dt"]), end)
