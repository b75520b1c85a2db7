"""Cures of risks over laws of inputs, of fresh data, and of many neurons."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    TensorDataset,
    WeightedRandomSampler,
)

import otflow as of
from otflow.testing.clouds import normal
from tests.cures import Case, check_cures

F64 = torch.float64
Unsupported, InvalidFunctional = of.errors.Unsupported, of.errors.InvalidFunctional
PopulationRisk, OnlineRisk = of.meanfield.PopulationRisk, of.meanfield.OnlineRisk
from_loader, Risk = of.meanfield.from_loader, of.meanfield.Risk
TANH = of.meanfield.TwoLayer("tanh")
TEACHER, STUDENT = of.Particles(normal(3, 3)), of.Particles(normal(4, 3, seed=1))
BIASED = of.Particles(normal(4, 4, seed=1))
RISK = PopulationRisk(TEACHER, "relu", "gaussian")
ATTRACTION = of.Interaction(of.kernels.Quadratic())
RESIDUAL = of.meanfield.networks.Residual("tanh", layers=2)
LAYERS = RESIDUAL.from_blocks(normal(2, 3, 3), normal(2, 3, 4, seed=1))
DEEP = of.meanfield.Risk(RESIDUAL, normal(5, 2), normal(5, seed=1))
DATA = TensorDataset(normal(20, 2), normal(20, seed=1))


def draw(generator):
    X = torch.randn(16, 2, dtype=F64, generator=generator)
    return X, X[:, 0].sin()


ONLINE = OnlineRisk(TANH, draw, DATA.tensors)


def sampled(network=TANH):
    return Risk(network, *DATA.tensors)


def resampled(loader):
    risk = OnlineRisk(TANH, from_loader(loader), DATA.tensors)
    return risk.resample(torch.Generator())


def fresh():
    return ONLINE.resample(torch.Generator())


class Doubled(of.meanfield.PopulationRisk):
    def value(self, mu):
        return 2 * super().value(mu)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(DATA)


def of_two_sizes(*, again):
    """Draw from a data set that loses a sample; make a new risk of it if asked."""
    data = [DATA[k] for k in range(20)]
    risk = OnlineRisk(TANH, from_loader(DataLoader(data, batch_size=5)), DATA.tensors)
    data.pop()
    if again:
        return resampled(DataLoader(data, batch_size=5))
    return risk.resample(torch.Generator())


def steps(F, scheme):
    return of.flow(F, BIASED, scheme, dt=0.1, steps=1, generator=0)


def normals(n, generator):
    return torch.randn(n, 1, dtype=F64, generator=generator)


def chaos(F=ATTRACTION, initial=normals, **options):
    options = {"steps": 1, "reference": 8, "runs": 2, **options}
    return of.analysis.propagation_of_chaos(F, initial, [4], 1.0, **options)


def along(steps, every):
    mu = of.Particles(normal(3, 1))
    run = of.flow(ATTRACTION, mu, of.ExplicitEuler(), dt=0.1, steps=steps, every=every)
    return of.analysis.mckean_vlasov(ATTRACTION, run, mu)


def neurons(n, generator):
    return torch.randn(n, 4, dtype=F64, generator=generator)


BROAD = normal(6, 4, dtype=torch.float32) * 1e14
WIDE = normal(3, 2, dtype=torch.float32) * 1e14
RELU = of.meanfield.TwoLayer("relu")
STEEP = of.meanfield.networks.Residual("relu", layers=30, bias=False)


def deep_states(factor):
    mu = STEEP.draw(2, torch.Generator().manual_seed(0), neurons=9, outer=(0.0, factor))
    return STEEP.states(mu.to(torch.float32), WIDE)


CASES: dict[str, Case] = {
    "outputs that overflow": (
        of.errors.NonFinite,
        r"outputs of TwoLayer are not finite, .*float32, .*take smaller weights or inp",
        lambda: RELU(of.Particles(BROAD), WIDE),
        [
            lambda: RELU(of.Particles(BROAD / 1e9), WIDE),
            lambda: RELU(of.Particles(BROAD), WIDE / 1e9),
        ],
    ),
    "features that overflow": (
        of.errors.NonFinite,
        r"features of TwoLayer are not finite, .*take smaller weights",
        lambda: RELU.features(BROAD, WIDE),
        [lambda: RELU.features(BROAD / 1e9, WIDE)],
    ),
    "states that overflow": (
        of.errors.NonFinite,
        r"states of Residual are not finite, .*take smaller weights",
        lambda: deep_states(1e4),
        [lambda: deep_states(1.0)],
    ),
    "data in the place of a draw": (
        TypeError,
        r"draw must be a function of a generator",
        lambda: OnlineRisk(TANH, DATA.tensors, DATA.tensors),
        [lambda: OnlineRisk(TANH, draw, DATA.tensors)],
    ),
    "a kernel of tanh": (
        Unsupported,
        r"use 'relu', 'step' or 'erf', or .*meanfield\.Risk, or fresh .*OnlineRisk",
        lambda: PopulationRisk(TEACHER, "tanh", "gaussian"),
        [
            lambda: PopulationRisk(TEACHER, "relu", "gaussian")(STUDENT),
            lambda: PopulationRisk(TEACHER, "step", "gaussian")(STUDENT),
            lambda: PopulationRisk(TEACHER, "erf", "gaussian")(STUDENT),
            lambda: sampled()(BIASED),
            fresh,
        ],
    ),
    "a kernel of erf on the sphere": (
        Unsupported,
        r"use inputs='gaussian', or take the risk of sampled inputs",
        lambda: PopulationRisk(TEACHER, "erf", "sphere"),
        [
            lambda: PopulationRisk(TEACHER, "erf", "gaussian")(STUDENT),
            lambda: sampled()(BIASED),
            fresh,
        ],
    ),
    "a bias under a law of inputs": (
        ValueError,
        r"leave it out, or take meanfield\.OnlineRisk",
        lambda: RISK(BIASED),
        [lambda: RISK(STUDENT), lambda: fresh()(BIASED)],
    ),
    "the parts of another risk": (
        Unsupported,
        r"use meanfield\.PopulationRisk",
        lambda: Doubled(TEACHER, "relu", "gaussian").decompose(),
        [RISK.decompose],
    ),
    "a step on test data": (
        Unsupported,
        r"schemes\.Minibatch\(scheme\).*F\.test",
        lambda: steps(ONLINE, of.ExplicitEuler()),
        [
            lambda: steps(ONLINE, of.schemes.Minibatch(of.ExplicitEuler())),
            lambda: steps(ONLINE.test, of.ExplicitEuler()),
        ],
    ),
    "a loader of a stream": (
        Unsupported,
        r"give OnlineRisk a function of a generator that returns \(X, y\)",
        lambda: from_loader(DataLoader(Stream(), batch_size=5)),
        [fresh],
    ),
    "a loader with a sampler of its own": (
        Unsupported,
        r"take a DataLoader\(data, batch_size=..., shuffle=True\), or give OnlineRisk",
        lambda: from_loader(
            DataLoader(DATA, sampler=WeightedRandomSampler([1.0] * 20, 5))
        ),
        [lambda: resampled(DataLoader(DATA, batch_size=5, shuffle=True)), fresh],
    ),
    "a data set that changes its size": (
        InvalidFunctional,
        r"make a new OnlineRisk of from_loader\(loader\)",
        lambda: of_two_sizes(again=False),
        [lambda: of_two_sizes(again=True)],
    ),
    "a limit of few particles": (
        ValueError,
        r"take a larger reference",
        lambda: chaos(reference=4),
        [lambda: chaos(reference=5)],
    ),
    "a distance to more particles than there are": (
        ValueError,
        r"take a larger reference, or transport=8",
        lambda: chaos(transport=9),
        [lambda: chaos(reference=9, transport=9), lambda: chaos(transport=8)],
    ),
    "an observable that is a number": (
        InvalidFunctional,
        r"for a Risk risk\.outputs is one",
        lambda: chaos(observable=lambda _: 1.0),
        [lambda: chaos(sampled(), neurons, observable=sampled().outputs)],
    ),
    "a path of one measure": (
        ValueError,
        r"record them with every=1",
        lambda: along(0, 1),
        [lambda: along(2, 1)],
    ),
    "a path with gaps": (
        ValueError,
        r"the measure of every step.*record them with every=1",
        lambda: along(4, 2),
        [lambda: along(4, 1)],
    ),
    "a neuron of outer weights": (
        ValueError,
        r"take outputs=2 or less",
        lambda: of.meanfield.layer_dissipation(ATTRACTION, STUDENT, outputs=3),
        [lambda: of.meanfield.layer_dissipation(ATTRACTION, STUDENT, outputs=2)],
    ),
    "outer weights of particles with a layer time": (
        of.errors.Unsupported,
        r"split the dissipation by coordinates, mu\.weights @ F\.velocity.*outputs=m",
        lambda: of.meanfield.layer_dissipation(DEEP, LAYERS),
        [
            lambda: LAYERS.weights @ DEEP.velocity(LAYERS).square(),
            lambda: of.meanfield.layer_dissipation(DEEP, LAYERS, outputs=1),
        ],
    ),
    "outer weights of another network": (
        ValueError,
        r"outputs = 2 outer weights.*leave outputs out, or take the parts of each risk",
        lambda: of.meanfield.layer_dissipation(RISK + ATTRACTION, STUDENT, outputs=2),
        [
            lambda: of.meanfield.layer_dissipation(RISK + ATTRACTION, STUDENT),
            lambda: of.meanfield.layer_dissipation(RISK, STUDENT, outputs=1),
        ],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_cure_works(case):
    check_cures(CASES[case])
