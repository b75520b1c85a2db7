"""The trapezoidal JKO on grids, half a transport and half a proximal step: order 2."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

import otflow as of
from otflow.analysis import observed_order
from tests.exact_densities import barenblatt, barenblatt_scale
from tests.exact_gaussians import fokker_planck, gaussian_cells


def errors(F, start, end, order, steps, t):
    """Return the L1 errors at time t for these numbers of steps."""
    found = []
    for k in steps:
        final = of.flow(F, start, of.JKO(order=order), dt=t / k, steps=k).final
        found.append(float((final.weights - end.weights).abs().sum()))
    return found


def profiles(d, n, t):
    """Return a Barenblatt profile on a grid, now and at time t."""
    for scale in (0.5, barenblatt_scale(2, d, 0.5, t)):
        cells = barenblatt(2, d, scale).cells(-1.5, 1.5, (n,) * d)
        yield of.GridDensity(cells, -1.5, 1.5, normalize=True)


def orders(values):
    """Return the orders seen between successive halvings of dt."""
    return [observed_order([2, 1], pair) for pair in pairwise(values)]


def gaps(values):
    """Return what each halving of dt changes, in L1 for tensors of masses.

    On one grid: what the cells leave out is in both, and cancels.
    """
    return [float((a - b).abs().sum()) for a, b in pairwise(values)]


@pytest.mark.slow
@pytest.mark.parametrize(("d", "n"), [(1, 600), (2, 128)])
def test_the_porous_medium_with_its_moving_front(d, n):
    start, end = profiles(d, n, 0.1)
    steps = (2, 4, 8, 16)
    found = errors(of.PowerEntropy(2), start, end, 1, steps, 0.1)
    observed = observed_order([0.1 / k for k in steps[1:]], found[1:])
    assert observed == pytest.approx(1, abs=0.15)
    # Against the exact profile order 2 meets the error of the cells, which has the
    # other sign in the plane: 2.12 is seen at 128 cells, 2.07 at 192.
    ends, energies = [], []
    for k in steps:
        run = of.flow(
            of.PowerEntropy(2), start, of.JKO(order=2), dt=0.1 / k, steps=k, every=k
        )
        assert run.converged
        ends.append(run.final.weights)
        energies.append(run.records["energy"][-1])
    assert orders(gaps(ends)) == pytest.approx([2, 2], abs=0.1)
    assert orders(gaps(energies))[-1] == pytest.approx(2, abs=0.1)
    assert float((ends[-1] - end.weights).abs().sum()) < 4e-3


@pytest.mark.slow
def test_fokker_planck_on_the_line():
    t, one = 0.4, torch.ones(1, dtype=torch.float64)
    mean, covariance = fokker_planck(
        0.6 * one, 0.5 * one[:, None], t, A=one[:, None], b=0 * one
    )
    start, end = (
        of.GridDensity(gaussian_cells(m, s, -5, 5, (400,)), -5, 5, normalize=True)
        for m, s in ((0.6 * one, 0.5 * one), (mean, covariance.diagonal()))
    )
    F = of.KL(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
    steps = (2, 4, 8)
    found = errors(F, start, end, 2, steps, t)
    assert observed_order([t / k for k in steps], found) == pytest.approx(2, abs=0.15)
    assert found[-1] < 0.05 * errors(F, start, end, 1, steps[-1:], t)[0]


# Stability: no oscillation, whatever h ------------------------------------------------

DOUBLE_WELL = of.KL(lambda x: 2 * (x[..., 0] ** 2 - 1) ** 2)


def left_bell(n):
    return of.GridDensity.from_function(
        lambda x: torch.exp(-10 * (x[..., 0] + 1) ** 2), -3, 3, n, dtype=torch.float64
    )


@pytest.mark.parametrize("n", [64, 128])
@pytest.mark.parametrize("dt", [0.01, 0.05, 0.2])
def test_the_energy_falls_at_every_step_on_fine_grids_too(n, dt):
    run = of.flow(DOUBLE_WELL, left_bell(n), of.JKO(order=2), dt=dt, steps=5)
    assert run.converged
    assert bool((run.records["energy"].diff() < 0).all())
    assert not any(info["fallback"] for info in run.info)
    if dt < 0.1:
        assert all(info["guarantee"] == "stages" for info in run.info)


def short_steps(n, steps, solver_for=None):
    """Return the orders in L1 and in energy of ever shorter steps."""
    t, ends, energies = 0.08, [], []
    for k in steps:
        scheme = of.JKO(solver_for and solver_for(k), order=2)
        run = of.flow(DOUBLE_WELL, left_bell(n), scheme, dt=t / k, steps=k, every=k)
        assert run.converged
        assert all(info["certified"] for info in run.info)
        ends.append(run.final.weights)
        energies.append(run.records["energy"][-1])
    return orders(gaps(ends)), orders(gaps(energies))


def test_the_order_in_time_is_two_where_the_blur_does_not_change_with_dt():
    # The blur eps adds eps^2 / (8 dt) times the Fisher information to F. With eps like
    # dt^(1/2) that is the same for all dt, and what is left is the error in time.
    steps, h = (4, 8, 16, 32), 6 / 256

    def solver(k):
        return of.proximal.GridSinkhorn(eps=1.2 * h**2 * (steps[-1] / k) ** 0.5)

    for found in short_steps(256, steps, solver):
        assert found == pytest.approx([2, 2], abs=0.1)


@pytest.mark.slow
def test_the_order_is_two_for_short_steps():
    # By default eps does not fall below a share of h^2. What it adds is like h^4 / dt
    # then: at 256 cells the last order in L1 is 1.64, at 512 1.90.
    for found in short_steps(512, (4, 8, 16, 32)):  # dt = 0.02 to 0.0025
        assert found == pytest.approx([2, 2], abs=0.2)


def test_a_density_with_empty_cells_falls_back_to_order_one():
    mu = of.GridDensity.from_function(
        lambda x: (x[..., 0].abs() < 0.5).double(), -2, 2, 64, walls=True
    )
    F = of.KL(lambda x: 0.5 * x[..., 0] ** 2)
    run = of.flow(F, mu, of.JKO(order=2), dt=0.05, steps=3)
    # The entropy has no slope there for the explicit half.
    assert run.info[0]["fallback"]
    assert not run.info[-1]["fallback"]
    assert run.converged
    assert bool((run.records["energy"].diff() < 0).all())
    one = of.flow(F, mu, of.JKO(), dt=0.05, steps=1)
    assert torch.equal(run.snapshots[1].weights, one.final.weights)
    assert run.info[0]["iterations"] == one.info[0]["iterations"]


# A potential alone keeps what is sharp: the blur of it is said.
@pytest.mark.filterwarnings("ignore::otflow.errors.BlurWarning")
def test_a_step_that_raises_the_energy_falls_back_to_order_one():
    dt = 1.8  # from 1.4 on
    # Downhill to the foot of a cliff: half a step of explicit transport goes over it.
    V = lambda x: 5 * torch.sigmoid(20 * (x[..., 0] - 1)) - x[..., 0]
    mu = of.GridDensity.from_function(
        lambda x: torch.exp(-5 * x[..., 0] ** 2),
        -2,
        4,
        100,
        dtype=torch.float64,
        walls=True,
    )
    run = of.flow(of.Potential(V), mu, of.JKO(order=2), dt=dt, steps=3)
    assert run.converged
    fell_back = [info["fallback"] for info in run.info]
    assert any(fell_back)
    assert not all(fell_back)
    energy = run.records["energy"]
    for k, info in enumerate(run.info):
        assert info["energy_before"] == pytest.approx(float(energy[k]), abs=1e-9)
        assert info["energy_after"] == pytest.approx(float(energy[k + 1]), abs=1e-9)
        if info["certified"]:
            assert energy[k + 1] <= energy[k] + 1e-12
        if info["fallback"]:  # the step is the one of order 1
            one = of.JKO().step(
                of.Potential(V), run.snapshots[k], dt, None, torch.Generator()
            )
            assert torch.equal(one.measure.weights, run.snapshots[k + 1].weights)
            assert info["iterations"] > one.info["iterations"]
