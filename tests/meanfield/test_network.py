"""The outputs of a network: formula, scalings, shapes, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import otflow as of
from otflow.meanfield import network as network_module
from otflow.testing.clouds import assert_untouched, degenerate, normal, state
from otflow.testing.differences import derivative

TwoLayer = of.meanfield.TwoLayer
SCALINGS = ["mean-field", "ntk", "sum"]


def test_a_scalar_network_is_its_formula():
    mu, X = (
        of.Particles(normal(6, 4), normal(6, seed=1).exp(), normalize=True),
        normal(3, 2),
    )
    expected = [
        sum(
            float(w * t[0]) * math.tanh(float(t[1:3] @ x + t[3]))
            for w, t in zip(mu.weights, mu.points, strict=True)
        )
        for x in X
    ]
    found = TwoLayer("tanh")(mu, X)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_a_vector_network_has_one_outer_weight_per_output():
    m, d = 3, 2
    mu, X = of.Particles(normal(6, m + d + 1)), normal(5, d)
    found = TwoLayer("relu", outputs=m)(mu, X)
    assert found.shape == (5, m)
    inner = mu.points[:, m:]
    for k in range(m):
        one = of.Particles(torch.cat([mu.points[:, k : k + 1], inner], 1))
        torch.testing.assert_close(found[:, k], TwoLayer("relu")(one, X))


def test_one_output_may_have_its_axis():
    mu, X = of.Particles(normal(6, 4)), normal(5, 2)
    found = TwoLayer("erf", outputs=1)(mu, X)
    assert found.shape == (5, 1)
    torch.testing.assert_close(found[:, 0], TwoLayer("erf")(mu, X))


def test_without_bias_a_neuron_is_shorter():
    mu, X = of.Particles(normal(6, 3)), normal(5, 2)
    padded = of.Particles(torch.cat([mu.points, torch.zeros(6, 1).double()], 1))
    torch.testing.assert_close(
        TwoLayer("tanh", bias=False)(mu, X), TwoLayer("tanh")(padded, X)
    )


# The scalings (1), (2) and (3) of :cite:t:`yang2020meanfield`


@pytest.mark.parametrize("outputs", [None, 2])
def test_the_three_scalings_differ_by_factors_of_root_n(outputs):
    N = 50
    mu, X = of.Particles(normal(N, (outputs or 1) + 3)), normal(9, 2)
    mean, ntk, total = (
        TwoLayer("tanh", outputs=outputs, scaling=scaling)(mu, X)
        for scaling in SCALINGS
    )
    torch.testing.assert_close(total, N**0.5 * ntk, rtol=1e-12, atol=0)
    torch.testing.assert_close(total, N * mean, rtol=1e-12, atol=0)
    plain = TwoLayer("tanh", outputs=outputs).features(mu.points, X).sum(1)
    torch.testing.assert_close(total, plain, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_atoms_without_mass_change_nothing(scaling):
    X = normal(4, 1)
    mu = degenerate(3)
    kept = mu.weights > 0
    assert int(kept.sum()) == 5
    fewer = of.Particles(mu.points[kept], mu.weights[kept], normalize=True)
    network = TwoLayer("tanh", scaling=scaling)
    torch.testing.assert_close(network(mu, X), network(fewer, X))


def test_the_offset_is_added_whatever_the_scaling():
    mu, X = of.Particles(normal(6, 4)), normal(5, 2)
    for scaling in SCALINGS:
        base = TwoLayer("tanh", scaling=scaling)(mu, X)
        moved = TwoLayer("tanh", scaling=scaling, offset=0.7)(mu, X)
        torch.testing.assert_close(moved, base + 0.7)
    mu = of.Particles(normal(6, 5))
    base = TwoLayer("tanh", outputs=2)(mu, X)
    for offset in ([1.0, -2.0], np.array([1.0, -2.0]), torch.tensor([1.0, -2.0])):
        network = TwoLayer("tanh", outputs=2, offset=offset)
        assert network.offset == (1.0, -2.0)
        torch.testing.assert_close(network(mu, X), base + torch.tensor([1.0, -2.0]))


# Neurons of one's own


def bump(x, theta):
    return theta[:, 0] * torch.exp(-(x[:, None] - theta[:, 1:]).square().sum(-1) / 2)


def test_a_custom_layer_is_its_formula():
    mu, X = (
        of.Particles(normal(6, 3), normal(6, seed=1).exp(), normalize=True),
        normal(5, 2),
    )
    network = of.meanfield.CustomLayer(bump)
    torch.testing.assert_close(network(mu, X), bump(X, mu.points) @ mu.weights)
    torch.testing.assert_close(network.features(mu.points, X), bump(X, mu.points))


def test_a_custom_layer_may_have_several_outputs():
    mu, X = of.Particles(normal(6, 3)), normal(5, 2)
    network = of.meanfield.CustomLayer(
        lambda x, theta: torch.stack([bump(x, theta), 2 * bump(x, theta)], -1),
        outputs=2,
    )
    found = network(mu, X)
    assert found.shape == (5, 2)
    torch.testing.assert_close(found[:, 1], 2 * found[:, 0])
    torch.testing.assert_close(found[:, 0], of.meanfield.CustomLayer(bump)(mu, X))


def test_a_custom_layer_and_a_two_layer_network_agree():
    def sigma(x, theta):
        return theta[:, 0] * torch.tanh(x @ theta[:, 1:3].T + theta[:, 3])

    mu, X = of.Particles(normal(6, 4)), normal(5, 2)
    for scaling in SCALINGS:
        torch.testing.assert_close(
            of.meanfield.CustomLayer(sigma, scaling=scaling, offset=1.0)(mu, X),
            TwoLayer("tanh", scaling=scaling, offset=1.0)(mu, X),
        )


@pytest.mark.parametrize(
    ("sigma", "message"),
    [
        (
            lambda _, t: t[:, 0],
            r"^sigma must map inputs \(5, 2\) and neurons \(6, 3\) to",
        ),
        (
            lambda *_: 1.0,
            r"^sigma must return a torch.Tensor, got float; compute it with torch",
        ),
        (lambda x, t: (x @ t[:, 1:].T).float(), r"^sigma returned torch.float32 for"),
    ],
)
def test_a_custom_layer_that_returns_something_else_is_refused(sigma, message):
    with pytest.raises(of.errors.InvalidFunctional, match=message):
        of.meanfield.CustomLayer(sigma)(of.Particles(normal(6, 3)), normal(5, 2))


# How it is computed


@pytest.mark.parametrize("outputs", [None, 3])
def test_blocks_of_rows_do_not_change_the_outputs(monkeypatch, outputs):
    mu, X = of.Particles(normal(6, (outputs or 1) + 3)), normal(150, 2)
    network = TwoLayer("sigmoid", outputs=outputs)
    whole = network(mu, X)
    monkeypatch.setattr(network_module, "CPU_BLOCK_BYTES", 1)
    assert network_module.block_rows(6, X) == 64
    torch.testing.assert_close(network(mu, X), whole, rtol=1e-13, atol=1e-14)


def test_outputs_are_twice_differentiable_in_the_neurons():
    X, network = normal(4, 1), TwoLayer("tanh")
    mu = of.Particles(normal(3, 3))

    def outputs(points):
        return network(mu.with_free_atoms(points), X)

    points = mu.points.clone().requires_grad_()
    assert torch.autograd.gradcheck(outputs, points)
    assert torch.autograd.gradgradcheck(outputs, points)


def test_arrays_and_views_are_welcome_and_nothing_is_written():
    mu, X = of.Particles(normal(6, 4)), normal(5, 2)
    network, before, copy = TwoLayer("tanh"), state(mu), X.clone()
    expected = network(mu, X)
    assert torch.equal(network(mu, X.numpy()), expected)
    wide = torch.zeros(5, 4, dtype=torch.float64)
    wide[:, ::2] = X
    assert torch.equal(network(mu, wide[:, ::2]), expected)
    live = X.clone().requires_grad_()
    found = network(mu, live)
    assert torch.equal(found.detach(), expected)
    (slope,) = torch.autograd.grad(found.sum(), live)  # outputs are a function of X too
    rows = derivative(lambda t: network(mu, X + t).sum())
    torch.testing.assert_close(slope.sum(), rows, rtol=1e-9, atol=1e-11)
    assert_untouched(mu, before)
    assert torch.equal(X, copy)


def test_float32_stays_float32():
    mu, X = of.Particles(normal(6, 4).float()), normal(5, 2).float()
    found = TwoLayer("tanh", scaling="ntk", offset=0.1)(mu, X)
    assert found.dtype == torch.float32
    twin = of.Particles(mu.points.double())
    expected = TwoLayer("tanh", scaling="ntk", offset=0.1)(twin, X.double())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


# Refusals


@pytest.mark.parametrize(
    ("options", "p", "message"),
    [
        (
            {},
            3,
            r"\(a, w, b\) has p = m \+ d \+ 1 = 4 numbers, for m = 1 output and inputs",
        ),
        ({}, 3, r"of dimension d = 2; the particles have dimension 3$"),
        ({"bias": False}, 4, r"\(a, w\) has p = m \+ d = 3 numbers"),
        ({"outputs": 3}, 4, r"has p = m \+ d \+ 1 = 6 numbers, for m = 3 outputs"),
    ],
)
def test_particles_of_a_wrong_dimension_are_refused(options, p, message):
    network, X = TwoLayer("tanh", **options), normal(5, 2)
    with pytest.raises(ValueError, match=message):
        network(of.Particles(normal(6, p)), X)
    with pytest.raises(ValueError, match=message):
        network.features(normal(6, p), X)


def test_mixed_dtypes_are_refused():
    mu, X = of.Particles(normal(6, 4)), normal(5, 2).float()
    with pytest.raises(
        TypeError, match=r"^X has dtype torch.float32 but the measure has"
    ):
        TwoLayer("tanh")(mu, X)
    with pytest.raises(TypeError, match=r"^X has dtype torch.float32 but theta has"):
        TwoLayer("tanh").features(mu.points, X)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"scaling": "meanfield"}, ValueError, "did you mean 'mean-field'"),
        ({"scaling": None}, TypeError, "^scaling must be one of"),
        ({"outputs": 0}, ValueError, "^outputs must be at least 1, got 0"),
        ({"outputs": 2.0}, TypeError, "^outputs must be an integer, got float"),
        ({"outputs": True}, TypeError, "^outputs must be an integer, got bool"),
        ({"bias": 1}, TypeError, "^bias must be True or False, got 1"),
        ({"offset": float("nan")}, ValueError, "^offset must be finite"),
        ({"offset": [1.0]}, TypeError, "^offset must be one number .* outputs=1"),
        ({"outputs": 2, "offset": 1.0}, ValueError, "^offset must hold 2 numbers"),
        ({"outputs": 2, "offset": [1.0]}, ValueError, r"one per output, got \[1.0\]"),
        ({"outputs": 2, "offset": "ab"}, TypeError, r"^offset\[0\] must be a real"),
    ],
)
def test_wrong_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        TwoLayer("tanh", **options)


def test_a_custom_layer_needs_a_function():
    with pytest.raises(
        TypeError, match=r"^sigma must be a function of \(x, theta\), got"
    ):
        of.meanfield.CustomLayer("tanh")


def test_reprs_name_what_differs_from_the_default():
    assert repr(TwoLayer("tanh")) == "TwoLayer('tanh')"
    assert (
        repr(TwoLayer(torch.relu, outputs=2, bias=False, scaling="ntk"))
        == "TwoLayer(relu, bias=False, outputs=2, scaling='ntk')"
    )
    assert repr(TwoLayer(torch.nn.GELU(), offset=1)) == "TwoLayer(GELU(), offset=1.0)"
    assert repr(of.meanfield.CustomLayer(bump)) == "CustomLayer(bump)"
