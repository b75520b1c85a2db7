"""Hypothesis strategies: measures of every shape, and rigid motions of their space."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

import otflow as of
from otflow.testing.clouds import normal

# Multiples of 1/64: coincident points and exact sums are common, and no point is so
# near another that a singular derivative would drown a tolerance.
coordinates = st.integers(-192, 192).map(lambda k: k / 64)


@st.composite
def particles(draw):
    """Return particles in float64: uniform, weighted, with zeros, with duplicates."""
    n, d = draw(st.integers(1, 7)), draw(st.integers(1, 3))
    rows = draw(st.lists(st.tuples(*[coordinates] * d), min_size=n, max_size=n))
    x = torch.tensor(rows, dtype=torch.float64).reshape(n, d)
    if draw(st.booleans()) and n > 1:
        x[draw(st.integers(1, n - 1))] = x[0]
    if draw(st.booleans()):
        return of.Particles(x)
    masses = st.lists(st.integers(0, 9), min_size=n, max_size=n).filter(any)
    w = torch.tensor(draw(masses), dtype=torch.float64)
    return of.Particles(x, w, normalize=True)


@st.composite
def motions(draw, dim):
    """Return an orthogonal matrix and a translation."""
    seed = draw(st.integers(0, 2**16))
    Q = torch.linalg.qr(normal(dim, dim, seed=seed))[0]
    return Q, 4 * normal(dim, seed=seed + 1)
