"""Cures of functionals to a target that does not fit, or that has no distance."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.errors import InvalidFunctional, NonFinite, Unsupported
from otflow.testing.clouds import normal
from tests.cures import Case, check_cures
from tests.measures.intervals import uniform

F64 = torch.float64
CLOUD, DOTS = of.Particles(normal(6, 2)), of.Particles(normal(40, 1))
BELL = of.Gaussian(normal(2), torch.eye(2, dtype=F64))
HILL = of.Gaussian(normal(1), torch.eye(1, dtype=F64))
CELLS = of.Quantiles(torch.linspace(-1, 1, 11, dtype=F64))
WIDE = of.Quantiles(torch.linspace(-2, 2, 11, dtype=F64))
BUMP = of.kernels.Gaussian(1.0)
GENERATOR = torch.Generator()


def box(*shape):
    rho = torch.ones(shape, dtype=F64)
    return of.GridDensity(rho, -1, 1, walls=True, normalize=True)


def deep(x):
    """Return a density that is 0 in every dtype."""
    return torch.exp(-1e4 - x.square().sum(-1))


def draws(nu, n=20):
    return of.Particles(nu.sample(n, GENERATOR))


def value(F, mu=CLOUD):
    """Evaluate a functional and its velocity."""
    F.value_and_velocity(mu)


def moved(mu):
    """Return a density on a box that overlaps half of the other one."""
    low, high = mu.box.lower[0], mu.box.upper[0]
    shift = (high - low) / 2
    return of.GridDensity(
        mu.weights, low + shift, high + shift, walls=True, normalize=True
    )


def on_one(mu):
    """Return a histogram of draws on a box that holds both."""
    draws = mu.sample(100_000, GENERATOR)
    return of.GridDensity.from_samples(draws, -1, 2, 12, walls=True)


SQUARED, SLICED = of.SquaredDistanceTo, of.SlicedWassersteinTo
ENERGY, SINKHORN = of.EnergyDistanceTo, of.SinkhornDivergenceTo

CASES: dict[str, Case] = {
    "a Gaussian target of particles": (
        Unsupported,
        "no distance from a Particles in dimension 2 to a Gaussian in dimension 2",
        lambda: value(SQUARED(BELL)),
        [lambda: value(SQUARED(draws(BELL)))],
    ),
    "atoms as the target of a Gaussian": (
        Unsupported,
        "no distance from a Gaussian in dimension 2 to a Particles",
        lambda: value(SQUARED(CLOUD), BELL),
        [lambda: value(SQUARED(of.Gaussian.from_samples(CLOUD.points)), BELL)],
    ),
    "a grid as the target of a Gaussian": (
        Unsupported,
        "no distance from a Gaussian in dimension 1 to a GridDensity in dimension 1",
        lambda: value(SQUARED(box(8)), HILL),
        [
            lambda: value(
                SQUARED(of.Gaussian.from_samples(box(8).sample(50, GENERATOR))), HILL
            )
        ],
    ),
    "a density as the target of atoms on the line": (
        Unsupported,
        "no distance from a Particles in dimension 1 to a Quantiles in dimension 1",
        lambda: value(SQUARED(CELLS), DOTS),
        [lambda: value(SQUARED(draws(CELLS)), DOTS)],
    ),
    "a Gaussian as the target of a grid": (
        Unsupported,
        "no distance from a GridDensity in dimension 1 to a Gaussian",
        lambda: value(SQUARED(HILL), box(8)),
        [
            lambda: value(
                SQUARED(of.Quantiles.from_samples(HILL.sample(50, GENERATOR), 9)),
                box(8),
            )
        ],
    ),
    "a Gaussian as the target of a picture": (
        Unsupported,
        "draw atoms of the target",
        lambda: value(SQUARED(BELL), box(5, 4)),
        [lambda: value(SQUARED(draws(BELL)), box(5, 4))],
    ),
    "a divergence to a density": (
        TypeError,
        "SinkhornDivergenceTo takes a target of atoms, got a Gaussian",
        lambda: SINKHORN(BELL, 0.1),
        [lambda: value(SINKHORN(draws(BELL), 0.1))],
    ),
    "a divergence to a grid": (
        TypeError,
        r"got a GridDensity; give Particles\(nu\.points, nu\.weights\), up to a cell",
        lambda: SINKHORN(box(5, 4), 0.1),
        [
            lambda: value(
                SINKHORN(of.Particles(box(5, 4).points, box(5, 4).weights), 0.1)
            ),
            lambda: value(SINKHORN(draws(box(5, 4)), 0.1)),
        ],
    ),
    "slices of quantiles": (
        Unsupported,
        "SlicedWassersteinTo compares atoms, and a Quantiles has none",
        lambda: value(SLICED(DOTS), CELLS),
        [
            lambda: value(SLICED(DOTS), draws(CELLS)),
            lambda: value(SQUARED(CELLS), CELLS),
        ],
    ),
    "a divergence of a grid in the plane": (
        Unsupported,
        "SinkhornDivergenceTo compares atoms, and a GridDensity has none.*MMDTo",
        lambda: value(SINKHORN(CLOUD, 0.1), box(5, 4)),
        [
            lambda: value(SINKHORN(CLOUD, 0.1), draws(box(5, 4))),
            lambda: value(of.MMDTo(box(5, 4), BUMP), box(5, 4)),
        ],
    ),
    "a target of another dimension": (
        ValueError,
        r"the measure lies in dimension 2 but the target in dimension 1",
        lambda: value(ENERGY(DOTS)),
        [lambda: value(ENERGY(normal(9, 2)))],
    ),
    "a target of another dtype": (
        TypeError,
        "the target has dtype torch.float32 but the measure has torch.float64",
        lambda: value(SQUARED(CLOUD.to(torch.float32))),
        [
            lambda: value(SQUARED(CLOUD.to(torch.float32)).to(torch.float64)),
            lambda: value(SQUARED(CLOUD.to(torch.float32)), CLOUD.to(torch.float32)),
        ],
    ),
    "densities on two boxes": (
        ValueError,
        r"must live on the same grid, got one on .* beside one on .*; make both on one",
        lambda: box(8).mix(moved(box(8)), 0.5),
        [lambda: on_one(box(8)).mix(on_one(moved(box(8))), 0.5)],
    ),
    "a blur of zero": (
        ValueError,
        "blur is a length and must be positive, got 0",
        lambda: SINKHORN(CLOUD, 0.0),
        [lambda: value(SINKHORN(CLOUD, 0.1)), lambda: value(SQUARED(CLOUD))],
    ),
    "a kernel that is infinite at zero": (
        ValueError,
        r"the kernel Log\(\) is infinite at 0",
        lambda: of.MMDTo(CLOUD, of.kernels.Log()),
        [
            lambda: value(of.MMDTo(CLOUD, BUMP)),
            lambda: value(of.MMDTo(CLOUD, of.kernels.Energy())),
        ],
    ),
    "directions of another dimension": (
        ValueError,
        r"directions must be K vectors other than 0 of dimension 2, got \(4, 3\)",
        lambda: SLICED(CLOUD, normal(4, 3)),
        [lambda: value(SLICED(CLOUD, 4))],
    ),
    "a direction of zero": (
        ValueError,
        "with a least length of 0; give their number",
        lambda: SLICED(CLOUD, torch.zeros(1, 2, dtype=F64)),
        [lambda: value(SLICED(CLOUD, 1))],
    ),
    "relative entropy to atoms": (
        TypeError,
        "the target is a Particles, a sum of atoms, which has no density",
        lambda: of.KL(CLOUD),
        [
            lambda: value(
                of.KL.to_density(
                    lambda x: of.Blob(of.Entropy(), 0.5).density(CLOUD, x), mass=1
                ),
                BELL,
            ),
            lambda: value(of.KL(of.Gaussian.from_samples(CLOUD.points)), BELL),
            lambda: value(ENERGY(CLOUD)),
        ],
    ),
    "relative entropy to a measure of another kind": (
        TypeError,
        "the target is a Intervals, whose density between its points is not known",
        lambda: of.KL(uniform(-1.0, 1.0)),
        [
            lambda: value(of.KL(lambda x: x.square().sum(-1), mass=1.77), CELLS),
            lambda: value(ENERGY(uniform(-1.0, 1.0)), DOTS),
        ],
    ),
    "relative entropy to quantiles, of a Gaussian": (
        Unsupported,
        "the target is constant on cells.*not of a Gaussian",
        lambda: value(of.KL(CELLS), HILL),
        [
            lambda: value(
                of.KL(of.Gaussian.from_samples(CELLS.sample(1000, GENERATOR))), HILL
            ),
        ],
    ),
    "relative entropy of a density beyond the target": (
        NonFinite,
        "the measure reaches from -2 to 2, beyond the target",
        lambda: value(of.KL(CELLS), WIDE),
        [
            lambda: value(
                of.KL(of.Gaussian.from_samples(CELLS.sample(1000, GENERATOR))), WIDE
            ),
            lambda: value(SQUARED(CELLS), WIDE),
        ],
    ),
    "a density that underflows": (
        NonFinite,
        "the density is not positive at 11 of 11 points",
        lambda: value(of.KL.to_density(deep, mass=1.0), CELLS),
        [lambda: value(of.KL(lambda x: 1e4 + x.square().sum(-1), mass=1.0), CELLS)],
    ),
    "a density of another shape": (
        InvalidFunctional,
        r"a density must .*reduce over the last axis, e\.g\. \.prod\(-1\)",
        lambda: value(of.KL.to_density(lambda x: (-x.abs()).exp(), mass=2.0), CELLS),
        [
            lambda: value(
                of.KL.to_density(lambda x: (-x.abs()).exp().prod(-1), mass=2.0), CELLS
            )
        ],
    ),
    "the mass of a measure": (
        ValueError,
        "a measure has the mass 1; leave mass= to a function V",
        lambda: of.KL(CELLS, mass=2.0),
        [lambda: value(of.KL(lambda x: x.square().sum(-1), mass=1.77), CELLS)],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_cures_that_an_error_names_work(case):
    check_cures(CASES[case])
