"""Random problems with gaps that are known without otflow, in extended precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import otflow as of
from otflow.functionals import Curvature

Field = Callable[[Any], Any]
LONG = np.longdouble


class Convex(of.functionals.Sum):
    """A sum that is convex along mixtures by its construction."""

    def mixture_curvature(self) -> Curvature:
        """Return "convex"."""
        return Curvature.CONVEX


@dataclass(frozen=True)
class Problem:
    """A functional, a measure, a box, and F' by NumPy.

    Parameters
    ----------
    family : str
        Kind of the functional.
    F, mu, lower, upper
        What otflow is given.
    variation : callable
        F' at points (m, d) of extended precision.
    excess : float or None
        F(mu) - inf F where it is known.
    """

    family: str
    F: of.Functional
    mu: of.Particles
    lower: np.ndarray
    upper: np.ndarray
    variation: Field
    excess: float | None = None

    def gap(self) -> float:
        """Return the mean of F' minus its least value on a lattice, then polished."""
        x = self.mu.points.double().numpy().astype(LONG)
        w = self.mu.weights.double().numpy().astype(LONG)
        return float((w * self.variation(x)).sum() - self._least())

    def _least(self) -> Any:
        d = len(self.lower)
        n = {1: 4001, 2: 81, 3: 19}[d]
        low, high = self.lower.astype(LONG), self.upper.astype(LONG)
        x: Any
        axes = [
            np.linspace(a, b, n) for a, b in zip(self.lower, self.upper, strict=True)
        ]
        x = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, d)
        x = np.concatenate([x, self.mu.points.double().numpy()])
        values = self.variation(x)  # in double precision: it only chooses
        x = np.clip(x[np.argsort(values)[:12]].astype(LONG), low, high)
        step: Any = (high - low) / n
        values = self.variation(x)
        for _ in range(45):
            for i in range(d):
                for sign in (-1, 1):
                    new = x.copy()
                    new[:, i] = np.clip(new[:, i] + sign * step[i], low[i], high[i])
                    fell = (moved := self.variation(new)) < values
                    x[fell], values[fell] = new[fell], moved[fell]
            step = step * LONG(0.6)
        return values.min()


class Draw:
    """Random numbers of one problem."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.d = int(self.rng.choice([1, 1, 2, 2, 3]))
        self.dtype = torch.float32 if self.rng.random() < 0.25 else torch.float64
        self.scale = float(10.0 ** self.rng.uniform(-3, 3))
        offset = float(self.rng.choice([0.0, 0.0, 1.0, 100.0])) * self.scale
        self.lower = np.full(self.d, offset) - self.scale
        self.upper = self.lower + self.scale * self.rng.uniform(1.0, 3.0, self.d)
        if self.dtype == torch.float32:
            self.lower = self.lower.astype(np.float32).astype(float)
            self.upper = self.upper.astype(np.float32).astype(float)

    def points(self, n: int) -> torch.Tensor:
        """Return points inside the box."""
        x = self.lower + (self.upper - self.lower) * self.rng.random((n, self.d))
        return self.clip(torch.tensor(x).to(self.dtype))

    def clip(self, x: torch.Tensor) -> torch.Tensor:
        """Return the points with their round-off taken back into the box."""
        low, high = (torch.tensor(c).to(self.dtype) for c in (self.lower, self.upper))
        return x.clamp(low, high)

    def measure(self, most: int = 30) -> of.Particles:
        """Return a measure on the box."""
        n = int(self.rng.integers(1, most))
        weights = None
        if self.rng.random() < 0.5:
            weights = torch.tensor(self.rng.random(n) + 0.01).to(self.dtype)
            weights = weights / weights.sum()
        return of.Particles(self.points(n), weights)


def numbers(t: torch.Tensor) -> np.ndarray:
    """Return the same numbers as extended ones."""
    return t.double().numpy().astype(LONG)


def potential(draw: Draw) -> Problem:
    """Return a sum of waves, wells, kinks and powers."""
    r, d = draw.rng, draw.d
    c, s = (draw.lower + draw.upper) / 2, draw.scale
    wave, phase, height = 9 * r.normal(size=d) / s, r.normal(), r.normal(size=4)
    centre = c + 0.3 * s * r.normal(size=d)
    # Numbers that both languages hold exactly.
    wave, centre = (t.astype(np.float32).astype(float) for t in (wave, centre))
    kind = int(r.integers(4))

    def V(x: Any) -> Any:
        m: Any = torch if isinstance(x, torch.Tensor) else np
        a: Any = torch.tensor(wave) if m is torch else wave
        z = x.double() - torch.tensor(centre) if m is torch else x - centre
        z = z / s
        waves = height[0] * m.sin((z * a * s).sum(-1) + phase)
        if kind == 0:
            rest = height[1] * ((z * z - 0.3) * (z * z - 0.3)).sum(-1)
        elif kind == 1:
            rest = height[1] * m.exp(-3 * (z * z).sum(-1)) + (z * z).sum(-1)
        elif kind == 2:
            rest = m.abs(z).sum(-1) + height[2] * m.tanh(z).sum(-1)
        else:
            rest = m.log(1 + 4 * (z * z).sum(-1)) + m.sqrt(1 + z * z).sum(-1)
        return 10.0 ** height[3] * (waves + rest)

    F = of.Potential(lambda x: V(x).to(x.dtype))
    return Problem("potential", F, draw.measure(), draw.lower, draw.upper, V)


def squared(x: Any, y: np.ndarray) -> Any:
    """Return the squared distances."""
    return ((x[:, None] - y) ** 2).sum(-1)


def discrepancy(draw: Draw) -> Problem:
    """Return a kernel distance to a random target."""
    r, length = draw.rng, draw.scale * float(draw.rng.uniform(0.3, 1.5))
    kind = int(r.integers(3))
    profiles = (
        lambda s: np.exp(-s / (2 * LONG(length) ** 2)),
        lambda s: (1 + s / LONG(length) ** 2) ** LONG(-0.5),
        lambda s: -np.sqrt(s),
    )
    kernels = (
        lambda: of.kernels.Gaussian(length),
        lambda: of.kernels.InverseMultiquadric(length),
        of.kernels.Energy,
    )
    mu, nu = draw.measure(), draw.measure()
    if r.random() < 0.4:  # close to the target, where gaps are small
        move = 10.0 ** r.uniform(-9, -1) * draw.scale * r.normal(size=nu.points.shape)
        moved = nu.points.double() + torch.tensor(move)
        mu = of.Particles(draw.clip(moved.to(draw.dtype)), nu.weights)
    x, w, y, v = map(numbers, (mu.points, mu.weights, nu.points, nu.weights))
    # Exactly the same mass: else the constant of a kernel counts.
    k = profiles[kind]

    def variation(at: Any) -> Any:
        return k(squared(at, x)) @ w - k(squared(at, y)) @ v

    excess = None
    if float(abs(w.sum() - v.sum())) < 1e-15:
        a, b = variation(x), variation(y)
        excess = float(0.5 * (w * a).sum() - 0.5 * (v * b).sum())
    F = Convex((of.MMDTo(nu, kernels[kind]()),))
    return Problem("discrepancy", F, mu, draw.lower, draw.upper, variation, excess)


def interaction(draw: Draw) -> Problem:
    """Return a positive definite kernel that is a user's function, and a potential."""
    r, s = draw.rng, draw.scale
    waves = (3 * r.normal(size=(3, draw.d)) / s).astype(np.float32).astype(float)
    heights = np.abs(r.normal(size=3))
    base = potential(draw)
    mu, factor = base.mu, float(10 ** r.uniform(-2, 1))
    x, w = numbers(mu.points), numbers(mu.weights)

    def W(z: Any) -> Any:
        if isinstance(z, torch.Tensor):
            inner = z.double()[..., None, :] * torch.tensor(waves)
            total = (inner.sum(-1).cos() * torch.tensor(heights)).sum(-1)
            return total.to(z.dtype)
        return (np.cos((z[..., None, :] * waves).sum(-1)) * heights).sum(-1)

    def variation(at: Any) -> Any:
        return factor * (W(at[:, None] - x) @ w) + base.variation(at)

    F = Convex((factor * of.Interaction(W), base.F))
    return Problem("interaction", F, mu, draw.lower, draw.upper, variation)


def risk(draw: Draw) -> Problem:
    """Return the risk of a small network; the box is one of parameters."""
    r = draw.rng
    names = {1: "custom", 2: "no bias", 3: "bias"}
    kind, m = names[draw.d], int(r.integers(3, 12))
    X = torch.tensor(r.normal(size=(m, 1))).to(draw.dtype)
    logistic = bool(r.random() < 0.4)
    y = torch.tensor(r.normal(size=m)).to(draw.dtype)
    y = torch.sign(y) if logistic else y
    unit = str(r.choice(["tanh", "sigmoid", "relu", "erf"]))
    draw.lower = np.full(draw.d, -float(np.float32(r.uniform(0.5, 2))))
    draw.upper = np.full(draw.d, float(np.float32(r.uniform(0.5, 2))))
    mu = draw.measure()
    phi: Any = {
        "tanh": np.tanh,
        "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
        "relu": lambda z: np.maximum(z, 0),
        "erf": np.vectorize(lambda z: LONG(math.erf(float(z)))),
    }[unit]
    inputs, targets = numbers(X), numbers(y)

    def sigma(theta: Any) -> Any:
        if kind == "custom":
            return np.sin(3 * inputs * theta[:, 0])
        z = inputs * theta[:, 1] + (theta[:, 2] if kind == "bias" else 0)
        return theta[:, 0] * phi(z)

    if kind == "custom":
        network: Any = of.meanfield.CustomLayer(
            lambda x, theta: torch.sin(3 * x * theta[:, 0])
        )
    else:
        network = of.meanfield.TwoLayer(unit, bias=kind == "bias")
    f = sigma(numbers(mu.points)) @ numbers(mu.weights)
    g = -targets / (1 + np.exp(targets * f)) if logistic else f - targets

    def variation(at: Any) -> Any:
        return g @ sigma(at.astype(LONG)) / m

    F = of.meanfield.Risk(network, X, y, loss="logistic" if logistic else "square")
    family = "risk, erf" if unit == "erf" and kind != "custom" else "risk"
    return Problem(family, F, mu, draw.lower, draw.upper, variation)


FAMILIES = (potential, discrepancy, interaction, risk)


def problem(seed: int) -> Problem:
    """Return the random problem of a seed."""
    return FAMILIES[seed % len(FAMILIES)](Draw(seed))
