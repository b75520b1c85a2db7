"""The JKO step on quantiles."""

from otflow.proximal.quantiles.solver import QuantileProximal

__all__ = ["QuantileProximal"]
