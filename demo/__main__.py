"""The demo: a network on real digits, a cloud to its disk, a photograph in a rock."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import otflow as of
from demo.digits import WIDTH, Digits, train_by_flow, train_by_hand
from demo.disk import DISK_ENERGY, radius_check, relax_disk
from demo.figures import figures
from demo.medium import soak_photograph, spread_barenblatt
from demo.table import Row, table

GRADIENTS = 300


def say(text: str = "") -> None:
    """Print a line at once."""
    print(text, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; the exit status is 1 if an asserted target is missed."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo-output"))
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the work, unjudged"
    )
    options = parser.parse_args(arguments)
    gradients, n = (GRADIENTS // 10, 200) if options.quick else (GRADIENTS, 2000)
    began = time.perf_counter()

    digits = Digits.load()
    say(
        f"1. Two-layer network, {WIDTH} neurons, {len(digits.train[1])} digits to learn"
    )
    by_hand, adam = train_by_hand(digits, gradients)
    euler_row, euler, euler_spent = train_by_flow(
        digits, "explicit Euler", of.ExplicitEuler(), 3.0, gradients
    )
    most = 12
    prox = of.proximal.ParticleProximal(tolerance=0.2, max_gradients=most)
    jko_row, jko, jko_spent = train_by_flow(
        digits, "JKO", of.JKO(prox), 10.0, gradients, most + 1
    )
    say(f"2. {n} particles under W(z) = |z|^2/2 - log|z|: the uniform disk")
    steps = 10 if options.quick else 60
    disk_euler_row, disk = relax_disk(
        "explicit Euler", of.ExplicitEuler(), 0.2, steps, n
    )
    loose = of.proximal.ParticleProximal(tolerance=1e-2)
    disk_jko_row, disk_jko = relax_disk("JKO", of.JKO(loose), 1.0, steps // 5, n)

    cells, some = (32, 3) if options.quick else (128, 10)
    say(f"3. Porous medium on {cells} x {cells} cells: a photograph, a front")
    photo_row, photo = soak_photograph(cells, some)
    front_row, front = spread_barenblatt(cells, some)

    rows = [by_hand, euler_row, jko_row, disk_euler_row, disk_jko_row]
    rows += [photo_row, front_row]
    say()
    say(table(rows))
    say(f"disk by JKO: {radius_check(disk_jko.final)}")
    say(f"Barenblatt: L1 distance to the exact JKO steps {front:.1e}")
    losses: dict[str, tuple[list[int], list[float]]] = {
        "PyTorch loop (Adam)": (list(range(len(adam))), adam),
        "explicit Euler": (euler_spent, euler.records["energy"].tolist()),
        "JKO": (jko_spent, jko.records["energy"].tolist()),
    }
    paths = figures(options.output, losses, jko.final, disk, photo)
    say("figures: " + ", ".join(str(path) for path in paths))
    say(f"total {time.perf_counter() - began:.0f} s")
    return 0 if options.quick else judge(rows, disk_jko, front)


def judge(rows: list[Row], disk: of.Trajectory, front: float) -> int:
    """Say which promise of the demo was not kept, if any."""
    yardstick, *flows = (float(r.accuracy.split()[0]) for r in rows[:3])
    missed = [a for a in flows if a < 97.0 or a < yardstick - 0.5]
    energy = float(disk.records["energy"][-1])
    if missed or abs(energy - DISK_ENERGY) > 2e-3 or front > 6e-4:
        say(
            f"MISSED: accuracies {flows}, yardstick {yardstick}, disk {energy:.4f}, "
            f"front {front:.1e}"
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
