"""Mean-field networks: training a wide layer is a flow of its measure of neurons."""

from otflow.meanfield import networks
from otflow.meanfield import outer as _outer
from otflow.meanfield.best_laws import BestLaw, best_law
from otflow.meanfield.decomposition import Decomposition
from otflow.meanfield.duality import fenchel_gap
from otflow.meanfield.feature_kernels import (
    KernelNorm,
    feature_law,
    kernel_alignment,
    rkhs_kernel,
    rkhs_norm,
)
from otflow.meanfield.free_energies import free_energy
from otflow.meanfield.layers import CustomLayer, TwoLayer
from otflow.meanfield.layerwise import layer_dissipation
from otflow.meanfield.model import Model
from otflow.meanfield.modules import from_module, to_module
from otflow.meanfield.norms import (
    BarronNorm,
    NormGrowth,
    NormTable,
    PathNorm,
    barron_norm,
    extreme_rays,
    norm_growth,
    norm_table,
    reweight_to_constant,
    spectral_barron_bound,
)
from otflow.meanfield.online import OnlineRisk, from_loader
from otflow.meanfield.optimizer import FlowOptimizer
from otflow.meanfield.path_balls import PathBall, path_norm
from otflow.meanfield.penalties import PathPenalty
from otflow.meanfield.population import PopulationRisk
from otflow.meanfield.radial import RadialRisk, Ramp
from otflow.meanfield.random_features import RandomFeatures
from otflow.meanfield.risk import Risk
from otflow.meanfield.sampling import BarronSample, barron_sample
from otflow.meanfield.tangent import empirical_ntk, nngp_kernel, ntk_kernel
from otflow.meanfield.units import Unit
from otflow.meanfield.variation_balls import VariationBall

_outer.register()

__all__ = [
    "BarronNorm",
    "BarronSample",
    "BestLaw",
    "CustomLayer",
    "Decomposition",
    "FlowOptimizer",
    "KernelNorm",
    "Model",
    "NormGrowth",
    "NormTable",
    "OnlineRisk",
    "PathBall",
    "PathNorm",
    "PathPenalty",
    "PopulationRisk",
    "RadialRisk",
    "Ramp",
    "RandomFeatures",
    "Risk",
    "TwoLayer",
    "Unit",
    "VariationBall",
    "barron_norm",
    "barron_sample",
    "best_law",
    "empirical_ntk",
    "extreme_rays",
    "feature_law",
    "fenchel_gap",
    "free_energy",
    "from_loader",
    "from_module",
    "kernel_alignment",
    "layer_dissipation",
    "networks",
    "nngp_kernel",
    "norm_growth",
    "norm_table",
    "ntk_kernel",
    "path_norm",
    "reweight_to_constant",
    "rkhs_kernel",
    "rkhs_norm",
    "spectral_barron_bound",
    "to_module",
]


def __dir__() -> list[str]:
    return __all__
