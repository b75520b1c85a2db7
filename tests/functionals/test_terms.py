"""One way to take a functional apart, one modulus; the old words for one release."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.testing import clouds
from otflow.testing.clouds import normal

F64 = torch.float64


def spring(x):
    return 0.5 * x.square().sum(-1)


class Warm(of.Functional):
    """A composite that says what it is made of by `terms` alone."""

    def __init__(self, temperature=0.5):
        self.temperature = temperature
        self.potential = of.Potential(spring, modulus=1.0)

    def value(self, mu):
        heat = self.temperature * of.Entropy().value(mu)
        return self.potential.value(mu) + heat

    def terms(self):
        return ((1.0, self.potential + self.temperature * of.Entropy()),)


def test_a_composite_that_overrides_terms_alone_runs_under_langevin():
    mu = of.Particles(torch.zeros(4000, 1, dtype=F64))
    plain = of.Potential(spring) + 0.5 * of.Entropy()
    for F in (Warm(), 2.0 * (0.5 * Warm()), Warm(0.25) + 0.25 * of.Entropy()):
        run = of.flow(F, mu, of.Langevin(), dt=0.05, steps=60, generator=0)
        same = of.flow(plain, mu, of.Langevin(), dt=0.05, steps=60, generator=0)
        torch.testing.assert_close(run.final.points, same.final.points)
        # Stationary: the variance of exp(-V / 0.5) under Euler's method.
        assert float(run.final.points.var()) == pytest.approx(0.5, rel=0.1)


def test_what_terms_are_made_of_is_taken_apart_too():
    [(c, V), (a, entropy)] = (3.0 * Warm()).terms()
    assert (c, a) == (3.0, 1.5)
    assert isinstance(V, of.Potential)
    assert isinstance(entropy, of.Entropy)
    temperature, rest = Warm().split_entropy()
    assert temperature == 0.5
    assert rest.terms() == ((1.0, rest),)


def test_a_functional_without_entropy_is_the_rest_itself():
    F = of.Potential(spring) + of.Interaction(of.kernels.Quadratic())
    assert F.split_entropy() == (0.0, F)
    assert Warm(0.0).split_entropy()[0] == 0.0


def test_bounds_follow_from_the_terms():
    assert Warm().modulus(3) == 1.0
    assert (2.0 * Warm() + of.PowerEntropy(0.6)).modulus(2) == 2.0
    assert (2.0 * Warm() + of.PowerEntropy(0.6)).modulus(3) is None
    assert (-1.0 * Warm()).modulus(1) is None


@pytest.mark.parametrize("bad", [((1.0, spring),), (("2", of.Entropy()),)])
def test_terms_that_are_none_are_refused(bad):
    class Wrong(Warm):
        def terms(self):
            return bad

    with pytest.raises(TypeError, match=r"F must be a Functional|must be a real"):
        Wrong().terms()


def test_the_number_of_a_declared_bound_has_a_name_of_its_own():
    assert of.Potential(spring, modulus=1).convexity == 1.0
    assert of.Interaction(of.kernels.Gaussian(0.5)).convexity == -4.0
    assert of.Internal(torch.log, modulus=0.0).convexity == 0.0
    assert of.KL(spring, modulus=2.0).convexity == 2.0
    with pytest.raises(TypeError, match=r"modulus=.*convexity"):
        of.Potential(spring).modulus = 1.0  # type: ignore[method-assign, assignment]
    with pytest.raises(TypeError, match=r"modulus=.*convexity"):
        type("Stiff", (of.Potential,), {"modulus": 1.0})


# Words of the last release ------------------------------------------------------------


def old(name, bases, **words):
    """Return a class made of old words, which warns where it is stated."""
    with pytest.warns(DeprecationWarning, match=r"goes in the next release") as caught:
        made = type(name, bases, words)
    assert caught[0].filename == __file__
    return made


class Half(of.Functional):
    def value(self, mu):
        return 0.5 * mu.expectation(lambda x: x.square().sum(-1))


def test_old_names_are_read_with_a_warning():
    F = of.Potential(spring, modulus=1.0) + of.PowerEntropy(0.6)
    with pytest.warns(DeprecationWarning, match=r"modulus\(dim\)"):
        assert F.displacement_modulus is None  # in every dimension
    with pytest.warns(DeprecationWarning, match=r"modulus\(dim\)"):
        assert F.modulus_in(2) == 1.0
    with pytest.warns(DeprecationWarning, match=r"modulus\(dim\)"):
        assert of.PowerEntropy(1.5).displacement_modulus == 0.0


@pytest.mark.parametrize(
    "words",
    [
        {"displacement_modulus": property(lambda _: 1.0)},
        {"displacement_modulus": 1.0},
        {"modulus_in": lambda _, dim: 1.0 if dim == 1 else None},
        {"displacement_modulus": None, "modulus_in": lambda _, dim: dim / dim},
    ],
    ids=["property", "number", "method", "both"],
)
def test_a_bound_in_the_old_words_counts(words):
    F = old("Bounded", (Half,), **words)()
    assert F.modulus(1) == 1.0
    assert (2 * F + of.Entropy()).modulus(1) == 2.0
    mu = of.Particles(torch.tensor([[0.0], [2.0]], dtype=F64))
    run = of.flow(F, mu, of.JKO(), dt=0.5, steps=1)
    assert run.info[0]["converged"]
    assert run.info[0]["guarantee"] == "exact"
    torch.testing.assert_close(run.final.points, mu.points / 1.5)


def test_old_words_may_ask_their_parents():
    def modulus_in(self, dim):
        return 1.0 + super(F, self).modulus_in(dim)

    F = old("More", (of.PowerEntropy,), modulus_in=modulus_in)
    with pytest.warns(DeprecationWarning, match=r"modulus\(dim\)"):
        assert F(0.6).modulus(2) == 1.0

    def split_entropy(self):
        temperature, rest = super(G, self).split_entropy()
        return 2.0 * temperature, rest

    G = old("Hotter", (of.KL,), split_entropy=split_entropy)
    assert G(spring).split_entropy()[0] == 2.0
    assert (3.0 * G(spring)).split_entropy()[0] == 6.0


def test_a_split_in_the_old_words_counts():
    def value(self, mu):
        return 0.5 * of.Entropy().value(mu) + of.Potential(spring).value(mu)

    def split_entropy(self):
        return 0.5, of.Potential(spring)

    F = old("Old", (of.Functional,), value=value, split_entropy=split_entropy)()
    mu = of.Particles(normal(50, 1))
    plain = of.Potential(spring) + 0.5 * of.Entropy()
    for G, same in ((F, plain), (2 * F, 2 * plain), (F + F, plain + plain)):
        assert G.split_entropy()[0] == same.split_entropy()[0]
        run = of.flow(G, mu, of.Langevin(), dt=0.1, steps=3, generator=0)
        other = of.flow(same, mu, of.Langevin(), dt=0.1, steps=3, generator=0)
        torch.testing.assert_close(run.final.points, other.final.points)
    assert [type(term) for _, term in F.terms()] == [of.Entropy, of.Potential]


def test_a_class_for_both_releases_does_not_warn():
    class Both(Half):
        displacement_modulus = 0.5

        def modulus(self, dim):
            return 1.0

    assert Both().modulus(2) == 1.0
    assert Both().displacement_modulus == 0.5
    assert Half().modulus(2) is None
    assert clouds.uniform().dim == 2
