"""What a notebook shows of a measure: small, safe, quick, and never an error."""

from __future__ import annotations

import re
import time
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch

import otflow as of
from otflow.testing.clouds import normal

F64 = torch.float64
SVG = "{http://www.w3.org/2000/svg}"


def bell(x):
    return torch.exp(-2 * (x - 0.3).square().sum(-1))


def grid(*shape, **options):
    return of.GridDensity.from_function(bell, -3.0, 3.0, shape, dtype=F64, **options)


def shown(thing):
    """Return the page of a thing and the parsed picture in it."""
    page = thing._repr_html_()
    assert "no picture" not in page, page
    return page, ET.fromstring(re.findall(r"<svg.*?</svg>", page, re.DOTALL)[0])


def circles(svg):
    return [
        tuple(float(c.attrib[k]) for k in ("cx", "cy", "r"))
        for c in svg.iter(f"{SVG}circle")
    ]


def corners(svg):
    """Return the points of each line."""
    return [
        np.array([pair.split(",") for pair in line.attrib["points"].split()], float)
        for line in svg.iter(f"{SVG}polyline")
    ]


def size(svg):
    return float(svg.attrib["width"]), float(svg.attrib["height"])


KINDS = {
    "cloud": lambda: of.Particles(normal(30, 2)),
    "cloud on the line": lambda: of.Particles(normal(30, 1)),
    "cloud in space": lambda: of.Particles(normal(30, 3)),
    "one atom": lambda: of.Particles(torch.zeros(1, 2)),
    "one atom on the line": lambda: of.Particles(torch.full((1, 1), 7.0)),
    "far atoms": lambda: of.Particles(9e149 * torch.eye(2, dtype=F64)),
    "quantiles": lambda: of.Quantiles.from_function(bell, -2.0, 2.5, n=50, grading=2),
    "Gaussian": lambda: of.Gaussian(torch.zeros(2), torch.eye(2)),
    "Gaussian on the line": lambda: of.Gaussian(torch.zeros(1), torch.eye(1)),
    "Gaussian in space": lambda: of.Gaussian(torch.zeros(4), torch.eye(4)),
    "grid on the line": lambda: grid(40),
    "grid in the plane": lambda: grid(12, 9),
    "grid in space": lambda: grid(8, 7, 6),
    "long thin grid": lambda: grid(2000, 3, walls=True),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_measure_has_a_small_picture(name):
    mu = KINDS[name]()
    page, svg = shown(mu)
    assert repr(mu) in page
    width, height = size(svg)
    assert 30 < width <= 260
    assert 30 < height <= 170
    assert svg.find(f"{SVG}title") is not None
    assert "nan" not in page
    assert "inf" not in page
    assert len(page) < 60_000


@pytest.mark.parametrize("name", KINDS)
def test_no_number_covers_what_is_drawn(name):
    _, svg = shown(KINDS[name]())
    (frame,) = (r for r in svg.iter(f"{SVG}rect") if r.attrib["fill"] == "none")
    x, y, across, down = (float(frame.attrib[k]) for k in ("x", "y", "width", "height"))
    texts = list(svg.iter(f"{SVG}text"))
    assert len(texts) == 4
    for text in texts:
        right = float(text.attrib["x"]) > x + across
        assert right or float(text.attrib["y"]) - 10 > y + down  # the size of the font
        long = 5.6 * len(text.text or "")  # the width of its digits
        assert not right or float(text.attrib["x"]) + long <= size(svg)[0]


def test_dots_are_where_the_atoms_are_and_as_large_as_their_masses():
    w = torch.tensor([0.5, 0.25, 0.25, 0.0], dtype=F64)
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [2.0, 2.0]], dtype=F64)
    found = circles(shown(of.Particles(x.repeat(25, 1), w.repeat(25) / 25))[1])
    (ax, ay, a), (bx, by, b), (cx, cy, _), (*_, none) = found[:4]
    assert bx > ax
    assert by == ay
    assert cy < ay  # up
    assert cx == ax
    assert bx - ax == pytest.approx(ay - cy, abs=0.11)  # lengths are alike
    assert a / b == pytest.approx(2**0.5, rel=0.02)
    assert none == 0


def test_the_histogram_and_the_curve_enclose_the_mass():
    for mu in (of.Particles(normal(200, 1)), grid(40), KINDS["quantiles"]()):
        line = corners(shown(mu)[1])[0]
        assert line[:, 1].max() == line[0, 1] == line[-1, 1]  # from 0 to 0
        assert np.all(np.diff(line[:, 0]) >= 0)


def test_a_grid_has_its_mass_where_it_is():
    rho = torch.zeros(4, 3, dtype=F64)
    rho[3, 0] = 1.0  # right, below
    mu = of.GridDensity(rho, 0, (4, 3), walls=True, normalize=True)
    svg = shown(mu)[1]
    cells = [r for r in svg.iter(f"{SVG}rect") if r.attrib["fill"] != "none"]
    (cell,) = cells
    width, height = size(svg)
    assert float(cell.attrib["x"]) > width / 2
    assert float(cell.attrib["y"]) > height / 3
    assert cell.attrib["fill-opacity"] == "1.00"


def test_obstacles_are_grey():
    blocked = torch.zeros(4, 3, dtype=torch.bool)
    blocked[1, 1] = True
    rho = torch.ones(4, 3, dtype=F64).masked_fill(blocked, 0.0)
    mu = of.GridDensity(rho, 0, (4, 3), obstacles=blocked, walls=True, normalize=True)
    page, _ = shown(mu)
    assert page.count('fill="currentColor" fill-opacity="0.30"') == 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: of.Particles(normal(5000, 2)), "500 of 5000 points"),
        (lambda: of.Particles(normal(5000, 1)), "500 of 5000 points; mass in"),
        (lambda: of.Particles(normal(5, 4)), "the first two of 4 coordinates"),
        (lambda: grid(100, 80), "100 x 80 cells in 22 x 22 blocks"),
        (lambda: grid(20, 15), "20 x 15 cells<"),
        (lambda: grid(10, 9, 8), "the first two of 3 coordinates"),
        (lambda: grid(2000), "the density on 2000 cells, as means over 500 blocks"),
    ],
    ids=range(7),
)
def test_what_is_left_out_is_said(make, words):
    page, svg = shown(make())
    assert words.replace("<", "") in page
    assert len(circles(svg)) <= 500
    marks = [r for r in svg.iter(f"{SVG}rect") if r.attrib["fill"] != "none"]
    assert len(marks) <= 500
    assert sum(map(len, corners(svg))) <= 2 * 501


def test_a_large_measure_is_drawn_at_once():
    mu = of.Particles(torch.randn(2_000_000, 2))
    start = time.perf_counter()
    shown(mu)
    assert time.perf_counter() - start < 1.0  # it takes milliseconds


def test_a_page_is_safe():
    class Odd(of.Particles):
        def __repr__(self) -> str:
            return "<script>alert(1)</script>"

    page = Odd(normal(3, 2))._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_a_measure_that_cannot_be_drawn_says_why_and_does_not_raise():
    mu = of.Particles(normal(3, 2))
    mu.points.add_(1.0)
    page = mu._repr_html_()
    assert "Particles: no picture (ModifiedInPlace:" in page


def test_a_graph_is_left_as_it_is():
    x = normal(3, 2).requires_grad_()
    mu = of.Particles(x)
    shown(mu)
    assert mu.points.requires_grad


def test_a_measure_of_ones_own_is_drawn_by_its_points():
    class Fixed(of.Particles):
        pass

    assert len(circles(shown(Fixed(normal(7, 2)))[1])) == 7


def line(*edges):
    return of.Quantiles(torch.tensor(edges, dtype=F64))


def box(lower, upper):
    rho = torch.ones(4, dtype=F64)
    return of.GridDensity(rho, lower, upper, normalize=True, walls=True)


# Densities, edges and spans that are beyond the range of floats, or nearly so.
EXTREME = {
    "a density beyond the range": lambda: line(0.0, 1e-310, 1.0),
    "the smallest cell": lambda: line(0.0, 5e-324),
    "a dense pair of cells": lambda: line(0.0, 1e-300, 2e-300),
    "one unit of round-off": lambda: line(1.0, 1.0 + 2**-52),
    "a box too small": lambda: box(0.0, 1e-310),
    "a small box": lambda: box(0.0, 1e-300),
    "a box too wide": lambda: box(-8e307, 8e307),
    "a wide box": lambda: box(-1e300, 1e300),
    "a narrow bell": lambda: of.Gaussian(
        torch.zeros(1, dtype=F64), torch.full((1, 1), 5e-324, dtype=F64)
    ),
    "atoms apart by the smallest float": lambda: of.Particles(
        torch.tensor([[0.0, 0.0], [5e-324, 0.0]], dtype=F64)
    ),
    "energies too far apart": lambda: jump(1.7e308),
    "energies far apart": lambda: jump(8e307),
}


def jump(height):
    """Return a run whose energy falls from a height to minus the height."""

    class Step(of.Functional):
        def value(self, mu):
            return height * torch.tanh(1e3 * mu.points.sum())

        def value_and_velocity(self, mu):
            return self.value(mu), -torch.ones_like(mu.points)

    mu = of.Particles(torch.full((1, 1), 0.05, dtype=F64))
    return of.flow(Step(), mu, of.ExplicitEuler(), dt=0.1, steps=2)


@pytest.mark.parametrize("name", EXTREME)
def test_no_picture_holds_a_number_that_is_none(name):
    thing = EXTREME[name]()
    page = thing._repr_html_()
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        for part in ET.fromstring(svg).iter():
            for value in (*part.attrib.values(), part.text or ""):
                assert not re.search(r"\b(nan|inf)", value, re.IGNORECASE), svg
    if "<svg" not in page:
        assert "numbers beyond the range of floats" in page
    if isinstance(thing, of.Trajectory):
        assert "made all 2 steps" in page  # the facts are there without a picture
