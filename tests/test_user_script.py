"""What a type checker knows of a user's script: no cast is needed, a slip is found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import user_script

SCRIPT = Path(user_script.__file__)
ROOT = SCRIPT.parents[1]
CHECKERS = {
    "mypy": ["--strict"],
    "basedpyright": ["--level", "error", "--pythonpath", sys.executable],
}
SLIPS = {
    "wrong_mean: torch.Tensor = run.final.mean": "mean",
    "wrong_law: of.Gaussian = run.final": "Gaussian",
    "wrong_w2: str = info.w2": "str",
    "info.w2 = 1.0": "w2",
}


def checked(checker: str, script: Path) -> subprocess.CompletedProcess[str]:
    """Return the verdict of a type checker on a script."""
    command = [sys.executable, "-m", checker, *CHECKERS[checker], str(script)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_the_script_runs():
    user_script.main()


@pytest.mark.slow
@pytest.mark.parametrize("checker", CHECKERS)
def test_the_script_type_checks(checker):
    verdict = checked(checker, SCRIPT)
    assert verdict.returncode == 0, verdict.stdout + verdict.stderr


@pytest.mark.slow
@pytest.mark.parametrize("checker", CHECKERS)
def test_slips_are_found(checker, tmp_path):
    lines = SCRIPT.read_text("utf-8").split('\n\nif __name__ == "__main__":')[0]
    first = lines.count("\n") + 2
    wrong = tmp_path / "wrong_script.py"
    wrong.write_text(lines + "\n" + "".join(f"    {slip}\n" for slip in SLIPS), "utf-8")
    verdict = checked(checker, wrong)
    assert verdict.returncode == 1
    for number, word in enumerate(SLIPS.values(), first):
        found = [x for x in verdict.stdout.splitlines() if f".py:{number}:" in x]
        assert any(word in line for line in found), verdict.stdout
