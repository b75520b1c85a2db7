"""A flow stops where it rests, and never because a solver failed."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.callbacks import Callback, Stationary
from otflow.metrics import wasserstein2
from tests.callbacks.common import ATOM, CLOUD, F64, SPRING, Scripted, flow

EPS = torch.finfo(F64).eps


def rates_of(rest, *arguments, **options):
    """Return a run that this callback watches, and the rates that it has seen."""
    rates = []

    class Seen(Callback):
        def start(self, run):
            rest.start(run)

        def __call__(self, event):
            stop = rest(event)
            rates.append(rest.rate)
            return stop

    return flow([Seen()], *arguments, **options), rates


def test_the_speed_is_the_norm_of_the_gradient():
    run, rates = rates_of(Stationary(1e-9), mu=CLOUD)
    for rate, mu in zip(rates, run.snapshots, strict=False):
        gradient = SPRING.velocity(mu)
        assert rate == pytest.approx(float(mu.norm(gradient)), rel=1e-12)


def test_it_stops_at_the_first_slow_step():
    run = flow([Stationary(0.05)], dt=0.5, steps=99)
    # |x| = 2^-k before step k.
    assert run.status == "stopped"
    assert len(run.info) == 6
    assert run.message.startswith("Stationary stopped the flow (speed 0.0")


def test_the_decrease_is_energy_per_time():
    """dF/dt = -|grad F|^2: half of it for one Euler step of length 1."""
    run, rates = rates_of(Stationary(1e-3, by="decrease"), dt=0.5, steps=99)
    energies = run.records["energy"]
    drops = (-energies.diff() / 0.5).tolist()
    # A report of an Euler step has the energy at its start: it is judged one later.
    assert rates[1:] == pytest.approx(drops[: len(rates) - 1], rel=1e-9)
    assert drops[len(rates) - 2] <= 1e-3 < drops[len(rates) - 3]


@pytest.mark.parametrize("by", ["speed", "decrease"])
def test_a_jko_flow_is_judged_by_its_reports(by):
    run, rates = rates_of(Stationary(1e-3, by=by), of.JKO(), dt=0.5, steps=99)
    for rate, info in zip(rates, run.info, strict=True):
        length = info.w2 if by == "speed" else info.energy_before - info.energy_after
        assert rate == pytest.approx(length / 0.5, rel=1e-9)
    assert rates[-1] <= 1e-3 < rates[-2]


@pytest.mark.parametrize("by", ["speed", "decrease"])
def test_a_step_that_did_not_converge_is_no_rest(by):
    def report(k):
        return {
            "energy_before": 1.0,
            "energy_after": 1.0,
            "w2": 0.0,
            "residual": 1.0,
            "converged": k >= 4,
            "guarantee": "stationary",
        }

    run = flow([Stationary(1e-3, by=by, patience=2)], Scripted([0.0] * 9, report))
    assert run.status == "stopped"
    assert len(run.info) == 6
    assert run.converged is False


@pytest.mark.parametrize("by", ["speed", "decrease"])
def test_a_failed_part_of_a_step_is_no_rest(by):
    report = {
        "energy_before": 1.0,
        "energy_after": 1.0,
        "w2": 0.0,
        "parts": ({"residual": 1.0, "converged": False},),
    }
    run = flow([Stationary(1e-3, by=by)], Scripted([0.0] * 5, report), steps=5)
    assert run.status == "finished"


@pytest.mark.parametrize("by", ["speed", "decrease"])
def test_a_step_that_took_no_time_is_no_rest(by):
    report = {"energy_before": 1.0, "energy_after": 1.0, "w2": 0.0, "dt": 0.0}
    rest = Stationary(1e-3, by=by)
    run = flow([rest], Scripted([0.0] * 5, report), steps=5)
    assert run.status == "finished"
    assert rest.rate is None


def test_successive_steps_are_counted():
    moves = [0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    run = flow([Stationary(1e-3, patience=3)], Scripted(moves), steps=9)
    assert len(run.info) == 8


def test_a_step_below_round_off_is_no_rest():
    """In float32 x + dt v = x for a short dt, though the speed is 1."""
    mu = of.Particles(torch.ones(1, 1))
    rest = Stationary(0.5)
    with pytest.warns(UserWarning, match=r"take a larger tolerance, .* float64"):
        run = flow([rest], mu=mu, dt=1e-9, steps=3)
    assert torch.equal(run.final.points, mu.points)
    assert run.status == "finished"
    assert rest.rate == pytest.approx(torch.finfo(torch.float32).eps / 1e-9)


def test_changed_masses_are_compared_exactly():
    scheme = of.chain(of.ExplicitEuler(), of.BirthDeath(rate=1.0))
    run, rates = rates_of(Stationary(1e-9), scheme, mu=CLOUD, steps=3)
    pairs = zip(rates, run.snapshots, run.snapshots[1:], strict=False)
    for rate, a, b in pairs:
        assert rate == pytest.approx(float(wasserstein2(a, b)) / 0.1, rel=1e-9)


def test_a_distance_of_ones_own_is_used():
    rest = Stationary(1e-9, distance=lambda *_: 7.0)
    flow([rest], steps=1)
    assert rest.rate == pytest.approx(70.0)


@pytest.mark.parametrize("kind", ["quantiles", "Gaussian", "line", "plane"])
def test_every_representation_has_a_speed(kind):
    bell = lambda x: torch.exp(-2 * (x - 1).square().sum(-1))
    mu = {
        "quantiles": lambda: of.Quantiles.from_function(
            bell, -4.0, 4.0, n=40, grading=2, dtype=F64
        ),
        "Gaussian": lambda: of.Gaussian(
            torch.ones(1, dtype=F64), torch.eye(1, dtype=F64)
        ),
        "line": lambda: of.GridDensity.from_function(bell, -5, 5, 60, dtype=F64),
        "plane": lambda: of.GridDensity.from_function(bell, -5, 5, (20, 20), dtype=F64),
    }[kind]()
    F = SPRING + of.Entropy()
    rest = Stationary(1e-12)
    run = flow([rest], F=F, mu=mu, dt=1e-3, steps=1)
    speed = float(mu.norm(F.velocity(mu)))
    assert rest.rate == pytest.approx(speed, rel=0.05), run


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Stationary(0.0), ValueError, "positive"),
        (lambda: Stationary(1e-3, by="energy"), ValueError, "'decrease', 'speed'"),
        (lambda: Stationary(1e-3, patience=0), ValueError, "at least 1"),
        (lambda: Stationary(1e-3, distance=2.0), TypeError, "function of two"),
        (
            lambda: Stationary(1e-3, by="decrease", distance=wasserstein2),
            ValueError,
            "leave it out",
        ),
    ],
    ids=range(5),
)
def test_bad_arguments_are_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_one_object_serves_several_flows():
    rest = Stationary(0.05)
    lengths = {len(flow([rest], dt=0.5, steps=99, mu=ATOM).info) for _ in range(2)}
    assert lengths == {1 + math.ceil(math.log2(1 / 0.05))}
