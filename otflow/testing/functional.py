"""The laws of every functional; the test of each class inherits them."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor

from otflow.errors import Unsupported
from otflow.functionals import Entropy, Functional, Potential
from otflow.measures import GridDensity, Measure, Particles
from otflow.testing.clouds import (
    assert_plain,
    assert_untouched,
    degenerate,
    normal,
    state,
    uniform,
    weighted,
)
from otflow.testing.differences import (
    derivative,
    gradient_field,
    mass_derivative,
    second_difference,
)

__all__ = ["FunctionalContract"]


class FunctionalContract:
    """The laws of a functional; a test class inherits them.

    A subclass makes the functional (`make`), with its data in the given dtype. It may
    also choose the measures.

    Attributes
    ----------
    dim : int
        Dimension of the measures that are tried.
    has_first_variation : bool
        False for functionals of measures without `mass_gradient`.
    pushes_along_geodesics : bool
        False for measures on fixed cells, whose `push` is a flux: second differences
        along `push` then say nothing about convexity.

    Examples
    --------
    >>> import torch, otflow as of
    >>> from otflow.testing import FunctionalContract
    >>> class TestSpring(FunctionalContract):
    ...     def make(self, dtype=torch.float64):
    ...         return of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
    >>> TestSpring().test_float32_agrees_with_float64()
    """

    dim = 2
    has_first_variation = True
    pushes_along_geodesics = True

    def make(self, dtype: torch.dtype = torch.float64) -> Functional:
        """Return the functional, its data in this dtype."""
        raise NotImplementedError

    def measure(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> Measure:
        """Return a measure at which the functional is smooth, by its seed."""
        return weighted(7, self.dim, seed=seed, dtype=dtype)

    def measures(self) -> list[Measure]:
        """Return the measures on which the laws are tried."""
        return [
            self.measure(),
            uniform(6, self.dim),
            degenerate(self.dim),
        ]

    def tangent(self, mu: Measure, seed: int = 0) -> Tensor:
        """Return a tangent at `mu`."""
        return normal(*mu.points.shape, seed=seed + 55, dtype=mu.dtype)

    def other(self) -> Functional:
        """Return another functional of these measures, a term of sums."""
        return Potential(lambda x: x.square().sum(-1).cos())

    def probes(self, mu: Measure, shift: float) -> Tensor:
        """Return probes of the first variation, one for each point of `mu`."""
        return mu.points + shift

    def derivative_along(self, F: Functional, mu: Measure, v: Tensor) -> Tensor:
        """Return the derivative of F as `mu` is pushed along `v`."""
        return derivative(partial(self.along, F, mu, v), 1e-4)

    def slopes(self, F: Functional, mu: Measure) -> Tensor:
        """Return the gradient of the first variation at the points of a tangent."""
        return gradient_field(lambda x: F.first_variation(mu, x), mu.points)

    def along(self, F: Functional, mu: Measure, v: Tensor, t: float) -> Tensor:
        """Return F at a time along the path that pushes `mu` by `v`."""
        return F.value(mu.push(v, t))

    # Value ----------------------------------------------------------------------------

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_value_and_derivatives_keep_dtype_and_carry_no_graph(
        self, dtype: torch.dtype
    ) -> None:
        """Check that value and derivatives keep the dtype and carry no graph."""
        F, mu = self.make(dtype), self.measure(dtype)
        before = state(mu)
        value, velocity = F.value_and_velocity(mu)
        found = [value, velocity, F.velocity(mu), F.value(mu), F(mu)]
        if self.has_first_variation:
            found += [
                F.first_variation(mu),
                F.first_variation(mu, self.probes(mu, 0.1)),
            ]
            assert found[-1].shape == found[-2].shape == (mu.n,)
        assert {x.dtype for x in found} == {dtype}
        assert_plain(*found)
        assert value.shape == ()
        assert velocity.shape == self.tangent(mu).shape
        assert_untouched(mu, before)

    def test_value_is_the_same_by_every_road(self) -> None:
        """Check that ``F(mu)`` and the pass with velocity give the value."""
        F = self.make()
        for mu in self.measures():
            value = F.value(mu)
            torch.testing.assert_close(F(mu), value)
            torch.testing.assert_close(F.value_and_velocity(mu)[0], value)

    def test_float32_agrees_with_float64(self) -> None:
        """Check value and velocity in single precision against double precision."""
        single, double = torch.float32, torch.float64
        mu, nu = self.measure(single), self.measure(double)
        value, velocity = self.make(single).value_and_velocity(mu)
        reference, expected = self.make(double).value_and_velocity(nu)
        assert float(value) == pytest.approx(float(reference), rel=1e-3, abs=1e-4)
        scale = float(expected.abs().max())
        torch.testing.assert_close(
            velocity.double(), expected, rtol=0, atol=2e-3 * (1 + scale)
        )

    def test_using_it_does_not_change_it(self) -> None:
        """Check that an evaluation does not change the functional."""
        F = self.make()
        before = copy.deepcopy(vars(F))
        for mu in self.measures():
            F.value_and_velocity(mu)
        assert vars(F).keys() == before.keys()
        for name, old in before.items():
            new = vars(F)[name]
            same = torch.equal(new, old) if isinstance(new, Tensor) else True
            assert same, name

    def test_its_repr_is_one_short_line(self) -> None:
        """Check that the repr is one short line without an address."""
        text = repr(self.make())
        assert "\n" not in text
        assert 0 < len(text) < 120
        assert "0x" not in text

    # Derivatives ----------------------------------------------------------------------

    def test_velocity_is_minus_the_derivative_along_transport(self) -> None:
        """Check the velocity against finite differences along `push`."""
        F = self.make()
        for mu in self.measures():
            velocity = F.velocity(mu)
            for seed in range(3):
                v = self.tangent(mu, seed)
                expected = self.derivative_along(F, mu, v)
                found = -mu.inner(velocity, v)
                torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)

    def test_first_variation_is_the_derivative_in_the_masses(self) -> None:
        """Check the first variation against finite differences in the masses."""
        F = self.make()
        if not self.has_first_variation:
            with pytest.raises(Unsupported):
                F.first_variation(self.measure())
            return
        for mu in self.measures():
            found = F.first_variation(mu)
            for seed in range(3):
                rate = normal(mu.n, seed=seed)
                change = mu.weights * (rate - mu.weights @ rate)
                expected = mass_derivative(F.value, mu, rate)
                torch.testing.assert_close(
                    found @ change, expected, rtol=1e-7, atol=1e-9
                )

    def test_velocity_is_minus_the_gradient_of_the_first_variation(self) -> None:
        """Check the velocity against minus the gradient of the first variation."""
        F = self.make()
        if not self.has_first_variation:
            return
        for mu in self.measures():
            expected = -self.slopes(F, mu)
            scale = float(expected.abs().max())
            torch.testing.assert_close(
                F.velocity(mu), expected, rtol=0, atol=1e-7 * (1 + scale)
            )

    def test_the_velocity_anywhere_is_minus_the_slope_of_the_first_variation(
        self,
    ) -> None:
        """Check the velocity at probes against differences of the first variation."""
        F = self.make()
        for mu in self.measures():
            if not self.has_first_variation or not isinstance(mu, Particles):
                continue
            x = self.probes(mu, 0.3)
            expected = -gradient_field(partial(F.first_variation, mu), x)
            scale = float(expected.abs().max())
            found = F.velocity(mu, x)
            assert_plain(found)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-7 * (1 + scale))

    def test_its_own_derivatives_are_those_of_autodiff(self) -> None:
        """Check closed forms of the derivatives against autodiff."""
        F = self.make()
        for mu in self.measures():
            for found, expected in zip(
                F.value_and_velocity(mu),
                Functional.value_and_velocity(F, mu),
                strict=True,
            ):
                torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)
            if not self.has_first_variation:
                continue
            self._check_passes(F, mu)
            for x in (None, self.probes(mu, 0.3)):
                torch.testing.assert_close(
                    F.first_variation(mu, x),
                    Functional.first_variation(F, mu, x),
                    rtol=1e-10,
                    atol=1e-11,
                )

    def _check_passes(self, F: Functional, mu: Measure) -> None:
        """Check the passes that give several answers against each answer alone."""
        value, velocity = F.value_and_velocity(mu)
        variation = F.first_variation(mu)
        for found, expected in (
            (F.value_and_first_variation(mu), (value, variation)),
            (F.value_and_derivatives(mu), (value, velocity, variation)),
        ):
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)

    def test_probes_may_be_arrays(self) -> None:
        """Check that NumPy probes give the same first variation."""
        if not self.has_first_variation:
            return
        F, mu = self.make(), self.measure()
        x = normal(3, self.dim, seed=31)
        assert torch.equal(F.first_variation(mu, x.numpy()), F.first_variation(mu, x))

    # Algebra --------------------------------------------------------------------------

    def test_sums_and_multiples(self) -> None:
        """Check values and derivatives of sums and multiples."""
        F, mu = self.make(), self.measure()
        G = self.other()
        total = 2 * F + G * -0.5 + F
        value, velocity = total.value_and_velocity(mu)
        (f, u), (g, v) = F.value_and_velocity(mu), G.value_and_velocity(mu)
        torch.testing.assert_close(value, 3 * f - 0.5 * g)
        torch.testing.assert_close(velocity, 3 * u - 0.5 * v)
        torch.testing.assert_close(total.value(mu), value)
        if self.has_first_variation:
            for x in (None, self.probes(mu, 0.2)):
                torch.testing.assert_close(
                    total.first_variation(mu, x),
                    3 * F.first_variation(mu, x) - 0.5 * G.first_variation(mu, x),
                )

    def test_the_terms_sum_to_the_functional(self) -> None:
        """Check values and velocities of the terms: solvers see nothing else of F."""
        F, mu = self.make(), self.measure()
        value, velocity = F.value_and_velocity(mu)
        parts = [(c, G.value_and_velocity(mu)) for c, G in F.terms()]
        total, along = torch.zeros_like(value), torch.zeros_like(velocity)
        for c, (part, direction) in parts:
            total, along = total + c * part, along + c * direction
        torch.testing.assert_close(total, value)
        scale = float(velocity.abs().max())
        torch.testing.assert_close(along, velocity, rtol=1e-7, atol=1e-9 * (1 + scale))

    def test_split_entropy_restores_the_functional(self) -> None:
        """Check that the rest and the entropy at its temperature sum to F."""
        F, mu = self.make(), self.measure()
        temperature, rest = F.split_entropy()
        assert isinstance(rest, Functional)
        total = rest.value(mu)
        if temperature:
            total = total + temperature * Entropy().value(mu)
        torch.testing.assert_close(total, F.value(mu))
        assert rest.split_entropy()[0] == 0

    def test_a_draw_of_it_is_a_functional(self) -> None:
        """Check that a random copy is a functional."""
        F, mu = self.make(), self.measure()
        draw = F.resample(torch.Generator().manual_seed(0))
        assert isinstance(draw, Functional)
        assert draw.value(mu).shape == ()

    # Convexity ------------------------------------------------------------------------

    def test_a_declared_modulus_bounds_every_second_difference(self) -> None:
        """Check that second differences along displacements respect the modulus."""
        F = self.make()
        modulus = F.modulus(self.measure().dim)
        if modulus is None or not self.pushes_along_geodesics:
            return
        for seed in range(20):
            mu = self.measure(seed=seed)
            nu = mu.push(self.tangent(mu, seed), 0.3 + 0.1 * seed)
            u = mu.displacement_to(nu)
            moved = (mu.push(u, 1.0).points - mu.points).square().sum(-1)
            cost = float(mu.weights @ moved)  # of the coupling of `displacement_to`
            path = partial(self.along, F, mu, u)
            for t in (0.1, 0.5, 0.9):
                found = float(second_difference(path, t, 0.05))
                assert found >= modulus * cost - 1e-9 * (1 + abs(found))

    def test_a_declared_mixture_curvature_bounds_every_second_difference(self) -> None:
        """Check that second differences along mixtures have the sign of the word."""
        F = self.make()
        word = F.mixture_curvature()
        if word is None:
            return
        for seed in range(5):
            a, b = self.measure(seed=seed), self.measure(seed=seed + 70)
            if not isinstance(a, (Particles, GridDensity)):
                return  # only these have mixtures of their own kind
            values = [float(F.value(a.mix(b, t))) for t in (0.0, 0.5, 1.0)]
            bend = values[2] - 2 * values[1] + values[0]
            noise = 1e-8 * (1 + max(map(abs, values)))
            assert word == "concave" or bend >= -noise
            assert word == "convex" or bend <= noise
