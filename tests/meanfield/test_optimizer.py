"""An optimiser of torch that follows the flow of the neurons."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import otflow as of
from otflow.testing.clouds import normal

F64 = torch.float64
FlowOptimizer, from_module = of.meanfield.FlowOptimizer, of.meanfield.from_module
Risk, TwoLayer = of.meanfield.Risk, of.meanfield.TwoLayer


def mlp(d=2, n=40, outputs=1, bias=True, last=False, dtype=F64):
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(d, n, bias=bias, dtype=dtype),
        nn.Tanh(),
        nn.Linear(n, outputs, bias=last, dtype=dtype),
    )


def data(n=30, d=2, outputs=None, dtype=F64):
    X = normal(n, d, seed=5).to(dtype)
    y = X[:, :1].sin() + X[:, 1:2] ** 2
    return X, y[:, 0] if outputs is None else torch.cat([y, X], 1)[:, :outputs]


def square(module, X, y):
    f = module(X)
    f = f[:, 0] if y.dim() == 1 else f
    return 0.5 * (f - y).square().reshape(len(X), -1).sum(1).mean()


def train(module, optimizer, X, y, steps, scheduler=None):
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = square(module, X, y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if scheduler is not None:
            scheduler.step()
    return losses


class Mean(nn.Module):
    """A user's module that averages its neurons."""

    def __init__(self, n=40, d=2):
        super().__init__()
        torch.manual_seed(3)
        self.hidden = nn.Linear(d, n, dtype=F64)
        self.out = nn.Linear(n, 1, bias=False, dtype=F64)

    def forward(self, x):
        return self.out(torch.tanh(self.hidden(x))) / self.out.in_features


def close(mu, nu, tolerance=1e-15):
    size = float(nu.points.abs().max())
    torch.testing.assert_close(mu.points, nu.points, rtol=0, atol=tolerance * size)


# The flow -----------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [None, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_one_step_is_that_of_the_flow(outputs, bias):
    X, y = data(outputs=outputs)
    module = mlp(outputs=outputs or 1, bias=bias)
    mu, network = from_module(module)
    optimizer = FlowOptimizer(module, dt=0.3)
    close(optimizer.measure(), mu)
    (loss,) = train(module, optimizer, X, y, 1)
    run = of.flow(Risk(network, X, y), mu, of.ExplicitEuler(), dt=0.3, steps=1)
    assert loss == pytest.approx(float(run.records["energy"][0]), rel=1e-14)
    close(optimizer.measure(), run.final, 2e-15)
    close(from_module(module)[0], run.final, 2e-15)


def test_many_steps_are_those_of_the_flow():
    (X, y), module = data(), mlp()
    mu, network = from_module(module)
    optimizer = FlowOptimizer(module, dt=0.2)
    losses = train(module, optimizer, X, y, 100)
    run = of.flow(Risk(network, X, y), mu, of.ExplicitEuler(), dt=0.2, steps=100)
    energy = run.records["energy"][:-1]
    torch.testing.assert_close(
        torch.tensor(losses, dtype=F64), energy, rtol=1e-12, atol=0
    )
    close(optimizer.measure(), run.final, 1e-12)


def test_it_is_sgd_with_the_learning_rate_n_dt():
    """Bit for bit: in both layers of a module that averages, in the inner one else."""
    X, y = data()
    one, other = Mean(), Mean()
    train(one, FlowOptimizer(one, dt=0.01, averages=True), X, y, 20)
    train(other, torch.optim.SGD(other.parameters(), lr=40 * 0.01), X, y, 20)
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
    one, other = mlp(), mlp()
    rates = [
        {"params": other[0].parameters(), "lr": 40 * 0.5},
        {"params": other[2].parameters(), "lr": 0.5 * 40 / 40**2},
    ]
    train(one, FlowOptimizer(one, dt=0.5), X, y, 20)
    train(other, torch.optim.SGD(rates), X, y, 20)
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_module_that_averages_is_the_same_flow():
    X, y = data()
    module = Mean()
    optimizer = FlowOptimizer(module, dt=0.2, averages=True)
    mu = optimizer.measure()
    train(module, optimizer, X, y, 1)
    F = Risk(TwoLayer("tanh"), X, y)
    run = of.flow(F, mu, of.ExplicitEuler(), dt=0.2, steps=1)
    close(optimizer.measure(), run.final, 2e-15)


def test_noise_is_that_of_langevin_with_the_same_seed():
    (X, y), module = data(), mlp()
    mu, network = from_module(module)
    F = Risk(network, X, y) + 0.05 * of.Entropy()
    run = of.flow(F, mu, of.Langevin(), dt=0.1, steps=20, generator=7)
    optimizer = FlowOptimizer(module, dt=0.1, temperature=0.05, generator=7)
    assert optimizer.seed == run.seed
    train(module, optimizer, X, y, 20)
    close(optimizer.measure(), run.final, 1e-13)


@pytest.mark.parametrize("temperature", [0.0, 0.1])
def test_mobilities_are_rates_of_the_coordinates(temperature):
    """In the coordinates z = theta / sqrt(m) the metric is Euclidean."""
    (X, y), module = data(), mlp()
    mu, network = from_module(module)
    scale = torch.tensor([3.0, 0.5, 0.5, 0.5], dtype=F64).sqrt()

    class Changed(of.Functional):
        def value(self, nu):
            return Risk(network, X, y)(of.Particles(nu.points * scale))

    F: of.Functional = Changed()
    scheme: of.schemes.Scheme = of.ExplicitEuler()
    start = of.Particles(mu.points / scale)
    if temperature:
        F, scheme = F + temperature * of.Entropy(), of.Langevin()
    run = of.flow(F, start, scheme, dt=0.1, steps=5, generator=0)
    optimizer = FlowOptimizer(
        module,
        dt=0.1,
        temperature=temperature,
        mobility={"outer": 3.0, "inner": 0.5},
        generator=0,
    )
    train(module, optimizer, X, y, 5)
    close(optimizer.measure(), of.Particles(run.final.points * scale), 1e-14)


@pytest.mark.parametrize("way", ["mobility", "frozen"])
def test_one_layer_alone(way):
    (X, y), module = data(), mlp()
    before = [p.clone() for p in module[0].parameters()]
    mobility = {"inner": 0.0} if way == "mobility" else 1.0
    module[0].requires_grad_(way == "mobility")
    optimizer = FlowOptimizer(module, 1.0, temperature=0.1, mobility=mobility)
    outer = module[2].weight.detach().clone()
    train(module, optimizer, X, y, 3)
    for p, q in zip(module[0].parameters(), before, strict=True):
        assert torch.equal(p, q)
    assert not torch.equal(module[2].weight, outer)


def test_the_constant_follows_its_own_gradient_without_noise():
    (X, y), module = data(), mlp(last=True)
    optimizer = FlowOptimizer(module, 0.25, temperature=0.3)
    assert [g["name"] for g in optimizer.param_groups] == ["outer", "inner", "constant"]
    square(module, X, y).backward()
    expected = module[2].bias.detach() - 0.25 * module[2].bias.grad
    optimizer.step()
    assert torch.equal(module[2].bias.detach(), expected)
    assert optimizer.measure().dim == 4


def test_groups_are_for_any_module():
    """Neurons in one table, and the same flow of a network of the user's own."""
    X, y = data()
    theta = nn.Parameter(normal(30, 3))
    sigma = lambda x, t: t[:, 0] * torch.exp(-(x[:, None] - t[:, 1:]).square().sum(-1))
    optimizer = FlowOptimizer([{"params": [theta], "axis": 0}], dt=0.4)
    mu = optimizer.measure()
    for _ in range(10):
        optimizer.zero_grad()
        (0.5 * (sigma(X, theta).mean(1) - y).square().mean()).backward()
        optimizer.step()
    F = Risk(of.meanfield.CustomLayer(sigma), X, y)
    run = of.flow(F, mu, of.ExplicitEuler(), dt=0.4, steps=10)
    close(optimizer.measure(), run.final, 1e-14)


def test_a_measure_is_put_into_the_module_and_taken_out():
    module = mlp(outputs=2, last=True)
    optimizer = FlowOptimizer(module, 0.1)
    mu = of.Particles(normal(40, 5, seed=8))
    optimizer.assign(mu)
    close(optimizer.measure(), mu)
    network = from_module(module)[1]
    X = data()[0]
    torch.testing.assert_close(module(X).detach(), network(mu, X))
    assert all(p.requires_grad for p in module.parameters())


def test_other_schemes_step_between_those_of_the_loop():
    """Neurons jump by births and deaths and the loop goes on, as two flows by turns."""
    (X, y), module = data(), mlp()
    mu, network = from_module(module)
    F, reaction = Risk(network, X, y), of.BirthDeath(5.0, jumps=True)
    optimizer = FlowOptimizer(module, dt=0.2)
    for k in range(5):
        train(module, optimizer, X, y, 2)
        now = optimizer.measure()
        run = of.flow(F, now, reaction, dt=0.2, steps=1, generator=k)
        optimizer.assign(run.final)
        mu = of.flow(F, mu, of.ExplicitEuler(), dt=0.2, steps=2).final
        mu = of.flow(F, mu, reaction, dt=0.2, steps=1, generator=k).final
    close(optimizer.measure(), mu, 1e-12)
    assert len(mu.points.unique(dim=0)) < 40  # some neurons have been born


# What a torch user expects ------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 3])
def test_layers_are_found_in_a_module_of_any_names(d):
    class Net(nn.Module):
        def __init__(self, *, reverse):
            super().__init__()
            layers = [nn.Linear(d, 20), nn.Linear(20, 1)]
            for k in (1, 0) if reverse else (0, 1):
                self.add_module(f"part{k}", layers[k])

    def widths(module):
        optimizer = FlowOptimizer(module, 0.1)
        return optimizer.measure().n, optimizer.param_groups[0]["params"][0]

    module = Net(reverse=False)
    assert widths(module) == (20, module.get_parameter("part1.weight"))
    if d == 1:  # as Linear(20, 1), Linear(1, 20) it could have one neuron
        with pytest.raises(of.errors.Unsupported, match="whose order is certain"):
            FlowOptimizer(Net(reverse=True), 0.1)
    else:
        module = Net(reverse=True)
        assert widths(module) == (20, module.get_parameter("part1.weight"))


def test_schedulers_change_dt():
    (X, y), module = data(), mlp()
    mu, network = from_module(module)
    optimizer = FlowOptimizer(module, dt=0.4)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    train(module, optimizer, X, y, 10, scheduler)
    F = Risk(network, X, y)
    for k in range(10):
        mu = of.flow(F, mu, of.ExplicitEuler(), dt=0.4 * 0.9**k, steps=1).final
    close(optimizer.measure(), mu, 1e-13)


def test_a_closure_gives_the_loss_before_the_step():
    (X, y), module = data(), mlp()
    optimizer = FlowOptimizer(module, dt=0.4)

    def closure():
        optimizer.zero_grad()
        loss = square(module, X, y)
        loss.backward()
        return loss

    before = square(module, X, y).item()
    with torch.no_grad():
        assert float(optimizer.step(closure)) == before
    assert square(module, X, y).item() < before


def run_on(module, optimizer, steps):
    X, y = data()
    train(module, optimizer, X, y, steps)
    return [p.detach().clone() for p in module.parameters()]


@pytest.mark.parametrize("way", ["file", "pickle", "deepcopy"])
def test_a_resumed_run_is_the_same_bit_for_bit(way):
    module = mlp()
    optimizer = FlowOptimizer(module, dt=0.1, temperature=0.1, generator=1)
    run_on(module, optimizer, 5)
    optimizer.param_groups[0]["mobility"] = 2.0
    if way == "file":
        file = io.BytesIO()
        torch.save({"m": module.state_dict(), "o": optimizer.state_dict()}, file)
        file.seek(0)
        kept = torch.load(file, weights_only=True)
        again = mlp()
        other = FlowOptimizer(again, dt=0.7, temperature=0.2, generator=2)
        again.load_state_dict(kept["m"])
        other.load_state_dict(kept["o"])
    elif way == "pickle":
        again, other = pickle.loads(pickle.dumps((module, optimizer)))
    else:
        again, other = copy.deepcopy((module, optimizer))
    assert other.seed == optimizer.seed == 1
    for p, q in zip(run_on(module, optimizer, 5), run_on(again, other, 5), strict=True):
        assert torch.equal(p, q)


def test_single_precision_stays_and_is_near():
    X, y = data()
    wide, single = mlp(), mlp().float()
    train(wide, FlowOptimizer(wide, dt=0.2), X, y, 20)
    optimizer = FlowOptimizer(single, dt=0.2)
    train(single, optimizer, X.float(), y.float(), 20)
    found = optimizer.measure()
    assert found.dtype == torch.float32
    close(found.to(F64), from_module(wide)[0], 2e-5)


def test_nothing_moves_where_the_step_would_leave_the_numbers():
    (X, y), module = data(), mlp()
    optimizer = FlowOptimizer(module, dt=1e4)
    before = [p.detach().clone() for p in module.parameters()]
    (square(module, X, y) * 1e306).backward()
    with pytest.raises(of.errors.Diverged, match="smaller dt") as caught:
        optimizer.step()
    for p, q in zip(module.parameters(), before, strict=True):
        assert torch.equal(p, q)
    close(caught.value.measure, from_module(module)[0])


def test_the_global_random_state_is_left_alone():
    (X, y), module = data(), mlp()
    optimizer = FlowOptimizer(module, dt=0.1, temperature=1.0)
    state = torch.get_rng_state()
    train(module, optimizer, X, y, 2)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_group_that_does_not_fit_is_not_added():
    module = mlp(last=True)
    groups = [{"params": [module[0].weight]}, {"params": [module[2].weight], "axis": 1}]
    optimizer = FlowOptimizer(groups, dt=0.1)
    with pytest.raises(ValueError, match="different numbers of neurons"):
        optimizer.add_param_group({"params": [module[2].bias]})
    assert len(optimizer.param_groups) == 2
    optimizer.add_param_group({"params": [module[2].bias], "axis": None})
    assert len(optimizer.param_groups) == 3
