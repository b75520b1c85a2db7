"""Every family of the campaign, by name."""

from __future__ import annotations

from tools.campaigns import gaussians, lines, metrics, particles, quantiles
from tools.campaigns.protocol import Family

__all__ = ["FAMILIES"]

FAMILIES: dict[str, Family] = {
    family.name: family
    for module in (particles, quantiles, gaussians, lines, metrics)
    for family in module.FAMILIES
}
