"""Files of measures, runs, certificates and states: tensors and text, never code."""

import torch

from otflow.storage.classes import data_classes
from otflow.storage.door import load, save

__all__ = ["load", "save"]


def __dir__() -> list[str]:
    return __all__


# `torch.load` makes no class that it is not told. These hold data alone.
torch.serialization.add_safe_globals(data_classes())
