"""Print the measured numbers of the map of the survey again, beside their theory.

``python -m tools.measured F6 F7`` runs the tests of these rows, ``python -m
tools.measured`` those of all rows, which takes long. A number is an expression in the
local variables of a test, see the head of ``docs/survey.toml``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import pytest  # noqa: E402

from tests.measured import ROWS, Number, named  # noqa: E402

__all__ = ["main"]


class Printer:
    """Collect what the tests measured, and print a line for each number."""

    def __init__(self, numbers: list[Number]) -> None:
        self.numbers = numbers

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Print the numbers of one test, also where one of them has changed."""
        if report.when != "call":
            return
        measured = dict(report.user_properties)
        for number in self.numbers:
            if named(number["by"]) == report.nodeid and number["what"] in measured:
                print(
                    f"\n{number['what']}: now {measured[number['what']]:.6g}, found "
                    f"{number['found']}, theory {number.get('theory', '-')}, "
                    f"asserted {number.get('bound', '-')}  ({report.nodeid})"
                )


def main(arguments: list[str] | None = None) -> int:
    """Run the tests of the rows with these labels, of all rows by default."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("labels", nargs="*", help="labels of rows, as F6")
    wanted = set(parser.parse_args(arguments).labels)
    unknown = wanted - {label for row in ROWS for label in row["labels"]}
    if unknown:
        parser.error(f"no row has the label {', '.join(sorted(unknown))}")
    numbers = [
        number
        for row in ROWS
        if not wanted or wanted & set(row["labels"])
        for number in row.get("measured", ())
    ]
    if not numbers:
        parser.error(f"nothing is measured in the rows {', '.join(sorted(wanted))}")
    tests = sorted({str(ROOT / named(number["by"])) for number in numbers})
    options = ["-q", "--tb=line", "-p", "no:cacheprovider", "-m", "slow or not slow"]
    return int(pytest.main([*options, *tests], plugins=[Printer(numbers)]))


if __name__ == "__main__":
    raise SystemExit(main())
