"""What one meets in the first week: arguments in the wrong order, paths, bounds."""

from __future__ import annotations

import atexit
import re
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

import otflow as of
from otflow.testing.clouds import normal
from tests.cures import Case, check_cures

pytest.importorskip("safetensors.torch")

F64 = torch.float64
CLOUD = of.Particles(normal(6, 2))
SPRING = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
EULER = of.ExplicitEuler()
LENGTHS = (0.1, 0.2)
HOME = Path(tempfile.mkdtemp(prefix="otflow-"))
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
TORCHED, FOLDER, FILE = HOME / "run.pt", HOME / "folder", HOME / "file"
torch.save(CLOUD, TORCHED)
FOLDER.mkdir()
FILE.touch()


def flow(F=SPRING, mu=CLOUD, scheme=EULER, *, dt=0.1, steps=2, **options):
    return of.flow(F, mu, scheme, dt=dt, steps=steps, **options)


class Push(of.schemes.Scheme):
    """A scheme that returns what its function makes of the moved measure."""

    def __init__(self, answer):
        self.answer = answer

    def step(self, F, mu, dt, state, generator):
        return of.schemes.Step(self.answer(mu.push(F.velocity(mu), dt)), state)


def kept(name="measure.safetensors"):
    """Write a file; return where it is."""
    of.save(HOME / name, CLOUD)
    return HOME / name


def fresh(name):
    """Return a path in an empty folder."""
    shutil.rmtree(HOME / "fresh", ignore_errors=True)
    (HOME / "fresh").mkdir()
    return HOME / "fresh" / name


CASES: dict[str, Case] = {
    "points as the measure": (
        TypeError,
        r"mu must be a Measure, got Tensor of shape \(6, 2\).*make Particles\(points\)",
        lambda: flow(mu=CLOUD.points),
        [lambda: flow(mu=of.Particles(CLOUD.points))],
    ),
    "the value at points": (
        TypeError,
        r"mu must be a Measure, got Tensor.*make Particles\(points\)",
        lambda: SPRING(CLOUD.points),
        [lambda: SPRING(of.Particles(CLOUD.points))],
    ),
    "the name of a scheme": (
        TypeError,
        r"take one, e\.g\. ExplicitEuler\(\) or JKO\(\)",
        lambda: flow(scheme="euler"),
        [lambda: flow(scheme=of.ExplicitEuler()), lambda: flow(scheme=of.JKO())],
    ),
    "the name of a solver": (
        TypeError,
        r"leave it out, or take one, e\.g\. proximal\.ParticleProximal\(\)",
        lambda: of.JKO("sinkhorn"),
        [
            lambda: flow(scheme=of.JKO()),
            lambda: flow(scheme=of.JKO(of.proximal.ParticleProximal())),
        ],
    ),
    "a class that needs no argument": (
        TypeError,
        r"write JKO\(\)$",
        lambda: flow(scheme=of.JKO),
        [lambda: flow(scheme=of.JKO())],
    ),
    "a class that needs arguments": (
        TypeError,
        r"write Adaptive\(\.\.\.\)$",
        lambda: flow(scheme=of.schemes.Adaptive),
        [lambda: flow(scheme=of.schemes.Adaptive(EULER, tolerance=0.1))],
    ),
    "a class of another kind": (
        TypeError,
        r"Potential\(V\)",
        lambda: flow(F=of.Particles),
        [lambda: flow(F=SPRING)],
    ),
    "lengths of steps": (
        TypeError,
        r"give dt=lambda k: lengths\[k\]",
        lambda: flow(dt=LENGTHS),
        [lambda: flow(dt=lambda k: LENGTHS[k])],
    ),
    "a generator of another library": (
        TypeError,
        "give an integer, the seed",
        lambda: flow(generator="0"),
        [lambda: flow(generator=0)],
    ),
    "the divergence from a functional": (
        TypeError,
        r"give the plain function V, or write Potential\(V\) \+ Entropy\(\)",
        lambda: of.KL(SPRING),
        [
            lambda: of.KL(lambda x: 0.5 * x.square().sum(-1)),
            lambda: SPRING + of.Entropy(),
        ],
    ),
    "a chain of a list": (
        TypeError,
        r"chain\(first, second\)",
        lambda: of.chain([EULER, of.BirthDeath()]),
        [lambda: of.chain(EULER, of.BirthDeath())],
    ),
    "a step to points": (
        TypeError,
        r"measure in the Step of Push.*move it by mu\.push\(tangent, dt\)",
        lambda: flow(scheme=Push(lambda mu: mu.points)),
        [lambda: flow(scheme=Push(lambda mu: mu))],
    ),
    "a run and its functional swapped": (
        TypeError,
        r"F must be a Functional, got Trajectory",
        lambda: of.analysis.energy_dissipation(flow(), SPRING),
        [lambda: of.analysis.energy_dissipation(SPRING, flow())],
    ),
    "the run of a report": (
        TypeError,
        "trajectory must be a Trajectory.*pass what flow returned",
        lambda: of.analysis.energy_dissipation(SPRING, CLOUD),
        [lambda: of.analysis.energy_dissipation(SPRING, flow())],
    ),
    "a snapshot that was not kept": (
        IndexError,
        r"read run\.final for the end, or keep more by flow\(\.\.\., snapshots=\)",
        lambda: flow(snapshots="none")[-1],
        [lambda: flow(snapshots="none").final, lambda: flow(snapshots="last")[-1]],
    ),
    "what is saved before the path": (
        TypeError,
        r"the path comes first: write save\(path, thing\)",
        lambda: of.save(CLOUD, HOME / "measure.safetensors"),
        [lambda: of.save(HOME / "measure.safetensors", CLOUD)],
    ),
    "a measure in place of its file": (
        TypeError,
        "name a file, or the `checkpoint` of a flow",
        lambda: of.load(CLOUD),
        [
            lambda: of.load(kept()),
            lambda: of.load(flow(checkpoint=fresh("run")) and HOME / "fresh/run"),
        ],
    ),
    "a file in no folder": (
        FileNotFoundError,
        r"there is no folder .*absent for measure\.safetensors; make it first",
        lambda: of.save(HOME / "absent" / "measure.safetensors", CLOUD),
        [lambda: of.save(fresh("measure.safetensors"), CLOUD)],
    ),
    "a file of torch": (
        of.errors.CorruptFile,
        r"read it by torch\.load",
        lambda: of.load(TORCHED),
        [lambda: torch.load(TORCHED)],
    ),
    "a functional in a file": (
        of.errors.Unsupported,
        "this object is of class Potential.*make functionals and schemes",
        lambda: of.save(HOME / "F.safetensors", SPRING),
        [lambda: of.save(HOME / "F.safetensors", flow(SPRING))],
    ),
    "a checkpoint that is no path": (
        TypeError,
        "checkpoint must be a path, got True; name a directory",
        lambda: flow(checkpoint=True),
        [lambda: flow(checkpoint=fresh("run"))],
    ),
    "a checkpoint in a file": (
        NotADirectoryError,
        "a run needs a directory; name another path",
        lambda: flow(checkpoint=FILE),
        [lambda: flow(checkpoint=fresh("run"))],
    ),
    "a table in a folder": (
        IsADirectoryError,
        "is a folder; give the path of a file in it",
        lambda: flow(on_step=of.callbacks.CSVWriter(FOLDER, append=True)),
        [lambda: flow(on_step=of.callbacks.CSVWriter(fresh("run.csv")))],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_cure_of(name):
    check_cures(CASES[name])


def bell(n):
    return of.GridDensity.from_function(
        lambda x: torch.exp(-x.square().sum(-1)), -3, 3, n, dtype=F64
    )


def blurred(eps, n=50):
    solver = of.proximal.GridSinkhorn(eps=eps)
    return of.flow(SPRING, bell(n), of.JKO(solver), dt=0.1, steps=1)


def close(share):
    points = torch.tensor([[0.0], [1.0 / 3.0], [share]], dtype=torch.float32)
    return lambda blur: of.metrics.sinkhorn_divergence(points, points + 1, blur=blur)


def hollow(add, least):
    S = torch.diag(torch.tensor([least, 1.0], dtype=F64))
    return of.Gaussian(torch.zeros(2, dtype=F64), S + add * torch.eye(2, dtype=F64))


# What raises, given a number; a bad number; how the message names a good one.
BOUNDS = {
    **{
        f"an explicit step on {n} cells": (
            lambda dt, n=n: of.flow(SPRING, bell(n), EULER, dt=dt, steps=1),
            0.5,
            r"take \|dt\| <= (\S+), or",
        )
        for n in (50, 64, 70, 96)
    },
    **{
        f"a narrow kernel on {n} cells": (
            lambda eps, n=n: blurred(eps, n),
            1e-9,
            r"squares of the spacing, (\S+), or",
        )
        for n in (50, 53, 64)
    },
    **{
        f"a blur below round-off, {share}": (
            close(share),
            1e-12,
            r"take at least (\S+)$",
        )
        for share in (2.0, 3.3, 7.7)
    },
    **{
        f"a covariance with eigenvalue {least}": (
            lambda add, least=least: hollow(add, least),
            0.0,
            r"identity above (\S+), or",
        )
        for least in (-1.0, -0.12345, -2 / 3)
    },
}


@pytest.mark.parametrize("name", BOUNDS)
def test_the_number_that_a_message_names_is_good(name):
    """A bound that is rounded to the nearest digits may lie on its wrong side."""
    make, bad, pattern = BOUNDS[name]
    with pytest.raises((ValueError, of.errors.Diverged)) as caught:
        make(bad)
    found = re.search(pattern, str(caught.value))
    assert found, caught.value
    make(float(found.group(1)))
