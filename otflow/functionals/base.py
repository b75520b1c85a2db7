"""A functional is its value; derivatives, algebra and convexity bounds follow."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, ClassVar, Self, final

import torch
from torch import Tensor

from otflow._algebra import (
    Curvature,
    inverse,
    sum_of_bounds,
    sum_of_curvatures,
    text_of_multiple,
    text_of_sum,
)
from otflow._autodiff import value_and_gradient
from otflow._fixed import check_fixed
from otflow._moving import Move, move_of, moved_attributes
from otflow._typing import ArrayLike
from otflow._validation import check_finite, check_kind, real
from otflow.functionals import legacy
from otflow.functionals.answers import check_answers, check_measure
from otflow.functionals.inheritance import forget_claims, redefined
from otflow.functionals.order import check_places
from otflow.functionals.passes import at_once, by_autodiff, summed, times
from otflow.functionals.reasons import NOT_A_NUMBER, explain, generic_reason
from otflow.measures import Measure
from otflow.numerics.enclosed_sums import Enclosed, enclosed_terms

__all__ = ["Functional", "Scaled", "Sum", "check_functional", "check_measure", "sum_of"]


def _flat(method: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a method `terms` that takes each of its terms apart in turn."""

    @wraps(method)
    def terms(self: Functional) -> tuple[tuple[float, Functional], ...]:
        flat: list[tuple[float, Functional]] = []
        for c, term in method(self):
            check_functional(term)
            factor = real(c, "the factor of a term")
            inner = ((1.0, self),) if term is self else term.terms()
            what = "a product of factors"
            flat += [(real(factor * a, what), part) for a, part in inner]
        return tuple(flat)

    return terms


class Functional(ABC):
    r"""A function :math:`F : \mathcal P(\mathbb R^d) \to \mathbb R` to be minimised.

    A subclass writes `value` alone. From it follow the first variation :math:`F'[\mu]`,
    the velocity :math:`v = -\nabla F'[\mu]` of the Wasserstein gradient flow
    :math:`\partial_t \mu = \nabla\cdot(\mu \nabla F'[\mu])`
    :cite:p:`ambrosio2008gradient`, sums and multiples. A subclass may override a
    derivative by a closed form for speed; the contract tests compare it with autodiff.

    A subclass of a functional of the library that overrides `value`, or another method
    or attribute that its value depends on, is another functional. It inherits neither
    `modulus` nor `mixture_curvature`, and no `terms`, `enclosed_variation` or closed
    form of a derivative: it states its own.

    See Also
    --------
    otflow.flow : Minimise a functional.

    Examples
    --------
    >>> import torch, otflow as of
    >>> class Concentration(of.Functional):
    ...     def value(self, mu):
    ...         return mu.expectation(lambda x: x.square().sum(-1)) ** 2
    >>> F, mu = Concentration(), of.Particles(torch.tensor([[1.0], [3.0]]))
    >>> F.value(mu)
    tensor(25.)
    >>> F.first_variation(mu)  # 2 E|x|^2 |x|^2
    tensor([10., 90.])
    >>> F.velocity(mu)  # -4 E|x|^2 x
    tensor([[-20.],
            [-60.]])
    """

    # Names of attributes from which others follow, or of which others are declared.
    _fixed: frozenset[str] = frozenset()

    exchangeable: bool = True
    """Whether F depends on the law alone, and not on the order of its atoms.

    State False in a functional of your own that reads atoms by their index, as a loss
    of a network whose rows belong to units. Then no solver relabels atoms, and what
    copies or adds atoms raises `Unsupported`.
    """

    # Set by the module of internal energies, which imports this one.
    _entropy: ClassVar[Functional]

    def __init_subclass__(cls, **options: Any) -> None:
        """Check the numbers that a subclass returns; adopt words of last release."""
        super().__init_subclass__(**options)
        check_answers(cls)
        own = frozenset(vars(cls))
        if "modulus" in own and not callable(vars(cls)["modulus"]):
            raise TypeError(NOT_A_NUMBER)
        legacy.adopt(cls, lambda: Functional._entropy)
        if callable(terms := vars(cls).get("terms")):
            cls.terms = _flat(terms)  # type: ignore[assignment, method-assign]
        forget_claims(cls, Functional, own)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "modulus":
            raise TypeError(NOT_A_NUMBER)
        check_fixed(self, name)
        super().__setattr__(name, value)

    @abstractmethod
    def value(self, mu: Measure) -> Tensor:
        r"""Return :math:`F(\mu)`.

        Write it with torch operations on ``mu.points`` and ``mu.weights``, or with
        ``mu.expectation``, ``mu.interaction`` and ``mu.internal``. When the weights are
        differentiated they are free: they are not renormalised.

        Parameters
        ----------
        mu : Measure
            Where to evaluate.

        Returns
        -------
        Tensor
            0-d; it carries a graph if the measure or a parameter carries one.

        Raises
        ------
        InvalidFunctional
            If the value is not one real number on the device of the measure.
        NonFinite
            If the value is NaN or infinite.
        Unsupported
            If the measure lacks a capability that F needs, such as a density.
        """

    @final
    def __call__(self, mu: Measure) -> Tensor:
        """Return ``value(mu)``, so that a functional is also a record of a flow."""
        return self.value(mu)

    def first_variation(self, mu: Measure, x: ArrayLike | None = None) -> Tensor:
        r"""Return :math:`F'[\mu]`: at the points it is :math:`\partial F/\partial w_i`.

        Parameters
        ----------
        mu : Measure
            Where to differentiate; it needs the capability ``mass_gradient``.
        x : Tensor or ndarray, shape (m, d), optional
            Where to evaluate; the points of `mu` by default.

        Returns
        -------
        Tensor, shape (n,) or (m,)
            Defined up to a constant; with a graph if the measure carries one.

        Raises
        ------
        Unsupported
            If the measure has no ``mass_gradient``; at `x`, if F is not `exchangeable`.
        NonFinite
            If an entry is NaN or infinite.
        """
        check_measure(mu)
        return mu.mass_gradient(self.value, check_places(self, x))

    def value_and_velocity(self, mu: Measure) -> tuple[Tensor, Tensor]:
        r"""Return :math:`F(\mu)` and :math:`-\nabla F'[\mu]` in one pass.

        Parameters
        ----------
        mu : Measure
            Where to differentiate.

        Returns
        -------
        value : Tensor
            0-d.
        velocity : Tensor
            A tangent at `mu`, (n, d) on particles. Value and velocity carry a graph if
            the measure carries one. Parameters of the functional alone do not make a
            graph.

        Raises
        ------
        NonFinite
            If the value or the velocity is NaN or infinite.
        """
        check_measure(mu)
        value, gradient = mu.value_and_position_gradient(self.value)
        return value, -gradient

    def value_and_first_variation(self, mu: Measure) -> tuple[Tensor, Tensor]:
        r"""Return :math:`F(\mu)` and F' at the points; a risk needs one pass for both.

        Parameters
        ----------
        mu : Measure
            Where to differentiate; it needs the capability ``mass_gradient``.

        Returns
        -------
        value : Tensor
            0-d.
        variation : Tensor, shape (n,)
            The first variation, up to a constant.

        Raises
        ------
        Unsupported
            If the measure has no ``mass_gradient``.
        NonFinite
            If the value or an entry is NaN or infinite.
        """
        return self.value(mu), self.first_variation(mu)

    def value_and_derivatives(self, mu: Measure) -> tuple[Tensor, Tensor, Tensor]:
        r"""Return :math:`F(\mu)`, :math:`-\nabla F'[\mu]` and F' at the points.

        On particles it is one pass where derivatives come by automatic differentiation,
        and for a risk of neurons with outer weights. Elsewhere it costs
        `value_and_velocity` and `first_variation`.

        Parameters
        ----------
        mu : Measure
            Where to differentiate; it needs the capability ``mass_gradient``.

        Returns
        -------
        value : Tensor
            0-d.
        velocity : Tensor
            A tangent at `mu`.
        variation : Tensor, shape (n,)
            The first variation, up to a constant.

        Raises
        ------
        Unsupported
            If the measure has no ``mass_gradient``.
        NonFinite
            If an entry is NaN or infinite.
        """
        # A closed form is faster than autodiff.
        if by_autodiff(self, Functional) and (found := at_once(self.value, mu)):
            return found
        return *self.value_and_velocity(mu), self.first_variation(mu)

    @final
    def velocity(self, mu: Measure, x: ArrayLike | None = None) -> Tensor:
        r"""Return :math:`v = -\nabla F'[\mu]`, on particles minus dF/dx_i over w_i.

        Parameters
        ----------
        mu : Measure
            Where to differentiate.
        x : Tensor or ndarray, shape (m, d), optional
            Where to evaluate the field v; it needs ``mass_gradient``. By default the
            points of `mu`, as a tangent.

        Returns
        -------
        Tensor
            A tangent at `mu`, (n, d) on particles; at `x` the field, (m, d).

        Raises
        ------
        Unsupported
            If `x` is given and the measure has no ``mass_gradient``.
        NonFinite
            If an entry is NaN or infinite.
        """
        if x is None:
            return self.value_and_velocity(mu)[1]
        check_measure(mu)
        velocity = self._velocity_at(mu, mu.check_probes(x))
        check_finite(velocity, "the functional's velocity")
        return velocity

    def _velocity_at(self, mu: Measure, x: Tensor) -> Tensor:
        """Return the field at probes (m, d); closed forms override it."""
        return -value_and_gradient(
            lambda y: self.first_variation(mu, y).sum(),
            x,
            beside=mu.tensors(),
            unused=True,
        )[1]

    @final
    def split_entropy(self) -> tuple[float, Functional]:
        """Return ``(temperature, rest)`` with F = temperature * Entropy + rest.

        Both follow from `terms`. A functional without entropy has the temperature 0 and
        is itself the rest.

        Returns
        -------
        temperature : float
            The sum of the factors of the entropy.
        rest : Functional
            The sum of all other terms.
        """
        terms = self.terms()
        heat = [c for c, term in terms if self._is_entropy(term)]
        if not heat:
            return 0.0, self
        return sum(heat), sum_of(t for t in terms if not self._is_entropy(t[1]))

    @property
    def entropic(self) -> bool:
        """Whether F is an entropy, of all or of a part: noise can take its place."""
        return self._is_entropy(self)

    def heated(self, mu: Any, variance: float, generator: torch.Generator) -> Any:
        """Return the flow of an entropic F from `mu`, which adds a variance.

        Parameters
        ----------
        mu : Measure
            Where the flow starts.
        variance : float
            As that of ``mu.diffuse``: twice the time, times the factor of F.
        generator : torch.Generator
            Source of the noise.

        Returns
        -------
        Measure
            That of ``mu.diffuse``; of an entropy of one part, with that part diffused.
        """
        return mu.diffuse(variance, generator)

    def _is_entropy(self, term: Functional) -> bool:
        entropy = type(self._entropy)
        return isinstance(term, entropy) and redefined(term, entropy) is None

    def terms(self) -> tuple[tuple[float, Functional], ...]:
        r"""Return pairs ``(c_k, F_k)`` with :math:`F = \sum_k c_k F_k`.

        Proximal solvers and `Langevin` take a functional apart by this method alone,
        and treat each kind of term by the method that is best for it. By default a
        functional is one term, itself. A functional made of others overrides the method
        and names its parts; parts that have terms themselves are taken apart in turn.
        The identity must be exact: bounds on convexity, and so certificates, rest on
        it.

        Returns
        -------
        tuple of (float, Functional)
            The factors and the terms.
        """
        return self._terms()

    def _terms(self) -> tuple[tuple[float, Functional], ...]:
        """Return the terms that the library itself knows: no solver checks them."""
        return ((1.0, self),)

    def enclosed_variation(self, mu: Measure) -> Enclosed:
        r"""Return :math:`F'[\mu]` as a function of points in boxes: proofs rest on it.

        The function takes an `~otflow.optimality.Enclosure` x of points (m, d), which
        behaves as a tensor, and returns one (m,). By default that of several `terms`
        follows from theirs, and a functional of one term has none. A functional of your
        own returns a function that computes :math:`F'[\mu](x)` by torch operations on
        x; the manual lists those that can be enclosed. The constant that F' leaves open
        must not depend on x. A gap compares it with `first_variation` at some places,
        and raises InvalidFunctional if they differ.

        Parameters
        ----------
        mu : Measure
            Where to differentiate, in float64.

        Returns
        -------
        callable
            Points (m, d) to values (m,).

        Raises
        ------
        NotEnclosed
            If F' or an operation in it has no interval extension, here or when the
            function is called.

        Examples
        --------
        >>> import torch, otflow as of
        >>> class Concentration(of.Functional):
        ...     def value(self, mu):
        ...         return mu.expectation(lambda x: x.square().sum(-1)) ** 2
        ...
        ...     def mixture_curvature(self):
        ...         return "convex"
        ...
        ...     def enclosed_variation(self, mu):
        ...         mean = mu.weights @ mu.points.square().sum(-1)
        ...         return lambda x: 2 * mean * x.square().sum(-1)
        >>> mu = of.Particles(torch.tensor([[1.0], [3.0]]))
        >>> box = of.optimality.BoxDomain(0, 4)
        >>> of.optimality.optimality_gap(Concentration(), mu, box).kind
        'proved'
        """
        return enclosed_terms(self, mu)

    def resample(self, generator: torch.Generator) -> Functional:
        """Return an unbiased random copy (a minibatch), or itself if not stochastic.

        Parameters
        ----------
        generator : torch.Generator
            Source of randomness.

        Returns
        -------
        Functional
            Its expectation over draws is F.
        """
        return self

    def modulus(self, dim: int) -> float | None:
        r"""Return a :math:`\lambda` such that F is :math:`\lambda`-convex.

        For a functional that is finite on atoms: along the interpolation :math:`\mu_t =
        ((1-t)\,\pi^1 + t\,\pi^2)_\#\gamma` of every coupling :math:`\gamma`,

        .. math::

            F(\mu_t) \le (1-t)F(\mu_0) + tF(\mu_1)
            - \tfrac\lambda2 t(1-t) \int|x-y|^2 d\gamma .

        For an internal energy: along generalised geodesics. By default the bound of a
        functional of one term is unknown; the bounds of several `terms` add up, each
        times its factor, and a negative factor makes the sum unknown. `why` says how
        the number comes about.

        Parameters
        ----------
        dim : int
            Dimension of the space. McCann's condition on an internal energy depends on
            it. The bound must hold in each lower dimension too.

        Returns
        -------
        float or None
            None if no :math:`\lambda` is known.
        """
        parts = self._summands()
        if any(part is self for _, part in parts):
            return None
        return sum_of_bounds((c, part.modulus(dim)) for c, part in parts)

    def mixture_curvature(self) -> Curvature | str | None:
        r"""Return how F bends along mixtures: "linear", "convex", "concave" or None.

        A convex F obeys :math:`F((1-t)\mu + t\nu) \le (1-t)F(\mu) + tF(\nu)` for all
        :math:`\mu, \nu`. This is not displacement convexity: a potential is linear
        along mixtures, whatever its shape. By default the curvature of a functional of
        one term is unknown; that of several `terms` follows from theirs. A functional
        of your own overrides the method, and optimality gaps rest on its answer.

        Returns
        -------
        Curvature, str or None
            None if nothing is known. A method of your own may return the plain word.

        Raises
        ------
        InvalidFunctional
            If a method of your own returns another word.
        """
        parts = self._summands()
        if any(part is self for _, part in parts):
            return None
        return sum_of_curvatures((c, part.mixture_curvature()) for c, part in parts)

    def _summands(self) -> tuple[tuple[float, Functional], ...]:
        """Return the terms from whose convexities that of F follows.

        A sum gives its parts, which may know more of themselves than their terms do.
        """
        return self.terms()

    @final
    def why(self, dim: int | None = None) -> str:
        """Return why F is convex or not, as a text of some lines.

        The first line gives `modulus`, the next lines the bound of each term and where
        it comes from. So do further lines for `mixture_curvature`. Where the answer is
        unknown, the first line names the term that is the cause.

        Parameters
        ----------
        dim : int, optional
            Dimension of the space; by default the bound holds in every dimension.

        Returns
        -------
        str
            To be printed.

        Raises
        ------
        TypeError, ValueError
            If the dimension is no positive integer.
        InvalidFunctional
            If a term contradicts what was declared of it, see `Internal`.

        Examples
        --------
        >>> import torch, otflow as of
        >>> spring = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
        >>> F = spring + 0.1 * of.Entropy() - of.Interaction(of.kernels.Log())
        >>> text = F.why(2).splitlines()
        >>> print(text[0])
        along displacements, in dimension 2: unknown, because of -Interaction(Log())
        >>> print(text[1].strip())
        Potential(<lambda>): 1, as modulus= of V declares
        """
        return explain(self, dim, Functional)

    def why_modulus(self, dim: int) -> str:
        """Return why `modulus` is what it is, as the end of a sentence.

        By default it names the class that states the modulus. Override it beside
        `modulus`, so that `why` gives your reason.

        Parameters
        ----------
        dim : int
            Dimension of the space.

        Returns
        -------
        str
            As "since V is convex".
        """
        return generic_reason(self, "modulus", Functional)

    def why_mixture(self) -> str:
        """Return why `mixture_curvature` is what it is, as the end of a sentence.

        By default it names the class that states the curvature. Override it beside
        `mixture_curvature`, so that `why` gives your reason.

        Returns
        -------
        str
            As "since the loss is convex".
        """
        return generic_reason(self, "mixture_curvature", Functional)

    @final
    @property
    def mixture_convex(self) -> bool | None:
        """Whether F is convex along mixtures; None if unknown."""
        word = self.mixture_curvature()
        return None if word is None else word != Curvature.CONCAVE

    def modulus_in(self, dim: int) -> float | None:
        """Return ``modulus(dim)``. Deprecated; it goes in the next release."""
        legacy.warn_of("modulus_in(dim)", "modulus(dim)")
        return self.modulus(dim)

    @property
    def displacement_modulus(self) -> float | None:
        """The bound in every dimension. Deprecated; it goes in the next release."""
        legacy.warn_of("displacement_modulus", "modulus(dim)")
        # McCann's condition is stricter in each higher dimension.
        return self.modulus(sys.maxsize)

    @final
    def to(self, *place: Any, dtype: Any = None, device: Any = None) -> Self:
        """Return the functional with its tensors in another dtype or on another device.

        Tensors, measures, kernels and functionals among its attributes are moved, with
        their graphs: also in slots, in containers, and in the class itself. Integer
        tensors, such as classes, keep their dtype. What holds no tensors stays itself.
        The measure that F is evaluated at is moved by its own ``mu.to(...)``.

        Parameters
        ----------
        *place
            A dtype, a device, both, or a tensor or a measure that has them.
        dtype, device : optional
            The same by name.

        Returns
        -------
        Functional
            Itself if nothing changes.

        Raises
        ------
        Unsupported
            If a torch module, or a tensor that a function holds or that a method of
            its class reads from outside, would have to move. The message names it. A
            module is moved by its owner, in place. A function is made again, from moved
            tensors.
        TypeError, ValueError
            If the dtype is not float32 or float64.

        Examples
        --------
        >>> import torch, otflow as of
        >>> X = torch.linspace(-1, 1, 5)[:, None]
        >>> risk = of.meanfield.Risk(of.meanfield.TwoLayer("tanh"), X, X[:, 0])
        >>> risk.to(torch.float64).X.dtype
        torch.float64
        """
        return self.carry(move_of(*place, dtype=dtype, device=device))

    def carry(self, move: Move) -> Self:
        """Return F after a move: what `to` does, for a functional of your own.

        By default the attributes are moved. Override it if that is not enough, as for
        an attribute that must keep its dtype.
        """
        return moved_attributes(self, move)

    # With an array beside it, the functional decides: the array does not take it apart.
    __array_ufunc__ = None

    def __add__(self, other: object) -> Functional:
        """Return the sum of two functionals."""
        if not isinstance(other, Functional):
            return NotImplemented
        return Sum((self, other))

    def __radd__(self, other: object) -> Functional:
        """Return the functional itself for the number 0, with which `sum` begins."""
        return self if type(other) is int and other == 0 else NotImplemented

    def __neg__(self) -> Functional:
        """Return minus the functional."""
        if not isinstance(self, Scaled):
            return Scaled(-1.0, self)
        if self.factor == -1:
            return self.functional
        return Scaled(-self.factor, self.functional)

    def __sub__(self, other: object) -> Functional:
        """Return the difference of two functionals."""
        if not isinstance(other, Functional):
            return NotImplemented
        return Sum((self, -other))

    def __mul__(self, factor: object) -> Functional:
        """Return the functional times a real number."""
        if isinstance(factor, (Functional, str)):
            return NotImplemented
        return Scaled(factor, self)  # type: ignore[arg-type]  # it checks the factor

    __rmul__ = __mul__

    def __truediv__(self, divisor: object) -> Functional:
        """Return the functional over a real number other than 0."""
        if isinstance(divisor, (Functional, str)):
            return NotImplemented
        return Scaled(inverse(divisor, "a functional"), self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Sum(Functional):
    r"""The sum :math:`F = \sum_k F_k`; the empty sum is zero.

    Each part keeps its own fast derivatives. Values, first variations, velocities and
    convexity bounds add up.

    Parameters
    ----------
    parts : tuple of Functional
        Terms; nested sums are flattened.

    Attributes
    ----------
    parts : tuple of Functional
        Terms.

    Raises
    ------
    TypeError
        If a term is no functional.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: x.square().sum(-1))
    >>> (F + 2 * F).value(of.Particles(torch.ones(3, 2)))
    tensor(6.)
    """

    def __init__(self, parts: tuple[Functional, ...]) -> None:
        flat: list[Functional] = []
        for part in parts:
            check_functional(part)
            flat.extend(part.parts if isinstance(part, Sum) else (part,))
        self.parts: tuple[Functional, ...] = tuple(flat)

    def value(self, mu: Measure) -> Tensor:
        return sum((part.value(mu) for part in self.parts), mu.zeros())

    def first_variation(self, mu: Measure, x: ArrayLike | None = None) -> Tensor:
        nothing = mu.zeros(mu.n if x is None else len(x))
        return sum((part.first_variation(mu, x) for part in self.parts), nothing)

    def value_and_velocity(self, mu: Measure) -> tuple[Tensor, Tensor]:
        # The zero functional too must depend on the measure: a detached value raises.
        if not self.parts:
            return mu.value_and_position_gradient(
                lambda nu: 0.0 * sum(tensor.sum() for tensor in nu.tensors())
            )
        return summed(part.value_and_velocity(mu) for part in self.parts)

    def value_and_first_variation(self, mu: Measure) -> tuple[Tensor, Tensor]:
        parts = (part.value_and_first_variation(mu) for part in self.parts)
        return summed(parts) or super().value_and_first_variation(mu)

    def value_and_derivatives(self, mu: Measure) -> tuple[Tensor, Tensor, Tensor]:
        parts = (part.value_and_derivatives(mu) for part in self.parts)
        return summed(parts) or super().value_and_derivatives(mu)

    def _velocity_at(self, mu: Measure, x: Tensor) -> Tensor:
        return sum((part._velocity_at(mu, x) for part in self.parts), 0.0 * x)

    def terms(self) -> tuple[tuple[float, Functional], ...]:
        return tuple((1.0, part) for part in self.parts)

    _summands = terms

    def resample(self, generator: torch.Generator) -> Sum:
        return Sum(tuple(part.resample(generator) for part in self.parts))

    def __repr__(self) -> str:
        return text_of_sum(map(repr, self.parts))


class Scaled(Functional):
    r"""The multiple :math:`c\,F` of a functional.

    Value, first variation and velocity are c times those of F. The convexity bound is c
    times that of F; it is unknown for c < 0 and zero for c = 0.

    Parameters
    ----------
    factor : float
        The number c, of either sign.
    functional : Functional
        The functional F.

    Attributes
    ----------
    factor, functional
        As above.

    Raises
    ------
    TypeError, ValueError
        If the factor is not a finite real number, or `functional` is none.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = -3 * of.Potential(lambda x: x.square().sum(-1))
    >>> F.value(of.Particles(torch.ones(3, 2)))
    tensor(-6.)
    """

    def __init__(self, factor: float, functional: Functional) -> None:
        check_functional(functional)
        self.factor = real(factor, "the factor of a functional")
        self.functional = functional

    def value(self, mu: Measure) -> Tensor:
        return self.factor * self.functional.value(mu)

    def first_variation(self, mu: Measure, x: ArrayLike | None = None) -> Tensor:
        return self.factor * self.functional.first_variation(mu, x)

    def value_and_velocity(self, mu: Measure) -> tuple[Tensor, Tensor]:
        return times(self.factor, self.functional.value_and_velocity(mu))

    def value_and_first_variation(self, mu: Measure) -> tuple[Tensor, Tensor]:
        return times(self.factor, self.functional.value_and_first_variation(mu))

    def value_and_derivatives(self, mu: Measure) -> tuple[Tensor, Tensor, Tensor]:
        return times(self.factor, self.functional.value_and_derivatives(mu))

    def _velocity_at(self, mu: Measure, x: Tensor) -> Tensor:
        return self.factor * self.functional._velocity_at(mu, x)

    def terms(self) -> tuple[tuple[float, Functional], ...]:
        return ((self.factor, self.functional),)

    _summands = terms

    def resample(self, generator: torch.Generator) -> Self:
        return type(self)(self.factor, self.functional.resample(generator))

    def __repr__(self) -> str:
        is_sum = isinstance(self.functional, Sum) and len(self.functional.parts) > 1
        return text_of_multiple(self.factor, repr(self.functional), in_brackets=is_sum)


def sum_of(terms: Iterable[tuple[float, Functional]]) -> Functional:
    """Return the sum of terms, each times its factor; a single term stays itself."""
    parts = tuple(term if c == 1 else Scaled(c, term) for c, term in terms)
    return parts[0] if len(parts) == 1 else Sum(parts)


def check_functional(F: Any) -> None:
    """Raise TypeError unless F is a functional; say how a function is made one."""
    check_kind(
        F,
        Functional,
        "F",
        cure="of a function V of points make Potential(V), of a function of the "
        "measure a subclass of Functional with the method value(self, mu)",
    )
