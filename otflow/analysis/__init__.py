"""Checks of a flow: convexity, dissipation, orders and rates."""

from otflow.analysis.certificates import (
    DissipationReport,
    dissipation,
    energy_dissipation,
    minimizing_movement,
)
from otflow.analysis.chaos import (
    ChaosReport,
    mckean_vlasov,
    propagation_of_chaos,
)
from otflow.analysis.convexity import ConvexityReport, displacement_convexity
from otflow.analysis.evi import VariationalReport, evolution_variational_inequality
from otflow.analysis.falsifier import Falsification, Witness, falsify
from otflow.analysis.findings import Finding, RunCertificate, StepFinding, Verdict
from otflow.analysis.generalisation import (
    Margin,
    RademacherComplexity,
    RiskBound,
    RiskTable,
    apriori_bound,
    f1_margin,
    f2_margin,
    rademacher,
    rademacher_bound,
    risk_table,
    soft_margin,
    weight_size_bound,
)
from otflow.analysis.landscapes import Landscape, landscape
from otflow.analysis.mixtures import mixture_convexity
from otflow.analysis.rates import exponential_rate, observed_order
from otflow.analysis.run_certificate import certify
from otflow.analysis.sobolev_constants import LogSobolev, log_sobolev
from otflow.analysis.weak_form import continuity_residual

__all__ = [
    "ChaosReport",
    "ConvexityReport",
    "DissipationReport",
    "Falsification",
    "Finding",
    "Landscape",
    "LogSobolev",
    "Margin",
    "RademacherComplexity",
    "RiskBound",
    "RiskTable",
    "RunCertificate",
    "StepFinding",
    "VariationalReport",
    "Verdict",
    "Witness",
    "apriori_bound",
    "certify",
    "continuity_residual",
    "displacement_convexity",
    "dissipation",
    "energy_dissipation",
    "evolution_variational_inequality",
    "exponential_rate",
    "f1_margin",
    "f2_margin",
    "falsify",
    "landscape",
    "log_sobolev",
    "mckean_vlasov",
    "minimizing_movement",
    "mixture_convexity",
    "observed_order",
    "propagation_of_chaos",
    "rademacher",
    "rademacher_bound",
    "risk_table",
    "soft_margin",
    "weight_size_bound",
]


def __dir__() -> list[str]:
    return __all__
