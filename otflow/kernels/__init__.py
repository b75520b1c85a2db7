"""Kernels of pairs of points: radial profiles, plain functions, sums of kernels."""

from otflow.kernels.base import Combination, Function, Kernel, as_kernel
from otflow.kernels.pairs import PairKernel
from otflow.kernels.radial import (
    Energy,
    Gaussian,
    InverseMultiquadric,
    Log,
    PowerLaw,
    Quadratic,
    RadialKernel,
    Riesz,
)
from otflow.kernels.two_point import TwoPoint

__all__ = [
    "Combination",
    "Energy",
    "Function",
    "Gaussian",
    "InverseMultiquadric",
    "Kernel",
    "Log",
    "PairKernel",
    "PowerLaw",
    "Quadratic",
    "RadialKernel",
    "Riesz",
    "TwoPoint",
    "as_kernel",
]


def __dir__() -> list[str]:
    return __all__
