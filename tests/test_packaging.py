"""What is published: versions, archives, and what they need to be installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

import otflow

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
# Whoever runs the tests may have put the checkout on the path. Bytecode saves half the
# time of an import.
DROPPED = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in DROPPED}


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Run a program and return what it wrote, or fail with that."""
    done = subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ---- versions ------------------------------------------------------------------------


def release(version: str) -> tuple[int, ...]:
    """Return the numbers of a version: ``"1.2.0.dev3"`` gives (1, 2)."""
    numbers = [int(n) for n in version.partition(".dev")[0].split(".") if n.isdigit()]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def pins(name: str) -> dict[str, str]:
    """Return the versions that a file of constraints names, by package."""
    lines = (ROOT / name).read_text("utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    found = {canonical(package): version for package, version in pairs}
    assert len(found) == len(pairs), f"{name} names a package twice"
    return found


def canonical(package: str) -> str:
    """Return the name of a package as indices compare it."""
    return re.sub(r"[-_.]+", "-", package).lower()


def floors(extras: list[str]) -> dict[str, str]:
    """Return the lowest versions of the core and of some extras, by package."""
    lines, waiting = [*PROJECT["dependencies"]], [*extras]
    for extra in waiting:
        for line in PROJECT["optional-dependencies"][extra]:
            if line.startswith("otflow["):
                waiting += line.removeprefix("otflow[").removesuffix("]").split(",")
            else:
                lines.append(line)
    pairs = [re.sub(r"\[.*\]", "", line).split(">=") for line in lines]
    return {canonical(package): version for package, version in pairs}


def test_there_is_one_version():
    assert "version" in PROJECT["dynamic"]
    version = otflow.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    headings = re.findall(r"^## \[(.+?)\](?: - \d{4}-\d\d-\d\d)?$", changelog, re.M)
    assert headings == re.findall(r"^## \[?([^\]\n]+)", changelog, re.M)
    if ".dev" in version:
        assert headings.pop(0) == "Unreleased"
        assert release(headings[0]) < release(version)
    else:
        assert headings[0] == version
    released = [release(heading) for heading in headings]
    assert released == sorted(released, reverse=True)


def test_the_lowest_versions_are_tested():
    lowest = floors(["test"])
    assert {"numpy", "matplotlib", "safetensors", "pytest"} <= set(lowest)
    tested = pins("constraints-min.txt")
    assert tested.pop("torch") == pins("constraints.txt")["torch"]
    del lowest["torch"], tested["pyparsing"]
    assert tested == lowest


def test_what_is_tested_together_is_no_older_than_the_lowest_versions():
    tested = pins("constraints.txt")
    extras = [name for name in PROJECT["optional-dependencies"] if name != "mutants"]
    for package, lowest in floors(extras).items():
        assert release(tested[package]) >= release(lowest), package


def test_versions_compare_by_number():
    assert release("1.10") > release("1.9.0") == release("1.9")
    assert release("0.2.0.dev0") > release("0.1.0")


# ---- archives ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Build both archives; return their folder."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "--directory", folder)
    return folder


def files_of_the_project(scratch: Path) -> set[str]:
    """Return what git holds; outside a repository, what it would not ignore."""
    if (ROOT / ".git").exists():
        return set(run("git", "ls-files").splitlines())
    run("git", "init", "--quiet", "--bare", scratch)
    words = ["--work-tree", ROOT, "ls-files", "--others", "--exclude-standard"]
    return set(run("git", "--git-dir", scratch, *words).splitlines()) - {"PKG-INFO"}


def unpacked(built: Path, folder: Path) -> Path:
    """Unpack the source archive into a folder; return the project in it."""
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as sources:
        sources.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def test_the_source_archive_holds_the_project(built, tmp_path):
    project = unpacked(built, tmp_path)
    found = {
        path.relative_to(project).as_posix()
        for path in project.rglob("*")
        if path.is_file()
    }
    assert {".ci/run", "constraints-min.txt", "tests/test_packaging.py"} <= found
    assert found - {"PKG-INFO"} == files_of_the_project(tmp_path / "git")
    assert os.access(project / ".ci" / "run", os.X_OK)


def test_the_wheel_holds_the_package_alone(built):
    (archive,) = built.glob("*.whl")
    with zipfile.ZipFile(archive) as wheel:
        names = set(wheel.namelist())
        (about,) = {name for name in names if name.endswith("dist-info/METADATA")}
        metadata = HeaderParser().parsestr(wheel.read(about).decode())
    info = about.removesuffix("/METADATA")
    assert metadata["Version"] == otflow.__version__
    assert set(metadata.get_all("Provides-Extra", [])) == set(
        PROJECT["optional-dependencies"]
    )
    assert {name for name in names if not name.startswith("otflow/")} == {
        f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "licenses/LICENSE")
    }
    sources = {
        path.relative_to(ROOT).as_posix() for path in ROOT.glob("otflow/**/*.py")
    }
    assert {name for name in names if name.startswith("otflow/")} == sources | {
        "otflow/py.typed"
    }


@pytest.mark.slow
def test_the_project_passes_its_tests_from_the_source_archive(built, tmp_path):
    project = unpacked(built, tmp_path)
    words = ["-p", "no:cacheprovider", "-k", "not readme_runs"]
    tests = [f"tests/test_{name}.py" for name in ("packaging", "project")]
    shown = run(sys.executable, "-m", "pytest", "-q", *words, *tests, cwd=project)
    assert " passed" in shown
    assert " skipped" not in shown


@pytest.mark.slow
def test_the_readme_runs_where_the_wheel_alone_is_installed(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    run(sys.executable, "-m", "venv", tmp_path / "bare")
    python = tmp_path / "bare" / "bin" / "python"
    pip = (python, "-m", "pip", "install", "--quiet", "--no-compile")
    run(*pip, "--constraint", ROOT / "constraints.txt", wheel)
    page = (ROOT / "README.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        run(python, "-c", block, cwd=tmp_path)
    # The environment is bare: what belongs to an extra is missed, and named.
    code = "import torch, otflow as of; mu = of.Particles(torch.zeros(3, 2))"
    code += "; of.plotting.particles(mu)"
    done = subprocess.run(
        [python, "-c", code],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        check=False,
    )
    assert b"pip install 'otflow[plot]'" in done.stderr


# ---- hooks ---------------------------------------------------------------------------


def test_the_hooks_call_what_make_lint_installs():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text("utf-8")
    makefile = (ROOT / "Makefile").read_text("utf-8")
    entries = re.findall(r"^ +entry: (.+)$", hooks, re.MULTILINE)
    assert len(entries) == hooks.count("- id:")
    assert hooks.count("language: system") == len(entries)
    for entry in entries:
        program, *words = entry.split()
        if program == "make":
            assert re.search(rf"^{words[-1]}:", makefile, re.MULTILINE), entry
        else:
            package = program.removeprefix(".venv/bin/")
            assert package in floors(["lint"]), entry
    assert "pre-commit" in floors(["lint"])
