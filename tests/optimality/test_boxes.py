"""Gaps over a box: proofs against known minima, typed outcomes of bad input."""

import json
import math
import re

import pytest
import torch

import otflow as of
from otflow.optimality import BoxDomain, Gap, GapKind, optimality_gap
from otflow.testing.clouds import normal

F64 = torch.float64


class Convex(of.functionals.Sum):
    """A sum that its maker knows to be convex along mixtures."""

    def mixture_curvature(self):
        return "convex"


def cloud(n, d, seed=0, low=0.0, high=1.0):
    generator = torch.Generator().manual_seed(seed)
    return of.Particles(
        low + (high - low) * torch.rand(n, d, generator=generator, dtype=F64)
    )


def true_gap(F, mu, lower, upper, n=None):
    """The gap on a lattice, then by Newton steps from its lowest places."""
    d = mu.dim
    n = n or {1: 20_001, 2: 301, 3: 61}[d]
    axis = torch.linspace(lower, upper, n, dtype=F64)
    x = torch.cartesian_prod(*[axis] * d).reshape(-1, d)
    values = torch.cat([F.first_variation(mu, part) for part in x.split(20_000)])
    x = x[values.topk(20, largest=False).indices]
    step = torch.full((len(x), 1), (upper - lower) / n, dtype=F64)
    values = F.first_variation(mu, x)
    for _ in range(300):
        pull = F.velocity(mu, x)
        pull = pull / pull.norm(dim=1, keepdim=True).clamp(min=1e-300)
        new = (x + step * pull).clamp(lower, upper)
        lower_values = F.first_variation(mu, new)
        fell = (lower_values < values)[:, None]
        x, step = torch.where(fell, new, x), torch.where(fell, 1.2 * step, step / 2)
        values = torch.minimum(values, lower_values)
    return float(mu.weights @ F.first_variation(mu) - values.min())


# Of a target, where one is needed.
PROBLEMS = {
    "double well": lambda _: of.Potential(
        lambda x: (x**2 - 0.3).square().sum(-1) + 0.1 * x.sum(-1)
    ),
    "waves": lambda _: of.Potential(lambda x: torch.sin(9 * x).sum(-1)),
    "kink": lambda _: of.Potential(lambda x: (x - 0.3).norm(dim=-1)),
    "Gaussian": lambda nu: of.MMDTo(nu, of.kernels.Gaussian(0.4)),
    "multiquadric": lambda nu: of.MMDTo(nu, of.kernels.InverseMultiquadric(0.5)),
    "energy distance": lambda nu: of.EnergyDistanceTo(nu),
    "function": lambda nu: of.MMDTo(nu, lambda z: torch.exp(-3 * z.square().sum(-1))),
    "two points": lambda _: of.Interaction(
        of.kernels.TwoPoint(lambda x, y: torch.exp((x * y).sum(-1)))
    ),
    "sum": lambda nu: (
        3 * of.MMDTo(nu, of.kernels.Gaussian(0.4))
        + of.Potential(lambda x: x.square().sum(-1))
    ),
    "features": lambda _: of.OfExpectation(
        lambda m: (m - 0.2).square().sum(), lambda x: torch.sin(4 * x)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("name", PROBLEMS)
def test_a_proved_gap_is_the_true_one_and_never_below(name, d):
    F = Convex((PROBLEMS[name](cloud(20, d, 1)),))
    mu = cloud(30, d)
    gap = optimality_gap(F, mu, BoxDomain(-1.0, 2.0))
    assert gap.kind == "proved"
    exact = true_gap(F, mu, -1.0, 2.0)
    assert gap.value >= exact - 1e-13 * (1 + abs(exact))
    assert gap.value <= 1.0101 * exact
    # Newton steps do not converge to a kink: what is found there is as sharp as asked.
    assert gap.found == pytest.approx(exact, rel=0.01 if name == "kink" else 1e-6)
    assert gap.found <= gap.value


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "erf"])
@pytest.mark.parametrize("loss", ["square", "logistic"])
def test_networks_are_proved_on_a_box_of_parameters(activation, loss):
    X = torch.linspace(-1, 1, 12, dtype=F64)[:, None]
    y = X[:, 0].sin() if loss == "square" else torch.sign(X[:, 0])
    F = of.meanfield.Risk(of.meanfield.TwoLayer(activation), X, y, loss=loss)
    mu = cloud(10, 3, low=-1.0)
    gap = optimality_gap(F, mu, BoxDomain(-1.0, 1.0))
    assert gap.kind == "proved"
    exact = true_gap(F, mu, -1.0, 1.0, 31)
    assert exact - 1e-13 <= gap.value <= 1.011 * exact


def test_several_outputs_and_classes_are_proved():
    X = torch.linspace(-1, 1, 9, dtype=F64)[:, None]
    network = of.meanfield.TwoLayer("tanh", outputs=2, bias=False)
    F = of.meanfield.Risk(network, X, (X[:, 0] > 0).long(), loss="cross-entropy")
    mu = cloud(6, 3, low=-1.0)
    gap = optimality_gap(F, mu, BoxDomain(-1.0, 1.0))
    assert gap.kind == "proved"
    exact = true_gap(F, mu, -1.0, 1.0, 31)
    assert exact - 1e-13 <= gap.value <= 1.011 * exact


def test_a_gap_bounds_the_distance_to_a_known_infimum():
    F = Convex((of.MMDTo(cloud(15, 2, 1), of.kernels.Gaussian(0.3)),))
    for seed in range(5):
        mu = cloud(25, 2, seed + 5)
        gap = optimality_gap(F, mu, BoxDomain(0, 1))
        assert gap.kind == "proved"
        assert float(F.value(mu)) <= gap.value  # the infimum is 0, at the target


def test_the_gap_is_0_if_and_only_if_the_support_lies_in_the_minimisers():
    # For F(mu) = int V dmu, mu is a minimiser iff V = min V on its support.
    V = of.Potential(lambda x: (x[..., 0] ** 2 - 1).square())
    tilted = of.Potential(lambda x: (x[..., 0] ** 2 - 1).square() + 0.1 * x[..., 0])
    box = BoxDomain(-2, 2)
    both = of.Particles(torch.tensor([[-1.0], [1.0]], dtype=F64))
    assert 0 <= optimality_gap(V, both, box).value < 1e-13
    for points in ([[-1.0], [0.9]], [[0.0], [1.0]], [[0.0], [0.0]]):
        gap = optimality_gap(V, of.Particles(torch.tensor(points, dtype=F64)), box)
        assert gap.value >= gap.found > 1e-2
    # A flow ends in local minimisers; the gap tells them from global ones.
    start = of.Particles(torch.linspace(-1.5, 1.5, 20, dtype=F64)[:, None])
    run = of.flow(tilted, start, of.ExplicitEuler(), dt=0.02, steps=1500, every=1500)
    assert float(tilted.velocity(run.final).norm()) < 1e-6
    gap = optimality_gap(tilted, run.final, box)
    share = float((run.final.points > 0).double().mean())
    roots = [-1.0123370, 0.9871698]  # of 4 x (x^2 - 1) + 0.1
    low, high = (float(tilted.V(torch.tensor([r], dtype=F64))) for r in roots)
    assert share > 0.2
    assert gap.value == pytest.approx(share * (high - low), rel=1e-5)
    settled = of.Particles(run.final.points[run.final.points < 0][:, None])
    assert optimality_gap(tilted, settled, box).value < 1e-9


def test_float32_measures_are_proved_in_double_precision():
    mu = cloud(30, 2)
    F = of.Potential(lambda x: torch.sin(9 * x).sum(-1))
    single = optimality_gap(F, mu.to(torch.float32), BoxDomain(0, 1))
    double = optimality_gap(F, mu.to(torch.float32).to(F64), BoxDomain(0, 1))
    assert single.kind == "proved"
    # The masses 1/30 of float32 differ from those of float64.
    assert single.value == pytest.approx(double.value, rel=1e-6)
    assert single.argmin is not None
    assert single.argmin.dtype == torch.float32


def test_what_cannot_be_proved_is_searched_and_says_why():
    F = of.Potential(lambda x: torch.where(x > 0.5, 1 - x, x).sum(-1))
    gap = optimality_gap(F, cloud(10, 1), BoxDomain(0, 1))
    assert gap.kind is GapKind.SEARCHED
    assert "torch.gt has no interval extension" in gap.reason
    assert gap.value == gap.found

    class Mine(of.Functional):
        def value(self, mu):
            return mu.expectation(lambda x: x.square().sum(-1)) ** 2

        def mixture_curvature(self):
            return "convex"

    gap = optimality_gap(Mine(), cloud(10, 1), BoxDomain(0, 1))
    assert gap.kind == "searched"
    assert "Mine() does not state enclosed_variation(mu)" in gap.reason


def test_a_functional_of_ones_own_states_its_first_variation():
    class Mine(of.Functional):
        def value(self, mu):
            return mu.expectation(lambda x: x.square().sum(-1)) ** 2

        def mixture_curvature(self):
            return "convex"

        def enclosed_variation(self, mu):
            mean = mu.weights @ mu.points.square().sum(-1)
            return lambda x: 2 * mean * x.square().sum(-1)

    mu = cloud(10, 1)
    gap = optimality_gap(Mine(), mu, BoxDomain(0, 1))
    assert gap.kind == "proved"
    assert gap.value == pytest.approx(2 * float(Mine().value(mu)))


def test_a_search_without_descent_is_too_high():
    F = of.Potential(lambda x: torch.where(x > 0.1234, x, 0.2468 - x).sum(-1))
    mu = cloud(10, 2, low=-1)
    still, moved = (optimality_gap(F, mu, BoxDomain(-1, 1), descend=k) for k in (0, 50))
    assert still.kind == moved.kind == "searched"
    assert still.value < moved.value <= float(F.value(mu))


def test_a_search_may_begin_where_there_is_no_slope():
    x = torch.tensor([[0.25], [0.5]], dtype=F64)
    F = of.Potential(lambda x: torch.where(x > 0.5, x - 0.5, 0 * x).sum(-1))
    gap = optimality_gap(F, of.Particles(x), BoxDomain(0, 1))
    assert gap.kind == "searched"
    assert gap.value == 0.0


def test_a_functional_that_is_not_convex_has_no_gap_and_the_term_is_named():
    V = of.Potential(lambda x: x.square().sum(-1))
    F = V - 2 * of.Interaction(of.kernels.Gaussian(1.0))
    gap = optimality_gap(F, cloud(5, 1), BoxDomain(0, 1))
    assert gap.kind == "none"
    assert gap.value == math.inf
    assert "Interaction(Gaussian(sigma=1.0))" in gap.reason
    assert "Potential" not in gap.reason


def test_an_unbounded_domain_has_no_gap():
    V = of.Potential(lambda x: x.square().sum(-1))
    gap = optimality_gap(V, cloud(5, 2), BoxDomain(0, [1, math.inf]))
    assert gap.kind == "none"
    assert gap.value == math.inf
    assert "unbounded" in gap.reason
    json.dumps(gap.to_dict())


def test_a_function_that_is_unbounded_from_below_has_no_gap():
    V = of.Potential(lambda x: x.log().sum(-1))
    gap = optimality_gap(V, cloud(5, 1), BoxDomain(0, 1, max_cells=500))
    assert gap.kind == "none"
    assert gap.value == math.inf


def test_a_budget_of_cells_costs_sharpness_alone():
    F = of.Potential(lambda x: torch.sin(9 * x).sum(-1) * x.square().sum(-1))
    mu = cloud(10, 2)
    exact = true_gap(F, mu, 0.0, 1.0)
    few = optimality_gap(F, mu, BoxDomain(0, 1, max_cells=1, sharpness=1e-9))
    many = optimality_gap(F, mu, BoxDomain(0, 1, sharpness=1e-9))
    assert few.kind == many.kind == "proved"
    assert "max_cells" in few.reason
    assert "max_cells" not in many.reason
    assert exact - 1e-12 <= many.value <= few.value


def test_gaps_are_shown_and_written():
    gap = Gap(0.25, torch.tensor([0.5]), GapKind.PROVED, "why", 0.125)
    assert repr(gap) == (
        "Gap(0.25, kind='proved', found=0.125, argmin=[0.5], reason='why')"
    )
    assert json.loads(json.dumps(gap.to_dict())) == {
        "value": 0.25,
        "argmin": [0.5],
        "kind": "proved",
        "reason": "why",
        "found": 0.125,
    }


def bent(x):
    return (3 * x[..., :-1] * x[..., 1:]).sin().sum(-1) + torch.sin(5 * x.sum(-1))


def test_in_many_dimensions_the_reason_tells_what_to_do():
    """More cells hardly help: their number grows exponentially."""
    F = of.Potential(bent)
    mu = of.Particles(0.5 + 0.01 * normal(5, 6, seed=1).tanh())
    tight = BoxDomain(0.45, 0.65, max_cells=500)
    gap = optimality_gap(F, mu, tight)
    assert gap.kind == "proved"
    assert gap.value > 1.01 * gap.found
    assert "grows exponentially in the dimension, here 6" in gap.reason
    assert "max_cells" not in gap.reason
    for cure in (
        BoxDomain(0.49, 0.51, max_cells=500),
        BoxDomain(0.45, 0.65, max_cells=500, sharpness=10.0),
    ):
        gap = optimality_gap(F, mu, cure)
        assert gap.kind == "proved"
        assert "take a smaller box, or a larger sharpness" not in gap.reason


@pytest.mark.parametrize("most", [1, 2, 7, 63, 64, 65])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_no_more_cells_are_bounded_than_asked_for(most, d):
    V = of.Potential(lambda x: (40 * x).sin().sum(-1) + x.square().prod(-1))
    mu = of.Particles(normal(3, d, seed=2).tanh())
    sharp = optimality_gap(V, mu, BoxDomain(-9, 9))
    gap = optimality_gap(V, mu, BoxDomain(-9, 9, max_cells=most, sharpness=1e-9))
    (cells,) = re.findall(r"on (\d+) cells", gap.reason)
    assert 1 <= int(cells) <= most
    assert gap.kind == "proved"
    assert gap.value >= sharp.found - 1e-9


@pytest.mark.parametrize("kind", ["proved", "searched"])
def test_a_gap_is_the_number_that_it_bounds_by(kind):
    gap = Gap(0.25, None, GapKind(kind), "", 0.125)
    assert float(gap) == 0.25
    assert math.sqrt(gap) == 0.5


@pytest.mark.parametrize(
    ("value", "kind"),
    [(math.inf, "none"), (0.25, "none"), (math.inf, "searched"), (math.nan, "proved")],
)
def test_a_gap_that_bounds_nothing_is_no_number(value, kind):
    with pytest.raises(ValueError, match="bounds nothing, so it is no number: why"):
        float(Gap(value, None, GapKind(kind), "why", value))
