"""The risk over a law of inputs: kernels in closed form, and their derivatives."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import otflow as of
from otflow.meanfield import closed_kernels, population
from otflow.meanfield.closed_kernels import closed_kernel
from otflow.meanfield.network import block_rows
from otflow.testing import clouds
from otflow.testing.clouds import normal
from otflow.testing.differences import derivative

F64 = torch.float64
PopulationRisk = of.meanfield.PopulationRisk
LAWS = [
    ("relu", "gaussian"),
    ("relu", "sphere"),
    ("step", "gaussian"),
    ("step", "sphere"),
    ("erf", "gaussian"),
]
SMOOTH = [law for law in LAWS if law[0] != "step"]
UNITS = {"relu": torch.relu, "step": lambda z: (z > 0).to(z.dtype), "erf": torch.erf}
close = torch.testing.assert_close


def teacher(m=3, d=3, dtype=F64):
    return of.Particles(normal(m, 1 + d, seed=70).to(dtype))


def sampled(law, n, d, seed=0):
    x = torch.randn(n, d, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return x / x.norm(dim=1, keepdim=True) if law == "sphere" else x


def by_quadrature(unit, w, u):
    """Return the mean over the plane of both weights, in polar coordinates.

    The integral over the angle is cut at the kinks, so Gauss-Legendre has full order.
    """
    nodes, weights = np.polynomial.legendre.leggauss(80)
    p, q = float(w.norm()), float(u.norm())
    t = math.acos(max(-1.0, min(1.0, float(w @ u) / (p * q))))
    cuts = sorted(
        {a % math.tau for s in (0, t) for a in (s - math.pi / 2, s + math.pi / 2)}
    )
    cuts = [*cuts, cuts[0] + math.tau]
    r, rw = 7 * (nodes + 1), 7 * weights
    radial = rw * r * np.exp(-(r**2) / 2) / math.tau
    total = 0.0
    for lower, upper in pairwise(cuts):
        angle = lower + (upper - lower) * (nodes + 1) / 2
        z = torch.tensor(p * np.outer(r, np.cos(angle)))
        y = torch.tensor(q * np.outer(r, np.cos(angle - t)))
        both = (UNITS[unit](z) * UNITS[unit](y)).numpy()
        total += (upper - lower) / 2 * radial @ both @ weights
    return total


@pytest.mark.parametrize("unit", UNITS)
def test_the_kernel_is_the_mean_by_quadrature(unit):
    k = closed_kernel(unit, "gaussian", 3)
    w, u = normal(3, 3, seed=1), normal(4, 3, seed=2)
    wanted = [[by_quadrature(unit, a, b) for b in u] for a in w]
    close(k.matrix(w, u), torch.tensor(wanted), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("law", LAWS, ids="-".join)
def test_the_risk_is_that_of_many_inputs(law):
    unit, inputs = law
    d, n = 4, 400_000
    F, mu = PopulationRisk(teacher(d=d), unit, inputs), clouds.weighted(6, 1 + d)
    x = sampled(inputs, n, d)
    f = UNITS[unit](x @ mu.points[:, 1:].T) @ (mu.weights * mu.points[:, 0])
    fixed = F.teacher
    y = UNITS[unit](x @ fixed.points[:, 1:].T) @ (fixed.weights * fixed.points[:, 0])
    losses = 0.5 * (f - y).square()
    error = float(losses.std()) / math.sqrt(n)
    assert abs(float(F(mu)) - float(losses.mean())) < 4 * error
    assert error < 0.02 * float(F(mu))  # else nothing is tested
    h = UNITS[unit](x @ mu.points[:, 1:].T) * mu.points[:, 0]
    samples = (f - y)[:, None] * h
    bound = 4.5 * samples.std(0) / math.sqrt(n)
    assert bool(((F.first_variation(mu) - samples.mean(0)).abs() < bound).all())


@pytest.mark.parametrize("law", LAWS, ids="-".join)
def test_closed_forms_are_those_of_autograd(law):
    F, mu = PopulationRisk(teacher(), *law), clouds.weighted(9, 4)
    value, velocity = F.value_and_velocity(mu)
    close(value, F.value(mu), rtol=1e-14, atol=1e-15)
    close(velocity, -mu.position_gradient(F.value), rtol=1e-14, atol=1e-14)
    close(F.first_variation(mu), mu.mass_gradient(F.value), rtol=1e-14, atol=1e-14)
    x = normal(5, 4, seed=9)
    close(
        F.first_variation(mu, x), mu.mass_gradient(F.value, x), rtol=1e-14, atol=1e-14
    )
    probes = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(F.first_variation(mu, probes).sum(), probes)
    close(F.velocity(mu, x), -slope, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("law", LAWS, ids="-".join)
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_all_is_finite_where_students_are_teachers(law, dtype):
    """Autograd of the arccosine gives NaN there."""
    fixed = teacher(dtype=dtype)
    F = PopulationRisk(fixed, *law)
    eps = torch.finfo(dtype).eps
    value, velocity = F.value_and_velocity(fixed)
    assert value.dtype == velocity.dtype == dtype
    assert abs(float(value)) < 50 * eps
    assert float(velocity.abs().max()) < 50 * eps
    x = fixed.points.clone().requires_grad_()
    (slope,) = torch.autograd.grad(F(of.Particles(x, fixed.weights)), x)
    assert float(slope.abs().max()) < 50 * eps


@pytest.mark.parametrize("law", SMOOTH, ids="-".join)
@pytest.mark.parametrize("place", ["generic", "diagonal", "opposite"])
def test_the_slope_is_that_of_differences(law, place):
    """Also where the angle is 0 or pi, at second order: the kernel is smooth there."""
    fixed = teacher()
    F = PopulationRisk(fixed, *law)
    sign = torch.tensor([1.0, *[-1.0 if place == "opposite" else 1.0] * 3], dtype=F64)
    x = normal(3, 4, seed=71) if place == "generic" else sign * fixed.points * 1.1
    v = normal(3, 4, seed=72)

    def first(t):
        return F.velocity(of.Particles(x + t * v)) / 3

    # Second derivatives are Lipschitz there, and differences of order 1 in h.
    wanted = derivative(first, 1e-6)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(F(of.Particles(leaf)), leaf, create_graph=True)
    close(-slope.detach(), first(0.0), rtol=1e-10, atol=1e-12)
    (second,) = torch.autograd.grad((slope * v).sum(), leaf)
    close(-second, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("law", LAWS, ids="-".join)
def test_the_parts_sum_to_the_risk(law):
    """As in the corrected expansion, without a square of the linear term."""
    F = PopulationRisk(teacher(), *law)
    parts = F.decompose()
    for mu in (clouds.weighted(12, 4), clouds.uniform(9, 4), clouds.degenerate(4)):
        total = parts.constant + parts.potential.value(mu) + parts.interaction.value(mu)
        close(total, F.value(mu), rtol=1e-12, atol=1e-13)
        K = parts.kernel(mu.points, mu.points)
        close(parts.interaction.value(mu), 0.5 * mu.weights @ K @ mu.weights)
        summed = (parts.potential + parts.interaction).velocity(mu)
        close(summed, F.velocity(mu), rtol=1e-11, atol=1e-12)
    close(parts.constant, parts.interaction.value(F.teacher))


@pytest.mark.parametrize("law", LAWS, ids="-".join)
def test_a_zero_weight_is_finite(law):
    F = PopulationRisk(teacher(), *law)
    mu = of.Particles(
        torch.tensor([[1.0, 0, 0, 0], [0, 1, 2, 3], [0, 0, 0, 0]], dtype=F64)
    )
    value, velocity = F.value_and_velocity(mu)
    close(value, F.value(mu))
    close(velocity, -mu.position_gradient(F.value), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("dtype", "angles"),
    [(F64, (1e-2, 1e-6, 1e-9, 1e-12)), (torch.float32, (1e-2, 5e-4, 1e-4, 1e-5))],
)
@pytest.mark.parametrize("side", [1.0, -1.0])
def test_the_slope_of_the_step_keeps_its_length_beside_the_corner(dtype, angles, side):
    """It is the unit vector across w over 2 pi |w|, at every angle but 0 and pi."""
    k, eps = closed_kernel("step", "gaussian", 2), torch.finfo(dtype).eps
    for t in angles:
        w = torch.tensor([[3.0, 0.0]], dtype=dtype, requires_grad=True)
        u = side * torch.tensor([[1.0, t]], dtype=dtype)
        wanted = side * torch.tensor([[0.0, 1.0]], dtype=dtype) / (2 * math.pi * 3)
        (slope,) = torch.autograd.grad(k.matrix(w, u).sum(), w)
        _, alpha, beta = k.with_slopes(w.detach(), u)
        for found in (slope, alpha * u + beta * w.detach()):
            close(found, wanted, rtol=4 * eps / t, atol=4 * eps / t)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_no_slope_of_the_step_exceeds_its_bound_by_round_off(dtype):
    k, g = closed_kernel("step", "gaussian", 3), torch.Generator().manual_seed(0)
    w = torch.randn(300, 3, dtype=F64, generator=g).to(dtype)
    gaps = torch.logspace(-20, 0, 300, dtype=F64)[:, None]
    u = (w + gaps * torch.randn(300, 3, dtype=F64, generator=g)).to(dtype)
    _, alpha, beta = k.with_slopes(w, u)
    slopes = alpha.diag()[:, None] * u + beta.diag()[:, None] * w
    lengths = slopes.norm(dim=1) * 2 * math.pi * w.norm(dim=1)
    assert float(lengths.max()) < 1.5
    assert float(lengths[-50:].min()) > 0.99  # and it is reached


@pytest.mark.parametrize("unit", ["relu", "step"])
@pytest.mark.parametrize(("dtype", "s"), [(F64, 1e-200), (torch.float32, 1e-25)])
def test_the_squares_of_a_weight_may_underflow(unit, dtype, s):
    k = closed_kernel(unit, "gaussian", 3)
    w, u = normal(4, 3, seed=1).to(dtype), normal(5, 3, seed=2).to(dtype)
    eps = torch.finfo(dtype).eps
    close(k.matrix(s * w, u / s), k.matrix(w, u), rtol=50 * eps, atol=50 * eps)
    found, wanted = k.with_slopes(s * w, u / s), k.with_slopes(w, u)
    close(found[0], wanted[0], rtol=50 * eps, atol=50 * eps)


def test_angles_of_few_near_pairs_are_those_of_all_pairs(monkeypatch):
    v = torch.nn.functional.normalize(normal(40, 6, seed=1), dim=1)
    z = torch.cat([v[:9], -v[:9], v[:9] + 1e-7 * v[9:18], normal(10, 6, seed=2)])
    z = torch.nn.functional.normalize(z, dim=1)
    k = closed_kernel("step", "gaussian", 6)
    few = k.with_slopes(v, z)
    monkeypatch.setattr(closed_kernels, "NEARLY_PARALLEL", -1.0)
    for found, wanted in zip(few, k.with_slopes(v, z), strict=True):
        close(found, wanted, rtol=1e-14, atol=4e-16)
    assert float(few[0][:9].diagonal().sub(0.5).abs().max()) == 0


@pytest.mark.parametrize("law", LAWS, ids="-".join)
def test_all_derivatives_come_from_one_visit_of_the_pairs(law, monkeypatch):
    F, mu = PopulationRisk(teacher(), *law), clouds.weighted(9, 4)
    value, velocity, variation = F.value_and_derivatives(mu)
    assert torch.equal(velocity, F.velocity(mu))
    close(variation, F.first_variation(mu), rtol=1e-14, atol=1e-15)
    close(value, F.value(mu), rtol=1e-14, atol=1e-15)
    both = F.value_and_first_variation(mu)
    close(both[0], value, rtol=1e-14, atol=1e-15)
    assert torch.equal(both[1], F.first_variation(mu))
    visits = []

    def counted(neurons, at, buffers):
        visits.append(len(at))
        return block_rows(neurons, at, buffers)

    monkeypatch.setattr(population, "block_rows", counted)
    scheme = of.chain(of.ExplicitEuler(), of.BirthDeath())
    of.flow(F, mu, scheme, dt=0.1, steps=1, every=1)
    assert visits == [9, 3]  # the neurons, and the teacher's for the value


def test_single_precision_is_near_double():
    for law in LAWS:
        F, mu = PopulationRisk(teacher(), *law), clouds.weighted(9, 4)
        G, nu = F.to(torch.float32), mu.to(torch.float32)
        close(G(nu).double(), F(mu), rtol=2e-5, atol=1e-6)
        close(G.velocity(nu).double(), F.velocity(mu), rtol=2e-5, atol=2e-5)


def test_blocks_change_nothing(monkeypatch):
    F, mu = PopulationRisk(teacher(), "relu", "gaussian"), clouds.weighted(40, 4)
    whole = F.value_and_velocity(mu)
    monkeypatch.setattr(population, "block_rows", lambda *_: 7)
    for part, all_at_once in zip(F.value_and_velocity(mu), whole, strict=True):
        close(part, all_at_once, rtol=1e-14, atol=1e-15)


def test_the_teacher_is_recovered_and_the_risk_convex():
    F = PopulationRisk(teacher(), "relu", "gaussian")
    assert F.mixture_curvature() == "convex"
    g = torch.Generator().manual_seed(0)
    mu = of.Particles(torch.randn(60, 4, dtype=F64, generator=g))
    run = of.flow(F, mu, of.ExplicitEuler(), dt=0.2, steps=800, every=800)
    assert float(run.records["energy"][-1]) < 1e-3 * float(run.records["energy"][0])


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("tanh", "gaussian"), of.errors.Unsupported, "meanfield.OnlineRisk"),
        (("sigmoid", "sphere"), of.errors.Unsupported, "no closed form"),
        (("erf", "sphere"), of.errors.Unsupported, "inputs='gaussian'"),
        (("gelu", "gaussian"), ValueError, "unit must be"),
        (("relu", "uniform"), ValueError, "inputs must be"),
    ],
)
def test_laws_without_a_closed_form_raise(arguments, error, words):
    with pytest.raises(error, match=words):
        PopulationRisk(teacher(), *arguments)


def test_a_bias_raises():
    F = PopulationRisk(teacher(), "relu", "gaussian")
    with pytest.raises(ValueError, match="A bias has no closed form"):
        F(of.Particles(normal(4, 5)))
    with pytest.raises(ValueError, match="x have dimension 5"):
        F.first_variation(of.Particles(normal(4, 4)), normal(2, 5))
