"""What a flow can be held to: convexity, dissipation, orders and rates."""

from otflow.analysis.rates import exponential_rate, observed_order

__all__ = ["exponential_rate", "observed_order"]
