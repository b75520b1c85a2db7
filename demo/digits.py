"""A two-layer network on real digits: by hand, by Euler, by JKO."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

import otflow as of
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


def train_by_hand(digits: Digits, gradients: int) -> tuple[Row, list[float]]:
    """Run a plain PyTorch loop, Adam on every image: the yardstick."""
    X, y = digits.train
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        net = torch.nn.Sequential(
            torch.nn.Linear(64, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, 10)
        )
    adam = torch.optim.Adam(net.parameters(), lr=1e-3)
    losses = []
    start = time.perf_counter()
    for _ in range(gradients):
        adam.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(X), y)
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    seconds = time.perf_counter() - start
    with torch.no_grad():
        losses.append(float(torch.nn.functional.cross_entropy(net(X), y)))
    accuracy = f"{100 * digits.accuracy(net):.2f} %"
    row = Row(
        "digits, PyTorch loop (Adam)",
        gradients,
        f"{losses[-1]:.4f}",
        accuracy,
        "-",
        "-",
        seconds,
    )
    return row, losses


def train_by_flow(
    digits: Digits,
    name: str,
    scheme: of.schemes.Scheme,
    dt: float,
    gradients: int,
    most: int = 1,
) -> tuple[Row, of.Trajectory, list[int]]:
    """Flow the measure over neurons; stop when the gradients are spent."""
    network = of.meanfield.TwoLayer("relu", outputs=10)
    risk = of.meanfield.Risk(network, *digits.train, loss="cross-entropy")
    neurons = of.Particles(
        torch.randn(WIDTH, 10 + 64 + 1, generator=torch.Generator().manual_seed(SEED))
    )
    spent = [0]

    def enough(step: of.schemes.Step) -> bool:
        spent.append(spent[-1] + step.info.get("iterations", 1))
        # A step may not overspend: stop while the largest one would still fit.
        return spent[-1] > gradients - most

    start = time.perf_counter()
    run = of.flow(
        risk,
        neurons,
        scheme,
        dt=dt,
        steps=gradients,
        stop=enough,
        generator=SEED,
        progress=True,
    )
    seconds = time.perf_counter() - start

    def trained(X: Tensor) -> Tensor:
        return network(run.final, X)

    row = Row(
        f"digits, {name}",
        spent[-1],
        f"{float(run.records['energy'][-1]):.4f}",
        f"{100 * digits.accuracy(trained):.2f} %",
        f"{float(run.records['energy'][-1]):.4f}",
        certificates(run),
        seconds,
    )
    return row, run, spent
