"""Proximal steps on grids by each solver, against steps of fine quantiles and POT."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

import otflow as of
from tools.campaigns.boxes import Cells, distance, draw_cells, marginal
from tools.campaigns.line_reference import LineProblem
from tools.campaigns.lines import step_w2
from tools.campaigns.potentials import Potential1D, draw_potential
from tools.campaigns.protocol import Family, Trial

__all__ = ["FAMILIES"]

# Quantiles of the reference for each cell of the grid.
FINE = 4


class UserEntropy(of.Functional):
    """The entropy as a user writes it."""

    def value(self, mu: of.Measure) -> torch.Tensor:
        """Return sum w log rho."""
        return (
            mu.weights * mu.density().clamp_min(torch.finfo(mu.dtype).tiny).log()
        ).sum()


class UserPower(of.Functional):
    """The porous medium as a user writes it, m = 2."""

    def value(self, mu: of.Measure) -> torch.Tensor:
        """Return sum w rho."""
        return (mu.weights * mu.density()).sum()


class UserPotential(of.Functional):
    """A potential as a user writes it."""

    def __init__(self, V) -> None:
        self.V = V

    def value(self, mu: of.Measure) -> torch.Tensor:
        """Return sum w V."""
        return (mu.weights * self.V(mu.points)).sum()


KINDS = (
    "none",
    "entropy",
    "entropy",
    "power",
    "congestion",
    "congestion",
    "user-entropy",
    "user-power",
    "user-potential",
    "attraction",
    "repulsion",
)
# Whose steps are products of steps along the axes.
PRODUCTS = ("none", "entropy", "user-entropy", "user-potential")


def step(trial: Trial, solver: str) -> None:
    """One step by the solver of this name."""
    kind = trial.choice(*KINDS)
    dt = trial.log_uniform(1e-3, 1e2)
    trial.says(kind=kind, dt=dt)
    cells = draw_cells(trial)
    dtype = trial.dtype()
    scale, offset = trial.scale_and_offset(1e2 if dtype == torch.float32 else 1e6)
    mu = cells.measure(scale, offset, dtype)
    top = float(mu.density().max()) * scale**mu.dim
    problem = draw_problem(trial, kind, mu.dim, top, scale, offset)
    result = getattr(of.proximal, solver)().solve(problem.F, mu, dt)
    nu, c = result.measure, result.certificate
    if not trial.finite(masses=nu.weights):
        return
    laws(trial, cells, problem, mu, nu, c, dt, scale)
    power = kind in ("power", "user-power") and mu.dim == 1
    # The cost of FiniteVolume is no W2: its step is another one, to first order.
    known = kind in PRODUCTS or power
    if c["converged"] and known and solver != "FiniteVolume":
        _compare(trial, cells, nu, c, dt, scale, problem)
    if c["converged"] and kind == "congestion":
        excess = float(nu.density().max()) * scale**mu.dim / problem.most - 1
        trial.false_if(excess > 2e-3, f"density above its bound by {excess:.3g}")


@dataclass(frozen=True)
class Problem:
    """A functional and what the reference must know of it, in units of the scale."""

    F: of.Functional
    potentials: list[Potential1D]
    heat: float = 0.0
    power: float = 1.0
    most: float = math.inf

    def spread(self, x: np.ndarray) -> float:
        """Return the range of the potential over points x (n, d)."""
        V = sum(p.V(x[:, k]) for k, p in enumerate(self.potentials))
        return float(np.ptp(V))


def draw_problem(
    trial: Trial, kind: str, d: int, top: float, scale: float, offset: float
) -> Problem:
    """Draw a functional of this kind; `top` is the largest density of the start."""
    square = scale**2
    potentials = [draw_potential(trial, said=d == 1) for _ in range(d)]

    def V(x: torch.Tensor) -> torch.Tensor:
        z = (x - offset) / scale
        values = [p.torch_V(z[..., k]) for k, p in enumerate(potentials)]
        return square * torch.stack(values).sum(0)

    strength = trial.log_uniform(0.03, 3.0)
    trial.says(strength=strength)
    if kind == "user-potential":
        F = UserPotential(V) + strength * square * of.Entropy()
        return Problem(F, potentials, strength)
    F = of.Potential(V, modulus=min(p.modulus for p in potentials))
    if kind.endswith("entropy"):
        entropy = UserEntropy() if kind == "user-entropy" else of.Entropy()
        return Problem(F + strength * square * entropy, potentials, strength)
    if kind in ("power", "user-power", "attraction"):
        power = trial.choice(1.5, 2.0, 3.0) if kind == "power" else 2.0
        energy = UserPower() if kind == "user-power" else of.PowerEntropy(power)
        trial.says(power=power)
        F = F + strength * square * scale ** (d * (power - 1)) * energy
        if kind != "attraction":
            return Problem(F, potentials, strength, power)
    if kind == "congestion":
        most = top * (1 + 1e-3) * trial.choice(1.0, 1.0 + trial.rng.random())
        trial.says(most=most)
        return Problem(F + of.Congestion(most / scale**d), potentials, most=most)
    if kind in ("attraction", "repulsion"):
        width, size = trial.log_uniform(0.1, 2.0), trial.log_uniform(0.1, 10.0)
        trial.says(width=width, size=size)
        sign = -1.0 if kind == "attraction" else 1.0
        W = of.kernels.Gaussian(width * scale)
        F = F + sign * size * square * of.Interaction(W)
        F = F if kind == "attraction" else F + 0.05 * square * of.Entropy()
    return Problem(F, potentials)


def laws(trial, cells: Cells, problem: Problem, mu, nu, c, dt, scale) -> None:
    """Mass, sign, energies by another sum, and w2 by POT or by quantiles."""
    eps = torch.finfo(mu.dtype).eps
    a, b = (m.weights.double().numpy().reshape(cells.shape) for m in (mu, nu))
    trial.false_if(b.min() < 0, f"a mass of {b.min():.3g}")
    lost = abs(b.sum() - a.sum())
    trial.false_if(lost > 64 * eps * math.sqrt(b.size), f"mass off by {lost:.3g}")
    double = of.GridDensity(
        nu.density().double().reshape(cells.shape),
        mu.box.lower,
        mu.box.upper,
        walls=True,
        normalize=True,
    )
    before, after = (float(problem.F.value(m)) for m in (mu, double))
    # A solver knows masses to its tolerance, and energies to that times the range.
    tolerance = 2e-4 if mu.dtype == torch.float32 else 1e-4
    spread = problem.spread(cells.centres()) + problem.heat
    size = (abs(before) + abs(after)) / scale**2
    noise = tolerance * (spread + size + 1.0) + 256 * eps * size
    trial.obeys(c, dt, noise * scale**2)
    trial.false_if(
        bool(c["certified"]) and after > before + noise * scale**2,
        f"certified, and the energy rose by {(after - before) / scale**2:.3g}",
    )
    if c["w2"] is not None and c["converged"]:
        right = distance(cells, a, b)
        if right is not None:
            own, cell = c["w2"] / scale, float(np.linalg.norm(cells.spacing))
            trial.false_if(
                abs(own - right) > 0.05 * right + cell,
                f"w2 {own:.5g}, right {right:.5g}, a cell is {cell:.3g}",
            )


def _compare(trial, cells, nu, c, dt, scale, problem) -> None:
    """Hold every marginal to the step of fine quantiles on its axis."""
    masses = nu.weights.double().numpy().reshape(cells.shape)
    square, moved = 0.0, 0.0
    for axis, potential in enumerate(problem.potentials):
        if potential.modulus + 1 / dt <= 0.1 / dt or cells.shape[axis] == 1:
            return
        found = _axis(cells, axis, potential, dt, problem.heat, problem.power)
        if found is None:
            return
        q, w, start = found
        edges = cells.edges(axis)
        square += step_w2(edges, marginal(masses, axis), q, w) ** 2
        moved += step_w2(q, w, start, w) ** 2
    off, cell = math.sqrt(square), float(np.linalg.norm(cells.spacing))
    if c["guarantee"] == "exact":
        bound = c["bound"] / scale + 0.5 * cell
        trial.false_if(off > 1.01 * bound, f"off {off:.3g}, bound {bound:.3g}")
    allowed = 2.0 * cell + 0.05 * math.sqrt(moved)
    trial.false_if(
        off > allowed, f"converged, off by {off:.3g} > {allowed:.3g}; cell {cell:.3g}"
    )


def _axis(
    cells: Cells, axis: int, V: Potential1D, dt: float, heat: float, power: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return quantiles of the reference step, their masses, and those of the start."""
    factor, edges = cells.factors[axis], cells.edges(axis)
    full = np.flatnonzero(factor > 1e-12 * factor.max())
    first, last = full[0], full[-1]
    w = np.repeat(factor[first : last + 1], FINE) / FINE
    if not (w > 0).all():
        return None
    p = np.linspace(edges[first], edges[last + 1], len(w) + 1)
    w = w / w.sum()
    spare = 1e-9 * (edges[-1] - edges[0])
    problem = LineProblem(
        p,
        w,
        dt,
        V.V,
        V.slope,
        V.curvature,
        heat,
        power,
        lower=edges[0] - spare,
        upper=edges[-1] + spare,
    )
    try:
        return problem.solve(), w, p
    except ArithmeticError:
        return None


COUNTS = {"GridSinkhorn": 300, "BackAndForth": 300, "FiniteVolume": 200}
FAMILIES = [
    Family(f"grids-{name}", partial(step, solver=name), count)
    for name, count in COUNTS.items()
    if hasattr(of.proximal, name)
]
