"""From the words of an estimator to the functional and the scheme of a flow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from numpy.typing import NDArray

from otflow._validation import check_option, non_negative_int, positive
from otflow.functionals import Functional
from otflow.functionals.proxes import l1_norm
from otflow.meanfield import Risk, free_energy
from otflow.measures import Measure, Particles
from otflow.proximal import ParticleProximal
from otflow.schemes import (
    JKO,
    Adam,
    BirthDeath,
    ExplicitEuler,
    ForwardBackward,
    Langevin,
    Minibatch,
    Scheme,
    UnderdampedLangevin,
    chain,
)
from otflow.schemes.base import parts

__all__ = ["SCHEMES", "Recipe", "neurons"]

# Schemes that shorten a step by themselves start from this one.
LONGEST = 1e3
# Proximal steps are this many times as long as explicit ones.
IMPLICIT = 100.0
# By a step of Adam a weight moves at most about this far. The outer weights start at 3.
ADAPTED = 0.2
# The tolerance of a proximal step, and the limit of its cost: an exact end is not worth
# its time.
ROUGH = 0.1
GRADIENTS = 50
# Number of steps by which the others find a stable length.
TRIALS = 20


@dataclass(frozen=True)
class Recipe:
    """What to minimise, and how to step.

    Parameters
    ----------
    scheme : str or Scheme
        One of `SCHEMES`, or a scheme.
    dt : float or "auto"
        The step.
    temperature, ridge, penalty, birth_rate : float
        The factors of the entropy, of the weight decay, and of the l1 norm, and the
        rate of births and deaths.

    Attributes
    ----------
    scheme, dt, temperature, ridge, penalty, birth_rate
        As above.
    """

    scheme: Any
    dt: Any
    temperature: float
    ridge: float
    penalty: float
    birth_rate: float

    def __post_init__(self) -> None:
        if not isinstance(self.scheme, Scheme):
            check_option(self.scheme, "scheme", SCHEMES)
        if self.dt != "auto":
            positive(self.dt, "dt")
        for name in ("temperature", "ridge", "penalty"):
            positive(getattr(self, name), name, or_zero=True)
        positive(self.birth_rate, "birth_rate")

    def functional(self, risk: Risk) -> Functional:
        """Return the objective: the risk, and what the scheme and the words add.

        Parameters
        ----------
        risk : Risk
            The risk on the data.

        Returns
        -------
        Functional
            The sum.
        """
        noisy = self._holds("langevin", Langevin, UnderdampedLangevin)
        F = free_energy(risk, self.temperature if noisy else 0.0, self.ridge)
        if self._holds("forward-backward", ForwardBackward):
            F = F + self.penalty * l1_norm()
        return F

    def _holds(self, name: str, *kinds: type[Scheme]) -> bool:
        """Return whether the scheme has this name, or is or holds one of these."""
        if isinstance(self.scheme, Scheme):
            return any(isinstance(part, kinds) for part in parts(self.scheme))
        return bool(self.scheme == name)

    def stepper(self, batches: bool) -> Scheme:
        """Return the scheme.

        Parameters
        ----------
        batches : bool
            Whether each step takes a batch of the data.

        Returns
        -------
        Scheme
            The scheme of the name, or that of the user.
        """
        scheme = self._scheme()
        return Minibatch(scheme) if batches else scheme

    def _scheme(self) -> Scheme:
        if isinstance(self.scheme, Scheme):
            return self.scheme
        return SCHEMES[self.scheme](self)

    def euler(self) -> ExplicitEuler:
        """Return explicit steps, with a search for their length unless dt is given."""
        # A number of NumPy would make a truth value of NumPy.
        return ExplicitEuler(backtracking=bool(self.dt == "auto"))

    def length(self, F: Functional, mu: Measure, generator: torch.Generator) -> float:
        """Return dt, or the longest step to try.

        Parameters
        ----------
        F : Functional
            What is minimised.
        mu : Measure
            Where the flow starts.
        generator : torch.Generator
            Draws the batch on which a step is tried.

        Returns
        -------
        float
            For a scheme that does not shorten its steps, a stable length at the start.
        """
        if self.dt != "auto":
            return float(self.dt)
        if self.scheme in {"euler", "birth-death", "forward-backward"}:
            return LONGEST
        if self.scheme == "adam":
            return ADAPTED
        # The first step from small outputs may be long. Those after it are not.
        smooth, trial = F.split_entropy()[1], ExplicitEuler(backtracking=True)
        state, shortest = trial.init(smooth, mu), LONGEST
        for _ in range(TRIALS):
            step = trial.step(smooth.resample(generator), mu, LONGEST, state, generator)
            mu, state = step.measure, step.state
            shortest = min(shortest, step.taken(LONGEST) or shortest)
        return shortest * (IMPLICIT if self.scheme == "jko" else 0.5)


# An exact assignment of thousands of neurons would take most of the time of a JKO step.
SCHEMES: Final[dict[str, Callable[[Recipe], Scheme]]] = {
    "euler": Recipe.euler,
    "jko": lambda _: JKO(
        ParticleProximal(certify=False, tolerance=ROUGH, max_gradients=GRADIENTS)
    ),
    "langevin": lambda _: Langevin(),
    "birth-death": lambda recipe: chain(recipe.euler(), BirthDeath(recipe.birth_rate)),
    "forward-backward": lambda _: ForwardBackward(),
    "adam": lambda _: Adam(),
}


def neurons(
    count: int, outputs: int, X: NDArray[Any], outer_scale: float, seed: int
) -> Particles:
    """Return neurons at random.

    Parameters
    ----------
    count, outputs : int
        Numbers of neurons and of outer weights of each.
    X : ndarray, shape (n, d)
        Inputs.
    outer_scale : float
        Standard deviation of the outer weights. That of the others is 1.
    seed : int
        Seed.

    Returns
    -------
    Particles
        Rows (a, w, b), of the dtype of the inputs.
    """
    count = non_negative_int(count, "n_neurons", minimum=1)
    generator, dim = torch.Generator().manual_seed(seed), outputs + X.shape[1] + 1
    # Drawn in double precision: the start is the same in either.
    theta = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    theta[:, :outputs] *= positive(outer_scale, "outer_scale")
    return Particles(theta.to(torch.from_numpy(X[:1]).dtype))
