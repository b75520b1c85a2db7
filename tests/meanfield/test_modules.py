"""A measure of neurons to a torch module and back."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import otflow as of
from otflow.meanfield.units import UNITS
from otflow.testing import clouds
from otflow.testing.clouds import normal

from_module, to_module = of.meanfield.from_module, of.meanfield.to_module
TwoLayer = of.meanfield.TwoLayer
SCALINGS = ["mean-field", "ntk", "sum"]


def mlp(activation, outputs=1, bias=True, last=True, dtype=torch.float64):
    return nn.Sequential(
        nn.Linear(3, 40, bias=bias, dtype=dtype),
        activation,
        nn.Linear(40, outputs, bias=last, dtype=dtype),
    )


@pytest.mark.parametrize(
    "activation", [*UNITS, torch.nn.functional.gelu, nn.Softplus()]
)
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)]
)
def test_a_measure_becomes_a_module_of_equal_outputs(
    activation, scaling, dtype, tolerance
):
    X = normal(20, 2, dtype=dtype)
    for outputs, bias, offset in (
        (None, True, 0.3),
        (2, False, None),
        (2, True, [1.0, 2.0]),
    ):
        network = TwoLayer(
            activation, outputs=outputs, bias=bias, scaling=scaling, offset=offset
        )
        mu = clouds.degenerate((outputs or 1) + 2 + bias, dtype=dtype)
        module = to_module(mu, network)
        expected = network(mu, X).reshape(20, -1)
        found = module(X)
        assert found.dtype == dtype
        torch.testing.assert_close(
            found.detach(),
            expected,
            rtol=0,
            atol=tolerance * float(1 + expected.abs().max()),
        )
        named = activation if isinstance(activation, nn.Module) else None
        back, again = from_module(module, activation=named, scaling=scaling)
        torch.testing.assert_close(
            again(back, X),
            network(mu, X),
            rtol=0,
            atol=tolerance * float(1 + expected.abs().max()),
        )
        assert again.scaling == scaling
        assert again.outputs == outputs
        assert again.bias == bias


def test_the_module_is_plain_torch_and_a_copy():
    mu, network = clouds.uniform(6, 4), TwoLayer("tanh")
    module = to_module(mu, pickle.loads(pickle.dumps(network)))
    assert [type(layer) for layer in module] == [nn.Linear, nn.Tanh, nn.Linear]
    assert module[2].bias is None
    assert "(1): _Activation(Erf())" in repr(to_module(mu, TwoLayer("erf")))
    before = mu.points.clone()
    for parameter in module.parameters():
        assert parameter.requires_grad
        with torch.no_grad():
            parameter.zero_()
    assert torch.equal(mu.points, before)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Tanh(), nn.Sigmoid()])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_a_module_becomes_a_measure_of_equal_outputs(activation, scaling):
    X = normal(20, 3)
    for outputs, bias, last in ((1, True, True), (4, False, True), (4, True, False)):
        module = mlp(activation, outputs, bias, last)
        mu, network = from_module(module, scaling=scaling)
        assert mu.n == 40
        assert mu.is_uniform
        assert network.outputs == (None if outputs == 1 else outputs)
        assert network.activation is UNITS[type(activation).__name__.lower()]
        torch.testing.assert_close(
            network(mu, X).reshape(20, -1), module(X).detach(), rtol=0, atol=1e-14
        )


def test_in_the_mean_field_outer_weights_are_multiplied_by_n():
    module = mlp(nn.ReLU())
    mu, network = from_module(module)
    torch.testing.assert_close(mu.points[:, 0], 40 * module[2].weight.detach()[0])
    torch.testing.assert_close(mu.points[:, 1:4], module[0].weight.detach())
    torch.testing.assert_close(mu.points[:, 4], module[0].bias.detach())
    assert network.offset == module[2].bias.item()


def test_a_flow_of_a_module_is_its_training():
    # Weights, inner and outer: in the scaling "sum" a step of SGD is an Euler step of
    # the length rate / N.
    X, y = normal(20, 3), normal(20, seed=1)
    module = mlp(nn.Tanh(), last=False)
    mu, network = from_module(module, scaling="sum")
    F = of.meanfield.Risk(network, X, y)
    trained = of.flow(F, mu, of.ExplicitEuler(), dt=0.05 / 40, steps=20).final
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        (0.5 * (module(X)[:, 0] - y).square().mean()).backward()
        optimizer.step()
    found = to_module(trained, network).state_dict()
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-14)


def test_other_activations_are_taken_when_they_are_named():
    module, X = mlp(nn.SiLU()), normal(20, 3)
    mu, network = from_module(module, activation=module[1])
    torch.testing.assert_close(network(mu, X), module(X).detach()[:, 0])
    back = to_module(mu, network)
    assert type(back[1]) is nn.SiLU
    assert back[1] is not module[1]
    torch.testing.assert_close(back(X), module(X))


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (
            nn.Linear(2, 3),
            TypeError,
            r"^module must be a torch.nn.Sequential, got Linear",
        ),
        (
            nn.Sequential(nn.Linear(2, 3)),
            of.errors.Unsupported,
            r"got Sequential\(Linear\)",
        ),
        (
            nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU()),
            of.errors.Unsupported,
            "a deeper network is a measure of several parts",
        ),
        (
            nn.Sequential(nn.Conv1d(1, 1, 1), nn.ReLU(), nn.Linear(3, 1)),
            of.errors.Unsupported,
            r"got Sequential\(Conv1d, ReLU, Linear\)",
        ),
        (
            nn.Sequential(nn.Linear(2, 3), nn.Softmax(1), nn.Linear(3, 1)),
            of.errors.Unsupported,
            r"^the activation must be ReLU, Tanh or Sigmoid, got Softmax; .*say so",
        ),
    ],
)
def test_modules_that_are_refused(module, error, message):
    with pytest.raises(error, match=message):
        from_module(module)


def test_networks_that_are_refused():
    mu = clouds.uniform(5, 4)
    with pytest.raises(TypeError, match=r"^mu must be Particles, got Tensor"):
        to_module(mu.points, TwoLayer("tanh"))
    with pytest.raises(
        TypeError, match=r"^network must be a TwoLayer, got CustomLayer"
    ):
        to_module(mu, of.meanfield.CustomLayer(lambda x, t: x @ t.T))
    with pytest.raises(ValueError, match=r"p = m \+ d \+ 1 = 3 .*have dimension 2"):
        to_module(clouds.uniform(5, 2), TwoLayer("tanh"))
    with pytest.raises(ValueError, match=r"^scaling must be one of"):
        from_module(mlp(nn.ReLU()), scaling="mean")
    module = mlp(nn.ReLU())
    with torch.no_grad():
        module[0].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"^points must be finite"):
        from_module(module)


def test_half_precision_is_refused():
    with pytest.raises(ValueError, match=r"^points has dtype torch.bfloat16"):
        from_module(mlp(nn.ReLU(), dtype=torch.bfloat16))


# Something else that acts on a module -------------------------------------------------


def deep():
    return nn.Sequential(
        nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1)
    )


def shallow():
    return nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))


READERS: dict[str, Any] = {
    "from_module": (from_module, shallow),
    "from_sequential": (of.meanfield.networks.from_sequential, deep),
}


def by_hook(layer):
    return layer.register_forward_hook(lambda *args: 2 * args[2])


def by_pre_hook(layer):
    return layer.register_forward_pre_hook(lambda *args: (2 * args[1][0],))


@pytest.mark.parametrize("place", [None, 0, 1, 2])
@pytest.mark.parametrize("hook", [by_hook, by_pre_hook])
@pytest.mark.parametrize("name", READERS)
def test_a_module_with_hooks_raises_until_they_are_removed(name, hook, place):
    read, make = READERS[name]
    module, x = make(), torch.randn(5, 2)
    layer = module if place is None else module[place]
    handle = hook(layer)
    words = "has forward hooks.*handle.remove" if place != 1 else "the activation must"
    with pytest.raises(of.errors.Unsupported, match=words):
        read(module)
    handle.remove()
    mu, network = read(module)
    torch.testing.assert_close(network(mu, x), module(x)[:, 0])


@pytest.mark.parametrize("name", READERS)
def test_a_pruned_module_raises_until_that_is_made_permanent(name):
    read, make = READERS[name]
    module, x = make(), torch.randn(5, 2)
    prune.l1_unstructured(module[2], "weight", amount=0.5)
    with pytest.raises(
        of.errors.Unsupported, match=r"prune\.remove\(module\[2\], 'weight'\)"
    ):
        read(module)
    prune.remove(module[2], "weight")
    mu, network = read(module)
    torch.testing.assert_close(network(mu, x), module(x)[:, 0])


class Tripled(nn.Sequential):
    def forward(self, x):
        return 3 * super().forward(x)


@pytest.mark.parametrize("name", READERS)
def test_a_subclass_with_a_forward_of_its_own_raises(name):
    read, make = READERS[name]
    module, x = Tripled(*make()), torch.randn(5, 2)
    with pytest.raises(of.errors.Unsupported, match=r"Sequential\(\*module\)"):
        read(module)
    mu, network = read(nn.Sequential(*module))
    torch.testing.assert_close(3 * network(mu, x), module(x)[:, 0])
