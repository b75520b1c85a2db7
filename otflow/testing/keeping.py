"""What the laws of kept states and resumed runs share."""

from __future__ import annotations

import json
from typing import Any

import torch

from otflow.errors import Unsupported
from otflow.functionals import Functional
from otflow.measures import Measure
from otflow.schemes import Scheme
from otflow.storage.classes import classes_in
from otflow.storage.codec import Reader, encode
from otflow.storage.tensors import Shelf

__all__ = ["FORGETS", "through_a_file", "walked"]

FORGETS = (
    "a run kept and resumed by a scheme made anew, against the run in one: keep in the "
    "state whatever the next step needs, and not in the scheme; let load_state return "
    "the state of which state_dict made plain data: it"
)


def through_a_file(thing: Any, what: str) -> Any:
    """Return what a file gives back; AssertionError if it holds no such thing."""
    shelf = Shelf()
    try:
        tree = json.dumps(encode(thing, shelf, what))
    except Unsupported as error:
        msg = f"{error}; or override state_dict and load_state of the scheme"
        raise AssertionError(msg) from error
    reader = Reader({*classes_in(thing)})
    return reader.decode(json.loads(tree), shelf.tensors)


def walked(
    scheme: Scheme,
    F: Functional,
    mu: Measure,
    dt: float,
    state: Any,
    generator: torch.Generator,
) -> tuple[Measure, Any]:
    """Return the measure and the state after two steps."""
    for _ in range(2):
        step = scheme.step(F, mu, dt, state, generator)
        mu, state = step.measure, step.state
    return mu, state
