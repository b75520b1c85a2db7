"""The laws of every measure; the test of each class inherits them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from otflow.errors import Unsupported
from otflow.measures import Measure
from otflow.testing.capabilities import CapabilityLaws, interaction, potential
from otflow.testing.clouds import (
    assert_plain,
    assert_untouched,
    global_state,
    normal,
    state,
)
from otflow.testing.differences import derivative, mass_derivative

__all__ = ["ExchangeableContract", "MeasureContract"]


def nonlinear(mu: Measure) -> Tensor:
    """Return a functional of an expectation."""
    return mu.expectation(lambda x: torch.cat([x, x.square()], -1)).tanh().prod()


def entropy(mu: Measure) -> Tensor:
    """Return an internal energy."""
    return mu.internal(torch.log)


def _watch(tensor: Tensor) -> Tensor:
    return tensor.clone().requires_grad_() if tensor.is_floating_point() else tensor


class MeasureContract(CapabilityLaws):
    """The laws of a measure; a test class inherits them.

    A subclass makes the measure (`make`) and states what it can do (`capabilities`). It
    overrides `tangent` if tangents have another shape than the points, and `values` if
    functionals read something else than points. If `push` is
    one-sided, like an upwind flux, it overrides `derivative_along` by the mean of both
    sides.

    Attributes
    ----------
    capabilities : frozenset of str
        Which of ``"density"``, ``"mass_gradient"``, ``"diffuse"``, ``"reweight"`` and
        ``"sample"`` the measure has. Each of the others must raise, with a cure.

    Examples
    --------
    >>> import torch, otflow as of
    >>> from otflow.testing import MeasureContract
    >>> class TestParticles(MeasureContract):
    ...     capabilities = frozenset({"mass_gradient", "diffuse", "reweight", "sample"})
    ...
    ...     def make(self, dtype=torch.float64):
    ...         return of.Particles(torch.tensor([[0.0, 1.0], [2.0, 4.0]], dtype=dtype))
    >>> TestParticles().test_push_for_no_time_is_the_identity()
    """

    def coordinates(self, mu: Measure) -> Tensor:
        """Return the tensor that `push` moves."""
        try:
            return mu.coordinates
        except Unsupported:
            return mu.points

    def text(self, mu: Measure) -> str:
        """Return what the repr should be."""
        name = type(mu).__name__
        return f"{name}(n={mu.n}, d={mu.dim}, dtype=float64, device=cpu)"

    def change(self, mu: Measure, rate: Tensor) -> Tensor:
        """Return the speed of the masses under a reweighting by a rate, (n,)."""
        return mu.weights * (rate - mu.weights @ rate)

    def derivative_along(
        self, value: Callable[[Measure], Tensor], mu: Measure, v: Tensor
    ) -> Tensor:
        """Return the derivative of a value as `mu` is pushed along `v`."""
        return derivative(lambda t: value(mu.push(v, t)), h=1e-4)

    def values(self) -> list[Callable[[Measure], Tensor]]:
        """Return values to differentiate, one of each kind that the measure admits."""
        known: list[Callable[[Measure], Tensor]] = [potential, interaction, nonlinear]
        return [*known, entropy] if "density" in self.capabilities else known

    # What it is -----------------------------------------------------------------------

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_it_is_a_probability_measure(self, dtype: torch.dtype) -> None:
        """Check that it is a probability measure."""
        mu = self.make(dtype)
        assert not mu.fault()
        assert mu.dtype == dtype
        if not self.has_points:
            for name in ("points", "weights"):
                with pytest.raises(Unsupported, match=f"^{type(mu).__name__} has no "):
                    getattr(mu, name)
            return
        assert mu.points.shape == (mu.n, mu.dim)
        assert mu.weights.shape == (mu.n,)
        assert mu.points.dtype == mu.weights.dtype == mu.dtype == dtype
        assert bool((mu.weights >= 0).all())
        assert float(mu.weights.sum()) == pytest.approx(1, abs=4 * mu.n * 1e-7)
        one = mu.expectation(lambda x: torch.ones_like(x[:, 0]))
        assert float(one) == pytest.approx(1, abs=4 * mu.n * 1e-7)

    def test_its_repr_names_class_size_and_dtype(self) -> None:
        """Check that the repr names class, size and dtype."""
        mu = self.make()
        assert repr(mu) == self.text(mu)

    def test_its_attributes_are_frozen(self) -> None:
        """Check that its attributes cannot be set."""
        mu = self.make()
        for name in ("points", "weights"):
            with pytest.raises(AttributeError):
                setattr(mu, name, torch.zeros(1))

    def test_it_survives_pickle_and_deepcopy(self) -> None:
        """Check that copies by pickle and deepcopy are equal and usable."""
        mu = self.make()
        for twin in (copy.deepcopy(mu), pickle.loads(pickle.dumps(mu))):
            assert type(twin) is type(mu)
            for own, other in zip(twin.tensors(), mu.tensors(), strict=True):
                assert own is not other
                assert torch.equal(own, other)
            moved = self.coordinates(twin.push(self.tangent(twin), 0.01))
            expected = self.coordinates(mu.push(self.tangent(mu), 0.01))
            assert torch.equal(moved, expected)

    # Transport ------------------------------------------------------------------------

    def test_push_for_no_time_is_the_identity(self) -> None:
        """Check that a push for time 0 is the identity."""
        mu = self.make()
        moved = mu.push(self.tangent(mu), 0.0)
        assert all(map(torch.equal, moved.tensors(), mu.tensors()))

    def test_push_keeps_class_dtype_and_mass(self) -> None:
        """Check that a push keeps class, dtype and mass."""
        for dtype in (torch.float32, torch.float64):
            mu = self.make(dtype)
            moved = mu.push(self.tangent(mu), 0.01)
            assert type(moved) is type(mu)
            assert {tensor.dtype for tensor in moved.tensors()} == {dtype}
            assert not moved.fault()
            assert not torch.equal(self.coordinates(moved), self.coordinates(mu))

    def test_inner_is_a_scalar_product(self) -> None:
        """Check that `inner` is symmetric, bilinear and positive."""
        mu = self.make()
        u, v, w = (self.tangent(mu, seed) for seed in range(3))
        left = mu.inner(u + 2 * v, w)
        torch.testing.assert_close(left, mu.inner(u, w) + 2 * mu.inner(v, w))
        torch.testing.assert_close(mu.inner(u, v), mu.inner(v, u))
        assert float(mu.inner(u, u)) > 0
        torch.testing.assert_close(mu.norm(u).square(), mu.inner(u, u))
        assert float(mu.norm(torch.zeros_like(u))) == 0

    def test_displacement_is_the_inverse_of_push(self) -> None:
        """Check that `push` by a displacement reaches its end."""
        mu = self.make()
        nu = mu.push(self.tangent(mu), 0.05)
        back = mu.push(mu.displacement_to(nu), 1.0)
        torch.testing.assert_close(back.tensors(), nu.tensors(), rtol=0, atol=1e-14)
        assert float(mu.norm(mu.displacement_to(mu))) == 0

    # Derivatives ----------------------------------------------------------------------

    def test_position_gradient_is_the_derivative_along_push(self) -> None:
        """Check the position gradient against finite differences along `push`."""
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

    def test_mass_gradient_is_the_derivative_in_the_masses(self) -> None:
        """Check the mass gradient against finite differences in the masses."""
        if self.refuses("mass_gradient"):
            return
        mu = self.make()
        # A rate r changes masses by w (r - mean r): a derivative along the simplex.
        for value in self.values():
            gradient = mu.mass_gradient(value)
            assert gradient.shape == (mu.n,)
            for seed in range(3):
                rate = normal(mu.n, seed=seed)
                change = self.change(mu, rate)
                expected = mass_derivative(value, mu, rate)
                found = gradient @ change
                torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)

    def test_probes_at_the_points_give_the_mass_gradient(self) -> None:
        """Check that probes at the points give the mass gradient."""
        if self.refuses("mass_gradient"):
            return
        mu = self.make()
        if not self.has_points:
            with pytest.raises(Unsupported, match="has no space"):
                mu.mass_gradient(self.values()[0], torch.zeros(1, 1))
            return
        for value in self.values():
            gap = mu.mass_gradient(value, mu.points) - mu.mass_gradient(value)
            torch.testing.assert_close(gap, gap[0].expand(mu.n), rtol=0, atol=1e-12)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_derivatives_are_plain_tensors_of_the_dtype(
        self, dtype: torch.dtype
    ) -> None:
        """Check that derivatives have the dtype and carry no graph."""
        mu = self.make(dtype)
        before = state(mu)
        values = self.values()[:2]
        f, gradient = mu.value_and_position_gradient(values[0])
        found = [f, gradient]
        if "mass_gradient" in self.capabilities:
            found += [mu.mass_gradient(value) for value in values]
        assert_plain(*found)
        assert {x.dtype for x in found} == {dtype}
        assert gradient.shape == self.tangent(mu).shape
        assert_untouched(mu, before)

    def test_pull_back_is_the_transposed_differential_of_push(self) -> None:
        """Check the gradient in a tangent: of flat ones, that at the pushed measure."""
        mu = self.make()
        if mu.on_fixed_cells:
            return  # fixed cells: a proximal solver does not descend over tangents
        if not mu.pulls_back:
            with pytest.raises(Unsupported, match="differentiate"):
                mu.pull_back(self.tangent(mu), self.tangent(mu))
            return
        u = 0.1 * self.tangent(mu)
        for value in self.values():
            gradient = mu.push(u, 1.0).position_gradient(value)
            pulled = mu.pull_back(u, gradient)
            for seed in range(1, 4):
                v = self.tangent(mu, seed)
                expected = derivative(partial(self.along, value, mu, u, v), h=1e-4)
                found = mu.inner(pulled, v)
                torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)

    def along(
        self,
        value: Callable[[Measure], Tensor],
        mu: Measure,
        u: Tensor,
        v: Tensor,
        s: float,
    ) -> Tensor:
        """Return the value at the measure that the tangent u + s v leads to."""
        return value(mu.push(u + s * v, 1.0))

    @pytest.mark.parametrize("verb", ["push", "displacement_to", "gradient", "inner"])
    def test_a_graph_is_kept_or_refused(self, verb: str) -> None:
        """Check that no verb drops the graph of the measure or of a tangent."""
        mu, nu = self.make(), self.make()
        u, v = self.tangent(mu), self.tangent(mu, 1).requires_grad_()
        watched = mu.map_tensors(_watch)
        value = self.values()[0]
        calls: dict[str, list[Callable[[], Tensor]]] = {
            "push": [
                lambda: self.coordinates(watched.push(u, 0.01)),
                lambda: self.coordinates(mu.push(v, 0.01)),
            ],
            "displacement_to": [lambda: watched.displacement_to(nu.push(u, 0.01))],
            "gradient": [
                lambda: watched.value_and_position_gradient(value)[0],
                lambda: watched.value_and_position_gradient(value)[1],
            ],
            "inner": [lambda: mu.inner(u, v)],
        }
        for call in calls[verb]:
            try:
                found = call()
            except (ValueError, Unsupported):
                continue  # raised, not dropped
            assert found.requires_grad, f"{verb} drops the graph"

    # Purity ---------------------------------------------------------------------------

    def test_no_verb_changes_the_measure_or_the_global_random_state(self) -> None:
        """Check that no verb changes the measure or the global random state."""
        mu = self.make()
        before = state(mu)
        coordinates = self.coordinates(mu).clone()
        v = self.tangent(mu)
        surroundings = global_state()
        moved = mu.push(v, 0.01)
        results = [*moved.tensors(), mu.displacement_to(moved)]
        results += [mu.position_gradient(f) for f in self.values()]
        if "reweight" in self.capabilities:
            results += mu.reweight(normal(mu.n, seed=8), 0.1).tensors()
        for name in sorted(self.capabilities):
            result = self.call(mu, name)
            if isinstance(result, Measure):
                results += result.tensors()
            else:
                assert isinstance(result, Tensor)
                results.append(result)
        assert_plain(*results)
        assert_untouched(mu, before)
        assert torch.equal(self.coordinates(mu), coordinates)
        assert global_state() == surroundings


class ExchangeableContract(MeasureContract):
    """The laws of a measure whose points have no order; a subclass states `permuted`.

    Examples
    --------
    >>> import torch, otflow as of
    >>> from otflow.testing import ExchangeableContract
    >>> class TestParticles(ExchangeableContract):
    ...     capabilities = frozenset({"mass_gradient", "diffuse", "reweight", "sample"})
    ...
    ...     def make(self, dtype=torch.float64):
    ...         return of.Particles(torch.tensor([[0.0, 1.0], [2.0, 4.0]], dtype=dtype))
    ...
    ...     def permuted(self, mu, order):
    ...         return of.Particles(mu.points[order])
    """

    def permuted(self, mu: Measure, order: Tensor) -> Measure:
        """Return `mu` with its points in another order."""
        raise NotImplementedError

    def test_the_order_of_the_points_is_immaterial(self) -> None:
        """Check that a permutation of the points permutes gradients and rates alone."""
        mu = self.make()
        order = torch.randperm(mu.n, generator=torch.Generator().manual_seed(6))
        nu = self.permuted(mu, order)
        assert mu.n == 1 or not torch.equal(nu.points, mu.points)
        for value in self.values():
            f, gradient = mu.value_and_position_gradient(value)
            g, permuted = nu.value_and_position_gradient(value)
            torch.testing.assert_close(g, f, rtol=1e-13, atol=1e-14)
            torch.testing.assert_close(permuted, gradient[order], rtol=0, atol=1e-12)
            if "mass_gradient" in self.capabilities:
                rates, permuted = mu.mass_gradient(value), nu.mass_gradient(value)
                torch.testing.assert_close(permuted, rates[order], rtol=0, atol=1e-12)
