"""Gaps of networks of any unit over bounded outer weights and a box of inner ones."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.meanfield.inner_boxes import SHAPES, UnitSums, largest_in_box
from otflow.meanfield.units import UNITS
from otflow.testing.clouds import normal

F64 = torch.float64
Risk, TwoLayer = of.meanfield.Risk, of.meanfield.TwoLayer
VariationBall = of.meanfield.VariationBall
gap_of = of.optimality.optimality_gap


class MyTanh(of.meanfield.Unit):
    """A unit of one's own, by the name of a built-in one."""

    name = "tanh"

    def __call__(self, z):
        return 3 * torch.tanh(2 * z)

    def slope(self, z, value, out):
        return torch.mul(value, value, out=out).neg_().div_(1.5).add_(6)


def box(q, side=3.0):
    return -side * torch.ones(q, dtype=F64), side * torch.ones(q, dtype=F64)


def data(n, d, m=1, seed=0):
    X = normal(n, d, seed=seed)
    return torch.cat([X, X.new_ones(n, 1)], 1), normal(n, m, seed=seed + 1) / n


def inside(n, m, q, seed, side=3.0):
    """Return neurons whose inner weights lie in the box."""
    theta = normal(n, m + q, seed=seed)
    theta[:, m:].clamp_(-side, side)
    return theta


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("reach", [0.0, 1e-300, 1e-12, 1e-3, 0.3, 2.0, 15.0, 800.0])
def test_chords_are_as_close_to_the_units_as_they_say_and_no_closer(kind, reach):
    unit = kind()
    t = torch.cat([torch.linspace(-9, 9, 181, dtype=F64), torch.tensor([-60.0, 60.0])])
    g = UnitSums(t[:, None], t[:, None], unit, "l1")
    value, slope, error = g.chords(t[None], torch.full_like(t[None], reach))
    assert bool((error >= 0).all())
    # Many places near the middle as well, where the unit turns within a wide interval.
    share = torch.linspace(-1, 1, 4001, dtype=F64)
    share = torch.cat([share, share**5])[:, None]
    off = unit(t + reach * share) - (value + slope * reach * share)
    noise = 1e-14 * (1 + slope * (t.abs() + reach))
    assert bool((off.abs() <= error + noise).all())
    # Of all linear functions of this slope it is the closest one.
    for sign in (1, -1):
        attained = (sign * off).amax(0)
        assert bool((attained >= 0.999 * error - noise).all())


@pytest.mark.parametrize("name", sorted(UNITS))
@pytest.mark.parametrize(("m", "norm"), [(1, "l1"), (2, "l1"), (2, "l2")])
@pytest.mark.parametrize("d", [1, 2])
def test_no_inner_weights_lie_above_the_bracket(name, m, norm, d):
    z, q = data(12, d, m)
    g = UnitSums(z, q, UNITS[name], norm)
    lower, upper = box(d + 1)
    found = largest_in_box(g, lower, upper, z[:1] * 0, budget=20_000, ascents=20)
    assert found.closed
    assert found.upper - found.lower <= 1e-9 * found.lower
    generator = torch.Generator().manual_seed(2)
    v = lower + (upper - lower) * torch.rand(
        20_000, d + 1, generator=generator, dtype=F64
    )
    near = (found.place + 1e-3 * normal(2000, d + 1, seed=3)).clamp(lower, upper)
    for places in (v, near):
        assert float(g.size_of(g(places)).max()) <= found.upper
    value = g(found.place[None])[0]
    assert float(value @ found.direction) == pytest.approx(found.lower, rel=1e-12)


def test_bounds_of_boxes_hold_inside_each():
    # Random boxes of all sizes, and places in each.
    z, q = data(9, 2, 2)
    generator = torch.Generator().manual_seed(4)
    for name, unit in UNITS.items():
        for norm in ("l1", "l2"):
            g = UnitSums(z, q, unit, norm)
            for k in range(40):
                centre = 2 * normal(1, 3, seed=k)
                half = normal(1, 3, seed=k + 50).abs() * 10 ** (-k / 10)
                top = float(g.bound(centre, half)[0])
                u = torch.rand(500, 3, generator=generator, dtype=F64)
                values = g.size_of(g(centre + half * (2 * u - 1)))
                assert float(values.max()) <= top * (1 + 1e-12), (name, norm, k)


@pytest.mark.parametrize("unit", ["tanh", "erf", "sigmoid", "relu"])
def test_the_gap_bounds_the_excess_over_a_teacher(unit):
    # The teacher fits the data and lies in the ball, so the infimum is 0.
    network = TwoLayer(unit, offset=0.2)
    teacher = of.Particles(inside(3, 1, 2, seed=1))
    radius = float(teacher.weights @ teacher.points[:, 0].abs())
    X = normal(12, 1, seed=2)
    risk = Risk(network, X, network(teacher, X))
    ball = VariationBall(radius * (1 + 1e-12), *box(2), sharpness=0)
    best = gap_of(risk, teacher, ball)
    assert best.kind == "proved"
    assert best.value < 1e-11
    for k in range(30):
        theta = inside(5, 1, 2, seed=10 + k)
        theta[:, 0] *= radius / float(theta[:, 0].abs().mean())
        blend = 10 ** (-k / 4)
        mu = teacher.mix(of.Particles(theta), blend)
        gap = gap_of(risk, mu, ball)
        assert float(risk.value(mu)) <= gap.value
        assert gap.value - gap.found <= 1e-8 * gap.value + 1e-11


def test_the_neuron_to_add_lowers_the_risk_as_the_gap_says():
    X, y = normal(15, 2, seed=1), normal(15, 2, seed=2)
    network = TwoLayer("tanh", outputs=2, bias=False)
    risk, mu = Risk(network, X, y), of.Particles(inside(4, 2, 2, seed=3))
    for norm, order in (("l1", 1), ("l2", 2)):
        gap = gap_of(risk, mu, VariationBall(5.0, *box(2), norm))
        assert gap.argmin is not None
        outer = float(torch.linalg.vector_norm(gap.argmin[:2], order))
        assert outer == pytest.approx(5, rel=1e-12)
        slope = risk.first_variation(mu, gap.argmin[None])[0]
        slope = slope - mu.weights @ risk.first_variation(mu)
        assert -float(slope) == pytest.approx(gap.found, rel=1e-10)


def test_units_of_ones_own_are_searched():
    X, y = normal(8, 1, seed=1), normal(8, 1, seed=2)[:, 0]
    mu = of.Particles(inside(3, 1, 2, seed=3))
    gap = gap_of(Risk(TwoLayer(MyTanh()), X, y), mu, VariationBall(5.0, *box(2)))
    assert gap.kind == "searched"
    assert "ascent" in gap.reason
    assert gap.value == gap.found > 0
    assert math.isfinite(gap.value)


def test_a_small_budget_and_single_precision():
    X, y = normal(20, 2, seed=1), normal(20, 1, seed=2)[:, 0]
    risk, mu = Risk(TwoLayer("tanh"), X, y), of.Particles(inside(3, 1, 3, seed=3))
    sharp = gap_of(risk, mu, VariationBall(5.0, *box(3), budget=100_000))
    rough = gap_of(risk, mu, VariationBall(5.0, *box(3), budget=4))
    assert rough.kind == "proved"
    assert rough.value > 1.01 * sharp.value
    assert "a larger budget" in rough.reason
    single = Risk(TwoLayer("tanh"), X.float(), y.float())
    gap = gap_of(single, mu.to(torch.float32), VariationBall(5.0, *box(3)))
    assert gap.argmin is not None
    assert gap.argmin.dtype == torch.float32
    assert gap.value == pytest.approx(sharp.value, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "most"), [("tanh", 4000), ("sigmoid", 1000), ("erf", 5000)]
)
def test_chords_close_the_bracket_with_few_boxes(name, most, monkeypatch):
    boxes, whole = 0, UnitSums.bound

    def counted(self, centre, half):
        nonlocal boxes
        boxes += len(centre)
        return whole(self, centre, half)

    monkeypatch.setattr(UnitSums, "bound", counted)
    z, q = data(300, 2)
    found = largest_in_box(
        UnitSums(z, q, UNITS[name], "l1"),
        *box(3),
        z[:20],
        budget=20_000,
        ascents=20,
        level=lambda value: 1.01 * value,
    )
    assert found.closed
    assert found.upper <= 1.01 * found.lower * (1 + 1e-12)
    # Taylor's formula at the centres takes more than twice as many.
    assert boxes < most
