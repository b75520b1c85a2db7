"""Margins in F1 and F2: exact ones, brackets, and what training reaches."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch

import otflow as of
from otflow.analysis import f1_margin, f2_margin, soft_margin
from otflow.meanfield import Risk, TwoLayer, path_norm
from otflow.meanfield.norms import extreme_rays
from otflow.testing.clouds import normal

F64 = torch.float64
RELU = TwoLayer("relu")
X3 = torch.tensor([[-1.0], [0.0], [1.0]], dtype=F64)
Y3 = torch.tensor([1.0, -1.0, 1.0], dtype=F64)


def clusters(n, seed, d=15, k=3):
    """Squares of a k by k board in two coordinates, the others are noise.

    The labels of the squares are drawn at random, as by Chizat and Bach (2020).
    """
    stream = torch.Generator().manual_seed(1)
    labels = (torch.randint(0, 2, (k, k), generator=stream) * 2 - 1).double()
    stream = torch.Generator().manual_seed(seed)
    place = torch.randint(0, k, (n, 2), generator=stream)
    x = torch.rand(n, d, generator=stream, dtype=F64) - 0.5
    width = 1 / (3 * k - 1)
    x[:, :2] = (3 * place + 1) * width - 0.5 + 2 * width * x[:, :2]
    return x, labels[place[:, 0], place[:, 1]]


def neurons(m, d, seed=0):
    w = normal(m, d + 1, seed=seed)
    w = w / w.norm(dim=1, keepdim=True)
    a = torch.tensor([1.0, -1.0], dtype=F64).repeat(m // 2)[:, None]
    return of.Particles(torch.cat([a, w], 1))


def grown(F, mu, steps, *, scale=2.0, scheme=None):
    return of.flow(
        F,
        mu,
        scheme or of.ExplicitEuler(),
        dt=lambda k: scale / math.sqrt(k + 1),
        steps=steps,
        every=steps,
    ).final


def test_the_largest_margin_is_that_of_a_linear_program():
    """In l1 the best classifier of data on a line uses the rays, by minimax duality."""
    from scipy.optimize import linprog

    X = torch.linspace(0, 1, 9, dtype=F64)[:, None]
    y = torch.tensor([1.0, 1, -1, -1, 1, 1, -1, 1, 1], dtype=F64)
    v = extreme_rays(X)
    signed = y[:, None] * (X @ v[:, :-1].T + v[:, -1]).relu()
    A = torch.cat([signed, -signed], 1).numpy()
    n, K = A.shape
    # maximise g with A c >= g, c >= 0, sum c = 1
    import numpy as np

    found = linprog(
        np.r_[np.zeros(K), -1.0],
        A_ub=np.c_[-A, np.ones(n)],
        b_ub=np.zeros(n),
        A_eq=np.r_[np.ones(K), 0.0][None],
        b_eq=[1.0],
        bounds=[(0, None)] * K + [(None, None)],
    )
    exact = found.x[-1]
    c = torch.tensor(found.x[:-1])
    a = torch.cat([torch.ones(K // 2), -torch.ones(K // 2)]).double()
    theta = torch.cat([a[:, None], torch.cat([v, v])], 1)
    mu = of.Particles(theta, c.clamp_min(0), normalize=True)
    margin = f1_margin(RELU, mu, X, y, norm="l1")
    assert margin.value == pytest.approx(exact, rel=1e-8)
    assert margin.best.lower <= exact * (1 + 1e-9)
    assert exact <= margin.best.upper * (1 + 1e-9)
    assert margin.best.relative < 2e-3
    # Of any other network the bracket is as sharp: the game finds the neurons.
    best = f1_margin(RELU, neurons(4, 1), X, y, norm="l1").best
    assert best.lower <= exact * (1 + 1e-9)
    assert exact <= best.upper * (1 + 1e-9)
    assert best.relative < 2e-3
    assert margin.errors == 0


def test_a_margin_does_not_change_with_the_scale_of_the_neurons():
    mu = of.Particles(
        torch.tensor([[8.0, 1, 0], [8.0, -1, 0], [-6.0, 0, 0.5]], dtype=F64)
    )
    one = f1_margin(RELU, mu, X3, Y3)
    other = f1_margin(
        RELU, of.Particles(mu.points * torch.tensor([3.0, 2, 2]).double()), X3, Y3
    )
    assert one.value == pytest.approx(other.value, rel=1e-12)
    # The outputs are 5/3, -1, 5/3, and the path norm is (8 + 8 + 3) / 3.
    assert one.value == pytest.approx(3 / 19, rel=1e-12)
    assert one.norm == pytest.approx(19 / 3, rel=1e-12)


def test_the_soft_margin_is_the_logarithm_of_the_exponential_risk():
    X, y, mu = normal(20, 3), normal(20, 1, seed=1)[:, 0].sign(), neurons(10, 3)
    F = soft_margin(RELU, X, y)
    signed = y * RELU(mu, X)
    torch.testing.assert_close(F.value(mu), (-signed).exp().mean().log())
    assert -float(signed.min()) - math.log(20) <= float(F.value(mu))
    assert float(F.value(mu)) <= -float(signed.min())
    risk = Risk(RELU, X, y, loss=lambda f, z: (-z * f).exp())
    # One direction, another speed.
    torch.testing.assert_close(F.velocity(mu) * risk.value(mu), risk.velocity(mu))
    offset = TwoLayer("relu", offset=0.4)
    shifted = (-y * offset(mu, X)).exp().mean().log()
    torch.testing.assert_close(soft_margin(offset, X, y).value(mu), shifted)


@pytest.mark.slow
def test_training_both_layers_enlarges_the_margin_towards_the_best():
    F = soft_margin(RELU, X3, Y3)
    margins = [
        f1_margin(RELU, grown(F, neurons(200, 1), steps, scale=0.5), X3, Y3)
        for steps in (30, 300, 3000)
    ]
    values = [margin.value for margin in margins]
    top = margins[-1].best
    # By hand: p = (1, 3, 1) / 5, and neurons x, -x and the constant.
    assert top.lower <= 0.2 <= top.upper
    assert top.relative < 2e-3
    assert values[0] < values[1] < values[2] <= top.upper
    share = values[2] / 0.2
    assert share > 0.95


@pytest.mark.slow
def test_training_outer_weights_alone_enlarges_the_margin_in_f2():
    X, y = normal(12, 3, seed=1), normal(12, 1, seed=2)[:, 0].sign()
    F = soft_margin(RELU, X, y)
    scheme = of.schemes.Mobility(of.ExplicitEuler(), RELU.mobility(3, inner=0.0))
    ends = [
        grown(F, neurons(100, 3), steps, scale=100.0, scheme=scheme)
        for steps in (200, 2000)
    ]
    before, after = (f2_margin(RELU, nu, X, y) for nu in ends)
    assert before.value < after.value <= after.best.upper
    assert after.value > 0.85 * after.best.upper
    assert after.best.relative < 0.02
    # By Cauchy and Schwarz F2 has smaller balls: |(w, b)| = 1 here.
    f1 = f1_margin(RELU, ends[1], X, y)
    assert f1.value >= after.value
    assert float(path_norm(RELU, ends[1], "l2")) <= after.norm * (1 + 1e-12)


def test_the_largest_margin_in_f2_is_the_least_quadratic_form_of_weights():
    """Of three data: on a grid of all weights, of step 1/400."""
    X, y, mu = (
        normal(3, 2, seed=5),
        torch.tensor([1.0, -1, 1], dtype=F64),
        neurons(20, 2),
    )
    rho = of.Particles(mu.points[:, 1:])
    kernel = of.meanfield.rkhs_kernel(RELU, rho, X) * torch.outer(y, y)
    t = torch.linspace(0, 1, 401, dtype=F64)
    p = torch.cartesian_prod(t, t)
    p = p[p.sum(1) <= 1]
    p = torch.cat([p, 1 - p.sum(1, keepdim=True)], 1)
    exact = float(((p @ kernel) * p).sum(1).min().sqrt())
    best = f2_margin(RELU, mu, X, y).best
    # The grid is above the minimum by O(1/400^2).
    assert best.lower <= exact
    assert exact <= best.upper * 1.001
    assert best.relative < 0.01


def test_errors_are_counted_and_give_a_negative_margin():
    mu = neurons(10, 3)
    X = normal(12, 3)
    y = -RELU(mu, X).sign()
    first = f1_margin(RELU, mu, X, y, rounds=2)
    for margin in (first, f2_margin(RELU, mu, X, y)):
        assert margin.errors == 12
        assert margin.value < 0
        assert margin.value < 0 < margin.best.lower
        assert "12 errors" in repr(margin)


def test_float32_networks_have_margins():
    mu = of.Particles(neurons(10, 1).points.float())
    margin = f1_margin(RELU, mu, X3.float(), Y3.float())
    assert margin.best.upper >= margin.value
    assert f2_margin(RELU, mu, X3.float(), Y3.float()).norm == pytest.approx(
        1, rel=1e-6
    )


@pytest.mark.slow
def test_both_layers_generalise_better_than_the_outer_one_alone():
    """Clusters in 2 of 15 coordinates: features find them, fixed features do not."""
    X, y = clusters(256, seed=10)
    Z, z = clusters(4000, seed=11)
    mu, F = neurons(200, 15), soft_margin(RELU, X, y)
    freeze = of.schemes.Mobility(of.ExplicitEuler(), RELU.mobility(15, inner=0.0))
    both = grown(F, mu, 3000)
    outer = grown(F, mu, 3000, scale=20.0, scheme=freeze)
    errors = {
        name: [
            float((RELU(nu, x) * labels <= 0).double().mean())
            for x, labels in ((X, y), (Z, z))
        ]
        for name, nu in (("both", both), ("outer", outer))
    }
    train, test = errors["both"]
    fixed_train, fixed_test = errors["outer"]
    margin = f1_margin(RELU, both, X, y).value
    assert train == 0
    assert test < 0.12
    assert margin > 0.005
    assert fixed_train > 0.05
    assert fixed_test > 2 * test


# Hard data and scales ----------------------------------------------------------------


@pytest.mark.parametrize("margin", [f1_margin, f2_margin])
def test_a_margin_scales_with_the_data(margin):
    """Without a bias features are homogeneous, and so is the largest margin."""
    network = TwoLayer("relu", bias=False)
    X, y = normal(6, 2, seed=8), torch.tensor([1.0, 1, -1, 1, -1, 1], dtype=F64)
    mu = of.Particles(normal(30, 3, seed=9))
    one = margin(network, mu, X, y)
    assert one.best.relative < 2e-3
    for scale in (1e-150, 1e-12, 1e-7, 1e7, 1e120):
        other = margin(network, mu, scale * X, y)
        for end in ("lower", "upper"):
            ends = getattr(other.best, end) / scale, getattr(one.best, end)
            assert ends[0] == pytest.approx(ends[1], rel=2e-3)
        assert other.value / scale == pytest.approx(one.value, rel=1e-9)


def test_the_game_is_solved_at_every_scale_of_inputs_beside_a_bias():
    """The program's tolerances are absolute: numbers of its value's order are given."""
    X = torch.tensor([[-0.9], [-0.4], [0.1], [0.3], [0.8]], dtype=F64)
    y = torch.tensor([-1.0, 1, -1, 1, 1], dtype=F64)
    mu = neurons(10, 1)
    ends = {}
    for scale in (1e-8, 1e-5, 1e-2, 1e2, 1e5, 1e8):
        best = f1_margin(RELU, mu, scale * X, y, norm="l1").best
        assert best.relative < 2e-3
        ends[scale] = best.upper
    # Beside the bias small inputs are linear in their scale.
    assert ends[1e-8] / 1e-8 == pytest.approx(ends[1e-5] / 1e-5, rel=5e-3)


@pytest.mark.parametrize("gap", [0.0, 1e-12])
def test_one_input_with_both_labels_has_no_margin(gap):
    X = torch.cat([normal(6, 2, seed=1), normal(1, 2, seed=1) + gap])
    y = torch.cat([torch.ones(6), -torch.ones(1)]).to(F64)
    mu = neurons(30, 2)
    for margin in (f1_margin(RELU, mu, X, y), f2_margin(RELU, mu, X, y)):
        assert 0 <= margin.best.lower <= margin.best.upper < 1e-11 + 2 * gap


def test_one_class_has_the_margin_of_the_constant_neuron():
    X = 0.9 * normal(8, 2, seed=2).tanh()
    mu = neurons(10, 2)
    best = f1_margin(RELU, mu, X, torch.ones(8).to(F64), norm="l1").best
    # In l1 no neuron of norm 1 is above 1 in the cube, and the constant one is 1.
    hard = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]], dtype=F64)
    corner = f1_margin(RELU, mu, hard, torch.ones(4).to(F64), norm="l1").best
    assert corner.lower <= 1 <= corner.upper
    assert corner.relative < 2e-3
    assert best.lower <= 1
    assert best.upper >= 1 - 1e-12
    single = f1_margin(RELU, mu, X[:1], torch.ones(1).to(F64), norm="l2").best
    exact = float((X[0].square().sum() + 1).sqrt())
    assert single.lower - 1e-12 <= exact <= single.upper + 1e-12
    assert single.relative < 1e-9


@pytest.mark.parametrize(("n", "N"), [(12, 60), (60, 40), (1400, 120)])
def test_the_largest_margin_in_f2_is_closed(n, N):
    """More data than one problem of least squares holds, too: it is of some of them."""
    X = normal(n, 4, seed=3)
    mu = neurons(N, 4)
    for y in (X[:, 0].sign(), normal(n, 1, seed=4)[:, 0].sign()):
        best = f2_margin(RELU, mu, X, y).best
        assert best.relative < 2e-3 or best.upper < 1e-10
        # A linear program independent of it: is there a classifier at all?
        from scipy.optimize import linprog

        phi = (
            y[:, None]
            * (torch.cat([X, torch.ones_like(X[:, :1])], 1) @ mu.points[:, 1:].T).relu()
        ).numpy()
        there = linprog(
            [0.0] * N, A_ub=-phi, b_ub=[-1.0] * n, bounds=[(None, None)] * N
        )
        assert (there.status == 0) == (best.lower > 0)


def test_the_largest_margin_of_two_data_in_f2_is_a_closed_form():
    """The shortest vector of a segment, also where the kernel's squares underflow."""
    X, y = normal(2, 3, seed=6), torch.tensor([1.0, -1.0], dtype=F64)
    network, mu = TwoLayer("relu", bias=False), of.Particles(normal(9, 4, seed=7))
    phi = y[:, None] * (X @ mu.points[:, 1:].T).relu() / 3
    p, q = phi
    t = float(((q - p) @ q / (q - p).square().sum()).clamp(0, 1))
    exact = float((t * p + (1 - t) * q).norm())
    for scale in (1.0, 1e-160, 1e140):
        best = f2_margin(network, mu, scale * X, y).best
        assert best.lower <= exact * scale * (1 + 1e-12)
        assert exact * scale <= best.upper * (1 + 1e-12)
        assert best.relative < 1e-9


def test_the_norm_of_a_margin_of_float32_is_computed_in_float64():
    mu = of.Particles(neurons(64, 2).points.float() * 1.1)
    X, y = normal(12, 2).float(), normal(12, 1, seed=2)[:, 0].sign().float()
    wide = of.Particles(mu.points.double())
    for margin in (f1_margin, f2_margin):
        one = margin(RELU, mu, X, y)
        other = margin(RELU, wide, X.double(), y.double())
        assert one.norm == pytest.approx(other.norm, rel=1e-14)
        assert one.value == pytest.approx(other.value, rel=1e-12)
        assert one.best.upper == pytest.approx(other.best.upper, rel=1e-9)


def test_a_soft_margin_is_copied_and_pickled_as_other_functionals_are():
    X, y, mu = normal(20, 3), normal(20, 1, seed=1)[:, 0].sign(), neurons(10, 3)
    F = soft_margin(TwoLayer("relu", offset=0.2), X, y)
    for other in (copy.deepcopy(F), pickle.loads(pickle.dumps(F))):
        assert torch.equal(other.value(mu), F.value(mu))
        assert torch.equal(other.velocity(mu), F.velocity(mu))
