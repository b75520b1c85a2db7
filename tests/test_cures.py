"""A cure that an error names works: what is wrong is tried, then each of its cures."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.proximal.certificate import certify
from tests.clouds import normal

F64 = torch.float64
SQUARE = of.Potential(lambda x: x.square().sum(-1))
CLOUD = of.Particles(normal(5, 2))
LINE = of.Quantiles(torch.linspace(-1, 1, 9, dtype=F64))
NARROW = of.Gaussian(torch.zeros(60, dtype=F64), 1e-12 * torch.eye(60, dtype=F64))
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
        )
        certificate = words if self.complete else {"converged": True}
        return of.proximal.ProxResult(mu, None, 1, 0.0, certificate)


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


CASES = {
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
            lambda: step(of.Entropy(), HALF_EMPTY, dt=1e-3),
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
}


@pytest.mark.parametrize("case", CASES)
def test_the_cures_that_an_error_names_work(case):
    kind, words, wrong, cures = CASES[case]
    with pytest.raises(kind, match=words):
        wrong()
    for cure in cures:
        cure()
