"""Python calls and source files of one warm JKO step on a grid.

``python -m benchmarks.calls`` prints how often each function of the library is called,
and the files that the step passes through.

The recipe: V + Entropy with V = |x|^2/2 on 64 x 64 cells of [-4, 4]^2, a Gaussian bump
at (1, 1) before, float64, dt = 0.05, default options. One step is made, then the second
one, from its result with its warm start. Of the second step each "call" event of
`sys.setprofile` counts, whatever file its frame is from: functions, comprehensions and
generators that are entered or resumed. Calls of C functions do not count. The second
step is made once before, so that nothing is imported or compiled under the profile.
It takes `EVALUATIONS` of the scaling map and is certified "exact", or the benchmark
fails.
"""

from __future__ import annotations

import collections
import sys
from pathlib import Path
from types import FrameType

import torch

import otflow as of
from benchmarks.timing import Row, at_most

CELLS, DT, EVALUATIONS = 64, 0.05, 6
# Before "The house, redrawn" the step took 1,466 calls through 28 files.
BEFORE, MOST_FILES = 1466, 18
PACKAGE = Path(of.__file__).parent


def warm_step() -> collections.Counter[tuple[str, str]]:
    """Return how often each function is called, by file and qualified name."""

    def bump(x: torch.Tensor) -> torch.Tensor:
        return torch.exp(-2 * (x - 1).square().sum(-1))

    mu = of.GridDensity.from_function(
        bump, -4.0, 4.0, (CELLS, CELLS), dtype=torch.float64
    )
    F = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0) + of.Entropy()
    solver = of.proximal.GridSinkhorn()
    first = solver.solve(F, mu, DT)
    calls: collections.Counter[tuple[str, str]] = collections.Counter()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            calls[frame.f_code.co_filename, frame.f_code.co_qualname] += 1

    for profile in (None, note):
        sys.setprofile(profile)
        try:
            second = solver.solve(F, first.measure, DT, warm=first.warm)
        finally:
            sys.setprofile(None)
    assert second.iterations == EVALUATIONS, second.iterations
    assert second.certificate["guarantee"] == "exact"
    return calls


def library_files(calls: collections.Counter[tuple[str, str]]) -> list[str]:
    """Return the library's files that were passed through."""
    paths = {Path(name) for name, _ in calls}
    return sorted(
        str(path.relative_to(PACKAGE)) for path in paths if PACKAGE in path.parents
    )


def run() -> list[Row]:
    """Return the calls and the files of a step."""
    calls = warm_step()
    step = f"warm step, {CELLS} x {CELLS}, V + Entropy, {EVALUATIONS} evaluations"
    most = 2 * BEFORE // 3
    return [
        at_most(f"{step}: Python calls", sum(calls.values()), most),
        at_most(f"{step}: files", len(library_files(calls)), MOST_FILES),
    ]


def main() -> None:
    """Print all functions and files."""
    calls = warm_step()
    for (path, name), count in calls.most_common():
        own = PACKAGE in Path(path).parents
        shown = Path(path).relative_to(PACKAGE) if own else Path(path).name
        print(f"{count:5d}  {shown}  {name}")
    print(f"{sum(calls.values())} calls, {len(library_files(calls))} files:")
    print("\n".join(library_files(calls)))


if __name__ == "__main__":
    main()
