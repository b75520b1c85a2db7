"""`==` and hash of every public object: one truth value, and a place in containers."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import otflow as of
from otflow import kernels, meanfield, proximal, schemes
from otflow.estimators import MeanFieldClassifier, MeanFieldRegressor
from otflow.meanfield import networks
from otflow.metrics import symmetries
from otflow.testing.clouds import normal
from tests.test_public_api import public_objects

F64 = torch.float64


def square(x):
    return 0.5 * x.square().sum(-1)


def line():
    rho = normal(12).exp()
    return of.GridDensity(rho, -1, 1, walls=True, normalize=True)


def cloud():
    return of.Particles(normal(5, 2))


def labelled():
    X = normal(6, 2)
    return X, X[:, 0].sign()


def potential():
    return of.Potential(square, modulus=1.0)


def flowed(scheme=None):
    scheme = of.ExplicitEuler() if scheme is None else scheme
    record = {"mean": lambda mu: mu.expectation(lambda x: x)}
    return of.flow(potential(), cloud(), scheme, dt=0.1, steps=2, record=record)


def risk():
    X = normal(6, 1)
    return meanfield.Risk(meanfield.TwoLayer("tanh"), X, X[:, 0])


def features():
    return meanfield.RandomFeatures(risk(), of.Particles(normal(5, 3)))


def line_data():
    X = torch.linspace(0, 1, 5, dtype=F64)[:, None]
    return X, X[:, 0].square()


def stepped():
    return of.JKO().step(potential(), cloud(), 0.1, None, torch.Generator())


def falsified():
    return of.analysis.falsify(potential(), cloud(), evaluations=20)


def event():
    """Return what a callback receives after a step."""
    seen: list[Any] = []
    once = {"dt": 0.1, "steps": 1, "on_step": seen.append}
    of.flow(potential(), cloud(), of.ExplicitEuler(), **once)
    return seen[0]


def aligned():
    network = networks.MultiLayer((3, 2), "tanh")
    mu = network.draw(1, torch.Generator().manual_seed(0))
    return networks.align_networks(network, mu, mu)


def both():
    return of.measures.Parts([cloud(), line()])


MAKE: dict[type, Callable[[], Any]] = {
    of.Particles: cloud,
    of.Quantiles: lambda: of.Quantiles(torch.arange(4.0)),
    of.Gaussian: lambda: of.Gaussian(normal(2), torch.eye(2, dtype=F64)),
    of.GridDensity: line,
    of.measures.Box: lambda: of.measures.Box.of(0.0, 1.0, (3, 4)),
    of.measures.ConicParticles: lambda: of.measures.ConicParticles(normal(3, 2)),
    of.measures.Convolution: lambda: of.measures.Convolution(
        of.measures.Box.of(0.0, 1.0, 4), kernels.Log(), torch.ones(4)
    ),
    of.measures.Euclidean: lambda: of.measures.Euclidean(normal(3, 2)),
    of.measures.Parts: both,
    of.Potential: potential,
    of.Interaction: lambda: of.Interaction(kernels.Log()),
    of.functionals.Lifted: lambda: of.functionals.Lifted(potential()),
    of.Internal: lambda: of.Internal(lambda r: r),
    of.Entropy: of.Entropy,
    of.PowerEntropy: lambda: of.PowerEntropy(2.0),
    of.Congestion: lambda: of.Congestion(1.0),
    of.KL: lambda: of.KL(line()),
    of.Blob: lambda: of.Blob(of.Entropy(), 0.1),
    of.KSD: lambda: of.KSD(torch.neg, kernels.Gaussian(1.0)),
    of.OfExpectation: lambda: of.OfExpectation(torch.sum, lambda x: x),
    of.SquaredDistanceTo: lambda: of.SquaredDistanceTo(cloud()),
    of.SinkhornDivergenceTo: lambda: of.SinkhornDivergenceTo(cloud(), 0.1),
    of.SlicedWassersteinTo: lambda: of.SlicedWassersteinTo(cloud(), 4),
    of.MMDTo: lambda: of.MMDTo(cloud(), kernels.Gaussian(1.0)),
    of.EnergyDistanceTo: lambda: of.EnergyDistanceTo(cloud()),
    of.functionals.OfPart: lambda: of.functionals.OfPart(0, potential()),
    of.functionals.InPart: lambda: of.functionals.InPart(potential(), both(), 0),
    of.functionals.Sum: lambda: potential() + of.Entropy(),
    of.functionals.Scaled: lambda: 2 * potential(),
    kernels.Combination: lambda: kernels.Log() - kernels.Energy(),
    kernels.Energy: kernels.Energy,
    kernels.Function: lambda: kernels.Function(square),
    kernels.Gaussian: lambda: kernels.Gaussian(1.0),
    kernels.InverseMultiquadric: lambda: kernels.InverseMultiquadric(1.0),
    kernels.Log: kernels.Log,
    kernels.PowerLaw: lambda: kernels.PowerLaw(4, 2),
    kernels.Quadratic: kernels.Quadratic,
    kernels.Riesz: lambda: kernels.Riesz(1.0),
    of.metrics.Bracket: lambda: of.metrics.Bracket(1.0, 2.0),
    kernels.TwoPoint: lambda: kernels.TwoPoint(torch.mul),
    of.metrics.BarycenterResult: lambda: of.metrics.barycenter([cloud()]),
    of.metrics.Bounds: lambda: of.metrics.wasserstein2_bounds(cloud(), cloud()),
    of.metrics.Plan: lambda: of.metrics.transport_plan(cloud(), cloud()),
    of.metrics.TransportMap: lambda: of.metrics.transport_plan(
        of.Gaussian(torch.zeros(2), torch.eye(2)),
        of.Gaussian(torch.ones(2), torch.eye(2)),
    ),
    of.metrics.SemidiscretePlan: lambda: of.metrics.semidiscrete_plan(
        of.GridDensity(torch.ones(2, 2), 0, 1, walls=True), torch.rand(3, 2)
    ),
    of.metrics.EntropicPlan: lambda: of.metrics.entropic_plan(
        cloud(), cloud(), blur=1.0
    ),
    symmetries.Even: symmetries.Even,
    symmetries.Periodic: symmetries.Periodic,
    symmetries.Product: lambda: symmetries.Product(
        symmetries.Scale(), symmetries.Even()
    ),
    symmetries.Scale: symmetries.Scale,
    symmetries.Sign: symmetries.Sign,
    symmetries.Trivial: symmetries.Trivial,
    of.functionals.Curvature: lambda: of.functionals.Curvature.CONVEX,
    of.optimality.BoxDomain: lambda: of.optimality.BoxDomain(0.0, [1.0, 1.0]),
    of.optimality.Gap: lambda: of.optimality.Gap(1.0, None, "proved", "", 1.0),
    of.optimality.GapKind: lambda: of.optimality.GapKind.PROVED,
    meanfield.FlowOptimizer: lambda: meanfield.FlowOptimizer(
        torch.nn.Sequential(
            torch.nn.Linear(2, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)
        ),
        0.1,
    ),
    meanfield.TwoLayer: lambda: meanfield.TwoLayer("tanh"),
    networks.Alignment: aligned,
    networks.Flattened: lambda: networks.flatten(
        networks.Residual("tanh"), of.Particles(normal(5, 6).sigmoid()), 1
    ),
    networks.MultiLayer: lambda: networks.MultiLayer((3, 2), "tanh"),
    networks.Residual: lambda: networks.Residual("tanh"),
    meanfield.CustomLayer: lambda: meanfield.CustomLayer(torch.matmul),
    meanfield.Risk: risk,
    meanfield.OnlineRisk: lambda: meanfield.OnlineRisk(
        meanfield.TwoLayer("tanh"), lambda _: (risk().X, risk().y), (risk().X, risk().y)
    ),
    meanfield.BarronSample: lambda: meanfield.barron_sample(
        meanfield.TwoLayer("relu"), of.Particles(normal(5, 3)), 4, normal(6, 1).tanh()
    ),
    meanfield.BestLaw: lambda: meanfield.best_law(
        meanfield.TwoLayer("relu"),
        of.Particles(normal(9, 2)),
        normal(2, 1),
        normal(2, 1)[:, 0],
        steps=2,
    ),
    meanfield.KernelNorm: lambda: meanfield.rkhs_norm(
        meanfield.TwoLayer("relu"),
        of.Particles(normal(9, 2)),
        normal(2, 1),
        normal(2, 1)[:, 0],
    ),
    meanfield.RandomFeatures: features,
    meanfield.PopulationRisk: lambda: meanfield.PopulationRisk(
        cloud(), "relu", "gaussian"
    ),
    meanfield.Decomposition: lambda: risk().decompose(),
    MeanFieldClassifier: MeanFieldClassifier,
    MeanFieldRegressor: MeanFieldRegressor,
    meanfield.PathBall: lambda: meanfield.PathBall(1.0),
    meanfield.PathPenalty: meanfield.PathPenalty,
    meanfield.PathNorm: lambda: meanfield.PathNorm(meanfield.TwoLayer("relu")),
    meanfield.BarronNorm: lambda: meanfield.barron_norm(*line_data()),
    meanfield.NormGrowth: lambda: meanfield.norm_growth(
        lambda x: x[:, 0].abs(), [line_data()[0][:3], line_data()[0]]
    ),
    meanfield.NormTable: lambda: meanfield.norm_table(*line_data()),
    meanfield.RadialRisk: lambda: meanfield.RadialRisk(0.5),
    meanfield.Ramp: meanfield.Ramp,
    meanfield.VariationBall: lambda: meanfield.VariationBall(
        1.0, torch.zeros(2), torch.ones(2)
    ),
    of.optimality.GibbsResult: lambda: of.optimality.gibbs(
        potential() + of.Entropy(), line()
    ),
    of.optimality.OnGrid: of.optimality.OnGrid,
    of.Trajectory: flowed,
    schemes.Step: stepped,
    of.Bookmark: lambda: flowed().bookmark,
    of.callbacks.Event: event,
    of.callbacks.CSVWriter: lambda: of.callbacks.CSVWriter("run.csv"),
    of.callbacks.Checkpoint: lambda: of.callbacks.Checkpoint("run"),
    of.callbacks.JSONLinesWriter: lambda: of.callbacks.JSONLinesWriter("run.jsonl"),
    of.callbacks.LogTo: lambda: of.callbacks.LogTo(logging.getLogger("mine")),
    of.callbacks.Patience: lambda: of.callbacks.Patience("energy", patience=3),
    of.callbacks.Stationary: lambda: of.callbacks.Stationary(1e-3),
    of.callbacks.TensorBoardWriter: lambda: of.callbacks.TensorBoardWriter("logs"),
    of.callbacks.TimeLimit: lambda: of.callbacks.TimeLimit(1.0),
    proximal.ProxResult: lambda: proximal.ParticleProximal().solve(
        potential(), cloud(), 0.1
    ),
    proximal.Certificate: lambda: flowed(of.JKO()).info[0],
    proximal.Guarantee: lambda: proximal.Guarantee("exact"),
    proximal.BackAndForth: proximal.BackAndForth,
    proximal.FiniteVolume: proximal.FiniteVolume,
    proximal.GaussianProximal: proximal.GaussianProximal,
    proximal.GridSinkhorn: proximal.GridSinkhorn,
    proximal.ParticleProximal: proximal.ParticleProximal,
    proximal.PointwiseProximal: proximal.PointwiseProximal,
    proximal.QuantileProximal: proximal.QuantileProximal,
    proximal.SinkhornParticles: lambda: proximal.SinkhornParticles(0.1),
    proximal.TangentProximal: proximal.TangentProximal,
    of.JKO: of.JKO,
    schemes.Adam: schemes.Adam,
    schemes.Adaptive: lambda: schemes.Adaptive(of.JKO(), tolerance=1e-3),
    schemes.Anneal: lambda: schemes.Anneal(of.Langevin(), 0.9),
    of.BirthDeath: of.BirthDeath,
    schemes.Chain: lambda: of.chain(of.ExplicitEuler(), of.BirthDeath()),
    schemes.DualAveraging: schemes.DualAveraging,
    schemes.EntropicFictitiousPlay: schemes.EntropicFictitiousPlay,
    of.ExplicitEuler: of.ExplicitEuler,
    schemes.ForwardBackward: schemes.ForwardBackward,
    schemes.FrankWolfe: lambda: schemes.FrankWolfe(of.optimality.BoxDomain(0, 1)),
    of.Langevin: of.Langevin,
    schemes.Logarithmic: lambda: schemes.Logarithmic(0.1),
    schemes.MALA: schemes.MALA,
    schemes.Minibatch: lambda: schemes.Minibatch(of.ExplicitEuler()),
    schemes.Mobility: lambda: schemes.Mobility(of.JKO(), (1.0, 0.0)),
    schemes.Momentum: schemes.Momentum,
    schemes.NoisyEuler: lambda: schemes.NoisyEuler(0.1),
    schemes.PartByPart: lambda: schemes.PartByPart(of.ExplicitEuler()),
    schemes.Resample: schemes.Resample,
    schemes.SVGD: lambda: schemes.SVGD(kernels.Gaussian(1.0)),
    schemes.UnderdampedLangevin: schemes.UnderdampedLangevin,
    of.analysis.ChaosReport: lambda: of.analysis.ChaosReport(
        (2,), *(torch.ones(1) for _ in range(5))
    ),
    of.analysis.Margin: lambda: of.analysis.f1_margin(
        meanfield.TwoLayer("relu"), of.Particles(normal(5, 4)), *labelled()
    ),
    of.analysis.RademacherComplexity: lambda: of.analysis.rademacher(
        normal(5, 1).tanh(), draws=2
    ),
    of.analysis.RiskBound: lambda: of.analysis.weight_size_bound(1.0, 10, 2),
    of.analysis.RiskTable: lambda: of.analysis.RiskTable(
        (2,), (3,), (1.0,), torch.ones(1, 1, 1), torch.ones(1, 1, 1)
    ),
    of.analysis.ConvexityReport: lambda: of.analysis.displacement_convexity(
        potential(), cloud(), of.Particles(normal(5, 2, seed=3))
    ),
    of.analysis.DissipationReport: lambda: of.analysis.energy_dissipation(
        potential(), flowed()
    ),
    of.analysis.Finding: lambda: of.analysis.Finding(
        "gap", of.analysis.Verdict.PROVED, 0.5, "at most 0.5"
    ),
    of.analysis.Landscape: lambda: of.analysis.landscape(
        potential(), cloud(), of.Particles(normal(5, 2, seed=3))
    ),
    of.analysis.LogSobolev: lambda: of.analysis.log_sobolev(
        of.Potential(lambda x: x.square().sum(-1), modulus=2.0) + of.Entropy()
    ),
    of.analysis.RunCertificate: lambda: of.analysis.certify(flowed(), potential()),
    of.analysis.StepFinding: lambda: of.analysis.certify(flowed(), potential()).steps[
        0
    ],
    of.analysis.VariationalReport: lambda: of.analysis.evolution_variational_inequality(
        potential(), flowed(of.JKO()), cloud()
    ),
    of.analysis.Verdict: lambda: of.analysis.Verdict.PROVED,
    of.functionals.Curvature: lambda: of.functionals.Curvature.CONVEX,
    of.analysis.Falsification: falsified,
    of.analysis.Witness: lambda: falsified().witness,
    of.testing.Nudge: of.testing.Nudge,
    of.testing.Problem: lambda: of.testing.Problem(
        potential(), cloud(), 0.1, of.metrics.wasserstein2
    ),
}
# Two objects of equal numbers are equal; of all other classes each is itself alone.
BY_VALUE = (
    of.measures.Box,
    proximal.Certificate,
    proximal.Guarantee,
    of.metrics.Bracket,
    of.analysis.Finding,
    of.analysis.StepFinding,
    of.analysis.Verdict,
    schemes.Logarithmic,
    of.meanfield.Ramp,
    of.meanfield.NormTable,
    # A member of an enumeration is one object.
    of.functionals.Curvature,
    of.optimality.GapKind,
)
# These have sizes, items or operators, which an array might take for its own.
ONE_BESIDE_ARRAYS = (
    of.Measure,
    of.Functional,
    kernels.Kernel,
    of.Trajectory,
    proximal.Certificate,
)
CLASSES = {
    thing
    for thing in public_objects().values()
    if inspect.isclass(thing)
    and not issubclass(thing, BaseException)
    and not inspect.isabstract(thing)
    and not thing.__name__.endswith("Contract")  # classes of tests
    and not issubclass(thing, torch.Tensor)  # tensors are compared entry by entry
}


def test_every_public_class_is_here():
    assert set(MAKE) == CLASSES


def name_of(kind):
    return f"{kind.__module__}.{kind.__name__}"


@pytest.mark.parametrize("kind", MAKE, ids=name_of)
def test_a_comparison_has_one_truth_value_and_a_hash(kind):
    one, other = MAKE[kind](), MAKE[kind]()
    assert type(one) is kind
    assert (one == one) is True  # noqa: PLR0124
    assert (one != one) is False  # noqa: PLR0124
    assert (one == other) is (kind in BY_VALUE)
    others: list[Any] = [3, None, "x", (), [], {}, torch.ones(2), np.float64(1)]
    if issubclass(kind, ONE_BESIDE_ARRAYS):
        others.append(np.ones(2))
    for thing in others:
        assert bool(one == thing) is False
        assert bool(thing == one) is False
        assert bool(one != thing) is True
    # Elsewhere NumPy compares the entries of an array, as with every Python object.
    assert not np.any(np.ones(2) == one)
    assert not np.any(one == np.ones(2))
    for thing in (MAKE[of.Particles](), MAKE[of.Potential](), MAKE[kernels.Log]()):
        assert (one == thing) is False
    assert hash(one) == hash(one)
    assert {one: 1}[one] == 1
    assert len({one, other}) == (1 if kind in BY_VALUE else 2)
    assert one in [None, other, one]
    assert [other, one].index(one) == (0 if kind in BY_VALUE else 1)
    assert (one in [None]) is False
    assert bool(one) is True


def test_certificates_of_equal_numbers_are_one_key():
    one, other = (flowed(of.JKO()).info[0] for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    changed = one.also(note=1.0)
    assert changed != one
    assert len({one, other, changed}) == 2
    assert copy.copy(one) == one


NAN = float("nan")
ENTRIES: dict[str, Callable[[], Any]] = {
    "a NaN": lambda: float("nan"),
    "a tensor": lambda: torch.tensor([1.0, NAN]),
    "an array": lambda: np.array([[1.0, NAN], [2.0, 3.0]]),
    "a NumPy number": lambda: np.float32(0.5),
    "a dict of tensors": lambda: {"x": torch.ones(2), "y": {"z": np.ones(3)}},
    "a list of tensors": lambda: [torch.ones(2), (np.ones(2), NAN)],
    "a report": lambda: flowed(of.JKO()).info[0],
}


@pytest.mark.parametrize("name", ENTRIES)
def test_certificates_of_any_entries_are_compared_by_their_numbers(name):
    report = flowed(of.JKO()).info[0]
    one, other = (report.also(entry=ENTRIES[name]()) for _ in range(2))
    assert one == one  # noqa: PLR0124
    assert (one == other) is True
    assert (one != other) is False
    assert hash(one) == hash(other)
    for twin in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert twin == one
    assert one != report.also(entry=4)
    json.dumps(one.to_dict())  # what JSON can write


def test_a_comparison_of_certificates_never_raises():
    class Ambiguous:
        def __eq__(self, other):
            raise ValueError

        __hash__ = None  # type: ignore[assignment]

    report = flowed(of.JKO()).info[0]
    one, other = report.also(entry=Ambiguous()), report.also(entry=Ambiguous())
    assert one == one  # noqa: PLR0124
    assert one != other
    assert report.also(entry=torch.ones(2)) != report.also(entry=torch.ones(3))


def test_equal_certificates_have_one_hash_whatever_holds_their_numbers():
    kinds = (float, np.float64, lambda x: torch.tensor(x, dtype=F64))
    for number in (1.5, NAN):
        reports = {proximal.Certificate(energy_before=kind(number)) for kind in kinds}
        assert len(reports) == 1
