"""Callbacks in a sequence: who is called, when, whatever one of them does."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import otflow as of
from otflow.callbacks import Callback, CSVWriter, Patience, Stationary
from tests.callbacks.common import flow


class Diary(Callback):
    """Writes down each call."""

    def __init__(self):
        self.lines = []

    def start(self, run):
        self.lines.append("start")

    def __call__(self, event):
        self.lines.append(event.index)

    def end(self, run):
        self.lines.append(run.status)


def at(k, act):
    """Return a callback that acts in step k."""
    return lambda event: act() if event.index == k else None


def raising(error):
    def act():
        raise error

    return act


class Quit(BaseException):
    """Somebody's own end of the program."""


@pytest.mark.parametrize(
    "error",
    [RuntimeError("x"), StopIteration(), SystemExit(3), Quit(), GeneratorExit()],
)
def test_whatever_ends_the_flow_each_callback_is_ended(error, tmp_path):
    before, after = Diary(), Diary()
    writer = CSVWriter(tmp_path / "run.csv")
    with pytest.raises(type(error)) as caught:
        flow([before, at(2, raising(error)), after, writer], steps=5)
    assert before.lines == ["start", 0, 1, 2, "failed"]
    assert after.lines == ["start", 0, 1, "failed"]
    run = caught.value.trajectory
    assert (run.status, len(run.info)) == ("failed", 3)
    lines = (tmp_path / "run.csv").read_text("utf-8").splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", "0", "1", "3"]
    (tmp_path / "run.csv").unlink()  # on some systems a file that is open stays


def test_all_see_the_step_in_which_one_stops_the_flow():
    before, after = Diary(), Diary()
    run = flow([before, at(1, lambda: True), at(1, lambda: True), after])
    assert before.lines == after.lines == ["start", 0, 1, "stopped"]
    assert run.message.endswith("stopped the flow after step 1")


def test_a_callback_that_was_not_started_is_not_ended():
    class Broken(Diary):
        def start(self, run):
            super().start(run)
            raise RuntimeError

    before, broken, after = Diary(), Broken(), Diary()
    best = Patience(patience=2)
    flow([best], steps=3)
    kept = best.best_value
    with pytest.raises(RuntimeError):
        flow([before, broken, after, best], mu=of.Particles(torch.zeros(1, 1)))
    assert before.lines == broken.lines == ["start", "failed"]
    assert after.lines == []
    assert best.best_value == kept  # nothing of a flow that it has not seen


def test_an_end_that_raises_leaves_no_one_out():
    class Broken(Diary):
        def end(self, run):
            super().end(run)
            raise RuntimeError

    before, broken, after = Diary(), Broken(), Diary()
    with pytest.raises(RuntimeError) as caught:
        flow([before, broken, after], steps=1)
    assert before.lines == broken.lines == ["start", 0, "finished"]
    assert after.lines == ["start", 0, "failed"]
    assert len(caught.value.trajectory.info) == 1  # type: ignore[attr-defined]


def test_no_steps_start_and_end():
    diary = Diary()
    assert flow([diary], steps=0).status == "finished"
    assert diary.lines == ["start", "finished"]


@pytest.mark.parametrize("answer", [3, 0, 1.0, torch.ones(1), object(), np.float64(1)])
def test_a_number_does_not_stop_a_flow_unnoticed(answer):
    with pytest.raises(TypeError, match=r"^a callback must return True, False or None"):
        flow(lambda _: answer)


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (None, "finished"),
        (False, "finished"),
        (np.False_, "finished"),
        (torch.tensor(False), "finished"),
        (True, "stopped"),
        (np.True_, "stopped"),
        (np.array([True]), "stopped"),
        (torch.tensor([True]), "stopped"),
    ],
)
def test_a_truth_value_of_any_kind_is_an_answer(answer, status):
    assert flow(lambda _: answer).status == status


def test_the_text_of_a_callback_is_there_before_a_flow():
    for callback in (
        Diary(),
        Stationary(1e-3),
        Patience(patience=1),
        CSVWriter("run.csv"),
    ):
        assert "stopped the flow" in str(callback)
        assert repr(copy.deepcopy(callback))
