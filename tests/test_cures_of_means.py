"""Cures of geodesics, barycentres and the continuity equation."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import otflow as of
from otflow.metrics import aligned_ends, barycenter, generalized_geodesic, geodesic
from otflow.testing.clouds import normal
from tests.cures import Case, check_cures

F64 = torch.float64
CLOUD, OTHER = (of.Particles(normal(5, 2, seed=k)) for k in (0, 1))
LINE = of.Quantiles(torch.arange(4.0, dtype=F64))
STANDARD = of.Gaussian(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64))
FLAT = STANDARD.with_free_state(torch.tensor([[0.0, 0], [1, 0], [0, 0]], dtype=F64))
TIME = torch.tensor(0.5, dtype=F64, requires_grad=True)
ONE_SIDED = torch.tensor([1.0, 0.0], dtype=F64, requires_grad=True)
WELL = of.Potential(lambda x: x.square().sum(-1))
POINTS: Any = CLOUD.points
SHARES = torch.tensor([1.0, 2.0], dtype=F64)
ODD: Any = STANDARD
ALONE: Any = CLOUD
ARRAY: Any = CLOUD.points
NUMBER: Any = 3


def plane(live=False, **options):
    rho = torch.ones(6, 6, dtype=F64, requires_grad=live)
    return of.GridDensity(rho, 0, 1, walls=True, normalize=True, **options)


def blocked():
    wall = torch.zeros(6, 6, dtype=torch.bool)
    wall[2, 2] = True
    rho = (~wall).to(F64)
    return of.GridDensity(rho, 0, 1, obstacles=wall, walls=True, normalize=True)


def elsewhere():
    return of.GridDensity(torch.ones(6, 6, dtype=F64), 2, 3, walls=True, normalize=True)


def on_one(mu):
    points = mu.sample(100_000, torch.Generator().manual_seed(0))
    return of.GridDensity.from_samples(points, 0, 3, (8, 8), walls=True)


def row(*heights, live=False):
    rho = torch.tensor(heights, dtype=F64, requires_grad=live)
    return of.GridDensity(rho, 0, 1, walls=True, normalize=True)


def atoms(mu):
    return of.Particles(mu.points, mu.weights)


def heavy():
    w = torch.full((5,), 0.2, dtype=F64, requires_grad=True)
    return of.Particles(normal(5, 2), w)


def flat_and_live():
    return FLAT.with_free_state(FLAT.state.clone().requires_grad_())


def narrow():
    """Return a live Gaussian of deviations 1 and 1e-13, turned."""
    state = torch.tensor([[0.0, 0], [1, 1], [-1e-13, 1e-13]], dtype=F64)
    return STANDARD.with_free_state(state.requires_grad_())


def holed():
    rho = torch.ones(6, 6, dtype=F64)
    rho[2, 3] = 0.0
    rho.requires_grad_()
    return of.GridDensity(rho, 0, 1, walls=True, normalize=True)


PLANE: Any = plane()
GAP, EVEN = row(1.0, 0.0, 1.0), row(1.0, 1.0, 1.0)
SPREAD = [of.Particles(normal(6, 2, seed=k)) for k in range(3)]
RUN = of.flow(WELL, CLOUD, of.ExplicitEuler(), dt=0.1, steps=2)

CASES: dict[str, Case] = {
    "weights of a barycentre that are no shares": (
        ValueError,
        r"got 3; give w / sum\(weights\) for each w$",
        lambda: barycenter([CLOUD, OTHER], [1.0, 2.0]),
        [lambda: barycenter([CLOUD, OTHER], [w / 3.0 for w in [1.0, 2.0]])],
    ),
    "a tensor of weights that are no shares": (
        ValueError,
        r"got 3; give weights / weights\.sum\(\)$",
        lambda: barycenter([CLOUD, OTHER], SHARES),
        [lambda: barycenter([CLOUD, OTHER], SHARES / SHARES.sum())],
    ),
    "points in place of a measure of a barycentre": (
        TypeError,
        r"of points \(n, d\) make Particles\(points\)",
        lambda: barycenter([POINTS, POINTS]),
        [lambda: barycenter([of.Particles(CLOUD.points), OTHER])],
    ),
    "points in place of an end of a geodesic": (
        TypeError,
        r"represent all by Particles\(mu\)",
        lambda: geodesic(POINTS, OTHER, 0.5),
        [lambda: geodesic(of.Particles(CLOUD.points), OTHER, 0.5)],
    ),
    "a gap in a density": (
        of.errors.Unsupported,
        r"mu\.mix\(background, 1e-3\), or take Particles",
        lambda: geodesic(GAP, EVEN, 0.5),
        [
            lambda: geodesic(GAP.mix(EVEN, 1e-3), EVEN, 0.5),
            lambda: geodesic(atoms(GAP), atoms(EVEN), 0.5),
        ],
    ),
    "a geodesic of a grid and particles": (
        TypeError,
        r"take Particles\(mu\.points, mu\.weights\)",
        lambda: geodesic(PLANE, CLOUD, 0.5),
        [lambda: geodesic(atoms(PLANE), CLOUD, 0.5)],
    ),
    "a geodesic of a grid and quantiles": (
        TypeError,
        r"take Particles\(nu\.points, nu\.weights\)",
        lambda: geodesic(LINE, PLANE, 0.5),
        [lambda: geodesic(atoms(PLANE), atoms(plane()), 0.5)],
    ),
    "a base of another kind than two grids": (
        TypeError,
        r"take Particles\(mu\.points, mu\.weights\)",
        lambda: generalized_geodesic(CLOUD, PLANE, PLANE, 0.5),
        [lambda: generalized_geodesic(CLOUD, atoms(PLANE), atoms(PLANE), 0.5)],
    ),
    "a geodesic of live masses in the plane": (
        of.errors.Unsupported,
        r"use nu\.detach\(\)",
        lambda: geodesic(plane(), plane(live=True), 0.5),
        [lambda: geodesic(plane(), plane(live=True).detach(), 0.5)],
    ),
    "a geodesic around obstacles": (
        of.errors.Unsupported,
        "obstacles in mu; make the densities without obstacles",
        lambda: geodesic(blocked(), plane(), 0.5),
        [lambda: geodesic(plane(), plane(), 0.5)],
    ),
    "a grid beyond the ends of a geodesic": (
        ValueError,
        r"t must lie in \[0, 1\], got -0\.5; .* take Particles\(mu\.points",
        lambda: geodesic(plane(), plane(), -0.5),
        [lambda: geodesic(atoms(plane()), atoms(plane()), -0.5)],
    ),
    "a tolerance of a geodesic above 1": (
        ValueError,
        r"use e\.g\. tolerance=0\.01",
        lambda: geodesic(plane(), plane(), 0.5, tolerance=2.0),
        [lambda: geodesic(plane(), plane(), 0.5, tolerance=0.01)],
    ),
    "a geodesic of two kinds": (
        TypeError,
        "geodesics join two measures of one kind",
        lambda: geodesic(CLOUD, ODD, 0.5),
        [lambda: geodesic(STANDARD, STANDARD, 0.5)],
    ),
    "a geodesic of arrays": (
        TypeError,
        r"represent all by Particles\(mu\)",
        lambda: geodesic(ARRAY, OTHER, 0.5),
        [lambda: geodesic(of.Particles(ARRAY), OTHER, 0.5)],
    ),
    "a generalised geodesic of Gaussians and particles": (
        TypeError,
        r"mu must be a Gaussian, .* represent all by Particles\(mu\.points",
        lambda: generalized_geodesic(STANDARD, ALONE, ALONE, 0.5),
        [lambda: generalized_geodesic(atoms(STANDARD), ALONE, ALONE, 0.5)],
    ),
    "times with two axes": (
        ValueError,
        r"use t\.reshape\(-1\)",
        lambda: geodesic(CLOUD, OTHER, torch.zeros(2, 2)),
        [lambda: geodesic(CLOUD, OTHER, torch.zeros(2, 2).reshape(-1))],
    ),
    "a geodesic with live weights": (
        of.errors.Unsupported,
        r"mu\.weights\.detach\(\)",
        lambda: geodesic(heavy(), OTHER, 0.5),
        [lambda: geodesic(of.Particles(CLOUD.points, CLOUD.weights), OTHER, 0.5)],
    ),
    "a geodesic with live masses on the line": (
        of.errors.Unsupported,
        r"use nu\.detach\(\)",
        lambda: geodesic(EVEN, row(1.0, 2.0, live=True), 0.5),
        [lambda: geodesic(EVEN, row(1.0, 2.0, live=True).detach(), 0.5)],
    ),
    "a live time": (
        of.errors.Unsupported,
        r"t\.detach\(\), or start\.push",
        lambda: geodesic(CLOUD, OTHER, TIME),
        [lambda: geodesic(CLOUD, OTHER, TIME.detach()), lambda: pushed(TIME)],
    ),
    "quantiles that cross": (
        ValueError,
        r"take t in \[0, 1\]",
        lambda: geodesic(LINE, of.Quantiles(LINE.edges.square()), -9.0),
        [lambda: geodesic(LINE, of.Quantiles(LINE.edges.square()), 0.9)],
    ),
    "a generalised geodesic beyond its ends": (
        ValueError,
        r"t must lie in \[0, 1\], got 1\.5",
        lambda: generalized_geodesic(CLOUD, CLOUD, OTHER, [0.5, 1.5]),
        [lambda: generalized_geodesic(CLOUD, CLOUD, OTHER, [0.5, 1.0])],
    ),
    "a barycentre of two kinds": (
        TypeError,
        r"Particles\(mu\.points, mu\.weights\)",
        lambda: barycenter([plane(), CLOUD]),
        [lambda: barycenter([atoms(plane()), CLOUD])],
    ),
    "a barycentre of a measure, not of a list": (
        TypeError,
        r"write \[mu\]",
        lambda: barycenter(ALONE),
        [lambda: barycenter([ALONE])],
    ),
    "a barycentre of no sequence": (
        TypeError,
        r"got 3; write \[mu\]",
        lambda: barycenter(NUMBER),
        [lambda: barycenter([ALONE])],
    ),
    "weights of a barycentre that do not sum to 1": (
        ValueError,
        r"weights must sum to 1, got 4; give w / sum\(weights\) for each w",
        lambda: barycenter([CLOUD, OTHER], [1.0, 3.0]),
        [lambda: barycenter([CLOUD, OTHER], [0.25, 0.75])],
    ),
    "densities on two grids": (
        ValueError,
        r"upper, shape\), or take Particles\(mu\.points, mu\.weights\)",
        lambda: barycenter([plane(), elsewhere()], blur=0.4),
        [
            lambda: barycenter(
                [on_one(plane()), on_one(elsewhere())], blur=1.0, tolerance=0.1
            ),
            lambda: barycenter([atoms(plane()), atoms(elsewhere())]),
        ],
    ),
    "a blur far beyond the box": (
        ValueError,
        r"take e\.g\. blur=1$",
        lambda: barycenter([plane()], blur=1e9),
        [lambda: barycenter([plane()], blur=1.0)],
    ),
    "a start of Gaussians": (
        TypeError,
        "leave start out",
        lambda: barycenter([STANDARD], start=CLOUD),
        [lambda: barycenter([STANDARD])],
    ),
    "a blur of particles": (
        TypeError,
        "leave blur out",
        lambda: barycenter([CLOUD], blur=0.1),
        [lambda: barycenter([CLOUD])],
    ),
    "a barycentre with a live weight of 0": (
        of.errors.Unsupported,
        r"use weights\.detach\(\), or leave its measure out",
        lambda: barycenter([CLOUD, OTHER], ONE_SIDED),
        [
            lambda: barycenter([CLOUD, OTHER], ONE_SIDED.detach()),
            lambda: barycenter([CLOUD], ONE_SIDED[:1]),
        ],
    ),
    "a barycentre of a live singular covariance": (
        of.errors.Unsupported,
        r"use measures\[1\]\.detach\(\)",
        lambda: barycenter([STANDARD, flat_and_live()]),
        [lambda: barycenter([STANDARD, flat_and_live().detach()])],
    ),
    "a derivative beyond round-off": (
        of.errors.NotConverged,
        r"mu\.diffuse\(1e-6, generator\), or take mu\.detach\(\)",
        lambda: barycenter([narrow(), STANDARD]),
        [
            lambda: barycenter([narrow().diffuse(1e-6, torch.Generator()), STANDARD]),
            lambda: barycenter([narrow().detach(), STANDARD]),
        ],
    ),
    "a barycentre of singular covariances": (
        ValueError,
        r"mu\.diffuse\(1e-6, generator\)",
        lambda: barycenter([FLAT, FLAT]),
        [lambda: barycenter([FLAT.diffuse(1e-6, torch.Generator()), FLAT])],
    ),
    "a barycentre that stopped": (
        of.errors.NotConvergedWarning,
        "take a larger max_iterations or tolerance",
        lambda: barycenter(SPREAD, max_iterations=1),
        [
            lambda: barycenter(SPREAD, max_iterations=100),
            lambda: barycenter(SPREAD, max_iterations=1, tolerance=9.0),
        ],
    ),
    "a barycentre on a grid without a blur": (
        TypeError,
        r"take e\.g\. blur=0\.333333, two cells",
        lambda: barycenter([plane()]),
        [lambda: barycenter([plane()], blur=0.333333)],
    ),
    "a blur shorter than a cell": (
        ValueError,
        r"take e\.g\. blur=0\.333333, or a finer grid",
        lambda: barycenter([plane()], blur=0.1),
        [lambda: barycenter([plane()], blur=0.333333)],
    ),
    "a blur beside quantiles": (
        TypeError,
        "leave blur out, the barycentre on the line is exact",
        lambda: barycenter([EVEN, LINE], blur=0.5),
        [lambda: barycenter([EVEN, LINE])],
    ),
    "a barycentre of live densities with an empty cell": (
        of.errors.Unsupported,
        r"use measures\[0\]\.mix\(background, 1e-3\), or measures\[0\]\.detach\(\)",
        lambda: barycenter([holed()], blur=0.4),
        [
            lambda: barycenter([holed().mix(plane(), 1e-3)], blur=0.4, tolerance=0.1),
            lambda: barycenter([holed().detach()], blur=0.4, tolerance=0.1),
        ],
    ),
    "a barycentre around obstacles": (
        of.errors.Unsupported,
        "make the densities without obstacles",
        lambda: barycenter([blocked()], blur=0.4),
        [lambda: barycenter([plane()], blur=0.4)],
    ),
    "times beside a trajectory": (
        TypeError,
        "leave times out",
        lambda: of.analysis.continuity_residual(RUN, square, WELL, times=[0, 1, 2]),
        [lambda: of.analysis.continuity_residual(RUN, square, WELL)],
    ),
    "neighbours of two kinds": (
        ValueError,
        "give the velocity, a Functional or a function of a measure",
        lambda: of.analysis.continuity_residual([CLOUD, STANDARD], square),
        [
            lambda: of.analysis.continuity_residual([CLOUD, STANDARD], square, WELL),
            lambda: of.analysis.continuity_residual(
                [CLOUD, STANDARD], square, WELL.velocity
            ),
        ],
    ),
    "convexity between two kinds": (
        TypeError,
        r"take Particles\(a\.points, a\.weights\) for both",
        lambda: of.analysis.displacement_convexity(WELL, CLOUD, STANDARD),
        [lambda: of.analysis.displacement_convexity(WELL, CLOUD, atoms(STANDARD))],
    ),
    "a path of one measure": (
        ValueError,
        "record more snapshots",
        lambda: of.analysis.continuity_residual([CLOUD], square),
        [lambda: of.analysis.continuity_residual([CLOUD, OTHER], square)],
    ),
}


def square(x):
    return x.square().sum(-1)


def pushed(t):
    """Follow the cure of a live time, and see that its derivative is there."""
    start, end = aligned_ends(CLOUD, OTHER)
    points = start.push(t * start.displacement_to(end), 1.0).points
    assert torch.autograd.grad(points.square().sum(), t)[0] != 0


@pytest.mark.parametrize("name", CASES)
def test_every_cure_works(name):
    check_cures(CASES[name])
