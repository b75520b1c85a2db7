"""Steps that are too long: every scheme that diverges says what to do."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.errors import Diverged
from otflow.schemes import (
    MALA,
    SVGD,
    Adam,
    Anneal,
    DualAveraging,
    EntropicFictitiousPlay,
    Minibatch,
    Mobility,
    Momentum,
    NoisyEuler,
    Resample,
    UnderdampedLangevin,
)
from otflow.testing.clouds import normal

HEAT = 0.1 * of.Entropy()
STEEP = of.Potential(lambda x: x.square().square().sum(-1))
STEEPER = of.Potential(lambda x: torch.cosh(5 * x).sum(-1))
WALL = of.Potential(lambda x: x.square().sum(-1) - (10 - x).log().sum(-1))
# A scheme, and whether it needs an entropy.
SCHEMES = {
    "ExplicitEuler": (of.ExplicitEuler(), False),
    "Langevin": (of.Langevin(), True),
    "MALA": (MALA(), True),
    "UnderdampedLangevin": (UnderdampedLangevin(), True),
    "NoisyEuler": (NoisyEuler(0.1), False),
    "SVGD": (SVGD(of.kernels.Gaussian(1.0)), True),
    "Mobility": (Mobility(of.ExplicitEuler(), (2.0, 0.0)), False),
    "Mobility of Langevin": (Mobility(of.Langevin(), (2.0, 0.5)), True),
    "Momentum": (Momentum(), False),
    "heavy ball": (Momentum(nesterov=False), False),
    "Adam": (Adam(), False),
    "chain": (of.chain(of.ExplicitEuler(), of.BirthDeath()), False),
    "chain with noise": (of.chain(of.Langevin(), Resample()), True),
    "Anneal": (Anneal(of.ExplicitEuler(), 0.9, lengths=True), False),
    "Minibatch": (Minibatch(of.ExplicitEuler()), False),
    "EntropicFictitiousPlay": (EntropicFictitiousPlay(inner_dt=100.0), True),
    "DualAveraging": (DualAveraging(inner_dt=100.0), True),
}
# Bounded steps, and proposals that are rejected where F is infinite.
CALM = {(name, what) for name in ("Adam", "MALA") for what in ("steep", "steeper")}


@pytest.mark.filterwarnings("ignore::otflow.errors.CollapseWarning")
@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize(
    ("F", "what"),
    [(STEEP, "steep"), (STEEPER, "steeper"), (WALL, "wall")],
    ids=["steep", "steeper", "wall"],
)
def test_a_flow_that_diverges_says_take_a_smaller_step(name, F, what):
    scheme, noisy = SCHEMES[name]
    G = F + HEAT if noisy else F
    mu = of.Particles(normal(20, 2))
    if (name, what) in CALM:
        run = of.flow(G, mu, scheme, dt=50.0, steps=60, generator=0)
        assert run.status == "finished"
        return
    with pytest.raises(Diverged, match=r"take a smaller (inner_)?dt") as caught:
        of.flow(G, mu, scheme, dt=50.0, steps=60, generator=0)
    # The measure of the error is the last one where F is finite.
    assert bool(torch.isfinite(F.value(caught.value.measure)))


def test_a_functional_that_is_not_finite_at_the_start_asks_for_no_smaller_dt():
    mu = of.Particles(20.0 + normal(20, 2))
    with pytest.raises(Diverged, match="step 0") as caught:
        of.flow(WALL, mu, of.ExplicitEuler(), dt=0.1, steps=2)
    assert "smaller dt" not in str(caught.value)


def test_a_record_that_is_not_finite_keeps_its_own_cure():
    mu = of.Particles(normal(20, 2))
    seen: list[int] = []

    def bad(nu):
        seen.append(nu.n)
        return torch.tensor(float("nan") if len(seen) > 2 else 0.0)

    with pytest.raises(Diverged, match="record") as caught:
        of.flow(STEEP, mu, of.ExplicitEuler(), dt=1e-3, steps=4, record={"bad": bad})
    assert "smaller dt" not in str(caught.value)
