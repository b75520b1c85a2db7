"""Cures of curvatures along geodesics, and of refuted moduli."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import otflow as of
from otflow.analysis import displacement_convexity, falsify
from otflow.testing.clouds import normal
from tests.cures import Case, check_cures
from tests.measures.intervals import Intervals

F64 = torch.float64
CLOUD, OTHER = (of.Particles(normal(5, 2, seed=k)) for k in (0, 1))
STANDARD = of.Gaussian(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64))
STEPS = [Intervals(s * torch.linspace(-1, 1, 5, dtype=F64)) for s in (1, 2, 3)]
WELL = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
POINTS: Any = CLOUD.points
ODD: Any = STANDARD


def plane():
    rho = torch.ones(6, 6, dtype=F64)
    return of.GridDensity(rho, 0, 1, walls=True, normalize=True)


def atoms(mu):
    return of.Particles(mu.points, mu.weights)


def cosine(modulus):
    return of.Potential(lambda x: (3 * x).cos().sum(-1), modulus=modulus)


def hill(modulus):
    return of.Potential(lambda x: -(x - 0.1).abs().sum(-1), modulus=modulus)


def search(F, like=CLOUD, **options):
    return falsify(F, like, **{"evaluations": 60} | options)


def proposed(F):
    """Return the modulus that the message about F proposes."""
    with pytest.raises(of.errors.InvalidFunctional) as caught:
        search(F).raise_if_refuted()
    found = re.search(r"take a modulus of at most (\S+), or None$", str(caught.value))
    assert found is not None
    return float(found[1])


CASES: dict[str, Case] = {
    "a base of another kind": (
        TypeError,
        r"got Gaussian, Particles and Particles; take Particles\(.*\) for all$",
        lambda: displacement_convexity(WELL, CLOUD, OTHER, base=ODD),
        [lambda: displacement_convexity(WELL, CLOUD, OTHER, base=atoms(ODD))],
    ),
    "a base of a representation without plans": (
        of.errors.Unsupported,
        r"not Intervals; leave the base out$",
        lambda: displacement_convexity(of.Entropy(), *STEPS[:2], base=STEPS[2]),
        [lambda: displacement_convexity(of.Entropy(), *STEPS[:2])],
    ),
    "points in place of a base": (
        TypeError,
        r"base must be",
        lambda: displacement_convexity(WELL, CLOUD, OTHER, base=POINTS),
        [lambda: displacement_convexity(WELL, CLOUD, OTHER, base=of.Particles(POINTS))],
    ),
    "a search in the plane": (
        of.errors.Unsupported,
        r"no search among measures like .* take Particles\(mu\.points, mu\.weights\)$",
        lambda: search(WELL, plane()),
        [lambda: search(WELL, atoms(plane()))],
    ),
    "a search for a function": (
        TypeError,
        r"of a function V of points make Potential\(V\)",
        lambda: search(WELL.V),
        [lambda: search(of.Potential(WELL.V))],
    ),
    "a modulus that is refuted": (
        of.errors.InvalidFunctional,
        r"curvature -\d.*; take a modulus of at most -\d\S*, or None$",
        lambda: search(cosine(-1.0)).raise_if_refuted(),
        [
            lambda: search(cosine(-9.0)).raise_if_refuted(),
            lambda: search(cosine(None), CLOUD).functional,
        ],
    ),
    "a modulus that the first curvature refutes": (
        of.errors.InvalidFunctional,
        r"; search without first=True for the least curvature, or take None$",
        lambda: search(cosine(-1.0), first=True).raise_if_refuted(),
        [
            lambda: search(cosine(-9.0)).raise_if_refuted(),
            lambda: search(cosine(None), first=True).functional,
        ],
    ),
    "a modulus over a concave kink": (
        of.errors.InvalidFunctional,
        r"over a concave kink or a pole.*; leave the modulus out: over a concave",
        lambda: search(hill(-3.0)).raise_if_refuted(),
        [lambda: search(hill(None)).functional],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_cure_works(name):
    check_cures(CASES[name])


@pytest.mark.parametrize("k", [1 / 3, 0.7, 3.0, 1e3])
def test_the_proposed_modulus_is_not_refuted(k):
    def F(modulus):
        return of.Potential(lambda x: -k * x.square().sum(-1), modulus=modulus)

    least = proposed(F(1.0))
    assert -2 * k * (1 + 1e-6) < least < -2 * k
    assert not search(F(least)).refuted
