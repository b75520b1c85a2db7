"""What a run says of itself, for every scheme: converged, warnings, repr, certified."""

from __future__ import annotations

from dataclasses import replace

import pytest

import otflow as of
from otflow.proximal import ParticleProximal, ProximalSolver
from otflow.schemes import (
    MALA,
    SVGD,
    Adam,
    Adaptive,
    Anneal,
    DualAveraging,
    EntropicFictitiousPlay,
    ForwardBackward,
    FrankWolfe,
    Minibatch,
    Mobility,
    Momentum,
    NoisyEuler,
    PartByPart,
    Resample,
    Scheme,
    UnderdampedLangevin,
    reports,
)
from otflow.testing import check_flags, clouds
from tests import exact


class Scripted(ProximalSolver):
    """A solver whose certificates are overwritten, by the number of the call."""

    flat = True

    def __init__(self, lies=None, every=False):
        self.inner, self.lies, self.every, self.calls = (
            ParticleProximal(),
            lies,
            every,
            0,
        )

    def solve(self, F, mu, dt, warm=None):
        result = self.inner.solve(F, mu, dt)
        lies = self.lies if self.every else (self.lies or {}).get(self.calls)
        self.calls += 1
        if not lies:
            return result
        claims = {"certified": False, "guarantee": "none", "bound": None}
        if lies.get("converged") is False:
            lies = {**claims, **lies}
        return replace(result, certificate={**result.certificate, **lies})


BOX = of.optimality.BoxDomain(-9.0, 9.0)
# A scheme made with a solver, and whether it solves: a new scheme is a line here.
SCHEMES = {
    "JKO": (of.JKO, True),
    "JKO of order 2": (lambda solver: of.JKO(solver, order=2), True),
    "JKO of order 3": (lambda solver: of.JKO(solver, order=3), True),
    "Adaptive, doubled": (
        lambda solver: Adaptive(of.JKO(solver), tolerance=1e9),
        True,
    ),
    "Adaptive, embedded": (
        lambda solver: Adaptive(of.JKO(solver, order=2), tolerance=1e9),
        True,
    ),
    "Adaptive, explicit": (
        lambda _: Adaptive(of.ExplicitEuler(), tolerance=1e9),
        False,
    ),
    "ForwardBackward": (ForwardBackward, True),
    "Mobility": (lambda solver: Mobility(of.JKO(solver), (1.0, 0.3)), True),
    "Mobility, explicit": (
        lambda _: Mobility(of.ExplicitEuler(), (1.0, 0.0)),
        False,
    ),
    "Minibatch": (lambda solver: Minibatch(of.JKO(solver)), True),
    "Minibatch, explicit": (lambda _: Minibatch(of.ExplicitEuler()), False),
    "chain": (lambda solver: of.chain(of.JKO(solver), of.BirthDeath()), True),
    "chain, explicit": (
        lambda _: of.chain(of.ExplicitEuler(), of.BirthDeath(), Resample()),
        False,
    ),
    "ExplicitEuler": (lambda _: of.ExplicitEuler(), False),
    "backtracking": (lambda _: of.ExplicitEuler(backtracking=True), False),
    "Langevin": (lambda _: of.Langevin(), False),
    "DualAveraging": (lambda _: DualAveraging(inner_dt=0.1), False),
    "EntropicFictitiousPlay": (lambda _: EntropicFictitiousPlay(inner_dt=0.1), False),
    "Momentum": (lambda _: Momentum(2.0), False),
    "Momentum, heavy ball": (lambda _: Momentum(2.0, nesterov=False), False),
    "Adam": (lambda _: Adam(), False),
    "MALA": (lambda _: MALA(), False),
    "UnderdampedLangevin": (lambda _: UnderdampedLangevin(), False),
    "Anneal": (lambda solver: Anneal(of.JKO(solver), 0.9, lengths=True), True),
    "Anneal, explicit": (
        lambda _: Anneal(of.ExplicitEuler(), 0.9, lengths=True),
        False,
    ),
    "NoisyEuler": (lambda _: NoisyEuler(0.1), False),
    "PartByPart": (lambda solver: PartByPart({0: of.JKO(solver)}), True),
    "PartByPart, explicit": (lambda _: PartByPart(of.ExplicitEuler()), False),
    "SVGD": (lambda _: SVGD(of.kernels.Gaussian(1.0)), False),
    "BirthDeath": (lambda _: of.BirthDeath(), False),
    "Resample": (lambda _: Resample(), False),
    "FrankWolfe": (lambda _: FrankWolfe(BOX, 8), False),
    "FrankWolfe, line search": (
        lambda _: FrankWolfe(BOX, 8, line_search=True),
        False,
    ),
    "FrankWolfe, sliding": (lambda _: FrankWolfe(BOX, 8, sliding=True), True),
}
# The descent of a sliding step is its own; its test ends at a kink.
SOLVING = [
    name
    for name, (_, solves) in SCHEMES.items()
    if solves and name != "FrankWolfe, sliding"
]
# They sample a Gibbs law.
SAMPLERS = (MALA, DualAveraging, EntropicFictitiousPlay)
BAD = {"converged": False, "residual": 0.125}


def run_of(scheme, steps=4):
    F: of.Functional = exact.quadratic()
    if isinstance(scheme, SAMPLERS):
        F = F + 1.0 * of.Entropy()
    if isinstance(scheme, ForwardBackward):
        F = F + of.Potential(
            lambda x: 0.5 * x.square().sum(-1),
            modulus=1.0,
            prox=lambda x, tau: x / (1 + tau),
        )
    mu: of.Measure = clouds.uniform()
    if isinstance(scheme, PartByPart):
        F, mu = of.functionals.OfPart(0, F), of.measures.Parts([mu])
    return of.flow(F, mu, scheme, dt=0.1, steps=steps, generator=0)


def within(scheme):
    """Yield a scheme and those that it is made of."""
    yield scheme
    for value in vars(scheme).values():
        held = [*value.values()] if isinstance(value, dict) else value
        for inner in held if isinstance(held, (list, tuple)) else (held,):
            if isinstance(inner, Scheme):
                yield from within(inner)


def kinds(kind):
    """Return all classes of the library below a class.

    The one of the estimators passes on the words of the scheme in it.
    """
    others = ("otflow.testing", "otflow.estimators")
    for child in kind.__subclasses__():
        home = child.__module__
        if home.startswith("otflow.") and not home.startswith(others):
            yield child
        yield from kinds(child)


def test_every_scheme_has_its_words():
    made = (make(ParticleProximal()) for make, _ in SCHEMES.values())
    held = {type(inner) for scheme in made for inner in within(scheme)}
    found = [getattr(of.schemes, name) for name in of.schemes.__all__]
    schemes = {x for x in found if isinstance(x, type) and issubclass(x, Scheme)}
    assert held == schemes - {Scheme}
    assert held >= set(kinds(Scheme))


@pytest.mark.parametrize("name", SCHEMES)
def test_a_run_is_converged_if_solved_and_none_if_nothing_was_solved(name):
    make, solves = SCHEMES[name]
    run = run_of(make(ParticleProximal()))
    assert run.status == "finished"
    assert run.converged is (True if solves else None)
    # Far from the minimum a sliding step that lowers F says nothing, see its test.
    slides = [info for info in run.info if "gap" in info and info.converged is None]
    told = len(run.info) - len(slides)
    assert (f"{told}/{told} steps converged" in repr(run)) == solves
    assert "rose" not in repr(run)
    assert not solves or reports.converged(run.info[-1])
    for info in run.info:
        if info in slides:
            continue
        assert reports.converged(info) is run.converged
        if not solves:
            assert not {"converged", "certified", "guarantee"} & set(info)
        elif "guarantee" in info:
            check_flags(info)
            assert info["certified"]


@pytest.mark.parametrize("name", SOLVING)
def test_solves_that_fail_are_told_once_and_certify_nothing(name):
    make, _ = SCHEMES[name]
    scheme = make(Scripted(BAD, every=True))
    if name.startswith("Adaptive"):  # it makes no step of which a solve failed
        with pytest.raises(of.errors.NotConverged):
            run_of(scheme)
        return
    with pytest.warns(of.errors.NotConvergedWarning) as caught:
        run = run_of(scheme)
    assert len(caught) == 1
    text = str(caught[0].message)
    assert all(
        word in text for word in ("4 of 4 steps", "first is step 0", "0.125", "take")
    )
    assert run.converged is False
    assert "0/4 steps converged" in repr(run)
    for info in run.info:
        assert reports.converged(info) is False
        assert not info.get("certified")


def test_a_run_counts_the_steps_that_failed_and_those_that_rose():
    lies = {
        1: {"converged": False, "residual": 0.5},
        3: {"converged": False, "residual": 0.25, "cause": "it is hot", "cure": "cool"},
        2: {"energy_after": 1e3},
    }
    with pytest.warns(of.errors.NotConvergedWarning) as caught:
        run = run_of(of.JKO(Scripted(lies)), steps=5)
    assert "3/5 steps converged, energy rose in 1" in repr(run)
    text = str(caught[0].message)
    # The count, the first, the worst residual; the solver's own cause and cure.
    for word in ("2 of 5 steps", "first is step 1", "0.5", "in 1 of them it is hot"):
        assert word in text
    assert text.endswith("cool")


def test_a_run_that_did_not_end_as_asked_is_not_converged():
    run = of.flow(
        exact.quadratic(), clouds.uniform(), of.JKO(), dt=0.1, steps=2, until=1.0
    )
    assert run.status == "unfinished"
    assert run.converged is False
    assert "2/2 steps converged" in repr(run)
