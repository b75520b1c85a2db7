"""A resumed run warns when its problem is another one, and only then; its memory."""

from __future__ import annotations

import functools
import pickle
import re
import subprocess
import sys
import textwrap
import warnings

import pytest
import torch

import otflow as of
from otflow.errors import ResumeWarning
from otflow.testing import assert_same
from tests.test_resume import CASES, cloud, flown

F64 = torch.float64


def second_moment(mu):
    return mu.expectation(lambda x: x.square().sum(-1))


class Ridge(of.Functional):
    """Without a repr; a number and a word decide what it is."""

    def __init__(self, strength=1.0, *, power=1, kind="ridge"):
        self.strength, self.kind, self.inner = strength, kind, Holder(power)

    def value(self, mu):
        return self.strength * second_moment(mu) ** self.inner.power


class Holder:
    """A plain object without a repr."""

    def __init__(self, power):
        self.power = power


class Said(Ridge):
    def __repr__(self):
        return "Said()"


class Cached(of.Functional):
    """What it computes on first use is no part of it."""

    def __init__(self):
        self.library, self.function = torch, torch.sum
        self._calls = 0

    @functools.cached_property
    def table(self):
        return torch.full((3,), 1 / 3, dtype=F64)

    @functools.cached_property
    def number(self):
        return 2.0

    def value(self, mu):
        self._calls += 1
        return self.number * second_moment(mu) * self.table.sum()


class Fitted(of.Functional):
    def __init__(self, n):
        self.data = {"x": torch.ones(n, dtype=F64)}
        self.tables = [torch.ones(n, dtype=F64)]

    def value(self, mu):
        return second_moment(mu) * self.tables[0].mean()


def told(F, G, scheme=None, other=None):
    """Return the warnings of a run that goes on with another problem."""
    scheme = scheme or of.ExplicitEuler()
    run = of.flow(F, cloud(), scheme, dt=0.01, steps=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        of.flow(G, run.final, other or scheme, dt=0.01, steps=1, resume=run)
    assert all(issubclass(w.category, ResumeWarning) for w in caught)
    return [str(w.message) for w in caught]


@pytest.mark.parametrize(
    ("F", "G", "words"),
    [
        (Ridge(1.0), Ridge(2.0), r"F\.strength 2\.0"),
        (Ridge(kind="a"), Ridge(kind="b"), r"F\.kind 'b'"),
        (Ridge(power=1), Ridge(power=2), r"F\.inner\.power 2"),
        (2 * Ridge(1.0), 2 * Ridge(3.0), r"strength 3\.0"),
        (Fitted(3), Fitted(4), r"tables\[0\] \(4,\)"),
        (Ridge(), Said(), "Said"),
        (Ridge(), 2 * Ridge(), r"2 \* Ridge"),
        (Ridge(), Ridge() + of.Potential(lambda x: x.sum(-1)), "Potential"),
    ],
)
def test_another_functional_warns_once(F, G, words):
    found = told(F, G)
    assert len(found) == 1
    assert re.search(words, found[0])


@pytest.mark.parametrize(
    "make",
    [
        Ridge,
        Cached,
        lambda: Fitted(3),
        lambda: 2 * Cached() + Ridge(0.5),
        lambda: of.Potential(lambda x: x.square().sum(-1)),
        lambda: of.Interaction(of.kernels.Gaussian(1.0)),
    ],
)
def test_the_same_functional_does_not_warn(make):
    F = make()
    assert told(F, F) == []
    assert told(make(), make()) == []


def test_another_scheme_warns_once_and_another_step_not_at_all():
    F, Adaptive = Ridge(), of.schemes.Adaptive
    one, two = (Adaptive(of.ExplicitEuler(), tolerance=t) for t in (0.1, 0.2))
    assert told(F, F, one, one) == []
    assert ["tolerance=0.2" in text for text in told(F, F, one, two)] == [True]
    run = of.flow(F, cloud(), of.ExplicitEuler(), dt=0.01, steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        options = {"dt": 0.02, "every": 3, "snapshots": "none", "steps": 2}
        again = of.flow(F, run.final, of.ExplicitEuler(), resume=run, **options)
    assert again.steps.tolist() == [0, 1, 3, 4]
    assert again.snapshot_steps.tolist() == [0, 1]
    assert again.times.tolist() == pytest.approx([0, 0.01, 0.04, 0.06])


@pytest.mark.parametrize("case", CASES)
def test_no_scheme_of_otflow_warns_of_itself(case, tmp_path):
    run = flown(case, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResumeWarning)
        flown(case, 1, resume=run)


def test_a_used_generator_gives_one_seed_and_the_run_goes_on_with_it():
    used = torch.Generator().manual_seed(3)
    torch.rand(17, generator=used)
    state = used.get_state()
    whole = flown("langevin", 6, generator=used)
    after = used.get_state()
    used.set_state(state)
    part = flown("langevin", 2, generator=used)
    assert torch.equal(used.get_state(), after)
    torch.rand(5, generator=used)
    assert_same(flown("langevin", 4, resume=part), whole, but={"message"})
    assert_same(flown("langevin", 6, generator=whole.seed), whole)
    with pytest.raises(ValueError, match="leave generator out"):
        flown("langevin", 1, resume=part, generator=used)


@pytest.mark.parametrize("first", range(7))
def test_adaptive_steps_at_their_limits_go_on(first):
    wall = of.Potential(lambda x: (x.square().sum(-1) - 1).abs().sqrt())
    F = wall + of.Interaction(of.kernels.Gaussian(0.5))
    tight = of.schemes.Adaptive(of.ExplicitEuler(), tolerance=1e-2, min_dt=1e-7)
    spring = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
    loose = of.schemes.Adaptive(of.JKO(order=2), tolerance=10.0)
    still = of.Particles(torch.zeros(2, 1, dtype=F64))
    for G, mu, scheme in [
        (F, cloud(), tight),
        (spring, cloud(), loose),
        (spring, still, of.schemes.Adaptive(of.ExplicitEuler(), tolerance=0.1)),
    ]:
        options = {"dt": 0.5, "every": 2, "until": 3.0}
        whole = of.flow(G, mu, scheme, steps=6, generator=0, **options)
        part = of.flow(G, mu, scheme, steps=first, generator=0, **options)
        if float(part.times[-1]) >= 3.0:
            continue
        rest = of.flow(G, mu, scheme, steps=6 - first, resume=part, **options)
        assert_same(rest, whole, but={"message"})


# ---- what processes exchange ---------------------------------------------------------


def functionals():
    log, gauss = of.kernels.Log(), of.kernels.Gaussian(0.5)
    X = torch.linspace(-1, 1, 4, dtype=F64)[:, None]
    return {
        "potential": of.Potential(torch.square),
        "interaction": of.Interaction(gauss) + 2 * of.Interaction(log),
        "entropy": of.Entropy() + of.PowerEntropy(2.0),
        "risk": of.meanfield.Risk(of.meanfield.TwoLayer("tanh"), X, X[:, 0]),
        "ridge": 2 * Ridge(0.5) - Said(),
    }


@pytest.mark.parametrize("name", functionals())
def test_functionals_pickle_and_say_the_same_of_themselves(name):
    F = functionals()[name]
    again = pickle.loads(pickle.dumps(F))
    assert repr(again).split(" at 0x")[0] == repr(F).split(" at 0x")[0]
    if name == "entropy":
        mu: of.measures.Measure = of.Quantiles(torch.linspace(-1.0, 2.0, 9, dtype=F64))
    else:
        dim = {"risk": 3, "potential": 1}.get(name, 2)
        mu = cloud(6, dim)
    if name != "potential":
        assert_same(again.value(mu), F.value(mu))
        assert_same(again.velocity(mu), F.velocity(mu))


@pytest.mark.parametrize("case", CASES)
def test_schemes_pickle(case):
    scheme = CASES[case][2]
    assert repr(pickle.loads(pickle.dumps(scheme))) == repr(scheme)


@pytest.mark.slow
def test_a_spawned_process_goes_on_with_a_run(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import multiprocessing, torch, warnings, otflow as of
            torch.set_num_threads(1)
            F = of.Interaction(of.kernels.Quadratic()) + 0.1 * of.Entropy()

            def gone_on(run):
                torch.set_num_threads(1)
                warnings.simplefilter("error")
                return of.flow(F, run.final, of.Langevin(), dt=0.1, steps=3, resume=run)

            if __name__ == "__main__":
                mu = of.Particles(torch.linspace(-1, 1, 8).reshape(4, 2))
                flown = lambda k: of.flow(
                    F, mu, of.Langevin(), dt=0.1, steps=k, generator=0
                )
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    run = pool.map(gone_on, [flown(2)])[0]
                of.testing.assert_same(run, flown(5), but={"message"})
            """
        )
    )
    subprocess.run([sys.executable, str(script)], check=True, timeout=200)


# ---- memory --------------------------------------------------------------------------

MEMORY = """
import sys, torch, otflow as of
torch.set_num_threads(1)
steps, n, asked = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

class Still(of.Functional):
    def value(self, mu):
        return mu.points[0, 0] * 0.0
    def velocity(self, mu):
        return torch.zeros_like(mu.points)

class Drift(of.schemes.Scheme):
    def step(self, F, mu, dt, state, generator):
        return of.schemes.Step(of.Particles(mu.points + dt, mu.weights), state)

mu = of.Particles(torch.zeros(n, 1, dtype=torch.float64))
options = {"snapshots": eval(asked)}
if len(sys.argv) > 4:
    options |= {"checkpoint": sys.argv[4], "checkpoint_every": max(1, steps // 4)}
run = of.flow(Still(), mu, Drift(), dt=1e-9, steps=steps, **options)
assert len(run.info) == steps
# Not ru_maxrss: that of a parent with more memory is inherited.
with open("/proc/self/status") as status:
    print(next(int(line.split()[1]) for line in status if "VmHWM" in line) / 1024)
"""


def peak(steps, n, asked, *folders):
    """Return the largest memory of a flow in a process of its own, in MiB.

    It is the least of three processes: what the imports and the buffers of files take
    for a moment differs from one to the next by tens of MiB.
    """
    found = []
    for k in range(3):
        more = [f"{folder}-{k}" for folder in folders]
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(steps), str(n), asked, *more],
            capture_output=True,
            text=True,
            check=True,
        )
        found.append(float(done.stdout))
    return min(found)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("asked", ["'none'", "'last'", "[1e-9, 1.0]"])
def test_the_memory_of_a_long_flow_does_not_grow_with_its_steps(asked, tmp_path):
    """A measure of 10^6 numbers takes 8 MB: ten that stay would be seen."""
    n, ten_measures = 1_000_000, 80.0
    few, many = peak(10, n, asked), peak(120, n, asked)
    assert many - few < ten_measures
    written = [peak(k, n, asked, tmp_path / str(k)) for k in (12, 60)]
    assert written[1] - written[0] < ten_measures
    # The reports of the steps stay: some kB each, whatever the size of the measure.
    assert peak(10_000, 1000, asked) - peak(100, 1000, asked) < 10_000 * 4 / 1024


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_snapshots_that_are_kept_are_seen_in_the_memory():
    """The test above can fail."""
    n, ten_measures = 1_000_000, 80.0
    assert peak(120, n, "5") - peak(120, n, "'none'") > 1.5 * ten_measures
