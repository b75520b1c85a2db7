r"""A stiff energy, where JKO wins: explicit Euler blows up and Adam is slow.

.. math:: F(\rho) = \int \frac{x^4}{4}\,d\rho + T \int \rho\log\rho, \qquad
    \min F = -T \log Z, \quad Z = 2\,\Gamma(5/4)\,(4T)^{1/4} .

The density is given by its quantiles. Close quantiles repel at the strength T / gap^2,
far ones are pulled by :math:`3x^2`, and the bowl is flat in the middle.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import otflow as of
from demo.style import BY_HAND, EULER, JKO, sheet
from demo.table import Row, certificates

TEMPERATURE = 1e-3
STEP = 50.0
RATES = (0.03, 0.1, 0.3, 1.0, 3.0)
LEAST = -TEMPERATURE * math.log(2 * math.gamma(1.25) * (4 * TEMPERATURE) ** 0.25)
# The gap at which the methods are compared.
GOAL = 1e-6
SURVIVED = "finished"


def bowl(x: Tensor) -> Tensor:
    """Return the potential x^4 / 4."""
    return 0.25 * x.square().square().sum(-1)


F = of.Potential(bowl, modulus=0.0) + TEMPERATURE * of.Entropy()


@dataclass(frozen=True)
class Curve:
    """Energies and the seconds after which each of them was reached."""

    name: str
    seconds: list[float]
    energies: list[float]
    certificate: str
    end: of.Measure | None = None  # of a flow

    def seconds_to(self, energy: float) -> float:
        """Return the seconds until an energy is reached; infinity if it is not."""
        both = zip(self.seconds, self.energies, strict=True)
        return next((s for s, reached in both if reached <= energy), math.inf)


@dataclass(frozen=True)
class Stiff:
    """The runs on one energy, from one start."""

    jko: Curve
    euler: Curve
    adams: dict[float, Curve]
    diverged: str
    least: float

    @property
    def rate(self) -> float:
        """The rate of Adam that ends with the least energy."""
        return min(self.adams, key=lambda rate: self.adams[rate].energies[-1])

    @property
    def failure(self) -> str:
        """What became of explicit Euler at the step of JKO."""
        return f"explicit Euler, dt = {STEP:g}: {self.diverged}"

    @property
    def adam(self) -> Curve:
        """The run of Adam with the best rate."""
        return self.adams[self.rate]

    @property
    def rows(self) -> list[Row]:
        """The lines of the table."""
        return [
            self._row(self.jko),
            Row(
                f"stiff, explicit Euler, dt = {STEP:g}",
                energy="diverged",
                certificate=self.diverged,
            ),
            self._row(self.euler),
            self._row(self.adam),
        ]

    def _row(self, curve: Curve) -> Row:
        return Row(
            f"stiff, {curve.name}",
            gradients=len(curve.energies) - 1,
            energy=f"minimum + {curve.energies[-1] - self.least:.0e}",
            certificate=curve.certificate,
            seconds=curve.seconds[-1],
        )


def quantiles(n: int) -> of.Quantiles:
    """Return the uniform density on [1, 3]."""
    return of.Quantiles(torch.linspace(1.0, 3.0, n + 1, dtype=torch.float64))


def timed_flow(
    name: str, mu: of.Quantiles, scheme: of.schemes.Scheme, dt: float, steps: int
) -> Curve:
    """Flow, and take the time of each step."""
    seconds = [0.0]
    began = time.perf_counter()

    def clock(_: of.schemes.Step) -> bool:
        seconds.append(time.perf_counter() - began)
        return False

    run = of.flow(F, mu, scheme, dt=dt, steps=steps, stop=clock)
    energies = run.records["energy"].tolist()
    return Curve(name, seconds, energies, certificates(run), run.final)


def energy_by_hand(edges: Tensor, masses: Tensor) -> Tensor:
    """Return F of quantiles in plain PyTorch."""
    potential = 0.25 * edges**4
    entropy = masses @ (masses / edges.diff()).log()
    return masses @ (potential[1:] + potential[:-1]) / 2 + TEMPERATURE * entropy


def train_by_adam(mu: of.Quantiles, rate: float, steps: int) -> Curve:
    """Minimise F by a plain PyTorch loop.

    The unknowns are the mean of the quantiles and the logarithms of their gaps, so that
    quantiles cannot cross. On the quantiles themselves Adam makes them cross.
    """
    middle = mu.edges.mean().clone().requires_grad_()
    gaps = mu.edges.diff().log().requires_grad_()
    adam = torch.optim.Adam([middle, gaps], lr=rate)
    seconds, energies = [0.0], []
    began = time.perf_counter()
    for k in range(steps + 1):
        adam.zero_grad()
        edges = torch.nn.functional.pad(gaps.exp().cumsum(0), (1, 0))
        energy = energy_by_hand(edges - edges.mean() + middle, mu.weights)
        energies.append(energy.item())
        if k == steps:
            break
        energy.backward()
        adam.step()
        seconds.append(time.perf_counter() - began)
    name = f"PyTorch loop (Adam, lr = {rate:g})"
    return Curve(name, seconds, energies, f"best of {len(RATES)} rates")


def race(n: int, steps: int) -> Stiff:
    """Run all methods; `steps` is the budget of Adam and of the careful Euler."""
    mu = quantiles(n)
    jko = timed_flow(f"JKO, dt = {STEP:g}", mu, of.JKO(), STEP, 15)
    try:
        of.flow(F, mu, of.ExplicitEuler(), dt=STEP, steps=15)
        diverged = SURVIVED
    except of.errors.Diverged as error:
        diverged = f"raised Diverged in step {error.step}"
    careful = of.ExplicitEuler(backtracking=True)
    euler = timed_flow("Euler, backtracking", mu, careful, STEP, steps)
    adams = {rate: train_by_adam(mu, rate, steps) for rate in RATES}
    # The least energy of these cells: one more JKO flow, from the end of the first.
    last = of.flow(F, jko.end or mu, of.JKO(), dt=1e3 * STEP, steps=5)
    return Stiff(jko, euler, adams, diverged, float(last.records["energy"].min()))


def draw(stiff: Stiff, path: Path) -> None:
    """Draw the energy above its least value against seconds."""
    with sheet(path, size=(9.5, 5.6)) as (_, ax):
        others = [curve for rate, curve in stiff.adams.items() if rate != stiff.rate]
        faint = {"color": BY_HAND, "lw": 1, "alpha": 0.4}
        lines = [
            (curve, faint | {"label": "Adam, other rates"}) for curve in others[:1]
        ]
        lines += [(curve, faint) for curve in others[1:]]
        lines += [
            (stiff.adam, {"color": BY_HAND, "label": stiff.adam.name}),
            (stiff.euler, {"color": EULER, "label": stiff.euler.name}),
            (stiff.jko, {"color": JKO, "marker": "o", "label": stiff.jko.name}),
        ]
        for curve, style in lines:
            gaps = [max(e - stiff.least, 1e-16) for e in curve.energies]
            ax.loglog(curve.seconds[1:], gaps[1:], **style)
        ax.plot([], [], "x", color=EULER, ms=10, mew=3, label=stiff.failure)
        ax.axhline(GOAL, color="0.6", lw=1, ls=":")
        ax.set(xlabel="seconds", ylabel="energy above its minimum", ylim=(1e-13, 1e2))
        ax.set_title(r"A stiff energy: $x^4/4$ and a thousandth of the entropy")
        ax.legend(loc="lower left")
