"""The JKO step on Gaussians."""

from otflow.proximal.gaussian.solver import GaussianProximal

__all__ = ["GaussianProximal"]
