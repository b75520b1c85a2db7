"""Declared shapes of energies of a density: false ones are refuted, true ones never."""

from __future__ import annotations

import math
import random

import pytest
import torch

import otflow as of
from otflow.errors import InvalidFunctional
from otflow.functionals.chords import broken_chord, falling_chord

F64 = torch.float64
# The same power r^k / k, with k = m - 1, by roads of different round-off.
POWERS = [
    lambda r, k: r.pow(k) / k,
    lambda r, k: torch.expm1(k * r.log()) / k,
    lambda r, k: (r.pow(k + 1) / k) / r,
    lambda r, k: (k * r.log()).exp() / k,
    lambda r, k: 1 / (k * r.reciprocal().pow(k)),
]


def refuted(e, d):
    """Return what refutes McCann's condition in dimension d, None if nothing does."""
    return falling_chord(e) or broken_chord(e, d)


def random_energy(draw, d):
    """Return a positive sum of powers that obey the condition, half at its border."""
    terms = []
    for _ in range(draw.randint(1, 3)):
        k = -1 / d + (0 if draw.random() < 0.5 else 3 * draw.random() ** 3)
        a, power = 10 ** draw.uniform(-2, 2), draw.choice(POWERS)
        if abs(k) < 1e-3:
            terms.append(lambda r, a=a: a * r.log())
        else:
            terms.append(lambda r, a=a, k=k, power=power: a * power(r, k))
    constant = 10 ** draw.uniform(-2, 6) if draw.random() < 0.3 else 0.0
    return lambda r: sum(term(r) for term in terms) + constant


@pytest.mark.slow
def test_no_round_off_refutes_a_true_declaration():
    draw = random.Random(0)
    for _ in range(400):
        d = draw.randint(1, 7)
        e = random_energy(draw, d)
        assert refuted(e, d) is None
        assert broken_chord(e, 1) is None  # McCann's condition makes U convex
        F = of.Internal(e, modulus=0.0)
        assert F.modulus(d) == 0.0
        assert F.mixture_curvature() == "convex"


@pytest.mark.parametrize("d", [1, 2, 3, 7])
@pytest.mark.parametrize("below", [1e-3, 1e-6, 1e-9, 1e-12])
def test_a_power_just_below_the_border_is_refuted(d, below):
    for power in POWERS:
        F = of.Internal(lambda r, power=power: power(r, -1 / d - below), modulus=0.0)
        with pytest.raises(InvalidFunctional, match=f"in dimension {d}, that e"):
            F.modulus(d)
        if d > 1:
            assert F.modulus(1) == 0.0  # the condition is weaker there


@pytest.mark.parametrize(
    "e",
    [
        lambda r: (r + 1e8) - 1e8 + r.log(),
        lambda r: (r.log() + 1e12) - 1e12,
        lambda r: (1 + 1e-9 * r).log() * 1e9,
        lambda r: ((r + 1).square() - 1) / r.sqrt() / r.sqrt(),
        lambda r: (r + 1e-6).log(),
        lambda r: r.clamp_min(1e-12).log(),
        lambda r: r.pow(40),  # overflows float32
        lambda r: -torch.log1p(-r),
        lambda r: torch.where(r < 3, r, torch.inf),
    ],
)
def test_cancellation_inside_an_energy_refutes_nothing(e):
    assert refuted(e, 2) is None


def bump(r, a, z, w):
    """Return log r and a dent, with the derivatives in log r."""
    u = (r.log() - z) / w
    bell = a * (-u * u).exp()
    slope, bend = 1 + bell * 2 * u / w, bell * (2 - 4 * u * u) / w**2
    return r.log() - bell, slope, bend


def test_dents_of_an_entropy_are_judged_as_their_derivatives_are():
    """With E(z) = e(exp(z)) the condition is E' >= 0 and E'' + E'/d >= 0."""
    draw, counts = random.Random(1), [0, 0]
    fine = torch.linspace(-20, 20, 20_001, dtype=F64).exp()
    for _ in range(200):
        d = draw.randint(1, 4)
        a, z, w = 10 ** draw.uniform(-2, 2), draw.uniform(-8, 8), draw.uniform(0.3, 4)
        _, slope, bend = bump(fine, a, z, w)
        least = float(torch.minimum(slope, bend + slope / d).min())
        found = refuted(lambda r, a=a, z=z, w=w: bump(r, a, z, w)[0], d)
        if least > 0:
            assert found is None
            counts[0] += 1
        elif least < -1e-2:
            assert found is not None
            assert found.excess > found.noise
            counts[1] += 1
    assert min(counts) > 40


def test_the_chord_that_is_shown_is_one():
    e = lambda r: 3 * r - r * r
    found = broken_chord(e, 2)
    assert found is not None
    r = torch.tensor(found.densities, dtype=F64)
    torch.testing.assert_close(e(r), torch.tensor(found.values, dtype=F64))
    side = r.rsqrt()  # r^(-1/d)
    share = (side[1] - side[2]) / (side[0] - side[2])
    chord = share * e(r)[0] + (1 - share) * e(r)[2]
    assert float(e(r)[1] - chord) > 0
    assert str(found).count(",") >= 4


@pytest.mark.parametrize("word", ["convex", "concave", "linear"])
def test_the_shape_of_U_is_checked(word):
    shapes = {
        "convex": lambda r: r.exp(),
        "concave": lambda r: -r.sqrt(),
        "linear": lambda r: 0 * r + 2.5,
    }
    for name, e in shapes.items():
        F = of.Internal(e, mixture=word)
        if name in (word, "linear"):
            assert F.mixture_curvature() == word
            continue
        with pytest.raises(InvalidFunctional, match=f"mixture='{word}' was declared"):
            F.mixture_curvature()


def test_a_declaration_is_checked_once_in_each_dimension():
    calls = []

    def e(r):
        calls.append(len(r))
        return r.log()

    F = of.Internal(e, modulus=0.0)
    F.modulus(2)
    once = len(calls)
    assert once > 0
    for _ in range(3):
        F.modulus(2)
        F.why_modulus(2)
    assert len(calls) == once
    F.mixture_curvature()
    before = len(calls)
    for d in (1, 2):
        F.modulus(d)
        F.why(d)
    F.mixture_curvature()
    assert len(calls) == before
    F.modulus(3)
    assert len(calls) > before


def test_a_false_declaration_is_refuted_each_time_it_is_asked_for():
    F = of.Internal(lambda r: 3 * r - r * r, modulus=0.0)
    for _ in range(2):
        for ask in (lambda: F.modulus(1), F.mixture_curvature, lambda: (F + F).why(1)):
            with pytest.raises(InvalidFunctional, match="leave modulus= out"):
                ask()


def narrow(r):
    """Return a function of a layer in float32, which takes no float64."""
    return torch.nn.Linear(1, 1)(r[..., None])[..., 0]


def choosy(r):
    if bool((r > 10).any()):
        msg = "no density is above 10 here"
        raise ValueError(msg)
    return r.log()


@pytest.mark.parametrize("e", [narrow, choosy, lambda _: 0.0, lambda r: r.sum()])
def test_an_energy_that_cannot_be_tried_is_believed_and_says_so(e):
    F = of.Internal(e, modulus=0.0)
    assert F.modulus(2) == 0.0
    assert F.mixture_curvature() == "convex"
    assert "McCann's condition could not be checked: " in F.why(2)
    G = of.Internal(e, mixture="concave")
    assert G.mixture_curvature() == "concave"
    assert "could not be checked: " in G.why_mixture()


def test_what_no_internal_energy_has_is_no_modulus_of_one():
    with pytest.raises(ValueError, match="at most 0, since a translation"):
        of.Internal(torch.log, modulus=0.5)
    F = of.Internal(lambda r: -r, modulus=-1.0)
    assert F.modulus(1) == -1.0
    assert "a negative modulus is not checked" in F.why(1)
    assert F.mixture_curvature() is None


@pytest.mark.parametrize("dim", [1, 2, 3, 10, 10**18])
def test_the_closed_forms_obey_what_they_state(dim):
    powers = (0.4, 0.5, 2 / 3, 0.8, 0.9, 1.5, 3.0)
    for F in (of.Entropy(), *map(of.PowerEntropy, powers)):
        assert broken_chord(F.e, 1) is None
        if isinstance(F, of.PowerEntropy) and F.m <= (dim - 2) / dim:
            continue
        assert (F.modulus(dim) == 0.0) == (refuted(F.e, dim) is None)


# Jumps, infinities, numbers that float32 rounds ---------------------------------------

THRESHOLDS = [2.0**k for k in range(-3, 4)] + [2.0 ** (1 / 8), 1.0000001, 1.03, 10.0]


@pytest.mark.parametrize("at", THRESHOLDS)
@pytest.mark.parametrize("height", [1e-2, 1.0, 1e3])
@pytest.mark.parametrize("above", [True, False])
def test_a_jump_is_seen_wherever_it_is(at, height, above):
    """Also at a density that is tried, where its neighbours lie on both sides."""

    def jump(r):
        return height * ((r > at) if above else (r >= at)).to(r)

    def rising(r):
        return 0.01 * height * r.log() + jump(r)

    for e in (jump, rising):
        F = of.Internal(e, mixture="convex")
        # U jumps: it has a value above the chord.
        r = torch.tensor([at * (1 - 1e-9), at * 1.03, at * 1.5], dtype=F64)
        U, share = r * e(r), (r[1] - r[0]) / (r[2] - r[0])
        assert U[1] > (1 - share) * U[0] + share * U[2]
        with pytest.raises(InvalidFunctional):
            F.mixture_curvature()
        with pytest.raises(InvalidFunctional):
            of.Internal(e, modulus=0.0).modulus(3)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_an_infinite_value_between_finite_ones_is_a_chord(sign):
    def wall(r):
        return torch.where((r > 2) & (r < 3), sign * torch.inf, 0 * r)

    word = "convex" if sign > 0 else "concave"
    with pytest.raises(InvalidFunctional, match=rf"its e is .*{sign * math.inf}"):
        of.Internal(wall, mixture=word).mixture_curvature()
    with pytest.raises(InvalidFunctional, match=r"they fall"):
        of.Internal(wall, modulus=0.0).modulus(2)

    def end(r):
        return torch.where(r > 2, torch.inf, 0 * r)

    assert of.Internal(end, modulus=0.0).modulus(2) == 0.0  # hard congestion
    assert of.Internal(end, mixture="convex").mixture_curvature() == "convex"


def test_what_is_not_a_number_could_not_be_checked():
    def nowhere(r):
        return r * math.nan

    def somewhere(r):
        return torch.where((r > 2) & (r < 3), torch.nan, r)

    for e, at in ((nowhere, "9.31323e-10"), (somewhere, "2.18102")):
        for F in (of.Internal(e, mixture="convex"), of.Internal(e, modulus=0.0)):
            text = F.why(2)
            reason = "could not be checked: ArithmeticError: e is not a number at the"
            assert f"{reason} density {at}" in text
            assert "contradicts" not in text

    def wrong(r):  # refuted elsewhere
        return torch.where(r > 5, torch.nan, -r)

    with pytest.raises(InvalidFunctional):
        of.Internal(wrong, modulus=0.0).modulus(2)


@pytest.mark.parametrize("offset", [0.0, 1.0, 10.0, 1e3, 1e5, 1e8])
def test_energies_that_compute_in_single_precision_are_not_refuted(offset):
    draws = random.Random(0)
    for _ in range(25):
        d, c = draws.choice([1, 2, 3]), 10 ** draws.uniform(-2, 2)
        m = draws.uniform(1 - 1 / d + 0.05, 3)
        m = 1.1 if abs(m - 1) < 0.05 else m
        for e in (
            lambda r, m=m, c=c: offset + c * r.float().pow(m - 1) / (m - 1),
            lambda r, c=c: (offset + c * r.float().log()).double(),
            lambda r, c=c: offset + (c * r.float().log()).double(),
        ):
            assert of.Internal(e, modulus=0.0).modulus(d) == 0.0

    def false(r):
        return offset - 1e3 * (1 + offset) * r.float()

    with pytest.raises(InvalidFunctional):
        of.Internal(false, modulus=0.0).modulus(2)
