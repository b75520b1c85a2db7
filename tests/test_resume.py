"""Two halves of a flow equal the whole, to the bit."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import pytest
import torch

import otflow as of
from otflow.testing.same import assert_same
from tests.marks import slow

F64 = torch.float64


def square(x):
    return 0.5 * x.square().sum(-1)


def cloud(n=12, d=2):
    points = torch.randn(n, d, generator=torch.Generator().manual_seed(3), dtype=F64)
    return of.Particles(points)


def grid(d=1, n=48):
    return of.GridDensity.from_function(
        lambda x: torch.exp(-4 * (x - 0.3).square().sum(-1)),
        -2.0,
        2.0,
        (n,) * d,
        walls=True,
    )


def quantiles():
    return of.Quantiles(torch.linspace(-1.0, 2.0, 20, dtype=F64))


def gaussian():
    return of.Gaussian(torch.ones(2, dtype=F64), 2.0 * torch.eye(2, dtype=F64))


@dataclass(frozen=True)
class Momentum:
    velocity: torch.Tensor
    count: int


class HeavyBall(of.schemes.Scheme):
    """A user's scheme with a state: a dataclass of a tensor and a number."""

    def init(self, F, mu):
        return Momentum(torch.zeros_like(mu.points), 0)

    def step(self, F, mu, dt, state, generator):
        noise = torch.randn(mu.points.shape, generator=generator, dtype=mu.dtype)
        v = 0.9 * state.velocity + F.velocity(mu) + 0.1 * noise
        info = {"count": state.count}
        return of.schemes.Step(mu.push(v, dt), Momentum(v, state.count + 1), info)


def risk():
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(32, 1, generator=generator, dtype=F64)
    return of.meanfield.Risk(of.meanfield.TwoLayer("tanh"), X, X.sin().squeeze(-1))


V, W = of.Potential(square, modulus=1.0), of.Interaction(of.kernels.Gaussian(0.5))
DOUBLE = of.Potential(lambda x: 0.25 * (x.square() - 1).square().sum(-1))
JKO, P = of.JKO, of.proximal
BOX = of.optimality.BoxDomain(-9, 9)
CASES = {
    "euler": (V + W, cloud, of.ExplicitEuler()),
    "backtracking": (DOUBLE + W, cloud, of.ExplicitEuler(backtracking=True)),
    "langevin": (DOUBLE + 0.1 * of.Entropy(), cloud, of.Langevin()),
    "mala": (DOUBLE + 0.1 * of.Entropy(), cloud, of.schemes.MALA()),
    "underdamped": (
        DOUBLE + W + 0.1 * of.Entropy(),
        cloud,
        of.schemes.UnderdampedLangevin(2.0),
    ),
    "annealed": (
        DOUBLE + 0.1 * of.Entropy(),
        cloud,
        of.schemes.Anneal(of.schemes.UnderdampedLangevin(), 0.8),
    ),
    "annealed lengths": (
        DOUBLE + 0.1 * of.Entropy(),
        cloud,
        of.schemes.Anneal(of.Langevin(), 0.8, lengths=True),
    ),
    "fictitious play": (
        DOUBLE + W + 0.1 * of.Entropy(),
        cloud,
        of.schemes.EntropicFictitiousPlay(5.0, inner_dt=0.05, inner_steps=2),
    ),
    "dual averaging": (
        DOUBLE + W + 0.1 * of.Entropy(),
        cloud,
        of.schemes.DualAveraging(inner_dt=0.05, inner_steps=2),
    ),
    "forward-backward": (
        DOUBLE + W + 0.2 * of.functionals.l1_norm(),
        cloud,
        of.schemes.ForwardBackward(),
    ),
    "forward-backward on a grid": (
        V + of.Entropy() + W,
        grid,
        of.schemes.ForwardBackward(),
    ),
    "birth-death": (DOUBLE, cloud, of.chain(of.ExplicitEuler(), of.BirthDeath(2.0))),
    "minibatch": (
        risk(),
        lambda: cloud(10, 3),
        of.schemes.Minibatch(of.ExplicitEuler()),
    ),
    "minibatch JKO": (risk(), lambda: cloud(10, 3), of.schemes.Minibatch(JKO())),
    "adaptive": (DOUBLE, cloud, of.schemes.Adaptive(of.ExplicitEuler(), tolerance=0.1)),
    "adaptive JKO": (V, cloud, of.schemes.Adaptive(JKO(order=2), tolerance=1e-3)),
    "user": (DOUBLE, cloud, HeavyBall()),
    "Frank-Wolfe": (DOUBLE, cloud, of.schemes.FrankWolfe(BOX, 16)),
    "sliding": (DOUBLE + W, cloud, of.schemes.FrankWolfe(BOX, 16, sliding=True)),
    "JKO": (DOUBLE + W, cloud, JKO()),
    "JKO 2": (DOUBLE + W, cloud, JKO(order=2)),
    "JKO 3": (DOUBLE + W, cloud, JKO(order=3)),
    "tangent": (DOUBLE + W, cloud, JKO(P.TangentProximal())),
    "sinkhorn particles": (DOUBLE, cloud, JKO(P.SinkhornParticles(blur=0.5))),
    "quantiles": (DOUBLE + of.Entropy(), quantiles, JKO()),
    "quantiles 2": (V + of.Entropy(), quantiles, JKO(order=2)),
    "gaussian": (DOUBLE + of.Entropy(), gaussian, JKO()),
    "grid": (V + of.Entropy() + W, grid, JKO()),
    "grid 2": (V + of.Entropy(), grid, JKO(order=2)),
    "grid sinkhorn": (V + of.PowerEntropy(2.0) + W, grid, JKO(P.GridSinkhorn())),
    "plane sinkhorn": (
        V + of.Entropy() + W,
        lambda: grid(2, 12),
        JKO(P.GridSinkhorn()),
    ),
    "back and forth": (V + of.PowerEntropy(2.0), grid, JKO(P.BackAndForth())),
    "back and forth W": (V + of.PowerEntropy(2.0) + W, grid, JKO(P.BackAndForth())),
    "plane back": (
        V + of.PowerEntropy(2.0) + W,
        lambda: grid(2, 12),
        JKO(P.BackAndForth()),
    ),
    "finite volume": (V + of.Entropy() + W, grid, JKO(P.FiniteVolume())),
    "plane volume": (
        V + of.Entropy() + W + of.Congestion(2.0),
        lambda: grid(2, 10),
        JKO(P.FiniteVolume()),
    ),
}

# A run of seconds; the case "back and forth" has its solver as well.
LONG = "back and forth W"


def flown(case, steps, *, every=1, **options):
    F, start, scheme = CASES[case]
    mu = options.pop("mu", None) or start()
    dt = 0.3 if "sinkhorn" in case else 0.05
    return of.flow(F, mu, scheme, dt=dt, steps=steps, every=every, **options)


@pytest.mark.parametrize("case", [*(c for c in CASES if c != LONG), *slow(LONG)])
@pytest.mark.parametrize("first", [1, *slow(3)])
def test_two_halves_equal_the_whole(case, first):
    whole = flown(
        case, 6, every=2, generator=5, record={"mean": lambda mu: mu.points.mean()}
    )
    record = {"mean": lambda mu: mu.points.mean()}
    part = flown(case, first, every=2, generator=5, record=record)
    joined = flown(case, 6 - first, every=2, resume=part, record=record)
    assert_same(joined, whole, but={"message"})


def test_a_resumed_run_starts_from_the_end_or_the_start_of_the_run():
    part = flown("langevin", 3, generator=1)
    again = flown("langevin", 3, resume=part, mu=part.final)
    assert_same(again, flown("langevin", 3, resume=part))


@pytest.mark.parametrize("snapshots", ["none", "last", 2, 3, [0.0, 0.12, 0.3, 9.0]])
@pytest.mark.parametrize("first", [1, 2, 3])
def test_snapshots_of_two_halves_are_those_of_the_whole(snapshots, first):
    whole = flown("langevin", 7, every=3, generator=1, snapshots=snapshots)
    part = flown("langevin", first, every=3, generator=1, snapshots=snapshots)
    rest = flown("langevin", 7 - first, every=3, resume=part, snapshots=snapshots)
    assert_same(rest, whole, but={"message"})


def test_snapshots_are_kept_as_asked():
    times = {}
    for asked in ("none", "last", 3, [0.07, 0.2], torch.tensor([0.0, 0.35])):
        run = flown("euler", 8, every=4, snapshots=asked)
        assert len(run.snapshots) == len(run.snapshot_times) == len(run.snapshot_steps)
        assert run.steps.tolist() == [0, 4, 8]
        times[str(asked)] = run.snapshot_steps.tolist()
        full = flown("euler", 8)
        for k, mu in zip(run.snapshot_steps, run.snapshots, strict=True):
            assert torch.equal(mu.points, full.snapshots[k].points)
    assert list(times.values()) == [[], [8], [0, 3, 6, 8], [2, 4], [0, 7]]
    assert flown("euler", 8, every=4).snapshot_steps.tolist() == [0, 4, 8]


def test_a_long_flow_keeps_no_measure_but_the_last():
    import weakref

    seen = []

    def watch(event):
        seen.append(weakref.ref(event.step.measure))

    run = flown("euler", 20, snapshots="last", on_step=watch)
    del watch
    alive = [k for k, mu in enumerate(seen) if mu() is not None]
    assert alive in ([19], []), run


@pytest.mark.slow
@pytest.mark.parametrize("case", ["euler", "JKO", "langevin", "gaussian"])
def test_a_row_of_a_long_flow_holds_no_tensor_of_its_own(case):
    """A small tensor kept for each row would pin the memory between large ones."""
    import gc
    import warnings

    found = []

    def count(event):
        if event.index in (9, 39):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch, which gc looks into
                held = gc.get_objects()
            found.append(sum(issubclass(type(x), torch.Tensor) for x in held))

    record = {"mean": lambda mu: mu.points.mean(0), "one": lambda _: 1.0}
    flown(case, 40, snapshots="none", record=record, on_step=count)
    assert found[1] <= found[0] + 2, found


def test_records_are_those_of_their_functions():
    """In one tensor each, in the widest dtype of their rows."""
    seen: list[torch.Tensor | np.ndarray] = []
    answers = [
        torch.ones(2, 3),
        torch.ones(2, 3, dtype=torch.int64),
        2 * np.ones((2, 3)),
    ]

    def turn(mu):
        seen.append(answers[min(len(seen), 2)])
        return seen[-1]

    run = flown("euler", 40, record={"turn": turn, "count": lambda _: len(seen)})
    assert run.records["turn"].dtype == F64
    assert run.records["turn"].shape == (41, 2, 3)
    assert run.records["turn"][:3, 0, 0].tolist() == [1.0, 1.0, 2.0]
    assert run.records["count"].tolist() == list(range(1, 42))
    assert len(run.records["count"].untyped_storage()) == 41 * 8


def test_the_step_length_and_the_end_go_on():
    F, mu, scheme = DOUBLE, cloud(), of.ExplicitEuler()
    options = {
        "dt": lambda k: 0.1 / (1 + k),
        "until": 0.25,
        "steps": 40,
        "generator": 1,
    }
    whole = of.flow(F, mu, scheme, **options)
    part = of.flow(F, mu, scheme, **{**options, "steps": 3})
    assert part.status == "unfinished"
    options |= {"steps": 37, "generator": None}
    rest = of.flow(F, mu, scheme, **options, resume=part)
    assert_same(rest, whole)


@pytest.mark.parametrize("how", ["stop", "callback", "error", "interrupt"])
def test_a_run_that_ended_early_goes_on(how):
    whole = flown("langevin", 6, generator=2)
    fault = {"error": RuntimeError, "interrupt": KeyboardInterrupt}.get(how)

    def watch(event):
        if event.index == 3 and fault:
            raise fault
        return event.index == 3

    seen = []

    def stop(step):
        seen.append(step)
        return len(seen) == 4

    options = {"stop": stop} if how == "stop" else {"on_step": watch}
    if fault:
        with pytest.raises(fault) as caught:
            flown("langevin", 6, generator=2, **options)
        part = vars(caught.value)["trajectory"]
    else:
        part = flown("langevin", 6, generator=2, **options)
        assert part.status == "stopped"
    assert len(part.info) == 4
    assert_same(flown("langevin", 2, resume=part), whole, but={"message"})


def test_a_run_goes_on_after_an_interrupt_within_a_step():
    calls = [0]

    def V(x):
        calls[0] += 1
        if calls[0] == 9:
            raise KeyboardInterrupt
        return square(x)

    F, mu = of.Potential(V) + 0.1 * of.Entropy(), cloud()
    options = {"dt": 0.1, "generator": 4}
    with pytest.raises(of.errors.Interrupted) as caught:
        of.flow(F, mu, of.Langevin(), steps=20, **options)
    part = caught.value.trajectory
    done = len(part.info)
    assert 0 < done < 20
    options.pop("generator")
    rest = of.flow(F, mu, of.Langevin(), steps=20 - done, resume=part, **options)
    whole = of.flow(F, mu, of.Langevin(), steps=20, dt=0.1, generator=4)
    assert_same(rest, whole, but={"message"})


def test_a_callback_sees_a_run_that_can_go_on():
    runs = []
    whole = flown("JKO", 4, on_step=lambda event: runs.append(event.trajectory()))
    assert [run.status for run in runs] == ["running"] * 4
    rest = flown("JKO", 2, resume=runs[1])
    assert_same(rest, whole, but={"message", "seed", "bookmark"})


# ---- what cannot go on ---------------------------------------------------------------


def test_a_diverged_run_does_not_go_on():
    F = of.Potential(lambda x: -torch.exp(x.square().sum(-1)))
    with pytest.raises(of.errors.Diverged) as caught:
        of.flow(F, cloud(), of.ExplicitEuler(), dt=1.0, steps=50)
    run = caught.value.trajectory
    with pytest.raises(ValueError, match=r"smaller dt"):
        of.flow(F, cloud(), of.ExplicitEuler(), dt=1.0, steps=5, resume=run)
    of.flow(F, run.final, of.ExplicitEuler(), dt=1e-9, steps=1)  # the cure


def test_a_run_that_has_reached_its_end_does_not_go_on():
    run = flown("euler", 50, until=0.2)
    with pytest.raises(ValueError, match="give a later until"):
        flown("euler", 50, until=0.2, resume=run)
    assert flown("euler", 50, until=0.3, resume=run).times[-1] == 0.3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"generator": 3}, "leave generator out"),
        ({"record": {"new": lambda mu: mu.points.mean()}}, "give the same names"),
        ({"mu": cloud(12, 3)}, "the dim of the run is 2 and that of mu is 3"),
        ({"mu": quantiles()}, "kind of the run is Particles"),
        ({"mu": of.Particles(cloud().points.float())}, "dtype of the run is"),
        ({"mu": of.Particles(cloud().points + 1)}, "neither the start nor the end"),
        ({"resume": "run"}, "hand over what a flow has returned"),
    ],
)
def test_what_does_not_fit_a_run_raises(change, words):
    part = flown("langevin", 2)
    with pytest.raises((ValueError, TypeError), match=words):
        flown("langevin", 2, **{"resume": part, **change})


def test_a_trajectory_made_by_hand_has_no_bookmark():
    part = flown("langevin", 2)
    held = {f.name: getattr(part, f.name) for f in fields(part)}
    bare = of.Trajectory(**{**held, "bookmark": None})
    with pytest.raises(ValueError, match="no bookmark"):
        flown("langevin", 2, resume=bare)


def test_another_functional_or_thread_count_warns(monkeypatch):
    part = flown("langevin", 2)
    with pytest.warns(of.errors.ResumeWarning, match="functional was 'Potential"):
        of.flow(
            V + 0.2 * of.Entropy(), cloud(), of.Langevin(), dt=0.1, steps=1, resume=part
        )
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 64)
        with pytest.warns(of.errors.ResumeWarning, match="last bits may differ"):
            flown("langevin", 2, resume=part)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "9.9")
        with pytest.warns(of.errors.ResumeWarning, match=r"torch was .* is '9\.9'"):
            flown("langevin", 2, resume=part)


def heavy_ball():
    class Rolling(of.schemes.Scheme):
        def init(self, F, mu):
            return Momentum(torch.zeros_like(mu.points), 0)

        def step(self, F, mu, dt, state, generator):
            v = 0.9 * state.velocity + F.velocity(mu)
            return of.schemes.Step(mu.push(v, dt), Momentum(v, state.count + 1))

    return Rolling()


ATOMS = {
    "euler": of.ExplicitEuler(),
    "backtracking": of.ExplicitEuler(backtracking=True),
    "chain": of.chain(of.ExplicitEuler(), of.BirthDeath(2.0)),
    "adaptive": of.schemes.Adaptive(of.ExplicitEuler(), tolerance=0.1),
    "minibatch": of.schemes.Minibatch(JKO()),
    "JKO": JKO(),
    "JKO 2": JKO(order=2),
    "tangent": JKO(P.TangentProximal()),
    "user": heavy_ball(),
}
CELLS = {
    "sinkhorn": JKO(P.GridSinkhorn()),
    "back and forth": JKO(P.BackAndForth()),
    "finite volume": JKO(P.FiniteVolume()),
    "JKO 2": JKO(order=2),
    "euler": of.ExplicitEuler(),
}
PAIRS = [
    (start, one, two)
    for start, schemes in ((cloud, ATOMS), (grid, CELLS))
    for one in schemes.items()
    for two in schemes.items()
    if one[0] != two[0]
]


@pytest.mark.parametrize(
    ("start", "one", "two"),
    PAIRS,
    ids=[f"{s.__name__}, {a} to {b}" for s, (a, _), (b, _) in PAIRS],
)
def test_another_scheme_begins_with_a_state_of_its_own(start, one, two):
    """The state of the first means nothing to the second, whatever its form."""
    F = V + of.PowerEntropy(2.0) if start is grid else DOUBLE + W
    options = {"dt": 0.002, "steps": 2}
    part = of.flow(F, start(), one[1], **options)
    with pytest.warns(of.errors.ResumeWarning, match="the state of the scheme begins"):
        joined = of.flow(F, part.final, two[1], **options, resume=part)
    alone = of.flow(F, part.final, two[1], **options)
    assert len(joined.info) == 4
    assert_same(joined.final, alone.final)


def test_other_data_of_the_same_functional_warns():
    run = flown("minibatch", 2)
    X = torch.zeros(7, 1, dtype=F64)
    other = of.meanfield.Risk(of.meanfield.TwoLayer("tanh"), X, X.squeeze(-1))
    scheme = CASES["minibatch"][2]
    with pytest.warns(of.errors.ResumeWarning, match=r"n=7"):
        of.flow(other, run.final, scheme, dt=0.1, steps=1, resume=run)


def test_a_scheme_whose_state_cannot_be_kept_says_so():
    class Broken(HeavyBall):
        def state_dict(self, state):
            raise OSError

    with pytest.warns(of.errors.ResumeWarning, match="cannot be resumed"):
        run = of.flow(V, cloud(), Broken(), dt=0.1, steps=2)
    assert run.bookmark is None


@pytest.mark.parametrize("name", ["time", "step"])
def test_names_of_columns_are_no_names_of_records(name):
    with pytest.raises(ValueError, match="taken"):
        flown("euler", 1, record={name: lambda mu: mu.points.mean()})


@pytest.mark.parametrize("asked", ["all", 0, -1, 1.5, [-1.0], ["a"], [float("nan")]])
def test_bad_snapshots_raise(asked):
    with pytest.raises((ValueError, TypeError), match="snapshots"):
        flown("euler", 1, snapshots=asked)
