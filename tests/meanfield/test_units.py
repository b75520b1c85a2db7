"""The slopes of the built-in units, and the activations that are let in."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.meanfield.units import UNITS
from otflow.testing.clouds import normal
from otflow.testing.differences import derivative

Z = torch.cat([3 * normal(200, seed=1), torch.tensor([-40.0, -6.0, 6.0, 40.0])])
BY_HAND = {
    "relu": lambda z: max(z, 0.0),
    "tanh": math.tanh,
    "sigmoid": lambda z: 1 / (1 + math.exp(-z)),
    "erf": math.erf,
}


@pytest.mark.parametrize("name", UNITS)
def test_values_are_those_of_the_formula(name):
    expected = torch.tensor([BY_HAND[name](float(z)) for z in Z], dtype=torch.float64)
    unit = UNITS[name]
    torch.testing.assert_close(unit(Z), expected, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(unit.evaluate(Z, torch.empty_like(Z)), unit(Z))


@pytest.mark.parametrize("name", UNITS)
def test_the_slope_is_the_derivative(name):
    unit = UNITS[name]
    z = Z[Z.abs() > 0.01]  # away from the corner of relu
    slope = unit.slope(z, unit(z), torch.empty_like(z))
    torch.testing.assert_close(
        slope, derivative(lambda h: unit(z + h)), rtol=1e-9, atol=1e-11
    )


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_slope_is_that_of_autodiff_wherever_it_is_written(name, dtype):
    unit, z = UNITS[name], Z.to(dtype)
    leaf = z.clone().requires_grad_()
    unit(leaf).sum().backward()
    value = unit(z)
    eps = torch.finfo(dtype).eps
    for out in (torch.empty_like(z), z.clone(), value.clone()):
        # Where it is written over its input, the input is still what it was at entry.
        source = out if torch.equal(out, z) else z.clone()
        found = unit.slope(source, value.clone(), out)
        assert found is out
        torch.testing.assert_close(found, leaf.grad, rtol=0, atol=4 * eps)


def test_the_slope_of_relu_at_its_corner_is_zero():
    zero = torch.zeros(1)
    assert float(UNITS["relu"].slope(zero, zero, torch.ones(1))) == 0


def test_the_slope_of_erf_is_never_subnormal():
    # Subnormal numbers make the products that follow ten times slower.
    for dtype in (torch.float32, torch.float64):
        z = torch.linspace(0, 40, 5000, dtype=dtype)
        slope = UNITS["erf"].slope(z, z, torch.empty_like(z))
        assert torch.finfo(dtype).tiny < float(slope.min()) < 1e-30


def test_only_relu_is_homogeneous():
    z = normal(50, seed=2)
    for name, unit in UNITS.items():
        product = z * unit.slope(z, unit(z), torch.empty_like(z))
        assert unit.homogeneous == torch.allclose(product, unit(z)), name


def test_a_slope_that_follows_from_the_value_reads_no_argument():
    z = normal(50, seed=3)
    for name, unit in UNITS.items():
        value = unit(z)
        slope = unit.slope(z, value, torch.empty_like(z))
        other = unit.slope(value, value, torch.empty_like(z))
        assert unit.slope_from_value == torch.equal(slope, other), name


def test_what_is_said_of_a_slope_is_said_of_that_slope_alone():
    class Steep(type(UNITS["tanh"])):
        def slope(self, z, value, out):
            return torch.exp(-z.square(), out=out)

    class Bent(type(UNITS["tanh"])):
        def __call__(self, z):
            return torch.sin(z)

    assert not Steep.slope_from_value
    assert not Bent.slope_from_value

    class Claims(Steep):
        slope_from_value = True

    with pytest.raises(
        of.errors.InvalidFunctional, match=r"its slope at -3 changes .* leave"
    ):
        of.meanfield.TwoLayer(Claims())


def test_activations_that_are_refused():
    with pytest.raises(
        ValueError, match=r"^activation must be one of .*'relu'"
    ) as error:
        of.meanfield.TwoLayer("rellu")
    assert "did you mean 'relu'?" in str(error.value)
    with pytest.raises(
        TypeError, match=r"^activation must be a function; write Tanh\(\)"
    ):
        of.meanfield.TwoLayer(torch.nn.Tanh)
    with pytest.raises(ValueError, match=r"'gelu'; .*as torch\.nn\.functional\.gelu"):
        of.meanfield.TwoLayer("gelu")
    of.meanfield.TwoLayer(torch.nn.functional.gelu)  # the cure
    with pytest.raises(TypeError, match=r"^activation must be one of"):
        of.meanfield.TwoLayer(3)


class Own(of.meanfield.Unit):
    """A unit of some function; its slope does not matter."""

    name = "own"

    def __init__(self, function):
        self.function = function

    def __call__(self, z):
        return self.function(z)

    def slope(self, z, value, out):
        return out.fill_(1.0)


def two_layers(activation):
    return of.meanfield.TwoLayer(activation), of.Particles(normal(5, 3))


def three_layers(activation):
    network = of.meanfield.networks.MultiLayer((5, 4), activation)
    weights = [normal(*shape) for shape in network.shapes(1).values()]
    return network, network.measure(weights)


def residual_layers(activation):
    network = of.meanfield.networks.Residual(activation, layers=2)
    return network, of.Particles(normal(5, network.dim(1)).sigmoid())


WRONG = {
    "sums": lambda z: z.sum(1),
    "single precision": lambda z: z.float(),
    "nothing": lambda _: None,
    "a row": lambda z: z.mean(0, keepdim=True),
    "a column": lambda z: z.mean(1, keepdim=True),
    "an array": lambda z: z.detach().numpy(),
}


@pytest.mark.parametrize("make", [two_layers, three_layers, residual_layers])
@pytest.mark.parametrize("wrap", [lambda f: f, Own], ids=["function", "unit"])
@pytest.mark.parametrize("name", WRONG)
def test_an_activation_that_is_not_elementwise_raises_where_it_is_used(
    name, wrap, make
):
    network, mu = make(wrap(WRONG[name]))
    X = normal(4, 1)
    F = of.meanfield.Risk(network, X, X[:, 0])
    for use in (
        lambda: network(mu, X),
        lambda: F(mu),
        lambda: F.velocity(mu),
        lambda: F.value_and_velocity(mu),
    ):
        with pytest.raises(of.errors.InvalidFunctional, match="acts entry by entry"):
            use()


@pytest.mark.parametrize("name", WRONG)
def test_the_tangent_kernel_raises_for_it_too(name):
    network, mu = two_layers(WRONG[name])
    with pytest.raises(of.errors.InvalidFunctional, match="acts entry by entry"):
        of.meanfield.empirical_ntk(network, mu, normal(4, 1))
