"""Reports on runs by every scheme: nothing is called proved that is not."""

from __future__ import annotations

import html
import json
import random

import pytest
import torch

import otflow as of
from otflow.analysis import certify
from otflow.errors import Diverged, InvalidFunctional
from otflow.testing.clouds import normal

F64 = torch.float64
SPRING = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
BARE = of.Potential(lambda x: 0.5 * x.square().sum(-1))
WELL = of.Potential(lambda x: 0.25 * (x.square() - 1).square().sum(-1))
MU = of.Particles(normal(8, 2, seed=1))


class Drawn(of.functionals.Scaled):
    """A functional whose draws have other factors."""

    def resample(self, generator):
        return Drawn(float(torch.rand(1, generator=generator)), self.functional)


DRAWN = Drawn(1.0, SPRING)
NAMES = [
    "status",
    "functional",
    "energy",
    "solves",
    "exact step",
    "time error",
    "modulus",
    "dissipation",
    "slope",
    "mixture",
    "gap",
    "step gap",
]


def cells():
    return of.GridDensity.from_function(
        lambda x: (-4 * (x - 1).square().sum(-1)).exp(), -4.0, 4.0, (80,), dtype=F64
    )


def run(F, mu, scheme, **options):
    options = {"dt": 0.1, "steps": 4, "generator": 0} | options
    return of.flow(F, mu, scheme, **options)


def verdicts(report):
    assert [finding.name for finding in report.findings] == NAMES
    return {finding.name: str(finding.verdict) for finding in report.findings}


def value(report, name):
    number = report[name].value
    assert number is not None
    return number


def test_all_is_proved_of_a_convex_flow():
    F, dt, n = SPRING, 0.1, 4
    report = certify(run(F, MU, of.JKO(), dt=dt, steps=n), F)
    found = verdicts(report)
    assert found["exact step"] == found["time error"] == "proved"
    assert found["energy"] == found["functional"] == found["dissipation"] == "observed"
    assert found["gap"] == "unknown"
    assert not report.failed
    # The numbers bound what is known exactly.
    final = MU.points / (1 + dt) ** n
    exact = MU.points * torch.exp(torch.tensor(-dt * n, dtype=F64))
    apart = float((final - exact).square().sum(1).mean().sqrt())
    assert apart <= value(report, "time error") <= 3 * apart
    assert 0 <= value(report, "exact step") < 1e-6
    least = float(F(of.Particles(final)))  # inf F = 0
    assert report["slope"].value == pytest.approx(least, rel=1e-9)
    assert all(
        step.exact == "proved" and step.energy == "observed" for step in report.steps
    )


SCHEMES = {
    "explicit": (BARE, MU, of.ExplicitEuler()),
    "with a modulus": (SPRING, MU, of.ExplicitEuler()),
    "Langevin": (BARE + 0.1 * of.Entropy(), MU, of.Langevin()),
    "SVGD": (BARE + of.Entropy(), MU, of.schemes.SVGD(of.kernels.Gaussian(1.0))),
    "birth and death": (SPRING, MU, of.BirthDeath()),
    "chain": (SPRING, MU, of.chain(of.ExplicitEuler(), of.BirthDeath())),
    "chain with a solve": (SPRING, MU, of.chain(of.JKO(), of.BirthDeath())),
    "noise": (BARE, MU, of.schemes.NoisyEuler(0.3)),
    "annealed": (
        BARE + 0.1 * of.Entropy(),
        MU,
        of.schemes.Anneal(of.Langevin(), 0.5),
    ),
    "batches": (
        of.MMDTo(normal(9, 2, seed=4), of.kernels.Gaussian(1.0), batch_size=3),
        MU,
        of.schemes.Minibatch(of.ExplicitEuler()),
    ),
    "batches of solves": (
        of.MMDTo(normal(9, 2, seed=4), of.kernels.Gaussian(1.0), batch_size=3),
        MU,
        of.schemes.Minibatch(of.JKO()),
    ),
    "convex batches of solves": (DRAWN, MU, of.schemes.Minibatch(of.JKO())),
    "copies": (
        SPRING,
        MU,
        of.chain(of.BirthDeath(5.0), of.schemes.Resample(0.999)),
    ),
    "no convexity": (WELL, MU, of.JKO()),
    "second order": (SPRING, MU, of.JKO(order=2)),
    "regularised": (
        SPRING,
        MU,
        of.JKO(of.proximal.SinkhornParticles(0.1)),
    ),
}


def make(name):
    F, mu, scheme = SCHEMES[name]
    return F, run(F, mu, scheme)


def test_one_step_on_a_draw_proves_nothing_of_the_whole():
    trajectory = run(DRAWN, MU, of.schemes.Minibatch(of.JKO()), steps=1)
    assert trajectory.info[0].guarantee == "exact"
    report = certify(trajectory, DRAWN)
    assert not report.proved
    assert "other draws of data" in report["time error"].text


def test_steps_at_another_temperature_prove_nothing_of_f():
    F = SPRING + 0.3 * of.Entropy()
    start = of.GridDensity.from_function(
        lambda x: (-x.square().sum(-1)).exp(), -4, 4, 80, dtype=F64, walls=True
    )
    trajectory = run(F, start, of.schemes.Anneal(of.JKO(), 0.5))
    report = certify(trajectory, F)
    assert not report.proved
    assert trajectory.info[1].guarantee == "exact"
    assert "another temperature" in report["time error"].text
    # The first step is at the temperature of F, the others are not.
    assert [step.exact for step in report.steps] == ["proved", *["unknown"] * 3]


@pytest.mark.parametrize("name", SCHEMES)
def test_nothing_is_proved_of_what_has_no_proof(name):
    F, trajectory = make(name)
    report = certify(trajectory, F)
    verdicts(report)
    assert not report.proved, report.proved
    assert not report.failed, report.failed
    assert len(report.steps) == 4
    solved = "solve" in name or name == "regularised"
    assert (report["modulus"].verdict == "observed") <= solved
    if name in ("Langevin", "SVGD"):
        assert report["energy"].verdict == "unknown"
        assert "without the entropy" in report["functional"].text
    if "birth" in name or "chain" in name:
        assert report["exact step"].verdict != "proved"
        assert "masses changed" in report["dissipation"].text
    if name == "no convexity":
        assert {step.guarantee for step in report.steps} == {"stationary"}
        assert report["exact step"].verdict == "observed"
        assert "unknown convexity" in report["time error"].text


@pytest.mark.parametrize(
    "scheme",
    [
        of.BirthDeath(200.0, jumps=True),
        of.BirthDeath(
            200.0, prior=of.Gaussian(torch.zeros(1).to(F64), torch.eye(1).to(F64))
        ),
    ],
)
def test_a_rise_by_jumps_or_births_is_one_of_chance(scheme):
    mu = of.Particles(torch.linspace(-2, 2, 12, dtype=F64)[:, None])
    F = of.MMDTo(of.Particles(mu.points + 0.1), of.kernels.Gaussian(0.3))
    trajectory = of.flow(F, mu, scheme, dt=0.05, steps=30, generator=0)
    assert float(trajectory.records["energy"].diff().max()) > 0.01
    report = certify(trajectory, F)
    assert not report.failed, report.failed
    assert "a random step may raise" in report["energy"].text
    assert report["dissipation"].verdict == "unknown"
    assert "the identity is one of" in report["dissipation"].text


@pytest.mark.parametrize("outer", [False, True])
def test_a_rise_on_draws_of_data_is_one_of_chance_wherever_they_are_made(outer):
    X, g = normal(60, 2, seed=1), torch.Generator().manual_seed(0)
    layer = of.meanfield.TwoLayer("tanh")
    risk = of.meanfield.Risk(layer, X, (X[:, 0] * X[:, 1]).tanh(), batch_size=2)
    mu = of.Particles(torch.randn(9, 4, dtype=F64, generator=g))
    draws, parts = of.schemes.Minibatch, (of.ExplicitEuler(), of.BirthDeath())
    scheme = draws(of.chain(*parts)) if outer else of.chain(*map(draws, parts))
    trajectory = of.flow(risk, mu, scheme, dt=0.5, steps=20, generator=0)
    assert float(trajectory.records["energy"].diff().max()) > 0
    report = certify(trajectory, risk)
    assert not report.failed, report.failed
    assert "20 of 20 steps are random" in report["energy"].text


def test_reaction_on_a_grid_is_no_transport():
    rho = of.GridDensity.from_function(
        lambda x: torch.exp(-x.square().sum(-1)), lower=-4.0, upper=4.0, shape=(40,)
    )
    F = of.Potential(lambda x: (x[:, 0] - 1).square())
    for scheme in (of.BirthDeath(), of.BirthDeath(prior=rho)):
        trajectory = of.flow(F, rho, scheme, dt=0.05, steps=5)
        report = certify(trajectory, F)
        assert report["dissipation"].verdict == "unknown"
        assert "masses changed by reaction" in report["dissipation"].text
        assert report["energy"].verdict == "observed"


def test_an_adaptive_flow_is_proved_step_by_step():
    scheme = of.schemes.Adaptive(of.JKO(), tolerance=1e-2)
    trajectory = run(SPRING, MU, scheme)
    report = certify(trajectory, SPRING)
    assert report["exact step"].verdict == "proved"
    assert report["time error"].verdict == "proved"
    assert report["time error"].value == float(trajectory.time_error()[-1])


@pytest.mark.parametrize(
    "mu",
    [
        of.Quantiles(torch.linspace(-1, 3, 30, dtype=F64)),
        of.Gaussian(torch.ones(2, dtype=F64), 3 * torch.eye(2, dtype=F64)),
    ],
    ids=["quantiles", "Gaussian"],
)
def test_densities_are_certified_too(mu):
    F = SPRING + of.Entropy()
    report = certify(run(F, mu, of.JKO()), F)
    assert {f.name for f in report.proved} == {"exact step", "time error"}
    assert not report.failed


def test_a_grid_bounds_each_step_but_not_the_time_error():
    F = SPRING + of.Entropy()
    report = certify(run(F, cells(), of.JKO()), F)
    assert [finding.name for finding in report.proved] == ["exact step"]
    assert "time_error(inner=False)" in report["time error"].text
    assert "no slope of F" in report["slope"].text


def test_another_functional_is_refused():
    trajectory = run(SPRING, MU, of.JKO())
    for F in (2 * SPRING, SPRING + 1e-6 * WELL, WELL):
        with pytest.raises(InvalidFunctional, match="not the functional of the run"):
            certify(trajectory, F)


def test_a_modulus_that_the_functional_does_not_state_proves_nothing():
    trajectory = run(SPRING, MU, of.JKO())
    for F in (BARE, of.Potential(SPRING.V, modulus=0.5)):
        report = certify(trajectory, F)
        assert not report.proved
        assert "used the modulus 1" in report["exact step"].text
        assert report["time error"].verdict == "failed"


def test_a_refuted_modulus_proves_nothing():
    """The well has the modulus -1; 0 is declared."""
    false = of.Potential(WELL.V, modulus=0.0)
    near = of.Particles(torch.tensor([[0.3], [0.2]], dtype=F64))
    report = certify(run(false, near, of.JKO(), dt=0.2), false)
    assert "the modulus 0 is refuted: step 0 lost" in report["modulus"].text
    assert not report.proved
    # Where the well is convex no loss contradicts 0, but the other side does.
    mu = of.Particles(torch.tensor([[0.7], [0.8]], dtype=F64))
    trajectory = run(false, mu, of.JKO(), dt=0.2)
    assert len(certify(trajectory, false).proved) == 2
    report = certify(trajectory, false, against=[mu, of.Particles(0 * mu.points - 1)])
    assert report["modulus"].verdict == "failed"
    assert (
        "refuted by step 0: its inequality with the measure against[1]"
        in report["modulus"].text
    )
    for name in ("exact step", "time error"):
        assert report[name].verdict == "failed"
        assert "nothing is proved: the modulus 0 is refuted" in report[name].text
    # The true one passes, and one that is too large by 1 % does not.
    true = of.Potential(WELL.V, modulus=-1.0)
    assert len(certify(run(true, near, of.JKO(), dt=0.2), true).proved) == 2
    large = of.Potential(SPRING.V, modulus=1.01)
    assert certify(run(large, MU, of.JKO()), large)["modulus"].verdict == "failed"
    report = certify(run(SPRING, MU, of.JKO()), SPRING, against=[MU, nu2()])
    assert report["modulus"].verdict == "observed"
    assert len(report.proved) == 2
    report = certify(run(SPRING, MU, of.ExplicitEuler()), SPRING, against=[MU])
    assert report["modulus"].verdict == "unknown"
    assert "is not one step of JKO()" in report["modulus"].text


def nu2():
    return of.Particles(3 * normal(5, 2, seed=40))


ROUND = of.Potential(lambda x: (x.square().sum(-1) + 1).sqrt(), modulus=0.0)


def random_flow(kind, seed, dtype):
    """Return a convex functional, and a flow of it by steps of random length."""
    draw = random.Random(seed)
    V = draw.choice([ROUND, SPRING, 0.3 * SPRING, 4 * SPRING])
    if kind == "particles":
        F = V + draw.choice([0.0, 1.0]) * of.Interaction(of.kernels.Quadratic())
        x = draw.choice([0.1, 1.0, 5.0]) * normal(9, 2, seed=seed, dtype=dtype)
        w = normal(9, seed=seed + 1, dtype=dtype).exp() if seed % 2 else None
        mu: of.Measure = of.Particles(x, w, normalize=w is not None)
    elif kind == "quantiles":
        F = V + draw.choice([of.Entropy(), 0.1 * of.PowerEntropy(2.0)])
        gaps = normal(15, seed=seed, dtype=dtype).exp() / 5
        mu = of.Quantiles(gaps.cumsum(0) - 3)
    else:
        F = V + draw.choice([0.1, 1.0]) * of.Entropy()
        A = normal(2, 2, seed=seed, dtype=dtype)
        S = A @ A.T + 0.2 * torch.eye(2, dtype=dtype)
        mu = of.Gaussian(normal(2, seed=seed + 1, dtype=dtype), S)
    return F, run(F, mu, of.JKO(), dt=draw.choice([0.01, 0.1, 0.5, 2.0]), steps=3)


@pytest.mark.parametrize("seed", range(12))
def test_proved_numbers_hold_where_the_flow_is_known(seed):
    """Of lam |x|^2 / 2 the step is x / (1 + lam dt), the flow exp(-lam t) x."""
    draw = random.Random(seed)
    lam, dt = draw.choice([0.2, 1.0, 5.0]), draw.choice([0.02, 0.2, 1.0])
    F = of.Potential(lambda x: 0.5 * lam * x.square().sum(-1), modulus=lam)
    x = 10 ** draw.uniform(-1, 1) * normal(6, draw.randint(1, 3), seed=seed)
    w = normal(6, seed=seed + 9).exp() if seed % 2 else None
    mu = of.Particles(x, w, normalize=w is not None)
    trajectory = run(F, mu, of.JKO(), dt=dt, steps=draw.randint(1, 6))
    report = certify(trajectory, F)
    assert {f.name for f in report.proved} == {"exact step", "time error"}

    def apart(start, scale, end):
        found = scale * start.points - end.points
        return float((end.weights @ found.square().sum(1)).sqrt())

    for step, a, b in zip(
        report.steps, trajectory.snapshots, trajectory.snapshots[1:], strict=False
    ):
        assert step.bound is not None
        assert apart(a, 1 / (1 + lam * dt), b) <= step.bound + 1e-13
    t = float(trajectory.times[-1])
    decay = float(torch.exp(torch.tensor(-lam * t, dtype=F64)))
    assert apart(mu, decay, trajectory.final) <= value(report, "time error") + 1e-13
    # Here inf F = 0, and the slope bound is an equality.
    assert value(report, "slope") == pytest.approx(float(F(trajectory.final)))


@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=str)
@pytest.mark.parametrize("kind", ["particles", "quantiles", "Gaussian"])
def test_no_true_modulus_is_refuted(kind, dtype):
    for seed in range(8):
        F, trajectory = random_flow(kind, seed, dtype)
        ends = trajectory.snapshots[0], trajectory.snapshots[-1]
        report = certify(trajectory, F, against=ends)
        assert report["modulus"].verdict == "observed"
        assert not report.failed


def test_what_failed_is_said():
    with pytest.raises(Diverged) as caught:
        run(
            -1.0 * WELL,
            of.Particles(2 + MU.points.abs()),
            of.ExplicitEuler(),
            dt=1.0,
            steps=50,
        )
    report = certify(caught.value.trajectory, -1.0 * WELL)
    assert report["status"].verdict == "failed"
    assert str(report).startswith("diverged after")
    # Steps that are too long raise the energy.
    report = certify(run(SPRING, MU, of.ExplicitEuler(), dt=2.5), SPRING)
    assert report["energy"].verdict == "failed"
    assert [step.energy for step in report.steps] == ["failed"] * 4
    assert "rose in 4 of 4 steps, first in step 0" in report["energy"].text


def test_a_solve_that_does_not_converge_is_a_failure():
    scheme = of.JKO(of.proximal.ParticleProximal(max_gradients=1))
    with pytest.warns(of.errors.NotConvergedWarning):
        trajectory = run(WELL, MU, scheme)
    report = certify(trajectory, WELL)
    assert report["solves"].verdict == report["exact step"].verdict == "failed"
    assert not report.proved


def test_a_run_of_few_records_is_certified_as_far_as_it_goes():
    trajectory = run(SPRING, MU, of.ExplicitEuler(), every=2)
    report = certify(trajectory, SPRING)
    assert report["energy"].verdict == "observed"
    assert "between any of 2 pairs of successive records" in report["energy"].text
    assert report["functional"].verdict == "observed"
    nothing = run(SPRING, MU, of.ExplicitEuler(), steps=0)
    report = certify(nothing, SPRING)
    assert not report.proved
    assert report.steps == ()
    assert report.head.startswith("finished after 0 steps")


def test_a_run_in_another_dtype_is_compared_as_far_as_its_digits_go():
    single = of.Particles(MU.points.float())
    report = certify(run(SPRING, single, of.JKO()), SPRING)
    assert report["functional"].verdict == "observed"
    report = certify(run(SPRING, single, of.JKO()).to(F64), SPRING)
    assert report["functional"].verdict == "unknown"
    assert "no round-off of this dtype" in report["functional"].text


def test_the_gap_keeps_its_kind():
    F, mu = SPRING, of.Particles(MU.points / 4)
    box = of.optimality.BoxDomain(
        torch.full((2,), -2.0, dtype=F64), torch.full((2,), 2.0, dtype=F64)
    )
    gap = of.optimality.optimality_gap(F, run(F, mu, of.JKO()).final, box)
    report = certify(run(F, mu, of.JKO()), F, domain=box)
    words = {"proved": "proved", "searched": "observed"}
    assert report["gap"].verdict == words[gap.kind]
    assert report["gap"].value == pytest.approx(gap.value)
    G = of.Interaction(of.kernels.Quadratic())
    report = certify(run(G, mu, of.JKO()), G, domain=box)
    assert report["gap"].verdict == "unknown"
    assert report["gap"].value is None


@pytest.mark.parametrize("prove", [True, False])
def test_the_gaps_of_frank_wolfe_keep_their_kind(prove):
    F = of.MMDTo(normal(5, 2), of.kernels.Gaussian(1.0))
    box = of.optimality.BoxDomain(-4.0, 4.0)
    walk = run(F, MU, of.schemes.FrankWolfe(box, prove=prove), dt=1.0, steps=6)
    report = certify(walk, F)
    finding = report["step gap"]
    least = min(range(6), key=lambda k: walk.info[k]["gap"])
    assert finding.verdict == ("proved" if prove else "observed")
    assert finding.value == walk.info[least]["gap"]
    assert f"before step {least}, " in finding.text
    assert walk.info[least]["gap_reason"] in finding.text
    # The infimum is 0: the gap of a measure is at least its value.
    before = walk.records["energy"][least] if len(walk.records["energy"]) > 6 else None
    assert before is None or float(before) <= value(report, "step gap") + 1e-12
    # A scheme without gaps has none.
    assert verdicts(certify(run(F, MU, of.ExplicitEuler()), F))["step gap"] == "unknown"


@pytest.mark.parametrize("sliding", [True, False])
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: of.schemes.chain(s)])
def test_the_gap_of_a_draw_is_none_of_the_functional(sliding, wrap):
    F = of.MMDTo(normal(5, 2), of.kernels.Gaussian(1.0), batch_size=2)
    box = of.optimality.BoxDomain(-4.0, 4.0)
    inner = of.schemes.FrankWolfe(box, sliding=sliding)
    walk = run(F, MU, wrap(of.schemes.Minibatch(inner)), dt=1.0, steps=2)
    finding = certify(walk, F)["step gap"]
    assert (finding.verdict, finding.value) == ("unknown", None)
    assert "draws of data" in finding.text


def test_it_is_written_as_text_page_and_json():
    trajectory = run(SPRING, MU, of.JKO(), steps=30)
    report = certify(trajectory, SPRING)
    text = str(report)
    for word in ("proved", "observed", "unknown", "convexity", "12 of 30 steps"):
        assert word in text
    assert "as modulus= of V declares" in text
    assert "failed" not in text
    page = report._repr_html_()
    assert page.startswith("<div>")
    assert "time error" in page
    assert "no picture" not in page
    read = json.loads(report.to_json())
    assert len(read["steps"]) == 30
    assert read["findings"][0]["verdict"] == "observed"
    assert {f["name"] for f in read["findings"]} == set(NAMES)
    counts = "2 proved, 8 observed, 2 unknown"
    assert repr(report) == (f"RunCertificate(finished after 30 steps, t = 3: {counts})")
    with pytest.raises(KeyError, match="the findings are status, functional"):
        report["energie"]


def test_what_is_no_run_is_refused():
    with pytest.raises(TypeError, match="pass what flow returned"):
        certify(MU, SPRING)
    with pytest.raises(TypeError, match="F must be"):
        certify(run(SPRING, MU, of.JKO()), lambda x: x)
    with pytest.raises(TypeError, match=r"against\[0\] must be"):
        certify(run(SPRING, MU, of.JKO()), SPRING, against=[MU.points])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="domain must be"):
        certify(run(SPRING, MU, of.JKO()), SPRING, domain=3)


class Tilted(of.Functional):
    """A double well in the mean, whose word is not true."""

    def __init__(self, word):
        self.word = word

    def value(self, mu):
        mean = mu.weights @ mu.points.sum(-1)
        return (mean.square() - 1).square()

    def mixture_curvature(self):
        return self.word


FALSE = of.Potential(lambda x: ((x**2 - 1) ** 2 + 0.3 * x).sum(-1), modulus=5.0)
TWO = of.Particles(torch.tensor([[1.5], [0.9]], dtype=F64))
LINE = of.optimality.BoxDomain(-2.0, 2.0)


@pytest.mark.parametrize("by", ["a measure", "a list", "the place of the gap"])
def test_nothing_rests_on_a_modulus_that_is_refuted(by):
    least = of.Particles(torch.full((2, 1), -1.036, dtype=F64))
    given = {
        "a measure": {"against": least},
        "a list": {"against": [least]},
        "the place of the gap": {"domain": LINE},
    }[by]
    trajectory = run(FALSE, TWO, of.JKO(), dt=0.2, steps=30)
    report = certify(trajectory, FALSE, **given)
    for name in ("exact step", "time error", "modulus", "slope"):
        assert report[name].verdict == "failed"
        assert "the modulus 5 is refuted by step 0" in report[name].text
    assert {(step.exact, step.bound) for step in report.steps} == {("failed", None)}
    assert report.why.splitlines()[-1].startswith("but the modulus 5 is refuted")
    assert {finding.name for finding in report.proved} <= {"gap"}
    assert " (proved)" not in str(report)
    # Without any of them no step contradicts the modulus.
    assert certify(trajectory, FALSE)["modulus"].verdict == "observed"


@pytest.mark.parametrize("word", ["convex", "linear", "concave"])
def test_a_false_word_of_mixtures_is_contradicted(word):
    """(m^2 - 1)^2 of the mean m is concave near 0, and convex far from it."""
    F = Tilted(word)
    mu = of.Particles(torch.tensor([[1.0]], dtype=F64))
    other = of.Particles(
        torch.tensor([[-1.0 if word != "concave" else 9.0]], dtype=F64)
    )
    trajectory = run(F, mu, of.ExplicitEuler(), dt=0.01)
    report = certify(trajectory, F, against=other)
    found = report["mixture"]
    assert found.verdict == "failed"
    assert f"declared {word} along mixtures" in found.text
    assert "the measure against[0], share" in found.text
    # Without a measure on the other side nothing contradicts it.
    assert certify(trajectory, F)["mixture"].verdict == "observed"
    unknown = certify(trajectory, Tilted(None))["mixture"]
    assert unknown.verdict == "unknown"
    assert unknown.value is None


def test_no_gap_rests_on_a_word_that_is_contradicted():
    """F' at the mean 1.5 is least at -1, the other well."""
    F, box = Tilted("convex"), of.optimality.BoxDomain(-1.0, 2.0)
    mu = of.Particles(torch.tensor([[1.5]], dtype=F64))
    trajectory = run(F, mu, of.ExplicitEuler(), dt=1e-4)
    gap = of.optimality.optimality_gap(F, trajectory.final, box)
    assert gap.kind == "none"
    assert gap.argmin is not None
    assert float(gap.argmin) == pytest.approx(-1.0)
    report = certify(trajectory, F, domain=box)
    assert "one atom where F' is least" in report["mixture"].text
    assert report["mixture"].verdict == "failed"
    assert report["gap"].verdict == "unknown"
    assert report["gap"].value is None
    assert "is convex along mixtures, " in report["gap"].text
    assert "and that is false: half way between" in report["gap"].text


WORDS = {
    "kernel": of.MMDTo(normal(9, 2, seed=4), of.kernels.Gaussian(1.0)),
    "energy distance": of.EnergyDistanceTo(normal(9, 2, seed=4)),
    "potential": SPRING,
    "a small part": SPRING + 1e-9 * of.Interaction(of.kernels.Gaussian(1.0)),
    "repulsion": -1.0 * of.Interaction(of.kernels.Log()),
}


@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=str)
@pytest.mark.parametrize("name", WORDS)
def test_no_true_word_of_mixtures_is_contradicted(name, dtype):
    F = WORDS[name].to(dtype=dtype)
    for seed, size in enumerate((1e-3, 1.0, 30.0)):
        mu = of.Particles(size * normal(7, 2, seed=seed, dtype=dtype))
        nu = of.Particles(normal(4, 2, seed=seed + 9, dtype=dtype))
        report = certify(
            run(F, mu, of.ExplicitEuler()), F, against=[nu, nu.push(nu.points, 1e-6)]
        )
        # The energy of a repulsion leaves out pairs of one atom: it is no function of
        # the measure.
        known = "unknown" if name == "repulsion" else "observed"
        assert report["mixture"].verdict == known


def test_svgd_is_not_random():
    F, trajectory = make("SVGD")
    report = certify(trajectory, F)
    assert "random" not in report["energy"].text
    assert "leave out the entropy" in report["energy"].text
    assert "smoothed" in report["dissipation"].text


def test_a_frank_wolfe_step_may_raise_the_energy():
    target = torch.tensor([[0.0], [0.5]], dtype=F64)
    F = of.MMDTo(target, of.kernels.Gaussian(0.5))
    trajectory = run(F, TWO, of.schemes.FrankWolfe(LINE), dt=1.0, steps=12)
    report = certify(trajectory, F)
    ups = int((trajectory.records["energy"].diff() > 0).sum())
    assert ups > 0
    assert (report["energy"].verdict, report["energy"].value) == ("observed", ups)
    assert "normal for plain Frank-Wolfe" in report["energy"].text
    assert not report.failed
    assert "failed" not in {step.energy for step in report.steps}


def test_each_step_has_its_time():
    for scheme in (of.ExplicitEuler(), of.schemes.FrankWolfe(LINE, sliding=True)):
        F = of.Potential(lambda x: 0.5 * x.square().sum(-1))
        report = certify(run(F, TWO, scheme, dt=0.25), F)
        assert [step.dt for step in report.steps] == [0.25] * 4


def test_a_domain_that_misses_atoms_leaves_the_rest_of_the_report():
    trajectory = run(SPRING, TWO, of.JKO())
    report = certify(trajectory, SPRING, domain=of.optimality.BoxDomain(5.0, 6.0))
    assert report["gap"].verdict == "unknown"
    assert "2 of 2" in report["gap"].text
    assert report["time error"].verdict == "proved"
    with pytest.raises(ValueError, match="descend"):
        certify(trajectory, SPRING, descend=-1)


def test_the_noise_of_a_run_tells_its_entropy():
    """Records of Langevin leave out the entropy, so the energies are the same."""
    F = BARE + 0.1 * of.Entropy()
    trajectory = run(F, MU, of.Langevin())
    assert certify(trajectory, F)["functional"].verdict == "observed"
    for other in (BARE, BARE + 0.2 * of.Entropy()):
        with pytest.raises(InvalidFunctional, match=r"step 0 took F to hold 0\.1 \*"):
            certify(trajectory, other)


def test_a_part_of_a_step_is_no_whole_step():
    F, trajectory = make("chain with a solve")
    report = certify(trajectory, F)
    assert {step.guarantee for step in report.steps} == {"exact in 1 of 2 parts"}
    assert "there is no exact JKO step" in report["exact step"].text


def test_a_diverged_run_is_not_compared():
    far = of.Particles(2 + MU.points.abs())
    with pytest.raises(Diverged) as caught:
        run(-1.0 * WELL, far, of.ExplicitEuler(), dt=1.0, steps=50)
    report = certify(caught.value.trajectory, -1.0 * WELL)
    assert report["dissipation"].verdict == "unknown"
    assert "'diverged'" in report["dissipation"].text


def test_a_report_names_what_it_is_about():
    trajectory = run(SPRING, TWO, of.JKO())
    report = certify(trajectory, SPRING, domain=LINE)
    assert report.about == {
        "functional": repr(SPRING),
        "scheme": repr(of.JKO()),
        "measure": "Particles, n = 2, d = 1, torch.float64",
        "dt": "0.1",
        "seed": "0",
        "domain": repr(LINE),
        "otflow": of.__version__,
    }
    assert json.loads(report.to_json())["about"] == report.about
    assert report.to_html() == report._repr_html_()
    for word in report.about.values():
        assert word in str(report)
        assert html.escape(word) in report.to_html()


def test_a_report_runs_through_its_findings():
    report = certify(run(SPRING, TWO, of.JKO()), SPRING)
    assert list(report) == list(report.findings)
    assert [finding.name for finding in report] == NAMES
    assert "gap" in report
    assert report["gap"] in report
    assert "energie" not in report


@pytest.mark.parametrize(("word", "verdict"), [("convex", "failed"), (None, "unknown")])
def test_a_gap_of_steps_fails_with_the_convexity_it_rests_on(word, verdict):
    at = of.Particles(torch.tensor([[0.1]], dtype=F64))
    scheme = of.schemes.FrankWolfe(LINE, descend=10)
    tilted = of.flow(Tilted(word), at, scheme, dt=0.5, steps=2, generator=0)
    assert certify(tilted, Tilted(word), domain=LINE)["step gap"].verdict == verdict
