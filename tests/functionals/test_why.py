"""Why a functional is convex: a line for each term, and the cause where unknown."""

from __future__ import annotations

import random
import re

import pytest
import torch

import otflow as of
from tests.functionals.test_mixtures import ALL, IDS

F64 = torch.float64


def square(x):
    return 0.5 * x.square().sum(-1)


SPRING = of.Potential(square, modulus=1.0)


def parts(text):
    """Return the head and the rows of both halves of a text."""
    lines = text.splitlines()
    second = next(
        k for k, line in enumerate(lines) if line.startswith("along mixtures")
    )
    halves = lines[:second], lines[second:]
    for _, *rows in halves:
        assert all(row.startswith("    ") for row in rows)
    return [(head, [row.strip() for row in rows]) for head, *rows in halves]


@pytest.mark.parametrize(("name", "F", "word", "make"), ALL, ids=IDS)
@pytest.mark.parametrize("dim", [None, 1, 2, 3])
def test_every_functional_says_why(name, F, word, make, dim):
    (first, bounds), (second, bends) = parts(F.why(dim))
    total = F.modulus(dim or 10**18)
    where = "every dimension" if dim is None else f"dimension {dim}"
    assert first.startswith(f"along displacements, in {where}: ")
    assert ("unknown" in first) == (total is None)
    assert second.startswith(f"along mixtures: {word or 'unknown'}")
    assert "override" not in F.why(dim)
    # Each row is a term, what is known of it, and a reason in words.
    for row in bounds + bends:
        assert re.search(
            r": [-+.\w]+, (as|since|by|the|minus|because|[-\d.e]+ times) ", row
        ), row


def test_there_is_one_row_for_each_term():
    F = (
        SPRING
        + 0.1 * of.Entropy()
        + 2 * (SPRING + of.Interaction(of.kernels.Gaussian(1)))
    )
    assert len(F.terms()) == 4
    for _, rows in parts(F.why(2)):
        assert [row.split(":")[0] for row in rows] == [
            "Potential(square)",
            "0.1 * Entropy()",
            "2 * Potential(square)",
            "2 * Interaction(Gaussian(sigma=1.0))",
        ]
    (head, rows), _ = parts(F.why(2))
    assert head.endswith(": 1-convex")  # 1 + 0.1 * 0 + 2 * (1 - 1)
    assert "2 times -1" in rows[3]


@pytest.mark.parametrize("seed", range(40))
def test_the_bounds_of_the_rows_add_up(seed):
    draw = random.Random(seed)
    leaves = [
        SPRING,
        of.Entropy(),
        of.PowerEntropy(0.6),
        of.Interaction(of.kernels.Gaussian(1.0) + of.kernels.Quadratic()),
        of.KL(of.Gaussian(torch.zeros(2), torch.eye(2))),
        of.MMDTo(torch.zeros(1, 2), of.kernels.Gaussian(0.5)),
    ]
    F = draw.choice(leaves)
    for _ in range(draw.randint(1, 5)):
        G = draw.choice(leaves)
        F = draw.choice([F + G, 0.25 * F, F + 2 * G, F - 0 * G, 0.5 * (F + G)])
    (head, rows), _ = parts(F.why(2))
    known = [re.search(r": (-?[\d.e+-]+|unknown), ", row) for row in rows]
    numbers = [found[1] for found in known if found]
    assert len(numbers) == len(rows)
    total = F.modulus(2)
    if total is None:
        assert "unknown" in numbers
        assert "unknown, because of" in head or len(rows) == 1
    else:
        assert sum(map(float, numbers)) == pytest.approx(total, rel=1e-4, abs=1e-4)
        assert head.endswith(f"{total:g}-convex")


def test_the_cause_of_an_unknown_bound_is_named():
    F = SPRING + of.PowerEntropy(0.6) - of.Interaction(of.kernels.Quadratic())
    (head, rows), (_, bends) = parts(F.why(3))
    assert head.endswith(
        "unknown, because of PowerEntropy(0.6), -Interaction(Quadratic())"
    )
    assert "m >= 1 - 1/d = 0.666667 fails for m = 0.6" in rows[1]
    assert "a negative factor turns a bound from below into one above" in rows[2]
    assert "convex, minus a concave term: since the energy is half the var" in bends[2]
    assert "PowerEntropy(0.6)," not in F.why(2).splitlines()[0]


def test_a_sum_of_convex_and_concave_names_no_single_term():
    F = of.Interaction(of.kernels.Energy()) + of.Interaction(of.kernels.Quadratic())
    _, (head, rows) = parts(F.why())
    assert head == (
        "along mixtures: unknown, because of a sum of convex and concave terms"
    )
    assert len(rows) == 2


def test_a_declaration_of_a_user_is_named_by_its_class():
    class Spread(of.Functional):
        def value(self, mu):
            return mu.weights.square().sum()

        def modulus(self, dim):
            return -3.0

        def mixture_curvature(self):
            return "convex"

    class Nothing(of.Functional):
        def value(self, mu):
            return mu.weights.square().sum()

    class Reasoned(Spread):
        def why_modulus(self, dim):
            return f"since I proved it in dimension {dim}"

    text = (Spread() + Reasoned()).why(2)
    assert "Spread(): -3, as Spread.modulus states" in text
    assert "Spread(): convex, as Spread.mixture_curvature states" in text
    assert "Reasoned(): -3, since I proved it in dimension 2" in text
    assert "Reasoned(): convex, as Spread.mixture_curvature states" in text
    text = Nothing().why(2)
    assert "since Nothing states none: override modulus(self, dim) where you" in text
    assert "since Nothing states none: override mixture_curvature(self) where" in text


def test_a_composite_of_a_user_is_taken_apart_unless_it_states_its_own():
    class Composite(of.Functional):
        def value(self, mu):
            return sum(c * F.value(mu) for c, F in self.terms())

        def terms(self):
            return ((2.0, SPRING), (1.0, of.Entropy()))

    class Stated(Composite):
        def modulus(self, dim):
            return 7.0

    (head, rows), _ = parts((3 * Composite()).why(2))
    assert head.endswith(": 6-convex")
    assert rows[0] == "6 * Potential(square): 6, 6 times 1: as modulus= of V declares"
    F = of.Entropy() + Stated()
    assert F.modulus(2) == 7.0
    (head, rows), (_, bends) = parts(F.why(2))
    assert rows[1] == "Stated(): 7, as Stated.modulus states"
    assert len(bends) == 3  # that of mixtures is taken from the terms


def test_a_subclass_that_overrides_a_bound_does_not_inherit_the_reason():
    class Steeper(of.Potential):
        def modulus(self, dim):
            return 2.0

    assert "2, as Steeper.modulus states" in Steeper(square, modulus=1.0).why()


def test_a_bound_that_overflows_says_so():
    F = of.Potential(square, modulus=1e308)
    assert "unknown, because of a sum that is infinite" in (F + F).why()
    assert "unknown, since 10 times 1e+308 overflows" in (10 * F).why()


@pytest.mark.parametrize(
    ("W", "words"),
    [
        (of.kernels.Quadratic() - of.kernels.Log(), "-Log() has no bound"),
        (of.kernels.Quadratic() + of.kernels.Log(), "none is known of Log()"),
        (2 * of.kernels.Quadratic() + of.kernels.Gaussian(1), "the sum of the bounds"),
    ],
    ids=repr,
)
def test_the_reason_of_a_sum_of_kernels_names_the_kernel(W, words):
    assert words in of.Interaction(W).why_modulus(2)


def test_the_kernels_of_the_library_ask_for_no_declaration():
    for W in (of.kernels.Log(), of.kernels.Riesz(1.0), of.kernels.PowerLaw(4, 2)):
        for reason in (W.why_modulus(), W.why_mixture()):
            assert "state" not in reason
    one, two = of.kernels.Function(square), of.kernels.TwoPoint(torch.mul)
    assert "give kernels.Function(W, modulus=0.0)" in one.why_modulus()
    assert "give kernels.TwoPoint(K, modulus=0.0)" in two.why_modulus()


def test_a_translation_bounds_the_modulus_of_an_interaction():
    F = of.Interaction(square, modulus=1.0)
    assert "Interaction(square): 0, since a translation does not change F" in F.why()


class Bell(of.kernels.RadialKernel):
    """A kernel whose class says nothing of its energy."""

    def profile(self, s):
        return 1 / (1 + s)

    def slope(self, s):
        return -1 / (1 + s) ** 2


class KnownBell(Bell):
    """The same, declared."""

    mixture = "convex"


def test_no_reason_names_an_argument_that_the_functional_does_not_take():
    text = of.MMDTo(torch.zeros(1, 1, dtype=F64), square).why()
    assert "Potential(V, modulus=...)" not in text
    assert "Potential(Witness): unknown, since no bound of the Hessian of" in text


def test_what_a_reason_says_to_do_makes_it_known():
    def bump(z):
        return (-z.square()).exp().prod(-1)

    def network(scaling):
        return of.meanfield.TwoLayer("tanh", scaling=scaling)

    X = torch.linspace(-1, 1, 5, dtype=F64)[:, None]
    unknown_then_known = [
        (
            of.Interaction(of.kernels.Function(bump)),
            'give kernels.Function(W, mixture="convex") if that is true',
            of.Interaction(of.kernels.Function(bump, mixture="convex")),
        ),
        (
            of.MMDTo(X, bump),
            'give kernels.Function(W, mixture="convex") if that is true',
            of.MMDTo(X, of.kernels.Function(bump, mixture="convex")),
        ),
        (
            of.Interaction(of.kernels.TwoPoint(torch.mul)),
            'give kernels.TwoPoint(K, mixture="convex") if that is true',
            of.Interaction(of.kernels.TwoPoint(torch.mul, mixture="convex")),
        ),
        (
            of.Interaction(Bell()),
            'set mixture = "convex" in Bell if that is true',
            of.Interaction(KnownBell()),
        ),
        (
            of.meanfield.Risk(network("ntk"), X, X[:, 0]),
            "take scaling='mean-field'",
            of.meanfield.Risk(network("mean-field"), X, X[:, 0]),
        ),
        (
            of.meanfield.Risk(network("mean-field"), X, X[:, 0], loss=torch.sub),
            "Risk(..., mixture='convex')",
            of.meanfield.Risk(
                network("mean-field"), X, X[:, 0], loss=torch.sub, mixture="linear"
            ),
        ),
        (
            of.OfExpectation(torch.sum, torch.sin),
            'OfExpectation(R, Phi, mixture="convex")',
            of.OfExpectation(torch.sum, torch.sin, mixture="linear"),
        ),
        (
            of.Internal(torch.log),
            'Internal(e, mixture="convex")',
            of.Internal(torch.log, mixture="convex"),
        ),
        (
            of.SinkhornDivergenceTo(X, 0.1, reach=1.0),
            "leave reach out",
            of.SinkhornDivergenceTo(X, 0.1),
        ),
    ]
    for before, words, after in unknown_then_known:
        assert before.mixture_curvature() is None
        assert words in before.why()
        assert after.mixture_curvature() is not None
    assert "Potential(V, modulus=...)" in of.Potential(square).why_modulus(2)
    assert "Internal(e, modulus=0.0)" in of.Internal(torch.log).why_modulus(2)


@pytest.mark.parametrize("dim", [0, -1, 1.5, "2", True])
def test_a_dimension_is_a_positive_integer(dim):
    with pytest.raises((TypeError, ValueError), match="dim must be"):
        SPRING.why(dim)


class Wavy(of.meanfield.TwoLayer):
    """Outputs that are not linear in the measure."""

    def evaluate(self, *args):
        return super().evaluate(*args).sin()


class Stated(of.meanfield.Risk):
    def mixture_curvature(self):
        return "concave"


def test_outputs_that_a_network_changes_need_not_be_linear():
    X = torch.linspace(-1, 1, 4, dtype=F64)[:, None]
    data = Wavy("tanh"), X, X[:, 0]
    text = of.meanfield.Risk(*data).why(dim=3)
    assert "Wavy.evaluate changes the outputs, which need not be linear" in text
    assert of.meanfield.Risk(*data).mixture_curvature() is None
    assert Stated(*data).mixture_curvature() == "concave"
