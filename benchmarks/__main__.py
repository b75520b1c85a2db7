"""Print every benchmark as a ratio measured in this run: ``python -m benchmarks``.

Names choose some of them: ``python -m benchmarks imports loop``.
"""

from __future__ import annotations

import sys

import torch

from benchmarks import (
    back_and_forth,
    calls,
    falsifier,
    gaps,
    grids,
    imports,
    loop,
    metrics,
    moons,
    multilayer,
    network_gaps,
    noise,
    ornstein_uhlenbeck,
    pairs,
    population,
    quantiles,
    reaction,
    residual,
    risk,
    transport,
)
from benchmarks.timing import show

MODULES = (
    risk,
    reaction,
    residual,
    population,
    pairs,
    loop,
    calls,
    gaps,
    metrics,
    transport,
    moons,
    quantiles,
    grids,
    back_and_forth,
    ornstein_uhlenbeck,
    falsifier,
    network_gaps,
    multilayer,
    noise,
    imports,
)


def main(chosen: list[str]) -> int:
    """Run all, or those chosen; the exit status does not tell whether a target is met.

    A name that is not a benchmark's ends the program before any of them runs.
    """
    known = {module.__name__.rpartition(".")[2]: module for module in MODULES}
    unknown = sorted(set(chosen) - known.keys())
    if unknown:
        print(f"no benchmark is called {', '.join(unknown)}; known: {', '.join(known)}")
        return 2
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{'what':<66} {'measured':>8}   {'target':<10}")
    missed = 0
    for name in chosen or known:
        rows = known[name].run()
        show(rows)
        missed += sum(not row.met for row in rows)
    print(f"{missed} target(s) missed" if missed else "every target met")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
