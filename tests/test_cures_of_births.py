"""Cures of births and deaths that do not fit, and of measures of free mass."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.errors import CollapseWarning, Diverged, Unsupported
from otflow.functionals import Lifted
from otflow.measures import ConicParticles
from tests.cures import Case, check_cures

F64 = torch.float64
DOTS = of.Particles(torch.linspace(-2, 2, 9, dtype=F64)[:, None])
WELL = of.Potential(lambda x: x.square().sum(-1))
# Two wells of one depth: the reaction keeps both.
BASINS = of.Potential(lambda x: (x.square().sum(-1) - 1).square())
CELLS = of.Quantiles(torch.linspace(-1, 1, 9, dtype=F64))
BELL = of.Gaussian(torch.zeros(1, dtype=F64), torch.eye(1, dtype=F64))


def grid(n=20):
    return of.GridDensity.from_function(
        lambda x: torch.exp(-x.square().sum(-1)),
        lower=-4.0,
        upper=4.0,
        shape=(n,),
        dtype=F64,
        walls=True,
    )


def go(scheme, mu=DOTS, F=WELL, dt=0.1, steps=2):
    return of.flow(F, mu, scheme, dt=dt, steps=steps, generator=0)


def one_step(mu, scheme):
    return scheme.step(WELL, mu, 0.1, False, torch.Generator().manual_seed(0))


def live():
    return of.Particles(DOTS.points.clone().requires_grad_())


def conic(*rows):
    return ConicParticles(torch.tensor(rows, dtype=F64))


def _parts(law):
    return law.points, law.weights


FLAT = of.Potential(lambda x: x[:, 0])
X2 = torch.tensor([[0.0], [1.0]], dtype=F64)

CASES: dict[str, Case] = {
    "a reaction too fast for its step": (
        Diverged,
        "left one of 9 points in one step.*take a smaller dt, or a smaller rate",
        lambda: go(of.BirthDeath(100.0), dt=1.0),
        [
            lambda: go(of.BirthDeath(100.0), dt=1e-3),
            lambda: go(of.BirthDeath(0.1), dt=1.0),
        ],
    ),
    "one atom that holds nearly all": (
        CollapseWarning,
        r"of the mass.*smaller rate or fewer steps, or births elsewhere, BirthDeath",
        lambda: go(of.BirthDeath(2.0), steps=150),
        [
            lambda: go(of.BirthDeath(0.2), steps=150),
            lambda: go(of.BirthDeath(2.0), steps=9),
            lambda: go(of.BirthDeath(2.0, prior=BELL), steps=150, F=BASINS),
        ],
    ),
    "jumps without atoms": (
        Unsupported,
        r"replaces atoms of Particles, .* is GridDensity.*; leave jumps out, or start",
        lambda: go(of.BirthDeath(jumps=True), grid()),
        [
            lambda: go(of.BirthDeath(), grid()),
            lambda: go(
                of.BirthDeath(jumps=True),
                of.Particles(grid().sample(9, torch.Generator())),
            ),
        ],
    ),
    "births without atoms": (
        Unsupported,
        r"BirthDeath\(\.\.\., prior=\.\.\.\) replaces atoms .* is Quantiles",
        lambda: go(of.BirthDeath(prior=BELL), CELLS),
        [
            lambda: go(
                of.BirthDeath(prior=BELL),
                of.Particles(CELLS.sample(9, torch.Generator())),
            )
        ],
    ),
    "a graph": (
        Unsupported,
        r"which atoms are replaced has no derivative.*mu\.detach\(\)",
        lambda: one_step(live(), of.BirthDeath(jumps=True)),
        [lambda: one_step(live().detach(), of.BirthDeath(jumps=True))],
    ),
    "a prior of atoms on a grid": (
        Unsupported,
        "births on a grid have a density as prior.*a GridDensity on the same grid",
        lambda: go(of.BirthDeath(prior=BELL), grid()),
        [lambda: go(of.BirthDeath(prior=grid()), grid())],
    ),
    "a prior of another dimension": (
        ValueError,
        "prior has the dimension 1 and the measure 2; give a prior over points of 2",
        lambda: go(of.BirthDeath(prior=BELL), of.Particles(torch.ones(3, 2).double())),
        [
            lambda: go(
                of.BirthDeath(
                    prior=of.Gaussian(torch.zeros(2).double(), torch.eye(2).double())
                ),
                of.Particles(torch.eye(2).double()),
            )
        ],
    ),
    "a sampler as prior": (
        TypeError,
        r"prior must be.*give draws of it as Particles\(draws\)",
        lambda: of.BirthDeath(prior=torch.randn),
        [lambda: of.BirthDeath(prior=of.Particles(torch.randn(9, 1)))],
    ),
    "rows of one number": (
        ValueError,
        r"rows \(root, place\).*make them by ConicParticles\.of_masses",
        lambda: ConicParticles(X2),
        [lambda: ConicParticles.of_masses(X2, X2[:, 0] + 1)],
    ),
    "a root of zero": (
        ValueError,
        "a root is below 1e-140.*leave it out, or give it a small root",
        lambda: conic([0.0, 1.0], [1.0, 2.0]),
        [lambda: conic([1.0, 2.0]), lambda: conic([1e-3, 1.0], [1.0, 2.0])],
    ),
    "a mass of zero": (
        ValueError,
        "finite numbers other than 0; leave such atoms out",
        lambda: ConicParticles.of_masses(X2, X2[:, 0]),
        [lambda: ConicParticles.of_masses(X2[1:], X2[1:, 0])],
    ),
    "a displacement between signs": (
        ValueError,
        r"equal signs of roots; compare the laws by otflow\.metrics\.transport_plan",
        lambda: conic([1.0, 0.0]).displacement_to(conic([-1.0, 0.0])),
        [
            lambda: of.metrics.transport_plan(
                conic([1.0, 0.0]).law, conic([-1.0, 0.0]).law
            )
        ],
    ),
    "a mixture of two metrics": (
        ValueError,
        r"mix the laws, mu\.law\.mix\(nu\.law, share\), and give the result its own",
        lambda: conic([1.0, 0.0]).mix(
            ConicParticles.of_masses(X2, X2[:, 0] + 1, alpha=0.1), 0.5
        ),
        [
            lambda: ConicParticles(
                *_parts(
                    conic([1.0, 0.0]).law.mix(
                        ConicParticles.of_masses(X2, X2[:, 0] + 1, alpha=0.1).law, 0.5
                    )
                )
            )
        ],
    ),
    "noise in roots": (
        Unsupported,
        r"noise would change the signs of roots; take mu\.law, of Particles",
        lambda: conic([1.0, 0.0]).diffuse(0.1, torch.Generator()),
        [lambda: conic([1.0, 0.0]).law.diffuse(0.1, torch.Generator())],
    ),
    "a density of atoms": (
        Unsupported,
        "a sum of Diracs is singular; internal energies need a density, as GridDensity",
        lambda: conic([1.0, 0.0]).density(),
        [lambda: grid().density()],
    ),
    "a distance of probabilities between free masses": (
        Unsupported,
        r"take a Risk, or half .* by its terms, Interaction\(k\) \+ Potential\(V\)",
        lambda: Lifted(of.MMDTo(X2, of.kernels.Gaussian(1.0))),
        [
            lambda: Lifted(
                of.Interaction(of.kernels.Gaussian(1.0))
                + of.Potential(
                    lambda x: -of.kernels.Gaussian(1.0)(x[:, None] - X2).mean(1)
                )
            ).value(ConicParticles.of_masses(X2, X2[:, 0] + 1)),
            lambda: Lifted(
                of.meanfield.Risk(
                    of.meanfield.CustomLayer(lambda X, x: torch.tanh(X @ x.T)),
                    X2,
                    X2[:, 0],
                )
            ).value(ConicParticles.of_masses(X2, X2[:, 0] + 1)),
        ],
    ),
    "a lifted functional of places alone": (
        ValueError,
        r"laws of points \(root, place\).*make them by measures\.ConicParticles",
        lambda: Lifted(FLAT).value(DOTS),
        [
            lambda: Lifted(FLAT).value(
                ConicParticles.of_masses(DOTS.points, DOTS.weights)
            )
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_cure_cures(name):
    check_cures(CASES[name])
