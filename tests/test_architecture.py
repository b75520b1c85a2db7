"""The page on the architecture: each route names the files that its step passes."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
import torch

import otflow as of
from tests.test_tutorials import ROOT

PACKAGE = ROOT / "otflow"
PAGE = (ROOT / "docs" / "architecture.rst").read_text("utf-8")
F64 = torch.float64


def spring(x):
    return 0.5 * x.square().sum(-1)


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=F64)


def particles() -> Callable[[], object]:
    F = of.Potential(spring) + of.Interaction(of.kernels.Gaussian(1.0))
    mu = of.Particles(normal(20, 2))
    return lambda: of.flow(F, mu, of.JKO(), dt=0.1, steps=2)


def grid() -> Callable[[], object]:
    F = of.Potential(spring, modulus=1.0) + of.Entropy()
    fine, coarse = (
        of.GridDensity.from_function(
            lambda x: (-2 * (x - 1).square().sum(-1)).exp(), -4, 4, (n, n), dtype=F64
        )
        for n in (64, 16)
    )

    def step() -> None:
        of.flow(F, fine, of.JKO(), dt=0.05, steps=2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", of.errors.BlurWarning)
            # The blur is not small beside a short step on wide cells.
            of.flow(F, coarse, of.JKO(), dt=1e-3, steps=2)

    return step


def network() -> Callable[[], object]:
    X = normal(10, 1)
    risk = of.meanfield.Risk(of.meanfield.TwoLayer("tanh"), X, X[:, 0].sin())
    mu = of.Particles(normal(8, 3))
    return lambda: risk.velocity(mu)


ROUTES = {
    "A particle step": particles,
    "A grid step": grid,
    "A network's velocity": network,
}


def named(text: str) -> set[str]:
    """Return the files of the package that a text names."""
    return set(re.findall(r"``([\w/]+\.py)``", text)) - {"base.py"}


def route(title: str) -> set[str]:
    """Return the files that a route of the page names."""
    return named(PAGE.split(f"**{title}**")[1].split("\n**")[0].split("\n---")[0])


def passed(step: Callable[[], object]) -> set[str]:
    """Return the files of the package whose functions a step calls."""
    step()  # nothing is imported or compiled under the profile
    found: set[str] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            found.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        step()
    finally:
        sys.setprofile(None)
    own = (path for path in map(Path, found) if PACKAGE in path.parents)
    return {path.relative_to(PACKAGE).as_posix() for path in own}


@pytest.mark.parametrize("title", ROUTES)
def test_a_route_names_the_files_that_it_passes(title):
    files, found = route(title), passed(ROUTES[title]())
    assert len(files) > 5
    everywhere = {name for name in found if re.match(r"(.*/)?base\.py|_", name)}
    extra, missing = found - files - everywhere, files - found
    assert (extra, missing) == (set(), set()), "passed and not named; the other way"


def test_each_place_for_a_new_thing_exists():
    text = PAGE.split("Where a new thing goes")[1]
    folders = set(re.findall(r"``([\w/]+/)``", text)) - {"tests/"}
    assert len(folders) > 6
    for folder in folders:
        assert (PACKAGE / folder / "__init__.py").exists(), folder
    for file in named(text):
        assert (PACKAGE / file).exists(), file
