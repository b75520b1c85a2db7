"""The limit of many particles, against systems that are solved by hand."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.testing.clouds import normal

F64 = torch.float64
chaos, mckean_vlasov = of.analysis.propagation_of_chaos, of.analysis.mckean_vlasov
# The velocity is m - x, with the mean m of the particles.
ATTRACTION = of.Interaction(of.kernels.Quadratic())


def standard(d=1):
    def draw(n, generator):
        return torch.randn(n, d, dtype=F64, generator=generator)

    return draw


def mean(mu):
    return mu.weights @ mu.points


def pull(x):
    """Return a potential of velocity -x / 2."""
    return 0.25 * x.square().sum(-1)


def test_the_velocity_of_the_attraction_is_the_one_assumed():
    mu = of.Particles(normal(5, 1))
    torch.testing.assert_close(ATTRACTION.velocity(mu), mean(mu) - mu.points)


@pytest.mark.slow
def test_the_errors_of_attraction_are_those_solved_by_hand():
    """X - Xbar = c (m_N - m) with c = 1 - (1 - dt)^K, and m_N has the variance 1/N."""
    sizes, runs, R, steps = [4, 16, 64], 250, 2048, 4
    report = chaos(
        ATTRACTION,
        standard(),
        sizes,
        1.0,
        steps=steps,
        observable=mean,
        reference=R,
        runs=runs,
    )
    r = (1 - 1 / steps) ** steps
    N = torch.tensor(sizes, dtype=F64)
    # The mean of the limit is one draw of variance 1/R, and its square is 1/R or so.
    squares = report.function_error.square()
    tolerance = 5 * math.sqrt(2 / runs) / N + 9 / R
    assert bool(((squares - 1 / N).abs() < tolerance).all())
    torch.testing.assert_close(
        report.particle_error, (1 - r) * report.function_error, rtol=1e-10, atol=0
    )
    # Cov(X, Y) = (1 - r^2)/N and Var X = 1/N + r^2 (1 - 1/N).
    exact = (1 - r**2) / N / (1 / N + r**2 * (1 - 1 / N))
    error = 5 * math.sqrt(2 / runs) * exact
    assert bool(((report.correlation - exact).abs() < error).all())
    assert bool(((N * report.variance - 1).abs() < 5 * math.sqrt(2 / runs)).all())


@pytest.mark.parametrize(("sign", "bounded"), [(1, True), (-1, False)])
def test_the_constant_grows_with_time_unless_forces_contract(sign, bounded):
    """Solved by hand: (1 - dt)^K tends to 0 under attraction, its inverse grows."""
    errors = []
    for time in (1, 2, 4, 8):
        steps = 10 * time
        report = chaos(
            sign * ATTRACTION,
            standard(),
            [16],
            time,
            steps=steps,
            observable=mean,
            reference=512,
            runs=4,
        )
        factor = abs(1 - (1 - sign * time / steps) ** steps)
        torch.testing.assert_close(
            report.particle_error, factor * report.function_error, rtol=1e-9, atol=0
        )
        errors.append(float(report.particle_error))
    growth = errors[-1] / errors[0]
    assert growth < 1.6 if bounded else growth > 1000


def test_the_noise_is_shared_with_the_limit():
    """Without interaction a particle is its own limit, however much noise there is."""
    F = of.Potential(pull) + 0.5 * of.Entropy()
    report = chaos(F, standard(2), [2, 4], 1.0, steps=5, reference=64)
    assert float(report.particle_error.max()) < 1e-14
    assert float(report.function_error.min()) > 1e-3


@pytest.mark.slow
def test_with_noise_the_rate_is_one_half():
    F = ATTRACTION + of.Potential(pull) + 0.5 * of.Entropy()
    report = chaos(F, standard(2), [4, 16, 64], 1.0, steps=10, observable=mean, runs=60)
    rates = report.rates()
    assert abs(rates["particle_error"] + 0.5) < 0.08
    assert abs(rates["function_error"] + 0.5) < 0.08


def test_the_distance_falls_more_slowly_in_high_dimension():
    """Samples of one law in dimension 5 approach each other slowly."""
    F, sizes = of.Potential(pull), [8, 64, 512]
    report = chaos(
        F,
        standard(5),
        sizes,
        1.0,
        steps=1,
        runs=4,
        reference=1024,
        transport=1024,
        observable=mean,
    )
    assert report.transport is not None
    order = of.analysis.observed_order(sizes, report.transport)
    assert -0.3 < order < -0.1


def test_the_same_seed_gives_the_same_report():
    F = ATTRACTION + 0.1 * of.Entropy()
    reports = [
        chaos(F, standard(), [2, 3], 0.5, steps=2, reference=8, generator=seed)
        for seed in (1, 1, 2)
    ]
    assert torch.equal(reports[0].particle_error, reports[1].particle_error)
    assert not torch.equal(reports[0].particle_error, reports[2].particle_error)


def test_single_precision_stays_single():
    def draw(n, generator):
        return torch.randn(n, 1, generator=generator)

    report = chaos(
        ATTRACTION + 0.1 * of.Entropy(), draw, [4, 64], 1.0, steps=3, transport=64
    )
    assert report.particle_error.dtype == torch.float32
    assert float(report.particle_error[1]) < float(report.particle_error[0])


def test_a_measure_may_be_sampled():
    law = of.Gaussian(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64))
    report = chaos(ATTRACTION, law, [2, 4], 1.0, steps=3, reference=32)
    assert report.sizes == (2, 4)
    assert report.function_error.dtype == F64


@pytest.mark.slow
def test_neurons_of_a_network_are_chaotic():
    """Theorem 2.3, tanh on 16 data: functions and coupled neurons at 1/2, W2 slower."""
    X = torch.linspace(-2, 2, 16, dtype=F64)[:, None]
    risk = of.meanfield.Risk(of.meanfield.TwoLayer("tanh"), X, X[:, 0].sin())
    report = chaos(
        risk,
        standard(3),
        [16, 64, 256],
        4.0,
        steps=40,
        observable=risk.outputs,
        reference=8192,
        runs=24,
        transport=2048,
    )
    rates = report.rates()
    assert abs(rates["function_error"] + 0.5) < 0.08
    assert abs(rates["particle_error"] + 0.5) < 0.08
    assert -0.42 < rates["transport"] < -0.2
    N = torch.tensor(report.sizes, dtype=F64)
    scaled = N * report.variance
    assert float(scaled.max() / scaled.min()) < 1.5


# Along a frozen path ------------------------------------------------------------------


def test_the_atoms_of_a_path_follow_it():
    F = ATTRACTION + of.Potential(pull)
    mu = of.Particles(normal(6, 2), normal(6, seed=1).exp(), normalize=True)
    run = of.flow(F, mu, of.ExplicitEuler(), dt=0.1, steps=7)
    found = mckean_vlasov(F, run, mu)
    assert len(found) == 8
    for nu, wanted in zip(found, run.snapshots, strict=True):
        torch.testing.assert_close(nu.points, wanted.points, rtol=1e-13, atol=1e-14)
        assert torch.equal(nu.weights, mu.weights)


def test_a_linear_model_has_the_law_solved_by_hand():
    """The velocity is m_t - 3x/2; the mean and the variance obey their recursions."""
    F = ATTRACTION + of.Potential(pull) + 0.2 * of.Entropy()
    n, dt, steps = 20_000, 0.1, 15
    path = of.flow(
        F, of.Particles(2 + normal(50, 1)), of.Langevin(), dt=dt, steps=steps
    )
    start = of.Particles(1 + normal(n, 1, seed=3))
    end = mckean_vlasov(F, path, start, generator=4)[-1].points
    m, v = float(start.points.mean()), float(start.points.var())
    for mu in path.snapshots[:-1]:
        m = m + dt * (float(mean(mu)) - 1.5 * m)
        v = (1 - 1.5 * dt) ** 2 * v + 2 * 0.2 * dt
    assert abs(float(end.mean()) - m) < 5 * math.sqrt(v / n)
    assert abs(float(end.var()) - v) < 5 * v * math.sqrt(2 / n)


# Bad input ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"sizes": [4, 64]}, ValueError, "take a larger reference"),
        ({"sizes": [1]}, ValueError, r"sizes\[0\] must be"),
        ({"sizes": []}, ValueError, "one number or more"),
        ({"runs": 1}, ValueError, "runs must be"),
        ({"transport": 17}, ValueError, "or transport=16"),
        ({"time": -1.0}, ValueError, "time must be"),
        ({"steps": 0}, ValueError, "steps must be"),
        ({"observable": lambda _: 1.0}, of.errors.InvalidFunctional, "risk.outputs"),
        ({"initial": lambda n, _: torch.zeros(n)}, ValueError, "must return points"),
        ({"F": -1.0 * of.Entropy()}, ValueError, "backward heat"),
    ],
)
def test_bad_input_raises(change, error, words):
    arguments = {
        "F": ATTRACTION,
        "initial": standard(),
        "sizes": [4],
        "time": 1.0,
        "steps": 2,
        "reference": 16,
        **change,
    }
    with pytest.raises(error, match=words):
        chaos(**arguments)


def test_a_path_with_gaps_raises():
    """Steps over the gaps would be longer than those of the path, and unseen."""
    mu = of.Particles(normal(3, 1))
    for options in ({"every": 2}, {"every": 3}):
        run = of.flow(ATTRACTION, mu, of.ExplicitEuler(), dt=0.1, steps=4, **options)
        with pytest.raises(ValueError, match=r"measure of every step.*every=1"):
            mckean_vlasov(ATTRACTION, run, mu)


def test_a_path_of_one_measure_raises():
    run = of.flow(
        ATTRACTION, of.Particles(normal(3, 1)), of.ExplicitEuler(), dt=0.1, steps=0
    )
    with pytest.raises(ValueError, match="every=1"):
        mckean_vlasov(ATTRACTION, run, of.Particles(normal(3, 1)))
