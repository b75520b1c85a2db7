"""Faults in the middle of a run: nothing is lost, and nothing global is touched."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import otflow as of
from otflow.testing import clouds
from otflow.testing.clouds import assert_plain, assert_untouched, global_state, state
from tests import exact

ROOT = Path(__file__).parent.parent


class At(of.Functional):
    """|x|^2/2 until it has been called so many times; then something happens."""

    def __init__(self, call, what):
        self.call, self.what, self.calls = call, what, 0

    def value(self, mu):
        self.calls += 1
        value = mu.expectation(lambda x: 0.5 * x.square().sum(-1))
        return self.what(value, mu) if self.calls > self.call else value


def raising(error):
    def what(value, mu):
        raise error

    return what


def run(F, *, every=1, steps=8, scheme=None, **options):
    mu = clouds.weighted()
    scheme = scheme or of.ExplicitEuler()
    return of.flow(F, mu, scheme, dt=0.1, steps=steps, every=every, **options)


def assert_good(trajectory, steps, every=1):
    """Check that it is the undisturbed flow up to a number of steps."""
    expected = run(exact.quadratic(), steps=steps, every=every)
    torch.testing.assert_close(trajectory.times, expected.times)
    torch.testing.assert_close(trajectory.final.points, expected.final.points)
    assert trajectory.snapshots[-1] is trajectory.final
    torch.testing.assert_close(
        trajectory.records["energy"], expected.records["energy"], rtol=1e-13, atol=0
    )


# Not finite ---------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize(
    "what",
    [
        lambda value, _: value * float("nan"),
        lambda value, _: value / 0,
        lambda value, mu: value + (mu.points - mu.points).sqrt().sum(),
    ],
    ids=["nan value", "infinite value", "nan gradient"],
)
def test_nan_at_step_k_keeps_the_measure_before(what, k, every):
    with pytest.raises(
        of.errors.Diverged, match=f"^the flow diverged in step {k}:"
    ) as c:
        run(At(k, what), every=every)
    error = c.value
    assert isinstance(error.__cause__, of.errors.NonFinite)
    assert error.step == k
    assert error.measure is error.trajectory.final
    assert error.trajectory.status == "diverged"
    assert not error.trajectory.converged
    assert error.trajectory.message == str(error)
    if every == 1:
        assert_good(error.trajectory, k - 1)
    expected = run(exact.quadratic(), steps=k - 1).final
    torch.testing.assert_close(error.measure.points, expected.points)


def test_nan_at_once_leaves_the_start():
    F = At(0, lambda value, _: value * float("nan"))
    with pytest.raises(of.errors.Diverged) as caught:
        run(F)
    trajectory = caught.value.trajectory
    assert caught.value.step == 0
    assert len(trajectory.times) == 0
    assert repr(trajectory) == "Trajectory(diverged after 0 steps)"
    assert torch.equal(trajectory.final.points, clouds.weighted().points)


def test_nan_at_the_very_end():
    with pytest.raises(of.errors.Diverged) as caught:
        run(At(8, lambda value, _: value * float("nan")), steps=8)
    assert caught.value.step == 8
    assert_good(caught.value.trajectory, 7)


def test_a_huge_step_keeps_the_last_measure_whose_positions_are_finite():
    F, mu = of.Potential(lambda x: -x.square().sum(-1)), clouds.weighted()
    with pytest.raises(of.errors.Diverged, match="positions left the finite") as caught:
        of.flow(F, mu, of.ExplicitEuler(), dt=1e30, steps=50)
    error = caught.value
    assert "JKO or ExplicitEuler(backtracking=True)" in str(error)
    assert error.step == len(error.trajectory.info) == 4
    assert len(error.trajectory.times) == 5
    assert float(error.measure.points.abs().max()) < 1e150


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_a_record_that_is_not_finite_is_named_and_nothing_is_lost(value):
    reach = 0.9 * float(run(exact.quadratic(), steps=0).final.points.abs().max())
    late = {"a": lambda mu: value if float(mu.points.abs().max()) < reach else 1.0}
    with pytest.raises(of.errors.Diverged, match="record") as caught:
        run(exact.quadratic(), record=late)
    kept = caught.value.trajectory.records["a"]
    assert len(kept) >= 1
    assert bool(torch.isfinite(kept).all())


def test_a_predicate_that_is_no_truth_value_is_named():
    with pytest.raises(TypeError, match="stop must return True or False"):
        run(exact.quadratic(), stop=lambda _: torch.ones(2) > 0)


# Exceptions of the user ---------------------------------------------------------------


class Odd(Exception):
    """Somebody's own exception."""

    trajectory: of.Trajectory


@pytest.mark.parametrize("k", [0, 1, 5])
def test_an_exception_passes_with_a_note_and_the_trajectory(k):
    error = Odd("boom")
    with pytest.raises(Odd) as caught:
        run(At(k, raising(error)))
    assert caught.value is error
    assert str(error) == "boom"
    (note,) = error.__notes__
    assert f"step {k} of 8 raised Odd" in note
    assert error.trajectory.status == "failed"
    assert len(error.trajectory.info) == k
    if k:
        # The measure at step k was never evaluated, so the records end before it.
        assert len(error.trajectory.times) == k
        expected = run(exact.quadratic(), steps=k)
        torch.testing.assert_close(error.trajectory.final.points, expected.final.points)


def test_exceptions_in_records_stops_lengths_and_schemes_too():
    class Broken(of.schemes.Scheme):
        effects = frozenset()

        def step(self, F, mu, dt, state, generator):
            raise Odd

    for options in (
        {"record": {"a": raising_after(2)}},
        {"stop": stop_never(raising_after(2))},
        {"dt": raising_after(2)},
        {"scheme": of.chain(of.ExplicitEuler(), Broken())},
    ):
        arguments = {"dt": 0.1, "scheme": of.ExplicitEuler(), **options}
        scheme = arguments.pop("scheme")
        with pytest.raises(Odd) as caught:
            of.flow(exact.quadratic(), clouds.weighted(), scheme, steps=8, **arguments)
        trajectory = caught.value.trajectory
        assert trajectory.status == "failed"
        assert len(trajectory.times) > 0
        lengths = {len(rows) for rows in trajectory.records.values()}
        assert lengths == {len(trajectory.times)} == {len(trajectory.snapshots)}


def raising_after(calls, error=Odd):
    """Return a function that fails at a later call, and at every call after it."""
    count = iter(range(10**6))

    def function(_):
        if next(count) >= calls:
            raise error
        return 0.1 if calls else 0.0

    return function


def test_a_record_that_changes_shape_is_named_when_it_does():
    record = {"a": lambda mu: mu.points[: 1 + int(mu.points.abs().max() < 1)]}
    with pytest.raises(
        ValueError, match=r"record\['a'\] had shape \(1, 2\) and now"
    ) as c:
        run(exact.quadratic(3.0), record=record, steps=20)
    assert len(vars(c.value)["trajectory"].times) > 1


# Interrupts ---------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["value", "record", "stop", "dt"])
def test_ctrl_c_keeps_the_trajectory(where):
    error = KeyboardInterrupt
    F = At(4, raising(error)) if where == "value" else exact.quadratic()
    options: dict[str, Any] = {"dt": 0.1}
    if where == "record":
        options["record"] = {"a": raising_after(4, error)}
    elif where != "value":
        later = raising_after(4, error)
        options[where] = stop_never(later) if where == "stop" else later
    with pytest.raises(KeyboardInterrupt, match="trajectory so far") as caught:
        of.flow(F, clouds.weighted(), of.ExplicitEuler(), steps=8, **options)
    assert isinstance(caught.value, of.errors.Interrupted)
    trajectory = caught.value.trajectory
    assert trajectory.status == "interrupted"
    assert trajectory.message.startswith("interrupted in step ")
    assert len(trajectory.info) >= 4
    assert len(trajectory.times) >= 4
    lengths = {len(rows) for rows in trajectory.records.values()}
    assert lengths == {len(trajectory.times)} == {len(trajectory.snapshots)}


def stop_never(function):
    def stop(step):
        function(step)
        return False

    return stop


@pytest.mark.slow
def test_a_real_signal_keeps_the_trajectory():
    code = """
        import signal, torch, otflow as of

        # A job in the background inherits signals that are ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)

        def alarm(mu):
            if float(mu.points.max()) < 0.5:
                signal.raise_signal(signal.SIGINT)
            return 0.0

        F = of.Potential(lambda x: x.square().sum(-1))
        try:
            of.flow(F, of.Particles(torch.ones(2, 1)), of.ExplicitEuler(), dt=0.1,
                    steps=10**6, record={"alarm": alarm})
        except KeyboardInterrupt as error:
            print(error.trajectory)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.startswith(
        "Trajectory(interrupted after 4 steps, t = 0.3: energy 1"
    )


# Mutation -----------------------------------------------------------------------------


def writes(mu, name="points"):
    with torch.no_grad():
        getattr(mu, name).mul_(1.5)


@pytest.mark.parametrize("name", ["points", "weights"])
def test_a_value_that_writes_into_the_measure_is_detected(name):
    def what(value, mu):
        writes(mu, name)
        return value

    F = At(0, what)
    message = "the functional modified the measure in place; work on a copy"
    for ask in (F.velocity, F.first_variation, F.value_and_velocity):
        with pytest.raises(of.errors.InvalidFunctional, match=message):
            ask(clouds.weighted())
    with pytest.raises(of.errors.InvalidFunctional, match=message) as caught:
        run(At(3, what))
    assert caught.value.trajectory.status == "failed"


def test_writing_with_gradients_on_is_torch_s_own_error():
    def what(value, mu):
        mu.points.mul_(2.0)
        return value

    mu = clouds.weighted()
    before = state(mu)
    with pytest.raises(RuntimeError, match="in-place operation"):
        At(0, what).velocity(mu)
    assert_untouched(mu, before)


@pytest.mark.parametrize("name", ["points", "weights"])
def test_a_record_that_writes_into_the_measure_is_detected(name):
    message = "a record modified the measure in place; work on a copy"
    with pytest.raises(of.errors.InvalidFunctional, match=message):
        run(exact.quadratic(), record={"bad": lambda mu: writes(mu, name) or 0.0})


def test_an_energy_that_writes_is_detected_where_the_flow_evaluates_it():
    class Lazy(of.schemes.Scheme):
        def step(self, F, mu, dt, state, generator):
            return of.schemes.Step(mu)

    def what(value, mu):
        writes(mu)
        return value

    with pytest.raises(of.errors.InvalidFunctional, match="in place"):
        run(At(0, what), scheme=Lazy())


def test_a_whole_flow_leaves_the_caller_s_measure_alone():
    mu = clouds.degenerate()
    before = state(mu)
    F = exact.quadratic() + of.Interaction(of.kernels.Gaussian(1.0))
    scheme = of.chain(of.Langevin(), of.BirthDeath(), of.schemes.Resample())
    of.flow(F, mu, scheme, dt=0.1, steps=5, generator=0, record={"F": F})
    assert_untouched(mu, before)


# Memory -------------------------------------------------------------------------------


def test_nothing_in_a_result_holds_a_graph():
    x = clouds.normal(7, 2).requires_grad_()
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    F: of.Functional = of.Potential(lambda y: weight * y.square().sum(-1))
    F = F + of.Interaction(lambda z: weight * (-z.square().sum(-1)).exp())
    run = of.flow(
        F,
        of.Particles(x),
        of.chain(of.ExplicitEuler(), of.BirthDeath()),
        dt=0.1,
        steps=4,
        record={"F": F, "moment": lambda mu: weight * mu.points.mean()},
    )
    assert x.grad is None
    assert weight.grad is None
    tensors = [run.times, *run.records.values()]
    for nu in run.snapshots:
        tensors += [nu.points, nu.weights]
    reported = [v for info in run.info for v in info.values()]
    assert not any(isinstance(v, torch.Tensor) for v in reported)
    assert len(tensors) == 1 + len(run.records) + 2 * len(run.times)
    assert_plain(*tensors)


def tensors_alive():
    """Return how many tensors there are, and how many bytes they hold."""
    gc.collect()
    found = [x for x in gc.get_objects() if type(x) is torch.Tensor]
    return len(found), sum(x.numel() * x.element_size() for x in found)


@pytest.mark.slow
def test_a_thousand_steps_leave_no_tensor_behind():
    F = exact.quadratic() + of.Interaction(of.kernels.Gaussian(1.0))
    F = F + of.Interaction(lambda z: (-z.square().sum(-1)).exp())
    mu = clouds.uniform(50, 2)
    scheme = of.chain(of.ExplicitEuler(), of.BirthDeath())

    def flow(steps):
        of.flow(F, mu, scheme, dt=1e-3, steps=steps, every=steps)

    flow(300)
    before = tensors_alive()
    flow(1000)
    assert tensors_alive() == before


@pytest.mark.slow
def test_tensors_left_behind_are_seen():
    before = tensors_alive()
    kept = torch.zeros(3, dtype=torch.float64)
    count, size = tensors_alive()
    assert (count - before[0], size - before[1]) == (1, 24)
    del kept


# Global state -------------------------------------------------------------------------


def test_no_global_state_is_touched():
    before = global_state()
    F = exact.quadratic() + 0.1 * of.Entropy()
    G = exact.quadratic() + of.Interaction(of.kernels.Log())
    mu = clouds.uniform()
    of.flow(F, mu, of.Langevin(), dt=0.1, steps=3)
    of.flow(G, mu, of.ExplicitEuler(backtracking=True), dt=0.1, steps=3, generator=0)
    of.flow(G, mu, of.chain(of.BirthDeath(), of.schemes.Resample()), dt=0.1, steps=3)
    with pytest.raises(of.errors.Diverged):
        of.flow(exact.quadratic(-1.0), mu, of.ExplicitEuler(), dt=1e200, steps=9)
    mu.sample(10, torch.Generator())
    assert global_state() == before


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_derivatives_do_not_depend_on_the_caller_s_grad_mode(mode):
    F = exact.quadratic() + of.Interaction(of.kernels.Gaussian(1.0))
    G = of.Interaction(lambda z: (-z.square().sum(-1)).exp())
    mu = clouds.degenerate()
    expected = [(H.velocity(mu), H.first_variation(mu)) for H in (F, G)]
    with mode():
        found = [(H.velocity(mu), H.first_variation(mu)) for H in (F, G)]
    for left, right in zip(found, expected, strict=True):
        for a, b in zip(left, right, strict=True):
            assert torch.equal(a, b)


def test_inference_mode_is_refused_with_the_cure():
    mu = clouds.uniform()
    with (
        torch.inference_mode(),
        pytest.raises(RuntimeError, match=r"use torch.no_grad"),
    ):
        exact.quadratic().velocity(mu)


@pytest.mark.parametrize("kind", ["particles", "quantiles", "gaussian", "grid"])
def test_a_measure_made_in_inference_mode_flows_but_has_no_derivatives(kind):
    make = {
        "particles": lambda: of.Particles(torch.ones(4, 1)),
        "quantiles": lambda: of.Quantiles(torch.linspace(-1, 2, 5)),
        "gaussian": lambda: of.Gaussian(torch.ones(1), torch.eye(1)),
        "grid": lambda: of.GridDensity(torch.ones(5) / 5, 0.0, 5.0, walls=True),
    }[kind]
    F = exact.quadratic()
    with torch.inference_mode():
        mu = make()
    assert F.value(mu) == F.value(make())
    with pytest.raises(RuntimeError, match=r"torch\.no_grad"):
        F.velocity(mu)
    # A flow starts from a copy, which is an ordinary measure.
    ends = [
        of.flow(F, start, of.ExplicitEuler(), dt=0.1, steps=2, record={"F": F}).final
        for start in (mu, make())
    ]
    assert torch.equal(ends[0].points, ends[1].points)
    assert torch.equal(ends[0].weights, ends[1].weights)


def test_the_default_dtype_of_torch_is_irrelevant():
    F = exact.quadratic() + of.Interaction(of.kernels.PowerLaw(3, 1))
    mu = clouds.weighted()
    expected = of.flow(F, mu, of.ExplicitEuler(), dt=0.1, steps=3).final.points
    torch.set_default_dtype(torch.float64)
    try:
        found = of.flow(F, mu, of.ExplicitEuler(), dt=0.1, steps=3).final.points
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)


def test_no_warning_is_raised_and_none_is_silenced():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        F = of.Interaction(of.kernels.Riesz(0.5)) + exact.quadratic()
        of.flow(F, clouds.uniform(), of.ExplicitEuler(), dt=1e-3, steps=2)
    F = At(0, lambda value, _: warnings.warn("heard", stacklevel=1) or value)
    with pytest.warns(UserWarning, match="heard"):
        F.velocity(clouds.uniform())
