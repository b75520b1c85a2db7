"""The demonstration: six stories, each with a figure, and a table of what they cost."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from demo.stories import tell
from demo.table import table


def main(arguments: list[str] | None = None) -> int:
    """Run the demonstration; the exit status is 1 if a promise is missed."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo-output"))
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the work, unjudged"
    )
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    told = tell(options.output, quick=options.quick)
    print()
    print(table(told.rows))
    print()
    for line in told.lines:
        print(line)
    print("figures: " + ", ".join(str(path) for path in told.figures))
    print(f"total {time.perf_counter() - began:.0f} s")
    if options.quick:
        return 0
    for promise in told.missed:
        print(f"MISSED: {promise}")
    return 1 if told.missed else 0


if __name__ == "__main__":
    sys.exit(main())
