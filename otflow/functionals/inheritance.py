"""What a subclass of a functional does not inherit, if it has other values."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from otflow._claims import changed, forget, library_class

__all__ = ["HARMLESS", "forget_claims", "forget_maps", "redefined"]

# What a functional states of its convexity, and the methods that say why.
CONVEXITIES = {"modulus": "why_modulus", "mixture_curvature": "why_mixture"}
# Closed forms, which follow from the value of one class alone.
FORMS = (
    "first_variation",
    "value_and_velocity",
    "value_and_first_variation",
    "value_and_derivatives",
    "_velocity_at",
    "enclosed_variation",
    "terms",
    "_terms",
    "_summands",
)
# Pointwise maps of internal energies, which follow from e.
MAPS = (
    "slope",
    "curvature",
    "pressure",
    "convexity_margin",
    "log_proximal",
    "conjugate_slope",
    "conjugate",
)
# Names on which no value depends. All others that a class has may change its values.
HARMLESS = frozenset(
    (
        *CONVEXITIES,
        *CONVEXITIES.values(),
        *FORMS,
        *MAPS,
        "carry",
        "check_dimension",
        "convexity",
        "displacement_modulus",
        "exchangeable",
        "mixture",
        "modulus_in",
        "prox",
        "proximal",
        "resample",
        "split_entropy",
        "_entropy",
        "_fixed",
        "_reason",
        "_tried",
    )
)


def redefined(F: Any, kind: type | None = None) -> str | None:
    """Return the name of what F evaluates in another way than a class, or None.

    By default it is the nearest class of the library.
    """
    return changed(type(F), kind or library_class(type(F)), HARMLESS)


def forget_claims(cls: type, base: type, own: Collection[str]) -> None:
    """Let a new class forget what its parents know of values that it changes.

    Parameters
    ----------
    cls : type
        The class.
    base : type
        The class `Functional`, whose methods hold of every value.
    own : collection of str
        What the class itself states.
    """
    known = vars(base)
    forget(cls, {name: known[name] for name in (*CONVEXITIES, *FORMS)}, HARMLESS)
    # A bound on F' is one of the F' that the class states.
    bound = {"enclosed_variation": known["enclosed_variation"]}
    forget(cls, bound, HARMLESS - {"first_variation"})
    for word, why in CONVEXITIES.items():
        if word in vars(cls) and why not in own:
            setattr(cls, why, known[why])


def forget_maps(cls: type, base: type) -> None:
    """Let an internal energy forget the pointwise maps of another one."""
    forget(cls, {name: vars(base)[name] for name in MAPS}, HARMLESS)
