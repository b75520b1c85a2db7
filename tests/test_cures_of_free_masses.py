"""Cures of functionals and measures of free mass that do not fit one another."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.functionals import Lifted
from otflow.kernels import Gaussian
from otflow.measures import ConicParticles
from tests.cures import Case, check_cures

F64 = torch.float64
GENERATOR = torch.Generator().manual_seed(0)
NU = of.Particles(torch.randn(5, 1, generator=GENERATOR, dtype=F64))
K = Gaussian(0.7)
PLACES = torch.linspace(-1.0, 1.0, 6, dtype=F64)[:, None]
MASSES = torch.tensor([0.2, 0.9, 0.4, 0.1, 1.3, 0.6], dtype=F64)
PAIRS = of.Interaction(K)
NORM = PAIRS - of.Potential(lambda x: NU.convolve(K, x))


def conic(*, signs=1.0):
    return ConicParticles.of_masses(PLACES, MASSES * signs)


def go(F, mu, scheme=None):
    return of.flow(F, mu, scheme or of.ExplicitEuler(), dt=0.1, steps=2)


MIXED = torch.tensor([1.0, 1.0, -1.0, 1.0, 1.0, 1.0], dtype=F64)

CASES: dict[str, Case] = {
    "negative masses that would count as positive": (
        ValueError,
        r"take Lifted\(F, \.\.\., signed=True\), or start from positive masses",
        lambda: go(Lifted(PAIRS), conic(signs=MIXED)),
        [
            lambda: go(Lifted(PAIRS, signed=True), conic(signs=MIXED)),
            lambda: go(Lifted(PAIRS), conic()),
        ],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_cure_works(case):
    check_cures(case)


def test_a_kernel_distance_by_its_terms_is_its_square_up_to_a_constant():
    """Against sums over all pairs, for two measures of different masses."""

    def gram(x, y):
        return torch.exp(-((x - y.T) ** 2) / (2 * 0.7**2))

    def half_square(m):
        x = torch.cat([PLACES, NU.points])
        s = torch.cat([m, -NU.weights])
        return 0.5 * s @ gram(x, x) @ s

    F = Lifted(NORM)
    one, two = (ConicParticles.of_masses(PLACES, m) for m in (MASSES, 3 * MASSES))
    found = F(two) - F(one)
    torch.testing.assert_close(found, half_square(3 * MASSES) - half_square(MASSES))


@pytest.mark.parametrize(
    "scheme", [of.ExplicitEuler(), of.JKO(), of.BirthDeath()], ids=repr
)
def test_every_scheme_and_verb_sees_the_signs(scheme):
    mu, F = conic(signs=MIXED), Lifted(PAIRS)
    with pytest.raises(ValueError, match="negative masses"):
        go(F, mu, scheme)
    for verb in (F.value, F.velocity, F.first_variation, F.value_and_derivatives):
        with pytest.raises(ValueError, match="negative masses"):
            verb(mu)
    # Laws in the Euclidean metric cross 0, where both roots have one mass.
    go(F, mu.law, of.ExplicitEuler())
