"""Mobility: exact laws in its metric, layers, labels, certificates that are true."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.meanfield import Risk, TwoLayer
from otflow.schemes import (
    MALA,
    SVGD,
    Adaptive,
    Anneal,
    ForwardBackward,
    Minibatch,
    Mobility,
    NoisyEuler,
    Resample,
    UnderdampedLangevin,
)
from otflow.testing import SchemeContract, clouds
from otflow.testing.clouds import normal
from tests import exact

F64 = torch.float64
RATES = (4.0, 0.3)


class OfUnits(SchemeContract):
    """Errors are those of x_k exp(-m_k t) under a spring."""

    rates = RATES

    def error(self, dt):
        mu = clouds.weighted(7, 2)
        rates = torch.tensor(self.rates, dtype=F64)
        t = 0.25
        run = of.flow(
            exact.quadratic(), mu, self.make(), dt=dt, steps=round(t / dt), generator=0
        )
        return float((run.final.points - mu.points * (-rates * t).exp()).norm())


class TestEuler(OfUnits):
    steps = (0.05, 0.025, 0.0125)

    def make(self):
        return Mobility(of.ExplicitEuler(), RATES)


class TestOneFixed(OfUnits):
    steps = (0.05, 0.025, 0.0125)
    rates = (2.0, 0.0)

    def make(self):
        return Mobility(of.ExplicitEuler(), self.rates)


class Solved(OfUnits):
    def problem(self, dtype=F64):
        # No degenerate minimum: the kernel is wider than the bowl is curved.
        F: of.Functional = of.Potential(
            lambda x: (x.square().sum(-1) + 1).sqrt(), modulus=0.0
        )
        F = F + of.Interaction(of.kernels.Gaussian(1.5))
        return F, clouds.uniform(7, 2, dtype=dtype)


class TestJKO(Solved):
    solves = True
    diverges = False
    steps = (0.05, 0.025, 0.0125)

    def make(self):
        return Mobility(of.JKO(), RATES)


class TestJKOOfOrder2(Solved):
    solves = True
    diverges = False
    order = 2.0
    steps = (0.05, 0.025, 0.0125)

    def make(self):
        return Mobility(of.JKO(order=2), RATES)


class TestLangevin(SchemeContract):
    stochastic = True
    descends = False
    steps = ()

    def make(self):
        return Mobility(of.Langevin(), RATES)

    def problem(self, dtype=F64):
        F, mu = super().problem(dtype)
        return F + 0.1 * of.Entropy(), mu


class TestUnderdamped(TestLangevin):
    def make(self):
        return Mobility(UnderdampedLangevin(2.0), RATES)


class TestReaction(SchemeContract):
    steps = ()

    def make(self):
        return Mobility(of.chain(of.ExplicitEuler(), of.BirthDeath()), RATES)


def network_and_data(outputs=None, loss="square", activation="tanh", n=40, d=3, N=25):
    X, labels = normal(n, d, seed=1), (torch.arange(n) % (outputs or 2))
    y = {
        "square": X[:, 0].sin() if outputs is None else normal(n, outputs or 1, seed=3),
        "logistic": 2.0 * (labels % 2).to(F64) - 1,
        "cross-entropy": labels,
    }[loss]
    network = TwoLayer(activation, outputs=outputs)
    mu = of.Particles(normal(N, (outputs or 1) + d + 1, seed=2))
    return network, Risk(network, X, y, loss=loss), mu


# The flow ---------------------------------------------------------------------------


@pytest.mark.parametrize("rates", [RATES, (1.0, 0.0), (0.0, 2.0)])
@pytest.mark.parametrize("equal", [True, False], ids=["equal", "weighted"])
def test_a_jko_step_is_the_exact_one_in_the_metric(rates, equal):
    # min lam |y|^2/2 + sum_k (y_k - x_k)^2 / (2 m_k dt): y_k = x_k / (1 + lam m_k dt).
    lam, dt = 1.7, 0.8
    mu = of.Particles(normal(9, 2), None if equal else normal(9).softmax(0))
    solver = of.proximal.ParticleProximal(tolerance=1e-12)
    F = of.Potential(lambda x: 0.5 * lam * x.square().sum(-1), modulus=lam)
    step = of.flow(F, mu, Mobility(of.JKO(solver), rates), dt=dt, steps=1)
    m = torch.tensor(rates, dtype=F64)
    torch.testing.assert_close(
        step.final.points, mu.points / (1 + lam * m * dt), rtol=1e-10, atol=1e-12
    )
    info = step.info[0]
    assert info.guarantee == "exact"
    # A bound on a W2 distance to the exact step, and a true one.
    exact_step = mu.points / (1 + lam * m * dt)
    apart = float(mu.norm(step.final.points - exact_step))
    assert info.bound is not None
    assert apart <= info.bound < 1e-9


@pytest.mark.parametrize("steps", [3, 60])
def test_langevin_has_the_moments_of_the_preconditioned_process(steps):
    n, lam, temperature, dt = 40_000, 1.2, 0.4, 0.05
    F = exact.quadratic(lam) + temperature * of.Entropy()
    mu = of.Particles(torch.zeros(n, 3, dtype=F64))
    rates = (3.0, 0.5, 0.0)
    run = of.flow(
        F, mu, Mobility(of.Langevin(), rates), dt=dt, steps=steps, generator=0
    )
    assert bool((run.final.points[:, 2] == 0).all())
    for k, m in enumerate(rates[:2]):
        # In the time m t the flow of F has the same law.
        expected = exact.langevin_moments(
            0, 0, m * dt, steps, lam=lam, temperature=temperature
        )[1]
        found = float(run.final.points[:, k].square().mean())
        assert found == pytest.approx(expected, rel=5 * (2 / n) ** 0.5)


def test_the_energy_falls_by_the_velocity_in_the_metric():
    # -dF/dt = int sum_k m_k v_k^2 d mu.
    _, risk, mu = network_and_data()
    rates = risk.network.mobility(3, outer=2.0, inner=0.5)
    v = risk.velocity(mu)
    rate = float(mu.weights @ (v.square() * v.new_tensor(rates)).sum(-1))
    dt = 1e-6
    end = of.flow(risk, mu, Mobility(of.ExplicitEuler(), rates), dt=dt, steps=1).final
    assert float(risk.value(mu) - risk.value(end)) / dt == pytest.approx(rate, rel=1e-4)


def test_ones_are_the_scheme_itself_to_the_bit():
    _, risk, mu = network_and_data()
    ones = (1.0,) * 5
    for scheme in (of.ExplicitEuler(), of.JKO()):
        plain = of.flow(risk, mu, scheme, dt=0.5, steps=4)
        other = of.flow(risk, mu, Mobility(scheme, ones), dt=0.5, steps=4)
        assert torch.equal(plain.final.points, other.final.points)


# Layers ------------------------------------------------------------------------------


CASES = [
    (None, "square", "tanh"),
    (None, "logistic", "relu"),
    (3, "cross-entropy", "relu"),
    (2, "square", torch.sin),
]


@pytest.mark.parametrize(("outputs", "loss", "activation"), CASES)
@pytest.mark.parametrize("scaling", ["mean-field", "ntk"])
def test_the_outer_velocity_is_that_of_the_whole(outputs, loss, activation, scaling):
    from otflow.functionals.partial import value_and_partial_velocity

    network, risk, mu = network_and_data(outputs, loss, activation)
    network = TwoLayer(
        activation,
        outputs=outputs,
        scaling=scaling,
        offset=[0.1] * outputs if outputs else 0.1,
    )
    risk = Risk(network, risk.X, risk.y, loss=loss)
    F = 2.0 * risk + of.Potential(lambda x: x.square().sum(-1).cos())
    moving = torch.tensor(network.mobility(3, inner=0.0)) > 0
    value, velocity = value_and_partial_velocity(F, mu, moving)
    expected, whole = F.value_and_velocity(mu)
    torch.testing.assert_close(value, expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(
        velocity[:, moving], whole[:, moving], rtol=1e-12, atol=1e-15
    )
    assert bool((velocity[:, ~moving] == 0).all())


def test_a_risk_of_ones_own_is_not_taken_for_the_librarys():
    from otflow.functionals.partial import value_and_partial_velocity

    class Doubled(Risk):
        def value(self, mu):
            return 2 * super().value(mu)

    _, risk, mu = network_and_data()
    F = Doubled(risk.network, risk.X, risk.y)
    moving = torch.tensor([True, False, False, False, False])
    velocity = value_and_partial_velocity(F, mu, moving)[1]
    torch.testing.assert_close(velocity[:, 0], 2 * risk.velocity(mu)[:, 0])


def test_sums_and_multiples_of_ones_own_are_not_taken_apart():
    from otflow.functionals.partial import partial_modulus, value_and_partial_velocity

    class Root(of.functionals.Sum):
        def value(self, mu):
            return super().value(mu).sqrt()

    class Square(of.functionals.Scaled):
        def value(self, mu):
            return super().value(mu) ** 2

    _, risk, mu = network_and_data()
    moving = torch.tensor([True, False, False, False, False])
    for F in (Root((risk, 1.0 * risk)), Square(2.0, risk)):
        velocity = value_and_partial_velocity(F, mu, moving)[1]
        whole = of.Functional.value_and_velocity(F, mu)[1]
        torch.testing.assert_close(velocity[:, 0], whole[:, 0])
        assert partial_modulus(F, 5, moving) is None
    assert partial_modulus(2.0 * risk + risk, 5, moving) == 0
    assert partial_modulus(risk - risk, 5, moving) is None


@pytest.mark.parametrize("scheme", [of.ExplicitEuler(), of.JKO()], ids=repr)
def test_the_outer_layer_alone_is_a_least_squares_flow(scheme):
    network, risk, mu = network_and_data()
    freeze = Mobility(scheme, network.mobility(3, inner=0.0))
    run = of.flow(risk, mu, freeze, dt=0.5, steps=30)
    assert torch.equal(run.final.points[:, 1:], mu.points[:, 1:])
    # The exact steps of the quadratic in a, with H = features (n, N) at fixed (w, b).
    H = network.hidden(network.encode(risk.X), mu.points)
    a, n, N, dt = mu.points[:, 0], len(H), mu.n, 0.5
    for _ in range(30):
        if isinstance(scheme, of.ExplicitEuler):
            a = a - dt * H.T @ (H @ a / N - risk.y) / n
        else:
            right = a + dt * H.T @ risk.y / n
            left = torch.eye(N, dtype=F64) + dt * H.T @ H / (n * N)
            a = torch.linalg.solve(left, right)
    close = 1e-12 if isinstance(scheme, of.ExplicitEuler) else 2e-3
    torch.testing.assert_close(run.final.points[:, 0], a, rtol=close, atol=close)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_a_proximal_step_of_the_outer_layer_is_proved_exact(ridge):
    network, risk, mu = network_and_data()
    F = risk + of.Potential(lambda x: 0.5 * ridge * x.square().sum(-1), modulus=ridge)
    assert F.modulus(5) is None  # if all coordinates move
    freeze = Mobility(of.JKO(), network.mobility(3, inner=0.0))
    run = of.flow(F, mu, freeze, dt=0.5, steps=10)
    H = network.hidden(network.encode(risk.X), mu.points)
    n, N, dt, eye = len(H), mu.n, 0.5, torch.eye(mu.n, dtype=F64)
    left = (1 + dt * ridge) * eye + dt * H.T @ H / (n * N)
    for start, end, info in zip(
        run.snapshots, run.snapshots[1:], run.info, strict=False
    ):
        right = start.points[:, 0] + dt * H.T @ risk.y / n
        apart = (torch.linalg.solve(left, right) - end.points[:, 0]).square().mean()
        assert info.guarantee == "exact"
        assert info.bound is not None
        assert float(apart.sqrt()) <= info.bound < 1e-2


@pytest.mark.parametrize("scaling", ["mean-field", "ntk"])
@pytest.mark.parametrize("inner", [0.0, 0.5])
def test_no_other_step_of_a_network_is_proved_exact(scaling, inner):
    network, risk, mu = network_and_data()
    network = TwoLayer("tanh", scaling=scaling)
    F = Risk(network, risk.X, risk.y)
    scheme = Mobility(of.JKO(), network.mobility(3, inner=inner))
    info = of.flow(F, mu, scheme, dt=0.05, steps=1).info[0]
    assert (info.guarantee == "exact") == (scaling == "mean-field" and inner == 0)


# Labels ------------------------------------------------------------------------------


def test_jko_does_not_relabel_fixed_coordinates():
    # Targets cross the moving coordinate: without labels the atoms would swap.
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=F64)
    F = of.Potential(
        lambda p: 0.5 * (p[..., 0] - (1 - 2 * p[..., 1])).square() * 40, modulus=None
    )
    mu = of.Particles(x)
    run = of.flow(F, mu, Mobility(of.JKO(), (1.0, 0.0)), dt=1.0, steps=1)
    moved = (x[:, 0] + 40 * (1 - 2 * x[:, 1])) / 41
    torch.testing.assert_close(run.final.points[:, 0], moved, rtol=1e-4, atol=1e-4)
    assert torch.equal(run.final.points[:, 1], x[:, 1])
    info = run.info[0]
    assert info["coupling_optimal"]
    assert info["relabellings"] == 0
    # The way in the metric is not a W2 distance, and no word says so.
    assert "w2" not in {k for k, v in info.items() if v is not None}


def test_atoms_of_one_label_may_change_places():
    # Two labels of three atoms each; within a label it is the JKO step of that group.
    x = normal(6, 3, seed=5)
    x[:, 2] = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    from otflow.measures.labelled import LabelledParticles
    from otflow.proximal.labels import assigned, planned

    fixed = torch.tensor([False, False, True])
    mu = LabelledParticles(of.Particles(x), fixed)
    order = torch.tensor([2, 0, 1, 4, 5, 3])
    nu = LabelledParticles(of.Particles(x[order]), fixed)
    index = assigned(mu, nu)
    assert torch.equal(order[index], torch.arange(6))
    weights = torch.tensor([0.1, 0.2, 0.1, 0.3, 0.1, 0.2], dtype=F64)
    heavy = LabelledParticles(of.Particles(x, weights), fixed)
    y = x + 0.7 * normal(6, 3, seed=6).masked_fill(fixed, 0.0)
    other = LabelledParticles(of.Particles(y, weights), fixed)
    plan = planned(heavy, other)
    assert bool((x[plan.rows, 2] == y[plan.columns, 2]).all())
    # A label far away forces the same plan by the plain distance.
    far = torch.tensor([1.0, 1.0, 1e3], dtype=F64)
    plain = of.metrics.transport_plan(
        of.Particles(x * far, weights), of.Particles(y * far, weights)
    )
    assert plan.cost == pytest.approx(float(plain.cost), rel=1e-6)
    moved = torch.zeros(6, dtype=F64).index_add(0, plan.rows, plan.masses)
    torch.testing.assert_close(moved, weights)


@pytest.mark.parametrize(
    "scheme", [MALA(), Anneal(MALA(), 0.9), NoisyEuler(0.3)], ids=repr
)
def test_a_scheme_with_noise_of_its_own_moves_no_labels(scheme):
    F = exact.quadratic() + 0.1 * of.Entropy()
    F = exact.quadratic() if isinstance(scheme, NoisyEuler) else F
    mu, frozen = of.Particles(normal(20, 2)), Mobility(scheme, (1.0, 0.0))
    if isinstance(scheme, NoisyEuler):  # noise in the argument alone: labels stay
        run = of.flow(F, mu, frozen, dt=0.1, steps=3, generator=0)
        assert torch.equal(run.final.points[:, 1], mu.points[:, 1])
        return
    with pytest.raises(of.errors.Unsupported, match="mobility 0"):
        of.flow(F, mu, frozen, dt=0.1, steps=3, generator=0)


def test_clones_carry_their_labels():
    _, risk, mu = network_and_data()
    inner = of.chain(of.ExplicitEuler(), of.BirthDeath(50.0, jumps=True))
    scheme = Mobility(inner, risk.network.mobility(3, inner=0.0))
    run = of.flow(risk, mu, scheme, dt=0.1, steps=20, generator=0)
    known = {tuple(row) for row in mu.points[:, 1:].tolist()}
    left = {tuple(row) for row in run.final.points[:, 1:].tolist()}
    assert left < known


# Beside others -----------------------------------------------------------------------


def test_one_pass_of_transport_and_reaction_in_the_metric():
    _, risk, mu = network_and_data()
    rates = risk.network.mobility(3, outer=1.0, inner=0.2)
    inside = Mobility(of.chain(of.ExplicitEuler(), of.BirthDeath(2.0)), rates)
    found = of.flow(risk, mu, inside, dt=0.1, steps=1).final
    v, variation = risk.velocity(mu), risk.first_variation(mu)
    expected = mu.push(v * v.new_tensor(rates), 0.1).reweight(-2.0 * variation, 0.1)
    torch.testing.assert_close(found.points, expected.points)
    torch.testing.assert_close(found.weights, expected.weights)


@pytest.mark.parametrize(
    "make",
    [
        lambda rates: Minibatch(Mobility(of.ExplicitEuler(), rates)),
        lambda rates: Mobility(Minibatch(of.ExplicitEuler()), rates),
    ],
    ids=["outside", "inside"],
)
def test_minibatches_inside_and_outside_draw_the_same(make):
    network, risk, mu = network_and_data()
    F = Risk(network, risk.X, risk.y, batch_size=8)
    rates = network.mobility(3, outer=1.0, inner=0.3)

    class ByHand(of.schemes.Scheme):
        def step(self, F, mu, dt, state, generator):
            rate = mu.points.new_tensor(rates)
            return of.schemes.Step(mu.push(F.velocity(mu) * rate, dt), state)

    ends = [
        of.flow(F, mu, scheme, dt=0.2, steps=5, generator=3).final.points
        for scheme in (make(rates), Minibatch(ByHand()))
    ]
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-13)


@pytest.mark.slow
def test_adaptive_steps_and_adaptive_inner_steps():
    F, mu = exact.quadratic(), of.Particles(normal(6, 2))
    rates = torch.tensor(RATES, dtype=F64)
    for scheme in (
        Adaptive(Mobility(of.JKO(order=2), RATES), tolerance=1e-5),
        Mobility(Adaptive(of.JKO(order=2), tolerance=1e-5), RATES),
    ):
        run = of.flow(F, mu, scheme, dt=0.5, steps=2000, until=1.0)
        expected = mu.points * (-rates).exp()
        assert float((run.final.points - expected).abs().max()) < 1e-3


def test_velocities_of_the_underdamped_survive_the_change_of_units():
    F, mu = exact.quadratic() + 0.1 * of.Entropy(), of.Particles(normal(50, 2))
    scheme = Mobility(UnderdampedLangevin(), (3.0, 0.7))
    run = of.flow(F, mu, scheme, dt=0.1, steps=20, generator=0)
    assert [info["refreshed"] for info in run.info] == [0] * 20


def test_a_run_is_certified_without_a_word_of_w2():
    F = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
    mu = of.Particles(normal(8, 2))
    for order in (1, 2):
        scheme = Mobility(of.JKO(order=order), RATES)
        run = of.flow(F, mu, scheme, dt=0.3, steps=5)
        report = of.analysis.certify(run, F)
        found = {finding.name: finding for finding in report.findings}
        assert found["time error"].verdict == "unknown"
        assert "mobility" in found["dissipation"].text
        assert "mobility" in found["exact step"].text
        with pytest.raises(of.errors.Unsupported):
            run.time_error()
        rest = of.Particles(torch.zeros(8, 2, dtype=F64))
        tried = of.analysis.certify(run, F, against=rest).findings
        modulus = next(one for one in tried if one.name == "modulus")
        assert modulus.verdict == "unknown"
        for info in run.info:
            for leaf in (info, *info.entries.get("stages", ())):
                assert leaf.w2 is None
                assert leaf.decrease is None
                assert leaf.modulus is None


def test_svgd_and_backtracking_and_forward_backward():
    F, mu = exact.quadratic(), of.Particles(normal(12, 2))
    for scheme in (SVGD(of.kernels.Gaussian(1.0)), of.ExplicitEuler(backtracking=True)):
        G = F + 0.1 * of.Entropy() if isinstance(scheme, SVGD) else F
        run = of.flow(G, mu, Mobility(scheme, (2.0, 0.0)), dt=0.1, steps=5, generator=0)
        assert torch.equal(run.final.points[:, 1], mu.points[:, 1])
        assert not torch.equal(run.final.points[:, 0], mu.points[:, 0])
    with pytest.raises(ValueError, match="proximal map"):
        Mobility(Minibatch(ForwardBackward()), RATES)


def test_graphs_pass_through():
    theta = normal(5, 2).requires_grad_()
    mu, F = of.Particles(theta), exact.quadratic()
    scheme = Mobility(of.ExplicitEuler(), (2.0, 0.0))
    step = scheme.step(F, mu, 0.1, scheme.init(F, mu), torch.Generator())
    step.measure.points.sum().backward()
    expected = torch.tensor([[0.8, 1.0]], dtype=F64).expand(5, 2)
    torch.testing.assert_close(theta.grad, expected)


# Bad input ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "match", "make"),
    [
        (ValueError, "a mobility", lambda: Mobility(of.JKO(), (1.0, -1.0))),
        (ValueError, "a mobility", lambda: Mobility(of.JKO(), (1.0, math.nan))),
        (ValueError, "a mobility", lambda: Mobility(of.JKO(), (1.0, math.inf))),
        (ValueError, "all mobilities are 0", lambda: Mobility(of.JKO(), (0.0, 0.0))),
        (TypeError, "one number for each", lambda: Mobility(of.JKO(), 2.0)),
        (TypeError, "one number for each", lambda: Mobility(of.JKO(), [])),
        (TypeError, "a mobility", lambda: Mobility(of.JKO(), ["1"])),  # type: ignore[list-item]
        (TypeError, "a mobility", lambda: Mobility(of.JKO(), torch.ones(2, 2))),
        (TypeError, "scheme", lambda: Mobility(of.JKO, (1.0,))),
        (ValueError, "moves no points", lambda: Mobility(of.BirthDeath(), (1.0,))),
        (ValueError, "moves no points", lambda: Mobility(Resample(), (1.0,))),
    ],
)
def test_bad_arguments(error, match, make):
    with pytest.raises(error, match=match):
        make()


def test_bad_measures():
    F, scheme = exact.quadratic(), Mobility(of.ExplicitEuler(), (1.0, 2.0))
    with pytest.raises(ValueError, match=r"2 mobilities.*3 coordinates"):
        of.flow(F, of.Particles(normal(4, 3)), scheme, dt=0.1, steps=1)
    line = of.Quantiles(torch.linspace(-1, 1, 9, dtype=F64))
    with pytest.raises(of.errors.Unsupported, match="the flow of m"):
        of.flow(F, line, scheme, dt=0.1, steps=1)
    tiny = Mobility(of.ExplicitEuler(), (1.0, 1e-60))
    with pytest.raises(ValueError, match=r"range 1.1e-19 to 1.8e\+19 of torch.float32"):
        of.flow(F, of.Particles(torch.ones(3, 2)), tiny, dt=0.1, steps=1)
    huge = Mobility(of.ExplicitEuler(), (1.0, 1e200))
    with pytest.raises(ValueError, match=r"or rescale F"):
        of.flow(F, of.Particles(normal(3, 2)), huge, dt=0.1, steps=1)
    of.flow(F, of.Particles(normal(3, 2)), tiny, dt=0.1, steps=1)


def test_mobilities_of_mobilities_are_products():
    F, mu = exact.quadratic() + 0.1 * of.Entropy(), of.Particles(normal(8, 3))
    for inner in (of.Langevin(), UnderdampedLangevin()):
        twice = Mobility(Mobility(inner, (2.0, 0.0, 0.5)), (0.5, 1.0, 0.0))
        once = Mobility(inner, (1.0, 0.0, 0.0))
        ends = [
            of.flow(F, mu, scheme, dt=0.1, steps=5, generator=0).final.points
            for scheme in (twice, once)
        ]
        torch.testing.assert_close(*ends)
        assert torch.equal(ends[0][:, 1:], mu.points[:, 1:])


def test_arrays_and_repr():
    scheme = Mobility(of.ExplicitEuler(), torch.tensor([1.0, 0.5]).numpy())
    assert scheme.mobility == (1.0, 0.5)
    assert repr(scheme).endswith("mobility=(1.0, 0.5))")


def test_what_is_one_of_w2_is_told_to_be():
    F = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
    scheme = Mobility(of.JKO(), [1.0, 0.5])
    run = of.flow(F, of.Particles(normal(8, 2)), scheme, dt=0.1, steps=3)
    report = of.analysis.certify(run, F)
    words = {one.name: one.text for one in report.findings}
    for name in ("time error", "modulus", "dissipation"):
        assert "mobility" in words[name]
        assert "W2" in words[name]
