"""Functionals that read atoms by their index: none is relabelled, copied or new."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.functionals import InPart, Lifted, OfPart
from otflow.functionals.order import is_exchangeable
from otflow.measures import Parts
from otflow.schemes import PartByPart

F64 = torch.float64
SPRING = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
TARGET = torch.tensor([[2.0], [0.0], [1.0]], dtype=F64)
START = torch.tensor([[0.0], [1.0], [2.0]], dtype=F64)


def cloud(n, d):
    """Return n atoms."""
    generator = torch.Generator().manual_seed(n)
    return of.Particles(torch.randn(n, d, generator=generator, dtype=F64))


class Labelled(of.Functional):
    """Springs from each atom to a place of its own, which says nothing of it."""

    def value(self, mu):
        return 0.5 * mu.weights @ (mu.points - TARGET).square().sum(-1)


class Stated(Labelled):
    exchangeable = False


class Mean(of.Functional):
    """A functional of the means of all parts."""

    def value(self, mu):
        return sum(part.expectation(lambda x: x.sum(-1)) for part in mu.parts).square()


def network():
    """Return the risk of a small network, and its measure."""
    net = of.meanfield.networks.MultiLayer((6, 5), "tanh")
    mu = net.draw(1, torch.Generator().manual_seed(0), dtype=F64)
    X = torch.linspace(-2, 2, 20, dtype=F64)[:, None]
    return of.meanfield.Risk(net, X, X[:, 0].sin(), batch_size=10), mu


def test_the_word_is_passed_on_by_sums_multiples_parts_and_draws():
    risk, mu = network()
    seen = InPart(risk, mu, "inner")
    drawn = seen.resample(torch.Generator().manual_seed(1))
    assert drawn is not seen
    for F in (risk, 2 * risk, seen + SPRING, drawn, OfPart("a", Stated())):
        assert not is_exchangeable(F)
    shallow = of.meanfield.Risk(of.meanfield.TwoLayer("tanh"), risk.X, risk.y)
    both = Parts({"a": cloud(3, 1), "b": cloud(2, 1)})
    laws = (shallow, InPart(Mean(), both, "a"), SPRING - SPRING, Lifted(SPRING))
    assert all(is_exchangeable(F) for F in laws)
    assert not is_exchangeable(Lifted(Stated()))


@pytest.mark.parametrize("dt", [1.0, 10.0, 100.0])
def test_atoms_that_a_functional_tells_apart_are_not_relabelled(dt):
    # On exact grounds: with fixed places the step is a mean of both ends.
    mu = of.Particles(START)
    step = of.flow(Stated(), mu, of.JKO(), dt=dt, steps=1)
    exact = (START + dt * TARGET) / (1 + dt)
    torch.testing.assert_close(step.final.points, exact, rtol=1e-4, atol=0)
    assert step.info[0].guarantee == "upper-bound"  # of the coupling by index
    with pytest.raises(of.errors.InvalidFunctional, match="exchangeable = False"):
        of.flow(Labelled(), mu, of.JKO(), dt=dt, steps=1)
    with pytest.raises(of.errors.Unsupported, match="TangentProximal"):
        of.proximal.ParticleProximal().solve(Stated(), mu, dt)


def test_one_part_of_a_network_steps_with_its_rows_in_place():
    # Before, rows were relabelled twenty times in a step, and the step was given up.
    risk, mu = network()
    run = of.flow(risk, mu, PartByPart({"inner": of.JKO()}), dt=10.0, steps=3)
    for before, after, info in zip(
        run.records["energy"], run.records["energy"][1:], run.info, strict=False
    ):
        (part,) = info["parts"]
        assert part.converged
        assert part.solver == "TangentProximal"
        assert float(after) == pytest.approx(part.energy_after, rel=1e-12)
        assert part.decrease >= 0
        assert after < before


class Kernelled(of.Functional):
    """A squared distance of kernels to a cloud: large terms cancel close to it."""

    def __init__(self, aim):
        self.aim = aim

    def value(self, mu):
        def mean(x, v, y, w):
            return v @ torch.exp(-(x - y.T).square()) @ w

        x, v, y, w = mu.points, mu.weights, self.aim.points, self.aim.weights
        return mean(x, v, x, v) - 2 * mean(x, v, y, w) + mean(y, w, y, w)


@pytest.mark.parametrize(("seed", "scale"), [(1, 1e-3), (2, 1e-3), (0, 1.0), (1, 1.0)])
def test_round_off_of_terms_that_cancel_is_no_change_by_a_relabelling(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    aim = torch.randn(8, 1, generator=generator, dtype=F64)
    off = aim + scale * torch.randn(8, 1, generator=generator, dtype=F64)
    # Close pairs of atoms swap in long steps.
    off[1::2] = off[::2] + scale * 1e-2
    F, mu = Kernelled(of.Particles(aim)), of.Particles(off)
    step = of.proximal.ParticleProximal().solve(F, mu, 1e3).certificate
    assert step.details.relabellings > 0
    assert step.converged or step.details.stalled


CHANGES = {
    "clones": of.BirthDeath(jumps=True),
    "births": of.BirthDeath(prior=of.Particles(torch.zeros(1, 2, dtype=F64))),
    "copies": of.schemes.Resample(1.0),
    "a chain": of.chain(of.BirthDeath(rate=5.0), of.schemes.Resample(1.0)),
    "new atoms": of.schemes.FrankWolfe(of.optimality.BoxDomain(-4, 4)),
    "probes": of.schemes.NoisyEuler(0.1),
}


@pytest.mark.parametrize("name", CHANGES)
def test_schemes_that_copy_or_add_atoms_say_why_not(name):
    risk, mu = network()
    with pytest.raises(of.errors.Unsupported, match="by their index"):
        of.flow(
            risk, mu, PartByPart({"inner": CHANGES[name]}), dt=0.1, steps=3, generator=0
        )
    # The cure: schemes that keep each atom in its place; masses may change too.
    for scheme in (of.ExplicitEuler(), of.JKO(), of.BirthDeath()):
        run = of.flow(risk, mu, PartByPart({"inner": scheme}), dt=0.1, steps=2)
        assert run.records["energy"].diff().max() < 0


def test_gibbs_draws_of_a_part_say_why_not():
    risk, mu = network()
    F = risk + OfPart("inner", 0.1 * of.Entropy())
    for scheme in (of.schemes.EntropicFictitiousPlay, of.schemes.DualAveraging):
        one = PartByPart({"inner": scheme(inner_dt=0.01)})
        with pytest.raises(of.errors.Unsupported, match="by their index"):
            of.flow(F, mu, one, dt=0.1, steps=1, generator=0)


def test_a_functional_that_reads_the_index_has_derivatives_at_its_atoms_alone():
    risk, mu = network()
    seen, x = InPart(risk, mu, "inner"), torch.zeros(2, 2, dtype=F64)
    for derivative in (seen.first_variation, seen.velocity):
        with pytest.raises(of.errors.Unsupported, match="without x"):
            derivative(mu["inner"], x)
        assert torch.isfinite(derivative(mu["inner"])).all()


class Twice(OfPart):
    """A subclass with values of its own."""

    def value(self, mu):
        return 2 * super().value(mu)


def test_a_draw_of_a_subclass_has_its_values():
    # Before, a minibatch of it was one of the class it came from.
    risk = network()[0]
    risk = of.meanfield.Risk(
        of.meanfield.TwoLayer("tanh"), risk.X, risk.y, batch_size=20
    )
    F, both = Twice("a", risk), Parts({"a": cloud(3, 3), "b": cloud(2, 1)})
    draw = F.resample(torch.Generator().manual_seed(0))
    assert type(draw) is Twice
    torch.testing.assert_close(draw.value(both), F.value(both), rtol=1e-12, atol=0)


def test_paths_of_laws_are_none_of_a_functional_that_reads_the_index():
    # Before, the end of the geodesic was another one, of other values.
    risk, mu = network()
    other = mu.push(0.1 * torch.ones(mu.tangent_shape, dtype=F64), 1.0)
    F, a, b = InPart(risk, mu, "inner"), mu["inner"], other["inner"]
    look = of.analysis.displacement_convexity
    with pytest.raises(of.errors.Unsupported, match=r"OfPart\(0, F\) from Parts\(\[a"):
        look(F, a, b)
    report = look(OfPart(0, F), Parts([a]), Parts([b]))
    # By second differences of F along the straight line of each row.
    h = 1e-3
    line = [F.value(a.push(b.points - a.points, report.time + s)) for s in (-h, 0, h)]
    curved = (line[0] - 2 * line[1] + line[2]) / h**2 / a.norm(b.points - a.points) ** 2
    assert float(curved) == pytest.approx(report.minimum, rel=1e-3)
    for path in (of.analysis.mixture_convexity, of.analysis.landscape):
        with pytest.raises(of.errors.Unsupported, match="use displacement_convexity"):
            path(risk, mu, other)
    assert look(risk, mu, other).times is not None


def test_an_online_risk_of_a_deep_network_steps_on_fresh_draws():
    # Before, its value asked a measure of parts for points of its own.
    risk, mu = network()

    def draw(generator):
        x = 4 * torch.rand(5, 1, generator=generator, dtype=F64) - 2
        return x, x[:, 0].sin()

    F = of.meanfield.OnlineRisk(risk.network, draw, (risk.X, risk.y))
    assert not F.exchangeable
    assert F.value(mu) == risk.value(mu)
    for inner in (of.ExplicitEuler(), PartByPart(of.JKO())):
        scheme = of.schemes.Minibatch(inner)
        run = of.flow(F, mu, scheme, dt=0.1, steps=3, generator=0)
        assert run.records["energy"].diff().max() < 0
