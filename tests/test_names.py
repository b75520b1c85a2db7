"""Names of tests do not depend on the process, else workers cannot share them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.names import unsettled

ROOT = Path(__file__).parent.parent


def test_an_address_in_a_name_is_seen():
    names = ["a.py::test[<function f at 0x7f15f34be5c0>]", "a.py::test[0x10]"]
    assert unsettled(names) == names[:1]


def collected(seed: str) -> list[str]:
    """Return the names of all tests as a process with this seed of hashes has them."""
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "--collect-only",
            "-q",
            "-m",
            "slow or not slow",
        ],
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return [line for line in run.stdout.splitlines() if "::" in line]


@pytest.mark.slow
def test_names_are_the_same_in_two_processes():
    first, second = collected("1"), collected("2")
    assert len(first) > 1000
    assert first == second
