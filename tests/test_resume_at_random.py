"""Runs in random parts, kept in random ways, equal the run in one to the bit."""

from __future__ import annotations

import pickle
import random
import shutil
from typing import Any

import pytest
import torch

import otflow as of
from otflow.errors import Interrupted
from otflow.testing import assert_same
from tests.marks import slow
from tests.test_resume import CASES, Momentum

pytest.importorskip("safetensors")

TRIALS = 45
TYPES = [Momentum]
ENDS = {"message", "status"}
RECORDS = {
    "mean": lambda mu: mu.points.mean(0),
    "heaviest": lambda mu: float(mu.weights.max()),
    "n": lambda mu: mu.n,
}


def in_memory(run, _):
    return run


def in_a_file(run, folder):
    of.save(folder / "run.safetensors", run)
    return of.load(folder / "run.safetensors", types=TYPES)


def in_a_pickle(run, _):
    return pickle.loads(pickle.dumps(run))


def in_a_moved_directory(run, folder):
    if not (folder / "run").exists():
        return run
    target = folder / f"moved {random.random()}"
    (folder / "run").rename(target)
    again = of.load(target, types=TYPES)
    target.rename(folder / "run")
    return again


def seen_by_a_callback(run, _):
    return run  # of an event in the middle of a flow


def left_by_a_kill(run, _):
    return run  # of the directory as it is in the middle of a flow


WAYS = [in_memory, in_a_file, in_a_pickle, in_a_moved_directory]
CUTS = [seen_by_a_callback, left_by_a_kill]


def drawn(draw):
    """Return a random problem as the arguments of a flow, and its number of steps."""
    name = draw.choice(sorted(CASES))
    F, start, scheme = CASES[name]
    mu = start()
    grid_or_risk = isinstance(mu, of.GridDensity) or "minibatch" in name
    if draw.random() < 0.4 and not grid_or_risk:
        mu = mu.to(torch.float32)
    dt = 0.3 if "sinkhorn" in name else 0.05
    options: dict[str, Any]
    if draw.random() < 0.4:
        shortest, slope = dt, 0.02
        steps = draw.randint(3, 9)
        options = {"dt": lambda k: shortest * (1 + slope * (k % 3))}
    else:
        steps = draw.randint(3, 9)
        options = {"dt": dt}
    length = steps * dt
    snapshots = [None, "none", "last", draw.randint(1, 4)]
    times = sorted(draw.uniform(0, 1.2 * length) for _ in range(4))
    options["snapshots"] = draw.choice([*snapshots, times, times, times])
    options["every"] = draw.choice([1, 1, 2, 3, steps + 1])
    options["record"] = {k: RECORDS[k] for k in RECORDS if draw.random() < 0.5}
    return F, mu, scheme, options, steps


def part(draw, problem, steps, how, run, place):
    """Make some steps of a flow, from a run on if there is one."""
    F, mu, scheme, options, _ = problem
    options = {**options, "generator": 5} if run is None else {**options, "resume": run}
    if place is not None:
        every = draw.choice([1, 2, 3, 99])
        options |= {"checkpoint": place, "checkpoint_every": every}
    if run is not None and draw.random() < 0.5:
        mu = run.final
    beyond = draw.randint(1, 3)
    end = (0 if run is None else len(run.info)) + steps
    seen = []

    def watch(event):
        if how is left_by_a_kill and event.index == end:
            shutil.copytree(place, place.with_name("left"))
            raise KeyboardInterrupt
        if event.index + 1 == end:
            seen.append(event.trajectory())
            if how is seen_by_a_callback:
                raise KeyboardInterrupt
            return how is not left_by_a_kill
        return False

    if steps and (how in CUTS or draw.random() < 0.5):
        options["on_step"] = watch
        steps += beyond
    try:
        return of.flow(F, mu, scheme, steps=steps, **options)
    except Interrupted as error:
        if how is left_by_a_kill:
            shutil.rmtree(place)
            place.with_name("left").rename(place)
            has_state = any(place.glob("state-*"))
            return of.load(place, types=TYPES) if has_state else None
        return error.trajectory if place else seen[0]


@pytest.mark.filterwarnings("ignore::otflow.errors.NotConvergedWarning")
@pytest.mark.filterwarnings("ignore::otflow.errors.BlurWarning")
@pytest.mark.parametrize("seed", [0, 1, *slow(*range(2, TRIALS))])
def test_a_run_in_random_parts_equals_the_whole(seed, tmp_path):
    draw = random.Random(seed)
    problem = F, mu, scheme, options, steps = drawn(draw)
    whole = of.flow(F, mu, scheme, steps=steps, generator=5, **options)
    run: Any = None
    place = tmp_path / "run" if draw.random() < 0.6 else None
    while run is None or len(run.info) < steps:
        left = steps - (0 if run is None else len(run.info))
        how = draw.choice(WAYS + CUTS if place else [*WAYS, seen_by_a_callback])
        some = draw.randint(int(how in CUTS), left)
        run = part(draw, problem, some, how, run, place)
        run = run and how(run, tmp_path)
    assert_same(ended(run, problem), whole, but=ENDS)
    if place is not None:
        again = of.load(place, types=TYPES)
        assert_same(ended(again, problem), whole, but=ENDS)


def ended(run, problem):
    """Return a run with what is recorded at its end, if it was cut off."""
    F, _, scheme, options, _ = problem
    return of.flow(F, run.final, scheme, steps=0, resume=run, **options)
