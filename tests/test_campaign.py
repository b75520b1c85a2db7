"""The campaign sees what it is there to see, and its references are right."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

import otflow as of
from tools.campaigns import FAMILIES
from tools.campaigns.line_reference import LineProblem
from tools.campaigns.lines import step_w2
from tools.campaigns.particles import KINDS, Units
from tools.campaigns.protocol import Family, Trial, Verdict, run_trial


def outcome(run, *, seconds: float = 5.0):
    return run_trial(Family("test", run, 1, seconds), 0)


def certificate(**changes):
    report = {
        "energy_before": 2.0,
        "energy_after": 1.0,
        "w2": 1.0,
        "decrease": 0.5,
        "residual": 0.0,
        "converged": True,
        "guarantee": "stationary",
        "bound": None,
        "certified": True,
    }
    return {**report, **changes}


def untyped(trial: Trial) -> None:
    of.Potential(lambda x: x.sum(-1) @ torch.ones(2)).value(
        of.Particles(torch.ones(3, 2))
    )


def mistaken(trial: Trial) -> None:
    of.Particles(torch.full((3, 2), math.nan))


def endless(trial: Trial) -> None:
    while True:
        time.process_time()


VERDICTS = {
    "ok": (lambda t: t.obeys(certificate(), 1.0, 0.0), Verdict.OK),
    "not converged": (
        lambda t: t.obeys(
            certificate(converged=False, guarantee="none", certified=False), 1.0, 0.0
        ),
        Verdict.FLAGGED,
    ),
    "certified, not converged": (
        lambda t: t.obeys(certificate(converged=False), 1.0, 0.0),
        Verdict.FALSE,
    ),
    "certified, rose": (
        lambda t: t.obeys(certificate(energy_after=3.0, decrease=-1.5), 1.0, 0.0),
        Verdict.FALSE,
    ),
    "another decrease": (
        lambda t: t.obeys(certificate(decrease=0.9), 1.0, 0.0),
        Verdict.FALSE,
    ),
    "exact, no bound": (
        lambda t: t.obeys(certificate(guarantee="exact"), 1.0, 0.0),
        Verdict.FALSE,
    ),
    "not finite": (
        lambda t: t.obeys(certificate(w2=math.inf), 1.0, 0.0),
        Verdict.NONFINITE,
    ),
    "NaN in a tensor": (
        lambda t: t.finite(x=torch.tensor([0.0, math.nan])),
        Verdict.NONFINITE,
    ),
    "refused": (mistaken, Verdict.REFUSED),
    "untyped": (untyped, Verdict.UNTYPED),
    "a fault of the campaign": (lambda _: 1 / 0, Verdict.UNTYPED),
}


@pytest.mark.parametrize("case", VERDICTS)
def test_verdicts(case):
    run, expected = VERDICTS[case]
    assert outcome(run).verdict == expected


def test_a_trial_that_does_not_end_is_ended():
    assert outcome(endless, seconds=0.2).verdict == Verdict.TIMEOUT


@pytest.mark.parametrize("name", FAMILIES)
def test_a_trial_depends_on_its_seed_alone(name):
    first, second = (run_trial(FAMILIES[name], 1) for _ in range(2))
    assert first.problem
    assert (first.verdict, first.problem) == (second.verdict, second.problem)
    assert "fault of the campaign" not in " ".join(first.notes)


def test_a_trial_runs_on_one_thread_as_its_time_counts_all_of_them():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen = []
        outcome(lambda _: seen.append(torch.get_num_threads()))
        assert seen == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_there_are_enough_trials():
    assert sum(family.trials for family in FAMILIES.values()) >= 3000


# References ---------------------------------------------------------------------------


def test_w2_of_densities_on_the_line():
    p, a = np.array([0.0, 1.0]), np.array([1.0])
    q, b = np.array([2.0, 3.0, 5.0]), np.array([0.5, 0.5])
    # Quantile functions s and 2 + 2s, then 3 + 4 (s - 1/2).
    s = np.linspace(0, 1, 200_001)
    y = np.where(s < 0.5, 2 + 2 * s, 3 + 4 * (s - 0.5))
    square = (y - s) ** 2
    right = math.sqrt(0.5 * (square[1:] + square[:-1]).mean())
    assert step_w2(p, a, q, b) == pytest.approx(right, rel=1e-6)
    assert step_w2(p, a, p + 3, a) == pytest.approx(3, rel=1e-12)


@pytest.mark.parametrize("attraction", [0.0, 0.7])
def test_the_reference_of_a_quadratic(attraction):
    p, w, dt = np.linspace(-1, 2, 31), np.full(30, 1 / 30), 0.8
    reference = LineProblem(
        *(p, w, dt, lambda z: z**2, lambda z: 2 * z, lambda z: np.full_like(z, 2.0)),
        attraction=attraction,
    )
    mean = reference.lumped @ p
    q = mean / (1 + 2 * dt) + (p - mean) / (1 + (2 + attraction) * dt)
    np.testing.assert_allclose(reference.solve(), q, rtol=0, atol=1e-12)


def test_the_reference_of_a_crowd_pushed_to_a_wall():
    p, w = np.linspace(0.0, 1.0, 21), np.full(20, 0.05)
    reference = LineProblem(
        *(p, w, 100.0, lambda z: z, np.ones_like, np.zeros_like),
        most=2.0,
        lower=-1.0,
        upper=2.0,
    )
    # All of it lies against the wall, at its largest density.
    np.testing.assert_allclose(
        reference.solve(), -1 + np.linspace(0, 0.5, 21), rtol=0, atol=1e-6
    )


def test_the_reference_with_entropy_is_stationary_from_any_start():
    rng = np.random.default_rng(0)
    p = np.cumsum(rng.gamma(2.0, size=41)) / 20 - 2
    w = rng.dirichlet(np.full(40, 5.0))
    problem = LineProblem(
        *(p, w, 0.3, lambda z: z**4 / 4, lambda z: z**3, lambda z: 3 * z**2),
        strength=0.5,
    )
    q = problem.solve()

    def objective(q):
        return problem.energy(q) + problem.lumped @ (q - p) ** 2 / 0.6

    least = objective(q)
    for _ in range(50):
        other = q + 1e-3 * np.diff(q).min() * rng.normal(size=41)
        assert objective(other) > least


@pytest.mark.parametrize("seed", range(8))
def test_the_reference_with_bounds_that_do_not_bind_is_that_without(seed):
    """Far walls, with a quartic that is huge there, and masses that differ a lot."""
    rng = np.random.default_rng(seed)
    n, grading = int(rng.integers(60, 120)), 4
    levels = np.linspace(-1, 1, n + 1)
    levels = np.sign(levels) * (1 - (1 - np.abs(levels)) ** grading)
    w = 0.5 * np.diff(levels)
    p = np.arctanh(0.999 * levels) * rng.uniform(0.1, 2) + rng.normal()
    k, m = 10 ** rng.uniform(-1, 1), 2 * rng.normal()
    free = LineProblem(
        *(p, w, 10 ** rng.uniform(-1, 2), lambda z: k * (z - m) ** 4 / 4),
        slope=lambda z: k * (z - m) ** 3,
        curvature=lambda z: 3 * k * (z - m) ** 2,
    )
    q, width = free.solve(), np.ptp(p)
    assert (np.diff(q) > 0).all()
    bounded = replace(
        free,
        most=1.5 * float((w / np.diff(q)).max()),
        lower=min(p[0], q[0]) - 3 * width - 3,
        upper=max(p[-1], q[-1]) + 3 * width + 3,
    )
    # A quarter of what the campaign allows it.
    assert free.norm(bounded.solve() - q) < 5e-7 * (free.norm(q - p) + 0.1 * width)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_the_slope_of_particles_is_that_of_the_energy_of_unequal_masses(kind, seed):
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(2, 6)), int(rng.integers(1, 4))
    problem = KINDS[kind](Trial(seed, rng), d, Units(0.5, 3.0))
    z, u, w = *rng.normal(size=(2, n, d)), rng.dirichlet(np.ones(n))
    h = 1e-6
    change = problem.energy(z + h * u, w) - problem.energy(z - h * u, w)
    slope = float((w[:, None] * problem.slope(z, w) * u).sum())
    assert change / (2 * h) == pytest.approx(slope, rel=1e-6, abs=1e-7)
    # The same number for otflow, in its units.
    mu = of.Particles(3.0 + 0.5 * torch.as_tensor(z), torch.as_tensor(w))
    value = float(problem.functional.value(mu)) / 0.25
    assert value == pytest.approx(problem.energy(z, w), rel=1e-9)
