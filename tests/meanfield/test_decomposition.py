"""The square risk is a constant, a potential and an interaction.

`docs/survey.rst` lists where the formulas differ from :cite:t:`yang2020meanfield`.
"""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.meanfield.network import Network
from otflow.testing import clouds
from otflow.testing.clouds import normal

Risk, TwoLayer = of.meanfield.Risk, of.meanfield.TwoLayer

NETWORKS: dict[str, tuple[Network, int | None]] = {
    "scalar": (TwoLayer("relu"), None),
    "vector": (TwoLayer("tanh", outputs=2, offset=[0.5, -1.0]), 2),
    "offset": (TwoLayer("erf", bias=False, offset=0.7), None),
    "custom": (of.meanfield.CustomLayer(lambda x, t: (x @ t[:, :2].T).sin()), None),
}


@pytest.fixture(params=NETWORKS)
def case(request):
    network, outputs = NETWORKS[request.param]
    X, y = normal(64, 2, seed=3), normal(64, *([outputs] if outputs else []), seed=4)
    p = (outputs or 1) + 2 + network.bias if isinstance(network, TwoLayer) else 2
    return Risk(network, X, y), p


def test_the_parts_sum_to_the_risk(case):
    F, p = case
    parts = F.decompose()
    for mu in (clouds.weighted(12, p), clouds.uniform(9, p), clouds.degenerate(p)):
        total = parts.constant + parts.potential.value(mu) + parts.interaction.value(mu)
        torch.testing.assert_close(total, F.value(mu), rtol=1e-12, atol=0)
        assert float(total) > 0


def test_the_parts_are_those_of_the_formulas(case):
    F, p = case
    parts, theta, other = F.decompose(), normal(5, p), normal(4, p, seed=1)
    network, n = F.network, len(F.X)
    residual = F.y - (0 if network.offset is None else torch.tensor(network.offset))
    sigma, sigma2 = (network.features(t, F.X) for t in (theta, other))
    if network.outputs is None:
        sigma, sigma2, residual = sigma[..., None], sigma2[..., None], residual[:, None]
    close = torch.testing.assert_close
    close(parts.constant, 0.5 * residual.square().sum() / n)
    close(parts.potential.V(theta), -torch.einsum("km,kim->i", residual, sigma) / n)
    close(parts.kernel(theta, other), torch.einsum("kim,kjm->ij", sigma, sigma2) / n)
    # A ground function is batched over any leading axes.
    stacked = parts.potential.V(torch.stack([theta, 2 * theta]))
    close(
        stacked, torch.stack([parts.potential.V(theta), parts.potential.V(2 * theta)])
    )


def test_the_interaction_is_half_the_double_integral_of_the_kernel(case):
    F, p = case
    parts, mu = F.decompose(), clouds.weighted(12, p)
    K = parts.kernel(mu.points, mu.points)
    expected = 0.5 * (mu.weights @ K @ mu.weights)
    torch.testing.assert_close(
        parts.interaction.value(mu), expected, rtol=1e-12, atol=0
    )
    assert float(torch.linalg.eigvalsh(K).min()) > -1e-12


def test_the_parts_move_neurons_as_the_risk_does(case):
    F, p = case
    parts, mu = F.decompose(), clouds.weighted(12, p)
    velocity = (parts.potential + parts.interaction).velocity(mu)
    torch.testing.assert_close(velocity, F.velocity(mu), rtol=1e-11, atol=1e-13)
    # F' = E + K mu: the potential once, the interaction without its 1/2.
    expected = (
        parts.potential.V(mu.points) + parts.kernel(mu.points, mu.points) @ mu.weights
    )
    torch.testing.assert_close(F.first_variation(mu), expected, rtol=1e-11, atol=1e-13)


def test_other_losses_and_scalings_are_refused():
    X, y = normal(6, 2), normal(6, seed=1).sign()
    with pytest.raises(
        of.errors.Unsupported, match=r"loss 'logistic' .*; use loss='square'"
    ):
        Risk(TwoLayer("tanh"), X, y, loss="logistic").decompose()
    with pytest.raises(
        of.errors.Unsupported, match=r"'ntk' .*; use scaling='mean-field'"
    ):
        Risk(TwoLayer("tanh", scaling="ntk"), X, y).decompose()
