"""A functional of another one: the words and draws that it passes on."""

from __future__ import annotations

import copy
from typing import Self

import torch

from otflow.functionals.base import Functional
from otflow.functionals.order import is_exchangeable

__all__ = ["Wrapped"]


class Wrapped(Functional):
    """A functional that is made of one other, its attribute `functional`.

    Convexity depends on how it is made: each class states its own.

    Attributes
    ----------
    functional : Functional
        The other one.

    Examples
    --------
    >>> import otflow as of
    >>> from otflow.functionals.wrapped import Wrapped
    >>> isinstance(of.functionals.OfPart("outer", of.Entropy()), Wrapped)
    True
    """

    functional: Functional

    @property
    def exchangeable(self) -> bool:  # type: ignore[override]
        """Whether the other functional is."""
        return is_exchangeable(self.functional)

    def resample(self, generator: torch.Generator) -> Self:
        drawn = self.functional.resample(generator)
        if drawn is self.functional:
            return self
        # A copy, so that a subclass draws what its own value says.
        draw = copy.copy(self)
        vars(draw).update(functional=drawn)
        return draw
