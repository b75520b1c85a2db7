"""Forward-backward where steps shrink or fail: what the reports say of it."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.errors import Diverged, NotConvergedWarning
from otflow.functionals import box, l1_norm
from otflow.schemes import ForwardBackward

F64 = torch.float64
PUSH = of.Potential(lambda x: -3 * x.sum(-1))
SPRING = of.Potential(lambda x: 0.5 * x.square().sum(-1))


def test_steps_that_shrink_without_end_at_a_wall_have_stalled():
    """Quantiles have no map onto the box: each step ends before the wall."""
    mu = of.Quantiles(torch.linspace(-0.9, 0.9, 9, dtype=F64))
    with pytest.warns(NotConvergedWarning, match="steps shrink without end"):
        run = of.flow(PUSH + box(-1.0, 1.0), mu, ForwardBackward(), dt=0.1, steps=12)
    assert [info["stalled"] for info in run.info] == [False] * 9 + [True] * 3
    assert [info.converged for info in run.info] == [True] * 9 + [False] * 3
    assert float(run.times[-1]) < 0.04


def test_particles_at_the_same_wall_have_not():
    mu = of.Particles(torch.linspace(-0.9, 0.9, 9, dtype=F64)[:, None])
    run = of.flow(PUSH + box(-1.0, 1.0), mu, ForwardBackward(), dt=0.1, steps=12)
    assert run.converged
    assert float(run.times[-1]) == pytest.approx(1.2)
    assert bool((run.final.points == 1).all())


def test_steps_at_rest_have_not_stalled():
    mu = of.Particles(torch.tensor([[1.0], [-0.1]], dtype=F64))
    run = of.flow(SPRING + 0.2 * l1_norm(), mu, ForwardBackward(), dt=0.4, steps=200)
    assert run.converged
    assert not any(info["stalled"] for info in run.info)
    assert bool((run.final.points == 0).all())


@pytest.mark.parametrize(("most", "last"), [(0, "1"), (2, "0.25")])
def test_the_cause_names_the_lengths_that_were_tried(most, last):
    F = 1e4 * SPRING + 0.1 * l1_norm()
    mu = of.Particles(torch.ones(3, 1))
    scheme = ForwardBackward(max_halvings=most)
    with pytest.warns(NotConvergedWarning, match=f"from 1 down to {last};"):
        run = of.flow(F, mu, scheme, dt=1.0, steps=1)
    assert (run.info[0].dt, run.info[0]["trials"]) == (0.0, most + 1)
    assert of.flow(F, mu, ForwardBackward(), dt=1.0, steps=1).info[0]["dt"] > 0


def test_trials_that_all_fail_raise_what_failed():
    """It is not true of them that none lowered the energy."""
    F, mu = SPRING + 0.1 * l1_norm(), of.Particles(torch.ones(3, 1, dtype=F64))
    with pytest.raises(Diverged, match="take a smaller dt"):
        of.flow(F, mu, ForwardBackward(), dt=1e300, steps=1)
    rho = of.GridDensity.from_function(
        lambda x: torch.where(x[:, 0].abs() < 0.9, 1.0, 0.0 * x[:, 0]),
        -4.0,
        4.0,
        80,
        dtype=F64,
    )
    # The solver of the grid takes no infinite potential. The shortest trials end at the
    # round-off of an energy that is 0.
    with pytest.warns(NotConvergedWarning, match="of them failed: the potential is"):
        of.flow(PUSH + box(-1.0, 1.0), rho, ForwardBackward(), dt=0.1, steps=1)


@pytest.mark.parametrize(
    "mu",
    [
        of.Particles(torch.ones(2, 1)),
        of.Gaussian(torch.ones(1), torch.eye(1)),
        of.Quantiles(torch.linspace(0.0, 1.0, 5)),
    ],
    ids=lambda mu: type(mu).__name__,
)
def test_a_time_beyond_float32_diverges(mu):
    with pytest.raises(Diverged, match="left the finite numbers; take a smaller dt"):
        mu.push(SPRING.velocity(mu), 1e300)
    with pytest.raises(Diverged, match="take a smaller dt"):
        of.flow(SPRING, mu, of.ExplicitEuler(), dt=1e300, steps=1)
    if isinstance(mu, of.Particles):
        heat = SPRING + of.Entropy()
        for scheme in (of.Langevin(), of.schemes.UnderdampedLangevin()):
            with pytest.raises(Diverged, match="take a smaller dt"):
                of.flow(heat, mu, scheme, dt=1e300, steps=1, generator=0)
