"""Convolutional neurons as a layer of one's own: outputs do not see where a picture is.

A neuron slides a filter over the picture, the edges glued: sigma(x; a, w, b) = a times
the mean over places p of relu(w . patch_p(x) + b).
"""

import pytest
import torch
from torch.nn import functional

import otflow as of
from otflow.meanfield import CustomLayer, Risk

SIDE, K = 6, 3


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def patches(x):
    """Return all patches of K x K pixels of a glued picture, (n, places, K^2)."""
    picture, r = x.reshape(-1, 1, SIDE, SIDE), K // 2
    glued = functional.pad(picture, (r, r, r, r), mode="circular")
    return functional.unfold(glued, K).transpose(1, 2)


def convolution(x, theta):
    a, w, b = theta[:, :1], theta[:, 1:-1], theta[:, -1]
    return a[:, 0] * (patches(x) @ w.T + b).relu().mean(1)


X, MU = normal(12, SIDE * SIDE), of.Particles(normal(7, 1 + K * K + 1, seed=1))


def test_the_output_is_that_of_a_convolution_of_pytorch():
    a, w, b = MU.points[:, 0], MU.points[:, 1:-1], MU.points[:, -1]
    glued = functional.pad(X.reshape(-1, 1, SIDE, SIDE), (1, 1, 1, 1), mode="circular")
    maps = functional.conv2d(glued, w.reshape(7, 1, K, K), b).relu()
    expected = maps.mean((2, 3)) @ a / 7
    torch.testing.assert_close(CustomLayer(convolution)(MU, X), expected)


@pytest.mark.parametrize("shift", [(1, 0), (0, 2), (3, 5)])
def test_outputs_and_velocity_do_not_change_with_a_shift_of_the_pictures(shift):
    y = normal(12, seed=2)
    moved = X.reshape(-1, SIDE, SIDE).roll(shift, (1, 2)).flatten(1)
    network, dense = CustomLayer(convolution), of.meanfield.TwoLayer("relu")
    torch.testing.assert_close(network(MU, moved), network(MU, X), atol=1e-14, rtol=0)
    here, there = (Risk(network, x, y).velocity(MU) for x in (X, moved))
    torch.testing.assert_close(here, there, atol=1e-14, rtol=0)
    wide = of.Particles(normal(7, 1 + SIDE * SIDE + 1, seed=3))
    assert (dense(wide, moved) - dense(wide, X)).abs().max() > 0.1


def test_what_holds_of_networks_holds_of_convolutional_ones():
    """The risk is convex along mixtures, and a flow dissipates it."""
    F = Risk(CustomLayer(convolution), X, normal(12, seed=2))
    nu = of.Particles(normal(5, 1 + K * K + 1, seed=4))
    assert F.mixture_convex
    assert of.analysis.landscape(F, MU, nu).barrier("mixture") == 0.0
    run = of.flow(F, MU, of.ExplicitEuler(), dt=1e-2, steps=20)
    assert bool((run.records["energy"].diff() < 0).all())
    h, v = 1e-5, F.velocity(MU)
    slope = (F(MU.push(v, h)) - F(MU.push(v, -h))) / (2 * h)
    torch.testing.assert_close(-slope, MU.inner(v, v), rtol=1e-7, atol=0)
