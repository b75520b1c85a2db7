"""The curvature along mixtures: exact ones, witnesses, and no refuted truth."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.analysis import mixture_convexity
from otflow.errors import NonFinite, Unsupported
from otflow.testing.clouds import normal
from tests.functionals.test_mixtures import ALL, IDS, pairs

F64 = torch.float64
A, B = of.Particles(normal(6, 2, seed=1)), of.Particles(normal(4, 2, seed=2))
V = of.Potential(lambda x: x.square().sum(-1))


class OfMean(of.Functional):
    """A function of the mean of the first coordinate."""

    def __init__(self, function, word="convex"):
        self.function, self.word = function, word

    def value(self, mu):
        return self.function(mu.expectation(lambda x: x[..., 0]))

    def mixture_curvature(self):
        return self.word


def on_line(*places):
    return of.Particles(torch.tensor(places, dtype=F64)[:, None])


def test_of_a_kernel_it_is_the_squared_distance():
    """F'' = iint k d(a - b) d(a - b), for every t."""
    k = of.kernels.Gaussian(0.7)
    report = mixture_convexity(of.Interaction(k), A, B)
    exact = 2 * float(of.MMDTo(B, k).value(A))
    assert report.curvature.tolist() == pytest.approx([exact] * 21, rel=1e-12)
    assert report.between.tolist() == pytest.approx([exact] * 20, rel=1e-10)
    assert report.minimum == pytest.approx(exact, rel=1e-10)
    assert float(report.shares.sum()) == pytest.approx(exact, rel=1e-10)
    assert report.shares.shape == (A.n + B.n,)
    assert report.declared_modulus == 0
    assert not report.violates_declared
    assert math.isnan(report.w2)


def test_of_an_entropy_it_is_the_chi_square():
    """F'' = int (b - a)^2 / rho_t on the cells of a grid."""
    a, b = (
        of.GridDensity(normal(12, seed=s).exp(), -1, 2, normalize=True, walls=True)
        for s in (3, 4)
    )
    report = mixture_convexity(of.Entropy(), a, b)
    for t, found in zip(report.times.tolist(), report.curvature, strict=True):
        w = torch.lerp(a.weights, b.weights, t)
        exact = float(((b.weights - a.weights).square() / w).sum())
        assert float(found) == pytest.approx(exact, rel=1e-10)


def test_the_least_curvature_of_a_function_of_the_mean():
    """(m^2 - 1)^2 bends by -4 at m = 0, and the way is two long."""
    F = OfMean(lambda m: (m.square() - 1).square())
    report = mixture_convexity(F, on_line(-1.0), on_line(1.0))
    assert report.minimum == pytest.approx(-16.0, rel=1e-9)
    assert report.time == pytest.approx(0.5)
    assert report.roundoff < 1e-6
    assert report.violates_declared
    # On one side of the inflections nothing is refuted.
    side = mixture_convexity(F, on_line(0.7), on_line(3.0))
    assert side.minimum > 0
    assert not side.violates_declared


@pytest.mark.parametrize(("sign", "refuted"), [(1.0, False), (-1.0, True)])
def test_kinks_count(sign, refuted):
    F = OfMean(lambda m: sign * m.abs())
    report = mixture_convexity(F, on_line(-0.7), on_line(1.0))
    assert report.violates_declared is refuted
    assert (report.minimum < -100) is refuted


class Variance(of.Functional):
    def value(self, mu):
        mean = mu.expectation(lambda x: x)
        return mu.expectation(lambda x: (x - mean).square().sum(-1))

    def mixture_curvature(self):
        return "convex"


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_a_false_word_is_refuted_in_both_dtypes(dtype, offset):
    """The variance bends by -2 |m_a - m_b|^2."""
    a, b = (of.Particles((mu.points + offset).to(dtype)) for mu in (A, B))
    report = mixture_convexity(Variance(), a, b)
    means = (mu.points.double().mean(0) for mu in (a, b))
    exact = -2 * float((next(means) - next(means)).square().sum())
    assert report.violates_declared
    assert report.minimum == pytest.approx(exact, rel=1e-3)
    assert report.minimum - report.roundoff <= exact + 1e-6


# They solve a transport problem for each value.
SLOW = {"Sinkhorn", "W2", "W2 to a picture", "W2 on the line", "sliced W2"}
TRUE = [
    pytest.param(*entry, id=label, marks=[pytest.mark.slow] * (entry[0] in SLOW))
    for entry, label in zip(ALL, IDS, strict=True)
    # Mixtures of parts are not looked along, see test_the_cures of parts.
    if entry[2] is not None and entry[3] is not pairs
]


def no_number_refutes(F, word, a, b):
    """A concave functional is asked about with the other sign, a linear with both."""
    for sign in {"convex": [1], "concave": [-1]}.get(word, [1, -1]):
        report = mixture_convexity(sign * F, a, b, times=3)
        assert report.declared_modulus == 0
        assert not report.violates_declared, (report.minimum, report.roundoff)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "F", "word", "make"), TRUE)
def test_no_true_word_is_refuted(name, F, word, make):
    mixture = make(5)
    no_number_refutes(F, word, mixture(0.0), mixture(1.0))


@pytest.mark.parametrize("name", ["Gaussian", "quadratic", "MMD", "entropy"])
def test_no_true_word_is_refuted_in_float32(name):
    F, word, make = next(entry[1:] for entry in ALL if entry[0] == name)
    mixture = make(5)
    G = F.to(torch.float32)
    no_number_refutes(G, word, *(mixture(t).to(torch.float32) for t in (0.0, 1.0)))


def test_single_precision_inside_refutes_nothing():
    class Single(OfMean):
        def value(self, mu):
            return 1e3 + super().value(mu).float().double()

        def mixture_curvature(self):
            return self.word

    for function in (lambda m: 3 * m, lambda m: m.square()):
        F = Single(function)
        assert not mixture_convexity(F, on_line(0.1), on_line(0.3)).violates_declared


@pytest.mark.parametrize("seed", range(10))
def test_round_off_refutes_no_linear_functional(seed):
    """At an offset of 1e8 nothing but round-off is left of the curvature."""
    a, b = (of.Particles(1e8 + normal(5, 1, seed=seed + s)) for s in (0, 50))
    for F in (V, -V):
        assert not mixture_convexity(F, a, b).violates_declared


def test_a_functional_without_a_second_derivative_is_seen_by_values():
    class ByHand(OfMean):
        def value(self, mu):
            return super().value(mu).detach().clone()

        def mixture_curvature(self):
            return "convex"

    F = ByHand(lambda m: (m.square() - 1).square())
    report = mixture_convexity(F, on_line(-1.0), on_line(1.0))
    assert report.minimum == pytest.approx(-16.0, rel=1e-2)
    assert report.violates_declared
    assert bool((report.shares == 0).all())


def test_measures_on_common_atoms_share_them():
    u, v = (
        of.Particles(A.points, normal(6, seed=s).exp(), normalize=True) for s in (7, 8)
    )
    report = mixture_convexity(of.Interaction(of.kernels.Gaussian(1.0)), u, v)
    assert report.shares.shape == (6,)


BAD = {
    "one measure": (
        ValueError,
        "there is no mixture to look along; change one",
        V,
        A,
        A,
    ),
    "two times": (ValueError, "times must be at least 3", V, A, B),
    "Gaussians": (
        Unsupported,
        "mix draws of both",
        V,
        *(of.Gaussian(torch.full((1,), m), torch.eye(1)) for m in (0.0, 1.0)),
    ),
    "two dimensions": (
        ValueError,
        "b lies in dimension 1 but a in dimension 2",
        V,
        A,
        on_line(0.0),
    ),
    "no functional": (TypeError, "F must be a Functional", 3, A, B),
    "no measure": (TypeError, "b must be a Measure", V, A, 3),
    "two dtypes": (TypeError, "dtype", V, A, B.to(torch.float32)),
    "a singular kernel": (
        Unsupported,
        "no function of the measure.*use a kernel that is finite at 0",
        of.Interaction(of.kernels.Log()),
        A,
        B,
    ),
    "an infinite value": (
        NonFinite,
        "at time 0.5",
        OfMean(lambda m: 1 / m),
        on_line(-1.0),
        on_line(1.0),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_told(name):
    error, words, F, a, b = BAD[name]
    times = 2 if name == "two times" else 21
    with pytest.raises(error, match=words):
        mixture_convexity(F, a, b, times=times)
