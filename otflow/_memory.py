"""Checks of memory: what does not fit raises before it starts."""

from __future__ import annotations

import os

import torch

# Share of the machine's memory that one object or one distance may allocate.
SHARE = 0.5


def check_memory(needed: int, what: str, cure: str, device: torch.device) -> None:
    """Raise MemoryError if something needs more bytes than its share of the memory."""
    total = total_memory(device)
    if needed > SHARE * total:
        msg = (
            f"{what} needs {needed} bytes ({needed / 2**30:.3g} GiB), more than "
            f"{SHARE:.0%} of the {total / 2**30:.3g} GiB of {device}; {cure}"
        )
        raise MemoryError(msg)


def total_memory(device: torch.device) -> int:
    """Return the bytes of a device, or of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):  # not POSIX: assume a small machine
        return 8 * 2**30
