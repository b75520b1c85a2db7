"""The numbers in messages about radii are cures as they are printed."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import otflow as of
from otflow.meanfield import PathBall, Risk, TwoLayer, VariationBall

F64 = torch.float64
CORNERS = 6 * torch.ones(2, dtype=F64)
BALLS: dict[str, tuple[TwoLayer, Callable[[float], Any], str]] = {
    "path": (TwoLayer("relu"), PathBall, r"take PathBall\(([-+.e0-9]+)\)"),
    "variation": (
        TwoLayer("tanh"),
        lambda radius: VariationBall(radius, -CORNERS, CORNERS),
        r"take a radius of ([-+.e0-9]+),",
    ),
}


@pytest.mark.parametrize("kind", [torch.float32, F64])
@pytest.mark.parametrize("name", BALLS)
def test_a_printed_radius_or_divisor_suffices(name, kind):
    network, ball, told = BALLS[name]
    X = torch.linspace(-1, 1, 5, dtype=kind)[:, None]
    risk = Risk(network, X, X[:, 0].sin())

    def gap(points, radius):
        mu = of.Particles(points)
        return of.optimality.optimality_gap(risk, mu, ball(radius))

    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        points = torch.randn(4, 3, generator=generator, dtype=F64).to(kind)
        with pytest.raises(ValueError, match="divide the outer weights") as caught:
            gap(points, 0.1)
        text = str(caught.value)
        radius = re.search(told, text)
        divisor = re.search(r"divide the outer weights by ([-+.e0-9]+)", text)
        assert radius is not None
        assert divisor is not None
        assert gap(points, float(radius[1])).kind == "proved"
        points[:, 0] /= float(divisor[1])
        assert gap(points, 0.1).kind == "proved"
