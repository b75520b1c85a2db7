"""The cost of the loop and of a JKO step, in units of what they are made of."""

from __future__ import annotations

import torch

import otflow as of
from benchmarks.timing import Row, at_most, interleaved

STEPS = 200


def euler_overhead() -> Row:
    """Time `flow` against a loop of the same tensor operations."""
    x0 = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    mu = of.Particles(x0)

    def potential(x: torch.Tensor) -> torch.Tensor:
        return 0.25 * (x.square() - 1).square().sum(-1)

    F = of.Potential(potential)

    def ours() -> torch.Tensor:
        run = of.flow(F, mu, of.ExplicitEuler(), dt=0.05, steps=STEPS, every=STEPS)
        return run.final.points

    def by_hand() -> torch.Tensor:
        x, w = x0, torch.full((100,), 0.01)
        for _ in range(STEPS):
            y = x.detach().requires_grad_()
            (g,) = torch.autograd.grad(w @ potential(y), y)
            x = x - 0.05 * g / w[:, None]
        return x

    assert torch.allclose(ours(), by_hand(), atol=1e-5), "both must compute the same"
    mine, hand = interleaved(ours, by_hand)
    label = "flow with ExplicitEuler, 100 particles: / hand-written loop"
    return at_most(label, mine / hand, 1.3)


def jko_step() -> Row:
    """Time a certified JKO step against 12 gradients and one assignment."""
    x = torch.randn(
        2000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    mu = of.Particles(x)
    F = of.Potential(
        lambda x: 0.25 * (x.square() - 1).square().sum(-1)
    ) + of.Interaction(of.kernels.Gaussian(0.5))
    solver = of.proximal.ParticleProximal()
    result = solver.solve(F, mu, 0.1)
    assert result.certificate["certified"], "an uncertified step does not count"
    end = result.measure.points
    step, gradient, match = interleaved(
        lambda: solver.solve(F, mu, 0.1),
        lambda: F.value_and_velocity(mu),
        lambda: of.metrics.assignment(x, end),
        repeats=7,
    )
    label = "JKO step, n = 2000, d = 2, certified: / (12 gradients + 1 assignment)"
    return at_most(label, step / (12 * gradient + match), 1.0)


def small_jko_step() -> list[Row]:
    """Count the gradients of a step of few particles, and time it in their units."""
    x = torch.randn(
        10, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    count = 0

    class Spring(of.Potential):
        def value_and_velocity(
            self, mu: of.Measure
        ) -> tuple[torch.Tensor, torch.Tensor]:
            nonlocal count
            count += 1
            return super().value_and_velocity(mu)

    F, mu, steps = Spring(lambda x: 0.5 * x.square().sum(-1)), of.Particles(x), 20

    def flow() -> torch.Tensor:
        run = of.flow(F, mu, of.JKO(), dt=0.1, steps=steps, every=steps)
        return run.final.points

    assert torch.allclose(flow(), x / 1.1**steps), "the step has a closed form"
    mean = count / steps
    step, gradient = interleaved(
        flow, lambda: [F.value_and_velocity(mu) for _ in range(steps)], repeats=40
    )
    label = "JKO step, n = 10, quadratic"
    return [
        at_most(f"{label}: evaluations of F with its gradient", mean, 10),
        at_most(f"{label}: time / that of a gradient", step / gradient, 10),
    ]


def run() -> list[Row]:
    """Return the ratios, and a count."""
    return [euler_overhead(), jko_step(), *small_jko_step()]
