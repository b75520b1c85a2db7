"""Enclosures contain values and derivatives, round-off included."""

import math
from decimal import Decimal, localcontext

import pytest
import torch
from torch.nn import functional

from otflow.numerics.elementary import FUNCTIONS, power
from otflow.numerics.enclosures import Enclosure, NotEnclosed
from otflow.numerics.intervals import EPS, ULPS, dot, reciprocal, total
from tests.numerics import decimals as d

F64 = torch.float64
A = torch.linspace(-1.0, 1.0, 6, dtype=F64).reshape(2, 3)


def shapes(x):
    y = torch.cat([x, 2 * x[..., :1]], -1).unsqueeze(-1).transpose(-1, -2).squeeze(-2)
    y = torch.stack([y, y.flip(-1)], 0).permute(1, 2, 0).reshape(len(x), -1)
    return y[:, [0, 3, 5]].roll(1, -1).square().sum(-1) + y.unbind(-1)[2]


# Functions of points (m, 2) to (m,).
EXPRESSIONS = {
    "polynomial": lambda x: (x**2 - 1).square().sum(-1) + x[..., 0] ** 3 * x[..., 1],
    "quotient": lambda x: x[..., 0] / (1 + x.square().sum(-1)) - 2 / (3 + x[..., 1]),
    "waves": lambda x: torch.sin(3 * x[..., 0]) * torch.cos(x[..., 1] - 1),
    "exponentials": lambda x: (-(x**2).sum(-1)).exp() + torch.expm1(x).mean(-1),
    "logarithms": lambda x: (1 + x.square().sum(-1)).log() + torch.log1p(x**4).sum(-1),
    "roots": lambda x: (2.5 + x[..., 0]).sqrt() + (2.5 + x[..., 1]).rsqrt(),
    "powers": lambda x: (3 + x[..., 0]) ** 1.5 + (3 + x[..., 1]) ** -2,
    "power of two": lambda x: 2.0 ** x[..., 1] - x[..., 0],
    "units": lambda x: torch.tanh(x).sum(-1) * torch.sigmoid(2 * x[..., 1]),
    "error function": lambda x: x.erf().sum(-1) * x[..., 0],
    "kinks": lambda x: x.abs().sum(-1) + torch.relu(x[..., 0] - x[..., 1]),
    "norms": lambda x: torch.linalg.norm(x - 0.3, dim=-1) + (x + 5).norm(dim=-1),
    "softplus": lambda x: functional.softplus(x @ torch.ones(2, dtype=F64)),
    "silu": lambda x: functional.silu(x).sum(-1),
    "linear": lambda x: functional.linear(x, A.T, A[0]).square().sum(-1),
    "bilinear": lambda x: torch.einsum("ki,ij,kj->k", x, A[:, :2], x.cos()),
    "hyperbolic": lambda x: torch.sinh(x[..., 0]) + torch.cosh(x[..., 1]),
    "arc": lambda x: torch.atan(3 * x).sum(-1),
    "shapes": shapes,
    "maxima": lambda x: torch.maximum(x[..., 0] ** 2, x[..., 1]) + x.amin(-1),
    "clamps": lambda x: (x.clamp(-0.5, 1.0) ** 2).sum(-1) + x.clamp_min(0.2).sum(-1),
    "lowest well": lambda x: torch.stack(
        [(x - c).square().sum(-1) for c in (-1.0, 0.3, 1.2)]
    ).amin(0),
    "soft maximum": lambda x: (-3 * (x[:, None] - A.T).square()).sum(-1).logsumexp(-1),
    "mixture": lambda x: functional.gelu(x).sum(-1) + functional.logsigmoid(x).sum(-1),
    "leaky": lambda x: functional.leaky_relu(x, 0.1).sum(-1),
    "products": lambda x: (1 + x).prod(-1) + x.cumsum(-1).square().sum(-1),
    "length": lambda x: torch.hypot(x[..., 0], x[..., 1] + 4),
    "fixed choice": lambda x: torch.where(
        torch.arange(len(x)) % 2 == 0, x[:, 0], x[:, 1] ** 2
    ),
}
KINKED = ("kinks", "maxima", "clamps", "lowest well", "leaky")


def boxes(count, widest, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lower = 4 * torch.rand(count, 2, generator=generator, dtype=F64) - 2
    width = widest * torch.rand(count, 2, generator=generator, dtype=F64) ** 3
    share = torch.rand(count, 2, generator=generator, dtype=F64)
    return lower, lower + width, lower + share * width


@pytest.mark.parametrize("name", EXPRESSIONS)
@pytest.mark.parametrize("widest", [0.0, 1e-3, 2.0])
def test_values_and_derivatives_lie_in_their_enclosures(name, widest):
    f = EXPRESSIONS[name]
    lower, upper, x = boxes(200, widest)
    found = f(Enclosure.of(lower, upper, 2))
    assert found.shape == (200,)
    leaf = x.clone().requires_grad_()
    value = f(leaf)
    (slope,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
    rows = [value, *slope.T]
    seconds = []
    for i in range(2):
        bend = slope[:, i]
        got = (torch.zeros_like(leaf),)
        if bend.requires_grad:
            got = torch.autograd.grad(bend.sum(), leaf, retain_graph=True)
        seconds.append(got[0])
    rows += [seconds[0][:, 0], seconds[0][:, 1], seconds[1][:, 1]]
    exact = torch.stack([r.detach() for r in rows])
    # The numbers of torch have round-off of their own.
    slack = 1e-13 * (1 + exact.abs())
    assert bool((found.rows[0] <= exact + slack).all())
    assert bool((found.rows[1] >= exact - slack).all())
    if widest == 0.0 and name not in KINKED:
        assert float((found.rows[1] - found.rows[0]).max()) < 1e-9


def test_enclosures_shrink_with_their_boxes():
    widths = []
    for size in (1e-2, 1e-4):
        x = torch.tensor([[0.3, -0.4]], dtype=F64)
        found = EXPRESSIONS["waves"](Enclosure.of(x, x + size, 2))
        widths.append(found.rows[1] - found.rows[0])
    assert bool((widths[1] < 0.02 * widths[0]).all())


@pytest.mark.parametrize(
    "f",
    [
        lambda x: torch.where(x > 0, x, -x).sum(-1),
        lambda x: x.sum(-1) if x.sum() > 0 else -x.sum(-1),
        lambda x: x.floor().sum(-1),
        lambda x: x.float().sum(-1),
        lambda x: torch.linalg.solve(torch.eye(2).double(), x.mT).sum(0),
        lambda x: x.sum(-1) + float(x[0, 0]),
    ],
    ids=["comparison", "branch", "jump", "cast", "solve", "number"],
)
def test_an_operation_without_intervals_is_named(f):
    lower, upper, _ = boxes(3, 1.0)
    with pytest.raises(NotEnclosed, match="interval"):
        f(Enclosure.of(lower, upper, 1))


# f, f' and f'' of a number, exactly.
ORACLES = {
    "abs": lambda x: (abs(x), Decimal(1).copy_sign(x), 0),
    "atan": lambda x: (d.atan(x), 1 / (1 + x * x), -2 * x / (1 + x * x) ** 2),
    "cos": lambda x: (d.cos(x), -d.sin(x), -d.cos(x)),
    "cosh": lambda x: (d.cosh(x), d.sinh(x), d.cosh(x)),
    "erf": lambda x: (
        d.erf(x),
        slope := 2 * d.exp(-x * x) / d.pi().sqrt(),
        -2 * x * slope,
    ),
    "exp": lambda x: (d.exp(x),) * 3,
    "expm1": lambda x: (d.expm1(x), d.exp(x), d.exp(x)),
    "log": lambda x: (d.log(x), 1 / x, -1 / x**2),
    "log1p": lambda x: (d.log1p(x), 1 / (1 + x), -1 / (1 + x) ** 2),
    "reciprocal": lambda x: (1 / x, -1 / x**2, 2 / x**3),
    "relu": lambda x: (max(x, Decimal(0)), int(x > 0), 0),
    "sigmoid": lambda x: (
        y := d.sigmoid(x),
        y * (1 - y),
        y * (1 - y) * (1 - 2 * y),
    ),
    "sin": lambda x: (d.sin(x), d.cos(x), -d.sin(x)),
    "sinh": lambda x: (d.sinh(x), d.cosh(x), d.sinh(x)),
    "softplus": lambda x: (
        d.softplus(x),
        y := d.sigmoid(x),
        y * (1 - y),
    ),
    "sqrt": lambda x: (x.sqrt(), 1 / (2 * x.sqrt()), -1 / (4 * x * x.sqrt())),
    "tanh": lambda x: (
        y := d.tanh(x),
        1 - y * y,
        -2 * y * (1 - y * y),
    ),
}
POSITIVE = ("log", "sqrt", "log1p")


def places(name):
    generator = torch.Generator().manual_seed(1)
    sizes = 10.0 ** (10 * torch.rand(150, generator=generator, dtype=F64) - 5)
    sizes = sizes.clamp(max=100.0 if name in ("sin", "cos", "atan") else 300.0)
    return sizes if name in POSITIVE else torch.cat([sizes, -sizes])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_ranges_at_one_number_contain_the_exact_one(name):
    x = places(name)
    found = FUNCTIONS[name](torch.stack([x, x]), 2)
    with localcontext() as context:
        context.prec = 320  # exp(300) + 1 - 1
        for k, place in enumerate(x.tolist()):
            exact = ORACLES[name](Decimal(place))
            for order, ends in enumerate(found):
                low, high = (Decimal(end) for end in ends[:, k].tolist())
                assert low <= exact[order] <= high, (place, order)


@pytest.mark.slow
def test_the_library_below_torch_is_as_exact_as_proofs_assume():
    worst = {}
    for name in ("exp", "log", "sin", "cos", "tanh", "erf", "atan", "expm1", "log1p"):
        x = places(name)
        values = getattr(torch, name)(x).tolist()
        with localcontext() as context:
            context.prec = 320
            errors = [
                abs(Decimal(value) / getattr(d, name)(Decimal(place)) - 1)
                for place, value in zip(x.tolist(), values, strict=True)
                if abs(value) > 1e-290
            ]
        worst[name] = float(max(errors)) / EPS
    assert max(worst.values()) < 0.5 * ULPS, worst


@pytest.mark.parametrize("p", [-3.0, -2.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0])
def test_ranges_of_powers(p):
    lower, upper, x = (t[:, 0].abs() + 1e-3 for t in boxes(300, 1.0))
    lower, upper = torch.minimum(lower, x), torch.maximum(upper, x)
    found = power(p)(torch.stack([lower, upper]), 2)
    exact = [x**p, p * x ** (p - 1), p * (p - 1) * x ** (p - 2)]
    for ends, value in zip(found, exact, strict=True):
        slack = 1e-14 * value.abs()
        assert bool((ends[0] <= value + slack).all())
        assert bool((ends[1] >= value - slack).all())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_ranges_on_intervals_contain_the_values_inside(name):
    lower, upper, _ = (t[:, 0] for t in boxes(300, 8.0))
    if name in POSITIVE:
        lower, upper = lower.abs() + 1e-3, lower.abs() + 1e-3 + (upper - lower)
    found = FUNCTIONS[name](torch.stack([lower, upper]), 2)
    for share in torch.linspace(0, 1, 21, dtype=F64).tolist():
        x = lower + share * (upper - lower)
        at = FUNCTIONS[name](torch.stack([x, x]), 2)
        for ends, one in zip(found, at, strict=True):
            slack = 1e-13 * (1 + one.abs().nan_to_num(posinf=0.0))
            assert bool((ends[0] <= one[0] + slack[0]).all()), name
            assert bool((ends[1] >= one[1] - slack[1]).all()), name


def test_sums_of_many_numbers_contain_the_exact_sum():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(5000, generator=generator, dtype=F64) * 10.0 ** (
        torch.arange(5000) % 17
    )
    exact = math.fsum(x.tolist())
    t = torch.stack([x, x])
    for ends in (total(t, -1), dot(t[:, None], torch.ones(5000, 1).double())[:, 0, 0]):
        assert float(ends[0]) <= exact <= float(ends[1])
        assert float(ends[1] - ends[0]) < 1e-7 * float(x.abs().sum())


def test_one_over_an_interval_that_holds_0_is_unbounded():
    t = torch.tensor([[-1.0, 0.0, -2.0, 0.0, 1.0], [1.0, 2.0, 0.0, 0.0, 2.0]]).double()
    low, high = reciprocal(t)
    assert low.isinf().tolist() == [True, False, True, True, False]
    assert high.isinf().tolist() == [True, True, False, True, False]
    assert float(low[1]) == pytest.approx(0.5)
    assert float(high[2]) == pytest.approx(-0.5)
