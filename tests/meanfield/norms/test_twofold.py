"""Residuals of ReLU networks against rational numbers."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from otflow.meanfield.norms.twofold import relu_residual, two_product, two_sum

F64 = torch.float64


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=F64)


def exactly(t):
    return [Fraction(float(x)) for x in t.flatten()]


def test_sums_and_products_lose_nothing():
    a, b = normal(200, seed=1), 1e-9 * normal(200, seed=2)
    for operation, pair in (
        (Fraction.__add__, two_sum),
        (Fraction.__mul__, two_product),
    ):
        high, low = pair(a, b)
        exact = map(operation, exactly(a), exactly(b))
        both = zip(exactly(high), exactly(low), strict=True)
        assert [h + e for h, e in both] == list(exact)


@pytest.mark.parametrize("scale", [1.0, 1e-150, 1e-300])
def test_a_residual_has_twice_the_digits(scale):
    """Coefficients of 1e8 leave a residual of 1e-8, of which all digits are right."""
    z = torch.rand(6, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    z[:, :2] *= scale
    v = normal(7, 4, seed=3)
    c, e = 1e8 * normal(7, seed=4), 1e-9 * normal(7, seed=5)
    f = (z @ v.T).relu() @ c
    residual, error = relu_residual(z, v, c, e, f)
    rows = [exactly(row) for row in z]
    neurons = [exactly(row) for row in v]
    exact = [
        value
        - sum(
            (a + b) * max(Fraction(0), sum(x * y for x, y in zip(row, w, strict=True)))
            for a, b, w in zip(exactly(c), exactly(e), neurons, strict=True)
        )
        for value, row in zip(exactly(f), rows, strict=True)
    ]
    gaps = [float(r - x) for r, x in zip(exactly(residual), exact, strict=True)]
    assert sum(gap**2 for gap in gaps) ** 0.5 <= error
    # The sums have 1e9, so that float64 alone leaves 1e-7.
    assert error < 1e-15
    assert float(residual.abs().max()) > 1e-10
