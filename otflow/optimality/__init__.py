"""How far a measure is from optimal: gaps over a domain, proved or searched."""

from otflow.numerics.enclosures import Enclosure
from otflow.optimality.box import BoxDomain
from otflow.optimality.densities import OnGrid, entropic_bracket, entropic_gap
from otflow.optimality.domains import Domain
from otflow.optimality.door import optimality_gap
from otflow.optimality.fixed_points import GibbsResult, gibbs
from otflow.optimality.gap import Gap, GapKind

__all__ = [
    "BoxDomain",
    "Domain",
    "Enclosure",
    "Gap",
    "GapKind",
    "GibbsResult",
    "OnGrid",
    "entropic_bracket",
    "entropic_gap",
    "gibbs",
    "optimality_gap",
]


def __dir__() -> list[str]:
    return __all__
