"""The page on conventions: each row of otflow, POT and GeomLoss is run as it stands.

The page gives expressions that turn the value, the gradient and the potential of a
call into half a square, its velocity and its first variation. They are read from the
page and evaluated, and compared with a functional of otflow; the exact one with POT.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import otflow as of
from otflow import metrics
from otflow.testing.clouds import normal

ot = pytest.importorskip("ot")
geomloss = pytest.importorskip("geomloss")
solve_sample = pytest.importorskip("geomloss.ot").solve_sample

PAGE = Path(__file__).parents[2] / "docs" / "distances.rst"
BLUR = 0.7
REG = 2 * BLUR**2
F64 = torch.float64


def rows(library: str) -> dict[str, dict[str, str]]:
    """Return the rows of a section of the page: call -> heading -> text."""
    section = re.split(rf"\n{library}\n-+\n", PAGE.read_text("utf-8"))[1]
    table = re.split(r"\n\S[^\n]*\n-{3,}\n", section)[0].split("\n   * - ")[1:]
    cells = [re.split(r"\n     - ", row.split("\n\n")[0]) for row in table]
    head, *body = [[" ".join(cell.split()) for cell in row] for row in cells]
    return {row[0].strip("`"): dict(zip(head, row, strict=True)) for row in body}


def squares(x: Tensor, y: Tensor) -> Tensor:
    return (x[:, None] - y).square().sum(-1)


class Pair:
    """Two weighted clouds, with free points and weights of the first one."""

    def __init__(self, dim: int, *, equal: bool) -> None:
        n, m = (6, 6) if equal else (7, 5)
        self.x, self.y = normal(n, dim), normal(m, dim, seed=1) + 0.5
        self.a, self.b = torch.full((n,), 1.0 / n, dtype=F64), torch.ones(m, dtype=F64)
        if not equal:
            self.a = 1 + torch.sigmoid(normal(n, seed=2))
            self.b = 1 + torch.sigmoid(normal(m, seed=3))
        self.a, self.b = self.a / self.a.sum(), self.b / self.b.sum()
        for free in (self.x, self.a):
            free.requires_grad_()
        self.M = squares(self.x, self.y)
        self.mu = of.Particles(self.x, self.a)
        self.still = of.Particles(self.x.detach(), self.a.detach())
        self.nu = of.Particles(self.y, self.b)
        self.directions = torch.eye(dim, dtype=F64)


def in_weights(value: Tensor, s: Pair) -> Tensor:
    return torch.autograd.grad(value, s.a, retain_graph=True)[0]


Found = tuple[Tensor, Tensor | None]
CALLS: dict[str, tuple[Callable[[Pair], Found], str, int]] = {}


def call(name: str, kind: str, dim: int = 2) -> Any:
    """Register what a row of the page calls: the value and the potential."""

    def register(run: Callable[[Pair], Found]) -> Callable[[Pair], Found]:
        CALLS[name] = run, kind, dim
        return run

    return register


def weighted(name: str, kind: str, run: Callable[[Pair], Tensor]) -> None:
    """Register a distance whose potential is its gradient in the weights."""

    def both(s: Pair) -> Found:
        value = run(s)
        return value, in_weights(value, s)

    CALLS[name] = both, kind, 2


weighted(
    "metrics.wasserstein2_squared(mu, nu)",
    "exact",
    lambda s: metrics.wasserstein2_squared(s.mu, s.nu),
)
weighted(
    "metrics.wasserstein2(mu, nu)", "exact", lambda s: metrics.wasserstein2(s.mu, s.nu)
)
weighted(
    "metrics.wasserstein(mu, nu, p=2)",
    "exact",
    lambda s: metrics.wasserstein(s.mu, s.nu, p=2),
)
weighted(
    "metrics.sinkhorn_divergence(mu, nu, blur=)",
    "divergence",
    lambda s: metrics.sinkhorn_divergence(s.mu, s.nu, blur=BLUR),
)
weighted("metrics.gelbrich(mu, nu)", "bound", lambda s: metrics.gelbrich(s.mu, s.nu))


@call("metrics.transport_plan(mu, nu)", "exact")
def _plan(s: Pair) -> Found:
    plan = metrics.transport_plan(s.mu, s.nu)
    return plan.cost, plan.f


@call("metrics.wasserstein2_bounds(mu, nu)", "exact")
def _bounds(s: Pair) -> Found:
    found = metrics.wasserstein2_bounds(s.mu, s.nu)
    return torch.tensor(found.bracket.upper, dtype=F64), found.f


@call("metrics.batched_wasserstein2_squared(x, y)", "equal")
def _batch(s: Pair) -> Found:
    return metrics.batched_wasserstein2_squared(s.x[None], s.y[None])[0], None


@call("metrics.entropic_plan(mu, nu, blur=)", "entropic")
def _entropic(s: Pair) -> Found:
    plan = metrics.entropic_plan(s.mu, s.nu, blur=BLUR)
    return plan.value, plan.f


FUNCTIONALS = {
    "SlicedWassersteinTo(nu, directions)": "sliced",
    "EnergyDistanceTo(nu)": "energy",
    "MMDTo(nu, kernels.Gaussian(blur))": "bell",
    "KSD(score, kernel)": "stein",
}
for _name, _kind in FUNCTIONALS.items():

    @call(_name, _kind)
    def _functional(s: Pair, kind: str = _kind) -> Found:
        F = functional(kind, s)
        return F.value(s.mu), F.first_variation(s.still)


@call("ot.emd2(a, b, M)", "exact")
def _emd2(s: Pair) -> Found:
    value, log = ot.emd2(s.a, s.b, s.M, log=True)
    return value, log["u"]


@call("ot.solve(M, a, b)", "exact")
def _solve(s: Pair) -> Found:
    found = ot.solve(s.M, s.a, s.b)
    return found.value, found.potentials[0]


@call("ot.solve(M, a, b, reg)", "entropic")
def _solve_reg(s: Pair) -> Found:
    found = ot.solve(s.M, s.a, s.b, reg=REG, tol=1e-13, max_iter=20_000)
    return found.value, found.potentials[0]


@call("ot.solve_sample(x, y, a, b, reg=, debias=True)", "divergence")
def _solve_debiased(s: Pair) -> Found:
    options = {"reg": REG, "debias": True, "tol": 1e-13, "max_iter": 20_000}
    return ot.solve_sample(s.x, s.y, s.a, s.b, **options).value, None


@call("ot.sinkhorn2(a, b, M, reg)", "cost")
def _sinkhorn2(s: Pair) -> Found:
    return ot.sinkhorn2(s.a, s.b, s.M, REG, stopThr=1e-13, numItermax=20_000), None


@call("ot.bregman.empirical_sinkhorn_divergence(x, y, reg, a, b)", "costs")
def _costs(s: Pair) -> Found:
    run = ot.bregman.empirical_sinkhorn_divergence
    found = run(s.x, s.y, REG, s.a, s.b, stopThr=1e-13, numIterMax=20_000)
    return found[0], None


@call("ot.wasserstein_1d(x, y, a, b, p=2)", "exact", dim=1)
def _line(s: Pair) -> Found:
    return ot.wasserstein_1d(s.x[:, 0], s.y[:, 0], s.a, s.b, p=2), None


@call("ot.sliced_wasserstein_distance(x, y, a, b)", "sliced")
def _sliced(s: Pair) -> Found:
    run = ot.sliced_wasserstein_distance
    return run(s.x, s.y, s.a, s.b, projections=s.directions.T), None


@call("ot.gaussian.bures_wasserstein_distance(m, n, S, R)", "bound")
def _bures(s: Pair) -> Found:
    m, n = s.a @ s.x, s.b @ s.y
    S, R = (((z - w @ z).T * w) @ (z - w @ z) for z, w in ((s.x, s.a), (s.y, s.b)))
    return ot.gaussian.bures_wasserstein_distance(m, n, S, R)[0], None


@call("ot.batch.solve_sample_batch(x, y, reg=)", "cost")
def _solve_batch(s: Pair) -> Found:
    x, y, a, b = (z[None] for z in (s.x, s.y, s.a, s.b))
    options = {"a": a, "b": b, "reg": REG, "tol": 1e-13, "max_iter": 20_000}
    return ot.batch.solve_sample_batch(x, y, **options).value_linear[0], None


def loss(*args: Any, **options: Any) -> Callable[[Pair], Found]:
    def run(s: Pair) -> Found:
        state = s.a, s.x, s.b, s.y
        value = geomloss.SamplesLoss(*args, **options)(*state)
        dual = geomloss.SamplesLoss(*args, potentials=True, **options)(*state)
        return value, dual[0].reshape(-1)

    return run


SINKHORN = {"p": 2, "blur": BLUR, "scaling": 0.999}
call('SamplesLoss("sinkhorn", p=2, blur=)', "divergence")(loss("sinkhorn", **SINKHORN))
call('SamplesLoss("sinkhorn", p=2, blur=, debias=False)', "entropic")(
    loss("sinkhorn", debias=False, **SINKHORN)
)
call('SamplesLoss("energy")', "energy")(loss("energy"))
call('SamplesLoss("gaussian", blur=)', "bell")(loss("gaussian", blur=BLUR))


@call(
    "geomloss.ot.solve_sample(x, y, a, b, reg=, debias=True, max_iter=)", "divergence"
)
def _new(s: Pair) -> Found:
    options = {"a": s.a, "b": s.b, "debias": True, "reg": REG, "max_iter": 500}
    found = solve_sample(s.x, s.y, **options)
    return found.value, found.potential_a - found.potential_aa


def functional(kind: str, s: Pair) -> of.Functional:
    """Return half a square of this kind as a functional of otflow."""
    makers: dict[str, Callable[[], of.Functional]] = {
        "exact": lambda: of.SquaredDistanceTo(s.nu),
        "equal": lambda: of.SquaredDistanceTo(s.nu),
        "divergence": lambda: of.SinkhornDivergenceTo(s.nu, blur=BLUR),
        "sliced": lambda: of.SlicedWassersteinTo(s.nu, s.directions),
        "energy": lambda: of.EnergyDistanceTo(s.nu),
        "bell": lambda: of.MMDTo(s.nu, of.kernels.Gaussian(BLUR)),
        "stein": lambda: of.KSD(lambda x: -x, of.kernels.Gaussian(1.0)),
    }
    return makers[kind]() if kind in makers else Own(kind, s.nu)


class Own(of.Functional):
    """Half a square of which otflow has no functional."""

    def __init__(self, kind: str, nu: of.Particles) -> None:
        self.kind, self.nu = kind, nu

    def value(self, mu: of.Measure) -> Tensor:
        assert isinstance(mu, of.Particles)
        if self.kind == "bound":
            return 0.5 * metrics.gelbrich(mu, self.nu).square()
        cross = metrics.entropic_plan(mu, self.nu, blur=BLUR)
        if self.kind == "entropic":
            return cross.value
        own = [metrics.entropic_plan(z, z, blur=BLUR) for z in (mu, self.nu)]
        less = sum(p.transport_cost for p in own) if self.kind == "costs" else 0.0
        return cross.transport_cost - 0.5 * less


def expressions(text: str) -> list[str]:
    """Return the expressions of a cell: those that only use what a result has."""
    found = re.findall(r"``([^`]+)``", text)
    return [e for e in found if re.fullmatch(r"[-vgap() /*0-9+reglo]+", e)]


LIBRARIES = {name: rows(name) for name in ("otflow", "POT", "GeomLoss")}
ROWS = {key: row for table in LIBRARIES.values() for key, row in table.items()}


def test_each_row_of_the_page_is_run_and_nothing_else():
    assert set(ROWS) == set(CALLS)
    assert [len(table) for table in LIBRARIES.values()] == [13, 10, 5]


@pytest.mark.parametrize("name", ROWS)
def test_a_row_converts_to_the_convention_of_otflow(name):
    row, (run, kind, dim) = ROWS[name], CALLS[name]
    pair = Pair(dim, equal=kind == "equal")
    F = functional(kind, pair)
    rel = 1e-3 if name in LIBRARIES["GeomLoss"] else 1e-6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other libraries
        value, potential = run(pair)
        known = {"v": value.detach(), "a": pair.a.detach()[:, None], "reg": REG}
        if value.requires_grad:
            known["g"] = torch.autograd.grad(value, pair.x, retain_graph=True)[0]
    (half,) = expressions(row["Half a square"])
    assert float(eval(half, known)) == pytest.approx(
        float(F.value(pair.still)), rel=rel
    )

    velocity = expressions(row["Velocity"])
    assert bool(velocity) == (not re.search("detached|not that", row["Velocity"]))
    for expression in velocity:
        exact = F.velocity(pair.still)
        error = (eval(expression, known) - exact).norm() / exact.norm()
        assert float(error) < 10 * rel, expression

    weights = pair.a.detach()
    found = expressions(row["Potential"])[:1]
    assert bool(found) == (potential is not None)
    for expression in found:
        assert potential is not None
        scope = known | {"p": potential.detach(), "a": weights, "log": torch.log}
        exact = F.first_variation(pair.still)
        given = eval(expression, scope)
        apart = (given - weights @ given) - (exact - weights @ exact)
        assert float(apart.norm()) < 10 * rel * math.sqrt(len(given)), expression


def test_the_exact_rows_are_those_of_pot():
    """The functional that rows are compared with, against POT's plan."""
    s = Pair(2, equal=False)
    M, a, b = s.M.detach(), s.a.detach(), s.b
    P = ot.emd(a, b, M)
    F = of.SquaredDistanceTo(s.nu)
    assert float(F.value(s.still)) == pytest.approx(float((P * M).sum()) / 2)
    target = P @ s.y / a[:, None]
    assert torch.allclose(F.velocity(s.still), target - s.x.detach())


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("``-g / (4 * a)``, for g is doubled", ["-g / (4 * a)"]),
        ("``reg * (p - log(a)) / 2``, of ``potentials``", ["reg * (p - log(a)) / 2"]),
        ("``p / 2``, of ``f``", ["p / 2"]),
        ("``v * p``, the gradient in the weights", ["v * p"]),
        ('``p / 2``, of ``log["u"]``', ["p / 2"]),
        ("not that of a flow", []),
    ],
)
def test_expressions_are_told_from_names(text, kept):
    assert expressions(text) == kept


def test_what_the_page_says_of_silence():
    """NaN gradients, independent couplings and lost values, as the page has them."""
    x = normal(5, 2).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = ot.sliced_wasserstein_distance(x, x.detach(), seed=0)
        (slope,) = torch.autograd.grad(root, x)
        assert not bool(slope.isfinite().all())
        eye, zero = torch.eye(2, dtype=F64), torch.zeros(2, dtype=F64)
        m = zero.clone().requires_grad_()
        root = ot.gaussian.bures_wasserstein_distance(m, zero, eye, eye)
        (slope,) = torch.autograd.grad(root.sum(), m)
        assert not bool(slope.isfinite().all())
        s = Pair(2, equal=False)
        M = s.M.detach()
        whole = [z[None] for z in (s.x.detach(), s.y, s.a.detach(), s.b)]
        found = ot.batch.solve_sample_batch(*whole[:2], a=whole[2], b=whole[3])
        independent = s.a.detach() @ M @ s.b
        assert float(found.value_linear[0]) == pytest.approx(float(independent))
        relaxed = ot.solve(M, s.a.detach(), s.b, reg=REG, unbalanced=2.0)
        assert abs(float(relaxed.value)) < 1e-6
        assert float(relaxed.value_linear) > 0.1
        divergence = ot.solve_sample(
            s.x.detach(), s.y, s.a.detach(), s.b, reg=REG, debias=True
        )
        run = ot.bregman.empirical_sinkhorn_divergence
        other = run(s.x.detach(), s.y, REG, s.a.detach(), s.b)
        assert float(other) > 1.1 * float(divergence.value)


def test_what_the_page_says_of_weights_with_other_sums():
    s = Pair(2, equal=False)
    x, y, M, a, b = s.x.detach(), s.y, s.M.detach(), s.a.detach(), 1.5 * s.b
    for exact in (lambda: ot.emd2(a, b, M), lambda: ot.solve(M, a, b)):
        with pytest.raises(AssertionError, match="same sum"):
            exact()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transposes
        line = ot.wasserstein_1d(x[:, 0], y[:, 0], a, b, p=2)
    sliced = ot.sliced_wasserstein_distance(x, y, a, b, seed=0)
    loss = geomloss.SamplesLoss("sinkhorn", p=2, blur=BLUR)(a, x, b, y)
    assert bool(torch.stack([line, sliced, loss]).isfinite().all())
