"""Representations of a probability measure."""

from otflow.measures.base import Measure
from otflow.measures.particles import Particles

__all__ = ["Measure", "Particles"]
