"""A function that gives intervals other values than tensors proves nothing."""

import math

import pytest
import torch

import otflow as of
from otflow.errors import InvalidFunctional
from otflow.optimality import BoxDomain, optimality_gap

F64 = torch.float64
BOX = BoxDomain(-1.0, 1.0)
KINDS = (torch.float32, torch.float64)
COUNT = [0]


def measure(kind=F64):
    return of.Particles(torch.tensor([[0.9], [-0.2]], dtype=kind))


def tried(x):
    try:
        return torch.where(x[..., 0] > 0, -x[..., 0], x[..., 0])
    except Exception:  # a user's fallback, which the operation's refusal ends in
        return 2 * x[..., 0]


def counted(x):
    COUNT[0] += 1
    return COUNT[0] * x[..., 0]


class Layer(torch.nn.Module):
    def forward(self, x):
        return (1.0 if type(x) is torch.Tensor else 2.0) * x


# Functions of points that are not functions of each point alone.
IMPROPER = {
    "dtype": lambda x: x[..., 0] * (1 if x.dtype == F64 else 2),
    "precision": lambda x: -torch.finfo(x.dtype).eps * 1e7 * (x[..., 0] - 0.9),
    "class": lambda x: x[..., 0] * (1 if type(x) is torch.Tensor else 3),
    "fallback": tried,
    "mean of the rows": lambda x: (x - x.mean(0))[..., 0],
    "length of the rows": lambda x: (x * len(x))[..., 0],
    "state": counted,
    "module": torch.nn.Sequential(Layer(), torch.nn.Flatten(0)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", IMPROPER)
def test_what_depends_on_more_than_the_place_is_not_proved(name, kind):
    F = of.Potential(IMPROPER[name])
    if name in ("dtype", "precision") and kind == F64:
        assert optimality_gap(F, measure(), BOX).kind == "proved"
        return
    gap = optimality_gap(F, measure(kind), BOX)
    assert gap.kind == "searched"
    reasons = ("F' on intervals", "F' at a place alone", "two values at one place")
    assert any(reason in gap.reason for reason in reasons)


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_and_layers_are_tried_too(kind):
    def kernel(z):
        return (1.0 if type(z) is torch.Tensor else 2.0) * (-z.square().sum(-1)).exp()

    class Convex(of.functionals.Sum):
        def mixture_curvature(self):
            return "convex"

    F = Convex((of.Interaction(kernel), of.Potential(torch.nn.Flatten(0))))
    assert optimality_gap(F, measure(kind), BOX).kind == "searched"


class Multiple(of.Functional):
    """A functional whose terms leave out its factor."""

    def __init__(self, F, told=1.0):
        self.F, self.told = F, told

    def value(self, mu):
        return 5 * self.F.value(mu)

    def terms(self):
        return tuple((self.told * c, term) for c, term in self.F.terms())


@pytest.mark.parametrize("kind", KINDS)
def test_terms_that_do_not_sum_to_the_value_raise(kind):
    inner = of.Interaction(of.kernels.Gaussian(0.3))
    for F in (
        Multiple(inner),
        2 * Multiple(inner),
        Multiple(inner) + of.Potential(lambda x: x[..., 0]),
    ):
        with pytest.raises(InvalidFunctional, match="terms of Multiple"):
            optimality_gap(F, measure(kind), BOX)
    right = optimality_gap(Multiple(inner, told=5.0), measure(kind), BOX)
    plain = optimality_gap(inner, measure(kind), BOX)
    assert right.kind == plain.kind == "proved"
    assert right.value == pytest.approx(5 * plain.value, rel=0.02)


# Proper functions, where round-off is large beside what they vary.
PROPER = {
    "offset": lambda x: 1e6 + x[..., 0],
    "cancelled": lambda x: (x[..., 0] + 1e3).square() - 1e6 - 2e3 * x[..., 0],
    "constant": lambda x: 0.1 + 0 * x[..., 0],
    "infinite at a corner": lambda x: (1 + x[..., 0]).log().neg(),
    "steep": lambda x: torch.tanh(1e4 * (x[..., 0] - 0.3)),
    "waves": lambda x: torch.sin(50 * x[..., 0]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PROPER)
def test_round_off_is_not_taken_for_a_fault(name, kind):
    gap = optimality_gap(of.Potential(PROPER[name]), measure(kind), BOX)
    assert math.isfinite(gap.value)
    # In float32 its round-off, 0.1, is a tenth of the whole function.
    lost = kind == torch.float32 and name == "cancelled"
    assert gap.kind == ("searched" if lost else "proved")


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_that_fits_its_data_is_not_taken_for_a_fault(kind):
    # The residuals, and F' with them, are round-off.
    X = torch.linspace(-1, 1, 5, dtype=kind)[:, None]
    layer = of.meanfield.CustomLayer(lambda x, theta: torch.tanh(x @ theta.T))
    theta = torch.tensor([[0.9], [-0.2]], dtype=kind)
    y = torch.tanh(X @ theta.T).mean(1)
    gap = optimality_gap(of.meanfield.Risk(layer, X, y), of.Particles(theta), BOX)
    assert gap.kind == "proved"
