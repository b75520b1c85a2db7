"""Cures of modules, groups and gradients that no flow of neurons fits."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import otflow as of
from otflow.errors import Diverged, Unsupported
from tests.cures import Case, check_cures

FlowOptimizer = of.meanfield.FlowOptimizer
WELL = of.Potential(lambda x: x.square().sum(-1))


def mlp(d=2, n=8, m=1, **options):
    return nn.Sequential(
        nn.Linear(d, n, **options), nn.Tanh(), nn.Linear(n, m, **options)
    )


class Branches(nn.Module):
    """Two layers whose order the sizes do not tell."""

    def __init__(self):
        super().__init__()
        self.second, self.first = nn.Linear(8, 2), nn.Linear(2, 8)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def ordered(module):
    return nn.Sequential(module.first, nn.Tanh(), module.second)


def by_groups(module):
    return [
        {"params": [module.second.weight], "axis": 1, "factor": 8.0},
        {"params": list(module.first.parameters())},
        {"params": [module.second.bias], "axis": None},
    ]


def deep(frozen):
    first = nn.Linear(3, 2).requires_grad_(not frozen)
    return nn.Sequential(first, nn.Tanh(), *mlp())


def normalised(frozen):
    layer = nn.BatchNorm1d(2).requires_grad_(not frozen)
    return nn.Sequential(layer, *mlp())


def lazy(called):
    module = nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.Linear(8, 1))
    if called:
        module(torch.zeros(1, 2))
    return module


def on_two_devices():
    module = mlp()
    module[2].to("meta")
    return module


def of_two_dtypes():
    module = mlp()
    module[2].double()
    return module


def stepped(module, dt=0.1, *, backward=True, size=1.0):
    optimizer = FlowOptimizer(module, dt)
    loss = size * module(torch.ones(3, 2)).square().mean()
    if backward:
        loss.backward()
    optimizer.step()


def by_closure(module):
    optimizer = FlowOptimizer(module, 0.1)

    def closure():
        optimizer.zero_grad()
        loss = module(torch.ones(3, 2)).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)


def embedded(sparse):
    table = nn.Embedding(8, 3, sparse=sparse)
    optimizer = FlowOptimizer([{"params": [table.weight]}], 0.1)
    table(torch.arange(8)).square().mean().backward()
    optimizer.step()


def assigned(scheme):
    optimizer = FlowOptimizer(mlp(), 0.1)
    run = of.flow(WELL, optimizer.measure(), scheme, dt=0.1, steps=1, generator=0)
    optimizer.assign(run.final)


def under_autocast(module):
    optimizer = FlowOptimizer(module, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = module(torch.ones(3, 2)).float().square().mean()
    loss.backward()
    optimizer.step()
    assert optimizer.measure().dtype == torch.float32


def normed(removed):
    module = mlp()
    nn.utils.parametrizations.weight_norm(module[0])
    if removed:
        nn.utils.parametrize.remove_parametrizations(module[0], "weight")
    return module


def scalar(axis):
    return {"params": [nn.Parameter(torch.tensor(1.0))], "axis": axis}


WEIGHT = nn.Parameter(torch.ones(3, 2))


def loaded(state):
    FlowOptimizer(mlp(), 0.1).load_state_dict(state)


def other_generator():
    kept = copy.deepcopy(FlowOptimizer(mlp(), 0.1).state_dict())
    kept["generator"] = kept["generator"][:16]  # as one of a GPU is shorter
    return kept


CASES: dict[str, Case] = {
    "parameters without their module": (
        TypeError,
        (
            "neurons must be a torch module or a list of parameter groups, got "
            r"Parameter; give the module itself, as FlowOptimizer\(module, dt\), "
            "or give groups"
        ),
        lambda: FlowOptimizer(mlp().parameters(), 0.1),
        [
            lambda: FlowOptimizer(mlp(), 0.1),
            lambda: FlowOptimizer(by_groups(Branches()), 0.1),
        ],
    ),
    "no layer": (
        Unsupported,
        "no hidden layer is found in Tanh, which trains no Linear layer",
        lambda: FlowOptimizer(nn.Tanh(), 0.1),
        [lambda: FlowOptimizer(mlp(), 0.1)],
    ),
    "three layers": (
        Unsupported,
        (
            r"no hidden layer is found in Sequential, which trains Linear\(3, 2\), "
            r"Linear\(2, 8\), Linear\(8, 1\): two layers are needed"
        ),
        lambda: FlowOptimizer(deep(frozen=False), 0.1),
        [lambda: FlowOptimizer(deep(frozen=True), 0.1)],
    ),
    "an order that sizes do not tell": (
        Unsupported,
        r"order is certain, as in Sequential\(.*\); else give groups",
        lambda: FlowOptimizer(Branches(), 0.1),
        [
            lambda: FlowOptimizer(ordered(Branches()), 0.1),
            lambda: FlowOptimizer(by_groups(Branches()), 0.1),
        ],
    ),
    "parameters of no neuron": (
        Unsupported,
        (
            r"0.weight, 0.bias of Sequential belong to no neuron .*; fix them by "
            r"requires_grad_\(False\), or give groups"
        ),
        lambda: FlowOptimizer(normalised(frozen=False), 0.1),
        [lambda: FlowOptimizer(normalised(frozen=True), 0.1)],
    ),
    "a lazy layer": (
        Unsupported,
        "call the module on one batch of inputs first",
        lambda: FlowOptimizer(lazy(called=False), 0.1),
        [lambda: FlowOptimizer(lazy(called=True), 0.1)],
    ),
    "averages with groups": (
        ValueError,
        r"averages=True is about a module.*state the factor .*\{\"factor\": 1.0\}",
        lambda: FlowOptimizer(by_groups(Branches()), 0.1, averages=True),
        [
            lambda: FlowOptimizer(
                [{**group, "factor": 1.0} for group in by_groups(Branches())], 0.1
            )
        ],
    ),
    "two devices": (
        ValueError,
        r"parameters are on meta and on cpu; move the module to one device",
        lambda: FlowOptimizer(on_two_devices(), 0.1),
        [lambda: FlowOptimizer(mlp().to("cpu"), 0.1)],
    ),
    "two dtypes": (
        Unsupported,
        r"dtypes .* and one real dtype is needed; convert the module",
        lambda: FlowOptimizer(of_two_dtypes(), 0.1),
        [lambda: FlowOptimizer(of_two_dtypes().to(torch.float32), 0.1)],
    ),
    "parameters of half precision": (
        Unsupported,
        (
            "dtype torch.bfloat16, in which short steps are lost; keep parameters of "
            "float32, and evaluate the module under torch.autocast"
        ),
        lambda: FlowOptimizer(mlp(dtype=torch.bfloat16), 0.1),
        [lambda: under_autocast(mlp())],
    ),
    "a weight that is computed": (
        Unsupported,
        (
            "computed from other parameters.*; remove that, as by "
            r"torch.nn.utils.parametrize.remove_parametrizations\(layer, 'weight'\)"
        ),
        lambda: FlowOptimizer(normed(removed=False), 0.1),
        [lambda: FlowOptimizer(normed(removed=True), 0.1)],
    ),
    "a group without parameters": (
        ValueError,
        "a group has no parameters; leave it out, or give its tensors",
        lambda: FlowOptimizer([*by_groups(Branches()), {"params": []}], 0.1),
        [
            lambda: FlowOptimizer(by_groups(Branches()), 0.1),
            lambda: FlowOptimizer(
                [
                    *by_groups(Branches()),
                    {"params": [nn.Parameter(torch.ones(3))], "axis": None},
                ],
                0.1,
            ),
        ],
    ),
    "constants alone": (
        ValueError,
        (
            "no parameter holds neurons; give the axis of the neurons, .*0.*, or take "
            "torch.optim.SGD"
        ),
        lambda: FlowOptimizer([{"params": [mlp()[0].weight], "axis": None}], 0.1),
        [
            lambda: FlowOptimizer([{"params": [mlp()[0].weight], "axis": 0}], 0.1),
            lambda: torch.optim.SGD([mlp()[0].weight], 0.1),
        ],
    ),
    "an entry that no step reads": (
        ValueError,
        (
            "entry 'axes', which no step reads; give entries of params, axis, factor, "
            "lr, temperature, mobility, name alone, and a weight decay as a penalty in "
            "the loss"
        ),
        lambda: FlowOptimizer([{"params": [mlp()[0].weight], "axes": 1}], 0.1),
        [
            lambda: FlowOptimizer([{"params": [mlp()[0].weight], "axis": 1}], 0.1),
            lambda: FlowOptimizer(
                [{"params": [mlp()[0].weight], "name": "all", "initial_lr": 0.1}], 0.1
            ),
        ],
    ),
    "a parameter given twice": (
        ValueError,
        "holds a parameter twice, .* give it once",
        lambda: FlowOptimizer([{"params": [WEIGHT, WEIGHT]}], 0.1),
        [lambda: FlowOptimizer([{"params": [WEIGHT]}], 0.1)],
    ),
    "an axis that is a truth value": (
        ValueError,
        "got True; give an integer below 2",
        lambda: FlowOptimizer([{"params": [mlp()[0].weight], "axis": True}], 0.1),
        [lambda: FlowOptimizer([{"params": [mlp()[0].weight], "axis": 1}], 0.1)],
    ),
    "no neuron": (
        ValueError,
        r"shape \(0, 2\) holds no neuron along the axis 0; give modules of at",
        lambda: FlowOptimizer([{"params": [nn.Parameter(torch.ones(0, 2))]}], 0.1),
        [lambda: FlowOptimizer([{"params": [nn.Parameter(torch.ones(1, 2))]}], 0.1)],
    ),
    "a step beyond the dtype": (
        Diverged,
        "a parameter is not finite after this step; take a smaller dt",
        lambda: stepped(mlp(), dt=1e300),
        [lambda: stepped(mlp(), dt=0.01)],
    ),
    "a number that has no axis": (
        ValueError,
        r"of a parameter of shape \(\), or None for constants, got 0; give None",
        lambda: FlowOptimizer([*by_groups(Branches()), scalar(0)], 0.1),
        [lambda: FlowOptimizer([*by_groups(Branches()), scalar(None)], 0.1)],
    ),
    "a gradient that is not finite": (
        Diverged,
        (
            "a gradient is NaN or infinite, so that nothing has moved; take a smaller "
            "dt if the loss rose before, else look at the data and at the loss"
        ),
        lambda: stepped(mlp(), size=float("inf")),
        [lambda: stepped(mlp()), lambda: stepped(mlp(), dt=0.01)],
    ),
    "complex parameters": (
        Unsupported,
        "one real dtype is needed",
        lambda: FlowOptimizer(mlp(dtype=torch.complex64), 0.1),
        [lambda: FlowOptimizer(mlp(), 0.1)],
    ),
    "an axis that is none": (
        ValueError,
        (
            r"axis must be an axis of a parameter of shape \(8, 2\), or None .*got 2; "
            "give an integer below 2"
        ),
        lambda: FlowOptimizer([{"params": [mlp()[0].weight], "axis": 2}], 0.1),
        [lambda: FlowOptimizer([{"params": [mlp()[0].weight], "axis": 1}], 0.1)],
    ),
    "different numbers of neurons": (
        ValueError,
        (
            r"different numbers of neurons, 1 in \(1, 8\), 8 in \(8, 2\); give the "
            "axis .*"
            r"\{\"axis\": 1\} for the weight of an outer Linear"
        ),
        lambda: FlowOptimizer(
            [{"params": [mlp()[2].weight]}, {"params": [mlp()[0].weight]}], 0.1
        ),
        [
            lambda: FlowOptimizer(
                [
                    {"params": [mlp()[2].weight], "axis": 1},
                    {"params": [mlp()[0].weight]},
                ],
                0.1,
            )
        ],
    ),
    "a mobility of no group": (
        ValueError,
        r"mobility names 'middle', but the groups are \['outer', 'inner', 'constant'\]",
        lambda: FlowOptimizer(mlp(), 0.1, mobility={"middle": 0.0}),
        [lambda: FlowOptimizer(mlp(), 0.1, mobility={"inner": 0.0})],
    ),
    "a step without a gradient": (
        ValueError,
        (
            r"no parameter has a gradient; call backward\(\) on the loss before "
            r"step\(\), or give step\(closure\)"
        ),
        lambda: stepped(mlp(), backward=False),
        [lambda: stepped(mlp()), lambda: by_closure(mlp())],
    ),
    "a sparse gradient": (
        Unsupported,
        r"sparse, but every neuron moves; .* as Embedding\(sparse=False\) does",
        lambda: embedded(sparse=True),
        [lambda: embedded(sparse=False)],
    ),
    "a step that is too large": (
        Diverged,
        "not finite after this step; take a smaller dt",
        lambda: stepped(mlp(), dt=1e12, size=1e30),
        [lambda: stepped(mlp(), dt=1e-30, size=1e30)],
    ),
    "a measure of another shape": (
        ValueError,
        (
            r"has 8 neurons of 4 coordinates, and mu is Particles\(n=9.*; give a "
            r"measure of that shape, as measure\(\) returns"
        ),
        lambda: FlowOptimizer(mlp(), 0.1).assign(of.Particles(torch.ones(9, 4))),
        [lambda: FlowOptimizer(mlp(), 0.1).assign(FlowOptimizer(mlp(), 0.1).measure())],
    ),
    "a measure of unequal masses": (
        ValueError,
        (
            "masses of mu differ.*; draw equal atoms by "
            r"schemes.Resample\(threshold=1.0\), or take BirthDeath\(jumps=True\)"
        ),
        lambda: assigned(of.BirthDeath(1.0)),
        [
            lambda: assigned(
                of.chain(of.BirthDeath(1.0), of.schemes.Resample(threshold=1.0))
            ),
            lambda: assigned(of.BirthDeath(1.0, jumps=True)),
        ],
    ),
    "the state of another optimiser": (
        ValueError,
        r"not that of a FlowOptimizer: .* give FlowOptimizer\(...\).state_dict\(\)",
        lambda: loaded(torch.optim.SGD(mlp().parameters()).state_dict()),
        [lambda: loaded(FlowOptimizer(mlp(), 0.1).state_dict())],
    ),
    "a generator of another device": (
        ValueError,
        (
            "generator of state_dict is not one on cpu; move the module to the device "
            "of the first run"
        ),
        lambda: loaded(other_generator()),
        [lambda: loaded(FlowOptimizer(mlp().to("cpu"), 0.1).state_dict())],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_cure_works(name):
    check_cures(CASES[name])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dt": 0.0}, "dt must be positive, got 0"),
        ({"dt": -1.0}, "dt must be positive, got -1"),
        ({"temperature": -0.1}, "temperature must be non-negative"),
        ({"mobility": -1.0}, "mobility must be non-negative"),
        ({"mobility": {"inner": -1.0}}, r"mobility\['inner'\] must be non-negative"),
        ({"dt": float("nan")}, "dt must be finite"),
    ],
)
def test_bad_numbers_raise(options, words):
    with pytest.raises(ValueError, match=words):
        FlowOptimizer(mlp(), **{"dt": 0.1, **options})


def test_entries_that_were_made_wrong_later_raise_at_the_step():
    module = mlp()
    optimizer = FlowOptimizer(module, 0.1)
    module(torch.ones(3, 2)).square().mean().backward()
    for name in ("lr", "mobility", "temperature"):
        kept, optimizer.param_groups[1][name] = optimizer.param_groups[1][name], -1.0
        with pytest.raises(ValueError, match=f"{name} must be non-negative"):
            optimizer.step()
        optimizer.param_groups[1][name] = kept
    optimizer.step()


def test_a_group_with_a_wrong_factor_raises():
    groups = [{"params": [mlp()[0].weight], "factor": 0.0}]
    with pytest.raises(ValueError, match="factor must be positive"):
        FlowOptimizer(groups, 0.1)
