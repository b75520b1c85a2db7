"""Kernels of features: Barron space as a union of their spaces, and alignment."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise
from operator import mul

import pytest
import torch
from scipy.optimize import linprog

import otflow as of
from otflow.analysis import observed_order
from otflow.meanfield import (
    TwoLayer,
    best_law,
    feature_law,
    kernel_alignment,
    nngp_kernel,
    path_norm,
    rkhs_kernel,
    rkhs_norm,
)
from otflow.meanfield.norms import extreme_rays
from otflow.testing.clouds import normal

F64 = torch.float64
RELU = TwoLayer("relu")
LINE = torch.linspace(0, 1, 101, dtype=F64)[:, None]
KINK = (LINE[:, 0] - 0.5).abs()
# |x - 1/2| = relu(x - 1/2) + relu(1/2 - x), of path norm 3.
CHEAPEST = of.Particles(torch.tensor([[2.0, 1.0, -0.5], [2.0, -1.0, 0.5]], dtype=F64))


def test_every_kernel_has_at_least_the_barron_norm_and_the_best_has_it():
    """The norm of a mixture with the share s of the best law is at most 3/sqrt(s)."""
    best = feature_law(RELU, CHEAPEST)
    uniform = of.Particles(extreme_rays(LINE))
    least = rkhs_norm(RELU, best, LINE, KINK).value
    flat = rkhs_norm(RELU, uniform, LINE, KINK).value
    half, tenth = (
        rkhs_norm(RELU, best.mix(uniform, t), LINE, KINK).value for t in (0.5, 0.1)
    )
    assert abs(float(path_norm(RELU, CHEAPEST)) - 3) < 1e-12
    assert abs(least - 3) < 1e-9
    assert least < tenth <= 3 / math.sqrt(0.9) + 1e-9
    assert tenth < half <= 3 / math.sqrt(0.5) + 1e-9
    assert half < flat
    for seed in range(20):
        law = of.Particles(
            uniform.points, normal(uniform.n, 1, seed=seed)[:, 0].exp(), normalize=True
        )
        assert rkhs_norm(RELU, law, LINE, KINK).value >= 3 - 1e-9


def test_the_norm_is_that_of_a_network_which_interpolates():
    rho = of.Particles(extreme_rays(LINE))
    found = rkhs_norm(RELU, rho, LINE, KINK)
    a = found.measure.points[:, 0]
    assert found.value == pytest.approx(float((rho.weights @ a.square()).sqrt()))
    torch.testing.assert_close(RELU(found.measure, LINE), KINK, rtol=0, atol=1e-9)
    assert found.residual < 1e-9
    # Cauchy and Schwarz: its path norm lies between the Barron norm and this norm.
    path = float(path_norm(RELU, found.measure))
    assert 3 - 1e-9 <= path <= found.value
    # The law of its neurons has no larger norm: so alternating steps descend.
    again = rkhs_norm(RELU, feature_law(RELU, found.measure), LINE, KINK).value
    assert 3 - 1e-9 <= again <= path + 1e-9


def test_the_norm_is_the_quadratic_form_of_the_inverse_kernel():
    rho = of.Particles(normal(60, 4, seed=1), normal(60, 1)[:, 0].exp(), normalize=True)
    X, f = normal(12, 3, seed=2), normal(12, 1, seed=3)[:, 0]
    kernel = rkhs_kernel(RELU, rho, X)
    exact = float((f @ torch.linalg.solve(kernel, f)).sqrt())
    assert rkhs_norm(RELU, rho, X, f).value == pytest.approx(exact, rel=1e-9)


def test_the_best_law_of_given_directions_is_the_share_of_the_path_norm():
    """Its norm is the path norm where the directions are free: no law has less."""
    v = normal(6, 4, seed=4)
    mu = of.Particles(torch.cat([normal(6, 1, seed=5), v], 1))
    X = normal(40, 3, seed=6)
    f = RELU(mu, X)
    for norm in ("l1", "l2"):
        law = feature_law(RELU, mu, norm)
        size = float(path_norm(RELU, mu, norm))
        assert rkhs_norm(RELU, law, X, f).value == pytest.approx(size, rel=1e-8)
        for seed in range(5):
            other = law.with_free_atoms(
                law.points, normal(6, 1, seed=seed)[:, 0].softmax(0)
            )
            assert rkhs_norm(RELU, other, X, f).value > size


def program(f, v):
    """Return the least path norm with values f over directions v, and a network."""
    features = (LINE @ v[:, :-1].T + v[:, -1]).relu()
    signed = torch.cat([features, -features], 1).numpy()
    answer = linprog(torch.ones(2 * len(v)).numpy(), A_eq=signed, b_eq=f.numpy())
    c = torch.from_numpy(answer.x[: len(v)] - answer.x[len(v) :])
    return answer.fun, of.Particles(torch.cat([(len(v) * c)[:, None], v], 1))


@pytest.mark.parametrize("name", ["sine", "kink", "square"])
def test_the_least_norm_over_all_kernels_is_that_of_a_linear_program(name):
    """|f|_B is the infimum over the laws, and the law of the program attains it."""
    x = LINE[:, 0]
    f = {"sine": (6 * x).sin(), "kink": KINK, "square": x.square()}[name]
    v = extreme_rays(LINE)
    exact, network = program(f, v)
    law = feature_law(RELU, network)
    attained = rkhs_norm(RELU, law, LINE, f).value
    assert attained == pytest.approx(exact, rel=1e-7)
    best = best_law(RELU, of.Particles(v), LINE, f)
    assert best.converged
    assert best.bracket.lower * (1 - 1e-9) <= exact <= best.bracket.upper * (1 + 1e-9)
    assert best.bracket.relative <= 1e-6
    for one, other in pairwise(best.norms):
        assert other <= one * (1 + 1e-9)
    assert best.kernel.value == pytest.approx(exact, rel=1e-5)
    torch.testing.assert_close(
        RELU(best.kernel.measure, LINE), f, rtol=0, atol=1e-7 * exact
    )


def test_the_coefficients_of_the_kernel_give_the_network_and_the_norm():
    rho = of.Particles(normal(40, 4, seed=1))
    X, Z, f = normal(9, 3, seed=2), normal(5, 3, seed=4), normal(9, 1, seed=3)[:, 0]
    found = rkhs_norm(RELU, rho, X, f)
    there = rkhs_kernel(RELU, rho, Z, X) @ found.dual
    torch.testing.assert_close(there, RELU(found.measure, Z), rtol=1e-8, atol=1e-8)
    assert float(found.dual @ f) == pytest.approx(found.value**2, rel=1e-9)


def test_too_few_laws_leave_a_wide_bracket_that_is_told():
    f = (6 * LINE[:, 0]).sin()
    exact, _ = program(f, extreme_rays(LINE))
    short = best_law(RELU, of.Particles(extreme_rays(LINE)), LINE, f, steps=1)
    assert not short.converged
    assert "stopped after 1 laws" in repr(short)
    assert short.bracket.lower <= exact <= short.bracket.upper


def test_the_kernel_of_many_normal_features_is_that_of_the_gaussian_process():
    X = normal(5, 3, seed=7)
    exact = nngp_kernel("relu", X)
    errors, sizes = [], [100, 1000, 10000]
    for N in sizes:
        gaps = [
            rkhs_kernel(
                TwoLayer("relu", bias=False), of.Particles(normal(N, 3, seed=s)), X
            )
            - exact
            for s in range(20)
        ]
        errors.append(float(torch.stack(gaps).square().mean().sqrt()))
    assert abs(observed_order(sizes, errors) + 0.5) < 0.1


def test_the_kernel_of_two_sets_is_a_block_and_keeps_graphs():
    rho = of.Particles(normal(9, 3, seed=1))
    X, Z = normal(4, 2, seed=2), normal(3, 2, seed=3)
    block = rkhs_kernel(RELU, rho, X, Z)
    whole = rkhs_kernel(RELU, rho, torch.cat([X, Z]))
    torch.testing.assert_close(block, whole[:4, 4:])
    points = rho.points.clone().requires_grad_()
    rkhs_kernel(RELU, of.Particles(points), X).sum().backward()
    assert points.grad is not None
    assert float(points.grad.abs().sum()) > 0


def test_alignment_is_that_of_the_definition():
    K = normal(8, 8, seed=1)
    K, y = K @ K.T, normal(8, 1, seed=2)[:, 0]
    H = torch.eye(8, dtype=F64) - 1 / 8
    centred, target = H @ K @ H, H @ torch.outer(y, y) @ H
    exact = (centred * target).sum() / centred.norm() / target.norm()
    torch.testing.assert_close(kernel_alignment(K, y), exact)
    torch.testing.assert_close(kernel_alignment(3 * K + 5, y - 7), exact)
    assert float(kernel_alignment(torch.outer(y, y), y)) == pytest.approx(1, abs=1e-12)
    assert 0 <= float(exact) <= 1


def aligned(scaling, N, seed=0):
    """Return the alignments of the features before and after training."""
    stream = torch.Generator().manual_seed(seed)

    def sphere(n, d=10):
        x = torch.randn(n, d, generator=stream, dtype=F64)
        return x / x.norm(dim=1, keepdim=True)

    X, teacher = sphere(100), sphere(2)
    y = (X @ teacher[0]).relu() - (X @ teacher[1]).relu()
    w = sphere(N // 2)
    a = torch.randint(0, 2, (N // 2, 1), generator=stream).double() * 2 - 1
    mu = of.Particles(torch.cat([torch.cat([a, w], 1), torch.cat([-a, w], 1)]))
    network = TwoLayer("relu", bias=False, scaling=scaling)
    risk = of.meanfield.Risk(network, X, y)
    dt = 10.0 if scaling == "mean-field" else 10.0 / N
    end = of.flow(risk, mu, of.ExplicitEuler(), dt=dt, steps=300, every=300).final
    values = []
    for nu in (mu, end):
        rho = of.Particles(nu.points[:, 1:])
        values.append(float(kernel_alignment(rkhs_kernel(network, rho, X), y)))
    return values


@pytest.mark.slow
def test_the_kernel_turns_to_the_targets_in_the_mean_field_alone():
    """Under "ntk" neurons move by O(N^-1/2), the kernel by no more.

    With centred outer weights the moves of first order cancel in the mean over neurons,
    so that the change of the kernel falls like 1/N.
    """
    sizes, changes = [100, 400, 1600], {}
    for scaling in ("mean-field", "ntk"):
        pairs = [[aligned(scaling, N, seed) for seed in range(3)] for N in sizes]
        changes[scaling] = [sum(b - a for a, b in some) / 3 for some in pairs]
    moving = observed_order(sizes, changes["mean-field"])
    fixed = observed_order(sizes, changes["ntk"])
    assert abs(moving) < 0.1
    assert -1.15 < fixed < -0.5
    assert min(changes["mean-field"]) > 0.4
    assert changes["ntk"][-1] < 0.02


# Scales, round-off and hard data -----------------------------------------------------


def test_norms_scale_with_the_values():
    X, f, rho = normal(6, 2), normal(6, 1, seed=1)[:, 0], of.Particles(normal(60, 3))
    one = rkhs_norm(RELU, rho, X, f)
    best = best_law(RELU, rho, X, f, tolerance=1e-2)
    for scale in (1e-200, 1e-160, 1e-40, 1e40, 1e120):
        found = rkhs_norm(RELU, rho, X, scale * f)
        assert found.value / scale == pytest.approx(one.value, rel=1e-10)
        torch.testing.assert_close(found.dual / scale, one.dual)
        law = best_law(RELU, rho, X, scale * f, tolerance=1e-2)
        assert law.bracket.lower / scale == pytest.approx(best.bracket.lower, rel=1e-6)
        assert law.bracket.upper / scale == pytest.approx(best.bracket.upper, rel=1e-6)


def test_an_alignment_does_not_change_with_the_scales_of_kernel_and_targets():
    X, y = normal(9, 2), normal(9, 1, seed=1)[:, 0]
    K = rkhs_kernel(RELU, of.Particles(normal(30, 3, seed=2)), X)
    n, one = len(y), torch.ones(9, 9, dtype=F64)
    H = torch.eye(n, dtype=F64) - one / n
    target = torch.outer(H @ y, H @ y)
    exact = (H @ K @ H * target).sum() / (H @ K @ H).norm() / target.trace()
    for scale in (1.0, 1e-300, 1e-160, 1e140):
        torch.testing.assert_close(kernel_alignment(scale * K, y), exact)
        torch.testing.assert_close(kernel_alignment(K, scale * y), exact)
    torch.testing.assert_close(kernel_alignment(K, 1e300 * y), exact)


def test_a_law_of_features_does_not_change_with_the_scale_of_neurons():
    """Neither the product of a small outer and a small inner weight is lost."""
    points = normal(20, 4, seed=3)
    one = feature_law(RELU, of.Particles(points))
    for scale in (1e-200, 1e-160, 1e140):
        other = feature_law(RELU, of.Particles(scale * points))
        torch.testing.assert_close(other.weights, one.weights)
        torch.testing.assert_close(other.points, one.points)
    small = of.Particles((1e-30 * points).float())
    torch.testing.assert_close(feature_law(RELU, small).weights, one.weights.float())


def test_the_residual_is_that_of_the_network_that_is_returned():
    X, f, rho = normal(6, 2), normal(6, 1, seed=1)[:, 0], of.Particles(normal(64, 3))
    narrow = of.Particles(rho.points.float())
    for law, x, values in ((rho, X, f), (narrow, X.float(), f.float())):
        found = rkhs_norm(RELU, law, x, values)
        wide = of.Particles(found.measure.points.double())
        errors = RELU(wide, x.double()) - values.double()
        assert found.residual == pytest.approx(
            float(errors.abs().max()), rel=1e-6, abs=1e-14
        )


@pytest.mark.parametrize("gap", [1e-3, 1e-8, 1e-11, 1e-12])
def test_the_dual_bound_is_true_of_data_that_nearly_coincide(gap):
    """Its coefficients are huge and cancel: it is checked in rational numbers."""
    X = torch.cat([normal(5, 1, seed=4).tanh(), normal(1, 1, seed=4).tanh() + gap])
    f = (4 * X[:, 0]).sin()
    rho = of.Particles(extreme_rays(X))
    first = best_law(RELU, rho, X, f, steps=1)
    rational = [[Fraction(float(t)) for t in row] for row in torch.cat([X, X**0], 1)]
    dual = [Fraction(float(t)) for t in first.kernel.dual]
    v = rho.points / rho.points.abs().sum(1, keepdim=True)
    heights = []
    for row in v.tolist():
        w, b = map(Fraction, row)
        parts = [w * z[0] + b * z[1] for z in rational]
        up = (max(t, Fraction(0)) for t in parts)
        heights.append(abs(sum(map(mul, dual, up), Fraction(0))))
    values = [Fraction(float(t)) for t in f]
    exact = float(sum(map(mul, dual, values), Fraction(0)) / max(heights))
    # The directions are of norm 1 up to a unit in the last place.
    assert first.bracket.lower <= exact * (1 + 1e-12)
    assert first.bracket.lower > 0.9 * exact
    best = best_law(RELU, rho, X, f, steps=8)
    assert first.bracket.lower <= best.bracket.lower <= best.bracket.upper
    assert best.kernel.value == min(best.norms)
