"""The figures of the demonstration."""

from __future__ import annotations

from pathlib import Path

from matplotlib import pyplot as plt

import otflow as of
from demo.disk import DISK_ENERGY

FIGURES = ("energy.png", "neurons.png", "particles.gif", "photograph.png")


def figures(
    folder: Path,
    losses: dict[str, tuple[list[int], list[float]]],
    neurons: of.Measure,
    disk: of.Trajectory,
    photo: of.Trajectory,
) -> list[Path]:
    """Write the figures and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in FIGURES]

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, (spent, values) in losses.items():
        left.semilogy(spent, values, label=name)
    left.set(
        xlabel="gradients", ylabel="training loss", title="Digits: loss per gradient"
    )
    left.legend(frameon=False)
    of.plotting.energy(disk, ax=right)
    right.axhline(DISK_ENERGY, color="0.5", lw=1, ls="--", label="exact minimum")
    right.set_title("Attraction-repulsion: energy")
    right.legend(frameon=False)
    figure.savefig(paths[0], dpi=120)

    points = neurons.points
    strongest = points[:, :10].norm(dim=1).argsort(descending=True)[:40]
    figure, axes = plt.subplots(4, 10, figsize=(10, 4.4), layout="constrained")
    for axis, i in zip(axes.flat, strongest, strict=True):
        image = points[i, 10:74].reshape(8, 8)
        limit = float(image.abs().max())
        axis.imshow(image, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axis.set(xticks=[], yticks=[], title=f"digit {int(points[i, :10].argmax())}")
        axis.title.set_fontsize(8)
    figure.suptitle(
        "Input weights of the 40 strongest neurons and the digit each favours"
    )
    figure.savefig(paths[1], dpi=120)

    animation = of.plotting.animate(disk)
    animation.save(paths[2], writer="pillow", fps=12, dpi=80)

    figure, axes = plt.subplots(1, 3, figsize=(10, 3.6), layout="constrained")
    middle = len(photo.snapshots) // 3
    for axis, k in zip(axes, (0, middle, -1), strict=True):
        of.plotting.density(photo.snapshots[k], ax=axis)
        axis.set_title(f"t = {float(photo.times[k]):.1e}")
    figure.suptitle("A photograph seeps through a porous medium")
    figure.savefig(paths[3], dpi=120)
    plt.close("all")
    return paths
