"""Time of `import otflow` beyond that of `import torch`."""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks.timing import Row, at_most, interleaved


def run() -> list[Row]:
    """Return the difference of the least times of both imports, in seconds."""

    def load(module: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
        return time.perf_counter() - start

    ours, base = interleaved(
        lambda: load("otflow"), lambda: load("torch"), repeats=7, warmup=1
    )
    return [at_most("import otflow, seconds over import torch", ours - base, 0.3, " s")]
