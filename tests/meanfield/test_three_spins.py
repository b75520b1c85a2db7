"""Fluctuations of trained networks: a cubic form on the sphere, learnt by n neurons.

The set-up of Rotskoff and Vanden-Eijnden, the 3-spin function, with sigmoid neurons.
"""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of

F64 = torch.float64


def minimised(F, theta):
    """Return neurons that minimise F, by a quasi-Newton method."""
    theta = theta.clone().requires_grad_()
    solver = torch.optim.LBFGS(
        [theta],
        max_iter=1500,
        history_size=30,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-12,
        tolerance_change=1e-14,
    )

    def closure():
        solver.zero_grad()
        loss = F(of.Particles(theta))
        loss.backward()
        return loss

    solver.step(closure)
    return of.Particles(theta.detach())


@pytest.mark.slow
def test_the_error_of_n_neurons_is_of_order_one_over_n_before_and_after_training():
    d, g = 5, torch.Generator().manual_seed(0)
    spins = torch.randn(d, d, d, dtype=F64, generator=g)
    X = torch.randn(1500, d, dtype=F64, generator=g)
    X = math.sqrt(d) * X / X.norm(dim=1, keepdim=True)
    y = torch.einsum("pqr,np,nq,nr->n", spins, X, X, X)
    y = y / y.std()
    network, wide = of.meanfield.TwoLayer("sigmoid"), 1500
    start = torch.randn(wide, d + 2, dtype=F64, generator=g)
    start[:, 0] *= 10
    mean_field = minimised(of.meanfield.Risk(network, X, y), start)
    assert float(of.meanfield.Risk(network, X, y)(mean_field)) < 1e-9
    F = of.meanfield.Risk(network, X, network(mean_field, X))
    sizes, descent = (16, 32, 64, 128, 256), of.ExplicitEuler(backtracking=True)
    drawn, trained = [], []
    for n in sizes:
        before, after = [], []
        for seed in range(40):
            g = torch.Generator().manual_seed(seed)
            rows = torch.randint(wide, (n,), generator=g)
            mu = of.Particles(mean_field.points[rows])
            before.append(float(F(mu)))
            if seed < 8:
                run = of.flow(F, mu, descent, dt=2.0, steps=150, every=150)
                after.append(float(run.records["energy"][-1]))
        drawn.append(sum(before) / len(before))
        trained.append(sum(after) / len(after))
    orders = [of.analysis.observed_order(sizes, losses) for losses in (drawn, trained)]
    assert abs(orders[0] + 1) < 0.15
    # Training lowers the error by a factor, and keeps the order.
    assert abs(orders[1] + 1) < 0.15
    assert all(a < b / 20 for a, b in zip(trained, drawn, strict=True))
