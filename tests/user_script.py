"""A user's script: what a type checker must know of it without a cast."""

from __future__ import annotations

import json
from typing import Any

import torch

import otflow as of
from otflow.proximal import Certificate, Guarantee
from otflow.schemes import Scheme, Step


class Midpoint(Scheme):
    """A scheme of the user's own."""

    order = 2

    def step(
        self,
        F: of.Functional,
        mu: of.measures.Measure,
        dt: float,
        state: Any,
        generator: torch.Generator,
    ) -> Step[Any]:
        """Push along the velocity of half a step."""
        energy, velocity = F.value_and_velocity(mu)
        middle = mu.push(velocity, dt / 2)
        moved = mu.push(F.velocity(middle), dt)
        return Step(moved, state, {"dt": dt}, energy)


def small(step: Step[of.Particles]) -> bool:
    """Stop where the points are close to the origin."""
    return float(step.measure.points.abs().max()) < 1e-3


def main() -> None:
    """Flow particles and a Gaussian, and read what is known of the steps."""
    F = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
    mu = of.Particles(torch.tensor([[8.0], [4.0]], dtype=torch.float64))
    run = of.flow(F, mu, of.JKO(), dt=1.0, steps=2, stop=small)
    distance: torch.Tensor = of.metrics.wasserstein2(mu, run.final)
    points: torch.Tensor = run.final.points
    uniform: bool = run.snapshots[0].is_uniform
    info: Certificate = run.info[0]
    w2: float | None = info.w2
    guarantee: Guarantee | None = info.guarantee
    certified: bool = info.certified
    assert uniform
    assert certified
    assert guarantee is Guarantee.EXACT
    assert w2 is not None
    assert info["w2"] == w2
    assert json.loads(json.dumps(info.to_dict()))["w2"] == w2
    assert float(distance) > w2
    assert points.shape == (2, 1)
    law = of.Gaussian(torch.zeros(1), torch.eye(1))
    mean: torch.Tensor = of.flow(F, law, Midpoint(), dt=0.1, steps=2).final.mean
    assert float(mean.abs()) < 1e-3
    near: of.Gaussian = of.proximal.TangentProximal().solve(F, law, 0.1).measure
    length: torch.Tensor = of.metrics.length([law, near, law])
    assert float(length) > 0
    offset = torch.tensor([1.0, -2.0])
    network = of.meanfield.TwoLayer("tanh", outputs=2, offset=offset)
    assert network.offset == (1.0, -2.0)
    error: torch.Tensor = run.time_error()
    assert len(error) == len(run.times)


if __name__ == "__main__":
    main()
