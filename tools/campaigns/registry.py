"""Every family of the campaign, by name."""

from __future__ import annotations

from tools.campaigns import (
    analysis,
    gaussians,
    gradients,
    grids,
    lines,
    metrics,
    obstacles,
    particles,
    quantiles,
)
from tools.campaigns.protocol import Family

__all__ = ["FAMILIES"]

MODULES = (
    particles,
    quantiles,
    gaussians,
    grids,
    obstacles,
    lines,
    metrics,
    gradients,
    analysis,
)
FAMILIES: dict[str, Family] = {
    family.name: family for module in MODULES for family in module.FAMILIES
}
