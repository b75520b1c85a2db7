"""Products of matrices and of batches are enclosed entry by entry."""

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch.nn import functional

from otflow.numerics.enclosures import Enclosure, row_count
from otflow.numerics.intervals import EPS

F64 = torch.float64
H = 5  # heads
# An operation on tensors of given shapes, and the same by einsum on single entries.
PRODUCTS: dict[str, Any] = {
    "mm": (torch.mm, (7, 4), (4, 3), "mi,ij->mj"),
    "mv": (torch.mv, (7, 4), (4,), "mi,i->m"),
    "dot": (torch.dot, (9,), (9,), "i,i->"),
    "bmm": (torch.bmm, (H, 7, 4), (H, 4, 3), "hmi,hij->hmj"),
    "square bmm": (torch.bmm, (H, H, 4), (H, 4, 3), "hmi,hij->hmj"),
    "cube bmm": (torch.bmm, (H, H, H), (H, H, H), "hmi,hij->hmj"),
    "bmm of one": (torch.bmm, (1, 7, 4), (1, 4, 3), "hmi,hij->hmj"),
    "matmul": (torch.matmul, (2, H, H, 4), (H, 4, 3), "bhmi,hij->bhmj"),
    "matmul of rows": (torch.matmul, (H, 4), (H, 4, 3), "mi,hij->hmj"),
    "heads": (
        lambda x, c: torch.einsum("chi,hij->chj", x, c),
        (H, H, 4),
        (H, 4, 2),
        "chi,hij->chj",
    ),
    "tensordot": (
        lambda x, c: torch.tensordot(x, c, dims=2),
        (6, 3, 4),
        (3, 4, 2),
        "mab,abj->mj",
    ),
    "linear": (functional.linear, (7, 4), (3, 4), "mi,ji->mj"),
}


def entries(formula, x, c):
    """Return the products of each sum as lists, by the indices of a formula."""
    (left, right), out = formula.split("->")[0].split(","), formula.split("->")[1]
    sizes = dict(zip(left + right, (*x.shape, *c.shape), strict=True))
    inner = [k for k in sizes if k not in out]
    order = [*out, *inner]
    axes = torch.meshgrid(*[torch.arange(sizes[k]) for k in order], indexing="ij")
    at = dict(zip(order, axes, strict=True))
    a, b = x[tuple(at[k] for k in left)], c[tuple(at[k] for k in right)]
    return a.flatten(len(out)), b.flatten(len(out))


def random_rows(shape, generator, infinite):
    """Return an enclosure of d = 2 with some infinite second derivatives."""
    ends = torch.randn(2, row_count(2, 2), *shape, generator=generator, dtype=F64)
    ends = ends.sort(0).values
    if infinite:
        draw = torch.rand(3, *shape, generator=generator)
        ends[1, 3:][draw < 0.2] = math.inf
        ends[0, 3:][draw < 0.1] = -math.inf
    return Enclosure(ends, 2, 2)


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("infinite", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_products_are_those_of_the_entries(name, infinite, turned):
    f, one, other, formula = PRODUCTS[name]
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        if turned:  # the constant is on the left
            c = torch.randn(*one, generator=generator, dtype=F64)
            x = random_rows(other, generator, infinite)
            found = f(c, x)
        else:
            c = torch.randn(*other, generator=generator, dtype=F64)
            x = random_rows(one, generator, infinite)
            found = f(x, c)
        for k in range(x.rows.shape[1]):
            ends = []
            for end in x.rows[:, k]:
                a, b = entries(formula, *((c, end) if turned else (end, c)))
                ends.append((a * b).nan_to_num(0.0, math.inf, -math.inf))
            low = torch.minimum(*ends).sum(-1)
            high = torch.maximum(*ends).sum(-1)
            assert found.shape == low.shape
            assert bool((found.rows[0, k] <= low + 1e-13).all())
            assert bool((found.rows[1, k] >= high - 1e-13).all())
            if k < 3 or not infinite:
                assert bool((found.rows[0, k] >= low - 1e-12).all())
                assert bool((found.rows[1, k] <= high + 1e-12).all())


@pytest.mark.parametrize("n", [3, 100, 4000])
@pytest.mark.parametrize("batch", [1, 2])
def test_round_off_grows_with_the_length_of_the_sum(n, batch):
    # Each small number is lost beside 1, and together they are not.
    x = torch.full((batch, n), 0.49 * EPS, dtype=F64)
    generator = torch.Generator().manual_seed(2)
    x[:, torch.randperm(n, generator=generator)[:8]] = 1.0
    ones = torch.ones(batch, n, 1, dtype=F64)
    exact = sum(map(Fraction, x[0].tolist()))
    points: Any = Enclosure.of(x, x, 0)
    sums: Any = (
        torch.bmm(points[:, None], ones),
        torch.bmm(ones.mT, points[:, :, None]),
        torch.einsum("bn,bnk->bk", points, ones),
        points @ ones[0],
        points.sum(-1),
    )
    for found in sums:
        low, high = found.value.reshape(2, -1)[:, 0].tolist()
        assert Fraction(low) <= exact <= Fraction(high)
