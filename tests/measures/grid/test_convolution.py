"""Interactions on grids: the sum over pairs by FFT, singular kernels by averages."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.analysis import observed_order
from otflow.measures import Convolution
from otflow.testing.clouds import normal
from otflow.testing.differences import derivative
from tests.exact_densities import semicircle, uniform_ball

SHAPES = [(9,), (5, 6), (3, 4, 5)]


def rough(shape):
    return of.GridDensity(
        normal(*shape, seed=1).abs(), 0, 1, walls=True, normalize=True
    )


def skew(z):
    """Return a kernel that is not even."""
    return (z[..., 0] + z.square().sum(-1)).exp()


def logarithm(z):
    """Return -log|z| as a user writes it: infinite at 0."""
    return -z.norm(dim=-1).log()


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_sum_over_pairs_of_the_even_part(shape):
    mu = rough(shape)
    z = mu.points[:, None] - mu.points
    for W in (skew, of.kernels.Gaussian(0.3), of.kernels.Energy()):
        even = 0.5 * (W(z) + W(-z))
        found = mu.convolve(W)
        torch.testing.assert_close(found, even @ mu.weights, rtol=1e-12, atol=1e-13)
        energy = 0.5 * mu.weights @ even @ mu.weights
        torch.testing.assert_close(mu.interaction(W), energy, rtol=1e-13, atol=0)
        off = energy - 0.5 * (mu.weights.square() * even.diagonal()).sum()
        left_out = of.kernels.Function(W, singular=True)
        torch.testing.assert_close(mu.interaction(left_out), off)
        with pytest.warns(DeprecationWarning, match="singular=True"):
            torch.testing.assert_close(mu.interaction(W, diagonal=False), off)
        with pytest.warns(DeprecationWarning, match="singular=True"):
            found = mu.convolve(W, diagonal=False)
        torch.testing.assert_close(0.5 * mu.weights @ found, off)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("W", [skew, logarithm, of.kernels.Log()])
def test_it_is_the_gradient_of_the_interaction(shape, W):
    mu = rough(shape)
    gradient = mu.mass_gradient(lambda nu: nu.interaction(W))
    torch.testing.assert_close(gradient, mu.convolve(W), rtol=1e-12, atol=1e-13)
    change = mu.weights * normal(mu.n, seed=3)
    slope = derivative(
        lambda t: mu.with_free_weights(mu.weights + t * change).interaction(W)
    )
    torch.testing.assert_close(gradient @ change, slope, rtol=1e-9, atol=1e-12)


def test_a_convolution_can_be_differentiated_twice():
    mu = rough((5, 6))
    kernel = Convolution(mu.box, skew, mu.weights)
    matrix = torch.autograd.functional.jacobian(kernel, mu.weights)
    torch.testing.assert_close(matrix, matrix.T)
    torch.testing.assert_close(matrix @ mu.weights, kernel(mu.weights))


def second_integral(p):
    """Return a function whose second derivative is |z|^-p / p, or -log|z| for p = 0."""
    if p == 0:
        return lambda z: 0.75 * z * z - 0.5 * z * z * math.log(z) if z else 0.0
    return lambda z: z ** (2 - p) / (p * (1 - p) * (2 - p))


@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 0.9])
def test_averages_over_pairs_of_cells_on_the_line(p):
    n, h = 12, 0.25
    mu = of.GridDensity(torch.eye(n)[0].double() / h, 0, n * h, walls=True)
    kernel = of.kernels.Riesz(p) if p else of.kernels.Log()
    G = second_integral(p)
    exact = [
        (G((k + 1) * h) - 2 * G(k * h) + G(abs(k - 1) * h)) / h**2 for k in range(n)
    ]
    found = mu.convolve(kernel)
    expected = torch.tensor(exact, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-5)
    torch.testing.assert_close(found[:3], expected[:3], rtol=1e-11, atol=1e-11)


def test_the_mean_inverse_distance_in_a_square_and_in_a_cube():
    square = 4 * math.log(1 + math.sqrt(2)) + 4 / 3 * (1 - math.sqrt(2))
    cube = 1.88231264438966016
    for dim, exact in ((2, square), (3, cube)):
        n = 4
        rho = torch.ones((n,) * dim, dtype=torch.float64)
        mu = of.GridDensity(rho, 0, 1, walls=True)
        found = 2 * float(mu.interaction(of.kernels.Riesz(1.0)))
        assert found == pytest.approx(exact, abs=2e-4)
        own = Convolution(mu.box, of.kernels.Riesz(1.0), mu.weights)
        first = torch.zeros_like(mu.weights)
        first[0] = 1.0
        assert float(own(first)[0]) == pytest.approx(n * exact, rel=1e-10)


@pytest.mark.parametrize("W", [of.kernels.Log(), of.kernels.Riesz(1.0)])
def test_cells_may_be_longer_than_wide(W):
    # A constant density is the same on every grid, and so is its energy.
    found = []
    for shape in ((16, 16), (8, 16), (8, 32), (16, 4)):
        rho = torch.ones(shape, dtype=torch.float64)
        mu = of.GridDensity(rho, 0, 1, walls=True)
        found.append(float(mu.interaction(W)))
    assert found == pytest.approx([found[0]] * 4, rel=1e-6)


def test_a_kernel_of_the_user_that_is_infinite_at_zero_is_averaged_too():
    for shape in SHAPES:
        mu = rough(shape)
        torch.testing.assert_close(
            mu.convolve(logarithm),
            mu.convolve(of.kernels.Log()),
            rtol=1e-11,
            atol=1e-12,
        )


def test_log_gas_energies_have_order_two():
    # The semicircle of radius r: 1/2 iint -log|x - y| = (1/4 - log(r/2)) / 2.
    errors, sizes = [], (32, 64, 128, 256)
    for n in sizes:
        mu = of.GridDensity(semicircle(1.0).cells(-1.3, 1.3, (n,)), -1.3, 1.3)
        exact = 0.5 * (0.25 - math.log(0.5))
        errors.append(abs(float(mu.interaction(of.kernels.Log())) - exact))
    assert observed_order([1 / n for n in sizes], errors) > 1.7
    assert errors[-1] < 2e-4


def test_the_energy_of_a_disk_has_order_above_one():
    # The uniform disk of radius 1: half the mean of -log|x - y| is 1/8.
    errors, sizes = [], (16, 32, 64)
    for n in sizes:
        rho = uniform_ball(2, 1.0).cells(-1.3, 1.3, (n, n), order=16)
        mu = of.GridDensity(rho, -1.3, 1.3, normalize=True)
        found = float(mu.interaction(of.kernels.Log()))
        errors.append(abs(found - 0.125))
    assert observed_order([1 / n for n in sizes], errors) > 1.7
    assert errors[-1] < 1e-3


def test_a_kernel_that_cannot_be_integrated_is_refused():
    for shape, p in (((6,), 1.0), ((5, 5), 2.0), ((3, 3, 3), 4.0)):
        with pytest.raises(
            of.errors.InvalidFunctional, match=r"too singular .* p >= d; use a weaker"
        ):
            rough(shape).interaction(of.kernels.Riesz(p))


def test_kernels_of_the_wrong_shape_or_dtype_are_refused():
    mu = rough((5, 6))
    with pytest.raises(of.errors.InvalidFunctional, match="must map differences"):
        mu.interaction(lambda z: z)
    with pytest.raises(of.errors.InvalidFunctional, match=r"returned torch\.float32"):
        mu.interaction(lambda z: z.square().sum(-1).float())
    with pytest.raises(of.errors.NonFinite, match="kernel between the cells"):
        mu.interaction(lambda z: (0.5 - z[..., 0]).log())


def test_float32_agrees_with_float64():
    for W in (skew, of.kernels.Log(), of.kernels.Riesz(0.7)):
        mu = rough((7, 8))
        single = of.GridDensity(mu.grid.float(), 0, 1, walls=True, normalize=True)
        found = single.convolve(W)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), mu.convolve(W), rtol=1e-5, atol=1e-5)


def test_a_changed_kernel_is_not_taken_for_the_old_one():
    mu = rough((5, 6))
    W = of.kernels.Gaussian(0.3)
    before = mu.convolve(W)
    W.sigma = 0.6
    torch.testing.assert_close(mu.convolve(W), mu.convolve(of.kernels.Gaussian(0.6)))
    assert not torch.allclose(mu.convolve(W), before)


def test_a_convolution_serves_many_densities_of_one_grid():
    mu = rough((6, 5))
    kernel = Convolution(mu.box, of.kernels.Log(), mu.weights)
    other = mu.reweight(normal(mu.n, seed=2), 1.0)
    for nu in (mu, other):
        torch.testing.assert_close(kernel(nu.weights), nu.convolve(of.kernels.Log()))


@pytest.mark.parametrize("dim", [1, 2])
def test_a_function_is_asked_at_the_centres_alone_after_the_first_time(dim):
    asked = []

    def W(z):
        asked.append(z.numel() // dim)
        return z.square().sum(-1)

    mu, F = rough((12,) * dim), of.Interaction(W)
    first = F.value(mu)
    asked.clear()
    assert F.value(mu) == first
    assert sum(asked) <= 1 + 24**dim
    F.first_variation(mu)
    assert sum(asked) <= 2 * (1 + 24**dim)


@pytest.mark.parametrize("far", [False, True])
def test_a_function_whose_values_change_is_asked_anew(far):
    held = {"scale": 1.0}

    def W(z):
        wide = z.abs().sum(-1) > (1.5 if far else 0.0)
        return torch.where(wide, held["scale"], 1.0) * z.square().sum(-1)

    mu, F = rough((12, 12)), of.Interaction(W)
    before = F.value(mu)
    held["scale"] = 2.0
    fresh = of.Interaction(lambda z: W(z)).value(mu)
    assert F.value(mu) == fresh != before


@pytest.mark.parametrize(
    "W", [of.kernels.Gaussian(0.5), lambda z: z.square().sum(-1)], ids=["key", "none"]
)
def test_what_inference_mode_has_asked_can_be_differentiated_later(W):
    mu, F = rough((6, 5)), of.Interaction(W)
    with torch.inference_mode():
        F.value(mu)
    masses = mu.weights.clone().requires_grad_()
    F.value(mu.with_weights(masses)).backward()
    assert masses.grad.isfinite().all()
