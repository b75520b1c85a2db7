"""The falsifier finds violations that are there, and none that are not."""

from __future__ import annotations

import math
import time

import pytest
import torch

import otflow as of
from benchmarks import falsifier
from otflow.analysis import displacement_convexity, falsify
from otflow.testing import clouds

F64 = torch.float64


def line(n=8, dtype=F64):
    return of.Particles(clouds.normal(n, 1).to(dtype))


def plane(n=6):
    return of.Particles(clouds.normal(n, 2))


def cosine(modulus=None):
    return of.Potential(lambda x: (3 * x).cos().sum(-1), modulus=modulus)


MORE_NOT_CONVEX = {
    "a double well": lambda: (
        of.Potential(lambda x: 0.25 * (x.square() - 1).square().sum(-1)),
        plane(),
    ),
    "a concave kink": lambda: (
        of.Potential(lambda x: -(x - 0.3).abs().sum(-1)),
        line(),
    ),
    "minus an entropy": lambda: (-1 * of.Entropy(), falsifier.bell()),
}


def seen(found):
    """Return the witness, which is there."""
    assert found.witness is not None
    return found.witness


def verify(F, found):
    """Compare a witness with the slopes and the values of F, computed otherwise."""
    w = found.witness
    assert torch.equal(w.a.displacement_to(w.b), w.tangent)
    grow = float(
        w.a.inner(F.velocity(w.a) - F.velocity(w.b), w.tangent)
        / w.a.inner(w.tangent, w.tangent)
    )
    assert grow == pytest.approx(w.curvature, rel=1e-6)
    # Values alone show it too: most of all near the middle, or about a kink.
    middle = w.a.push(w.tangent, 0.5)
    reach = 1.5 if w.is_kink else 0.5
    sides = [float(F.value(middle.push(w.tangent, s * reach))) for s in (-1, 1)]
    assert float(F.value(middle)) > 0.5 * sum(sides)


@pytest.mark.parametrize("name", falsifier.NOT_CONVEX)
def test_a_violation_is_found_within_ten_seconds(name):
    F, like = falsifier.NOT_CONVEX[name]()
    found = falsifier.found(name)
    assert found.refuted
    assert found.stopped == "refuted"
    assert found.seconds < 10
    if not isinstance(like, of.Gaussian):  # its displacement is optimal, not by node
        verify(F, found)


@pytest.mark.parametrize("name", MORE_NOT_CONVEX)
def test_a_violation_is_found(name):
    F, like = MORE_NOT_CONVEX[name]()
    found = falsify(F, like, evaluations=1500, first=True)
    assert found.refuted
    verify(F, found)


@pytest.mark.slow
@pytest.mark.parametrize("name", falsifier.CONVEX)
def test_no_violation_is_found_where_there_is_none(name):
    F, like = falsifier.CONVEX[name]()
    found = falsify(F, like, seconds=60.0, evaluations=100)
    assert found.is_declared
    assert not found.refuted
    assert not found.refuted_on_geodesics
    assert "this proves nothing" in str(found)
    found.raise_if_refuted()


@pytest.mark.slow
@pytest.mark.parametrize("name", falsifier.CONVEX)
def test_no_violation_is_found_in_a_minute(name):
    found = falsifier.not_found(name)
    # A part of the time is kept for the confirmation of what may be found.
    assert found.stopped == "seconds"
    assert found.seconds > 40
    assert not found.refuted


@pytest.mark.slow
def test_the_least_curvature_of_a_cosine():
    found = falsify(cosine(-8.9), line(), evaluations=1500)
    assert seen(found).curvature == pytest.approx(-9, abs=1e-6)
    assert found.refuted_on_geodesics
    with pytest.raises(of.errors.InvalidFunctional, match=r"curvature -(9|8\.99999)"):
        found.raise_if_refuted()


@pytest.mark.slow
def test_a_repulsion_on_the_line_is_convex_only_where_atoms_do_not_cross():
    F = of.Interaction(lambda z: -z.norm(dim=-1))
    found = falsify(F, line(), evaluations=200)
    assert found.refuted
    assert not found.refuted_on_geodesics
    assert not seen(found).is_geodesic
    a, b = (mu.points[:, 0] for mu in (seen(found).a, seen(found).b))
    assert not torch.equal(a.argsort(), b.argsort())  # atoms cross
    assert seen(found).is_kink
    assert "McCann" in str(found)
    # Along the optimal coupling of the same measures F does not bend.
    report = displacement_convexity(F, *(of.Particles(x[:, None]) for x in (a, b)))
    assert not report.minimum + report.roundoff < 0


@pytest.mark.slow
def test_the_least_curvature_of_an_attraction_is_known():
    # For two atoms at z with velocities +-v the quotient is -z'' of W, largest at
    # |z|^2 = 3 sigma^2 along z: -2 exp(-3/2) / sigma^2.
    F, like = falsifier.NOT_CONVEX["an attraction of short range"]()
    found = falsify(F, like, evaluations=600)
    expected = -2 * math.exp(-1.5) / 0.25
    assert seen(found).curvature == pytest.approx(expected, abs=1e-6)
    assert not seen(found).is_kink
    assert found.refuted_on_geodesics


@pytest.mark.slow
def test_a_pair_is_matched_by_an_exact_solver():
    """Half of W2 squared bends down along geodesics in the plane, not on the line."""
    F, like = falsifier.NOT_CONVEX["half of W2 squared in the plane"]()
    found = falsify(F, like, evaluations=200)
    assert found.refuted_on_geodesics
    geodesic = found.on_geodesics
    assert geodesic is not None
    assert geodesic.is_kink
    a, b = geodesic.a.points, geodesic.b.points
    assert of.metrics.assignment(a, b).tolist() == list(range(len(a)))


@pytest.mark.slow
def test_the_answer_depends_on_the_seed_alone():
    F, like = falsifier.NOT_CONVEX["an attraction of short range"]()

    def curvature(seed):
        generator = torch.Generator().manual_seed(seed)
        found = falsify(F, like, evaluations=150, seconds=60.0, generator=generator)
        return seen(found).curvature

    once = curvature(1)  # it may load modules
    before = clouds.global_state()
    assert once == curvature(1) != curvature(2)
    assert clouds.global_state() == before


def test_budgets_end_the_search():
    F, like = falsifier.CONVEX["an interaction |z|^4"]()
    found = falsify(F, like, evaluations=37)
    assert (found.stopped, found.evaluations) == ("evaluations", 37)
    found = falsify(F, like, evaluations=10**9, seconds=0.5)
    assert found.stopped == "seconds"
    assert found.seconds < 5


class Slow(of.Functional):
    """A cosine that takes its time."""

    def __init__(self, pause):
        self.pause, self.values = pause, 0

    def value(self, mu):
        time.sleep(self.pause)
        self.values += 1
        return mu.expectation(lambda x: (3 * x).cos().sum(-1))


@pytest.mark.slow
@pytest.mark.parametrize("modulus", [0.0, -20.0])
@pytest.mark.parametrize(("pause", "limit"), [(0.001, 4.0), (0.05, 1.5)])
def test_the_time_of_a_search_holds_its_confirmation(pause, limit, modulus):
    F = Slow(pause)
    start = time.perf_counter()
    found = falsify(F, line(), modulus=modulus, evaluations=10**9, seconds=limit)
    assert time.perf_counter() - start < limit + 0.5
    assert found.stopped == "seconds"
    assert F.values > found.evaluations > 0
    # Time for a confirmation is kept if there can be enough.
    if pause < 0.01:
        assert seen(found).curvature == pytest.approx(-9, rel=1e-2)


def test_values_and_slopes_that_disagree_refute_nothing():
    # The slope of this potential misses half: its curvature 2 would look like 1.
    F = of.Potential(lambda x: (x.detach() * x).sum(-1), modulus=2.0)
    assert not falsify(F, line(), evaluations=200).refuted
    report = displacement_convexity(F, line(), of.Particles(line().points + 1))
    assert not report.violates_declared
    # The slope of relu at 0 is 0, though this potential is x.
    G = of.Potential(lambda x: (x.relu() - (-x).relu()).sum(-1), modulus=0.0)
    x = torch.ones(1, 1, dtype=F64)
    report = displacement_convexity(G, of.Particles(-x), of.Particles(x))
    assert report.minimum < -1
    assert not report.violates_declared


def test_values_alone_are_enough():
    class Hidden(of.Functional):
        def value(self, mu):
            f = mu.expectation(lambda x: (3 * x).cos().sum(-1))
            return torch.as_tensor(f.detach().item(), dtype=mu.dtype)

    found = falsify(Hidden(), line(), evaluations=400)
    assert found.refuted_on_geodesics
    a, b = of.Particles(-line().points), line()
    report = displacement_convexity(Hidden(), a, b)
    assert report.curvature.isnan().all()
    assert report.minimum == pytest.approx(
        displacement_convexity(cosine(), a, b).minimum, abs=0.5
    )


class Once(torch.autograd.Function):
    """A sum of cos(3x) whose derivative has no derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (3 * x).cos().sum(-1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return -3 * g[..., None] * (3 * x).sin()


def test_first_derivatives_alone_are_enough():
    F = of.Potential(Once.apply)
    a, b = of.Particles(-line().points), line()
    report = displacement_convexity(F, a, b)
    assert report.curvature.isnan().all()
    exact = displacement_convexity(cosine(), a, b)
    torch.testing.assert_close(report.between, exact.between, rtol=1e-12, atol=1e-12)
    assert falsify(F, line(), evaluations=300).refuted_on_geodesics


def test_a_search_follows_the_measure_that_it_is_like():
    grid = of.GridDensity.from_function(
        lambda x: (-8 * x.square().sum(-1)).exp(), -2, 2, 12, walls=True
    )
    found = falsify(-1 * of.Entropy(), grid, evaluations=60)
    assert found.refuted_on_geodesics
    assert isinstance(seen(found).a, of.Quantiles)
    weighted = of.Particles(
        clouds.normal(3, 2), torch.tensor([0.5, 0.3, 0.2], dtype=F64)
    )
    found = falsify(cosine(), weighted, evaluations=400)
    sizes = {len(mu) for mu in (seen(found).a, seen(found).b)}
    assert len(sizes) == 1
    assert found.refuted_on_geodesics
    single = falsify(cosine(-8.0), line(dtype=torch.float32), evaluations=200)
    assert seen(single).a.dtype == F64  # a float32 is one too
    assert single.refuted


def test_a_functional_that_stays_in_single_precision_is_judged_there():
    shift = torch.tensor(0.5)  # in float32, and hidden from `to`

    def V(x):
        assert x.dtype == torch.float32
        return 0.5 * (x - shift).square().sum(-1) + 1e3

    like = line(dtype=torch.float32)
    truth = of.Potential(V, modulus=1.0)
    found = falsify(truth, like, evaluations=200)
    assert not found.refuted
    assert seen(found).a.dtype == torch.float32
    assert falsify(of.Potential(V, modulus=1.1), like, evaluations=200).refuted


def test_what_a_measure_lacks_is_said_at_once():
    with pytest.raises(of.errors.Unsupported, match="a sum of Diracs is singular"):
        falsify(of.Entropy(), line())


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"evaluations": 0}, ValueError, "evaluations"),
        ({"seconds": 0}, ValueError, "seconds"),
        ({"modulus": "0"}, TypeError, "modulus"),
        ({"generator": 1.5}, TypeError, "generator"),
        ({"first": 1}, TypeError, "first"),
        ({"F": line()}, TypeError, "F must be"),
        ({"like": clouds.normal(3, 1)}, TypeError, "like must be"),
    ],
)
def test_bad_arguments(change, kind, message):
    arguments = {"F": cosine(), "like": line()} | change
    with pytest.raises(kind, match=message):
        falsify(**arguments)
