"""Norms of functions that wide two-layer networks represent."""

from otflow.meanfield.norms.rays import rays

__all__ = ["rays"]


def __dir__() -> list[str]:
    return __all__
