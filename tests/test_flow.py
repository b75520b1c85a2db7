"""The only loop: time, records, stopping, and the trajectory."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import otflow as of
from tests import clouds, exact


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
    assert run.converged
    assert len(run.info) == 3
    assert run.times.tolist() == pytest.approx([0.0, 0.2, 0.3])
    assert run.final is seen[-1].measure


def test_stop_until_stationary():
    F = exact.quadratic()
    run = flow(10_000, dt=0.5, stop=lambda s: float(s.info["energy"]) < 1e-20)
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


def test_a_seed_or_its_generator_are_the_same():
    one = noisy(generator=7)
    two = noisy(generator=torch.Generator().manual_seed(7))
    assert torch.equal(one.final.points, two.final.points)
    assert one.seed == two.seed == 7


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
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match=r"tqdm.*pip install 'otflow\[plot\]'"):
        flow(1, progress=True)


def test_a_one_dimensional_single_atom_flows():
    mu = of.Particles(torch.tensor([[3.0]]))
    run = of.flow(exact.quadratic(), mu, of.ExplicitEuler(), dt=0.5, steps=3)
    assert run.final.points.item() == 0.375
