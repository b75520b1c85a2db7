"""Training as a flow: statements of the survey of mean-field networks, its example."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.testing import clouds
from otflow.testing.clouds import normal
from otflow.testing.differences import derivative
from tests import exact

Risk, TwoLayer = of.meanfield.Risk, of.meanfield.TwoLayer


def sphere(n, d, seed=0):
    x = normal(n, d, seed=seed)
    return x / x.norm(dim=1, keepdim=True)


def slope(x, y):
    """Return the least-squares slope of log y against log x."""
    x, y = (torch.as_tensor(v, dtype=torch.float64).log() for v in (x, y))
    return float(
        ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    )


def train(F, mu, dt, steps):
    return of.flow(F, mu, of.ExplicitEuler(), dt=dt, steps=steps, every=steps).final


# The scalings -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scaling", "expected", "tolerance"),
    [("ntk", -0.5, 0.08), ("mean-field", 0.0, 0.05)],
)
def test_how_far_neurons_move(scaling, expected, tolerance):
    X = sphere(20, 3, seed=1)
    y = X[:, 0] * X[:, 1] + 0.5 * X[:, 2]
    F = Risk(TwoLayer("tanh", bias=False, scaling=scaling), X, y)
    sizes, distances = [64, 256, 1024, 4096], []
    for N in sizes:
        squares = []
        for seed in range(3 if N < 1000 else 1):
            mu = clouds.uniform(N, 4, seed=seed + N)
            # The same gradient descent on the usual parameters: rate 0.2, or 0.2 N.
            nu = train(F, mu, 0.2 / N if scaling == "ntk" else 0.2, 300)
            squares.append((nu.points - mu.points).square().mean())
        distances.append(float(torch.stack(squares).mean().sqrt()))
    assert slope(sizes, distances) == pytest.approx(expected, abs=tolerance)


@pytest.mark.slow
def test_the_mean_field_generalises_better():
    # Few neurons on the sphere to be learned from few data; the start is f = 0.
    d, m = 20, 500
    W, signs = sphere(3, d, seed=5), torch.tensor([1.0, -1.0, 1.0]).double()
    X, test = sphere(300, d, seed=10), sphere(3000, d, seed=50)
    y, truth = (torch.relu(Z @ W.T) @ signs for Z in (X, test))
    inner = sphere(m // 2, d, seed=90)
    ones = torch.ones(m // 2, 1).double()
    mu = of.Particles(torch.cat([torch.cat([a, inner], 1) for a in (ones, -ones)]))
    error = {}
    for scaling, dt in (("mean-field", 5.0), ("ntk", 5.0 / m)):
        network = TwoLayer("relu", bias=False, scaling=scaling)
        F = Risk(network, X, y)
        assert float(network(mu, X).abs().max()) < 1e-12
        nu = train(F, mu, dt, 1500)
        assert float(F(nu)) < 1e-3 * float(F(mu))
        wrong = (network(nu, test) - truth).square().mean()
        error[scaling] = float(wrong / truth.square().mean())
    assert error["mean-field"] < 0.5 * error["ntk"]
    assert error["mean-field"] < 0.02


def test_velocities_do_not_depend_on_n_and_gradients_are_diluted():
    X, y = normal(30, 2, seed=1), normal(30, seed=2)
    F, speeds, gradients = Risk(TwoLayer("tanh"), X, y), [], []
    for N in (20, 200, 2000):
        mu = of.Particles(normal(N, 4, seed=N))
        speeds.append(float(mu.norm(F.velocity(mu))))
        theta = mu.points.clone().requires_grad_()
        F.value(mu.with_free_atoms(theta)).backward()
        assert theta.grad is not None
        gradients.append(N * float(theta.grad.square().sum(1).mean().sqrt()))
    assert gradients == pytest.approx(speeds, rel=1e-12)
    assert max(speeds) / min(speeds) < 1.25


# Energy laws --------------------------------------------------------------------------


@pytest.mark.parametrize("mu", [clouds.uniform(40, 4), clouds.weighted(15, 4)])
def test_transport_dissipates_the_squared_speed(mu):
    X, y = normal(25, 2, seed=1), normal(25, seed=2)
    F = Risk(TwoLayer("tanh"), X, y)
    velocity = F.velocity(mu)

    def central(v, h):
        return float(F.value(mu.push(v, h)) - F.value(mu.push(v, -h))) / (2 * h)

    whole = float(mu.inner(velocity, velocity))
    errors = [abs(central(velocity, h) / -whole - 1) for h in (1e-2, 1e-3)]
    assert errors[1] < 1e-6
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.1)  # order h^2
    # The outer and the inner weights dissipate each on their own account.
    outer = velocity.clone()
    outer[:, 1:] = 0
    parts = [-float(mu.inner(v, velocity)) for v in (outer, velocity - outer)]
    assert sum(parts) == pytest.approx(-whole, rel=1e-14)
    for v, expected in zip((outer, velocity - outer), parts, strict=True):
        found = derivative(lambda t, v=v: F.value(mu.push(v, t)))
        assert float(found) == pytest.approx(expected, rel=1e-9)
        assert expected < -1e-3


@pytest.mark.parametrize("loss", ["square", "logistic"])
def test_birth_death_adds_the_variance_of_the_first_variation(loss):
    # dF/dt = -int |grad F'|^2 dmu - alpha Var F', with weighted particles.
    X, y, alpha = normal(25, 2, seed=1), normal(25, seed=2).sign(), 1.7
    F, mu = Risk(TwoLayer("tanh"), X, y, loss=loss), clouds.weighted(15, 4)
    velocity, variation = F.velocity(mu), F.first_variation(mu)
    mean = mu.weights @ variation
    variance = mu.weights @ (variation - mean).square()
    expected = -(mu.inner(velocity, velocity) + alpha * variance)
    assert float(alpha * variance) > 0.05 * float(-expected)

    def moved(t):
        return mu.push(velocity, t).reweight(-alpha * variation, t)

    found = derivative(lambda t: F.value(moved(t)))
    assert float(found) == pytest.approx(float(expected), rel=1e-10)
    for t in (-0.1, 0.1, 1.0):
        assert float(moved(t).weights.sum()) == pytest.approx(1, abs=1e-14)
    # The scheme is that flow: its one-sided quotients tend to the same number.
    scheme = of.chain(of.ExplicitEuler(), of.BirthDeath(rate=alpha))
    state = scheme.init(F, mu)

    def after(h):
        return F.value(scheme.step(F, mu, h, state, torch.Generator()).measure)

    h = 1e-4
    one_sided = (4 * after(h) - 3 * F.value(mu) - after(2 * h)) / (2 * h)
    assert float(one_sided) == pytest.approx(float(expected), rel=1e-5)


# Noise --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("h", [0.02, 0.4])
def test_langevin_on_a_linear_quadratic_model(h):
    # Neurons theta on the line, f = their mean, k/2 (f - m)^2 + lam/2 E theta^2
    # + Entropy/beta: at rest the mean is k m/(k + lam), and the variance that of the
    # Euler scheme, 1/(beta lam (1 - h lam/2)), which h = 0.4 tells from 1/(beta lam).
    k, m, lam, beta, N = 3.0, 2.0, 0.5, 2.0, 4000
    network = of.meanfield.CustomLayer(lambda x, theta: theta[:, 0].expand(len(x), -1))
    one = torch.ones(1, 1, dtype=torch.float64)
    F = (
        k * Risk(network, one, m * one[:, 0])
        + exact.quadratic(lam)
        + (1 / beta) * of.Entropy()
    )
    variance = exact.langevin_moments(0, 1, h, 10_000, lam=lam, temperature=1 / beta)[1]
    assert variance == pytest.approx(1 / (beta * lam * (1 - h * lam / 2)))
    start = of.Particles(1.7 + variance**0.5 * normal(N, 1))
    run = of.flow(
        F, start, of.Langevin(), dt=h, steps=1500, every=5, generator=1,
        record={"mean": lambda mu: mu.points.mean(), "var": lambda mu: mu.points.var()},
    )  # fmt: skip
    settled = run.times > 6.0
    assert float(run.records["mean"][settled].mean()) == pytest.approx(12 / 7, abs=0.01)
    assert float(run.records["var"][settled].mean()) == pytest.approx(
        variance, abs=0.025
    )


# The example of the design ------------------------------------------------------------


def test_one_network_under_three_dynamics():
    square = lambda z: 0.5 * z.square().sum(-1)
    X = torch.linspace(-2, 2, 40)[:, None]
    y = torch.sin(2 * X[:, 0])
    risk = Risk(TwoLayer("tanh"), X, y)
    smooth = risk + 1e-3 * of.Potential(square)
    neurons = of.Particles(normal(100, 3, dtype=torch.float32))
    for F, scheme in [
        (smooth, of.ExplicitEuler()),
        (smooth + 1e-4 * of.Entropy(), of.Langevin()),
        (smooth, of.chain(of.ExplicitEuler(), of.BirthDeath(rate=5.0))),
    ]:
        run = of.flow(
            F,
            neurons,
            scheme,
            dt=0.1,
            steps=100,
            every=50,
            record={"risk": risk},
            generator=0,
        )
        assert run.times.tolist() == pytest.approx([0, 5, 10])
        risks = run.records["risk"]
        assert (risks.diff() < 0).all()
        assert float(risks[-1]) < 0.7 * float(risks[0])
