"""What radial kernels share: lengths, and closed forms that not all inherit."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from otflow._autodiff import entrywise_derivative
from otflow._claims import forget
from otflow._validation import positive

__all__ = ["OMITTED", "finite_or_none", "forget_forms", "length"]

# Closed forms that follow from the profile and its slope.
FORMS = ("curvature", "profile_and_slope", "ranges", "_steepest")
# Between two atoms of weights w and 1 - w the energy is w (1 - w) W: concave if W > 0.
OMITTED = (
    "since sums over atoms omit the pairs i = j, where the kernel is infinite, and "
    "then the energy is not convex"
)


def length(value: float, name: str) -> float:
    """Return a positive length whose fourth power is an ordinary number."""
    length = positive(value, name)
    if not 1e-75 <= length <= 1e75:
        msg = (
            f"{name} is {length:g}, and its fourth power leaves the range of float64; "
            f"measure lengths in another unit, e.g. Particles(points / {length:g}) "
            f"with {name}=1"
        )
        raise ValueError(msg)
    return length


def finite_or_none(bound: float) -> float | None:
    """Return a bound; None if it overflows, since an infinite one would be false."""
    return bound if math.isfinite(bound) else None


def forget_forms(cls: type, base: type) -> None:
    """Let a new class forget the closed forms of a parent that has another profile.

    Parameters
    ----------
    cls : type
        The class.
    base : type
        The class `RadialKernel`, whose forms hold of every profile.
    """
    forget(cls, {"slope": slope_of}, among=["profile"])
    forget(cls, {name: vars(base)[name] for name in FORMS}, among=["profile", "slope"])


def slope_of(self: Any, s: Tensor) -> Tensor:
    """Return the slope of a profile by autodiff, 0 where it is not finite."""
    return entrywise_derivative(self.profile, s).nan_to_num(0.0, 0.0, 0.0)
