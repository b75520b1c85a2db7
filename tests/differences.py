"""Finite differences: the independent witness of every derivative."""

from otflow.testing.differences import (
    derivative,
    gradient_field,
    mean_derivative,
    second_difference,
)

__all__ = ["derivative", "gradient_field", "mean_derivative", "second_difference"]
