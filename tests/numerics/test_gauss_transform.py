"""Sums of Gaussians by interpolation: the bound holds, and all users share it."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.numerics.gauss_transform import (
    LEAST,
    error_bound,
    gauss_transform,
    nodes_for,
)

F64 = torch.float64


def cloud(n, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, d, generator=generator, dtype=F64)


def direct(x, y, masses, sigma):
    z = x[:, None] - y
    k = (-0.5 * z.square().sum(-1) / sigma**2).exp()
    slopes = torch.stack(
        [(k * -z[..., a] / sigma**2) @ masses for a in range(x.shape[1])], -1
    )
    return k @ masses, slopes


@pytest.mark.slow
@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("sigma", [0.11, 0.7, 30.0])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-5, 1e-9, 1e-12])
@pytest.mark.parametrize("kind", ["one source", "signs", "many"])
def test_the_error_is_within_the_bound(d, sigma, tolerance, kind):
    x, y = cloud(12_000, d), 0.7 * cloud(12_000, d, seed=1) + 0.4
    generator = torch.Generator().manual_seed(2)
    masses = torch.randn(len(y), 2, generator=generator, dtype=F64)
    if kind == "many":
        masses = masses.abs() / len(y)
    if kind == "one source":
        masses = torch.zeros_like(masses)
        masses[5] = 1.0
    found = gauss_transform(x, y, masses, sigma, tolerance, gradients=True)
    if found is None:  # all pairs are cheaper
        assert d == 3
        assert tolerance < 1e-2 or sigma < 0.5
        return
    near = slice(0, 300)
    values, slopes = direct(x[near], y, masses, sigma)
    scale = masses.abs().sum(0)
    allowed = tolerance + 1e-13
    errors = (found[0][near] - values).abs() / scale
    assert float(errors.max()) <= allowed
    errors = sigma * (found[1][near] - slopes).abs() / scale[:, None]
    assert float(errors.max()) <= allowed
    alone = gauss_transform(x, y, masses, sigma, tolerance, gradients=False)
    assert alone is not None
    only = alone[0]
    torch.testing.assert_close(only, found[0], rtol=0, atol=1e-12 * float(scale.max()))


def test_the_bound_falls_and_is_not_void():
    """The error of one source is at most a thousand times below its bound."""
    for d in (1, 2, 3):
        bounds = [error_bound(p, d) for p in range(2, 17)]
        assert bounds == sorted(bounds, reverse=True)
        assert bounds[-1] < LEAST
        p = nodes_for(1e-6, d)
        assert p is not None
        assert error_bound(p, d) <= 1e-6 < error_bound(p - 1, d)
        assert nodes_for(0.1 * LEAST, d) is None
    x, y = cloud(3000, 1), cloud(3000, 1, seed=1)
    masses = torch.zeros(3000, 1, dtype=F64)
    masses[0] = 1.0
    found, p = (
        gauss_transform(x, y, masses, 1.0, 0.1, gradients=False),
        nodes_for(0.1, 1),
    )
    assert found is not None
    assert p is not None
    worst = float((found[0] - direct(x, y, masses, 1.0)[0]).abs().max())
    assert worst > 1e-3 * error_bound(p, 1)


def refuse(monkeypatch):
    """Let a sum over all pairs fail."""

    def fail(self, s):
        pytest.fail("all pairs were summed")

    for name in ("profile", "slope", "profile_and_slope"):
        monkeypatch.setattr(of.kernels.Gaussian, name, fail)


TOLERANCE = 1e-7
SHARED = {
    "interaction": of.Interaction,
    "sum": lambda k: of.Interaction(2 * k - 0.5 * k),
    "discrepancy": lambda k: of.MMDTo(cloud(4000, 2, seed=3), k),
    "blob": lambda k: of.Blob(of.PowerEntropy(2.0), k.sigma, tolerance=k.tolerance),
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("name", SHARED)
def test_functionals_share_the_method_of_the_kernel(name, dtype, monkeypatch):
    mu = of.Particles(cloud(6000, 2).to(dtype))
    x = cloud(5000, 2, seed=4).to(dtype)
    sigma = 0.4

    def make(tolerance):
        kernel = of.kernels.Gaussian(sigma, tolerance=tolerance)
        return SHARED[name](kernel).to(dtype)

    exact, fast = make(0.0), make(TOLERANCE)
    expected = [*exact.value_and_velocity(mu), exact.first_variation(mu)]
    expected += [exact.first_variation(mu, x), exact.velocity(mu, x)]
    refuse(monkeypatch)
    found = [*fast.value_and_velocity(mu), fast.first_variation(mu)]
    found += [fast.first_variation(mu, x), fast.velocity(mu, x)]
    allowed = (30 * TOLERANCE if dtype == F64 else 1e-4) / sigma
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one, other, rtol=0, atol=allowed)


def test_a_scheme_shares_the_method_of_the_kernel(monkeypatch):
    mu, F = of.Particles(cloud(3000, 2)), of.KL(lambda x: x.square().sum(-1))
    steps = []
    for tolerance in (0.0, TOLERANCE):
        scheme = of.schemes.SVGD(of.kernels.Gaussian(0.4, tolerance=tolerance))
        steps.append(scheme.step(F, mu, 1.0, None, torch.Generator()).measure.points)
        refuse(monkeypatch)
    torch.testing.assert_close(steps[1], steps[0], rtol=0, atol=30 * TOLERANCE)


@pytest.mark.parametrize(
    ("n", "d", "sigma", "tolerance"),
    [
        (4000, 4, 0.5, 1e-3),
        (4000, 2, 0.5, 1e-13),
        (20, 2, 0.5, 1e-3),
        (4000, 2, 1e-3, 1e-3),
        (4000, 2, 1e-300, 1e-3),
    ],
)
def test_where_it_is_no_gain_all_pairs_are_summed(n, d, sigma, tolerance):
    mu = of.Particles(cloud(n, d))
    x = mu.points
    assert gauss_transform(x, x, x[:, :1], sigma, tolerance, gradients=True) is None
    if sigma < 1e-200:
        return
    exact, same = (
        of.Interaction(of.kernels.Gaussian(sigma, tolerance=t))
        for t in (0.0, tolerance)
    )
    pairs = zip(same.value_and_velocity(mu), exact.value_and_velocity(mu), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_subclass_keeps_its_own_profile():
    class Twice(of.kernels.Gaussian):
        def profile(self, s):
            return 2 * super().profile(s)

        def profile_and_slope(self, s):
            return self.profile(s), self.slope(s)

    mu = of.Particles(cloud(3000, 1))
    fast = of.Interaction(of.kernels.Gaussian(0.3, tolerance=1e-6)).value(mu)
    twice = of.Interaction(Twice(0.3, tolerance=1e-6)).value(mu)
    assert float(twice) == pytest.approx(2 * float(fast), rel=1e-5)


def test_a_second_derivative_is_that_of_all_pairs():
    x = cloud(2000, 1).requires_grad_()
    weights = torch.full((2000,), 1 / 2000, dtype=F64)
    slopes = []
    for tolerance in (0.0, 1e-9):
        F = of.Interaction(of.kernels.Gaussian(0.3, tolerance=tolerance))
        (slope,) = torch.autograd.grad(
            F.value(of.Particles(x, weights)), x, create_graph=True
        )
        slopes.append(torch.autograd.grad(slope.square().sum(), x)[0])
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-6, atol=1e-12)


def test_its_tolerance_is_shown_and_checked():
    assert repr(of.kernels.Gaussian(1.0)) == "Gaussian(sigma=1.0)"
    kernel = of.kernels.Gaussian(1.0, tolerance=1e-6)
    assert repr(kernel) == "Gaussian(sigma=1.0, tolerance=1e-06)"
    blob = of.Blob(of.Entropy(), 0.5, tolerance=1e-6)
    assert repr(blob) == "Blob(Entropy(), width=0.5, tolerance=1e-06)"
    for bad in (-1e-3, 1.0, float("nan")):
        with pytest.raises(ValueError, match="tolerance"):
            of.kernels.Gaussian(1.0, tolerance=bad)
