"""Spectral bounds, growth with the data, and the table of norms on the interval."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
import torch

import otflow as of
from otflow.meanfield import (
    TwoLayer,
    barron_norm,
    norm_growth,
    norm_table,
    path_norm,
    spectral_barron_bound,
)

F64 = torch.float64


def grids(*sizes):
    return [torch.linspace(0, 1, n, dtype=F64)[:, None] for n in sizes]


def waves(seed, d):
    """Return frequencies and complex amplitudes of a random function."""
    generator = torch.Generator().manual_seed(seed)
    xi = 4 * torch.randn(3, d, generator=generator, dtype=F64)
    c = torch.randn(3, 2, generator=generator, dtype=F64)
    return xi, torch.complex(c[:, 0], c[:, 1])


def values(xi, c, X):
    return (torch.exp(1j * (X @ xi.T)) @ c).real


# The spectral bound -------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_the_bounds_are_in_their_order(seed, d):
    """Norm at data <= sharp bound <= bound of the survey; and above sup |f|."""
    xi, c = waves(seed, d)
    X = torch.rand(25, d, generator=torch.Generator().manual_seed(9), dtype=F64)
    f = values(xi, c, X)
    measured = barron_norm(X, f).bracket
    sharp, plain = (float(spectral_barron_bound(xi, c, sharp=s)) for s in (True, False))
    assert float(f.abs().max()) <= measured.upper <= sharp <= plain


def test_the_proof_by_its_network():
    """The sharp bound is the norm of the measure of the proof, here by quadrature."""
    xi = torch.tensor([[3.0, -2.0]], dtype=F64)
    c = torch.tensor([0.7 - 0.4j], dtype=torch.complex128)
    p, m, length = 3.0, 2.0, 5.0
    count = 4000
    neurons, masses = [], []
    for reach, sign in ((p, 1.0), (m, -1.0)):
        t = (torch.arange(count, dtype=F64) + 0.5) * reach / count
        outer = -(c * torch.exp(1j * sign * t)).real * reach / count
        inner = sign * xi.expand(count, 2)
        neurons.append(torch.cat([outer[:, None], inner, -t[:, None]], 1))
        masses.append(outer.abs() @ (length + t))
    slope, start = -(c.imag @ xi), float(c.real.sum())
    flat = [[start, 0, 0, 1], [float(slope[0]), 1, 0, 0], [float(slope[1]), 0, 1, 0]]
    theta = torch.cat([*neurons, torch.tensor(flat, dtype=F64)])
    mu = of.Particles(theta)
    X = torch.rand(50, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    network = TwoLayer("relu", scaling="sum")
    torch.testing.assert_close(network(mu, X), values(xi, c, X), atol=1e-5, rtol=0)
    # Moduli of amplitudes bound those of their real parts, by 2 / pi on average.
    size = float(path_norm(network, mu))
    assert size <= float(spectral_barron_bound(xi, c, sharp=True))
    assert size >= 0.5 * float(spectral_barron_bound(xi, c, sharp=True))


def test_what_the_sum_leaves_out_can_be_stated():
    xi, c = waves(0, 2)
    own = spectral_barron_bound(xi, c)
    f0 = float(c.real.sum())
    g0 = -(c.imag @ xi)
    torch.testing.assert_close(spectral_barron_bound(xi, c, f0, g0), own)
    more = spectral_barron_bound(xi, c, f0 + 1, g0 + torch.sign(g0))
    signed = 2 * (abs(f0 + 1) - abs(f0)) + 2 * 2
    torch.testing.assert_close(more, own + signed)


def test_the_bound_has_a_graph_and_keeps_the_dtype():
    xi, c = waves(1, 2)
    assert spectral_barron_bound(xi.float(), c.to(torch.complex64)).dtype == (
        torch.float32
    )
    xi.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: spectral_barron_bound(x, c), xi)
    c = torch.rand(3, dtype=F64).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: spectral_barron_bound(xi, a), c)


# The growth ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("f", "limit"),
    [
        (lambda x: x[:, 0].square(), 3.0),
        (lambda x: x[:, 0].exp(), 2 + math.e),
        (lambda x: (x[:, 0] - 0.5).abs(), 3.0),
    ],
)
def test_norms_of_members_level_off_below_their_limit(f, limit):
    growth = norm_growth(f, grids(26, 51, 101))
    assert growth.verdict == "levels off"
    assert all(bracket.lower <= limit for bracket in growth.brackets)
    assert growth.norms[-1] == pytest.approx(limit, rel=0.01)
    assert "evidence, not proof" in str(growth)


def test_the_norms_of_convex_functions_are_known_at_the_data():
    """2 f(0) + 2 s - f(1), with s the last slope, of a convex interpolation."""
    (X,) = grids(51)
    f = X[:, 0].exp()
    exact = float(2 * f[0] + 2 * (f[-1] - f[-2]) * 50 - f[-1])
    assert barron_norm(X, f).bracket.upper == pytest.approx(exact, abs=1e-8)


@pytest.mark.slow
def test_the_norms_of_a_root_grow():
    growth = norm_growth(lambda x: x[:, 0].sqrt(), grids(26, 51, 101, 201))
    assert growth.norms[0] == pytest.approx(5.99, abs=0.01)
    assert growth.norms[-1] == pytest.approx(15.14, abs=0.01)
    # Towards 1/2, from below.
    assert all(0.4 < one < two < 0.5 for one, two in pairwise(growth.slopes))
    assert growth.verdict == "grows"
    assert "evidence, not proof" in growth.text


def test_two_sets_of_data_do_not_decide_a_growth():
    growth = norm_growth(lambda x: x[:, 0].sqrt(), grids(11, 26))
    assert growth.verdict == "undecided"
    assert "More data may decide" in growth.text


def test_wide_brackets_decide_no_growth():
    """Upper bounds alone may grow, or level off, where the norms do not."""
    root = lambda x: x[:, 0].sqrt()
    sharp = norm_growth(root, grids(11, 26, 51))
    assert sharp.verdict == "grows"
    wide = norm_growth(root, grids(11, 26, 51), rounds=1)
    assert max(bracket.relative for bracket in wide.brackets) > 0.1
    assert wide.verdict == "undecided"
    assert re.search(r"is in \[.*of the upper bounds in n: .*Sharper", str(wide))
    line = norm_growth(lambda x: 0 * x[:, 0], grids(11, 26))
    assert line.verdict == "levels off"
    jump = norm_growth(lambda x: (x[:, 0] == 0.1).to(F64), grids(6, 11))
    assert all(math.isfinite(slope) for slope in jump.slopes)


# The table ----------------------------------------------------------------------------

FUNCTIONS = {
    "square": torch.square,
    "exponential": torch.exp,
    "root": torch.sqrt,
    "kink": lambda x: (x - 0.5).abs(),
    "wave": lambda x: torch.sin(7 * x),
    "falling": lambda x: 1 - x,
    "shifted": lambda x: 3 + (2 * x - 1).relu(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_inequalities_of_the_table(name):
    (X,) = grids(21)
    f = FUNCTIONS[name](X[:, 0])
    table = norm_table(X, f)
    for low, high in (
        (table.slope_variation, table.weighted_variation),
        (table.weighted_variation, table.barron),
        (table.barron, table.explicit),
        (table.slope_variation, table.f1),
        (table.f1, table.barron),
    ):
        assert low.lower <= high.upper
    assert table.barron.lower <= math.sqrt(2) * table.f1.upper
    assert float(f.abs().max()) <= table.barron.upper
    for bracket in (table.f1, table.barron):
        assert bracket.relative < 1e-6
    assert str(table).count("\n") == 4


def test_the_table_of_a_kink():
    (X,) = grids(11)
    table = norm_table(X, (X[:, 0] - 0.5).abs())
    exact = {
        "slope_variation": 2,
        "weighted_variation": 3,
        "f1": math.sqrt(5),
        "barron": 3,
        "explicit": 4.5,
    }
    for name, number in exact.items():
        bracket = getattr(table, name)
        assert number in bracket
        assert bracket.width < 1e-8


def test_a_table_shows_both_bounds_where_they_differ():
    (X,) = grids(11)
    rows = str(norm_table(X, torch.cos(5 * X[:, 0]), rounds=1)).splitlines()
    assert [" to " in row for row in rows] == [False, False, True, True, False]


@pytest.mark.slow
def test_each_inequality_is_sharp_for_a_function():
    """So that none of them can be improved by a factor."""
    (X,) = grids(21)
    tables = {name: norm_table(X, f(X[:, 0])) for name, f in FUNCTIONS.items()}
    kink, square = tables["kink"], tables["square"]
    assert kink.weighted_variation.upper == pytest.approx(kink.barron.upper, abs=1e-8)
    assert square.barron.upper == pytest.approx(square.explicit.upper, abs=1e-8)
    falling = tables["falling"]
    assert falling.barron.upper == pytest.approx(
        math.sqrt(2) * falling.f1.upper, abs=1e-8
    )


def test_the_order_of_the_data_does_not_matter():
    (X,) = grids(21)
    order = torch.randperm(21, generator=torch.Generator().manual_seed(0))
    f = torch.sin(7 * X[:, 0])
    one, two = norm_table(X, f), norm_table(X[order], f[order])
    assert one.weighted_variation.upper == pytest.approx(
        two.weighted_variation.upper, rel=1e-13
    )
    assert one.barron.upper == pytest.approx(two.barron.upper, rel=1e-8)
