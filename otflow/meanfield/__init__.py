"""Mean-field networks: training a wide layer is a flow of its measure of neurons."""

from otflow.meanfield.decomposition import Decomposition
from otflow.meanfield.layers import CustomLayer, TwoLayer
from otflow.meanfield.modules import from_module, to_module
from otflow.meanfield.risk import Risk
from otflow.meanfield.tangent import empirical_ntk, nngp_kernel, ntk_kernel
from otflow.meanfield.units import Unit

__all__ = [
    "CustomLayer",
    "Decomposition",
    "Risk",
    "TwoLayer",
    "Unit",
    "empirical_ntk",
    "from_module",
    "nngp_kernel",
    "ntk_kernel",
    "to_module",
]


def __dir__() -> list[str]:
    return __all__
