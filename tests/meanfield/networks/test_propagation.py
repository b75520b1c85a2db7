"""The limit of wide networks of three hidden layers: chaos, layers, global minimum."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.meanfield.networks import MultiLayer

pytestmark = pytest.mark.slow

F64 = torch.float64
X = torch.linspace(-2, 2, 12, dtype=F64)[:, None]
Y = X[:, 0].sin()
WIDTHS, RUNS = (20, 40, 80, 160), (200, 200, 100, 50)


def trained(N, seed, steps=40, dt=0.2):
    """Return a network, its measure at the start, and its flow.

    Independent weights of non-zero means: with the mean 0 the limit is trivial.
    """
    network = MultiLayer((N, N, N), "tanh", bias=False)
    mu = network.draw(
        1,
        torch.Generator().manual_seed(seed),
        inner=(0.0, 4.0),
        middle=(1.0, 1.0),
        outer=(2.0, 1.0),
        dtype=F64,
    )
    F = of.meanfield.Risk(network, X, Y)
    run = of.flow(F, mu, of.ExplicitEuler(), dt=dt, steps=steps, every=steps)
    return network, mu, run


@pytest.fixture(scope="module")
def nets():
    """Trained networks of each width, at a time when the risk is not yet near 0."""
    return {
        N: [trained(N, 1000 * N + k) for k in range(runs)]
        for N, runs in zip(WIDTHS, RUNS, strict=True)
    }


def test_chaos_propagates_through_several_layers(nets):
    """Outputs of independent runs differ by N^-1/2: the limit is deterministic.

    The fluctuations shrink with the risk, and networks of 10 units are no limit yet.
    """
    spread = {
        N: float(torch.stack([net(r.final, X) for net, _, r in found]).std(0).mean())
        for N, found in nets.items()
    }
    ratio = spread[40] / spread[160]
    slope = of.analysis.observed_order(list(spread), list(spread.values()))
    # Theory: 2 and -1/2. The standard error of the ratio is 11 %, from 50 runs.
    assert 1.5 < ratio < 3
    assert abs(slope + 0.5) < 0.12


def correlation(pairs):
    """Return the correlation of two numbers over runs."""
    return float(torch.corrcoef(torch.tensor(pairs, dtype=F64).T)[0, 1])


def test_layers_stay_independent(nets):
    """What training adds to single weights of two middle layers, over runs.

    The weights themselves are independent at the start, which would hide what training
    adds. The means of rows are correlated, at the order N^-1/2: they are not tested.
    The controls are the pairs that share a factor of the law, the two layers at either
    end, which do depend on each other.
    """
    first, last, entering, leaving = [], [], [], []
    for _, start, run in nets[40]:
        moves = start.views(start.displacement_to(run.final))
        first.append(moves[start.index("middle1")])
        last.append(moves[start.index("middle2")])
        entering.append(start["inner"].points[:, 0].sign())
        leaving.append(start["outer"].points[:, 0])
    runs = range(len(first))
    error = 1 / math.sqrt(len(first))
    # Units i, j, k of the three layers, each used once.
    paths = [(0, 1, 0), (2, 3, 2), (4, 5, 4), (6, 7, 6), (8, 9, 8), (10, 11, 10)]
    across = [
        correlation([(first[r][j, i], last[r][k, j]) for r in runs])
        for i, j, k in paths
    ]
    left, right = (
        sum(correlation(pairs) for pairs in each) / len(paths)
        for each in (
            [[(first[r][j, i], entering[r][i]) for r in runs] for i, j, _ in paths],
            [[(last[r][k, j], leaving[r][k]) for r in runs] for _, j, k in paths],
        )
    )
    largest = max(map(abs, across))
    mean = sum(across) / len(paths)
    assert largest < 3 * error
    assert abs(mean) < 3 * error / math.sqrt(len(paths))
    assert min(left, right) > 3 * error


def test_three_layers_reach_a_global_minimum(nets):
    """Theorem 4.1: from 0.28 the risk falls below 1e-2, and on with time."""
    energies = torch.stack([run.records["energy"] for *_, run in nets[160]])
    start, end = energies.mean(0).tolist()
    later = float(trained(40, 0, steps=3000, dt=0.4)[2].records["energy"][-1])
    assert start > 0.28
    assert end < 1e-2
    assert later < 1e-3
