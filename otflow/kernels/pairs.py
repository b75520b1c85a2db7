"""What a sum over pairs of points asks of a kernel, and what a subclass inherits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self, final

from torch import Tensor

from otflow._algebra import Curvature
from otflow._claims import changed, forget, library_class
from otflow._fixed import check_fixed
from otflow._moving import Move, move_of, moved_attributes
from otflow._pairs import Sweep, pair_field
from otflow.numerics.enclosed_sums import over_atoms
from otflow.numerics.enclosures import Enclosure, NotEnclosed

__all__ = ["PairKernel", "redefined"]

# What a kernel states of its convexity, and the methods that say why.
CONVEXITIES = {"modulus": "why_modulus", "mixture": "why_mixture"}
# Names on which no value depends. All others that a class has may change its values.
HARMLESS = frozenset(
    (
        *CONVEXITIES,
        *CONVEXITIES.values(),
        "carry",
        "curvature",
        "derivatives",
        "enclosed_field",
        "has_graph",
        "key",
        "ranges",
        "smooth",
        "to",
        "_fixed",
        "_steepest",
    )
)
# The methods of a kernel of differences that its values by pairs consist of.
BY_PAIRS = frozenset(("__call__", "even", "even_pairs", "pairs", "rows", "values"))


def _not_enclosed(self: Any, *_: Any) -> Enclosure:
    """Raise NotEnclosed: the bound of a parent is one of other values."""
    msg = (
        f"{self!r} evaluates otherwise than the class that it inherits from; state its "
        f"enclosed_field(x, points, masses)"
    )
    raise NotEnclosed(msg)


class PairKernel(ABC):
    r"""What a sum over pairs of points asks of a kernel K(x, y).

    Energies and potentials of a measure see the symmetric part alone,
    :math:`\tfrac12(K(x, y) + K(y, x))`. The method of the sum belongs to the kernel.

    Attributes
    ----------
    singular : bool
        Whether K(x, x) is infinite. Then sums over atoms omit the pairs i = j.
    smooth : bool
        Whether the slope is known to be bounded where x = y.
    modulus : float or None
        A bound on the convexity; None if none is known.
    mixture : Curvature or None
        How the energy :math:`\tfrac12\iint K\,d\mu\,d\mu` bends along mixtures
        :math:`(1 - t)\mu + t\nu`, also between atoms. A finite K is "convex" if and
        only if it is conditionally positive definite: :math:`\iint K\,d\sigma\,d\sigma
        \ge 0` for every signed :math:`\sigma` of mass 0. None if it is unknown, or
        neither. It is a property of K: where the averages of K over the cells of a
        `GridDensity` are inexact, as for cells 200 times as long as wide, the energy of
        densities has it up to this error.

    See Also
    --------
    Kernel, TwoPoint : Of the difference x - y, and of any two points.

    Notes
    -----
    A subclass that changes the values of its parent's kernel, as by a `profile` of its
    own, inherits neither `modulus` nor `mixture`, nor a bound on boxes: it states its
    own. So does one that changes another method or attribute on which values depend.

    Examples
    --------
    >>> import torch, otflow as of
    >>> K = of.kernels.TwoPoint(lambda x, y: (x * y).sum(-1))
    >>> isinstance(K, of.kernels.PairKernel)
    True
    >>> isinstance(of.kernels.Log(), of.kernels.PairKernel)
    True
    """

    singular: bool = False
    smooth: bool = False
    modulus: float | None = None
    mixture: Curvature | str | None = None

    # Names of attributes of which others are declared.
    _fixed: frozenset[str] = frozenset()

    def __setattr__(self, name: str, value: Any) -> None:
        check_fixed(self, name)
        super().__setattr__(name, value)

    def __init_subclass__(cls, **options: Any) -> None:
        """Forget what the parent knew of its values, if the subclass changes these."""
        super().__init_subclass__(**options)
        own = frozenset(vars(cls))
        base = vars(PairKernel)
        forget(cls, dict.fromkeys(CONVEXITIES), HARMLESS)
        # Ranges of a profile bound the field, whatever the profile is.
        if "ranges" not in own:
            of_profile = HARMLESS | {"profile", "slope"}
            forget(cls, {"enclosed_field": _not_enclosed}, of_profile)
        # Sums in closed form are those of other pairs.
        sums = {name: base[name] for name in ("closed_sweep", "field")}
        forget(cls, sums, among=BY_PAIRS)
        for word, why in CONVEXITIES.items():
            if word in vars(cls) and why not in own:
                setattr(cls, why, base[why])

    @abstractmethod
    def pairs(self, x: Tensor, y: Tensor) -> Tensor:
        """Return K of rows x and y that broadcast, (..., p) to (...), checked."""

    @abstractmethod
    def even_pairs(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the symmetric part of K at rows x and y, as `pairs` does."""

    @abstractmethod
    def terms(self) -> tuple[tuple[float, PairKernel], ...]:
        r"""Return pairs ``(c_k, K_k)`` with :math:`K = \sum_k c_k K_k`."""

    def _declare(
        self, kind: type, modulus: float | None, mixture: Curvature | None
    ) -> None:
        """Set both, unless the class of the kernel evaluates otherwise than `kind`.

        What is declared to the parent is declared of its function.
        """
        if changed(type(self), kind, HARMLESS) is None:
            self.modulus, self.mixture = modulus, mixture

    def why_modulus(self) -> str:
        """Return why `modulus` is what it is, as the end of a sentence."""
        return _declared(self, "modulus", self.modulus)

    def why_mixture(self) -> str:
        """Return why `mixture` is what it is, as the end of a sentence."""
        return _declared(self, "mixture", self.mixture)

    def rows(self, points: Tensor) -> Tensor:
        """Return what the kernel sees of points (n, d), computed once for each."""
        return points

    @abstractmethod
    def has_graph(self, like: Tensor) -> bool:
        """Return whether parameters of K, as of a network, are being recorded."""

    def closed_sweep(self) -> Sweep | None:
        """Return a closed form of the sums over pairs, or None to use autodiff."""
        return None

    def field(
        self, x: Tensor, points: Tensor, masses: Tensor, *, gradients: bool
    ) -> tuple[Tensor, Tensor]:
        r"""Return potentials of point masses, and their gradients; without graph.

        Parameters
        ----------
        x : Tensor, shape (m, d)
            Where to evaluate.
        points : Tensor, shape (n, d)
            Where the masses are.
        masses : Tensor, shape (n, k)
            Masses of either sign, of k potentials at once.
        gradients : bool
            Whether to compute the gradients too.

        Returns
        -------
        potentials : Tensor, shape (m, k)
            :math:`\sum_j a_{jl}\,K(x_i, y_j)`, of the symmetric part of K.
        gradients : Tensor, shape (m, k, d)
            In x; empty if not asked for.
        """
        return pair_field(self, x, points, masses, gradients=gradients)

    def enclosed_field(self, x: Enclosure, points: Tensor, masses: Tensor) -> Enclosure:
        r"""Return :math:`\sum_j a_j\,K(x, y_j)` of the symmetric part, enclosed.

        Parameters
        ----------
        x : Enclosure, shape (m, d)
            Points that range over boxes.
        points : Tensor, shape (n, d)
            Where the masses are.
        masses : Tensor, shape (n,)
            Masses of either sign.

        Returns
        -------
        Enclosure, shape (m,)
            The potential, with derivatives in x.
        """
        return over_atoms(
            lambda z, y: self.even_pairs(self.rows(z), self.rows(y)), x, points, masses
        )

    # Copies --------------------------------------------------------------------------

    @final
    def to(self, *place: Any, dtype: Any = None, device: Any = None) -> Self:
        """Return the kernel with its tensors in another dtype or on another device.

        A kernel made of numbers is returned itself: it follows the measure.

        Parameters
        ----------
        *place
            A dtype, a device, both, or a tensor that has them.
        dtype, device : optional
            The same by name.

        Returns
        -------
        Kernel
            Itself if nothing changes.

        Raises
        ------
        Unsupported
            If a tensor that a function holds would have to move.
        TypeError, ValueError
            If the dtype is not float32 or float64.
        """
        return self.carry(move_of(*place, dtype=dtype, device=device))

    def carry(self, move: Move) -> Self:
        """Return the kernel after a move: what `to` does, for a kernel of your own."""
        return moved_attributes(self, move)


def redefined(W: PairKernel) -> str | None:
    """Return what W evaluates otherwise than the nearest class of the library."""
    return changed(type(W), library_class(type(W)), HARMLESS)


def _declared(kernel: PairKernel, name: str, value: Any) -> str:
    """Return where a property of a kernel comes from, for a kernel of any class."""
    if value is not None:
        return f"as {kernel!r} declares"
    kind = type(kernel)
    word = "0.0" if name == "modulus" else '"convex"'
    how = f"set {name} = {word} in {kind.__name__}"
    if kind.__module__.startswith("otflow."):
        if kind.__name__ not in ("Function", "TwoPoint"):
            along = " along every coupling" if name == "modulus" else ""
            return f"since none is known of {kernel!r}{along}"
        argument = "W" if kind.__name__ == "Function" else "K"
        how = f"give kernels.{kind.__name__}({argument}, {name}={word})"
    return f"since {kernel!r} declares none: {how} if that is true of it"
