"""The exact solutions are themselves checked, each against its defining equation."""

from __future__ import annotations

import math

import pytest
import torch

from tests import exact


@pytest.mark.parametrize(("kappa", "lam"), [(0.5, 1.0), (2.0, 0.3), (1.0, 0.0)])
def test_breathing_solves_its_equation(kappa, lam):
    h, t, c0 = 1e-5, 0.7, 1.9
    before, c, after = (exact.breathing(c0, t + k * h, kappa, lam) for k in (-1, 0, 1))
    assert (after - before) / (2 * h) == pytest.approx(kappa / c - lam * c, rel=1e-8)
    assert exact.breathing(c0, 0.0, kappa, lam) == pytest.approx(c0, rel=1e-15)


@pytest.mark.parametrize(("kappa", "lam"), [(0.5, 1.0), (2.0, 0.3), (1.0, 0.0)])
def test_breathing_schemes_solve_their_equations(kappa, lam):
    c, tau = 0.4, 0.3
    implicit = exact.breathing_jko(c, tau, 1, kappa, lam)
    assert (implicit - c) / tau == pytest.approx(kappa / implicit - lam * implicit)
    explicit = exact.breathing_euler(c, tau, 1, kappa, lam)
    assert (explicit - c) / tau == pytest.approx(kappa / c - lam * c)
    end = exact.breathing(c, 1.0, kappa, lam)
    for scheme in (exact.breathing_jko, exact.breathing_euler):
        assert scheme(c, 1e-5, 100_000, kappa, lam) == pytest.approx(end, rel=1e-4)


@pytest.mark.parametrize("n", [2, 7, 40])
def test_hermite_zeros_balance(n):
    h = exact.hermite_zeros(n)
    gaps = h[:, None] - h[None, :]
    gaps.fill_diagonal_(math.inf)
    torch.testing.assert_close((1 / gaps).sum(1), h, rtol=0, atol=1e-11)


@pytest.mark.parametrize("n", [2, 7, 40])
def test_dyson_energy_is_that_of_the_points(n):
    c = 0.8
    x = c * exact.hermite_zeros(n)
    i, j = torch.triu_indices(n, n, 1)
    z = (x[i] - x[j]).abs()
    energy = float((z**2 / 2 - z.log()).sum()) / n**2
    assert exact.dyson_energy(n, c) == pytest.approx(energy, rel=1e-12)


def test_two_masses_solve_their_equation():
    h, t = 1e-4, 0.7
    before, w, after = (exact.two_masses(0.8, t + k * h) for k in (-1, 0, 1))
    assert (after - before) / (2 * h) == pytest.approx(-(w**2) * (1 - w), rel=1e-7)
    assert exact.two_masses(0.8, 0.0) == pytest.approx(0.8)


def test_disk_energy_is_least_at_the_unit_disk():
    assert exact.disk_energy(1.0) == exact.DISK_ENERGY
    assert exact.disk_energy(1.0) < min(map(exact.disk_energy, (0.99, 1.01)))


def test_disk_points_have_the_moments_of_a_disk():
    x = exact.disk(5000, radius=2.0).points
    assert float(x.square().sum(1).mean()) == pytest.approx(2.0, rel=1e-12)
    assert float(x.mean(0).abs().max()) < 1e-3


def test_langevin_moments_tend_to_those_of_the_diffusion():
    args = {"lam": 1.3, "temperature": 0.4}
    discrete = exact.langevin_moments(2.0, 0.1, 1e-5, 100_000, **args)
    continuous = exact.ornstein_uhlenbeck(2.0, 0.1, 1.0, **args)
    assert discrete == pytest.approx(continuous, rel=1e-4)
    rest = 0.4 / (1.3 * (1 - 1.3 * 0.1 / 2))
    late = exact.langevin_moments(2.0, 0.1, 0.1, 2000, **args)[1]
    assert late == pytest.approx(rest, rel=1e-12)
