"""Cures of measures of parts, of parameters, of functionals and schemes of a part."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.functionals import InPart, OfPart
from otflow.measures import Euclidean, Parts
from otflow.schemes import PartByPart
from otflow.testing.clouds import normal
from tests.cures import Case, check_cures
from tests.measures.intervals import Intervals

F64 = torch.float64
CLOUD = of.Particles(normal(6, 2))
AWAY = of.Particles(normal(6, 2, seed=2))
OTHER = of.Particles(normal(4, 1, seed=1))
BELL = of.Gaussian(normal(2), torch.eye(2, dtype=F64))
LINE = of.Quantiles(torch.linspace(-1, 1, 5, dtype=F64))
TENSOR = Euclidean(normal(2, 3))
BOTH = Parts({"outer": CLOUD, "inner": OTHER})
SMOOTH = Parts({"outer": CLOUD, "bell": BELL})
MOVED = Parts({"outer": of.Particles(normal(6, 2, seed=2)), "inner": OTHER})
MIXED = Parts({"outer": CLOUD, "tensor": TENSOR})
CELLS = of.GridDensity.from_function(
    lambda x: torch.exp(-2 * x.square().sum(-1)), -3.0, 3.0, (96,), dtype=F64
)
SPRING = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
SPRINGS = OfPart("outer", SPRING) + OfPart("inner", SPRING)
GENERATOR = torch.Generator().manual_seed(0)


class Square(of.Functional):
    """Half the mean square of parameters."""

    def value(self, mu):
        return 0.5 * mu.points.square().mean()


class OfFirst(of.Functional):
    """That of the points of the first part, not stated as one of a part."""

    def value(self, mu):
        return Square().value(mu[0])


class Stated(Intervals):
    """A representation of a user that states its coordinates."""

    value_and_position_gradient = of.Measure.value_and_position_gradient

    @property
    def coordinates(self):
        return self.edges

    def with_coordinates(self, coordinates):
        return type(self)(coordinates)

    def tangent_of(self, partials, value):
        return (partials / self.lumped)[:, None]

    @property
    def tangent_shape(self):
        return (len(self.edges), 1)


def go(F, mu, scheme=None):
    return of.flow(F, mu, scheme or of.ExplicitEuler(), dt=0.1, steps=2, generator=0)


def moved(mu):
    return mu.push(torch.ones_like(mu.coordinates), 0.3)


def noisy(factor, part="outer"):
    return SPRINGS + factor * OfPart(part, of.Entropy())


def halves(d):
    return of.schemes.Mobility(of.ExplicitEuler(), [0.5] * d)


class ByIndex(of.Functional):
    """Springs from each atom to the place of the next one."""

    def value(self, mu):
        return 0.5 * (mu.points - CLOUD.points.roll(1, 0)).square().sum(-1).mean()


class Stating(ByIndex):
    exchangeable = False


KINKED = OfPart("outer", of.functionals.l1_norm()) + OfPart("inner", SPRING)
# Walls around one part, and a network of which one part is seen.
WALLS = of.functionals.box(-1.0, 1.0)
PULL = of.Potential(lambda x: -3 * x.sum(-1))
PULLED = OfPart("outer", PULL + WALLS) + OfPart("inner", SPRING)
WIDE = of.Particles(torch.linspace(-5, 5, 6, dtype=F64)[:, None])
SLAB = Parts({"outer": of.Particles(WIDE.points / 10), "inner": OTHER})
ROOM = of.GridDensity.from_function(
    lambda x: torch.ones(len(x), dtype=F64), -1.0, 1.0, (16,), dtype=F64, walls=True
)
SPLIT = PartByPart({"outer": of.schemes.ForwardBackward(), "inner": of.JKO()})
RELABELS, KEEPS = of.proximal.ParticleProximal(), of.proximal.TangentProximal()
NETWORK = of.meanfield.networks.MultiLayer((6, 5), "tanh")
DEEP = NETWORK.draw(1, torch.Generator().manual_seed(0), dtype=F64)
DEEPER = NETWORK.draw(1, torch.Generator().manual_seed(1), dtype=F64)
RISK = of.meanfield.Risk(NETWORK, normal(8, 1), normal(8))

CASES: dict[str, Case] = {
    # The measure
    "a measure in the place of its parts": (
        TypeError,
        r"e\.g\. Parts\(\{'outer': mu, 'inner': nu\}\)",
        lambda: Parts(CLOUD),
        [lambda: Parts({"outer": CLOUD, "inner": OTHER}), lambda: Parts([CLOUD])],
    ),
    "no part": (
        ValueError,
        "one part at least; give it a measure",
        lambda: Parts({}),
        [lambda: Parts([CLOUD])],
    ),
    "a part without a name": (
        ValueError,
        "a text that is not empty, got ''; name it, e.g. 'outer'",
        lambda: Parts({"": CLOUD}),
        [lambda: Parts({"outer": CLOUD})],
    ),
    "points in the place of a part": (
        TypeError,
        r"the part 'outer' must be a Measure.*Particles",
        lambda: Parts({"outer": CLOUD.points}),  # type: ignore[dict-item]
        [lambda: Parts({"outer": of.Particles(CLOUD.points)})],
    ),
    "parts of two dtypes": (
        TypeError,
        r"the part '1' has dtype torch\.float32.*convert one with \.to\(torch\.float64",
        lambda: Parts([CLOUD, OTHER.to(torch.float32)]),
        [lambda: Parts([CLOUD, OTHER.to(torch.float32).to(torch.float64)])],
    ),
    "an unknown name": (
        KeyError,
        r"no part 'middle'; take one of \['outer', 'inner'\]",
        lambda: BOTH["middle"],
        [lambda: BOTH["inner"]],
    ),
    "an unknown number": (
        IndexError,
        r"2 parts and no number 2; take one of \['outer', 'inner'\]",
        lambda: BOTH[2],
        [lambda: BOTH[1], lambda: BOTH["inner"]],
    ),
    "a key of another kind": (
        TypeError,
        r"a name or a number, got float; take one of \['outer', 'inner'\]",
        lambda: BOTH[0.0],  # type: ignore[index]
        [lambda: BOTH[0], lambda: BOTH["outer"]],
    ),
    "tangents of too few parts": (
        ValueError,
        r"tangents must be one for each of 2 parts.*see `views`",
        lambda: BOTH.joined([CLOUD.points]),
        [lambda: BOTH.joined(BOTH.views(BOTH.coordinates))],
    ),
    "a tangent of another shape": (
        ValueError,
        r"tangent must have shape \(16,\): the tangents of all parts.*see `joined`",
        lambda: BOTH.push(CLOUD.points, 0.1),
        [lambda: BOTH.push(BOTH.joined([CLOUD.points, OTHER.points]), 0.1)],
    ),
    "points of the whole": (
        of.errors.Unsupported,
        r"ask a part of mu\.parts, as mu\['outer'\] or mu\[0\], for its own",
        lambda: BOTH.points,
        [lambda: BOTH["outer"].points, lambda: BOTH.parts[1].points],
    ),
    "a scheme that needs masses": (
        of.errors.Unsupported,
        r"schemes\.PartByPart steps the parts one by one",
        lambda: go(SPRINGS, BOTH, of.BirthDeath()),
        [lambda: go(SPRINGS, BOTH, PartByPart(of.BirthDeath()))],
    ),
    "a density of the whole": (
        of.errors.Unsupported,
        r"ask a part of mu\.parts",
        lambda: of.Entropy().value(SMOOTH),
        [lambda: of.Entropy().value(SMOOTH["bell"])],
    ),
    "draws of the whole": (
        of.errors.Unsupported,
        r"draw from a part, as mu\['outer'\]\.sample\(n, generator\)",
        lambda: BOTH.sample(3, GENERATOR),
        [lambda: BOTH["outer"].sample(3, GENERATOR)],
    ),
    "an array of the whole": (
        of.errors.Unsupported,
        r"take the arrays of a part, as mu\['outer'\]\.points\.numpy\(\)",
        lambda: BOTH.__array__(),
        [lambda: BOTH["outer"].points.numpy()],
    ),
    "a first variation at places": (
        of.errors.Unsupported,
        "ask a part",
        lambda: SPRINGS.first_variation(BOTH, CLOUD.points),
        [lambda: InPart(SPRINGS, BOTH, 0).first_variation(CLOUD, CLOUD.points)],
    ),
    "a part that cannot": (
        of.errors.Unsupported,
        r"no mass gradient in part 'bell', as Gaussian has no.*use schemes\.PartByPart",
        lambda: SMOOTH.mass_gradient(lambda mu: mu["outer"].points.square().sum()),
        [
            lambda: go(
                OfPart("outer", SPRING) + OfPart("bell", SPRING),
                SMOOTH,
                PartByPart({"outer": of.BirthDeath(), "bell": of.ExplicitEuler()}),
            )
        ],
    ),
    "rates of too few points": (
        ValueError,
        r"must have shape \(10,\), the points of all parts in turn, got .*3",
        lambda: BOTH.reweight(normal(3), 0.1),
        [lambda: BOTH.reweight(normal(10), 0.1)],
    ),
    "parts of other names": (
        ValueError,
        "give both the same names, in the same order",
        lambda: BOTH.displacement_to(Parts([CLOUD, OTHER])),
        [lambda: BOTH.displacement_to(Parts({"outer": CLOUD, "inner": OTHER}))],
    ),
    "a representation without coordinates": (
        of.errors.Unsupported,
        "define coordinates, with_coordinates and tangent_of",
        lambda: OfFirst().velocity(Parts([Intervals(LINE.edges)])),
        [lambda: OfFirst().velocity(Parts([Stated(LINE.edges)]))],
    ),
    "a mixture of parts to look along": (
        of.errors.Unsupported,
        r"or for one part functionals\.InPart\(F, mu, part\)",
        lambda: of.analysis.mixture_convexity(SPRINGS, BOTH, moved(BOTH)),
        [
            lambda: of.analysis.mixture_convexity(
                InPart(SPRINGS, BOTH, 0), CLOUD, moved(BOTH)[0]
            )
        ],
    ),
    # Parameters
    "no parameters": (
        ValueError,
        r"values is empty: shape \(0,\); give at least one number",
        lambda: Euclidean(normal(0)),
        [lambda: Euclidean(normal(1))],
    ),
    "two metrics": (
        ValueError,
        r"give both one metric, as Euclidean\(values, scale\)",
        lambda: TENSOR.displacement_to(Euclidean(TENSOR.values, 2.0)),
        [lambda: TENSOR.displacement_to(Euclidean(TENSOR.values, TENSOR.scale))],
    ),
    "birth and death of parameters": (
        of.errors.Unsupported,
        "which no other could replace; use `velocity`, or Particles",
        lambda: go(Square(), TENSOR, of.BirthDeath()),
        [
            lambda: Square().velocity(TENSOR),
            lambda: go(SPRING, CLOUD, of.BirthDeath()),
        ],
    ),
    "masses of parameters": (
        of.errors.Unsupported,
        r"step it by ExplicitEuler\(\) or JKO\(\), and the parts beside it by BirthDea",
        lambda: TENSOR.reweight(normal(1), 0.1),
        [
            lambda: go(Square(), TENSOR, of.JKO()),
            lambda: go(
                OfPart(0, SPRING) + OfPart(1, Square()),
                Parts([CLOUD, TENSOR]),
                PartByPart({0: of.BirthDeath(), 1: of.ExplicitEuler()}),
            ),
        ],
    ),
    "draws of parameters": (
        of.errors.Unsupported,
        r"it is one point; use mu\.values, or Particles for a law",
        lambda: TENSOR.sample(2, GENERATOR),
        [lambda: TENSOR.values],
    ),
    "a density of parameters": (
        of.errors.Unsupported,
        "it is one point; use a Gaussian, Quantiles or a GridDensity",
        lambda: of.Entropy().value(TENSOR),
        [lambda: of.Entropy().value(BELL), lambda: of.Entropy().value(LINE)],
    ),
    "a mixture of parameters": (
        of.errors.Unsupported,
        r"use mu\.push\(mu\.displacement_to\(nu\), share\)",
        lambda: TENSOR.mix(TENSOR, 0.5),
        [lambda: TENSOR.push(TENSOR.displacement_to(TENSOR), 0.5)],
    ),
    "an array of parameters": (
        of.errors.Unsupported,
        r"take its parameters, mu\.values\.numpy\(\)",
        lambda: TENSOR.__array__(),
        [lambda: TENSOR.values.numpy()],
    ),
    "parameters that leave the numbers": (
        of.errors.Diverged,
        r"values left the finite numbers; take a smaller dt, or use JKO or",
        lambda: of.flow(1e200 * Square(), TENSOR, of.ExplicitEuler(), dt=1.0, steps=1),
        [lambda: go(Square(), TENSOR, of.ExplicitEuler(backtracking=True))],
    ),
    "atoms of parameters": (
        of.errors.Unsupported,
        r"use ExplicitEuler\(\), or Particles, for a law of many points",
        lambda: go(Square(), TENSOR, of.schemes.Adam()),
        [
            lambda: go(Square(), TENSOR),
            lambda: go(SPRING, CLOUD, of.schemes.Adam()),
        ],
    ),
    # Functionals and schemes
    "a part of another kind": (
        TypeError,
        r"the name or the number of a part, got float; e\.g\. OfPart\('outer', F\)",
        lambda: OfPart(0.5, SPRING),
        [lambda: OfPart("outer", SPRING), lambda: OfPart(0, SPRING)],
    ),
    "a part of a cloud": (
        TypeError,
        r"make it of measures, as otflow\.measures\.Parts\(\{'outer': mu\}\)",
        lambda: OfPart("outer", SPRING).value(CLOUD),
        [lambda: OfPart("outer", SPRING).value(Parts({"outer": CLOUD}))],
    ),
    "no scheme": (
        ValueError,
        r"schemes is empty.*give one to each part, e\.g\. \{'outer': JKO\(\)",
        lambda: PartByPart({}),
        [lambda: PartByPart({"outer": of.JKO(), "inner": of.ExplicitEuler()})],
    ),
    "two schemes of one part": (
        ValueError,
        r"has two schemes; give it one, or chain\(first, second\)",
        lambda: go(
            SPRINGS, BOTH, PartByPart({0: of.ExplicitEuler(), "outer": of.BirthDeath()})
        ),
        [
            lambda: go(
                SPRINGS,
                BOTH,
                PartByPart({"outer": of.chain(of.ExplicitEuler(), of.BirthDeath())}),
            )
        ],
    ),
    "a joint solve with a grid": (
        of.errors.Unsupported,
        r"for a measure of parts schemes\.PartByPart\(JKO\(\)\)",
        lambda: go(
            OfPart(0, SPRING) + OfPart(1, SPRING), Parts([CLOUD, CELLS]), of.JKO()
        ),
        [
            lambda: go(
                OfPart(0, SPRING) + OfPart(1, SPRING),
                Parts([CLOUD, CELLS]),
                PartByPart(of.JKO()),
            )
        ],
    ),
    "a scheme of particles": (
        of.errors.Unsupported,
        r"or each part by a scheme of its own, schemes\.PartByPart",
        lambda: go(SPRINGS, BOTH, of.schemes.Adam()),
        [
            lambda: go(SPRINGS, BOTH),
            lambda: go(SPRINGS, BOTH, PartByPart(of.schemes.Adam())),
        ],
    ),
    "a scheme of particles on parameters beside a law": (
        of.errors.Unsupported,
        r"each part by a scheme of its own, schemes\.PartByPart",
        lambda: go(OfPart("outer", SPRING), MIXED, of.schemes.Adam()),
        [
            lambda: go(
                OfPart("outer", SPRING),
                MIXED,
                PartByPart({"outer": of.schemes.Adam(), "tensor": of.ExplicitEuler()}),
            )
        ],
    ),
    "a functional of points of the whole": (
        of.errors.Unsupported,
        r"F of one part is functionals\.OfPart\('outer', F\)",
        lambda: SPRING.value(BOTH),
        [lambda: OfPart("outer", SPRING).value(BOTH)],
    ),
    "a distance of wholes": (
        TypeError,
        r"no distance as one law; take those of its parts, or mu\.norm\(mu\.displ",
        lambda: of.metrics.wasserstein2(BOTH, MOVED),
        [
            lambda: of.metrics.wasserstein2(BOTH["outer"], MOVED["outer"]),
            lambda: BOTH.norm(BOTH.displacement_to(MOVED)),
        ],
    ),
    "a landscape of wholes": (
        TypeError,
        r"no geodesics of one law; .* mu\.push\(mu\.displacement_to\(nu\), t\)",
        lambda: of.analysis.landscape(SPRINGS, BOTH, MOVED),
        [
            lambda: [
                SPRINGS.value(BOTH.push(BOTH.displacement_to(MOVED), t))
                for t in (0.0, 0.5, 1.0)
            ]
        ],
    ),
    "a distance of parameters": (
        TypeError,
        r"take its own, mu\.norm\(mu\.displacement_to\(nu\)\)",
        lambda: of.metrics.wasserstein2(TENSOR, Euclidean(TENSOR.values + 1)),
        [lambda: TENSOR.norm(TENSOR.displacement_to(Euclidean(TENSOR.values + 1)))],
    ),
    "a geodesic of parameters": (
        TypeError,
        r"go along a straight line, mu\.push\(mu\.displacement_to\(nu\), t\)",
        lambda: of.metrics.geodesic(TENSOR, Euclidean(TENSOR.values + 1), 0.5),  # type: ignore[call-overload]
        [
            lambda: TENSOR.push(
                TENSOR.displacement_to(Euclidean(TENSOR.values + 1)), 0.5
            )
        ],
    ),
    "a mobility of all parts": (
        of.errors.Unsupported,
        r"not Parts; use each part by a scheme of its own, schemes\.PartByPart",
        lambda: go(SPRINGS, BOTH, halves(2)),
        [lambda: go(SPRINGS, BOTH, PartByPart({"outer": halves(2)}))],
    ),
    "a proximal map in one part, all at once": (
        ValueError,
        r"take schemes\.PartByPart\(\{'outer': ForwardBackward\(\), \.\.\.\}\)",
        lambda: go(PULLED, SLAB, of.schemes.ForwardBackward()),
        [lambda: go(PULLED, SLAB, SPLIT)],
    ),
    "explicit steps through a wall of a part": (
        of.errors.Diverged,
        r"OfPart\('outer', .*6 of 6 points; .*, for this part alone, in schemes",
        lambda: of.flow(PULLED, SLAB, of.ExplicitEuler(), dt=1.0, steps=3),
        [lambda: of.flow(PULLED, SLAB, SPLIT, dt=1.0, steps=3)],
    ),
    "a start beyond a wall of a part": (
        of.errors.Diverged,
        r"start where it is finite, .* Particles\(term\.proximal\(mu\.points, 1\.0\)",
        lambda: go(PULLED, SLAB.replace(outer=WIDE), SPLIT),
        [
            lambda: go(
                PULLED,
                SLAB.replace(outer=of.Particles(WALLS.proximal(WIDE.points, 1.0))),
                SPLIT,
            )
        ],
    ),
    "noise through a wall of a part": (
        of.errors.Diverged,
        r"GridDensity\(\.\.\., walls=True\) .*JKO\(\), for this part .*PartByPart",
        lambda: of.flow(
            PULLED + OfPart("outer", of.Entropy()),
            SLAB,
            of.Langevin(),
            dt=1.0,
            steps=3,
            generator=0,
        ),
        [
            lambda: go(
                PULLED + OfPart("outer", of.Entropy()),
                SLAB.replace(outer=ROOM),
                PartByPart({"outer": of.JKO(), "inner": of.JKO()}),
            )
        ],
    ),
    "a metric that overflows": (
        ValueError,
        r"take other units, values / c with the scale c\*\*2 \* 1e\+151",
        lambda: Euclidean(TENSOR.values, 1e151),
        [lambda: Euclidean(TENSOR.values / 1e-10, 1e-10**2 * 1e151)],
    ),
    "a proximal step that relabels rows of a network": (
        of.errors.Unsupported,
        r"use JKO\(proximal\.TangentProximal\(\)\), which keeps the order",
        lambda: go(RISK, DEEP, PartByPart({"inner": of.JKO(RELABELS)})),
        [
            lambda: go(RISK, DEEP, PartByPart({"inner": of.JKO(KEEPS)})),
            lambda: go(RISK, DEEP, PartByPart({"inner": of.JKO()})),
        ],
    ),
    "a kink in one part, all at once": (
        of.errors.NotConvergedWarning,
        r"take schemes\.PartByPart\(JKO\(\)\), where the solver of each part knows",
        lambda: of.flow(KINKED, BOTH, of.JKO(), dt=0.5, steps=3),
        [lambda: of.flow(KINKED, BOTH, PartByPart(of.JKO()), dt=0.5, steps=3)],
    ),
    "a geodesic of atoms that are read by their index": (
        of.errors.Unsupported,
        r"look along parts, OfPart\(0, F\) from Parts\(\[a\]\) to Parts\(\[b\]\)",
        lambda: of.analysis.displacement_convexity(Stating(), CLOUD, AWAY),
        [
            lambda: of.analysis.displacement_convexity(
                OfPart(0, Stating()), Parts([CLOUD]), Parts([AWAY])
            )
        ],
    ),
    "a mixture of parts that are read by their index": (
        of.errors.Unsupported,
        "use displacement_convexity",
        lambda: of.analysis.mixture_convexity(RISK, DEEP, DEEPER),
        [lambda: of.analysis.displacement_convexity(RISK, DEEP, DEEPER)],
    ),
    "a landscape of parts that are read by their index": (
        of.errors.Unsupported,
        "use displacement_convexity",
        lambda: of.analysis.landscape(RISK, DEEP, DEEPER),
        [lambda: of.analysis.displacement_convexity(RISK, DEEP, DEEPER)],
    ),
    "a functional that does not say that it reads indices": (
        of.errors.InvalidFunctional,
        r"state exchangeable = False in the class of F, so that JKO\(\) takes it",
        lambda: RELABELS.solve(ByIndex(), CLOUD, 10.0),
        [
            lambda: KEEPS.solve(ByIndex(), CLOUD, 10.0).certificate.converged,
            lambda: of.flow(Stating(), CLOUD, of.JKO(), dt=10.0, steps=1),
        ],
    ),
    "copies of rows of a network": (
        of.errors.Unsupported,
        r"use ExplicitEuler\(\) or JKO\(\), which keep each atom in its place",
        lambda: go(RISK, DEEP, PartByPart({"inner": of.schemes.Resample()})),
        [
            lambda: go(RISK, DEEP, PartByPart({"inner": of.ExplicitEuler()})),
            lambda: go(RISK, DEEP, PartByPart({"inner": of.JKO()})),
        ],
    ),
    "derivatives at a row that no unit owns": (
        of.errors.Unsupported,
        "ask for derivatives at the atoms themselves, without x",
        lambda: InPart(RISK, DEEP, "inner").velocity(DEEP["inner"], normal(1, 2)),
        [lambda: InPart(RISK, DEEP, "inner").velocity(DEEP["inner"])],
    ),
    "heat that runs backwards in a part": (
        ValueError,
        r"minimise \+ temperature \* OfPart\('outer', Entropy\(\)\)",
        lambda: go(noisy(-1.0), BOTH, of.Langevin()),
        [lambda: go(noisy(1.0), BOTH, of.Langevin())],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_cure_works(case):
    check_cures(case)
