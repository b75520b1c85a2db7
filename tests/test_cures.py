"""A cure that an error names works: what is wrong is tried, then each of its cures."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.proximal.certificate import certify
from otflow.testing.clouds import normal
from tests.cures import Case, check_cures

F64 = torch.float64
SQUARE = of.Potential(lambda x: x.square().sum(-1))
CLOUD = of.Particles(normal(5, 2))
LINE = of.Quantiles(torch.linspace(-1, 1, 9, dtype=F64))
NARROW = of.Gaussian(torch.zeros(60, dtype=F64), 1e-12 * torch.eye(60, dtype=F64))
HEAVY = of.Particles(normal(4, 2), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=F64))
SPACE = of.GridDensity(torch.ones(3, 3, 3, dtype=F64), 0, 1, walls=True)
STANDARD = of.Gaussian(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64))
SKEW = torch.tensor([[2.0, 1.0], [0.9, 2.0]], dtype=F64)
STEEP = of.Potential(lambda x: 10 * x.square().sum(-1))
FULL = torch.ones(4, 4, dtype=F64)
WALL = torch.zeros(4, 4, dtype=torch.bool)
WALL[1, 1] = True
PICTURE = torch.arange(12.0, dtype=F64).reshape(3, 4)
HALF_EMPTY = of.GridDensity(
    torch.tensor([0.0, 0, 1, 2, 1, 0, 0, 0], dtype=F64),
    0,
    1,
    walls=True,
    normalize=True,
)


def bump(n=24, dtype=F64, **options):
    return of.GridDensity.from_function(
        lambda x: (-30 * (x - 0.5).square().sum(-1)).exp(),
        lower=0,
        upper=1,
        shape=(n,),
        walls=True,
        dtype=dtype,
        **options,
    )


def room():
    """Return cells on both sides of a wall with a door."""
    wall = torch.zeros(6, 6, dtype=torch.bool)
    wall[3, :4] = True
    rho = torch.rand(6, 6, generator=torch.Generator().manual_seed(0), dtype=F64)
    return of.GridDensity(
        rho.masked_fill(wall, 0.0), 0, 1, obstacles=wall, normalize=True
    )


def step(F, mu, solver=None, dt=1e-2):
    """Make a step and require that it converged."""
    report = of.JKO(solver).step(F, mu, dt, None, torch.Generator()).info
    assert report["converged"]


def euler(F, mu, dt=1e-3):
    return of.flow(F, mu, of.ExplicitEuler(), dt=dt, steps=1)


def inference(mode):
    with mode():
        return SQUARE.velocity(CLOUD)


class Own(of.Functional):
    """A user's functional."""

    def __init__(self, value):
        self._value = value

    def value(self, mu):
        return self._value(mu)


class Silent(of.proximal.ProximalSolver):
    """A solver with or without the words of a certificate."""

    def __init__(self, *, complete):
        self.complete = complete

    def solve(self, F, mu, dt, warm=None):
        words = certify(
            energy_before=float(F.value(mu)),
            energy_after=float(F.value(mu)),
            dt=dt,
            w2=0.0,
            residual=0.0,
            converged=True,
            guarantee="none",
            iterations=1,
        )
        certificate = words if self.complete else {"converged": True}
        return of.proximal.ProxResult(mu, certificate=certificate)


def neurons(dtype):
    """Return the value of a network whose constants have a dtype of their own."""
    centre = torch.zeros(1, dtype=dtype)
    network = of.meanfield.CustomLayer(lambda x, th: (x + centre) * th[:, 0])
    F = of.meanfield.Risk(network, normal(4, 1).float(), normal(4, seed=1).float())
    return F.value(of.Particles(normal(3, 1).float()))


def loss(convert):
    """Return a risk whose loss converts its targets."""
    F = of.meanfield.Risk(
        of.meanfield.TwoLayer("tanh", bias=False),
        normal(4, 1).float(),
        normal(4, seed=1).float(),
        loss=lambda f, y: (f - convert(y, f)).square(),
    )
    return F.value(of.Particles(normal(3, 2).float()))


CASES: dict[str, Case] = {
    "derivatives in inference mode": (
        RuntimeError,
        r"use torch\.no_grad\(\)",
        lambda: inference(torch.inference_mode),
        [lambda: inference(torch.no_grad)],
    ),
    "transport of particles": (
        of.errors.Unsupported,
        "use push",
        lambda: CLOUD.transport(normal(5, 2), 0.1),
        [lambda: CLOUD.push(normal(5, 2), 0.1)],
    ),
    "entropy beside a vacuum": (
        of.errors.NonFinite,
        r"JKO\(\), or diffuse",
        lambda: of.Entropy().velocity(HALF_EMPTY),
        [
            lambda: step(of.Entropy(), HALF_EMPTY, dt=0.05),
            lambda: euler(of.Entropy(), HALF_EMPTY.diffuse(0.05, torch.Generator())),
        ],
    ),
    "quantiles of few samples": (
        ValueError,
        "take n <= 4",
        lambda: of.Quantiles.from_samples(normal(5, 1), 6),
        [lambda: of.Quantiles.from_samples(normal(5, 1), 4)],
    ),
    "clouds of other sizes": (
        ValueError,
        "use transport_plan",
        lambda: of.metrics.assignment(normal(3, 2), normal(4, 2)),
        [lambda: of.metrics.transport_plan(normal(3, 2), normal(4, 2))],
    ),
    "a solver of another representation": (
        of.errors.Unsupported,
        r"use JKO\(\)",
        lambda: step(SQUARE, LINE, of.proximal.ParticleProximal()),
        [lambda: step(SQUARE, LINE)],
    ),
    "straight lines beside an obstacle": (
        of.errors.Unsupported,
        r"JKO\(FiniteVolume\(\)\), which JKO\(\)",
        lambda: step(of.Entropy(), room(), of.proximal.BackAndForth()),
        [
            lambda: step(of.Entropy(), room(), of.proximal.FiniteVolume()),
            lambda: step(of.Entropy(), room()),
        ],
    ),
    "pressure of fast diffusion": (
        of.errors.Unsupported,
        r"use GridSinkhorn\(\)",
        lambda: step(of.PowerEntropy(0.7), bump(), of.proximal.BackAndForth()),
        [lambda: step(of.PowerEntropy(0.7), bump(), of.proximal.GridSinkhorn())],
    ),
    "a concave entropy by finite volumes": (
        (ValueError, of.errors.Unsupported),
        r"use ExplicitEuler\(\)",
        lambda: step(-1.0 * of.Entropy(), room(), of.proximal.FiniteVolume()),
        [lambda: euler(-1.0 * of.Entropy(), room(), dt=1e-5)],
    ),
    "a power of one": (
        ValueError,
        r"use Entropy\(\)",
        lambda: of.PowerEntropy(1.0),
        [of.Entropy],
    ),
    "a class in place of a kernel": (
        TypeError,
        r"write Gaussian\(\)",
        lambda: of.Interaction(of.kernels.Gaussian),
        [lambda: of.Interaction(of.kernels.Gaussian(1.0)).value(CLOUD)],
    ),
    "displacement of other masses": (
        ValueError,
        "same n and grading",
        lambda: LINE.displacement_to(
            of.Quantiles.from_quantile(lambda u: u, 8, grading=3.0, dtype=F64)
        ),
        [
            lambda: of.Quantiles.from_quantile(
                lambda u: 2 * u, 8, grading=3.0, dtype=F64
            ).displacement_to(
                of.Quantiles.from_quantile(lambda u: u, 8, grading=3.0, dtype=F64)
            )
        ],
    ),
    "a solver that leaves out words": (
        TypeError,
        r"lacks .*certificate\.certify",
        lambda: step(SQUARE, CLOUD, Silent(complete=False)),
        [lambda: step(SQUARE, CLOUD, Silent(complete=True))],
    ),
    "masses of another sum": (
        ValueError,
        "divide them by their sum.*with_free_weights",
        lambda: bump(4).with_weights(torch.ones(4, dtype=F64)),
        [
            lambda: bump(4).with_weights(torch.ones(4, dtype=F64) / 4),
            lambda: bump(4).with_free_weights(torch.ones(4, dtype=F64)),
        ],
    ),
    "masses of another shape": (
        ValueError,
        r"weights\.reshape\(-1\)",
        lambda: bump(4).with_weights(torch.full((2, 2), 0.25, dtype=F64)),
        [lambda: bump(4).with_weights(torch.full((2, 2), 0.25, dtype=F64).reshape(-1))],
    ),
    "neurons of another dtype": (
        TypeError,
        "dtype of theta",
        lambda: neurons(torch.float64),
        [lambda: neurons(torch.float32)],
    ),
    "a loss of another dtype": (
        of.errors.InvalidFunctional,
        r"use \.to\(f\.dtype\)",
        lambda: loss(lambda y, _: y.double()),
        [lambda: loss(lambda y, f: y.double().to(f.dtype))],
    ),
    "an energy of another dtype": (
        of.errors.InvalidFunctional,
        "dtype of r",
        lambda: of.Internal(lambda r: r * torch.ones(1, dtype=F64)).value(
            bump(dtype=torch.float32)
        ),
        [lambda: of.Internal(lambda r: r * r.new_ones(1)).value(bump(dtype=F64))],
    ),
    "densities out of range": (
        of.errors.NonFinite,
        r"use Entropy\(\) or PowerEntropy",
        lambda: of.Internal(lambda r: r).value(NARROW),
        [lambda: of.Entropy().value(NARROW)],
    ),
    "a logarithm of nothing": (
        ValueError,
        "leave out",
        lambda: of.analysis.observed_order([0.1, 0.05, 0.025], [1.0, 0.5, 0.0]),
        [lambda: of.analysis.observed_order([0.1, 0.05], [1.0, 0.5])],
    ),
    "records fewer than steps": (
        ValueError,
        r"every=1",
        lambda: of.analysis.minimizing_movement(
            of.flow(SQUARE, CLOUD, of.JKO(), dt=0.1, steps=4, every=2)
        ),
        [
            lambda: of.analysis.minimizing_movement(
                of.flow(SQUARE, CLOUD, of.JKO(), dt=0.1, steps=4, every=1)
            )
        ],
    ),
    "a concave energy": (
        (ValueError, of.errors.Unsupported),
        "positive factor",
        lambda: step(-1.0 * of.PowerEntropy(2), bump()),
        [lambda: step(1.0 * of.PowerEntropy(2), bump())],
    ),
    "scaling": (
        ValueError,
        r"try 0\.9",
        lambda: of.metrics.sinkhorn_divergence(CLOUD, CLOUD, blur=1.0, scaling=1.5),
        [lambda: of.metrics.sinkhorn_divergence(CLOUD, CLOUD, blur=1.0, scaling=0.9)],
    ),
    "activation class": (
        TypeError,
        r"write ReLU\(\)",
        lambda: of.meanfield.TwoLayer(torch.nn.ReLU),
        [lambda: of.meanfield.TwoLayer(torch.nn.ReLU())],
    ),
    "too dense for its dtype": (
        of.errors.NonFinite,
        r"use log_density\(\)",
        lambda: of.Gaussian(
            torch.zeros(40, dtype=torch.float32), 1e-4 * torch.eye(40)
        ).density(),
        [
            lambda: of.Gaussian(
                torch.zeros(40, dtype=torch.float32), 1e-4 * torch.eye(40)
            ).log_density()
        ],
    ),
    "a layout that is not dense": (
        TypeError,
        r"use \.to_dense\(\)",
        lambda: of.Particles(normal(3, 2).to_sparse()),
        [lambda: of.Particles(normal(3, 2).to_sparse().to_dense())],
    ),
    "half precision": (
        (TypeError, ValueError),
        r"x\.float\(\)|points\.float\(\)",
        lambda: of.Particles(normal(3, 2).half()),
        [lambda: of.Particles(normal(3, 2).half().float())],
    ),
    "integers": (
        TypeError,
        r"\.double\(\)",
        lambda: of.Particles(torch.arange(6).reshape(3, 2)),
        [lambda: of.Particles(torch.arange(6).reshape(3, 2).double())],
    ),
    "a list": (
        TypeError,
        r"use torch\.tensor",
        lambda: of.Particles([[0.0], [1.0]]),
        [lambda: of.Particles(torch.tensor([[0.0], [1.0]], dtype=torch.float64))],
    ),
    "weights of another sum": (
        ValueError,
        "normalize=True",
        lambda: of.Particles(normal(3, 2), torch.ones(3, dtype=F64)),
        [lambda: of.Particles(normal(3, 2), torch.ones(3, dtype=F64), normalize=True)],
    ),
    "weights of another dtype": (
        TypeError,
        r"\.to\(torch\.float64\)",
        lambda: of.Particles(normal(4, 2), torch.full((4,), 0.25)),
        [lambda: of.Particles(normal(4, 2), torch.full((4,), 0.25).to(torch.float64))],
    ),
    "a seed in place of a generator": (
        TypeError,
        r"use torch\.Generator\(\)\.manual_seed\(0\)",
        lambda: CLOUD.diffuse(0.1, 0),
        [lambda: CLOUD.diffuse(0.1, torch.Generator().manual_seed(0))],
    ),
    "a value that is a number": (
        of.errors.InvalidFunctional,
        r"do not call float\(\)",
        lambda: Own(lambda mu: float(mu.points.sum())).value(CLOUD),
        [lambda: Own(lambda mu: mu.points.sum()).value(CLOUD)],
    ),
    "a value for each atom": (
        of.errors.InvalidFunctional,
        r"mu\.expectation\(f\)",
        lambda: Own(lambda mu: mu.points.sum(-1)).value(CLOUD),
        [lambda: Own(lambda mu: mu.expectation(lambda x: x.sum(-1))).value(CLOUD)],
    ),
    "a detached value": (
        of.errors.InvalidFunctional,
        r"remove \.detach\(\)",
        lambda: Own(lambda mu: mu.points.detach().sum()).velocity(CLOUD),
        [lambda: Own(lambda mu: mu.points.sum()).velocity(CLOUD)],
    ),
    "a functional that writes": (
        of.errors.ModifiedInPlace,
        r"mu\.points\.clone\(\)",
        lambda: Own(lambda mu: mu.points.detach().mul_(2).sum()).value(
            of.Particles(normal(3, 2))
        ),
        [
            lambda: Own(lambda mu: mu.points.clone().mul_(2).sum()).value(
                of.Particles(normal(3, 2))
            )
        ],
    ),
    "a ground function of too many numbers": (
        of.errors.InvalidFunctional,
        r"\.sum\(-1\)",
        lambda: of.Interaction(lambda z: z).value(CLOUD),
        [lambda: of.Interaction(lambda z: z.sum(-1)).value(CLOUD)],
    ),
    "a rule to stop for each atom": (
        (TypeError, ValueError),
        r"\.all\(\)",
        lambda: of.flow(
            SQUARE,
            CLOUD,
            of.ExplicitEuler(),
            dt=0.1,
            steps=2,
            stop=lambda now: now.measure.points > 0,
        ),
        [
            lambda: of.flow(
                SQUARE,
                CLOUD,
                of.ExplicitEuler(),
                dt=0.1,
                steps=2,
                stop=lambda now: bool((now.measure.points > 0).all()),
            )
        ],
    ),
    "a record without a name": (
        TypeError,
        r"record=\{",
        lambda: of.flow(
            SQUARE, CLOUD, of.ExplicitEuler(), dt=0.1, steps=1, record=SQUARE.value
        ),
        [
            lambda: of.flow(
                SQUARE,
                CLOUD,
                of.ExplicitEuler(),
                dt=0.1,
                steps=1,
                record={"size": SQUARE.value},
            )
        ],
    ),
    "a diffusion too fast": (
        ValueError,
        "take a larger m",
        lambda: of.PowerEntropy(0.3).value(SPACE),
        [lambda: of.PowerEntropy(0.5).value(SPACE)],
    ),
    "a density above its bound": (
        of.errors.NonFinite,
        "raise the bound",
        lambda: of.Congestion(1.5).value(bump()),
        [lambda: of.Congestion(float(bump().density().max()) * 1.01).value(bump())],
    ),
    "a bound without room": (
        ValueError,
        "raise the bound or enlarge",
        lambda: of.Congestion(0.5).value(bump()),
        [
            lambda: of.Congestion(10.0).value(bump()),
        ],
    ),
    "a covariance that is not symmetric": (
        ValueError,
        r"0\.5 \* \(covariance \+ covariance\.T\)",
        lambda: of.Gaussian(torch.zeros(2, dtype=F64), SKEW),
        [lambda: of.Gaussian(torch.zeros(2, dtype=F64), 0.5 * (SKEW + SKEW.T))],
    ),
    "few samples of a Gaussian": (
        ValueError,
        "give more than 3 points",
        lambda: of.Gaussian.from_samples(normal(3, 3)),
        [lambda: of.Gaussian.from_samples(normal(4, 3))],
    ),
    "a pole under a quadrature": (
        of.errors.Unsupported,
        "use Quantiles, GridDensity or Particles",
        lambda: of.Interaction(of.kernels.Log()).value(
            of.Gaussian(torch.zeros(1, dtype=F64), torch.eye(1, dtype=F64))
        ),
        [
            lambda: of.Interaction(of.kernels.Log()).value(LINE),
            lambda: of.Interaction(of.kernels.Log()).value(bump()),
            lambda: of.Interaction(of.kernels.Log()).value(CLOUD),
            lambda: of.Interaction(of.kernels.Gaussian(1.0)).value(
                of.Gaussian(torch.zeros(1, dtype=F64), torch.eye(1, dtype=F64))
            ),
        ],
    ),
    "density in an obstacle": (
        ValueError,
        r"multiply it by ~obstacles and normalise",
        lambda: of.GridDensity(FULL, 0, 1, obstacles=WALL, normalize=True),
        [lambda: of.GridDensity(FULL * ~WALL, 0, 1, obstacles=WALL, normalize=True)],
    ),
    "a density of another mass": (
        ValueError,
        "normalize=True",
        lambda: of.GridDensity(2 * FULL, 0, 1, walls=True),
        [lambda: of.GridDensity(2 * FULL, 0, 1, walls=True, normalize=True)],
    ),
    "a picture of big numbers": (
        ValueError,
        "divide it by its maximum",
        lambda: of.GridDensity.from_image(PICTURE, invert=True),
        [lambda: of.GridDensity.from_image(PICTURE / PICTURE.max(), invert=True)],
    ),
    "a step above the limit of the grid": (
        of.errors.Diverged,
        r"or use JKO\(\)",
        lambda: euler(STEEP, bump(), dt=1.0),
        [lambda: step(STEEP, bump(), dt=1.0)],
    ),
    "edges out of order": (
        ValueError,
        "sort them",
        lambda: of.Quantiles(torch.tensor([0.0, 2.0, 1.0], dtype=F64)),
        [lambda: of.Quantiles(torch.tensor([0.0, 2.0, 1.0], dtype=F64).sort().values)],
    ),
    "a distance of weighted clouds by index": (
        ValueError,
        r"use otflow\.metrics\.transport_plan",
        lambda: HEAVY.displacement_to(of.Particles(normal(4, 2, seed=1))),
        [lambda: of.metrics.transport_plan(HEAVY, CLOUD)],
    ),
    "a Gaussian in a distance of clouds": (
        TypeError,
        r"Particles\(mu\.sample\(2000, generator\)\)",
        lambda: of.metrics.sinkhorn_divergence(STANDARD, STANDARD, blur=0.5),
        [
            lambda: of.metrics.sinkhorn_divergence(
                of.Particles(STANDARD.sample(50, torch.Generator())), CLOUD, blur=0.5
            )
        ],
    ),
    "congestion of a Gaussian": (
        of.errors.Unsupported,
        r"PowerEntropy\(m\) with a large m",
        lambda: step(SQUARE + of.Congestion(9.0), STANDARD),
        [lambda: step(SQUARE + of.PowerEntropy(8.0), STANDARD)],
    ),
    "walls inside of the measure": (
        ValueError,
        "start inside of the walls",
        lambda: step(SQUARE, LINE, of.proximal.QuantileProximal(lower=-0.5)),
        [lambda: step(SQUARE, LINE, of.proximal.QuantileProximal(lower=-1.5))],
    ),
    "a density wider than its walls": (
        ValueError,
        "raise the bound or widen the walls",
        lambda: step(
            of.Congestion(0.4),
            LINE,
            of.proximal.QuantileProximal(lower=-1.1, upper=1.1),
        ),
        [
            lambda: step(
                of.Congestion(0.6),
                LINE,
                of.proximal.QuantileProximal(lower=-1.1, upper=1.1),
            ),
        ],
    ),
    "a blur too small": (
        ValueError,
        "take at least",
        lambda: step(SQUARE, bump(), of.proximal.GridSinkhorn(eps=1e-6)),
        [lambda: step(SQUARE, bump(), of.proximal.GridSinkhorn(eps=1e-3))],
    ),
    "a blur too large": (
        ValueError,
        "take at most",
        lambda: step(SQUARE, bump(), of.proximal.GridSinkhorn(eps=1.0)),
        [lambda: step(SQUARE, bump(), of.proximal.GridSinkhorn(eps=1e-3), dt=0.1)],
    ),
    "order 2 under congestion": (
        of.errors.Unsupported,
        "use order=1, or PowerEntropy",
        lambda: of.flow(
            SQUARE + of.Congestion(9.0), bump(), of.JKO(order=2), dt=0.01, steps=1
        ),
        [
            lambda: of.flow(
                SQUARE + of.Congestion(9.0), bump(), of.JKO(order=1), dt=0.01, steps=1
            )
        ],
    ),
    "noise of a negative temperature": (
        (ValueError, of.errors.Unsupported),
        r"minimise \+ temperature",
        lambda: of.flow(
            SQUARE + -0.5 * of.Entropy(),
            CLOUD,
            of.Langevin(),
            dt=0.1,
            steps=1,
            generator=0,
        ),
        [
            lambda: of.flow(
                SQUARE + 0.5 * of.Entropy(),
                CLOUD,
                of.Langevin(),
                dt=0.1,
                steps=1,
                generator=0,
            )
        ],
    ),
    "clouds of other sizes up to rotation": (
        ValueError,
        "use aligned_networks, which splits them, and quotient_distance",
        lambda: of.metrics.best_matching(normal(3, 2), normal(4, 2)),
        [
            lambda: of.metrics.aligned_networks(normal(3, 2), normal(4, 2)),
            lambda: of.metrics.quotient_distance(normal(3, 2), normal(4, 2)),
        ],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_cures_that_an_error_names_work(case):
    check_cures(CASES[case])
