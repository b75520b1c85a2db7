"""Norms of functions that wide two-layer networks represent."""

from otflow.meanfield.norms.barron import BarronNorm, barron_norm
from otflow.meanfield.norms.rays import rays

__all__ = ["BarronNorm", "barron_norm", "rays"]


def __dir__() -> list[str]:
    return __all__
