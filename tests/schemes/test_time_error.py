"""The a-posteriori bound on the error of JKO steps in time, against exact flows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import otflow as of
from otflow.schemes.time_error import YOUNG, moments, time_error
from otflow.testing import clouds
from tests import exact

# The cells are few, or wide in the tails: what is tried here does not need them narrow.
pytestmark = pytest.mark.filterwarnings("ignore::otflow.errors.CellWarning")


def accurate(tolerance=1e-10):
    return of.JKO(of.proximal.ParticleProximal(tolerance=tolerance))


def linear(lam, stated, dt, time=2.0, scheme=None):
    """Return bounds and true errors for V = lam |x|^2 / 2 of a stated modulus."""
    F = of.Potential(lambda x: 0.5 * lam * x.square().sum(-1), modulus=stated)
    mu = clouds.weighted()
    steps = round(time / dt)
    run = of.flow(F, mu, scheme or accurate(), dt=dt, steps=steps)
    errors = [
        float(nu.norm(exact.decay(lam, float(t)) * mu.points - nu.points))
        for t, nu in zip(run.times, run.snapshots, strict=True)
    ]
    return run.time_error(), torch.tensor(errors, dtype=torch.float64)


# The bound is one, and it is tight ----------------------------------------------------


@pytest.mark.parametrize(
    ("lam", "stated", "factor"),
    [(1.0, 1.0, 1.4), (1.0, 0.5, 2.2), (1.0, 0.0, 3.7), (-1.0, -1.0, 2.3)],
)
def test_it_dominates_the_error_of_a_quadratic_potential(lam, stated, factor):
    for dt in (0.2, 0.05):
        bound, error = linear(lam, stated, dt)
        assert bound[0] == error[0] == 0
        assert bool((bound[1:] >= error[1:]).all())
        # Of one step the bound is O(dt^1.5) and the error O(dt^2): look later.
        assert bound[-1] <= factor * error[-1]


@pytest.mark.slow
def test_it_is_of_order_one():
    steps = (0.1, 0.05, 0.025)
    for lam, stated in [(1.0, 1.0), (1.0, 0.0), (-1.0, -1.0)]:
        ends = [float(linear(lam, stated, dt)[0][-1]) for dt in steps]
        assert of.analysis.observed_order(steps, ends) == pytest.approx(1, abs=0.1)


def test_it_dominates_the_error_of_an_ornstein_uhlenbeck_flow():
    # Neither commutes with the other.
    A = torch.tensor([[2.0, -0.7], [-0.7, 1.0]], dtype=torch.float64)
    S = torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=torch.float64)
    T, lam = 0.5, float(torch.linalg.eigvalsh(A)[0])
    F: of.Functional = of.Potential(lambda x: 0.5 * ((x @ A) * x).sum(-1), modulus=lam)
    F = F + T * of.Entropy()
    mu = of.Gaussian(torch.tensor([1.0, -2.0], dtype=torch.float64), S)
    rest = T * torch.linalg.inv(A)
    for dt in (0.2, 0.05):
        run = of.flow(F, mu, of.JKO(), dt=dt, steps=round(2 / dt))
        bound = run.time_error()
        for k, (t, nu) in enumerate(zip(run.times, run.snapshots, strict=True)):
            E = torch.matrix_exp(-float(t) * A)
            expected = of.Gaussian(E @ mu.mean, rest + E @ (S - rest) @ E)
            error = float(nu.norm(nu.displacement_to(expected)))
            # Forming a covariance costs half of the digits.
            assert error <= bound[k] + 1e-7
        assert bound[k] <= 6 * error


@pytest.mark.slow
def test_it_dominates_the_error_on_quantiles():
    # Against the flow of as many quantiles, solved finely by the method of order three.
    mu = of.Quantiles.from_quantile(
        lambda u: 1 + 0.4 * torch.special.ndtri(u), 100, dtype=torch.float64
    )
    F: of.Functional = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
    F = F + 0.5 * of.Entropy()
    fine = of.flow(F, mu, of.JKO(order=3), dt=0.01, steps=100, every=20)
    run = of.flow(F, mu, of.JKO(), dt=0.1, steps=10, every=2)
    bound = run.time_error()
    for k, (nu, ref) in enumerate(zip(run.snapshots, fine.snapshots, strict=True)):
        error = float(nu.norm(nu.displacement_to(ref)))
        assert error <= bound[k] + 1e-9
    assert bound[-1] <= 2.5 * error


def test_it_dominates_the_error_of_the_dyson_gas():
    # Convex along generalised geodesics of the line, though not for every coupling.
    n, c = 8, 0.9
    F = of.Interaction(of.kernels.PowerLaw(2, 0), modulus=0.0)
    size = float(exact.hermite_zeros(n).square().mean().sqrt())
    for dt in (0.2, 0.05):
        run = of.flow(F, exact.hermite(n, c), accurate(), dt=dt, steps=round(1 / dt))
        bound = run.time_error()
        for k in range(1, len(bound)):
            scale = exact.breathing_jko(c, dt, k, kappa=1 / n)
            error = abs(scale - exact.breathing(c, k * dt, kappa=1 / n)) * size
            assert error <= bound[k]
        assert bound[-1] <= 4 * error


@pytest.mark.slow
def test_it_dominates_the_error_in_a_double_well():
    # W = (x^2 - 1)^2/4 is -1-convex; the reference is of order three.
    F = of.Potential(lambda x: (x.square() - 1).square().sum(-1) / 4, modulus=-1.0)
    mu = of.Particles(torch.tensor([[0.2], [-0.5], [2.0]], dtype=torch.float64))
    solver = of.proximal.ParticleProximal(tolerance=1e-12)
    fine = of.flow(F, mu, of.JKO(solver, order=3), dt=0.025, steps=80, every=4)
    run = of.flow(F, mu, accurate(), dt=0.1, steps=20)
    bound = run.time_error()
    for k, (nu, ref) in enumerate(zip(run.snapshots, fine.snapshots, strict=True)):
        assert float(nu.norm(nu.displacement_to(ref))) <= bound[k] + 1e-6
    assert float(bound[10]) < 0.6


def test_steps_may_vary_and_records_may_be_few():
    F, mu = exact.quadratic(1.0), clouds.uniform()
    F = of.Potential(F.V, modulus=1.0)
    run = of.flow(F, mu, accurate(), dt=lambda k: 0.05 * (1 + k % 3), steps=11, every=4)
    bound = run.time_error()
    assert bound.shape == run.times.shape == (4,)
    for b, t, nu in zip(bound, run.times, run.snapshots, strict=True):
        expected = exact.decay(1.0, float(t)) * mu.points
        assert float(nu.norm(nu.points - expected)) <= b
    whole = of.flow(F, mu, accurate(), dt=lambda k: 0.05 * (1 + k % 3), steps=11)
    assert torch.equal(bound, whole.time_error()[[0, 4, 8, 11]])


def test_for_a_convex_energy_it_is_the_sum_of_nochetto_savare_and_verdi():
    dt = 0.1
    F = of.Potential(lambda x: (x.square().sum(-1) + 1).sqrt(), modulus=0.0)
    mu = clouds.uniform()
    run = of.flow(F, mu, accurate(), dt=dt, steps=10)
    E = [
        (i["energy_before"] - i["energy_after"]) / dt - i["w2"] ** 2 / dt**2
        for i in run.info
    ]
    expected = math.sqrt(sum(dt**2 * e for e in E))
    assert float(run.time_error(inner=False)[-1]) == pytest.approx(expected, rel=1e-9)
    # The a-priori bound of Ambrosio, Gigli and Savare follows from it.
    assert expected <= dt / math.sqrt(2) * float(mu.norm(F.velocity(mu)))


def report(lam, tau, x, y, bound=0.0):
    """Return the report of a step from x to y in lam x^2 / 2."""
    return {
        "order": 1,
        "dt": tau,
        "modulus": lam,
        "w2": abs(y - x),
        "bound": bound,
        "energy_before": 0.5 * lam * x * x,
        "energy_after": 0.5 * lam * y * y,
    }


def integrated(D, lam, step, young):
    """Return D after a step, integrating the inequality of its docstring as it is."""
    tau, lost = step["dt"], step["energy_before"] - step["energy_after"]
    square = step["w2"] ** 2

    def slope(s, D):
        rest = 1 - s / tau
        if lam > 0:  # D <= (1 + y) a^2 + rest (1 + 1/y) delta^2, a to the new measure
            last = -lam * (D - rest * (1 + 1 / young) * square) / (1 + young)
        else:  # a^2 <= (1 + y) D + rest (1 + 1/y) delta^2
            last = -lam * ((1 + young) * D + rest * (1 + 1 / young) * square)
        return 2 * rest * lost - square / tau - lam * D + last

    found = solve_ivp(slope, (0, tau), [D], rtol=1e-11, atol=1e-14)
    return float(found.y[0, -1])


@pytest.mark.slow
@pytest.mark.parametrize(("lam", "tau"), [(1.0, 0.3), (4.0, 0.5), (-1.0, 0.3)])
def test_it_is_the_integral_of_the_inequality(lam, tau):
    x, reports, D = 1.0, [], 0.0
    for _ in range(2):
        y = x / (1 + lam * tau)
        reports.append(report(lam, tau, x, y))
        found = time_error(reports, inner=True)[-1] ** 2
        D = min(integrated(D, lam, reports[-1], float(c)) for c in YOUNG)
        if lam < 0:
            assert found == pytest.approx(D, rel=1e-9)
        else:  # which may also leave the last term out
            assert found <= D * (1 + 1e-9)
        D, x = found, y
        assert math.sqrt(D) >= abs(x - math.exp(-lam * tau * len(reports)))


@pytest.mark.parametrize("lam", [1.0, 4.0])
def test_with_the_constant_of_least_outcome(lam, monkeypatch):
    monkeypatch.setattr("otflow.schemes.time_error.YOUNG", YOUNG[12:13])  # 1
    step = report(lam, 0.3, 1.0, 1.0 / (1 + 0.3 * lam))
    wanted = integrated(0.0, lam, step, float(YOUNG[12]))
    plain = time_error([{**step, "modulus": 0.0}], inner=True)[-1] ** 2
    found = time_error([step], inner=True)[-1] ** 2
    assert found <= min(wanted, plain) * (1 + 1e-12)
    # Without the last term: D' = 2 rest Delta - delta^2 / tau - lam D.
    lost, square, tau = (
        step["energy_before"] - step["energy_after"],
        step["w2"] ** 2,
        0.3,
    )
    alone = solve_ivp(
        lambda s, D: 2 * (1 - s / tau) * lost - square / tau - lam * D,
        (0, tau), [0.0], rtol=1e-11, atol=1e-14,
    )  # fmt: skip
    assert found == pytest.approx(min(wanted, float(alone.y[0, -1])), rel=1e-8)


def test_the_moments_are_smooth_where_the_series_takes_over():
    x = torch.tensor([1e-9, 1e-5, 9.9e-4, -9.9e-4, 1.1e-3, 0.5, -2.0])
    x = x.to(torch.float64)
    whole, ramp = moments(x)
    torch.testing.assert_close(whole, -torch.expm1(-x) / x, rtol=1e-12, atol=0)
    # The integral of s exp(-x s) over [0, 1], by Gauss-Legendre.
    nodes, weights = np.polynomial.legendre.leggauss(12)
    t, w = torch.from_numpy(0.5 + 0.5 * nodes), torch.from_numpy(0.5 * weights)
    expected = (w * t * (-x[:, None] * t).exp()).sum(-1)
    torch.testing.assert_close(ramp, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("length", [1e-3, 0.3, 0.75, 0.99, 1 - 1e-6])
@pytest.mark.parametrize("lam", [-100.0, -1.0, -0.01])
def test_every_admissible_step_of_a_negative_modulus_has_a_finite_bound(lam, length):
    # length = -lam tau: at 1 the step has no minimiser.
    tau, x, reports = length / -lam, 1.0, []
    for k in range(1, 4):
        y = x / (1 - length)
        reports.append(report(lam, tau, x, y))
        found, x = time_error(reports, inner=True)[-1], y
        assert math.isfinite(found)
        assert found >= abs(x - math.exp(length * k))


def test_a_bound_that_overflows_is_refused():
    # What grows as exp(-lam t) leaves all floats behind; no infinity is returned.
    reports = [report(-1.0, 0.5, 0.0, 0.0, bound=1.0)] * 2000
    with pytest.raises(of.errors.Unsupported, match="overflow; ask for the error of"):
        time_error(reports, inner=True)
    assert math.isfinite(time_error(reports[:20], inner=True)[-1])


@pytest.mark.parametrize("inner", [True, False])
@pytest.mark.parametrize("lam", [0.5, 3.0])
def test_round_off_at_rest_is_no_contradiction(lam, inner):
    F = of.Potential(lambda x: 3 + 0.5 * lam * x.square().sum(-1), modulus=lam)
    mu = of.Gaussian(
        torch.ones(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64) * 0.3
    )
    run = of.flow(F + of.Entropy(), mu, of.JKO(), dt=1.0, steps=200)
    bound = run.time_error(inner=inner)
    assert bool(bound.isfinite().all())
    assert float(bound[-1]) < 1e-5  # the errors of the first steps have decayed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_energies_are_those_of_the_measures_that_are_returned(dtype):
    # Quantiles are sought in float64: what is said is said after the cast.
    F = of.KL(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
    mu = of.Quantiles.from_function(
        lambda x: torch.exp(-2 * (x[:, 0] - 1) ** 2), -1.5, 3.5, 60, dtype=dtype
    )
    run = of.flow(F, mu, of.JKO(), dt=0.1, steps=20)
    for before, after in zip(run.info[:-1], run.info[1:], strict=True):
        rest = pytest.approx(before["energy_after"], rel=1e-12)
        assert after["energy_before"] == rest
    assert all(info["guarantee"] == "exact" for info in run.info)
    # The same flow in float64, from the start that float32 has.
    wide = of.Quantiles(mu.edges.double(), mu.weights.double(), normalize=True)
    other = of.flow(F, wide, of.JKO(), dt=0.1, steps=20).time_error()
    torch.testing.assert_close(run.time_error(), other, rtol=0.02, atol=0.0)


# Inexact inner solves -----------------------------------------------------------------


def test_errors_of_the_inner_solves_are_counted():
    dt = 0.01
    crude = of.JKO(of.proximal.ParticleProximal(tolerance=0.3))
    F = of.Potential(lambda x: (x.square().sum(-1) + 0.1).sqrt(), modulus=0.0)
    mu = clouds.uniform(20, 3)
    solver = of.proximal.ParticleProximal(tolerance=1e-12)
    fine = of.flow(F, mu, of.JKO(solver, order=3), dt=dt, steps=50)
    run = of.flow(F, mu, crude, dt=dt, steps=50)
    assert max(info["bound"] for info in run.info) > 1e-6
    bound, alone = run.time_error(), run.time_error(inner=False)
    assert bool((bound[1:] > alone[1:]).all())
    for k, (nu, ref) in enumerate(zip(run.snapshots, fine.snapshots, strict=True)):
        assert float(nu.norm(nu.displacement_to(ref))) <= bound[k] + 1e-9


@pytest.mark.parametrize("stiffness", [0.05, 3.0])
@pytest.mark.parametrize("miss", [-0.4, -0.1, 0.1, 0.4, 2.0])
def test_a_miss_costs_what_it_may_hide(stiffness, miss):
    # Of all exact steps within the miss the bound must cover the one there was.
    tau, x = 0.2, 1.0
    lam = stiffness / tau
    best = x / (1 + stiffness)
    crude = report(lam, tau, x, best + miss, bound=abs(miss))
    exact_one = report(lam, tau, x, best)
    found = time_error([crude], inner=True)[-1]
    assert found >= time_error([exact_one], inner=True)[-1] + abs(miss) - 1e-12
    assert found >= abs(best + miss - math.exp(-lam * tau))


def test_exact_solves_need_no_correction():
    bound, _ = linear(1.0, 1.0, 0.1, scheme=accurate(1e-13))
    F = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
    run = of.flow(F, clouds.weighted(), accurate(1e-13), dt=0.1, steps=20)
    torch.testing.assert_close(bound, run.time_error(inner=False), rtol=1e-6, atol=0)


# Refusals -----------------------------------------------------------------------------


def refusal(scheme, F=None, mu=None, **options):
    F = (
        of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
        if F is None
        else F
    )
    run = of.flow(F, clouds.uniform() if mu is None else mu, scheme, dt=0.1, steps=2)
    with pytest.raises(of.errors.Unsupported) as caught:
        run.time_error(**options)
    text = str(caught.value)
    assert text.startswith("no bound on the error of the time steps: step ")
    return text


@pytest.mark.parametrize(
    ("scheme", "what"),
    [
        (of.ExplicitEuler(), "a proximal step"),
        (of.JKO(order=2), "of order 1"),
        (of.chain(of.JKO(), of.BirthDeath()), "a proximal step"),
    ],
)
def test_other_schemes_are_refused(scheme, what):
    assert f"step 0 is not {what}; use JKO() of order 1" in refusal(scheme)


def test_unknown_convexity_is_refused():
    F = of.Potential(lambda x: x.square().sum(-1))
    assert "unknown convexity; state it" in refusal(of.JKO(), F)


def test_a_step_too_long_for_the_modulus_is_refused():
    F = of.Potential(lambda x: x.square().sum(-1), modulus=-20.0)
    assert "is too long for the modulus -20; take dt < 0.05" in refusal(of.JKO(), F)


def test_an_unknown_distance_is_refused():
    scheme = of.JKO(of.proximal.SinkhornParticles(0.1, tolerance=1e-2))
    assert "does not know its length; use a solver" in refusal(scheme)


def test_a_functional_that_changes_is_refused():
    X = torch.linspace(-1, 1, 16, dtype=torch.float64)[:, None]
    risk = of.meanfield.Risk(
        of.meanfield.TwoLayer("tanh"), X, X[:, 0] ** 2, batch_size=4
    )

    class Stated(of.Functional):
        def __init__(self, risk):
            self.risk = risk

        def value(self, mu):
            return self.risk.value(mu)

        def resample(self, generator):
            return Stated(self.risk.resample(generator))

        def modulus(self, dim):
            return 0.0

    text = refusal(of.schemes.Minibatch(of.JKO()), Stated(risk), clouds.uniform(5, 3))
    assert "step 1 starts at the energy" in text
    assert "flow one functional by JKO() alone" in text


def test_a_distance_that_is_an_estimate_is_refused_unless_asked_for():
    mu = of.GridDensity.from_function(
        lambda x: torch.exp(-2 * (x - 0.5).square().sum(-1)),
        lower=-4,
        upper=4,
        shape=(64,),
        dtype=torch.float64,
    )
    F = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0) + of.Entropy()
    text = refusal(of.JKO(), F, mu)
    assert "neither its length nor its error exactly" in text
    assert "time_error(inner=False)" in text
    run = of.flow(F, mu, of.JKO(), dt=0.1, steps=10)
    estimate = run.time_error(inner=False)
    error = abs(exact_mean(run) - 0.5 * math.exp(-1.0))
    assert error < float(estimate[-1]) < 10 * error


def exact_mean(run):
    return float(run.final.expectation(lambda x: x[:, 0]))


def test_steps_that_lost_too_little_for_their_length_give_no_estimate():
    # An exact step loses at least (1 / tau + modulus / 2) length^2.
    step = report(1.0, 0.1, 1.0, 1 / 1.1)
    assert time_error([step], inner=False)[-1] > 0
    short = {**step, "energy_after": step["energy_before"] - 0.5 * step["w2"] ** 2}
    with pytest.raises(of.errors.Unsupported, match=r"lost less energy .* finer grid"):
        time_error([short], inner=False)


@pytest.mark.filterwarnings("ignore::otflow.errors.BlurWarning")  # and it is told
def test_the_estimate_on_a_coarse_grid_is_near_that_of_exact_steps():
    F: of.Functional = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
    F = F + 0.2 * of.Entropy()
    bell = lambda x: torch.exp(-2 * (x - 0.3).square().sum(-1))
    ends = (-4.0, -3.0), (4.0, 3.0)
    mu = of.GridDensity.from_function(bell, *ends, (32, 20), dtype=torch.float64)
    run = of.flow(F, mu, of.JKO(), dt=0.05, steps=2)
    centre = torch.full((2,), 0.3, dtype=torch.float64)
    nu = of.Gaussian(centre, 0.25 * torch.eye(2, dtype=torch.float64))
    expected = of.flow(F, nu, of.JKO(), dt=0.05, steps=2).time_error()
    found = run.time_error(inner=False)[1:] / expected[1:]
    assert bool(((found > 0.7) & (found < 1.6)).all())


@pytest.mark.parametrize("height", [0.0, 1e3, 1e5, 1e7])
def test_energies_of_float32_are_known_to_its_round_off(height):
    V = of.Potential(lambda x: 0.5 * x.square().sum(-1) + height, modulus=1.0)
    run = of.flow(V, of.Particles(torch.ones(1, 1)), of.JKO(), dt=0.1, steps=5)
    assert run.converged
    error = abs(run.final.points.item() - math.exp(-0.5))
    assert error <= run.time_error()[-1]
