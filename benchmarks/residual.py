"""Value and velocity of a residual network's risk against plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

import otflow as of
from benchmarks.memory import peak_extra_megabytes
from benchmarks.timing import Row, at_most, interleaved

L, M, n, D = 64, 64, 2048, 64

PROBLEM = "from benchmarks.residual import L, make, n, plain\n"


def make(n: int, L: int) -> tuple[of.meanfield.Risk, of.Particles, Tensor, Tensor]:
    """Return the risk of L layers on n data, the neurons and the data."""
    generator = torch.Generator().manual_seed(0)
    network = of.meanfield.networks.Residual("relu", layers=L)
    X = torch.randn(n, D, generator=generator)
    y = torch.randn(n, generator=generator)
    u = torch.randn(L, M, D + 1, generator=generator)
    w = torch.randn(L, M, D + 2, generator=generator) / 8
    return of.meanfield.Risk(network, X, y), network.from_blocks(u, w), X, y


def plain(theta: Tensor, X: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return loss and gradient of the same network as a user of PyTorch writes it."""
    theta = theta.clone().requires_grad_()
    z = torch.cat([X, X.new_zeros(len(X), 1)], 1)
    for block in theta.split(M):
        u, w, b = block[:, 1 : D + 2], block[:, D + 2 : -1], block[:, -1]
        z = z + torch.relu(torch.addmm(b, z, w.T)) @ u / len(theta)
    loss = 0.5 * (z[:, -1] - y).square().mean()
    return loss.detach(), torch.autograd.grad(loss, theta)[0]


def megabytes(work: str) -> float:
    """Return the peak extra memory of some work, in a process of its own."""
    warm = f"risk, mu, X, y = make(n // 16, 2)\n{work}\n"
    setup = f"{PROBLEM}{warm}risk, mu, X, y = make(n, L)"
    return peak_extra_megabytes(setup, work)


def run() -> list[Row]:
    """Return the ratios of time and of memory."""
    risk, mu, X, y = make(n, L)
    value, velocity = risk.value_and_velocity(mu)
    loss, gradient = plain(mu.points, X, y)
    assert torch.allclose(value, loss, rtol=1e-4), "both must compute the same"
    assert torch.allclose(
        velocity, -mu.n * gradient, atol=1e-4 * float(velocity.abs().max())
    )
    free = of.meanfield.networks.Residual("relu", layers=L, times="free")
    trained = of.meanfield.Risk(free, X, y)
    ours, autograd, with_times = interleaved(
        lambda: risk.value_and_velocity(mu),
        lambda: plain(mu.points, X, y),
        lambda: trained.value_and_velocity(mu),
    )
    memory = megabytes("risk.value_and_velocity(mu)")
    theirs = megabytes("plain(mu.points, X, y)")
    label = f"Residual velocity, {L} layers of {M}, n = {n}, d = {D}:"
    return [
        at_most(f"{label} time / autograd", ours / autograd, 1.3),
        at_most(f"{label} memory / autograd", memory / theirs, 0.2),
        at_most(f"{label} free times / fixed", with_times / ours, 2.6),
    ]
