"""Gaussian measures."""

from otflow.measures.gaussian.law import Gaussian

__all__ = ["Gaussian"]
