"""Figures of measures and of flows, with matplotlib (extra ``plot``).

Each function draws into the given `ax`, or into a new figure, and returns the axes or
the animation. No function changes a global setting.
"""

from otflow.plotting.animation import animate
from otflow.plotting.clouds import particles, trails
from otflow.plotting.curves import energy
from otflow.plotting.densities import density

__all__ = ["animate", "density", "energy", "particles", "trails"]


def __dir__() -> list[str]:
    return __all__
