"""Cures of distances, of networks and of pictures that are out of reach."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch

import otflow as of
from otflow.measures.grid.upwind import courant
from otflow.testing.clouds import normal
from tests.cures import Case, check_cures

F64 = torch.float64
SQUARE = of.Potential(lambda x: x.square().sum(-1))
CLOUD, OTHER = of.Particles(normal(5, 2)), of.Particles(normal(5, 2, seed=1))
X, Y = normal(6, 2), normal(6, seed=1)
HUGE = torch.zeros(1, dtype=F64).expand(10**5, 2)
LONG = torch.linspace(0, 1, 10**5, dtype=F64)[:, None]
LABELS = torch.ones(6, dtype=F64)
S = of.metrics.sinkhorn_divergence
BOUNDS = of.metrics.wasserstein2_bounds
GENERATOR = torch.Generator()


def cells(n=8):
    return of.GridDensity(torch.ones(n, dtype=F64), 0, 1, walls=True)


class Distance(of.Functional):
    """A distance to equal weights."""

    def __init__(self, distance):
        self.distance = distance

    def value(self, mu):
        return self.distance(mu, of.Particles(normal(4, 2, seed=1)))


def slope(distance, points=False):
    """Differentiate the velocity of a distance in the weights, or in the points."""
    x = normal(4, 2).requires_grad_(points)
    w = torch.full((4,), 0.25, dtype=F64, requires_grad=not points)
    velocity = Distance(distance).velocity(of.Particles(x, w))
    (velocity * normal(4, 2, seed=2)).sum().backward()


def far_apart(blur, second=False, weighted=True):
    """Differentiate a divergence between pairs of clusters far from one another."""
    x = torch.tensor([[0.0], [0.1], [9.0], [9.1]], dtype=F64)
    w = torch.full((4,), 0.25, dtype=F64, requires_grad=weighted)
    x = x.requires_grad_(not weighted)
    value = S(of.Particles(x, w), of.Particles(x.detach() + 0.05), blur=blur)
    (g,) = torch.autograd.grad(value, w if weighted else x, create_graph=second)
    if second:
        g.square().sum().backward()


def network(y=Y, model=None, **options):
    model = of.meanfield.TwoLayer("tanh") if model is None else model
    return of.meanfield.Risk(model, X, y, **options)


class Halve(of.schemes.Scheme):
    """Keep half of the atoms."""

    def step(self, F, mu, dt, state, generator):
        return of.schemes.Step(of.Particles(mu.points[: (mu.n + 1) // 2]), state)


def negative():
    return cells().with_free_weights(torch.linspace(-1, 1, 8, dtype=F64))


TEXTS: Any = ["0.1", "0.2"]  # as read from a file

CASES: dict[str, Case] = {
    "a displacement between masses of large contrast": (
        of.errors.NotConverged,
        r"masses contrast much.*compare them by metrics.wasserstein2\(mu, nu\)",
        lambda: steep(0.05)[0].displacement_to(steep(0.05)[1]),
        [
            lambda: of.metrics.wasserstein2(*steep(0.05)),
            lambda: of.Particles(steep(0.05)[0].points).displacement_to(
                of.Particles(steep(0.05)[1].points)
            ),
        ],
    ),
    "plans of too many points": (
        MemoryError,
        "take fewer points",
        lambda: of.metrics.transport_plan(HUGE, HUGE[1:], method="simplex"),
        [
            lambda: of.metrics.wasserstein2(
                of.Particles(CLOUD.sample(3, GENERATOR)), OTHER
            )
        ],
    ),
    "a divergence of too many points": (
        MemoryError,
        "take fewer points",
        lambda: S(LONG, LONG, blur=0.1),
        [lambda: S(of.Particles(CLOUD.sample(3, GENERATOR)), OTHER, blur=0.1)],
    ),
    "a blur that cannot be squared": (
        ValueError,
        "too large to be squared",
        lambda: S(1e149 * normal(3, 1), 1e149 * normal(2, 1), blur=2e150),
        [lambda: S(1e149 * normal(3, 1), 1e149 * normal(2, 1), blur=1e150)],
    ),
    "a transport that takes too many pivots": (
        of.errors.NotConverged,
        "use fewer points, or sinkhorn_divergence",
        lambda: limited("MAX_PIVOTS", 20, transported, 30),
        [
            lambda: limited("MAX_PIVOTS", 20, transported, 3),
            lambda: S(normal(30, 2), normal(29, 2, seed=1), blur=0.5),
        ],
    ),
    "a transport with a gap": (
        of.errors.NotConverged,
        "take fewer points, a larger tolerance, or sinkhorn_divergence",
        lambda: on_one_round(0.0),
        [
            lambda: on_one_round(0.0, few=20),
            lambda: on_one_round(0.9),
            lambda: S(normal(30, 2), normal(29, 2, seed=1), blur=0.5),
        ],
    ),
    "bounds of grids that stay apart": (
        of.errors.NotConverged,
        r"a larger tolerance, or wasserstein2_bounds\(mu, nu, method='columns'\)",
        lambda: apart(1e-6, "sinkhorn"),
        [lambda: apart(0.9, "sinkhorn"), lambda: apart(1e-6, "columns")],
    ),
    "a blurred plan of particles": (
        ValueError,
        "use method=None, which chooses",
        lambda: BOUNDS(CLOUD, OTHER, method="sinkhorn"),
        [lambda: BOUNDS(CLOUD, OTHER, method=None)],
    ),
    "a distance between grids of too many cells": (
        MemoryError,
        r"take fewer cells, or Particles\(mu.sample\(2000, generator\)\)",
        lambda: apart(0.9, "sinkhorn", memory=2**60),
        [
            lambda: apart(0.9, None, n=4, memory=2**60),
            lambda: BOUNDS(of.Particles(picture(0).sample(2000, GENERATOR)), OTHER),
        ],
    ),
    "bounds of lengths that cannot be squared": (
        of.errors.NonFinite,
        "divide them by a length of the problem",
        lambda: BOUNDS(*(strip(1e200, seed) for seed in (0, 1))),
        [lambda: BOUNDS(*(strip(1e200 / 1e200, seed) for seed in (0, 1)))],
    ),
    "a distance of laws next to singular": (
        of.errors.NotConverged,
        "detach the measure, or add a multiple of the identity",
        lambda: turned(0.0),
        [lambda: turned(0.0, detach=True), lambda: turned(1.0)],
    ),
    "a kink in equal weights": (
        of.errors.Unsupported,
        r"weights\.detach\(\), .* or use sinkhorn_divergence",
        lambda: slope(of.metrics.wasserstein2_squared),
        [
            lambda: slope(of.metrics.wasserstein2_squared, points=True),
            lambda: slope(lambda a, b: S(a, b, blur=0.5)),
        ],
    ),
    "weights of parts far apart": (
        of.errors.NotConverged,
        "take a larger blur",
        lambda: far_apart(0.05),
        [lambda: far_apart(3.0)],
    ),
    "second derivatives of parts far apart": (
        of.errors.NotConverged,
        "take a larger blur",
        lambda: far_apart(0.3, second=True, weighted=False),
        [lambda: far_apart(3.0, second=True, weighted=False)],
    ),
    "a reach too small": (
        ValueError,
        "take at least",
        lambda: S(CLOUD, OTHER, blur=0.1, reach=1e-200),
        [lambda: S(CLOUD, OTHER, blur=0.1, reach=1e-100)],
    ),
    "a density of negative masses": (
        of.errors.NonFinite,
        "look for the step that made it",
        lambda: of.metrics.wasserstein2(negative(), cells()),
        [lambda: of.metrics.wasserstein2(cells(), cells())],
    ),
    "no input weights": (
        ValueError,
        r"check Scale\(outputs=\.\.\.\)",
        lambda: of.metrics.quotient_distance(X, X, symmetry=SCALE(outputs=2)),
        [lambda: of.metrics.quotient_distance(X, X, symmetry=SCALE(outputs=1))],
    ),
    "a symmetry by name": (
        TypeError,
        r"symmetries\.Sign\(\), or None",
        lambda: of.metrics.quotient_distance(X, X, symmetry="sign"),
        [
            lambda: of.metrics.quotient_distance(
                X, X, symmetry=of.metrics.symmetries.Sign()
            ),
            lambda: of.metrics.quotient_distance(X, X, symmetry=None),
        ],
    ),
    "a ground metric by name": (
        TypeError,
        r"torch\.cdist\(x, y, p=1\.0\)",
        lambda: of.metrics.quotient_distance(X, X, ground="l1"),
        [
            lambda: of.metrics.quotient_distance(
                X, X, ground=lambda x, y: torch.cdist(x, y, p=1.0)
            )
        ],
    ),
    "a ground metric of whole numbers": (
        TypeError,
        r"\.to\(x\), or \.abs\(\) of complex ones",
        lambda: of.metrics.quotient_distance(X, X, ground=whole),
        [
            lambda: of.metrics.quotient_distance(
                X, X, ground=lambda x, y: whole(x, y).to(x)
            ),
            lambda: of.metrics.quotient_distance(
                X, X, ground=lambda x, y: torch.complex(*2 * [whole(x, y).to(x)]).abs()
            ),
        ],
    ),
    "convexity along a grid in the plane": (
        of.errors.Unsupported,
        r"take Particles\(a\.points, a\.weights\), which are as many atoms",
        lambda: of.analysis.displacement_convexity(SQUARE, *in_the_plane()),
        [
            lambda: of.analysis.displacement_convexity(
                SQUARE,
                *(of.Particles(m.points, m.weights) for m in in_the_plane()),
            ),
        ],
    ),
    "convexity along a grid and particles": (
        of.errors.Unsupported,
        r"take Particles\(a\.points, a\.weights\)",
        lambda: of.analysis.displacement_convexity(SQUARE, cells(), atoms_of_cells()),
        [
            lambda: of.analysis.displacement_convexity(
                SQUARE, of.Particles(cells().points, cells().weights), atoms_of_cells()
            ),
        ],
    ),
    "values that are no numbers": (
        TypeError,
        r"convert it, e\.g\. \[float\(x\) for x in ",
        lambda: of.analysis.observed_order(TEXTS, [1.0, 2.0]),
        [lambda: of.analysis.observed_order([float(x) for x in TEXTS], [1.0, 2.0])],
    ),
    "values that are complex": (
        TypeError,
        r"take \.real of them",
        lambda: of.analysis.observed_order(ORDERS + 0j, [1.0, 2.0]),
        [lambda: of.analysis.observed_order((ORDERS + 0j).real, [1.0, 2.0])],
    ),
    "sparse targets": (
        TypeError,
        r"use \.to_dense\(\)",
        lambda: network(Y.to_sparse()),
        [lambda: network(Y.to_sparse().to_dense())],
    ),
    "targets in a column": (
        ValueError,
        r"use y\[:, 0\]",
        lambda: network(Y[:, None]),
        [lambda: network(Y[:, None][:, 0])],
    ),
    "targets in two columns": (
        ValueError,
        r"or TwoLayer\(\.\.\., outputs=2\)",
        lambda: network(normal(6, 2)),
        [lambda: network(normal(6, 2), of.meanfield.TwoLayer("tanh", outputs=2))],
    ),
    "an activation in place of a network": (
        TypeError,
        r"write TwoLayer\('relu'\)",
        lambda: network(model=of.meanfield.TwoLayer),
        [lambda: network(model=of.meanfield.TwoLayer("relu"))],
    ),
    "trails of atoms that come and go": (
        ValueError,
        "use animate, not trails",
        lambda: of.plotting.trails(RUN_OF_FEWER),
        [lambda: of.plotting.animate(RUN_OF_FEWER).to_jshtml()],
    ),
    "something that is no trajectory": (
        TypeError,
        r"pass what otflow\.flow returned",
        lambda: of.plotting.energy(CLOUD),
        [lambda: of.plotting.energy(RUN)],
    ),
    "a trajectory of points in place of a measure": (
        TypeError,
        "take final or a snapshot",
        lambda: of.plotting.particles(RUN),
        [
            lambda: of.plotting.particles(RUN.final),
            lambda: of.plotting.particles(RUN.snapshots[0]),
        ],
    ),
    "a trajectory of densities in place of a measure": (
        TypeError,
        "take final or a snapshot",
        lambda: of.plotting.density(RUN_OF_CELLS),
        [
            lambda: of.plotting.density(RUN_OF_CELLS.final),
            lambda: of.plotting.density(RUN_OF_CELLS.snapshots[0]),
        ],
    ),
}
ORDERS: torch.Tensor = torch.tensor([0.1, 0.2], dtype=F64)
LINE: of.Quantiles = of.Quantiles(torch.linspace(-1, 1, 9, dtype=F64))
SCALE = of.metrics.symmetries.Scale
RUN_OF_FEWER: of.Trajectory = of.flow(SQUARE, CLOUD, Halve(), dt=1.0, steps=2)
RUN: of.Trajectory = of.flow(SQUARE, CLOUD, of.JKO(), dt=0.1, steps=2)
RUN_OF_CELLS: of.Trajectory = of.flow(
    SQUARE, cells(), of.ExplicitEuler(), dt=1e-3, steps=2
)


def on_one_round(tolerance, few=200):
    """Couple points by columns, without rounds that improve the first cells."""
    x, y = normal(few, 2), normal(few, 2, seed=1)
    module = "otflow.metrics.columns"
    with mock.patch(f"{module}.ROUNDS", 1), mock.patch(f"{module}.FEW", 50):
        return of.metrics.transport_plan(x, y, tolerance=tolerance, method="columns")


def picture(seed, n=24):
    """Return a smooth density with noise."""
    g = torch.Generator().manual_seed(seed)
    x = torch.linspace(0, 3, n, dtype=F64)
    rho = 2 + (x + seed).sin()[:, None] * x.cos() + torch.rand(n, n, generator=g)
    return of.GridDensity(rho, 0, 1, walls=True, normalize=True)


def strip(length, seed):
    rho = picture(seed, 5).weights.reshape(5, 5)
    return of.GridDensity(rho, 0, (length, 1e-100), walls=True, normalize=True)


def apart(tolerance, method, *, n=24, memory=400):
    mu, nu = (picture(k, n) for k in (0, 1))
    with mock.patch("otflow.metrics.bounds.BYTES", memory):
        return BOUNDS(mu, nu, tolerance=tolerance, method=method)


def transported(n):
    of.metrics.transport_plan(normal(n, 2), normal(n - 1, 2, seed=1))


def limited(name, value, call, *values):
    """Call with a constant of the exact solvers replaced."""
    with mock.patch(f"otflow.metrics.simplex.{name}", value):
        call(*values)


STEPS = 3


def turned(least, detach=False):
    """Differentiate the rotation between two laws, found by few steps."""
    frame, eye = torch.linalg.qr(normal(4, 4))[0], torch.eye(4, dtype=F64)
    spreads = torch.tensor([1.0, 1e-4, 1e-8, 1e-12], dtype=F64)
    covariance = (frame * spreads) @ frame.T + least * eye
    covariance = (0.5 * (covariance + covariance.T)).requires_grad_()
    mu = of.Gaussian(torch.zeros(4, dtype=F64), covariance)
    nu = of.Gaussian(torch.zeros(4, dtype=F64), eye)
    with mock.patch("otflow.measures.gaussian.covariance.POLAR_STEPS", STEPS):
        mu = mu.detach() if detach else mu
        mu.norm(mu.displacement_to(nu))


def in_the_plane():
    rho = torch.linspace(0.9, 1.1, 12, dtype=F64).reshape(3, 4)
    return [
        of.GridDensity(r, 0, 1, walls=True, normalize=True) for r in (rho, rho.flip(0))
    ]


def atoms_of_cells():
    return of.Particles(cells().points.square())


def whole(x, y):
    return torch.ones(len(x), len(y), dtype=torch.int64)


def steep(push):
    """Return a density of large contrast, and the end of a short step from it."""
    generator = torch.Generator().manual_seed(3)
    rho = torch.exp(-40 * torch.rand(20, 20, generator=generator, dtype=F64))
    mu = of.GridDensity(rho, 0, 1, walls=True, normalize=True)
    v = torch.randn(mu.box.n_faces, generator=generator, dtype=F64)
    share = float(courant(mu.box, mu.weights, v))
    return mu, mu.push(v, push / share)


@pytest.mark.parametrize("case", CASES)
def test_the_cures_that_an_error_names_work(case):
    check_cures(CASES[case])
