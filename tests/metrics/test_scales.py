"""Distances scale as lengths do, W(c mu, c nu) = c W(mu, nu), or the input is refused.

Squares of lengths below 1e-162 are 0 in float64, and above 1e154 infinite.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import otflow as of
from otflow.testing.clouds import normal

F64 = torch.float64
EXPONENTS = st.integers(-300, 300)
X, Y, Z = (normal(6, 2, seed=seed) for seed in range(3))
MASSES = torch.tensor([0.1, 0.2, 0.3, 0.25, 0.05, 0.1], dtype=F64)
SCALES = (torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=F64), torch.eye(2, dtype=F64))


def cloud(x, weights=None):
    return of.Particles(x, weights)


def levels(x, c):
    return of.Quantiles(c * x.reshape(-1).sort().values)


def cells(x, c):
    rho = x.reshape(-1).abs()
    return of.GridDensity(rho / c, 0, c, walls=True, normalize=True)


def bell(x, scale, c):
    return of.Gaussian(c * x[0], c * (c * scale))


def tangent(mu, nu):
    return mu.norm(mu.displacement_to(nu))


LENGTHS = {
    "clouds": lambda c: of.metrics.wasserstein2(c * X, c * Y),
    "weighted clouds": lambda c: of.metrics.wasserstein2(
        cloud(c * X, MASSES), cloud(c * Y)
    ),
    "powers of 1": lambda c: of.metrics.wasserstein(c * X, c * Y[:4]),
    "powers of 3": lambda c: of.metrics.wasserstein(
        cloud(c * X, MASSES), cloud(c * Y), 3.0
    ),
    "Gelbrich's bound": lambda c: of.metrics.gelbrich(c * X, c * Y),
    "a line": lambda c: of.metrics.wasserstein2(c * X[:, :1], c * Y[:4, :1]),
    "quantiles": lambda c: of.metrics.wasserstein2(levels(X, c), levels(Y, c)),
    "cells": lambda c: of.metrics.wasserstein2(cells(X, c), cells(Y, c)),
    "Gaussians": lambda c: of.metrics.wasserstein2(
        bell(X, SCALES[0], c), bell(Y, SCALES[1], c)
    ),
    "neurons": lambda c: of.metrics.quotient_distance(c * X, c * Y),
    "neurons up to sign": lambda c: of.metrics.quotient_distance(
        c * X, c * Y, symmetry=of.metrics.symmetries.Sign()
    ),
    "length": lambda c: of.metrics.length([c * X, c * Y, c * Z]),
    "tangents of clouds": lambda c: tangent(cloud(c * X), cloud(c * Y)),
    "tangents of quantiles": lambda c: tangent(levels(X, c), levels(Y, c)),
}
# Coordinates are refused from here on, and the boxes of cells are not coordinates.
LIMITS = dict.fromkeys(LENGTHS, (-300, 149)) | {
    "cells": (-300, 300),
    "Gaussians": (-153, 74),  # the covariance, a square, is what is given
}


@pytest.mark.parametrize("name", LENGTHS)
@given(exponent=EXPONENTS)
def test_a_distance_scales_as_a_length(name, exponent):
    c = 10.0**exponent
    least, most = LIMITS[name]
    if least <= exponent <= most:
        wanted = c * float(LENGTHS[name](1.0))
        assert float(LENGTHS[name](c)) == pytest.approx(wanted, rel=1e-12, abs=0)
        return
    try:
        found = float(LENGTHS[name](c))
    except (ValueError, of.errors.NonFinite):
        return
    assert found == pytest.approx(c * float(LENGTHS[name](1.0)), rel=1e-2, abs=0)


@given(exponent=EXPONENTS, weighted=st.booleans())
def test_a_plan_does_not_depend_on_the_unit(exponent, weighted):
    assume(exponent < 150)
    c = 10.0**exponent
    weights = MASSES if weighted else None
    one = of.metrics.transport_plan(cloud(X, weights), cloud(Y)).dense()
    plan = of.metrics.transport_plan(cloud(c * X, weights), cloud(c * Y))
    torch.testing.assert_close(plan.dense(), one, rtol=1e-12, atol=1e-15)
    assert torch.equal(of.metrics.assignment(c * X, c * Y), of.metrics.assignment(X, Y))


@given(exponent=EXPONENTS, name=st.sampled_from(["points", "weights"]))
def test_a_gradient_scales_as_its_distance(exponent, name):
    """In the points it has no unit, in the weights that of a length."""
    assume(exponent < 150)

    def gradient(c):
        x, w = (c * X).requires_grad_(), MASSES.clone().requires_grad_()
        of.metrics.wasserstein2(
            of.Particles(x, w if name == "weights" else MASSES), cloud(c * Y)
        ).backward()
        return x.grad if name == "points" else w.grad / c

    torch.testing.assert_close(
        gradient(10.0**exponent), gradient(1.0), rtol=1e-9, atol=1e-12
    )


@given(exponent=st.integers(-300, -170))
def test_a_small_move_beside_a_large_cloud_has_a_length(exponent):
    """{0, 1} and {c, 1} are c / sqrt(2) apart."""
    c = 10.0**exponent
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=F64)
    y = torch.tensor([[c, 0.0], [1.0, 0.0]], dtype=F64)
    found = float(of.metrics.wasserstein2(x, y))
    assert found == pytest.approx(c / 2**0.5, rel=1e-12, abs=0)


@given(exponent=st.integers(-300, -170))
def test_a_square_that_underflows_keeps_its_gradient(exponent):
    c = 10.0**exponent
    x = (c * X).requires_grad_()
    of.metrics.wasserstein2_squared(x, c * Y).backward()
    sigma = of.metrics.assignment(X, Y)
    torch.testing.assert_close(x.grad / c, 2 * (X - Y[sigma]) / 6, rtol=1e-12, atol=0)


def test_a_distance_too_large_for_its_dtype_is_refused():
    """Of cells of 1e36 the square is, of cells of 1e200 the density is."""
    rho = [x.reshape(-1).abs().float() for x in (X, Y)]
    mu, nu = (of.GridDensity(r, 0, 1e36, walls=True, normalize=True) for r in rho)
    distance = float(of.metrics.wasserstein2(mu, nu))
    wanted = 1e36 * float(of.metrics.wasserstein2(cells(X, 1.0), cells(Y, 1.0)))
    assert distance == pytest.approx(wanted, rel=1e-5)
    with pytest.raises(of.errors.NonFinite, match="float32"):
        of.metrics.wasserstein2_squared(mu, nu)
    with pytest.raises(ValueError, match="float32"):
        of.GridDensity(rho[0], 0, 1e200, walls=True, normalize=True)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_small_tangents_have_a_norm(dtype):
    """Squares of 1e-30 are 0 in float32."""
    mu = of.Particles(X.to(dtype))
    u = 1e-30 * Y.to(dtype)
    wanted = float((u.double() ** 2).sum(1).mean() ** 0.5)
    assert float(mu.norm(u)) == pytest.approx(wanted, rel=1e-6, abs=0)
