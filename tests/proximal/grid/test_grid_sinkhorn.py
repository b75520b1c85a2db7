"""The debiased entropic step on grids: its parts, its certificate, its derivatives."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import otflow as of
from otflow.measures import Box
from otflow.numerics.anderson import Anderson
from otflow.proximal import GridSinkhorn
from otflow.proximal.grid.sinkhorn.kernel import DenseAxis, GibbsKernel
from otflow.testing.clouds import assert_untouched, normal, state
from otflow.testing.differences import derivative
from tests import exact

F64 = torch.float64


def bell(n=40, d=1, *, half=2.5, width=0.5, center=0.0, dtype=F64, **options):
    """Return a bell on n cells an axis."""
    return of.GridDensity.from_function(
        lambda x: torch.exp(-(x - center).square().sum(-1) / (2 * width**2)),
        -half,
        half,
        (n,) * d,
        dtype=dtype,
        walls=True,
        **options,
    )


def wave(n, modes, height, axis=(0.0, 1.0)):
    """Return 1 + height * prod cos(pi k x) on the unit box, with walls."""
    return of.GridDensity.from_function(
        lambda x: 1 + height * torch.cos(math.pi * x * torch.tensor(modes)).prod(-1),
        axis[0],
        axis[1],
        (n,) * len(modes),
        dtype=F64,
        walls=True,
    )


def difference(mu, nu):
    return float((mu.weights - nu.weights).abs().sum())


QUADRATIC = exact.quadratic()
ENERGIES = {
    "potential": QUADRATIC,
    "heat": of.Entropy(),
    "Fokker-Planck": QUADRATIC + 0.3 * of.Entropy(),
    "porous medium": QUADRATIC + of.PowerEntropy(2.0),
    "fast diffusion": of.PowerEntropy(0.7),
    "porous medium and heat": of.PowerEntropy(3.0) + 0.1 * of.Entropy(),
    "congestion": QUADRATIC + of.Congestion(0.9),
    "a user's": of.Internal(lambda r: r + r.square(), modulus=0.0) + QUADRATIC,
    "attraction": of.Entropy() + of.Interaction(lambda z: z.square().sum(-1)),
    "another": of.OfExpectation(lambda m: m.square().sum(), lambda x: x)
    + of.PowerEntropy(2.0),
}


# What holds for every step ------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::otflow.errors.BlurWarning")
@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("name", ENERGIES)
def test_a_step_keeps_mass_and_dissipates(name, d):
    F, mu, dt = ENERGIES[name], bell((0, 60, 30, 16)[d], d, center=0.2), 0.05
    result = GridSinkhorn().solve(F, mu, dt)
    nu, report = result.measure, result.certificate
    assert report["converged"]
    assert report["certified"] != report["blurred"]
    assert not report["blurred"] or d == 3  # cells of a third of a length
    assert float(nu.weights.sum()) == pytest.approx(
        float(mu.weights.sum()), rel=0, abs=2e-15
    )
    assert bool((nu.weights >= 0).all())
    assert report["energy_before"] == pytest.approx(float(F.value(mu)), rel=1e-12)
    assert report["energy_after"] == pytest.approx(float(F.value(nu)), rel=1e-12)
    assert report["residual"] == result.residual <= 2e-5
    assert report["iterations"] == result.iterations
    cost = report["w2"] ** 2 / (2 * dt)
    assert report["decrease"] == pytest.approx(
        report["energy_before"] - report["energy_after"] - cost, abs=1e-12
    )
    assert report["decrease"] >= -1e-6
    assert report["w2"] <= report["w2_upper"]


def test_inputs_are_left_alone():
    mu, solver, F = bell(), GridSinkhorn(), QUADRATIC + of.Entropy()
    before = state(mu)
    warm = solver.solve(F, mu, 0.1).warm
    nu = solver.solve(F, mu, 0.1, warm)
    again = solver.solve(F, mu, 0.1, warm)
    assert_untouched(mu, before)
    assert torch.equal(nu.measure.weights, again.measure.weights)


# Closed forms -------------------------------------------------------------------------


def attenuation(k, eps, ratio):
    """Return what a step does to 1 + a cos(pi k x), to first order in a.

    With g = exp(-eps pi^2 k^2 / 2) and alpha = 1/2 - ratio, ratio = dt T / eps, the
    scalings are a^(1/2 - ratio) of the new density, and the wave is multiplied by
    g / (1 - alpha (1 - g^2)).
    """
    g = math.exp(-0.5 * eps * (math.pi * k) ** 2)
    return g / (1 - (0.5 - ratio) * (1 - g * g))


@pytest.mark.filterwarnings("ignore::otflow.errors.BlurWarning")  # of so short a step
@pytest.mark.parametrize("temperature", [0.0, 0.4, -0.1])
@pytest.mark.parametrize("k", [1, 3])
def test_small_waves_between_walls(k, temperature):
    eps, dt, height = 0.003, 0.01, 1e-6
    mu = wave(60, [float(k)], height)
    F = temperature * of.Entropy()
    solver = GridSinkhorn(eps=eps, tolerance=2e-13, certify=False)
    nu = solver.solve(F, mu, dt).measure
    ratio = (nu.grid - 1) @ (mu.grid - 1) / (mu.grid - 1).square().sum()
    expected = attenuation(k, eps, dt * temperature / eps)
    assert float(ratio) == pytest.approx(expected, rel=2e-6)
    # Without F it is 1 / cosh, the identity to second order in eps.
    if temperature == 0:
        assert expected == pytest.approx(1 / math.cosh(0.5 * eps * (math.pi * k) ** 2))


@pytest.mark.filterwarnings("ignore::otflow.errors.BlurWarning")  # blur is all it does
def test_without_energy_the_step_is_the_identity_to_second_order():
    mu = wave(50, [1.0, 2.0], 0.5)
    eps = torch.tensor([0.008, 0.004, 0.002])
    errors = [
        difference(GridSinkhorn(eps=float(e)).solve(0 * QUADRATIC, mu, 0.1).measure, mu)
        for e in eps
    ]
    assert of.analysis.observed_order(eps.tolist(), errors) == pytest.approx(2, abs=0.1)


def test_the_uniform_density_is_at_rest_beside_walls_and_obstacles():
    obstacles = torch.ones(24, 20, dtype=torch.bool)
    obstacles[8:14, 5:19] = False  # what is free is a box
    mu = of.GridDensity(
        (~obstacles).double(), 0.0, 1.0, obstacles=obstacles, normalize=True
    )
    for F in (of.Entropy(), of.PowerEntropy(2.0)):
        result = GridSinkhorn(tolerance=1e-10).solve(F, mu, 0.01)
        assert difference(result.measure, mu) < 1e-8
        assert result.certificate["w2"] < 1e-5
    assert difference(mu, mu) == 0


def test_a_stated_energy_is_the_closed_form():
    mu, dt = bell(32, 2), 0.05
    F = QUADRATIC + 2.0 * of.PowerEntropy(3.0)
    G = QUADRATIC + of.Internal(lambda r: r.square(), modulus=0.0)
    a, b = (GridSinkhorn().solve(E, mu, dt) for E in (F, G))
    assert difference(a.measure, b.measure) < 1e-9
    assert a.certificate["bound"] == pytest.approx(b.certificate["bound"], rel=1e-5)


class Spread(of.Functional):
    """The square of the second moment."""

    def value(self, mu):
        return mu.expectation(lambda x: x.square().sum(-1)) ** 2


@pytest.mark.parametrize("internal", [of.Entropy(), of.PowerEntropy(2.0)])
def test_other_terms_are_implicit(internal):
    mu, dt, solver = bell(80), 0.1, GridSinkhorn(tolerance=1e-9)
    nu = solver.solve(Spread() + internal, mu, dt).measure
    second = float(nu.expectation(lambda x: x.square().sum(-1)))
    # F' = 2 E|x|^2 |x|^2 at the new density.
    frozen = of.Potential(lambda x: 2 * second * x.square().sum(-1)) + internal
    assert difference(solver.solve(frozen, mu, dt).measure, nu) < 1e-7


def test_an_attraction_is_a_potential_for_a_centered_density():
    mu, dt, solver = bell(80), 0.1, GridSinkhorn(tolerance=1e-9)
    W = of.Interaction(lambda z: z.square().sum(-1) / 2)
    a = solver.solve(W + of.Entropy(), mu, dt).measure
    b = solver.solve(QUADRATIC + of.Entropy(), mu, dt).measure
    assert difference(a, b) < 1e-7


# The certificate ----------------------------------------------------------------------


def exact_distance(mu, quantile, samples=200_000):
    """Return W2 on the line between a density constant on cells and an exact law."""
    levels = (torch.arange(samples, dtype=F64) + 0.5) / samples
    edges = np.linspace(mu.box.lower[0], mu.box.upper[0], mu.n + 1)
    cumulative = np.concatenate([[0.0], np.cumsum(mu.weights.numpy())])
    own = torch.from_numpy(np.interp(levels.numpy(), cumulative, edges))
    return float((own - quantile(levels)).square().mean().sqrt())


@pytest.mark.parametrize("n", [60, 120])
def test_the_bound_holds_and_is_about_a_cell(n):
    m, start, dt = 2.0, 0.5, 0.02
    profile = exact.barenblatt(m, 1, start)
    mu = of.GridDensity(profile.cells(-1.5, 1.5, (n,)), -1.5, 1.5, normalize=True)
    report = (result := GridSinkhorn().solve(of.PowerEntropy(m), mu, dt)).certificate
    end = profile.at(exact.barenblatt_scale_jko(m, 1, start, dt, 1))
    assert report["guarantee"] == "exact"
    error = exact_distance(result.measure, end.quantile)
    assert error <= report["bound"] <= 2.5 * mu.box.spacing[0]
    assert error <= 0.1 * report["bound"]
    assert report["w2"] == pytest.approx(profile.w2(end.scale), rel=5e-3)
    assert report["w2_upper"] >= profile.w2(end.scale)
    # Halving dt from the density of another step: the bound sees a wrong answer.
    wrong = GridSinkhorn().solve(of.PowerEntropy(m), mu, 8 * dt)
    assert exact_distance(wrong.measure, end.quantile) > report["bound"]


def test_no_bound_without_a_modulus_or_with_interactions():
    mu = bell()
    W = of.Interaction(of.kernels.Quadratic())
    # Local terms: the problem is convex whatever V, so its solution is the least.
    wave = of.Potential(lambda x: x.sin().sum(-1))
    for F, claim in ((wave, "optimal"), (W + of.Entropy(), "stationary")):
        report = GridSinkhorn().solve(F, mu, 0.05).certificate
        assert report["bound"] is None
        assert report["guarantee"] == claim
    report = GridSinkhorn(certify=False).solve(of.Entropy(), mu, 0.05).certificate
    assert report["bound"] is None
    assert report["w2_upper"] is None


def test_a_step_that_did_not_converge_says_so():
    report = GridSinkhorn(max_iterations=2).solve(of.Entropy(), bell(), 0.5).certificate
    assert not report["converged"]
    assert report["guarantee"] == "none"
    assert not report["certified"]
    assert report["iterations"] <= 2


# The iteration ------------------------------------------------------------------------


def test_the_kernel_is_stochastic_symmetric_and_the_same_in_logarithms():
    box = Box.of([0.0, -1.0, 0.0], [1.0, 1.0, 0.3], (9, 20, 33))
    kernel = GibbsKernel(box, 0.02, torch.empty(0, dtype=F64))
    matrices = [axis.matrix for axis in kernel.axes if isinstance(axis, DenseAxis)]
    assert len(matrices) == 3
    for matrix in matrices:
        torch.testing.assert_close(matrix, matrix.T)
        torch.testing.assert_close(matrix.sum(1), torch.ones(len(matrix), dtype=F64))
    v = normal(*box.shape)
    expected = torch.logsumexp(v, 0)  # of the right shape; filled below
    dense = v.exp()
    for axis, matrix in enumerate(matrices):
        dense = torch.tensordot(dense, matrix, ([axis], [0])).movedim(-1, axis)
    expected = dense.log()
    torch.testing.assert_close(kernel.log_apply(v)[0], expected)
    torch.testing.assert_close(kernel.log_apply(v, safely=True)[0], expected)


def test_logarithms_of_any_range():
    box = Box.of(0.0, 1.0, (50,))
    kernel = GibbsKernel(box, 4e-5, torch.empty(0, dtype=F64))
    x = torch.linspace(0, 1, 50, dtype=F64)
    v = -3e5 * (x - 0.3).square()
    v[::7] = -math.inf
    (axis,) = kernel.axes
    assert isinstance(axis, DenseAxis)
    expected = torch.logsumexp(axis.log + v, 1)
    assert float(expected.max() - expected.min()) > 3000
    torch.testing.assert_close(
        kernel.log_apply(v, safely=True)[0], expected, rtol=1e-12, atol=0
    )
    # In plain numbers the far end is lost, and comes back as the floor.
    plain, floor = kernel.log_apply(v)
    assert float(plain.min()) == float(floor)


def test_the_log_domain_is_entered_when_numbers_underflow():
    # A drift over many kernels' widths.
    mu = bell(160, half=3.0, width=0.15, center=1.5)
    F, dt, eps = exact.quadratic(40.0), 0.1, 0.00085
    report = (result := GridSinkhorn(eps=eps).solve(F, mu, dt)).certificate
    assert report["log_domain"]
    assert report["certified"]
    mean = float(result.measure.weights @ mu.points[:, 0])
    assert mean == pytest.approx(1.5 / (1 + 40 * dt), rel=1e-3)
    # Warm, it stays there.
    again = GridSinkhorn(eps=eps).solve(F, result.measure, dt, result.warm)
    assert again.certificate["log_domain"]


@pytest.mark.parametrize("other", [0.05, 0.1, 0.02])
def test_a_warm_start_changes_nothing(other):
    F, mu, solver = QUADRATIC + of.PowerEntropy(2.0), bell(60), GridSinkhorn()
    first = solver.solve(F, mu, 0.05)
    cold = solver.solve(F, first.measure, other)
    warm = solver.solve(F, first.measure, other, first.warm)
    assert cold.certificate["converged"]
    assert warm.certificate["converged"]
    assert difference(cold.measure, warm.measure) < 1e-4
    # Without a start the iteration comes from larger eps, which may be as good.
    assert warm.iterations <= cold.iterations + 3


def test_warm_starts_save_iterations_in_a_flow():
    F, solver = of.PowerEntropy(2.0), GridSinkhorn(certify=False)
    mu, warm, spent = bell(80, width=0.2), None, {"cold": 0, "warm": 0}
    for _ in range(6):
        cold = solver.solve(F, mu, 0.02)
        step = solver.solve(F, mu, 0.02, warm)
        assert cold.certificate["converged"]
        assert step.certificate["converged"]
        mu, warm = step.measure, step.warm
        spent["cold"] += cold.iterations
        spent["warm"] += step.iterations
    assert spent["warm"] < spent["cold"]


def test_the_warm_start_of_another_grid_is_not_used():
    F, solver = QUADRATIC + of.Entropy(), GridSinkhorn()
    warm = solver.solve(F, bell(40), 0.05).warm
    a, b = solver.solve(F, bell(50), 0.05, warm), solver.solve(F, bell(50), 0.05)
    assert torch.equal(a.measure.weights, b.measure.weights)


@pytest.mark.slow
def test_acceleration_and_its_safeguard():
    F, mu = of.PowerEntropy(2.0), bell(60, width=0.3)
    plain = GridSinkhorn(memory=0, max_iterations=5000).solve(F, mu, 0.05)
    fast = GridSinkhorn().solve(F, mu, 0.05)
    assert fast.iterations < 0.3 * plain.iterations
    assert difference(plain.measure, fast.measure) < 1e-3
    # Stiff: the response to eps log q is a thousandth. Extrapolation goes astray here.
    stiff = of.GridDensity(
        exact.barenblatt(2.0, 1, 0.15).cells(-0.5, 0.5, (600,)),
        -0.5,
        0.5,
        normalize=True,
    )
    dt = exact.barenblatt_time(2.0, 1, 0.3, 0.15) / 10
    report = GridSinkhorn(eps=0.6 / 600**2).solve(F, stiff, dt).certificate
    assert report["certified"]


def test_anderson_solves_a_linear_equation_in_as_many_steps_as_its_eigenvalues():
    eigenvalues = torch.tensor([0.99, 0.5, -0.9, 0.2], dtype=F64).repeat(25)
    x, b = torch.zeros(100, dtype=F64), normal(100)
    anderson = Anderson(10, torch.ones(100, dtype=F64))
    for _ in range(6):
        x = anderson.advance(x, eigenvalues * x + b - x)
    torch.testing.assert_close(x, b / (1 - eigenvalues), rtol=1e-6, atol=1e-6)


def test_eps_grows_with_dt_and_stiffness_only():
    mu, F = bell(100), 10 * of.PowerEntropy(2.0)
    square = mu.box.spacing[0] ** 2

    def eps(F, dt):
        return GridSinkhorn(certify=False).solve(F, mu, dt).certificate["eps"] / square

    assert eps(of.Entropy(), 0.01) == pytest.approx(0.6)
    # By factors of root 2: the nearest one.
    share = eps(of.Entropy(), 0.2) / (0.02 * 0.2 / square)
    assert 2**-0.25 <= share <= 2**0.25
    assert eps(F, 0.4) > eps(of.Entropy(), 0.4)


@pytest.mark.parametrize("name", ["Fokker-Planck", "porous medium", "congestion"])
def test_single_precision(name):
    F, dt = ENERGIES[name], 0.05
    mu = bell(60, dtype=torch.float32)
    result = GridSinkhorn().solve(F, mu, dt)
    assert result.measure.dtype == torch.float32
    assert result.certificate["certified"]
    double = GridSinkhorn().solve(F, bell(60), dt).measure
    assert difference(result.measure, double) < 2e-3


# Derivatives --------------------------------------------------------------------------


def loss(nu):
    tilt = torch.cos(torch.arange(nu.n, dtype=F64))
    return nu.weights @ tilt + 5 * nu.weights.square().sum()


@pytest.mark.parametrize(
    "rest",
    [
        0 * of.Entropy(),
        of.Entropy(),
        of.PowerEntropy(2.0),
        of.PowerEntropy(0.8) + 0.1 * of.Entropy(),
        of.PowerEntropy(2.0) + of.Interaction(lambda z: z.square().sum(-1)),
        of.Entropy() + Spread(),
    ],
    ids=repr,
)
@pytest.mark.parametrize("d", [1, 2])
def test_derivatives_of_the_step(rest, d):
    mu, dt = bell(14 + 16 // d, d), 0.05
    solver = GridSinkhorn(tolerance=1e-11)
    V = 0.5 * mu.points.square().sum(-1)
    to_mass = mu.weights * (normal(mu.n) - mu.weights @ normal(mu.n))
    to_V = normal(mu.n, seed=1)

    def value(s, t):
        F = of.Potential(lambda _: V + t * to_V) + rest
        return loss(solver.differentiable_step(F, mu.with_weights(s), dt))

    s, t = mu.weights.clone().requires_grad_(), torch.zeros((), dtype=F64)
    t.requires_grad_()
    value(s, t).backward()
    with torch.no_grad():
        by_mass = derivative(lambda h: value(mu.weights + h * to_mass, 0.0))
        by_V = derivative(lambda h: value(mu.weights, h))
    assert float(s.grad @ to_mass) == pytest.approx(float(by_mass), rel=1e-6, abs=1e-8)
    assert float(t.grad) == pytest.approx(float(by_V), rel=1e-6, abs=1e-8)


def test_a_full_place_passes_no_derivative_of_the_potential():
    # Where the bound acts the density does not answer to V; elsewhere it does.
    mu, dt = bell(40), 0.5
    solver = GridSinkhorn(tolerance=1e-11)
    V, to_V = 3.0 * mu.points.square().sum(-1), normal(mu.n, seed=1)
    bound = of.Congestion(float(mu.density().max()))

    def step(t):
        F = of.Potential(lambda _: V + t * to_V) + bound + 0.05 * of.Entropy()
        return solver.differentiable_step(F, mu, dt)

    t = torch.zeros((), dtype=F64, requires_grad=True)
    nu = step(t)
    full = nu.density() > bound.max_density * (1 - 1e-6)
    assert 3 < int(full.sum()) < mu.n // 2
    loss(nu).backward()
    with torch.no_grad():
        expected = derivative(lambda h: loss(step(h)), 1e-4)
    assert float(t.grad) == pytest.approx(float(expected), rel=1e-5)


def test_the_derivative_in_a_mass_that_is_zero():
    mu, dt = bell(30), 0.05
    solver, F = GridSinkhorn(tolerance=1e-11), of.PowerEntropy(2.0)
    weights = torch.where(mu.points[:, 0].abs() < 1, mu.weights, 0.0)
    weights = weights / weights.sum()
    k = int((weights > 0).nonzero()[-1]) + 1  # so little mass follows the rest
    s = weights.clone().requires_grad_()
    loss(solver.differentiable_step(F, mu.with_weights(s), dt)).backward()
    to = -weights.clone()
    to[k] += 1
    with torch.no_grad():
        values = [
            loss(solver.differentiable_step(F, mu.with_weights(weights + h * to), dt))
            for h in (0.0, 1e-8)
        ]
    quotient = float(values[1] - values[0]) / 1e-8
    assert s.grad is not None
    assert float(s.grad @ to) == pytest.approx(quotient, rel=1e-3)


def test_the_differentiable_step_is_the_step():
    mu, F = bell(30), QUADRATIC + of.PowerEntropy(2.0)
    solver = GridSinkhorn(tolerance=1e-10)
    nu = solver.differentiable_step(F, mu, 0.05)
    assert difference(nu, solver.solve(F, mu, 0.05).measure) < 1e-10
    assert not nu.weights.requires_grad
    with pytest.raises(of.errors.NotConverged, match="raise max_iterations"):
        GridSinkhorn(max_iterations=2).differentiable_step(F, mu, 0.05)


def test_a_step_that_the_default_blurs_is_the_same_where_it_is_differentiated():
    # The stiff power asks for a kernel as wide as the bell; the step takes the least.
    mu, F = bell(60, width=0.15), 0.2 * of.PowerEntropy(4.0)
    solver = GridSinkhorn(tolerance=1e-8)
    result = solver.solve(F, mu, 1.0)
    least = 0.6 * mu.box.spacing[0] ** 2
    assert result.certificate["converged"]
    assert result.certificate["eps"] == pytest.approx(least)
    assert difference(solver.differentiable_step(F, mu, 1.0), result.measure) < 1e-7
    wide = GridSinkhorn(tolerance=1e-8, eps=16 * least)
    with pytest.warns(of.errors.BlurWarning):
        blurred = wide.solve(F, mu, 1.0)
    assert blurred.certificate["blurred"]  # an eps that was given stays
    assert difference(wide.differentiable_step(F, mu, 1.0), blurred.measure) < 1e-7
    assert difference(blurred.measure, result.measure) > 1e-2


# Refusals -----------------------------------------------------------------------------


def test_the_differentiable_step_refuses_another_measure_and_a_lost_mass():
    atoms = of.Particles(normal(4, 1))
    with pytest.raises(of.errors.Unsupported, match="steps a GridDensity, got Part"):
        GridSinkhorn().differentiable_step(QUADRATIC, atoms, 0.1)
    with pytest.raises(ValueError, match=r"at most \(d - 2\)/d"):
        GridSinkhorn().differentiable_step(of.PowerEntropy(0.3), bell(8, 3), 0.1)


def test_refusals():
    F = of.Entropy()
    with pytest.raises(of.errors.Unsupported, match="steps a GridDensity, got Part"):
        GridSinkhorn().solve(F, of.Particles(torch.zeros(2, 1)), 0.1)
    with pytest.raises(TypeError, match="certify must be True or False, got 1"):
        GridSinkhorn(certify=1)
    with pytest.raises(of.errors.NonFinite, match="value is"):
        GridSinkhorn().solve(of.Potential(lambda x: 1 / (0 * x.sum(-1))), bell(), 0.1)
    # Convexity of F + eps/(2 dt) H: the factor may be negative, as far as eps pays.
    mu, eps, dt = bell(60), 0.02, 0.05
    solver = GridSinkhorn(eps=eps)
    assert solver.solve(-0.15 * F + QUADRATIC, mu, dt).certificate["converged"]
    with pytest.raises(ValueError, match="entropy's total factor is negative"):
        solver.solve(-0.2 * F + QUADRATIC, mu, dt)


class _Spring(of.Functional):
    """Three times the squared distance of the mean from 1."""

    def value(self, mu):
        return 3 * (mu.expectation(lambda x: x[..., 0]) - 1) ** 2


@pytest.mark.parametrize("dt", [0.05, 0.2])
def test_a_term_that_is_stiff_in_the_masses_is_solved_in_an_outer_iteration(dt):
    bell = lambda x: torch.exp(-2 * (x - 0.3).square().sum(-1))
    mu = of.GridDensity.from_function(bell, -4.0, 4.0, 64, dtype=torch.float64)
    result = of.proximal.GridSinkhorn().solve(_Spring(), mu, dt)
    assert result.certificate["converged"]
    assert result.iterations < 300
    mean = float(result.measure.expectation(lambda x: x[..., 0]))
    assert mean == pytest.approx((0.3 + 6 * dt) / (1 + 6 * dt), abs=2e-4)


def test_a_step_that_did_not_converge_and_raises_the_energy_is_not_taken():
    bell = lambda x: torch.exp(-2 * (x - 0.3).square().sum(-1))
    ends = {"lower": -4.0, "upper": 4.0, "walls": True, "dtype": torch.float64}
    mu = of.GridDensity.from_function(bell, shape=64, **ends)
    before = float(_Spring().value(mu))
    for budget in (1, 2, 3, 4):
        solver = of.proximal.GridSinkhorn(max_iterations=budget)
        result = solver.solve(_Spring(), mu, 0.2)
        report = result.certificate
        assert not report["converged"]
        assert not report["certified"]
        after = float(_Spring().value(result.measure))
        assert report["energy_after"] == pytest.approx(after, rel=1e-12)
        assert result.measure is mu or after <= before


def test_a_blur_that_outweighs_the_steps_warns_once_in_a_flow():
    bell = lambda x: torch.exp(-2 * (x - 0.3).square().sum(-1))
    ends = {"lower": -3.0, "upper": 3.0, "walls": True, "dtype": torch.float64}
    mu = of.GridDensity.from_function(bell, shape=(12, 14, 10), **ends)
    F = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    with pytest.warns(of.errors.BlurWarning, match=r"raised the energy.*finer") as seen:
        run = of.flow(F, mu, of.JKO(), dt=0.05, steps=3)
    assert len(seen) == 1
    assert run.info[0]["energy_after"] > run.info[0]["energy_before"]


QUADRATIC = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
# Rates of the variance of exp(-2 (x - 1)^2), per axis, at the start.
GAINS = {
    "potential": (QUADRATIC, -0.5),
    "heat": (of.Entropy(), 2.0),
    "Fokker-Planck": (QUADRATIC + of.Entropy(), 1.5),
    "KL": (of.KL(lambda x: 0.5 * x.square().sum(-1), modulus=1.0), 1.5),
}


@pytest.mark.filterwarnings("ignore::otflow.errors.BlurWarning")
@pytest.mark.parametrize("dt", [3e-4, 1e-3, 3e-3, 1e-2])
@pytest.mark.parametrize(("n", "dim"), [(30, 1), (50, 1), (100, 1), (40, 2)])
@pytest.mark.parametrize("name", GAINS)
def test_a_certified_step_gains_the_variance_of_the_exact_one(name, n, dim, dt):
    """A blur that spreads a short step by more than a tenth is not certified."""
    F, rate = GAINS[name]
    bell = lambda x: torch.exp(-2 * (x - 1).square().sum(-1))
    mu = of.GridDensity.from_function(
        bell, -4.0, 5.0, (n,) * dim, walls=True, dtype=torch.float64
    )
    result = of.proximal.GridSinkhorn().solve(F, mu, dt)
    report = result.certificate
    assert report["converged"]
    spread = [
        float(m.expectation(lambda x: x[..., 0].square()))
        - float(m.expectation(lambda x: x[..., 0])) ** 2
        for m in (mu, result.measure)
    ]
    off = abs((spread[1] - spread[0]) / (dt * rate) - 1)
    if report["certified"]:
        assert off < 0.1 + 4 * dt
        assert report["decrease"] is None or report["decrease"] > 0
    if off > 0.2:
        assert report["guarantee"] == "none"


@pytest.mark.parametrize("name", GAINS)
def test_a_blur_not_small_beside_a_short_step_warns_once_for_every_energy(name):
    bell = lambda x: torch.exp(-2 * (x - 1).square().sum(-1))
    mu = of.GridDensity.from_function(bell, -5.0, 5.0, 50, dtype=torch.float64)
    F, _ = GAINS[name]
    with pytest.warns(of.errors.BlurWarning, match="finer grid") as seen:
        run = of.flow(F, mu, of.JKO(), dt=3e-4, steps=3)
    assert len(seen) == 1
    assert run.converged
    assert not any(info["certified"] for info in run.info)
    # The cure that is named.
    run = of.flow(F, mu, of.JKO(of.proximal.BackAndForth()), dt=3e-4, steps=3)
    assert all(info["certified"] for info in run.info)


@pytest.mark.slow
@pytest.mark.parametrize("n", [200, 400])
def test_heavy_tails_of_fast_diffusion_are_stepped(n):
    profile = exact.barenblatt(0.8, 1, 0.4)
    mu = of.GridDensity.from_function(
        profile.density, -6.0, 6.0, n, dtype=torch.float64
    )
    run = of.flow(of.PowerEntropy(0.8), mu, of.JKO(), dt=0.02, steps=3)
    assert all(info["certified"] for info in run.info)
    assert bool((run.records["energy"].diff() < 0).all())


@pytest.mark.parametrize("n", [100, 200])
def test_a_log_gas_without_entropy_is_stepped(n):
    bell = lambda x: torch.exp(-2 * (x - 0.3).square().sum(-1))
    mu = of.GridDensity.from_function(bell, -4.0, 4.0, n, dtype=torch.float64)
    F: of.Functional = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    F = F + of.Interaction(of.kernels.Log())
    run = of.flow(F, mu, of.JKO(), dt=0.05, steps=3)
    assert all(info["certified"] for info in run.info)
    assert bool((run.records["energy"].diff() < 0).all())
