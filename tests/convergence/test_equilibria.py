"""Minimisers, and the rates at which JKO steps go to them.

Of a lam-convex F a step brings W2 to the minimiser down by 1 + lam dt, and the excess
F - min F by its square, whatever the start.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

import otflow as of
from tests import exact

F64: dict[str, Any] = {"dtype": torch.float64}
LAM, DT = 1.5, 0.2


def bimodal(s):
    """Return a quantile function of two bumps, far from every minimiser here."""
    return 1.2 * torch.sign(s - 0.5) * (2 * (s - 0.5).abs()).sqrt() + 0.2 * s + 0.3


def excess(run, least):
    """Return F - least along a run."""
    return run.records["energy"] - least


ENERGIES = {
    "entropy": of.Entropy(),
    "power 2": of.PowerEntropy(2.0),
    "power 3": of.PowerEntropy(3.0),
    "power 0.8": of.PowerEntropy(0.8),
    "two powers": of.PowerEntropy(2.0) + 0.3 * of.Entropy(),
    "user": of.Internal(lambda r: r * (1 + r), modulus=0.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ENERGIES)
def test_the_excess_falls_at_least_at_the_rate_of_the_modulus(name):
    """On quantiles, whose metric is flat; the minimiser is that of the same cells."""
    F = exact.quadratic(LAM) + ENERGIES[name]
    modulus = F.modulus(1)
    assert modulus == LAM
    mu = of.Quantiles.from_quantile(bimodal, 100, **F64)
    least = of.flow(F, mu, of.JKO(), dt=1.0, steps=40).final
    run = of.flow(F, mu, of.JKO(), dt=DT, steps=8)
    gap = excess(run, F.value(least))
    assert float(gap[-1]) > 1e-9
    assert bool((gap[1:] <= gap[:-1] / (1 + LAM * DT) ** 2 * (1 + 1e-9)).all())
    # In the metric of the steps the distance contracts too.
    distance = [float(nu.norm(nu.displacement_to(least))) for nu in run.snapshots]
    for before, after in pairwise(distance):
        assert after <= before / (1 + LAM * DT) * (1 + 1e-9)


@pytest.mark.parametrize("d", [1, 3])
def test_gaussians_contract_to_their_minimiser(d):
    A, b = exact.spd(d, seed=2, lower=LAM, upper=4.0), torch.ones(d, **F64)
    F = exact.quadratic_form(A, b) + 0.7 * of.Entropy()
    rest = exact.fokker_planck_rest(A, b, 0.7)
    lam = F.modulus(d)
    assert lam is not None
    mu = of.Gaussian(torch.zeros(d, **F64), exact.spd(d, seed=5))
    run = of.flow(F, mu, of.JKO(), dt=DT, steps=10)
    distance = [exact.gaussian_w2(g.mean, g.covariance, *rest) for g in run.snapshots]
    for before, after in pairwise(distance):
        assert after <= before / (1 + lam * DT) + 1e-7
    least = exact.fokker_planck_energy(*rest, A=A, b=b, temperature=0.7)
    gap = excess(run, least)
    assert bool((gap[1:] <= gap[:-1] / (1 + lam * DT) ** 2 + 1e-13).all())


@pytest.mark.parametrize("m", [1.5, 2.0, 3.0])
def test_the_porous_medium_rests_in_a_quadratic_potential(m):
    """(C - (m-1) lam |x|^2 / 2m)_+^{1/(m-1)}, on quantiles and on a grid."""
    F = of.PowerEntropy(m) + exact.quadratic(LAM)
    R = exact.barenblatt_rest(m, 1, LAM)
    profile = exact.barenblatt(m, 1, R)
    least = exact.barenblatt_energy(m, 1, R, LAM)
    mu = of.Quantiles.from_quantile(bimodal, 400, **F64)
    final = of.flow(F, mu, of.JKO(), dt=1.0, steps=30).final
    assert float(F.value(final)) == pytest.approx(least, rel=2e-3)
    levels = torch.linspace(0, 1, 401, **F64)
    gap = (profile.quantile(levels) - final.edges)[:, None]
    assert float(final.norm(gap)) < 1e-2 * R
    cells = exact.gaussian_cells(
        torch.tensor([0.3], **F64), torch.tensor([0.05], **F64), -2.0, 2.0, (200,)
    )
    grid = of.GridDensity(cells, -2.0, 2.0, normalize=True)
    end = of.flow(F, grid, of.JKO(), dt=1.0, steps=15).final
    assert float(F.value(end)) == pytest.approx(least, rel=1e-3)
    error = (end.grid - profile.cells(-2.0, 2.0, (200,))).abs().mean() * 4
    assert float(error) < 5e-3


def test_the_porous_medium_rests_in_the_plane():
    F = of.PowerEntropy(2.0) + exact.quadratic(LAM)
    R = exact.barenblatt_rest(2.0, 2, LAM)
    mu = of.GridDensity.from_function(
        lambda x: torch.exp(-4 * (x - 0.3).square().sum(-1)), -2, 2, (48, 48), **F64
    )
    run = of.flow(F, mu, of.JKO(), dt=1.0, steps=20)
    expected = exact.barenblatt(2.0, 2, R).cells(-2.0, 2.0, (48, 48))
    assert float((run.final.grid - expected).abs().mean()) * 16 < 1e-2
    least = exact.barenblatt_energy(2.0, 2, R, LAM)
    gap = excess(run, least)
    assert float(gap[-1].abs()) < 1e-3 * least
    early = gap[:3]  # later the error in space is all that is left
    assert bool((early[1:] <= early[:-1] / (1 + LAM) ** 2).all())
