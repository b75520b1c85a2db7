"""Two networks trained apart are nearly one network, once their neurons are aligned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import otflow as of
from demo.digits import Digits
from demo.style import EULER, JKO, sheet

APART, ALIGNED = "as they come", "aligned"


@dataclass(frozen=True)
class Barrier:
    """Losses on the segment between two networks, whose ends compute the same."""

    positions: Tensor
    losses: Tensor

    @property
    def height(self) -> float:
        """The most by which the loss exceeds the line between its ends."""
        line = torch.lerp(self.losses[0], self.losses[-1], self.positions)
        return float((self.losses - line).max())


def barriers(
    digits: Digits, first: of.Measure, second: of.Measure, points: int = 21
) -> dict[str, Barrier]:
    """Return the barriers on the held-out images, before and after the alignment.

    `align` permutes the neurons of the second network, and scales each as relu allows,
    to bring them nearest to those of the first. Neither changes what they compute.
    """
    network = of.meanfield.TwoLayer("relu", outputs=10)
    risk = of.meanfield.Risk(network, *digits.test, loss="cross-entropy")
    symmetry = of.metrics.symmetries.of_activation("relu", outputs=10)
    theta, xi = first.points, second.points
    pairs = {
        APART: (theta, xi),
        ALIGNED: (
            symmetry.canonical(theta),
            of.metrics.align(theta, xi, symmetry=symmetry),
        ),
    }
    positions = torch.linspace(0, 1, points, dtype=theta.dtype)
    return {
        name: Barrier(
            positions,
            torch.stack([risk(of.Particles(torch.lerp(a, b, t))) for t in positions]),
        )
        for name, (a, b) in pairs.items()
    }


def draw(found: dict[str, Barrier], path: Path) -> None:
    """Draw the loss between the networks, as they come and aligned."""
    with sheet(path, size=(8.5, 5.4)) as (_, ax):
        for (name, barrier), color in zip(found.items(), (EULER, JKO), strict=True):
            label = f"{name}: barrier {barrier.height:.3f}"
            ax.plot(
                barrier.positions, barrier.losses, "o-", ms=6, color=color, label=label
            )
        ax.set(
            xlabel="position between the networks",
            ylabel="loss on held-out digits",
            xticks=[0, 0.5, 1],
            ylim=(0, None),
            title="Two networks, trained from different starts",
        )
        ax.set_xticklabels(["first", "half-way", "second"])
        ax.legend(loc="lower center")
