"""Cures of residual networks: shapes, layer times, norms, permutations."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.meanfield import Risk
from otflow.meanfield.networks import (
    Residual,
    compositional_norm,
    compositional_rademacher_bound,
    flatten,
    permute_layers,
)
from otflow.testing.clouds import normal
from tests.cures import Case, check_cures

X, Y = normal(9, 2, seed=1), normal(9, seed=2)
F64 = torch.float64
NETWORK = Residual("tanh", layers=4)
MU = NETWORK.from_blocks(normal(4, 2, 3), normal(4, 2, 4, seed=1))


def shifted(t):
    theta = MU.points.clone()
    theta[:, 0] += t
    return of.Particles(theta)


def at_layers():
    theta = shifted(0.5).points
    theta[:, 0] = NETWORK.layer_times(theta).repeat_interleave(2)
    return of.Particles(theta)


def embedded(A, mu):
    return Residual("tanh", layers=4, embedding=A)(mu, X.to(mu.dtype))


def large(size):
    theta = size * MU.points
    theta[:, 0] = MU.points[:, 0]
    return of.Particles(theta)


class Twice(Residual):
    def respond(self, inputs, mu):
        return 2 * super().respond(inputs, mu)


def noisy(network, mobility=None):
    F = Risk(network, X, Y) + 0.5 * of.Entropy()
    scheme: of.schemes.Scheme = of.Langevin()
    if mobility is not None:
        scheme = of.schemes.Mobility(scheme, mobility)
    return of.flow(F, MU, scheme, dt=0.5, steps=3, generator=0)


CASES: dict[str, Case] = {
    "fixed times outside of the interval": (
        ValueError,
        r"lie in \[0, 1\], got 1\.125 at atom 4.*layer_times\(\).*times='free'",
        lambda: NETWORK(shifted(0.5), X),
        [
            lambda: NETWORK(at_layers(), X),
            lambda: Residual("tanh", layers=4, times="free")(shifted(0.5), X),
        ],
    ),
    "noise on fixed times": (
        ValueError,
        r"network\.mobility\(inputs, time=0\.0\)\) under noise",
        lambda: noisy(NETWORK),
        [
            lambda: noisy(NETWORK, NETWORK.mobility(2, time=0.0)),
            lambda: noisy(Residual("tanh", layers=4, times="free")),
        ],
    ),
    "particles of another dimension": (
        ValueError,
        r"1 \+ 2 D \+ 1 = 8 numbers.* D = 3 and .* d = 2; .* have dimension 4",
        lambda: NETWORK(of.Particles(normal(5, 4)), X),
        [lambda: NETWORK(of.Particles(torch.rand(5, 8).double()), X)],
    ),
    "blocks of another shape": (
        ValueError,
        r"outer must have the shape \(4, M, D\) and inner \(4, M, D \+ 1\)",
        lambda: NETWORK.from_blocks(normal(4, 2, 3), normal(4, 2, 3)),
        [lambda: NETWORK.from_blocks(normal(4, 2, 3), normal(4, 2, 4))],
    ),
    "an embedding of other inputs": (
        ValueError,
        r"takes inputs of dimension 3, got 2; give a matrix of shape \(D, 2\)",
        lambda: Residual("tanh", embedding=normal(5, 3)).dim(2),
        [lambda: Residual("tanh", embedding=normal(5, 2)).dim(2)],
    ),
    "more outputs than coordinates": (
        ValueError,
        r"give an embedding with more rows, or a readout",
        lambda: Residual("tanh", outputs=3, embedding=normal(2, 2)).dim(2),
        [
            lambda: Residual("tanh", outputs=3, embedding=normal(3, 2)).dim(2),
            lambda: Residual(
                "tanh", outputs=3, embedding=normal(2, 2), readout=normal(3, 2)
            ).dim(2),
        ],
    ),
    "a readout of other outputs": (
        ValueError,
        r"one row for each output, 1, got 3; give outputs=3",
        lambda: Residual("tanh", readout=normal(3, 4)),
        [lambda: Residual("tanh", outputs=3, readout=normal(3, 4))],
    ),
    "a readout of other states": (
        ValueError,
        r"readout must have shape \(1, 3\) for states of dimension 3, got \(1, 4\)",
        lambda: Residual("tanh", readout=normal(4)).dim(2),
        [lambda: Residual("tanh", readout=normal(3)).dim(2)],
    ),
    "a matrix that is none": (
        ValueError,
        r"embedding must be a matrix, got shape \(3,\); torch\.eye\(D, d\) is one",
        lambda: Residual("tanh", embedding=normal(3)),
        [lambda: Residual("tanh", embedding=torch.eye(3, 1))],
    ),
    "a matrix with a hole": (
        ValueError,
        r"embedding must be finite, got nan at index \(0, 0\)",
        lambda: Residual("tanh", embedding=normal(3, 1).fill_(torch.nan)),
        [
            lambda: Residual(
                "tanh", embedding=normal(3, 1).fill_(torch.nan).nan_to_num()
            )
        ],
    ),
    "a matrix of another dtype": (
        TypeError,
        r"the embedding has torch\.float32; .*convert one with \.to\(torch\.float32\)",
        lambda: embedded(normal(3, 2).float(), MU),
        [
            lambda: embedded(normal(3, 2).float(), MU.to(torch.float32)),
            lambda: embedded(normal(3, 2).float().to(F64), MU),
        ],
    ),
    "an order that is no permutation": (
        ValueError,
        r"each of the integers 0, \.\.\., 3 once.*torch\.randperm\(4\)\.tolist\(\)",
        lambda: permute_layers(NETWORK, MU, [0, 1, 2, 2]),
        [
            lambda: permute_layers(NETWORK, MU, torch.randperm(4).tolist()),
            lambda: permute_layers(NETWORK, MU, [3, 2, 1, 0]),
        ],
    ),
    "the norm of an activation that grows from 0": (
        of.errors.Unsupported,
        r"use Residual\('relu'\) or Residual\('tanh'\)",
        lambda: compositional_norm(Residual("sigmoid", layers=4), MU, 2),
        [
            lambda: compositional_norm(Residual("relu", layers=4), MU, 2),
            lambda: compositional_norm(Residual("tanh", layers=4), MU, 2),
        ],
    ),
    "a power below one": (
        ValueError,
        r"p must be at least 1, got 0\.5",
        lambda: compositional_norm(NETWORK, MU, 2, p=0.5),
        [lambda: compositional_norm(NETWORK, MU, 2, p=1.0)],
    ),
    "the complexity of smooth networks": (
        of.errors.Unsupported,
        r"proved for Residual\('relu'\) with solver='euler'",
        lambda: compositional_rademacher_bound(NETWORK, MU, 2, 100),
        [
            lambda: compositional_rademacher_bound(
                Residual("relu", layers=4), MU, 2, 100
            )
        ],
    ),
    "a norm of a subclass": (
        of.errors.Unsupported,
        r"Twice\.respond changes the outputs.*the activation, Residual\(activation\)",
        lambda: compositional_norm(Twice("relu", layers=4), MU, 2),
        [lambda: compositional_norm(Residual("relu", layers=4), MU, 2)],
    ),
    "two layers of a subclass": (
        of.errors.Unsupported,
        r"Twice\.respond changes the outputs.*the activation, Residual\(activation\)",
        lambda: flatten(Twice("tanh", layers=4), MU, 2),
        [lambda: flatten(Residual(lambda z: 2 * z.tanh(), layers=4), MU, 2)],
    ),
    "the norm of another network": (
        TypeError,
        r"network must be a Residual, got TwoLayer.*Residual\('relu'\) is one",
        lambda: compositional_norm(of.meanfield.TwoLayer("relu"), MU, 2),
        [lambda: compositional_norm(Residual("relu"), MU, 2)],
    ),
    "a norm that overflows": (
        of.errors.NonFinite,
        r"too large for torch\.float64.*give particles of smaller weights",
        lambda: compositional_norm(Residual("relu", layers=4), large(1e140), 2),
        [lambda: compositional_norm(Residual("relu", layers=4), large(1e20), 2)],
    ),
    "an order of one number": (
        TypeError,
        r"a sequence of integers, got 3; torch\.randperm\(4\)\.tolist\(\) is one",
        lambda: permute_layers(NETWORK, MU, 3),
        [lambda: permute_layers(NETWORK, MU, torch.randperm(4).tolist())],
    ),
    "an order of truth values": (
        ValueError,
        r"each of the integers 0, \.\.\., 1 once, got \[True, False\]; .* is one",
        lambda: permute_layers(Residual("tanh", layers=2), MU, [True, False]),
        [lambda: permute_layers(Residual("tanh", layers=2), MU, [1, 0])],
    ),
    "an unknown word for times": (
        ValueError,
        r"'fixed'.*'free'",
        lambda: Residual("tanh", times="learnt"),
        [lambda: Residual("tanh", times="free")],
    ),
    "an unknown solver": (
        ValueError,
        r"'euler'.*'rk4'",
        lambda: Residual("tanh", solver="heun"),
        [lambda: Residual("tanh", solver="rk4")],
    ),
    "a residual network in place of a two-layer one": (
        of.errors.Unsupported,
        r"use F\.value and F\.velocity",
        lambda: Risk(NETWORK, X, Y).decompose(),
        [
            lambda: Risk(NETWORK, X, Y).value(MU),
            lambda: Risk(NETWORK, X, Y).velocity(MU),
        ],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_cure_that_an_error_names_works(case):
    check_cures(case)
