"""The bar of a flow: steps, energy, the share of certified steps."""

from __future__ import annotations

import re

import pytest
import torch

import otflow as of
from otflow._progress import progress_bar

SPRING = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
ATOM = of.Particles(torch.ones(1, 1, dtype=torch.float64))


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        ([None, None], ""),
        ([True, None], "certified=100 %"),
        ([True] * 199 + [False], "certified=99 %"),
        ([False], "certified=0 %"),
    ],
    ids=["explicit", "all", "nearly all", "none"],
)
def test_the_share_is_that_of_the_steps_that_claim(capfd, verdicts, said):
    with progress_bar(len(verdicts), progress=True) as bar:
        bar.show_energy("0.25")
        for verdict in verdicts:
            bar.update(verdict)
    last = capfd.readouterr().err.split("\r")[-1]
    assert "energy=0.25" in last
    assert f"{len(verdicts)}/{len(verdicts)}" in last
    assert (re.findall(r"certified=\d+ %", last) or [""]) == [said]


def test_no_bar_writes_nothing(capfd):
    with progress_bar(3, progress=False) as bar:
        bar.show_energy("1")
        bar.update(True)
    assert capfd.readouterr() == ("", "")


def test_a_flow_shows_energy_and_certificates(capfd):
    of.flow(SPRING, ATOM, of.JKO(), dt=1.0, steps=3, progress=True)
    last = capfd.readouterr().err.split("\r")[-1]
    assert "3/3" in last
    assert "energy=0.007812" in last
    assert "certified=100 %" in last
    of.flow(SPRING, ATOM, of.ExplicitEuler(), dt=0.1, steps=3, progress=True)
    assert "certified" not in capfd.readouterr().err


def test_the_bar_of_a_resumed_flow_goes_on(capfd):
    euler = of.ExplicitEuler()
    first = of.flow(SPRING, ATOM, euler, dt=0.1, steps=3)
    assert capfd.readouterr() == ("", "")
    whole = of.flow(SPRING, ATOM, euler, dt=0.1, steps=4, resume=first, progress=True)
    bars = capfd.readouterr().err.split("\r")
    assert "3/7" in next(bar for bar in bars if bar.strip())
    assert "7/7" in bars[-1]
    assert whole.message == "made all 7 steps"  # that of one run
    once = of.flow(SPRING, ATOM, euler, dt=0.1, steps=7)
    assert whole.message == once.message


def test_the_messages_of_a_resumed_flow_count_all_steps():
    euler, counted = of.ExplicitEuler(), iter(range(10))
    first = of.flow(SPRING, ATOM, euler, dt=0.1, steps=3)

    def stop(error):
        def act(_):
            if next(counted) in (1, 3):
                raise error

        return act

    more = {"dt": 0.1, "steps": 2, "resume": first}
    with pytest.raises(RuntimeError) as caught:
        of.flow(SPRING, ATOM, euler, on_step=stop(RuntimeError), **more)
    run = caught.value.trajectory  # type: ignore[attr-defined]
    assert run.message == "step 5 of 5 raised RuntimeError"
    with pytest.raises(KeyboardInterrupt) as cut:
        of.flow(SPRING, ATOM, euler, on_step=stop(KeyboardInterrupt), **more)
    run = cut.value.trajectory  # type: ignore[attr-defined]
    assert run.message == "interrupted in step 5 of 5"
    late = of.flow(SPRING, ATOM, euler, until=9.0, **more)
    assert late.message == "made all 5 steps and is at time 0.5 of 9"
