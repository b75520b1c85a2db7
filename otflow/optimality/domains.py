"""Over which measures a gap is taken: the domain."""

from __future__ import annotations

from abc import ABC, abstractmethod

from otflow.functionals import Functional
from otflow.measures import Measure
from otflow.optimality.gap import Gap

__all__ = ["Domain"]


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
