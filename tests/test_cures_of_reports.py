"""Cures of reports on a run by a functional that has another entropy."""

from __future__ import annotations

import pytest

import otflow as of
from otflow.analysis import certify
from otflow.errors import InvalidFunctional
from otflow.testing.clouds import normal
from tests.cures import check_cures

SPRING = of.Potential(lambda x: 0.5 * x.square().sum(-1))
HOT = SPRING + 0.1 * of.Entropy()
CASES = {
    "a report without the entropy of the run": (
        InvalidFunctional,
        r"took F to hold 0\.1 \* Entropy\(\), .* holds 0 \* Entropy\(\); pass the func",
        lambda: certify(noisy(), SPRING),
        [lambda: certify(noisy(), HOT)],
    ),
}


def noisy():
    cloud = of.Particles(normal(5, 2))
    return of.flow(HOT, cloud, of.Langevin(), dt=0.1, steps=2, generator=0)


@pytest.mark.parametrize("name", CASES)
def test_the_cure_works(name):
    check_cures(CASES[name])
