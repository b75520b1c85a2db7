"""How users make what they gave in another form: the cure of a wrong kind."""

from __future__ import annotations

import inspect
from dataclasses import fields, is_dataclass
from typing import Any, NoReturn

import numpy as np
from torch import Tensor

__all__ = ["refuse_kind", "shown"]

# How the kinds are made that users give in another form, and how of nested lists.
POINTS = "of points (n, d) make Particles(points)"
MADE = {
    "Measure": POINTS,
    "Particles": POINTS,
    "GridDensity": (
        "make one by GridDensity.from_function or GridDensity.from_samples("
        "mu.sample(100_000, generator), lower, upper, shape)"
    ),
    "Gaussian": "make Gaussian(mean, covariance)",
    "Scheme": "take one, e.g. ExplicitEuler() or JKO()",
    "Trajectory": "pass what flow returned",
}
PLURAL = ("Particles", "Quantiles")
LISTED = "of points (n, d) make Particles(torch.tensor(points, dtype=torch.float64))"


def refuse_kind(value: Any, kind: type, name: str, cure: str) -> NoReturn:
    """Raise TypeError: a value is of another kind; say how one is made."""
    hint = _from_class(value, kind) or _held(value, kind) or cure
    hint = hint or _usual(value, kind)
    article = "" if kind.__name__ in PLURAL else "a "
    msg = f"{name} must be {article}{kind.__name__}, got {shown(value)}"
    raise TypeError(f"{msg}; {hint}" if hint else msg)


def shown(value: Any) -> str:
    """Return a value as a message shows it; the entries of an array tell nothing."""
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    return f"{value!r:.80}"


def _usual(value: Any, kind: type) -> str:
    """Return how objects of a kind are usually made, of lists with their dtype."""
    known = MADE.get(kind.__name__, "")
    return LISTED if known == POINTS and isinstance(value, (list, tuple)) else known


def _from_class(value: Any, kind: type) -> str:
    """Return how an object of a class is made, where the class itself is given."""
    return (
        _to_make(value) if isinstance(value, type) and issubclass(value, kind) else ""
    )


def _held(value: Any, kind: type) -> str:
    """Return how a result is asked for what it holds, as a run for its last measure."""
    if not is_dataclass(value) or isinstance(value, type):
        return ""
    parts = {f.name: getattr(value, f.name, None) for f in fields(value)}
    held = [name for name, part in parts.items() if isinstance(part, kind)]
    word = "measure" if kind.__name__ == "Measure" else kind.__name__
    return f"the result holds the {word}: take its .{held[0]}" if held else ""


def _to_make(kind: type) -> str:
    """Return how an object of a class is written; dots stand for what it needs."""
    known = inspect.signature(kind).parameters.values()
    named = (p for p in known if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
    needs = any(p.default is p.empty for p in named)
    return f"write {kind.__name__}({'...' if needs else ''})"
