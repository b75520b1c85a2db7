"""Cures of networks of several layers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import otflow as of
from otflow.functionals import InPart
from otflow.meanfield.networks import (
    MultiLayer,
    align_networks,
    from_sequential,
    to_sequential,
)
from otflow.measures import Euclidean, Parts
from otflow.testing.clouds import normal
from tests.cures import Case, check_cures

F64 = torch.float64
LIST: Any = [0, 1, 2]
Unsupported = of.errors.Unsupported
NETWORK = MultiLayer((4, 3), "tanh")
GENERATOR = torch.Generator().manual_seed(0)
MU = NETWORK.draw(2, GENERATOR, dtype=F64)
X = normal(5, 2)
RISK = of.meanfield.Risk(NETWORK, X, X[:, 0])
DEEP = MultiLayer((4, 3, 5), ("relu", "tanh", "erf"))


def replaced(**parts):
    return RISK(MU.replace(**parts))


def renamed():
    parts = {f"layer{k}": part for k, part in enumerate(MU.parts)}
    return NETWORK(Parts(parts), X)


def weights():
    return [part.coordinates for part in MU.parts]


def unequal():
    masses = torch.tensor([0.5, 0.3, 0.2], dtype=F64)
    return MU.replace(outer=of.Particles(MU["outer"].points, masses))


ATOMS = of.Particles(normal(3, 2))


class Sums(of.meanfield.Model):
    """x -> x.m of the mean m, in a shape of the user's choice."""

    def __init__(self, change, outputs=None):
        super().__init__(outputs)
        self.change = change

    def check_measure(self, mu, d):
        pass

    def respond(self, inputs, mu):
        return self.change(inputs @ mu.expectation(lambda x: x))


class Right(of.meanfield.Unit):
    name = "square"

    def __call__(self, z):
        return z.square()

    def slope(self, z, value, out):
        return torch.mul(z, 2, out=out)


class Wrong(Right):
    slope_from_value = True


class Negated(nn.Sequential):
    def forward(self, x):
        return -super().forward(x)


def deep():
    return [nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)]


def hooked():
    module = nn.Sequential(*deep())
    return module, module[2].register_forward_hook(lambda *_: None)


def removed():
    module, handle = hooked()
    handle.remove()
    from_sequential(module)


def unpruned():
    module = nn.Sequential(*deep())
    prune.random_unstructured(module[2], "weight", amount=0.5)
    with pytest.raises(Unsupported, match=r"prune\.remove\(module\[2\], 'weight'\)"):
        from_sequential(module)
    prune.remove(module[2], "weight")
    from_sequential(module)


class Doubled(MultiLayer):
    def respond(self, inputs, mu):
        return 2 * super().respond(inputs, mu)


def twice(z):
    return 2 * torch.tanh(z)


def mlp(*widths, activation=nn.Tanh, bias=True):
    layers = [
        module
        for a, b in pairwise(widths[:-1])
        for module in (nn.Linear(a, b, bias=bias), activation())
    ]
    return nn.Sequential(*layers, nn.Linear(*widths[-2:]))


def the_unit_twice(module):
    """Return the measure of a module of which the layer before the last is doubled."""
    before, after = nn.Linear(4, 2), nn.Linear(2, 3)
    with torch.no_grad():
        before.weight.copy_(module[2].weight.expand(2, 4))
        before.bias.copy_(module[2].bias.expand(2))
        after.weight.copy_(0.5 * module[4].weight.expand(3, 2))
        after.bias.copy_(module[4].bias)
    double = nn.Sequential(*module[:2], before, module[3], after, *module[5:])
    mu, network = from_sequential(double)
    x = torch.randn(5, 2)
    torch.testing.assert_close(network(mu, x), module(x)[:, 0])
    return mu


def mixed(bias):
    module = mlp(2, 4, 3, 1)
    if not bias:
        module[0].bias = None
    return module


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = mlp(2, 4, 3, 1)


CASES: dict[str, Case] = {
    "widths that are one number": (
        TypeError,
        (
            "widths must be a sequence of the numbers of hidden units, got 100; e.g. "
            r"widths=\(100, 100\)"
        ),
        lambda: MultiLayer(100, "tanh"),
        [lambda: MultiLayer((100, 100), "tanh")],
    ),
    "one hidden layer": (
        ValueError,
        (
            r"widths must hold two layers at least, got \(100,\); one hidden layer is "
            r"a "
            "TwoLayer"
        ),
        lambda: MultiLayer((100,), "tanh"),
        [lambda: of.meanfield.TwoLayer("tanh")],
    ),
    "a layer without units": (
        ValueError,
        r"widths\[1\] must be at least 2, got 0: .*give 2 units",
        lambda: MultiLayer((4, 0), "tanh"),
        [lambda: MultiLayer((4, 2), "tanh").draw(2, GENERATOR)],
    ),
    "a layer of one unit": (
        ValueError,
        (
            r"widths\[0\] must be at least 2, got 1: a mean over one unit has none of "
            r"the limits of wide layers; give 2 units"
        ),
        lambda: MultiLayer((1, 3), "tanh"),
        [lambda: MultiLayer((2, 3), "tanh").draw(2, GENERATOR)],
    ),
    "a module with a layer of one unit": (
        ValueError,
        (
            r"widths\[1\] must be at least 2, got 1.*Linear\(..., 2\) of two equal "
            r"rows, and half of the weights in each of two columns"
        ),
        lambda: from_sequential(mlp(2, 4, 1, 3, 1)),
        [lambda: the_unit_twice(mlp(2, 4, 1, 3, 1))],
    ),
    "shapes for no inputs": (
        ValueError,
        "d must be at least 1, got 0",
        lambda: NETWORK.shapes(0),
        [lambda: NETWORK.shapes(1)],
    ),
    "weights by name": (
        TypeError,
        (
            r"weights must be a sequence of 4 tensors, one for each of \['inner', .*, "
            r"got dict; \[W1, W2, ...\] is one"
        ),
        lambda: NETWORK.measure(dict(zip(NETWORK.names, weights(), strict=True))),
        [lambda: NETWORK.measure(weights())],
    ),
    "weights of a flat layer": (
        ValueError,
        r"weights\[3\] must have shape \(n, d\), got \(3,\); use weights\[3\]\[:, ",
        lambda: NETWORK.measure([*weights()[:3], weights()[3][:, 0]]),
        [lambda: NETWORK.measure([*weights()[:3], weights()[3][:, 0][:, None]])],
    ),
    "one order": (
        TypeError,
        (
            r"orders must be a sequence of 2 permutations, got 3; \[torch.arange\(N\) "
            r"for N in network.widths\] changes nothing"
        ),
        lambda: NETWORK.permuted(MU, 3),
        [lambda: NETWORK.permuted(MU, [torch.arange(N) for N in NETWORK.widths])],
    ),
    "an unknown activation": (
        ValueError,
        "activation must be one of .*'tanh'",
        lambda: MultiLayer((4, 3), "tahn"),
        [lambda: MultiLayer((4, 3), "tanh")],
    ),
    "units for another number of layers": (
        ValueError,
        (
            "units must be one activation, or 2, one for each hidden layer, got 3; "
            "e.g. "
            "units='relu' for all"
        ),
        lambda: MultiLayer((4, 3), ("relu", "tanh", "erf")),
        [
            lambda: MultiLayer((4, 3), "relu"),
            lambda: MultiLayer((4, 3), ("relu", "erf")),
        ],
    ),
    "units that are a number": (
        TypeError,
        (
            "units must be an activation, or one for each hidden layer, got 3; e.g. "
            "units='tanh'"
        ),
        lambda: MultiLayer((4, 3), 3),
        [lambda: MultiLayer((4, 3), "tanh")],
    ),
    "a law without a deviation": (
        TypeError,
        (
            r"middle must be a pair \(mean, standard deviation\), got 1.0; e.g. \(0.0, "
            r"1.0\)"
        ),
        lambda: NETWORK.draw(2, GENERATOR, middle=1.0),
        [lambda: NETWORK.draw(2, GENERATOR, middle=(0.0, 1.0))],
    ),
    "half precision": (
        ValueError,
        "dtype must be torch.float32 or torch.float64, got torch.float16",
        lambda: NETWORK.draw(2, GENERATOR, dtype=torch.float16),
        [lambda: NETWORK.draw(2, GENERATOR, dtype=torch.float32)],
    ),
    "too few weights": (
        ValueError,
        (
            r"weights must be 4 tensors, one for each of \['inner', 'middle1', "
            r"'bias2', "
            r"'outer'\], got 3; network.shapes\(d\) are theirs"
        ),
        lambda: NETWORK.measure(weights()[:3]),
        [
            lambda: NETWORK.measure(weights()),
            lambda: NETWORK.measure(
                [torch.ones(shape) for shape in NETWORK.shapes(2).values()]
            ),
        ],
    ),
    "a measure of neurons": (
        TypeError,
        (
            r"the measure of a MultiLayer must be a Parts, got Particles.*; "
            r"network.draw\(2, generator\) makes one"
        ),
        lambda: NETWORK(of.Particles(normal(4, 3)), X),
        [lambda: NETWORK(NETWORK.draw(2, GENERATOR, dtype=F64), X)],
    ),
    "parts of other names": (
        ValueError,
        (
            r"MultiLayer\(\(4, 3\), 'tanh'\) needs the parts \['inner', 'middle1', "
            r"'bias2', 'outer'\], in this order, got \['layer0', .*; "
            r"network.draw\(2, generator\) makes one"
        ),
        renamed,
        [lambda: NETWORK(NETWORK.draw(2, GENERATOR, dtype=F64), X)],
    ),
    "a part of another kind": (
        TypeError,
        "the part 'middle1' must be a Euclidean, got Particles.*; network.draw",
        lambda: replaced(middle1=of.Particles(normal(3, 4))),
        [lambda: replaced(middle1=Euclidean(normal(3, 4)))],
    ),
    "a part of another shape": (
        ValueError,
        (
            r"the part 'middle1' must have shape \(3, 4\) for 2 inputs and the widths "
            r"\(4, 3\), got \(4, 3\); network.draw\(2, generator\) makes a measure of "
            r"the "
            "right shapes"
        ),
        lambda: replaced(middle1=Euclidean(normal(4, 3))),
        [
            lambda: replaced(middle1=Euclidean(normal(3, 4))),
            lambda: RISK(NETWORK.draw(2, GENERATOR, dtype=F64)),
        ],
    ),
    "a network of other widths": (
        ValueError,
        (
            r"the part 'inner' must have shape \(4, 3\) for 2 inputs and the widths "
            r"\(4, 3\), got \(6, 3\); MultiLayer\(\(6, 3\), ...\) fits all its parts"
        ),
        lambda: RISK(MultiLayer((6, 3), "tanh").draw(2, GENERATOR, dtype=F64)),
        [
            lambda: MultiLayer((6, 3), "tanh")(
                MultiLayer((6, 3), "tanh").draw(2, GENERATOR, dtype=F64), X
            )
        ],
    ),
    "other outputs": (
        ValueError,
        (
            r"the part 'outer' must have shape \(3, 1\) .*got \(3, 2\); "
            r"MultiLayer\(\(4, 3\), ..., outputs=2\) fits all its parts"
        ),
        lambda: replaced(outer=of.Particles(normal(3, 2))),
        [
            lambda: MultiLayer((4, 3), "tanh", outputs=2)(
                MU.replace(outer=of.Particles(normal(3, 2))), X
            )
        ],
    ),
    "too few permutations": (
        ValueError,
        (
            "orders must be 2 permutations, one for each hidden layer, got 1; "
            r"torch.arange\(N\) changes nothing"
        ),
        lambda: NETWORK.permuted(MU, [torch.arange(4)]),
        [lambda: NETWORK.permuted(MU, [torch.arange(4), torch.arange(3)])],
    ),
    "an order that is no permutation": (
        ValueError,
        (
            r"orders\[0\] must be a permutation of 0, ..., 3, int64 on cpu, got "
            r"torch.int64 of shape \(4,\); torch.randperm\(4\) is one"
        ),
        lambda: NETWORK.permuted(MU, [torch.zeros(4).long(), torch.arange(3)]),
        [lambda: NETWORK.permuted(MU, [torch.randperm(4), torch.arange(3)])],
    ),
    "an order that is a list": (
        TypeError,
        r"orders\[1\] must be a Tensor, got .*; torch.randperm\(3\) is one",
        lambda: NETWORK.permuted(MU, [torch.arange(4), LIST]),
        [lambda: NETWORK.permuted(MU, [torch.arange(4), torch.randperm(3)])],
    ),
    "align another network": (
        TypeError,
        "network must be a MultiLayer, got TwoLayer.*; give the MultiLayer of both",
        lambda: align_networks(of.meanfield.TwoLayer("tanh"), MU, MU),
        [lambda: align_networks(NETWORK, MU, MU)],
    ),
    "align a measure of neurons": (
        TypeError,
        r"nu must be a Parts, got Particles.*; network.draw\(d, generator\) makes one",
        lambda: align_networks(NETWORK, MU, MU["inner"]),
        [lambda: align_networks(NETWORK, MU, NETWORK.draw(2, GENERATOR, dtype=F64))],
    ),
    "align other masses": (
        ValueError,
        (
            r"the masses of nu\['outer'\] differ, and permutations match units of "
            r"equal "
            r"mass; give units of mass 1/N, nu.replace\(outer=Particles\(nu\['outer'\]."
            r"points\)\)"
        ),
        lambda: align_networks(NETWORK, MU, unequal()),
        [
            lambda: align_networks(
                NETWORK,
                MU,
                unequal().replace(outer=of.Particles(unequal()["outer"].points)),
            )
        ],
    ),
    "a first variation of all parts": (
        Unsupported,
        (
            r"no mass gradient in part 'middle1'.*functionals\.InPart\(F, mu, 'outer'\)"
            r"\.first_variation\(mu\['outer'\]\).*use schemes\.PartByPart"
        ),
        lambda: RISK.first_variation(MU),
        [
            lambda: InPart(RISK, MU, "inner").first_variation(MU["inner"]),
            lambda: InPart(RISK, MU, "outer").first_variation(MU["outer"]),
            lambda: of.flow(
                RISK,
                MU,
                of.schemes.PartByPart(
                    {"outer": of.BirthDeath(), "middle1": of.ExplicitEuler()}
                ),
                dt=0.1,
                steps=1,
                generator=0,
            ),
        ],
    ),
    "birth and death of all parts": (
        Unsupported,
        r"no mass gradient in part 'middle1'.*use schemes\.PartByPart",
        lambda: of.flow(RISK, MU, of.BirthDeath(), dt=0.1, steps=1, generator=0),
        [
            lambda: of.flow(
                RISK,
                MU,
                of.schemes.PartByPart({"outer": of.BirthDeath()}),
                dt=0.1,
                steps=1,
                generator=0,
            )
        ],
    ),
    "a first variation at new units": (
        of.errors.Unsupported,
        r"reads atoms by their index, .* at the atoms themselves, without x",
        lambda: InPart(RISK, MU, "inner").first_variation(MU["inner"], normal(2, 3)),
        [lambda: InPart(RISK, MU, "inner").first_variation(MU["inner"])],
    ),
    "a part with other units": (
        ValueError,
        (
            r"the part 'inner' must have shape \(4, 3\).*got \(6, 3\): each of its "
            r"atoms is a unit.*first_variation\(mu\['inner'\]\) is that of its own"
        ),
        lambda: RISK.value(MU.replace(inner=of.Particles(normal(6, 3)))),
        [
            lambda: RISK.value(MU.replace(inner=of.Particles(normal(4, 3)))),
            lambda: InPart(RISK, MU, "inner").first_variation(MU["inner"]),
        ],
    ),
    "outputs with an axis too many": (
        of.errors.InvalidFunctional,
        (
            r"respond must return outputs of shape \(n,\).*return f\[:, 0\] for one "
            r"output, and call super\(\).__init__\(outputs=m\)"
        ),
        lambda: Sums(lambda f: f[:, None])(ATOMS, X),
        [
            lambda: Sums(lambda f: f[:, None][:, 0])(ATOMS, X),
            lambda: Sums(lambda f: f[:, None], outputs=1)(ATOMS, X),
        ],
    ),
    "offsets of one output": (
        TypeError,
        "offset must be one number for one output.*; give outputs=2, or a number",
        lambda: of.meanfield.TwoLayer("tanh", offset=[1.0, 2.0]),
        [
            lambda: of.meanfield.TwoLayer("tanh", outputs=2, offset=[1.0, 2.0]),
            lambda: of.meanfield.TwoLayer("tanh", offset=1.0),
        ],
    ),
    "one offset of two outputs": (
        ValueError,
        r"offset must hold 2 numbers, .*; e\.g\. offset=\[0\.0, 0\.0\]",
        lambda: of.meanfield.TwoLayer("tanh", outputs=2, offset=3.0),
        [lambda: of.meanfield.TwoLayer("tanh", outputs=2, offset=[0.0, 0.0])],
    ),
    "a slope that reads the argument": (
        of.errors.InvalidFunctional,
        "declares slope_from_value, .*; leave slope_from_value = False",
        lambda: of.meanfield.TwoLayer(Wrong()),
        [lambda: of.meanfield.TwoLayer(Right())],
    ),
    "a module with a forward of its own": (
        Unsupported,
        r"Negated\.forward is not known; .* give torch\.nn\.Sequential\(\*module\)",
        lambda: from_sequential(Negated(*deep())),
        [lambda: from_sequential(nn.Sequential(*Negated(*deep())))],
    ),
    "a module with hooks": (
        Unsupported,
        (
            r"module\[2\] has forward hooks, .*; remove them, by handle\.remove\(\), "
            r"or torch\.nn\.utils\.prune\.remove\(module\[2\], 'weight'\)"
        ),
        lambda: from_sequential(hooked()[0]),
        [removed, unpruned],
    ),
    "a module of another network": (
        TypeError,
        "network must be a MultiLayer, got TwoLayer.*; to_module is for a TwoLayer",
        lambda: to_sequential(MU, of.meanfield.TwoLayer("tanh")),
        [
            lambda: to_sequential(MU, NETWORK),
            lambda: of.meanfield.to_module(
                of.Particles(normal(4, 4)), of.meanfield.TwoLayer("tanh")
            ),
        ],
    ),
    "a module of a measure of neurons": (
        TypeError,
        r"mu must be a Parts, got Particles.*; network.draw\(d, generator\) makes one",
        lambda: to_sequential(MU["inner"], NETWORK),
        [lambda: to_sequential(NETWORK.draw(2, GENERATOR), NETWORK)],
    ),
    "a module of a subclass": (
        Unsupported,
        (
            "Doubled.respond changes the outputs, so that no Linear layers compute "
            "them; "
            r"state other values in the units, MultiLayer\(widths, units\)"
        ),
        lambda: to_sequential(MU, Doubled((4, 3), "tanh")),
        [lambda: to_sequential(MU, MultiLayer((4, 3), ("tanh", twice)))],
    ),
    "a module of ones own": (
        TypeError,
        (
            "module must be a torch.nn.Sequential, got Own; write "
            r"Sequential\(Linear, activation, ..., Linear\) of its layers"
        ),
        lambda: from_sequential(Own()),
        [lambda: from_sequential(nn.Sequential(*Own().layers))],
    ),
    "a module of two layers": (
        Unsupported,
        (
            r"of three Linear layers at least, got Sequential\(Linear, Tanh, Linear\); "
            "from_module takes one of two"
        ),
        lambda: from_sequential(mlp(2, 4, 1)),
        [lambda: of.meanfield.from_module(mlp(2, 4, 1))],
    ),
    "a module with a Softmax": (
        Unsupported,
        "leave out Dropout, .* and a Softmax at the end, which the loss of a Risk",
        lambda: from_sequential(
            nn.Sequential(*mlp(2, 4, 3, 2), nn.Dropout(), nn.Softmax(1))
        ),
        [lambda: from_sequential(mlp(2, 4, 3, 2))],
    ),
    "from_module of three layers": (
        Unsupported,
        (
            "a deeper network is a measure of several parts: "
            r"meanfield.networks.from_sequential\(module\)"
        ),
        lambda: of.meanfield.from_module(mlp(2, 4, 3, 1)),
        [lambda: of.meanfield.networks.from_sequential(mlp(2, 4, 3, 1))],
    ),
    "biases in some layers": (
        Unsupported,
        (
            "some hidden layers of the module have biases and some have none; give all "
            "of "
            r"them biases, Linear\(..., bias=True\), with zeros where there are none"
        ),
        lambda: from_sequential(mixed(bias=False)),
        [lambda: from_sequential(mixed(bias=True))],
    ),
    "an unknown module": (
        Unsupported,
        (
            "the activation must be ReLU, Tanh or Sigmoid, got Softplus; if it acts "
            "entry "
            r"by entry, say so: from_sequential\(module, units=list\(module\[1::2\]\)\)"
        ),
        lambda: from_sequential(mlp(2, 4, 3, 1, activation=nn.Softplus)),
        [
            lambda: from_sequential(
                module := mlp(2, 4, 3, 1, activation=nn.Softplus),
                units=list(module[1::2]),
            )
        ],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_cure_works(case):
    check_cures(CASES[case])
