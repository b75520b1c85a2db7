"""The stories in their order, the work that each does, and what each promises."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import otflow as of
from demo import crowd, digits, disk, front, networks, stiff, words
from demo.table import Row

GRADIENTS = 300
MOST = 12  # gradients of a JKO step on the digits


@dataclass
class Told:
    """What a demonstration has printed, drawn, and not kept of its promises."""

    folder: Path
    rows: list[Row] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    figures: list[Path] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)

    def figure(self, name: str) -> Path:
        """Return the path of the next figure."""
        self.figures.append(self.folder / name)
        return self.figures[-1]

    def promise(self, text: str, kept: bool) -> None:
        """Note a promise that was not kept."""
        if not kept:
            self.missed.append(text)


def tell(folder: Path, *, quick: bool = False) -> Told:
    """Tell every story; write the figures into a folder."""
    told = Told(folder)
    for k, (title, story) in enumerate(STORIES.items(), 1):
        print(f"{k}. {title}", flush=True)
        story(told, quick)
    return told


def tell_words(told: Told, quick: bool) -> None:
    """Flow from word to word."""
    stages = ((0.3, 3), (0.1, 2)) if quick else words.STAGES
    found = words.flow_words(150 if quick else words.PARTICLES, stages)
    films = [told.figure("words.gif")]
    if words.ffmpeg():
        films.append(told.figure("words.mp4"))
    words.draw(found, *films)
    told.rows.append(found.row)
    told.promise("the particles spell the second word", found.distance(-1) < 0.03)
    told.promise("the mean moves as it must", found.mean_error < 1e-9)


def tell_digits(told: Told, quick: bool) -> None:
    """Train networks, and look between two of them."""
    budget = GRADIENTS // 10 if quick else GRADIENTS
    data = digits.Digits.load()
    prox = of.proximal.ParticleProximal(tolerance=0.2, max_gradients=MOST)
    by_hand = digits.train_by_hand(data, budget)
    euler = digits.train_by_flow(
        data, "explicit Euler", of.ExplicitEuler(), 3.0, budget
    )
    jko = digits.train_by_flow(data, "JKO", of.JKO(prox), 10.0, budget, MOST + 1)
    digits.draw([by_hand, euler, jko], told.figure("digits.png"))
    told.rows += [by_hand.row, euler.row, jko.row]
    worst = min(euler.accuracy, jko.accuracy)
    told.promise("97 % of the digits are right", worst >= 0.97)
    told.promise("half a point below Adam at most", worst >= by_hand.accuracy - 0.005)

    other = digits.train_by_flow(
        data, "explicit Euler", of.ExplicitEuler(), 3.0, budget, seed=digits.SEED + 1
    )
    found = networks.barriers(data, euler.final, other.final)
    networks.draw(found, told.figure("networks.png"))
    apart, aligned = found[networks.APART].height, found[networks.ALIGNED].height
    told.lines.append(
        f"two networks: loss barrier {apart:.4f} as they come, {aligned:.4f} aligned"
    )
    told.promise("alignment lowers the barrier tenfold", aligned < 0.1 * apart)


def tell_stiff(told: Told, quick: bool) -> None:
    """Race to the minimum of a stiff energy."""
    found = stiff.race(*((60, 50) if quick else (500, 1500)))
    stiff.draw(found, told.figure("stiff.png"))
    told.rows += found.rows
    goal = found.least + stiff.GOAL
    jko, adam = found.jko.seconds_to(goal), found.adam.seconds_to(goal)
    told.lines.append(
        f"stiff energy: {stiff.GOAL:.0e} above its minimum after {jko:.2f} s of JKO, "
        f"{adam:.2f} s of Adam (lr = {found.rate:g}, the best of {stiff.RATES})"
    )
    told.promise("JKO is first", jko < adam)
    told.promise("explicit Euler diverges", found.diverged != stiff.SURVIVED)


def tell_front(told: Told, quick: bool) -> None:
    """Spread heat and a porous medium."""
    cells, steps = (96, 4) if quick else (128, 10)
    medium, heat = (front.spread(name, cells, steps) for name in front.FLOWS)
    front.draw(medium, heat, told.figure("front.png"))
    told.rows += [medium.row, heat.row]
    radius = front.radius_of(medium.run.final)
    told.lines.append(
        f"porous medium: front at {radius:.4f} (exact {front.END}), "
        f"L1 error {medium.error:.1e}; heat: L1 error {heat.error:.1e}"
    )
    told.promise("the front is at its radius", abs(radius - front.END) < 0.003)
    told.promise("heat is right", heat.error < 1e-3)


def tell_crowd(told: Told, quick: bool) -> None:
    """Empty a room."""
    found = crowd.leave_room(6 if quick else 32)
    crowd.draw(found, told.figure("crowd.png"))
    told.rows.append(found.row)
    leak = abs(found.outside - found.through_door)
    told.lines.append(
        f"crowd: {100 * found.outside:.1f} % beyond the wall, through the door up to "
        f"{leak:.0e}; mass in the wall {found.in_wall:g}"
    )
    told.promise("nobody leaves but by the door", leak < 1e-12 and found.in_wall == 0)


def tell_disk(told: Told, quick: bool) -> None:
    """Relax a cloud to the disk."""
    n, steps = (100, 10) if quick else (1000, 60)
    loose = of.proximal.ParticleProximal(tolerance=1e-2)
    euler = disk.relax_disk("explicit Euler", of.ExplicitEuler(), 0.2, steps, n)
    jko = disk.relax_disk("JKO", of.JKO(loose), 1.0, steps // 5, n)
    disk.draw([euler, jko], told.figure("disk.png"))
    told.rows += [euler.row, jko.row]
    told.lines.append(f"disk by JKO: {jko.shape}")
    told.promise(
        "the energy is that of n particles",
        all(
            disk.lower_bound(n) <= found.energy <= disk.least_energy(n)
            for found in (euler, jko)
        ),
    )


STORIES = {
    "Words: a cloud flows into another under the Sinkhorn divergence": tell_words,
    "Digits: 1024 neurons learn, by hand, by Euler, by JKO": tell_digits,
    "A stiff energy: Euler blows up, Adam is slow, JKO is done": tell_stiff,
    "A front: heat is everywhere at once, a porous medium is not": tell_front,
    "A crowd: it leaves by the door, under pressure": tell_crowd,
    "A disk: the equilibrium of attraction and repulsion": tell_disk,
}
