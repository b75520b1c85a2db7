"""Graphs are kept or refused: every verb is differentiated against finite differences.

A family is a curve of measures, made of tensors that depend on a number t in a generic
way; a map takes a measure to a tensor. The derivative of the map along the curve by the
graph is that by finite differences of the plain map, or the map refuses the graph.
"""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.testing.clouds import assert_plain, normal
from otflow.testing.differences import derivative
from tests.curves import (
    ALL,
    BELLS,
    CELLS,
    DENSITIES,
    F64,
    LINE,
    POINTS,
    bend,
    gaussian,
    grid,
    line,
    particles,
    quantiles,
    round_gaussian,
    state,
    tangent,
    tensors,
    weighted,
)


@pytest.fixture(autouse=True)
def every_warning():
    """Let torch warn of each conversion of a live tensor, not of the first alone."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)


# The law ------------------------------------------------------------------------------


def scalar(result):
    """Return a generic linear function of a tensor."""
    return normal(result.numel(), seed=50) @ result.reshape(-1)


def agrees(make, function, *, h=1e-3, rtol=1e-6, moves=False):
    """Check the derivative of function(make(t), t) at 0 by the graph, and its value.

    With ``moves=True`` it must not be zero.
    """
    t = torch.zeros((), dtype=F64, requires_grad=True)
    live = scalar(function(make(t), t))
    found = torch.zeros(())
    if live.requires_grad:  # else it must be a constant
        (found,) = torch.autograd.grad(live, t)

    def plain(step):
        with torch.no_grad():
            s = torch.as_tensor(step, dtype=F64)
            result = function(make(s), s)
            assert_plain(result)
            return scalar(result)

    torch.testing.assert_close(live.detach(), plain(0.0), rtol=1e-11, atol=1e-12)
    wanted = derivative(plain, h)
    assert abs(float(wanted)) > 1e-6 or not moves  # else nothing is tested
    torch.testing.assert_close(found.to(wanted), wanted, rtol=rtol, atol=1e-8)
    assert t.grad is None  # nothing but what was asked for


def probes(t, d):
    return bend(t, 3, d, seed=60) / 9


def well(x):
    return (x.square().sum(-1) - 0.7).square() + x[..., 0].sin()


def features(x):
    return torch.cat([x, x.square(), x.sin()], -1)


def net(*sizes):
    """Return a smooth network with parameters that ask for gradients."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [torch.nn.Linear(sizes[0], 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)]
        return torch.nn.Sequential(*layers, torch.nn.Flatten(-2)).double()


KERNELS = {
    "Gaussian": of.kernels.Gaussian(0.8),
    "Quadratic": of.kernels.Quadratic(),
    "Energy": of.kernels.Energy(),
    "Log": of.kernels.Log(),
    "Riesz": of.kernels.Riesz(0.5),
    "PowerLaw": of.kernels.PowerLaw(4, 1),
    "InverseMultiquadric": of.kernels.InverseMultiquadric(0.8),
    "combination": 2 * of.kernels.Gaussian(0.8) - of.kernels.Energy() / 2,
    "function": lambda z: (z.square().sum(-1) + 0.5 * z[..., 0]).sin(),
}


def risk(loss, activation="tanh", outputs=None, scaling="mean-field"):
    m = outputs or 1
    network = of.meanfield.TwoLayer(
        activation, outputs=outputs, bias=False, scaling=scaling
    )
    X = normal(6, 2 - m + 1, seed=30)
    y = {
        "square": normal(6, seed=31),
        "logistic": normal(6, seed=31).sign(),
    }.get(loss, normal(6, seed=31))
    return of.meanfield.Risk(network, X[:, :1], y, loss=loss)


COMMON = {
    "potential": of.Potential(well),
    "expectation": of.OfExpectation(lambda m: m.tanh().prod() + m.exp()[0], features),
    "blob": of.Blob(of.Entropy(), 0.8),
    "stein": of.KSD(lambda x: -x - x.sin(), of.kernels.Gaussian(0.8)),
    "two points": of.Interaction(
        of.kernels.TwoPoint(lambda x, y: (x * y + y).sum(-1).sin(), features=torch.tanh)
    ),
}
ON_POINTS = {
    **COMMON,
    **{f"interaction {k}": of.Interaction(W) for k, W in KERNELS.items()},
    "risk square": risk("square"),
    "risk logistic": risk("logistic", scaling="ntk"),
    "risk own": risk(lambda f, y: (f - y).pow(4), torch.sin),
    "risk of one's own neurons": of.meanfield.Risk(
        of.meanfield.CustomLayer(lambda x, th: (th[:, 0] * x + th[:, 1]).sin()),
        normal(6, 1, seed=30),
        normal(6, seed=31),
    ),
    "population relu": of.meanfield.PopulationRisk(
        of.Particles(normal(3, 2, seed=32)), "relu", "sphere"
    ),
    "population erf": of.meanfield.PopulationRisk(
        of.Particles(normal(3, 2, seed=32)), "erf", "gaussian"
    ),
    "path penalty": of.meanfield.PathPenalty("l1"),
    "path penalty l2": of.meanfield.PathPenalty("l2"),
    "path norm": of.meanfield.PathNorm(of.meanfield.TwoLayer("relu")),
    "l1 norm": of.functionals.l1_norm(),
    "group norm": of.functionals.group_norm(),
    "sum": of.Potential(well) + -2 * of.Interaction(of.kernels.Gaussian(0.8)),
}
ON_DENSITIES = {
    **COMMON,
    "entropy": of.Entropy(),
    "porous medium": of.PowerEntropy(2),
    "fast diffusion": of.PowerEntropy(0.8),
    "internal": of.Internal(lambda r: (1 + r).log()),
    "divergence": of.KL(well),
    "congestion": of.Potential(well) + of.Congestion(1e3),
    "interaction Gaussian": of.Interaction(of.kernels.Gaussian(0.8)),
    "interaction function": of.Interaction(KERNELS["function"]),
    "sum": of.Potential(well) + 0.3 * of.Entropy() + of.PowerEntropy(3),
}
SINGULAR = {
    "interaction Log": of.Interaction(of.kernels.Log()),
    "interaction Riesz": of.Interaction(of.kernels.Riesz(0.5)),
    "interaction Energy": of.Interaction(of.kernels.Energy()),
}
# Functionals to a target. No sum of its masses is close to a seventh: plans keep their
# cells in the steps of a finite difference.
HEAVY = of.Particles(normal(5, 2, seed=40), normal(5, seed=78).exp(), normalize=True)
LINED = of.Quantiles(0.3 * normal(6, seed=42).exp().cumsum(0) - 2)
TO_ATOMS = {
    "distance": of.SquaredDistanceTo(HEAVY),
    "sinkhorn": of.SinkhornDivergenceTo(HEAVY, blur=0.5),
    "sliced": of.SlicedWassersteinTo(HEAVY, 3),
}
IN_THE_PLANE = {
    "lifted": of.functionals.Lifted(of.Interaction(of.kernels.Gaussian(0.8)), 0.4),
    "discrepancy": of.MMDTo(HEAVY, of.kernels.Gaussian(0.8)),
    "energy distance": of.EnergyDistanceTo(HEAVY),
}
ON_THE_LINE = {
    "distance on the line": of.SquaredDistanceTo(LINED),
    "discrepancy on the line": of.MMDTo(LINED, of.kernels.Gaussian(0.8)),
    "energy distance on the line": of.EnergyDistanceTo(LINED),
    "lengths": of.meanfield.RadialRisk(0.8),
    "lengths in d dimensions": of.meanfield.RadialRisk(0.8, dim=40),
}
TO_A_BELL = {
    "distance to a bell": of.SquaredDistanceTo(gaussian(torch.ones((), dtype=F64))),
    "divergence of bells": of.KL(gaussian(torch.ones((), dtype=F64))),
}
IN_THE_PLANE_OF_POINTS = {**TO_ATOMS, **IN_THE_PLANE}
IN_THE_PLANE_OF_BELLS = {**TO_A_BELL, **IN_THE_PLANE}
TO_TARGETS = {**IN_THE_PLANE_OF_POINTS, **ON_THE_LINE, **TO_A_BELL}
PAIRS = [
    *((m, F) for m in POINTS for F in IN_THE_PLANE_OF_POINTS),
    *((m, F) for m in BELLS for F in IN_THE_PLANE_OF_BELLS),
    *((m, F) for m in (*LINE, "line", "masses") for F in ON_THE_LINE),
    *((m, F) for m in POINTS for F in ON_POINTS),
    *((m, F) for m in DENSITIES for F in ON_DENSITIES),
    *((m, F) for m in (*LINE, *CELLS) for F in SINGULAR),
]
FUNCTIONALS = {**SINGULAR, **ON_DENSITIES, **ON_POINTS, **TO_TARGETS}


# The derivatives are those of the nodes, few as they are here.
@pytest.mark.filterwarnings("ignore::otflow.errors.KernelWarning")
@pytest.mark.parametrize(("measure", "functional"), PAIRS)
def test_values_and_derivatives_of_functionals(measure, functional):
    F, make = FUNCTIONALS[functional], ALL[measure]
    agrees(make, lambda mu, _: F.value(mu), moves=True)
    agrees(make, lambda mu, _: F.velocity(mu))
    agrees(make, lambda mu, _: F.value_and_velocity(mu)[0])
    if measure in POINTS or measure in CELLS:
        agrees(make, lambda mu, _: F.first_variation(mu))
        agrees(
            make, lambda mu, t: F.first_variation(mu, bend(t, 3, mu.dim, seed=60) / 9)
        )
    if measure in POINTS:
        agrees(make, lambda mu, t: F.velocity(mu, bend(t, 3, mu.dim, seed=60) / 9))


# Verbs --------------------------------------------------------------------------------


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("measure", ALL)
def test_verbs_of_every_measure(measure):
    make = ALL[measure]

    def v(mu, t, seed=70):
        return bend(t, *tangent(mu), seed=seed)

    agrees(make, lambda mu, t: state(mu.push(v(mu, t), 0.02)), moves=True)
    agrees(make, lambda mu, t: mu.inner(v(mu, t), v(mu, t, 80)), moves=True)
    agrees(make, lambda mu, t: mu.norm(v(mu, t)), moves=True)
    agrees(make, lambda mu, _: mu.expectation(features), moves=True)
    agrees(make, lambda mu, _: state(mu.clone()), moves=True)


@pytest.mark.parametrize("measure", [*POINTS, *BELLS, *CELLS])
def test_diffusion(measure):
    agrees(ALL[measure], lambda mu, _: state(mu.diffuse(0.05, draw())), moves=True)


@pytest.mark.parametrize("measure", [*POINTS, *CELLS])
def test_reweighting(measure):
    def once(mu, t):
        return state(mu.reweight(bend(t, mu.n, seed=90), 0.4))

    agrees(ALL[measure], once, moves=True)


@pytest.mark.parametrize("measure", DENSITIES)
def test_densities(measure):
    make = ALL[measure]
    agrees(make, lambda mu, _: mu.density(), moves=True)
    agrees(make, lambda mu, _: mu.internal(torch.sqrt), moves=True)
    if measure in BELLS:
        agrees(make, lambda mu, t: mu.log_density(probes(t, 2)), moves=True)
        agrees(make, lambda mu, _: mu.sample(4, draw()), moves=True)
    if measure in CELLS:
        x = normal(3, 2 if measure in ("grid", "room") else 1) / 9
        agrees(make, lambda mu, _: mu.density_at(x), moves=True)
        agrees(make, lambda mu, _: mu.convolve(of.kernels.Log()), moves=True)


@pytest.mark.parametrize("measure", CELLS)
def test_transport_on_a_grid(measure):
    def moved(mu, t):
        return mu.transport(0.3 * bend(t, *tangent(mu), seed=70), 0.5).weights

    agrees(ALL[measure], moved, moves=True, h=2e-4, rtol=1e-5)


@pytest.mark.parametrize("measure", [*POINTS, *LINE, *BELLS])
def test_displacements(measure):
    make = ALL[measure]

    def away(mu, t):
        return mu.displacement_to(mu.push(0.1 * bend(t, *tangent(mu), seed=75), 0.2))

    agrees(make, away, moves=True)
    if measure in BELLS:  # the optimal map of two other laws, and of one to itself
        other = gaussian if measure == "round gaussian" else round_gaussian
        agrees(make, lambda mu, t: mu.displacement_to(other(2 * t)), moves=True)
        agrees(make, lambda mu, t: mu.displacement_to(make(2 * t)), moves=True)
        agrees(make, lambda mu, t: other(t * t).displacement_to(mu), moves=True)


# Chains -------------------------------------------------------------------------------


def euler(F, mu, dt, steps=10):
    for _ in range(steps):
        mu = mu.push(F.velocity(mu), dt)
    return mu


CHAINS = {
    **dict.fromkeys(POINTS, ("expectation", "interaction Gaussian", "sum")),
    **dict.fromkeys(LINE, ("sum", "interaction Log", "porous medium")),
    **dict.fromkeys(BELLS, ("sum", "interaction Gaussian", "entropy")),
    **dict.fromkeys(CELLS, ("sum", "interaction Log", "porous medium")),
}


@pytest.mark.parametrize(("measure", "F"), [(m, F) for m in CHAINS for F in CHAINS[m]])
def test_ten_unrolled_euler_steps(measure, F):
    # If x keeps its graph and the velocity loses it, dx/dx0 is 1.
    on = ON_POINTS if measure in POINTS else {**ON_DENSITIES, **SINGULAR}
    dt = 1e-3 if measure in (*LINE, *CELLS) else 0.02
    agrees(ALL[measure], lambda mu, _: state(euler(on[F], mu, dt)), moves=True, h=2e-4)


def test_the_derivative_of_unrolled_decay_is_that_of_the_scheme():
    x = torch.ones(1, 1, dtype=F64, requires_grad=True)
    F = of.Potential(lambda y: 0.5 * y.square().sum(-1))
    (found,) = torch.autograd.grad(euler(F, of.Particles(x), 0.1).points.sum(), x)
    assert float(found) == pytest.approx(0.9**10, rel=1e-14)  # .3487, not 1


@pytest.mark.parametrize("measure", [*POINTS, *CELLS])
def test_unrolled_birth_and_death_and_transport(measure):
    F = (ON_POINTS if measure in POINTS else ON_DENSITIES)["expectation"]

    def steps(mu, _):
        for _ in range(3):
            mu = mu.reweight(-F.first_variation(mu), 0.1)
            mu = mu.push(F.velocity(mu), 1e-2)
        return state(mu)

    agrees(ALL[measure], steps, moves=True, h=2e-4)


def test_weights_that_depend_on_the_points_are_held_fixed_in_the_velocity():
    # The velocity is a partial derivative, whatever the weights were made of.
    x = normal(6, 2).requires_grad_()
    mu = of.Particles(x, x[:, 0].softmax(0))
    F = ON_POINTS["expectation"]
    torch.testing.assert_close(F.velocity(mu), F.velocity(mu.detach()))
    torch.testing.assert_close(F.first_variation(mu), F.first_variation(mu.detach()))


@pytest.mark.parametrize("W", KERNELS.values(), ids=KERNELS)
def test_second_derivatives_through_the_tiles_of_a_pair_sum(W):
    """More atoms than a tile, and a derivative of the derivative of the velocity."""
    n = 300
    a, b = normal(n, 2, seed=1), normal(n, 2, seed=2)
    w = normal(n, seed=3)
    u = normal(n, seed=4) - normal(n, seed=4).mean()

    def make(t):
        return of.Particles(a + 0.1 * t * b, (w + t * u).softmax(0))

    F = of.Interaction(W)
    h = {"h": 1e-5, "rtol": 1e-4} if W in (KERNELS["Log"], KERNELS["Riesz"]) else {}
    agrees(make, lambda mu, _: F.velocity(mu) / n, **h)
    if h:  # forces of near pairs are too steep for a difference of differences
        return

    def slope(t):
        with torch.enable_grad():
            s = torch.as_tensor(t, dtype=F64).detach().requires_grad_()
            live = scalar(F.velocity(make(s)))
            return torch.autograd.grad(live, s, create_graph=True)[0], s

    first, s = slope(0.0)
    (found,) = torch.autograd.grad(first, s)
    wanted = derivative(lambda t: slope(t)[0].detach(), 1e-4)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


# Atoms of mass zero -------------------------------------------------------------------


def with_spectators(t):
    w = torch.tensor([0.3, 0.0, 0.25, 0.45, 0.0], dtype=F64)
    return of.Particles(bend(t, 5, 2, seed=1), w)


@pytest.mark.parametrize("functional", ON_POINTS)
def test_atoms_of_mass_zero_keep_the_graph_of_the_points(functional):
    F = ON_POINTS[functional]
    agrees(with_spectators, lambda mu, _: F.velocity(mu))
    agrees(with_spectators, lambda mu, _: F.first_variation(mu))


@pytest.mark.parametrize("at", ["points", "cells"])
def test_reweighting_has_a_derivative_where_there_is_no_mass(at):
    w0 = torch.tensor([0.3, 0.0, 0.25, 0.45, 0.0], dtype=F64)
    change = torch.tensor([-0.3, 0.1, 0.2, -0.1, 0.1], dtype=F64)
    rate = normal(5)

    def new(w):
        if at == "points":
            return of.Particles(normal(5, 1), w).reweight(rate, 0.7).weights
        cells = of.GridDensity(w0 * 5, 0, 1, walls=True)
        return cells.with_weights(w).reweight(rate, 0.7).weights

    t = torch.zeros((), dtype=F64, requires_grad=True)
    found = new(w0 + t * change)
    (slope,) = torch.autograd.grad(scalar(found), t)
    assert torch.equal(found == 0, w0 == 0)
    grown = lambda t: (w0 + t * change) * (0.7 * rate).exp()
    wanted = derivative(lambda t: scalar(grown(t) / grown(t).sum()))
    torch.testing.assert_close(slope, wanted, rtol=1e-9, atol=1e-11)


def test_velocities_of_massless_atoms_refuse_a_derivative_in_the_masses():
    w = torch.tensor([0.3, 0.0, 0.7], dtype=F64, requires_grad=True)
    mu = of.Particles(normal(3, 2), w)
    with pytest.raises(of.errors.Unsupported, match=r"points\[weights > 0\]"):
        ON_POINTS["expectation"].velocity(mu)
    held = w > 0
    cures = (
        of.Particles(mu.points[held], w[held]),
        of.Particles(mu.points, w.detach()),
    )
    for cured in cures:
        ON_POINTS["expectation"].velocity(cured)


# Distances ----------------------------------------------------------------------------

DISTANCES = [
    *((m, "wasserstein2_squared") for m in ("particles", "weighted", "normalised")),
    *((m, "wasserstein2_squared") for m in (*LINE, *BELLS, "line", "masses")),
    *((m, "wasserstein2") for m in ("weighted", "quantiles", "gaussian", "line")),
]


@pytest.mark.parametrize(("measure", "metric"), DISTANCES)
def test_distances_through_measures(measure, metric):
    make, distance = ALL[measure], getattr(of.metrics, metric)
    fixed = {
        "round gaussian": gaussian,
    }.get(measure, make)(torch.tensor(0.8, dtype=F64))
    agrees(make, lambda mu, _: distance(mu, fixed), moves=True, h=2e-4, rtol=1e-5)
    agrees(make, lambda mu, _: distance(fixed, mu), moves=True, h=2e-4, rtol=1e-5)


def test_a_distance_between_particles_reaches_the_network_that_made_them():
    # The gradient through Particles is that through the points themselves, not 0.
    torch.manual_seed(0)
    net, z, y = torch.nn.Linear(2, 2), torch.randn(50, 2), torch.randn(60, 2) + 3
    for make in (lambda x: x, of.Particles):
        net.zero_grad()
        loss = of.metrics.wasserstein2_squared(make(net(z)), y)
        loss.backward()
        assert float(loss.detach()) == pytest.approx(19.676, abs=1e-3)
        assert net.weight.grad is not None
        assert float(net.weight.grad.norm()) == pytest.approx(0.637, abs=1e-3)


def test_the_weights_of_a_cloud_get_the_gradient_that_is_promised():
    w = normal(5, seed=3).softmax(0).requires_grad_()
    x, y = normal(5, 2), normal(6, 2, seed=1)
    of.metrics.wasserstein2_squared(of.Particles(x, w), y).backward()
    plan = of.metrics.transport_plan(of.Particles(x, w.detach()), y)
    torch.testing.assert_close(w.grad, plan.f - w.detach() @ plan.f)


def test_backward_through_particles_gives_the_weighted_gradient_not_the_velocity():
    x, w = normal(5, 2).requires_grad_(), normal(5, seed=3).softmax(0)
    mu, F = of.Particles(x, w), ON_POINTS["sum"]
    F.value(mu).backward()
    velocity = F.velocity(mu.detach())
    torch.testing.assert_close(x.grad, -w[:, None] * velocity)


# Parameters of a functional -----------------------------------------------------------


def with_parameter(kind):
    """Return a functional made by a number s, and a measure of plain tensors."""
    if kind == "potential":
        return lambda s: of.Potential(lambda x: (s * x).sin().prod(-1))
    if kind == "kernel":
        return lambda s: of.Interaction(lambda z: (-s * z.square().sum(-1)).exp())
    return lambda s: of.OfExpectation(lambda m: (s * m).tanh().prod(), features)


@pytest.mark.parametrize("kind", ["potential", "kernel", "expectation"])
@pytest.mark.parametrize("n", [7, 300])
def test_parameters_follow_a_measure_that_carries_a_graph(kind, n):
    """A value has the graph of its parameters; a velocity, if its measure has one."""
    family, x = with_parameter(kind), normal(n, 2)

    def chain(s, points):
        F, mu = family(1 + s), of.Particles(points)
        return torch.cat([state(euler(F, mu, 0.1, 3)), F.value(mu)[None]])

    s = torch.zeros((), dtype=F64, requires_grad=True)
    (found,) = torch.autograd.grad(scalar(chain(s, x.clone().requires_grad_())), s)
    wanted = derivative(lambda t: scalar(chain(torch.tensor(t, dtype=F64), x)))
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)

    F, mu = family(1 + s), of.Particles(x)
    assert_plain(F.velocity(mu), F.first_variation(mu))  # what a training flow pays for
    (found,) = torch.autograd.grad(F.value(mu), s)
    wanted = derivative(lambda t: family(1 + torch.tensor(t, dtype=F64)).value(mu))
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-10)


def test_a_kernel_with_parameters_costs_a_flow_nothing_more():
    count = [0]
    s = torch.ones((), dtype=F64)

    def W(z):
        count[0] += z[..., 0].numel()
        return (-s * z.square().sum(-1)).exp()

    counts = []
    for needs in (False, True):
        s.requires_grad_(needs)
        count[0] = 0
        run = of.flow(
            of.Interaction(W),
            of.Particles(normal(40, 2)),
            of.ExplicitEuler(),
            dt=0.1,
            steps=3,
        )
        assert_plain(run.final.points, *run.records.values())
        counts.append(count[0])
    assert counts[0] == counts[1]


# Refusals, and where nothing is recorded ----------------------------------------------

REFUSALS = {
    "sample of particles": lambda: weighted(ONE()).sample(3, draw()),
    "sample of quantiles": lambda: quantiles(ONE()).sample(3, draw()),
    "sample of a grid": lambda: grid(ONE()).sample(3, draw()),
    "displacement on a grid": lambda: line(ONE()).displacement_to(line(ONE())),
    "histogram": lambda: of.GridDensity.from_samples(ONE() * normal(9, 1), -9, 9, 12),
    "picture": lambda: of.GridDensity.from_image(ONE() + normal(4, 4).abs()),
    "corner": lambda: of.GridDensity(torch.ones(4), [ONE()], [ONE() + 1], walls=True),
    "density at points": lambda: line(torch.zeros(())).density_at(ONE() * normal(3, 1)),
    "quantiles of a density": lambda: of.Quantiles.from_function(
        lambda x: (-ONE() * x[:, 0].square()).exp(), -3, 3, 8, dtype=F64
    ),
    **{
        f"proximal step of {name}": lambda make=make: of.JKO().step(
            of.Potential(lambda x: x.square().sum(-1)), make(ONE()), 0.1, None, draw()
        )
        for name, make in (("particles", particles), *LINE.items(), *BELLS.items())
    },
    "proximal step of a grid": lambda: of.JKO().step(
        of.Entropy(), line(ONE()), 0.1, None, draw()
    ),
}


def ONE():
    """Return a number with a graph, small enough for every family."""
    return torch.full((), 0.1, dtype=F64, requires_grad=True)


@pytest.mark.parametrize("what", REFUSALS)
def test_what_cannot_keep_a_graph_refuses_it(what):
    with pytest.raises(of.errors.Unsupported, match=r"would lose a graph: .*; use "):
        REFUSALS[what]()
    with torch.no_grad():  # there is no graph to lose
        REFUSALS[what]()


def test_the_cures_of_refusals_work():
    mu = weighted(ONE())
    assert mu.detach().sample(3, draw()).shape == (3, 2)
    F = of.Potential(lambda x: x.square().sum(-1))
    assert of.JKO().step(F, mu.detach(), 0.1, None, draw()).info["converged"]
    step = of.ExplicitEuler().step(F, mu, 0.1, None, draw())
    assert step.measure.points.requires_grad
    cells = line(ONE())
    assert not cells.detach().displacement_to(cells.detach()).any()
    picture = ONE() + normal(4, 4).abs()
    kept = of.GridDensity(picture, 0, 1, walls=True, normalize=True)
    assert kept.weights.requires_grad
    assert of.Quantiles.from_quantile(lambda u: ONE() * u, 4).edges.requires_grad


@pytest.mark.parametrize("measure", ALL)
def test_without_gradients_nothing_is_recorded(measure):
    mu = ALL[measure](ONE())
    F = COMMON["expectation"]
    with torch.no_grad():
        found = [*F.value_and_velocity(mu), state(mu.push(F.velocity(mu), 1e-3))]
        if measure in POINTS or measure in CELLS:
            found.append(F.first_variation(mu))
    assert_plain(*found)
    cut = mu.detach()
    found = [state(cut), *F.value_and_velocity(cut)]
    assert_plain(
        *found, *(t for t in vars(cut).values() if isinstance(t, torch.Tensor))
    )
    torch.testing.assert_close(state(cut), state(mu).detach(), rtol=0, atol=0)
    assert cut.detach() is cut


@pytest.mark.parametrize("measure", ALL)
def test_a_flow_detaches_at_its_door(measure):
    one = ONE()
    F, scheme = COMMON["potential"], of.ExplicitEuler()
    run = of.flow(F, ALL[measure](one), scheme, dt=1e-3, steps=2)
    assert_plain(*run.records.values())
    assert one.grad is None
    for nu in run.snapshots:
        assert_plain(*tensors(nu))
    plain = ALL[measure](one).detach()
    again = of.flow(F, plain, scheme, dt=1e-3, steps=2)
    assert torch.equal(state(again.final), state(run.final))
    assert again.snapshots[0] is plain  # no copy of what has no graph


def test_a_scheme_that_attaches_a_graph_leaves_none_in_the_results():
    x = torch.ones((), dtype=F64, requires_grad=True)

    class Attached(of.schemes.Scheme):
        def step(self, F, mu, dt, state, generator):
            return of.schemes.Step(mu.push(x * F.velocity(mu), dt), state)

    run = of.flow(COMMON["potential"], particles(0.0), Attached(), dt=0.01, steps=3)
    assert_plain(*(nu.points for nu in run.snapshots), run.final.points)


MADE = {
    "samples, Gaussian": lambda t: of.Gaussian.from_samples(bend(t, 9, 2, seed=3)),
    "samples, quantiles": lambda t: of.Quantiles.from_samples(bend(t, 9, 1, seed=3), 4),
    "quantile function": lambda t: of.Quantiles.from_quantile(
        lambda u: (1 + t) * u.exp() + t * u, 5, dtype=F64
    ),
    "function on a grid": lambda t: of.GridDensity.from_function(
        lambda x: (t * x[:, 0] - x.square().sum(-1)).exp(),
        lower=-2,
        upper=2,
        shape=12,
        walls=True,
        dtype=F64,
    ),
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_constructors_keep_the_graph_of_what_they_are_made_of(make):
    agrees(make, lambda mu, _: state(mu), moves=True)


def test_a_functional_of_a_velocity_is_differentiated_too():
    """A value that asks for a velocity inside: the derivative goes through it."""
    F = ON_POINTS["interaction Gaussian"]

    class Speed(of.Functional):
        def value(self, mu):
            return F.velocity(mu).square().sum()

    x, u = normal(6, 2), normal(6, 2, seed=9)
    found = (Speed().velocity(of.Particles(x)) * u).sum()
    wanted = derivative(lambda t: -6 * Speed().value(of.Particles(x + t * u)))
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)


# Bad input that carries a graph is refused as any other -------------------------------


def live(*numbers):
    return torch.tensor(numbers, dtype=F64, requires_grad=True)


ONES = torch.ones(5, dtype=F64)
SQUARE = of.Potential(lambda x: x.square().sum(-1))
LOGARITHM = of.Potential(lambda x: x[:, 0].log())
BAD = {
    "points": (ValueError, lambda x: of.Particles(x.log()[:, None])),
    "huge points": (ValueError, lambda x: of.Particles((1e200 * x)[:, None])),
    "sum of weights": (ValueError, lambda x: of.Particles(normal(4, 1), x.abs())),
    "negative weights": (ValueError, lambda x: of.Particles(normal(4, 1), x / x.sum())),
    "weights that are not finite": (
        ValueError,
        lambda x: of.Particles(normal(4, 1), x.log()),
    ),
    "edges that cross": (ValueError, lambda x: of.Quantiles(-x.square())),
    "a mass of zero": (
        ValueError,
        lambda x: of.Quantiles(torch.arange(5.0).double(), x),
    ),
    "mean": (ValueError, lambda x: of.Gaussian(x.log(), torch.eye(4).double())),
    "singular": (ValueError, lambda x: of.Gaussian(0 * x, x[:, None] * x)),
    "skew": (ValueError, lambda x: of.Gaussian(0 * x, x[:, None] * x.exp())),
    "negative density": (ValueError, lambda x: of.GridDensity(x, 0, 1, walls=True)),
    "integral": (ValueError, lambda x: of.GridDensity(x.exp(), 0, 1, walls=True)),
    "mass in an obstacle": (
        ValueError,
        lambda x: of.GridDensity(
            x.exp(), 0, 1, obstacles=torch.arange(4) == 2, normalize=True
        ),
    ),
    "rooms": (
        ValueError,
        lambda x: of.GridDensity(
            x.exp() * (torch.arange(4) != 2),
            lower=0,
            upper=1,
            obstacles=torch.arange(4) == 2,
            normalize=True,
        ),
    ),
    "quantiles cross": (
        of.errors.Diverged,
        lambda x: of.Quantiles(torch.arange(4.0).double()).push(-9 * x[:, None], 1.0),
    ),
    "points that leave": (
        of.errors.Diverged,
        lambda x: of.Particles(x[:, None]).push(x[:, None], 1e200),
    ),
    "a Gaussian that is singular": (
        of.errors.Diverged,
        lambda x: of.Gaussian(x[:1], ONES[:1, None]).push(
            (0 * x[:2] - 1)[:, None], 1.0
        ),
    ),
    "above the CFL limit": (
        of.errors.Diverged,
        lambda x: of.GridDensity(ONES, 0, 1, walls=True).push(x, 9.0),
    ),
    "rates": (
        of.errors.Diverged,
        lambda x: of.Particles(x[:, None]).reweight(x.log(), 1.0),
    ),
    "probes outside": (
        ValueError,
        lambda x: SQUARE.first_variation(
            of.GridDensity(ONES, 0, 1, walls=True), x[:, None]
        ),
    ),
    "value": (
        of.errors.NonFinite,
        lambda x: of.Potential(lambda y: y[:, 0].log()).velocity(
            of.Particles(x[:, None])
        ),
    ),
    "gradient": (
        of.errors.NonFinite,
        lambda x: of.Potential(lambda y: y[:, 0].clamp_min(0).sqrt()).velocity(
            of.Particles(x[:, None])
        ),
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_with_a_graph_is_refused_as_without(what):
    error, make = BAD[what]
    numbers = (0.0, 0.3, -0.2, 2.0)
    messages = []
    for x in (live(*numbers), live(*numbers).detach()):
        with pytest.raises(error) as caught:
            make(x)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


# Schemes, step by step ----------------------------------------------------------------

EULER = of.ExplicitEuler()
SCHEMES = {
    "Euler": EULER,
    "backtracking": of.ExplicitEuler(backtracking=True),
    "birth and death": of.BirthDeath(),
    "Langevin": of.Langevin(),
    "chain": of.chain(EULER, of.BirthDeath()),
    "minibatch": of.schemes.Minibatch(EULER),
    "adaptive": of.schemes.Adaptive(EULER, tolerance=1e-2),
    "resample": of.schemes.Resample(1.0),
    "Frank-Wolfe": of.schemes.FrankWolfe(of.optimality.BoxDomain(-9, 9), 8),
    "JKO": of.JKO(),
    "JKO of order 2": of.JKO(order=2),
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("measure", ["particles", "weighted", "quantiles", "line"])
def test_a_step_of_every_scheme_keeps_a_graph_or_refuses_it(measure, scheme):
    F = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)

    def step(mu, _):
        before = SCHEMES[scheme].init(F, mu)
        return state(SCHEMES[scheme].step(F, mu, 0.01, before, draw()).measure)

    keeping = {"Euler", "backtracking", "minibatch"}
    if measure != "quantiles":
        keeping |= {"birth and death", "Langevin", "chain"}
    if measure == "particles":  # whose masses have no graph
        keeping |= {"resample"}
    if scheme in keeping:
        agrees(ALL[measure], step, moves=True, h=2e-4)
        return
    with pytest.raises(of.errors.Unsupported):
        step(ALL[measure](ONE()), None)
