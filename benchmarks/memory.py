"""Peak extra memory of a function, measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys

__all__ = ["peak_extra_megabytes"]

_CODE = """
import pathlib, resource, sys

def peak():
    # Linux hands ru_maxrss down through exec: a child of a large process starts with
    # its parent's peak and shows no growth. VmHWM is the child's own.
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        return float(status.read_text().partition("VmHWM:")[2].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

{setup}
before = peak()
{work}
print("EXTRA", peak() - before)
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
