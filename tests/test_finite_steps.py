"""What is not finite in a step raises at its place, with its type, in both dtypes."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import asdict, dataclass, fields

import pytest
import torch

import otflow as of
from otflow.proximal import Certificate

NUMBERS = [math.nan, math.inf, -math.inf]
DTYPES = [torch.float32, torch.float64]
# The largest coordinate whose squares may still be summed.
LIMITS = {torch.float32: 1e15, torch.float64: 1e150}


def cloud(dtype, graph=False):
    x = torch.linspace(-1, 1, 400, dtype=dtype).reshape(200, 2)
    return of.Particles(x.requires_grad_(graph))


class Late(torch.autograd.Function):
    """A sum whose value is right, and whose gradient has one wrong entry."""

    @staticmethod
    def forward(ctx, x, number):
        ctx.number, ctx.shape = number, x.shape
        return x.sum()

    @staticmethod
    def backward(ctx, g):
        slope = g.expand(ctx.shape).clone()
        slope[150, 1] = ctx.number
        return slope, None


class Steep(of.Functional):
    """The value is finite; one entry of the gradient is not."""

    def __init__(self, number):
        self.number = number

    def value(self, mu):
        return Late.apply(mu.points, self.number)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("graph", [False, True])
def test_a_gradient_with_one_entry_that_is_not_finite(dtype, number, graph):
    F, mu = Steep(number), cloud(dtype, graph)
    assert F.value(mu).isfinite()
    named = rf"gradient is {number}, first at index \(150, 1\)"
    for verb in (F.velocity, F.value_and_velocity, F.__add__(F).velocity):
        with pytest.raises(of.errors.NonFinite, match=named):
            verb(mu)
    with pytest.raises(of.errors.NonFinite, match=named):
        mu.position_gradient(F.value)
    with pytest.raises(of.errors.Diverged, match=named) as caught:
        of.flow(F, mu, of.ExplicitEuler(), dt=0.1, steps=3)
    assert isinstance(caught.value.__cause__, of.errors.NonFinite)
    assert caught.value.step == 0
    assert torch.equal(caught.value.measure.points, mu.points.detach())


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("graph", [False, True])
def test_a_value_that_is_not_finite(dtype, number, graph):
    mu = cloud(dtype, graph)

    def value(nu):
        return nu.points.sum() + number

    with pytest.raises(of.errors.NonFinite, match=f"value is {number}"):
        mu.value_and_position_gradient(value)
    with pytest.raises(of.errors.NonFinite, match=f"value is {number}"):
        of.Potential(lambda x: x.sum(-1) + number).value(mu)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("share", [*NUMBERS, 1.1, -1.1, 1e10])
def test_one_position_out_of_range_diverges(dtype, share, graph):
    mu = cloud(dtype, graph)
    tangent = torch.zeros_like(mu.points.detach())
    tangent[150, 1] = share * LIMITS[dtype]
    with pytest.raises(of.errors.Diverged, match="positions left") as caught:
        mu.push(tangent, 1.0)
    assert caught.value.measure is mu


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("graph", [False, True])
def test_positions_in_range_pass_though_their_norm_is_out_of_range(dtype, graph):
    mu = cloud(dtype, graph)
    far = torch.full_like(mu.points, 0.9 * LIMITS[dtype]).detach()
    assert float(torch.linalg.vector_norm(far)) > LIMITS[dtype]
    moved = mu.push(far, 1.0)
    assert moved.points.isfinite().all()
    assert moved.points.requires_grad == graph


@dataclass(frozen=True, eq=False, repr=False)
class Bare(of.Measure):
    """A user's measure, whose verbs check nothing."""

    points: torch.Tensor

    @property
    def weights(self):
        n = len(self.points)
        return self.points.new_full((n,), 1 / n)

    def value_and_position_gradient(self, value):
        x = self.points.detach().requires_grad_()
        energy = value(Bare(x))
        return energy.detach(), len(x) * torch.autograd.grad(energy, x)[0]

    def push(self, tangent, dt):
        return Bare(self.points + dt * tangent)

    def inner(self, u, v):
        return (u * v).sum(-1).mean()

    def displacement_to(self, other):
        return other.points - self.points


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("steps", [1, 4])
def test_a_flow_of_a_user_s_measure_returns_no_measure_that_is_not_finite(
    number, steps
):
    mu = Bare(cloud(torch.float64).points)
    with pytest.raises(of.errors.Diverged) as caught:
        of.flow(Steep(number), mu, of.ExplicitEuler(), dt=0.1, steps=steps)
    assert torch.equal(caught.value.measure.points, mu.points)


def test_a_tangent_of_another_kind_is_named_by_every_verb():
    mu = cloud(torch.float64)
    good = torch.ones(200, 2, dtype=torch.float64)
    assert mu.push(good, 0.0).points.equal(mu.points)
    for verb in (lambda v: mu.push(v, 1.0), lambda v: mu.inner(v, good)):
        with pytest.raises(ValueError, match=r"must have shape \(200, 2\)"):
            verb(good[:1])
        with pytest.raises(ValueError, match="got list"):
            verb(good.tolist())
        with pytest.raises(TypeError, match="dtype"):
            verb(good.float())
        with pytest.raises(ValueError, match="is on meta"):
            verb(good.to("meta"))


def test_the_report_of_a_start_is_a_certificate_like_any_other():
    short, full = Certificate.of_start(2.0), Certificate(2.0)
    assert asdict(short) == asdict(full)
    assert dict(short) == dict(full)
    for twin in (copy.deepcopy(short), pickle.loads(pickle.dumps(short))):
        assert asdict(twin) == asdict(full)
    assert Certificate.of_start(1.0).entries == {}
    for field in fields(Certificate):
        assert hasattr(short, field.name)
    with pytest.raises(AttributeError):
        short.w2 = 1.0


def test_a_product_in_a_transform_leaves_nothing_behind():
    """The number of atoms is a tensor that is kept between calls."""
    F = of.Potential(lambda x: x.square().square().sum(-1))
    x = torch.linspace(-1, 1, 26, dtype=torch.float64).reshape(13, 2)

    def length(y):
        return F.velocity(of.Particles(y)).square().sum()

    inside = torch.func.grad(length)(x)
    torch.testing.assert_close(inside, 96 * x**5, rtol=1e-12, atol=0)
    torch.testing.assert_close(length(x), (16 * x**6).sum(), rtol=1e-12, atol=0)
    y = x.clone().requires_grad_()
    (outside,) = torch.autograd.grad(length(y), y)
    torch.testing.assert_close(outside, inside, rtol=1e-12, atol=0)
