"""The blur of entropic steps on grids: what is not flagged is right, and only wrong is.

Random steps against exact ones: Gaussians in a bowl, with and without heat; porous
media from Barenblatt's profile; other potentials against fine quantiles.
"""

from __future__ import annotations

import functools
import math
import random
import warnings

import pytest
import torch

import otflow as of
from otflow.proximal import BackAndForth, GridSinkhorn, QuantileProximal
from otflow.proximal.grid.push_forward import distance_along_axes
from tests import exact

F64 = torch.float64
# What a step that is not flagged may be off by in mean and variance, in parts of the
# step or of what one term of F does: a twentieth, and what else a grid leaves open.
SHARE = 0.06
# Of the distance itself: at a front the blur is not yet like eps^2.
FRONT = 0.1
# A step that is right to this is not flagged.
RIGHT = 0.01


def moments(mu):
    mean = mu.weights @ mu.points
    return mean, mu.weights @ (mu.points - mean).square()


def on_cells(masses, half):
    return of.GridDensity(masses, -half, half, normalize=True, walls=True)


class Step:
    """A step, its exact end, and a length that errors are compared with."""

    def __init__(self, F, mu, dt, change, length, deviation, end=None):
        self.F, self.mu, self.dt, self.end = F, mu, dt, end
        self.change, self.length, self.deviation = change, length, deviation

    def shares(self, nu):
        """Return errors of mean and variance as lengths, in parts of the step's."""
        found = [b - a for a, b in zip(moments(self.mu), moments(nu), strict=True)]
        mean, variance = (a - b for a, b in zip(found, self.change, strict=True))
        off = float(mean.norm()), float(variance.norm()) / (2 * self.deviation)
        return max(off) / self.length

    def distance(self, nu):
        """Return the distance to the exact end, in parts of the step's length."""
        return distance_along_axes(nu, self.end) / self.length


def fokker_planck(seed):
    """A Gaussian in a bowl, on 1 to 12 cells a standard deviation."""
    draw = random.Random(seed)
    d = draw.choice([1, 1, 2])
    lam, dt = 10 ** draw.uniform(-1, 1.5), 10 ** draw.uniform(-3, 1)
    heat = draw.choice([0.0, 10 ** draw.uniform(-1.5, 0.5)])
    mean, start = draw.choice([0.0, draw.uniform(-1, 1)]), draw.uniform(0.3, 1.0)
    m, S = torch.full((d,), mean, dtype=F64), start**2 * torch.eye(d, dtype=F64)
    A, b = lam * torch.eye(d, dtype=F64), torch.zeros(d, dtype=F64)
    m1, S1 = exact.fokker_planck_jko(m, S, dt, A=A, b=b, temperature=heat)
    end = math.sqrt(float(S1[0, 0]))
    half = abs(mean) + 6.5 * max(start, end)
    n = min(max(8, round(2 * half / start * draw.uniform(1, 12))), (0, 400, 36)[d])
    shape = -half, half, (n,) * d
    mu = on_cells(exact.gaussian_cells(m, S.diagonal(), *shape), half)
    goal = on_cells(exact.gaussian_cells(m1, S1.diagonal(), *shape), half)
    F = exact.quadratic(lam) + heat * of.Entropy() if heat else exact.quadratic(lam)
    step = math.sqrt(float((m1 - m).square().sum()) + d * (end - start) ** 2)
    # What V alone would do there: at rest it is undone by the heat.
    response = 1 + dt * (lam + heat / end**2)
    alone = dt * lam * math.sqrt(d * end**2 + float(m1.square().sum())) / response
    change = m1 - m, (S1 - S).diagonal()
    return Step(F, mu, dt, change, max(step, alone), max(start, end), goal)


def porous(seed):
    """Barenblatt's profile on 4 to 40 cells a radius; PowerEntropy(2)."""
    draw = random.Random(seed)
    dt, start = 10 ** draw.uniform(-5, 0.5), 0.5
    profile = exact.barenblatt(2.0, 1, start)
    end = exact.barenblatt_scale_jko(2.0, 1, start, dt, 1)
    half = 1.6 * end
    n = min(max(12, round(2 * half / start * 10 ** draw.uniform(0.6, 1.6))), 400)
    mu = on_cells(profile.cells(-half, half, (n,)), half)
    goal = on_cells(profile.at(end).cells(-half, half, (n,)), half)
    variance = profile.at(end).variance - profile.variance
    change = torch.zeros(1, dtype=F64), torch.full((1,), variance, dtype=F64)
    deviation = math.sqrt(profile.at(end).variance)
    return Step(of.PowerEntropy(2.0), mu, dt, change, profile.w2(end), deviation, goal)


def quantiles(seed):
    """A bell in an uneven double well with heat or pressure, and fine quantiles."""
    draw = random.Random(seed)
    a, b, dt = draw.uniform(0.2, 2), draw.uniform(-0.5, 0.5), 10 ** draw.uniform(-3, -1)
    width, centre = draw.uniform(0.3, 0.7), draw.uniform(-1, 1)
    V = lambda x: a * ((x[..., 0].square() - 1).square() + b * x[..., 0])
    inner = draw.choice([0.3 * of.Entropy(), of.PowerEntropy(2.0), of.Entropy()])
    F = of.Potential(V) + inner
    half, n = 5.0, draw.randrange(24, 160)
    bell = lambda x: torch.exp(-(x - centre).square().sum(-1) / (2 * width**2))
    coarse = of.GridDensity.from_function(bell, -half, half, n, walls=True, dtype=F64)
    edges = torch.linspace(centre - 6 * width, centre + 6 * width, 401, dtype=F64)
    heights = torch.special.ndtr((edges - centre) / width)
    start = of.Quantiles(edges, heights.diff(), normalize=True)
    result = QuantileProximal().solve(F, start, dt)
    assert result.certificate["converged"]
    ends = []
    for q in (start.edges.flatten(), result.measure.edges.flatten()):
        low, high = q[:-1], q[1:]
        mean = 0.5 * start.weights @ (low + high)
        square = start.weights @ (low * low + low * high + high * high) / 3
        ends.append((mean[None], (square - mean**2)[None]))
    change = tuple(y - x for x, y in zip(*ends, strict=True))
    slope = F.terms()[0][1].velocity(result.measure)
    pull = dt * float(result.measure.norm(slope))
    length = max(float(start.norm(start.displacement_to(result.measure))), pull)
    return Step(F, coarse, dt, change, length, math.sqrt(float(ends[1][1])))


def short(seed):
    """Heat in one bell, or in two far apart, for a time in which it hardly moves.

    What a solve leaves open of the whole spread is then far more than the step.
    """
    draw = random.Random(seed)
    apart, deviation = draw.choice([0.0, 0.0, 5.0, 40.0]), draw.uniform(0.3, 0.8)
    heat, dt = 10 ** draw.uniform(-2, 0), 10 ** draw.uniform(-5, -2.5)
    half = apart + 6.5 * deviation
    n = min(round(2 * half / deviation * 10 ** draw.uniform(0.5, 1.5)), 1500)
    S = torch.full((1,), deviation**2, dtype=F64)
    bells = [
        exact.gaussian_cells(torch.tensor([x], dtype=F64), S, -half, half, (n,))
        for x in (-apart, apart)
    ]
    mu = on_cells(sum(bells) / 2, half)
    # sigma (sigma - deviation) = heat dt is the JKO step.
    end = 0.5 * (deviation + math.sqrt(deviation**2 + 4 * heat * dt))
    growth = torch.tensor([(end - deviation) * (end + deviation)], dtype=F64)
    change = torch.zeros(1, dtype=F64), growth
    return Step(heat * of.Entropy(), mu, dt, change, end - deviation, end)


KINDS = {
    "Fokker-Planck": fokker_planck,
    "porous": porous,
    "quantiles": quantiles,
    "short": short,
}
COUNTS = {"Fokker-Planck": 40, "porous": 24, "quantiles": 24, "short": 24}


@functools.cache
def solved(kind, seed):
    """Return a step, its end and its certificate."""
    step = KINDS[kind](seed)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        result = GridSinkhorn(certify=False).solve(step.F, step.mu, step.dt)
    report = result.certificate
    assert report["converged"]
    told = any(isinstance(w.message, of.errors.BlurWarning) for w in seen)
    assert told or not report["blurred"]
    assert report["certified"] <= (not report["blurred"])
    return step, result.measure, report


CASES = [(kind, seed) for kind, count in COUNTS.items() for seed in range(count)]


@pytest.mark.parametrize(("kind", "seed"), CASES)
def test_what_is_not_blurred_is_right_and_what_is_right_is_not_blurred(kind, seed):
    step, nu, report = solved(kind, seed)
    off = step.shares(nu)
    # Thinner than a cell no density is right, whatever the blur.
    h = step.mu.box.spacing[0]
    resolved = float(moments(nu)[1].min()) > h * h
    far = step.distance(nu) if step.end is not None and resolved else off
    if not report["blurred"]:
        assert off <= SHARE or not resolved
        assert far <= FRONT or kind != "porous"
    elif resolved:
        assert max(off, far) > RIGHT


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_steps_of_both_sorts(kind):
    # Else one half of the test above is never asked.
    flags = [solved(kind, seed)[2]["blurred"] for seed in range(COUNTS[kind])]
    assert 3 <= sum(flags) <= len(flags) - 3


def coarse_and_short():
    """Return a bell on cells as long as half of it, and its Fokker-Planck energy."""
    F = exact.quadratic() + 0.2 * of.Entropy()
    bell = lambda x: torch.exp(-2 * (x - 0.3).square().sum(-1))
    ends = (-4.0, -3.0), (4.0, 3.0)
    return F, of.GridDensity.from_function(bell, *ends, (32, 20), dtype=F64)


def test_a_step_on_a_coarse_grid_that_loses_half_of_the_variance_is_not_certified():
    F, mu = coarse_and_short()
    dt = 0.05
    with pytest.warns(of.errors.BlurWarning, match="finer grid"):
        result = GridSinkhorn().solve(F, mu, dt)
    report = result.certificate
    assert report["converged"]
    assert (report["guarantee"], report["certified"]) == ("none", False)
    start = torch.full((2,), 0.3, dtype=F64), 0.25 * torch.eye(2, dtype=F64)
    spring = {"A": torch.eye(2, dtype=F64), "b": torch.zeros(2, dtype=F64)}
    _, S = exact.fokker_planck_jko(*start, dt, **spring, temperature=0.2)
    wanted = (S - start[1]).diagonal()
    found = moments(result.measure)[1] - moments(mu)[1]
    assert bool((found > 0.7 * wanted).all())  # both are negative
    # The blur is told to a few percent: what it adds to the deviations.
    before = moments(mu)[1]
    off = (before + found).sqrt() - (before + wanted).sqrt()
    assert report["blur"] == pytest.approx(float(off.norm()), rel=0.25)
    assert report["blur"] > 0.1 * report["w2"]


def test_the_cures_of_a_blur_work():
    F, mu = coarse_and_short()
    ends = mu.box.lower, mu.box.upper
    bell = lambda x: torch.exp(-2 * (x - 0.3).square().sum(-1))
    finer = of.GridDensity.from_function(bell, *ends, (80, 60), dtype=F64)
    for start, scheme, dt in (
        (finer, of.JKO(GridSinkhorn()), 0.05),
        (mu, of.JKO(GridSinkhorn()), 1.0),
        (mu, of.JKO(BackAndForth()), 0.05),
    ):
        run = of.flow(F, start, scheme, dt=dt, steps=1)
        assert run.converged
        assert run.info[0]["certified"]


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_a_flow_to_rest_is_certified_to_its_end(temperature):
    # The steps become nothing, the blur does not: it is small beside what V pulls.
    F = exact.quadratic() + temperature * of.Entropy()
    bell = lambda x: torch.exp(-2 * (x - 0.3).square().sum(-1))
    mu = of.GridDensity.from_function(bell, -5.0, 5.0, 80, dtype=F64)
    run = of.flow(F, mu, of.JKO(GridSinkhorn()), dt=0.5, steps=25)
    assert run.info[-1]["w2"] < 1e-3
    assert all(info["certified"] for info in run.info)
    variance = float(moments(run.final)[1])
    assert variance == pytest.approx(temperature, rel=0.05)


def test_waves_whose_marginals_are_at_rest_are_seen_to_move():
    # The product of two waves: each marginal is uniform, so they tell nothing.
    wave = lambda x: 1 + 0.5 * torch.cos(math.pi * x).prod(-1)
    mu = of.GridDensity.from_function(wave, 0.0, 1.0, (30, 30), walls=True, dtype=F64)
    result = GridSinkhorn(eps=0.004).solve(of.Entropy(), mu, 0.01)
    assert result.certificate["certified"]
    with pytest.warns(of.errors.BlurWarning):
        result = GridSinkhorn(eps=0.02).solve(of.Entropy(), mu, 3e-4)
    assert result.certificate["blurred"]


@pytest.mark.parametrize(
    ("eps", "heat", "dt"), [(0.06, 0.0, 1.0), (0.15, 0.0, 1.0), (0.35, 0.02, 2.0)]
)
def test_a_kernel_as_wide_as_the_density_is_seen_to_be(eps, heat, dt):
    """The answer of a wider kernel saturates there: one difference is not enough."""
    s, start = 0.15, 1.5
    mu = of.GridDensity.from_function(
        lambda x: (-(x[..., 0] - start).square() / (2 * s**2)).exp(), -2, 3, 100,
        walls=True, dtype=F64,
    )  # fmt: skip
    F = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
    if heat:
        F = F + heat * of.Entropy()
    with pytest.warns(of.errors.BlurWarning):
        certificate = GridSinkhorn(eps=eps).solve(F, mu, dt).certificate
    assert certificate["converged"]
    assert certificate["blurred"]
    assert not certificate["certified"]
