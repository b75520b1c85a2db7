"""The trapezoidal JKO on grids, half a transport and half a proximal step: order 2."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.analysis import observed_order
from tests.exact_densities import barenblatt, barenblatt_scale
from tests.exact_gaussians import fokker_planck, gaussian_cells


def errors(F, start, end, order, steps, t):
    """Return the L1 errors at time t for these numbers of steps."""
    found = []
    for k in steps:
        final = of.flow(F, start, of.JKO(order=order), dt=t / k, steps=k).final
        found.append(float((final.weights - end.weights).abs().sum()))
    return found


def profiles(d, n, t):
    """Return a Barenblatt profile on a grid, now and at time t."""
    for scale in (0.5, barenblatt_scale(2, d, 0.5, t)):
        cells = barenblatt(2, d, scale).cells(-1.5, 1.5, (n,) * d)
        yield of.GridDensity(cells, -1.5, 1.5, normalize=True)


@pytest.mark.slow
@pytest.mark.parametrize(("d", "n"), [(1, 600), (2, 128)])
def test_the_porous_medium_with_its_moving_front(d, n):
    start, end = profiles(d, n, 0.1)
    steps = (2, 4, 8, 16)
    for order, least in ((1, 0.2), (2, 0.1)):
        found = errors(of.PowerEntropy(2), start, end, order, steps, 0.1)
        observed = observed_order([0.1 / k for k in steps[1:]], found[1:])
        assert observed == pytest.approx(order, abs=least)
    assert found[-1] < 4e-3


def test_fokker_planck_on_the_line():
    t, one = 0.4, torch.ones(1, dtype=torch.float64)
    mean, covariance = fokker_planck(
        0.6 * one, 0.5 * one[:, None], t, A=one[:, None], b=0 * one
    )
    start, end = (
        of.GridDensity(gaussian_cells(m, s, -5, 5, (400,)), -5, 5, normalize=True)
        for m, s in ((0.6 * one, 0.5 * one), (mean, covariance.diagonal()))
    )
    F = of.KL(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
    steps = (2, 4, 8)
    found = errors(F, start, end, 2, steps, t)
    assert observed_order([t / k for k in steps], found) == pytest.approx(2, abs=0.15)
    assert found[-1] < 0.05 * errors(F, start, end, 1, steps[-1:], t)[0]
