"""Cures that the errors of networks, schemes, analyses and pictures name."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from tests.clouds import normal
from tests.cures import Case, check_cures

F64 = torch.float64
SQUARE = of.Potential(lambda x: x.square().sum(-1))
CLOUD = of.Particles(normal(5, 2))
LINE = of.Quantiles(torch.linspace(-1, 1, 9, dtype=F64))
X, Y = normal(6, 2), normal(6, seed=1)
TANH = of.meanfield.TwoLayer("tanh", bias=False)
FAR = of.Particles(normal(5, 2, seed=3))
EYE = torch.eye(3, dtype=F64)
NEURONS = of.Particles(normal(4, 3, seed=2))
LABELS = torch.tensor([0, 1, 1, 0, 1, 0])
WALL = torch.zeros(6, 6, dtype=torch.bool)
WALL[3] = True


def grid(shape=(6, 6), **options):
    """Return cells of equal density, but for obstacles."""
    rho = torch.ones(shape, dtype=F64)
    if "obstacles" in options:
        rho = rho.masked_fill(options["obstacles"], 0.0)
    return of.GridDensity(rho, 0, 1, walls=True, normalize=True, **options)


def half_wall():
    wall = WALL.clone()
    wall[3, :2] = False
    return wall


TARGET = grid()
HOLES = of.GridDensity(
    torch.ones(6, 6, dtype=F64).index_fill(0, torch.tensor([5]), 0.0),
    0,
    1,
    walls=True,
    normalize=True,
)


def run(F, mu, scheme, **options):
    return of.flow(F, mu, scheme, **{"dt": 0.1, "steps": 2, "generator": 0, **options})


def step(F, mu, solver=None, dt=1e-2):
    """Make a step and require that it converged."""
    assert of.JKO(solver).step(F, mu, dt, None, torch.Generator()).info["converged"]


def risk(network=TANH, y=Y, **options):
    return of.meanfield.Risk(network, X, y, **options)


def linear(a, b):
    return torch.nn.Linear(a, b, dtype=F64)


class Drift(of.schemes.Scheme):
    """A scheme that a user wrote and that does not follow F."""

    def __init__(self, *, effects):
        self.effects = frozenset(effects)

    def step(self, F, mu, dt, state, generator):
        value = F.value(mu)
        moved = mu.push(torch.ones_like(mu.points), dt)
        return of.schemes.Step(moved, state, {"dt": dt}, value)


def mass(d):
    """Return a solver of density at most one and its walls."""
    return of.proximal.QuantileProximal(lower=-d, upper=d)


class Flat(of.proximal.ProximalSolver):
    """A user's solver that does not say whether W2 is Euclidean in its tangents."""

    def solve(self, F, mu, dt, warm=None):
        return of.proximal.ParticleProximal().solve(F, mu, dt, warm)


CASES: dict[str, Case] = {
    "a step that is not recorded": (
        (TypeError, ValueError, of.errors.Unsupported),
        r"flow it with JKO\(\)",
        lambda: of.analysis.minimizing_movement(
            run(SQUARE, grid(), of.ExplicitEuler(), dt=1e-3)
        ),
        [lambda: of.analysis.minimizing_movement(run(SQUARE, CLOUD, of.JKO()))],
    ),
    "ends of a geodesic that coincide": (
        ValueError,
        "move one of them",
        lambda: of.analysis.displacement_convexity(SQUARE, CLOUD, CLOUD),
        [
            lambda: of.analysis.displacement_convexity(
                SQUARE, CLOUD, CLOUD.push(torch.ones_like(CLOUD.points), 1.0)
            )
        ],
    ),
    "one slope of one point": (
        ValueError,
        "vary them",
        lambda: of.analysis.observed_order([0.1, 0.1], [1.0, 0.5]),
        [lambda: of.analysis.observed_order([0.1, 0.05], [1.0, 0.5])],
    ),
    "a record that is no number": (
        TypeError,
        "return a number or a tensor",
        lambda: run(SQUARE, CLOUD, of.JKO(), record={"name": lambda _: "name"}),
        [lambda: run(SQUARE, CLOUD, of.JKO(), record={"n": lambda mu: mu.n})],
    ),
    "a record that is not finite": (
        of.errors.Diverged,
        "compute it from the trajectory's snapshots",
        lambda: run(SQUARE, CLOUD, of.JKO(), record={"r": lambda _: math.inf}),
        [lambda: [mu.n / 1.0 for mu in run(SQUARE, CLOUD, of.JKO()).snapshots]],
    ),
    "a target with holes": (
        ValueError,
        "mix it with a little uniform mass, or make obstacles",
        lambda: of.KL(HOLES).value(grid()),
        [
            lambda: of.KL(
                of.GridDensity(
                    0.99 * HOLES.density().reshape(6, 6) + 0.01, 0, 1, walls=True
                )
            ).value(grid()),
            lambda: of.KL(grid(obstacles=half_wall())).value(
                grid(obstacles=half_wall())
            ),
        ],
    ),
    "a target that holds obstacles": (
        ValueError,
        r"give it obstacles=~target\.is_free\.reshape\(shape\)",
        lambda: of.KL(grid(obstacles=half_wall())).value(grid()),
        [
            lambda: of.KL(grid(obstacles=half_wall())).value(
                grid(
                    obstacles=~grid(obstacles=half_wall()).is_free.reshape(6, 6),
                )
            )
        ],
    ),
    "a target on a grid for particles": (
        of.errors.Unsupported,
        "give KL a smooth potential",
        lambda: of.KL(TARGET).value(CLOUD),
        [lambda: of.KL(lambda x: x.square().sum(-1)).value(TARGET)],
    ),
    "attraction below repulsion": (
        ValueError,
        "swap them",
        lambda: of.kernels.PowerLaw(1.0, 2.0),
        [lambda: of.kernels.PowerLaw(2.0, 1.0)],
    ),
    "neurons of too many numbers": (
        ValueError,
        "p = .* = 3 numbers",
        lambda: risk().value(of.Particles(normal(4, 5))),
        [lambda: risk().value(of.Particles(normal(4, 3)))],
    ),
    "a module as a loss": (
        TypeError,
        r"write MSELoss\(reduction='none'\)",
        lambda: risk(loss=torch.nn.MSELoss),
        [lambda: risk(loss=torch.nn.MSELoss(reduction="none"))],
    ),
    "a loss that sums": (
        (ValueError, of.errors.InvalidFunctional),
        "use reduction='none'",
        lambda: risk(loss=torch.nn.MSELoss()).value(NEURONS),
        [lambda: risk(loss=torch.nn.MSELoss(reduction="none")).value(NEURONS)],
    ),
    "classes 0 and 1 for signs": (
        (TypeError, ValueError),
        r"use ",
        lambda: risk(y=LABELS, loss="logistic"),
        [lambda: risk(y=(2 * LABELS - 1).double(), loss="logistic")],
    ),
    "classes as numbers": (
        (TypeError, ValueError),
        r"use y\.long\(\)",
        lambda: risk(
            of.meanfield.TwoLayer("tanh", outputs=2),
            LABELS.double(),
            loss="cross-entropy",
        ),
        [
            lambda: risk(
                of.meanfield.TwoLayer("tanh", outputs=2),
                LABELS.double().long(),
                loss="cross-entropy",
            )
        ],
    ),
    "an activation of the whole layer": (
        (TypeError, of.errors.Unsupported),
        r"activation=module\[1\]",
        lambda: of.meanfield.from_module(GELU),
        [lambda: of.meanfield.from_module(GELU, activation=GELU[1])],
    ),
    "one layer": (
        TypeError,
        r"write Sequential\(Linear, activation, Linear\)",
        lambda: of.meanfield.from_module(linear(2, 3)),
        [
            lambda: of.meanfield.from_module(
                torch.nn.Sequential(linear(2, 3), torch.nn.Tanh(), linear(3, 1))
            )
        ],
    ),
    "the kernel of another loss": (
        of.errors.Unsupported,
        "use loss='square'",
        lambda: risk(y=Y.sign(), loss="logistic").decompose(),
        [lambda: risk(y=Y.sign(), loss="square").decompose()],
    ),
    "the kernel of another scaling": (
        of.errors.Unsupported,
        "use scaling='mean-field'",
        lambda: risk(of.meanfield.TwoLayer("tanh", scaling="ntk")).decompose(),
        [lambda: risk(of.meanfield.TwoLayer("tanh", scaling="mean-field")).decompose()],
    ),
    "the tangent kernel of two outputs": (
        of.errors.Unsupported,
        "take outputs=None",
        lambda: of.meanfield.empirical_ntk(
            of.meanfield.TwoLayer("tanh", bias=False, outputs=2), NEURONS, X
        ),
        [
            lambda: of.meanfield.empirical_ntk(
                of.meanfield.TwoLayer("tanh", bias=False, outputs=None), NEURONS, X
            )
        ],
    ),
    "too many axes": (
        ValueError,
        "use Particles or Gaussian",
        lambda: of.GridDensity(torch.ones(2, 2, 2, 2, dtype=F64), 0, 1),
        [lambda: of.Particles(normal(4, 4)), lambda: STANDARD_4],
    ),
    "rooms apart": (
        ValueError,
        "open a door between them",
        lambda: grid(obstacles=WALL),
        [lambda: grid(obstacles=half_wall())],
    ),
    "a negative picture": (
        ValueError,
        "mend or clip it first",
        lambda: of.GridDensity.from_image(-EYE),
        [lambda: of.GridDensity.from_image(EYE.clamp_min(0))],
    ),
    "a picture of whole numbers": (
        (TypeError, ValueError),
        "convert it, e.g. image / image.max",
        lambda: of.GridDensity.from_image(torch.arange(4).reshape(2, 2)),
        [
            lambda: of.GridDensity.from_image(
                torch.arange(4).reshape(2, 2) / torch.arange(4).reshape(2, 2).max()
            )
        ],
    ),
    "a picture of five axes": (
        ValueError,
        "drop other axes",
        lambda: of.GridDensity.from_image(torch.ones(1, 2, 2, 3)),
        [lambda: of.GridDensity.from_image(torch.ones(1, 2, 2, 3)[0])],
    ),
    "an odd number of nodes": (
        ValueError,
        "nodes must be even",
        lambda: of.Gaussian(torch.zeros(5), torch.eye(5), nodes=101),
        [lambda: of.Gaussian(torch.zeros(5), torch.eye(5), nodes=102)],
    ),
    "a step that crosses": (
        of.errors.Diverged,
        r"take a smaller dt, or use JKO\(\) or ExplicitEuler\(backtracking=True\)",
        lambda: run(FOLD, LINE, of.ExplicitEuler(), dt=1.0),
        [
            lambda: run(FOLD, LINE, of.ExplicitEuler(), dt=0.01),
            lambda: run(FOLD, LINE, of.JKO(), dt=1.0),
            lambda: run(FOLD, LINE, of.ExplicitEuler(backtracking=True), dt=1.0),
        ],
    ),
    "an energy that is a constant": (
        (ValueError, of.errors.InvalidFunctional),
        r"a constant c is c \+ 0 \* r",
        lambda: of.Internal(lambda r: r.new_ones(())).value(grid()),
        [lambda: of.Internal(lambda r: 1.0 + 0 * r).value(grid())],
    ),
    "a blur below round-off": (
        ValueError,
        "take at least",
        lambda: of.metrics.sinkhorn_divergence(CLOUD, FAR, blur=1e-17),
        [lambda: of.metrics.sinkhorn_divergence(CLOUD, FAR, blur=0.1)],
    ),
    "a solver of another grid": (
        of.errors.Unsupported,
        r"use JKO\(\) without a solver",
        lambda: step(SQUARE, grid((60,)), of.proximal.QuantileProximal()),
        [lambda: step(SQUARE, grid((60,)), dt=0.2)],
    ),
    "a bound without room on a grid": (
        ValueError,
        "raise the bound to 1 or more|raise the bound or enlarge",
        lambda: step(of.Congestion(0.5) + SQUARE, grid()),
        [lambda: step(of.Congestion(1.5) + SQUARE, grid())],
    ),
    "a hot Gaussian": (
        (ValueError, of.errors.Unsupported),
        r"minimise \+ temperature \* Entropy\(\)",
        lambda: step(-1.0 * of.Entropy(), STANDARD_4),
        [lambda: step(SQUARE + of.Entropy(), STANDARD_4)],
    ),
    "hot quantiles": (
        (ValueError, of.errors.Unsupported),
        "use a positive factor",
        lambda: step(-1.0 * of.Entropy(), LINE),
        [lambda: step(1.0 * of.Entropy(), LINE)],
    ),
    "a distance that is no function": (
        TypeError,
        r"e\.g\. otflow\.metrics\.wasserstein2",
        lambda: of.schemes.Adaptive(of.JKO(), tolerance=0.1, distance="w2"),
        [
            lambda: run(
                SQUARE,
                CLOUD,
                of.schemes.Adaptive(
                    of.JKO(), tolerance=0.1, distance=of.metrics.wasserstein2
                ),
            )
        ],
    ),
    "noise under an adaptive step": (
        of.errors.Unsupported,
        "use it with a fixed dt",
        lambda: run(SQUARE, CLOUD, of.schemes.Adaptive(of.Langevin(), tolerance=0.1)),
        [lambda: run(SQUARE, CLOUD, of.Langevin(), dt=0.1)],
    ),
    "two schemes that both advance": (
        ValueError,
        r"keep one of them.*effects = frozenset\(\)",
        lambda: of.chain(of.JKO(), Drift(effects={"transport"})),
        [
            lambda: run(SQUARE, CLOUD, of.JKO()),
            lambda: run(SQUARE, CLOUD, of.chain(of.JKO(), Drift(effects=()))),
        ],
    ),
    "order 2 of a solver that says nothing": (
        of.errors.Unsupported,
        r"flat = True|order 1|without a solver",
        lambda: run(SQUARE, CLOUD, of.JKO(Flat(), order=2)),
        [
            lambda: run(SQUARE, CLOUD, of.JKO(Flat())),
            lambda: run(SQUARE, CLOUD, of.JKO(order=2)),
        ],
    ),
    "order 3 on a grid": (
        of.errors.Unsupported,
        r"use JKO\(order=2\), or represent the measure by Quantiles",
        lambda: run(SQUARE, grid((60,)), of.JKO(order=3), dt=0.2),
        [
            lambda: run(SQUARE, grid((60,)), of.JKO(order=2), dt=0.2),
            lambda: run(SQUARE, LINE, of.JKO(order=3), dt=1e-2),
        ],
    ),
    "copies of quantiles": (
        of.errors.Unsupported,
        "leave it out of the chain",
        lambda: run(SQUARE, LINE, of.chain(of.JKO(), of.schemes.Resample())),
        [lambda: run(SQUARE, LINE, of.JKO())],
    ),
    "points in space": (
        (ValueError, of.errors.Unsupported),
        "axes=",
        lambda: of.plotting.particles(of.Particles(normal(4, 3))),
        [lambda: of.plotting.particles(of.Particles(normal(4, 3)), axes=(0, 1))],
    ),
    "the density of a cloud": (
        (TypeError, of.errors.Unsupported),
        r"with plotting\.particles",
        lambda: of.plotting.density(CLOUD),
        [lambda: of.plotting.particles(CLOUD)],
    ),
    "the logarithm of a record": (
        ValueError,
        "pass a smaller minimum",
        lambda: of.plotting.energy(RUN, log=True, minimum=1e9),
        [lambda: of.plotting.energy(RUN, log=True, minimum=-1.0)],
    ),
}
FOLD: of.Potential = of.Potential(lambda x: 8 * x.square().sum(-1))
GELU: torch.nn.Sequential = torch.nn.Sequential(
    linear(2, 3), torch.nn.GELU(), linear(3, 1)
)
STANDARD_4: of.Gaussian = of.Gaussian(
    torch.zeros(4, dtype=F64), torch.eye(4, dtype=F64)
)
RUN: of.Trajectory = run(SQUARE, CLOUD, of.JKO())


@pytest.mark.parametrize("case", CASES)
def test_the_cures_that_an_error_names_work(case):
    check_cures(CASES[case])
