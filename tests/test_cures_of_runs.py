"""Cures of runs that are resumed, kept in files, or written to directories."""

from __future__ import annotations

import atexit
import itertools
import json
import shutil
import tempfile
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

import otflow as of
from otflow.errors import CorruptFile, DirectoryInUse, ForeignDirectory, Unsupported
from otflow.storage import files, lock
from otflow.testing.clouds import normal
from tests.cures import Case, check_cures

safetensors = pytest.importorskip("safetensors.torch")

F64 = torch.float64
SPRING = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
CLOUD = of.Particles(normal(6, 2))
HOME = Path(tempfile.mkdtemp(prefix="otflow-"))
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
NUMBERS = itertools.count()


def new():
    """Return a path at which there is nothing."""
    return HOME / str(next(NUMBERS))


def flown(F=SPRING, mu=CLOUD, *, dt=0.1, steps=2, **options):
    return of.flow(F, mu, of.ExplicitEuler(), dt=dt, steps=steps, **options)


def diverged():
    F = of.Potential(lambda x: -torch.exp(x.square().sum(-1)))
    with pytest.raises(of.errors.Diverged) as caught:
        flown(F, dt=1.0, steps=50)
    return F, vars(caught.value)["trajectory"]


def beyond():
    F, run = diverged()
    return flown(F, run.final, dt=1.0, resume=run)


def smaller():
    F, run = diverged()
    return flown(F, run.final, dt=1e-9)


def bare():
    run = flown()
    held = {f.name: getattr(run, f.name) for f in fields(run)}
    return of.Trajectory(**{**held, "bookmark": None})


def started(*, wrong):
    """Resume a run from a measure: another one, or its end."""
    run = flown()
    return flown(
        mu=of.Particles(CLOUD.points + wrong) if wrong else run.final, resume=run
    )


def warned():
    with pytest.warns(of.errors.ResumeWarning) as caught:
        flown(2 * SPRING, resume=flown())
    raise caught[0].message


def saved(thing, change=None):
    """Write a file, change its header and tree, and read it again."""
    path = new()
    of.save(path, thing)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + length])["__metadata__"]
    tensors = safetensors.load(data)
    tree = json.loads(head["tree"])
    if change:
        change(head, tree)
    head["tree"] = json.dumps(tree)
    head["checksum"] = files.checksum_of(head["tree"], tensors)
    path.write_bytes(safetensors.save(tensors, metadata=head))
    return path


def without_format(head, _):
    del head["format"]


def version_2(head, _):
    head["version"] = "2"


def gone_class(_, tree):
    tree["class"] = "Rays"


def on_mars(_, tree):
    tree["is"]["points"]["device"] = "mars"


def elsewhere():
    """Return a run as if it were made on another device."""
    run = flown()
    mark = run.bookmark
    assert mark is not None
    there = {**mark.context, "device": "cuda"}
    return replace(run, bookmark=replace(mark, context=there))


def forked():
    """Write a checkpoint where a fork has closed the lock, as in a child."""
    keeper = of.callbacks.Checkpoint(new(), every=1)
    keeper.start(None)
    lock.forget()
    return flown(on_step=lambda event: keeper(event))


class Backward(of.ExplicitEuler):
    """A scheme whose state is a function."""

    def init(self, F, mu):
        return torch.sin


class BackwardKept(Backward):
    def state_dict(self, state):
        return None

    def load_state(self, F, mu, kept):
        return torch.sin


def contract(kind):
    class Contract(of.testing.SchemeContract):
        def make(self):
            return kind()

    return Contract().test_a_kept_state_goes_on_as_the_state_itself()


def in_directory(**options):
    folder = new()
    flown(checkpoint=folder, generator=1)
    return flown(checkpoint=folder, **options)


def gone_on():
    folder = new()
    flown(checkpoint=folder)
    run = of.load(folder)
    return flown(mu=run.final, resume=run, checkpoint=folder)


def with_files():
    folder = new()
    folder.mkdir()
    (folder / "notes.txt").write_text("x")
    return folder


def of_version_2():
    folder = new()
    flown(checkpoint=folder)
    (folder / "run.json").write_text('{"format": "otflow run", "version": 2}')
    return folder


def at_once():
    folder = new()
    return flown(checkpoint=folder, on_step=lambda _: flown(checkpoint=folder) and None)


def longer():
    folder = new()
    flown(checkpoint=folder, generator=1, steps=3)
    return flown(checkpoint=folder, resume=flown(generator=1))


CASES: dict[str, Case] = {
    "a run of another device": (
        ValueError,
        r"load it to where it was, or begin a new flow from run\.final",
        lambda: flown(resume=elsewhere()),
        [lambda: flown(resume=flown()), lambda: flown(mu=elsewhere().final)],
    ),
    "a checkpoint in a forked process": (
        DirectoryInUse,
        "begin a flow of its own in another directory",
        forked,
        [lambda: flown(checkpoint=new())],
    ),
    "an integer of many digits in a file": (
        Unsupported,
        r"keep it as text in hexadecimal, hex\(n\)",
        lambda: of.save(new(), 2**20_000),
        [lambda: of.save(new(), hex(2**20_000))],
    ),
    "a state that is a function": (
        AssertionError,
        "or override state_dict and load_state of the scheme",
        lambda: contract(Backward),
        [lambda: contract(BackwardKept)],
    ),
    "a run that is at its end": (
        ValueError,
        "there is nothing to do; give a later until",
        lambda: flown(until=0.2, resume=flown(until=0.2)),
        [lambda: flown(until=0.4, resume=flown(until=0.2))],
    ),
    "other random numbers for a run": (
        ValueError,
        r"leave generator out, or begin a new flow from run\.final",
        lambda: flown(resume=flown(), generator=7),
        [lambda: flown(resume=flown()), lambda: flown(mu=flown().final, generator=7)],
    ),
    "other records for a run": (
        ValueError,
        "give the same names in `record`",
        lambda: flown(resume=flown(), record={"n": lambda mu: mu.n}),
        [
            lambda: flown(
                resume=flown(record={"n": lambda mu: mu.n}),
                record={"n": lambda mu: mu.n},
            )
        ],
    ),
    "a diverged run": (
        ValueError,
        r"flow\(F, run\.final, \.\.\.\), with a smaller dt",
        beyond,
        [smaller],
    ),
    "a run without a bookmark": (
        ValueError,
        r"begin a new flow from run\.final",
        lambda: flown(resume=bare()),
        [lambda: flown(mu=bare().final)],
    ),
    "a start of another dtype": (
        ValueError,
        r"hand over flow\(F, run\.final, \.\.\., resume=run\), or begin a new flow",
        lambda: flown(mu=of.Particles(CLOUD.points.float()), resume=flown()),
        [
            lambda: started(wrong=0.0),
            lambda: flown(mu=of.Particles(CLOUD.points.float())),
        ],
    ),
    "a start that is none of the run": (
        ValueError,
        r"hand over flow\(F, run\.final, \.\.\., resume=run\), or begin a new flow",
        lambda: started(wrong=1.0),
        [lambda: started(wrong=0.0), lambda: flown(mu=of.Particles(CLOUD.points + 1))],
    ),
    "another functional": (
        of.errors.ResumeWarning,
        "begin a new flow if unintended",
        warned,
        [lambda: flown(2 * SPRING, flown().final)],
    ),
    "a record without a name": (
        TypeError,
        r"name it, e\.g\. record=\{'loss': function\}",
        lambda: flown(record={1: lambda mu: mu.n}),
        [lambda: flown(record={"loss": lambda mu: mu.n})],
    ),
    "a record with the name of a column": (
        ValueError,
        "tables of a run use it; choose another, e.g. 'my_time'",
        lambda: flown(record={"time": lambda mu: mu.n}),
        [lambda: flown(record={"my_time": lambda mu: mu.n})],
    ),
    "a number of steps without a directory": (
        ValueError,
        "give checkpoint='some/directory'",
        lambda: flown(checkpoint_every=3),
        [lambda: flown(checkpoint=new(), checkpoint_every=3)],
    ),
    "a function in a file": (
        Unsupported,
        "keep numbers, text, tensors",
        lambda: of.save(new(), {"f": torch.sin}),
        [lambda: of.save(new(), {"f": "sin", "x": torch.ones(2), "mu": CLOUD})],
    ),
    "a graph in a file": (
        Unsupported,
        r"save a detached copy, e\.g\. mu\.detach\(\)",
        lambda: of.save(new(), of.Particles(normal(3, 2).requires_grad_())),
        [lambda: of.save(new(), of.Particles(normal(3, 2).requires_grad_()).detach())],
    ),
    "a class that is gone": (
        CorruptFile,
        "read it with the version that wrote it",
        lambda: of.load(saved(CLOUD, gone_class)),
        [lambda: of.load(saved(CLOUD))],
    ),
    "a file of tensors": (
        CorruptFile,
        "read it with safetensors",
        lambda: of.load(saved(CLOUD, without_format)),
        [lambda: safetensors.load_file(saved(CLOUD, without_format))],
    ),
    "a file of another version": (
        CorruptFile,
        "read it with the otflow that wrote it",
        lambda: of.load(saved(CLOUD, version_2)),
        [lambda: of.load(saved(CLOUD))],
    ),
    "a device that is not here": (
        Unsupported,
        r"read them on the CPU: load\(path, device=\"cpu\"\)",
        lambda: of.load(saved(CLOUD, on_mars)),
        [lambda: of.load(saved(CLOUD, on_mars), device="cpu")],
    ),
    "a directory that holds a run": (
        ForeignDirectory,
        "for run = load",
        in_directory,
        [gone_on, lambda: flown(checkpoint=new())],
    ),
    "a directory without a run": (
        ForeignDirectory,
        "name the `checkpoint` of a flow",
        lambda: of.load(with_files()),
        [gone_on],
    ),
    "a directory of another version": (
        ForeignDirectory,
        "read it with the otflow that wrote it",
        lambda: of.load(of_version_2()),
        [gone_on],
    ),
    "a directory that is ahead": (
        ForeignDirectory,
        "go on from load of the directory, or take another directory",
        longer,
        [gone_on, lambda: flown(resume=flown(generator=1), checkpoint=new())],
    ),
    "a directory with other files": (
        ForeignDirectory,
        "take a new or an empty directory",
        lambda: flown(checkpoint=with_files()),
        [lambda: flown(checkpoint=new())],
    ),
    "a directory of another run": (
        ForeignDirectory,
        "holds another run than the one to resume; take another directory",
        lambda: in_directory(resume=flown(generator=2)),
        [lambda: flown(resume=flown(generator=2), checkpoint=new())],
    ),
    "other snapshots than records": (
        ValueError,
        r"flow again without snapshots=, and with every=1",
        lambda: of.analysis.minimizing_movement(flown(snapshots=2)),
        [lambda: of.analysis.minimizing_movement(flown())],
    ),
    "a directory in use": (
        DirectoryInUse,
        "wait for its end, or take another directory",
        at_once,
        [
            gone_on,
            lambda: flown(
                checkpoint=new(), on_step=lambda _: flown(checkpoint=new()) and None
            ),
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_cure_of_the_message_works(name):
    check_cures(CASES[name])
