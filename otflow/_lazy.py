"""Import a heavy third-party package on first use, or say how to install it."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["lazy_import"]

_EXTRAS = {
    "imageio_ffmpeg": "plot",
    "matplotlib": "plot",
    "tqdm": "plot",
    "pandas": "table",
    "xarray": "table",
    "tensorboard": "tensorboard",
    "sklearn": "estimators",
    "numba": "fast",
    "safetensors": "store",
    "pytest": "test",
}


def lazy_import(name: str) -> Any:
    """Import and return the module `name`, e.g. ``"ot"`` or ``"scipy.optimize"``.

    Raises
    ------
    ImportError
        If the module is missing. The message names the extra of otflow that installs
        it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        extra = _EXTRAS.get(name.partition(".")[0])
        cure = f"pip install 'otflow[{extra}]'" if extra else "reinstall otflow"
        msg = f"{name} is needed here and cannot be imported: {cure}"
        raise ImportError(msg) from error
