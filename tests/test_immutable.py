"""Measures are immutable: a write into one is told, and never reaches the start."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass

import pytest
import torch

import otflow as of
from otflow._autodiff import value_and_gradient
from otflow.testing.clouds import normal
from tests.curves import ALL, F64, state, tangent

EDITABLE = {
    "particles": ("points", "weights"),
    "quantiles": ("edges", "points", "weights", "lumped"),
    "gaussian": ("mean", "factor", "nodes", "points", "weights"),
    "grid": ("points", "weights", "is_free"),
}


def schemes_for(measure):
    explicit = [of.ExplicitEuler(), of.ExplicitEuler(backtracking=True), of.JKO()]
    if measure == "particles":
        return [*explicit, of.BirthDeath(), of.schemes.Resample(), of.Langevin()]
    return [*explicit, of.BirthDeath()] if measure == "grid" else explicit


@pytest.mark.filterwarnings("ignore::otflow.errors.BlurWarning")  # on a few cells
@pytest.mark.parametrize(
    ("measure", "scheme"),
    [(m, s) for m in EDITABLE for s in schemes_for(m)],
    ids=lambda p: p if isinstance(p, str) else repr(p),
)
def test_editing_a_result_leaves_the_start_alone(measure, scheme):
    # A result must not share its weights with the start.
    start = ALL[measure](torch.zeros((), dtype=F64))
    before = {name: getattr(start, name).clone() for name in EDITABLE[measure]}
    F = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
    run = of.flow(F, start, scheme, dt=0.05, steps=2, generator=0)
    for nu in (*run.snapshots[1:], run.final):
        for name in EDITABLE[measure]:
            vars(nu)[name].zero_()
    for name, tensor in before.items():
        assert torch.equal(getattr(start, name), tensor)


@pytest.mark.parametrize(
    ("measure", "name"), [(m, n) for m in EDITABLE for n in EDITABLE[m]]
)
def test_a_write_into_a_measure_is_told_by_all_that_share_it(measure, name):
    mu = ALL[measure](torch.zeros((), dtype=F64))
    moved = mu.push(1e-3 * normal(*tangent(mu)), 1.0)
    shared = getattr(mu, name) is getattr(moved, name)
    getattr(moved, name).zero_()
    assert (
        name in ("weights", "nodes", "lumped", "is_free")
    ) <= shared or measure == "grid"
    for nu in (moved, mu) if shared else (moved,):
        with pytest.raises(of.errors.ModifiedInPlace, match=rf"mu\.{name}\.clone\(\)"):
            getattr(nu, name)
    if not shared:
        getattr(mu, name)


def test_the_cure_for_a_write_works_and_the_tensors_given_stay_the_caller_s():
    x, w = normal(5, 2), normal(5, seed=1).softmax(0)
    mu = of.Particles(x, w)
    given = x.clone()
    x.zero_()  # copied at the door
    assert torch.equal(mu.points, given)
    edited = mu.points.clone()
    edited[0] = 0
    assert of.Particles(edited, mu.weights).points[0].tolist() == [0, 0]


@pytest.mark.parametrize("measure", ALL)
def test_copies_and_pickles_of_a_measure_may_be_asked(measure):
    mu = ALL[measure](torch.zeros((), dtype=F64))
    mu = mu.push(1e-3 * normal(*tangent(mu)), 1.0)
    for nu in (copy.deepcopy(mu), pickle.loads(pickle.dumps(mu)), mu.clone()):
        assert torch.equal(state(nu), state(mu))
        moved = nu.push(1e-3 * normal(*tangent(nu)), 1.0)
        assert state(moved).isfinite().all()
        nu.weights.zero_()
        with pytest.raises(of.errors.ModifiedInPlace):
            _ = nu.weights


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Slotted(of.Measure):
    """A user's measure, symmetric about the origin, whose state is in a slot."""

    half: torch.Tensor

    @property
    def points(self):
        return torch.cat([self.half, -self.half])

    @property
    def weights(self):
        return self.half.new_full((2 * len(self.half),), 0.5 / len(self.half))

    def value_and_position_gradient(self, value):
        f, gradient = value_and_gradient(lambda x: value(Slotted(x)), self.half)
        return f, len(self.half) * gradient

    def push(self, tangent, dt):
        return Slotted(self.half + dt * tangent)

    def inner(self, u, v):
        return (u * v).sum(-1).mean()

    def displacement_to(self, other):
        return other.half - self.half


def test_a_user_s_measure_with_slots_is_detached_cloned_and_flowed():
    x = normal(4, 2).requires_grad_()
    mu, F = Slotted(x), of.Potential(lambda y: 0.5 * y.square().sum(-1))
    assert F.velocity(mu).requires_grad
    assert not mu.detach().half.requires_grad
    assert mu.detach().detach().half.data_ptr() == x.data_ptr()
    assert mu.clone().half.data_ptr() != x.data_ptr()
    run = of.flow(F, mu, of.ExplicitEuler(), dt=0.1, steps=2)
    torch.testing.assert_close(run.final.half, 0.81 * x.detach())
    assert not run.final.half.requires_grad
    twin = pickle.loads(pickle.dumps(mu.detach()))
    assert torch.equal(twin.half, x)


COPIES = {
    "detach": lambda mu: mu.detach(),
    "clone": lambda mu: mu.clone(),
    "map": lambda mu: mu.map_tensors(torch.Tensor.double),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda mu: pickle.loads(pickle.dumps(mu)),
    "flow": lambda mu: (
        of.flow(
            of.Potential(lambda x: x.square().sum(-1)),
            mu,
            of.ExplicitEuler(),
            dt=1e-3,
            steps=1,
        ).final
    ),
}


@pytest.mark.parametrize("verb", COPIES)
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize(
    ("measure", "name"), [(m, n) for m in EDITABLE for n in EDITABLE[m]]
)
def test_no_copy_takes_over_a_tensor_that_was_written_into(measure, name, verb, graph):
    at = torch.zeros((), dtype=F64, requires_grad=graph)
    mu = ALL[measure](at)
    if graph and verb in ("deepcopy", "pickle", "copy"):
        mu = mu.detach()
    with torch.no_grad():
        getattr(mu, name).detach().zero_()
    with pytest.raises(of.errors.ModifiedInPlace, match="were modified in place"):
        getattr(COPIES[verb](mu), name)


# The next use -------------------------------------------------------------------------

USES = {
    "expectation": lambda mu: mu.expectation(lambda x: x.sum(-1)),
    "value": lambda mu: of.Potential(lambda x: x.square().sum(-1)).value(mu),
    "velocity": lambda mu: of.Potential(lambda x: x.square().sum(-1)).velocity(mu),
    "push": lambda mu: mu.push(torch.zeros(tangent(mu), dtype=F64), 1.0),
    "flow": COPIES["flow"],
    "to": lambda mu: mu.to(torch.float32),
}
# Each holds the same numbers twice: a use reads one of them, the user wrote the other.
TWICE = [(m, n) for m in ("quantiles", "gaussian") for n in EDITABLE[m]]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    ("measure", "name"),
    [*TWICE, ("particles", "points"), ("particles", "weights"), ("grid", "weights")],
)
def test_a_write_is_told_at_the_next_use_of_the_measure(measure, name, use):
    mu = ALL[measure](torch.zeros((), dtype=F64))
    getattr(mu, name).mul_(2.0)
    words = (
        r"mu\.(mean|factor)\.clone\(\)"  # two parts of one tensor
        if name in ("mean", "factor")
        else rf"mu\.{name}\.clone\(\)"
    )
    with pytest.raises(of.errors.ModifiedInPlace, match=words):
        USES[use](mu)


@dataclass(frozen=True, eq=False, repr=False)
class Fields(Slotted):
    """A user's measure whose state is a field, beside a field that is no tensor."""

    half: torch.Tensor
    scale: float

    def push(self, tangent, dt):
        return Fields(self.half + dt * tangent, self.scale)


class Assigned(Slotted):
    """A user's measure whose state is assigned, without an annotation."""

    def __init__(self, x):
        object.__setattr__(self, "half", x)


class Plain(of.Measure):
    """A user's measure that is no dataclass."""

    def __init__(self, x):
        self.half = x
        self._calls = torch.zeros(())

    @property
    def points(self):
        self._calls.add_(1)  # a private tensor may be written into
        return torch.cat([self.half, -self.half])

    @property
    def weights(self):
        return self.half.new_full((2 * len(self.half),), 0.5 / len(self.half))

    value_and_position_gradient = Slotted.value_and_position_gradient
    inner = Slotted.inner

    def push(self, tangent, dt):
        return Plain(self.half + dt * tangent)

    def displacement_to(self, other):
        return other.half - self.half


@pytest.mark.parametrize(
    "make",
    [Slotted, lambda x: Fields(x, 2.0), Assigned, Plain],
    ids=["slots", "fields", "subclass", "plain"],
)
def test_a_write_into_a_measure_of_the_user_s_own_is_told(make):
    mu = make(normal(4, 2))
    before = mu.expectation(lambda x: x.square().sum(-1))
    again = mu.expectation(lambda x: x.square().sum(-1))
    assert torch.equal(before, again)  # no use counts as a write
    twin = pickle.loads(pickle.dumps(mu))
    copied, moved = copy.copy(mu), mu.push(torch.zeros(4, 2, dtype=F64), 1.0)
    mu.half.mul_(2.0)
    for use in (lambda: mu.points, lambda: mu.clone(), lambda: mu.to(torch.float32)):
        with pytest.raises(of.errors.ModifiedInPlace, match=r"mu\.half\.clone\(\)"):
            use()
    with pytest.raises(of.errors.ModifiedInPlace):
        of.Potential(lambda x: x.sum(-1)).value(copied)  # it shares the tensor
    for other in (twin, moved):
        torch.testing.assert_close(
            other.expectation(lambda x: x.square().sum(-1)), before
        )


def test_a_field_after_points_needs_no_default():
    @dataclass(frozen=True, eq=False, repr=False)
    class Labelled(of.Measure):
        points: torch.Tensor
        weights: torch.Tensor
        label: str

        value_and_position_gradient = push = inner = displacement_to = None  # type: ignore[assignment]

    with pytest.raises(TypeError, match="missing 3 required"):
        Labelled()  # type: ignore[call-arg]
    mu = Labelled(normal(3, 1), normal(3).softmax(0), "mine")
    assert (mu.label, mu.n, len(mu)) == ("mine", 3, 3)
    mu.points.zero_()
    with pytest.raises(of.errors.ModifiedInPlace, match=r"mu\.points\.clone\(\)"):
        mu.expectation(lambda x: x.sum(-1))
