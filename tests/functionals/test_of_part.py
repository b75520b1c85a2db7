"""Functionals of one part, and functionals seen from one part."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.functionals import InPart, OfPart
from otflow.functionals.of_part import in_part, terms_by_part
from otflow.measures import Parts
from otflow.testing.clouds import normal
from otflow.testing.differences import derivative

F64 = torch.float64
BUMP = of.Interaction(of.kernels.Gaussian(0.8))
WELL = of.Potential(lambda x: 0.25 * (x.square().sum(-1) - 1).square())


class Product(of.Functional):
    """The product of the means of two parts; it does not see any other."""

    def value(self, mu):
        left, right = (mu[k].expectation(lambda x: x.sum(-1)) for k in (0, 1))
        return left * right


def three(t=None):
    t = torch.zeros((), dtype=F64) if t is None else t
    return Parts(
        {
            "left": of.Particles((1 + t) * normal(4, 2)),
            "middle": of.Particles(normal(3, 2, seed=1) + t, normal(3).softmax(0)),
            "right": of.Gaussian(normal(2, seed=2), (2 + t) * torch.eye(2, dtype=F64)),
        }
    )


@pytest.mark.parametrize("part", ["left", "middle", "right"])
def test_derivatives_are_those_of_the_part_and_zero_elsewhere(part):
    mu, F = three(), OfPart(part, WELL + 2 * BUMP)
    value, velocity = F.value_and_velocity(mu)
    own_value, own = F.functional.value_and_velocity(mu[part])
    assert torch.equal(value, own_value)
    for name, view in zip(mu.names, mu.views(velocity), strict=True):
        assert torch.equal(view, own if name == part else torch.zeros_like(view))
    # The closed forms agree with automatic differentiation through all parts.
    _, gradient = mu.value_and_position_gradient(F.value)
    torch.testing.assert_close(velocity, -gradient, rtol=1e-12, atol=1e-14)


def test_first_variations_stand_in_the_place_of_the_part():
    mu = Parts([three()["left"], three()["middle"]])
    found = OfPart(1, BUMP).first_variation(mu)
    assert torch.equal(found[:4], torch.zeros(4, dtype=F64))
    assert torch.equal(found[4:], BUMP.first_variation(mu[1]))
    by_autodiff = mu.mass_gradient(OfPart(1, BUMP).value)
    torch.testing.assert_close(found, by_autodiff)
    both = (OfPart(0, BUMP) + OfPart(1, BUMP)).first_variation(mu)
    torch.testing.assert_close(both[:4], BUMP.first_variation(mu[0]))


@pytest.mark.parametrize(
    "F",
    [OfPart("left", WELL), OfPart("middle", BUMP), Product(), Product() * 2],
    ids=repr,
)
def test_a_graph_of_the_measure_reaches_values_and_velocities(F):
    weights = normal(20, seed=5)

    def answers(t):
        mu = three(t)
        value, velocity = F.value_and_velocity(mu)
        inside = InPart(F, mu, 0).velocity(mu[0])
        return torch.stack([value, weights @ velocity, weights[:8] @ inside.flatten()])

    t = torch.zeros((), dtype=F64, requires_grad=True)
    for k, found in enumerate(answers(t)):
        (slope,) = torch.autograd.grad(found, t, retain_graph=True, allow_unused=True)
        wanted = derivative(lambda s, k=k: answers(torch.as_tensor(s, dtype=F64))[k])
        torch.testing.assert_close(slope, wanted, rtol=1e-6, atol=1e-8)


def test_seen_from_a_part_the_velocity_is_the_view_of_the_whole():
    mu = three()
    F = Product() + OfPart("left", WELL) + 3 * OfPart("right", BUMP)
    whole = mu.views(F.velocity(mu))
    for k, part in enumerate(mu.parts):
        own = in_part(F, mu, k).velocity(part)
        torch.testing.assert_close(own, whole[k], rtol=1e-12, atol=1e-14)


def test_a_part_that_a_functional_does_not_see_rests():
    mu = three()
    assert not bool(InPart(Product(), mu, "right").velocity(mu["right"]).any())
    assert float(InPart(Product(), mu, 2).value(mu[2])) == float(Product().value(mu))


def test_entropies_of_parts_have_temperatures_of_their_own():
    mu = three()
    F = Product() + OfPart("left", WELL + 0.1 * of.Entropy())
    F = F + 0.5 * OfPart("middle", of.Entropy())
    assert F.split_entropy()[0] == 0
    assert in_part(F, mu, "left").split_entropy()[0] == 0.1
    assert in_part(F, mu, "middle").split_entropy()[0] == 0.5
    assert in_part(F, mu, "right").split_entropy()[0] == 0
    assert set(terms_by_part(F, mu)) == {None, 0, 1}
    assert [term.entropic for _, term in F.terms()] == [False, False, True, True]


def test_the_joint_langevin_diffuses_each_part_by_its_own_temperature():
    n = 20_000
    start = of.Particles(torch.zeros(n, 1, dtype=F64))
    still = of.Quantiles(torch.arange(3, dtype=F64))
    mu = Parts({"cold": start, "hot": start, "still": still})
    quiet = 0.0 * OfPart("cold", WELL)
    F = quiet + OfPart("cold", 0.1 * of.Entropy()) + 0.7 * OfPart("hot", of.Entropy())
    run = of.flow(F, mu, of.Langevin(), dt=0.5, steps=2, generator=0)
    # The variance of an estimate of a variance s is 2 s^2 / n: four deviations.
    for name, variance in (("cold", 0.2), ("hot", 1.4)):
        found = float(run.final[name].points.var())
        assert abs(found - variance) < 4 * variance * (2 / n) ** 0.5
    ends = [x["still"].edges for x in (run.final, mu)]  # type: ignore[attr-defined]
    assert torch.equal(*ends)


def test_convexity_is_that_of_the_part_as_far_as_the_whole_has_it():
    convex = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=2.0)
    concave = of.Potential(lambda x: -0.5 * x.square().sum(-1), modulus=-1.0)
    assert OfPart(0, convex).modulus(4) == 0.0
    assert OfPart(0, concave).modulus(4) == -1.0
    assert OfPart(0, WELL).modulus(4) is None
    assert OfPart(0, of.Entropy()).modulus(4) == 0.0
    mu = three()
    assert InPart(OfPart(0, concave), mu, 0).modulus(2) == -1.0
    # Inside the part the functional itself is known again.
    assert in_part(OfPart("left", convex), mu, 0).modulus(2) == 2.0
    assert "does not see" in OfPart(0, convex).why(4)


def test_the_bound_of_a_part_is_that_in_the_dimension_of_the_whole():
    # In every dimension at once the penalty has no useful bound.
    penalty = of.meanfield.PathPenalty("l1")
    F, mu = OfPart("a", penalty), of.Particles(normal(3, 5))
    both = Parts({"a": mu, "b": of.Particles(normal(2, 2))})
    assert F.modulus(both.dim) == penalty.modulus(7) == -(6**0.5)
    own = penalty.modulus(mu.dim)  # a bound that is no less
    assert own is not None
    assert own >= -(6**0.5)
