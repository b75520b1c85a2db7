"""The c-transform: equal to its definition, by either path, on every grid."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from otflow.measures import Box
from otflow.numerics.envelopes import compiled
from otflow.proximal.grid.c_transform import along_axis, c_transform, has_compiler

BOXES = [
    Box.of(-1.0, 2.0, (37,)),
    Box.of((-1.0, 0.0), (2.0, 1.0), (9, 14)),
    Box.of((0.0, -1.0, 2.0), (1.0, 1.0, 2.5), (5, 6, 7)),
]
compiled_too = pytest.mark.parametrize(
    "compiled",
    [
        False,
        pytest.param(
            True, marks=pytest.mark.skipif(not has_compiler(), reason="needs numba")
        ),
    ],
)


def random(n: int, *, barred: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    phi = torch.randn(n, generator=generator, dtype=torch.float64)
    out = torch.rand(n, generator=generator) < barred
    return phi.masked_fill(out, -math.inf)


def by_definition(phi: torch.Tensor, box: Box, dt: float) -> tuple:
    x = box.centres(phi)
    cost = (x[:, None] - x).square().sum(-1) / (2 * dt)
    return (cost - phi).min(1)


@compiled_too
@pytest.mark.parametrize("barred", [0.0, 0.4])
@pytest.mark.parametrize("dt", [0.01, 0.3, 20.0])
@pytest.mark.parametrize("box", BOXES, ids=lambda box: f"{box.dim}-D")
def test_it_is_the_minimum_over_all_cells(box, dt, barred, compiled):
    phi = random(box.n, barred=barred)
    value, index = c_transform(phi, box, dt, compiled=compiled)
    expected, where = by_definition(phi, box, dt)
    assert torch.allclose(value, expected, rtol=1e-13, atol=1e-13)
    assert torch.equal(index, where)
    assert torch.equal(c_transform(phi, box, dt, compiled=compiled)[0], value)


@compiled_too
def test_no_cell_at_all_gives_infinity(compiled):
    box = BOXES[1]
    phi = torch.full((box.n,), -math.inf, dtype=torch.float64)
    value, index = c_transform(phi, box, 1.0, compiled=compiled)
    assert bool((value == math.inf).all())
    assert bool(((index >= 0) & (index < box.n)).all())
    phi[40] = 0.0  # a single cell serves all
    value, index = c_transform(phi, box, 1.0, compiled=compiled)
    assert bool((index == 40).all())
    x = box.centres(phi)
    assert torch.allclose(value, (x - x[40]).square().sum(-1) / 2)


@compiled_too
def test_three_transforms_are_one(compiled):
    """phi^cc >= phi, and phi^ccc = phi^c."""
    box, dt = BOXES[1], 0.2
    phi = random(box.n)
    psi = c_transform(phi, box, dt, compiled=compiled)[0]
    back = c_transform(psi, box, dt, compiled=compiled)[0]
    assert bool((back >= phi - 1e-13).all())
    again = c_transform(back, box, dt, compiled=compiled)[0]
    assert torch.allclose(again, psi, rtol=0, atol=1e-12)


@compiled_too
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_follows_the_dtype(dtype, compiled):
    box = BOXES[2]
    phi = random(box.n).to(dtype)
    value, index = c_transform(phi, box, 0.5, compiled=compiled)
    assert value.dtype == dtype
    assert index.dtype == torch.int64
    expected = by_definition(phi.double(), box, 0.5)[0]
    assert torch.allclose(
        value.double(), expected, rtol=0, atol=8 * torch.finfo(dtype).eps
    )


@compiled_too
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_axis_at_a_time(axis, compiled):
    f = random(60).reshape(3, 4, 5)
    value, index = along_axis(f, axis, 0.5, 0.1, compiled=compiled)
    n = f.shape[axis]
    steps = torch.arange(n, dtype=torch.float64)
    cost = (0.5 * (steps[:, None] - steps)).square() / 0.2
    expected = (cost + f.movedim(axis, -1)[..., None, :]).min(-1)
    assert torch.allclose(value, expected.values.movedim(-1, axis), atol=1e-14)
    assert torch.equal(index, expected.indices.movedim(-1, axis))


def test_the_compiler_that_is_missing_is_named(monkeypatch):
    compiled.cache_clear()
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(ImportError, match=r"pip install 'otflow\[fast\]'"):
        c_transform(random(37), BOXES[0], 1.0, compiled=True)


def test_bad_input_is_refused():
    box = BOXES[0]
    with pytest.raises(ValueError, match=r"phi must have shape \(37,\)"):
        c_transform(torch.zeros(36), box, 1.0)
    with pytest.raises(ValueError, match="dt must be positive"):
        c_transform(torch.zeros(37), box, 0.0)
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="finite or minus infinity"):
            c_transform(torch.full((37,), bad), box, 1.0)
