"""The laws of every scheme; the test of each class inherits them."""

from __future__ import annotations

import copy

import pytest
import torch

import otflow as of
from otflow._validation import seed_and_stream
from otflow.analysis import observed_order
from tests import clouds
from tests.clouds import assert_plain, assert_untouched, global_state, state


class Nudge(of.schemes.Scheme):
    """Moves by a tenth of dt and says that it is no part of the flow of F."""

    effects = frozenset()

    def step(self, F, mu, dt, state, generator):
        velocity = F.split_entropy()[1].velocity(mu)
        return of.schemes.Step(mu.push(velocity, 0.1 * dt), state)


class SchemeContract:
    """A child says how to make a scheme (`make`) and on what to try it (`problem`).

    With an exact solution it gives `error(dt)`, the error at a fixed time, and the
    `steps` to try; else it sets `steps` to nothing.
    """

    stochastic = False  # different seeds give different runs
    descends = True  # the energy falls at every step when dt is small
    solves = False  # its steps are solved for, and say whether they converged
    small = 1e-2  # such a dt
    diverges = True  # a huge dt leaves the finite numbers
    steps: tuple[float, ...] = (0.1, 0.05, 0.025, 0.0125)
    order = 1.0

    def make(self) -> of.schemes.Scheme:
        """Return the scheme."""
        raise NotImplementedError

    def problem(
        self, dtype: torch.dtype = torch.float64
    ) -> tuple[of.Functional, of.Measure]:
        """Return a functional and where to start; by default two interacting terms."""
        F = of.Potential(lambda x: (x.square().sum(-1) + 1).sqrt(), modulus=0.0)
        F = F + of.Interaction(of.kernels.Gaussian(1.0))
        return F, clouds.weighted(7, 2, dtype=dtype)

    def error(self, dt: float) -> float:
        """Return the error at a fixed time against `tests.exact`."""
        raise NotImplementedError

    def run(self, steps: int = 5, *, dt: float | None = None, generator=0, **options):
        """Return a short flow of the problem."""
        F, mu = self.problem()
        dt = self.small if dt is None else dt
        return of.flow(
            F, mu, self.make(), dt=dt, steps=steps, generator=generator, **options
        )

    def one_step(self, dtype=torch.float64, seed=0):
        """Return the problem and one step of it."""
        F, mu = self.problem(dtype)
        scheme, generator = self.make(), torch.Generator().manual_seed(seed)
        step = scheme.step(F, mu, self.small, scheme.init(F, mu), generator)
        return scheme, F, mu, step

    # One step -------------------------------------------------------------------------

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_a_step_keeps_class_dtype_size_and_mass(self, dtype):
        _, _, mu, step = self.one_step(dtype)
        nu = step.measure
        assert type(nu) is type(mu)
        assert nu.points.dtype == nu.weights.dtype == dtype
        assert nu.points.shape == mu.points.shape
        assert float(nu.weights.sum()) == pytest.approx(1, abs=1e-6)
        assert_plain(nu.points, nu.weights)

    def test_a_step_reports_the_energy_it_started_from(self):
        scheme, F, mu, step = self.one_step()
        energy = step.energy
        if energy is not None:
            torch.testing.assert_close(energy, scheme.energy(F, mu))
            assert energy.shape == ()
            assert_plain(energy)

    def test_a_step_is_pure(self):
        F, mu = self.problem()
        scheme, generator = self.make(), torch.Generator().manual_seed(0)
        carried = scheme.init(F, mu)
        before, surroundings = state(mu), global_state()
        objects = copy.deepcopy((vars(scheme), carried))
        keys = sorted(vars(F))
        first = scheme.step(F, mu, self.small, carried, generator)
        assert_untouched(mu, before)
        assert global_state() == surroundings
        assert repr((vars(scheme), carried)) == repr(objects)
        assert sorted(vars(F)) == keys
        # The same arguments again: nothing was hidden in the scheme.
        again = scheme.step(
            F, mu, self.small, carried, torch.Generator().manual_seed(0)
        )
        assert torch.equal(first.measure.points, again.measure.points)
        assert torch.equal(first.measure.weights, again.measure.weights)

    def test_the_step_vanishes_with_dt(self):
        F, mu = self.problem()
        scheme = self.make()
        generator = torch.Generator().manual_seed(0)
        nu = scheme.step(F, mu, 1e-12, scheme.init(F, mu), generator).measure
        torch.testing.assert_close(nu.points, mu.points, rtol=0, atol=1e-4)
        torch.testing.assert_close(nu.weights, mu.weights, rtol=0, atol=1e-10)

    # Runs -----------------------------------------------------------------------------

    def test_the_same_seed_gives_the_same_run(self):
        one, two = self.run(generator=3), self.run(generator=3)
        assert torch.equal(one.final.points, two.final.points)
        assert torch.equal(one.final.weights, two.final.weights)
        assert torch.equal(one.records["energy"], two.records["energy"])
        assert one.seed == two.seed == 3

    def test_another_seed_gives_another_run_if_it_is_stochastic(self):
        one, two = self.run(generator=3), self.run(generator=4)
        same = torch.equal(one.final.points, two.final.points)
        assert same == (not self.stochastic)

    def test_a_run_in_two_halves_is_the_whole(self):
        F, mu = self.problem()
        scheme = self.make()
        _, generator = seed_and_stream(0, mu.device)  # as the flow makes it
        carried = scheme.init(F, mu)
        for _ in range(6):
            step = scheme.step(F, mu, self.small, carried, generator)
            mu, carried = step.measure, step.state
        whole = self.run(6, generator=0)
        assert torch.equal(whole.final.points, mu.points)
        assert torch.equal(whole.final.weights, mu.weights)

    def test_the_energy_falls_when_dt_is_small(self):
        run = self.run(30)
        energy = run.records["energy"]
        assert run.status == "finished"
        assert run.converged is (True if self.solves else None)
        if self.descends:
            assert bool((energy.diff() < 0).all())
        else:
            assert bool(torch.isfinite(energy).all())

    def test_a_huge_dt_is_caught_and_what_was_good_is_kept(self):
        if not self.diverges:
            run = self.run(4, dt=1e9)
            assert run.status == "finished"
            assert run.converged is (True if self.solves else None)
            assert bool(torch.isfinite(run.final.points).all())
            return
        F, mu = self.problem()
        growing = of.Potential(lambda x: -x.square().sum(-1)) + F
        with pytest.raises(
            of.errors.Diverged, match=r"^the flow diverged in step"
        ) as c:
            of.flow(growing, mu, self.make(), dt=1e9, steps=200, generator=0)
        error = c.value
        assert 0 < error.step < 200
        assert len(error.trajectory.info) == error.step
        assert error.trajectory.status == "diverged"
        assert error.measure is error.trajectory.final
        assert bool(torch.isfinite(error.measure.points).all())
        assert len(error.trajectory.times) == error.step + 1
        assert bool(torch.isfinite(error.trajectory.records["energy"]).all())

    def test_the_observed_order_is_the_one_stated(self):
        if not self.steps:
            return
        errors = [self.error(dt) for dt in self.steps]
        assert observed_order(self.steps, errors) == pytest.approx(self.order, abs=0.1)
        assert self.make().order == self.order

    # Composition ----------------------------------------------------------------------

    def test_a_chain_of_one_is_that_one(self):
        scheme = self.make()
        assert of.chain(scheme) is scheme

    def test_a_chain_is_one_after_the_other(self):
        F, mu = self.problem()
        scheme, nudge = self.make(), Nudge()
        pair = of.chain(scheme, nudge)
        generator = torch.Generator().manual_seed(0)
        both = pair.step(F, mu, self.small, pair.init(F, mu), generator)
        generator = torch.Generator().manual_seed(0)
        first = scheme.step(F, mu, self.small, scheme.init(F, mu), generator)
        taken = first.info.get("dt", self.small)
        again = nudge.step(F, first.measure, taken, None, generator)
        assert torch.equal(both.measure.points, again.measure.points)
        assert torch.equal(both.measure.weights, again.measure.weights)
        assert pair.effects == scheme.effects

    def test_a_chain_does_not_run_a_flow_twice(self):
        scheme = self.make()
        if not scheme.effects:
            assert of.chain(scheme, self.make()).effects == frozenset()
            return
        for wrapped in (self.make(), of.chain(Nudge(), self.make())):
            with pytest.raises(ValueError, match="twice as far as the time says"):
                of.chain(scheme, wrapped)

    def test_it_can_be_copied_and_printed(self):
        scheme = self.make()
        assert repr(copy.deepcopy(scheme)) == repr(scheme)
        assert repr(scheme).split("(")[0] in (type(scheme).__name__, "chain")
        assert "0x" not in repr(scheme)
