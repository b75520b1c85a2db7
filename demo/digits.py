"""A two-layer network on real digits: by hand, by Euler, by JKO."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

import otflow as of
from demo.style import BY_HAND, EULER, JKO, sheet
from demo.table import SEED, Row, certificates

WIDTH = 1024


@dataclass(frozen=True)
class Digits:
    """Handwritten digits, standardised by the training half, divided by 8."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    @classmethod
    def load(cls) -> Digits:
        """Load the 1,797 images and hold a quarter of them out."""
        data = load_digits()
        X, Z, y, t = train_test_split(
            data.data,
            data.target,
            test_size=0.25,
            random_state=SEED,
            stratify=data.target,
        )
        mean, scale = X.mean(0), X.std(0)
        scale[scale == 0] = 1.0  # pixels that are never inked
        train, test = ((a - mean) / scale / 8 for a in (X, Z))
        return cls(
            (torch.tensor(train, dtype=torch.float32), torch.tensor(y)),
            (torch.tensor(test, dtype=torch.float32), torch.tensor(t)),
        )

    def accuracy(self, network: Callable[[Tensor], Tensor]) -> float:
        """Return the share of held-out images that a network gets right."""
        X, y = self.test
        with torch.no_grad():
            return float((network(X).argmax(1) == y).double().mean())


@dataclass(frozen=True)
class Training:
    """The losses of a training, beside the gradients and the seconds spent on them."""

    name: str
    gradients: list[int]
    seconds: list[float]
    losses: list[float]
    accuracy: float  # on the held-out images
    certificate: str = "-"
    run: of.Trajectory | None = None

    @property
    def final(self) -> of.Particles:
        """The neurons at the end of a flow."""
        if self.run is None:
            msg = f"{self.name} has no flow"
            raise ValueError(msg)
        return self.run.final

    @property
    def row(self) -> Row:
        """The line of the table."""
        return Row(
            f"digits, {self.name}",
            gradients=self.gradients[-1],
            accuracy=f"{100 * self.accuracy:.2f} %",
            energy=f"loss {self.losses[-1]:.4f}",
            certificate=self.certificate,
            seconds=self.seconds[-1],
        )


def train_by_hand(digits: Digits, gradients: int) -> Training:
    """Run a plain PyTorch loop, Adam on every image: the yardstick."""
    X, y = digits.train
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        net = torch.nn.Sequential(
            torch.nn.Linear(64, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, 10)
        )
    adam = torch.optim.Adam(net.parameters(), lr=1e-3)
    losses, seconds = [], [0.0]
    start = time.perf_counter()
    for _ in range(gradients):
        adam.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(X), y)
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
        seconds.append(time.perf_counter() - start)
    with torch.no_grad():
        losses.append(float(torch.nn.functional.cross_entropy(net(X), y)))
    spent, accuracy = list(range(gradients + 1)), digits.accuracy(net)
    return Training("PyTorch loop (Adam)", spent, seconds, losses, accuracy)


def train_by_flow(
    digits: Digits,
    name: str,
    scheme: of.schemes.Scheme,
    dt: float,
    gradients: int,
    most: int = 1,
    seed: int = SEED,
) -> Training:
    """Flow the measure over neurons; stop when the gradients are spent.

    A step takes `most` gradients at most.
    """
    network = of.meanfield.TwoLayer("relu", outputs=10)
    risk = of.meanfield.Risk(network, *digits.train, loss="cross-entropy")
    neurons = of.Particles(
        torch.randn(WIDTH, 10 + 64 + 1, generator=torch.Generator().manual_seed(seed))
    )
    spent, seconds = [0], [0.0]

    def enough(step: of.schemes.Step) -> bool:
        spent.append(spent[-1] + step.info.get("iterations", 1))
        seconds.append(time.perf_counter() - start)
        # A step may not overspend: stop while the largest one would still fit.
        return spent[-1] > gradients - most

    start = time.perf_counter()
    run = of.flow(risk, neurons, scheme, dt=dt, steps=gradients, stop=enough)

    def trained(X: Tensor) -> Tensor:
        return network(run.final, X)

    losses, accuracy = run.records["energy"].tolist(), digits.accuracy(trained)
    return Training(name, spent, seconds, losses, accuracy, certificates(run), run)


def draw(trainings: list[Training], path: Path) -> None:
    """Draw the training losses against gradients and against seconds."""
    with sheet(path, 1, 2, size=(12, 5.2)) as (figure, axes):
        for training, color in zip(trainings, (BY_HAND, EULER, JKO), strict=True):
            label = f"{training.name}: {100 * training.accuracy:.1f} % right"
            for ax, spent in zip(
                axes, (training.gradients, training.seconds), strict=True
            ):
                ax.semilogy(spent, training.losses, color=color, label=label)
        axes[0].set(xlabel="gradients", ylabel="training loss")
        axes[0].legend(loc="upper right")
        axes[1].set(xlabel="seconds")
        figure.suptitle(
            f"{WIDTH} neurons learn digits: one budget of gradients, three methods"
        )
