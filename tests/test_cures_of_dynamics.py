"""Cures of what a first user of limits, maps and Gibbs steps gets wrong."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.errors import Diverged, InvalidFunctional, Unsupported
from otflow.functionals import group_norm
from otflow.meanfield import PopulationRisk, Risk, TwoLayer, layer_dissipation
from otflow.measures import ConicParticles
from tests.cures import Case, check_cures

F64 = torch.float64
GENERATOR = torch.Generator().manual_seed(0)


def draw(*shape):
    return torch.randn(*shape, generator=GENERATOR, dtype=F64)


SPRING = of.Interaction(lambda z: 0.5 * z.square().sum(-1))
STEEP = of.Potential(lambda x: x.square().square().sum(-1))
X, Y = draw(6, 1), draw(6)
TEACHER, STUDENT = of.Particles(draw(2, 3)), of.Particles(draw(4, 3))
CLOUD, ONE = of.Particles(draw(5, 3)), of.Particles(draw(5, 1))
CONE = ConicParticles.of_masses(draw(5, 1), torch.linspace(0.2, 1.0, 5, dtype=F64))


def law(dim=1):
    return lambda n, g: torch.randn(n, dim, generator=g, dtype=F64)


def chaos(F=SPRING, initial=None, sizes=(4, 16), time=1.0, steps=2, **options):
    return of.analysis.propagation_of_chaos(
        F, initial or law(), sizes, time, steps=steps, reference=64, runs=2, **options
    )


def networks(scaling):
    return chaos(Risk(TwoLayer("tanh", scaling=scaling), X, Y), law(3), time=0.1)


class Sum(of.Functional):
    """A functional of positions, and not of the law."""

    def value(self, mu):
        return mu.points.square().sum()


class Mean(of.Functional):
    def value(self, mu):
        return mu.expectation(lambda x: x.square().sum(-1))


def grid():
    return of.GridDensity.from_function(
        lambda x: torch.exp(-x.square().sum(-1)), -4.0, 4.0, 40, dtype=F64, walls=True
    )


PRESSED = (
    of.Potential(lambda x: x.square().sum(-1)) + 0.5 * of.Entropy() + of.Congestion(0.8)
)


def one_step(F, scheme, mu=CLOUD):
    return of.flow(F, mu, scheme, dt=0.1, steps=1)


CASES: dict[str, Case] = {
    "the limit of networks that are scaled otherwise": (
        InvalidFunctional,
        r"number of particles: it changes by \d+ % .* take scaling='mean-field'",
        lambda: networks("ntk"),
        [lambda: networks("mean-field")],
    ),
    "the limit of a sum over particles": (
        InvalidFunctional,
        r"and integrals over the measure, mu\.expectation\(f\), for a functional of",
        lambda: chaos(Sum()),
        [lambda: chaos(Mean())],
    ),
    "a pair of points": (
        InvalidFunctional,
        r"pair must map points \(4, 2\) to one number for each, .* e\.g\. x\[:, 0\]",
        lambda: chaos(initial=law(2), pair=lambda x: x),
        [lambda: chaos(initial=law(2), pair=lambda x: x[:, 0])],
    ),
    "an observable of every particle": (
        InvalidFunctional,
        r"64 numbers for the limit and 4 for 4 particles; .* e\.g\. mu\.expectation",
        lambda: chaos(observable=lambda mu: mu.points),
        [lambda: chaos(observable=lambda mu: mu.expectation(torch.sin))],
    ),
    "one size as a number": (
        TypeError,
        r"sizes must be several numbers, e\.g\. \[16, 64, 256\]",
        lambda: chaos(sizes=16),
        [lambda: chaos(sizes=[16])],
    ),
    "a rate of one size": (
        ValueError,
        r"two sizes or more, got \(16,\); give more sizes",
        lambda: chaos(sizes=[16]).rates(),
        [lambda: chaos(sizes=[4, 16]).rates()],
    ),
    "a start of another shape": (
        ValueError,
        r"shape \(n, d\), n = 64, got \(64,\); e\.g\. torch\.randn\(n, d, generator",
        lambda: chaos(initial=lambda n, g: torch.randn(n, generator=g)),
        [lambda: chaos(initial=lambda n, g: torch.randn(n, 1, generator=g))],
    ),
    "steps of systems that are too long": (
        Diverged,
        r"step \d of 10, of length 1, failed: .*; take more steps",
        lambda: chaos(STEEP, time=10.0, steps=10),
        [lambda: chaos(STEEP, time=10.0, steps=500)],
    ),
    "the parts of neurons without inner weights": (
        ValueError,
        r"take analysis\.dissipation\(F, mu\), which is not split",
        lambda: layer_dissipation(SPRING, ONE),
        [lambda: of.analysis.dissipation(SPRING, ONE)],
    ),
    "a population risk of another unit": (
        Unsupported,
        "use 'relu', 'step' or 'erf'",
        lambda: PopulationRisk(TEACHER, "sigmoid", "gaussian"),
        [lambda: PopulationRisk(TEACHER, "erf", "gaussian")(STUDENT)],
    ),
    "a population risk of no unit": (
        ValueError,
        r"must be one of \['erf', 'relu', 'step'\], .* did you mean 'relu'\?",
        lambda: PopulationRisk(TEACHER, "ReLu6", "gaussian"),
        [lambda: PopulationRisk(TEACHER, "relu", "gaussian")(STUDENT)],
    ),
    "a group in place of groups": (
        TypeError,
        r"write \[\[0, 1\]\] for one group of two",
        lambda: group_norm([0, 1]),  # type: ignore[list-item]
        [lambda: one_step(group_norm([[0, 1]]), of.JKO())],
    ),
    "a distance of a measure of free mass": (
        TypeError,
        r"take mu\.law, over roots and places, or for positive masses Particles\(mu",
        lambda: of.metrics.wasserstein2(CONE, CONE),
        [
            lambda: of.metrics.wasserstein2(CONE.law, CONE.law),
            lambda: of.Particles(CONE.places, CONE.masses, normalize=True),
        ],
    ),
}
NOISY = 0.1 * of.Entropy()
WELL = of.Potential(lambda x: x.square().sum(-1))
SMOOTHED = 0.1 * of.Blob(of.Entropy(), 0.5)
DATA = torch.utils.data.TensorDataset(X, Y)


def react(transport, F, mu):
    scheme = of.chain(transport, of.BirthDeath())
    return of.flow(F, mu, scheme, dt=0.01, steps=2, generator=0)


def batches(size):
    loader = torch.utils.data.DataLoader(DATA, batch_size=size)
    return of.meanfield.from_loader(loader)(torch.Generator().manual_seed(0))


CASES |= {
    "birth and death under an entropy of particles": (
        Unsupported,
        r"take a GridDensity, or Blob\(Entropy\(\), width\) .* with ExplicitEuler\(\)",
        lambda: react(of.Langevin(), WELL + NOISY, CLOUD),
        [
            lambda: react(of.Langevin(remap=True), WELL + NOISY, grid()),
            lambda: react(of.ExplicitEuler(), WELL + SMOOTHED, CLOUD),
        ],
    ),
    "a ramp that falls back": (
        ValueError,
        r"rises between two ends, .*; give left < right",
        lambda: of.meanfield.Ramp(left=1.0, right=0.5),
        [lambda: of.meanfield.Ramp(left=0.5, right=1.0)],
    ),
    "neurons in place of their lengths": (
        ValueError,
        r"take the lengths of neurons, w\.norm\(dim=1, keepdim=True\)",
        lambda: of.meanfield.RadialRisk(0.5)(CLOUD),
        [
            lambda: of.meanfield.RadialRisk(0.5)(
                of.Particles(CLOUD.points.norm(dim=1, keepdim=True))
            )
        ],
    ),
    "a loader without batches": (
        Unsupported,
        r"as its batch_size is None; take DataLoader\(data, batch_size=\.\.\.\)",
        lambda: batches(None),
        [lambda: batches(2)],
    ),
}
for name in ("EntropicFictitiousPlay", "DualAveraging"):
    CASES[f"{name} under a bound of the density"] = (
        Unsupported,
        r"no Gibbs law of its first variation; minimise F by a flow with JKO\(\)",
        lambda name=name: one_step(PRESSED, getattr(of.schemes, name)(), grid()),
        [lambda: one_step(PRESSED, of.JKO(), grid())],
    )


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_cure_works(case):
    check_cures(case)


def test_a_start_may_be_an_array_of_numpy():
    found = chaos(initial=lambda n, g: law()(n, g).numpy())
    torch.testing.assert_close(found.particle_error, chaos().particle_error)


@pytest.mark.parametrize(
    "F",
    [
        of.Interaction(of.kernels.Log()),
        of.SquaredDistanceTo(draw(9, 2)),
        of.MMDTo(draw(9, 2), of.kernels.Gaussian(1.0)),
        of.Potential(lambda x: 0 * x.sum(-1)),
        1e-20 * SPRING,
    ],
    ids=lambda F: f"{F!r:.40}",
)
def test_functionals_of_the_law_are_not_refused(F):
    assert bool(torch.isfinite(chaos(F, law(2), time=0.01).variance).all())
