"""Norms of functions that wide two-layer networks represent."""

from otflow.meanfield.norms.barron import BarronNorm, barron_norm
from otflow.meanfield.norms.dictionary import NormTable, norm_table
from otflow.meanfield.norms.growth import NormGrowth, norm_growth
from otflow.meanfield.norms.path_norms import PathNorm, reweight_to_constant
from otflow.meanfield.norms.rays import extreme_rays
from otflow.meanfield.norms.spectral import spectral_barron_bound

__all__ = [
    "BarronNorm",
    "NormGrowth",
    "NormTable",
    "PathNorm",
    "barron_norm",
    "extreme_rays",
    "norm_growth",
    "norm_table",
    "reweight_to_constant",
    "spectral_barron_bound",
]


def __dir__() -> list[str]:
    return __all__
