"""Networks of several layers as torch modules, and back: outputs and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import otflow as of
from otflow.errors import Unsupported
from otflow.meanfield.networks import MultiLayer, from_sequential, to_sequential
from otflow.testing.clouds import normal

F64 = torch.float64


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def mlp(*sizes, activations=(nn.ReLU, nn.Tanh, nn.Sigmoid), bias=True, last=True):
    state = torch.get_rng_state()
    torch.manual_seed(0)
    hidden = zip(sizes, sizes[1:-1], activations, strict=False)
    layers = [
        module
        for before, after, activation in hidden
        for module in (nn.Linear(before, after, bias=bias), activation())
    ]
    module = nn.Sequential(*layers, nn.Linear(*sizes[-2:], bias=last)).double()
    torch.set_rng_state(state)
    return module


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [(3, 8, 6, 1), (2, 7, 5, 4, 3)])
def test_outputs_are_those_of_the_module(sizes, bias):
    module, X = mlp(*sizes, bias=bias, last=bias), normal(9, sizes[0])
    mu, network = from_sequential(module)
    assert network.widths == sizes[1:-1]
    assert network.outputs == (None if sizes[-1] == 1 else sizes[-1])
    f = network(mu, X)
    expected = module(X)
    torch.testing.assert_close(
        f if network.outputs else f[:, None], expected, rtol=1e-13, atol=1e-14
    )
    back = to_sequential(mu, network)
    torch.testing.assert_close(back(X), expected, rtol=1e-13, atol=1e-14)
    pairs = zip(module.parameters(), back.parameters(), strict=True)
    for old, new in pairs:
        torch.testing.assert_close(new, old, rtol=1e-14, atol=0)


def test_gradients_of_the_module_are_velocities_in_other_units():
    """A step of gradient descent with the learning rates of the notes is Euler's."""
    network, dt = MultiLayer((8, 6, 5), "tanh", outputs=2), 0.1
    mu = network.draw(3, stream(), biases=(0.0, 1.0), dtype=F64)
    X, y = normal(9, 3), normal(9, 2, seed=1)
    F = of.meanfield.Risk(network, X, y)
    module = to_sequential(mu, network)
    loss = 0.5 * (module(X) - y).square().sum(1).mean()
    loss.backward()
    torch.testing.assert_close(loss, F(mu))
    N = (*network.widths,)
    rates = [(N[0], N[0]), (N[1] / N[0], N[1]), (N[2] / N[1], N[2]), (1 / N[2], 0)]
    with torch.no_grad():
        for layer, each in zip(list(module)[::2], rates, strict=True):
            for parameter, rate in zip(layer.parameters(), each, strict=False):
                assert parameter.grad is not None
                parameter.sub_(dt * rate * parameter.grad)
    moved = of.flow(F, mu, of.ExplicitEuler(), dt=dt, steps=1).final
    found, _ = from_sequential(module)
    torch.testing.assert_close(found.coordinates, moved.coordinates)


def test_masses_go_into_the_weights_of_the_module():
    network = MultiLayer((3, 4), "erf")
    mu = network.draw(2, stream(), dtype=F64)
    masses = torch.tensor([0.5, 0.3, 0.2], dtype=F64)
    mu = mu.replace(inner=of.Particles(mu["inner"].points, masses))
    X = normal(5, 2)
    module = to_sequential(mu, network)
    torch.testing.assert_close(module(X)[:, 0], network(mu, X))
    again, same = from_sequential(module)  # reads the unit off its own module
    torch.testing.assert_close(same(again, X), network(mu, X))


def test_parameters_are_trainable_copies():
    network = MultiLayer((3, 4), "tanh", offset=0.5)
    mu = network.draw(2, stream())
    module = to_sequential(mu, network)
    assert all(p.requires_grad and p.is_leaf for p in module.parameters())
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
    assert float(mu["inner"].points.abs().max()) > 0
    assert network(from_sequential(module)[0], torch.ones(1, 2)) == 0.5


def test_activations_may_be_given():
    module, X = mlp(2, 5, 4, 1, activations=(nn.Softplus, nn.Tanh)), normal(5, 2)
    with pytest.raises(Unsupported, match="Softplus"):
        from_sequential(module)
    mu, network = from_sequential(module, units=list(module[1::2]))
    torch.testing.assert_close(network(mu, X), module(X)[:, 0])
    again = to_sequential(mu, network)
    assert isinstance(again[1], nn.Softplus)
    torch.testing.assert_close(again(X), module(X))


@pytest.mark.parametrize(
    "wrong",
    [
        nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)),
        nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 1)),
        nn.Sequential(*(nn.Linear(3, 3) for _ in range(5))),
        nn.Sequential(*mlp(2, 3, 3, 1), nn.ReLU()),
        nn.Sequential(nn.ReLU(), *mlp(2, 3, 3, 1)),
        nn.Sequential(*mlp(2, 3, 3, 1)[:-1], nn.LazyLinear(1)),
    ],
    ids=["two", "no activation", "only linear", "end", "start", "lazy"],
)
def test_other_modules_raise(wrong):
    with pytest.raises(Unsupported, match="three Linear layers"):
        from_sequential(wrong)


class Doubled(MultiLayer):
    def respond(self, inputs, mu):
        return 2 * super().respond(inputs, mu)


def test_a_subclass_of_other_outputs_is_no_module():
    network = Doubled((3, 4), "tanh")
    with pytest.raises(Unsupported, match="respond changes the outputs"):
        to_sequential(network.draw(2, stream()), network)
