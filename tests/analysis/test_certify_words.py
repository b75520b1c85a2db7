"""What a report on a run says where less is known than a reader hopes."""

from __future__ import annotations

import math
import re

import pytest
import torch

import otflow as of
from otflow.analysis import certify, evolution_variational_inequality
from otflow.optimality import BoxDomain, OnGrid, entropic_gap, optimality_gap
from otflow.testing.clouds import normal

F64 = torch.float64
SPRING = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
QUARTIC = of.Potential(lambda x: (x**4 / 4 + x**2 / 2).sum(-1), modulus=1.0)
MU = of.Particles(normal(8, 1, seed=1))
GAUSSIAN = of.Gaussian(torch.ones(1, dtype=F64), torch.eye(1, dtype=F64))
HOT = SPRING + 0.5 * of.Entropy()


def verdict(report, name):
    return str(report[name].verdict)


# The slope ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "family"),
    [
        (GAUSSIAN, "over all Gaussians,"),
        (
            of.Quantiles.from_quantile(lambda u: 3 * u - 1, 12, dtype=F64),
            "over all Quantiles of these 12 masses,",
        ),
    ],
    ids=["Gaussian", "Quantiles"],
)
def test_the_slope_bounds_an_infimum_over_the_representation(start, family):
    """The infimum over all densities, -log Z, is far below."""
    F = QUARTIC + of.Entropy()
    run = of.flow(F, start, of.JKO(), dt=0.3, steps=40)
    found = certify(run, F)["slope"]
    grid = torch.linspace(-6, 6, 24001, dtype=F64)
    mass = torch.trapezoid((-(grid**4) / 4 - grid**2 / 2).exp(), grid)
    excess = float(F(run.final)) + math.log(mass)
    assert found.value is not None
    assert excess > 0.01
    assert found.value < 1e-6
    assert f"of its infimum {family}" in found.text
    assert found.text.endswith("over all measures the infimum may be lower")


# Cures that a report gives -----------------------------------------------------------


def test_an_unknown_modulus_is_tried_by_what_the_report_names():
    F = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    run = of.flow(F, MU, of.JKO(), dt=0.1, steps=4)
    text = certify(run, F, against=MU)["modulus"].text
    assert "evolution_variational_inequality(F, run, nu, modulus=...)" in text
    assert "give modulus=" not in text  # certify takes none
    assert evolution_variational_inequality(F, run, MU, modulus=1.0).holds
    assert not evolution_variational_inequality(F, run, MU, modulus=9.0).holds


def test_other_steps_are_no_case_for_more_records():
    """Records of each step would lead to the next error, not to an answer."""
    slow = of.flow(HOT, MU, of.Langevin(), dt=0.1, steps=4, every=2, generator=0)
    text = certify(slow, HOT, against=MU)["modulus"].text
    assert text.startswith("not tried against the measures given: step 0 is not one")
    assert "every=1" not in text
    assert "flow with JKO() on a GridDensity" in text
    rho = of.GridDensity.from_samples(MU.points, -6, 6, 40, bandwidth=0.5)
    done = of.flow(HOT, rho, of.JKO(), dt=0.1, steps=4)
    nu = of.optimality.gibbs(HOT, rho).measure
    assert verdict(certify(done, HOT, against=nu), "modulus") == "observed"
    explicit = of.flow(SPRING, MU, of.ExplicitEuler(), dt=0.1, steps=4, every=2)
    text = certify(explicit, SPRING, against=MU)["modulus"].text
    assert text.endswith("flow with JKO()")
    rare = of.flow(SPRING, MU, of.JKO(), dt=0.1, steps=4, every=2)
    text = certify(rare, SPRING, against=MU)["modulus"].text
    assert text.endswith("every=1)")
    often = of.flow(SPRING, MU, of.JKO(), dt=0.1, steps=4, every=1)
    assert verdict(certify(often, SPRING, against=MU), "modulus") == "observed"


@pytest.mark.parametrize("domain", [None, BoxDomain(-9, 9), OnGrid()])
@pytest.mark.parametrize("by", ["Langevin", "Gaussian"])
def test_a_run_without_a_gap_is_told_the_density_that_has_one(by, domain):
    if by == "Langevin":
        run = of.flow(HOT, MU, of.Langevin(), dt=0.1, steps=4, generator=0)
    else:
        run = of.flow(HOT, GAUSSIAN, of.JKO(), dt=0.1, steps=4)
    found = certify(run, HOT, domain=domain)["gap"]
    assert found.verdict == "unknown"
    made = re.search(r"at rho = GridDensity\.from_samples\((.*), lower", found.text)
    assert made is not None
    points = run.final.points
    if "sample" in made[1]:
        assert made[1] == "run.final.sample(100_000, generator)"
        points = run.final.sample(100_000, torch.Generator().manual_seed(0))
    rho = of.GridDensity.from_samples(points, -8, 8, 80)
    ask = "optimality.entropic_gap(F, rho)" if by == "Langevin" else "optimality_gap"
    assert ask in found.text
    assert entropic_gap(HOT, rho).kind == "proved"
    assert optimality_gap(HOT, rho, OnGrid()).kind == "proved"


def test_a_domain_that_does_not_fit_leaves_the_rest_of_the_report():
    run = of.flow(SPRING, MU, of.JKO(), dt=0.1, steps=4)
    report = certify(run, SPRING, domain=OnGrid())
    assert verdict(report, "gap") == "unknown"
    assert "must be a GridDensity" in report["gap"].text
    assert verdict(report, "time error") == "proved"


def test_a_grid_is_told_its_own_domain():
    rho = of.GridDensity.from_samples(MU.points, -6, 6, 40, bandwidth=0.5)
    run = of.flow(HOT, rho, of.JKO(), dt=0.1, steps=2)
    assert "domain=optimality.OnGrid()" in certify(run, HOT)["gap"].text
    assert verdict(certify(run, HOT, domain=OnGrid()), "gap") == "proved"


def test_a_measure_to_try_against_has_the_dimension_and_the_dtype_of_the_run():
    run = of.flow(SPRING, MU, of.JKO(), dt=0.1, steps=4)
    plane = of.Particles(normal(8, 2))
    with pytest.raises(ValueError, match=r"against\[1\].*the end of the run"):
        certify(run, SPRING, against=[MU, plane])
    with pytest.raises(TypeError, match=r"against\[0\].*convert one with \.to\("):
        certify(run, SPRING, against=MU.to(torch.float32))
    same = MU.to(torch.float32).to(F64)
    assert verdict(certify(run, SPRING, against=same), "modulus") == "observed"
    with pytest.raises(ValueError, match="nu"):
        evolution_variational_inequality(SPRING, run, plane)


def test_each_number_of_a_report_says_what_it_is():
    rho = of.GridDensity.from_samples(MU.points, -6, 6, 40, bandwidth=0.5)
    flat = of.Potential(lambda x: x.square().sum(-1))
    runs = [
        (SPRING, of.flow(SPRING, MU, of.JKO(), dt=0.1, steps=3), BoxDomain(-9, 9), MU),
        (HOT, of.flow(HOT, rho, of.JKO(), dt=0.1, steps=3), OnGrid(), ()),
        (flat, of.flow(flat, MU, of.ExplicitEuler(), dt=1.1, steps=3), None, ()),
    ]
    seen = set()
    for F, run, domain, nu in runs:
        report = certify(run, F, domain=domain, against=nu)
        for row in report.to_dict()["findings"]:
            assert bool(row["quantity"]) == (row["value"] is not None)
            seen |= {row["name"]} if row["quantity"] else set()
    others = {"status", "step gap"}  # no number; none of these runs has one
    assert seen == {finding.name for finding in report} - others


# Energies ----------------------------------------------------------------------------


def test_records_of_some_steps_tell_whether_the_energy_fell():
    run = of.flow(SPRING, MU, of.ExplicitEuler(), dt=0.01, steps=60, every=3)
    report = certify(run, SPRING)
    found = report["energy"]
    assert found.verdict == "observed"
    assert found.text.startswith("did not rise between any of 20 pairs")
    assert verdict(report, "dissipation") == "observed"
    table = str(report).split("\n\n")[-1].splitlines()
    # No column of dashes, and rows in which a number is known.
    assert table[0].split("  ") == ["step", "energy after"]
    assert len(table) == 14
    assert not any("-" in row.split() for row in table[1:-1])
    assert table[-1].startswith("12 of 20 steps of which something is known, of 60")
    assert table[0].split("  ")[1] in report.to_html()


def test_records_of_some_steps_tell_that_the_energy_rose():
    run = of.flow(SPRING, MU, of.ExplicitEuler(), dt=2.1, steps=6, every=2)
    found = certify(run, SPRING)["energy"]
    assert found.verdict == "failed"
    rise = float(run.records["energy"].diff().max())
    assert found.text == (
        "rose between 3 of 3 pairs of successive records, first from step 0 to step "
        f"2, by at most {rise:.3g}"
    )


def test_a_rise_tells_its_size():
    run = of.flow(SPRING, MU, of.ExplicitEuler(), dt=2.1, steps=6)
    found = certify(run, SPRING)["energy"]
    assert found.verdict == "failed"
    rise = float(run.records["energy"].diff().max())
    assert found.text.endswith(f"by at most {rise:.3g}")


@pytest.mark.parametrize("every", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_round_off_inside_of_a_functional_is_no_rise(every, dtype):
    """Large terms cancel: the last places of 1e6 are those of F."""

    def cancelling(x):
        large, angle = 1e6 if x.dtype == F64 else 1e2, 7 * x.sum(-1)
        unit = angle.sin().square() + angle.cos().square()
        return 0.5 * (x - 1).square().sum(-1) + large * unit - large

    F = of.Potential(cancelling)
    run = of.flow(F, MU.to(dtype), of.ExplicitEuler(), dt=0.1, steps=300, every=every)
    assert bool((run.records["energy"].diff() > 0).any())
    report = certify(run, F)
    assert verdict(report, "energy") == "observed"
    # A rise that is none of round-off is seen all the same.
    up = of.flow(F, MU.to(dtype), of.ExplicitEuler(), dt=2.1, steps=10, every=every)
    assert verdict(certify(up, F), "energy") == "failed"


class HeavyBall(of.schemes.Scheme):
    """Momentum: its energy rises, as it should."""

    def __init__(self, info):
        self.info = info

    def init(self, F, mu):
        return torch.zeros_like(mu.points)

    def step(self, F, mu, dt, state, generator):
        energy, force = F.value_and_velocity(mu)
        momentum = state + dt * (force - 0.2 * state)
        moved = mu.push(momentum, dt)
        return of.schemes.Step(moved, momentum, energy=energy, info=self.info)


@pytest.mark.parametrize("chained", [False, True])
def test_a_scheme_says_that_it_need_not_descend(chained):
    def made(info):
        ball = HeavyBall(info)
        scheme = of.chain(ball, of.BirthDeath(0.01)) if chained else ball
        return of.flow(SPRING, MU, scheme, dt=0.1, steps=60)

    assert verdict(certify(made({}), SPRING), "energy") == "failed"
    report = certify(made({"descends": False}), SPRING)
    assert verdict(report, "energy") == "observed"
    assert not report.failed
    text = report["energy"].text
    assert text.endswith("the scheme says of its steps that they need not lower it")
    assert "by at most" in text
    assert "of gradient flows" in report["dissipation"].text


# Numbers that say nothing ------------------------------------------------------------


def test_a_run_that_inserts_atoms_has_no_dissipation():
    # Both ends have one atom, and no atom moved from one to the other.
    F = of.Potential(lambda x: (x[..., 0] - 0.5).square())
    start = of.Particles(torch.tensor([[-0.75]], dtype=torch.float64))
    for sliding in (False, True):
        scheme = of.schemes.FrankWolfe(BoxDomain(-1, 1), sliding=sliding)
        run = of.flow(F, start, scheme, dt=1.0, steps=1)
        assert run.final.n == start.n
        found = certify(run, F)["dissipation"]
        assert found.verdict == "unknown"
        assert "atoms were new" in found.text


def test_a_dissipation_that_does_not_match_is_no_good_news():
    rare = of.flow(SPRING, MU, of.ExplicitEuler(), dt=0.1, steps=60, every=20)
    found = certify(rare, SPRING)["dissipation"]
    assert found.verdict == "unknown"
    assert found.text.endswith("rare, take every=1")
    often = of.flow(SPRING, MU, of.ExplicitEuler(), dt=0.05, steps=60, every=1)
    assert verdict(certify(often, SPRING), "dissipation") == "observed"
    long = of.flow(SPRING, MU, of.JKO(), dt=2.0, steps=4)
    found = certify(long, SPRING)["dissipation"]
    assert found.verdict == "unknown"
    assert "the steps are long, take a smaller dt" in found.text
    short = of.flow(SPRING, MU, of.JKO(), dt=0.1, steps=80)
    assert verdict(certify(short, SPRING), "dissipation") == "observed"


def test_steps_of_parts_are_told_as_such():
    """Each part was stepped with the others frozen; no temperature is in play."""
    both = of.measures.Parts({"left": MU, "right": MU})
    F = of.functionals.OfPart("left", SPRING) + of.functionals.OfPart("right", SPRING)
    run = of.flow(F, both, of.schemes.PartByPart(of.JKO()), dt=0.1, steps=2)
    found = certify(run, F)["time error"]
    assert found.verdict == "unknown"
    assert "in one part with the others frozen" in found.text
    assert verdict(certify(run, F), "exact step") == "unknown"
    assert not certify(run, F).failed


def test_a_time_error_beyond_the_way_of_the_run_says_so():
    wild = of.Potential(lambda x: -4 * x.square().sum(-1), modulus=-8.0)
    run = of.flow(wild, MU, of.JKO(), dt=0.1, steps=20)
    found = certify(run, wild)["time error"]
    assert found.verdict == "proved"
    way = sum(report.w2 or 0.0 for report in run.info)
    assert found.value is not None
    assert (found.value > way) == ("tells little" in found.text)
    assert found.value > way
    good = of.flow(SPRING, MU, of.JKO(), dt=0.1, steps=20)
    assert "tells little" not in certify(good, SPRING)["time error"].text
