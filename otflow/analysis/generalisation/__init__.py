"""Does a trained network generalise: complexities, bounds, tables and margins."""

from otflow.analysis.generalisation.bounds import (
    RiskBound,
    apriori_bound,
    rademacher_bound,
    weight_size_bound,
)
from otflow.analysis.generalisation.margins import (
    Margin,
    f1_margin,
    f2_margin,
    soft_margin,
)
from otflow.analysis.generalisation.rademacher import (
    RademacherComplexity,
    rademacher,
)
from otflow.analysis.generalisation.risk_tables import RiskTable, risk_table

__all__ = [
    "Margin",
    "RademacherComplexity",
    "RiskBound",
    "RiskTable",
    "apriori_bound",
    "f1_margin",
    "f2_margin",
    "rademacher",
    "rademacher_bound",
    "risk_table",
    "soft_margin",
    "weight_size_bound",
]
