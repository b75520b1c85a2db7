"""How far a measure is from optimal: gaps over a domain, proved or searched."""

from otflow.optimality.box import BoxDomain
from otflow.optimality.domains import Domain
from otflow.optimality.door import optimality_gap
from otflow.optimality.entropic import OnGrid, entropic_bracket, entropic_gap
from otflow.optimality.gap import Gap, GapKind
from otflow.optimality.gibbs import GibbsResult, gibbs

__all__ = [
    "BoxDomain",
    "Domain",
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
