"""What is kept from a call in torch.inference_mode() must serve autograd later."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.marks import slow

# In a process of its own: nothing has been kept yet when inference mode asks first.
SCRIPT = """
import torch, otflow as of

F64 = torch.float64
parabola = lambda x: 1.0 + x.square().sum(-1)
measure = {
    "particles": lambda: of.Particles(torch.linspace(0, 1, 5, dtype=F64)[:, None]),
    "quantiles": lambda: of.Quantiles(torch.linspace(0, 1, 6, dtype=F64)),
    "grid": lambda: of.GridDensity.from_function(parabola, -1.0, 1.0, (8,)),
    "gaussian": lambda: of.Gaussian(torch.zeros(2, dtype=F64), torch.eye(2).double()),
}["KIND"]
parts = [
    of.Potential(lambda x: x.square().sum(-1)),
    of.Interaction(of.kernels.Gaussian(0.5)),
    of.Interaction(of.kernels.Energy()),
    of.Interaction(lambda z: z.square().sum(-1)),
]
with torch.inference_mode():
    for F in parts:
        F.value(measure())
for F in parts:
    mu = measure()
    if "KIND" in ("grid", "particles"):
        assert F.first_variation(mu).isfinite().all()
    if "KIND" != "grid":
        assert F.velocity(mu).isfinite().all()
    of.flow(F, mu, of.JKO(), dt=0.01, steps=1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["particles", *slow("quantiles", "grid", "gaussian")])
def test_what_inference_mode_asked_first_can_be_differentiated(kind):
    script = SCRIPT.replace("KIND", kind)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
