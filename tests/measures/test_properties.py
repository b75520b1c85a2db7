"""What holds for any particles: symmetries, equivariance, conservation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import otflow as of
from otflow.testing.clouds import assert_untouched, normal, state
from tests.strategies import motions, particles

KERNELS = st.sampled_from(
    [
        of.kernels.Gaussian(0.8),
        of.kernels.Quadratic(),
        of.kernels.Energy(),
        of.kernels.PowerLaw(4, 2),
        of.kernels.PowerLaw(3, 1),
    ]
)


def close(left, right, scale=1.0):
    torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-11 * scale)


@given(particles(), st.data())
def test_interaction_is_invariant_under_rigid_motions(mu, data):
    F = of.Interaction(data.draw(KERNELS))
    Q, b = data.draw(motions(mu.dim))
    moved = of.Particles(mu.points @ Q.T + b, mu.weights)
    value, velocity = F.value_and_velocity(mu)
    found, turned = F.value_and_velocity(moved)
    close(found, value, 1e3)
    # The kink of |z| has no direction at 0, and a motion may part coincident atoms.
    apart = torch.cdist(mu.points, mu.points) + torch.eye(mu.n) > 0
    if F.kernel.smooth or bool(apart.all()):
        close(turned, velocity @ Q.T, 1e3)


@given(particles(), st.data())
def test_a_radial_potential_is_invariant_under_rotations(mu, data):
    F = of.Potential(lambda x: (-x.square().sum(-1)).exp())
    Q, _ = data.draw(motions(mu.dim))
    turned = of.Particles(mu.points @ Q.T, mu.weights)
    close(F.value(turned), F.value(mu))
    close(F.velocity(turned), F.velocity(mu) @ Q.T)
    close(F.first_variation(turned), F.first_variation(mu))


@given(particles(), st.data())
def test_a_moved_potential_at_a_moved_measure_is_the_same(mu, data):
    Q, b = data.draw(motions(mu.dim))
    V = lambda x: (x.sin() * torch.arange(1, mu.dim + 1)).sum(-1)
    F, G = of.Potential(V), of.Potential(lambda y: V((y - b) @ Q))
    moved = of.Particles(mu.points @ Q.T + b, mu.weights)
    close(G.value(moved), F.value(mu), 10)
    close(G.velocity(moved), F.velocity(mu) @ Q.T, 10)


POWERS = st.sampled_from(
    [(of.kernels.Quadratic(), 2), (of.kernels.Energy(), 1), (of.kernels.Riesz(1.0), -1)]
)


@given(particles(), POWERS, st.floats(0.25, 4.0))
def test_powers_scale_as_powers(mu, power, factor):
    (kernel, degree), F = power, of.Interaction(power[0])
    distance = torch.cdist(mu.points, mu.points) + torch.eye(mu.n)
    assume(not kernel.singular or bool((distance > 0).all()))
    stretched = of.Particles(factor * mu.points, mu.weights)
    close(F.value(stretched), factor**degree * F.value(mu), 100)


@pytest.mark.slow
@given(particles(), KERNELS, st.randoms(use_true_random=False))
def test_atoms_have_no_order(mu, kernel, random):
    order = list(range(mu.n))
    random.shuffle(order)
    nu = of.Particles(mu.points[order], mu.weights[order])
    F = of.Interaction(kernel)
    close(F.value(nu), F.value(mu), 10)
    close(F.velocity(nu), F.velocity(mu)[order], 10)
    close(F.first_variation(nu), F.first_variation(mu)[order], 10)


@given(particles(), KERNELS)
def test_momentum_is_conserved(mu, kernel):
    velocity = of.Interaction(kernel).velocity(mu)
    close(mu.weights @ velocity, torch.zeros(mu.dim, dtype=torch.float64), 100)


@pytest.mark.slow
@given(particles(), KERNELS)
def test_splitting_an_atom_changes_nothing(mu, kernel):
    x = torch.cat([mu.points, mu.points[:1]])
    w = torch.cat([mu.weights, mu.weights[:1] / 2])
    w[0] /= 2
    split, F = of.Particles(x, w), of.Interaction(kernel)
    close(F.value(split), F.value(mu), 10)
    close(F.velocity(split)[:-1], F.velocity(mu), 10)
    close(F.velocity(split)[-1], F.velocity(mu)[0], 10)


@pytest.mark.slow
@given(particles(), KERNELS)
def test_atoms_without_mass_feel_forces_and_exert_none(mu, kernel):
    probe = torch.full((1, mu.dim), 0.37, dtype=torch.float64)
    x, w = torch.cat([mu.points, probe]), torch.cat([mu.weights, torch.zeros(1)])
    F, more = of.Interaction(kernel), of.Particles(x, w)
    close(F.value(more), F.value(mu), 10)
    close(F.velocity(more)[:-1], F.velocity(mu), 10)
    close(F.first_variation(more)[-1:], F.first_variation(mu, probe), 10)
    assert bool(torch.isfinite(F.velocity(more)).all())


@given(particles(), st.integers(0, 2**16), st.floats(-2, 2))
def test_pushes_along_one_tangent_add_up(mu, seed, dt):
    v = normal(mu.n, mu.dim, seed=seed)
    once, twice = mu.push(v, 2 * dt), mu.push(v, dt).push(v, dt)
    close(once.points, twice.points, 10)
    close(mu.push(v, dt).push(v, -dt).points, mu.points, 10)


@given(particles(), st.integers(0, 2**16), st.floats(-5, 5))
def test_every_verb_conserves_mass_and_leaves_its_measure(mu, seed, dt):
    before = state(mu)
    v = normal(mu.n, mu.dim, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    moved = [mu.push(v, dt), mu.diffuse(abs(dt), generator), mu.reweight(v[:, 0], dt)]
    for nu in moved:
        assert abs(float(nu.weights.sum()) - 1) < 1e-12
        assert bool((nu.weights[mu.weights == 0] == 0).all())
        assert nu.points.shape == mu.points.shape
    assert_untouched(mu, before)


@given(particles(), st.integers(0, 2**16), st.floats(0.01, 3))
def test_moving_mass_downhill_lowers_a_linear_functional(mu, seed, dt):
    V = normal(mu.n, seed=seed)
    nu = mu.reweight(-V, dt)
    assert float(nu.weights @ V) <= float(mu.weights @ V) + 1e-12


# Some of the measures have one atom of mass.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::otflow.errors.CollapseWarning")
@given(particles(), st.data())
def test_a_flow_commutes_with_rigid_motions(mu, data):
    F = of.Interaction(of.kernels.Gaussian(0.8))
    Q, b = data.draw(motions(mu.dim))
    moved = of.Particles(mu.points @ Q.T + b, mu.weights)
    scheme = of.chain(of.ExplicitEuler(), of.BirthDeath())
    one, two = (of.flow(F, nu, scheme, dt=0.1, steps=3).final for nu in (mu, moved))
    close(two.points, one.points @ Q.T + b, 1e3)
    close(two.weights, one.weights, 10)
