"""The only loop: time, records, stopping, and the trajectory."""

from __future__ import annotations

import math
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import otflow as of
from otflow.testing import clouds
from tests import exact


def flow(steps=6, **options):
    """Return a small flow by explicit Euler."""
    options = {"dt": 0.1, **options}
    return of.flow(
        exact.quadratic(), clouds.weighted(), of.ExplicitEuler(), steps=steps, **options
    )


# What is recorded ---------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 2, 3, 4, 6, 7, 100])
def test_times_are_every_so_many_steps_and_the_end(every):
    run = flow(6, every=every)
    expected = sorted({*range(0, 6, every), 6})
    assert run.times.dtype == torch.float64
    assert run.times.tolist() == pytest.approx([0.1 * k for k in expected], abs=1e-15)
    assert len(run.snapshots) == len(expected)
    assert len(run.records["energy"]) == len(expected)
    assert len(run.info) == 6
    everything = flow(6)
    for k, nu in zip(expected, run.snapshots, strict=True):
        assert torch.equal(nu.points, everything.snapshots[k].points)
    assert run.final is run.snapshots[-1]


def test_no_steps_return_the_start():
    mu = clouds.weighted()
    run = of.flow(exact.quadratic(), mu, of.ExplicitEuler(), dt=0.1, steps=0)
    assert run.final is mu
    assert run.times.tolist() == [0.0]
    assert run.info == ()
    assert run.status == "finished"
    assert float(run.records["energy"][0]) == float(exact.quadratic().value(mu))


def test_energies_are_those_of_the_snapshots():
    run, F = flow(5, every=2), exact.quadratic()
    for energy, nu in zip(run.records["energy"], run.snapshots, strict=True):
        torch.testing.assert_close(energy, F.value(nu))


def test_energies_are_not_computed_twice():
    calls = []

    class Counted(of.Functional):
        def value(self, mu):
            calls.append(mu)
            return mu.expectation(lambda x: x.square().sum(-1))

    of.flow(Counted(), clouds.uniform(), of.ExplicitEuler(), dt=0.1, steps=10)
    assert len(calls) == 11


def test_records_are_functions_of_the_measure():
    G = of.Interaction(of.kernels.Gaussian(1.0))
    run = flow(
        4,
        every=2,
        record={
            "other": G,
            "mean": lambda mu: mu.expectation(lambda x: x),
            "number": lambda mu: float(mu.points.max()),
            "grad": lambda _: torch.tensor(torch.is_grad_enabled()),
        },
    )
    assert list(run.records) == ["energy", "other", "mean", "number", "grad"]
    assert run.records["mean"].shape == (3, 2)
    assert run.records["number"].shape == (3,)
    assert not bool(run.records["grad"].any())
    for k, nu in enumerate(run.snapshots):
        torch.testing.assert_close(run.records["other"][k], G.value(nu))
        torch.testing.assert_close(run.records["mean"][k], nu.weights @ nu.points)
    clouds.assert_plain(*run.records.values())


def test_a_step_of_varying_length():
    run = flow(4, dt=lambda k: 0.1 * 2**k)
    assert run.times.tolist() == pytest.approx([0.0, 0.1, 0.3, 0.7, 1.5])
    factor = 0.9 * 0.8 * 0.6 * 0.2
    torch.testing.assert_close(run.final.points, factor * run.snapshots[0].points)


def test_the_length_of_each_step_is_asked_for_once():
    lengths = iter([0.1, 0.2, 0.3])
    run = flow(3, dt=lambda _: next(lengths))
    assert run.times.tolist() == pytest.approx([0.0, 0.1, 0.3, 0.6])


def test_the_stop_predicate_sees_each_step():
    seen = []

    def stop(step):
        seen.append(step)
        return len(seen) == 3

    run = flow(100, stop=stop, every=2)
    assert (run.status, run.message) == (
        "stopped",
        "the stop predicate held after step 2",
    )
    assert run.converged is None  # nothing was solved
    assert len(run.info) == 3
    assert run.times.tolist() == pytest.approx([0.0, 0.2, 0.3])
    assert run.final is seen[-1].measure


def test_stop_until_stationary():
    F = exact.quadratic()
    run = flow(10_000, dt=0.5, stop=lambda s: s.info.energy_before < 1e-20)
    assert run.status == "stopped"
    assert float(F.value(run.final)) < 1e-20


# Randomness ---------------------------------------------------------------------------


def noisy(**options):
    F = exact.quadratic() + 0.2 * of.Entropy()
    return of.flow(F, clouds.uniform(), of.Langevin(), dt=0.1, steps=3, **options)


def test_the_seed_is_kept_even_when_none_was_given():
    run = noisy()
    again = noisy(generator=run.seed)
    assert torch.equal(run.final.points, again.final.points)
    assert not torch.equal(run.final.points, noisy().final.points)


def test_the_seed_of_a_run_repeats_it_whatever_it_was_given():
    generator = torch.Generator().manual_seed(7)
    generator.seed()
    runs = [noisy(generator=g) for g in (generator, generator, None, 7, 2**64 + 5)]
    for run in runs:
        again = noisy(generator=run.seed)
        assert again.seed == run.seed
        assert torch.equal(run.final.points, again.final.points)
    finals = [run.final.points for run in runs]
    for k, left in enumerate(finals):
        assert not any(torch.equal(left, right) for right in finals[:k])
    assert [run.seed for run in runs[3:]] == [7, 2**64 + 5]


def test_a_generator_of_a_seed_gives_the_same_run_each_time():
    one, two = (noisy(generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert one.seed == two.seed
    assert torch.equal(one.final.points, two.final.points)


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_a_flow_shares_no_numbers_with_a_start_of_the_same_seed(seed):
    start = clouds.normal(1000, 1, seed=seed)
    for generator in (seed, torch.Generator().manual_seed(seed)):
        run = of.flow(
            of.Entropy(),
            of.Particles(torch.zeros(1000, 1, dtype=torch.float64)),
            of.Langevin(),
            dt=0.5,
            steps=1,
            generator=generator,
        )
        noise = run.final.points
        both = torch.cat([start, noise]).flatten()
        assert len(both.unique()) == 2000
        assert abs(float(torch.corrcoef(torch.cat([start, noise], 1).T)[0, 1])) < 0.15


def test_threads_do_not_disturb_one_another():
    expected = [noisy(generator=seed).final.points for seed in range(8)]
    barrier = threading.Barrier(4)

    def run(seed):
        if seed < 4:
            barrier.wait(timeout=60)
        return noisy(generator=seed).final.points

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, range(8)))
    for left, right in zip(found, expected, strict=True):
        assert torch.equal(left, right)


# Solves that did not converge ---------------------------------------------------------

CRUDE = of.proximal.ParticleProximal(tolerance=1e-9, max_gradients=8)
WELL = of.Potential(lambda x: 0.25 * (x.square() - 1).square().sum(-1))


def crude(scheme, dt=2.0, steps=3, F=WELL):
    return of.flow(F, clouds.uniform(), scheme, dt=dt, steps=steps)


NESTED = {
    "JKO": of.JKO(CRUDE),
    "stages": of.JKO(CRUDE, order=3),
    "chain": of.chain(of.JKO(CRUDE), of.BirthDeath()),
    "chain of chains": of.chain(of.BirthDeath(), of.chain(of.JKO(CRUDE))),
    "minibatch": of.schemes.Minibatch(of.JKO(CRUDE)),
}


@pytest.mark.parametrize("name", NESTED)
def test_solves_that_did_not_converge_are_told_once(name):
    with pytest.warns(of.errors.NotConvergedWarning) as caught:
        run = crude(NESTED[name])
    assert len(caught) == 1
    assert caught[0].filename == __file__
    text = str(caught[0].message)
    assert "3 of 3 steps did not converge, the first is step 0" in text
    assert "worst residual" in text
    assert "nan" not in text
    assert run.converged is False
    assert run.status == "finished"
    assert "0/3 steps converged" in repr(run)
    assert vars(caught[0].message)["trajectory"] is run


@pytest.mark.parametrize(
    "cure",
    [
        {"scheme": of.JKO(CRUDE), "dt": 1e-6},
        {"scheme": of.JKO(of.proximal.ParticleProximal(tolerance=1e-9))},
        {
            "scheme": of.JKO(
                of.proximal.ParticleProximal(tolerance=0.5, max_gradients=8)
            )
        },
    ],
    ids=["a smaller dt", "a larger budget", "a larger tolerance"],
)
def test_the_cures_of_the_warning_work(cure):
    run = crude(**cure)
    assert run.converged is True
    assert "3/3 steps converged" in repr(run)


def test_a_run_is_converged_only_if_every_solve_was():
    now = [0]

    def potential(x):  # much steeper in the last step
        return (1e4 if now[0] == 2 else 1.0) * (x.square() - 1).square().sum(-1)

    def dt(k):
        now[0] = k
        return 0.01

    solver = of.proximal.ParticleProximal(tolerance=1e-3, max_gradients=9)
    with pytest.warns(of.errors.NotConvergedWarning, match="1 of 3 .* is step 2,"):
        run = of.flow(
            of.Potential(potential), clouds.uniform(), of.JKO(solver), dt=dt, steps=3
        )
    assert [info["converged"] for info in run.info] == [True, True, False]
    assert run.converged is False
    assert "2/3 steps converged" in repr(run)


def test_warnings_that_are_errors_lose_nothing():
    with pytest.raises(of.errors.NotConvergedWarning) as caught:
        crude(NESTED["JKO"])
    assert len(caught.value.trajectory.info) == 3


def test_steps_that_raise_the_energy_are_counted():
    F = exact.quadratic(1.0)
    grows = of.flow(F, clouds.uniform(), of.ExplicitEuler(), dt=2.5, steps=4)
    assert repr(grows).endswith("energy rose in 4)")
    falls = of.flow(F, clouds.uniform(), of.ExplicitEuler(), dt=0.5, steps=4)
    assert "rose" not in repr(falls)
    assert "rose" not in repr(noisy())  # its energy leaves the entropy out
    still = of.Particles(clouds.normal(50, 2, dtype=torch.float32) * 0)
    rest = of.flow(F, still, of.ExplicitEuler(), dt=0.5, steps=4)
    assert "rose" not in repr(rest)


# The trajectory and the bar -----------------------------------------------------------


def test_its_repr_says_how_it_ended():
    text = repr(flow(2, dt=0.5))
    assert text.startswith("Trajectory(finished after 2 steps, t = 1: energy ")
    empty = of.Trajectory(
        torch.empty(0), {}, (), clouds.uniform(), (), 0, "diverged", "at once"
    )
    assert repr(empty) == "Trajectory(diverged after 0 steps)"
    assert not empty.converged


def test_it_is_frozen():
    with pytest.raises(AttributeError):
        flow(1).status = "perfect"


def test_progress_is_silent_by_default_and_a_bar_on_request(capfd):
    flow(3)
    assert capfd.readouterr() == ("", "")
    flow(3, progress=True)
    captured = capfd.readouterr()
    assert "3/3" in captured.err
    assert "energy=" in captured.err


def test_a_missing_bar_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match=r"tqdm.*pip install 'otflow\[plot\]'"):
        flow(1, progress=True)


def test_a_one_dimensional_single_atom_flows():
    mu = of.Particles(torch.tensor([[3.0]]))
    run = of.flow(exact.quadratic(), mu, of.ExplicitEuler(), dt=0.5, steps=3)
    assert run.final.points.item() == 0.375


# Reports, records and measures that are no numbers ------------------------------------


class Told(of.schemes.Scheme):
    """Does not move, and reports a time of its own."""

    def __init__(self, dt):
        self.dt = dt

    def step(self, F, mu, dt, state, generator):
        return of.schemes.Step(mu, state, {"dt": self.dt})


@pytest.mark.parametrize("told", [math.nan, math.inf, -0.1])
@pytest.mark.parametrize("until", [None, 0.3])
def test_a_report_tells_a_time_that_is_a_time(told, until):
    with pytest.raises(ValueError, match="dt of a report must be"):
        of.flow(
            exact.quadratic(),
            clouds.weighted(),
            Told(told),
            dt=0.1,
            steps=3,
            until=until,
        )


@pytest.mark.parametrize("info", [[], 0, False, "", (), 3, "x", [1]])
def test_a_report_is_a_mapping(info):
    with pytest.raises(TypeError, match="info must be a Mapping"):
        of.schemes.Step(clouds.weighted(), info=info)


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [x, 2 * x], lambda x: (x,)])
def test_records_of_python_s_floats_keep_their_digits(wrap):
    x = 16777217.0 + 1 / 3
    record = {"x": lambda _: wrap(x)}
    run = flow(1, record=record)
    assert run.records["x"].dtype == torch.float64
    assert run.records["x"][0].flatten()[0].item() == x


class Escaping(of.Measure):
    """Two points whose moves are not checked."""

    flat = True

    def __init__(self, x):
        self.points, self.weights = x, torch.full((2,), 0.5, dtype=x.dtype)

    def value_and_position_gradient(self, value):
        return value(self), torch.full_like(self.points, math.inf)

    def push(self, tangent, dt):
        return Escaping(self.points + dt * tangent)

    def inner(self, u, v):
        return 0.5 * (u * v).sum()

    def displacement_to(self, other):
        return other.points - self.points


def test_a_measure_that_is_not_finite_does_not_end_a_flow():
    F = of.Potential(lambda x: torch.tanh(x).sum(-1))
    mu = Escaping(torch.zeros(2, 1, dtype=torch.float64))
    with pytest.raises(of.errors.Diverged, match="not finite at time") as caught:
        of.flow(F, mu, of.ExplicitEuler(), dt=0.1, steps=3)
    assert bool(torch.isfinite(caught.value.measure.points).all())
