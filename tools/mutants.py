"""How many changed lines the tests notice: ``make mutants``, by hand.

cosmic-ray changes one operator, number or branch of otflow at a time; the tests that
mirror the file, fast ones and all of its package, should fail then. Of these only those
are run that execute the changed line, as coverage saw before: the others cannot tell.
The sample is drawn from a seed that is written down before, evenly from the packages.
Changes of ``|`` are left out, which are unions of types.

Each survivor is printed with its change and a place for its class: *equivalent* (no
input shows it), *cosmetic* (a message, a speed), *gap* (a test is missing).
"""

from __future__ import annotations

import argparse
import ast
import collections
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("metrics", "proximal", "analysis", "functionals", "schemes")
SEED = 20261125
# Seconds after which the tests of a mutant count as failed: an endless loop is noticed.
TIMEOUT = 900.0
LEFT_OUT = ("BitOr", "RemoveDecorator")
# Which test executed which line, in the copy of the project.
COVERAGE = Path(".git") / "coverage"


def key_of(test: str, module: str) -> int:
    """Return how far back in the queue a test of the module stands."""
    mirrored = words_of(module) & words_of(test.split("::", maxsplit=1)[0])
    return -len(mirrored)


def words_of(path: str) -> set[str]:
    """Return the words of a path's folders and file: a/b_c.py gives a, b, c."""
    return set(re.split(r"[/_]", path.removesuffix(".py")))


def statement(source: str, line: int) -> range:
    """Return the lines of the innermost statement at a line, without its body."""
    best = range(line, line + 1)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt) and node.end_lineno is not None:
            body = getattr(node, "body", None)
            last = body[0].lineno - 1 if body else node.end_lineno
            # The walk is breadth first: what comes later lies deeper.
            if node.lineno <= line <= max(last, node.lineno):
                best = range(node.lineno, max(last, node.lineno) + 1)
    return best


def witnesses(module: str, line: int) -> list[str]:
    """Return the tests of the module's package that executed a line of it.

    What runs at import belongs to no test: there it is all that executed the module.
    """
    from coverage import CoverageData

    data = CoverageData(str(COVERAGE.resolve()))
    data.read()
    seen = data.contexts_by_lineno(str(Path(module).resolve()))
    source = subprocess.run(
        ["git", "show", f"HEAD:{module}"], capture_output=True, text=True, check=True
    ).stdout
    found = {c for k in statement(source, line) for c in seen.get(k, [])}
    if "" in found:
        found = {c for contexts in seen.values() for c in contexts}
    package = f"tests/{module.split('/')[1]}/"
    tests = {c.split("|")[0] for c in found if c.startswith(package)}
    return sorted(tests, key=lambda test: (key_of(test, module), test))


def judge() -> int:
    """Run the tests that execute the one line which git says has changed."""
    diff = subprocess.run(
        ["git", "diff", "-U0"], capture_output=True, text=True, check=True
    ).stdout
    module = re.search(r"^--- a/(.*)$", diff, re.MULTILINE)
    line = re.search(r"^@@ -(\d+)", diff, re.MULTILINE)
    if module is None or line is None:
        return 0  # nothing changed
    tests = witnesses(module[1], int(line[1]))
    if not tests:
        return 0  # no test executes the line: the change survives
    names = Path(".git") / "tests"
    names.write_text("\n".join(tests), "utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    return subprocess.run([*command, f"@{names}"], check=False).returncode


def copy_of_the_project(folder: Path) -> None:
    """Copy what git has into a repository of its own, so that changes are seen."""
    files = subprocess.run(
        ["git", "ls-files", "-z"], capture_output=True, check=True, cwd=ROOT
    ).stdout.split(b"\0")
    for name in filter(None, files):
        source, target = ROOT / name.decode(), folder / name.decode()
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    who = ["-c", "user.name=mutants", "-c", "user.email=mutants@localhost"]
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "start"]):
        subprocess.run(["git", *command], check=True, cwd=folder)


def sample(session: Path, count: int, seed: int) -> None:
    """Keep `count` mutants of the session, evenly from the packages."""
    connection = sqlite3.connect(session)
    rows = connection.execute(
        "select job_id, module_path, operator_name, occurrence from mutation_specs"
    ).fetchall()
    groups = collections.defaultdict(list)
    for job, path, operator, occurrence in sorted(rows, key=lambda row: row[1:]):
        if not any(part in operator for part in LEFT_OUT):
            groups[path.split("/")[1]].append((path, operator, occurrence, job))
    generator = random.Random(seed)
    for group in groups.values():
        generator.shuffle(group)
    names = [p for p in PACKAGES if groups[p]]
    kept = {groups[names[k % len(names)]].pop()[-1] for k in range(count)}
    for table in ("mutation_specs", "work_items"):
        connection.executemany(
            f"delete from {table} where job_id = ?",
            [(row[0],) for row in rows if row[0] not in kept],
        )
    connection.commit()
    connection.close()


def check_unchanged(folder: Path, environment: dict[str, str]) -> None:
    """Run the tests as they are, and note what each executes; they must pass."""
    tests = [f"tests/{package}" for package in PACKAGES]
    options = [
        "-q",
        "-n",
        "auto",
        "--cov=otflow",
        "--cov-context=test",
        "--cov-report=",
    ]
    command = [sys.executable, "-m", "pytest", *options, *tests]
    environment = {**environment, "COVERAGE_FILE": str(folder / COVERAGE)}
    if subprocess.run(command, cwd=folder, env=environment, check=False).returncode:
        msg = "the tests fail without any change: nothing can be learnt"
        raise SystemExit(msg)


def report(session: Path) -> None:
    """Print the tally by package, and every survivor with its change."""
    connection = sqlite3.connect(session)
    rows = connection.execute(
        "select module_path, operator_name, start_pos_row, worker_outcome, "
        "test_outcome, diff from mutation_specs join work_results using (job_id) "
        "order by module_path, start_pos_row"
    ).fetchall()
    connection.close()
    tally: collections.Counter[tuple[str, bool]] = collections.Counter()
    for path, operator, line, worker, outcome, diff in rows:
        survived = worker == "NORMAL" and outcome == "SURVIVED"
        tally[path.split("/")[1], survived] += 1
        print(f"{'survived' if survived else 'killed':<9} {path}:{line} {operator}")
        if survived:
            lines = [x for x in diff.splitlines() if x[:1] in ("+", "-")]
            print(*(f"    {x}" for x in lines), "    class: ?", sep="\n")
    total = sum(tally.values())
    killed = sum(n for (_, survived), n in tally.items() if not survived)
    print()
    for package in PACKAGES:
        n = tally[package, True] + tally[package, False]
        print(f"{package:<12} {tally[package, False]:>3} of {n}")
    print(f"killed {killed} of {total}: {killed / max(total, 1):.0%}")


def main() -> int:
    """Draw the sample, run it, print what survived; return 0."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--judge", action="store_true", help="used by cosmic-ray")
    options = parser.parse_args()
    if options.judge:
        return judge()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_of_the_project(folder)
        modules = [
            path.relative_to(folder).as_posix()
            for package in PACKAGES
            for path in sorted((folder / "otflow" / package).rglob("*.py"))
            if path.name != "__init__.py"
        ]
        config, session = folder / ".git" / "mutants.toml", folder / ".git" / "session"
        config.write_text(
            f"[cosmic-ray]\nmodule-path = {modules!r}\ntimeout = {TIMEOUT}\n"
            f"excluded-modules = []\n"
            f'test-command = "{sys.executable} -m tools.mutants --judge"\n'
            f'[cosmic-ray.distributor]\nname = "local"\n',
            "utf-8",
        )
        # A file changed within a second, of the same length, has a valid old bytecode.
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        ray = [sys.executable, "-m", "cosmic_ray.cli"]
        for command, *more in (["init"], ["exec"]):
            if command == "exec":
                sample(session, options.count, options.seed)
                check_unchanged(folder, environment)
            subprocess.run(
                [*ray, command, *more, str(config), str(session)],
                check=True,
                cwd=folder,
                env=environment,
            )
        report(session)
    return 0


if __name__ == "__main__":
    sys.exit(main())
