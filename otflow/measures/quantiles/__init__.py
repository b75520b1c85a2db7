"""Densities on the line that are constant between neighbouring quantiles."""

from otflow.measures.quantiles.density import Quantiles

__all__ = ["Quantiles"]
