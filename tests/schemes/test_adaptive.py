"""Adaptive steps: tolerance met, energy kept falling, honest about its limits."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.testing import SchemeContract, clouds
from tests import exact

Adaptive = of.schemes.Adaptive


def particles(order):
    return of.JKO(of.proximal.ParticleProximal(tolerance=1e-10), order=order)


class TestEmbedded(SchemeContract):
    solves = True
    diverges = False
    steps = ()

    def make(self):
        return Adaptive(of.JKO(order=2), tolerance=1e-3)


class TestDoubled(SchemeContract):
    diverges = False
    steps = ()

    def make(self):
        return Adaptive(of.ExplicitEuler(), tolerance=1e-3)


# Accuracy -----------------------------------------------------------------------------


SCHEMES = [of.ExplicitEuler(), particles(1), particles(2), particles(3)]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_step_meets_the_tolerance(scheme):
    lam, tolerance = 1.0, 1e-3
    mu = clouds.uniform()
    run = of.flow(
        exact.quadratic(lam),
        mu,
        Adaptive(scheme, tolerance=tolerance),
        dt=2.0,
        steps=500,
        until=2.0,
    )
    assert run.status == "finished"
    for info, before, after in zip(
        run.info, run.snapshots[:-1], run.snapshots[1:], strict=True
    ):
        assert info["error"] <= tolerance
        expected = exact.decay(lam, info["dt"]) * before.points
        # What is kept is better than what is estimated, or about as good.
        true = float(after.norm(after.points - expected))
        assert true <= 1.2 * info["error"]
    assert any(info["rejected"] for info in run.info)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_smaller_tolerance_gives_a_smaller_error(scheme):
    # Of an error estimate of order q the global error follows tolerance^(q/(q+1)),
    # or a higher power where the better of two results is kept.
    mu, errors = clouds.uniform(), []
    tolerances = (1e-2, 1e-3, 1e-4)
    for tolerance in tolerances:
        run = of.flow(
            exact.quadratic(1.0),
            mu,
            Adaptive(scheme, tolerance=tolerance),
            dt=1.0,
            steps=5000,
            until=1.0,
            every=5000,
        )
        gap = run.final.points - exact.decay(1.0, 1.0) * mu.points
        errors.append(float(mu.norm(gap)))
    power = of.analysis.observed_order(tolerances, errors)
    q = max(scheme.order - 1, 1)
    assert power > 0.8 * q / (q + 1)


def test_steps_grow_as_the_flow_slows_down():
    run = of.flow(
        exact.quadratic(1.0),
        clouds.uniform(),
        Adaptive(particles(2), tolerance=1e-4),
        dt=10.0,
        steps=400,
        until=12.0,
    )
    taken = [info["dt"] for info in run.info]
    assert max(taken[-3:]) > 10 * taken[0]
    assert max(taken) <= 10.0
    fixed = math.ceil(12.0 / min(taken[:-1]))
    assert len(run.info) < fixed / 5


def test_on_quantiles_and_gaussians_it_is_the_same_flow():
    F = exact.quadratic(1.0) + 0.5 * of.Entropy()
    scheme = Adaptive(of.JKO(order=2), tolerance=1e-3)
    m, v = exact.ornstein_uhlenbeck(1.0, 2.0, 1.0, lam=1.0, temperature=0.5)
    gaussian = of.Gaussian(
        torch.tensor([1.0], dtype=torch.float64),
        torch.tensor([[2.0]], dtype=torch.float64),
    )
    run = of.flow(F, gaussian, scheme, dt=1.0, steps=100, until=1.0)
    assert float(run.final.mean) == pytest.approx(m, abs=3e-3)
    assert float(run.final.covariance) == pytest.approx(v, abs=1e-2)
    assert len(run.info) < 25
    levels = of.Quantiles.from_quantile(
        lambda u: 1.0 + math.sqrt(2.0) * torch.special.ndtri(u),
        200,
        dtype=torch.float64,
    )
    run = of.flow(F, levels, scheme, dt=1.0, steps=100, until=1.0)
    assert float(run.final.expectation(lambda x: x[:, 0])) == pytest.approx(m, abs=3e-3)
    assert len(run.info) < 40


def test_on_a_grid_steps_are_doubled_and_compared_by_mass():
    mu = of.GridDensity.from_function(
        lambda x: torch.exp(-2 * (x - 0.5).square().sum(-1)),
        lower=-4,
        upper=4,
        shape=(64,),
        dtype=torch.float64,
    )
    F = exact.quadratic(1.0) + of.Entropy()
    run = of.flow(
        F, mu, Adaptive(of.JKO(), tolerance=5e-3), dt=1.0, steps=60, until=0.5
    )
    assert run.status == "finished"
    assert len(run.info[0]["substeps"]) == 2
    assert float(run.final.expectation(lambda x: x[:, 0])) == pytest.approx(
        0.5 * math.exp(-0.5), abs=0.02
    )


# Energy -------------------------------------------------------------------------------


def test_a_rise_of_the_energy_is_rejected():
    # The tolerance is no obstacle; explicit Euler is unstable beyond dt = 2.
    F, mu = exact.quadratic(1.0), clouds.uniform()
    run = of.flow(F, mu, Adaptive(of.ExplicitEuler(), tolerance=1e9), dt=9.0, steps=20)
    assert bool((run.records["energy"].diff() < 0).all())
    assert run.info[0]["rejected"] > 0
    assert all(info["energy_after"] <= info["energy_before"] for info in run.info)
    free = Adaptive(of.ExplicitEuler(), tolerance=1e9, descent=False)
    run = of.flow(F, mu, free, dt=9.0, steps=3)
    assert bool((run.records["energy"].diff() > 0).all())


def test_a_higher_order_step_over_a_cliff_is_rejected():
    F = of.Potential(lambda x: (5 * torch.sigmoid(20 * (x - 1)) - x).sum(-1))
    mu = of.Particles(torch.tensor([[0.0]], dtype=torch.float64))
    run = of.flow(F, mu, Adaptive(particles(2), tolerance=1e9), dt=2.7, steps=3)
    assert run.info[0]["rejected"] > 0
    assert bool((run.records["energy"].diff() <= 1e-12).all())


def test_at_a_minimum_it_goes_on_or_stands_still():
    F, mu = exact.quadratic(1.0), of.Particles(torch.zeros(3, 2, dtype=torch.float64))
    for scheme in (of.ExplicitEuler(), of.ExplicitEuler(backtracking=True), of.JKO()):
        run = of.flow(F, mu, Adaptive(scheme, tolerance=1e-6), dt=0.5, steps=3)
        assert torch.equal(run.final.points, mu.points)


def test_where_every_step_rises_it_stands_still_and_says_so():
    class Uphill(of.schemes.Scheme):
        def step(self, F, mu, dt, state, generator):
            return of.schemes.Step(mu.push(F.velocity(mu), -dt), state)

    mu = clouds.uniform()
    scheme = Adaptive(Uphill(), tolerance=1.0)
    run = of.flow(exact.quadratic(1.0), mu, scheme, dt=0.5, steps=2)
    assert torch.equal(run.final.points, mu.points)
    assert [info["stalled"] for info in run.info] == [True, True]
    assert float(run.times[-1]) == 0.0


# Reports ------------------------------------------------------------------------------


def test_the_report_of_a_single_step_keeps_what_the_scheme_says():
    F = of.Interaction(of.kernels.PowerLaw(4, 2))
    run = of.flow(
        F, clouds.uniform(), Adaptive(particles(2), tolerance=1e-2), dt=0.1, steps=2
    )
    for info, before, after in zip(
        run.info, run.snapshots[:-1], run.snapshots[1:], strict=True
    ):
        assert info["certified"]
        assert info["converged"]
        assert info["order"] == 2
        assert len(info["substeps"]) == 1
        assert info["energy_before"] == pytest.approx(float(F(before)), rel=1e-12)
        assert info["energy_after"] == pytest.approx(float(F(after)), rel=1e-12)
        assert 0 < info["dt"] <= 0.1
        assert not info["stalled"]


def test_doubled_steps_are_certified_if_both_are():
    F, mu = of.Interaction(of.kernels.PowerLaw(4, 2)), clouds.uniform()
    run = of.flow(F, mu, Adaptive(of.JKO(), tolerance=1e-2), dt=0.1, steps=2)
    info = run.info[0]
    assert info["certified"]
    halves = info["substeps"]
    assert [half["dt"] for half in halves] == [0.5 * info["dt"]] * 2
    assert halves[0]["energy_after"] == pytest.approx(halves[1]["energy_before"])
    # Its words are those of the whole step: its length is that of the way.
    assert info["guarantee"] == "stages"
    assert info["energy_before"] == pytest.approx(float(F(mu)), rel=1e-12)
    assert info["w2"] == pytest.approx(sum(half["w2"] for half in halves), rel=1e-12)
    assert info["w2"] >= float(of.metrics.wasserstein2(mu, run.snapshots[1]))
    assert info["residual"] == max(half["residual"] for half in halves)
    fall = info["energy_before"] - info["energy_after"]
    dissipated = info["w2"] ** 2 / (2 * info["dt"])
    assert info["decrease"] == pytest.approx(fall - dissipated, rel=1e-12)


def test_the_bound_on_the_time_error_sees_through_it():
    F = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
    mu = clouds.uniform()
    scheme = Adaptive(particles(1), tolerance=1e-3)
    run = of.flow(F, mu, scheme, dt=1.0, steps=200, until=1.0)
    bound = run.time_error()
    assert bound.shape == run.times.shape
    gap = run.final.points - exact.decay(1.0, 1.0) * mu.points
    assert float(mu.norm(gap)) <= float(bound[-1]) <= 2 * float(mu.norm(gap))


def test_a_step_cut_short_does_not_shorten_the_next():
    F, mu = exact.quadratic(1.0), clouds.uniform()
    scheme = Adaptive(particles(2), tolerance=1e-2)
    generator = torch.Generator()
    step = scheme.step(F, mu, 0.5, scheme.init(F, mu), generator)
    planned = step.state.next_dt
    assert planned > 1e-3
    cut = scheme.step(F, step.measure, 1e-3, step.state, generator)
    assert cut.info["dt"] == 1e-3
    assert cut.state.next_dt >= planned


# What goes wrong ----------------------------------------------------------------------


def test_noise_is_refused_and_the_generator_left_alone():
    F = exact.quadratic(1.0) + 0.1 * of.Entropy()
    mu = clouds.uniform()
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    scheme = Adaptive(of.Langevin(), tolerance=0.1)
    with pytest.raises(
        of.errors.Unsupported, match=r"Langevin\(\) draws random numbers.*fixed dt"
    ):
        scheme.step(F, mu, 0.1, scheme.init(F, mu), generator)
    assert torch.equal(generator.get_state(), before)


def test_the_same_scheme_without_noise_is_welcome():
    F = exact.quadratic(1.0) + 0.5 * of.Entropy()
    mu = of.Gaussian(torch.ones(1).double(), torch.eye(1).double())
    run = of.flow(
        F, mu, Adaptive(of.Langevin(), tolerance=1e-3), dt=1.0, steps=200, until=1.0
    )
    assert float(run.final.mean) == pytest.approx(math.exp(-1.0), abs=0.01)


def test_measures_that_cannot_be_compared_ask_for_a_distance():
    scheme = of.chain(of.ExplicitEuler(), of.BirthDeath())
    F, mu = exact.quadratic(1.0), clouds.uniform()
    with pytest.raises(
        of.errors.Unsupported,
        match=r"say how, e.g. distance=otflow.metrics.wasserstein2",
    ):
        of.flow(F, mu, Adaptive(scheme, tolerance=0.01), dt=0.1, steps=1)
    adaptive = Adaptive(scheme, tolerance=0.01, distance=of.metrics.wasserstein2)
    run = of.flow(F, mu, adaptive, dt=0.5, steps=3)
    assert all(0 < info["error"] <= 0.01 for info in run.info)


def test_a_tolerance_out_of_reach_is_not_converged():
    scheme = Adaptive(of.ExplicitEuler(), tolerance=1e-12, min_dt=0.01)
    with pytest.raises(
        of.errors.NotConverged, match=r"no step down to dt = 0.01 .* loosen the toler"
    ) as caught:
        of.flow(exact.quadratic(1.0), clouds.uniform(), scheme, dt=0.1, steps=1)
    assert caught.value.info["error"] > 1e-12
    assert caught.value.trajectory.status == "failed"


def test_an_inner_solve_that_fails_is_rejected():
    F = of.Interaction(of.kernels.PowerLaw(4, 2))
    crude = of.JKO(
        of.proximal.ParticleProximal(tolerance=1e-6, max_gradients=4), order=2
    )
    scheme = Adaptive(crude, tolerance=1e9)
    run = of.flow(F, clouds.uniform(), scheme, dt=2.0, steps=2)
    assert run.info[0]["rejected"] > 0
    assert all(info["converged"] for info in run.info)


def test_a_trial_that_diverges_is_rejected():
    F = of.Potential(lambda x: x.square().square().sum(-1))
    scheme = Adaptive(of.ExplicitEuler(), tolerance=1e-2, min_dt=1e-6)
    run = of.flow(F, clouds.uniform(), scheme, dt=1e60, steps=3)
    assert run.status == "finished"
    assert run.info[0]["rejected"] > 10


def test_quantiles_that_would_cross_are_no_obstacle():
    # A stiff potential: the second stage of a long step would reverse their order.
    mu = of.Quantiles(torch.linspace(-1, 1, 6, dtype=torch.float64))
    scheme = Adaptive(of.JKO(order=2), tolerance=1e-2)
    run = of.flow(exact.quadratic(50.0), mu, scheme, dt=1.0, steps=3)
    assert run.info[0]["rejected"] > 0
    assert run.info[0]["dt"] < 0.1


def test_a_scheme_that_shortens_its_own_steps_is_compared_at_equal_times():
    F, mu = exact.quadratic(1.0), clouds.uniform()
    scheme = Adaptive(of.ExplicitEuler(backtracking=True), tolerance=1e9)
    run = of.flow(F, mu, scheme, dt=50.0, steps=3)
    for info in run.info:
        assert sum(s["dt"] for s in info["substeps"]) == pytest.approx(info["dt"])
        assert all(s["halvings"] == 0 for s in info["substeps"])


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"tolerance": 0}, ValueError, "tolerance must be positive"),
        ({"tolerance": 1, "distance": 2}, TypeError, "distance must be a function"),
        ({"tolerance": 1, "descent": 1}, TypeError, "descent must be True or False"),
        ({"tolerance": 1, "min_dt": -1.0}, ValueError, "min_dt must be positive"),
    ],
)
def test_bad_options_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        Adaptive(of.ExplicitEuler(), **options)


def test_what_is_no_scheme_is_refused():
    with pytest.raises(TypeError, match=r"write ExplicitEuler\(\)$"):
        Adaptive(of.ExplicitEuler, tolerance=1)


# The end of time ----------------------------------------------------------------------


@pytest.mark.parametrize("dt", [0.1, 0.3, 1 / 3, 1.0, 7.0, lambda k: 0.07 * (k + 1)])
def test_a_flow_ends_where_it_is_told(dt):
    F, mu = exact.quadratic(1.0), clouds.uniform()
    run = of.flow(F, mu, of.ExplicitEuler(), dt=dt, steps=100, until=1.0)
    assert float(run.times[-1]) == 1.0
    assert run.status == "finished"
    assert run.converged is None
    assert run.message == f"reached time 1 in {len(run.info)} steps"
    if dt == 0.1:
        assert len(run.info) == 10
    if dt == 7.0:
        assert len(run.info) == 1


def test_too_few_steps_leave_it_unfinished():
    F, mu = exact.quadratic(1.0), clouds.uniform()
    run = of.flow(F, mu, of.ExplicitEuler(), dt=0.1, steps=3, until=1.0)
    assert run.status == "unfinished"
    assert not run.converged
    assert run.message == "made all 3 steps and is at time 0.3 of 1"


def test_no_time_is_no_step():
    F, mu = exact.quadratic(1.0), clouds.uniform()
    run = of.flow(F, mu, of.ExplicitEuler(), dt=0.1, steps=3, until=0)
    assert not run.info
    assert run.final is mu
    with pytest.raises(ValueError, match="until must be non-negative"):
        of.flow(F, mu, of.ExplicitEuler(), dt=0.1, steps=3, until=-1)
