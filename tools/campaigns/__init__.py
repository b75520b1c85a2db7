"""Families of random problems, each against a reference that otflow did not solve."""

from __future__ import annotations

from tools.campaigns.protocol import Family, Trial, Verdict
from tools.campaigns.registry import FAMILIES

__all__ = ["FAMILIES", "Family", "Trial", "Verdict"]
