"""Displacements between densities on a grid: what no single step can do is told."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.measures.grid import upwind as grid_flux
from otflow.measures.grid.upwind import courant


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((299, 299), 0), ((299, 299), 1), ((40, 30, 20), 1), ((3, 500), 1), ((1, 60), 1)],
)
def test_densities_far_apart_are_told_before_any_work(monkeypatch, shape, axis):
    """Two bells on 299 x 299 cells took 9 s of conjugate gradients to be refused."""
    monkeypatch.setattr(grid_flux, "_conjugate_gradients", None)

    def bell(at):
        def density(x):
            return torch.exp(-20 * (x - at).square().sum(-1))

        return of.GridDensity.from_function(density, 0, 1, shape, walls=True)

    near, far = torch.full((2, len(shape)), 0.4)
    far[axis] = 0.7
    mu, nu = bell(near), bell(far)
    with pytest.raises(of.errors.Unsupported, match=r"send out .* times its mass"):
        mu.displacement_to(nu)
    # The cure that the error names.
    g = torch.Generator().manual_seed(0)
    found = of.metrics.wasserstein2(mu.sample(300, g), nu.sample(300, g))
    means = (mu.weights @ mu.points - nu.weights @ nu.points).norm()
    assert float(found) == pytest.approx(float(means), abs=0.05)


@pytest.mark.parametrize("seed", range(6))
def test_what_one_step_can_do_is_not_refused(seed):
    """Any step below the limit of its flux leads to a measure that is found again."""
    g = torch.Generator().manual_seed(seed)
    shape = [(7, 6), (12, 3), (4, 5, 3)][seed % 3]
    rho = torch.rand(shape, generator=g, dtype=torch.float64) ** 4 + 1e-6
    mu = of.GridDensity(rho, 0, 1, walls=True, normalize=True)
    v = torch.randn(mu.box.n_faces, generator=g, dtype=torch.float64)
    nu = mu.push(v, 0.999 / float(courant(mu.box, mu.weights, v)))
    # It need not be a step of least energy; a sum over layers may not refuse it.
    grid_flux.check_layers(mu.box, mu.weights, nu.weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [0.06, 0.3])
def test_masses_that_underflow_do_not_spoil_a_displacement(dtype, width):
    """In single precision most cells beside a narrow bell hold subnormal masses."""

    def bell(at):
        return of.GridDensity.from_function(
            lambda x: torch.exp(-0.5 * ((x - at) / width).square().sum(-1)),
            -1.0,
            1.0,
            (60, 60),
            walls=True,
            dtype=dtype,
        )

    mu, nu = bell(0.0), bell(0.01 * width)
    v = mu.displacement_to(nu)
    assert v.dtype == dtype
    gap = (mu.push(v, 1.0).weights - nu.weights).abs().max() / nu.weights.max()
    assert float(gap) < 32 * torch.finfo(dtype).eps
    # A translation by that much along both axes, up to the width of the cells.
    assert float(mu.norm(v)) == pytest.approx(0.01 * width * 2**0.5, rel=0.2)


@pytest.mark.parametrize("seed", range(20, 30))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parts_without_mass_give_a_displacement_or_a_typed_error(dtype, seed):
    """Cells without mass part the grid: the system of each part is singular."""
    generator = torch.Generator().manual_seed(seed)
    rho = torch.empty(5, 5, dtype=dtype).exponential_(generator=generator)
    rho *= torch.rand(5, 5, generator=generator) < 0.6
    rho[0, 0] += 1
    mu = of.GridDensity(rho, 0, 1, walls=True, normalize=True)
    v = torch.empty(mu.box.n_faces, dtype=dtype).normal_(generator=generator)
    nu = mu.push(v * 0.04 / v.abs().max(), 1e-3)
    try:
        found = mu.displacement_to(nu)
    except (of.errors.NotConverged, of.errors.Unsupported):
        return
    assert found.dtype == dtype
    gap = (mu.push(found, 1.0).weights - nu.weights).abs().max()
    assert float(gap) < 256 * torch.finfo(dtype).eps


@pytest.mark.parametrize("mass", [1e-6, 1e-10, 1e-14])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_line_of_cells_has_the_exact_flux_wherever_it_lies(mass, axis):
    rho = torch.tensor([mass, 1.0, 0.03], dtype=torch.float64)
    shape, upper = ([3, 1], [1.0, 7.0]) if axis == 0 else ([1, 3], [7.0, 1.0])
    mu = of.GridDensity(
        rho.reshape(shape), [0.0] * 2, upper, walls=True, normalize=True
    )
    v = torch.tensor([-0.0694, 0.0333], dtype=torch.float64)
    found = mu.displacement_to(mu.push(v, 1.0))
    torch.testing.assert_close(found, v, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("moved", [0.0, 1e-3])
def test_parts_that_empty_cells_divide_keep_their_masses(moved, dtype):
    """The parts lie in the same rows and columns: sums over layers see nothing."""
    rho = torch.rand(6, 6, generator=torch.Generator().manual_seed(0), dtype=dtype)
    rho[2, :3] = rho[:3, 2] = 0
    after = rho.clone()
    after[0, 0] -= 0.01
    after[0, 1] += 0.01
    after[1, 1] -= moved
    after[4, 4] += moved
    mu, nu = (of.GridDensity(r, 0, 1, walls=True, normalize=True) for r in (rho, after))
    if moved:
        with pytest.raises(of.errors.Unsupported, match="cross empty cells"):
            mu.displacement_to(nu)
        return
    gap = mu.push(mu.displacement_to(nu), 1.0).weights - nu.weights
    assert float(gap.abs().max()) < 64 * torch.finfo(dtype).eps


def spread(kind, shape, generator):
    """Return masses of cells with a small, a large or an infinite contrast."""
    rho = torch.rand(shape, generator=generator, dtype=torch.float64)
    if kind == "bell":
        axes = [torch.linspace(-1, 1, n, dtype=torch.float64) for n in shape]
        square = sum(x**2 for x in torch.meshgrid(*axes, indexing="ij"))
        return torch.exp(-50 * square)
    if kind == "holes":
        empty = torch.rand(shape, generator=generator) > 0.6
        empty.view(-1)[0] = False
        return rho.masked_fill(empty, 0.0)
    return rho if kind == "even" else torch.exp(-40 * rho)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.05, 0.9])
@pytest.mark.parametrize("kind", ["even", "bell", "steep", "holes"])
@pytest.mark.parametrize("shape", [(30,), (300,), (1, 30), (5, 5), (8, 9), (3, 20)])
def test_single_precision_finds_what_double_precision_finds(shape, kind, share):
    """The round-off of the masses alone is no reason to raise."""
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        mu = of.GridDensity(spread(kind, shape, g), 0, 1, walls=True, normalize=True)
        v = torch.randn(mu.box.n_faces, generator=g, dtype=torch.float64)
        v = torch.ones_like(v) if kind == "bell" else v
        nu = mu.push(v, share / float(courant(mu.box, mu.weights, v)))
        if len(shape) == 2 and min(shape) > 1 and not exists(mu, nu):
            continue
        for dtype in (torch.float64, torch.float32):
            one, two = in_dtype(mu, dtype), in_dtype(nu, dtype)
            gap = one.push(one.displacement_to(two), 1.0).weights - two.weights
            noise = 256 * float(two.weights.max()) * torch.finfo(dtype).eps
            assert float(gap.abs().max()) <= noise


def in_dtype(mu, dtype):
    return mu.map_tensors(lambda x: x if x.dtype == torch.bool else x.to(dtype))


def exists(mu, nu):
    """Return whether double precision finds a displacement; on a line it must."""
    try:
        mu.displacement_to(nu)
    except (of.errors.NotConverged, of.errors.Unsupported):
        return False
    return True
