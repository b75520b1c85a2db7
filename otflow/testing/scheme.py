"""The laws of every scheme; the test of each class inherits them."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from otflow._validation import seed_and_stream
from otflow.analysis import observed_order
from otflow.errors import Diverged
from otflow.flow import flow
from otflow.functionals import Functional, Interaction, Potential
from otflow.kernels import Gaussian
from otflow.measures import Measure
from otflow.schemes import Scheme, Step, chain
from otflow.schemes.langevin import split_noise
from otflow.testing.clouds import (
    assert_plain,
    assert_untouched,
    global_state,
    state,
    weighted,
)
from otflow.testing.keeping import FORGETS, through_a_file, walked
from otflow.testing.same import assert_same
from otflow.trajectory import Trajectory

__all__ = ["Nudge", "SchemeContract"]


class Nudge(Scheme):
    """Moves by a tenth of dt, without the entropy, and states no effects.

    Examples
    --------
    >>> from otflow.testing import Nudge
    >>> Nudge().effects
    frozenset()
    """

    effects = frozenset()

    def step(
        self,
        F: Functional,
        mu: Measure,
        dt: float,
        state: Any,
        generator: torch.Generator,
    ) -> Step[Any]:
        velocity = split_noise(F)[2].velocity(mu)
        return Step(mu.push(velocity, 0.1 * dt), state)


class SchemeContract:
    """The laws of a scheme; a test class inherits them.

    A subclass makes the scheme (`make`). It may choose the `problem` of the tests, and
    overrides `error` if the exact solution is not that of a spring.

    Attributes
    ----------
    stochastic : bool
        Whether different seeds give different runs.
    descends : bool
        Whether the energy falls at every step when dt is small.
    solves : bool
        Whether a step solves an equation and reports whether the solve converged.
    small : float
        A small dt.
    diverges : bool
        Whether a huge dt leaves the finite numbers.
    keeps_size : bool
        Whether a step keeps the number of atoms. Where it does not, ends are compared
        by their means.
    steps : tuple of float
        The values of dt at which errors are measured; empty if no order is stated.
    order : float
        The order in time that the errors must show.

    Examples
    --------
    >>> import otflow as of
    >>> from otflow.testing import SchemeContract
    >>> class TestEuler(SchemeContract):
    ...     def make(self):
    ...         return of.ExplicitEuler()
    >>> TestEuler().test_the_observed_order_is_the_one_stated()
    """

    stochastic = False
    descends = True
    solves = False
    small = 1e-2
    diverges = True
    keeps_size = True
    steps: tuple[float, ...] = (0.1, 0.05, 0.025, 0.0125)
    order = 1.0

    def make(self) -> Scheme:
        """Return the scheme."""
        raise NotImplementedError

    def problem(self, dtype: torch.dtype = torch.float64) -> tuple[Functional, Measure]:
        """Return a functional and where to start; by default two interacting terms."""
        F = Potential(lambda x: (x.square().sum(-1) + 1).sqrt(), modulus=0.0)
        return F + Interaction(Gaussian(1.0)), weighted(7, 2, dtype=dtype)

    def growing(self, F: Functional) -> Functional:
        """Return a functional whose flow leaves the finite numbers."""
        return Potential(lambda x: -x.square().sum(-1)) + F

    def error(self, dt: float) -> float:
        """Return the error at a fixed time; by default of x exp(-t) under a spring."""
        mu = weighted(7, 2)
        spring = Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
        run = flow(spring, mu, self.make(), dt=dt, steps=round(1 / dt), generator=0)
        return float((run.final.points - mu.points / math.e).norm())

    def gap(self, mu: Measure, nu: Measure) -> float:
        """Return the largest difference of two measures, in points and masses."""
        if not self.keeps_size:
            return float((mu.weights @ mu.points - nu.weights @ nu.points).abs().max())
        pairs = zip(mu.tensors(), nu.tensors(), strict=True)
        return max(float((x - y).abs().max()) for x, y in pairs)

    def run(
        self, steps: int = 5, *, dt: float | None = None, generator: int = 0
    ) -> Trajectory[Any]:
        """Return a short flow of the problem."""
        F, mu = self.problem()
        dt = self.small if dt is None else dt
        return flow(F, mu, self.make(), dt=dt, steps=steps, generator=generator)

    def gone_on(self, part: Trajectory[Any], steps: int) -> Trajectory[Any]:
        """Return a run continued by a scheme that is made anew, as in a new process."""
        F, _ = self.problem()
        return flow(F, part.final, self.make(), dt=self.small, steps=steps, resume=part)

    def one_step(
        self, dtype: torch.dtype = torch.float64, seed: int = 0
    ) -> tuple[Scheme, Functional, Measure, Step[Any]]:
        """Return the problem and one step of it."""
        F, mu = self.problem(dtype)
        scheme, generator = self.make(), torch.Generator().manual_seed(seed)
        step = scheme.step(F, mu, self.small, scheme.init(F, mu), generator)
        return scheme, F, mu, step

    # One step -------------------------------------------------------------------------

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_a_step_keeps_class_dtype_size_and_mass(self, dtype: torch.dtype) -> None:
        """Check that a step keeps class, dtype, size and mass."""
        _, _, mu, step = self.one_step(dtype)
        nu = step.measure
        assert type(nu) is type(mu)
        assert {tensor.dtype for tensor in nu.tensors()} == {dtype}
        if self.keeps_size:
            pairs = zip(nu.tensors(), mu.tensors(), strict=True)
            assert all(x.shape == y.shape for x, y in pairs)
        assert nu.dim == mu.dim
        assert not nu.fault()
        assert_plain(*nu.tensors())

    def test_a_step_reports_the_energy_it_started_from(self) -> None:
        """Check that a reported energy is that of the incoming measure."""
        scheme, F, mu, step = self.one_step()
        energy = step.energy
        if energy is not None:
            torch.testing.assert_close(energy, scheme.energy(F, mu))
            assert energy.shape == ()
            assert_plain(energy)

    def test_a_step_is_pure(self) -> None:
        """Check that a step writes nothing and repeats bit for bit."""
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
        assert equal(first.measure, again.measure)

    def test_the_step_vanishes_with_dt(self) -> None:
        """Check that a step of time 1e-12 hardly moves the measure."""
        F, mu = self.problem()
        scheme = self.make()
        generator = torch.Generator().manual_seed(0)
        nu = scheme.step(F, mu, 1e-12, scheme.init(F, mu), generator).measure
        assert self.gap(mu, nu) <= 1e-4
        if self.keeps_size:
            pairs = zip(nu.constants(), mu.constants(), strict=True)
            for own, other in pairs:  # masses
                torch.testing.assert_close(own, other, rtol=0, atol=1e-10)

    # Runs -----------------------------------------------------------------------------

    def test_the_same_seed_gives_the_same_run(self) -> None:
        """Check that the same seed gives the same run."""
        one, two = self.run(generator=3), self.run(generator=3)
        assert equal(one.final, two.final)
        assert torch.equal(one.records["energy"], two.records["energy"])
        assert one.seed == two.seed == 3

    def test_another_seed_gives_another_run_if_it_is_stochastic(self) -> None:
        """Check that another seed gives another run of a stochastic scheme alone."""
        one, two = self.run(generator=3), self.run(generator=4)
        same = all(map(torch.equal, one.final.tensors(), two.final.tensors()))
        assert same == (not self.stochastic)

    def test_a_run_in_two_halves_is_the_whole(self) -> None:
        """Check that steps by hand, with the carried state, give the flow."""
        F, mu = self.problem()
        scheme = self.make()
        _, generator = seed_and_stream(0, mu.device)  # as the flow makes it
        carried = scheme.init(F, mu)
        for _ in range(6):
            step = scheme.step(F, mu, self.small, carried, generator)
            mu, carried = step.measure, step.state
        whole = self.run(6, generator=0)
        assert equal(whole.final, mu)

    def test_a_kept_state_goes_on_as_the_state_itself(self) -> None:
        """Check that what `state_dict` keeps, `load_state` makes into the same state.

        The kept state goes through the format of files. A new scheme loads it, as in a
        new process.
        """
        F, mu = self.problem()
        anew, _ = self.problem()
        scheme, stream = self.make(), torch.Generator().manual_seed(0)
        carried = scheme.init(F, mu)
        for _ in range(3):
            kept = through_a_file(scheme.state_dict(carried), "the state")
            other, numbers = self.make(), stream.clone_state()
            loaded = other.load_state(anew, mu, kept)
            again, _ = walked(other, anew, mu, self.small, loaded, numbers)
            ahead, _ = walked(scheme, F, mu, self.small, carried, stream.clone_state())
            assert_same(again, ahead, at=FORGETS)
            mu, carried = walked(scheme, F, mu, self.small, carried, stream)

    @pytest.mark.parametrize("first", [1, 3])
    def test_a_resumed_run_equals_the_whole_to_the_bit(self, first: int) -> None:
        """Check that two halves of a flow, the first kept in a file, are the whole."""
        part, whole = self.run(first), self.run(6)
        assert part.bookmark is not None, (
            f"{type(self.make()).__name__}.state_dict raised, so that no run resumes"
        )
        rest = self.gone_on(through_a_file(part, "the run"), 6 - first)
        assert_same(rest, whole, but={"message"}, at=FORGETS)

    def test_the_energy_falls_when_dt_is_small(self) -> None:
        """Check that the energy falls at each step for a small dt."""
        run = self.run(30)
        energy = run.records["energy"]
        assert run.status == "finished"
        assert run.converged is (True if self.solves else None)
        if self.descends:
            assert bool((energy.diff() < 0).all())
        else:
            assert bool(torch.isfinite(energy).all())

    def test_a_huge_dt_is_caught_and_what_was_good_is_kept(self) -> None:
        """Check that a huge dt raises Diverged with the trajectory so far."""
        if not self.diverges:
            run = self.run(4, dt=1e9)
            assert run.status == "finished"
            assert run.converged is (True if self.solves else None)
            assert not run.final.fault()
            return
        F, mu = self.problem()
        growing = self.growing(F)
        with pytest.raises(Diverged, match=r"^the flow diverged in step") as c:
            flow(growing, mu, self.make(), dt=1e9, steps=200, generator=0)
        error = c.value
        assert error.step is not None
        assert 0 <= error.step < 200  # some catch it in their first step
        assert len(error.trajectory.info) == error.step
        assert error.trajectory.status == "diverged"
        assert error.measure is error.trajectory.final
        assert not error.measure.fault()
        assert len(error.trajectory.times) == error.step + 1
        assert bool(torch.isfinite(error.trajectory.records["energy"]).all())

    def test_the_observed_order_is_the_one_stated(self) -> None:
        """Check the observed order in dt against the stated one."""
        if not self.steps:
            return
        errors = [self.error(dt) for dt in self.steps]
        found = observed_order(self.steps, errors)
        assert found == pytest.approx(self.order, abs=0.1), (
            "the observed order is not the one stated; if the errors are far from "
            "their asymptotes, take shorter `steps`"
        )
        assert self.make().order == self.order

    # Composition ----------------------------------------------------------------------

    def test_a_chain_of_one_is_that_one(self) -> None:
        """Check that ``chain(S)`` is S."""
        scheme = self.make()
        assert chain(scheme) is scheme

    def test_a_chain_is_one_after_the_other(self) -> None:
        """Check that a chain of two makes a step of each in turn."""
        F, mu = self.problem()
        scheme, nudge = self.make(), Nudge()
        pair = chain(scheme, nudge)
        generator = torch.Generator().manual_seed(0)
        both = pair.step(F, mu, self.small, pair.init(F, mu), generator)
        generator = torch.Generator().manual_seed(0)
        first = scheme.step(F, mu, self.small, scheme.init(F, mu), generator)
        taken = first.info.get("dt", self.small)
        again = nudge.step(F, first.measure, taken, None, generator)
        assert equal(both.measure, again.measure)
        assert pair.effects == scheme.effects

    def test_a_chain_does_not_run_a_flow_twice(self) -> None:
        """Check that a chain of two schemes with a common effect raises."""
        scheme = self.make()
        if not scheme.effects:
            assert chain(scheme, self.make()).effects == frozenset()
            return
        for wrapped in (self.make(), chain(Nudge(), self.make())):
            with pytest.raises(ValueError, match="twice as far as the time says"):
                chain(scheme, wrapped)

    def test_it_can_be_copied_and_printed(self) -> None:
        """Check that a copy has the same repr, without an address."""
        scheme = self.make()
        assert repr(copy.deepcopy(scheme)) == repr(scheme)
        assert repr(scheme).split("(")[0] in (type(scheme).__name__, "chain")
        assert "0x" not in repr(scheme)


def equal(mu: Measure, nu: Measure) -> bool:
    """Return whether two measures are equal to the bit."""
    return all(map(torch.equal, mu.tensors(), nu.tensors()))
