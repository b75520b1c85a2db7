"""Value and velocity of a network's risk against matrix products and plain PyTorch."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

import otflow as of
from benchmarks.memory import peak_extra_megabytes
from benchmarks.timing import Row, at_least, at_most, interleaved, seconds

n, N, D = 4096, 4096, 64


def plain(theta: Tensor, X: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return loss and gradient of the same network as a user of PyTorch writes it."""
    theta = theta.clone().requires_grad_()
    a, W, b = theta[:, 0], theta[:, 1:-1], theta[:, -1]
    f = torch.relu(torch.addmm(b, X, W.T)) @ a / len(theta)
    loss = 0.5 * (f - y).square().mean()
    return loss.detach(), torch.autograd.grad(loss, theta)[0]


@contextlib.contextmanager
def one_busy_process() -> Iterator[None]:
    """Keep one more process busy meanwhile, as on a machine that others use."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def beside_a_busy_process(pairs: int = 20) -> float:
    """Return the median of the ratio fused / autograd, with two threads."""
    X, y, mu, risk = problem()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    ratios = []
    try:
        with one_busy_process():
            for k in range(pairs + 2):
                ours = seconds(lambda: risk.value_and_velocity(mu))
                theirs = seconds(lambda: plain(mu.points, X, y))
                if k >= 2:  # the first ones warm up
                    ratios.append(ours / theirs)
    finally:
        torch.set_num_threads(threads)
    return statistics.median(ratios)


def problem() -> tuple[Tensor, Tensor, of.Particles, of.meanfield.Risk]:
    """Return data, neurons and the risk."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(n, D, generator=generator)
    y = torch.randn(n, generator=generator)
    mu = of.Particles(torch.randn(N, D + 2, generator=generator))
    return X, y, mu, of.meanfield.Risk(of.meanfield.TwoLayer("relu"), X, y)


def run() -> list[Row]:
    """Return the ratios and the memory."""
    X, y, mu, risk = problem()
    value, velocity = risk.value_and_velocity(mu)
    loss, gradient = plain(mu.points, X, y)
    assert torch.allclose(value, loss, rtol=1e-4), "both must compute the same"
    assert torch.allclose(
        velocity, -N * gradient, atol=1e-4 * float(velocity.abs().max())
    )

    W = mu.points[:, 1:-1].contiguous()
    Z, M = torch.empty(n, N), torch.empty(N, D)

    def products() -> None:
        """Do the two full-size products alone, into memory set aside beforehand."""
        torch.mm(X, W.T, out=Z)
        torch.mm(Z.T, X, out=M)

    ours, two, autograd = interleaved(
        lambda: risk.value_and_velocity(mu), products, lambda: plain(mu.points, X, y)
    )
    setup = (
        "import torch, otflow as of\n"
        "network = of.meanfield.TwoLayer('relu')\n"
        "def make(n, N):\n"
        f"    X, y = torch.randn(n, {D}), torch.randn(n)\n"
        f"    mu = of.Particles(torch.randn(N, {D + 2}))\n"
        "    return of.meanfield.Risk(network, X, y), mu\n"
        "risk, mu = make(300, 300)\n"
        "risk.value_and_velocity(mu)\n"
        f"risk, mu = make({n}, {N})"
    )
    megabytes = peak_extra_megabytes(setup, "risk.value_and_velocity(mu)")
    label = f"Risk value and velocity, relu, n = N = {n}, d = {D}:"
    return [
        at_most(f"{label} / its two products", ours / two, 1.0),
        at_least(f"{label} autograd /", autograd / ours, 2.4),
        at_most(f"{label} peak extra MB", megabytes, 64),
        at_most(f"{label} / autograd, busy, 2 threads", beside_a_busy_process(), 1.0),
    ]
