"""Time of `import otflow` beyond that of `import torch`, both compiled to bytecode."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from benchmarks.timing import Row, at_most, interleaved


def run() -> list[Row]:
    """Return the difference of the least times of both imports, in seconds."""
    # The first import of the warm-up writes the bytecode, wherever that is off.
    environment = {
        k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"
    }

    def load(module: str) -> float:
        command = [sys.executable, "-c", f"import {module}"]
        start = time.perf_counter()
        subprocess.run(command, check=True, env=environment)
        return time.perf_counter() - start

    ours, base = interleaved(
        lambda: load("otflow"), lambda: load("torch"), repeats=15, warmup=1
    )
    return [
        at_most("import otflow, seconds over import torch", ours - base, 0.15, " s")
    ]
