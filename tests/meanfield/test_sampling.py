"""Networks drawn from a measure: their error and path norm, against exact laws."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import linprog

import otflow as of
from otflow.analysis import observed_order
from otflow.errors import NonFinite
from otflow.meanfield import TwoLayer, barron_sample, path_norm
from otflow.meanfield.norms import extreme_rays
from otflow.testing.clouds import normal

F64 = torch.float64
RELU = TwoLayer("relu")
LINE = torch.linspace(0, 1, 41, dtype=F64)[:, None]
SIZES = [10, 40, 160, 640]


def uniform(n, d, seed=0):
    stream = torch.Generator().manual_seed(seed)
    return torch.rand(n, d, generator=stream, dtype=F64)


def weighted(N=300, d=2, *, outputs=1, bias=True):
    weights = normal(N, 1, seed=5)[:, 0].exp()
    p = outputs + d + int(bias)
    return of.Particles(normal(N, p, seed=1), weights, normalize=True)


def trials(mu, X, N, count, **options):
    """Return independent draws, as one stream gives them, without a second try."""
    stream = torch.Generator().manual_seed(N)
    options = {"tries": 1, "generator": stream, **options}
    return [barron_sample(RELU, mu, N, X, **options) for _ in range(count)]


@pytest.mark.parametrize("d", [2, 100])
def test_theorem_2_1_holds_and_the_rate_does_not_depend_on_the_dimension(d):
    """E|f - f_N|^2 <= B^2/N, so both bounds hold with probability 2/3 or more."""
    mu, X, count = of.Particles(normal(1000, d + 2)), uniform(200, d), 50
    found = {N: trials(mu, X, N, count) for N in SIZES}
    success = min(
        sum(sample.applies for sample in samples) / count for samples in found.values()
    )
    errors = [sum(s.error for s in found[N]) / count for N in SIZES]
    slope = observed_order(SIZES, errors)
    B = float(path_norm(RELU, mu))
    worst = max(N * error / B**2 for N, error in zip(SIZES, errors, strict=True))
    assert success >= 2 / 3
    assert abs(slope + 1) < 0.1
    assert worst <= 1
    for samples in found.values():
        for sample in samples:
            assert abs(sample.norm - B) < 1e-12 * B
            assert abs(float(path_norm(RELU, sample.measure)) - B) < 1e-12 * B
            assert sample.path_bound == 2 * sample.norm


@pytest.mark.parametrize("d", [2, 100])
def test_plain_draws_succeed_with_a_sixth_and_have_the_error_of_monte_carlo(d):
    """The mean square error is the variance of a neuron over N, exactly."""
    mu, X, count, N = of.Particles(normal(1000, d + 2)), uniform(200, d), 100, 40
    samples = trials(mu, X, N, count, by="mass")
    success = sum(sample.applies for sample in samples) / count
    error = sum(sample.error for sample in samples) / count
    features = RELU.sigma(RELU.encode(X), mu.points)
    variance = features.var(1, correction=0).mean()
    ratio = error * N / float(variance)
    second = features.square().mean(1).mean()
    B2 = samples[0].norm
    assert success >= 1 / 6
    assert float(second) <= B2**2
    assert float(path_norm(RELU, mu)) <= B2
    # A mean over draws of a sum of squares: its relative deviation is below sqrt(2).
    assert abs(ratio - 1) < 4 * 2**0.5 / count**0.5


def test_the_error_of_draws_by_path_norm_is_the_variance_of_equal_neurons():
    mu, X, count, N = weighted(), uniform(50, 2), 200, 20
    samples = trials(mu, X, N, count)
    sizes = mu.points[:, 0].abs() * mu.points[:, 1:].abs().sum(1)
    B = float(mu.weights @ sizes)
    features = RELU.sigma(RELU.encode(X), mu.points) * (B / sizes)
    shares = mu.weights * sizes / B
    mean = features @ shares
    torch.testing.assert_close(mean, RELU(mu, X), rtol=1e-12, atol=1e-12)
    variance = float(((features - mean[:, None]).square() @ shares).mean())
    error = sum(sample.error for sample in samples) / count
    assert abs(error * N / variance - 1) < 4 * 2**0.5 / count**0.5
    assert variance <= B**2


def test_what_a_sample_tells_is_true_of_its_measure():
    mu, X = weighted(), uniform(30, 2)
    sample = barron_sample(RELU, mu, 15, X)
    nu = sample.measure
    assert nu.n == 15
    assert nu.is_uniform
    error = (RELU(nu, X) - RELU(mu, X)).square().mean()
    assert abs(float(error) - sample.error) < 1e-14
    assert abs(sample.path_norm - float(path_norm(RELU, nu))) < 1e-12
    assert sample.error_bound == pytest.approx(3 * sample.norm**2 / 15, rel=1e-14)
    assert sample.applies
    assert sample.error <= sample.error_bound
    assert "both bounds hold" in repr(sample)


def test_several_draws_are_made_until_both_bounds_hold():
    """Two neurons of masses 1/8 and 7/8: one draw has a path norm of 8 B or of 0."""
    theta = torch.tensor([[8.0, 1.0, 0.0], [0.0, 1.0, 0.0]], dtype=F64)
    weights = torch.tensor([1 / 8, 7 / 8], dtype=F64)
    mu, X = of.Particles(theta, weights), torch.ones(1, 1, dtype=F64)
    # B_2 = 8 / sqrt(8), f = 1: the draw 0 has error 1, the draw 8 has 49 > 24.
    kinds = {}
    for seed in range(40):
        sample = barron_sample(RELU, mu, 1, X, by="mass", tries=1, generator=seed)
        kinds[sample.applies] = sample
    assert set(kinds) == {True, False}
    missed = kinds[False]
    assert missed.path_norm > missed.path_bound
    assert "no draw of 1 satisfies both bounds" in repr(missed)
    assert all(
        barron_sample(RELU, mu, 1, X, by="mass", tries=40, generator=seed).applies
        for seed in range(5)
    )


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("outputs", [None, 3])
def test_the_bound_holds_in_both_norms_and_for_several_outputs(norm, outputs):
    network = TwoLayer("relu", outputs=outputs, offset=None)
    mu = weighted(outputs=outputs or 1)
    X = uniform(60, 2) / 2**0.5
    stream = torch.Generator().manual_seed(0)
    errors = []
    for _ in range(60):
        sample = barron_sample(network, mu, 25, X, norm=norm, tries=1, generator=stream)
        errors.append(sample.error)
        path = float(path_norm(network, sample.measure, norm))
        assert path == pytest.approx(sample.norm, rel=1e-12)
    assert sum(errors) / 60 <= sample.error_bound / 3


def test_the_edge_of_the_ball_is_in_it_and_float32_works():
    x = torch.tensor([[1.0, 0.3], [-1.0, 1.0]])
    mu = of.Particles(weighted().points.float())
    sample = barron_sample(RELU, mu, 10, x)
    assert sample.measure.dtype == torch.float32
    assert sample.applies


def test_a_measure_of_norm_zero_gives_zero_neurons():
    theta = torch.tensor([[0.0, 1.0, 1.0], [2.0, 0.0, 0.0]], dtype=F64)
    sample = barron_sample(RELU, of.Particles(theta), 5, uniform(4, 1))
    assert (sample.norm, sample.error, sample.path_norm) == (0, 0, 0)
    assert sample.applies


def test_neurons_without_a_path_norm_are_not_drawn():
    theta = torch.tensor([[0.0, 1.0, 1.0], [2.0, 1.0, 0.0]], dtype=F64)
    sample = barron_sample(RELU, of.Particles(theta), 50, uniform(4, 1))
    assert bool((sample.measure.points[:, 0] == 1.0).all())
    assert sample.error < 1e-28


def test_the_draw_follows_its_seed():
    mu, X = weighted(), uniform(9, 2)
    one, same, other = (
        barron_sample(RELU, mu, 7, X, generator=seed).measure.points
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_unit_of_another_slope_and_no_bias():
    class Leaky(of.meanfield.Unit):
        name = "leaky"
        homogeneous = True

        def __call__(self, z):
            return torch.where(z > 0, 3 * z, 0.5 * z)

        def slope(self, z, value, out):
            return out.copy_(torch.where(z > 0, 3.0, 0.5))

    network = TwoLayer(Leaky(), bias=False)
    mu = weighted(bias=False)
    sample = barron_sample(network, mu, 30, uniform(40, 2))
    assert sample.error_bound == pytest.approx(27 * sample.norm**2 / 30, rel=1e-12)
    assert sample.applies


def least_norm(f):
    """Return the least path norm with values f on a line, a linear program."""
    v = extreme_rays(LINE)
    features = (LINE @ v[:, :-1].T + v[:, -1]).relu()
    signed = torch.cat([features, -features], 1).numpy()
    return linprog(torch.ones(2 * len(v)).numpy(), A_eq=signed, b_eq=f.numpy()).fun


def test_theorem_2_2_a_limit_of_bounded_networks_has_no_larger_norm():
    """Networks of the path norm 5 tend to |x - 1/2|, of the norm 3 < 5.

    A network that says the same with less has not to be found: two neurons cancel.
    """
    theta = torch.tensor(
        [[3.0, 1.0, -0.5], [3.0, -1.0, 0.5], [6.0, 0.5, 0.0], [-3.0, 1.0, 0.0]],
        dtype=F64,
    )
    weights = torch.tensor([1.0, 1.0, 1.0, 1.0], dtype=F64) / 4
    mu = of.Particles(theta, weights)
    f = RELU(mu, LINE)
    torch.testing.assert_close(f, 0.75 * (LINE[:, 0] - 0.5).abs())
    B, sizes, gaps, least = float(path_norm(RELU, mu)), [10, 100, 1000, 10000], [], []
    for N in sizes:
        stream = torch.Generator().manual_seed(N)
        nets = [
            barron_sample(RELU, mu, N, LINE, generator=stream).measure for _ in range(8)
        ]
        outputs = [RELU(nu, LINE) for nu in nets]
        paths = [float(path_norm(RELU, nu)) for nu in nets]
        assert max(paths) <= B * (1 + 1e-12)
        gaps.append(sum(float((g - f).abs().max()) for g in outputs) / 8)
        least.append(least_norm(outputs[0]))
        # What is true of the limit is true of each network.
        assert least[-1] <= paths[0] * (1 + 1e-8)
    limit = least_norm(f)
    rate = observed_order(sizes, gaps)
    assert abs(rate + 0.5) < 0.1
    assert limit == pytest.approx(0.75 * 3, rel=1e-7)
    assert limit <= B
    # The norm is lower semicontinuous, and theirs tend to it here.
    assert limit <= least[-1] + 0.05


@pytest.mark.parametrize("by", ["path norm", "mass"])
def test_a_norm_whose_square_is_no_number_is_an_error(by):
    """Neither an error of 0 nor an infinite bound is called a bound that holds."""
    mu, X = weighted(50, 1), uniform(20, 1)
    one = barron_sample(RELU, mu, 10, X, by=by)
    for scale in (1e-160, 1e-100, 1e100, 1e140):
        other = of.Particles(scale * mu.points, mu.weights)
        with pytest.raises(NonFinite, match="divide the outer weights by that"):
            barron_sample(RELU, other, 10, X, by=by)
    for scale in (1e-30, 1e30):
        other = of.Particles(scale * mu.points, mu.weights)
        found = barron_sample(RELU, other, 10, X, by=by)
        assert found.norm / scale**2 == pytest.approx(one.norm, rel=1e-12)
        assert found.error / scale**4 == pytest.approx(one.error, rel=1e-9)
    narrow = of.Particles((1e-12 * mu.points).float(), mu.weights.float())
    with pytest.raises(NonFinite, match=r"numbers of torch\.float32"):
        barron_sample(RELU, narrow, 10, X.float(), by=by)
