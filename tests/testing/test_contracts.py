"""The contracts find faults; they need pytest only when they are asked for."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch

import otflow as of
from otflow.proximal import ParticleProximal
from otflow.testing import (
    FunctionalContract,
    MeasureContract,
    Problem,
    ProximalContract,
    SchemeContract,
    check_certificate,
)
from tests.proximal.test_tangent import ScalesWithTheVerb


def laws(contract):
    """Return the tests of a contract that take no argument, bound to it."""
    names = [name for name in dir(contract) if name.startswith("test_")]
    marked = [getattr(contract, name) for name in names]
    return [law for law in marked if not hasattr(law, "pytestmark")]


def broken(contract):
    """Return the names of the laws that a contract finds broken."""
    found = []
    for law in laws(contract):
        try:
            law()
        except (AssertionError, of.errors.OtflowError, pytest.fail.Exception):
            found.append(law.__name__)
    return found


# Functionals --------------------------------------------------------------------------


class WrongVelocity(of.Functional):
    def value(self, mu):
        return 0.5 * mu.expectation(lambda x: x.square().sum(-1))

    def value_and_velocity(self, mu):
        return self.value(mu), -2 * mu.points


class Unweighted(of.Functional):
    def value(self, mu):
        return mu.points.square().sum(-1).mean() + 0.0 * mu.weights.sum()


class TooConvex(of.Functional):
    def value(self, mu):
        return 0.5 * mu.expectation(lambda x: x.square().sum(-1))

    def modulus(self, dim):
        return 2.0


class WrongTerms(of.Functional):
    """Its terms are twice what it is."""

    def value(self, mu):
        return mu.expectation(lambda x: x.square().sum(-1))

    def terms(self):
        return ((2.0, of.Potential(lambda x: x.square().sum(-1))),)


@pytest.mark.parametrize(
    ("kind", "law"),
    [
        (WrongTerms, "test_the_terms_sum_to_the_functional"),
        (WrongVelocity, "test_velocity_is_minus_the_derivative_along_transport"),
        (WrongVelocity, "test_its_own_derivatives_are_those_of_autodiff"),
        (Unweighted, "test_velocity_is_minus_the_gradient_of_the_first_variation"),
        (TooConvex, "test_a_declared_modulus_bounds_every_second_difference"),
    ],
)
def test_a_wrong_functional_is_found_out(kind, law):
    class Contract(FunctionalContract):
        def make(self, dtype=torch.float64):
            return kind()

    assert law in broken(Contract())


def test_data_follow_the_dtype():
    class Contract(FunctionalContract):
        def make(self, dtype=torch.float64):
            centre = torch.tensor([0.3, -1.0], dtype=dtype)
            return of.Potential(lambda x: (x - centre).square().sum(-1))

    contract = Contract()
    contract.test_float32_agrees_with_float64()
    for dtype in (torch.float32, torch.float64):
        contract.test_value_and_derivatives_keep_dtype_and_carry_no_graph(dtype)


# Schemes ------------------------------------------------------------------------------


class Impure(of.schemes.Scheme):
    def __init__(self):
        self.count = 0

    def step(self, F, mu, dt, state, generator):
        self.count += 1
        return of.schemes.Step(mu.push(F.velocity(mu), dt * self.count), state)


class Boasting(of.ExplicitEuler):
    order = 2


@pytest.mark.parametrize(
    ("kind", "law"),
    [
        (Impure, "test_a_step_is_pure"),
        (Impure, "test_a_chain_is_one_after_the_other"),
        (Boasting, "test_the_observed_order_is_the_one_stated"),
    ],
)
def test_a_wrong_scheme_is_found_out(kind, law):
    class Contract(SchemeContract):
        order = 2.0 if kind is Boasting else 1.0

        def make(self):
            return kind()

    assert law in broken(Contract())


# Schemes that cannot go on ------------------------------------------------------------


class Rolling(of.schemes.Scheme):
    """A ball that rolls on: its state is its velocity, which it keeps."""

    def init(self, F, mu):
        return torch.zeros_like(mu.points)

    def step(self, F, mu, dt, state, generator):
        v = 0.5 * state + F.velocity(mu)
        return of.schemes.Step(mu.push(v, dt), v)


class Forgetful(Rolling):
    """Keeps nothing, and begins anew."""

    def state_dict(self, state):
        return None

    def load_state(self, F, mu, kept):
        return self.init(F, mu)


class Rounding(Rolling):
    """Keeps fewer digits than it has."""

    def state_dict(self, state):
        return state.float()

    def load_state(self, F, mu, kept):
        return kept.double()


class Inward(of.schemes.Scheme):
    """Keeps its velocity in itself, where no run finds it."""

    velocity = 0.0

    def step(self, F, mu, dt, state, generator):
        self.velocity = 0.5 * self.velocity + F.velocity(mu)
        return of.schemes.Step(mu.push(self.velocity, dt), state)

    def __repr__(self):
        return "Inward()"


class Closed(Rolling):
    """Its state is a function, which no file holds."""

    def init(self, F, mu):
        return torch.zeros_like

    def step(self, F, mu, dt, state, generator):
        v = state(mu.points) + F.velocity(mu)
        return of.schemes.Step(mu.push(v, dt), lambda _: 0.5 * v)


class Raising(Rolling):
    def state_dict(self, state):
        raise OSError


class Counted(NamedTuple):
    made: int
    velocity: torch.Tensor


class RollingCounted(Rolling):
    """The same ball; its state is a class of its own, which a file can hold."""

    def init(self, F, mu):
        return Counted(0, torch.zeros_like(mu.points))

    def step(self, F, mu, dt, state, generator):
        step = super().step(F, mu, dt, state.velocity, generator)
        return of.schemes.Step(step.measure, Counted(state.made + 1, step.state))


def contract_of_scheme(kind):
    class Contract(SchemeContract):
        def make(self):
            return kind()

    return Contract()


@pytest.mark.parametrize("kind", [Rolling, RollingCounted])
def test_a_scheme_that_keeps_its_state_keeps_the_laws(kind):
    contract = contract_of_scheme(kind)
    contract.test_a_kept_state_goes_on_as_the_state_itself()
    for first in (1, 3):
        contract.test_a_resumed_run_equals_the_whole_to_the_bit(first)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Forgetful, "keep in the state whatever the next step needs, and not in the"),
        (Rounding, "let load_state return the state of which state_dict made plain"),
        (Inward, "keep in the state whatever the next step needs, and not in the"),
        (Closed, "which no file holds.*override state_dict"),
    ],
)
def test_a_scheme_that_forgets_its_state_is_found_out(kind, words):
    contract = contract_of_scheme(kind)
    with pytest.raises(AssertionError, match=words):
        contract.test_a_kept_state_goes_on_as_the_state_itself()
    with pytest.raises(AssertionError, match=words):
        contract.test_a_resumed_run_equals_the_whole_to_the_bit(3)


def test_a_scheme_whose_state_cannot_be_kept_is_found_out():
    contract = contract_of_scheme(Raising)
    with (
        pytest.warns(of.errors.ResumeWarning, match="cannot be kept"),
        pytest.raises(AssertionError, match=r"Raising\.state_dict raised"),
    ):
        contract.test_a_resumed_run_equals_the_whole_to_the_bit(3)


class Split(of.schemes.Scheme):
    """Doubles the atoms at first, then follows the flow."""

    def init(self, F, mu):
        return True

    def step(self, F, mu, dt, state, generator):
        if state:
            both = torch.cat([mu.points, mu.points])
            mu = of.Particles(both, torch.cat([mu.weights, mu.weights]) / 2)
        return of.schemes.Step(mu.push(F.velocity(mu), dt), False)


class TestSchemesThatChangeTheNumberOfAtoms(SchemeContract):
    keeps_size = False
    steps = ()

    def make(self):
        return Split()


def test_a_change_of_size_is_found_out_where_it_is_not_stated():
    class Contract(SchemeContract):
        def make(self):
            return Split()

    with pytest.raises(AssertionError):
        Contract().test_a_step_keeps_class_dtype_size_and_mass(torch.float64)


# Measures -----------------------------------------------------------------------------


class Slow(of.Particles):
    """Atoms that move by half of what they are told."""

    def push(self, tangent, dt):
        return super().push(tangent, dt / 2)


def test_a_wrong_measure_is_found_out():
    class Contract(MeasureContract):
        capabilities = frozenset({"mass_gradient", "diffuse", "reweight", "sample"})

        def make(self, dtype=torch.float64):
            return Slow(torch.tensor([[0.0, 1.0], [2.0, 4.0]], dtype=dtype))

    found = broken(Contract())
    assert "test_displacement_is_the_inverse_of_push" in found
    assert "test_position_gradient_is_the_derivative_along_push" in found


class Logarithms(ScalesWithTheVerb):
    """Equal atoms on the half line, moved by their logarithms; they keep a graph."""

    def value_and_position_gradient(self, value):
        keep = self.state.requires_grad
        x = self.state if keep else self.state.detach().requires_grad_()
        energy = value(type(self)(x))
        (slope,) = torch.autograd.grad(energy, x, create_graph=keep)
        return (energy if keep else energy.detach()), len(x) * slope / self.state


class SaysThatItIsFlat(Logarithms):
    flat = True
    pull_back = of.Measure.pull_back


class WrongPullBack(Logarithms):
    def pull_back(self, tangent, gradient):
        return gradient


class DropsAtPush(Logarithms):
    def push(self, tangent, dt):
        return super().push(tangent.detach(), dt)


class DropsAtInner(Logarithms):
    def inner(self, u, v):
        return super().inner(u.detach(), v.detach())


class DropsAtDisplacements(Logarithms):
    def displacement_to(self, other):
        return super().displacement_to(other).detach()


class DropsAtGradients(Logarithms):
    def value_and_position_gradient(self, value):
        return type(self)(self.state.detach()).value_and_gradient_of_a_copy(value)

    def value_and_gradient_of_a_copy(self, value):
        return super().value_and_position_gradient(value)


class UsesNumPy(Logarithms):
    def push(self, tangent, dt):
        moved = self.state.numpy(force=True) * (dt * tangent).exp().numpy(force=True)
        return type(self)(torch.from_numpy(moved))


def contract_of(kind):
    class Contract(MeasureContract):
        def make(self, dtype=torch.float64):
            return kind(torch.tensor([[0.5], [1.0], [2.5]], dtype=dtype))

    return Contract()


def test_a_measure_that_is_not_flat_keeps_the_laws():
    assert broken(contract_of(Logarithms)) == []


@pytest.mark.parametrize("kind", [SaysThatItIsFlat, WrongPullBack])
def test_a_wrong_differential_of_push_is_found_out(kind):
    law = "test_pull_back_is_the_transposed_differential_of_push"
    assert law in broken(contract_of(kind))


@pytest.mark.parametrize(
    ("kind", "verb"),
    [
        (DropsAtPush, "push"),
        (UsesNumPy, "push"),
        (DropsAtInner, "inner"),
        (DropsAtDisplacements, "displacement_to"),
        (DropsAtGradients, "gradient"),
    ],
)
def test_a_dropped_graph_is_found_out(kind, verb):
    for other in ("push", "displacement_to", "gradient", "inner"):
        contract_of(Logarithms).test_a_graph_is_kept_or_refused(other)
    with pytest.raises(AssertionError, match=f"{verb} drops the graph"):
        contract_of(kind).test_a_graph_is_kept_or_refused(verb)


def test_a_capability_that_is_not_stated_is_named():
    class Contract(MeasureContract):
        def make(self, dtype=torch.float64):
            return of.Particles(torch.zeros(2, 1, dtype=dtype))

    with pytest.raises(pytest.fail.Exception, match="'diffuse': add it"):
        Contract().test_a_capability_works_or_names_the_cure("diffuse")


# Proximal solvers ---------------------------------------------------------------------


class Lying(ParticleProximal):
    """A solver that changes words of its certificate."""

    def __init__(self, **lies):
        super().__init__()
        self.lies = lies

    def solve(self, F, mu, dt, warm=None):
        result = super().solve(F, mu, dt, warm)
        assert result.certificate["converged"]
        return replace_certificate(result, **self.lies)


def replace_certificate(result, **lies):
    certificate = replace(result.certificate, **lies)
    return of.proximal.ProxResult(result.measure, result.warm, certificate=certificate)


class Sloppy(ParticleProximal):
    """A solver that stops half-way and says that it is there."""

    def solve(self, F, mu, dt, warm=None):
        result = super().solve(F, mu, dt, warm)
        assert result.certificate["converged"]
        half = mu.push(mu.displacement_to(result.measure), 0.5)
        return of.proximal.ProxResult(half, certificate=result.certificate)


@pytest.mark.parametrize(
    ("solver", "law"),
    [
        (Lying(w2=1e-3), "test_a_step_keeps_the_laws_of_its_certificate"),
        (Lying(energy_after=-1.0), "test_a_step_keeps_the_laws_of_its_certificate"),
        (Sloppy(), "test_a_step_keeps_the_laws_of_its_certificate"),
        (Sloppy(), "test_a_step_is_the_exact_one"),
    ],
    ids=["w2", "energy", "sloppy", "sloppy step"],
)
def test_a_wrong_solver_is_found_out(solver, law):
    class Contract(ProximalContract):
        def make(self):
            return solver

        def functional(self, scale=1.0):
            return of.Potential(lambda x: 1.5 * x.square().sum(-1), modulus=3.0)

        def exact(self, F, mu, dt):
            return of.Particles(mu.points / (1 + 3 * dt), mu.weights)

    assert law in broken(Contract())


def test_a_bound_that_is_too_short_is_found_out():
    F = of.Potential(lambda x: 1.5 * x.square().sum(-1), modulus=3.0)
    mu = of.Particles(torch.ones(3, 2, dtype=torch.float64))
    result = ParticleProximal().solve(F, mu, 0.1)
    assert result.certificate["guarantee"] == "exact"

    def distance(a, b):
        return float(of.metrics.wasserstein2(a, b))

    for off, good in ((0.0, True), (1e-3, False)):
        problem = Problem(F, mu, 0.1, distance, lambda _, off=off: off)
        if good:
            check_certificate(result.certificate, problem, result.measure)
            continue
        with pytest.raises(AssertionError):
            check_certificate(result.certificate, problem, result.measure)


# The door -----------------------------------------------------------------------------


def run(program):
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_the_library_is_imported_without_pytest():
    program = (
        "import sys, torch, numpy, scipy\n"
        "sys.modules['pytest'] = None\n"  # as if it were not installed
        "import otflow as of\n"
        "assert 'SchemeContract' in of.testing.__all__\n"
        "try:\n"
        "    of.testing.SchemeContract\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    done = run(program)
    assert done.returncode == 0, done.stderr
    assert "otflow[test]" in done.stdout


def test_what_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Contrakt"):
        _ = of.testing.Contrakt
