"""What a flow writes into the log of the library."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

import otflow as of
from tests.callbacks.common import CLOUD, SPRING, Scripted, flow


@pytest.fixture(autouse=True)
def _asked(caplog):
    caplog.set_level(logging.INFO, "otflow")


def said(caplog):
    return [(r.name, r.levelname, r.getMessage()) for r in caplog.records]


def test_a_flow_logs_its_start_and_its_end(caplog):
    run = flow(None, of.JKO(), mu=CLOUD, steps=2)
    first, last = said(caplog)
    assert first[:2] == last[:2] == ("otflow.flow", "INFO")
    assert first[2] == f"{SPRING!r} on {CLOUD!r} by {of.JKO()!r}: 2 steps"
    assert last[2] == "finished: made all 2 steps"
    caplog.clear()
    of.flow(SPRING, CLOUD, of.JKO(), dt=0.1, steps=3, resume=run)
    assert said(caplog)[0][2].endswith(": 3 steps after 2 steps")


def test_a_failed_step_is_a_warning(caplog):
    def report(k):
        return {
            "energy_before": 1.0,
            "energy_after": 1.0,
            "residual": 0.25,
            "converged": k != 2,
            "guarantee": "stationary",
        }

    flow(None, Scripted([0.0] * 4, report), steps=4)
    (bad,) = [line for line in said(caplog) if line[1] == "WARNING"]
    assert bad[2] == "step 2 did not converge: residual 0.25"


def test_a_flow_that_fails_logs_that(caplog):
    with pytest.raises(of.errors.Diverged):
        flow(None, dt=1e200, steps=9)
    *_, last = said(caplog)
    assert last[1] == "WARNING"
    assert last[2].startswith("diverged: ")


def test_it_is_silent_by_default():
    code = (
        "import torch, otflow as of, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "F = of.Potential(lambda x: x.square().square().sum(-1))\n"
        "mu = of.Particles(torch.tensor([[1.0], [2.0], [-3.0]]))\n"
        "short = of.JKO(of.proximal.ParticleProximal(max_gradients=2))\n"
        "run = of.flow(F, mu, short, dt=5.0, steps=3)\n"
        "assert run.converged is False"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == done.stderr == ""
