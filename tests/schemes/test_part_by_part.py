"""Steps part by part: exact iterations, orders, descent, noise and resumed runs."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.functionals import OfPart
from otflow.measures import Euclidean, Parts
from otflow.schemes import Adam, Momentum, PartByPart, UnderdampedLangevin
from otflow.testing import SchemeContract, clouds
from otflow.testing.clouds import normal
from otflow.testing.same import assert_same

F64 = torch.float64
SPRING = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
WELL = of.Potential(lambda x: 0.25 * (x.square().sum(-1) - 1).square())
BUMP = of.Interaction(of.kernels.Gaussian(0.8))
FORM = torch.tensor([[2.0, 0.8], [0.8, 1.0]], dtype=F64)


class Coupled(of.Functional):
    """Half a quadratic form of the numbers of two parts, one each."""

    def __init__(self, form=FORM):
        self.form = form

    def value(self, mu):
        z = means(mu)
        return 0.5 * z @ self.form @ z


def means(mu):
    return torch.stack([part.expectation(lambda x: x[:, 0]) for part in mu.parts])


def numbers(x=1.0, y=-2.0):
    atom = of.Particles(torch.full((1, 1), x, dtype=F64))
    return Parts({"x": atom, "y": Euclidean(torch.tensor(y, dtype=F64))})


def flow(F, mu, scheme, dt=0.1, steps=4, **options):
    return of.flow(F, mu, scheme, dt=dt, steps=steps, generator=0, **options)


# One part, and parts without a coupling ---------------------------------------------


SCHEMES = {
    "Euler": of.ExplicitEuler(),
    "backtracking": of.ExplicitEuler(backtracking=True),
    "JKO": of.JKO(),
    "JKO of order 2": of.JKO(order=2),
    "Langevin": of.Langevin(),
    "birth and death": of.BirthDeath(),
    "jumps": of.BirthDeath(jumps=True),
    "chain": of.chain(of.ExplicitEuler(), of.BirthDeath()),
    "Adam": Adam(),
    "Momentum": Momentum(2.0),
    "UnderdampedLangevin": UnderdampedLangevin(1.0),
    "Mobility": of.schemes.Mobility(of.JKO(), [1.0, 0.3]),
    "SVGD": of.schemes.SVGD(of.kernels.Gaussian(1.0)),
}


@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize("name", SCHEMES)
def test_one_part_steps_as_it_does_alone(name, in_turn):
    noisy = name in ("Langevin", "UnderdampedLangevin", "SVGD")
    F = WELL + BUMP + (0.1 * of.Entropy() if noisy else 0 * SPRING)
    mu, scheme = of.Particles(normal(12, 2)), SCHEMES[name]
    alone = flow(F, mu, scheme)
    within = flow(
        OfPart("it", F), Parts({"it": mu}), PartByPart({"it": scheme}, in_turn=in_turn)
    )
    assert_same(within.final["it"], alone.final)
    torch.testing.assert_close(within.records["energy"], alone.records["energy"])
    for own, other in zip(within.info, alone.info, strict=True):
        (report,) = own["parts"]
        assert report["part"] == "it"
        assert report.energy_before == other.energy_before
        assert own.dt == (0.1 if other.dt is None else other.dt)


KINDS = {
    "particles": lambda: of.Particles(normal(6, 1)),
    "quantiles": lambda: of.Quantiles(torch.linspace(-1, 2, 9, dtype=F64)),
    "gaussian": lambda: of.Gaussian(torch.ones(1), torch.eye(1)).to(F64),
    "euclidean": lambda: Euclidean(normal(1, 3)),
    "cone": lambda: of.measures.ConicParticles(normal(4, 2).abs() + 0.3),
}


@pytest.mark.parametrize("name", KINDS)
def test_each_representation_has_the_joint_proximal_step_of_its_own(name):
    """A measure of one part, by the descent over tangents that every measure has."""
    mu, F = KINDS[name](), WELL + SPRING
    solver = of.JKO(of.proximal.TangentProximal())
    alone = flow(F, mu, solver)
    whole = flow(OfPart(0, F), Parts([mu]), of.JKO())
    assert_same(whole.final[0], alone.final)
    for own, other in zip(whole.info, alone.info, strict=True):
        assert own.w2 == other.w2
        assert own.residual == other.residual
        assert own.guarantee == "upper-bound"


def test_parts_without_a_coupling_do_not_feel_each_other():
    mu = Parts({name: make() for name, make in KINDS.items()})
    F = sum(OfPart(name, WELL + k * SPRING) for k, name in enumerate(mu.names))
    schemes = {
        "particles": of.JKO(),
        "quantiles": of.JKO(),
        "gaussian": of.ExplicitEuler(),
        "euclidean": of.JKO(),
        "cone": of.ExplicitEuler(),
    }
    run = flow(F, mu, PartByPart(schemes))
    total = torch.zeros(5, dtype=F64)
    for k, (name, scheme) in enumerate(schemes.items()):
        alone = flow(WELL + k * SPRING, mu[name], scheme)
        assert_same(run.final[name], alone.final)
        total = total + alone.records["energy"]
    torch.testing.assert_close(run.records["energy"], total)
    assert run.converged
    assert run.rises == 0


# Coupled parts ------------------------------------------------------------------------


def iterated(dt, steps, *, implicit, in_turn):
    """Return the iteration on two numbers, in closed form."""
    z = torch.tensor([1.0, -2.0], dtype=F64)
    for _ in range(steps):
        old = z.clone()
        for k in (0, 1):
            seen = z if in_turn else old
            push = FORM[k, 1 - k] * seen[1 - k]
            if implicit:
                z[k] = (old[k] - dt * push) / (1 + dt * FORM[k, k])
            else:
                z[k] = old[k] - dt * (push + FORM[k, k] * old[k])
    return z


@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize("implicit", [False, True])
def test_two_numbers_step_as_the_jacobi_or_the_gauss_seidel_iteration(
    implicit, in_turn
):
    solver = of.proximal.TangentProximal(tolerance=1e-10)
    scheme = of.JKO(solver) if implicit else of.ExplicitEuler()
    run = flow(Coupled(), numbers(), PartByPart(scheme, in_turn=in_turn), steps=5)
    exact = iterated(0.1, 5, implicit=implicit, in_turn=in_turn)
    torch.testing.assert_close(means(run.final), exact, rtol=0, atol=1e-9)


@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize("implicit", [False, True])
def test_the_order_is_one(implicit, in_turn):
    exact = torch.linalg.matrix_exp(-FORM) @ means(numbers())
    errors = [
        (iterated(1 / n, n, implicit=implicit, in_turn=in_turn) - exact).norm()
        for n in (40, 80)
    ]
    assert float(errors[0] / errors[1]) == pytest.approx(2, rel=0.1)
    # That iteration is the one of the scheme, by the test above; here its first step.
    scheme = of.JKO() if implicit else of.ExplicitEuler()
    run = flow(
        Coupled(), numbers(), PartByPart(scheme, in_turn=in_turn), dt=1 / 40, steps=40
    )
    error = float((means(run.final) - exact).norm())
    assert error == pytest.approx(float(errors[0]), rel=0.02)


def test_in_turn_proximal_steps_descend_for_every_dt_and_from_the_old_measure_not():
    """Of three equal blocks coupled by 0.9 the Jacobi iteration has the radius 1.8."""
    F = Coupled(0.9 * torch.ones(3, 3, dtype=F64) + 0.1 * torch.eye(3, dtype=F64))
    mu = Parts([Euclidean(torch.tensor(x, dtype=F64)) for x in (1.0, 0.7, 1.2)])
    run = flow(F, mu, PartByPart(of.JKO(), in_turn=True), dt=1e3, steps=10)
    assert run.rises == 0
    for fall, report in zip(run.records["energy"].diff(), run.info, strict=True):
        falls = [p.energy_before - p.energy_after for p in report["parts"]]
        assert sum(falls) == pytest.approx(-float(fall), abs=1e-12)
        # Each step of a part falls by the square of its length over 2 dt, or more.
        spent = sum(part.w2**2 / (2 * 1e3) for part in report["parts"])
        assert -float(fall) >= spent - 1e-12
    at_once = flow(F, mu, PartByPart(of.JKO()), dt=1e3, steps=3)
    growth = at_once.records["energy"][1:] / at_once.records["energy"][:-1]
    assert at_once.rises == 3
    assert float(growth[-1]) == pytest.approx(1.8**2, rel=0.01)
    assert all(p.energy_after < p.energy_before for p in at_once.info[0]["parts"])


def test_parts_in_turn_follow_the_order_of_the_schemes():
    scheme, mu = of.ExplicitEuler(), numbers()
    forth = PartByPart({"x": scheme, "y": scheme}, in_turn=True)
    back = PartByPart({"y": scheme, "x": scheme}, in_turn=True)
    one, two = (means(flow(Coupled(), mu, s, steps=1).final) for s in (forth, back))
    x, y = 1.0 - 0.1 * (2.0 - 1.6), -2.0 - 0.1 * (0.8 - 2.0)
    assert one.tolist() == pytest.approx([x, -2.0 - 0.1 * (0.8 * x - 2.0)])
    assert two.tolist() == pytest.approx([1.0 - 0.1 * (2.0 + 0.8 * y), y])


def test_a_part_without_a_scheme_rests():
    mu = numbers()
    run = flow(Coupled(), mu, PartByPart({"y": of.ExplicitEuler()}))
    assert run.final["x"] is not mu["x"]  # a flow starts from a copy
    assert torch.equal(run.final["x"].points, mu["x"].points)
    assert len(run.info[0]["parts"]) == 1
    assert bool((run.records["energy"].diff() < 0).all())


# Noise, clocks, runs ------------------------------------------------------------------


def test_each_part_has_the_gibbs_law_of_its_own_temperature():
    """Springs of stiffness 1 and 2: the variances of Euler steps are known."""
    start = of.Particles(torch.zeros(20_000, 1, dtype=F64))
    mu = Parts({"cold": start, "hot": start})
    cold = OfPart("cold", SPRING + 0.1 * of.Entropy())
    F = cold + 2 * OfPart("hot", SPRING + 0.5 * of.Entropy())
    dt, steps = 0.1, 60
    run = flow(F, mu, PartByPart(of.Langevin()), dt=dt, steps=steps)
    for name, stiffness, heat in (("cold", 1.0, 0.1), ("hot", 2.0, 1.0)):
        factor = (1 - dt * stiffness) ** 2
        variance = 2 * heat * dt * (1 - factor**steps) / (1 - factor)
        found = float(run.final[name].points.var())
        assert abs(found - variance) < 4 * variance * (2 / 20_000) ** 0.5
    assert [part["temperature"] for part in run.info[0]["parts"]] == [0.1, 1.0]
    assert run.records["energy"].isfinite().all()


def test_a_part_that_takes_less_time_lags_behind():
    """The second part halves its step: 100 y^2 / 2 descends for dt < 2/100 only."""
    F = OfPart("x", SPRING) + 100 * OfPart("y", SPRING)
    scheme = PartByPart(of.ExplicitEuler(backtracking=True))
    run = flow(F, numbers(), scheme, dt=0.1, steps=1)
    taken = [part.dt for part in run.info[0]["parts"]]
    assert taken[0] == 0.1
    assert taken[1] < 0.02
    assert run.info[0].dt == 0.1
    assert float(run.times[-1]) == 0.1


def test_birth_and_death_in_one_part_and_transport_in_the_other():
    left, right = of.Particles(normal(6, 2)), of.Particles(normal(5, 1))
    F = OfPart("left", BUMP + SPRING) + OfPart("right", SPRING)
    scheme = PartByPart({"left": of.BirthDeath(2.0), "right": of.ExplicitEuler()})
    run = flow(F, Parts({"left": left, "right": right}), scheme)
    assert torch.equal(run.final["left"].points, left.points)
    assert_same(run.final["left"], flow(BUMP + SPRING, left, of.BirthDeath(2.0)).final)
    assert torch.equal(run.final["right"].weights, right.weights)
    assert scheme.effects == {"transport", "reaction"}


@pytest.mark.parametrize("in_turn", [False, True])
def test_a_run_goes_on_to_the_bit_also_by_a_file(tmp_path, in_turn):
    mu = Parts({"a": of.Particles(normal(6, 2)), "b": of.Particles(normal(5, 2))})
    F = OfPart("a", WELL + BUMP) + OfPart("b", WELL + 0.1 * of.Entropy()) + Means()

    def scheme():  # the order is not that of the parts
        return PartByPart({"b": of.Langevin(), "a": of.JKO()}, in_turn=in_turn)

    whole = flow(F, mu, scheme(), steps=6)
    kept = tmp_path / "run"
    of.flow(F, mu, scheme(), dt=0.1, steps=4, generator=0, checkpoint=kept)
    run = of.flow(F, mu, scheme(), dt=0.1, steps=2, resume=of.load(kept))
    assert_same(run.final, whole.final)
    assert torch.equal(run.records["energy"], whole.records["energy"])
    adam = PartByPart({1: Adam(), 0: Momentum(2.0)})
    G = OfPart(0, WELL) + OfPart(1, WELL)
    one = flow(G, mu, adam, steps=5)
    two = of.flow(G, mu, adam, dt=0.1, steps=2, resume=flow(G, mu, adam, steps=3))
    assert_same(one.final, two.final)


class Means(of.Functional):
    """Half the squared distance of the means of two parts."""

    def value(self, mu):
        a, b = (part.expectation(lambda x: x) for part in mu.parts)
        return 0.5 * (a - b).square().sum()


def test_a_part_that_diverges_is_named_and_all_parts_are_kept():
    F = OfPart("x", SPRING) + 1e200 * OfPart("y", SPRING)
    with pytest.raises(of.errors.Diverged, match="part 'y': values left") as caught:
        flow(F, numbers(), PartByPart(of.ExplicitEuler()), dt=1.0)
    assert_same(caught.value.measure, numbers())
    with pytest.raises(of.errors.Diverged, match="part 'y': values left"):
        flow(F, numbers(), of.ExplicitEuler(), dt=1.0)


def test_a_certificate_of_the_run_claims_nothing_of_the_whole():
    mu = Parts({"a": of.Particles(normal(6, 2)), "b": of.Particles(normal(5, 2))})
    F = OfPart("a", SPRING) + OfPart("b", SPRING) + Means()
    run = flow(F, mu, PartByPart(of.JKO()))
    found = {f.name: f for f in of.analysis.certify(run, F).findings}
    assert found["exact step"].verdict == "unknown"
    assert found["energy"].verdict == "observed"
    assert found["functional"].verdict == "observed"
    assert all(part.converged for report in run.info for part in report["parts"])


@pytest.mark.parametrize("in_turn", [False, True])
def test_the_modulus_of_a_term_of_one_part_says_nothing_of_that_of_the_whole(in_turn):
    # Before, "nothing is proved", as if the step of a part had claimed too much.
    mu = Parts({"a": of.Particles(normal(6, 2)), "b": of.Particles(normal(5, 2))})
    F = OfPart("a", SPRING) + OfPart("b", 2 * SPRING)
    run = flow(F, mu, PartByPart(of.JKO(), in_turn=in_turn))
    assert {part.modulus for part in run.info[0]["parts"]} == {1.0, 2.0}
    findings = of.analysis.certify(run, F).findings
    assert not [f.text for f in findings if f.verdict == "failed"]
    found = {f.name: f for f in findings}
    assert found["modulus"].verdict == "unknown"
    assert "F in one part with the others frozen" in found["time error"].text
    # A wrong word of one term is found all the same.
    wrong = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=30.0)
    F = OfPart("a", SPRING) + OfPart("b", wrong)
    run = flow(F, mu, PartByPart(of.JKO(), in_turn=in_turn))
    found = {f.name: f for f in of.analysis.certify(run, F).findings}
    assert found["modulus"].verdict == "failed"
    assert "the modulus 30 is refuted" in found["modulus"].text


# The laws of every scheme -------------------------------------------------------------


class OnParts(SchemeContract):
    """A spring in each part for the order, and a coupled problem for the rest."""

    def start(self, dtype=F64):
        bell = of.Gaussian(torch.ones(2, dtype=dtype), torch.eye(2, dtype=dtype))
        return Parts({"atoms": clouds.weighted(7, 2, dtype=dtype), "bell": bell})

    def problem(self, dtype=F64):
        root = of.Potential(lambda x: (x.square().sum(-1) + 1).sqrt(), modulus=0.0)
        F = OfPart("atoms", root + of.Interaction(of.kernels.Gaussian(1.0)))
        return F + OfPart("bell", root) + Means(), self.start(dtype)

    def growing(self, F):
        hill = of.Potential(lambda x: -x.square().sum(-1))
        return OfPart("atoms", hill) + OfPart("bell", hill) + F

    def error(self, dt):
        mu, F = self.start(), OfPart("atoms", SPRING) + OfPart("bell", SPRING)
        run = flow(F, mu, self.make(), dt=dt, steps=round(1 / dt))
        exact = mu.coordinates * torch.exp(torch.tensor(-1.0, dtype=F64))
        return float((run.final.coordinates - exact).norm())


class TestJacobi(OnParts):
    def make(self):
        return PartByPart({"atoms": of.ExplicitEuler(), "bell": of.ExplicitEuler()})


@pytest.mark.slow  # some twenty seconds in all
class Implicit(OnParts):
    """A long step is one of the scale of the problem: none is so long as 1e9 here."""

    solves = True

    def test_a_huge_dt_is_caught_and_what_was_good_is_kept(self):
        run = self.run(3, dt=5.0)
        assert run.converged
        assert run.rises == 0
        assert not run.final.fault()


class TestGaussSeidel(Implicit):
    def make(self):
        return PartByPart(of.JKO(), in_turn=True)


class TestEulerOfAllPartsAtOnce(OnParts):
    def make(self):
        return of.ExplicitEuler()


class TestJKOOfAllPartsAtOnce(Implicit):
    def make(self):
        return of.JKO()


class TestJKOOfOrderTwoOfAllParts(Implicit):
    order = 2.0

    def make(self):
        return of.JKO(of.proximal.TangentProximal(tolerance=1e-8), order=2)


class TestLangevinPartByPart(OnParts):
    stochastic = True
    descends = False
    steps = ()

    def problem(self, dtype=F64):
        F, mu = super().problem(dtype)
        return F + OfPart("atoms", 0.1 * of.Entropy()), mu

    def make(self):
        return PartByPart({"atoms": of.Langevin(), "bell": of.ExplicitEuler()})
