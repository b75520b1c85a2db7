"""Print every benchmark as a ratio measured in this run: ``python -m benchmarks``."""

from __future__ import annotations

import sys

import torch

from benchmarks import (
    back_and_forth,
    calls,
    grids,
    imports,
    loop,
    metrics,
    ornstein_uhlenbeck,
    pairs,
    quantiles,
    risk,
)
from benchmarks.timing import show


def main() -> int:
    """Run all; the exit status is 0 whether or not a target is met."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{'what':<66} {'measured':>8}   {'target':<10}")
    missed = 0
    for module in (
        risk,
        pairs,
        loop,
        calls,
        metrics,
        quantiles,
        grids,
        back_and_forth,
        ornstein_uhlenbeck,
        imports,
    ):
        rows = module.run()
        show(rows)
        missed += sum(not row.met for row in rows)
    print(f"{missed} target(s) missed" if missed else "every target met")
    return 0


if __name__ == "__main__":
    sys.exit(main())
