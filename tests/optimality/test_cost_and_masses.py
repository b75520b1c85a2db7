"""Proofs at a minimum end soon; masses that do not sum to 1 are accounted for."""

import pytest
import torch

import otflow as of
from otflow.optimality import BoxDomain, optimality_gap, proofs
from tests.marks import slow

F64 = torch.float64


def cloud(n, d, seed, dtype=F64):
    generator = torch.Generator().manual_seed(seed)
    return of.Particles(torch.rand(n, d, generator=generator, dtype=dtype))


@pytest.fixture
def cells(monkeypatch):
    """The number of cells of each proof."""
    counts, whole = [], proofs.bound_below

    def counted(*args, **options):
        found = whole(*args, **options)
        counts.append(found.cells)
        return found

    monkeypatch.setattr("otflow.optimality.box.bound_below", counted)
    return counts


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("name", ["Gaussian", "energy"])
def test_the_gap_at_the_target_is_0_after_one_sweep(name, d, cells):
    nu = cloud(100, d, 1)
    F = (
        of.EnergyDistanceTo(nu)
        if name == "energy"
        else of.MMDTo(nu, of.kernels.Gaussian(0.3))
    )
    mu = of.Particles(nu.points.flip(0))
    gap = optimality_gap(F, mu, BoxDomain(-1, 1))
    assert gap.kind == "proved"
    assert 0 <= gap.value < 1e-300
    assert cells[0] <= 128


def test_a_flat_first_variation_is_bounded_to_its_round_off_at_some_price(cells):
    # Two clouds of the same field, up to round-off, of which no masses cancel.
    nu = cloud(50, 1, 1)
    twice = of.Particles(nu.points.repeat(2, 1).sort(0).values.repeat(2, 1))
    gap = optimality_gap(
        of.MMDTo(nu, of.kernels.Gaussian(0.3)), twice, BoxDomain(-1, 1)
    )
    assert gap.kind == "proved"
    assert gap.found <= gap.value < 1e-9
    assert cells[0] < 4000


WELLS = {
    "well": lambda x: x.square().sum(-1),
    "high well": lambda x: x.square().sum(-1) + 1e8,
    "flat well": lambda x: (x**4).sum(-1),
    "kink": lambda x: x.abs().sum(-1),
    "constant": lambda x: 0 * x.sum(-1) + 1,
}


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("name", WELLS)
def test_wells_cost_one_sweep_at_their_bottom(name, d, cells):
    mu = of.Particles(torch.zeros(1, d, dtype=F64))
    gap = optimality_gap(of.Potential(WELLS[name]), mu, BoxDomain(-1, 1))
    assert gap.kind == "proved"
    assert gap.value <= 1e-14 * (1e8 if name == "high well" else 1)
    assert cells[0] <= 256


def field(z, x, w, kernel):
    squares = (z[:, None] - x).square().sum(-1)
    values = (
        torch.exp(-0.5 * squares / 0.3**2)
        if kernel == "Gaussian"
        else -(squares.sqrt())
    )
    return values @ w


@pytest.mark.parametrize("masses", ["stored", "of one mass", "normalised"])
@pytest.mark.parametrize("kernel", ["Gaussian", *slow("energy")])
def test_masses_of_float32_do_not_make_a_gap_too_small(kernel, masses):
    for seed in range(30):
        n, m, d = 1 + seed % 7, 1 + seed % 5, 1 + seed % 2
        mu, nu = cloud(n, d, seed, torch.float32), cloud(m, d, seed + 99, torch.float32)
        F = (
            of.EnergyDistanceTo(nu)
            if kernel == "energy"
            else of.MMDTo(nu, of.kernels.Gaussian(0.3))
        )
        gap = optimality_gap(F, mu, BoxDomain(0, 1, sharpness=1e-13))
        assert gap.kind == "proved"
        assert gap.argmin is not None
        x, y = mu.points.double(), nu.points.double()
        w, v = mu.weights.double(), nu.weights.double()
        if masses == "normalised":
            w, v = w / w.sum(), v / v.sum()
        own = 0.5 * float(v @ field(y, y, v, kernel))

        def variation(z, x=x, y=y, w=w, v=v, own=own):
            return field(z, x, w, kernel) - field(z, y, v, kernel) + own

        axis = torch.linspace(0, 1, 41, dtype=F64)
        lattice = torch.cartesian_prod(*[axis] * d).reshape(-1, d)
        z = torch.cat([gap.argmin.double()[None], x, y, lattice])
        mass = float(w.sum()) if masses == "of one mass" else 1.0
        exact = float(variation(x) @ w - mass * variation(z).min())
        assert gap.value >= exact - 1e-15
        assert gap.value <= exact * (1 + 1e-5) + 1e-5
