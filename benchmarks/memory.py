"""Peak extra memory of a function, measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys

__all__ = ["peak_extra_megabytes"]

_CODE = """
import resource
{setup}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
{work}
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print("EXTRA", after - before)
"""


def peak_extra_megabytes(setup: str, work: str) -> float:
    """Return the growth of the peak resident size over `work`, in MB.

    `setup` and `work` are source code; `setup` ends with a small warm-up, so that
    libraries are loaded and threads started before the count.
    """
    code = _CODE.format(setup=setup, work=work)
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    kilobytes = float(run.stdout.rpartition("EXTRA")[2])
    # Linux counts kilobytes, macOS bytes.
    return kilobytes / (1024 if sys.platform != "darwin" else 1024**2)
