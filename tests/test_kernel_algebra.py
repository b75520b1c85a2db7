"""Kernels add and scale: energies and potentials are linear, each term by its rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import otflow as of
from otflow.kernels import (
    Combination,
    Energy,
    Function,
    Gaussian,
    Kernel,
    Log,
    PowerLaw,
    Quadratic,
    Riesz,
)
from otflow.testing import FunctionalContract
from otflow.testing.clouds import normal
from tests.functionals.test_interaction import Singular

F64 = torch.float64


class Slanted(Kernel):
    """A user's kernel that is not even."""

    def __call__(self, z):
        return z.square().sum(-1) + z[..., 0].sin()


def bump(z):
    return 1 / (1 + z.square().sum(-1))


G, L, Q, E = Gaussian(0.7), Log(), Quadratic(), Energy()
PLAIN = Function(bump)
MADE: dict[str, tuple[Any, tuple[tuple[float, Any], ...]]] = {
    "sum": (G + Q, ((1, G), (1, Q))),
    "multiple": (2 * G, ((2, G),)),
    "negative": (-G, ((-1, G),)),
    "quotient": (G / 4, ((0.25, G),)),
    "difference": (Q - G, ((1, Q), (-1, G))),
    "kink": (2 * E - G, ((2, E), (-1, G))),
    "function": (PLAIN - 3 * Slanted(), ((1, PLAIN), (-3, Slanted()))),
    "nested": (2 * (G - (Q + E) / 2), ((2, G), (-1, Q), (-1, E))),
    "sum of a list": (sum([G, Q, E]), ((1, G), (1, Q), (1, E))),
}
SINGULAR: dict[str, tuple[Any, tuple[tuple[float, Any], ...]]] = {
    "log and bell": (L + G, ((1, L), (1, G))),
    "bell without log": (2 * G - L / 2, ((2, G), (-0.5, L))),
    "two logs": (L - 0.5 * L, ((1, L), (-0.5, L))),
}
ALL = {**MADE, **SINGULAR}


def pairs_by_hand(parts, x, w):
    """Return the energy pair by pair; a singular kernel omits i = j, others do not."""
    total = x.new_zeros(())
    for c, W in parts:
        for i in range(len(x)):
            for j in range(len(x)):
                if i == j and W.singular:
                    continue
                total = total + 0.5 * c * w[i] * w[j] * W((x[i] - x[j])[None])[0]
    return total


@pytest.mark.parametrize("name", ALL)
def test_on_particles_the_energy_is_the_sum_over_pairs(name):
    W, parts = ALL[name]
    x, w = normal(7, 2).requires_grad_(), normal(7, seed=2).softmax(0)
    w = w.requires_grad_()
    expected = pairs_by_hand(parts, x, w)
    slopes = torch.autograd.grad(expected, (x, w), create_graph=True)
    mu = of.Particles(x, w)
    found = mu.interaction(W)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    mine = torch.autograd.grad(found, (x, w), create_graph=True)
    for a, b in zip(mine, slopes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    second, again = (
        torch.autograd.grad((g[0] * normal(7, 2, seed=3)).sum(), x)[0]
        for g in (mine, slopes)
    )
    torch.testing.assert_close(second, again, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ALL)
def test_potentials_are_linear_at_the_atoms_and_away(name):
    W, parts = ALL[name]
    mu, z = of.Particles(normal(7, 2)), normal(4, 2, seed=8)
    for at in (None, z):
        expected = sum(c * mu.convolve(V, at) for c, V in parts)
        torch.testing.assert_close(mu.convolve(W, at), expected, rtol=1e-12, atol=1e-14)
    F = of.Interaction(W)
    torch.testing.assert_close(F.first_variation(mu), mu.convolve(W))
    slope = torch.stack(
        [c * of.Interaction(V).velocity(mu) for c, V in parts]  # the closed forms
    ).sum(0)
    torch.testing.assert_close(F.velocity(mu), slope, rtol=1e-10, atol=1e-12)


def grid_by_hand(parts, mu):
    """Return the energy of the masses at the centres, pair by pair."""
    return pairs_by_hand(parts, mu.points, mu.weights)


@pytest.mark.parametrize("name", ["sum", "multiple", "negative", "difference"])
def test_on_a_grid_that_resolves_the_kernels_it_is_the_sum_over_centres(name):
    W, parts = MADE[name]
    rho = normal(4, 5).exp()
    mu = of.GridDensity(rho, (0, 0), (1, 1), walls=True, normalize=True)
    torch.testing.assert_close(
        mu.interaction(W), grid_by_hand(parts, mu), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize("name", ["sum", "multiple", "negative", "difference"])
def test_on_gaussians_it_is_the_closed_form(name):
    W, parts = MADE[name]
    A = normal(2, 2)
    S = A @ A.T + torch.eye(2, dtype=F64)
    mu = of.Gaussian(normal(2), S)
    closed = {  # half of E W(x - y), where x - y has the law N(0, 2 S)
        G: 0.5 / torch.linalg.det(torch.eye(2, dtype=F64) + 2 * S / 0.7**2).sqrt(),
        Q: 0.5 * S.trace(),
    }
    expected = sum(c * closed[V] for c, V in parts)
    torch.testing.assert_close(mu.interaction(W), expected, rtol=1e-12, atol=1e-14)


DENSITIES = {
    "quantiles": lambda: of.Quantiles(torch.linspace(-1, 1, 12, dtype=F64) ** 3 * 2),
    "grid": lambda: of.GridDensity(
        normal(20, seed=4).exp(), -1, 1, walls=True, normalize=True
    ),
    "gaussian": lambda: of.Gaussian(normal(1), torch.eye(1, dtype=F64) * 0.3),
}


@pytest.mark.filterwarnings("ignore::otflow.errors.KernelWarning")  # of a kink
@pytest.mark.parametrize("kind", DENSITIES)
@pytest.mark.parametrize("name", ALL)
def test_on_densities_each_term_keeps_its_own_rule(kind, name):
    W, parts = ALL[name]
    mu = DENSITIES[kind]()
    if kind == "gaussian" and name in SINGULAR:
        with pytest.raises(of.errors.Unsupported, match="infinite at 0"):
            mu.interaction(W)
        return
    expected = sum(c * mu.interaction(V) for c, V in parts)
    torch.testing.assert_close(mu.interaction(W), expected, rtol=1e-13, atol=1e-15)
    expected = sum(c * mu.convolve(V) for c, V in parts)
    torch.testing.assert_close(mu.convolve(W), expected, rtol=1e-12, atol=1e-14)


def test_a_convolution_on_a_grid_is_linear_in_the_kernel():
    box = of.measures.Box.of(-1.0, 1.0, 12)
    mass = normal(12).softmax(0)
    maps = [of.measures.Convolution(box, W, mass)(mass) for W in (L, G, L - 2 * G)]
    torch.testing.assert_close(maps[2], maps[0] - 2 * maps[1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ALL)
def test_values_and_even_parts_are_those_of_arithmetic(name):
    W, parts = ALL[name]
    z = normal(9, 2, seed=5)
    for ask in (Kernel.__call__, Kernel.values, Kernel.even):
        expected = sum(c * getattr(V, ask.__name__)(z) for c, V in parts)
        torch.testing.assert_close(getattr(W, ask.__name__)(z), expected)
    assert W.terms() == tuple(
        (c, V) for (c, _), (_, V) in zip(parts, W.terms(), strict=True)
    )
    for (_, mine), (_, given) in zip(W.terms(), parts, strict=True):
        assert type(mine) is type(given)


def test_a_singular_term_alone_omits_the_pairs_of_an_atom_with_itself():
    # The rule: each term as if it were alone. A pair i = j counts for the bell, which
    # is 1 at 0, and not for the logarithm.
    mu = of.Particles(torch.tensor([[0.0], [1.0]], dtype=F64))
    apart = float(G(torch.ones(1, dtype=F64)))
    assert float(mu.interaction(L + G)) == pytest.approx(0.25 * (1 + apart))
    # A sum that is declared singular as a whole omits them for all of its terms.
    whole = Function(L + G, singular=True)
    assert float(mu.interaction(whole)) == pytest.approx(
        0.25 * float(G(torch.ones(1))), rel=1e-6
    )


def test_properties_combine():
    assert (G + Q).is_radial
    assert not (G + PLAIN).is_radial
    assert (L + G).singular
    assert not (G - 2 * E).singular
    assert (0 * L).singular  # a factor 0 keeps the part
    assert (G + Q).smooth
    assert not (G + E).smooth
    assert (2 * Q).modulus == 2.0
    assert (Q / 2 + G).modulus == pytest.approx(0.5 - 1 / 0.7**2)
    assert (Q - G).modulus is None
    assert (Q + L).modulus is None
    assert (Q + 0 * L).modulus == 1.0
    assert of.Interaction(3 * Q).modulus(2) == 0.0
    assert of.Interaction(G + Q / 2).modulus(2) == pytest.approx(0.5 - 1 / 0.7**2)


def test_keys_tell_equal_combinations_from_others():
    again = Gaussian(0.7) + 2 * Quadratic()
    assert (G + 2 * Q).key() == again.key()
    assert (G + Q).key() != (G + 2 * Q).key()
    assert (G + Q).key() not in (G.key(), Q.key(), (G - Q).key())
    assert (G + PLAIN).key() is None
    assert hash((G + 2 * Q).key()) == hash(again.key())


def test_a_double_negative_and_a_sum_of_one_are_the_kernel_itself():
    minus = -G
    assert -minus is G
    assert sum([G]) is G
    assert 1 * G is G
    assert of.kernels.as_kernel(G + Q).terms() == ((1.0, G), (1.0, Q))


@pytest.mark.parametrize(
    ("W", "text"),
    [
        (G - L, "Gaussian(sigma=0.7) - Log()"),
        (2 * (G + L), "2 * Gaussian(sigma=0.7) + 2 * Log()"),
        (-G / 3, "-0.3333333333333333 * Gaussian(sigma=0.7)"),
        (-L + PowerLaw(4, 2), "-Log() + PowerLaw(attraction=4.0, repulsion=2.0)"),
        (G - (L - Riesz(1)), "Gaussian(sigma=0.7) - Log() + Riesz(p=1.0)"),
    ],
    ids=lambda p: p if isinstance(p, str) else "",
)
def test_a_text_reads_back_as_the_same_kernel(W, text):
    assert repr(W) == text
    again = eval(text, vars(of.kernels))
    assert again.key() == W.key()
    assert repr(of.Interaction(W)) == f"Interaction({text})"


def test_what_is_no_kernel_or_no_factor_raises():
    kernel: Any = G
    for wrong in (
        lambda: kernel + bump,
        lambda: kernel + 1,
        lambda: 1 + kernel,
        lambda: kernel - 1.0,
        lambda: 1.0 - kernel,
        lambda: kernel * kernel,
        lambda: kernel * torch.tensor(2.0),
        lambda: torch.tensor(2.0) * kernel,
        lambda: kernel * True,
        lambda: "2" * kernel,
        lambda: np.ones(2) * kernel,
        lambda: kernel / kernel,
        lambda: 1 / kernel,
        lambda: Combination(((2.0, bump),)),
        lambda: of.Interaction(kernel) + kernel,
    ):
        with pytest.raises(TypeError):
            wrong()
    for zero in (0, 0.0, np.float64(0)):
        with pytest.raises(ZeroDivisionError, match="the divisor of a kernel is 0"):
            kernel / zero
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="must be finite"):
            bad * kernel
    with pytest.raises(ValueError, match="has no parts"):
        Combination(())
    assert (np.float64(2) * kernel).terms() == ((2.0, kernel),)


class TestCombined(FunctionalContract):
    def make(self, dtype=F64):
        return of.Interaction(2 * G - E / 2)


class TestCombinedSingular(Singular):
    def make(self, dtype=F64):
        return of.Interaction(Q + L / 2)


def test_solvers_see_the_interactions_of_the_terms():
    F = 3 * of.Interaction(2 * G - E)
    assert [(c, term.kernel) for c, term in F.terms()] == [(6.0, G), (-3.0, E)]  # type: ignore[attr-defined]
    again = F.terms()
    assert [term for _, term in F.terms()] == [term for _, term in again]


@pytest.mark.parametrize("kind", ["particles", *DENSITIES])
def test_a_flow_of_a_combination_is_that_of_the_sum_of_interactions(kind):
    mu = of.Particles(normal(6, 1)) if kind == "particles" else DENSITIES[kind]()
    V = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
    together = V + of.Interaction(Q / 2 - 0.1 * G)
    apart = V + of.Interaction(Q) / 2 - 0.1 * of.Interaction(G)
    fluxes = of.JKO(of.proximal.FiniteVolume())
    schemes = [fluxes] if kind == "grid" else [of.JKO(), of.ExplicitEuler()]
    for scheme in schemes:
        runs = [of.flow(F, mu, scheme, dt=0.01, steps=2) for F in (together, apart)]
        torch.testing.assert_close(runs[0][-1].points, runs[1][-1].points)
        torch.testing.assert_close(runs[0][-1].weights, runs[1][-1].weights)
        torch.testing.assert_close(runs[0].records["energy"], runs[1].records["energy"])
