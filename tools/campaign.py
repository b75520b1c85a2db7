"""Random problems against independent references: ``make campaign``.

Each family draws problems from fixed seeds and judges otflow's results by closed forms,
SciPy or brute force. The campaign passes if no certificate was false, no number was NaN
or infinite, no error untyped and no trial over its time, and if in each family at least
95 % of the trials converged and less than 5 % of the problems were refused; a family of
steps on grids that is known to be below that mark must not fall further.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

LEAST_CONVERGED = 0.95
# Families that do not meet the mark yet, and the share that they must not fall below:
# they may run out of time, but they must claim nothing false.
BELOW_THE_MARK = {"grids-BackAndForth": 0.9, "grids-GridSinkhorn": 0.92}
MOST_REFUSED = 0.05
# A worker that does not answer for that many times the limit of CPU time is ended: the
# alarm inside it waits for the return of compiled code.
PATIENCE = 12.0


def work(connection: Connection) -> None:
    """Run the trials that come through the connection, one after the other."""
    from tools.campaigns import FAMILIES
    from tools.campaigns.protocol import run_trial

    while True:
        name, seed = connection.recv()
        connection.send(run_trial(FAMILIES[name], seed))


class Worker:
    """A process that runs trials; ended and started anew if one of them hangs."""

    def __init__(self) -> None:
        self.task: tuple[str, int] | None = None
        self.start()

    def start(self) -> None:
        """Start the process."""
        context = multiprocessing.get_context("spawn")
        self.connection, far = context.Pipe()
        self.process: SpawnProcess = context.Process(
            target=work, args=(far,), daemon=True
        )
        self.process.start()
        far.close()

    def give(self, task: tuple[str, int]) -> None:
        """Hand over a trial."""
        self.task, self.since = task, time.monotonic()
        self.connection.send(task)

    def restart(self) -> None:
        """End the process with its trial, and start another."""
        self.process.kill()
        self.process.join()
        self.task = None
        self.start()


def interleaved(counts: dict[str, int], first: int) -> Iterator[tuple[str, int]]:
    """Yield (family, seed) so that every family is at the same share of its trials."""
    order = sorted(
        ((k + 0.5) / count, name, first + k)
        for name, count in counts.items()
        for k in range(count)
    )
    yield from ((name, seed) for _, name, seed in order)


def campaign(counts: dict[str, int], first: int, minutes: float, workers: int) -> list:
    """Return the outcomes of all trials that were run within the time."""
    from tools.campaigns import FAMILIES
    from tools.campaigns.protocol import Outcome, Verdict

    tasks, outcomes = interleaved(counts, first), []
    deadline = time.monotonic() + 60 * minutes
    team = [Worker() for _ in range(workers)]

    def next_task(worker: Worker) -> None:
        worker.task = None
        if time.monotonic() < deadline:
            task = next(tasks, None)
            if task is not None:
                worker.give(task)

    for worker in team:
        next_task(worker)
    while any(worker.task for worker in team):
        ready = wait([worker.connection for worker in team if worker.task], timeout=1.0)
        for worker in team:
            if worker.task is None or worker.connection not in ready:
                continue
            try:
                outcome = worker.connection.recv()
            except EOFError:
                name, seed = worker.task
                text = ("the process died",)
                outcome = Outcome(name, seed, Verdict.UNTYPED, 0.0, "", text)
                worker.restart()
            outcomes.append(report(outcome))
            next_task(worker)
        for worker in team:
            if worker.task is None:
                continue
            name, seed = worker.task
            waited = time.monotonic() - worker.since
            if waited > PATIENCE * FAMILIES[name].seconds + 60:
                text = ("hung in compiled code; ended from outside",)
                outcome = Outcome(name, seed, Verdict.TIMEOUT, waited, "", text)
                outcomes.append(report(outcome))
                worker.restart()
                next_task(worker)
    for worker in team:
        worker.process.kill()
    return outcomes


def report(outcome):
    """Print a trial that failed, with the command that repeats it; return it."""
    if outcome.verdict.is_failure or VERBOSE[0]:
        print(
            f"{outcome.verdict.name:<9} python -m tools.campaign "
            f"--family {outcome.family} --seed {outcome.seed}\n"
            f"          {outcome.problem}",
            *(f"          {note}" for note in outcome.notes[:3]),
            sep="\n",
            flush=True,
        )
    return outcome


VERBOSE = [False]


def table(outcomes: Sequence, counts: dict[str, int]) -> bool:
    """Print a line for each family; return whether the campaign passed."""
    from tools.campaigns.protocol import Verdict

    groups = defaultdict(list)
    for outcome in outcomes:
        groups[outcome.family].append(outcome)
    heads = [v.name.lower() for v in Verdict if v.is_failure]
    print(
        f"\n{'family':<20}{'trials':>7}{'converged':>11}{'flagged':>9}{'refused':>9}"
        + "".join(f"{head:>11}" for head in heads)
        + f"{'median s':>10}{'slowest s':>11}"
    )
    passed = True
    for name, count in counts.items():
        group = groups[name]
        n = len(group)
        tally = {v: sum(o.verdict == v for o in group) for v in Verdict}
        share = tally[Verdict.OK] / n if n else 0.0
        failures = sum(tally[v] for v in Verdict if v.is_failure)
        refused = tally[Verdict.REFUSED] / n if n else 0.0
        short = name in BELOW_THE_MARK
        if short:
            failures -= tally[Verdict.TIMEOUT]
        least = BELOW_THE_MARK.get(name, LEAST_CONVERGED)
        good = failures == 0 and share >= least and refused < MOST_REFUSED
        passed = passed and good and n > 0
        seconds = sorted(o.seconds for o in group) or [0.0]
        print(
            f"{name:<20}{n:>7}{share:>10.1%} {tally[Verdict.FLAGGED]:>8}"
            f"{tally[Verdict.REFUSED]:>9}"
            + "".join(f"{tally[v]:>11}" for v in Verdict if v.is_failure)
            + f"{seconds[len(seconds) // 2]:>10.3f}{seconds[-1]:>11.2f}"
            + ("" if good else "   FAILED")
            + ("   below the mark" if short and share < LEAST_CONVERGED else "")
            + ("" if n == count else f"   ({count - n} not run)")
        )
    print(f"{len(outcomes)} trials of {sum(counts.values())}")
    return passed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign, or one trial of it; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--family", action="append", help="only this one; repeatable")
    parser.add_argument("--seed", type=int, help="only this trial, with a traceback")
    parser.add_argument("--first", type=int, default=0, help="first seed (0)")
    parser.add_argument("--trials", type=int, help="of each family")
    parser.add_argument("--minutes", type=float, default=10.0, help="time (10)")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--list", action="store_true", help="name the families")
    parser.add_argument("--verbose", action="store_true", help="print every trial")
    options = parser.parse_args(arguments)
    from tools.campaigns import FAMILIES
    from tools.campaigns.protocol import run_trial

    VERBOSE[0] = options.verbose
    names = options.family or list(FAMILIES)
    unknown = sorted(set(names) - set(FAMILIES))
    if unknown:
        parser.error(f"no family {', '.join(unknown)}; there are {', '.join(FAMILIES)}")
    if options.list:
        print(*(f"{n:<20}{FAMILIES[n].trials:>6} trials" for n in names), sep="\n")
        return 0
    if options.seed is not None:
        VERBOSE[0] = True
        outcome = report(run_trial(FAMILIES[names[0]], options.seed, loud=True))
        return int(outcome.verdict.is_failure)
    counts = {name: options.trials or FAMILIES[name].trials for name in names}
    outcomes = campaign(counts, options.first, options.minutes, options.workers)
    return 0 if table(outcomes, counts) else 1


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    sys.exit(main())
