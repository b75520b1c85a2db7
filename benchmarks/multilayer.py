"""Value and velocity of a network of several layers against plain PyTorch."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

import otflow as of
from benchmarks.timing import Row, at_most, interleaved
from otflow.meanfield.networks import MultiLayer

n, N, D = 2048, 512, 64
UNITS = {"relu": torch.relu, "tanh": torch.tanh}


def plain(
    name: str, tensors: list[Tensor], X: Tensor, y: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Return loss and gradients of the same network as a user of PyTorch writes it."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    inner, W, b, a = leaves
    unit = UNITS[name]
    h = unit(functional.linear(X, inner[:, :-1], inner[:, -1]))
    f = unit(functional.linear(h, W / N, b)) @ a[:, 0] / N
    loss = 0.5 * (f - y).square().mean()
    return loss.detach(), list(torch.autograd.grad(loss, leaves))


def problem(name: str) -> tuple[of.meanfield.Risk, of.measures.Parts, Tensor, Tensor]:
    """Return the risk, a network, the inputs and the targets."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(n, D, generator=generator)
    y = torch.randn(n, generator=generator)
    network = MultiLayer((N, N), name)
    return of.meanfield.Risk(network, X, y), network.draw(D, generator), X, y


def run() -> list[Row]:
    """Return the ratios, in one thread or those that are set."""
    rows = []
    for name in UNITS:
        risk, mu, X, y = problem(name)
        tensors = [part.coordinates for part in mu.parts]
        value, velocity = risk.value_and_velocity(mu)
        loss, gradients = plain(name, tensors, X, y)
        assert torch.allclose(value, loss, rtol=1e-4), "both must compute the same"
        rates = (N, N * N, N, N)
        expected = mu.joined(
            [-rate * g for rate, g in zip(rates, gradients, strict=True)]
        )
        assert torch.allclose(
            velocity, expected, atol=1e-4 * float(expected.abs().max())
        )
        ours, autograd = interleaved(
            partial(risk.value_and_velocity, mu), partial(plain, name, tensors, X, y)
        )
        label = f"MultiLayer velocity, {name}, widths ({N}, {N}), n = {n}, d = {D}:"
        rows.append(at_most(f"{label} / autograd", ours / autograd, 1.2))
    return rows
