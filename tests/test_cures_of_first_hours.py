"""What one meets in the first hours: slips whose errors name the cure, and it works."""

from __future__ import annotations

import warnings

import pytest
import torch

import otflow as of
from otflow.testing.clouds import normal
from tests.cures import Case, check_cures

F64 = torch.float64
LINE = of.Quantiles(torch.linspace(-1, 1, 9, dtype=F64))
CLOUD = of.Particles(normal(5, 2))
GRID = of.GridDensity(torch.ones(8, dtype=F64), 0, 1, walls=True)
PLANE = of.GridDensity(torch.ones(4, 4, dtype=F64), 0, 1, walls=True)
SQUARE = of.Potential(lambda x: x.square().sum(-1))
DT = torch.tensor(0.1)


def flow(F=SQUARE, mu=CLOUD, scheme=None, dt=0.1):
    return of.flow(F, mu, scheme or of.ExplicitEuler(), dt=dt, steps=1, generator=0)


class Spread(of.Functional):
    def value(self, mu):
        return mu.expectation(lambda x: x.square().sum(-1))


def particles(mu):
    return of.Particles(mu.points, mu.weights)


STEEP = of.Potential(lambda x: 100 * x.square().sum(-1)) + of.Entropy()

CASES: dict[str, Case] = {
    "a potential that keeps the last axis": (
        of.errors.InvalidFunctional,
        r"V must map points \(n, d\) to n values, got \(n, 2\).*last axis",
        lambda: flow(of.Potential(lambda x: x**2)),
        [lambda: flow(of.Potential(lambda x: (x**2).sum(-1)))],
    ),
    "a potential that keeps it on the line": (
        of.errors.InvalidFunctional,
        r"V must map points .* got \(n, 1\)",
        lambda: flow(of.Potential(lambda x: x**2), LINE),
        [lambda: flow(of.Potential(lambda x: (x**2).sum(-1)), LINE)],
    ),
    "a density of constants in another dtype": (
        TypeError,
        r"f returned torch.float32 for centres x of dtype torch.float64.*ones_like",
        lambda: of.GridDensity.from_function(
            lambda x: torch.ones(len(x)), 0, 1, 8, walls=True, dtype=F64
        ),
        [
            lambda: of.GridDensity.from_function(
                lambda x: torch.ones_like(x[:, 0]), 0, 1, 8, walls=True, dtype=F64
            )
        ],
    ),
    "a function as the functional": (
        TypeError,
        r"F must be a Functional.*Potential\(V\).*subclass of Functional",
        lambda: flow(lambda x: x.square().sum(-1)),
        [lambda: flow(SQUARE), lambda: flow(Spread())],
    ),
    "a function as the functional of a solver": (
        TypeError,
        r"F must be a Functional.*Potential\(V\)",
        lambda: of.proximal.ParticleProximal().solve(lambda x: x, CLOUD, 0.1),
        [lambda: of.proximal.ParticleProximal().solve(SQUARE, CLOUD, 0.1)],
    ),
    "a tensor as the step": (
        TypeError,
        r"dt must be a real number, got Tensor .*float\(dt\)",
        lambda: flow(dt=DT),
        [lambda: flow(dt=float(DT))],
    ),
    "a grid on the line in Sinkhorn's divergence": (
        TypeError,
        r"dimension 1, and this distance takes particles .*Particles\(mu.points",
        lambda: of.metrics.sinkhorn_divergence(GRID, GRID, blur=0.1),
        [
            lambda: of.metrics.sinkhorn_divergence(
                particles(GRID), particles(GRID), blur=0.1
            ),
            lambda: of.metrics.wasserstein2(GRID, GRID),
        ],
    ),
    "a grid in the plane": (
        TypeError,
        r"dimension 2, and this distance takes particles .*Particles\(mu.points",
        lambda: of.metrics.sinkhorn_divergence(PLANE, PLANE, blur=0.1),
        [
            lambda: of.metrics.sinkhorn_divergence(
                particles(PLANE), particles(PLANE), blur=0.1
            ),
            lambda: of.metrics.wasserstein2(PLANE, PLANE),
            lambda: of.metrics.wasserstein2_bounds(PLANE, PLANE),
            lambda: of.metrics.transport_plan(PLANE, PLANE),
        ],
    ),
    "Langevin above the CFL limit": (
        of.errors.Diverged,
        r"take \|dt\| <= 0.00.*, or remap=True in the scheme, or use JKO\(\)",
        lambda: flow(STEEP, GRID, of.Langevin(), dt=0.1),
        [
            lambda: flow(STEEP, GRID, of.Langevin(), dt=5e-4),
            lambda: flow(STEEP, GRID, of.Langevin(remap=True), dt=0.1),
            lambda: flow(STEEP, GRID, of.JKO(), dt=0.1),
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_cure_works(name):
    check_cures(CASES[name])


def test_the_limit_that_langevin_names_is_the_limit():
    with pytest.raises(of.errors.Diverged, match="take") as caught:
        flow(STEEP, GRID, of.Langevin(), dt=0.1)
    limit = float(str(caught.value).split("<= ")[1].split()[0].rstrip(",;."))
    assert flow(STEEP, GRID, of.Langevin(), dt=0.999 * limit).status == "finished"
    with pytest.raises(of.errors.Diverged, match="take"):
        flow(STEEP, GRID, of.Langevin(), dt=1.01 * limit)


@pytest.mark.parametrize("n", [20, 40, 120, 360, 1200])
def test_a_box_too_small_is_told_on_every_grid(n):
    """Nearly 1 % of the mass lies beside the border, however fine the cells are."""
    bell = lambda x: (-0.5 * x.square().sum(-1)).exp()
    with pytest.warns(of.errors.BoxWarning, match="enlarge it"):
        of.GridDensity.from_function(bell, -2.6, 2.6, n, dtype=F64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        of.GridDensity.from_function(bell, -4.0, 4.0, n, dtype=F64)


def test_the_layers_at_both_ends_of_an_axis_count_together():
    rho = torch.full((10,), 1e3, dtype=F64)
    rho[0] = rho[-1] = 6.0  # 7.5e-4 of the mass each
    with pytest.warns(of.errors.BoxWarning, match="0.15% of the mass"):
        of.GridDensity(rho, 0, 1, normalize=True)


REPORTS = {
    "Trajectory": flow,
    "Step": lambda: of.ExplicitEuler().step(
        SQUARE, CLOUD, 0.1, None, torch.Generator()
    ),
    "Plan": lambda: of.metrics.transport_plan(CLOUD, CLOUD),
    "ProxResult": lambda: of.proximal.ParticleProximal().solve(SQUARE, CLOUD, 0.1),
    "ConvexityReport": lambda: of.analysis.displacement_convexity(
        SQUARE, CLOUD, of.Particles(normal(5, 2, seed=3))
    ),
    "DissipationReport": lambda: of.analysis.minimizing_movement(flow(scheme=of.JKO())),
}


@pytest.mark.parametrize("name", REPORTS)
def test_reports_of_tensors_are_compared_as_objects(name):
    """Entry by entry there is no one truth value: equal means the same object."""
    one, two = REPORTS[name](), REPORTS[name]()
    assert type(one).__name__ == name
    assert one == one  # noqa: PLR0124
    assert one != two
    assert len({one, two, one}) == 2
