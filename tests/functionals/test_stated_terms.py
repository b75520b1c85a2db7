"""Whoever takes a functional apart tries its terms against its value."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow import optimality
from otflow.meanfield import PathBall, Risk, TwoLayer, VariationBall

F64 = torch.float64
MU = of.Particles(torch.tensor([[0.9], [-0.2]], dtype=F64))
RHO = of.GridDensity(torch.full((20,), 0.25, dtype=F64), -2.0, 2.0, walls=True)
CELLS = of.Quantiles(torch.linspace(-1, 1, 9, dtype=F64))
PLAIN = of.Potential(lambda x: x.square().sum(-1), modulus=2.0) + of.Interaction(
    of.kernels.Gaussian(0.5)
)
X = torch.linspace(-1, 1, 5, dtype=F64)[:, None]
NEURONS = of.Particles(torch.tensor([[0.3, 0.5, 0.1], [-0.2, 0.4, 0.2]], dtype=F64))
RISK = Risk(TwoLayer("relu"), X, X[:, 0].square())


class Multiple(of.Functional):
    """Five times a functional, whose terms tell another factor."""

    def __init__(self, F, told):
        self.F, self.told = F, told

    def value(self, mu):
        return 5 * self.F.value(mu)

    def terms(self):
        return tuple((self.told * c, term) for c, term in self.F.terms())

    def mixture_curvature(self):
        return self.F.mixture_curvature()


def warm(told):
    return Multiple(PLAIN, told) + 0.1 * of.Entropy()


def run_of(F, mu, scheme):
    return of.flow(F, mu, scheme, dt=0.1, steps=1, generator=0)


USES = {
    "gap": lambda told: optimality.optimality_gap(
        Multiple(PLAIN, told), MU, optimality.BoxDomain(-2, 2)
    ),
    "gap of a grid": lambda told: optimality.optimality_gap(
        Multiple(PLAIN, told), RHO, optimality.OnGrid()
    ),
    "gap of a warm grid": lambda told: optimality.optimality_gap(
        warm(told), RHO, optimality.OnGrid()
    ),
    "entropic gap": lambda told: optimality.entropic_gap(warm(told), RHO),
    "bracket": lambda told: optimality.entropic_bracket(warm(told), RHO, RHO),
    "gibbs": lambda told: optimality.gibbs(warm(told), RHO),
    "path ball": lambda told: optimality.optimality_gap(
        Multiple(RISK, told), NEURONS, PathBall(2.0)
    ),
    "variation ball": lambda told: optimality.optimality_gap(
        Multiple(RISK, told), NEURONS, VariationBall(2.0, -1.0, 1.0)
    ),
    "JKO of particles": lambda told: run_of(Multiple(PLAIN, told), MU, of.JKO()),
    "JKO of a grid": lambda told: run_of(warm(told), RHO, of.JKO()),
    "JKO of quantiles": lambda told: run_of(warm(told), CELLS, of.JKO()),
    "Langevin": lambda told: run_of(warm(told), MU, of.Langevin()),
    "SVGD": lambda told: run_of(
        warm(told), MU, of.schemes.SVGD(of.kernels.Gaussian(1.0))
    ),
}


@pytest.mark.parametrize("use", USES)
def test_terms_that_do_not_sum_to_the_value_raise(use):
    with pytest.raises((ValueError, of.errors.InvalidFunctional), match="terms of"):
        USES[use](1.0)
    USES[use](5.0)
