"""Keller-Segel: no closed form, but the second moment is known; so are blow-ups."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import otflow as of
from otflow.analysis import observed_order
from tests import exact

F64: dict[str, Any] = {"dtype": torch.float64}


def second(mu):
    return float(mu.expectation(lambda x: x.square().sum(-1)))


def attraction(strength):
    """Return entropy and the attraction a log|z|; `kernels.Log` is -log|z|."""
    return of.Entropy() + -strength * of.Interaction(of.kernels.Log())


def plane(n, variance=0.3):
    """Return a Gaussian on n x n cells."""
    cells = exact.gaussian_cells(
        torch.zeros(2, **F64), torch.tensor([variance, variance], **F64), -4, 4, (n, n)
    )
    return of.GridDensity(cells, -4.0, 4.0, normalize=True)


def moment_error(n, strength, tau=0.02, steps=4):
    """Return how far the moment after some JKO steps is from the exact one."""
    run = of.flow(attraction(strength), plane(n), of.JKO(), dt=tau, steps=steps)
    assert all(info["converged"] for info in run.info)
    expected = second(run.snapshots[0])
    for info in run.info:
        expected = exact.log_moment_jko(expected, tau, info["w2"], 2, strength)
    return abs(second(run.final) - expected)


@pytest.mark.parametrize("strength", [1.0, 4.0, 5.0])
def test_the_second_moment_in_the_plane_is_that_of_the_virial(strength):
    """Masses 2 pi, the critical 8 pi, and 10 pi, before the blow-up."""
    sizes = (32, 64)
    found = [moment_error(n, strength) for n in sizes]
    assert observed_order([1 / n for n in sizes], found) > 1.8
    assert found[-1] < 5e-3


def test_mass_decides_between_spreading_and_blow_up():
    """The moment grows below the critical mass 8 pi, a = 4, and falls above it."""
    mu = plane(48)
    rates = []
    for strength in (2.0, 6.0):
        run = of.flow(attraction(strength), mu, of.JKO(), dt=0.01, steps=3)
        rates.append((second(run.final) - second(mu)) / 0.03)
        assert bool((run.records["energy"].diff() < 0).all())
    assert rates == pytest.approx([2.0, -2.0], abs=0.35)


# The modified model on the line -------------------------------------------------------


def line_error(n, chi, tau=0.02, steps=5):
    """Return the error of the moment on n quantiles; W = 2 chi log|x|, unit mass."""
    mu = of.Quantiles.from_quantile(torch.special.ndtri, n, **F64)
    run = of.flow(attraction(2 * chi), mu, of.JKO(), dt=tau, steps=steps)
    assert all(info["converged"] for info in run.info)
    expected = second(mu)
    for info in run.info:
        expected = exact.log_moment_jko(expected, tau, info["w2"], 1, 2 * chi)
    return second(run.final) - expected


@pytest.mark.parametrize("chi", [0.0, 0.5, 1.0])
def test_the_second_moment_on_the_line_is_that_of_the_virial(chi):
    assert abs(line_error(60, chi)) < 1e-10


@pytest.mark.slow
def test_quantiles_know_the_critical_strength():
    """At chi = 1 the flow keeps the moment; JKO steps lose W2^2 each, O(tau) in all."""
    mu = of.Quantiles.from_quantile(torch.special.ndtri, 40, **F64)
    lost = []
    for tau in (0.1, 0.05, 0.025):
        run = of.flow(attraction(2.0), mu, of.JKO(), dt=tau, steps=round(0.2 / tau))
        lost.append(second(mu) - second(run.final))
    assert min(lost) > 0
    assert observed_order([0.1, 0.05, 0.025], lost) == pytest.approx(1, abs=0.1)
