"""Heat is everywhere at once; a porous medium has a front, of known radius."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.patches import Circle
from torch import Tensor

import otflow as of
from demo.style import EULER, EXACT, JKO, sheet
from demo.table import Row, certificates

# The box is [-1, 1]^2. Radii of the front at the start and at the end.
START, END = 0.24, 0.48
RATE = 32 / math.pi  # of R^4 along the flow of the porous medium with m = 2
DURATION = (END**4 - START**4) / RATE
# Heat starts and ends with the variance of the porous medium, R^2 / 6 on each axis.
# Under c Entropy() the variance grows at the rate 2 c.
CONDUCTIVITY = (END**2 - START**2) / 6 / (2 * DURATION)


def paraboloid(radius: float, x: Tensor) -> Tensor:
    """Return Barenblatt's density for m = 2 in the plane, of mass 1."""
    inside = (1 - x.square().sum(-1) / radius**2).clamp_min(0)
    return 2 / (math.pi * radius**2) * inside


def bell(radius: float, x: Tensor) -> Tensor:
    """Return the Gaussian density with the variance of the paraboloid."""
    variance = radius**2 / 6
    return torch.exp(-0.5 * x.square().sum(-1) / variance) / (2 * math.pi * variance)


FLOWS = {
    "porous medium": (of.PowerEntropy(2), paraboloid),
    "heat": (CONDUCTIVITY * of.Entropy(), bell),
}


@dataclass(frozen=True)
class Spread:
    """A flow from an exact profile, and the exact profile at its end."""

    name: str
    run: of.Trajectory
    exact: of.GridDensity
    seconds: float

    @property
    def error(self) -> float:
        """L1 distance to the exact solution."""
        return float((self.run.final.weights - self.exact.weights).abs().sum())

    @property
    def beyond(self) -> float:
        """Mass beyond the exact front; for exact heat it is exp(-3)."""
        mu = self.run.final
        return float(mu.weights[mu.points.norm(dim=1) > END].sum())

    @property
    def row(self) -> Row:
        """The line of the table."""
        energy = self.run.records["energy"]
        return Row(
            f"{self.name}, JKO of order 2",
            energy=f"{float(energy[0]):.4f} to {float(energy[-1]):.4f}",
            certificate=certificates(self.run),
            seconds=self.seconds,
        )


def spread(name: str, cells: int, steps: int) -> Spread:
    """Spread by "heat" or in a "porous medium", from START to END."""
    F, profile = FLOWS[name]

    def on_grid(radius: float) -> of.GridDensity:
        return of.GridDensity.from_function(
            lambda x: profile(radius, x), -1.0, 1.0, (cells, cells), dtype=torch.float64
        )

    began = time.perf_counter()
    run = of.flow(F, on_grid(START), of.JKO(order=2), dt=DURATION / steps, steps=steps)
    return Spread(name, run, on_grid(END), time.perf_counter() - began)


def radius_of(mu: of.GridDensity) -> float:
    """Return the radius of a paraboloid: where the line of density over r^2 is zero.

    The line is fitted to the cells that hold more than a tenth of the largest density.
    """
    rho, square = mu.density(), mu.points.square().sum(1)
    full = rho > 0.1 * rho.max()
    design = torch.stack([torch.ones_like(square), square], dim=1)[full]
    height, slope = torch.linalg.lstsq(design, rho[full, None]).solution[:, 0]
    return math.sqrt(float(-height / slope))


def draw(medium: Spread, heat: Spread, path: Path) -> None:
    """Draw both ends with the exact front, and their profiles with the exact ones."""
    with sheet(path, 1, 3, size=(14, 4.9)) as (figure, axes):
        for ax, spread in zip(axes, (heat, medium), strict=False):
            of.plotting.density(spread.run.final, ax=ax)
            ax.add_patch(Circle((0, 0), END, fill=False, color=EXACT, ls="--", lw=1.8))
            ax.set(
                xlabel="x", ylabel="y", title=f"{spread.name}: {share_outside(spread)}"
            )
        profile = axes[2]
        for spread, color in ((heat, EULER), (medium, JKO)):
            cells = spread.run.final.shape[0]
            x = (torch.arange(cells, dtype=torch.float64) + 0.5) * 2 / cells - 1
            middle = (mu.grid[:, cells // 2] for mu in (spread.run.final, spread.exact))
            found, exact = middle
            label = "exact" if spread is heat else None
            profile.semilogy(
                x, exact.clamp_min(1e-30), color=EXACT, lw=1.2, label=label
            )
            profile.semilogy(
                x[::3], found[::3], "o", ms=4.5, color=color, label=spread.name
            )
        profile.set(
            xlabel="x", ylabel="density", title="on the middle line", ylim=(1e-5, 1e3)
        )
        profile.set_yticks([1e-4, 1e-2, 1])
        profile.legend(loc="upper center", ncols=2, fontsize=10, columnspacing=1)
        figure.suptitle(
            "Same variance: heat is everywhere, a porous medium has a front"
        )


def share_outside(spread: Spread) -> str:
    """Say which share of the mass lies beyond the exact front."""
    return f"{100 * spread.beyond:.2g} % outside"
