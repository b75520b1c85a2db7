"""Gaps of networks that are as sharp as was asked for, and those that overflow."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.testing.clouds import normal

F64 = torch.float64
PathBall, VariationBall = of.meanfield.PathBall, of.meanfield.VariationBall
Risk, TwoLayer = of.meanfield.Risk, of.meanfield.TwoLayer
fenchel_gap, gap_of = of.meanfield.fenchel_gap, of.optimality.optimality_gap


def in_path_ball(risk, mu, **options):
    return gap_of(risk, mu, PathBall(50.0, **options))


def in_euclidean_ball(risk, mu, **options):
    return gap_of(risk, mu, PathBall(50.0, "l2", **options))


def in_variation_ball(risk, mu, **options):
    side = 6 * torch.ones(risk.X.shape[1] + 1, dtype=F64)
    return gap_of(risk, mu, VariationBall(50.0, -side, side, **options))


def by_duality(risk, mu, **options):
    return fenchel_gap(risk, mu, 0.05, **options)


def by_euclidean_duality(risk, mu, **options):
    return fenchel_gap(risk, mu, 0.05, "l2", **options)


GAPS = [
    in_path_ball,
    in_euclidean_ball,
    in_variation_ball,
    by_duality,
    by_euclidean_duality,
]


def problem(seed, d=2, n=30):
    X, y = normal(n, d, seed=seed), normal(n, 1, seed=seed + 100)[:, 0]
    mu = of.Particles(normal(6, d + 2, seed=seed + 200))
    return Risk(TwoLayer("relu"), X, y), mu


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("sharpness", [0.3, 0.01, 1e-4])
def test_the_gap_is_as_sharp_as_asked_and_never_below_the_sharp_one(gap, sharpness):
    for seed in range(4):
        risk, mu = problem(seed)
        exact = gap(risk, mu, sharpness=0)
        assert exact.value - exact.found <= 1e-8 * exact.value
        rough = gap(risk, mu, sharpness=sharpness)
        assert rough.kind == "proved"
        # Both bracket the same number: the bound from above, what is found from below.
        assert rough.value >= exact.found
        assert rough.found <= exact.value
        assert rough.value - rough.found <= sharpness * rough.value * (1 + 1e-9)
        if rough.value - rough.found > 1e-6 * rough.value:
            assert "a smaller sharpness brings them closer" in rough.reason


@pytest.mark.parametrize("gap", GAPS)
def test_a_sharper_gap_bounds_more_pieces(gap, monkeypatch):
    from otflow.meanfield import cones, inner_boxes

    pieces = 0
    for owner in (cones, inner_boxes.UnitSums):
        bound = owner.bound

        def counted(*args, bound=bound):
            nonlocal pieces
            pieces += len(args[1])
            return bound(*args)

        monkeypatch.setattr(owner, "bound", counted)
    spent = []
    for sharpness in (0.3, 0.01, 0.0):
        pieces = 0
        gap(*problem(1, n=60), sharpness=sharpness)
        spent.append(pieces)
    assert spent[0] <= spent[1] < spent[2]


def test_the_default_is_one_percent():
    for gap in GAPS:
        risk, mu = problem(0)
        assert gap(risk, mu).value == gap(risk, mu, sharpness=0.01).value


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("sharpness", [1.0, -0.1, math.nan])
def test_a_sharpness_is_a_share_below_one(gap, sharpness):
    with pytest.raises(ValueError, match="sharpness"):
        gap(*problem(0), sharpness=sharpness)


# Numbers that overflow ----------------------------------------------------------------


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("target", [1e200, 1e308])
def test_a_risk_that_overflows_proves_nothing(gap, target):
    X = torch.tensor([[1.0], [-1.0]], dtype=F64)
    risk = Risk(TwoLayer("relu"), X, target * torch.ones(2, dtype=F64))
    zero = of.Particles(torch.tensor([[0.0, 1.0, 0.0]], dtype=F64))
    found = gap(risk, zero)
    assert found.kind == "none"
    assert found.value == found.found == math.inf
    assert "overflows float64, so that nothing is bounded; rescale" in found.reason
    rescaled = Risk(risk.network, X, risk.y / target)
    assert gap(rescaled, zero).kind == "proved"


@pytest.mark.parametrize("radius", [1e308, 1e306])
def test_a_radius_that_overflows_proves_nothing(radius):
    risk, mu = problem(0)
    side = 6 * torch.ones(3, dtype=F64)
    big = Risk(risk.network, risk.X, 1e4 * risk.y)
    for ball in (PathBall(radius), VariationBall(radius, -side, side)):
        found = gap_of(big, mu, ball)
        assert (found.kind, found.value) == ("none", math.inf)
        assert f"{radius:g}" in found.reason


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("d", [1, 2, 12])
@pytest.mark.parametrize("scale", [1e-120, 1e-100, 1e120])
def test_the_gap_scales_with_data_of_any_size(norm, d, scale):
    # f is linear in the data, so with neurons over `scale` nothing changes.
    X, y = normal(8, d, seed=3), normal(8, 1, seed=4)[:, 0]
    network = TwoLayer("relu", bias=False)
    theta = normal(4, d + 1, seed=5)
    one = gap_of(Risk(network, X, y), of.Particles(theta), PathBall(50.0, norm))
    theta = torch.cat([theta[:, :1], theta[:, 1:] / scale], 1)
    scaled = Risk(network, scale * X, y)
    two = gap_of(scaled, of.Particles(theta), PathBall(50.0 / scale, norm))
    assert two.kind == "proved"
    assert two.value == pytest.approx(one.value, rel=0.02)
    assert two.value >= one.found * (1 - 1e-12)
