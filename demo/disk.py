r"""A cloud under attraction and repulsion becomes the uniform unit disk.

The energy of n particles, centred at 0, is that of a Coulomb gas,

.. math:: E_n = \frac{1}{2n^2}\sum_{i \ne j}
    \Bigl(\frac{|x_i - x_j|^2}{2} - \log|x_i - x_j|\Bigr)
    = \frac{1}{2n^2}\sum_{i \ne j} -\log|x_i - x_j| + \frac{1}{2n}\sum_i |x_i|^2 .

A continuum has at least the energy 3/8, that of the uniform unit disk. To compare,
replace each particle by a uniform disk of radius :math:`r = n^{-1/2}`, its share of the
unit disk.

- The energy of a pair does not rise, since :math:`-\log` is superharmonic.
- The mean of :math:`|x|^2` rises by :math:`r^2/2 = 1/(2n)`.
- Each disk adds the energy with itself, which the sum over pairs lacks. The mean of
  :math:`-\log|x - y|` over a disk is :math:`1/4 - \log r = 1/4 + \tfrac12\log n`.

The disks together are a continuum, so that

.. math:: \frac38 \le E_n + \frac{1}{4n}
    + \frac{1}{2n}\Bigl(\frac14 + \frac{\log n}{2}\Bigr), \qquad
    E_n \ge \frac38 - \frac{\log n}{4n} - \frac{3}{8n} .

If particles are evenly spread, the pairs lose nothing to first order, and the least
energy is :math:`3/8 - \log n/(4n) + O(1/n)`: this is the line of the figure.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.patches import Circle

import otflow as of
from demo.style import EULER, EXACT, GREY, JKO, sheet
from demo.table import SEED, Row, certificates

CONTINUUM = 3 / 8


def least_energy(n: int) -> float:
    """Return the least energy of n particles, up to O(1/n)."""
    return CONTINUUM - math.log(n) / (4 * n)


def lower_bound(n: int) -> float:
    """Return a number that the energy of no cloud of n particles is below."""
    return least_energy(n) - 3 / (8 * n)


@dataclass(frozen=True)
class Disk:
    """A flow of particles to the disk."""

    name: str
    run: of.Trajectory
    seconds: float

    @property
    def energy(self) -> float:
        """The energy at the end."""
        return float(self.run.records["energy"][-1])

    @property
    def centred(self) -> torch.Tensor:
        """The particles at the end, with their mean at 0."""
        return self.run.final.points - self.run.final.points.mean(0)

    @property
    def shape(self) -> str:
        """Compare the cloud with the uniform unit disk."""
        radius = self.centred.norm(dim=1)
        inside = float((radius < 0.5**0.5).double().mean())
        return (
            f"radius {float(radius.max()):.3f} (disk 1), second moment "
            f"{float(radius.square().mean()):.4f} (disk 0.5), "
            f"mass within 1/sqrt(2) {inside:.3f} (disk 0.5)"
        )

    @property
    def row(self) -> Row:
        """The line of the table."""
        return Row(
            f"disk, {self.name}",
            gradients=sum(info.get("iterations", 1) for info in self.run.info),
            energy=f"{self.energy:.5f} (n: {least_energy(self.run.final.n):.5f})",
            certificate=certificates(self.run),
            seconds=self.seconds,
        )


def relax_disk(
    name: str, scheme: of.schemes.Scheme, dt: float, steps: int, n: int
) -> Disk:
    """Flow particles under attraction and repulsion to the uniform disk."""
    F = of.Interaction(of.kernels.PowerLaw(2, 0))
    cloud = torch.randn(
        n, 2, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64
    )
    began = time.perf_counter()
    run = of.flow(F, of.Particles(0.4 * cloud + 0.5), scheme, dt=dt, steps=steps)
    return Disk(name, run, time.perf_counter() - began)


def draw(disks: list[Disk], path: Path) -> None:
    """Draw the last cloud over the exact disk, and the energies near their end."""
    last = disks[-1]
    n = last.run.final.n
    with sheet(path, 1, 2, size=(12, 5.4)) as (figure, (left, right)):
        left.add_patch(Circle((0, 0), 1, fill=False, color=EXACT, lw=1.8, ls="--"))
        left.scatter(*last.centred.T, s=7, color=JKO, lw=0)
        left.set(aspect="equal", xlabel="x", ylabel="y")
        left.set_title("JKO, the end; dashed: exact disk")
        for disk, color, mark in zip(disks, (EULER, JKO), ("-", "o-"), strict=True):
            times, energy = disk.run.times, disk.run.records["energy"]
            right.plot(times, energy, mark, color=color, ms=6, label=disk.name)
        for value, style, text in (
            (CONTINUUM, {"color": GREY, "ls": "--"}, "3/8: the continuum"),
            (least_energy(n), {"color": EXACT}, "3/8 - log n / 4n"),
            (
                lower_bound(n),
                {"color": EXACT, "ls": ":"},
                "no n particles lie lower",
            ),
        ):
            right.axhline(value, lw=1.6, label=text, **style)
        room = CONTINUUM - lower_bound(n)
        right.set(ylim=(lower_bound(n) - 0.6 * room, CONTINUUM + 4 * room))
        right.set(xlabel="time", ylabel="energy", title=f"Energy of {n} particles")
        right.legend(loc="upper right")
        figure.suptitle("Attraction and repulsion: a cloud becomes the uniform disk")
