"""What a proof on a box needs: continuity, real numbers, extensions of operations."""

import math
from decimal import Decimal, localcontext
from typing import Any

import pytest
import torch
from torch.nn import functional

import otflow as of
from otflow.meanfield import CustomLayer, Risk, TwoLayer
from otflow.numerics.elementary import power
from otflow.numerics.enclosures import Enclosure, NotEnclosed
from otflow.optimality import BoxDomain, optimality_gap

F64 = torch.float64
C, W = 0.1234567, 1e-7  # where a jump is, and how narrow the function is there


def at(*x):
    return of.Particles(torch.tensor([x], dtype=F64))


def gap_of(V, lower=-1.0, upper=1.0, x=(0.9,)):
    return optimality_gap(of.Potential(V), at(*x), BoxDomain(lower, upper))


# Functions of 1/(x - C) with a limit from either side; then the infimum, at C.
JUMPS = {
    "erf": (lambda p: torch.erf(-W * p), -1.0),
    "tanh": (lambda p: torch.tanh(-W * p), -1.0),
    "atan": (lambda p: torch.atan(-W * p), -math.pi / 2),
    "sigmoid": (lambda p: torch.sigmoid(-W * p), 0.0),
    "exp": (lambda p: -torch.exp(-torch.relu(W * p)) * torch.sigmoid(p), -1.0),
    "clamp": (lambda p: (-W * p).clamp(-1.0, 1.0), -1.0),
    "maximum": (lambda p: torch.maximum(-W * p, -torch.ones_like(p)).tanh(), -0.761594),
    "root": (lambda p: -W * p * (1 + (W * p).square()).rsqrt(), -1.0),
    "softplus": (lambda p: -functional.softplus(5 - W * p).tanh(), -1.0),
}
POLES = {
    "reciprocal": lambda t: 1 / t,
    "power": lambda t: t**-1,
    "cubed": lambda t: t**-3,
    "quotient": lambda t: (1 + t) / t,
    "logarithm": lambda t: t.abs().log() / t,
}


@pytest.mark.parametrize("pole", POLES)
@pytest.mark.parametrize("jump", JUMPS)
def test_no_proof_crosses_a_jump(jump, pole):
    f, _ = JUMPS[jump]

    def V(x):
        return f(POLES[pole](x[..., 0] - C)) + 0.1 * x[..., 0]

    gap = gap_of(V)
    # Points on both sides of the jump, at every distance from it.
    near = torch.logspace(-15, 0, 3001, dtype=F64)
    x = torch.cat([C - near, C + near, torch.linspace(-1, 1, 2001, dtype=F64)])
    values = V(x[x.abs() <= 1][:, None])
    values = values[torch.isfinite(values)]
    exact = float(V(torch.tensor([[0.9]], dtype=F64)) - values.min())
    assert gap.kind in ("proved", "none")
    assert gap.value >= exact - 1e-14
    if pole == "reciprocal" and jump != "root":  # infinity times 0 has no bound
        assert gap.kind == "proved"


@pytest.mark.parametrize("jump", ["erf", "tanh", "atan", "sigmoid", "clamp"])
def test_the_gap_at_a_jump_is_known(jump):
    f, lowest = JUMPS[jump]
    gap = gap_of(lambda x: f(1 / (x[..., 0] - C)) + 0.1 * x[..., 0])
    here = float(f(torch.tensor(1 / (0.9 - C), dtype=F64))) + 0.09
    assert here - lowest - 0.1 * C - 1e-12 <= gap.value <= 1.011 * (here - lowest)


def test_a_jump_across_a_diagonal_is_not_crossed():
    def V(x):
        return torch.tanh(-W / (x[..., 0] - x[..., 1] - 0.01)) + x.square().sum(-1)

    gap = optimality_gap(of.Potential(V), at(0.9, 0.9), BoxDomain(-1, 1))
    exact = float(V(torch.tensor([[0.9, 0.9]], dtype=F64))) + 1 - 0.01**2 / 2
    assert gap.kind == "proved"
    assert gap.value >= exact - 1e-9


def test_torchs_softplus_steps_down_where_it_turns_linear():
    x = torch.tensor([[19.9], [20.1]], dtype=F64)
    found: Any = functional.softplus(Enclosure.of(x[:1], x[1:], 1)[..., 0])
    assert not bool(torch.isfinite(found.gradient).all())
    assert float(found.value[0]) <= 19.9 + math.exp(-19.9)


I = torch.tensor(1j, dtype=torch.complex128)  # noqa: E741
PLANE = torch.eye(1, dtype=torch.complex128)


@pytest.mark.parametrize(
    "V",
    [
        lambda x: torch.exp(x[..., 0] * I).real,
        lambda x: torch.exp(1j * x[..., 0]).real,
        lambda x: (x[..., 0] + I).abs(),
        lambda x: (I - x[..., 0]).abs(),
        lambda x: (x[..., 0] / I).abs(),
        lambda x: (x.to(torch.complex128) @ PLANE).abs().square()[..., 0],
        lambda x: torch.stack([x[..., 0] + 0j, x[..., 0] * I], -1).abs().sum(-1),
        lambda x: torch.complex(x[..., 0], x[..., 0] - 1).abs(),
    ],
)
def test_complex_numbers_are_searched(V):
    gap = gap_of(V, -4.0, 4.0, (0.3,))
    assert gap.kind == "searched"
    x = torch.linspace(-4, 4, 4001, dtype=F64)[:, None]
    exact = float(V(torch.tensor([[0.3]], dtype=F64)) - V(x).min())
    assert gap.value == pytest.approx(exact, abs=1e-4)


def test_a_complex_answer_is_not_enclosed():
    x = Enclosure.of(torch.zeros(1, 1, dtype=F64), torch.ones(1, 1, dtype=F64), 1)
    for f in (torch.add, torch.mul, torch.sub, torch.div, torch.maximum):
        with pytest.raises(NotEnclosed, match="complex"):
            f(x, torch.ones(1, dtype=torch.complex128))


# Functions that torch computes and that no interval extension covers.
FOREIGN = {
    "threshold": lambda x: functional.softplus(x, threshold=0.1)[..., 0],
    "list": lambda x: torch.tensor(x.tolist(), dtype=F64)[..., 0],
    "numpy": lambda x: torch.as_tensor(x.detach().numpy())[..., 0],
    "bits": lambda x: x.view(torch.int64)[..., 0].to(F64),
    "roll": lambda x: x.roll(1).square().sum(-1) * 0 + x[..., 0],
    "cast": lambda x: x.square().prod(-1, dtype=torch.float32).to(F64),
    "in place": lambda x: x.clone().mul_(2.0)[..., 0],
    "own error": lambda x: x[..., 0] if type(x) is torch.Tensor else x.nothing,
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_torch_alone_can_do_is_searched(name):
    gap = gap_of(FOREIGN[name])
    assert gap.kind == "searched"
    assert gap.reason.startswith("not proved: ")
    assert len(gap.reason) > 30


def test_what_torch_cannot_do_either_raises_its_own_error():
    with pytest.raises(ZeroDivisionError):
        gap_of(lambda x: x[..., 0] * (1 // 0))
    with pytest.raises(IndexError):
        gap_of(lambda x: x[..., 3])
    with pytest.raises(AttributeError):
        gap_of(lambda x: x.nothing)


def test_features_that_cannot_be_enclosed_are_searched():
    F = of.OfExpectation(
        lambda m: m.square().sum(),
        lambda x: torch.as_tensor(x.detach().numpy()),
        mixture="convex",
    )
    assert optimality_gap(F, at(0.3), BoxDomain(-1, 1)).kind == "searched"
    X = torch.linspace(-1, 1, 5, dtype=F64)[:, None]
    odd = CustomLayer(lambda rows, theta: (rows @ theta.mT).erfinv())
    assert optimality_gap(
        Risk(odd, X, X[:, 0]), at(0.3), BoxDomain(-0.5, 0.5)
    ).kind == ("searched")


SLICES = {
    "all": lambda x: x[..., 0:],
    "all of both": lambda x: x[:, :],
    "dots": lambda x: x[...],
    "first": lambda x: x[..., :1],
    "view": lambda x: x.view_as(x),
    "axis": lambda x: x[None][0],
    "transposed": lambda x: x[..., 0].t()[:, None],
    "numbers": lambda x: x + 0 * x.sum().mean() + 0 * x[0].sum().sum(-1),
    "with nothing": lambda x: torch.cat([x, x[..., 1:], x[..., 1:1]], -1),
}


@pytest.mark.parametrize("name", SLICES)
def test_slices_of_everything_and_of_nothing_are_proved(name):
    gap = gap_of(lambda x: SLICES[name](x).square().sum(-1), x=(0.3,))
    assert gap.kind == "proved"
    assert gap.value == pytest.approx(0.09)


def test_softplus_of_any_steepness_is_proved():
    gap = gap_of(lambda x: functional.softplus(x, beta=5)[..., 0], x=(0.3,))
    exact = [math.log1p(math.exp(5 * x)) / 5 for x in (0.3, -1.0)]
    assert gap.kind == "proved"
    assert gap.value == pytest.approx(exact[0] - exact[1], rel=1e-9)


@pytest.mark.parametrize("p", [0.3, 0.1, 1.3, -0.7, 2.7])
@pytest.mark.parametrize("t", [1e-100, 1e-30, 0.7, 1e30, 1e100])
def test_derivatives_of_powers_know_the_rounding_of_their_exponents(p, t):
    ends = torch.tensor([[t], [t]], dtype=F64)
    with localcontext() as context:
        context.prec = 60
        q, x = Decimal(p), Decimal(t)
        exact = [x**q, q * x ** (q - 1), q * (q - 1) * x ** (q - 2)]
        for (low, high), value in zip(power(p)(ends, 2), exact, strict=True):
            assert Decimal(float(low)) <= value <= Decimal(float(high))
            assert float(high) - float(low) <= 1e-12 * abs(float(value))


def test_corners_are_compared_in_double_precision():
    box = BoxDomain(1.0, 1.0 + 1e-9)
    V = of.Potential(lambda x: x.sum(-1))
    gap = optimality_gap(V, at(1.0 + 5e-10), box)
    assert gap.value == pytest.approx(5e-10, rel=1e-5)
    BoxDomain(1e300, 1e301)
    single = of.Particles(torch.ones(1, 1))
    with pytest.raises(ValueError, match=r"once rounded to torch\.float32"):
        optimality_gap(V, single, box)
    wide = optimality_gap(V, at(0.0), BoxDomain(-1e308, 1e308))
    assert wide.kind == "none"
    assert "too wide" in wide.reason
    with pytest.raises(ValueError, match="lower must lie below upper"):
        BoxDomain([0.0, 1.0], 1.0)


# Functionals whose convexity a user states.
class Stated(of.functionals.Sum):
    def mixture_curvature(self):
        return "convex"


class Own(of.kernels.RadialKernel):
    mixture = "convex"

    def profile(self, s):
        return 1 / (1 + s)

    def slope(self, s):
        return -1 / (1 + s) ** 2


BUMP = of.kernels.Gaussian(0.5)
DECLARED = {
    "expectation": lambda: of.OfExpectation(
        lambda m: m[..., 0] ** 2, lambda x: x, mixture="convex"
    ),
    "interaction": lambda: of.Interaction(
        lambda z: -z.square().sum(-1), mixture="convex"
    ),
    "function": lambda: of.Interaction(
        of.kernels.Function(lambda z: -z.square().sum(-1), mixture="convex")
    ),
    "kernel": lambda: 2 * of.Interaction(Own()) + of.Potential(lambda x: x.sum(-1)),
    "method": lambda: Stated((of.MMDTo(at(0.5), BUMP),)),
}


@pytest.mark.parametrize("name", DECLARED)
def test_a_convexity_that_is_only_declared_is_named(name):
    gap = optimality_gap(DECLARED[name](), at(0.3), BoxDomain(-1, 1))
    assert gap.kind == "proved"
    assert "not proved but declared: " in gap.reason
    assert "is convex along mixtures, " in gap.reason
    assert "declare" in gap.reason or "states" in gap.reason


def test_a_declared_loss_is_named_on_balls_and_boxes():
    X = torch.linspace(-1, 1, 5, dtype=F64)[:, None]
    network = TwoLayer("relu")
    F = Risk(network, X, X[:, 0], loss=lambda f, y: (f - y) ** 4, mixture="convex")
    for domain in (of.meanfield.PathBall(1.0), BoxDomain(-1, 1)):
        gap = optimality_gap(F, at(0.1, 0.1, 0.3), domain)
        assert "declares the loss convex" in gap.reason


def test_a_convexity_that_is_derived_is_not_named():
    F = of.MMDTo(at(0.5), BUMP) + of.Potential(lambda x: x.square().sum(-1))
    assert "declared" not in optimality_gap(F, at(0.3), BoxDomain(-1, 1)).reason
