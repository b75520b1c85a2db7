"""Cures of callbacks, of files that they write, and of tables of a run."""

from __future__ import annotations

import atexit
import itertools
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

import otflow as of
from otflow.callbacks import (
    CSVWriter,
    JSONLinesWriter,
    LogTo,
    Patience,
    Stationary,
    TensorBoardWriter,
    TimeLimit,
)
from otflow.testing.clouds import normal
from tests.cures import Case, check_cures

F64 = torch.float64
SPRING = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
CLOUD = of.Particles(normal(6, 2))
FLOAT32 = of.Particles(torch.ones(1, 1))


def watched(*callbacks, mu=CLOUD, dt=0.1, steps=3, scheme=None, **options):
    scheme = scheme or of.ExplicitEuler()
    return of.flow(SPRING, mu, scheme, dt=dt, steps=steps, on_step=callbacks, **options)


def on(answer):
    """Return a flow whose callback gives this answer."""
    return lambda: of.flow(
        SPRING, CLOUD, of.ExplicitEuler(), dt=0.1, steps=1, on_step=answer
    )


def spread(mu):
    return mu.points.std(0)


def root(mu):
    return mu.points.mean().to(torch.complex128).sqrt()


HOME = Path(tempfile.mkdtemp(prefix="otflow-"))
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
NUMBERS = itertools.count()


def new():
    """Return a path at which there is nothing."""
    return HOME / f"{next(NUMBERS)}.txt"


def again(kind, record=None, **options):
    """Return a flow into a file that an earlier flow has written."""

    def run():
        path = new()
        watched(CSVWriter(path))
        return watched(kind(path, **options), record=record)

    return run


def made():
    folder = HOME / f"made {next(NUMBERS)}"
    folder.mkdir()
    return watched(CSVWriter(folder / "run.csv"))


class Halve(of.schemes.Scheme):
    def step(self, F, mu, dt, state, generator):
        return of.schemes.Step(of.Particles(mu.points[: mu.n // 2]), state)


def without_distance(watch):
    """Watch steps between measures that have no distance, as a user's may."""
    unknown = TypeError("no distance between these")
    with mock.patch("otflow.callbacks.stationary.wasserstein2", side_effect=unknown):
        watched(watch, mu=corner(), scheme=Remapped())


class Remapped(of.schemes.Scheme):
    """Moves all the mass of a density by two cells."""

    effects = frozenset()

    def step(self, F, mu, dt, state, generator):
        return of.schemes.Step(mu.with_weights(mu.weights.flip(0)), state)


def corner():
    rho = torch.zeros(3, 3, dtype=F64)
    rho[0, 0] = 1.0
    return of.GridDensity(rho, 0, 1, walls=True, normalize=True)


def film(path: Any, **options: Any) -> str:
    """Draw a film: one that is never drawn warns as it is deleted."""
    return of.plotting.animate(path, **options).to_jshtml()


PATH: Any = of.metrics.geodesic(CLOUD, of.Particles(normal(6, 2, seed=1)), [0.0, 1.0])
LAW = of.Gaussian(torch.zeros(2).double(), torch.eye(2).double())

CASES: dict[str, Case] = {
    "times of a run": (
        TypeError,
        "a trajectory has its own times; leave times out",
        lambda: film(watched(), times=[0.0, 1.0]),
        [lambda: film(watched())],
    ),
    "a film of one measure": (
        TypeError,
        "pass what otflow.flow or metrics.geodesic returned, or a list of measures",
        lambda: film(CLOUD),
        [lambda: film(watched()), lambda: film(PATH), lambda: film([CLOUD, CLOUD])],
    ),
    "a film of nothing": (
        ValueError,
        "the path holds no measure to draw; give one measure or more",
        lambda: film([]),
        [lambda: film([CLOUD])],
    ),
    "a film of two kinds": (
        TypeError,
        "draw one kind of measure",
        lambda: film([CLOUD, LAW]),
        [lambda: film([CLOUD, CLOUD])],
    ),
    "a callback that cannot be called": (
        TypeError,
        r"a function of an Event, or a sequence of functions",
        on(0.5),
        [on(lambda _: None), on([lambda _: False]), on(TimeLimit(9.0))],
    ),
    "a class as a callback": (
        TypeError,
        r"write TimeLimit\(\.\.\.\)",
        on(TimeLimit),
        [on(TimeLimit(9.0))],
    ),
    "a callback that answers with an array": (
        TypeError,
        r"reduce it, e\.g\. by \.all\(\)",
        on(lambda event: event.step.measure.points < 1),
        [on(lambda event: (event.step.measure.points < 1).all())],
    ),
    "a callback that answers with a number": (
        TypeError,
        r"return a comparison, e\.g\. x < 1e-6, or nothing",
        on(lambda event: event.time),
        [on(lambda event: event.time < 1e-6), on(lambda _: None)],
    ),
    "a record to watch that is not there": (
        ValueError,
        r"record it by flow\(\.\.\., record=\{'spread': function\}\)",
        lambda: watched(Patience("spread", patience=2)),
        [
            lambda: watched(
                Patience("spread", patience=2), record={"spread": lambda mu: mu.n}
            ),
            lambda: watched(Patience("energy", patience=2)),
        ],
    ),
    "a record to watch of several numbers": (
        TypeError,
        r"record its norm or another number beside it",
        lambda: watched(Patience("spread", patience=2), record={"spread": spread}),
        [
            lambda: watched(
                Patience("norm", patience=2),
                record={"spread": spread, "norm": lambda mu: spread(mu).norm()},
            )
        ],
    ),
    "a function in place of the name of a record": (
        TypeError,
        r"give the function to flow\(\.\.\., record=",
        lambda: Patience(spread, patience=2),
        [lambda: Patience("spread", patience=2)],
    ),
    "a distance where energies are compared": (
        ValueError,
        "leave it out",
        lambda: Stationary(
            1e-3, by="decrease", distance=of.metrics.sinkhorn_divergence
        ),
        [lambda: Stationary(1e-3, by="decrease")],
    ),
    "a tolerance below round-off": (
        UserWarning,
        r"take a larger tolerance, a longer dt, or float64",
        lambda: watched(Stationary(1e-4), mu=FLOAT32, dt=1e-5),
        [
            lambda: watched(Stationary(0.1), mu=FLOAT32, dt=1e-5),
            lambda: watched(Stationary(1e-4), mu=FLOAT32, dt=1e-2),
            lambda: watched(Stationary(1e-4), mu=CLOUD, dt=1e-5),
        ],
    ),
    "a step of unknown length": (
        of.errors.Unsupported,
        r"by='decrease'\), or say how: Stationary\(\.\.\., distance=function\)",
        lambda: without_distance(Stationary(1e-3)),
        [
            lambda: watched(
                Stationary(1e-3, by="decrease"), mu=corner(), scheme=Remapped()
            ),
            lambda: watched(
                Stationary(1e-3, distance=lambda a, b: (a.weights - b.weights).norm()),
                mu=corner(),
                scheme=Remapped(),
            ),
        ],
    ),
    "a name in place of a logger": (
        TypeError,
        r"use logging\.getLogger\(name\)",
        lambda: LogTo("experiment"),
        [lambda: LogTo(logging.getLogger("experiment"))],
    ),
    "a target that is no folder": (
        TypeError,
        "give the path of a folder",
        lambda: TensorBoardWriter(None),
        [lambda: TensorBoardWriter("runs"), lambda: TensorBoardWriter(Path("runs"))],
    ),
    "a file that exists": (
        FileExistsError,
        r"give another path, or append=True to go on in it",
        again(CSVWriter),
        [lambda: watched(CSVWriter(new())), again(CSVWriter, append=True)],
    ),
    "a folder in place of a file": (
        IsADirectoryError,
        "is a folder; give the path of a file in it",
        lambda: watched(CSVWriter(HOME, append=True)),
        [lambda: watched(CSVWriter(HOME / "in_it.csv"))],
    ),
    "a folder that is not there": (
        FileNotFoundError,
        r"no folder .*new for run\.csv; make it first",
        lambda: watched(CSVWriter(HOME / "new" / "run.csv")),
        [made],
    ),
    "a file of another writer": (
        ValueError,
        "give another path",
        again(JSONLinesWriter, append=True),
        [lambda: watched(JSONLinesWriter(new(), append=True))],
    ),
    "a file of other columns": (
        ValueError,
        "record the same names, or give another path",
        again(CSVWriter, record={"n": lambda mu: mu.n}, append=True),
        [
            again(CSVWriter, append=True),
            lambda: watched(CSVWriter(new()), record={"n": lambda mu: mu.n}),
        ],
    ),
    "a film of a flow without snapshots": (
        ValueError,
        r"leave snapshots out of flow\(\.\.\.\)",
        lambda: of.plotting.animate(watched(snapshots="none")),
        [lambda: of.plotting.animate(watched()).to_jshtml()],
    ),
    "two records of one column": (
        ValueError,
        "give one of them another name",
        lambda: watched(record={"a": spread, "a[0]": lambda mu: mu.n}).to_pandas(),
        [lambda: watched(record={"a": spread, "b": lambda mu: mu.n}).to_pandas()],
    ),
    "a record with the name of a coordinate": (
        ValueError,
        "give the record another name",
        lambda: watched(record={"points": lambda mu: mu.n}).to_xarray(),
        [lambda: watched(record={"count": lambda mu: mu.n}).to_xarray()],
    ),
    "a record with the name of an axis": (
        ValueError,
        "give the record another name",
        lambda: watched(record={"a": spread, "a_0": lambda mu: mu.n}).to_xarray(),
        [lambda: watched(record={"a": spread, "b": lambda mu: mu.n}).to_xarray()],
    ),
    "two records of one curve": (
        ValueError,
        "give one of them another name",
        lambda: watched(
            TensorBoardWriter(new()), record={"a": spread, "a/0": lambda mu: mu.n}
        ),
        [lambda: watched(record={"a": spread, "b": lambda mu: mu.n})],
    ),
    "a complex record on a board": (
        TypeError,
        r"record x\.real and x\.imag as two records, or x\.abs\(\)",
        lambda: watched(TensorBoardWriter(new()), record={"z": root}),
        [
            lambda: watched(record={"z": lambda mu: root(mu).real}),
            lambda: watched(record={"z": lambda mu: root(mu).abs()}),
        ],
    ),
    "a dataset of a changing number of points": (
        ValueError,
        r"take run\.snapshots\[k\]\.points one by one, or run\.to_pandas\(\)",
        lambda: watched(scheme=Halve(), steps=2).to_xarray(),
        [
            lambda: watched(scheme=Halve(), steps=2).snapshots[1].points,
            lambda: watched(scheme=Halve(), steps=2).to_pandas(),
        ],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_cures_that_an_error_names_work(case):
    check_cures(CASES[case])
