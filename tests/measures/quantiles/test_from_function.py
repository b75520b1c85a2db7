"""Quantiles of a density: SciPy's distributions, what is narrow, rough, or too fine."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import stats

import otflow as of

# The cells are few, or wide in the tails: what is tried here does not need them narrow.
pytestmark = pytest.mark.filterwarnings("ignore::otflow.errors.CellWarning")

F64, F32 = torch.float64, torch.float32
KINDS = {
    "normal": (stats.norm, lambda t: torch.exp(-t * t / 2) / math.sqrt(2 * math.pi)),
    "Cauchy": (stats.cauchy, lambda t: 1 / (math.pi * (1 + t * t))),
    "block": (stats.uniform, lambda t: ((t >= 0) & (t <= 1)).to(t)),
    "kink": (stats.laplace, lambda t: 0.5 * torch.exp(-t.abs())),
}


def mixture(seed, narrowest):
    """Return a random mixture: its density, distribution, half-width, and centres."""
    draw = np.random.default_rng(seed)
    count, half = draw.integers(1, 4), 10 ** draw.uniform(-3, 6)
    centres = np.float32(draw.uniform(-0.9, 0.9, count) * half).astype(float)
    widths = half * 10 ** draw.uniform(math.log10(narrowest), 0, count)
    shares = draw.dirichlet(np.ones(count))
    kinds = [list(KINDS.values())[i] for i in draw.integers(0, len(KINDS), count)]
    parts = list(zip(kinds, centres, widths, shares, strict=True))

    def density(x):
        y = x[:, 0]
        return sum(p / s * f((y - c) / s) for (_, f), c, s, p in parts)

    def distribution(x):
        return sum(p * law(c, s).cdf(x) for (law, _), c, s, p in parts)

    return density, distribution, half, tuple(centres)


@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize("seed", range(24))
def test_levels_are_those_of_scipy(seed, dtype):
    narrowest = 1e-6 if dtype == F64 else 1e-3
    density, distribution, half, centres = mixture(seed, narrowest)
    n = 3 + seed
    mu = of.Quantiles.from_function(
        density, -half, half, n, around=centres, dtype=dtype
    )
    assert mu.edges.dtype == dtype
    q, eps = mu.edges.double().numpy()[1:-1], torch.finfo(dtype).eps
    low, high = distribution(-half), distribution(half)
    # A quantile, and the centre of a part, are right to their last places.
    place = 2 * eps * half
    below = (distribution(q - place) - low) / (high - low)
    above = (distribution(q + place) - low) / (high - low)
    level = np.arange(1, n) / n
    promised = eps ** (2 / 3)
    assert (below <= level + promised).all()
    assert (above >= level - promised).all()


@pytest.mark.parametrize("length", [1e1, 1e4, 1e6, 1e9])
def test_a_cauchy_law_on_a_long_interval(length):
    mu = of.Quantiles.from_function(
        lambda x: 1 / (1 + x[:, 0] ** 2), -length, length, 8, dtype=F64
    )
    level = np.arange(1, 8) / 8
    exact = np.tan((2 * level - 1) * math.atan(length))
    assert np.abs(mu.edges.numpy()[1:-1] - exact).max() < 1e-13


@pytest.mark.parametrize("width", [1e-2, 1e-4, 1e-6, 1e-9])
def test_a_bell_with_half_of_the_mass(width):
    place = 0.1234567

    def density(x):
        y = x[:, 0]
        bell = torch.exp(-0.5 * ((y - place) / width) ** 2) / width
        return torch.exp(-0.5 * y**2) + bell

    mu = of.Quantiles.from_function(density, -9.0, 9.0, 8, around=(place,), dtype=F64)
    q = mu.edges.numpy()
    level = 0.5 * stats.norm.cdf(q) + 0.5 * stats.norm.cdf((q - place) / width)
    assert np.abs(level - np.arange(9) / 8).max() < 1e-15 / width + 1e-13


@pytest.mark.parametrize("place", np.random.default_rng(3).uniform(-1, 1, 12))
def test_a_peak_that_the_docstring_promises_to_meet(place):
    width = 2 * 1e-4
    mu = of.Quantiles.from_function(
        lambda x: 1 + 1e4 * torch.exp(-0.5 * ((x[:, 0] - place) / width) ** 2),
        -1.0,
        1.0,
        16,
        dtype=F64,
    )
    bell = 1e4 * width * math.sqrt(2 * math.pi)

    def mass(x):
        return x + 1 + bell * stats.norm.cdf((x - place) / width)

    q = mu.edges.numpy()
    assert np.abs(mass(q) / mass(1.0) - np.arange(17) / 16).max() < 1e-12


def test_a_smooth_density_costs_what_is_said():
    calls = []

    def density(x):
        calls.append(len(x))
        return torch.exp(-0.5 * x[:, 0] ** 2)

    of.Quantiles.from_function(density, -9.0, 9.0, 100, dtype=F64)
    assert sum(calls) < 70_000 + 540 * 100
    assert len(calls) < 400


@pytest.mark.parametrize("at", [0.0, 0.3, 0.5])
def test_jumps_are_seen_wherever_they_are(at):
    # Near an end, or the middle, of a panel a jump is between the same nodes of rules.
    for shift in (0.0, 3e-6, 2.4e-4, 2.46e-4, 4.85e-4):
        jump = at + shift
        mu = of.Quantiles.from_function(
            lambda x, jump=jump: 1 + 9.0 * (x[:, 0] >= jump), 0.0, 1.0, 4, dtype=F64
        )
        q = mu.edges.numpy()
        mass = q + 9 * np.maximum(0, q - jump)
        assert np.abs(mass / mass[-1] - np.arange(5) / 4).max() < 1e-12


def rough(x):
    return 1 + torch.sin(1e9 * x[:, 0]).sign()


def test_what_is_too_rough_is_refused_and_its_cures_work():
    with pytest.raises(of.errors.NotConverged, match=r"from_quantile") as error:
        of.Quantiles.from_function(rough, 0.0, 1.0, 4, dtype=F64)
    assert error.value.info["error"] > error.value.info["tolerance"]
    short = of.Quantiles.from_function(rough, 0.0, 1e-7, 4, dtype=F64)
    assert float(short.edges[2]) == pytest.approx(0.5e-7, rel=0.05)
    of.Quantiles.from_function(lambda x: 1 + torch.sin(x[:, 0]), 0.0, 1.0, 4)
    of.Quantiles.from_quantile(lambda u: u, 4)
    of.Quantiles.from_samples(torch.rand(99, 1), 4)


def spike(x):
    return torch.exp(-(((x[:, 0] - 0.3) / 1e-9) ** 2))


def test_what_is_missed_altogether_is_refused_and_its_cures_work():
    with pytest.raises(ValueError, match=r"f is 0 at all .* around="):
        of.Quantiles.from_function(spike, 0.0, 1.0, 4, dtype=F64)
    named = of.Quantiles.from_function(spike, 0.0, 1.0, 4, around=(0.3,), dtype=F64)
    close = of.Quantiles.from_function(spike, 0.3 - 1e-8, 0.3 + 1e-8, 4, dtype=F64)
    assert torch.allclose(named.edges[1:-1], close.edges[1:-1], rtol=0, atol=1e-15)
    exact = stats.norm(0.3, 1e-9 / math.sqrt(2)).ppf([0.25, 0.5, 0.75])
    assert np.abs(close.edges.numpy()[1:-1] - exact).max() < 1e-15


def test_cells_below_the_last_place_are_refused_and_the_cures_work():
    def bell(x, place=0.3, width=2e-7):
        return torch.exp(-0.5 * ((x[:, 0] - place) / width) ** 2)

    with pytest.raises(ValueError, match=r"last place of torch.float32"):
        of.Quantiles.from_function(bell, 0.0, 1.0, 64, around=(0.3,), dtype=F32)
    of.Quantiles.from_function(bell, 0.0, 1.0, 1, around=(0.3,), dtype=F32)
    of.Quantiles.from_function(bell, 0.0, 1.0, 64, around=(0.3,), dtype=F64)
    moved = of.Quantiles.from_function(lambda x: bell(x, 0.0), -0.3, 0.7, 64, dtype=F32)
    assert float(moved.edges[32]) == pytest.approx(0.0, abs=1e-11)


@pytest.mark.parametrize(
    ("kind", "words", "options"),
    [
        (TypeError, "around must be a sequence", {"around": 0.3}),
        (TypeError, "around must be a sequence", {"around": "0.3"}),
        (TypeError, "around", {"around": (None,)}),
        (ValueError, "outside of", {"around": (2.0,)}),
        (ValueError, "finite|around", {"around": (math.nan,)}),
    ],
)
def test_bad_places_are_refused(kind, words, options):
    with pytest.raises(kind, match=words):
        of.Quantiles.from_function(lambda x: 1 + x[:, 0], 0.0, 1.0, 4, **options)


def test_scales_of_the_density_do_no_harm():
    for scale in (1e-300, 1e300):
        mu = of.Quantiles.from_function(
            lambda x, scale=scale: scale * (1 + x[:, 0]), 0.0, 1.0, 4, dtype=F64
        )
        exact = np.sqrt(1 + 3 * np.arange(5) / 4) - 1
        assert np.abs(mu.edges.numpy() - exact).max() < 1e-14


def test_what_is_not_a_real_density_is_refused():
    with pytest.raises(of.errors.InvalidFunctional, match="real"):
        of.Quantiles.from_function(lambda x: x[:, 0] * 1j, 0.0, 1.0, 4)
    with pytest.raises(ValueError, match="divide f"):
        of.Quantiles.from_function(
            lambda x: 1e308 + 0 * x[:, 0], 0.0, 1e9, 4, dtype=F64
        )
    of.Quantiles.from_function(lambda x: 1 + 0 * x[:, 0], 0.0, 1e9, 4, dtype=F64)


def power_law(seed, dtype):
    """Return a random |x - m|^p + b on (0, 1), its m, and the mass below places."""
    draw = np.random.default_rng(seed)
    m = draw.choice([draw.uniform(), 10 ** draw.uniform(-6, 0), 0.0, 0.5, 1.0])
    m = float(torch.tensor(m, dtype=dtype))
    p, b = draw.uniform(-0.95, 1.0), draw.choice([0.0, 10 ** draw.uniform(-3, 3)])

    def mass(x):
        return np.sign(x - m) * abs(x - m) ** (p + 1) / (p + 1) + b * x

    def share(x):
        return (mass(x) - mass(0.0)) / (mass(1.0) - mass(0.0))

    return lambda x: (x[:, 0] - m).abs() ** p + b, m, p, share


@pytest.mark.slow
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("dtype", [F64, F32])
def test_masses_about_a_singularity_are_right_or_refused(dtype, named):
    eps, found, refused, steep = torch.finfo(dtype).eps, [], [], []
    for seed in range(12):
        f, m, p, share = power_law(seed, dtype)
        around = (m,) if named else ()
        try:
            mu = of.Quantiles.from_function(
                f, 0.0, 1.0, 3 + seed, around=around, dtype=dtype
            )
        except of.errors.NotConverged as error:
            refused.append((p, m, error.info["place"]))
            continue
        except ValueError as error:
            steep.append((p, m, str(error)))
            continue
        q = mu.edges.double().numpy()[1:-1]
        level, place = np.arange(1, 3 + seed) / (3 + seed), 32 * eps * abs(q)
        slack = eps ** (2 / 3) * np.minimum(level, 1 - level)
        assert (share(q - place) <= level + slack).all()
        assert (share(q + place) >= level - slack).all()
        found.append(p)
    assert 4 <= len(found) < 12
    assert min(found) < 0
    for p, m, place in refused:
        assert p < -0.15
        assert m > 0
        assert place == pytest.approx(m, rel=1e3 * eps)
    # What overflows at 0 itself.
    for p, m, words in steep:
        assert (m, dtype) == (0.0, F32)
        assert p < -0.8
        assert "singular" in words


@pytest.mark.slow
@pytest.mark.parametrize(
    ("m", "p", "dtype"),
    [(0.1037, -0.8, F64), (0.1037, -0.5, F64), (0.3, -0.9, F64), (0.567, -0.75, F32)],
)
@pytest.mark.parametrize("named", [False, True])
def test_a_singularity_that_places_do_not_resolve_is_refused(m, p, dtype, named):
    m = float(torch.tensor(m, dtype=dtype))
    around = (m,) if named else ()
    with pytest.raises(of.errors.NotConverged, match=r"singular near .* y = x - m"):
        of.Quantiles.from_function(
            lambda x: (x[:, 0] - m).abs() ** p, 0.0, 1.0, 3, around=around, dtype=dtype
        )
    # The cure: at 0 places are fine.
    mu = of.Quantiles.from_function(
        lambda y: y[:, 0].abs() ** p, -m, 1.0 - m, 3, dtype=dtype
    )
    y = mu.edges.double().numpy()
    mass = np.sign(y) * abs(y) ** (p + 1)
    share = (mass - mass[0]) / (mass[-1] - mass[0])
    assert np.abs(share - np.arange(4) / 3).max() < torch.finfo(dtype).eps ** (2 / 3)
    back = of.Quantiles(mu.edges + m, mu.weights)
    assert torch.equal(back.edges, mu.push(torch.ones_like(mu.edges)[:, None], m).edges)


@pytest.mark.slow
@pytest.mark.parametrize("p", [-0.5, -0.8, -0.947])
def test_quantiles_far_from_a_steep_end_are_settled(p):
    # The highest value is 1e306: a share of it must not bound the slopes elsewhere.
    mu = of.Quantiles.from_function(
        lambda x: x[:, 0] ** p, 0.0, 1.0, 10, around=(0.0,), dtype=F64
    )
    assert np.abs(mu.edges.numpy() ** (1 + p) - np.arange(11) / 10).max() < 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("n", "grading", "reach", "is_told"),
    [
        (20, 1.0, 4.0, True),
        (100, 1.0, 4.0, True),
        (400, 1.0, 4.0, True),
        (100, 1.0, 20.0, True),
        (30, 2.0, 7.0, True),
        (1600, 1.0, 4.0, False),
        (100, 2.0, 4.0, False),
        (200, 2.0, 20.0, False),
        (100, 3.0, 20.0, False),
        (100, 1.0, 1.5, False),
    ],
)
def test_cells_that_are_too_wide_are_told(n, grading, reach, is_told, dtype):
    """N(0, 1/4): a wide cell in a tail has a second moment that the law has not."""

    def made():
        return of.Quantiles.from_function(
            lambda x: torch.exp(-2 * x.square().sum(-1)),
            -reach,
            reach,
            n,
            grading=grading,
            dtype=dtype,
        )

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mu = made()
    square = float(mu.expectation(lambda x: x.square().sum(-1)))
    law = stats.truncnorm(-2 * reach, 2 * reach, scale=0.5)
    off = abs(square / law.var() - 1)
    assert [w.category for w in caught] == [of.errors.CellWarning] * is_told
    # The measured error is that of the variance of the law itself.
    assert (off > 0.1) == is_told
    if is_told:
        assert f"variance {square:.3g}, and f has {law.var():.3g}" in str(
            caught[0].message
        )


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_units_and_places_do_not_matter_to_the_warning(scale):
    def made(n):
        return of.Quantiles.from_function(
            lambda x: torch.exp(-2 * (x / scale - 7).square().sum(-1)),
            3 * scale,
            11 * scale,
            n,
            dtype=torch.float64,
        )

    with pytest.warns(of.errors.CellWarning, match="grading=2"):
        made(100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made(1600)
