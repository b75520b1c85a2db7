"""The default eps has units, fits the free room, and its warning is about one problem.

The step does not depend on units: c F with dt/c gives the same step, and so do lengths
times s with F times s^2.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

import otflow as of
from otflow.proximal import BackAndForth, FiniteVolume, GridSinkhorn

F64 = torch.float64
BlurWarning = of.errors.BlurWarning


def square(x):
    return x.square().sum(-1)


def bell(width=0.4, half=3.0, shape=60, center=0.5, scale=1.0):
    at = lambda x: torch.exp(-square(x / scale - center) / (2 * width**2))
    half = half * scale
    d = 1 if isinstance(shape, int) else len(shape)
    ends = (-half,) * d, (half,) * d
    return of.GridDensity.from_function(at, *ends, shape, walls=True, dtype=F64)


class Spread(of.Functional):
    """The squared second moment, as a user writes it."""

    def value(self, mu):
        return mu.expectation(square) ** 2


def problems(s=1.0):
    """Return energies in which a length s is 1, times s^2, on a line."""
    V = of.Potential(lambda x: s**2 * (square(x / s) - 1) ** 2)
    H = s**2 * of.Entropy()
    return {
        "potential": V,
        "heat": H,
        "V + Entropy": V + 0.3 * H,
        "power": V + s**3 * of.PowerEntropy(2.0),
        "interaction": of.Interaction(lambda z: s**2 * torch.exp(-square(z / s))) + H,
        "log": s**2 * of.Interaction(of.kernels.Log()) + V,
        "congestion": V + of.Congestion(2.0 / s),
        "user": s**-2 * Spread() + H,
    }


def solved(F, mu, dt):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BlurWarning)
        return GridSinkhorn(certify=False).solve(F, mu, dt)


def assert_same(one, other, length=1.0):
    first, second = one.certificate, other.certificate
    assert first["converged"]
    assert second["converged"]
    assert second["eps"] == pytest.approx(length**2 * first["eps"], rel=1e-9)
    off = (one.measure.weights - other.measure.weights).abs().sum()
    assert float(off) < 1e-5
    assert first["blurred"] == second["blurred"]


@pytest.mark.parametrize("dt", [0.02, 0.5])
@pytest.mark.parametrize("name", problems())
def test_an_energy_in_other_units_gives_the_same_step(name, dt):
    F, mu = problems()[name], bell()
    own = solved(F, mu, dt)
    for c in (1e-4, 1e-2, 1e4):
        assert_same(own, solved(c * F, mu, dt / c))


@pytest.mark.parametrize("s", [1e-3, 1e3])
@pytest.mark.parametrize("name", problems())
def test_lengths_in_other_units_give_the_same_step(name, s):
    own = solved(problems()[name], bell(), 0.2)
    assert_same(own, solved(problems(s)[name], bell(scale=s), 0.2), s)


@pytest.mark.parametrize(
    ("strength", "dt"),
    [(s, k / s) for s in (1e-3, 1.0, 1e3) for k in (0.03, 0.3, 3.0)],
)
def test_a_bowl_of_any_strength_moves_a_bell_as_in_closed_form(strength, dt):
    """Weak or strong, the default is not flagged where cells resolve the end."""
    mu = bell(0.6, 4.0, 200, 0.5)
    F = of.Potential(lambda x: 0.5 * strength * square(x), modulus=strength)
    factor = 1 / (1 + strength * dt)
    assert 0.6 * factor > 2 * mu.box.spacing[0]
    result = GridSinkhorn().solve(F, mu, dt)  # a warning would be an error
    assert result.certificate["converged"]
    assert not result.certificate["blurred"]
    mean = [m.weights @ m.points for m in (mu, result.measure)]
    variance = [
        m.weights @ square(m.points - x)
        for m, x in zip((mu, result.measure), mean, strict=True)
    ]
    length = 1 - factor
    assert abs(float(mean[1] / mean[0]) - factor) < 0.06 * length
    ratio = math.sqrt(float(variance[1] / variance[0]))
    assert abs(ratio - factor) < 0.06 * length


@pytest.mark.parametrize("n", range(3, 40, 4))
@pytest.mark.parametrize("dt", [0.1, 1.0, 1e3])
def test_the_default_is_legal_on_every_grid(n, dt):
    """As large as a box bears, where heat or an entropy too negative asks for more."""
    mu = bell(half=1.0, shape=n)
    most = (0.25 * 2.0) ** 2
    assert solved(of.Entropy(), mu, dt).certificate["eps"] <= max(
        most, 0.6 * mu.box.spacing[0] ** 2
    )
    with pytest.raises(ValueError, match="total factor is negative"):
        solved(-10 * of.Entropy(), mu, dt)


# The room ----------------------------------------------------------------------------


def test_a_room_in_a_larger_box_has_the_eps_of_the_room():
    """Obstacles that leave a box: its sides count, not those around them."""
    n, h = 20, 0.1
    wide = torch.ones(n, n, dtype=torch.bool)
    wide[:, 6:] = False
    x = torch.arange(n, dtype=F64)[:, None]
    rho = torch.exp(-((x - 8) ** 2) / 20).expand(n, n) * wide
    outer = of.GridDensity(
        rho,
        (0.0, 0.0),
        (n * h, n * h),
        obstacles=~wide,
        walls=True,
        normalize=True,
    )
    inner = of.GridDensity(
        rho[:, :6], (0.0, 0.0), (n * h, 6 * h), walls=True, normalize=True
    )
    one, other = (solved(of.Entropy(), mu, 5.0).certificate for mu in (outer, inner))
    assert one["converged"]
    assert other["converged"]
    assert one["eps"] == pytest.approx(other["eps"])
    with pytest.raises(ValueError, match="too large for the box"):
        GridSinkhorn(eps=0.05).solve(of.Entropy(), outer, 0.1)


# One warning a problem ----------------------------------------------------------------


def test_another_problem_warns_again_and_each_step_says_it():
    mu, F = bell(shape=24), of.Entropy()
    scheme, G = of.JKO(GridSinkhorn()), 2 * of.Entropy()
    generator = torch.Generator()

    def step(F, mu, dt, state):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            end = scheme.step(F, mu, dt, state, generator)
        assert end.info["converged"]
        assert end.info["blurred"]
        assert not end.info["certified"]
        return end, sum(isinstance(w.message, BlurWarning) for w in seen)

    end, told = step(F, mu, 1e-3, None)
    assert told == 1
    end, told = step(F, end.measure, 1e-3, end.state)
    assert told == 0
    end, told = step(F, end.measure, 9e-4, end.state)  # as in a flow whose dt varies
    assert told == 0
    end, told = step(F, end.measure, 2e-4, end.state)
    assert told == 1
    end, told = step(F, end.measure, 1e-3, end.state)
    assert told == 0
    end, told = step(G, end.measure, 1e-3, end.state)
    assert told == 1
    end, told = step(G, bell(shape=20), 1e-3, end.state)
    assert told == 1
    end, told = step(G, end.measure, 1e-3, end.state)
    assert told == 0


# Cures --------------------------------------------------------------------------------

REPULSION = of.Interaction(of.kernels.Log())
SPRING = of.Potential(lambda x: 0.5 * square(x), modulus=1.0)
CURED: dict[str, tuple[of.Functional, Callable[..., Any]]] = {
    "potential": (SPRING, BackAndForth),
    "heat": (of.Entropy(), BackAndForth),
    "porous": (of.PowerEntropy(2.0), BackAndForth),
    "fast": (of.PowerEntropy(0.8), FiniteVolume),
    "log gas": (REPULSION, FiniteVolume),
    "strong log gas": (20 * REPULSION + SPRING, FiniteVolume),
    "attraction": (of.Interaction(lambda z: 0.5 * square(z)), FiniteVolume),
    "user": (Spread() + of.Entropy(), FiniteVolume),
}


@pytest.mark.parametrize("dt", [1e-3, 0.05])
@pytest.mark.parametrize("name", CURED)
def test_the_solver_that_the_warning_names_steps_that_problem(name, dt):
    F, solver = CURED[name]
    mu = bell(0.1 if "log" in name or name == "attraction" else 0.3, 3.0, 40, 0.3)
    # A blur that is too large at any dt.
    with pytest.warns(BlurWarning, match=rf"JKO\({solver.__name__}\(\)\)"):
        GridSinkhorn(eps=0.2).solve(F, mu, dt)
    run = of.flow(F, mu, of.JKO(solver()), dt=dt, steps=1)
    assert run.converged
    assert run.info[0]["certified"]


def cure(seen):
    return str(seen[0].message).split("not certified; ")[1]


def test_the_smaller_eps_that_the_warning_names_helps():
    mu, F, dt = bell(0.4, 3.0, 100), of.Entropy(), 0.05
    with pytest.warns(BlurWarning) as seen:
        GridSinkhorn(eps=0.2).solve(F, mu, dt)
    words = cure(seen)
    assert "longer dt" not in words
    eps = float(re.findall(r"eps = ([^ ,]+)", words)[0])
    assert GridSinkhorn(eps=eps).solve(F, mu, dt).certificate["certified"]


def test_of_long_cells_the_warning_says_the_axis_and_refining_it_helps():
    shape, F, dt = (16, 120), of.Entropy(), 0.02
    with pytest.warns(BlurWarning, match="finer grid along axis 0") as seen:
        GridSinkhorn().solve(F, bell(shape=shape), dt)
    assert "JKO(BackAndForth())" in cure(seen)
    for mu, solver in (
        (bell(shape=(120, 120)), GridSinkhorn()),
        (bell(shape=shape), BackAndForth()),
        (bell(shape=shape), FiniteVolume()),
    ):
        run = of.flow(F, mu, of.JKO(solver), dt=dt, steps=1)
        assert run.converged
        assert run.info[0]["certified"]


def test_a_concave_entropy_is_not_sent_to_a_solver_that_refuses_it():
    F = SPRING + -0.05 * of.Entropy()
    with pytest.warns(BlurWarning) as seen:
        GridSinkhorn().solve(F, bell(0.3, 3.0, 40), 0.5)
    assert "JKO" not in cure(seen)
