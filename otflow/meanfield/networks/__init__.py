"""Deep networks as functions of measures."""

from otflow.meanfield.networks.residual import Residual
from otflow.meanfield.networks.residual_norms import (
    compositional_norm,
    rademacher_bound,
)
from otflow.meanfield.networks.residual_structure import (
    Flattened,
    flatten,
    permute_layers,
)

__all__ = [
    "Flattened",
    "Residual",
    "compositional_norm",
    "flatten",
    "permute_layers",
    "rademacher_bound",
]


def __dir__() -> list[str]:
    return __all__
