"""Tests of the capabilities of a measure, and of the errors of those it lacks."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import pytest
import torch
from torch import Tensor

from otflow.errors import Unsupported
from otflow.kernels import Quadratic
from otflow.measures import Measure
from otflow.testing.clouds import normal

__all__ = ["CapabilityLaws", "interaction", "potential"]

CAPABILITIES = ("density", "mass_gradient", "diffuse", "reweight", "sample")


def potential(mu: Measure) -> Tensor:
    """Return a linear functional that is neither convex nor symmetric."""
    return mu.expectation(lambda x: (x.square().sum(-1) + x[..., 0]).sin())


def interaction(mu: Measure) -> Tensor:
    """Return a quadratic functional."""
    return mu.interaction(lambda z: (-z.square().sum(-1)).exp())


class CapabilityLaws:
    """Tests of the capabilities; `MeasureContract` adds those of all measures.

    Attributes
    ----------
    capabilities : frozenset of str
        Those that the measure has, of density, mass_gradient, diffuse, reweight and
        sample. The test of ``mass_gradient`` changes masses by ``reweight``.
    has_points : bool
        Whether the measure has points and weights; that of `Parts` has none.
    """

    capabilities: frozenset[str] = frozenset()
    has_points: bool = True

    def make(self, dtype: torch.dtype = torch.float64) -> Measure:
        """Return a measure of moderate size, the same at each call."""
        raise NotImplementedError

    def tangent(self, mu: Measure, seed: int = 0) -> Tensor:
        """Return a tangent at `mu` that depends on the seed alone."""
        shape = mu.tangent_shape
        return normal(prod(shape), seed=seed + 77, dtype=mu.dtype).reshape(shape)

    def values(self) -> list[Callable[[Measure], Tensor]]:
        """Return values to differentiate, the first of them linear in the measure."""
        return [potential, interaction]

    def call(self, mu: Measure, capability: str) -> object:
        """Call one capability with valid arguments."""
        generator = torch.Generator().manual_seed(3)
        calls: dict[str, Callable[[], object]] = {
            "density": mu.density,
            "mass_gradient": lambda: mu.mass_gradient(self.values()[0]),
            "diffuse": lambda: mu.diffuse(0.1, generator),
            "reweight": lambda: mu.reweight(normal(mu.n, seed=5, dtype=mu.dtype), 0.1),
            "sample": lambda: mu.sample(5, generator),
        }
        return calls[capability]()

    def refuses(self, capability: str) -> bool:
        """Return whether a capability is missing; check the error if it is."""
        if capability in self.capabilities:
            return False
        mu = self.make()
        cure = type(mu).cures.get(capability, "use ")  # the cure of the class, if any
        try:
            self.call(mu, capability)
        except Unsupported as error:
            text = str(error)
        else:
            pytest.fail(f"the measure has {capability!r}: add it to `capabilities`")
        assert text.startswith(f"{type(mu).__name__} has no ")
        assert cure in text
        return True

    @pytest.mark.parametrize("capability", CAPABILITIES)
    def test_a_capability_works_or_names_the_cure(self, capability: str) -> None:
        """Check that a capability works, or that its error names a cure."""
        assert self.capabilities <= set(CAPABILITIES)
        if not self.refuses(capability):
            assert self.call(self.make(), capability) is not None

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_density(self, dtype: torch.dtype) -> None:
        """Check shape, dtype and sign of the density at the points."""
        if self.refuses("density"):
            return
        mu = self.make(dtype)
        rho = mu.density()
        assert rho.shape == (mu.n,)
        assert rho.dtype == dtype
        assert bool((rho > 0).all())

    def test_transport_keeps_the_mass_where_cells_are_fixed(self) -> None:
        """Check that transport keeps the mass where cells are fixed."""
        mu = self.make()
        v = self.tangent(mu)
        if not mu.on_fixed_cells:
            with pytest.raises(Unsupported, match=r"use push$"):
                mu.transport(v, 0.01)
            return
        moved = mu.transport(v, 0.01)
        assert type(moved) is type(mu)
        if not self.has_points:
            return
        assert torch.equal(moved.points, mu.points)
        assert not torch.equal(moved.weights, mu.weights)
        assert float(moved.weights.sum()) == pytest.approx(1, abs=1e-12)
        assert bool((moved.weights >= 0).all())

    def test_diffuse(self) -> None:
        """Check that a diffusion depends on its generator alone and keeps the mass."""
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
            assert not first.fault()
            assert all(map(torch.equal, first.tensors(), again.tensors()))
            assert not all(map(torch.equal, first.tensors(), other.tensors()))
            still = mu.diffuse(0.0, torch.Generator())
            torch.testing.assert_close(still.tensors(), mu.tensors())

    def test_reweight(self) -> None:
        """Check the formula, the composition and the mass of a reweighting."""
        if self.refuses("reweight") or not self.has_points:
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

    def test_its_potential_is_an_expectation(self) -> None:
        """Check the potential of a smooth kernel at the points, and a constant one."""
        if not self.has_points:
            with pytest.raises(Unsupported, match="has no points"):
                self.make().convolve(Quadratic())
            return
        W = Quadratic()

        def mean(mu: Measure, x: Tensor) -> Tensor:
            return mu.expectation(lambda y: W(x - y))

        for dtype in (torch.float32, torch.float64):
            mu = self.make(dtype)
            found = mu.convolve(W)
            assert found.dtype == dtype
            expected = torch.stack([mean(mu, x) for x in mu.points])
            torch.testing.assert_close(found, expected)
            ones = mu.convolve(lambda z: 1.0 + 0.0 * z.sum(-1), mu.points[:3])
            torch.testing.assert_close(ones, torch.ones_like(ones))

    def test_its_entropy_is_an_internal_energy_if_it_has_a_density(self) -> None:
        """Check the entropy against the internal energy of the logarithm."""
        mu = self.make()
        if "density" in self.capabilities:
            torch.testing.assert_close(mu.entropy(), mu.internal(torch.log))
            return
        with pytest.raises(Unsupported, match="density"):
            mu.entropy()

    def test_a_mixture_has_mixed_expectations_or_is_refused(self) -> None:
        """Check a mixture with a moved copy, or that the error names a cure."""
        mu = self.make()
        nu = mu.push(self.tangent(mu), 0.01)
        try:
            mixed = mu.mix(nu, 0.25)
        except Unsupported:
            with pytest.raises(Unsupported, match=r"mixtures: \w+"):
                mu.mix(nu, 0.25)
            return
        assert type(mixed) is type(mu)
        assert not mixed.fault()
        value = self.values()[0]
        expected = 0.75 * value(mu) + 0.25 * value(nu)
        torch.testing.assert_close(value(mixed), expected)

    def test_sample(self) -> None:
        """Check shape, dtype, reproducibility and mean of a sample."""
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
