"""The permutation quotient: W2 of the empirical measures, and symmetries of neurons."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import otflow as of
from otflow.metrics import align, best_matching, quotient_distance, wasserstein2
from otflow.metrics.symmetries import Scale, Sign, Trivial, of_activation
from otflow.testing.clouds import normal


def shuffle(x: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))]


class TestRemark1:
    @pytest.mark.parametrize("n", [5, 20, 100, 300])
    def test_equals_w2_of_the_empirical_measures(self, n):
        """With the factor 1/sqrt(N), which the survey leaves out."""
        x, y = normal(n, 3), normal(n, 3, seed=1) + 1
        d = float(quotient_distance(x, y))
        w2 = float(wasserstein2(of.Particles(x), of.Particles(y)))
        assert d == pytest.approx(w2, rel=1e-12)
        raw = float(quotient_distance(x, y, normalize=False))
        assert raw / d == pytest.approx(math.sqrt(n), rel=1e-13)

    def test_brute_force(self):
        x, y = normal(7, 2), normal(7, 2, seed=1)
        costs = (x[:, None] - y).square().sum(-1)
        best = min(
            float(costs[torch.arange(7), list(p)].mean())
            for p in itertools.permutations(range(7))
        )
        assert float(quotient_distance(x, y)) == pytest.approx(best**0.5, rel=1e-12)

    def test_without_the_factor_it_diverges(self):
        """The un-normalised distance of two fixed laws grows like sqrt(N)."""
        raw = [
            float(
                quotient_distance(normal(n, 1), normal(n, 1, seed=1) + 2, normalize=0)
            )
            for n in (50, 200, 800)
        ]
        for small, large in itertools.pairwise(raw):
            assert large / small == pytest.approx(2.0, rel=0.15)

    @given(seed=st.integers(0, 1000), n=st.integers(1, 12))
    def test_permutation_invariance(self, seed, n):
        x, y = normal(n, 2, seed=seed), normal(n, 2, seed=seed + 1)
        d = float(quotient_distance(x, y))
        moved = float(quotient_distance(shuffle(x, seed), shuffle(y, seed + 7)))
        assert moved == pytest.approx(d, rel=1e-12)
        assert float(quotient_distance(x, shuffle(x, seed))) == 0.0

    def test_matching_and_aligned_copy(self):
        x = normal(30, 4)
        y = shuffle(x) + 1e-3 * normal(30, 4, seed=2)
        sigma = best_matching(x, y)
        assert torch.equal(align(x, y), y[sigma])
        assert float((align(x, y) - x).abs().max()) < 1e-2

    @pytest.mark.slow
    @pytest.mark.parametrize(("d", "trials"), [(1, 400), (2, 30)])
    def test_converges_to_the_distance_of_the_laws(self, d, trials):
        """N(0, I) against N(m, S), Bures in closed form, slope <= -0.4."""
        mean = torch.full((d,), 1.0, dtype=torch.float64)
        exact = math.sqrt(d * (1.0 + (2.0 - 1.0) ** 2))  # S = 4 I
        sizes, errors = [50, 100, 200, 400, 800], []
        for n in sizes:
            values = [
                float(
                    quotient_distance(
                        normal(n, d, seed=s), 2 * normal(n, d, seed=s + 500) + mean
                    )
                )
                for s in range(trials)
            ]
            errors.append(
                math.sqrt(sum((v - exact) ** 2 for v in values) / len(values))
            )
        slope = of.analysis.observed_order(sizes, errors)
        assert slope <= -0.4


class TestGroundMetric:
    def test_any_ground_metric(self):
        x, y = normal(6, 2), normal(6, 2, seed=1)

        def manhattan(a, b):
            return (a[:, None] - b).abs().sum(-1)

        best = min(
            float(manhattan(x, y)[torch.arange(6), list(p)].square().mean())
            for p in itertools.permutations(range(6))
        )
        value = quotient_distance(x, y, ground=manhattan)
        assert float(value) == pytest.approx(best**0.5, rel=1e-12)

    def test_euclidean_given_by_hand_agrees(self):
        x, y = normal(40, 3), normal(40, 3, seed=1)
        d = quotient_distance(x, y, ground=lambda a, b: (a[:, None] - b).norm(dim=-1))
        assert float(d) == pytest.approx(float(quotient_distance(x, y)), rel=1e-12)

    def test_wrong_shape(self):
        with pytest.raises(ValueError, match=r"must return distances \(3, 3\)"):
            quotient_distance(normal(3, 2), normal(3, 2), ground=lambda a, _: a)

    def test_negative(self):
        with pytest.raises(ValueError, match="negative or non-finite"):
            quotient_distance(
                normal(3, 2), normal(3, 2), ground=lambda a, b: -(a @ b.T).square()
            )


def same_function(theta, xi, activation, outputs=None):
    network = of.meanfield.TwoLayer(activation, outputs=outputs)
    X = normal(50, 3, seed=9)
    a, b = (network(of.Particles(t), X) for t in (theta, xi))
    return float((a - b).abs().max())


def log_norm(y):
    """Return the logarithms of the norms of rows, in float64."""
    largest = y.double().abs().amax(1)
    return largest.log() + (y.double() / largest[:, None]).norm(dim=1).log()


def direction(y):
    y = y / y.abs().amax(1, keepdim=True)
    return y / y.norm(dim=1, keepdim=True)


class TestSymmetries:
    @pytest.mark.parametrize("activation", ["tanh", "erf"])
    def test_sign(self, activation):
        theta = normal(20, 5)
        signs = torch.sign(normal(20, 1, seed=3))
        xi = shuffle(signs * theta)
        assert same_function(theta, xi, activation) < 1e-12
        symmetry = of_activation(activation)
        assert float(quotient_distance(theta, xi, symmetry=symmetry)) <= 1e-12
        assert float(quotient_distance(theta, xi)) > 0.5
        assert torch.allclose(align(theta, xi, symmetry=symmetry), theta)

    @pytest.mark.parametrize("outputs", [None, 3])
    def test_scale(self, outputs):
        m = outputs or 1
        theta = normal(20, m + 4)
        s = normal(20, 1, seed=3).exp()
        xi = shuffle(torch.cat([theta[:, :m] / s, theta[:, m:] * s], dim=1))
        assert same_function(theta, xi, "relu", outputs) < 1e-12
        symmetry = of_activation("relu", outputs=m)
        assert float(quotient_distance(theta, xi, symmetry=symmetry)) <= 1e-12
        assert float(quotient_distance(theta, xi)) > 0.1
        aligned = align(theta, xi, symmetry=symmetry)
        assert torch.allclose(aligned, symmetry.canonical(theta))
        assert same_function(theta, aligned, "relu", outputs) < 1e-12

    def test_scale_does_not_identify_different_networks(self):
        theta, xi = normal(20, 5), normal(20, 5, seed=1)
        assert float(quotient_distance(theta, xi, symmetry=Scale())) > 0.3
        assert float(quotient_distance(theta, -theta, symmetry=Scale())) > 0.3

    @pytest.mark.parametrize(
        ("dtype", "low", "high"),
        [(torch.float32, -44, 38), (torch.float64, -300, 300)],
    )
    @pytest.mark.parametrize("outputs", [1, 2])
    def test_scale_balances_weights_of_any_size(self, dtype, low, high, outputs):
        """Against logarithms: log |a| = log |w|, their sum kept, directions kept."""
        g = torch.Generator().manual_seed(outputs)

        def weights(count):
            powers = low + (high - low) * torch.rand(400, 1, generator=g).double()
            signs = torch.randn(400, count, generator=g, dtype=torch.float64)
            return (10.0**powers * signs / signs.abs().amax(1, keepdim=True)).to(dtype)

        a, w = weights(outputs), weights(3)
        theta = torch.cat([a, w], dim=1)
        balanced = Scale(outputs).canonical(theta)
        root = 0.5 * (log_norm(a) + log_norm(w))
        # A weight that is a subnormal number has few digits.
        tiny = math.log(torch.finfo(dtype).tiny / torch.finfo(dtype).eps)
        seen = root > tiny
        assert int(seen.sum()) > 300
        for part, before in zip(
            balanced.split([outputs, 3], dim=1), (a, w), strict=True
        ):
            assert torch.isfinite(part).all()
            found = log_norm(part[seen])
            torch.testing.assert_close(
                found, root[seen], rtol=0, atol=1e3 * torch.finfo(dtype).eps
            )
            torch.testing.assert_close(
                direction(part[seen]),
                direction(before[seen]),
                rtol=0,
                atol=8 * torch.finfo(dtype).eps,
            )

    def test_a_subnormal_output_weight_does_not_overflow(self):
        theta = torch.tensor([[1e-40, 1.0], [1.0, 2.0]])
        canonical = Scale().canonical(theta)
        torch.testing.assert_close(
            canonical[0], torch.full((2,), 1e-20), rtol=1e-4, atol=0
        )
        wide = Scale().canonical(torch.tensor([[1e-310, 1.0]], dtype=torch.float64))
        torch.testing.assert_close(
            wide, torch.full_like(wide, 1e-155), rtol=1e-10, atol=0
        )
        xi = torch.tensor([[1.0, 1.0], [0.5, 1.0]])
        # Balanced, (0, 0) and sqrt(2) (1, 1) against (1, 1) and sqrt(1/2) (1, 1).
        value = float(quotient_distance(theta, xi, symmetry=Scale()))
        expected = math.sqrt((2 * 0.5 + 2 * (2**0.5 - 1) ** 2) / 2)
        assert value == pytest.approx(expected, rel=1e-6)
        aligned = align(theta, theta.flip(0), symmetry=Scale())
        torch.testing.assert_close(aligned, canonical, rtol=1e-6, atol=0)

    def test_the_gradient_of_a_balanced_neuron_is_finite_at_any_size(self):
        # For one input, a' = sign(a) sqrt|a w|, of slope sqrt(|w / a|) / 2 in a.
        a, w = 10.0 ** torch.tensor([[-150.0, 3], [0, 0], [140, -140]]).double().T
        theta = torch.stack([a, w], dim=1).requires_grad_()
        (slope,) = torch.autograd.grad(Scale().canonical(theta)[:, 0].sum(), theta)
        torch.testing.assert_close(
            slope[:, 0], 0.5 * (w.sqrt() / a.sqrt()), rtol=1e-13, atol=0
        )
        torch.testing.assert_close(
            slope[:, 1], 0.5 * (a.sqrt() / w.sqrt()), rtol=1e-13, atol=0
        )

    def test_what_exceeds_the_dtype_balanced_is_refused(self):
        with pytest.raises(of.errors.NonFinite, match="balanced weight is inf"):
            Scale().canonical(torch.full((1, 9), 3e38))

    @pytest.mark.parametrize("symmetry", [None, Sign(), Scale()])
    @pytest.mark.parametrize(
        ("dtype", "units"),
        [
            (torch.float32, [-120, -60, 46]),
            (torch.float64, [-1000, -500, 490]),
        ],
    )
    def test_distance_and_matching_scale_with_the_unit(self, symmetry, dtype, units):
        x, y = normal(9, 3, dtype=dtype), normal(9, 3, seed=1, dtype=dtype)
        value = float(quotient_distance(x, y, symmetry=symmetry))
        sigma = best_matching(x, y, symmetry=symmetry)
        for power in units:
            unit = 2.0**power
            scaled = quotient_distance(unit * x, unit * y, symmetry=symmetry)
            assert float(scaled) == pytest.approx(unit * value, rel=1e-5, abs=0)
            assert torch.equal(
                best_matching(unit * x, unit * y, symmetry=symmetry), sigma
            )

    def test_dead_neurons_are_one(self):
        theta = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]], dtype=torch.float64)
        xi = torch.tensor([[0.0, -5.0, 1.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
        theta.requires_grad_()
        d = quotient_distance(theta, xi, symmetry=Scale())
        assert float(d.detach()) == 0.0
        (grad,) = torch.autograd.grad(d, theta)
        assert torch.isfinite(grad).all()

    def test_sign_brute_force(self):
        x, y = normal(5, 2), normal(5, 2, seed=1)
        best = min(
            float((x - torch.tensor(s).double()[:, None] * y[list(p)]).square().sum())
            for p in itertools.permutations(range(5))
            for s in itertools.product([1, -1], repeat=5)
        )
        value = float(quotient_distance(x, y, symmetry=Sign()))
        assert value == pytest.approx(math.sqrt(best / 5), rel=1e-12)

    def test_sigmoid_has_none(self):
        assert isinstance(of_activation("sigmoid"), Trivial)

    def test_unknown_activation_names_the_nearest(self):
        with pytest.raises(ValueError, match="did you mean 'relu'"):
            of_activation("rleu")

    def test_too_few_parameters(self):
        with pytest.raises(ValueError, match="check Scale"):
            Scale(outputs=3).canonical(normal(2, 3))


class TestAutograd:
    @pytest.mark.parametrize("symmetry", [None, Sign(), Scale()])
    def test_finite_differences(self, symmetry):
        y = normal(6, 3, seed=1)
        x = normal(6, 3).requires_grad_()
        value = quotient_distance(x, y, symmetry=symmetry)
        (grad,) = torch.autograd.grad(value, x)
        u, h = normal(6, 3, seed=4), 1e-6
        x = x.detach()
        up = quotient_distance(x + h * u, y, symmetry=symmetry)
        down = quotient_distance(x - h * u, y, symmetry=symmetry)
        expected = float((up - down) / (2 * h))
        assert float((grad * u).sum()) == pytest.approx(expected, rel=1e-6)

    def test_ground_metric(self):
        y = normal(6, 3, seed=1)

        def ground(a, b):
            return (a[:, None] - b).abs().sum(-1)

        x = normal(6, 3).requires_grad_()
        (grad,) = torch.autograd.grad(quotient_distance(x, y, ground=ground), x)
        u, h = normal(6, 3, seed=4), 1e-6
        up, down = (
            float(quotient_distance(x.detach() + s * h * u, y, ground=ground))
            for s in (1, -1)
        )
        expected = (up - down) / (2 * h)
        assert float((grad * u).sum()) == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize("symmetry", [None, Sign(), Scale()])
    def test_gradient_zero_at_distance_zero(self, symmetry):
        x = normal(6, 3).requires_grad_()
        value = quotient_distance(x, shuffle(x.detach()), symmetry=symmetry)
        (grad,) = torch.autograd.grad(value, x)
        assert float(value.detach()) == 0.0
        assert torch.equal(grad, torch.zeros_like(grad))

    def test_aligned_copy_carries_the_graph(self):
        x = normal(6, 3)
        y = shuffle(x).requires_grad_()
        align(x, y, symmetry=Sign())[0].sum().backward()
        assert y.grad is not None
        assert int(y.grad.ne(0).any(dim=1).sum()) == 1


class TestMetricOfOrbits:
    @pytest.mark.parametrize("symmetry", [None, Sign(), Scale()])
    @given(seed=st.integers(0, 1000), n=st.integers(1, 6))
    def test_laws(self, symmetry, seed, n):
        x, y, z = (normal(n, 3, seed=seed + k) for k in range(3))

        def d(a, b):
            return float(quotient_distance(a, b, symmetry=symmetry))

        assert d(x, y) == pytest.approx(d(y, x), rel=1e-12)
        assert d(x, z) <= d(x, y) + d(y, z) + 1e-12
        assert d(x, shuffle(x, seed)) == 0.0
        assert d(x, y) > 0


class TestRefusals:
    def test_particles_are_networks_too(self):
        x, y = normal(5, 2), normal(5, 2, seed=1)
        mu, nu = of.Particles(x), of.Particles(y)
        assert torch.equal(best_matching(mu, nu), best_matching(x, y))
        w = torch.tensor([0.1, 0.3, 0.2, 0.2, 0.2], dtype=torch.float64)
        for match in (best_matching, align):
            with pytest.raises(ValueError, match="at equal weights, got unequal wei"):
                match(mu, of.Particles(y, w))

    def test_dimensions(self):
        with pytest.raises(ValueError, match="theta lies in dimension 2 but xi in"):
            quotient_distance(normal(3, 2), normal(3, 3))

    def test_sizes(self):
        for match in (best_matching, align):
            with pytest.raises(ValueError, match="got 3 and 4 points"):
                match(normal(3, 2), normal(4, 2))
        with pytest.raises(ValueError, match="without the factor 1/N"):
            quotient_distance(normal(3, 2), normal(4, 2), normalize=False)

    def test_dtypes(self):
        with pytest.raises(TypeError, match="nothing is cast silently"):
            quotient_distance(normal(3, 2), normal(3, 2).float())

    def test_callers_tensors_are_left_alone(self):
        x, y = normal(8, 3), normal(8, 3, seed=1)
        before = x.clone(), y.clone()
        align(x, y, symmetry=Scale())
        assert torch.equal(x, before[0])
        assert torch.equal(y, before[1])
