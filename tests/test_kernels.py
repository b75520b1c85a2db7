"""Radial kernels: slopes, limits at zero, bounds on convexity, and the fast sweep."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow._radial import TILE
from otflow.testing import clouds
from otflow.testing.clouds import normal
from tests import exact
from tests.test_autodiff import KERNELS

KINDS = pytest.mark.parametrize("kernel", KERNELS, ids=repr)


@KINDS
def test_the_slope_is_the_derivative_of_the_profile(kernel):
    s = torch.logspace(-6, 2, 40, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(kernel.profile(s).sum(), s)
    torch.testing.assert_close(kernel.slope(s.detach()), expected, rtol=1e-12, atol=0)


@KINDS
def test_the_kernel_is_its_profile_at_the_squared_distance(kernel):
    z = normal(4, 5, 3)
    values = kernel(z)
    assert values.shape == (4, 5)
    torch.testing.assert_close(values, kernel.profile(z.square().sum(-1)))


@KINDS
def test_its_flags_tell_the_truth_about_zero(kernel):
    zero = torch.zeros(1, dtype=torch.float64)
    assert bool(torch.isinf(kernel.profile(zero))) == kernel.singular
    assert bool(torch.isfinite(kernel.slope(zero)))
    tiny = torch.tensor([1e-280], dtype=torch.float64)
    assert bool(kernel.slope(tiny).abs() < 10) == kernel.smooth
    if kernel.smooth:
        assert float(kernel.slope(tiny)) == pytest.approx(float(kernel.slope(zero)))


@KINDS
def test_its_gradient_at_zero_is_zero(kernel):
    z = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(kernel(z).sum(), z)
    assert torch.equal(found, torch.zeros_like(found))


@pytest.mark.parametrize(
    "kernel", [k for k in KERNELS if k.modulus is not None], ids=repr
)
def test_the_modulus_is_the_least_eigenvalue_of_the_hessian(kernel):
    at = [*normal(300, 2), torch.zeros(2, dtype=torch.float64)]
    least = min(
        float(torch.linalg.eigvalsh(torch.autograd.functional.hessian(kernel, z))[0])
        for z in at
    )
    assert least == pytest.approx(kernel.modulus, rel=1e-12)


def test_only_kernels_with_a_bounded_hessian_declare_a_modulus():
    declared = {type(k) for k in KERNELS if k.modulus is not None}
    k = of.kernels
    assert declared == {k.Gaussian, k.InverseMultiquadric, k.Quadratic}


@pytest.mark.parametrize("n", [1, 2, TILE, 2 * TILE + 3])
@KINDS
def test_the_sweep_is_the_sum_over_pairs(kernel, n):
    mu = clouds.weighted(n, 2)
    x, w = mu.points.clone().requires_grad_(), mu.weights.clone().requires_grad_()
    found, (dx, dw) = kernel.sweep(x, w, gradients=True)
    alone, nothing = kernel.sweep(x, w, gradients=False)
    # A lambda hides the kernel, so this goes by autodiff.
    expected = mu.with_free_atoms(x, w).interaction(
        of.kernels.Function(lambda z: kernel(z), singular=kernel.singular)
    )
    assert nothing == ()
    torch.testing.assert_close(found, alone, rtol=1e-15, atol=0)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=1e-14)
    if n == 1 and kernel.singular:
        assert float(found) == 0
        return
    for left, right in zip(
        (dx, dw), torch.autograd.grad(expected, (x, w)), strict=True
    ):
        scale = float(right.abs().max())
        torch.testing.assert_close(left, right, rtol=0, atol=1e-12 * (1 + scale))
    clouds.assert_plain(found, dx, dw)


@KINDS
def test_interaction_uses_the_sweep_and_agrees_with_it(kernel, monkeypatch):
    mu, calls = clouds.weighted(9, 2), []
    plain = type(kernel).sweep

    def spy(self, x, w, *, gradients):
        calls.append(gradients)
        return plain(self, x, w, gradients=gradients)

    monkeypatch.setattr(type(kernel), "sweep", spy)
    value, velocity = of.Interaction(kernel).value_and_velocity(mu)
    assert calls == [True]
    (dx, _) = kernel.sweep(mu.points, mu.weights, gradients=True)[1]
    torch.testing.assert_close(velocity, -dx / mu.weights[:, None])
    torch.testing.assert_close(of.Interaction(kernel).value(mu), value)


@KINDS
def test_dtype_is_kept(kernel):
    mu = clouds.weighted(9, 2, dtype=torch.float32)
    F = of.Interaction(kernel)
    assert F.value(mu).dtype == F.velocity(mu).dtype == torch.float32
    reference = of.Interaction(kernel).velocity(clouds.weighted(9, 2))
    torch.testing.assert_close(
        F.velocity(mu).double(),
        reference,
        rtol=1e-4,
        atol=1e-4 * float(reference.max()),
    )


@KINDS
def test_far_from_the_origin_nothing_is_lost(kernel):
    # Products of coordinates near 1e6 lose ten digits; differences, and products of
    # centred ones, lose none beyond those that the coordinates themselves have lost.
    x = (normal(50, 2) * 2**20).round() / 2**20
    near, far = of.Particles(x), of.Particles(x + 2.0**20)
    left, right = (of.Interaction(kernel).velocity(mu) for mu in (near, far))
    scale = float(left.abs().max())
    torch.testing.assert_close(left, right, rtol=0, atol=1e-12 * scale)


def test_a_kernel_of_the_user_needs_profile_and_slope_alone():
    class Lorentz(of.kernels.RadialKernel):
        def __init__(self, width):
            self.width = width

        def profile(self, s):
            return 1 / (self.width + s)

        def slope(self, s):
            return -1 / (self.width + s).square()

    kernel, mu = Lorentz(0.5), clouds.degenerate()
    assert repr(kernel) == "Lorentz(width=0.5)"
    F, G = of.Interaction(kernel), of.Interaction(lambda z: kernel(z))
    for left, right in zip(
        F.value_and_velocity(mu), G.value_and_velocity(mu), strict=True
    ):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-13)
    assert F.modulus(2) is None


def test_power_law_needs_attraction_above_repulsion():
    for a, b in ((2, 2), (0, 2)):
        with pytest.raises(ValueError, match=r"attraction must exceed repulsion.*swap"):
            of.kernels.PowerLaw(a, b)


@pytest.mark.parametrize("bad", [0, -1.0, float("nan"), float("inf")])
def test_parameters_must_be_positive(bad):
    for kernel, name in ((of.kernels.Gaussian, "sigma"), (of.kernels.Riesz, "p")):
        with pytest.raises(ValueError, match=f"^{name} must be (positive|finite)"):
            kernel(bad)


@pytest.mark.parametrize("bad", ["1", True, None, torch.ones(1)])
def test_parameters_must_be_numbers(bad):
    with pytest.raises(TypeError, match=r"^sigma must be a real number, got"):
        of.kernels.Gaussian(bad)


# Known energies -----------------------------------------------------------------------


def test_the_quadratic_energy_is_half_the_variance():
    mu = clouds.weighted(20, 3)
    centred = mu.points - mu.weights @ mu.points
    variance = mu.weights @ centred.square().sum(-1)
    F = of.Interaction(of.kernels.Quadratic())
    torch.testing.assert_close(F.value(mu), 0.5 * variance)
    torch.testing.assert_close(F.velocity(mu), -centred)


def test_two_atoms_at_distance_one_minimise_the_power_law_4_2():
    F, mu = of.Interaction(of.kernels.PowerLaw(4, 2)), of.Particles(exact.TWO_ATOMS)
    assert float(F.value(mu)) == exact.TWO_ATOMS_ENERGY
    assert torch.equal(F.velocity(mu), torch.zeros_like(mu.points))
    # Global: on the first variation's graph the two atoms sit at the lowest points.
    variation = F.first_variation(mu, torch.linspace(-2, 2, 401).double()[:, None])
    assert float(variation.min()) >= float(F.first_variation(mu).max()) - 1e-15


@pytest.mark.parametrize("n", [3, 20])
def test_dyson_energy_and_force_at_the_hermite_zeros(n):
    F, mu = exact.dyson(), exact.hermite(n, 0.6)
    assert float(F.value(mu)) == pytest.approx(exact.dyson_energy(n, 0.6), rel=1e-12)
    expected = mu.points * (1 / (n * 0.6**2) - 1)
    torch.testing.assert_close(F.velocity(mu), expected, rtol=0, atol=1e-12)


def test_the_energy_of_a_disk_in_the_limit():
    F = exact.dyson()
    errors = [
        abs(float(F.value(exact.disk(n, 1.3))) - exact.disk_energy(1.3))
        for n in (500, 2000)
    ]
    # The diagonal that is left out is of size log(n)/n.
    assert errors[0] < 0.01
    assert errors[1] < 0.35 * errors[0]


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "clusters", [(19, 1), (10, 10), (3, 17), (17, 3)], ids="{0[0]}+{0[1]}".format
)
def test_far_points_cost_the_others_no_digit(kernel, dtype, clusters):
    """Each point feels its neighbours to round-off, however far the others are.

    The kernels know one length, 1, and so does each cluster. The second is so far that
    its own points are known to a share of that length only; the first is at 0.
    """
    eps = torch.finfo(dtype).eps
    first, second = clusters
    x = normal(first + second, 2, seed=5)
    x[first:] += torch.tensor([1e-3 / eps, 0.0], dtype=torch.float64)
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(1))].to(dtype)
    w = torch.full((len(x),), 1.0 / len(x), dtype=dtype)
    _, (force, _) = kernel.sweep(x, w, gradients=True)
    z = x.double()[:, None] - x.double()
    s = z.square().sum(-1)
    slope = kernel.slope(s.fill_diagonal_(1.0)).fill_diagonal_(0.0)
    pulls = 2.0 * slope[..., None] * z / len(x) ** 2
    size = pulls.norm(dim=-1).sum(1, keepdim=True)
    off = ((force.double() - pulls.sum(1)).abs() / (size + 1e-300)).max()
    assert off <= 200 * eps
