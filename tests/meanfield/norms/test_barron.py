"""The least norm of a network through data: exact values, duality, true brackets."""

from __future__ import annotations

import math
import re

import pytest
import torch

import otflow as of
from otflow.meanfield import TwoLayer, barron_norm, path_norm
from otflow.meanfield.norms import extreme_rays, linear_programs
from tests.marks import slow

F64 = torch.float64
GRID = torch.linspace(0, 1, 101, dtype=F64)[:, None]
NETWORK = TwoLayer("relu")


def uniform(n, d, seed=0):
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=F64)


# A function, its norm "l1", its norm "l2".
KNOWN = {
    "ramp": (lambda x: (x - 0.5).relu(), 1.5, math.sqrt(1.25)),
    "kink": (lambda x: (x - 0.5).abs(), 3.0, math.sqrt(5)),
    "constant": (torch.ones_like, 1.0, 1.0),
    "identity": (lambda x: x, 1.0, 1.0),
    "falling": (lambda x: 1 - x, 2.0, math.sqrt(2)),
}


def features(X, v):
    return (torch.cat([X, torch.ones(len(X), 1, dtype=F64)], dim=1) @ v.T).relu()


def dual_violation(X, lam, norm):
    """Return the largest |<lam, relu>| over many neurons of norm 1, found otherwise.

    In one dimension all of them: a neuron is an angle, and sums of ReLUs are linear
    between the angles of the data.
    """
    if X.shape[1] == 1:
        t = torch.linspace(0, 2 * math.pi, 200_001, dtype=F64)
        v = torch.stack([t.cos(), t.sin()], dim=1)
        z = torch.cat([X, torch.ones(len(X), 1, dtype=F64)], dim=1)
        kinks = torch.stack([-z[:, 1], z[:, 0]], dim=1)
        v = torch.cat([v, kinks, -kinks])
    else:
        generator = torch.Generator().manual_seed(3)
        v = torch.randn(20_000, X.shape[1] + 1, generator=generator, dtype=F64)
        v = torch.cat([v, extreme_rays(X)]) if X.shape[1] < 4 else v
    order = 1 if norm == "l1" else 2
    v = v / torch.linalg.vector_norm(v, order, dim=1, keepdim=True)
    return max(float((lam @ features(X, part)).abs().max()) for part in v.split(4000))


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("name", KNOWN)
def test_norms_of_known_functions(name, norm):
    f, one, two = KNOWN[name]
    least = barron_norm(GRID, f(GRID[:, 0]), norm)
    exact = one if norm == "l1" else two
    assert exact in least.bracket
    assert least.bracket.width < 1e-8
    assert least.how == "exact"
    # Strong duality, and a dual that is feasible.
    assert float(least.dual @ f(GRID[:, 0])) == pytest.approx(exact, abs=1e-8)
    assert dual_violation(GRID, least.dual, norm) <= 1 + 1e-9


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_the_measure_interpolates_at_the_least_norm(norm):
    X = GRID[::5]
    f = torch.cos(5 * X[:, 0])
    least = barron_norm(X, f, norm)
    # Outputs of at most 30 neurons of norm 22: a few units in the last place.
    torch.testing.assert_close(NETWORK(least.measure, X), f, atol=1e-13, rtol=0)
    torch.testing.assert_close(least.outputs, f, atol=1e-13, rtol=0)
    size = float(path_norm(NETWORK, least.measure, norm))
    assert size == pytest.approx(least.bracket.upper, rel=1e-8)
    # All neurons have one size, so that it is the norm for every exponent p.
    a, v = NETWORK.split(least.measure.points)
    sizes = a[:, 0].abs() * torch.linalg.vector_norm(v, int(norm[1]), dim=1)
    torch.testing.assert_close(sizes, torch.full_like(sizes, size))


def test_known_limits_and_the_spectral_bound():
    x = GRID[:, 0]
    measured = [float(barron_norm(GRID, f).bracket.upper) for f in cosines(x)]
    bounds = [
        float(
            of.meanfield.spectral_barron_bound(
                torch.tensor([[xi]], dtype=F64), torch.ones(1, dtype=F64)
            )
        )
        for xi in (2 * math.pi, 5.0)
    ]
    assert measured == pytest.approx([37.0823, 22.0639], abs=1e-3)
    assert bounds == pytest.approx([80.957, 52.0], abs=1e-3)
    assert all(low <= high for low, high in zip(measured, bounds, strict=True))
    assert all(
        value >= float(f.abs().max())
        for value, f in zip(measured, cosines(x), strict=True)
    )


def cosines(x):
    return torch.cos(2 * math.pi * x), torch.cos(5 * x)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_no_other_interpolation_is_cheaper(d):
    """Against the whole linear program of all rays, by another method of SciPy."""
    from scipy.optimize import linprog

    X = uniform(12, d, seed=d)
    f = torch.sin(3 * X[:, 0]) * X[:, -1]
    A = features(X, extreme_rays(X)).numpy()
    both = linprog(
        [1.0] * (2 * A.shape[1]),
        A_eq=torch.cat([torch.as_tensor(A), -torch.as_tensor(A)], dim=1).numpy(),
        b_eq=f.numpy(),
        method="highs-ipm",
    )
    least = barron_norm(X, f)
    # The tolerances of the interior points are 1e-7.
    assert both.fun == pytest.approx(least.bracket.upper, rel=1e-6)
    assert least.how == "exact"
    assert least.bracket.relative < 1e-8


def test_random_neurons_are_dearer_than_rays():
    from scipy.optimize import linprog

    X = uniform(30, 2, seed=4)
    f = torch.sin(3 * X[:, 0]) * X[:, 1]
    v = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    A = features(X, v / v.abs().sum(1, keepdim=True))
    answer = linprog(
        [1.0] * 8000, A_eq=torch.cat([A, -A], 1).numpy(), b_eq=f.numpy(), method="highs"
    )
    assert answer.fun > 1.002 * barron_norm(X, f).bracket.upper


def test_the_norm_is_at_most_that_of_the_network_that_made_the_data():
    # Convex, and 0 with its slope at 0: no network is cheaper.
    theta = [[1.5, 0.4, -0.2], [0.5, 0.5, -0.1], [1.0, 1.5, -1.2]]
    mu = of.Particles(torch.tensor(theta, dtype=F64))
    made = float(path_norm(NETWORK, mu))
    assert made == pytest.approx(1.3, abs=1e-15)
    least = barron_norm(GRID, NETWORK(mu, GRID), representation=mu)
    assert least.bracket.lower <= made
    assert least.of_function is not None
    assert made in least.of_function
    assert least.bracket.upper == pytest.approx(made, abs=1e-8)


def test_a_network_may_be_dearer_than_its_outputs():
    theta = [[1.5, 0.4, -0.2], [-0.9, 0.5, 0.5], [1.2, -0.6, 0.4]]
    mu = of.Particles(torch.tensor(theta, dtype=F64))
    made = float(path_norm(NETWORK, mu))
    least = barron_norm(GRID, NETWORK(mu, GRID), representation=mu)
    assert least.of_function is not None
    assert made in least.of_function
    assert least.bracket.upper < 0.95 * made


def test_more_data_raise_the_norm():
    f = lambda x: torch.sin(3 * x[:, 0]) * x[:, 1]
    X = uniform(40, 2)
    few, more = (barron_norm(X[:n], f(X[:n])).bracket for n in (20, 40))
    assert few.lower < more.lower
    # The maximum of a function is below its norm.
    assert float(f(X).abs().max()) < more.lower


@pytest.mark.parametrize("norm", ["l1", *slow("l2")])
def test_a_norm_is_homogeneous_and_subadditive(norm):
    X = uniform(15, 2, seed=8) / 2**0.5
    f, g = torch.sin(4 * X[:, 0]), X[:, 1].square()
    one, two, both, triple = (
        barron_norm(X, h, norm).bracket for h in (f, g, f + g, -3e5 * f)
    )
    assert both.lower <= one.upper + two.upper
    assert triple.upper == pytest.approx(3e5 * one.upper, rel=1e-4)
    for bracket in (one, two, both, triple):
        assert bracket.relative < 1e-4


def test_the_norms_are_equivalent():
    X = uniform(15, 2, seed=9) / 2**0.5
    f = torch.sin(4 * X[:, 0])
    l1, l2 = (barron_norm(X, f, norm).bracket for norm in ("l1", "l2"))
    assert l2.lower <= l1.upper
    assert l1.lower <= math.sqrt(3) * l2.upper
    # Both inequalities are strict here by more than the brackets.
    assert 1.02 * l2.upper < l1.lower < 0.98 * math.sqrt(3) * l2.lower


def test_a_wide_bracket_is_still_true():
    """In 9 dimensions the dual is not closed: both ends hold nevertheless."""
    X = uniform(20, 9, seed=5)
    mu = of.Particles(torch.tensor([[1.0, 1, 1, *[0] * 7, -0.7]], dtype=F64))
    least = barron_norm(X, NETWORK(mu, X), representation=mu, budget=300, rounds=6)
    assert least.bracket.lower <= least.found
    assert least.bracket.lower <= float(path_norm(NETWORK, mu))
    # A dual that is proved holds for neurons of another search.
    assert dual_violation(X, least.dual, "l1") <= 1
    assert least.bracket.relative > 0.1
    assert re.search(" to .*, proved:", repr(least))
    assert NETWORK(least.measure, X) == pytest.approx(NETWORK(mu, X), abs=1e-12)


def test_single_precision_and_repeated_data():
    X = GRID[::10].float()
    f = (X[:, 0] - 0.5).abs()
    least = barron_norm(torch.cat([X, X[:3]]), torch.cat([f, f[:3]]))
    assert least.measure.points.dtype == torch.float32
    assert least.bracket.upper == pytest.approx(3, abs=1e-4)
    assert len(least.dual) == 14
    # A repeated datum has no weight of its own.
    assert not least.dual[-3:].any()


def test_the_function_zero():
    mu = of.Particles(torch.tensor([[0.0, 1, 0]], dtype=F64))
    least = barron_norm(GRID, torch.zeros(101, dtype=F64), representation=mu)
    assert least.bracket == of.metrics.Bracket(0.0, 0.0)
    assert least.of_function == of.metrics.Bracket(0.0, 0.0)
    assert not NETWORK(least.measure, GRID).any()


def test_one_datum():
    one = torch.ones(1, dtype=F64)
    least = barron_norm(0.5 * one[:, None], 3 * one)
    # A constant is the cheapest neuron: the feature of b is 1, that of w only 1/2.
    assert least.bracket.upper == pytest.approx(3, abs=1e-12)


# Brackets ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_brackets_are_true_for_data_of_all_kinds(seed):
    """Random sizes, dimensions, scales and degeneracies, after few or many rounds."""
    generator = torch.Generator().manual_seed(seed)
    n, d, rounds = (
        int(torch.randint(1, high, (1,), generator=generator)) for high in (9, 7, 30)
    )
    norm, kind = ("l1", "l2")[seed % 2], seed % 5
    X = 2 * torch.rand(n, d, generator=generator, dtype=F64) - 1
    if kind == 1:
        X = (2 * X).round() / 2
    if kind == 2:
        X[:, 0] = 0.25
    if kind == 3:
        near = X[:1] + 1e-5 * torch.randn(1, d, generator=generator, dtype=F64)
        X = torch.cat([X, near.clamp(-1, 1)])
    if kind == 4:
        X = 1e-3 * X
    X = torch.unique(X, dim=0)
    if norm == "l2":
        X = X / max(1.0, float(X.norm(dim=1).max()) * (1 + 1e-15))
    scale = 10.0 ** (22 * seed - 290)
    f = scale * torch.randn(len(X), generator=generator, dtype=F64)
    least = barron_norm(X, f, norm, rounds=rounds, budget=2000)
    low, high = least.bracket.lower, least.bracket.upper
    assert 0 <= low <= high
    assert low <= least.found * (1 + 1e-12) <= high * (1 + 1e-6)
    assert float(least.dual @ f) == pytest.approx(low, rel=1e-9)
    assert dual_violation(X, least.dual, norm) <= 1 + 1e-12
    size = float(path_norm(NETWORK, least.measure, norm))
    assert size <= high * (1 + 1e-12)
    assert float((least.outputs - f).abs().max()) <= 1e-11 * high
    # A neuron of norm 1 has an output of at most 1, or the root of 2.
    tall = math.sqrt(2) if norm == "l2" else 1
    assert float(f.abs().max()) <= tall * high * (1 + 1e-12)


@pytest.mark.parametrize("scale", [1e-322, 1e-300, 1e-160, 1e149])
def test_the_scale_of_the_values_does_not_matter(scale):
    X = GRID[::20]
    least = barron_norm(X, scale * (X[:, 0] - 0.4).abs())
    # |x - 2/5| at multiples of 1/5: kinks of height 2 at 2/5, at 7/5 each.
    assert scale * 2.8 in least.bracket
    assert bool(torch.isfinite(least.dual).all())
    assert least.how == ("proved" if scale < 1e-310 else "exact")


@pytest.mark.parametrize("apart", [1e-6, 1e-8, 1e-10])
def test_data_that_nearly_coincide_do_not_widen_a_bracket(apart):
    """The residual of a network has twice the digits, so that little is to repair."""
    X = torch.tensor([[0.0], [0.5], [0.5 + apart], [1.0]], dtype=F64)
    f = (X[:, 0] - 0.5).relu()
    least = barron_norm(X, f)
    assert 1.5 in least.bracket
    assert least.how == "exact"
    # And where they have values that differ, the measure takes them.
    f = torch.tensor([0.0, 0.0, 1.0, 0.5], dtype=F64)
    least = barron_norm(X, f)
    assert float((least.outputs - f).abs().max()) < 1e-15 * least.bracket.upper
    assert 3 / apart == pytest.approx(least.bracket.upper, rel=1e-5)
    assert least.bracket.relative < 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("size", [(60, 1), (25, 2), *slow((60, 2), (40, 3))])
@pytest.mark.parametrize("values", ["smooth", "random"])
def test_brackets_of_the_norm_l2_close(size, values):
    """The search ends on ridges of the sphere, not near them."""
    n, d = size
    X = uniform(n, d) / math.sqrt(d)
    f = torch.sin(3 * X[:, 0]) * X[:, -1]
    if values == "random":
        generator = torch.Generator().manual_seed(7)
        f = torch.randn(n, generator=generator, dtype=F64)
    least = barron_norm(X, f, "l2")
    assert least.how == "exact"
    assert least.bracket.relative < 2e-7
    assert dual_violation(X, least.dual, "l2") <= 1


@pytest.mark.slow
def test_forty_data_in_five_dimensions_have_an_exact_norm():
    """All 2.7 million rays are priced."""
    X = uniform(40, 5)
    least = barron_norm(X, torch.sin(3 * X[:, 0]) * X[:, -1])
    assert least.how == "exact"
    assert least.bracket.relative < 1e-7
    assert least.bracket.upper == pytest.approx(7.718206, abs=1e-6)
    assert dual_violation(X, least.dual, "l1") <= 1


@pytest.mark.parametrize("size", [(1, 12), (1, 200), (3, 20), *slow((3, 60))])
def test_few_data_in_many_dimensions(size):
    """All rays are priced, or, in 60 dimensions, drawn neurons of norm 1."""
    n, d = size
    X = uniform(n, d)
    f = torch.linspace(1, 2, n, dtype=F64)
    least = barron_norm(X, f)
    assert least.bracket.lower <= least.bracket.upper
    assert float(path_norm(NETWORK, least.measure)) <= least.bracket.upper * (1 + 1e-12)
    # A constant is cheapest for one datum in the cube.
    assert least.bracket.upper >= 1
    if n == 1:
        assert least.how == "exact"
        assert 1 in least.bracket


def test_a_later_program_that_is_not_solved_is_solved_otherwise(monkeypatch):
    """By orthonormal combinations of the conditions, with the same dual."""
    plain = linear_programs.program
    X = uniform(15, 2, seed=3)
    f = torch.sin(4 * X[:, 0]) - X[:, 1]
    whole = barron_norm(X, f)
    calls = []

    def refuses(features, goal, method):
        answer = plain(features, goal, method)
        calls.append(method)
        if torch.equal(goal, f / f.abs().max()):
            answer.status, answer.x = 4, None
        return answer

    monkeypatch.setattr(linear_programs, "program", refuses)
    least = barron_norm(X, f)
    assert len(calls) == 2 * least.rounds
    assert least.how == "exact"
    assert least.bracket.upper == pytest.approx(whole.bracket.upper, rel=1e-9)


@pytest.mark.slow
def test_a_hundred_data_in_two_dimensions():
    """The norm is exact, and that by random neurons is 7 % above it."""
    from scipy.optimize import linprog

    X = uniform(100, 2)
    f = torch.sin(3 * X[:, 0]) * X[:, 1]
    assert len(extreme_rays(X)) == 10_506
    least = barron_norm(X, f)
    assert least.how == "exact"
    assert least.bracket.relative < 1e-8
    assert dual_violation(X, least.dual, "l1") <= 1 + 1e-9
    v = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    A = features(X, v / v.abs().sum(1, keepdim=True))
    random = linprog(
        [1.0] * 8000, A_eq=torch.cat([A, -A], 1).numpy(), b_eq=f.numpy(), method="highs"
    )
    assert random.fun / least.bracket.upper - 1 == pytest.approx(0.0700, abs=5e-4)
