"""Frank-Wolfe: its rate, its gap, and the sliding variant that ends with few atoms."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.errors import NotConvergedWarning
from otflow.optimality import BoxDomain, GapKind
from otflow.schemes import FrankWolfe
from otflow.schemes.sliding import best_masses
from otflow.testing import SchemeContract
from tests.marks import slow

F64 = torch.float64
SEED = torch.Generator()


class Spikes(of.Functional):
    """Half the squared distance of the first Fourier coefficients on the circle."""

    def __init__(self, places, masses, frequencies=4):
        self.frequencies = frequencies
        self.data = masses @ self.features(places)

    def features(self, x):
        k = torch.arange(1, self.frequencies + 1).to(x)
        turns = 2 * math.pi * x * k
        low = torch.full_like(x, 0.5**0.5)
        return torch.cat([low, turns.cos(), turns.sin()], dim=1)

    def value(self, mu):
        return 0.5 * (mu.expectation(self.features) - self.data).square().sum()

    def mixture_curvature(self):
        return "convex"

    def curvature_constant(self):
        """Return C: of a quadratic F it is the largest |phi(x) - phi(y)|^2."""
        phi = self.features(torch.linspace(0, 1, 2001, dtype=F64)[:, None])
        return float((phi - phi[:1]).square().sum(dim=1).max())

    def steepest(self):
        """Return the largest |phi''|."""
        k = torch.arange(1, self.frequencies + 1, dtype=F64)
        return float((2 * math.pi) ** 2 * (k**4).sum().sqrt())


PLACES = torch.tensor([[0.15], [0.4], [0.75]], dtype=F64)
MASSES = torch.tensor([0.5, 0.3, 0.2], dtype=F64)
START = of.Particles(torch.tensor([[0.9]], dtype=F64))


def box(low=0.0, high=1.0):
    return BoxDomain(low, high)


def run_of(scheme, steps, F=None, mu=START, dt=1.0, **options):
    F = Spikes(PLACES, MASSES) if F is None else F
    return of.flow(F, mu, scheme, dt=dt, steps=steps, **options)


class TestFrankWolfe(SchemeContract):
    diverges = False
    keeps_size = False
    steps = ()

    def make(self):
        return FrankWolfe(box(-4.0, 4.0), 64, 20)

    def test_a_huge_dt_is_caught_and_what_was_good_is_kept(self):
        with pytest.raises(ValueError, match="at most 1, got 1e"):
            self.run(4, dt=1e9)


class TestLineSearch(TestFrankWolfe):
    def make(self):
        return FrankWolfe(box(-4.0, 4.0), 64, 20, line_search=True)


class TestSliding(TestFrankWolfe):
    solves = True
    descends = False  # it ends at the minimum, where F no longer falls

    def make(self):
        return FrankWolfe(box(-4.0, 4.0), 64, 20, sliding=True)

    def test_the_step_vanishes_with_dt(self):
        """The masses are optimised anew, whatever mass the new atom was given."""
        F, mu = self.problem()
        scheme = self.make()
        ends = [
            scheme.step(F, mu, dt, scheme.init(F, mu), torch.Generator())
            for dt in (1e-6, 1e-2)
        ]
        values = [float(F(end.measure)) for end in ends]
        assert values[0] == pytest.approx(values[1], rel=1e-8)
        assert values[0] < float(F(mu)) - 0.01


# The rate and the gap ----------------------------------------------------------------


@pytest.mark.parametrize("descend", [50, 0])
def test_f_falls_like_two_c_over_k_plus_two(descend):
    # By induction: F(mu') <= F(mu) - gamma gap + gamma^2 C / 2 and F - F* <= gap. With
    # gamma = 2 / (k + 2), h' <= k / (k + 2) h + 2 C / (k + 2)^2 <= 2 C / (k + 3).
    F, steps = Spikes(PLACES, MASSES), 150
    candidates = torch.linspace(0, 1, 201, dtype=F64)[:, None]
    run = run_of(FrankWolfe(box(), candidates, descend), steps)
    C, k = F.curvature_constant(), torch.arange(1, steps + 1)
    excess = run.records["energy"]  # the least value is 0
    assert bool((excess[1:] <= 2 * C / (k + 2)).all())
    gaps = torch.tensor([info["gap"] for info in run.info], dtype=F64)
    # A searched gap may be too small: by what F' falls between two candidates.
    between = 0.0025**2 / 2 * F.steepest() * (2 * excess[:-1]).sqrt()
    assert bool((excess[:-1] <= gaps + (0 if descend else between)).all())
    # Theorem 2 of Jaggi; one of the gaps since the step 1 is so small.
    least = gaps[1:].cummin(dim=0).values
    assert bool((least[1:] <= 27 * C / (4 * (k[1:-1] + 2))).all())
    assert {info["gap_kind"] for info in run.info} == {GapKind.SEARCHED}


@pytest.mark.slow
def test_it_is_no_faster_than_its_rate_and_the_measured_order_is_near_one():
    run = run_of(FrankWolfe(box(), 16), 240, every=20)
    values = run.records["energy"][3:]
    order = -of.analysis.observed_order(range(3, 13), values.tolist())
    assert 0.8 < order < 2.2


def test_places_of_ones_own_are_told_by_their_number():
    places = torch.linspace(0, 1, 5000, dtype=F64)[:, None]
    text = repr(FrankWolfe(box(), places))
    assert "candidates=5000 places, descend=50" in text
    assert "tensor" not in text


def test_the_steps_are_those_of_the_formula():
    run = run_of(FrankWolfe(box()), 5)
    assert [info["dt"] for info in run.info] == [2 / (k + 2) for k in range(5)]
    assert float(run.times[-1]) == pytest.approx(sum(2 / (k + 2) for k in range(5)))
    # The first step forgets the start.
    assert run.snapshots[1].n == 1
    assert float(run.snapshots[1].points) != 0.9
    # Averages: with gamma = 1 / (k + 1) all new atoms have the same mass.
    run = run_of(FrankWolfe(box()), 4, dt=lambda k: 1 / (k + 1))
    assert run.final.weights.tolist() == pytest.approx([0.25] * 4)
    run = run_of(FrankWolfe(box(), horizon=1e12), 2, dt=0.25)
    assert run.final.weights.tolist() == pytest.approx([0.5625, 0.1875, 0.25])


# The line search ----------------------------------------------------------------------


def test_the_share_of_a_quadratic_is_that_of_the_formula():
    """F(mu_g) = F - g gap + g^2 / 2 D(delta, mu): the best share is gap / D."""
    F = Spikes(PLACES, MASSES)
    mu = of.Particles(torch.linspace(0.1, 0.9, 7, dtype=F64)[:, None])
    run = run_of(FrankWolfe(box(), line_search=True), 1, F, mu)
    x = run.final.points[-1:]
    bend = (F.features(x)[0] - mu.expectation(F.features)).square().sum()
    share = float(run.info[0]["gap"] / bend)
    assert run.info[0]["dt"] == pytest.approx(share, rel=1e-10)
    assert float(run.final.weights[-1]) == pytest.approx(share, rel=1e-10)
    short = run_of(FrankWolfe(box(), line_search=True), 1, F, mu, dt=0.5 * share)
    assert short.info[0]["dt"] == 0.5 * share


@pytest.mark.slow
def test_f_never_rises_and_keeps_its_bound():
    F, steps = Spikes(PLACES, MASSES), 100
    candidates = torch.linspace(0, 1, 201, dtype=F64)[:, None]
    run = run_of(FrankWolfe(box(), candidates, line_search=True), steps)
    values, k = run.records["energy"], torch.arange(1, steps + 1)
    noise = torch.tensor([info["noise"] for info in run.info])
    assert bool((values.diff() <= noise).all())
    assert bool((values[1:] <= 2 * F.curvature_constant() / (k + 2)).all())
    plain = run_of(FrankWolfe(box(), candidates), steps)
    assert bool((plain.records["energy"].diff() > 0).any())
    report = of.analysis.certify(run, F)
    assert report["energy"].verdict == "observed"


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_a_kink_and_a_quartic_have_their_best_shares(dtype):
    class OfMean(of.Functional):
        def __init__(self, function):
            self.function = function

        def value(self, mu):
            return self.function(mu.expectation(lambda x: x[:, 0]))

    places = torch.tensor([[1.0]], dtype=dtype)
    mu = of.Particles(torch.tensor([[0.0]], dtype=dtype))
    scheme = FrankWolfe(box(), places, 0, line_search=True)
    for function in (
        lambda m: (m - 0.3).abs(),
        lambda m: (m - 0.3) ** 4,
        lambda m: m.exp() - math.exp(0.3) * m,
    ):
        run = run_of(scheme, 1, OfMean(function), mu)
        slack = 1e-3 if dtype == torch.float32 else 1e-4
        assert run.info[0]["dt"] == pytest.approx(0.3, abs=slack)


def test_where_f_is_not_convex_the_search_lowers_it_all_the_same():
    """cos(9 m) + m has minima and maxima between 0 and 1."""

    class Waves(of.Functional):
        def value(self, mu):
            m = mu.expectation(lambda x: x[:, 0])
            return torch.cos(9 * m) + m

    run = run_of(
        FrankWolfe(box(), 32, line_search=True),
        20,
        Waves(),
        of.Particles(torch.tensor([[0.1]], dtype=F64)),
    )
    values = run.records["energy"]
    assert bool((values.diff() <= 1e-12).all())
    assert float(values[-1]) < float(values[0]) - 0.5


def test_at_the_minimum_the_share_is_zero():
    V = of.Potential(lambda x: (x - 0.3).square().sum(-1))
    mu = of.Particles(torch.tensor([[0.3]], dtype=F64))
    run = run_of(FrankWolfe(box(), 8, line_search=True), 2, V, mu)
    assert run.final.points.tolist() == [[0.3]]
    assert [info["dt"] for info in run.info] == [0.0, 0.0]


def test_the_gap_of_the_final_measure():
    F = of.MMDTo(of.Particles(PLACES, MASSES), of.kernels.Gaussian(0.2))
    run = run_of(FrankWolfe(box(), 64, line_search=True), 20, F)
    gap = of.optimality.optimality_gap(F, run.final, box())
    assert gap.kind == "proved"
    assert float(F.value(run.final)) <= float(gap) < run.info[0]["gap"]


def test_an_atom_that_is_met_again_grows():
    F = of.Potential(lambda x: (x - 0.3).square().sum(-1))
    mu = of.Particles(torch.tensor([[0.3], [1.0]], dtype=F64))
    run = run_of(FrankWolfe(box(), 8, 0), 1, F, mu, dt=0.5)
    assert run.final.points.tolist() == [[0.3], [1.0]]
    assert run.final.weights.tolist() == [0.75, 0.25]


def test_a_minimum_at_a_corner_of_the_box_is_found():
    F = of.Potential(lambda x: x[:, 0] - 2 * x[:, 1])
    mu = of.Particles(torch.full((1, 2), 0.5, dtype=F64))
    for sliding in (False, True):
        run = run_of(FrankWolfe(box(), 16, sliding=sliding), 2, F, mu)
        assert run.final.points.tolist() == [[0.0, 1.0]]
        assert run.info[1]["gap"] == pytest.approx(0.0, abs=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_atoms_reach_the_corners_to_the_last_place_and_do_not_leave_the_box(dtype):
    # In 1 of 5 boxes of one decimal lower + (upper - lower) is not upper.
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(-60, 60, (20, 4), generator=generator).tolist()
    for a, b, c, d in draws:
        low, high = [min(a, b) / 10, min(c, d) / 10], [max(a, b) / 10, max(c, d) / 10]
        if low[0] == high[0] or low[1] == high[1]:
            continue
        room = BoxDomain(low, high)
        corners = torch.tensor([low, high], dtype=dtype)
        for sign, start, end in ((1.0, 0, 1), (-1.0, 1, 0)):
            F = of.Potential(lambda x, s=sign: -s * x.sum(-1))
            mu = of.Particles(corners[start][None])
            for sliding in (False, True):
                scheme = FrankWolfe(room, 8, sliding=sliding)
                run = run_of(scheme, 2, F, mu)
                assert torch.equal(run.final.points, corners[end][None])
                gap = of.optimality.optimality_gap(F, run.final, room)
                assert abs(gap.value) <= 1e-5


def test_candidates_and_searches_stay_in_boxes_of_a_few_last_places():
    low, high = 1.0, 1.0 + 2**-22  # two last places in single precision
    F = of.Potential(lambda x: x.sin().sum(-1))
    mu = of.Particles(torch.tensor([[high]]))
    for scheme in (FrankWolfe(box(low, high)), FrankWolfe(box(low, high), 8, 0)):
        run = run_of(scheme, 2, F, mu)
        assert low <= float(run.final.points.min())
        assert float(run.final.points.max()) <= high


def test_the_gap_of_an_f_that_is_not_known_to_be_convex_bounds_nothing():
    class Mean(of.Functional):
        def value(self, mu):
            return -mu.expectation(lambda x: (x - 0.4).square().sum(-1)).square()

    for prove in (False, True):
        run = run_of(FrankWolfe(box(), prove=prove), 3, Mean())
        assert {info["gap_kind"] for info in run.info} == {GapKind.NONE}
        assert {info["gap"] for info in run.info} == {math.inf}
        assert float(run.final.points.max()) == 1.0  # far from 0.4


def test_the_gap_can_be_asked_from_the_floor_that_proves():
    run = run_of(FrankWolfe(box(), prove=True), 4)
    for info, mu in zip(run.info, run.snapshots, strict=False):
        gap = of.optimality.optimality_gap(Spikes(PLACES, MASSES), mu, box())
        assert (info["gap"], info["gap_kind"]) == (gap.value, gap.kind)
        assert info["gap_reason"] == gap.reason


def test_single_precision_works():
    F = Spikes(PLACES.float(), MASSES.float())
    mu = of.Particles(START.points.float())
    run = run_of(FrankWolfe(box(), 64), 20, F, mu)
    assert run.final.points.dtype == torch.float32
    run = run_of(FrankWolfe(box(), 64, sliding=True), 4, F, mu)
    found = run.final.points[:, 0].sort().values
    assert run.final.n == 3
    torch.testing.assert_close(found, PLACES.float()[:, 0], atol=1e-3, rtol=0)


def rises(run):
    return float(run.records["energy"].diff().max())


# The sliding variant ------------------------------------------------------------------


def check_spikes(mu, places, masses, tolerance=1e-8):
    order = mu.points[:, 0].argsort()
    own = places[:, 0].argsort()
    assert mu.n == len(places)
    assert float((mu.points[order] - places[own]).abs().max()) <= tolerance
    assert float((mu.weights[order] - masses[own]).abs().max()) <= tolerance


def test_sliding_finds_the_three_spikes_in_a_few_steps():
    run = run_of(FrankWolfe(box(), sliding=True), 5)
    check_spikes(run.final, PLACES, MASSES)
    assert run.info[-1]["gap"] < 1e-9
    assert run.converged
    assert "rose" not in repr(run)
    assert rises(run) <= 1e-20


class Blurred(of.Functional):
    """Half the mean square of blurred spikes minus data, on a grid."""

    def __init__(self, places, masses, width, grid):
        self.width, self.grid = width, grid
        self.data = masses @ self.features(places)

    def features(self, x):
        apart = (x[:, None] - self.grid).square().sum(dim=-1)
        return torch.exp(-apart / (2 * self.width**2))

    def value(self, mu):
        return 0.5 * (mu.expectation(self.features) - self.data).square().mean()

    def mixture_curvature(self):
        return "convex"


class Enclosed(Blurred):
    """The same, with F' as a function of places, on which proofs rest."""

    def enclosed_variation(self, mu):
        error = (mu.expectation(self.features) - self.data) / len(self.data)
        line = self.grid[:, 0]
        return lambda x: (
            torch.exp(-((x - line) ** 2) / (2 * self.width**2)) * error
        ).sum(-1)


@pytest.mark.parametrize("sliding", [False, True])
def test_the_gap_of_each_step_is_proved_where_f_can_be_enclosed(sliding):
    line = torch.linspace(0, 1, 60, dtype=F64)[:, None]
    F = Enclosed(PLACES, MASSES, 0.07, line)
    run = run_of(FrankWolfe(box(), 32, sliding=sliding, prove=True), 5, F)
    found = run_of(FrankWolfe(box(), 32, sliding=sliding), 5, F)
    for step, other, value in zip(
        run.info, found.info, run.records["energy"].tolist(), strict=False
    ):
        assert step["gap_kind"] == GapKind.PROVED
        assert other["gap_kind"] == GapKind.SEARCHED
        assert step["gap"] >= value  # the least value is 0
        assert step["gap"] >= other["gap"] - 1e-9
    if sliding:
        check_spikes(run.final, PLACES, MASSES)
        assert run.info[-1]["gap"] < 1e-12


@pytest.mark.parametrize(("dim", "count", "width"), [(1, 3, 0.1), (2, 4, 0.15)])
@pytest.mark.parametrize("seed", range(3))
def test_sliding_finds_random_spikes(dim, count, width, seed):
    generator = torch.Generator().manual_seed(seed)
    # One spike in each part of the box: nearer ones are hard to tell apart.
    corners = torch.cartesian_prod(*[torch.arange(2 if dim > 1 else count)] * dim)
    share = corners.reshape(count, dim).to(F64)
    jitter = torch.rand(count, dim, generator=generator, dtype=F64)
    places = (share + 0.2 + 0.6 * jitter) / (float(share.max()) + 1)
    masses = torch.rand(count, generator=generator, dtype=F64) + 0.3
    masses = masses / masses.sum()
    line = torch.linspace(0, 1, 24 if dim == 1 else 10, dtype=F64)
    grid = torch.cartesian_prod(*[line] * dim).reshape(-1, dim)
    F = Blurred(places, masses, width, grid)
    mu = of.Particles(torch.full((1, dim), 0.5, dtype=F64))
    run = run_of(
        FrankWolfe(box(), sliding=True),
        6 * count,
        F,
        mu,
        stop=lambda step: step.info["gap"] < 1e-12,
    )
    assert run.status == "stopped"
    check_spikes(run.final, places, masses, tolerance=1e-6)
    assert rises(run) <= 1e-14  # round-off: one atom less may cost so much


def test_sliding_lowers_an_f_that_is_not_convex_along_mixtures():
    spread = of.Interaction(of.kernels.Gaussian(0.3))
    well = of.Potential(lambda x: 3 * (x - 0.4).square().sum(-1))
    F = (
        of.functionals.Scaled(-1.0, spread)
        + well
        + of.Potential(lambda x: x.cos().sum(-1))
    )
    assert not F.mixture_convex
    mu = of.Particles(torch.rand(6, 2, dtype=F64, generator=SEED.manual_seed(0)))
    run = run_of(FrankWolfe(box(), 64, sliding=True), 5, F, mu)
    assert rises(run) <= 1e-14
    assert run.final.n == 1  # attraction: one atom at the bottom
    slope = float(F.velocity(run.final).norm())
    assert slope < 1e-8
    assert {info["gap_kind"] for info in run.info} == {GapKind.NONE}


@pytest.mark.slow
@pytest.mark.parametrize("height", [1e2, *slow(1e6, 1e9, 1e12)])
@pytest.mark.parametrize("dim", [1, 2])
def test_steep_walls_far_away_do_not_loosen_a_slide(height, dim):
    """Beyond [-1, 1] F' rises by up to 20 orders, and the minimiser lies inside."""
    wall = of.Potential(lambda x: height * (x.abs() - 1).relu().pow(8).sum(-1))
    well = of.Potential(lambda x: (x - 0.3).square().sum(-1))
    width = 0.2 if dim == 1 else 0.5
    F = wall + well + 0.5 * of.Interaction(of.kernels.Gaussian(width))
    mu = of.Particles(torch.full((1, dim), 0.9, dtype=F64))
    count = 256 if dim == 1 else 1024  # of which 1 in 100 lies between the walls
    near = run_of(FrankWolfe(box(-1.0, 1.0), 64, sliding=True), 9, F, mu)
    far = run_of(FrankWolfe(box(-10.0, 10.0), count, sliding=True), 9, F, mu)
    value = float(near.records["energy"][-1])
    if dim == 1:
        assert value == pytest.approx(0.1778958, abs=1e-7)
    assert float(far.records["energy"][-1]) == pytest.approx(value, rel=1e-12)
    assert rises(far) <= 1e-15
    assert far.converged
    # Optimal: no place lowers F, by a search of its own.
    rates = F.first_variation(far.final, torch.rand(20_000, dim, dtype=F64) * 2 - 1)
    mean = float(far.final.weights @ F.first_variation(far.final))
    assert mean - float(rates.min()) <= 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, *slow(1, 2, 3)])
def test_at_a_minimum_with_kinks_a_step_costs_one_search(seed):
    """The energy distance has a kink at each atom, where no gradient vanishes."""
    generator = torch.Generator().manual_seed(seed)
    target = of.Particles(torch.rand(3, 1, dtype=F64, generator=generator))
    F = of.EnergyDistanceTo(target)
    state, mu = (0, False), START
    scheme, infos = FrankWolfe(box(), descend=0, sliding=True), []
    for _ in range(8):
        step = scheme.step(F, mu, 1.0, state, SEED)
        mu, state = step.measure, step.state
        infos.append(step.info)
    check_spikes(mu, target.points, target.weights)
    assert [info["iterations"] for info in infos[-2:]] == [1, 1]
    assert [info["converged"] for info in infos[-2:]] == [True, True]


def test_a_spike_narrower_than_any_step_costs_little():
    spike = of.Potential(lambda x: -torch.exp(-(1e6 * (x - 0.61234)).square()).sum(-1))
    well = of.Potential(lambda x: (x - 0.3).square().sum(-1))
    F = spike + well + 0.5 * of.Interaction(of.kernels.Gaussian(0.2))
    scheme, state = FrankWolfe(box(-1.0, 1.0), sliding=True), (0, False)
    mu = of.Particles(torch.tensor([[0.61234]], dtype=F64))
    for _ in range(4):
        step = scheme.step(F, mu, 1.0, state, SEED)
        mu, state = step.measure, step.state
    assert float(F(mu)) == pytest.approx(0.31234**2 - 1 + 0.25, abs=1e-9)
    assert step.info["converged"]
    assert step.info["iterations"] < 30


@pytest.mark.parametrize("sliding", [False, True])
def test_the_descents_of_candidates_are_counted(sliding):
    calls = []

    class Counted(of.functionals.Potential):
        def velocity(self, mu, x=None):
            calls.append(None if x is None else len(x))
            return super().velocity(mu, x)

    F = Counted(lambda x: (x - 0.3).square().sum(-1) + x.sin().sum(-1))
    scheme = FrankWolfe(box(-3.0, 3.0), 16, sliding=sliding)
    info = scheme.step(F, START, 1.0, (0, False), SEED).info
    searched = len([n for n in calls if n == 17])
    assert searched > 3
    assert info["iterations"] >= searched
    if not sliding:
        assert info["iterations"] == searched + 1  # the first values have no velocity


def rough(seed, dtype):
    """Return a random functional with walls, kinks, spikes or attraction."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*sizes):
        return torch.rand(*sizes, generator=generator, dtype=dtype)

    height, place, width = 10 ** (2 + 10 * float(draw(1))), float(draw(1)), 1e-4
    F: of.Functional = of.Potential(lambda x: (x - 0.3).square().sum(-1))
    if seed % 3:
        F += of.Potential(lambda x: height * (x.abs() - 1).relu().pow(8).sum(-1))
    if seed % 2:
        F += of.Potential(lambda x: (x - 1 / 3).abs().sum(-1))
    else:
        spike = lambda x: -torch.exp(-((x - place) / width).square()).sum(-1)
        F += of.Potential(spike)
    if seed % 4 < 2:
        F += of.MMDTo(of.Particles(draw(3, 1) * 2 - 1), of.kernels.Gaussian(0.4))
    else:
        F -= 0.5 * of.Interaction(of.kernels.Gaussian(0.3))
    return F, of.Particles(draw(1 + seed % 3, 1) * 2 - 1)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("seed", [0, 3, *slow(1, 2, 4, 5, 6, 7)])
def test_no_step_keeps_a_rise_beyond_the_round_off_at_its_measure(seed, dtype):
    F, mu = rough(seed, dtype)
    scheme, state = FrankWolfe(box(-10.0, 10.0), 128, sliding=True), (0, False)
    for _ in range(4):
        step = scheme.step(F, mu, 1.0, state, SEED)
        before, after = (float(F(at)) for at in (mu, step.measure))
        rates = F.first_variation(step.measure).abs().max()
        most = torch.finfo(dtype).eps * (8 * abs(after) + 16 * float(rates))
        assert after <= before + most
        assert step.info["noise"] <= most + 16 * torch.finfo(dtype).eps
        mu, state = step.measure, step.state


@pytest.mark.slow
def test_neurons_of_a_network_are_inserted_until_it_fits():
    X = torch.linspace(-2, 2, 40, dtype=F64)[:, None]
    network = of.meanfield.TwoLayer("tanh")
    teacher = of.Particles(
        torch.tensor([[3.0, 1.5, 0.5], [-2.0, 2.5, -1.0]], dtype=F64)
    )
    F = of.meanfield.Risk(network, X, network(teacher, X))
    mu = of.Particles(torch.zeros(1, 3, dtype=F64))
    room = box(-4.0, 4.0)
    plain = run_of(FrankWolfe(room, 64), 60, F, mu)
    excess, gaps = plain.records["energy"], [info["gap"] for info in plain.info]
    assert float(excess[-1]) < 0.05 * float(excess[0])
    assert all(g >= f for g, f in zip(gaps, excess.tolist(), strict=False))
    run = run_of(FrankWolfe(room, 64, sliding=True), 6, F, mu)
    assert float(run.records["energy"][-1]) < 1e-6 * float(excess[0])
    assert rises(run) <= 1e-14


def test_a_start_better_than_any_atom_is_kept():
    truth = of.Particles(PLACES, MASSES)
    for sliding in (True, False):
        run = run_of(FrankWolfe(box(), sliding=sliding), 1, mu=truth)
        assert (run.final.n == 3) == sliding
        assert (rises(run) <= 1e-14) == sliding


def test_a_slide_that_ends_at_a_kink_says_so():
    kink = of.Potential(lambda x: (x - 1 / 3).abs().sum(-1) + 0.1 * x.sum(-1))
    F = kink + Spikes(PLACES, MASSES)
    with pytest.warns(NotConvergedWarning, match="as at a kink"):
        run = run_of(FrankWolfe(box(), sliding=True), 4, F)
    assert run.converged is False
    assert rises(run) <= 1e-12


# Ties ---------------------------------------------------------------------------------


def tied(name, dim):
    """Return a functional with equally good places, and one atom at such a place."""
    repel = of.Interaction(of.kernels.Gaussian(0.5))
    at, ends = torch.ones(1, dim, dtype=F64), torch.tensor([[-0.5], [0.5]], dtype=F64)
    return {
        "walls": (of.Potential(lambda x: -x.square().sum(-1)) + 2.0 * repel, at),
        "nowhere": (5.0 * repel, at),
        "two wells": (
            of.Potential(lambda x: (x.square() - 0.5).square().sum(-1)) + 0.5 * repel,
            0.5**0.5 * at,
        ),
        "two atoms": (
            of.MMDTo(ends.expand(2, dim), of.kernels.Gaussian(0.5)),
            0.5 * at,
        ),
    }[name]


# In float32 a slide of many atoms may end short of its tolerance.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*did not become stationary")
@pytest.mark.parametrize("name", ["walls", "nowhere", "two wells", "two atoms"])
@pytest.mark.parametrize(
    ("dim", "dtype"),
    [
        (1, F64),
        (1, torch.float32),
        pytest.param(2, F64, marks=pytest.mark.slow),
    ],
)
def test_mass_does_not_jump_between_equally_good_places(name, dim, dtype):
    F, start = tied(name, dim)
    F, mu, room = F.to(dtype), of.Particles(start.to(dtype)), box(-1.0, 1.0)
    run = run_of(FrankWolfe(room, 32, 20, sliding=True), 8, F, mu)
    verdicts = [info.converged for info in run.info]
    assert dtype == torch.float32 or False not in verdicts
    for before, info in zip(run.snapshots, run.info, strict=False):
        # The gap of the step is searched, and this one is proved.
        gap = of.optimality.optimality_gap(F, before, room).found
        if gap > 1e-3:
            assert not info.converged
            # What a line search of the share alone must lower F by, at the least.
            assert info["energy_after"] < info["energy_before"] - 1e-3 * gap**2
    left = of.optimality.optimality_gap(F, run.final, room).value
    assert run.final.n > 1
    assert left < (1e-4 if dim == 1 else 0.6)


def test_a_gap_that_no_share_closes_is_not_converged():
    class Jump(of.Functional):
        """A potential with a low and a high well, and a price for each atom."""

        def value(self, mu):
            well = mu.expectation(lambda x: (-0.05 * x - x.cos().pow(8)).sum(-1))
            return well + 0.1 * mu.n

    room, mu = box(-1.0, 4.0), of.Particles(torch.zeros(1, 1, dtype=F64))
    with pytest.warns(NotConvergedWarning, match="F falls for no share"):
        run = run_of(FrankWolfe(room, sliding=True), 2, Jump(), mu, dt=0.5)
    assert run.converged is False
    assert run.info[-1]["gap"] == math.inf


# Masses -------------------------------------------------------------------------------


def likelihood(components, draws):
    """Return minus the log-likelihood of mixtures of bumps, which is not quadratic."""

    class Likelihood(of.Functional):
        def value(self, mu):
            density = mu.expectation(lambda x: torch.exp(-4 * (x - draws).square()))
            return -density.log().mean()

        def mixture_curvature(self):
            return "convex"

    return Likelihood(), of.Particles(components)


@pytest.mark.parametrize("n", [2, 7, 40])
def test_the_best_masses_leave_no_gap_over_the_atoms(n):
    generator = torch.Generator().manual_seed(n)
    draws = torch.randn(200, dtype=F64, generator=generator)
    F, mu = likelihood(torch.linspace(-3, 3, n, dtype=F64)[:, None], draws)
    best, used = best_masses(F, mu)
    rates = F.first_variation(best, mu.points)
    # For a convex F this is a proof: F(best) - min F <= the gap.
    gap = float(best.weights @ F.first_variation(best) - rates.min())
    assert abs(gap) < 1e-12
    assert float(F(best)) < float(F(mu))
    assert 1 <= best.n <= n
    assert used < 15 * (n + 1)
    if n > 7:
        assert best.n < n  # few bumps suffice, and the others vanish


@pytest.mark.slow
def test_mixtures_of_bumps_of_greatest_likelihood_have_few_atoms():
    # The nonparametric estimate of a mixing law has at most as many atoms as draws.
    generator = torch.Generator().manual_seed(1)
    centres = torch.tensor([-1.5, 0.0, 2.0], dtype=F64)
    pick = torch.randint(3, (300,), generator=generator)
    draws = centres[pick] + torch.randn(300, dtype=F64, generator=generator) / 8**0.5
    F, mu = likelihood(torch.zeros(1, 1, dtype=F64), draws)
    run = run_of(FrankWolfe(box(-4.0, 4.0), 64, sliding=True), 12, F, mu)
    assert rises(run) <= 1e-14
    assert run.info[-1]["gap"] < 1e-9
    assert 3 <= run.final.n < 10
