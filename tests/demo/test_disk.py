"""The least energy of n particles: a proved bound, an exact case, and the numerics."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from demo import disk
from tests import exact

F = of.Interaction(of.kernels.PowerLaw(2, 0))


@pytest.mark.parametrize("n", [2, 3, 10, 100])
@pytest.mark.parametrize("size", [0.1, 0.7, 1.0, 3.0])
def test_no_cloud_lies_below_the_bound(n, size):
    generator = torch.Generator().manual_seed(n)
    x = size * torch.randn(n, 2, dtype=torch.float64, generator=generator)
    assert float(F.value(of.Particles(x))) >= disk.lower_bound(n)
    assert float(F.value(exact.disk(n, size))) >= disk.lower_bound(n)


def test_two_particles_have_a_closed_form():
    # (r^2/2 - log r) / 4 is least at r = 1.
    found = disk.relax_disk("JKO", of.JKO(), 1.0, 30, 2)
    assert found.energy == pytest.approx(1 / 8, abs=1e-6)
    assert disk.lower_bound(2) < 1 / 8 < disk.least_energy(2)


@pytest.mark.parametrize("n", [100, 300])
def test_the_energy_of_n_particles_has_its_logarithm(n):
    found = disk.relax_disk("explicit Euler", of.ExplicitEuler(), 0.2, 100, n)
    assert disk.lower_bound(n) <= found.energy <= disk.least_energy(n)
    # The rest is of size 1/n: without the logarithm it would be log(n)/4 > 1.1.
    assert -0.375 <= n * (found.energy - disk.least_energy(n)) <= -0.25
    assert disk.CONTINUUM - found.energy > math.log(n) / (4 * n)


def test_jko_reaches_the_same_disk_with_certified_steps(tmp_path):
    loose = of.proximal.ParticleProximal(tolerance=1e-2)
    jko = disk.relax_disk("JKO", of.JKO(loose), 1.0, 12, 200)
    euler = disk.relax_disk("explicit Euler", of.ExplicitEuler(), 0.2, 60, 200)
    assert jko.energy == pytest.approx(euler.energy, abs=1e-4)
    assert jko.row.certificate == "12/12 steps certified"
    radius = jko.centred.norm(dim=1)
    assert float(radius.max()) == pytest.approx(1, abs=0.06)
    assert float(radius.square().mean()) == pytest.approx(0.5, abs=0.01)
    disk.draw([euler, jko], tmp_path / "disk.png")
    assert (tmp_path / "disk.png").stat().st_size > 10_000
