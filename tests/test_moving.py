"""`to`: another dtype, another device; tensors follow, and what cannot move says so."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import otflow as of
from otflow._autodiff import value_and_gradient
from otflow._moving import Move
from otflow.errors import ModifiedInPlace, Unsupported
from otflow.meanfield import Risk, TwoLayer
from otflow.testing.clouds import normal
from tests.curves import ALL
from tests.test_immutable import Slotted

F32, F64 = torch.float32, torch.float64
ZERO = torch.zeros((), dtype=F64)


def square(x):
    return 0.5 * x.square().sum(-1)


def held(thing):
    """Return the tensors that a measure or a functional holds, by name."""
    return {k: v for k, v in vars(thing).items() if isinstance(v, torch.Tensor)}


@dataclass(frozen=True, eq=False, repr=False)
class Pair(of.Measure):
    """A user's measure: a tensor of its own, from which the points follow."""

    half: torch.Tensor
    weights: torch.Tensor
    name: str = "pair"

    @property
    def points(self):
        return torch.cat([self.half, -self.half])

    def value_and_position_gradient(self, value):
        make = lambda x: Pair(x, self.weights)
        f, gradient = value_and_gradient(lambda x: value(make(x)), self.half)
        n = len(self.half)
        return f, gradient / (self.weights[:n] + self.weights[n:])[:, None]

    def push(self, tangent, dt):
        return Pair(self.half + dt * tangent, self.weights)

    def inner(self, u, v):
        return self.weights @ (u * v).sum(-1).repeat(2)

    def displacement_to(self, other):
        return other.half - self.half


OWN = {
    "slots": lambda _: Slotted(normal(4, 2)),
    "fields": lambda _: Pair(normal(4, 2), normal(8, seed=5).softmax(0)),
}
KINDS = {**ALL, **OWN}


# Measures -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_changes_gives_the_measure_itself(kind):
    mu = KINDS[kind](ZERO)
    for same in (
        mu.to(F64),
        mu.to("cpu"),
        mu.to(torch.device("cpu"), F64),
        mu.to(mu),
        mu.to(mu.points),
        mu.to(dtype=F64, device="cpu"),
        mu.to(),
    ):
        assert same is mu


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_of_dtype_reaches_every_tensor_and_comes_back(kind):
    mu = KINDS[kind](ZERO)
    low = mu.to(F32)
    assert type(low) is type(mu)
    assert (low.dtype, low.weights.dtype, low.points.dtype) == (F32, F32, F32)
    for name, tensor in held(low).items():
        assert tensor.dtype == (torch.bool if name == "is_free" else F32), name
    back = low.to(mu.dtype)
    for name, tensor in held(back).items():
        assert tensor.dtype == getattr(mu, name).dtype
        torch.testing.assert_close(
            tensor, getattr(mu, name), rtol=1e-5, atol=1e-6, check_dtype=False
        )
    f = lambda nu: nu.expectation(square)
    torch.testing.assert_close(f(low).double(), f(mu), rtol=1e-5, atol=1e-6)
    assert mu.dtype == F64  # the original is untouched


@pytest.mark.parametrize("kind", ALL)
def test_weights_of_float32_are_renormalised_in_float64(kind):
    low = ALL[kind](ZERO).to(F32)
    n = low.n
    high = low.to(F64)
    total = float(high.weights.sum())
    assert abs(total - 1.0) <= n * torch.finfo(F64).eps
    # No mass moved by more than the round-off of float32.
    torch.testing.assert_close(high.weights, low.weights.double(), rtol=3e-7, atol=0)


def test_uniform_weights_become_those_of_the_constructor():
    x, edges = torch.randn(7, 2), torch.arange(8.0)
    high = of.Particles(x).to(F64)
    again = of.Particles(x.double())
    assert high.is_uniform
    assert torch.equal(high.weights, again.weights)
    assert not high.displacement_to(again).any()  # it needs equal weights
    for a, b in (
        (of.Quantiles(edges).to(F64), of.Quantiles(edges.double())),
        (
            of.Gaussian(x[0], torch.eye(2)).to(F64),
            of.Gaussian(x[0].double(), torch.eye(2, dtype=F64)),
        ),
    ):
        for name, tensor in held(b).items():
            torch.testing.assert_close(held(a)[name], tensor, rtol=3e-15, atol=3e-15)


def test_a_sum_off_by_the_round_off_of_float32_is_put_right():
    w = torch.tensor([0.1] * 10)
    w[3:] += 3e-8
    assert abs(float(w.double().sum()) - 1) > 1e-7
    high = of.Particles(torch.randn(10, 1), w).to(F64)
    assert float(high.weights.sum()) == pytest.approx(1.0, abs=1e-15)
    again = of.Particles(high.points, high.weights)  # which checks the sum to 1e-9
    assert torch.equal(again.weights, high.weights)


def test_masses_that_are_no_probability_are_not_renormalised():
    w = torch.tensor([0.3, 0.4])
    free = of.Particles(torch.zeros(2, 1)).with_free_atoms(weights=w).to(F64)
    assert torch.equal(free.weights, w.double())


def test_what_follows_from_other_tensors_is_as_exact_as_the_new_dtype():
    mu = of.Quantiles(torch.tensor([0.0, 0.1, 0.7])).to(F64)
    middle = 0.5 * (mu.edges[1:] + mu.edges[:-1])
    assert torch.equal(mu.points[:, 0], middle)
    assert float(mu.lumped.sum()) == pytest.approx(1.0, abs=1e-15)
    box = of.GridDensity(torch.ones(3), 0.0, 1.0, walls=True).to(F64)
    centres = (torch.arange(3, dtype=F64) + 0.5) / 3
    torch.testing.assert_close(box.points[:, 0], centres, rtol=1e-15, atol=0)
    law = of.Gaussian(torch.zeros(2), torch.eye(2)).to(F64)
    fourth = law.expectation(lambda x: x[:, 0] ** 4)
    assert float(fourth) == pytest.approx(3.0, abs=1e-12)  # the rule's own nodes
    for fine in (law.refined(50).to(F32).to(F64), law.to(F32).refined(50).to(F64)):
        torch.testing.assert_close(fine.nodes, law.refined(50).nodes, rtol=0, atol=0)
    free = law.to(F32).with_free_nodes(torch.ones(3, 2), torch.ones(3)).to(F64)
    assert torch.equal(free.weights, torch.ones(3, dtype=F64))
    assert free.points.dtype == F64


@pytest.mark.parametrize(
    "kind", ["particles", "weighted", "quantiles", "gaussian", "masses"]
)
@pytest.mark.parametrize("dtype", [F32, F64])
def test_the_graph_is_kept_and_its_derivative_is_that_of_a_cast(kind, dtype):
    t = torch.zeros((), dtype=F64, requires_grad=True)
    mu = ALL[kind](t)
    mu = mu.to(F32).to(F64) if dtype == F64 else mu.to(F32)
    assert mu.dtype == dtype
    F = of.Potential(lambda x: (x + 0.3).sin().sum(-1))
    (found,) = torch.autograd.grad(F.value(mu).double(), t)
    s = torch.zeros((), dtype=F64, requires_grad=True)
    (expected,) = torch.autograd.grad(F.value(ALL[kind](s)), s)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_masses_stay_free_in_derivatives_after_a_move():
    w = torch.tensor([0.25, 0.35, 0.4], requires_grad=True)
    mu = of.Particles(torch.tensor([[1.0], [2.0], [4.0]]), w).to(F64)
    (found,) = torch.autograd.grad(mu.expectation(lambda x: x[:, 0]), w)
    torch.testing.assert_close(found, torch.tensor([1.0, 2.0, 4.0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ALL)
def test_half_precision_raises_what_a_constructor_raises(kind, dtype):
    with pytest.raises(ValueError, match="too coarse for transport"):
        ALL[kind](ZERO).to(dtype)


def test_a_dtype_that_is_not_real_or_a_place_that_is_none_raises():
    mu = of.Particles(torch.zeros(2, 1))
    for dtype in (torch.int64, torch.complex64, torch.bool):
        with pytest.raises(TypeError, match=r"float32 or float64"):
            mu.to(dtype)
    for bad in (np.float64, 1.0, None, True, object()):
        with pytest.raises(TypeError, match="a dtype, a device or a tensor"):
            mu.to(bad)
    with pytest.raises(TypeError, match="meta hold no numbers"):
        mu.to("meta")
    with pytest.raises(TypeError, match=r"float32 or float64"):
        mu.to(torch.zeros(2, dtype=torch.int64))


def double(*numbers):
    return torch.tensor(numbers, dtype=F64)


TOO_FINE = {
    "too large": lambda: of.Particles(double(1e20)[:, None]),
    "increase strictly": lambda: of.Quantiles(double(1.0, 1 + 1e-12, 2.0)),
    r"weights\[0\] is 0": lambda: of.Quantiles(double(0, 1, 2), double(1e-60, 1.0)),
    "singular to round-off of torch.float32": lambda: of.Gaussian(
        double(0.0, 0.0), double(1.0, 1e-14).diag()
    ),
}


@pytest.mark.parametrize("words", TOO_FINE)
def test_a_dtype_that_cannot_hold_the_measure_raises(words):
    mu = TOO_FINE[words]()
    with pytest.raises(ValueError, match=words):
        mu.to(F32)


def test_a_written_tensor_is_told_before_it_moves():
    mu = of.Particles(torch.zeros(2, 1))
    mu.weights.mul_(2)
    with pytest.raises(ModifiedInPlace, match=r"mu\.weights\.clone\(\)"):
        mu.to(F64)


class Elsewhere(Move):
    """A move to a device that this machine does not have: every tensor is marked."""

    def __init__(self):
        super().__init__()
        self.made: set[int] = set()

    def changes(self, x):
        return id(x) not in self.made

    def tensor(self, x):
        new = x.clone()
        self.made.add(id(new))
        return new


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_of_device_reaches_every_tensor(kind):
    # No second device is here: the move itself is watched instead.
    mu, move = KINDS[kind](ZERO), Elsewhere()
    there = mu.carry(move)
    assert held(there)
    for name, tensor in held(there).items():
        assert id(tensor) in move.made, name
        assert torch.equal(tensor, getattr(mu, name))


def test_a_change_of_device_reaches_the_data_of_a_risk_and_the_target_of_a_divergence():
    X = normal(5, 1)
    rho = ALL["line"](ZERO)
    risk, kl = Risk(TwoLayer("tanh"), X, X[:, 0]), of.KL(rho)
    move = Elsewhere()
    there, target = risk.carry(move), kl.carry(move).target
    assert len(held(there)) == 2  # inputs and targets
    for thing in (there, target):
        assert all(id(t) in move.made for t in held(thing).values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="it takes a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_measures_go_to_a_cuda_device_and_back(kind):
    mu = KINDS[kind](ZERO)
    there = mu.to("cuda")
    assert there.device.type == "cuda"
    assert there.to("cuda") is there
    assert {t.device.type for t in held(there).values()} == {"cuda"}
    value = there.expectation(square)
    assert value.device.type == "cuda"
    torch.testing.assert_close(value.cpu(), mu.expectation(square))
    low = mu.to("cuda", F32)
    assert (low.dtype, low.device.type) == (F32, "cuda")
    for name, tensor in held(there.to("cpu")).items():
        assert torch.equal(tensor, getattr(mu, name))


# Functionals and kernels --------------------------------------------------------------


class Pull(of.kernels.Kernel):
    """A user's kernel that holds a tensor."""

    def __init__(self, axes):
        self.axes = axes

    def __call__(self, z):
        return (z * self.axes).square().sum(-1)


class Well:
    """A callable object with tensors of its own."""

    def __init__(self, c):
        self.c = c

    def __call__(self, x):
        return (x - self.c).square().sum(-1)


class Composite(of.Functional):
    """A user's functional of tensors, measures, functionals, lists and names."""

    def __init__(self):
        self.name, self.count = "composite", 3
        self.target = of.Particles(normal(3, 2))
        self.parts = [of.Potential(Well(normal(2))), of.Entropy()]
        self.table = {"shift": normal(2, seed=3), "index": torch.arange(2)}
        self.nothing = None

    def value(self, mu):
        shift = self.table["shift"]
        other = self.target.expectation(lambda x: x).sum()
        return mu.expectation(lambda x: (x - shift).square().sum(-1)) * other


DATA = normal(6, 1)
FUNCTIONALS = {
    "object": lambda: of.Potential(Well(normal(2)), modulus=2.0),
    "sum": lambda: of.Potential(Well(normal(2))) - 2 * of.Potential(square),
    "mean": lambda: of.OfExpectation(Well(normal(2)), lambda x: x),
    "interaction": lambda: of.Interaction(Pull(normal(2))),
    "kernels": lambda: of.Interaction(Pull(normal(2)) - of.kernels.Gaussian(1.0) / 2),
    "composite": Composite,
}


@pytest.mark.parametrize("name", FUNCTIONALS)
def test_a_functional_follows_with_its_tensors(name):
    F = FUNCTIONALS[name]()
    mu = of.Particles(normal(5, 2))
    low = F.to(F32)
    assert type(low) is type(F)
    assert F.to(F64) is F
    assert low.to(F32) is low
    found = low.value(mu.to(F32))
    assert found.dtype == F32
    torch.testing.assert_close(found.double(), F.value(mu), rtol=1e-4, atol=1e-5)
    velocity = low.velocity(mu.to(F32))
    torch.testing.assert_close(velocity.double(), F.velocity(mu), rtol=1e-3, atol=1e-4)
    assert low.modulus(2) == F.modulus(2)
    assert repr(low) == repr(F)


def test_parts_of_a_composite_move_together():
    F = Composite()
    low: Any = F.to(F32)
    assert (low.name, low.count, low.nothing) == ("composite", 3, None)
    assert low.target.dtype == F32
    assert low.parts[0].V.c.dtype == F32
    assert low.parts[1] is F.parts[1]
    assert low.table["shift"].dtype == F32
    assert low.table["index"].dtype == torch.int64
    assert F.target.dtype == F64


@pytest.mark.parametrize(
    ("loss", "y"),
    [
        ("square", DATA[:, 0]),
        ("logistic", DATA[:, 0].sign()),
        (lambda f, y: (f - y).abs(), DATA[:, 0]),
    ],
    ids=["square", "logistic", "own"],
)
def test_a_risk_follows_with_its_data(loss, y):
    F = Risk(TwoLayer("tanh"), DATA, y, loss=loss, batch_size=4)
    mu = of.Particles(normal(9, 3))
    low, cloud = F.to(F32), mu.to(F32)
    assert (low.X.dtype, low.y.dtype, low.batch_size) == (F32, F32, 4)
    assert repr(low) == repr(F)
    for ask in (Risk.value, Risk.velocity, Risk.first_variation):
        torch.testing.assert_close(
            ask(low, cloud).double(), ask(F, mu), rtol=1e-3, atol=1e-4
        )
    draws = [
        G.resample(torch.Generator().manual_seed(1)).value(nu).double()
        for G, nu in ((F, mu), (low, cloud))
    ]
    torch.testing.assert_close(*draws, rtol=1e-3, atol=1e-4)
    again = low.to(F64)
    torch.testing.assert_close(again.X, F.X, rtol=1e-6, atol=1e-6)


def test_classes_of_a_risk_stay_integers():
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    F = Risk(TwoLayer("relu", outputs=3), DATA, y, loss="cross-entropy").to(F32)
    assert F.y.dtype == torch.int64
    assert F.X.dtype == F32
    F.value(of.Particles(torch.randn(4, 5)))


def test_the_divergence_from_a_grid_follows_with_its_target():
    rho, nu = (ALL["line"](ZERO + s) for s in (0.0, 0.5))
    F = of.KL(rho)
    low: Any = F.to(F32)
    assert low.target.dtype == F32
    found = low.value(nu.to(F32)).double()
    torch.testing.assert_close(found, F.value(nu), rtol=1e-4, atol=1e-5)


def test_a_functional_of_numbers_is_itself():
    for F in (
        of.Entropy(),
        of.PowerEntropy(2.0),
        of.Congestion(1.0),
        of.Internal(lambda r: r),
        of.Potential(square),
        of.Potential(partial(torch.sum, dim=-1)),
        of.Interaction(of.kernels.Log()) + of.KL(square),
        of.Potential(torch.nn.Softplus()),
    ):
        assert F.to(F32) is F
        assert F.to(F64) is F
    for W in (of.kernels.Gaussian(1.0), of.kernels.Log() - of.kernels.Riesz(1.0)):
        assert W.to(F32) is W


def test_a_number_in_a_tensor_serves_every_dtype():
    strength = torch.tensor(2.0, dtype=F64, requires_grad=True)
    F = of.Potential(lambda x: strength * x.square().sum(-1))
    assert F.to(F32) is F
    value = F.value(of.Particles(torch.ones(1, 1)))
    assert value.dtype == F32
    assert value.requires_grad


SHIFT = normal(2, seed=9)


def with_global(x):
    return sum((row - SHIFT).square() for row in x.unbind(-2))


def with_default(x, c=SHIFT):
    return (x - c).square().sum(-1)


def with_cell():
    c = normal(2, seed=9)
    return lambda x: (x - c).square().sum(-1)


def with_keyword():
    def shifted(x, *, c):
        return (x - c).square().sum(-1)

    return partial(shifted, c=SHIFT)


def through_another():
    inner = with_cell()
    return lambda x: 2 * inner(x)


@pytest.mark.parametrize(
    ("V", "where"),
    [
        (with_global, "SHIFT"),
        (with_default, "c"),
        (with_cell(), "c"),
        (with_keyword(), "c"),
        (through_another(), "c"),
        (Well(SHIFT).__call__, None),
    ],
    ids=["global", "default", "cell", "keyword", "nested", "method"],
)
def test_tensors_that_a_function_holds_are_named(V, where):
    F: Any = of.Potential(V) + of.Entropy()
    assert F.to(F64) is F
    if where is None:  # the method of an object, which moves
        assert F.to(F32).parts[0].V.__self__.c.dtype == F32
        return
    with pytest.raises(Unsupported, match=rf"^V is a function that holds {where}, a "):
        F.to(F32)
    c = SHIFT.to(F32)  # the cure: a function of the moved tensor
    of.Potential(lambda x: (x - c).square().sum(-1)).value(
        of.Particles(torch.ones(1, 2))
    )


def test_a_module_is_moved_by_its_owner():
    network = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Flatten(0))
    F = of.Potential(network)
    assert F.to(F32) is F
    with pytest.raises(Unsupported, match=r"torch module that holds 0\.weight.*V\.to"):
        F.to(F64)
    F = of.Potential(network.to(F64))  # the cure
    assert F.to(F64) is F
    assert F.velocity(of.Particles(normal(3, 2))).dtype == F64


def test_a_method_of_itself_that_a_functional_keeps_is_that_of_the_copy():
    class Own(of.Functional):
        def __init__(self):
            self.c = normal(2)
            self.f = self.ground

        def ground(self, x):
            return (x - self.c).square().sum(-1)

        def value(self, mu):
            return mu.expectation(self.f)

    F = Own()
    low: Any = F.to(F32)
    assert low.f.__self__ is low
    low.value(of.Particles(torch.ones(3, 2)))


def test_the_graph_of_a_functional_s_tensors_is_kept():
    c = normal(2).requires_grad_()
    F = of.Potential(Well(c)).to(F32)
    F.value(of.Particles(torch.zeros(1, 2))).backward()
    torch.testing.assert_close(c.grad, 2 * c.detach(), rtol=1e-6, atol=1e-6)


# Runs ---------------------------------------------------------------------------------


def run_of(mu, steps=3):
    F = of.Potential(square)
    record = {"spread": lambda nu: nu.expectation(square)}
    return of.flow(F, mu, of.ExplicitEuler(), dt=1e-3, steps=steps, record=record)


@pytest.mark.parametrize(
    "kind", ["particles", "weighted", "quantiles", "gaussian", "room"]
)
def test_a_run_moves_with_all_that_it_recorded(kind):
    run = run_of(ALL[kind](ZERO))
    low = run.to(F32)
    assert type(low) is of.Trajectory
    assert run.to(F64) is run
    assert low.to(low.final) is low
    assert {nu.dtype for nu in (*low, low.final)} == {F32}
    assert {rows.dtype for rows in low.records.values()} == {F32}
    assert low.final is low[-1]  # what was shared is shared
    assert low.times is run.times
    assert (low.seed, low.status, low.info) == (run.seed, run.status, run.info)
    shared = [
        name
        for name in held(run.final)
        if getattr(run[1], name) is getattr(run.final, name)
    ]
    assert shared
    for name in shared:
        assert getattr(low[1], name) is getattr(low.final, name), name
    # It goes on from there.
    again = of.flow(of.Potential(square), low[-1], of.ExplicitEuler(), dt=1e-3, steps=1)
    assert again.final.dtype == F32


def test_a_run_is_a_sequence_of_its_snapshots():
    run = run_of(ALL["particles"](ZERO))
    assert len(run) == 4 == len(run.times)
    assert run[0] is run.snapshots[0]
    assert run[-1] is run.snapshots[-1] is run.final
    assert run[1:3] == run.snapshots[1:3]
    assert isinstance(run[::2], tuple)
    assert list(run) == list(run.snapshots)
    assert run[2] in run
    with pytest.raises(IndexError):
        run[4]
    with pytest.raises(TypeError):
        run["energy"]
    assert bool(run)
    assert list(reversed(run)) == list(run.snapshots[::-1])


def test_a_run_without_records_is_true():
    empty: Any = of.Trajectory(
        times=torch.zeros(0), records={}, snapshots=(), final=ALL["particles"](ZERO),
        info=(), seed=0, status="failed", message="",
    )  # fmt: skip
    assert len(empty) == 0
    assert bool(empty)
    assert empty.to(F32).final.dtype == F32
