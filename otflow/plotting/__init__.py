"""Figures of measures and of flows, with matplotlib (extra ``plot``).

Every function draws into the `ax` it is given, or into a new figure, and returns what
it drew into; it changes no global setting.
"""

from otflow.plotting.animation import animate
from otflow.plotting.clouds import particles, trails
from otflow.plotting.curves import energy
from otflow.plotting.densities import density

__all__ = ["animate", "density", "energy", "particles", "trails"]
