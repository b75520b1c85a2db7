"""The laws of every measure; the test of each class inherits them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import otflow as of
from tests.clouds import assert_plain, assert_untouched, global_state, normal, state
from tests.differences import derivative

CAPABILITIES = ("density", "mass_gradient", "diffuse", "reweight", "sample")


def potential(mu: of.Measure) -> Tensor:
    """Return a linear functional that is neither convex nor symmetric."""
    return mu.expectation(lambda x: (x.square().sum(-1) + x[..., 0]).sin())


def interaction(mu: of.Measure) -> Tensor:
    """Return a quadratic functional."""
    return mu.interaction(lambda z: (-z.square().sum(-1)).exp())


def nonlinear(mu: of.Measure) -> Tensor:
    """Return a functional of an expectation."""
    return mu.expectation(lambda x: torch.cat([x, x.square()], -1)).tanh().prod()


def entropy(mu: of.Measure) -> Tensor:
    """Return an internal energy."""
    return mu.internal(torch.log)


class MeasureContract:
    """A child says how to make a measure (`make`) and what it can do (`capabilities`).

    Where tangents have another shape than the points it overrides `tangent` too, and
    where another tensor than `points` holds its state, `coordinates`. Where `push` is
    one-sided, like an upwind flux, `derivative_along` is the mean of both sides.
    """

    capabilities: frozenset[str] = frozenset()

    def make(self, dtype: torch.dtype = torch.float64) -> of.Measure:
        """Return a measure of moderate size; the same one at each call."""
        raise NotImplementedError

    def tangent(self, mu: of.Measure, seed: int = 0) -> Tensor:
        """Return a tangent at `mu` that depends on the seed alone."""
        return normal(*mu.points.shape, seed=seed + 77, dtype=mu.dtype)

    def coordinates(self, mu: of.Measure) -> Tensor:
        """Return the tensor that `push` moves."""
        return mu.points

    def derivative_along(
        self, value: Callable[[of.Measure], Tensor], mu: of.Measure, v: Tensor
    ) -> Tensor:
        """Return the derivative of a value as `mu` is pushed along `v`."""
        return derivative(lambda t: value(mu.push(v, t)), h=1e-4)

    def values(self) -> list[Callable[[of.Measure], Tensor]]:
        """Return values to differentiate, one of each kind that the measure admits."""
        known = [potential, interaction, nonlinear]
        return [*known, entropy] if "density" in self.capabilities else known

    def call(self, mu: of.Measure, capability: str) -> object:
        """Exercise one capability with good arguments."""
        generator = torch.Generator().manual_seed(3)
        return {
            "density": lambda: mu.density(),
            "mass_gradient": lambda: mu.mass_gradient(potential),
            "diffuse": lambda: mu.diffuse(0.1, generator),
            "reweight": lambda: mu.reweight(mu.points[:, 0], 0.1),
            "sample": lambda: mu.sample(5, generator),
        }[capability]()

    def refuses(self, capability: str) -> bool:
        """Check the refusal of a missing capability; tell whether it is missing."""
        if capability in self.capabilities:
            return False
        mu = self.make()
        cure = type(mu).cures[capability]  # its own reason and cure, not the stock one
        with pytest.raises(of.errors.Unsupported) as caught:
            self.call(mu, capability)
        assert str(caught.value).startswith(f"{type(mu).__name__} has no ")
        assert cure in str(caught.value)
        return True

    # What it is -----------------------------------------------------------------------

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_it_is_a_probability_measure(self, dtype):
        mu = self.make(dtype)
        assert mu.points.shape == (mu.n, mu.dim)
        assert mu.weights.shape == (mu.n,)
        assert mu.points.dtype == mu.weights.dtype == mu.dtype == dtype
        assert bool((mu.weights >= 0).all())
        assert float(mu.weights.sum()) == pytest.approx(1, abs=4 * mu.n * 1e-7)
        one = mu.expectation(lambda x: torch.ones_like(x[:, 0]))
        assert float(one) == pytest.approx(1, abs=4 * mu.n * 1e-7)

    def test_its_repr_names_class_size_and_dtype(self):
        mu = self.make()
        text = f"{type(mu).__name__}(n={mu.n}, d={mu.dim}, dtype=float64, device=cpu)"
        assert repr(mu) == text

    def test_its_attributes_are_frozen(self):
        mu = self.make()
        for name in ("points", "weights"):
            with pytest.raises(AttributeError):
                setattr(mu, name, torch.zeros(1))

    def test_it_survives_pickle_and_deepcopy(self):
        mu = self.make()
        for twin in (copy.deepcopy(mu), pickle.loads(pickle.dumps(mu))):
            assert type(twin) is type(mu)
            assert twin.points is not mu.points
            assert torch.equal(twin.points, mu.points)
            assert torch.equal(twin.weights, mu.weights)
            moved = self.coordinates(twin.push(self.tangent(twin), 0.01))
            expected = self.coordinates(mu.push(self.tangent(mu), 0.01))
            assert torch.equal(moved, expected)

    # Transport ------------------------------------------------------------------------

    def test_push_for_no_time_is_the_identity(self):
        mu = self.make()
        moved = mu.push(self.tangent(mu), 0.0)
        assert torch.equal(moved.points, mu.points)
        assert torch.equal(moved.weights, mu.weights)

    def test_push_keeps_class_dtype_and_mass(self):
        for dtype in (torch.float32, torch.float64):
            mu = self.make(dtype)
            moved = mu.push(self.tangent(mu), 0.01)
            assert type(moved) is type(mu)
            assert moved.points.dtype == moved.weights.dtype == dtype
            assert float(moved.weights.sum()) == pytest.approx(float(mu.weights.sum()))
            assert not torch.equal(self.coordinates(moved), self.coordinates(mu))

    def test_inner_is_a_scalar_product(self):
        mu = self.make()
        u, v, w = (self.tangent(mu, seed) for seed in range(3))
        left = mu.inner(u + 2 * v, w)
        torch.testing.assert_close(left, mu.inner(u, w) + 2 * mu.inner(v, w))
        torch.testing.assert_close(mu.inner(u, v), mu.inner(v, u))
        assert float(mu.inner(u, u)) > 0
        torch.testing.assert_close(mu.norm(u).square(), mu.inner(u, u))
        assert float(mu.norm(torch.zeros_like(u))) == 0

    def test_displacement_is_the_inverse_of_push(self):
        mu = self.make()
        nu = mu.push(self.tangent(mu), 0.05)
        back = mu.push(mu.displacement_to(nu), 1.0)
        torch.testing.assert_close(back.points, nu.points, rtol=0, atol=1e-14)
        torch.testing.assert_close(back.weights, nu.weights, rtol=0, atol=1e-14)
        assert float(mu.norm(mu.displacement_to(mu))) == 0

    # Derivatives ----------------------------------------------------------------------

    def test_position_gradient_is_the_derivative_along_push(self):
        mu = self.make()
        for value in self.values():
            f, gradient = mu.value_and_position_gradient(value)
            torch.testing.assert_close(f, value(mu))
            assert torch.equal(gradient, mu.position_gradient(value))
            for seed in range(3):
                v = self.tangent(mu, seed)
                expected = self.derivative_along(value, mu, v)
                found = mu.inner(gradient, v)
                torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)

    def test_mass_gradient_is_the_derivative_in_the_masses(self):
        if self.refuses("mass_gradient"):
            return
        mu = self.make()
        # A rate r changes masses by w (r - mean r): a derivative along the simplex.
        for value in self.values():
            gradient = mu.mass_gradient(value)
            assert gradient.shape == (mu.n,)
            for seed in range(3):
                rate = normal(mu.n, seed=seed)
                change = mu.weights * (rate - mu.weights @ rate)
                expected = derivative(
                    lambda t, r=rate, f=value: f(mu.reweight(r, t)), h=1e-3
                )
                found = gradient @ change
                torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)

    def test_probes_at_the_points_give_the_mass_gradient(self):
        if self.refuses("mass_gradient"):
            return
        mu = self.make()
        for value in self.values():
            gap = mu.mass_gradient(value, mu.points) - mu.mass_gradient(value)
            torch.testing.assert_close(gap, gap[0].expand(mu.n), rtol=0, atol=1e-12)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_derivatives_are_plain_tensors_of_the_dtype(self, dtype):
        mu = self.make(dtype)
        before = state(mu)
        f, gradient = mu.value_and_position_gradient(potential)
        found = [f, gradient]
        if "mass_gradient" in self.capabilities:
            found += [mu.mass_gradient(interaction), mu.mass_gradient(potential)]
        assert_plain(*found)
        assert {x.dtype for x in found} == {dtype}
        assert gradient.shape == self.tangent(mu).shape
        assert_untouched(mu, before)

    # Capabilities ---------------------------------------------------------------------

    @pytest.mark.parametrize("capability", CAPABILITIES)
    def test_a_capability_works_or_names_the_cure(self, capability):
        if not self.refuses(capability):
            assert self.call(self.make(), capability) is not None

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_density(self, dtype):
        if self.refuses("density"):
            return
        mu = self.make(dtype)
        rho = mu.density()
        assert rho.shape == (mu.n,)
        assert rho.dtype == dtype
        assert bool((rho > 0).all())

    def test_transport_keeps_the_mass_where_cells_are_fixed(self):
        mu = self.make()
        v = self.tangent(mu)
        if type(mu).transport is of.Measure.transport:
            with pytest.raises(of.errors.Unsupported, match=r"use push$"):
                mu.transport(v, 0.01)
            return
        moved = mu.transport(v, 0.01)
        assert type(moved) is type(mu)
        assert torch.equal(moved.points, mu.points)
        assert not torch.equal(moved.weights, mu.weights)
        assert float(moved.weights.sum()) == pytest.approx(1, abs=1e-12)
        assert bool((moved.weights >= 0).all())

    def test_diffuse(self):
        if self.refuses("diffuse"):
            return
        for dtype in (torch.float32, torch.float64):
            mu = self.make(dtype)
            first, again, other = (
                mu.diffuse(0.3, torch.Generator().manual_seed(seed))
                for seed in (1, 1, 2)
            )
            assert type(first) is type(mu)
            assert first.dtype == dtype
            assert float(first.weights.sum()) == pytest.approx(1, abs=1e-6)
            assert torch.equal(first.points, again.points)
            assert not torch.equal(first.points, other.points)
            still = mu.diffuse(0.0, torch.Generator())
            torch.testing.assert_close(still.points, mu.points)
            torch.testing.assert_close(still.weights, mu.weights)

    def test_reweight(self):
        if self.refuses("reweight"):
            return
        mu = self.make()
        rate = normal(mu.n, seed=4)
        twice = mu.reweight(rate, 0.3).reweight(rate, 0.4)
        torch.testing.assert_close(twice.weights, mu.reweight(rate, 0.7).weights)
        shifted = mu.reweight(rate + 9.0, 0.7)
        torch.testing.assert_close(shifted.weights, twice.weights)
        torch.testing.assert_close(mu.reweight(rate, 0.0).weights, mu.weights)
        assert float(twice.weights.sum()) == pytest.approx(1, abs=1e-14)
        assert torch.equal(twice.points, mu.points)
        expected = mu.weights * (0.7 * rate).exp()
        torch.testing.assert_close(twice.weights, expected / expected.sum())

    def test_sample(self):
        if self.refuses("sample"):
            return
        mu = self.make()
        n = 20_000
        draws, again = (
            mu.sample(n, torch.Generator().manual_seed(5)) for _ in range(2)
        )
        assert draws.shape == (n, mu.dim)
        assert draws.dtype == mu.dtype
        assert torch.equal(draws, again)
        mean = mu.expectation(lambda x: x)
        spread = (mu.expectation(lambda x: x.square()) - mean.square()).sqrt()
        assert bool(((draws.mean(0) - mean).abs() < 5 * spread / n**0.5 + 1e-12).all())

    # Purity ---------------------------------------------------------------------------

    def test_no_verb_changes_the_measure_or_the_global_random_state(self):
        mu = self.make()
        before = state(mu)
        coordinates = self.coordinates(mu).clone()
        v = self.tangent(mu)
        surroundings = global_state()
        moved = mu.push(v, 0.01)
        results = [moved.points, moved.weights, mu.displacement_to(moved)]
        results += [mu.position_gradient(f) for f in self.values()]
        if "reweight" in self.capabilities:
            rated = mu.reweight(mu.points[:, 0].clone(), 0.1)
            results.append(rated.weights)
        for name in sorted(self.capabilities):
            result = self.call(mu, name)
            is_measure = isinstance(result, of.Measure)
            results += [result.points, result.weights] if is_measure else [result]
        assert_plain(*results)
        assert_untouched(mu, before)
        assert torch.equal(self.coordinates(mu), coordinates)
        assert global_state() == surroundings


class ExchangeableContract(MeasureContract):
    """More laws, for a measure whose points carry no order; a child says `permuted`."""

    def permuted(self, mu: of.Measure, order: Tensor) -> of.Measure:
        """Return `mu` with its points in another order."""
        raise NotImplementedError

    def test_the_order_of_the_points_is_immaterial(self):
        mu = self.make()
        order = torch.randperm(mu.n, generator=torch.Generator().manual_seed(6))
        nu = self.permuted(mu, order)
        assert not torch.equal(nu.points, mu.points)
        for value in self.values():
            f, gradient = mu.value_and_position_gradient(value)
            g, permuted = nu.value_and_position_gradient(value)
            torch.testing.assert_close(g, f, rtol=1e-13, atol=1e-14)
            torch.testing.assert_close(permuted, gradient[order], rtol=0, atol=1e-12)
            if "mass_gradient" in self.capabilities:
                rates, permuted = mu.mass_gradient(value), nu.mass_gradient(value)
                torch.testing.assert_close(permuted, rates[order], rtol=0, atol=1e-12)
