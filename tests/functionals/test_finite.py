"""No value and no derivative of a functional is NaN or infinite, whoever wrote it."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.testing.clouds import normal

F64 = torch.float64
NUMBERS = [math.nan, math.inf, -math.inf]


def at(mu, number):
    """Return the number at every point, with a graph."""
    return number + 0 * mu


class Own(of.Functional):
    """A user's functional with closed forms of its own, any of which may fail."""

    def __init__(self, number, wrong):
        self.number, self.wrong = number, wrong

    def _of(self, name, right):
        return right + self.number if name == self.wrong else right

    def value(self, mu):
        return self._of("value", mu.weights @ mu.points.square().sum(-1))

    def first_variation(self, mu, x=None):
        at = mu.points if x is None else x
        return self._of("first_variation", at.square().sum(-1))

    def value_and_velocity(self, mu):
        return self.value(mu), self._of("velocity", -2 * mu.points)


CLOUD = of.Particles(normal(5, 2))
LINE = of.Quantiles(torch.linspace(-1, 1, 6, dtype=F64))
CELLS = of.GridDensity(torch.ones(4, dtype=F64), 0, 1, walls=True)
BELL = of.Gaussian(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64))
BUILT_IN = {
    "potential": lambda c: of.Potential(lambda x: c + 0 * x.sum(-1)),
    "interaction": lambda c: of.Interaction(lambda z: c + 0 * z.sum(-1)),
    "expectation": lambda c: of.OfExpectation(lambda m: c + m.sum(), lambda x: x),
    "sum": lambda c: of.Entropy() * 0.0 + of.Potential(lambda x: c + 0 * x.sum(-1)),
    "multiple": lambda c: 2.0 * of.Potential(lambda x: c + 0 * x.sum(-1)),
    "divergence": lambda c: of.KL(lambda x: c + 0 * x.sum(-1)),
    "energy": lambda c: of.functionals.Internal(lambda r: c + 0 * r),
}


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("kind", BUILT_IN)
@pytest.mark.parametrize("mu", [CLOUD, LINE, CELLS, BELL], ids=repr)
def test_values_and_derivatives_of_built_in_functionals(kind, mu, number):
    F = BUILT_IN[kind](number)
    without_value = kind in {"sum", "divergence", "energy"} and mu is CLOUD
    # A kernel that is infinite at 0 is refused by a quadrature of smooth functions.
    without_value |= kind == "interaction" and mu is BELL and math.isinf(number)
    expected = of.errors.Unsupported if without_value else of.errors.NonFinite
    for verb in (F.value, F.velocity, F.value_and_velocity, F):
        with pytest.raises(expected):
            verb(mu)
    if mu is not BELL and mu is not LINE:
        with pytest.raises(expected):
            F.first_variation(mu)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("wrong", ["value", "first_variation", "velocity"])
def test_closed_forms_of_a_user(wrong, number):
    F = Own(number, wrong)
    verbs = {
        "value": F.value,
        "first_variation": F.first_variation,
        "velocity": F.velocity,
    }
    for name, verb in verbs.items():
        if name == wrong or (wrong, name) == ("value", "velocity"):
            with pytest.raises(of.errors.NonFinite, match=f"is {number}"):
                verb(CLOUD)
            continue
        assert bool(verb(CLOUD).isfinite().all())
    with pytest.raises(of.errors.NonFinite):
        (F + 3.0 * F).first_variation(CLOUD) if wrong == "first_variation" else (
            (F + 3.0 * F).value_and_velocity(CLOUD)
        )


@pytest.mark.parametrize(
    "answer", [1.0, [1.0], torch.ones(2), torch.ones((), dtype=torch.int64)]
)
def test_a_value_that_is_no_scalar_is_refused_where_it_is_asked_for(answer):
    class Odd(of.Functional):
        def value(self, mu):
            return answer

    with pytest.raises(of.errors.InvalidFunctional):
        Odd().value(CLOUD)


def test_a_value_keeps_its_graph_and_its_documentation():
    x = normal(4, 2).requires_grad_()
    value = Own(0.0, None).value(of.Particles(x))
    (slope,) = torch.autograd.grad(value, x)
    torch.testing.assert_close(slope, 2 * x.detach() / 4)
    kept = vars(of.Congestion)["value"]
    assert kept.__doc__
    assert kept.__doc__ == kept.__wrapped__.__doc__
    with pytest.raises(TypeError, match="abstract"):
        type("Empty", (of.Functional,), {})()


def test_a_barrier_shortens_a_step_that_backtracks():
    """Beyond the barrier the value is NaN: that trial is thrown away, not the flow."""
    F = of.Potential(lambda x: -(1 - x[:, 0].square()).log() + 8 * x[:, 0])
    mu = of.Particles(torch.zeros(1, 1, dtype=F64))
    run = of.flow(F, mu, of.ExplicitEuler(backtracking=True), dt=1.0, steps=60)
    # 2x / (1 - x^2) = -8
    exact = (1 - math.sqrt(65)) / 8
    assert float(run.final.points) == pytest.approx(exact, abs=1e-6)
