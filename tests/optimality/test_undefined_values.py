"""What is not a number proves nothing, whatever bounded function hides it."""

import math

import pytest
import torch
from torch.nn import functional

import otflow as of
from otflow.errors import NonFinite
from otflow.numerics.enclosures import Enclosure, NotEnclosed
from otflow.numerics.intervals import dot, exact, scale
from otflow.optimality import BoxDomain, optimality_gap

F64 = torch.float64
NAN, INF = math.nan, math.inf
T, ZERO = torch.tensor([NAN], dtype=F64), torch.zeros(1, dtype=F64)

# Functions of one number t (m,) that are NaN at all of them.
UNDEFINED = {
    "times": lambda t: t * T,
    "times a number": lambda t: NAN * t,
    "plus": lambda t: t + T,
    "plus a multiple": lambda t: torch.add(t, t, alpha=NAN),
    "over": lambda t: t / T,
    "over a number": lambda t: t / NAN,
    "one over": lambda t: T / (2 + t),
    "product of matrices": lambda t: t[:, None] @ T,
    "product from the left": lambda t: (T[None] @ t[None])[0],
    "batches": lambda t: torch.bmm(t[:, None, None], T.expand(len(t), 1, 1))[:, 0, 0],
    "linear": lambda t: functional.linear(t[:, None], T[None], T)[:, 0],
    "prod": lambda t: torch.stack([0 * t, T.expand(len(t))]).prod(0),
    "sum": lambda t: torch.stack([0 * t, T.expand(len(t))]).sum(0),
    "mean": lambda t: torch.stack([0 * t, T.expand(len(t))]).mean(0),
    "maximum": lambda t: torch.maximum(t, T),
    "clamp": lambda t: t.clamp(min=NAN),
    "where": lambda t: torch.where(torch.tensor(False), t, T),
    "power": lambda t: (2 + t) ** NAN,
    "norm": lambda t: (t * T)[:, None].norm(dim=-1),
    "power of": lambda t: NAN**t,
    "zero times infinity": lambda t: (0 * t) * INF,
    "zero times infinities": lambda t: (0 * t) * (ZERO + INF),
    "zero by infinities": lambda t: (0 * t)[:, None] @ (ZERO + INF),
    "infinite difference": lambda t: t + (ZERO + INF) - INF,
    "logarithm": lambda t: (t - 5).log(),
    "root": lambda t: (t - 5).sqrt(),
    "multiple of a root": lambda t: (t - 5).sqrt() * ZERO,
    "odd power": lambda t: (t - 5) ** 1.5,
}
HIDDEN = {
    "plain": lambda y: y,
    "clamp": lambda y: y.clamp(0.0, 1.0),
    "sigmoid": torch.sigmoid,
    "sine": torch.sin,
    "zero": lambda y: y * ZERO,
}


@pytest.mark.parametrize("name", UNDEFINED)
def test_no_gap_is_proved_of_a_function_without_values(name):
    mu, box = of.Particles(torch.tensor([[0.4], [0.9]], dtype=F64)), BoxDomain(-1, 1)
    for hide in HIDDEN.values():
        V = of.Potential(lambda x, hide=hide: hide(UNDEFINED[name](x[..., 0])))
        with pytest.raises(NonFinite):
            V.value(mu)
        try:
            gap = optimality_gap(V, mu, box)
        except NonFinite:
            continue
        assert gap.kind == "none"
        assert math.isinf(gap.value)


def test_one_atom_without_a_value_is_enough():
    mu = of.Particles(torch.tensor([[-0.5], [0.9]], dtype=F64))
    F = of.Potential(lambda x: x[..., 0].log().clamp(0.0, 1.0))
    with pytest.raises(NonFinite):
        optimality_gap(F, mu, BoxDomain(-1, 1))


@pytest.mark.parametrize("name", list(UNDEFINED)[:19])
def test_a_constant_that_is_not_a_number_is_named(name):
    x = torch.linspace(-1, 1, 4, dtype=F64)[:, None]
    with pytest.raises(NotEnclosed, match="a constant that is NaN"):
        UNDEFINED[name](Enclosure.of(x[:-1], x[1:], 2)[:, 0])


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_intervals_times_what_is_not_finite_are_the_line(bad):
    t = torch.tensor([[-1.0, 0.0, 2.0], [0.0, 0.0, INF]], dtype=F64)
    c = torch.tensor([1.0, bad, 0.0], dtype=F64)
    line = [-INF, INF]
    found = scale(t, c)
    assert found[:, 1].tolist() == line
    assert bool(torch.isfinite(found[:, [0, 2]]).all())
    found = dot(t[:, None], torch.stack([c, c.flip(0), torch.ones(3).to(c)], 1))
    assert found[:, 0, 0].tolist() == line
    assert found[:, 0, 1].tolist() == line
    batch = dot(t[:, None, None], torch.stack([c, 0 * t[0]])[..., None])[:, :, 0, 0]
    assert batch[:, 0].tolist() == line
    assert bool((batch[:, 1].abs() < 1e-300).all())


def test_an_interval_of_what_is_not_a_number_is_the_line():
    assert exact(T)[:, 0].tolist() == [-INF, INF]
