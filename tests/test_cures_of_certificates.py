"""Cures that a user of certificates is told: each is done as the message says it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

import otflow as of
from otflow.errors import InvalidFunctional, Unsupported
from otflow.meanfield import PathBall, Risk, TwoLayer, VariationBall
from otflow.optimality import BoxDomain, OnGrid, optimality_gap
from otflow.testing.clouds import normal
from tests.cures import Case, check_cures

F64 = torch.float64
V = of.Potential(lambda x: x.square().sum(-1))
POINTS = normal(3, 1)
CLOUD = of.Particles(POINTS)
NORMAL = of.Gaussian(torch.zeros(1, dtype=F64), torch.eye(1, dtype=F64))
X, Y = normal(6, 1, seed=1), normal(6, 1, seed=2)[:, 0]


def rows():
    return of.GridDensity.from_function(
        lambda x: torch.ones(len(x)), -1, 1, 12, walls=True
    )


def risk(**options):
    return Risk(TwoLayer("relu"), X, Y, **options)


def bent(f, y):
    return 1 - torch.exp(-((f - y) ** 2))


def message(action) -> str:
    with pytest.raises((ValueError, Unsupported), match=r"\w") as caught:
        action()
    return str(caught.value)


# Numbers of a cure -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("kind", ["path", "variation"])
def test_the_numbers_that_make_a_network_fit_a_ball_do(kind, dtype):
    """Rounded to nine digits, half of the divisors would be too small."""
    generator = torch.Generator().manual_seed(0)
    inputs, targets = X.to(dtype), Y.to(dtype)
    F = Risk(TwoLayer("relu"), inputs, targets)

    def ball(radius):
        if kind == "path":
            return PathBall(radius, budget=20)
        return VariationBall(radius, -20, 20, budget=20)

    for _ in range(12):
        theta = 2 * torch.randn(5, 3, generator=generator, dtype=dtype)
        text = message(lambda: optimality_gap(F, of.Particles(theta), ball(0.1)))  # noqa: B023
        found = re.search(r"take (?:PathBall\(|a radius of )([-+.e0-9]+)", text)
        divisor = re.search(r"divide the outer weights by ([-+.e0-9]+)$", text)
        assert found is not None
        assert divisor is not None
        assert optimality_gap(F, of.Particles(theta), ball(float(found[1]))).value > 0
        theta = torch.cat([theta[:, :1] / float(divisor[1]), theta[:, 1:]], 1)
        assert optimality_gap(F, of.Particles(theta), ball(0.1)).value > 0


# Points, lists and results in the place of a measure ---------------------------------

ENTROPIC = V + of.Entropy()
RUN = of.flow(V, CLOUD, of.JKO(), dt=0.1, steps=2)
NEURONS = normal(4, 3)
TAKERS: dict[str, Any] = {
    "optimality_gap": lambda mu: optimality_gap(V, mu, BoxDomain(-9, 9)),
    "flow": lambda mu: of.flow(V, mu, of.JKO(), dt=0.1, steps=1),
    "value": V.value,
    "velocity": V.velocity,
    "velocity at places": lambda mu: V.velocity(mu, POINTS),
    "first variation": of.Interaction(lambda z: z.square().sum(-1)).first_variation,
    "dissipation": lambda mu: of.analysis.dissipation(V, mu),
    "convexity": lambda mu: of.analysis.displacement_convexity(V, mu, mu),
    "base": lambda mu: of.analysis.displacement_convexity(V, CLOUD, CLOUD, base=mu),
    "mixtures": lambda mu: of.analysis.mixture_convexity(V, mu, mu),
    "falsify": lambda mu: of.analysis.falsify(V, mu),
    "inequality": lambda mu: of.analysis.evolution_variational_inequality(V, RUN, mu),
    "against": lambda mu: of.analysis.certify(RUN, V, against=mu),
    "one against": lambda mu: of.analysis.certify(RUN, V, against=[CLOUD, mu]),
    "path": lambda mu: of.analysis.continuity_residual([mu, mu], torch.sin),
    "barycenter": lambda mu: of.metrics.barycenter([mu]),
    "mixture": lambda mu: CLOUD.mix(mu, 0.5),
    "outputs": lambda mu: TwoLayer("relu")(mu, X),
    "outputs of a risk": lambda mu: risk().outputs(mu),
    "first variation of a risk": lambda mu: risk().first_variation(mu),
    "fenchel_gap": lambda mu: of.meanfield.fenchel_gap(risk(), mu, 0.1),
    "path_norm": lambda mu: of.meanfield.path_norm(TwoLayer("relu"), mu),
    "tangent kernel": lambda mu: of.meanfield.empirical_ntk(TwoLayer("relu"), mu, X),
    "to_module": lambda mu: of.meanfield.to_module(mu, TwoLayer("relu")),
    "solver": lambda mu: of.proximal.default_solver(mu, V),
    "film": lambda mu: of.plotting.animate([mu, mu]),
    "blob": lambda mu: of.Blob(of.Entropy(), 0.3).density(mu),
}


@pytest.mark.parametrize("name", TAKERS)
def test_points_in_the_place_of_a_measure_are_told_to_be_made_one(name):
    with pytest.raises(TypeError, match=r"make Particles\(points\)$"):
        TAKERS[name](POINTS)
    with pytest.raises(TypeError, match=r"make Particles\(points\)$"):
        TAKERS[name](POINTS.numpy())


@pytest.mark.parametrize("name", [n for n in TAKERS if "against" not in n])
def test_nested_lists_are_told_their_dtype_too(name):
    cure = r"make Particles\(torch.tensor\(points, dtype=torch.float64\)\)$"
    with pytest.raises(TypeError, match=cure):
        TAKERS[name]([[0.5], [0.25]])
    points = [[0.5], [0.25]]
    assert of.Particles(torch.tensor(points, dtype=torch.float64)).n == 2


@pytest.mark.parametrize("name", TAKERS)
def test_a_run_in_the_place_of_a_measure_is_told_to_hold_one(name):
    with pytest.raises(TypeError, match=r"the (measure|Particles): take its \.final$"):
        TAKERS[name](RUN)


@pytest.mark.parametrize(
    "ask",
    [
        lambda rho: of.optimality.gibbs(ENTROPIC, rho),
        lambda rho: of.optimality.entropic_gap(ENTROPIC, rho),
        lambda rho: of.optimality.entropic_bracket(ENTROPIC, rho, rho),
    ],
)
def test_a_result_in_the_place_of_a_density_is_told_to_hold_one(ask):
    best = of.optimality.gibbs(ENTROPIC, rows())
    with pytest.raises(TypeError, match=r"GridDensity: take its \.measure$"):
        ask(best)
    ask(best.measure)
    with pytest.raises(TypeError, match=r"make one by GridDensity.from_function or"):
        ask(POINTS)


@pytest.mark.parametrize(
    "ask", [of.analysis.displacement_convexity, of.analysis.mixture_convexity]
)
def test_two_measures_are_named_as_the_arguments_are(ask):
    with pytest.raises(ValueError, match=r"a.* dimension 1.* b |b .*dimension 2.* a "):
        ask(V, CLOUD, of.Particles(normal(3, 2)))
    with pytest.raises(TypeError, match=r"^b has dtype torch.float32 but a has"):
        ask(V, CLOUD, CLOUD.to(torch.float32))
    ask(V, CLOUD, of.Particles(POINTS + 1).to(torch.float32).to(torch.float64))


# Seeds and times ---------------------------------------------------------------------


def test_a_search_takes_a_seed_as_a_flow_does():
    F = of.Potential(lambda x: (3 * x).cos().sum(-1))
    ways = (3, np.int64(3), torch.Generator().manual_seed(3))
    found = [
        of.analysis.falsify(F, CLOUD, evaluations=50, generator=seed) for seed in ways
    ]
    assert len({str(report) for report in found}) == 1
    other = of.analysis.falsify(F, CLOUD, evaluations=50, generator=4)
    assert str(other) != str(found[0])


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_times_are_a_list_as_well_as_a_tensor(kind):
    nu = of.Particles(POINTS + 1)
    report = of.analysis.displacement_convexity(V, CLOUD, nu, times=kind([0.0, 0.5, 1]))
    assert report.times.tolist() == [0, 0.5, 1]
    report = of.analysis.mixture_convexity(V, CLOUD, nu, times=kind([0.0, 0.5, 1]))
    assert report.times.tolist() == [0, 0.5, 1]


# Functions that give no tensor -------------------------------------------------------

ANSWERS: dict[str, Any] = {
    "features": lambda f: of.OfExpectation(lambda m: m.sum(), f).value(CLOUD),
    "a potential": lambda f: of.Potential(f).value(CLOUD),
    "an interaction": lambda f: of.Interaction(f).value(CLOUD),
    "a density on a grid": lambda f: of.GridDensity.from_function(f, -1, 1, 5),
    "quantiles": lambda f: of.Quantiles.from_function(f, -1, 1, 5),
    "a loss": lambda f: Risk(
        TwoLayer("relu"), X, Y, loss=lambda a, _: f(a[:, None])
    ).value(of.Particles(NEURONS)),
    "neurons": lambda f: of.meanfield.CustomLayer(lambda x, t: f(x @ t[:, 1:2].T))(
        of.Particles(NEURONS), X
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_function_in_numpy_is_told_to_use_torch(name):
    with pytest.raises(
        InvalidFunctional,
        match=r"must return a torch.Tensor, got (ndarray|float64); compute it",
    ):
        ANSWERS[name](lambda x: np.exp(-(x.detach().numpy().sum(-1) ** 2)))


# Reasons of gaps that are not proved -------------------------------------------------


def test_a_gap_without_convexity_says_how_to_declare_it():
    gap = optimality_gap(risk(loss=bent), of.Particles(NEURONS), PathBall(100.0))
    assert gap.kind == "none"
    assert "Risk(..., mixture='convex')" in gap.reason
    penalised = of.meanfield.fenchel_gap(
        risk(loss=bent), of.Particles(NEURONS), 0.1
    ).reason
    assert "Risk(..., mixture='convex')" in penalised
    told = risk(loss=lambda f, y: (f - y).abs() ** 1.5, mixture="convex")
    assert optimality_gap(told, of.Particles(NEURONS), PathBall(100.0)).kind == "proved"
    many = Risk(TwoLayer("relu", scaling="ntk"), X, Y)
    gap = optimality_gap(many, of.Particles(NEURONS), PathBall(100.0))
    assert gap.kind == "none"
    assert gap.reason.endswith("take scaling='mean-field'")
    heat = of.OfExpectation(lambda m: m.sum(), lambda x: x) + of.Entropy()
    gap = of.optimality.entropic_gap(heat, rows())
    assert 'OfExpectation(R, Phi, mixture="convex")' in gap.reason


def test_a_concave_term_is_named_so():
    F = V - of.MMDTo(CLOUD, of.kernels.Gaussian(1.0))
    reason = optimality_gap(F, CLOUD, BoxDomain(-9, 9)).reason
    assert "-Interaction(Gaussian(sigma=1.0)) is concave, since the kernel" in reason
    assert "Potential" not in reason


def test_a_loss_without_an_extension_is_told_the_balls():
    F = risk(loss=lambda f, y: (f - y).abs() ** 1.5, mixture="convex")
    corner = [9.0] * 3
    mu = of.Particles(NEURONS)
    gap = optimality_gap(F, mu, BoxDomain([-9.0] * 3, corner), descend=2)
    assert gap.kind == "searched"
    assert "meanfield.VariationBall or PathBall" in gap.reason
    assert optimality_gap(F, mu, PathBall(100.0)).kind == "proved"
    assert optimality_gap(F, mu, VariationBall(100.0, -9, 9)).kind == "proved"


def test_a_box_on_a_grid_is_told_the_domain_that_proves():
    gap = optimality_gap(V, rows(), BoxDomain(-1, 1))
    assert gap.kind == "searched"
    assert gap.reason.endswith("on a grid OnGrid() is a domain with a proof")
    assert optimality_gap(V, rows(), OnGrid()).kind == "proved"


def test_a_function_has_not_the_name_of_a_unit_or_of_a_loss():
    """What is told of "relu" would not be true of torch.relu."""

    def square(f, y):
        return (f - y).square()

    assert repr(TwoLayer(torch.relu)) == "TwoLayer(relu)"
    assert repr(TwoLayer("relu")) == "TwoLayer('relu')"
    assert "loss=square)" in repr(risk(loss=square))
    assert "loss='square')" in repr(risk(loss="square"))
    words = message(
        lambda: of.meanfield.path_norm(TwoLayer(torch.relu), of.Particles(NEURONS))
    )
    assert "TwoLayer(relu) has none" in words
    assert "use TwoLayer('relu')" in words


class Misspelt(of.OfExpectation):
    def modulus(self, dim):
        return 0.0


def misspelt():
    """Define a class whose modulus takes no dimension."""

    class Own(of.OfExpectation):
        def modulus(self):  # type: ignore[override]
            return 0.0

    return Own


CASES: dict[str, Case] = {
    "a modulus that takes no dimension": (
        InvalidFunctional,
        r"Own\.modulus: too many positional arguments; write def modulus\(self, dim\)",
        misspelt,
        [lambda: Misspelt(lambda m: m.sum(), lambda x: x).modulus(1)],
    ),
    "points beside a Gaussian": (
        TypeError,
        r"other must be a Gaussian, got Tensor.*make Gaussian\(mean, covariance\)",
        lambda: NORMAL.displacement_to(POINTS),
        [lambda: NORMAL.displacement_to(of.Gaussian(NORMAL.mean, NORMAL.covariance))],
    ),
    "a name in the place of a scheme": (
        TypeError,
        r"scheme must be a Scheme.*take one, e\.g\. ExplicitEuler\(\) or JKO\(\)",
        lambda: of.schemes.Minibatch("euler"),
        [
            lambda: of.schemes.Minibatch(of.ExplicitEuler()),
            lambda: of.schemes.Minibatch(of.JKO()),
        ],
    ),
    "measures in the place of a run": (
        TypeError,
        r"trajectory must be a Trajectory.*pass what flow returned",
        lambda: of.analysis.evolution_variational_inequality(V, [CLOUD], CLOUD),
        [
            lambda: of.analysis.evolution_variational_inequality(
                V, RUN, CLOUD, modulus=2.0
            )
        ],
    ),
    "a function in NumPy": (
        InvalidFunctional,
        r"must return a torch.Tensor, got ndarray; compute it with torch, as torch.cos",
        lambda: of.Potential(lambda x: np.cos(x.detach().numpy()[:, 0])).value(CLOUD),
        [lambda: of.Potential(lambda x: torch.cos(x)[:, 0]).value(CLOUD)],
    ),
    # No box helps where the measure has no first variation.
    "a box for a Gaussian": (
        Unsupported,
        r"Gaussian has no mass gradient: .*ask a GridDensity or Particles\(mu.sample",
        lambda: optimality_gap(V, NORMAL, BoxDomain(-0.1, 1)),
        [
            lambda: optimality_gap(
                V,
                of.Particles(NORMAL.sample(9, torch.Generator().manual_seed(0))),
                BoxDomain(-9, 9),
            )
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_cures(name):
    check_cures(CASES[name])


# Declarations that are believed, tried or wrongly written ----------------------------


def wells(mixture):
    squares = lambda x: x.square().sum(-1)
    pull = of.Interaction(lambda z: -3 * (-2 * squares(z)).exp(), mixture=mixture)
    tilted = of.Potential(lambda x: (squares(x) - 1) ** 2 + 0.2 * x[..., 0])
    return tilted + pull + 0.05 * of.Entropy()


def on_the_right():
    return of.GridDensity.from_function(
        lambda x: (-4 * (x - 1).square().sum(-1)).exp(), -2.5, 2.5, 100, dtype=F64
    )


def test_the_uniqueness_of_a_fixed_point_names_what_it_rests_on():
    """The word is false, and there are two fixed points."""
    with pytest.warns(of.errors.FixedPointWarning, match="several fixed points"):
        found = of.optimality.gibbs(wells("convex"), on_the_right())
    assert found.uniqueness == "searched"
    assert "as mixture= declares, and that is false" in found.reason
    assert "8 further starts looked for others" in found.reason
    assert found.others
    assert found.others[0].energy > found.energy + 0.1
    alone = of.optimality.gibbs(wells("convex"), on_the_right(), starts=0)
    assert alone.uniqueness == "none"
    told = of.Interaction(lambda z: z.abs().sum(-1) * -1.0, mixture="convex")
    hot = 4 * V + told + 0.2 * of.Entropy()
    found = of.optimality.gibbs(hot, on_the_right())
    assert found.uniqueness == "proved"
    assert "not proved but declared: Interaction(<lambda>)" in found.reason
    known = of.optimality.gibbs(V + of.Entropy(), on_the_right())
    assert known.uniqueness == "proved"
    assert known.reason == "F is convex along mixtures"
    unknown = of.optimality.gibbs(wells(None), on_the_right(), starts=0)
    assert unknown.uniqueness == "none"
    assert "Interaction(<lambda>), since" in unknown.reason


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("modulus", "def modulus(self, dim)"),
        ("mixture_curvature", "def mixture_curvature(self)"),
        ("value", "def value(self, mu)"),
        ("enclosed_variation", "def enclosed_variation(self, mu)"),
    ],
)
def test_a_method_with_other_arguments_is_told_its_own(name, written):
    def wrong(self, mu, dim):
        return None

    with pytest.raises(InvalidFunctional, match=re.escape(f"write {written}")):
        type("Own", (of.Functional,), {name: wrong})
    # As it is written.
    method: dict[str, Any] = {}
    exec(f"{written}: return None", method)
    type("Own", (of.Functional,), {name: method[name]})


def test_a_pole_is_told_with_its_place():
    pole = of.Potential(lambda x: (x[..., 0] - 0.25).abs().log())
    atoms = of.Particles(torch.tensor([[0.9], [0.75]], dtype=F64))
    gap = optimality_gap(pole, atoms, BoxDomain(0, 1, max_cells=300))
    assert gap.kind == "none"
    place = re.search(r"without bound near \[([-.e0-9]+)\]", gap.reason)
    assert place is not None
    assert abs(float(place[1]) - 0.25) < 1e-3
    assert "take a box without this place" in gap.reason
    assert optimality_gap(pole, atoms, BoxDomain(0.3, 1)).kind == "proved"


@pytest.mark.slow
def test_what_the_line_has_is_not_said_of_other_spaces():
    mu = of.Particles(POINTS)
    F = of.SquaredDistanceTo(mu)
    assert "1-convex along geodesics on the line" in F.why(1)
    assert "off the line" in F.why(2)
    found = of.analysis.falsify(F, mu, modulus=0.9, evaluations=400)
    assert not found.refuted_on_geodesics
    logs = of.Interaction(of.kernels.Log()).why(1)
    assert "none is known of Log() along every coupling; along geodesics" in logs
    assert "geodesics" not in of.Interaction(of.kernels.Log()).why(2)


def test_a_functional_of_the_library_is_told_how_to_state_a_modulus():
    F = of.OfExpectation(lambda m: m.square().sum(), lambda x: x, mixture="convex")
    assert "state modulus(self, dim) in a subclass" in F.why(1)

    class Convex(of.OfExpectation):
        def modulus(self, dim):
            return 0.0

    F = Convex(lambda m: m.square().sum(), lambda x: x, mixture="convex")
    assert F.modulus(1) == 0.0
    run = of.flow(F, CLOUD, of.JKO(), dt=0.1, steps=2)
    assert of.analysis.certify(run, F)["time error"].verdict == "proved"


def test_steps_that_lowered_the_energy_are_not_said_to_have_stayed():
    """A solve that stops too early has moved, and one that cannot move has not."""
    well = of.Potential(lambda x: (x.square() - 1).square().sum(-1))
    early = of.JKO(of.proximal.ParticleProximal(max_gradients=3))
    with pytest.warns(
        of.errors.NotConvergedWarning, match="each lowered the energy all the same: "
    ) as caught:
        of.flow(well, CLOUD, early, dt=0.1, steps=2)
    run = caught[0].message.trajectory  # type: ignore[union-attr]
    assert bool((run.records["energy"].diff() < 0).all())
    stuck = of.JKO(of.proximal.ParticleProximal(max_gradients=1))
    with pytest.warns(of.errors.NotConvergedWarning, match="measure may have stayed: "):
        of.flow(well, CLOUD, stuck, dt=0.1, steps=2)
