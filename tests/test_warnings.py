"""Every warning points at the line of the user's own code that called otflow."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import warnings
from dataclasses import make_dataclass
from pathlib import Path

import pytest
import torch

import otflow as of
from otflow.errors import (
    BlurWarning,
    BoxWarning,
    KernelWarning,
    NotConvergedWarning,
)
from otflow.measures.grid.convolution import Convolution
from otflow.proximal import GridSinkhorn, ParticleProximal, ProxResult, certify
from tests import conftest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "otflow"
OLD = (DeprecationWarning, FutureWarning)  # kinds of warning about an old name
NAMES_OF_OLD = {kind.__name__ for kind in OLD}

F64 = torch.float64
SQUARE = of.Potential(lambda x: x.square().sum(-1), modulus=2.0)
CLOUD = of.Particles(torch.tensor([[0.0], [1.0], [3.0]], dtype=F64))


def bell(lower, upper, n=40):
    return of.GridDensity.from_function(
        lambda x: (-x.square().sum(-1)).exp(), lower, upper, n, dtype=F64
    )


def narrow(z):
    return -(-1e8 * z.square().sum(-1)).exp()


def off_centre(z):
    return -(-1e4 * (z.norm(dim=-1) - 1).square()).exp()


class Reporting(of.schemes.Scheme):
    """A scheme with a word of the last release in its report."""

    def step(self, F, mu, dt, state, generator):
        info = {"energy": F.value(mu)}
        return of.schemes.Step(mu.push(F.velocity(mu), dt), state, info)


def a_class_with(**words):
    def value(self, mu):
        return mu.expectation(lambda x: x[..., 0])

    type("Old", (of.Functional,), {"value": value, **words})


class Bounded(of.Functional):
    """A functional without old words."""

    def value(self, mu):
        return mu.expectation(lambda x: x[..., 0])


def a_report():
    return of.flow(SQUARE, CLOUD, of.JKO(), dt=0.1, steps=1).info[0]


CASES = {
    "box": (BoxWarning, lambda: bell(-0.5, 0.5)),
    "box, in a flow": (
        BoxWarning,
        lambda: of.flow(
            of.Potential(lambda x: -9 * x[..., 0]),
            bell(-6, 6),
            of.ExplicitEuler(),
            dt=0.01,
            steps=40,
        ),
    ),
    "kernel, grid": (
        KernelWarning,
        lambda: of.Interaction(off_centre).value(bell(-4, 4)),
    ),
    "kernel, gaussian": (
        KernelWarning,
        lambda: of.Interaction(narrow).value(
            of.Gaussian(torch.zeros(1, dtype=F64), torch.eye(1, dtype=F64))
        ),
    ),
    "blur": (
        BlurWarning,
        lambda: of.flow(
            SQUARE, bell(-4, 4), of.JKO(GridSinkhorn(eps=1.0)), dt=0.01, steps=1
        ),
    ),
    "not converged": (
        NotConvergedWarning,
        lambda: of.flow(
            of.Potential(lambda x: x.square().square().sum(-1)),
            CLOUD,
            of.JKO(ParticleProximal(max_gradients=2)),
            dt=100.0,
            steps=1,
        ),
    ),
    "interaction(diagonal=)": (
        DeprecationWarning,
        lambda: CLOUD.interaction(lambda z: z.square().sum(-1), diagonal=False),
    ),
    "convolve(diagonal=)": (
        DeprecationWarning,
        lambda: CLOUD.convolve(lambda z: z.square().sum(-1), diagonal=False),
    ),
    "Convolution(diagonal=)": (
        DeprecationWarning,
        lambda: Convolution(
            bell(-4, 4).box, lambda z: z.norm(dim=-1), CLOUD.points, diagonal=False
        ),
    ),
    "displacement_modulus": (DeprecationWarning, lambda: SQUARE.displacement_modulus),
    "modulus_in(dim)": (DeprecationWarning, lambda: SQUARE.modulus_in(2)),
    "overriding modulus_in": (
        DeprecationWarning,
        lambda: a_class_with(modulus_in=lambda _, dim: 0.0 * dim),
    ),
    "overriding displacement_modulus": (
        DeprecationWarning,
        lambda: a_class_with(displacement_modulus=0.0),
    ),
    "overriding split_entropy": (
        DeprecationWarning,
        lambda: a_class_with(split_entropy=lambda _: (0.0, SQUARE)),
    ),
    "info[energy]": (DeprecationWarning, lambda: a_report()["energy"]),
    "info[gradients]": (DeprecationWarning, lambda: a_report().get("gradients")),
    "ParticleProximal(blur=)": (
        DeprecationWarning,
        lambda: ParticleProximal(blur=0.1),
    ),
    "overriding modulus_in, in a dataclass": (
        DeprecationWarning,
        lambda: make_dataclass(
            "Old", [], bases=(Bounded,), namespace={"modulus_in": lambda _, dim: dim}
        ),
    ),
    "ProxResult(iterations)": (
        DeprecationWarning,
        lambda: ProxResult(
            CLOUD,
            None,
            3,
            1e-9,
            certify(
                energy_before=2.0,
                energy_after=1.0,
                dt=0.5,
                w2=0.5,
                residual=1e-9,
                converged=True,
                guarantee="stationary",
                iterations=3,
            ),
        ),
    ),
    "Step(info[energy])": (
        DeprecationWarning,
        lambda: of.flow(SQUARE, CLOUD, Reporting(), dt=0.1, steps=1),
    ),
}


@pytest.mark.parametrize(("kind", "cause"), CASES.values(), ids=CASES.keys())
def test_a_warning_points_at_the_users_code(kind, cause):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cause()
    places = {w.filename for w in caught if issubclass(w.category, kind)}
    # conftest.py wraps some calls, to watch them.
    assert places
    assert places <= {__file__, conftest.__file__}


@pytest.mark.slow
def test_each_old_name_warns_here_and_stands_in_the_changelog(monkeypatch):
    old = {name: cause for name, (kind, cause) in CASES.items() if kind in OLD}
    found = set()

    def note(message, category=None, stacklevel=1):
        if category in OLD:  # the frames of `warn`, and of the code that calls it
            code = sys._getframe(2).f_code
            found.add((Path(code.co_filename).name, code.co_name))

    monkeypatch.setattr("otflow._warn.warnings.warn", note)
    for cause in old.values():
        cause()
    sources = {path: path.read_text("utf-8") for path in PACKAGE.rglob("*.py")}
    sites = {
        (path.name, function.name)
        for path, text in sources.items()
        for function in ast.walk(ast.parse(text))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Call)
        and {getattr(argument, "id", "") for argument in node.args} & NAMES_OF_OLD
    }
    assert sites
    assert found == sites
    page = (ROOT / "CHANGELOG.md").read_text("utf-8")
    deprecated = page.split("### Deprecated")[1].split("\n### ")[0]
    for name in old:
        for word in re.findall(r"\w+", name.split(", in")[0].split()[-1]):
            assert word in deprecated, word


@pytest.mark.slow
def test_a_script_sees_that_a_word_is_old():
    script = (
        "import torch, otflow as of\n"
        "class Mine(of.schemes.Scheme):\n"
        "    def step(self, F, mu, dt, state, generator):\n"
        "        return of.schemes.Step(mu, state, {'energy': F.value(mu)})\n"
        "F = of.Potential(lambda x: x.square().sum(-1))\n"
        "of.flow(F, of.Particles(torch.ones(2, 1)), Mine(), dt=0.1, steps=1)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, timeout=120
    )
    assert "<string>:4: DeprecationWarning" in run.stderr.decode()
