"""Reports of steps made of several: the worst stage counts, the whole is summed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import otflow as of
from otflow.proximal import Certificate, GridSinkhorn, ParticleProximal, ProximalSolver
from otflow.proximal.certificate import WORDS
from otflow.schemes.reports import rose
from otflow.testing import clouds
from tests import exact


class Scripted(ProximalSolver):
    """A solver whose certificates are overwritten in turn."""

    flat = True

    def __init__(self, solver, *entries):
        self.solver, self.entries = solver, list(entries)

    def solve(self, F, mu, dt, warm=None):
        result = self.solver.solve(F, mu, dt)
        entries = self.entries.pop(0)
        return replace(result, certificate={**result.certificate, **entries})


@pytest.mark.parametrize("bad", [0, 1, 2])
@pytest.mark.parametrize("key", ["converged", "certified"])
def test_one_bad_stage_is_told(bad, key):
    entries = [{"residual": size} for size in (1e-3, 5e-4, 3e-3)]
    entries[bad][key] = False
    solver = Scripted(ParticleProximal(), *entries)
    F, mu = exact.quadratic(), clouds.uniform()
    info = of.JKO(solver, order=3).step(F, mu, 0.1, None, torch.Generator()).info
    assert info[key] is False
    assert info["guarantee"] == "none"
    assert info["certified"] is False
    assert info["residual"] == pytest.approx(3e-3)


def cells():
    return of.GridDensity.from_function(
        lambda x: (-2 * x.square().sum(-1)).exp(), -3, 3, (90,), dtype=torch.float64
    )


def test_the_trapezoidal_report_is_that_of_the_whole_step():
    # x is moved by -dt: half of it explicitly.
    F, mu, dt = of.Potential(lambda x: x[..., 0], modulus=0.0), cells(), 0.2
    info = of.flow(F, mu, of.JKO(GridSinkhorn(), order=2), dt=dt, steps=1).info[0]
    assert info["w2"] == pytest.approx(dt, rel=2e-2)
    assert info["energy_before"] == pytest.approx(float(F(mu)), abs=1e-12)
    lost = info["energy_before"] - info["energy_after"]
    assert lost == pytest.approx(dt, rel=1e-3)
    assert info["decrease"] == pytest.approx(lost - info["w2"] ** 2 / (2 * dt))
    assert info["bound"] is None
    assert info["guarantee"] == "stages"
    assert len(info["stages"]) == 1


@pytest.mark.parametrize(
    "solver",
    [GridSinkhorn, of.proximal.BackAndForth],
    ids=lambda kind: kind.__name__,
)
def test_a_step_of_order_two_bears_no_entry_of_its_half(solver):
    """`w2_upper`, `primal`, `dual`, `gap`, `bias` of half a step are in `stages`."""
    F = exact.quadratic() + of.Entropy()
    info = of.flow(F, cells(), of.JKO(solver(), order=2), dt=0.1, steps=1).info[0]
    assert info["converged"]
    assert not info["fallback"]
    (half,) = info["stages"]
    own = {"iterations", "fallback", "stages", "noise"}
    own |= {"solver", "dt", "order", "modulus"}
    assert set(info) == own | set(WORDS)
    assert set(half) > set(WORDS)
    # What is left is about both ends: half the step was explicit.
    assert info["energy_before"] > half["energy_before"]
    if info["w2"] is not None:
        assert info["w2"] > 1.5 * half["w2"]


def test_a_certified_step_did_not_raise_the_energy():
    """The certificate knows its noise; the trajectory takes its word."""
    report = Certificate(energy_before=1.0, energy_after=1.0 + 1e-6, converged=True)
    assert rose(report, 1e-14)
    assert rose(replace(report, noise=1e-7), 1e-14)
    assert not rose(replace(report, noise=1e-5), 1e-14)
    # The noise of a solve that went wrong is its residual: it excuses nothing.
    assert rose(replace(report, noise=1e-5, converged=False), 1e-14)
    log_gas = exact.quadratic() + of.Interaction(of.kernels.Log())
    start = of.GridDensity.from_function(
        lambda x: (x[..., 0].abs() < 1).double(), -2.5, 2.5, 60, dtype=torch.float64
    )
    run = of.flow(log_gas, start, of.JKO(), dt=1.0, steps=8)
    assert run.converged
    assert run.rises <= sum(not i["certified"] for i in run.info)


def test_a_trapezoidal_step_is_certified_if_its_half_is():
    solver = Scripted(GridSinkhorn(), {"certified": False, "w2": None})
    solver.flat = False
    info = of.flow(
        exact.quadratic(), cells(), of.JKO(solver, order=2), dt=0.1, steps=1
    ).info[0]
    assert info["guarantee"] == "none"
    assert info["w2"] is None
    assert info["decrease"] is None


# The controller of adaptive steps -----------------------------------------------------


@pytest.mark.parametrize("order", [1, 2])
def test_the_next_step_is_that_of_the_elementary_controller(order):
    scheme = of.JKO(ParticleProximal(tolerance=1e-12), order=order)
    F, mu, tolerance = exact.quadratic(), clouds.uniform(), 1e-2
    adaptive = of.schemes.Adaptive(scheme, tolerance=tolerance)
    info = of.flow(F, mu, adaptive, dt=0.1, steps=1).info[0]
    p = info["error_order"]
    assert p == 1
    factor = 0.9 * (tolerance / info["error"]) ** (1 / (p + 1))
    assert 0.2 < factor < 4
    assert info["next_dt"] == pytest.approx(0.1 * factor)


@pytest.mark.parametrize(("dt", "tolerance"), [(0.2, 0.03), (2.0, 0.1)])
def test_after_a_rejection_the_step_does_not_grow(dt, tolerance):
    # Errors of the quadratic are dt^2 sharp: the controller would then aim at the step
    # just made. Down this hill they grow faster, so that it leaves room to grow.
    F = of.Potential(lambda x: -0.25 * x.square().sum(-1).square())
    adaptive = of.schemes.Adaptive(of.ExplicitEuler(), tolerance=tolerance)
    info = of.flow(F, clouds.uniform(), adaptive, dt=dt, steps=1).info[0]
    assert info["rejected"] > 1
    factor = 0.9 * (tolerance / info["error"]) ** 0.5
    assert factor > 1.5  # it would have grown
    assert info["next_dt"] == info["dt"]


def test_on_fixed_cells_the_error_is_a_share_of_the_mass():
    F, mu, dt = exact.quadratic(), cells(), 0.1
    scheme = of.JKO(GridSinkhorn())
    adaptive = of.schemes.Adaptive(scheme, tolerance=1.0)
    run = of.flow(F, mu, adaptive, dt=dt, steps=1)
    one = of.flow(F, mu, scheme, dt=dt, steps=1).final
    moved = (one.weights - run.final.weights).clamp_min(0).sum()
    assert run.info[0]["error"] == pytest.approx(float(moved), rel=1e-3)


def test_a_step_that_shortens_itself_is_not_compared_with_longer_ones():
    F, mu = exact.quadratic(), clouds.uniform()
    inner = of.ExplicitEuler(backtracking=True)
    run = of.flow(F, mu, of.schemes.Adaptive(inner, tolerance=1e9), dt=50.0, steps=2)
    for info, before in zip(run.info, run.snapshots[:-1], strict=True):
        whole = of.flow(F, before, inner, dt=info["dt"], steps=1).info[0]
        assert whole["halvings"] == 0


# A solver of the user's own ----------------------------------------------------------


class Laconic(ProximalSolver):
    """A solver that leaves words out of its certificate, or is no solver."""

    def __init__(self, answer, *, flat):
        self.answer, self.flat = answer, flat

    def solve(self, F, mu, dt, warm=None):
        kind = GridSinkhorn() if isinstance(mu, of.GridDensity) else ParticleProximal()
        return self.answer(kind.solve(F, mu, dt))


def without(*words):
    def answer(result):
        kept = {k: v for k, v in result.certificate.items() if k not in words}
        return replace(result, certificate=kept)

    return answer


ANSWERS = {
    "no certificate": (lambda r: replace(r, certificate={}), "energy_before, energy_a"),
    "None": (lambda r: replace(r, certificate=None), "certificate of Laconic must be"),
    "no result": (lambda r: r.measure, "Laconic.solve returns must be a ProxResult"),
    "no measure": (lambda r: replace(r, measure=0.0), "must be a Measure"),
    "bound": (without("bound"), "lacks bound; .*certify"),
    **{word: (without(word), f"lacks {word};.*certify") for word in WORDS},
}


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("make", [clouds.uniform, cells])
def test_what_a_solver_must_say_is_asked_for_by_name(answer, order, make):
    given, words = ANSWERS[answer]
    mu = make()
    flat = not isinstance(mu, of.GridDensity)
    if order == 3 and not flat:
        return
    scheme = of.JKO(Laconic(given, flat=flat), order=order)
    with pytest.raises(TypeError, match=words):
        of.flow(exact.quadratic(), mu, scheme, dt=0.1, steps=1)
