"""What a report of a fault needs: the versions of everything that computes."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata

import torch

__all__ = ["installed", "show_versions"]

CORE = ("torch", "numpy", "scipy", "pot", "geomloss")
OPTIONAL = (
    "matplotlib",
    "imageio-ffmpeg",
    "tqdm",
    "pandas",
    "xarray",
    "tensorboard",
    "numba",
    "scikit-learn",
    "safetensors",
)


def show_versions() -> None:
    """Print the versions of otflow and of what it uses, for a report of a fault.

    The list names Python, the operating system, the packages, the instructions and the
    threads that torch uses, and the GPUs that it sees. Nothing is imported for it.

    Examples
    --------
    >>> import otflow as of
    >>> of.show_versions()  # doctest: +ELLIPSIS
    otflow ...
    """
    blocks = (
        {"otflow": installed("otflow"), **_system()},
        {name: installed(name) for name in CORE},
        {name: installed(name) for name in OPTIONAL},
        _torch(),
    )
    width = max(len(name) for block in blocks for name in block) + 2
    lines = ("\n".join(f"{k:{width}}{v}" for k, v in block.items()) for block in blocks)
    sys.stdout.write("\n\n".join(lines) + "\n")


def installed(name: str) -> str:
    """Return the version of an installed package, or that it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _system() -> dict[str, str]:
    return {
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": platform.platform(),
        "processor": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def _torch() -> dict[str, str]:
    """Return what torch computes with."""
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        gpus = ", ".join(torch.cuda.get_device_name(k) for k in range(count))
    else:
        gpus = "none"
    return {
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "default dtype": str(torch.get_default_dtype()),
        "CUDA": str(torch.version.cuda or "not built in"),
        "GPUs": gpus,
    }
