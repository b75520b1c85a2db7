"""Birth-death dynamics: reaction in the masses, by clones, or with births."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from otflow._validation import check_kind, check_like, positive, true_or_false
from otflow._warn import warn
from otflow.errors import CollapseWarning, Diverged, NonFinite, Unsupported
from otflow.functionals import Functional
from otflow.measures import GridDensity, Measure, Particles
from otflow.schemes.base import Scheme, Step, check_exchangeable
from otflow.schemes.births import jumped, places, replaced

__all__ = ["BirthDeath"]

# The share of all mass above which one atom holds nearly all.
NEARLY_ALL = 0.99


class BirthDeath(Scheme):
    r"""Birth-death on the weights, :math:`\dot w_i = -\alpha w_i (F'(x_i) - \bar F')`.

    .. math:: w_i \leftarrow \frac{w_i\, e^{-\alpha\,dt\,F'[\mu](x_i)}}
        {\sum_j w_j\, e^{-\alpha\,dt\,F'[\mu](x_j)}}, \qquad
        \bar F' = \int F'[\mu]\,d\mu

    Atoms of high first variation lose mass to atoms of low first variation
    :cite:p:`rotskoff2019global`. The equation is the Fisher-Rao gradient flow of F at
    speed :math:`\alpha`. A chain with a transport scheme is the Wasserstein-Fisher-Rao
    flow, along which

    .. math:: \frac{dF}{dt} = -\int|\nabla F'|^2 d\mu - \alpha\,\mathrm{Var}_\mu F'.

    Reaction alone keeps the support. If F is convex along mixtures then, in continuous
    time and for every probability :math:`\nu`,

    .. math:: F(\mu_t) - F(\nu) \le \frac{\mathrm{KL}(\nu\,|\,\mu_0)}{\alpha\,t} .

    The steps obey it too, if F is L-smooth relative to the entropy (:math:`F(\nu) \le
    F(\mu) + \int F'[\mu]\,d(\nu - \mu) + L\,\mathrm{KL}(\nu\,|\,\mu)`) and
    :math:`\alpha\,dt \le 1/L`: a step is one of mirror descent
    :cite:p:`bauschke2017descent`. Beside transport the bound is not proved.

    With ``jumps=True`` the masses stay and the atoms jump. An atom with :math:`F' >
    \bar F'` dies with probability :math:`1 - e^{-\alpha\,dt\,(F' - \bar F')}`: it moves
    to an atom drawn by mass. An atom with :math:`F' < \bar F'` is cloned with
    probability :math:`1 - e^{-\alpha\,dt\,n w_i(\bar F' - F')}`: the clone takes the
    place and the mass of an atom that is drawn uniformly. The mean measure is that of
    the masses above, to first order in dt. An atom jumps once a step at most, so that
    long steps are slower than the equation.

    Neither leaves the support. A `prior` :math:`\pi` does: atoms are born where they
    lower F,

    .. math:: \partial_t\mu = -\alpha\,\mu\,(F' - \bar F')
        + \alpha\,\pi\,(\bar F' - F')_+ - \alpha\,c\,\mu, \qquad
        c = \int(\bar F' - F')_+\,d\pi .

    Births add :math:`-\alpha\int(\bar F' - F')_+^2\,d\pi` to dF/dt. They cease where F'
    is at least :math:`\bar F'` on the support of the prior. On n particles n places are
    drawn from the prior a step. Each place gets an atom of mass 1/n with probability
    :math:`1 - e^{-\alpha\,dt\,(\bar F' - F')_+}`. The new atoms take the index of old
    ones, which vanish or gain mass without bias :cite:p:`fearnhead2003online`.

    Parameters
    ----------
    rate : float
        Speed :math:`\alpha > 0` of the reaction, per unit of time.
    jumps : bool
        Whether atoms jump in place of a change of the masses. For particles alone.
    prior : Measure, optional
        Where atoms are born, a measure with ``sample``. For a density on a grid it is a
        density on the same grid.

    Attributes
    ----------
    rate, jumps, prior
        As above.

    Raises
    ------
    Unsupported
        From `init`, if F holds an entropy and the measure is made of particles; from
        `step`, if the measure has fixed masses; with jumps or a prior, if it is
        neither made of particles nor, for a prior, a grid, or if it carries a graph.
    Diverged
        From `step`, if one step leaves one atom of several.
    NonFinite
        From `step`, if F' is not finite at draws of the prior.
    TypeError, ValueError
        If the rate is not positive; from `step`, if the prior does not fit the measure.

    Warns
    -----
    CollapseWarning
        Once in a flow, if one atom, or cell, holds more than 99 % of the mass.

    See Also
    --------
    otflow.schemes.Resample : Splits heavy atoms into equal ones.

    Notes
    -----
    ``info`` holds

    ``effective_size``
        :math:`1/\sum_k m_k^2`, where the :math:`m_k` are the masses of the places.
    ``collapsed``
        Whether one place holds more than 99 % of the mass, among several points.
    ``born``
        How many atoms jumped or were born; on a grid the mass that was born.

    Directly after ``ExplicitEuler()`` in a chain, on particles, F' is read where the
    transport reads its velocity, before both of them. So value, velocity and F' come
    from one pass of F. The order in dt stays 1.

    Cost: F and F' at the atoms; with a prior also F' at n further places. The report of
    places sorts the n atoms, in O(n log n + n d).

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: x.square().sum(-1))
    >>> mu = of.Particles(torch.tensor([[0.0], [1.0]]))
    >>> run = of.flow(F, mu, of.BirthDeath(rate=2.0), dt=0.5, steps=4)
    >>> bool(run.final.weights[0] > 0.98)
    True
    >>> far, prior = of.Particles(torch.full((50, 1), 3.0)), of.Particles(mu.points)
    >>> scheme = of.BirthDeath(jumps=True, prior=prior)
    >>> of.flow(F, far, scheme, dt=0.1, steps=1, generator=0).info[0]["born"] > 10
    True
    """

    effects = frozenset({"reaction"})

    def __init__(
        self,
        rate: float = 1.0,
        *,
        jumps: bool = False,
        prior: Measure | None = None,
    ) -> None:
        self.rate = positive(rate, "rate")
        self.jumps = true_or_false(jumps, "jumps")
        if prior is not None:
            cure = "give draws of it as Particles(draws)"
            check_kind(prior, Measure, "prior", cure=cure)
            prior = prior.detach()
        self.prior = prior

    def init(self, F: Functional, mu: Measure) -> bool:
        self._check(mu)
        if self.jumps or self.prior is not None:
            check_exchangeable(F, self, does="replaces atoms")
        # A step of your own may take another functional than F.
        own = type(self).step is not BirthDeath.step
        if isinstance(mu, Particles) and F.split_entropy()[0] and not own:
            msg = (
                "birth-death reads the first variation of the entropy, which particles "
                "do not have, also beside Langevin(); take a GridDensity, or "
                "Blob(Entropy(), width) for the entropy, with ExplicitEuler()"
            )
            raise Unsupported(msg)
        return False

    def step(
        self,
        F: Functional,
        mu: Measure,
        dt: float,
        state: Any,
        generator: torch.Generator,
    ) -> Step[Any]:
        energy, variation = F.value_and_first_variation(mu)
        step = self.react(F, mu, mu, variation, dt, state, generator)
        before = float(energy.detach())
        info = replace(step.info, energy_before=before)
        return Step(step.measure, step.state, info, energy)

    def react(
        self,
        F: Functional,
        start: Measure,
        mu: Measure,
        variation: Tensor,
        dt: float,
        state: Any,
        generator: torch.Generator,
    ) -> Step[Any]:
        """Return the step of `mu` with the first variation that was read at `start`.

        Parameters
        ----------
        F : Functional
            What to minimise.
        start : Measure
            Where F' was read; its points are those of `mu`, index by index.
        mu : Measure
            What to change.
        variation : Tensor, shape (n,)
            F' of `start` at its points.
        dt, state, generator
            As in `step`.

        Returns
        -------
        Step
            As of `step`.
        """
        self._check(mu)
        mean = start.weights @ variation
        dose = self.rate * dt
        moved: Measure
        born: float = 0
        if self.jumps:
            assert isinstance(mu, Particles)
            moved, born = jumped(mu, variation - mean, dose, generator)
        else:
            moved = mu.reweight(-self.rate * variation, dt)
        if self.prior is not None:
            moved, new = self._with_births(F, start, moved, mean, dose, generator)
            born += new
        masses = self._masses(moved)
        largest = float(masses.max())
        size = 1.0 / float(masses.square().sum())
        if mu.n > 1 and size < 1 + 1e-6 and self._largest(mu) < NEARLY_ALL:
            msg = (
                f"the reaction left one of {mu.n} points in one step: the rate times "
                f"dt = {dose:.3g} is large beside 1 over the range of F', "
                f"{float(variation.max() - variation.min()):.3g}; take a smaller dt, "
                f"or a smaller rate"
            )
            raise Diverged(msg, measure=mu)
        collapsed = mu.n > 1 and largest > NEARLY_ALL
        if collapsed and not state:
            msg = (
                f"one of {mu.n} points holds {largest:.4%} of the mass, and the other "
                f"points hardly count: take a smaller rate or fewer steps, or births "
                f"elsewhere, BirthDeath(rate, prior=...)"
            )
            warn(msg, CollapseWarning)
        info = {"effective_size": size, "collapsed": collapsed, "born": born}
        return Step(moved, bool(state) or collapsed, info)

    def _check(self, mu: Measure) -> None:
        """Raise if a measure has no atoms to jump, or a prior does not fit it."""
        prior = self.prior
        if not self.jumps and prior is None:
            return
        if not isinstance(mu, Particles) and (
            self.jumps or not isinstance(mu, GridDensity)
        ):
            what = "jumps" if self.jumps else "prior"
            msg = (
                f"BirthDeath(..., {what}=...) replaces atoms of Particles, and the "
                f"measure is {mu!r}; leave {what} out, or start from "
                f"{mu.as_particles}"
            )
            raise Unsupported(msg)
        mu.refuse_graph(
            "a step of birth and death with jumps or a prior",
            "which atoms are replaced has no derivative",
            cure="mu.detach()",
        )
        if prior is None:
            return
        if isinstance(mu, GridDensity):
            if not isinstance(prior, GridDensity):
                msg = (
                    f"births on a grid have a density as prior, not {prior!r}; give a "
                    f"GridDensity on the same grid"
                )
                raise Unsupported(msg)
            mu.check_same_grid(prior)
        check_like(prior.weights, mu.weights, "prior", "the measure")
        if prior.dim != mu.dim:
            msg = (
                f"prior has the dimension {prior.dim} and the measure {mu.dim}; give a "
                f"prior over points of {mu.dim} coordinates"
            )
            raise ValueError(msg)

    def _with_births(
        self,
        F: Functional,
        start: Measure,
        mu: Measure,
        mean: Tensor,
        dose: float,
        generator: torch.Generator,
    ) -> tuple[Measure, float]:
        """Return a measure with atoms born from the prior, and how much was born."""
        assert self.prior is not None
        if isinstance(mu, GridDensity):
            assert isinstance(self.prior, GridDensity)
            gain = self.prior.weights * (mean - F.first_variation(start)).clamp(min=0)
            total = gain.sum()
            if not float(total) > 0:
                return mu, 0.0
            share = float(-torch.expm1(-dose * total))
            return mu.mix(self.prior.moved(gain / total), share), share
        assert isinstance(mu, Particles)
        draws = self.prior.sample(mu.n, generator)
        try:
            gain = (mean - F.first_variation(start, draws)).clamp(min=0)
        except NonFinite as error:
            msg = (
                f"F' is not finite at draws of the prior {self.prior!r}; take a prior "
                f"where F is finite, e.g. Particles(draws) of draws there"
            )
            raise NonFinite(msg) from error
        u = torch.rand(mu.n, generator=generator, dtype=mu.dtype, device=mu.device)
        born = draws[u < -torch.expm1(-dose * gain)]
        return (replaced(mu, born, generator) if len(born) else mu), len(born)

    def _masses(self, mu: Measure) -> Tensor:
        """Return the masses of the places of a measure."""
        masses = mu.weights.detach()
        if not isinstance(mu, Particles):
            return masses
        # Clones, and draws of a prior of atoms, share places.
        place = places(mu.points.detach())
        return masses.new_zeros(mu.n).index_add(0, place, masses)

    def _largest(self, mu: Measure) -> float:
        return float(self._masses(mu).max())

    def __repr__(self) -> str:
        jumps = ", jumps=True" if self.jumps else ""
        prior = "" if self.prior is None else f", prior={self.prior!r}"
        return f"{type(self).__name__}(rate={self.rate!r}{jumps}{prior})"
