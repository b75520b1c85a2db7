"""Cures of steps that do not converge, and of what is asked of them too early."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

import otflow as of
from otflow.schemes import Adaptive
from otflow.testing.clouds import normal
from tests.cures import Case, check_cures
from tests.marks import slow
from tests.proximal.gaussian.test_values import AtTheTop, jump
from tests.schemes.test_langevin import Noise, Told

# The cells are few, or wide in the tails: what is tried here does not need them narrow.
pytestmark = pytest.mark.filterwarnings("ignore::otflow.errors.CellWarning")

F64 = torch.float64
SQUARE = of.Potential(lambda x: x.square().sum(-1))
HILL = of.Potential(lambda x: -0.5 * x.square().sum(-1), modulus=-1.0)
KINK = of.Potential(lambda x: x.abs().sum(-1), modulus=0.0)
SMOOTH = of.Potential(lambda x: (x.square() + 0.01).sqrt().sum(-1), modulus=0.0)
CLOUD = of.Particles(normal(5, 2))
LINE = of.Quantiles(torch.linspace(-1, 1, 9, dtype=F64))
SHORT_LINE = of.Quantiles(torch.linspace(-2.2, 3, 11, dtype=F64))
WIDE_LINE = of.Quantiles(torch.linspace(-3, 3, 41, dtype=F64))
FAR_LINE = of.Quantiles(torch.linspace(97, 103, 6, dtype=F64))
BELL = of.Gaussian(torch.tensor([2.0], dtype=F64), torch.tensor([[9.0]], dtype=F64))
WALL = torch.zeros(6, 6, dtype=torch.bool)
WALL[3, :4] = True
GENERATOR = torch.Generator()


def cells(n=32, dtype=F64, **options):
    return of.GridDensity.from_function(
        lambda x: (-30 * (x - 0.5).square().sum(-1)).exp(),
        0,
        1,
        n,
        walls=True,
        dtype=dtype,
        **options,
    )


def room():
    rho = torch.ones(6, 6, dtype=F64).masked_fill(WALL, 0.0)
    return of.GridDensity(rho, 0, 1, obstacles=WALL, normalize=True, walls=True)


def flow(F, mu, scheme=None, dt=0.1, steps=1, **options):
    scheme = of.JKO() if scheme is None else scheme
    return of.flow(F, mu, scheme, dt=dt, steps=steps, generator=0, **options)


def step(F, mu, solver, dt=0.1):
    """Make a step and require that it converged."""
    assert flow(F, mu, of.JKO(solver), dt=dt).converged


class Spread(of.Functional):
    """The function (Var - 1)^2, with the variance written in two ways."""

    def __init__(self, *, centred):
        self.centred = centred

    def value(self, mu):
        m = mu.expectation(lambda x: x)
        if self.centred:
            variance = mu.expectation(lambda x: (x - m).square().sum(-1))
        else:
            variance = mu.expectation(lambda x: x.square().sum(-1)) - m[0].square()
        return (variance - 1).square()


class Collapse(of.Functional):
    """An attraction by value alone that draws all mass together in finite time."""

    def value(self, mu):
        return mu.interaction(lambda z: (z.square().sum(-1) + 1e-30).log())


class Loose(of.Measure):
    """A point whose moves nobody checks."""

    flat = True

    def __init__(self, x):
        self.points, self.weights = x, torch.ones(1, dtype=x.dtype)

    def value_and_position_gradient(self, value):
        return value(self), torch.full_like(self.points, 1e10)

    def push(self, tangent, dt):
        return Loose(self.points + dt * tangent)

    def inner(self, u, v):
        return (u * v).sum()

    def displacement_to(self, other):
        return other.points - self.points


def escape(dt):
    """Flow a point down a bounded slope."""
    F = of.Potential(lambda x: torch.tanh(x).sum(-1))
    mu = Loose(torch.zeros(1, 1, dtype=F64))
    return of.flow(F, mu, of.ExplicitEuler(), dt=dt, steps=2).final


class Rounded(of.Functional):
    """An energy in a dtype of its own."""

    def __init__(self, dtype):
        self.dtype = dtype

    def value(self, mu):
        return mu.expectation(lambda x: x.square().sum(-1)).to(self.dtype)


class Halve(of.schemes.Scheme):
    def step(self, F, mu, dt, state, generator):
        return of.schemes.Step(of.Particles(mu.points[: (mu.n + 1) // 2]), state)


def barrier(x):
    return torch.where(x[..., 0] < 0.1, torch.inf, x[..., 0])


def step_of(n):
    solver = of.proximal.GridSinkhorn(max_iterations=n)
    return solver.differentiable_step(SQUARE + of.Entropy(), cells(), 0.05)


CASES: dict[str, Case] = {
    "steps that ran out of their budget": (
        of.errors.NotConvergedWarning,
        r"take a smaller dt, or JKO\(solver\) with a larger budget or tolerance",
        lambda: flow(WELLS, CLOUD, of.JKO(budget(3)), dt=1.0),
        [
            lambda: flow(WELLS, CLOUD, of.JKO(budget(3)), dt=1e-9),
            lambda: flow(WELLS, CLOUD, of.JKO(budget(500)), dt=1.0),
            lambda: flow(WELLS, CLOUD, of.JKO(budget(3, tolerance=10.0)), dt=1.0),
        ],
    ),
    "a kink of the functional": (
        of.errors.NotConvergedWarning,
        r"smooth the kink .*, or flow a GridDensity",
        lambda: flow(KINK + 0.1 * of.Entropy(), LINE, dt=1.0, steps=10),
        [
            lambda: flow(SMOOTH + 0.1 * of.Entropy(), LINE, dt=1.0, steps=10),
            lambda: flow(SOFTPLUS + 0.1 * of.Entropy(), LINE, dt=1.0, steps=10),
            lambda: flow(KINK + 0.1 * of.Entropy(), LONG_BELL, dt=1.0, steps=10),
        ],
    ),
    "a kink of the functional, particles": (
        of.errors.NotConvergedWarning,
        r"smooth the kink .*, or take ExplicitEuler\(\)",
        lambda: flow(KINK, CLOUD, dt=1.0, steps=2),
        [
            lambda: flow(SMOOTH, CLOUD, dt=1.0, steps=2),
            lambda: flow(SOFTPLUS, CLOUD, dt=1.0, steps=2),
            lambda: flow(KINK, CLOUD, of.ExplicitEuler(), dt=0.01, steps=200),
        ],
    ),
    "a kink of the functional, quantiles without entropy": (
        of.errors.NotConvergedWarning,
        r"smooth the kink .*, or flow a GridDensity",
        lambda: flow(KINK, SHORT_LINE, steps=30),
        [
            lambda: flow(SMOOTH, SHORT_LINE, steps=30),
            lambda: flow(KINK, LONG_BELL, of.JKO(of.proximal.BackAndForth()), steps=3),
        ],
    ),
    "a functional whose large terms cancel": (
        of.errors.NotConvergedWarning,
        r"large terms of F cancel; .* subtract before squaring",
        lambda: flow(Spread(centred=False), FAR_LINE, dt=1.0, steps=20),
        [lambda: flow(Spread(centred=True), FAR_LINE, dt=1.0, steps=20)],
    ),
    "a jump, on a law": (
        of.errors.NotConvergedWarning,
        r"not those of its values, .*; .*smooth F \(1\[x > a\] by sigmoid.*GridDensity",
        lambda: flow(JUMP + 0.5 * of.Entropy(), LAW, dt=1.0),
        [
            lambda: flow(SMOOTH_JUMP + 0.5 * of.Entropy(), LAW, dt=1.0),
            lambda: flow(JUMP + 0.5 * of.Entropy(), LONG_BELL, dt=1.0),
        ],
    ),
    "a critical point above the start": (
        of.errors.NotConvergedWarning,
        r"objective is above that of the start.* smooth F, or flow a GridDensity",
        lambda: flow(COSINE, LAW, of.JKO(AtTheTop()), dt=1.0),
        [lambda: flow(COSINE + 0.1 * of.Entropy(), LONG_BELL, dt=0.5)],
    ),
    "nodes that do not suffice": (
        of.errors.NotConvergedWarning,
        r"allow more nodes by GaussianProximal\(max_nodes=.*, smooth F, or flow",
        lambda: flow(SMOOTH + 0.1 * of.Entropy(), BELL, few(64), dt=1.0),
        [
            lambda: flow(SMOOTH + 0.1 * of.Entropy(), BELL, few(4096), dt=1.0),
            lambda: flow(SMOOTHER + 0.1 * of.Entropy(), BELL, few(64), dt=1.0),
            lambda: flow(SMOOTH + 0.1 * of.Entropy(), LINE, dt=1.0),
            lambda: flow(SMOOTH + 0.1 * of.Entropy(), cells(), dt=0.5),
        ],
    ),
    "a record whose shape changes": (
        ValueError,
        "keep the shape, or compute it from the trajectory's snapshots",
        lambda: flow(SQUARE, CLOUD, Halve(), record={"x": lambda mu: mu.points}),
        [
            lambda: flow(
                SQUARE, CLOUD, Halve(), record={"x": lambda mu: mu.points.mean(0)}
            ),
            lambda: [mu.points for mu in flow(SQUARE, CLOUD, Halve()).snapshots],
        ],
    ),
    "an atom between quantiles": (
        of.errors.Diverged,
        r"smooth F if it has a kink .*, add Entropy\(\) or another .*, or flow Part",
        lambda: step(KINK, LINE, of.proximal.QuantileProximal(), dt=1.0),
        [
            lambda: flow(SMOOTH, LINE, dt=1.0, steps=5),
            lambda: flow(SMOOTH + of.Entropy(), LINE, dt=1.0, steps=5),
            lambda: flow(KINK, of.Particles(LINE.points), of.ExplicitEuler(), dt=0.1),
        ],
    ),
    "a point that leaves the numbers": (
        of.errors.Diverged,
        "take a smaller dt",
        lambda: escape(1e300),
        [lambda: escape(1e-12)],
    ),
    "a value of few digits": (
        of.errors.InvalidFunctional,
        r"dtype=mu\.dtype",
        lambda: flow(Rounded(torch.float32), LINE),
        [lambda: flow(Rounded(LINE.dtype), LINE)],
    ),
    "an atom of a long step": (
        of.errors.Diverged,
        r"add Entropy\(\) or another internal energy, take a smaller dt, or flow Part",
        lambda: flow(Collapse(), WIDE_LINE, dt=20.0),
        [
            lambda: flow(Collapse() + of.Entropy(), WIDE_LINE, dt=20.0),
            lambda: flow(Collapse(), WIDE_LINE, dt=0.05),
            lambda: flow(Collapse(), of.Particles(WIDE_LINE.points), dt=0.05),
        ],
    ),
    "a potential of a row": (
        of.errors.InvalidFunctional,
        r"reduce over the last axis: \.sum\(-1\)",
        lambda: flow(of.Potential(lambda x: x.square()), LINE),
        [lambda: flow(of.Potential(lambda x: x.square().sum(-1)), LINE)],
    ),
    "a Hessian drowned in a long step": (
        (of.errors.NonFinite, of.errors.Diverged),
        "take a smaller dt",
        lambda: of.proximal.QuantileProximal().solve(WELL, LINE, 1e18),
        [lambda: flow(WELL, LINE, dt=1.0)],
    ),
    "a concave step without end": (
        of.errors.Diverged,
        r"take a smaller dt, or walls .* QuantileProximal\(lower=",
        lambda: flow(HILL, LINE, dt=1e6),
        [
            lambda: flow(HILL, LINE, dt=0.5),
            lambda: flow(
                HILL + of.Entropy(),
                LINE,
                of.JKO(of.proximal.QuantileProximal(lower=-2.0, upper=2.0)),
                dt=1e6,
            ),
        ],
    ),
    "a tolerance out of reach": (
        of.errors.NotConverged,
        "loosen the tolerance",
        lambda: flow(
            SQUARE, CLOUD, Adaptive(of.ExplicitEuler(), tolerance=1e-12, min_dt=0.01)
        ),
        [
            lambda: flow(
                SQUARE, CLOUD, Adaptive(of.ExplicitEuler(), tolerance=1e-2, min_dt=1e-3)
            )
        ],
    ),
    "steps that cannot be compared": (
        of.errors.Unsupported,
        r"say how, e\.g\. distance=otflow\.metrics\.wasserstein2",
        lambda: flow(SQUARE, CLOUD, Adaptive(SPLIT, tolerance=0.01)),
        [
            lambda: flow(
                SQUARE,
                CLOUD,
                Adaptive(SPLIT, tolerance=0.01, distance=of.metrics.wasserstein2),
            )
        ],
    ),
    "a distance that returns no number": (
        ValueError,
        r"e\.g\. distance=otflow\.metrics\.wasserstein2",
        lambda: flow(
            SQUARE, CLOUD, Adaptive(of.JKO(), tolerance=0.1, distance=lambda *_: None)
        ),
        [
            lambda: flow(
                SQUARE,
                CLOUD,
                Adaptive(of.JKO(), tolerance=0.1, distance=of.metrics.wasserstein2),
            )
        ],
    ),
    "noise of one's own in place of an entropy": (
        of.errors.Unsupported,
        r"override its energy\(F, mu\) by the value of the rest",
        lambda: flow(SQUARE + of.Entropy(), CLOUD, Noise()),
        [lambda: flow(SQUARE + of.Entropy(), CLOUD, Told())],
    ),
    "a class in a chain": (
        TypeError,
        r"write JKO\(\)",
        lambda: of.chain(of.JKO, of.BirthDeath()),
        [lambda: of.chain(of.JKO(), of.BirthDeath())],
    ),
    "order 2 beside obstacles": (
        of.errors.Unsupported,
        r"use JKO\(\) with order=1 and a smaller dt",
        lambda: flow(SQUARE + of.Entropy(), room(), of.JKO(order=2)),
        [lambda: flow(SQUARE + of.Entropy(), room(), of.JKO(order=1), dt=0.01)],
    ),
    "noise of a long step": (
        of.errors.Diverged,
        "take a smaller dt$",
        lambda: flow(QUARTIC + of.Entropy(), CLOUD, of.Langevin(), dt=1.0, steps=50),
        [lambda: flow(QUARTIC + of.Entropy(), CLOUD, of.Langevin(), dt=1e-3, steps=9)],
    ),
    "a stage that is no measure": (
        of.errors.Diverged,
        r"take a smaller dt, or JKO\(order=1\)",
        lambda: flow(25 * SQUARE, LINE, of.JKO(order=2), dt=1.0),
        [
            lambda: flow(25 * SQUARE, LINE, of.JKO(order=2), dt=1e-3),
            lambda: flow(25 * SQUARE, LINE, of.JKO(order=1), dt=1.0),
        ],
    ),
    "a derivative of a step that stopped": (
        of.errors.NotConverged,
        "raise max_iterations",
        lambda: step_of(2),
        [lambda: step_of(500)],
    ),
    "a barrier for finite volumes": (
        (of.errors.NonFinite, of.errors.Diverged),
        "make the cells where it is not obstacles",
        lambda: step(of.Potential(barrier) + of.Entropy(), cells(), FV()),
        [lambda: step(of.Potential(barrier) + of.Entropy(), blocked(), FV())],
    ),
    "a class of solvers": (
        TypeError,
        r"write ParticleProximal\(\)",
        lambda: of.JKO(of.proximal.ParticleProximal),
        [lambda: of.JKO(of.proximal.ParticleProximal())],
    ),
    "a step of cells below the last place": (
        of.errors.Diverged,
        "use float64",
        lambda: flow(NEAR_ONE, of.Quantiles(LINE.edges.float()), dt=1e10),
        [lambda: flow(NEAR_ONE, LINE, dt=1e10)],
    ),
    "an adjoint that takes too long": (
        of.errors.NotConverged,
        "take a smaller dt or a larger eps",
        lambda: few_adjoint(0.5, 1e-3),
        [lambda: few_adjoint(1e-3, 1e-3), lambda: few_adjoint(0.5, 3e-2)],
    ),
    "a map differentiated twice": (
        of.errors.Unsupported,
        r"differentiate once, or use Entropy\(\) or PowerEntropy\(m\)",
        lambda: slopes(of.Internal(lambda r: r), 2),
        [
            lambda: slopes(of.Internal(lambda r: r), 1),
            lambda: slopes(of.Entropy(), 2),
            lambda: slopes(of.PowerEntropy(2.0), 2),
        ],
    ),
    "tangents of fixed cells": (
        of.errors.Unsupported,
        r"use JKO\(\) without a solver",
        lambda: step(SQUARE, LONG_BELL, of.proximal.TangentProximal()),
        [lambda: flow(SQUARE + of.Entropy(), LONG_BELL)],
    ),
    "a push without a graph": (
        of.errors.Unsupported,
        "write it with torch operations, or add the verb pull_back",
        lambda: step(SQUARE, Deaf(CLOUD.points), of.proximal.TangentProximal()),
        [
            lambda: step(SQUARE, Verbal(CLOUD.points), of.proximal.TangentProximal()),
            lambda: step(SQUARE, Heard(CLOUD.points), of.proximal.TangentProximal()),
        ],
    ),
}
FV = of.proximal.FiniteVolume
WELL: of.Potential = of.Potential(lambda x: 0.25 * (x.square() - 1).square().sum(-1))
WELLS: of.Potential = of.Potential(lambda x: (3 * x).cos().sum(-1) + x.square().sum(-1))
QUARTIC: of.Potential = of.Potential(lambda x: x.square().square().sum(-1))
NEAR_ONE: of.Potential = of.Potential(lambda x: (x - 1).square().sum(-1), modulus=2.0)
SMOOTHER: of.Potential = of.Potential(
    lambda x: (x.square() + 4).sqrt().sum(-1), modulus=0.0
)
SOFTPLUS: of.Potential = of.Potential(
    lambda x: (torch.nn.functional.softplus(9 * x) / 9).sum(-1), modulus=0.0
)
JUMP: of.Potential = of.Potential(jump)
SMOOTH_JUMP: of.Potential = of.Potential(
    lambda x: torch.sigmoid((x[..., 0] - 0.5) / 0.02) + 0.5 * x[..., 0].square()
)
COSINE: of.Potential = of.Potential(lambda x: 4 * x[..., 0].cos())
LAW: of.Gaussian = of.Gaussian(
    torch.tensor([0.5], dtype=F64), torch.tensor([[0.09]], dtype=F64)
)
LONG_BELL: of.GridDensity = of.GridDensity.from_function(
    lambda x: (-(x[..., 0] - 0.5).square() / 0.18).exp(), -4, 4, 160, dtype=F64
)
SPLIT: of.schemes.Scheme = of.chain(of.ExplicitEuler(), of.BirthDeath())


class Heard(of.Particles):
    """A representation of one's own, which does not say that it is flat."""

    flat = False


class Deaf(Heard):
    """Its push leaves the graph of the tangent behind."""

    def push(self, tangent, dt):
        return super().push(tangent.detach(), dt)


class Verbal(Deaf):
    """It says what the derivative of its push is."""

    def pull_back(self, tangent, gradient):
        return gradient


def slopes(F, times):
    """Differentiate a pointwise map of an internal energy."""
    s = torch.linspace(0.5, 1, 3, dtype=F64, requires_grad=True)
    r = F.conjugate_slope(s)
    for _ in range(times):
        (r,) = torch.autograd.grad(r.square().sum(), s, create_graph=True)


def few_adjoint(dt, eps):
    """Differentiate a step by few iterations."""
    w = cells().weights.clone().requires_grad_()
    solver = of.proximal.GridSinkhorn(eps=eps)
    with mock.patch("otflow.proximal.grid.sinkhorn.derivative.MAX_ADJOINT", 20):
        nu = solver.differentiable_step(
            SQUARE + of.Entropy(), cells().with_free_weights(w), dt
        )
        nu.weights.square().sum().backward()


def budget(n, **options):
    return of.proximal.ParticleProximal(max_gradients=n, **options)


def few(nodes):
    return of.JKO(of.proximal.GaussianProximal(max_nodes=nodes))


def blocked():
    x = torch.linspace(0.5 / 32, 1 - 0.5 / 32, 32, dtype=F64)
    rho = (-30 * (x - 0.5).square()).exp().masked_fill(x < 0.1, 0.0)
    return of.GridDensity(rho, 0, 1, obstacles=x < 0.1, normalize=True, walls=True)


LONG = "a kink of the functional, quantiles without entropy"


@pytest.mark.parametrize("case", [*(c for c in CASES if c != LONG), *slow(LONG)])
def test_the_cures_that_an_error_names_work(case):
    check_cures(CASES[case])
