"""A measure made of parts, each of a representation of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import hypot, prod
from typing import Any, ClassVar, NoReturn, Self, TypeVar

import torch
from torch import Tensor

from otflow._arrays import cut, flattened
from otflow._graphs import attached
from otflow._moving import Move
from otflow._typing import ArrayLike, Value
from otflow._validation import check_kind
from otflow.errors import Diverged, Unsupported
from otflow.measures.base import Measure
from otflow.measures.named import named, number_of

__all__ = ["Parts"]

A = TypeVar("A")
T = TypeVar("T")
ASK_A_PART = (
    "ask a part of mu.parts, as mu['outer'] or mu[0], for its own; F of one part is "
    "functionals.OfPart('outer', F), and schemes.PartByPart steps the parts one by one"
)


@dataclass(frozen=True, eq=False, init=False, repr=False)
class Parts(Measure):
    r"""A measure made of parts, :math:`\mu = (\mu_1, \dots, \mu_K)`, each of its kind.

    Layers of a network, the strategies of several players, or the two marginals of a
    problem flow together: a functional sees all parts, and each part has its own
    representation. The metric is that of the product,

    .. math:: \langle u, v\rangle_\mu = \sum_k \langle u_k, v_k\rangle_{\mu_k},
        \qquad d^2(\mu, \nu) = \sum_k d_k^2(\mu_k, \nu_k) ,

    so that the velocity of F in a part is minus the Wasserstein gradient of F in that
    part, with the others fixed. A tangent is one flat tensor (N,); `views` gives the
    tangent of each part and `joined` makes one of them. The derivatives in all parts
    come from one backward pass.

    A functional of parts reads the parts that it needs, as in
    ``mu["outer"].expectation(f)``. The whole has neither points nor masses, and each
    verb that would need them raises `Unsupported`.

    Parameters
    ----------
    parts : mapping of str to Measure, or sequence of Measure
        The parts, of one dtype on one device, with their graphs. Those of a sequence
        are named "0", "1", and so on. A part may be made of parts itself.

    Attributes
    ----------
    parts : tuple of Measure
        The parts, in their order.
    names : tuple of str
        Their names.

    Raises
    ------
    ValueError
        If there is no part, a name is empty, or parts lie on several devices.
    TypeError
        If a part is no measure, a name is no text, or the dtypes of parts differ.

    See Also
    --------
    otflow.measures.Euclidean : A part that is a tensor of parameters.
    otflow.functionals.OfPart : A functional of one part.

    Notes
    -----
    `n` counts the points of all parts, and `dim` adds up their dimensions, as those of
    the product :math:`\mu_1 \otimes \dots \otimes \mu_K`. A first variation has the
    entries of all parts in turn, (n,). Memory and time are those of the parts.

    Examples
    --------
    >>> import torch, otflow as of
    >>> class Apart(of.Functional):  # the means of two laws should differ by 1
    ...     def value(self, mu):
    ...         means = [part.expectation(lambda x: x[:, 0]) for part in mu.parts]
    ...         return 0.5 * (means[0] - means[1] - 1).square()
    >>> left = of.Particles(torch.zeros(3, 1))
    >>> right = of.Gaussian(torch.zeros(1), torch.eye(1))
    >>> mu = of.measures.Parts({"left": left, "right": right})
    >>> run = of.flow(Apart(), mu, of.ExplicitEuler(), dt=0.25, steps=50)
    >>> run.final["left"].points[0], run.final["right"].mean
    (tensor([0.5000]), tensor([-0.5000]))
    """

    parts: tuple[Measure, ...]
    names: tuple[str, ...]

    cures: ClassVar[Mapping[str, str]] = {
        "density": ASK_A_PART,
        "sample": "draw from a part, as mu['outer'].sample(n, generator)",
        "array": "take the arrays of a part, as mu['outer'].points.numpy()",
        "distance": "take those of its parts, or mu.norm(mu.displacement_to(nu))",
        "geodesic": "go part by part, or along mu.push(mu.displacement_to(nu), t)",
    }
    as_particles: ClassVar[str] = "each part by a scheme of its own, schemes.PartByPart"
    _tangent_layout: ClassVar[str] = ": the tangents of all parts in turn, see `joined`"

    def __init__(self, parts: Mapping[str, Measure] | Sequence[Measure]) -> None:
        parts = named(parts)
        self._hold(parts=tuple(parts.values()), names=tuple(parts))

    # Parts ----------------------------------------------------------------------------

    def __getitem__(self, key: str | int) -> Measure:
        """Return a part by its name or its number.

        Raises
        ------
        KeyError, IndexError
            If there is no such part.
        TypeError
            If the key is no name and no number.
        """
        return self.parts[self.index(key)]

    def index(self, key: str | int) -> int:
        """Return the number of a part, from its name or its number, which may be < 0.

        Raises
        ------
        KeyError, IndexError
            If there is no such part.
        TypeError
            If the key is no name and no number.
        """
        return number_of(self.names, key)

    def __iter__(self) -> Iterator[Measure]:
        return iter(self.parts)

    def __len__(self) -> int:
        """Return the number of parts."""
        return len(self.parts)

    def __contains__(self, name: object) -> bool:
        """Return whether there is a part of this name."""
        return name in self.names

    def replace(self, /, **parts: Measure) -> Self:
        """Return the same measure with other parts in the places of those named.

        Raises
        ------
        KeyError
            If there is no part of that name.
        TypeError, ValueError
            As the constructor does.

        Examples
        --------
        >>> import torch, otflow as of
        >>> mu, nu = (of.Particles(torch.full((2, 1), x)) for x in (0.0, 1.0))
        >>> both = of.measures.Parts({"left": mu, "right": mu}).replace(right=nu)
        >>> both["right"].points[0]
        tensor([1.])
        """
        for name in parts:
            self.index(name)
        new = dict(zip(self.names, self.parts, strict=True)) | parts
        return self._changed(parts=tuple(named(new).values()))

    def with_part(self, key: str | int, part: Measure) -> Self:
        """Return the same with another part, the argument of a functional; unchecked.

        Parameters
        ----------
        key : str or int
            Name or number of the part.
        part : Measure
            The part; a graph stays alive, and its masses may have any sum.
        """
        k = self.index(key)
        return self._changed(parts=(*self.parts[:k], part, *self.parts[k + 1 :]))

    # Tangents -------------------------------------------------------------------------

    def views(self, tangent: Tensor) -> tuple[Tensor, ...]:
        """Return the tangents of the parts, views of one tangent of the whole.

        Parameters
        ----------
        tangent : Tensor, shape (N,)
            A tangent.

        Returns
        -------
        tuple of Tensor
            One for each part, of the shape that its `push` takes.

        Raises
        ------
        ValueError, TypeError
            If the shape, the dtype or the device of the tangent differs.
        """
        self._check_tangent(tangent)
        return cut(tangent, [part.tangent_shape for part in self.parts])

    def joined(self, tangents: Sequence[Tensor]) -> Tensor:
        """Return one tangent of the whole, made of those of the parts, (N,).

        Parameters
        ----------
        tangents : sequence of Tensor
            One for each part, of the shape that its `push` takes.

        Raises
        ------
        ValueError, TypeError
            If their number, or the shape, the dtype or the device of one differs.
        """
        if len(tangents) != len(self.parts):
            msg = (
                f"tangents must be one for each of {len(self.parts)} parts "
                f"{list(self.names)}, got {len(tangents)}; see `views`"
            )
            raise ValueError(msg)
        for name, part, own in zip(self.names, self.parts, tangents, strict=True):
            part._check_tangent(own, f"the tangent of the part {name!r}")
        return flattened(tangents)

    @property
    def tangent_shape(self) -> tuple[int, ...]:
        return (sum(prod(part.tangent_shape) for part in self.parts),)

    # Coordinates ----------------------------------------------------------------------

    @property
    def coordinates(self) -> Tensor:
        """The coordinates of all parts in turn, as one flat tensor."""
        return flattened([part.coordinates for part in self.parts])

    def with_coordinates(self, coordinates: Tensor) -> Self:
        """Return parts of other coordinates, unchecked; a graph stays alive."""
        own = self._coordinates_of_parts(coordinates)
        both = zip(self.parts, own, strict=True)
        return self._of(part.with_coordinates(c) for part, c in both)

    def tangent_of(self, partials: Tensor, value: Value) -> Tensor:
        """Return the tangents of all parts in turn."""
        own = self._coordinates_of_parts(partials)
        return flattened(
            [
                part.tangent_of(g, self._of_part(k, value, []))
                for k, (part, g) in enumerate(zip(self.parts, own, strict=True))
            ]
        )

    def _coordinates_of_parts(self, flat: Tensor) -> tuple[Tensor, ...]:
        return cut(flat, [tuple(part.coordinates.shape) for part in self.parts])

    def _of_part(self, k: int, value: Value, seen: list[bool]) -> Value:
        """Return the value as a function of one part, and note whether it sees it."""

        def own(part: Measure) -> Any:
            answer = value(self.with_part(k, part))
            seen.append(isinstance(answer, Tensor) and answer.requires_grad)
            return attached(answer, part.tensors())  # it need not see each part

        return own

    def constants(self) -> tuple[Tensor, ...]:
        return tuple(chain.from_iterable(part.constants() for part in self.parts))

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(chain.from_iterable(part.tensors() for part in self.parts))

    def mass_gradient(self, value: Value, x: ArrayLike | None = None) -> Tensor:
        """Return the first variations of all parts in turn, (n,).

        Raises
        ------
        Unsupported
            If the masses of a part are fixed, or if places `x` are given: each part
            has places of its own.
        """
        if x is not None:
            self._refuse("places", "space of its own for places x", ASK_A_PART)
        seen: list[bool] = []
        found = self._each(
            "mass gradient",
            range(len(self.parts)),
            lambda part, k: part.mass_gradient(self._of_part(k, value, seen)),
        )
        if not any(seen):  # a value that sees no part is a mistake, as elsewhere
            self.parts[0].mass_gradient(lambda p: value(self.with_part(0, p)))
        return torch.cat(found)

    # Moves ----------------------------------------------------------------------------

    def push(self, tangent: Tensor, dt: float) -> Self:
        views = self.views(tangent)
        return self._of(self._each("push", views, lambda part, v: part.push(v, dt)))

    def transport(self, tangent: Tensor, dt: float) -> Self:
        """Return the parts on fixed cells by `transport` and the others by `push`.

        Raises
        ------
        Unsupported
            If no part has fixed cells.
        """
        if not self.on_fixed_cells:
            return super().transport(tangent, dt)

        def move(part: Measure, v: Tensor) -> Measure:
            return part.transport(v, dt) if part.on_fixed_cells else part.push(v, dt)

        return self._of(self._each("transport", self.views(tangent), move))

    def diffuse(self, variance: float, generator: torch.Generator) -> Self:
        """Run the heat flow of every part, one after the other."""
        spread = [variance] * len(self.parts)
        moved = self._each("heat flow", spread, lambda p, s: p.diffuse(s, generator))
        return self._of(moved)

    def reweight(self, log_rate: Tensor, dt: float) -> Self:
        """Change the masses of every part, each to mass 1, by rates (n,)."""
        if not isinstance(log_rate, Tensor) or log_rate.shape != (self.n,):
            got = getattr(log_rate, "shape", type(log_rate).__name__)
            what = "the points of all parts in turn"
            msg = f"log_rate must have shape ({self.n},), {what}, got {got}"
            raise ValueError(msg)
        rates = cut(log_rate, [(part.n,) for part in self.parts])
        moved = self._each("masses to change", rates, lambda p, r: p.reweight(r, dt))
        return self._of(moved)

    def _of(self, parts: Iterable[Measure]) -> Self:
        """Return the measure of other parts, unchecked."""
        return self._changed(parts=tuple(parts))

    def _each(
        self, what: str, arguments: Iterable[A], call: Callable[[Measure, A], T]
    ) -> list[T]:
        """Return the answers of the parts; an error names its part."""
        found = []
        for name, part, own in zip(self.names, self.parts, arguments, strict=True):
            try:
                found.append(call(part, own))
            except Diverged as error:
                msg = f"part {name!r}: {error.args[0]}"
                raise Diverged(msg, measure=self) from error
            except Unsupported as error:
                cure = "use schemes.PartByPart, where each part has its own scheme"
                self._refuse(what, f"{what} in part {name!r}, as {error}", cure)
        return found

    def _mixture(self, other: Self, share: float) -> Self:
        self._check_names(other)
        both = zip(self.parts, other.parts, strict=True)
        return self._of(a.mix(b, share) for a, b in both)

    # Geometry -------------------------------------------------------------------------

    @property
    def flat(self) -> bool:  # type: ignore[override]
        """Whether the tangents of every part are."""
        return all(part.flat for part in self.parts)

    @property
    def on_fixed_cells(self) -> bool:
        """Whether the points of a part are fixed in space."""
        return any(part.on_fixed_cells for part in self.parts)

    @property
    def pulls_back(self) -> bool:
        """Whether every part does."""
        return all(part.pulls_back for part in self.parts)

    def inner(self, u: Tensor, v: Tensor) -> Tensor:
        both = zip(self.parts, self.views(u), self.views(v), strict=True)
        products = [part.inner(a, b) for part, a, b in both]
        return sum(products[1:], products[0])

    def displacement_to(self, other: Self) -> Tensor:
        """Return the displacements of all parts in turn.

        Raises
        ------
        ValueError
            If the names differ, or two parts have no natural coupling.
        """
        check_kind(other, Parts, "other")
        self._check_names(other)
        both = zip(self.parts, other.parts, strict=True)
        return flattened([a.displacement_to(b) for a, b in both])

    def change_to(self, other: Self) -> float:
        """Return the root of the sum of squares of the changes of all parts."""
        check_kind(other, Parts, "other")
        self._check_names(other)
        both = zip(self.parts, other.parts, strict=True)
        return hypot(*(a.change_to(b) for a, b in both))

    def pull_back(self, tangent: Tensor, gradient: Tensor) -> Tensor:
        both = zip(self.parts, self.views(tangent), self.views(gradient), strict=True)
        return flattened([part.pull_back(t, g) for part, t, g in both])

    # What the whole has not -----------------------------------------------------------

    @property
    def points(self) -> NoReturn:
        """Raise `Unsupported`: each part has points of its own."""
        self._refuse("points", "points of its own", ASK_A_PART)

    @property
    def weights(self) -> NoReturn:
        """Raise `Unsupported`: each part has masses of its own."""
        self._refuse("weights", "masses of its own", ASK_A_PART)

    # Numbers --------------------------------------------------------------------------

    @property
    def n(self) -> int:
        """Number of points of all parts."""
        return sum(part.n for part in self.parts)

    @property
    def dim(self) -> int:
        """Sum of the dimensions of the parts."""
        return sum(part.dim for part in self.parts)

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of all parts."""
        return self.parts[0].dtype

    @property
    def device(self) -> torch.device:
        """Device that holds all parts."""
        return self.parts[0].device

    def magnitudes(self, tangent: Tensor) -> Tensor:
        both = zip(self.parts, self.views(tangent), strict=True)
        return flattened([part.magnitudes(own) for part, own in both])

    def radius(self) -> float:
        return hypot(*(part.radius() for part in self.parts))

    def fault(self) -> str:
        """Return what is wrong with the numbers of a part; "" if nothing is."""
        if len(self.names) != len(self.parts) or len({*self.names}) != len(self.names):
            return f"{len(self.parts)} parts of the names {list(self.names)}"
        both = dict(zip(self.names, self.parts, strict=True))
        try:
            named(both)
        except (TypeError, ValueError) as error:
            return str(error)
        found = (
            f"{what} in part {k!r}" for k, p in both.items() if (what := p.fault())
        )
        return next(found, "")

    def __repr__(self) -> str:
        return f"Parts({', '.join(map('{}={!r}'.format, self.names, self.parts))})"

    def _retyped(self, before: Self, move: Move) -> dict[str, Any]:
        return {}  # the parts have seen to it

    def _check_names(self, other: Parts) -> None:
        if self.names != other.names:
            msg = (
                f"other has the parts {list(other.names)} and not {list(self.names)}; "
                f"give both the same names, in the same order"
            )
            raise ValueError(msg)
