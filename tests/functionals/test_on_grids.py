"""Functionals on grids: the inherited laws, and values against exact integrals."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.analysis import observed_order
from tests.clouds import normal
from tests.exact_densities import barenblatt, barenblatt_energy
from tests.exact_gaussians import fokker_planck_energy, gaussian_cells
from tests.functionals.on_grids import OnGrids, rough


class TestPotential(OnGrids):
    def make(self, dtype=torch.float64):
        return of.Potential(lambda x: x.sin().sum(-1), modulus=-1.0)


class TestInteraction(OnGrids):
    def make(self, dtype=torch.float64):
        return of.Interaction(of.kernels.Gaussian(1.3))


class TestSkewInteraction(OnGrids):
    def make(self, dtype=torch.float64):
        return of.Interaction(lambda z: (0.2 * z[..., 0] + z.cos().sum(-1)).exp())


class TestLogInteraction(OnGrids):
    """Infinite at 0, finite as an average over pairs of cells."""

    def make(self, dtype=torch.float64):
        return of.Interaction(of.kernels.PowerLaw(2, 0))


class TestEntropy(OnGrids):
    def make(self, dtype=torch.float64):
        return of.Entropy()


class TestPowerEntropy(OnGrids):
    def make(self, dtype=torch.float64):
        return of.PowerEntropy(2.5)


class TestFastDiffusion(OnGrids):
    def make(self, dtype=torch.float64):
        return of.PowerEntropy(0.8)


class TestKL(OnGrids):
    def make(self, dtype=torch.float64):
        return of.KL(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)


class TestKLOnAGrid(OnGrids):
    def make(self, dtype=torch.float64):
        return of.KL(rough(6, 5, seed=9, dtype=dtype))

    def measure(self, dtype=torch.float64, seed=0):
        return rough(6, 5, seed=seed, dtype=dtype)

    def measures(self):
        return [self.measure(), self.measure(seed=4)]


class TestSum(OnGrids):
    def make(self, dtype=torch.float64):
        return (
            of.Potential(lambda x: x.square().sum(-1))
            + 0.3 * of.Entropy()
            + 2.0 * of.PowerEntropy(2)
            + of.Interaction(of.kernels.Gaussian(1.0))
        )


def test_the_first_variation_of_an_interaction_is_the_convolution():
    W = of.kernels.Gaussian(1.3)
    for shape in ((9,), (5, 6), (3, 4, 3)):
        mu = rough(*shape)
        found = of.Interaction(W).first_variation(mu)
        torch.testing.assert_close(found, mu.convolve(W), rtol=1e-13, atol=1e-14)


def test_vacuum_has_no_porous_medium_energy_and_no_force():
    rho = normal(8, 8, seed=1).clamp_min(0)
    mu = of.GridDensity(rho, 0, 1, walls=True, normalize=True)
    F = of.PowerEntropy(2)
    assert float(F.value(mu)) == pytest.approx(
        float((mu.density().square() / 64).sum()), rel=1e-13
    )
    torch.testing.assert_close(F.first_variation(mu), 2 * mu.density())


def test_the_entropy_of_a_vacuum_is_finite_and_its_slope_is_not():
    rho = torch.ones(8, dtype=torch.float64)
    rho[3] = 0
    mu = of.GridDensity(rho, 0, 8, walls=True, normalize=True)
    assert float(of.Entropy().value(mu)) == pytest.approx(-math.log(7))
    with pytest.raises(of.errors.NonFinite, match=r"vanishes in 1 cells.*JKO"):
        of.Entropy().velocity(mu)


def test_energies_have_order_two_in_space():
    mean = torch.tensor([0.3, -0.2], dtype=torch.float64)
    variance = torch.tensor([0.2, 0.3], dtype=torch.float64)
    exact = fokker_planck_energy(
        mean,
        torch.diag(variance),
        A=torch.eye(2, dtype=torch.float64),
        b=torch.zeros(2, dtype=torch.float64),
    )
    F = of.KL(lambda x: 0.5 * x.square().sum(-1))
    errors, sizes = [], (24, 48, 96)
    for n in sizes:
        rho = gaussian_cells(mean, variance, -4, 4, (n, n))
        mu = of.GridDensity(rho, -4, 4, normalize=True)
        errors.append(abs(float(F.value(mu)) - exact))
    assert observed_order([1 / n for n in sizes], errors) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize(("m", "d"), [(2, 1), (3, 1), (2, 2)])
def test_porous_medium_energies_of_a_barenblatt_profile(m, d):
    profile = barenblatt(m, d, 0.8)
    exact = barenblatt_energy(m, d, 0.8)
    errors, sizes = [], (25, 50, 100, 200)
    for n in sizes:
        mu = of.GridDensity(profile.cells(-1, 1, (n,) * d), -1, 1, normalize=True)
        errors.append(abs(float(of.PowerEntropy(m).value(mu)) - exact))
    assert observed_order([1 / n for n in sizes], errors) > 1.7
    assert errors[-1] < 1e-3 * abs(exact)
