"""What functionals of the distance to a measure ask of that measure."""

from __future__ import annotations

from otflow._arrays import as_points
from otflow._typing import ArrayLike
from otflow._validation import check_like
from otflow.errors import Unsupported
from otflow.measures import Gaussian, GridDensity, Measure, Particles, Quantiles

__all__ = ["as_atoms", "as_target", "atoms_of", "check_space"]


def as_target(nu: Measure | ArrayLike) -> Measure:
    """Return a measure itself, and points (n, d) as particles of equal weights."""
    return nu if isinstance(nu, Measure) else Particles(as_points(nu, "nu"))


def as_atoms(nu: Measure | ArrayLike, name: str) -> Particles:
    """Return the target as particles; TypeError for a measure without atoms."""
    target = as_target(nu)
    if not isinstance(target, Particles):
        # A grid stands for atoms already: they are better than draws.
        on_grid = isinstance(target, GridDensity)
        centres = "Particles(nu.points, nu.weights), up to a cell, or " * on_grid
        msg = (
            f"{name} takes a target of atoms, got a {type(target).__name__}; give "
            f"{centres}Particles(nu.sample(1000, generator))"
        )
        raise TypeError(msg)
    return target


def check_space(mu: Measure, target: Measure) -> None:
    """Raise unless the measure has dtype, device and dimension of the target."""
    check_like(target.points, mu.points, "the target", "the measure")
    if mu.dim != target.dim:
        msg = (
            f"the measure lies in dimension {mu.dim} but the target in dimension "
            f"{target.dim}; give a target of points (m, {mu.dim})"
        )
        raise ValueError(msg)


def atoms_of(mu: Measure, target: Measure, name: str) -> Particles:
    """Return a measure if it is made of atoms, checked; else raise Unsupported."""
    if not isinstance(mu, Particles):
        on_line = isinstance(mu, (Quantiles, GridDensity)) and mu.dim == 1
        other = "SquaredDistanceTo" if on_line or isinstance(mu, Gaussian) else "MMDTo"
        msg = (
            f"{name} compares atoms, and a {type(mu).__name__} has none; flow "
            f"Particles(mu.sample(1000, generator)), or use {other} to a target of "
            f"the same kind"
        )
        raise Unsupported(msg)
    check_space(mu, target)
    return mu
