"""Displacement convexity along geodesics: equalities, bounds, and violations."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.analysis import displacement_convexity
from otflow.functionals import SquaredDistanceTo
from otflow.testing import clouds
from tests import exact
from tests.marks import slow
from tests.measures.intervals import Intervals

ENDS = {
    "equal weights": lambda seed: (
        clouds.uniform(seed=seed),
        clouds.uniform(seed=seed + 50),
    ),
    "one dimension": lambda seed: (
        clouds.uniform(6, 1, seed=seed),
        clouds.uniform(6, 1, seed=seed + 50),
    ),
    "weights": lambda seed: (
        clouds.weighted(5, seed=seed),
        clouds.weighted(8, seed=seed + 50),
    ),
    "empty atoms": lambda seed: (
        clouds.degenerate(seed=seed),
        clouds.uniform(4, seed=seed),
    ),
}


def ends(*, d=2, seed=0):
    return clouds.uniform(7, d, seed=seed), clouds.uniform(7, d, seed=seed + 50)


@pytest.mark.parametrize("kind", ENDS)
@pytest.mark.parametrize("lam", [2.0, -0.7])
def test_a_quadratic_potential_has_its_modulus_everywhere(kind, lam):
    a, b = ENDS[kind](0)
    report = displacement_convexity(exact.quadratic(lam, center=0.4), a, b)
    assert report.curvature.shape == report.times.shape == report.values.shape == (21,)
    assert report.between.shape == (20,)
    for found, slack in ((report.curvature, 1e-14), (report.between, 1e-12)):
        expected = torch.full_like(found, lam)
        torch.testing.assert_close(found, expected, rtol=0, atol=slack)
    assert float(report.shares.sum()) == pytest.approx(lam, rel=1e-12)
    assert report.w2 == pytest.approx(
        math.sqrt(float(of.metrics.wasserstein2_squared(a, b))), rel=1e-12
    )
    assert report.declared_modulus == lam
    assert not report.violates_declared


LAMBDA_CONVEX = {
    "|x|^4": (of.Potential(lambda x: x.square().sum(-1).square()), 0.0),
    "cos 3x": (of.Potential(lambda x: (3 * x).cos().sum(-1)), -9.0),
    "|z|^4": (of.Interaction(lambda z: z.square().sum(-1).square()), 0.0),
    "Gaussian kernel": (of.Interaction(of.kernels.Gaussian(0.8)), -1 / 0.64),
    "double well": (of.Potential(lambda x: 0.25 * (x**2 - 1).square().sum(-1)), -1.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAMBDA_CONVEX)
@pytest.mark.parametrize("kind", ENDS)
@pytest.mark.parametrize("times", [5, 21, torch.tensor([0.0, 0.1, 0.5, 0.55, 1.0])])
def test_no_curvature_is_below_the_modulus(kind, name, times):
    F, modulus = LAMBDA_CONVEX[name]
    for seed in range(2):
        a, b = ENDS[kind](seed)
        report = displacement_convexity(F, a, b, times=times)
        assert report.minimum >= modulus - report.roundoff
        # At an end of the path a mean is off in first order of its length.
        assert report.roundoff < 1e-5 * (1 + float(report.curvature.abs().max()))


def test_the_modulus_of_the_cosine_is_attained_at_its_top():
    F = of.Potential(lambda x: (3 * x).cos().sum(-1), modulus=-9.0)
    tops = torch.tensor([[0.0], [2 * math.pi / 3]], dtype=torch.float64)
    x = torch.tensor([[0.1], [0.3]], dtype=torch.float64)
    a, b = of.Particles(tops - x), of.Particles(tops + x)
    report = displacement_convexity(F, a, b)
    assert report.minimum == pytest.approx(-9, abs=1e-14)
    assert report.roundoff < 5e-8
    assert report.time == 0.5
    # Both atoms are at the top, and the parts are as the squares of their speeds.
    assert report.shares.tolist() == pytest.approx([-0.9, -8.1], abs=1e-6)
    assert not report.violates_declared


def test_a_false_modulus_is_refuted():
    x = torch.tensor([[0.5], [2.5]], dtype=torch.float64)
    F = of.Potential(lambda x: (3 * x).cos().sum(-1), modulus=-4.0)
    report = displacement_convexity(F, of.Particles(x - 2), of.Particles(x))
    assert report.minimum < -4.5
    assert report.violates_declared
    assert report.minimum <= float(report.curvature.min())
    # Each atom moves by 2, so the curvature at a time is the mean of -9 cos(3x).
    at = (3 * (x - 2 + 2 * report.time)).cos().mean()
    assert report.minimum == pytest.approx(-9 * float(at), abs=1e-3)


def truthful(kind, lam, centre, scale):
    """Return a functional with a true modulus, of one of 14 kinds."""
    unit = lambda x: (x - centre) / scale
    square = lambda x: (x - centre).square().sum(-1)
    potential, interaction = of.Potential, of.Interaction
    k = abs(lam) + 0.1
    return [
        lambda: potential(lambda x: 0.5 * lam * square(x), modulus=lam),
        lambda: potential(lambda x: 0.5 * lam * square(x) + 1e6, modulus=lam),
        lambda: potential(lambda x: (x - centre).norm(dim=-1), modulus=0.0),
        lambda: potential(lambda x: (square(x) + scale**2).sqrt(), modulus=0.0),
        lambda: potential(lambda x: (x - centre).sum(-1), modulus=0.0),
        lambda: interaction(lambda z: z.square().sum(-1).square(), modulus=0.0),
        lambda: interaction(lambda z: z.norm(dim=-1), modulus=0.0),
        # Terms that cancel: a parabola about the centre, written about the origin.
        lambda: potential(
            lambda x: 0.5 * lam * x.square().sum(-1) - lam * centre * x.sum(-1),
            modulus=lam,
        ),
        # The slope of relu at 0 is neither of both, though the sum is smooth.
        lambda: potential(
            lambda x: (unit(x).relu() - (-unit(x)).relu()).sum(-1), modulus=0.0
        ),
        lambda: potential(
            lambda x: scale**2 * (k**0.5 * unit(x)).cos().sum(-1), modulus=-k
        ),
        lambda: potential(
            lambda x: 0.25 * scale**2 * (unit(x).square() - 1).square().sum(-1),
            modulus=-1.0,
        ),
        lambda: scale**2 * interaction(of.kernels.Gaussian(scale)),
        lambda: interaction(of.kernels.Quadratic()),
        lambda: potential(
            lambda x: torch.logsumexp(torch.stack([unit(x)[:, 0], -x[:, 0]]), 0),
            modulus=0.0,
        ),
    ][kind]()


def true_moduli(seeds, dtype, offset):
    """Yield reports of true moduli, and the same ends with a parabola."""
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        scale, lam, share = (
            float(f) for f in torch.rand(3, generator=generator, dtype=torch.float64)
        )
        scale, lam = 10.0 ** (12 * scale - 6), 4 * lam - 2
        n, d = 1 + seed % 6, 1 + seed % 3
        centre = offset * scale * (0.5 + share)
        near = 1e-3 if seed % 4 == 0 else 1.0
        x, y = (clouds.normal(n, d, seed=seed + k) * scale for k in (0, 99))
        points = [x + centre, x + near * y + centre]
        weights = None
        if seed % 5 == 0:
            weights = clouds.normal(n, 1, seed=seed).exp()[:, 0].to(dtype)
        a, b = (
            of.Particles(z.to(dtype), weights, normalize=weights is not None)
            for z in points
        )
        if float(of.metrics.wasserstein2_squared(a, b)) == 0:
            continue  # they coincide in this dtype
        base = a.push(torch.ones_like(a.points), scale) if seed % 3 == 0 else None
        F = truthful(seed % 14, lam, centre, scale)
        report = displacement_convexity(F, a, b, times=3 + seed % 6, base=base)
        yield seed, report, (lam, centre, a, b)


@pytest.mark.slow
@pytest.mark.parametrize("offset", [1e6, *slow(0.0, 1e3, 1e8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_true_modulus_is_refuted(dtype, offset):
    tried = 0
    for seed, report, _ in true_moduli(range(28), dtype, offset):
        assert not report.violates_declared, seed
        tried += 1
    # Far away in float32 some ends coincide.
    assert tried > (6 if dtype == torch.float32 and offset > 1e3 else 24)


def test_round_off_that_cancels_in_a_sum_still_counts():
    # Here two atoms move against one another: the changes of their slopes add up to 0
    # in every pattern of equal moves, and the error of the curvature does not.
    ((_, report, _),) = true_moduli([343], torch.float32, 1e8)
    assert report.roundoff > 1e-8
    assert not report.violates_declared


@pytest.mark.slow
@pytest.mark.parametrize("offset", [0.0, 1e4, 1e8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_true_modulus_of_two_thousand_is_refuted(dtype, offset):
    wrong = [
        seed
        for seed, report, _ in true_moduli(range(350), dtype, offset)
        if report.violates_declared
    ]
    assert not wrong


@pytest.mark.slow
@pytest.mark.parametrize("offset", [0.0, *slow(1e3, 1e6, 1e8)])
@pytest.mark.parametrize("dtype", [torch.float32, *slow(torch.float64)])
def test_a_modulus_ten_percent_too_high_is_refuted(dtype, offset):
    tried = 0
    for seed, _, (lam, centre, a, b) in true_moduli(range(0, 280, 14), dtype, offset):
        wrong = lam + 0.1 * abs(lam)
        F = of.Potential(
            lambda x, c=centre, k=lam: 0.5 * k * (x - c).square().sum(-1) + 1e6,
            modulus=wrong,
        )
        assert displacement_convexity(F, a, b, times=5).violates_declared, seed
        tried += 1
    assert tried > (6 if dtype == torch.float32 and offset > 1e3 else 14)


@pytest.mark.slow
def test_a_kink_is_seen_between_times():
    x = torch.ones(1, 1, dtype=torch.float64)
    a, b = of.Particles(-x), of.Particles(x)
    valley = of.Potential(lambda x: (x - 0.23).abs().sum(-1), modulus=0.0)
    report = displacement_convexity(valley, a, b)
    # The slope jumps by 2 on 1/20 of a path of length 2.
    expected = torch.zeros(20, dtype=torch.float64)
    expected[12] = 20.0
    torch.testing.assert_close(report.between, expected, rtol=0, atol=1e-12)
    assert report.curvature.tolist() == [0.0] * 21
    assert report.minimum == pytest.approx(0.0, abs=1e-14)
    assert not report.violates_declared
    hill = of.Potential(lambda x: -(x - 0.23).abs().sum(-1), modulus=-1e4)
    report = displacement_convexity(hill, a, b)
    assert report.violates_declared
    assert report.time == pytest.approx(0.615, abs=1e-4)


@pytest.mark.slow
def test_half_the_squared_distance_is_convex_along_its_generalised_geodesics():
    slack = []
    for seed in range(6):
        a, b, base = (clouds.uniform(6, 2, seed=seed + k) for k in (0, 50, 90))
        F = SquaredDistanceTo(base)
        report = displacement_convexity(F, a, b, base=base)
        # All plans from the base stay optimal on the way: equality at every time.
        assert report.minimum == pytest.approx(1.0, abs=1e-9)
        assert float(report.curvature.max()) == pytest.approx(1.0, abs=1e-9)
        ends = of.metrics.generalized_geodesic(base, a, b, [0.0, 1.0])
        apart = ends[0].norm(ends[0].displacement_to(ends[1]))
        assert report.w2 == pytest.approx(float(apart), rel=1e-12)
        slack.append(displacement_convexity(F, a, b).minimum)
    assert min(slack) < 0  # but not along geodesics


@pytest.mark.slow
def test_gaussians_along_both_kinds_of_geodesics():
    def gaussian(*deviations, turn=0.0):
        c, s = math.cos(turn), math.sin(turn)
        R = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
        D = torch.tensor(deviations, dtype=torch.float64)
        return of.Gaussian(D, R @ torch.diag(D**2) @ R.T)

    a, b, base = gaussian(1.0, 2.0), gaussian(3.0, 0.5, turn=1.0), gaussian(2.0, 0.3)
    for F, lam in (
        (of.Entropy(), 0.0),
        (of.PowerEntropy(0.5), 0.0),
        (exact.quadratic(1.5, center=0.3), 1.5),
    ):
        for through in (None, base):
            report = displacement_convexity(F, a, b, base=through)
            assert report.minimum >= lam - 1e-10
            assert not report.violates_declared
            # At an end of the path a mean is off in first order of its length.
        assert report.roundoff < 1e-5 * (1 + float(report.curvature.abs().max()))
    # Deviations s(t) = 1 + 2t: F = const - log s, and W2 = 2.
    one, three = (
        of.Gaussian(torch.zeros(1, dtype=torch.float64), s * torch.eye(1).double())
        for s in (1.0, 9.0)
    )
    report = displacement_convexity(of.Entropy(), one, three)
    expected = 1 / (1 + 2 * report.times).square()
    torch.testing.assert_close(report.curvature, expected, rtol=1e-12, atol=0)


def test_on_the_line_a_base_changes_nothing():
    a, b = line("quantiles", torch.float64)
    base = of.Quantiles(torch.arange(3.0, dtype=torch.float64))
    F = of.Entropy()
    plain, through = (displacement_convexity(F, a, b, base=m) for m in (None, base))
    torch.testing.assert_close(through.curvature, plain.curvature, rtol=0, atol=0)


@pytest.mark.parametrize("offset", [0.0, 10.0, 1e3])
def test_false_moduli_are_refuted_at_an_offset_too(offset):
    x = torch.tensor([[0.5], [2.5]], dtype=torch.float64)
    F = of.Potential(lambda x: (3 * (x - offset)).cos().sum(-1), modulus=-4.0)
    a, b = of.Particles(offset - x), of.Particles(offset + x)
    assert displacement_convexity(F, a, b).violates_declared


def test_the_curvature_is_that_of_the_energy_along_the_geodesic():
    a, b = ends()
    F = of.Interaction(of.kernels.Gaussian(1.0))
    report = displacement_convexity(F, a, b, times=11)
    y = b.points[of.metrics.assignment(a.points, b.points)]
    path = [
        float(F.value(of.Particles((1 - t) * a.points + t * y)))
        for t in torch.linspace(0, 1, 11, dtype=torch.float64)
    ]
    assert report.values.tolist() == pytest.approx(path, rel=1e-12)
    # A second difference is a mean of the curvature over both intervals.
    means = torch.tensor(path).diff().diff() / 0.01 / report.w2**2
    near = [report.curvature[k - 1 : k + 2] for k in range(1, 10)]
    for mean, around in zip(means.tolist(), near, strict=True):
        assert around.min() - 1e-3 < mean < around.max() + 1e-3
    assert float(report.between.mean()) == pytest.approx(float(means.mean()), abs=0.02)


def test_the_entropy_of_a_dilation():
    # The cells of a dilated density grow by s(t) = 1 + t (r - 1): F = const - log s.
    edges = torch.linspace(-1, 1, 9, dtype=torch.float64)
    a, b = Intervals(edges), Intervals(3 * edges)
    report = displacement_convexity(of.Entropy(), a, b)
    s = 1 + 2 * torch.linspace(0, 1, 21, dtype=torch.float64)
    torch.testing.assert_close(
        report.curvature, 4 / s.square() / report.w2**2, rtol=1e-12, atol=0
    )
    torch.testing.assert_close(
        report.between, (-2 / s).diff() / 0.05 / report.w2**2, rtol=1e-10, atol=0
    )
    assert report.minimum > 0
    assert report.time == 1.0
    assert report.declared_modulus == 0
    assert not report.violates_declared


def test_the_loss_of_a_network_is_not_displacement_convex():
    # f(x) = a tanh(w x + b), y = tanh x: delta_(1,1,0) and delta_(-1,-1,0) are both
    # exact, and so is every mixture of them; half way along the geodesic f is zero.
    x = torch.linspace(-2, 2, 41, dtype=torch.float64)

    def features(theta):
        a, w, b = theta.T
        return a[:, None] * (w[:, None] * x + b[:, None]).tanh()

    loss = of.OfExpectation(lambda f: 0.5 * (f - x.tanh()).square().mean(), features)
    theta = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)
    report = displacement_convexity(
        loss, of.Particles(theta), of.Particles(-theta), times=5
    )
    assert report.values.tolist() == pytest.approx(
        [0, 0.1156, 0.2640, 0.1156, 0], abs=1e-4
    )
    # f_t = u tanh(u x) with u = 1 - 2t, and W2^2 = 8: at u = 0 the second derivative of
    # the loss is -8 E[x tanh x] / 8.
    assert report.minimum == pytest.approx(-float((x * x.tanh()).mean()), rel=1e-12)
    assert report.time == 0.5
    assert report.declared_modulus is None
    assert not report.violates_declared
    both = torch.cat([theta, -theta])
    for t in (0.0, 0.3, 0.5, 1.0):
        mixture = of.Particles(both, torch.tensor([1 - t, t], dtype=torch.float64))
        assert float(loss.value(mixture)) < 1e-30


def test_e_the_script_of_the_design():
    a, b = ends(d=2)
    report = of.analysis.displacement_convexity(
        of.Potential(lambda x: 0.25 * (x.square() - 1).square().sum(-1)), a, b
    )
    assert -1 <= report.minimum <= float(report.curvature[0])
    assert 0 <= report.time <= 1
    assert report.declared_modulus is None
    assert not report.violates_declared


def test_equal_ends_have_no_geodesic():
    a = clouds.uniform()
    with pytest.raises(ValueError, match=r"^a and b coincide: there is no geodesic"):
        displacement_convexity(exact.quadratic(), a, a)


def test_a_functional_that_is_infinite_on_the_way_is_named():
    x = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    with pytest.raises(
        of.errors.NonFinite, match=r"is not finite at time 0.*atoms that meet"
    ):
        displacement_convexity(
            of.Interaction(of.kernels.Log()), of.Particles(0 * x), of.Particles(x)
        )


@pytest.mark.parametrize(
    ("times", "kind"),
    [
        (2, ValueError),
        (3.0, TypeError),
        (torch.tensor([0.0, 0.5]), ValueError),
        (torch.tensor([0.0, 0.5, 0.5, 1.0]), ValueError),
        (torch.tensor([-0.1, 0.5, 1.0]), ValueError),
        (torch.tensor([0.0, 0.5, 1.1]), ValueError),
        (torch.tensor([0, 1, 2]), TypeError),
    ],
)
def test_times_are_increasing_numbers_between_0_and_1(times, kind):
    a, b = ends()
    with pytest.raises(kind, match=r"^times must be"):
        displacement_convexity(exact.quadratic(), a, b, times=times)


def test_nothing_is_left_behind():
    a, b = ends()
    before = clouds.state(a), clouds.state(b), clouds.global_state()
    report = displacement_convexity(exact.quadratic(), a, b)
    clouds.assert_untouched(a, before[0])
    clouds.assert_untouched(b, before[1])
    assert clouds.global_state() == before[2]
    clouds.assert_plain(report.times, report.curvature, report.values)


def hills(shape, dtype=torch.float64):
    return [
        of.GridDensity.from_function(
            lambda x, c=c: (-((x - c) ** 2).sum(-1) / 0.02).exp() + 1e-3,
            0,
            1,
            shape,
            walls=True,
            dtype=dtype,
        )
        for c in (0.4, 0.44)
    ]


def test_in_the_plane_cells_as_atoms_have_a_geodesic():
    a, b = hills((9, 9))
    F = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
    with pytest.raises(of.errors.Unsupported, match="remapped to the cells"):
        displacement_convexity(F, a, b)
    atoms = [of.Particles(mu.points, mu.weights) for mu in (a, b)]
    report = displacement_convexity(F, *atoms)
    assert report.minimum == pytest.approx(1.0, abs=report.roundoff)
    assert not report.violates_declared


def line(name, dtype):
    """Return two densities on the line of other levels."""
    edges = torch.tensor([0.0, 0.2, 0.25, 0.9, 1.3], dtype=dtype)
    masses = torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=dtype)
    quantiles = of.Quantiles(edges, masses, normalize=True)
    fine, coarse = hills(40, dtype)[0], hills(23, dtype)[1]
    return {
        "grids": (fine, coarse),
        "a grid and quantiles": (fine, quantiles),
        "quantiles": (quantiles, of.Quantiles(2 * edges.square() - 1)),
    }[name]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["grids", "a grid and quantiles", "quantiles"])
def test_densities_on_the_line_follow_their_geodesic(name, dtype):
    """A parabola has its modulus, the entropy and an attraction are convex."""
    a, b = line(name, dtype)
    F = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
    report = displacement_convexity(F, a, b, times=9)
    slack = 1e-8 if dtype == torch.float64 else 2e-2
    assert report.minimum == pytest.approx(1.0, abs=slack)
    # The trapezoidal rule of `inner` on few cells is above the exact integral.
    assert 1.0 - 1e-6 < report.w2 / float(of.metrics.wasserstein2(a, b)) < 1.1
    assert not report.violates_declared
    for G in (of.Entropy(), of.Interaction(lambda z: z.square().sum(-1).square())):
        assert displacement_convexity(G, a, b, times=9).minimum > -slack
    middle = a.expectation(lambda x: x)
    hill = of.Potential(lambda x: (5 * (x - middle)).cos().sum(-1), modulus=-1.0)
    assert displacement_convexity(hill, a, b).violates_declared


def test_edges_that_coincide_in_single_precision_are_parted():
    n = 200
    a = of.Quantiles(torch.linspace(1000, 1001, n + 1))
    w = torch.full((n,), 1.0 / n) * (1 + 1e-6 * clouds.normal(n, 1)[:, 0].float())
    b = of.Quantiles(torch.linspace(1000, 1002, n + 1), w, normalize=True)
    F = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
    report = displacement_convexity(F, a, b, times=3)
    assert not report.violates_declared
    exact = float(of.metrics.wasserstein2(a, b))
    assert report.w2 == pytest.approx(exact, rel=1e-2)
