"""Checkpoints when the system fails: at each call, in each way, and the run goes on."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import otflow as of
from otflow.errors import CorruptFile, DirectoryInUse, ForeignDirectory
from otflow.storage import directory, files, lock
from otflow.testing import assert_same
from tests.test_resume import cloud, flown

pytest.importorskip("safetensors")

ENDS = {"message", "status"}
posix = pytest.mark.skipif(os.name != "posix", reason="calls of POSIX")


def gone_on(folder, steps=7, every=2, **options):
    """Make a run of so many steps in a directory, from whatever is there."""
    kept = {"checkpoint": folder, "checkpoint_every": every, "every": 2}
    kept |= {"snapshots": [0.08, 0.2, 0.3], **options}
    try:
        run = of.load(folder)
    except (ForeignDirectory, CorruptFile, FileNotFoundError):
        return flown("langevin", steps, generator=1, **kept)
    return flown("langevin", steps - len(run.info), resume=run, **kept)


def whole(steps=7):
    options = {"every": 2, "snapshots": [0.08, 0.2, 0.3]}
    return flown("langevin", steps, generator=1, **options)


class Fault:
    """Fails at one call of the system, or at that one and all that follow."""

    def __init__(self, patch, at, *, once):
        self.calls, self.at, self.once, self.names = 0, at, once, []
        for name in ("fsync", "replace", "unlink", "mkdir", "open"):
            self._watch(patch, os, name)
        self._watch(patch, lock, "_take")
        self._watch(patch, Path, "chmod")
        opened = Path.open

        def half(path, mode="r", *args, **options):
            try:
                self("write")
            except OSError:
                if mode == "xb":
                    with opened(path, mode) as file:
                        file.write(b"half")
                raise
            return opened(path, mode, *args, **options)

        patch.setattr(Path, "open", half)

    def _watch(self, patch, home, name):
        call = getattr(home, name)

        def watched(*args, **options):
            self(name)
            return call(*args, **options)

        patch.setattr(home, name, watched)

    def __call__(self, name):
        self.calls += 1
        self.names.append(name)
        if self.calls == self.at or (self.calls > self.at and not self.once):
            raise OSError(errno.EIO, f"no {name}")


def failure_of(call):
    """Return the OSError that a call raises, or None."""
    try:
        call()
    except OSError as error:
        return error
    return None


@pytest.mark.slow
@posix
@pytest.mark.parametrize("once", [True, False], ids=["once", "from then on"])
@pytest.mark.parametrize("begun", [0, 3])
def test_any_call_of_the_system_may_fail(once, begun, tmp_path, monkeypatch):
    expected, at, raised = whole(), 0, 0
    while True:
        at += 1
        folder = tmp_path / f"run {at}"
        if begun:
            gone_on(folder, begun)
        with monkeypatch.context() as patch:
            fault = Fault(patch, at, once=once)
            caught = failure_of(lambda: gone_on(folder))  # noqa: B023
        if caught is not None:
            assert caught.errno == errno.EIO  # and so none of DirectoryInUse
            raised += 1
        if fault.calls < at:
            break
        if folder.exists() and list(folder.glob("state-*")):
            run = of.load(folder)  # what is there is whole, without a cure
            assert len(run.info) >= begun
            k = len(run.info)
            assert_same(list(run.info), list(expected.info[:k]))
        assert_same(gone_on(folder), expected, but=ENDS)
        assert_same(of.load(folder), expected, but=ENDS)
        assert not [path for path in folder.iterdir() if path.name[0] == "."]
    assert at > 30
    assert raised > 15


SCRIPT = """
import os, sys, torch, otflow as of
from pathlib import Path
torch.set_num_threads(1)
F = of.Potential(lambda x: x.square().square().sum(-1)) + 0.1 * of.Entropy()
mu = of.Particles(torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(4, 2))
root = Path(sys.argv[1])

def flown(**more):
    options = dict(dt=0.01, every=2, snapshots=[0.015, 0.03, 0.05])
    return of.flow(F, mu, of.Langevin(), **options, **more)

def gone_on(folder, steps=7, **more):
    try:
        run = of.load(folder)
    except (of.errors.ForeignDirectory, of.errors.CorruptFile, FileNotFoundError):
        run = None
    keep = dict(checkpoint=folder, checkpoint_every=2, **more)
    if run is None:
        return flown(steps=steps, generator=5, **keep)
    return flown(steps=steps - len(run.info), resume=run, **keep)
"""


def script(text, folder, *, timeout=200):
    """Run a program in a process of its own, of one thread, which may fork."""
    return subprocess.run(
        [sys.executable, "-c", SCRIPT + textwrap.dedent(text), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


@pytest.mark.slow
@posix
def test_a_kill_before_or_after_any_call_of_the_system(tmp_path):
    done = script(
        """
        def watched(home, name, at, after, calls):
            call = getattr(home, name)
            def one(*args, **options):
                calls[0] += 1
                if calls[0] == at and not after:
                    os._exit(9)
                try:
                    return call(*args, **options)
                finally:
                    if calls[0] == at:
                        os._exit(9)
            setattr(home, name, one)

        whole = flown(steps=5, generator=5)
        at = killed = 0
        ended = False
        while not ended:
            at += 1
            for after in (False, True):
                folder = root / f"{at} {after}"
                if at % 2:
                    gone_on(folder, 3)
                child = os.fork()
                if not child:
                    calls = [0]
                    for name in ("fsync", "replace", "unlink", "mkdir", "open"):
                        watched(os, name, at, after, calls)
                    watched(Path, "open", at, after, calls)
                    gone_on(folder, 5)
                    os._exit(0)
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                assert code in (0, 9), code
                ended |= code == 0
                killed += code == 9
                if list(folder.glob("state-*")):
                    of.load(folder)
                of.testing.assert_same(
                    gone_on(folder, 5), whole, but={"message", "status"}
                )
                assert not [p for p in folder.iterdir() if p.name[0] == "."]
        print("killed", killed)
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[1]) > 50


# ---- ends ----------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [SystemExit(3), GeneratorExit(), BaseException("x")])
def test_an_end_that_is_no_exception_writes_the_last_step_too(fault, tmp_path):
    def watch(event):
        if event.index == 3:
            raise fault

    expected = whole()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(type(fault)) as caught:
        gone_on(tmp_path, on_step=watch, every=99)
    assert caught.value is fault
    assert len(vars(fault)["trajectory"].info) == 4
    assert signal.getsignal(signal.SIGTERM) is before
    assert len(of.load(tmp_path).info) == 4
    assert_same(gone_on(tmp_path), expected, but=ENDS)  # it is free again


def test_an_interrupt_before_the_first_record_leaves_a_run(tmp_path):
    interrupts = [True]

    class Spring(of.Functional):
        def value(self, mu):
            if interrupts:
                raise KeyboardInterrupt
            return mu.expectation(lambda x: 0.5 * x.square().sum(-1))

    def run(**options):
        record = {"n": lambda mu: mu.n}
        euler = of.ExplicitEuler()
        return of.flow(Spring(), cloud(), euler, dt=0.1, record=record, **options)

    with pytest.raises(of.errors.Interrupted) as caught:
        run(steps=3, generator=1, checkpoint=tmp_path)
    part = of.load(tmp_path)
    assert_same(part, caught.value.trajectory)
    assert list(part.records) == ["energy", "n"]
    interrupts.clear()
    rest = run(steps=3, resume=part, checkpoint=tmp_path)
    assert_same(rest, run(steps=3, generator=1), but=ENDS)
    assert_same(of.load(tmp_path), rest)


def test_a_step_that_fails_after_its_record_takes_no_snapshot_twice(tmp_path):
    class Backwards(of.ExplicitEuler):
        def step(self, F, mu, dt, state, generator):
            step = super().step(F, mu, dt, state, generator)
            late = float(mu.points.abs().max()) < 0.7 * float(
                cloud().points.abs().max()
            )
            info = {"dt": -1.0} if late else {}
            return of.schemes.Step(step.measure, state, info)

    F = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    for k, snapshots in enumerate([1, 2, "last", [0.1, 0.2, 0.3, 0.4, 0.5]]):
        with pytest.raises(ValueError, match="dt of a report") as caught:
            of.flow(
                F,
                cloud(),
                Backwards(),
                dt=0.1,
                steps=9,
                snapshots=snapshots,
                checkpoint=tmp_path / str(k),
            )
        run = vars(caught.value)["trajectory"]
        made = run.snapshot_steps.tolist()
        assert made == sorted(set(made))
        assert made[-1] == len(run.info)
        assert_same(of.load(tmp_path / str(k)), run)


def test_a_resumed_flow_that_warns_as_an_error_says_so():
    import warnings

    part = flown("langevin", 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(of.errors.ResumeWarning, match="functional was"):
            of.flow(
                of.Potential(torch.square),
                part.final,
                of.Langevin(),
                dt=0.1,
                steps=1,
                resume=part,
            )


def test_a_run_of_another_device_is_refused():
    part = flown("langevin", 2)
    mark = part.bookmark
    assert mark is not None
    there = {**mark.context, "device": "cuda"}
    other = replace(part, bookmark=replace(mark, context=there))
    with pytest.raises(ValueError, match=r"made on cuda .* flow from run\.final"):
        flown("langevin", 2, resume=other)


# ---- directories ---------------------------------------------------------------------


def stamps(folder):
    found = ((path.name, path.stat()) for path in folder.glob("state-*"))
    return {name: (held.st_ino, held.st_mtime_ns) for name, held in found}


def test_a_run_that_goes_on_does_not_write_what_stands_there(tmp_path):
    run = gone_on(tmp_path, 4)
    before = stamps(tmp_path)
    for held in (run, of.load(tmp_path)):
        callback = of.callbacks.Checkpoint(tmp_path)
        callback.start(held)
        assert stamps(tmp_path) == before
        callback.end(held)
        assert stamps(tmp_path) == before
    callback.start(replace(run, message="another"))
    assert stamps(tmp_path) != before
    callback.end(run)


def test_a_damaged_state_of_the_same_step_is_written_again(tmp_path):
    run = gone_on(tmp_path, 4)
    state = max(tmp_path.glob("state-*"))
    state.write_bytes(state.read_bytes()[:-1])
    callback = of.callbacks.Checkpoint(tmp_path)
    callback.start(run)
    callback.end(run)
    assert_same(of.load(tmp_path), run)


def test_a_reader_looks_again_for_a_state_that_was_replaced(tmp_path, monkeypatch):
    gone_on(tmp_path, 4, every=1)
    read, times = files.read, []

    def late(path, **options):
        times.append(path)
        if len(times) == 1:
            monkeypatch.setattr(directory, "read", read)
            gone_on(tmp_path, 9, every=1)
            monkeypatch.setattr(directory, "read", late)
        return read(path, **options)

    monkeypatch.setattr(directory, "read", late)
    assert len(of.load(tmp_path).info) == 9
    monkeypatch.undo()
    shutil.rmtree(tmp_path)
    with pytest.raises(FileNotFoundError):
        of.load(tmp_path)


@pytest.mark.slow
def test_many_read_while_one_writes(tmp_path):
    faults: list[BaseException] = []
    expected, seen = whole(60), set()
    ended = threading.Event()

    def read():
        while not ended.is_set():
            try:
                run = of.load(tmp_path)
                k = len(run.info)
                seen.add(k)
                assert_same(run.final, final[k])
            except (ForeignDirectory, CorruptFile) as error:
                if "no run" not in str(error) and "without a ch" not in str(error):
                    faults.append(error)
            except BaseException as error:
                faults.append(error)

    final = flown("langevin", 60, generator=1).snapshots
    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    run = gone_on(tmp_path, 60, every=1, on_step=lambda _: time.sleep(0.005))
    ended.set()
    for reader in readers:
        reader.join()
    assert not faults, faults[0]
    assert len(seen) > 5
    assert_same(run, expected, but=ENDS)


def test_a_lock_that_a_killed_process_left_does_not_hold(tmp_path):
    (tmp_path / "lock").write_text("stale")
    assert_same(gone_on(tmp_path), whole(), but=ENDS)


def test_a_file_whose_name_begins_like_the_lock_s_is_a_stranger(tmp_path):
    (tmp_path / "lockpicking.txt").write_text("x")
    with pytest.raises(ForeignDirectory, match="lockpicking"):
        gone_on(tmp_path)


@posix
def test_a_file_system_without_locks_says_so_itself(tmp_path, monkeypatch):
    def none(handle):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock, "_take", none)
    with pytest.raises(OSError, match="No locks") as caught:
        gone_on(tmp_path)
    assert not isinstance(caught.value, DirectoryInUse)


@pytest.mark.slow
@posix
def test_a_process_that_was_forked_neither_holds_the_directory_nor_writes(tmp_path):
    done = script(
        """
        import time
        folder = root / "run"
        children = []

        def fork(event):
            if event.index == 1:
                child = os.fork()
                if not child:
                    time.sleep(1)  # it lives longer than the flow of its parent
                    os._exit(0)
                children.append(child)
            if event.index == 2:
                child = os.fork()
                if not child:
                    raise RuntimeError("the child unwinds the flow")
                children.append(child)
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                assert code == 7, code
            if event.index == 3:
                try:  # the child has not freed it
                    gone_on(folder)
                except of.errors.DirectoryInUse:
                    return
                raise AssertionError("a second flow came in")

        try:
            gone_on(folder, 5, on_step=fork)
        except RuntimeError:
            os._exit(7)
        assert len(of.load(folder).info) == 5
        run = gone_on(folder)  # it is free although a child lives
        of.testing.assert_same(
            run, flown(steps=7, generator=5), but={"message", "status"}
        )
        print("good")
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "good" in done.stdout


def test_a_checkpoint_in_a_forked_process_is_refused(tmp_path):
    callback = of.callbacks.Checkpoint(tmp_path, every=1)
    callback.start(None)
    lock.forget()  # what a fork does in the child
    with pytest.raises(DirectoryInUse, match="in another directory"):
        flown("langevin", 1, on_step=lambda event: callback(event))


@pytest.mark.slow
@posix
def test_a_directory_of_another_user_can_be_read_and_not_written(tmp_path):
    """As root, the process becomes another user; else the permissions are taken."""
    home = Path(tempfile.mkdtemp(prefix="otflow-"))  # pytest's own is closed to others
    try:
        home.chmod(0o755)
        done = script(
            """
            folder = root / "run"
            run = gone_on(folder, 4)
            of.testing.assert_same(run, run)  # imported while all files can be read
            of.save(root / "file", run)
            for path in (*folder.iterdir(), root / "file"):
                path.chmod(0o444)
            for path in (folder, root):
                path.chmod(0o555)
            if os.geteuid() == 0:
                os.seteuid(65534)
            steps = []
            again = of.load(folder)
            of.testing.assert_same(again, run)
            of.testing.assert_same(of.load(root / "file"), run)
            keep = dict(on_step=steps.append)
            attempts = [
                lambda: gone_on(folder, 7, **keep),
                lambda: gone_on(root / "new", 7, **keep),
                lambda: of.save(root / "file", 1),
                lambda: of.save(root / "new", 1),
            ]
            for attempt in attempts:
                try:
                    attempt()
                except PermissionError as error:
                    assert not isinstance(error, of.errors.DirectoryInUse)
                else:
                    raise AssertionError("it was written")
            assert not steps
            of.testing.assert_same(of.load(root / "file"), run)
            assert sorted(p.name for p in root.iterdir()) == ["file", "run"]
            if os.getuid() == 0:
                os.seteuid(0)
            for path in (root, folder):
                path.chmod(0o755)
            print("good")
            """,
            home,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert "good" in done.stdout
    finally:
        for path in (home, home / "run"):
            if path.exists():
                path.chmod(0o755)
        shutil.rmtree(home)
