"""Checkpoints: no end of a process loses a run, and two halves equal the whole."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest
import torch

import otflow as of
from otflow.errors import CorruptFile, DirectoryInUse, ForeignDirectory
from otflow.testing import assert_same
from tests.test_resume import CASES, DOUBLE, Momentum, cloud, flown

pytest.importorskip("safetensors")

TYPES = {"user": [Momentum]}


def same(a, b):
    """Compare runs; how the last part ended may differ."""
    assert_same(a, b, but={"message", "status"})


@pytest.mark.parametrize("case", CASES)
def test_a_directory_holds_the_run(case, tmp_path):
    run = flown(case, 5, every=2, generator=3, checkpoint=tmp_path, checkpoint_every=2)
    assert_same(of.load(tmp_path, types=TYPES.get(case, ())), run)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["langevin", "JKO", "user", "grid sinkhorn"])
@pytest.mark.parametrize("snapshots", [None, "last", 2, [0.1, 0.21]])
def test_a_run_in_parts_in_one_directory_equals_the_whole(case, snapshots, tmp_path):
    options = {"every": 2, "snapshots": snapshots}
    whole = flown(case, 9, generator=3, **options)
    kept = {"checkpoint": tmp_path, "checkpoint_every": 2}
    run = flown(case, 3, generator=3, **options, **kept)
    for steps in (1, 3, 2):
        run = of.load(tmp_path, types=TYPES.get(case, ()))
        run = flown(case, steps, resume=run, **options, **kept)
    same(run, whole)
    same(of.load(tmp_path, types=TYPES.get(case, ())), whole)


def test_a_run_in_memory_goes_on_in_an_empty_directory(tmp_path):
    part = flown("langevin", 3, generator=1)
    rest = flown("langevin", 4, resume=part, checkpoint=tmp_path / "a" / "new")
    same(of.load(tmp_path / "a" / "new"), rest)
    same(rest, flown("langevin", 7, generator=1))


def test_old_states_go_and_rows_stay(tmp_path):
    run = flown("langevin", 40, checkpoint=tmp_path, checkpoint_every=4)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert sum(name.startswith("state-") for name in names) == 2
    assert sum(name.startswith("rows-") for name in names) == 10
    assert len(names) == 14, names  # and the lock and the label
    assert_same(of.load(tmp_path), run)


def test_snapshots_none_keep_the_directory_small(tmp_path):
    mu = of.Particles(torch.randn(2000, 5, dtype=torch.float64))
    options = {"dt": 0.01, "steps": 60, "checkpoint": tmp_path, "checkpoint_every": 1}
    of.flow(DOUBLE, mu, of.ExplicitEuler(), snapshots="none", **options)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size < 4 * 8 * mu.points.numel() + 60 * 4000


def test_without_a_number_the_clock_decides(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("otflow.callbacks.checkpoint.time.monotonic", lambda: clock[0])

    def tick(event):
        clock[0] += 0.5

    flown("euler", 12, checkpoint=tmp_path, on_step=tick)
    kept = sorted(path.name[10:-12] for path in tmp_path.glob("rows-*"))
    assert [int(name[-9:]) for name in (p.split(".")[0] for p in kept)] == [4, 8, 12]


# ---- ends ----------------------------------------------------------------------------


class Quit(BaseException):
    """Somebody's own end of the program."""


@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt, SystemExit, Quit])
def test_an_exception_writes_the_last_step(fault, tmp_path):
    def watch(event):
        if event.index == 3:
            raise fault

    with pytest.raises(fault):
        flown(
            "langevin",
            9,
            generator=1,
            on_step=watch,
            checkpoint=tmp_path,
            checkpoint_every=3,
        )
    run = of.load(tmp_path)
    assert len(run.info) == 4
    rest = flown("langevin", 5, resume=run, checkpoint=tmp_path)
    same(rest, flown("langevin", 9, generator=1))


def test_a_diverged_run_is_kept_up_to_its_last_good_measure(tmp_path):
    F = of.Potential(lambda x: -(x.square().sum(-1) ** 2))
    with pytest.raises(of.errors.Diverged) as caught:
        of.flow(F, cloud(), of.ExplicitEuler(), dt=0.1, steps=50, checkpoint=tmp_path)
    run = of.load(tmp_path)
    assert run.status == "diverged"
    assert torch.equal(run.final.points, caught.value.trajectory.final.points)


SCRIPT = """
import sys, torch, otflow as of
torch.set_num_threads(1)
F = of.Potential(lambda x: x.square().square().sum(-1)) + 0.1 * of.Entropy()
mu = of.Particles(torch.linspace(-1, 1, 60, dtype=torch.float64).reshape(30, 2))
folder, steps = sys.argv[1], int(sys.argv[2])

def flown(**more):
    return of.flow(F, mu, of.Langevin(), dt=0.01, every=7, snapshots=50, **more)

def gone_on():
    try:
        run = of.load(folder)
    except (of.errors.ForeignDirectory, of.errors.CorruptFile, FileNotFoundError):
        run = None
    keep = dict(checkpoint=folder, checkpoint_every=EVERY)
    if run is None:
        return flown(steps=steps, generator=5, **keep)
    return flown(steps=steps - len(run.info), resume=run, **keep)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_and_loses_nothing(number, tmp_path):
    folder, script = tmp_path / "run", tmp_path / "script.py"
    # A shell starts jobs in the background with Ctrl-C ignored; children inherit it.
    body = """
    import os, signal
    signal.signal(signal.SIGINT, signal.default_int_handler)
    def watch(event):
        if event.index == 120:
            os.kill(os.getpid(), NUMBER)
    keep = dict(checkpoint=folder, checkpoint_every=100)
    flown(steps=steps, generator=5, on_step=watch, **keep)
    print("not reached")
    """
    text = SCRIPT + textwrap.dedent(body).replace("NUMBER", str(int(number)))
    script.write_text(text)
    done = subprocess.run(
        [sys.executable, script, folder, "300"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "not reached" not in done.stdout
    if number == signal.SIGTERM:
        assert done.returncode == -signal.SIGTERM
    else:
        assert "Interrupted" in done.stderr
    assert len(of.load(folder).info) == 121


@pytest.mark.slow
def test_fifty_kills_at_random_instants_change_no_bit(tmp_path):
    """Children are forked from one process with one thread, so that a kill is cheap."""
    folder, script = tmp_path / "run", tmp_path / "script.py"
    body = """
    import os, random, shutil, signal, time
    random.seed(int(sys.argv[3]))
    kills = 0
    while kills < 50:
        child = os.fork()
        if not child:
            gone_on()
            os._exit(0)
        time.sleep(random.uniform(0.01, 0.25))
        os.kill(child, signal.SIGKILL)
        kills += os.waitpid(child, 0)[1] == signal.SIGKILL
        run = None if not os.path.exists(folder + "/run.json") else 1
    gone_on()
    run = of.load(folder)
    whole = flown(steps=steps, generator=5)
    of.testing.assert_same(run, whole, but={"message", "status"})
    strays = [name for name in os.listdir(folder) if name[0] == "."]
    assert not strays, strays
    print("equal after", kills, "kills of", len(run.info), "steps")
    """
    script.write_text(SCRIPT.replace("EVERY", "3") + textwrap.dedent(body))
    done = subprocess.run(
        [sys.executable, script, folder, "6000", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "equal after 50 kills of 6000 steps" in done.stdout


def test_a_full_disk_keeps_the_checkpoints_before(tmp_path, monkeypatch):
    sync, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        return sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as caught:
        flown("langevin", 40, generator=1, checkpoint=tmp_path, checkpoint_every=4)
    monkeypatch.undo()
    assert caught.value.errno == errno.ENOSPC
    assert len(vars(caught.value)["trajectory"].info) > 0
    assert not [path for path in tmp_path.iterdir() if path.name[0] == "."]
    run = of.load(tmp_path)
    rest = flown("langevin", 40 - len(run.info), resume=run, checkpoint=tmp_path)
    same(rest, flown("langevin", 40, generator=1))


def test_a_directory_that_cannot_be_written_raises_before_the_first_step(tmp_path):
    steps: list[object] = []
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match="file"):
            flown("euler", 3, checkpoint=place, on_step=steps.append)
    assert not steps


def test_a_missing_extra_is_named_before_the_first_step(tmp_path, monkeypatch):
    steps: list[object] = []
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match=r"otflow\[store\]"):
        flown("euler", 3, checkpoint=tmp_path, on_step=steps.append)
    assert not steps


# ---- directories ---------------------------------------------------------------------


def test_a_directory_with_a_run_is_not_begun_again(tmp_path):
    run = flown("langevin", 3, checkpoint=tmp_path)
    with pytest.raises(ForeignDirectory, match="resume=run"):
        flown("langevin", 3, checkpoint=tmp_path)
    assert_same(of.load(tmp_path), run)


def test_a_directory_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ForeignDirectory, match="thesis"):
        flown("langevin", 3, checkpoint=tmp_path)
    with pytest.raises(ForeignDirectory, match="holds no run"):
        of.load(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "thesis.tex"]


def test_a_directory_of_another_run_is_refused(tmp_path):
    flown("langevin", 3, generator=1, checkpoint=tmp_path)
    other = flown("langevin", 4, generator=2)
    with pytest.raises(ForeignDirectory, match="another run"):
        flown("langevin", 3, resume=other, checkpoint=tmp_path)
    shorter = flown("langevin", 2, generator=1)
    with pytest.raises(ForeignDirectory, match="holds 3 steps"):
        flown("langevin", 3, resume=shorter, checkpoint=tmp_path)
    assert len(of.load(tmp_path).info) == 3


def test_a_directory_of_another_format_is_refused(tmp_path):
    flown("langevin", 3, checkpoint=tmp_path)
    (tmp_path / "run.json").write_text('{"format": "otflow run", "version": 2}')
    with pytest.raises(ForeignDirectory, match="the otflow that wrote it"):
        of.load(tmp_path)


def test_two_flows_do_not_share_a_directory(tmp_path):
    seen = []

    def other(event):
        if event.index == 1:
            with pytest.raises(DirectoryInUse, match="another directory"):
                flown("langevin", 1, checkpoint=tmp_path)
            seen.append(len(of.load(tmp_path).info))  # readers may look

    flown("langevin", 4, checkpoint=tmp_path, checkpoint_every=1, on_step=other)
    assert len(seen) == 1
    flown("langevin", 1, resume=of.load(tmp_path), checkpoint=tmp_path)  # free again


def test_the_signal_s_handler_is_put_back(tmp_path):
    def mine(number, frame):
        raise AssertionError

    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    flown("euler", 2, checkpoint=tmp_path / "a")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    before = signal.signal(signal.SIGTERM, mine)
    try:
        flown("euler", 2, checkpoint=tmp_path / "b")
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_thread_of_its_own_may_write(tmp_path):
    runs = []
    thread = threading.Thread(
        target=lambda: runs.append(flown("euler", 3, checkpoint=tmp_path))
    )
    thread.start()
    thread.join()
    assert_same(of.load(tmp_path), runs[0])


@pytest.mark.parametrize("how", ["cut", "flipped", "removed"])
@pytest.mark.parametrize("what", ["state", "rows"])
def test_damage_falls_back_to_the_checkpoint_before(how, what, tmp_path):
    whole = flown("langevin", 12, generator=1)
    flown("langevin", 12, generator=1, checkpoint=tmp_path, checkpoint_every=4)
    last = sorted(tmp_path.glob(f"{what}-*"))[-1]
    data = last.read_bytes()
    if how == "removed":
        last.unlink()
    elif how == "cut":
        last.write_bytes(data[: len(data) // 2])
    else:
        last.write_bytes(data[:-9] + bytes([data[-9] ^ 4]) + data[-8:])
    if (what, how) != ("state", "removed"):
        with pytest.raises(CorruptFile):
            of.load(tmp_path)
    run = of.load(tmp_path, strict=False)
    assert len(run.info) == 8
    kept = {"checkpoint": tmp_path, "checkpoint_every": 4}
    same(flown("langevin", 4, resume=run, **kept), whole)
    same(of.load(tmp_path), whole)


def test_a_number_of_steps_needs_a_directory():
    with pytest.raises(ValueError, match="needs a directory"):
        flown("euler", 1, checkpoint_every=3)
    with pytest.raises((ValueError, TypeError), match="checkpoint_every"):
        flown("euler", 1, checkpoint="somewhere", checkpoint_every=0)
