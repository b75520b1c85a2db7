"""Deep networks as functions of measures."""

from otflow.meanfield.networks.alignment import Alignment, align_networks
from otflow.meanfield.networks.multilayer import MultiLayer
from otflow.meanfield.networks.residual import Residual
from otflow.meanfield.networks.residual_norms import (
    compositional_norm,
    compositional_rademacher_bound,
)
from otflow.meanfield.networks.residual_structure import (
    Flattened,
    flatten,
    permute_layers,
)
from otflow.meanfield.networks.sequential import from_sequential, to_sequential

__all__ = [
    "Alignment",
    "Flattened",
    "MultiLayer",
    "Residual",
    "align_networks",
    "compositional_norm",
    "compositional_rademacher_bound",
    "flatten",
    "from_sequential",
    "permute_layers",
    "to_sequential",
]


def __dir__() -> list[str]:
    return __all__
