"""Lengths of kernels, whose powers must be ordinary numbers."""

from __future__ import annotations

from otflow._validation import positive

__all__ = ["length"]


def length(value: float, name: str) -> float:
    """Return a positive length whose fourth power is an ordinary number."""
    found = positive(value, name)
    if not 1e-75 <= found <= 1e75:
        msg = (
            f"{name} is {found:g}, and its fourth power leaves the range of float64; "
            f"measure lengths in another unit, e.g. Particles(points / {found:g}) "
            f"with {name}=1"
        )
        raise ValueError(msg)
    return found
