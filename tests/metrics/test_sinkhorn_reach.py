"""The Sinkhorn divergence where mass may be destroyed, at any reach and blur."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import otflow as of
from otflow.metrics import sinkhorn_divergence
from otflow.testing.clouds import normal, weighted

SWEEPS = 4_000


def soft(arguments, axis):
    """Return log-sum-exp in long double."""
    top = arguments.max(axis=axis, keepdims=True)
    return np.log(np.exp(arguments - top).sum(axis=axis)) + top.squeeze(axis)


class Plain:
    """One problem by plain damped sweeps in long double.

    Potentials are in the unit epsilon rho / (epsilon + rho). The mode f + t, g - t,
    slow for rho >> epsilon, is solved for after each sweep: both sides then keep equal
    masses.
    """

    def __init__(self, x, a, y, b, blur, reach):
        wide = [np.asarray(t, dtype=np.longdouble) for t in (x, a, y, b)]
        x, self.a, y, self.b = wide
        self.eps, self.rho = np.longdouble(blur) ** 2, np.longdouble(reach) ** 2
        self.moves = x[:, None] - y[None]
        cost = (self.moves**2).sum(-1) / 2 / self.eps
        # f / epsilon and f / rho, over f in units.
        near = self.rho / (self.eps + self.rho)
        self.far = self.eps / (self.eps + self.rho)
        log_a, log_b = np.log(self.a), np.log(self.b)
        f, g = np.zeros_like(self.a), np.zeros_like(self.b)
        for _ in range(SWEEPS):
            old = g
            f = -soft(near * g[None] - cost + log_b, 1)
            g = -soft(near * f[:, None] - cost + log_a[:, None], 0)
            kept = soft(log_a - self.far * f, 0) - soft(log_b - self.far * g, 0)
            f, g = f + kept / (2 * self.far), g - kept / (2 * self.far)
            change = g - old
            if self.far < 1e-3:
                # Round-off of the mode that is solved for, to which nothing answers.
                change = change - change.mean()
            if np.abs(change).max() <= 1e-15 * (1 + np.abs(g).max()):
                break
        else:
            pytest.fail("the reference has not converged")
        self.f, self.g = f, g
        self.plan = self.a[:, None] * self.b * np.exp(near * (f[:, None] + g) - cost)
        lost = self.a @ np.expm1(-self.far * f) + self.b @ np.expm1(-self.far * g)
        self.value = -self.rho * lost - self.eps * (self.plan.sum() - 1)

    @property
    def in_points(self):
        """The derivative in x."""
        return (self.plan[..., None] * self.moves).sum(1)

    @property
    def in_weights(self):
        """The derivative in a, up to a constant."""
        return (self.rho + self.eps) * -np.expm1(-self.far * self.f)


def reference(mu, nu, blur, reach):
    """Return the divergence, its derivatives in points and in weights of `mu`."""
    (x, a), (y, b) = ((m.points.numpy(), m.weights.numpy()) for m in (mu, nu))
    cross = Plain(x, a, y, b, blur, reach)
    own, other = (Plain(z, w, z, w, blur, reach) for z, w in ((x, a), (y, b)))
    value = cross.value - (own.value + other.value) / 2
    slope = cross.in_weights - own.in_weights
    slope = slope - (cross.a * slope).sum()
    return (
        float(value),
        torch.tensor((cross.in_points - own.in_points).astype(float)),
        torch.tensor(slope.astype(float)),
    )


def found(mu, nu, blur, reach):
    """Return the same by the library."""
    x, a = (t.clone().requires_grad_() for t in (mu.points, mu.weights))
    value = sinkhorn_divergence(mu.with_free_atoms(x, a), nu, blur=blur, reach=reach)
    return float(value.detach()), *torch.autograd.grad(value, (x, a))


def clouds(unit, seed):
    """Return two weighted clouds of 4 and 5 points, some apart by 3 units."""
    mu, nu = weighted(4, seed=seed), weighted(5, seed=seed + 100)
    apart = 3.0 * (seed % 2)
    return mu.with_free_atoms(unit * mu.points), nu.with_free_atoms(
        unit * (nu.points + apart)
    )


BLURS = [1e-3, 0.1, 1.0, 10.0]
REACHES = [1e-100, 1e-8, 1e-6, 1e-4, 1e-2, 1.0, 1e3]


@pytest.mark.parametrize("blur", BLURS)
@pytest.mark.parametrize("size", [0.3, 1.0])
def test_value_and_gradients_at_any_reach(blur, size):
    """Clouds of a few blurs, reaches from far below the blur to far beyond."""
    for seed, reach in enumerate(REACHES):
        mu, nu = clouds(size * blur, seed)
        value, in_points, in_weights = reference(mu, nu, blur, reach)
        got, slope, variation = found(mu, nu, blur, reach)
        unit = blur * blur
        assert got == pytest.approx(value, rel=1e-9, abs=1e-12 * unit), reach
        for one, other, scale in (
            (slope, in_points, blur),
            (variation, in_weights, unit),
        ):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-11 * scale)


@pytest.mark.parametrize("reach", [1e5, 1e8, 1e100, 1e200])
def test_a_reach_far_beyond_the_blur_is_the_balanced_divergence(reach):
    # They differ by about the mass that is destroyed, (blur / reach)^2.
    mu, nu = clouds(0.1, 1)
    pairs = zip(found(mu, nu, 0.1, reach), found(mu, nu, 0.1, None), strict=True)
    for pair in pairs:
        got, balanced = (torch.as_tensor(part) for part in pair)
        torch.testing.assert_close(got, balanced, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("blur", [0.3, 1.0])
def test_a_small_reach_tends_to_a_kernel_distance(blur):
    """For reach -> 0 the limit is blur^2 / 2 times the MMD^2 of exp(-c / blur^2)."""
    x, y = normal(6, 2), normal(5, 2, seed=1)

    def kernel(u, v):
        squares = (u[:, None] - v[None]).square().sum(-1)
        return float((-squares / 2 / blur**2).exp().mean())

    limit = blur**2 / 2 * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))
    for reach in (1e-8, 1e-50, 1e-139):
        value = float(sinkhorn_divergence(x, y, blur=blur, reach=reach))
        assert value == pytest.approx(limit, rel=1e-12)


def test_a_reach_lost_in_the_range_of_numbers_is_refused_and_the_cure_works():
    x, y = normal(6, 2), normal(5, 2, seed=1)
    with pytest.raises(ValueError, match="take at least 1e-140") as caught:
        sinkhorn_divergence(x, y, blur=1.0, reach=1e-160)
    assert not isinstance(caught.value, of.errors.OtflowError)
    value = float(sinkhorn_divergence(x, y, blur=1.0, reach=1e-140))
    limit = float(sinkhorn_divergence(x, y, blur=1.0, reach=1e-30))
    assert value == pytest.approx(limit, rel=1e-12)
