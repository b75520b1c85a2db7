"""Early stopping waits as long as it says and keeps the best measure."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.callbacks import Patience
from tests.callbacks.common import ATOM, CLOUD, Scripted, flow, place


def walk(watch, values, **options):
    """Let the record take these values, from 1 on."""
    moves = [b - a for a, b in zip([1.0, *values], values, strict=False)]
    record = {"place": place}
    words = {"steps": len(moves), "dt": 1.0, "record": record} | options
    return flow([watch], Scripted(moves), **words)


def test_it_stops_after_so_many_rows_without_improvement():
    watch = Patience("place", patience=3)
    run = walk(watch, [0.5, 0.6, 0.7, 0.8, 0.1, 0.0])
    # The rows are 1, 0.5 and three that are worse: the fifth is seen after step 4.
    assert run.status == "stopped"
    assert len(run.info) == 5
    assert run.message == (
        "Patience stopped the flow ('place' no better in 3 rows) after step 4"
    )


def test_an_improvement_starts_the_wait_anew():
    watch = Patience("place", patience=2)
    run = walk(watch, [0.9, 0.95, 0.8, 0.85, 0.7, 0.75])
    assert run.status == "finished"
    assert watch.best_value == pytest.approx(0.7)
    assert watch.best_time == 5.0


def test_a_small_improvement_is_none_but_the_best_is_kept():
    watch = Patience("place", patience=3, tolerance=0.25)
    run = walk(watch, [0.9, 0.8, 0.79, 0.2])
    assert len(run.info) == 4  # 0.9, 0.8 and 0.79 are within 0.25 of 1
    # The last row is seen at the end, though the flow has stopped.
    assert watch.best_value == pytest.approx(0.2)


def test_slow_progress_adds_up():
    """Each row improves by less than the tolerance, every third by more in sum."""
    watch = Patience("place", patience=3, tolerance=0.25)
    run = walk(watch, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    assert run.status == "finished"


def test_the_best_measure_is_that_of_the_best_row():
    watch = Patience("place", patience=9, best="max")
    run = walk(watch, [0.5, 3.0, 2.0])
    assert watch.best_value == 3.0
    assert watch.best_time == 2.0
    assert isinstance(watch.best_measure, of.Particles)
    assert place(watch.best_measure) == 3.0
    assert watch.best_measure is run.snapshots[2]


def test_the_last_row_may_be_the_best():
    watch = Patience("place", patience=9)
    run = walk(watch, [0.5, 0.25])
    assert watch.best_value == 0.25
    assert watch.best_measure is run.final
    assert watch.best_time == 2.0


def test_rows_are_counted_not_steps():
    watch = Patience("energy", patience=2, best="max")
    run = flow([watch], every=5, steps=100)
    assert len(run.info) == 11  # rows 0, 5 and 10: two without a rise


def test_a_constant_record_is_no_improvement():
    run = flow([Patience("energy", patience=2)], Scripted([0.0] * 9), steps=9)
    assert len(run.info) == 3


def test_one_object_serves_several_flows():
    watch = Patience("place", patience=2)
    first = walk(watch, [2.0, 3.0, 4.0])
    best = watch.best_value
    second = walk(watch, [2.0, 3.0, 4.0])
    assert len(first.info) == len(second.info) == 3
    assert watch.best_value == best == 1.0


def test_it_sees_the_last_good_row_of_a_flow_that_diverges():
    watch = Patience("energy", patience=99, best="max")
    with pytest.raises(of.errors.Diverged) as caught:
        flow([watch], dt=1e60, steps=9)
    run = caught.value.trajectory
    assert watch.best_value == float(run.records["energy"].max())
    assert watch.best_time == float(run.times[-1])


VALUES = [0.5, 0.6, 0.4, 0.7, 0.8, 0.45, 0.9, 0.95]


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("cut", [1, 2, 4])
def test_a_run_in_two_parts_waits_as_one(every, cut):
    moves = [b - a for a, b in zip([1.0, *VALUES], VALUES, strict=False)]
    words = {"dt": 1.0, "record": {"place": place}, "every": every}
    whole = Patience("place", patience=3, tolerance=0.1)
    one = flow([whole], Scripted(moves), steps=8, **words)
    watch = Patience("place", patience=3, tolerance=0.1)
    first = flow([watch], Scripted(moves), steps=cut, **words)
    assert first.status == "finished"
    two = flow([watch], Scripted(moves), steps=8 - cut, resume=first, **words)
    assert two.status == one.status
    assert two.times.tolist() == one.times.tolist()
    assert watch.best_value == whole.best_value
    assert watch.best_time == whole.best_time
    assert watch.best_measure is not None
    assert whole.best_measure is not None
    assert torch.equal(watch.best_measure.points, whole.best_measure.points)


def test_the_best_row_may_have_no_snapshot():
    words = {"dt": 1.0, "record": {"place": place}, "snapshots": "none"}
    moves = [-0.5, 1.0, -0.6, 0.1]
    watch = Patience("place", patience=9)
    first = flow([watch], Scripted(moves), steps=2, **words)
    assert watch.best_value == 0.5
    assert watch.best_measure is not None
    assert place(watch.best_measure) == 0.5
    flow([watch], Scripted(moves), steps=2, resume=first, **words)
    assert watch.best_value == 0.5
    assert watch.best_measure is None


@pytest.mark.parametrize(
    ("record", "error", "words"),
    [
        (
            "place",
            ValueError,
            r"no record 'place' to watch, only 'energy', 'mean', 'z'",
        ),
        ("mean", TypeError, r"has shape \(2,\)"),
        ("z", TypeError, "complex"),
    ],
)
def test_what_is_no_number_is_refused(record, error, words):
    records = {
        "mean": lambda mu: mu.points.mean(0),
        "z": lambda mu: mu.points.sum().to(torch.complex128),
    }
    with pytest.raises(error, match=words) as caught:
        flow([Patience(record, patience=1)], mu=CLOUD, record=records)
    assert caught.value.trajectory.status == "failed"


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"patience": 0}, ValueError, "at least 1"),
        ({"patience": 1, "tolerance": -1.0}, ValueError, "non-negative"),
        ({"patience": 1, "best": "minimum"}, ValueError, "did you mean 'min'"),
        ({"patience": 1, "record": place}, TypeError, r"give the function to flow"),
    ],
    ids=["patience", "tolerance", "best", "record"],
)
def test_bad_arguments_are_refused(options, error, words):
    with pytest.raises(error, match=words):
        Patience(**options)


def test_before_a_flow_there_is_no_best():
    watch = Patience(patience=1)
    assert watch.best_measure is None
    assert watch.best_value is None
    assert watch.best_time is None
    assert repr(watch) == "Patience('energy', patience=1, tolerance=0, best='min')"


def test_a_flow_without_a_step_has_a_best():
    watch = Patience(patience=1)
    flow([watch], steps=0)
    assert watch.best_value == 0.5
    assert watch.best_time == 0.0
    assert isinstance(watch.best_measure, of.Particles)
    assert torch.equal(watch.best_measure.points, ATOM.points)
