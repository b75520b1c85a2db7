"""What TensorBoard reads back is what was recorded."""

from __future__ import annotations

import sys
import warnings

import pytest
import torch

import otflow as of
from otflow.callbacks import TensorBoardWriter
from tests.callbacks.common import CLOUD, SPRING, flow


@pytest.fixture(autouse=True)
def _its_own_warnings():
    """Tensorboard's own imports use what is deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def read(folder):
    """Return what a folder holds, as TensorBoard itself reads it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder))
    board.Reload()
    tags = board.Tags()
    curves = {
        tag: [(event.step, event.value) for event in board.Scalars(tag)]
        for tag in tags["scalars"]
    }
    return curves, tags["histograms"]


def test_records_and_reports_are_curves(tmp_path):
    record = {"mean": lambda mu: mu.points.mean(0), "all": lambda mu: mu.points[:, 0]}
    record["many"] = lambda mu: mu.points.repeat(3, 1)
    board = TensorBoardWriter(tmp_path)
    run = flow([board], of.JKO(), mu=CLOUD, every=2, steps=5, record=record)
    curves, histograms = read(tmp_path)
    steps = [0, 2, 4, 5]
    assert run.steps.tolist() == steps
    expected = {
        "energy": run.records["energy"],
        "mean/1": run.records["mean"][:, 1],
        "all/5": run.records["all"][:, 5],
        "time": run.times,
    }
    for tag, values in expected.items():
        assert [step for step, _ in curves[tag]] == steps
        assert [value for _, value in curves[tag]] == pytest.approx(values.tolist())
    assert histograms == ["many"]
    for word in ("w2", "residual", "certified"):
        assert [step for step, _ in curves[f"info/{word}"]] == [0, 2, 4]
        found = [float(run.info[k][word]) for k in (0, 2, 4)]
        assert [value for _, value in curves[f"info/{word}"]] == pytest.approx(found)
    assert "info/all" not in curves


def test_a_resumed_flow_doubles_no_point(tmp_path):
    first = flow([TensorBoardWriter(tmp_path)], steps=3)
    again = TensorBoardWriter(tmp_path)
    of.flow(
        SPRING,
        first.final,
        of.ExplicitEuler(),
        dt=0.1,
        steps=2,
        resume=first,
        on_step=[again],
    )
    curves, _ = read(tmp_path)
    assert [step for step, _ in curves["energy"]] == [0, 1, 2, 3, 4, 5]


def test_a_given_writer_is_used_and_stays_open(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        flow([TensorBoardWriter(writer)], steps=1)
        assert len(read(tmp_path)[0]["energy"]) == 2
        writer.add_scalar("after", 1.0, 0)
    assert "after" in read(tmp_path)[0]


def test_one_object_serves_several_flows(tmp_path):
    board = TensorBoardWriter(tmp_path)
    for _ in range(2):
        flow([board], steps=1)
    assert len(list(tmp_path.glob("events*"))) == 2


def test_without_tensorboard_the_extra_is_named(tmp_path, monkeypatch):
    board = TensorBoardWriter(tmp_path)  # the import waits
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'otflow\[tensorboard\]'"):
        flow([board])


@pytest.mark.parametrize("target", [None, 3, torch.zeros(2)], ids=range(3))
def test_a_target_is_a_folder_or_a_writer(target):
    with pytest.raises(TypeError, match="give the path of a folder"):
        TensorBoardWriter(target)


@pytest.mark.parametrize(
    "record",
    [
        {"x/0": lambda mu: mu.n, "x": lambda mu: mu.points[0]},
        {"info/w2": lambda mu: mu.n},
    ],
)
def test_two_records_are_not_one_curve(record, tmp_path):
    with pytest.raises(ValueError, match="give one of them another name"):
        flow([TensorBoardWriter(tmp_path)], mu=CLOUD, record=record)


def test_a_complex_record_is_refused(tmp_path):
    for value in (1 + 2j, torch.ones(20, dtype=torch.complex64)):
        record = {"root": lambda _, z=value: z}
        with pytest.raises(TypeError, match=r"'root' is complex.*x\.real and x\.imag"):
            flow([TensorBoardWriter(tmp_path)], record=record)
    parts = {"real": lambda _: (1 + 2j).real, "imag": lambda _: (1 + 2j).imag}
    flow([TensorBoardWriter(tmp_path)], record=parts, steps=1)
    assert read(tmp_path)[0]["imag"][0] == (0, 2.0)
