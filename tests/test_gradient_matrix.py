"""Every public metric and functional has its gradient checked: none is left out."""

from __future__ import annotations

import inspect

import pytest
import torch

import otflow as of
from otflow.testing.clouds import normal
from otflow.testing.differences import derivative
from tests import test_graphs
from tests.metrics import test_gradient_laws

F64 = torch.float64
# They need a measure of parts, see functionals/test_of_part.py.
OF_PARTS = {of.functionals.InPart, of.functionals.OfPart}


def parts(F):
    """Yield a functional and all that it is made of."""
    yield F
    inner = [*getattr(F, "parts", ()), *filter(None, [getattr(F, "functional", None)])]
    for part in inner:
        yield from parts(part)


def classes(module, base):
    """Return the public classes of a module that have a value."""
    found = (getattr(module, name) for name in module.__all__)
    kinds = {kind for kind in found if inspect.isclass(kind) and issubclass(kind, base)}
    return {kind for kind in kinds if not inspect.isabstract(kind)}


def test_every_functional_is_in_the_matrix():
    checked = {type(p) for F in test_graphs.FUNCTIONALS.values() for p in parts(F)}
    public = classes(of.functionals, of.Functional)
    public |= classes(of.meanfield, of.Functional)
    assert len(public) >= 10
    # Its derivatives raise, see meanfield/test_online.py.
    refused = {of.meanfield.OnlineRisk, *OF_PARTS}
    assert public - refused <= checked, public - checked


def test_every_kernel_and_network_is_in_the_matrix():
    kinds = {type(of.kernels.as_kernel(W)) for W in test_graphs.KERNELS.values()}
    public = classes(of.kernels, of.kernels.Kernel)
    assert public <= kinds, public - kinds
    networks = {
        type(F.network)
        for F in test_graphs.FUNCTIONALS.values()
        if isinstance(F, of.meanfield.Risk)
    }
    # Their measures are their own, see meanfield/networks/test_graphs_of_networks.py.
    deep = classes(of.meanfield.networks, of.meanfield.Model)
    public = classes(of.meanfield, of.meanfield.Model) | deep
    assert len(deep) >= 2
    assert public - deep <= networks, public - networks


def test_every_functional_meets_every_representation_that_has_it():
    """On particles, quantiles, grids and Gaussians, by the pairs that are run."""
    met: dict[type, set[type]] = {}
    for measure, name in test_graphs.PAIRS:
        kind = type(test_graphs.ALL[measure](torch.zeros((), dtype=F64)))
        for part in parts(test_graphs.FUNCTIONALS[name]):
            met.setdefault(type(part), set()).add(kind)
    on_atoms: set[type] = {of.Particles}
    on_densities: set[type] = {of.Quantiles, of.GridDensity, of.Gaussian}
    for kind in classes(of.functionals, of.Functional) - OF_PARTS:
        wanted = on_atoms | on_densities
        if issubclass(kind, (of.Internal, of.KL)):
            wanted = on_densities
        if issubclass(kind, (of.SinkhornDivergenceTo, of.SlicedWassersteinTo)):
            wanted = on_atoms
        if issubclass(kind, of.functionals.Lifted):  # of a root and a place
            wanted = {of.Particles, of.Gaussian}
        assert wanted <= met[kind], (kind, wanted - met[kind])
    assert on_atoms <= met[of.meanfield.Risk]


# Metrics: those of the law, those of which only a part has a graph, and those whose
# answers are detached by their documentation.
LAW = {
    "action": "action",
    "batched_wasserstein2_squared": "batched",
    "entropic_plan": "entropic",
    "gelbrich": "gelbrich",
    "length": "length",
    "quotient_distance": "quotient",
    "semidiscrete_plan": "semidiscrete",
    "sinkhorn_divergence": "sinkhorn",
    "transport_cost": "transport cost",
    "wasserstein": "wasserstein",
    "wasserstein2": "wasserstein2",
    "wasserstein2_squared": "wasserstein2_squared",
}
MOVES = {
    "align": lambda x, y: of.metrics.align(y, x),
    "aligned_ends": lambda x, y: torch.cat(
        [mu.points for mu in of.metrics.aligned_ends(of.Particles(x), of.Particles(y))]
    ),
    "aligned_networks": lambda x, y: torch.cat(
        [mu.points for mu in of.metrics.aligned_networks(x, y)]
    ),
    "barycenter": lambda x, y: (
        (
            of.metrics.barycenter([of.Particles(x), of.Particles(y)], [0.7, 0.3])
        ).measure.points
    ),
    "generalized_geodesic": lambda x, y: (
        of.metrics.generalized_geodesic(
            of.Particles(y.flip(1)), of.Particles(x), of.Particles(y), 0.3
        ).points
    ),
    "geodesic": lambda x, y: (
        of.metrics.geodesic(of.Particles(x), of.Particles(y), 0.3).points
    ),
}


def from_a_square(y):
    """Return the plan from a density on a square."""
    rho = torch.linspace(1, 2, 16, dtype=F64).reshape(4, 4)
    square = of.GridDensity(rho, -2, 2, walls=True, normalize=True)
    return of.metrics.semidiscrete_plan(square, y)


DETACHED = {
    "Plan": lambda x, y: vars(of.metrics.transport_plan(x, y)).values(),
    "transport_plan": lambda x, y: vars(of.metrics.transport_plan(x, y)).values(),
    "TransportMap": lambda x, y: [
        of.metrics.transport_plan(
            *(of.Gaussian.from_samples(torch.cat([z, -z, z.flip(1)])) for z in (x, y))
        ).cost
    ],
    "least_cost_plan": lambda x, y: vars(
        of.metrics.least_cost_plan(x, y, lambda x, y: (x - y).abs().sum(-1))
    ).values(),
    "EntropicPlan": lambda x, y: (
        t
        for name, t in vars(of.metrics.entropic_plan(x, y, blur=1.0)).items()
        if name != "value"
    ),
    "SemidiscretePlan": lambda x, _: (
        t for name, t in vars(from_a_square(x)).items() if name != "cost"
    ),
    "assignment": lambda x, y: [of.metrics.assignment(x, y)],
    "best_matching": lambda x, y: [of.metrics.best_matching(x, y)],
    "Bounds": lambda x, y: vars(of.metrics.wasserstein2_bounds(x, y)).values(),
    "wasserstein2_bounds": lambda x, y: [of.metrics.wasserstein2_bounds(x, y).f],
}
MODULES = {"symmetries"}
REPORTS = {"BarycenterResult", "Bracket"}  # tested as parts of what makes them


def test_every_metric_is_in_one_of_the_lists():
    known = {*LAW, *MOVES, *DETACHED, *MODULES, *REPORTS}
    assert set(of.metrics.__all__) == known
    laws = {distance for distance, _ in test_gradient_laws.CASES}
    assert set(LAW.values()) <= laws
    exact = {pair for d, pair in test_gradient_laws.CASES if d == "wasserstein2"}
    assert {"weighted", "quantiles", "grids", "particles and grid"} <= exact
    assert "Gaussians" in exact


@pytest.mark.parametrize("name", MOVES)
def test_what_a_metric_moves_follows_the_points(name):
    x, y, u = normal(6, 2), normal(6, 2, seed=1), normal(6, 2, seed=2)
    live = x.clone().requires_grad_()
    found = MOVES[name](live, y)
    weights = normal(*found.shape, seed=3)
    (slope,) = torch.autograd.grad((weights * found).sum(), live)
    wanted = derivative(lambda t: (weights * MOVES[name](x + t * u, y)).sum())
    assert abs(float(wanted)) > 1e-3
    torch.testing.assert_close((slope * u).sum(), wanted, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", DETACHED)
def test_what_is_detached_says_so(name):
    live = normal(6, 2).requires_grad_()
    answers = DETACHED[name](live, normal(6, 2, seed=1))
    found = [t for t in answers if isinstance(t, torch.Tensor)]
    assert found
    assert not any(t.requires_grad for t in found)
    if name in {"transport_plan", "wasserstein2_bounds"}:
        assert "detached" in str(getattr(of.metrics, name).__doc__)
