"""Over which measures a gap is taken: the domain."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from otflow._validation import check_kind, real
from otflow.functionals import Functional
from otflow.measures import Measure
from otflow.optimality.gap import Gap

__all__ = ["Domain", "check_domain", "corner_of", "text_of_corner"]


def check_domain(domain: Any) -> None:
    """Raise TypeError unless a domain is one; say how corners are made one."""
    cure = "give e.g. optimality.BoxDomain(lower, upper)"
    if isinstance(domain, (tuple, list)) and len(domain) == 2:
        cure = f"write optimality.BoxDomain({domain[0]!r:.40}, {domain[1]!r:.40})"
    check_kind(domain, Domain, "domain", cure=cure)


class Domain(ABC):
    r"""A set of measures over which :math:`F(\mu) - \inf F` is bounded.

    A domain knows how to bound the infimum over itself; `optimality_gap` asks it after
    it has checked that F is convex along mixtures.

    Examples
    --------
    >>> import otflow as of
    >>> box = of.optimality.BoxDomain(0.0, 1.0)
    >>> isinstance(box, of.optimality.Domain)
    True
    """

    @abstractmethod
    def gap(self, F: Functional, mu: Measure, descend: int) -> Gap:
        """Return the gap of an F that is convex along mixtures.

        Parameters
        ----------
        F : Functional
            A functional with ``F.mixture_convex``.
        mu : Measure
            Where to bound F.
        descend : int
            Number of descent steps from each candidate.

        Returns
        -------
        Gap
            Proved, or searched.
        """


def corner_of(corner: Any, name: str) -> tuple[float, ...]:
    """Return the numbers of a corner of a box; they may be infinite."""
    if isinstance(corner, (Tensor, np.ndarray)):
        corner = corner.tolist()
    if not isinstance(corner, Sequence) or isinstance(corner, str):
        return (_number(corner, name),)
    if not corner:
        msg = f"{name} must hold one number per axis, got none"
        raise ValueError(msg)
    return tuple(_number(x, f"{name}[{k}]") for k, x in enumerate(corner))


def _number(x: Any, name: str) -> float:
    if isinstance(x, float) and math.isinf(x):
        return x
    return real(x, name)


def text_of_corner(corner: tuple[float, ...]) -> str:
    """Return a corner as it is written."""
    return repr(corner[0] if len(corner) == 1 else corner)
