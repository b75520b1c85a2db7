"""Quantiles: the inherited laws, ways to make them, exact densities and energies."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import otflow as of
from otflow.analysis import observed_order
from otflow.measures.quantiles.gaussian_kernel import rules
from otflow.testing import MeasureContract
from otflow.testing.clouds import normal
from otflow.testing.differences import derivative
from tests import exact

# The cells are few, or wide in the tails: what is tried here does not need them narrow.
pytestmark = pytest.mark.filterwarnings("ignore::otflow.errors.CellWarning")

CAPABILITIES = frozenset({"density", "sample"})
SIZES = (50, 100, 200)


class TestEqualMasses(MeasureContract):
    capabilities = CAPABILITIES

    def make(self, dtype=torch.float64):
        gaps = 0.5 + normal(9, seed=1, dtype=dtype).sigmoid()
        return of.Quantiles(gaps.cumsum(0) - 4.0)

    def tangent(self, mu, seed=0):
        return normal(mu.n + 1, 1, seed=seed + 77, dtype=mu.dtype)

    def coordinates(self, mu):
        return mu.edges


class TestOtherMasses(TestEqualMasses):
    def make(self, dtype=torch.float64):
        masses = normal(8, seed=2, dtype=dtype).exp()
        gaps = 0.5 + normal(9, seed=1, dtype=dtype).sigmoid()
        return of.Quantiles(gaps.cumsum(0) - 4.0, masses, normalize=True)


def line(lower=0.0, upper=1.0, n=10, **options):
    options = {"dtype": torch.float64, **options}
    return of.Quantiles(torch.linspace(lower, upper, n + 1, **options))


def gauss(sigma, n, grading=1.0):
    return of.Quantiles.from_quantile(
        lambda s: sigma * torch.special.ndtri(s),
        n,
        grading=grading,
        dtype=torch.float64,
    )


def semicircle(radius, n, grading=2.5):
    return of.Quantiles.from_function(
        lambda x: (radius**2 - x[:, 0].square()).clamp_min(0).sqrt(),
        -2 * radius,
        2 * radius,
        n,
        grading=grading,
        dtype=torch.float64,
    )


# What it is ---------------------------------------------------------------------------


def test_density_of_unequal_cells():
    mu = of.Quantiles(torch.tensor([0.0, 1.0, 3.0, 3.5]), torch.tensor([0.2, 0.6, 0.2]))
    torch.testing.assert_close(mu.density(), torch.tensor([0.2, 0.3, 0.4]))
    torch.testing.assert_close(mu.points[:, 0], torch.tensor([0.5, 2.0, 3.25]))
    torch.testing.assert_close(mu.lumped, torch.tensor([0.1, 0.4, 0.4, 0.1]))


def test_the_gradient_is_over_the_lumped_masses():
    # A linear potential pushes all quantiles alike, whatever the masses.
    mu = TestOtherMasses().make()
    velocity = of.Potential(lambda x: 3.0 * x[..., 0]).velocity(mu)
    torch.testing.assert_close(velocity, torch.full_like(velocity, -3.0))


def test_a_potential_moves_each_quantile_by_its_own_gradient():
    mu = TestOtherMasses().make()
    velocity = of.Potential(lambda x: x.sin().sum(-1)).velocity(mu)
    torch.testing.assert_close(velocity[:, 0], -mu.edges.cos())
    second = mu.expectation(lambda x: x.square().sum(-1))
    torch.testing.assert_close(second, mu.inner(mu.edges[:, None], mu.edges[:, None]))


def test_inner_exceeds_the_exact_w2_by_the_strain_of_the_cells():
    mu, v = TestOtherMasses().make(), normal(9, 1, seed=3)
    nu = mu.push(v, 0.1)
    w2 = float(of.metrics.wasserstein2_squared(mu, nu))
    strain = 0.01 * float(mu.weights @ v[:, 0].diff().square()) / 6
    lumped = 0.01 * float(mu.inner(v, v))
    assert lumped - w2 == pytest.approx(strain, rel=1e-10)


def test_samples_fill_the_cells_evenly():
    mu = of.Quantiles(
        torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64),
        torch.tensor([0.25, 0.75], dtype=torch.float64),
    )
    draws = mu.sample(40_000, torch.Generator().manual_seed(0))[:, 0]
    assert float((draws < 1).double().mean()) == pytest.approx(0.25, abs=0.01)
    assert float((draws < 2).double().mean()) == pytest.approx(0.625, abs=0.01)


def test_a_numpy_array_is_copied():
    edges = np.array([0.0, 1.0])
    mu = of.Quantiles(edges)
    edges[0] = 5.0
    assert mu.edges.tolist() == [0.0, 1.0]


# Ways to make one ---------------------------------------------------------------------


@pytest.mark.parametrize("grading", [1.0, 2.0, 3.5])
def test_from_function_finds_the_quantiles(grading):
    by_density = of.Quantiles.from_function(
        lambda x: (-0.5 * x[:, 0].square()).exp(),
        -12.0,
        12.0,
        60,
        grading=grading,
        dtype=torch.float64,
    )
    by_quantile = gauss(1.0, 60, grading)
    torch.testing.assert_close(
        by_density.edges[1:-1], by_quantile.edges[1:-1], rtol=0, atol=1e-11
    )
    torch.testing.assert_close(by_density.weights, by_quantile.weights)
    assert by_density.edges[[0, -1]].tolist() == [-12.0, 12.0]
    assert bool(torch.isfinite(by_quantile.edges).all())


def test_from_function_cuts_the_interval_to_the_support():
    mu = semicircle(1.3, 40)
    assert float(mu.edges[0]) == pytest.approx(-1.3, abs=1e-12)
    assert float(mu.edges[-1]) == pytest.approx(1.3, abs=1e-12)
    torch.testing.assert_close(mu.edges, -mu.edges.flip(0), rtol=0, atol=1e-13)


def test_from_function_bridges_a_hole_in_the_support():
    f = lambda x: ((x[:, 0] - 0.25).abs() > 0.1).double()
    mu = of.Quantiles.from_function(f, 0.0, 1.0, 15, dtype=torch.float64)
    levels = 0.8 * torch.arange(16, dtype=torch.float64) / 15
    expected = torch.where(levels < 0.15, levels, levels + 0.2)
    torch.testing.assert_close(mu.edges, expected, rtol=0, atol=2e-4)


def test_grading_makes_small_cells_at_the_ends():
    mu = gauss(1.0, 40, grading=3.0)
    assert float(mu.weights[0]) == pytest.approx(40**-3.0, rel=0.1)
    assert float(mu.weights.sum()) == pytest.approx(1, abs=1e-15)
    torch.testing.assert_close(mu.weights, mu.weights.flip(0), rtol=1e-14, atol=0)


def test_from_samples_takes_order_statistics():
    mu = of.Quantiles.from_samples(torch.tensor([3.0, 0.0, 1.0, 2.0, 4.0]), 2)
    assert mu.edges.tolist() == [0.0, 2.0, 4.0]
    draws = normal(4000, 1, seed=1)
    fitted = of.Quantiles.from_samples(draws, 20)
    gap = fitted.edges - gauss(1.0, 20).edges
    assert float(gap[1:-1].abs().max()) < 0.1
    assert float(fitted.edges[-1]) == float(draws.max())


def test_makers_follow_the_dtype():
    mu = of.Quantiles.from_function(lambda x: torch.ones_like(x[:, 0]), 0.0, 1.0, 4)
    assert mu.dtype == torch.float32
    torch.testing.assert_close(mu.edges, torch.linspace(0, 1, 5))


# Energies -----------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0.1, 7.0])
def test_entropy_of_a_uniform_density(length):
    value = of.Entropy().value(line(-1.0, length - 1.0))
    assert float(value) == pytest.approx(exact.uniform_entropy(length), abs=1e-14)


def test_entropy_of_a_gaussian_is_of_second_order_on_graded_cells():
    errors = [
        float(of.Entropy().value(gauss(0.7, n, 3.0))) - exact.gaussian_entropy(0.7)
        for n in SIZES
    ]
    assert observed_order(SIZES, np.abs(errors)) < -1.7


@pytest.mark.parametrize("p", [0.25, 0.5, 0.75])
def test_riesz_energy_of_a_uniform_density(p):
    # The density is represented exactly: what is left is the rule for far cells.
    expected = 1 / ((1 - p) * (2 - p) * p)
    value = of.Interaction(of.kernels.Riesz(p)).value(line(n=30))
    assert float(value) == pytest.approx(expected, rel=1e-5)


def test_a_smooth_kernel_without_range_is_summed_over_the_quantiles():
    mu = TestOtherMasses().make()
    atoms = of.Particles(mu.edges[:, None], mu.lumped)
    for W in (of.kernels.Quadratic(), of.kernels.PowerLaw(4, 2)):
        F = of.Interaction(W)
        torch.testing.assert_close(F.value(mu), F.value(atoms))
        torch.testing.assert_close(F.velocity(mu), F.velocity(atoms))


def gaussian_average(mu, sigma):
    """Return the energy of a Gaussian kernel by a composite Gauss rule."""
    x, a = np.polynomial.legendre.leggauss(6)
    nodes, masses = [], []
    for left, gap, mass in zip(mu.edges[:-1], mu.edges.diff(), mu.weights, strict=True):
        panels = math.ceil(4 * float(gap) / sigma)
        shares = ((np.arange(panels)[:, None] + 0.5 * (x + 1)) / panels).ravel()
        nodes.append(left + gap * torch.from_numpy(shares))
        masses.append(mass / panels * torch.from_numpy(np.tile(a / 2, panels)))
    atoms = of.Particles(torch.cat(nodes)[:, None], torch.cat(masses), normalize=True)
    return of.Interaction(of.kernels.Gaussian(sigma)).value(atoms)


@pytest.mark.parametrize("sigma", [0.2, 0.5, 3.0, 200.0])
def test_a_gaussian_kernel_is_averaged_exactly_over_cells_of_any_width(sigma):
    # Cells from 1e-3 to 8: by nodes, by closed forms, and next to one another.
    edges = torch.tensor([-9.0, -1.0, -0.7, -0.69, 0.0, 0.001, 0.02, 0.5, 6.0])
    weights = torch.tensor([0.05, 0.2, 0.05, 0.3, 0.02, 0.08, 0.2, 0.1])
    mu = of.Quantiles(edges.double(), weights.double(), normalize=True)
    F, h = of.Interaction(of.kernels.Gaussian(sigma)), 1e-2 * min(sigma, 0.1)
    expected = float(gaussian_average(mu, sigma))
    assert float(F.value(mu)) == pytest.approx(expected, rel=1e-12)
    v = torch.zeros_like(mu.edges)[:, None]
    v[0] = v[-1] = 1.0  # the ends of wide cells
    slope = [gaussian_average(mu.push(v, t), sigma) for t in (-h, h)]
    expected = float(slope[1] - slope[0]) / (2 * h)
    found = -float(mu.inner(F.velocity(mu), v))
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nodes_and_closed_forms_of_a_gaussian_kernel_are_one_function(dtype):
    """Cells that grow past the length where the rule changes do not notice it."""

    eps = torch.finfo(dtype).eps
    for longest, _, _ in rules(dtype):
        values, forces = [], []
        for gap in (longest * (1 - 4 * eps), longest * (1 + 4 * eps)):
            edges = gap * torch.arange(5, dtype=dtype)
            mu = of.Quantiles(edges)
            value, velocity = of.Interaction(
                of.kernels.Gaussian(1.0)
            ).value_and_velocity(mu)
            values.append(value)
            forces.append(velocity)
        torch.testing.assert_close(*values, rtol=64 * eps, atol=0)
        torch.testing.assert_close(*forces, rtol=0, atol=200 * eps / longest)


def test_a_kernel_with_a_kink_is_exact_on_a_uniform_density():
    # -E|x - y|/2 on [0, 1] is -1/6.
    value = of.Interaction(of.kernels.Energy()).value(line(n=7))
    assert float(value) == pytest.approx(-1 / 6, abs=1e-12)


@pytest.mark.parametrize("grading", [1.0, 2.5])
def test_log_energy_of_the_semicircle_is_of_second_order(grading):
    radius = math.sqrt(2)
    expected = radius**2 / 8 + 0.5 * (math.log(2 / radius) + 0.25)
    F = exact.dyson()
    errors = [float(F.value(semicircle(radius, n, grading))) - expected for n in SIZES]
    assert abs(errors[-1]) < 3e-6
    if grading == 1.0:
        assert observed_order(SIZES, np.abs(errors)) == pytest.approx(-2, abs=0.1)


def test_the_semicircle_is_the_rest_of_the_log_gas():
    F, norms = exact.dyson(), []
    for n in SIZES:
        mu = semicircle(math.sqrt(2), n)
        norms.append(float(mu.norm(F.velocity(mu))))
    assert observed_order(SIZES, norms) < -1.8


def test_a_user_kernel_agrees_with_the_library_one():
    mu = semicircle(1.0, 30)
    W = lambda z: -z.square().sum(-1).log() / 2
    ours, theirs = of.Interaction(of.kernels.Log()), of.Interaction(W)
    for mine, other in zip(
        ours.value_and_velocity(mu), theirs.value_and_velocity(mu), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


def test_an_odd_kernel_has_no_energy():
    value = of.Interaction(lambda z: z.sum(-1)).value(line())
    assert float(value) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize(
    "W", [of.kernels.Log(), of.kernels.PowerLaw(2, 0.5), of.kernels.Gaussian(0.3)]
)
def test_the_force_of_a_kernel_is_the_derivative_of_its_energy(W):
    mu, F = TestOtherMasses().make(), of.Interaction(W)
    for seed in range(3):
        v = normal(mu.n + 1, 1, seed=seed)
        expected = derivative(lambda t, v=v: F.value(mu.push(v, t)), h=1e-4)
        found = -mu.inner(F.velocity(mu), v)
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


@given(st.integers(1, 12), st.floats(0.3, 3.0), st.floats(-5.0, 5.0))
def test_energies_move_and_scale_as_they_must(n, scale, shift):
    gaps = 0.2 + normal(n + 1, seed=n).exp()
    mu = of.Quantiles(gaps.cumsum(0))
    nu = of.Quantiles(scale * mu.edges + shift)
    log = math.log(scale)
    for F, change in [
        (of.Entropy(), -log),
        (of.Interaction(of.kernels.Log()), -log / 2),
    ]:
        gap = float(F.value(nu) - F.value(mu))
        assert gap == pytest.approx(change, abs=1e-10)


# Explicit Euler -----------------------------------------------------------------------


@pytest.mark.slow
def test_explicit_euler_is_of_first_order_on_the_breathing_gaussian():
    # Against the same cells with a step 16 times finer: the error of the step alone.
    F = exact.quadratic() + 0.5 * of.Entropy()
    mu, dts = gauss(1.5, 16), (0.02, 0.01, 0.005)

    def end(dt):
        steps = round(0.5 / dt)
        return of.flow(F, mu, of.ExplicitEuler(), dt=dt, steps=steps, every=steps).final

    reference = end(0.02 / 64)
    errors = [float(mu.norm(end(dt).displacement_to(reference))) for dt in dts]
    excess = [dt - 0.02 / 64 for dt in dts]
    assert observed_order(excess, errors) == pytest.approx(1, abs=0.1)


# Refusals -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edges", "weights", "message"),
    [
        ([0.0, 2.0, 1.0], None, "edges[1] = 2 >= edges[2] = 1; sort them"),
        ([0.0, 1.0, 1.0], None, "merge cells whose edges coincide"),
        ([0.0], None, "shape (n + 1,) with n >= 1"),
        ([0.0, math.nan], None, "must be finite"),
        ([0.0, 1.0, 2.0], [0.5, 0.6], "must sum to 1"),
        ([0.0, 1.0, 2.0], [1.0, 0.0], "weights[1] is 0"),
        ([0.0, 1.0, 2.0], [1.5, -0.5], "must be non-negative"),
        ([0.0, 1.0, 2.0], [1.0], "must have shape (2,)"),
    ],
)
def test_bad_input_is_refused_with_the_cure(edges, weights, message):
    edges = torch.tensor(edges, dtype=torch.float64)
    if weights is not None:
        weights = torch.tensor(weights, dtype=torch.float64)
    with pytest.raises(ValueError, match=re.escape(message)):
        of.Quantiles(edges, weights)


def test_bad_makers_are_refused_with_the_cure():
    one = lambda x: torch.ones_like(x[:, 0])
    with pytest.raises(ValueError, match="grading must be at least 1"):
        of.Quantiles.from_function(one, 0.0, 1.0, 4, grading=0.5)
    with pytest.raises(ValueError, match="lower must be below upper"):
        of.Quantiles.from_function(one, 1.0, 0.0, 4)
    with pytest.raises(ValueError, match="f is 0 at all"):
        of.Quantiles.from_function(lambda x: 0 * x[:, 0], 0.0, 1.0, 4)
    with pytest.raises(ValueError, match="finite and non-negative, got -"):
        of.Quantiles.from_function(lambda x: -one(x), 0.0, 1.0, 4)
    with pytest.raises(of.errors.InvalidFunctional, match="reduce over the last axis"):
        of.Quantiles.from_function(lambda x: x, 0.0, 1.0, 4)
    with pytest.raises(ValueError, match="quantile must map levels"):
        of.Quantiles.from_quantile(lambda s: s[:-1], 4)
    with pytest.raises(ValueError, match="take n <= 2"):
        of.Quantiles.from_samples(torch.zeros(3), 4)
    with pytest.raises(ValueError, match="merge cells whose edges coincide"):
        of.Quantiles.from_samples(torch.zeros(9), 4)
    with pytest.raises(ValueError, match="points on the line"):
        of.Quantiles.from_samples(torch.zeros(9, 2), 4)


def test_crossing_is_a_divergence_with_the_cure():
    mu = line(n=3)
    v = torch.tensor([[0.0], [1.0], [0.0], [0.0]], dtype=torch.float64)
    with pytest.raises(
        of.errors.Diverged, match="quantiles 1 and 2 crossed; take a"
    ) as e:
        mu.push(v, 0.5)
    assert e.value.measure is mu
    with pytest.raises(of.errors.Diverged, match="left the finite numbers"):
        mu.push(1e200 * v, 1.0)


def test_other_masses_have_no_displacement_by_level():
    with pytest.raises(ValueError, match="needs equal masses"):
        TestEqualMasses().make().displacement_to(TestOtherMasses().make())


def test_a_singularity_that_is_not_integrable_is_refused():
    with pytest.raises(of.errors.NonFinite, match="not integrable at 0 on the line"):
        of.Interaction(of.kernels.Riesz(1.0)).value(line())


def test_the_schemes_that_need_more_are_refused_with_the_cure():
    F, mu = exact.quadratic(), line()
    with pytest.raises(of.errors.Unsupported, match="its masses are fixed"):
        of.flow(F, mu, of.BirthDeath(), dt=0.1, steps=1)
    with pytest.raises(of.errors.Unsupported, match="do not follow noise"):
        of.flow(F, mu, of.Langevin(), dt=0.1, steps=1)
