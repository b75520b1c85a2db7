"""The clock stops a flow; a log has one line for a step."""

from __future__ import annotations

import logging
import time

import pytest

import otflow as of
from otflow.callbacks import LogTo, TimeLimit
from tests.callbacks.common import CLOUD, Scripted, flow


class Clock:
    """Stands in for the clock; a step takes a second."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


def test_the_flow_ends_after_the_step_that_passes_the_limit(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("otflow.callbacks.time_limit.time", clock)
    limit = TimeLimit(3.0)
    clock.now += 1000  # time before the flow does not count

    def tick(event):
        clock.now += 1.0

    for _ in range(2):  # each flow has the whole limit
        run = flow([tick, limit], steps=99)
        assert run.status == "stopped"
        assert len(run.info) == 3
        assert run.message == (
            "TimeLimit stopped the flow (3 seconds have passed) after step 2"
        )


def test_the_real_clock_is_read():
    run = flow([lambda _: time.sleep(0.02), TimeLimit(0.1)], steps=1000)
    assert run.status == "stopped"
    assert 1 < len(run.info) <= 5


@pytest.mark.parametrize("seconds", [0, -1.0])
def test_a_limit_is_positive(seconds):
    with pytest.raises(ValueError, match="seconds must be positive"):
        TimeLimit(seconds)


def records(caplog):
    return [record for record in caplog.records if record.name == "experiment"]


def lines(caplog):
    return [record.getMessage() for record in records(caplog)]


@pytest.fixture
def logger(caplog):
    caplog.set_level(logging.INFO, "experiment")
    return logging.getLogger("experiment")


def test_a_log_has_the_records_of_each_step(logger, caplog):
    record = {"n": lambda mu: mu.n, "mean": lambda mu: mu.points.mean(0)}
    flow([LogTo(logger)], mu=CLOUD, steps=2, dt=0.5, every=2, record=record)
    energy = 0.5 * float(CLOUD.points.square().sum()) / CLOUD.n
    first, *steps, last = lines(caplog)
    assert first == "start"
    assert steps == [
        f"step 0, time 0.5: energy {energy:.6g}, n 6",
        f"step 1, time 1: energy {energy / 4:.6g}",  # not recorded
    ]
    assert last == "finished: made all 2 steps"
    assert {record.levelname for record in records(caplog)} == {"INFO"}


def test_a_log_says_what_was_certified(logger, caplog):
    caplog.set_level(logging.DEBUG, "experiment")
    flow([LogTo(logger, logging.DEBUG)], of.JKO(), steps=1)
    assert lines(caplog)[1].endswith(", certified")
    assert {record.levelname for record in records(caplog)} == {"DEBUG"}


def test_every_failed_step_is_a_warning(logger, caplog):
    def report(k):
        return {
            "energy_before": 1.0,
            "energy_after": 1.0,
            "residual": 1.0,
            "converged": k != 4,
            "guarantee": "stationary",
        }

    flow([LogTo(logger, every=3)], Scripted([0.0] * 7, report), steps=7)
    middle = records(caplog)[1:-1]
    assert [record.args[0] for record in middle] == [0, 3, 4, 6]
    (bad,) = [record for record in middle if record.levelname == "WARNING"]
    assert "did not converge, not certified" in bad.getMessage()


def test_a_level_that_is_off_writes_nothing(logger, caplog):
    logger.setLevel(logging.ERROR)
    flow([LogTo(logger)])
    assert records(caplog) == []


@pytest.mark.parametrize("logger", ["experiment", None, logging], ids=range(3))
def test_a_log_needs_a_logger(logger):
    with pytest.raises(TypeError, match=r"use logging\.getLogger\(name\)"):
        LogTo(logger)
