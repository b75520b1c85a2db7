"""A subclass that evaluates otherwise claims nothing of what its parent knows.

Each method and attribute of each public class is overridden by minus itself, or by
another number. Where that changes a value, the subclass must know no convexity, no
terms, no bounds on boxes, and must not be proved near optimal as its parent is. Whether
a value changes is found by evaluation, not by the list that the library derives.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import otflow as of
from otflow.errors import Unsupported
from otflow.numerics.enclosures import Enclosure, NotEnclosed
from otflow.testing.clouds import normal

F64 = torch.float64
K, M = of.kernels, of.meanfield
X, Y = normal(5, 1, seed=1), normal(5, seed=2)
TARGET = normal(4, 1, seed=3)
ATOMS = of.Particles(normal(6, 1, seed=4).abs(), torch.arange(1, 7, dtype=F64) / 21)
NEURONS = of.Particles(normal(4, 3, seed=5))
LINE = of.Quantiles(torch.linspace(-1, 2, 9, dtype=F64))
WIDE = of.Quantiles(torch.linspace(-3, 4, 9, dtype=F64))
CELLS = of.GridDensity.from_function(
    lambda x: (-x.square().sum(-1)).exp(), -5, 5, 24, dtype=F64
)
NORMAL = of.Gaussian(torch.zeros(1, dtype=F64), torch.eye(1, dtype=F64))
BOX = of.optimality.BoxDomain(-4.0, 4.0)


def bowl(x: Tensor) -> Tensor:
    return x.square().sum(-1)


def score(x: Tensor) -> Tensor:
    return -x


def bump(x: Tensor, theta: Tensor) -> Tensor:
    return theta[:, 0] * (x * theta[:, 1] + theta[:, 2]).tanh()


def of_two(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(-1)


Make = Callable[..., Any]
# How an instance of each class is made, and a measure at which it has a value.
FUNCTIONALS: dict[type, tuple[Make, list[Any]]] = {
    of.Potential: (lambda kind: kind(bowl, modulus=2.0), [ATOMS]),
    of.Interaction: (lambda kind: kind(K.Gaussian(1.0)), [ATOMS, CELLS]),
    of.OfExpectation: (
        lambda kind: kind(lambda m: m.square().sum(), lambda x: x, mixture="convex"),
        [ATOMS],
    ),
    of.MMDTo: (lambda kind: kind(TARGET, K.Gaussian(1.0)), [ATOMS]),
    of.EnergyDistanceTo: (lambda kind: kind(TARGET), [ATOMS]),
    of.functionals.KSD: (lambda kind: kind(score, K.Gaussian(1.0)), [ATOMS]),
    of.Blob: (lambda kind: kind(of.PowerEntropy(2.0), 0.5), [ATOMS]),
    of.SquaredDistanceTo: (lambda kind: kind(WIDE), [LINE]),
    of.SlicedWassersteinTo: (lambda kind: kind(TARGET), [ATOMS]),
    of.functionals.SinkhornDivergenceTo: (lambda kind: kind(TARGET, 1.0), [ATOMS]),
    of.Internal: (lambda kind: kind(torch.log, modulus=0.0), [LINE, CELLS]),
    of.Entropy: (lambda kind: kind(), [LINE, CELLS, NORMAL]),
    of.PowerEntropy: (lambda kind: kind(2.0), [LINE, CELLS, NORMAL]),
    of.Congestion: (lambda kind: kind(5.0), [LINE, CELLS]),
    of.KL: (lambda kind: kind(bowl, modulus=2.0), [LINE]),
    of.functionals.Sum: (
        lambda kind: kind((of.Potential(bowl, modulus=2.0),)),
        [ATOMS],
    ),
    of.functionals.Scaled: (
        lambda kind: kind(2.0, of.Potential(bowl, modulus=2.0)),
        [ATOMS],
    ),
    M.Risk: (lambda kind: kind(M.TwoLayer("relu"), X, Y), [NEURONS]),
}
KERNELS: dict[type, Make] = {
    K.Gaussian: lambda kind: kind(1.0),
    K.InverseMultiquadric: lambda kind: kind(1.0),
    K.Quadratic: lambda kind: kind(),
    K.Energy: lambda kind: kind(),
    K.Log: lambda kind: kind(),
    K.Riesz: lambda kind: kind(1.0),
    K.PowerLaw: lambda kind: kind(4.0, 2.0),
    K.Function: lambda kind: kind(bowl, modulus=2.0, mixture="concave"),
    K.Combination: lambda kind: kind(((2.0, K.Gaussian(1.0)), (1.0, K.Energy()))),
    K.TwoPoint: lambda kind: kind(of_two, modulus=0.0, mixture="convex"),
}
NETWORKS: dict[type, Make] = {
    M.TwoLayer: lambda kind: kind("relu"),
    M.CustomLayer: lambda kind: kind(bump),
}
# What states a claim, and does not evaluate.
CLAIMS = {
    "enclosed_field",
    "enclosed_variation",
    "mixture",
    "mixture_curvature",
    "modulus",
    "terms",
    "why_mixture",
    "why_modulus",
}


def negated(answer: Any) -> Any:
    """Return minus what a method returns; a flag or a bound becomes another one."""
    if isinstance(answer, bool):
        return not answer
    if isinstance(answer, (Tensor, float, int, of.Functional, K.Kernel)):
        return -answer
    if isinstance(answer, (tuple, list)):
        return type(answer)(map(negated, answer))
    if callable(answer):
        return lambda *given, **options: negated(answer(*given, **options))
    return answer


def overridden(kind: type, name: str) -> type:
    """Return a subclass whose method or attribute of that name is minus itself."""
    held = inspect.getattr_static(kind, name)
    if isinstance(held, property):
        made: Any = property(lambda self: negated(held.__get__(self)))
    elif callable(getattr(kind, name)):

        def made(self: Any, *given: Any, **options: Any) -> Any:
            return negated(getattr(super(mine, self), name)(*given, **options))

        made.__name__ = name
    else:
        made = negated(held)
    mine: type = type(f"Other{kind.__name__}", (kind,), {name: made})
    return mine


def names(kind: type) -> list[str]:
    """Return what a subclass may override: all but special names and claims."""
    found = []
    for name in dir(kind):
        special = name.startswith("__") and name != "__call__"
        held = inspect.getattr_static(kind, name)
        final = getattr(getattr(held, "fget", held), "__final__", False)
        if special or final or name.startswith("_abc") or name in CLAIMS:
            continue
        if isinstance(held, classmethod):  # it makes an instance
            continue
        found.append(name)
    return found


CASES = [
    (kind, name)
    for classes in (FUNCTIONALS, KERNELS, NETWORKS)
    for kind in classes
    for name in names(kind)
]


def values(F: of.Functional, places: list[Any]) -> list[float | str]:
    found: list[float | str] = []
    for mu in places:
        try:
            found.append(float(F.value(mu).detach()))
        except Exception as error:
            found.append(type(error).__name__)
    return found


def velocity(F: of.Functional) -> Tensor | None:
    try:
        return F.velocity(ATOMS)
    except Exception:
        return None


def made(kind: type, mine: type) -> tuple[of.Functional, list[Any]]:
    """Return the functional of a class, of a kernel of it, or of a network of it."""
    if kind in FUNCTIONALS:
        make, places = FUNCTIONALS[kind]
        return make(mine), places
    if kind in KERNELS:
        return of.Interaction(KERNELS[kind](mine)), [ATOMS, CELLS]
    return M.Risk(NETWORKS[kind](mine), X, Y), [NEURONS]


def changes(kind: type, name: str) -> of.Functional | None:
    """Return the functional of a subclass if its values are other ones, else None."""
    try:
        F, places = made(kind, overridden(kind, name))
    except Exception:  # no instance can be made
        return None
    plain = made(kind, kind)[0]
    same = values(plain, places) == values(F, places)
    if kind in KERNELS:  # sums of values and of slopes have closed forms of their own
        v, w = plain.velocity(ATOMS), velocity(F)
        same = same and w is not None and torch.allclose(v, w, rtol=1e-12)
    return None if same else F


def assert_enclosed_or_unknown(F: of.Interaction) -> None:
    """Another profile of a kernel is enclosed as such; all else is not enclosed."""
    x = ATOMS.points
    try:
        found = F.enclosed_variation(ATOMS)(Enclosure.of(x, x, 0)).value
    except NotEnclosed:
        return
    # By differentiation of the value alone: no closed form of a derivative counts.
    truth = ATOMS.mass_gradient(F.value).detach()
    assert bool(((found[0] <= truth + 1e-12) & (truth - 1e-12 <= found[1])).all())


@pytest.mark.parametrize(
    ("kind", "name"), CASES, ids=[f"{k.__name__}.{n}" for k, n in CASES]
)
def test_a_subclass_with_other_values_makes_no_claim(kind, name):
    F = changes(kind, name)
    if F is None:
        return
    assert F.mixture_curvature() is None, "a mixture curvature is claimed"
    assert F.modulus(1) is None, "a modulus is claimed"
    assert [term for _, term in F.terms()] == [F], "terms are claimed"
    assert "unknown" in F.why().splitlines()[0]
    if kind in KERNELS:
        assert_enclosed_or_unknown(F)
    else:
        with pytest.raises(NotEnclosed):
            F.enclosed_variation(NEURONS if isinstance(F, M.Risk) else ATOMS)
    gap = of.optimality.optimality_gap(F, made(kind, kind)[1][0], BOX)
    assert (gap.kind, gap.value) == ("none", math.inf)


def test_many_ways_to_change_a_value_are_tried():
    """The test above cannot pass because nothing changes."""
    found = {(kind, name) for kind, name in CASES if changes(kind, name) is not None}
    nothing = {(of.Congestion, "value")}  # minus 0
    assert {(kind, "value") for kind in FUNCTIONALS} - found == nothing
    assert {
        (of.Entropy, "energy"),
        (of.PowerEntropy, "_per_mass"),
        (of.Blob, "density"),
        (M.Risk, "outputs"),
        (K.Gaussian, "profile"),
        (K.Gaussian, "profile_and_slope"),
        (K.Function, "__call__"),
        (K.TwoPoint, "pairs"),
        (K.Gaussian, "singular"),
        (M.TwoLayer, "hidden"),
        (M.TwoLayer, "read_out"),
        (M.TwoLayer, "evaluate"),
        (M.CustomLayer, "masses"),
    } - found == set()


# Sisters: mixins, classes between, declarations made anew -----------------------------


class Minus:
    """Before a class of the library in the order of resolution."""

    def value(self, mu):
        return -super().value(mu)


def test_a_mixin_changes_the_value_too():
    class Mixed(Minus, of.EnergyDistanceTo):
        pass

    class Later(Mixed):
        pass

    for kind in (Mixed, Later):
        F = kind(TARGET)
        assert F.mixture_curvature() is None
        assert F.terms() == ((1.0, F),)


def test_what_a_subclass_changes_not_is_kept():
    class Named(of.Potential):
        """A new name, a new constructor, another derivative, a copy."""

        def __init__(self, V):
            super().__init__(V, modulus=2.0)
            self.name = "named"

        def value_and_velocity(self, mu):
            return super().value_and_velocity(mu)

        def carry(self, move):
            return self

        def __repr__(self):
            return self.name

        def length(self):
            return len(self.name)

    class Later(Named):
        pass

    for F in (Named(bowl), Later(bowl)):
        assert F.mixture_curvature() == "linear"
        assert F.modulus(1) == 2.0
        assert of.optimality.optimality_gap(F, ATOMS, BOX).kind == "proved"


def test_a_claim_that_is_made_anew_holds_and_is_inherited():
    class Twice(of.Potential):
        def value(self, mu):
            return 2 * super().value(mu)

        def mixture_curvature(self):
            return "linear"

        def enclosed_variation(self, mu):
            inner = super().enclosed_variation(mu)
            return lambda x: 2 * inner(x)

    class Later(Twice):
        pass

    class Other(Twice):
        def value(self, mu):
            return super().value(mu) ** 2

    whole = of.optimality.optimality_gap(of.Potential(bowl), ATOMS, BOX).value
    for F in (Twice(bowl), Later(bowl)):
        gap = of.optimality.optimality_gap(F, ATOMS, BOX)
        assert gap.kind == "proved"
        assert gap.value == pytest.approx(2 * whole)
    assert Other(bowl).mixture_curvature() is None


@pytest.mark.parametrize("kind", [of.MMDTo, of.EnergyDistanceTo, of.Interaction])
def test_a_value_of_ones_own_is_not_proved_as_the_parents(kind):
    class Five(kind):  # type: ignore[valid-type]  # one of three classes
        def value(self, mu):
            return 5 * super().value(mu)

        def mixture_curvature(self):  # true of these kernels
            return "convex"

    F, plain = (FUNCTIONALS[kind][0](k) for k in (Five, kind))
    gap = of.optimality.optimality_gap(F, ATOMS, BOX)
    assert gap.kind == "searched"
    known = of.optimality.optimality_gap(plain, ATOMS, BOX)
    assert gap.value == pytest.approx(5 * known.value, rel=0.05)


def test_derivatives_are_those_of_the_new_value():
    """In closed form they would be those of the parent's."""
    for kind, (make, places) in FUNCTIONALS.items():
        if kind is of.Congestion:
            continue
        mine, plain = make(overridden(kind, "value")), make(kind)
        for mu in places:
            v = plain.velocity(mu)
            torch.testing.assert_close(mine.velocity(mu), -v, rtol=1e-9, atol=1e-9)


def test_pointwise_maps_are_those_of_the_new_energy():
    class Tripled(of.PowerEntropy):
        def _per_mass(self, r):
            return 3 * super()._per_mass(r)

    r, F = torch.tensor([0.5, 2.0], dtype=F64), Tripled(2.0)
    torch.testing.assert_close(F.slope(r), 6 * r)
    z = F.log_proximal(r, 1.0, 1.0)
    torch.testing.assert_close(z + 6 * z.exp(), r)


def test_an_entropy_of_ones_own_is_no_heat():
    class Cold(of.Entropy):
        def energy(self, mu):
            return -super().energy(mu)

    F = Cold() + of.Potential(bowl)
    assert F.split_entropy() == (0.0, F)
    with pytest.raises(ValueError, match="positive multiple of the entropy"):
        of.optimality.entropic_gap(F, CELLS)


@pytest.mark.parametrize("name", ["value", "outputs"])
def test_balls_of_networks_refuse_another_risk(name):
    F = FUNCTIONALS[M.Risk][0](overridden(M.Risk, name))
    refuse_balls(F, rf"\.{name} changes the risk")


@pytest.mark.parametrize("name", ["hidden", "read_out", "evaluate", "split", "masses"])
def test_balls_of_networks_refuse_other_outputs(name):
    network = overridden(M.TwoLayer, name)("relu")
    F = M.Risk(network, X, Y)
    refuse_balls(F, rf"OtherTwoLayer\.{name} changes the outputs")
    # The closed form of the velocity is that of the plain network.
    plain = ATOMS_OF_RISK.value_and_position_gradient(F.value)[1]
    torch.testing.assert_close(F.velocity(ATOMS_OF_RISK), -plain)


ATOMS_OF_RISK = of.Particles(normal(4, 3, seed=6))


def refuse_balls(F, words):
    class Stated(type(F)):
        def mixture_curvature(self):
            return "convex"

    F.__class__ = Stated
    ones = 3 * torch.ones(2, dtype=F64)
    ball = M.PathBall(100.0)
    with pytest.raises(Unsupported, match=words):
        of.optimality.optimality_gap(F, NEURONS, ball)
    with pytest.raises(Unsupported, match=words):
        of.optimality.optimality_gap(F, NEURONS, M.VariationBall(9.0, -ones, ones))
    with pytest.raises(Unsupported, match=words):
        M.fenchel_gap(F, NEURONS, 0.1)
    with pytest.raises(Unsupported, match=r"changes the risk"):
        F.decompose()


def test_the_duality_gap_asks_for_convexity():
    class Silent(M.Risk):
        def mixture_curvature(self):
            return None

    gap = M.fenchel_gap(Silent(M.TwoLayer("relu"), X, Y), NEURONS, 0.1)
    assert (gap.kind, gap.value) == ("none", math.inf)
    assert "not known to be convex" in gap.reason


def test_a_unit_of_other_values_is_not_homogeneous():
    class Squared(type(M.TwoLayer("relu").activation)):
        def __call__(self, z):
            return super().__call__(z).square()

    F = M.Risk(M.TwoLayer(Squared()), X, Y)
    with pytest.raises(Unsupported, match="none that is declared so"):
        of.optimality.optimality_gap(F, NEURONS, M.PathBall(100.0))
    plain = NEURONS.value_and_position_gradient(F.value)[1]
    torch.testing.assert_close(F.velocity(NEURONS), -plain)


def test_a_module_of_other_outputs_is_none():
    with pytest.raises(Unsupported, match=r"OtherTwoLayer\.hidden changes the outputs"):
        M.to_module(NEURONS, overridden(M.TwoLayer, "hidden")("relu"))
