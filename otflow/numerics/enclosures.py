r"""Tensors of intervals with derivatives: a function of x, enclosed on many boxes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from otflow.errors import NotEnclosed
from otflow.numerics.elementary import Ranges
from otflow.numerics.intervals import Interval, exact, multiply, outward, square

__all__ = ["OPERATIONS", "Enclosure", "NotEnclosed", "compose", "linear"]


class Enclosure(torch.Tensor):
    r"""A tensor that depends on x in boxes, enclosed with its derivatives in x.

    A function written with torch operations maps the enclosure of the points x of C
    boxes to an enclosure of its values there, of shape (C,). Round-off is enclosed too.
    Derivatives are those of Taylor arithmetic, one row for each
    :cite:p:`griewank2008evaluating`. At a kink the first derivative is the interval of
    all slopes nearby, and the second is infinite.

    Where a function may jump, as 1/t at 0, an end of a first derivative is infinite.
    It stays so in every function of it that is not constant there. So a function is
    continuous on a box, and the mean value theorem holds, where all ends of its first
    derivatives are finite. Where they are not, the enclosure of the values alone holds.

    An operation without an interval extension raises `~otflow.errors.NotEnclosed`, and
    so does a branch on a value, as in ``if x > 0``.

    Parameters
    ----------
    rows : Tensor, shape (2, r, ...)
        As below; `of` makes the enclosure of points.
    d, order : int
        As below.

    Attributes
    ----------
    rows : Tensor, shape (2, r, ...)
        Lower and upper ends. The rows are the value, then d first derivatives (order
        1), then the d (d + 1) / 2 second derivatives (order 2), of pairs i <= j.
    d : int
        Dimension of x.
    order : int
        0, 1 or 2.
    is_point : bool
        Whether this is x itself.

    See Also
    --------
    otflow.Functional.enclosed_variation : Returns a function of enclosures.

    Examples
    --------
    >>> import torch, otflow as of
    >>> box = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    >>> x = of.optimality.Enclosure.of(box[:1], box[1:], order=1)
    >>> y = ((x - 1).square() + x.sin()).sum(-1)
    >>> low, high = y.value
    >>> bool(low <= 0.0), bool(high >= 1.9)  # of a function between 0.7 and 1.91
    (True, True)
    """

    rows: Interval
    d: int
    order: int
    is_point: bool

    @staticmethod
    def __new__(cls, rows: Interval, d: int, order: int) -> Enclosure:
        """Return the enclosure of these rows."""
        made: Enclosure = torch.Tensor._make_wrapper_subclass(
            cls, rows.shape[2:], dtype=rows.dtype, device=rows.device
        )
        made.rows, made.d, made.order, made.is_point = rows, d, order, False
        return made

    @staticmethod
    def of(lower: Tensor, upper: Tensor, order: int) -> Enclosure:
        """Return the points x of boxes as an enclosure.

        Parameters
        ----------
        lower, upper : Tensor, shape (C, d)
            Corners, in float64.
        order : int
            0 for values alone, 1 or 2 for derivatives too.

        Returns
        -------
        Enclosure, shape (C, d)
            The points.
        """
        count, d = lower.shape
        rows = lower.new_zeros(2, row_count(d, order), count, d)
        rows[0, 0], rows[1, 0] = lower, upper
        if order:
            rows[:, 1 : d + 1] = torch.eye(d).to(lower)[:, None]
        points = Enclosure(rows, d, order)
        points.is_point = True
        return points

    @property
    def value(self) -> Interval:
        """The values, (2, ...)."""
        return self.rows[:, 0]

    @property
    def gradient(self) -> Interval:
        """The first derivatives, (2, d, ...)."""
        return self.rows[:, 1 : self.d + 1]

    @property
    def curvature(self) -> Interval:
        """The second derivatives of pairs i <= j, (2, d (d + 1) / 2, ...)."""
        return self.rows[:, self.d + 1 :]

    def like(self, rows: Interval) -> Enclosure:
        """Return an enclosure in the same x.

        Parameters
        ----------
        rows : Tensor, shape (2, r, ...)
            Lower and upper ends, row by row.

        Returns
        -------
        Enclosure
            With these rows.
        """
        return Enclosure(rows, self.d, self.order)

    def __repr__(  # type: ignore[override]
        self, *, tensor_contents: Any = None
    ) -> str:
        return f"Enclosure(shape={tuple(self.shape)}, d={self.d}, order={self.order})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Answer one operation of torch, or raise `NotEnclosed`."""
        name, kwargs = function.overloadpacket.__name__, kwargs or {}
        operation = OPERATIONS.get(name)
        if operation is None:
            msg = f"torch.{name} has no interval extension here"
            raise NotEnclosed(msg)
        if any(map(_is_complex, [*args, *kwargs.values()])):
            msg = f"torch.{name} of complex numbers has no interval extension here"
            raise NotEnclosed(msg)
        try:
            return operation(*args, **kwargs)
        except NotEnclosed:
            raise
        except Exception as error:
            # Of arguments that the extension does not take, or torch does not either.
            what = f"{type(error).__name__}: {error}"
            msg = f"torch.{name} has no interval extension of these arguments: {what}"
            raise NotEnclosed(msg) from error


OPERATIONS: dict[str, Callable[..., Any]] = {}
"""Interval extensions by the name of the operation in torch's own table (ATen)."""


def operation(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that enters a function in the table, under torch's names."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            OPERATIONS[name] = function
        return function

    return enter


def _is_complex(x: Any) -> bool:
    """Return whether an argument of an operation is, or holds, complex numbers."""
    if isinstance(x, (list, tuple)):
        return any(map(_is_complex, x))
    kind = x if isinstance(x, torch.dtype) else getattr(x, "dtype", None)
    return isinstance(x, complex) or (isinstance(kind, torch.dtype) and kind.is_complex)


def row_count(d: int, order: int) -> int:
    """Return the number of rows of an enclosure."""
    return (1, 1 + d, 1 + d + d * (d + 1) // 2)[order]


def pairs(d: int) -> tuple[list[int], list[int]]:
    """Return the pairs i <= j in the order of the rows of second derivatives."""
    found = [(i, j) for i in range(d) for j in range(i, d)]
    return [i for i, _ in found], [j for _, j in found]


def compose(x: Enclosure, ranges: Ranges) -> Enclosure:
    """Return f(x) for a function f of one number, of which the ranges are known."""
    found = ranges(x.value, x.order)
    blocks = [found[0][:, None]]
    if x.order:
        blocks.append(multiply(found[1][:, None], x.gradient))
    if x.order > 1:
        i, j = pairs(x.d)
        products = squares(x.gradient, x.gradient, i, j)
        bent = multiply(found[2][:, None], products)
        blocks.append(outward(bent + multiply(found[1][:, None], x.curvature)))
    return x.like(torch.cat(blocks, 1))


def squares(s: Interval, t: Interval, i: list[int], j: list[int]) -> Interval:
    """Return products of first derivatives s_i t_j; squares where they are alike."""
    products = multiply(s[:, i], t[:, j])
    if s is t:
        same = [k for k, (a, b) in enumerate(zip(i, j, strict=True)) if a == b]
        products[:, same] = square(s)
    return products


def product(x: Enclosure, y: Enclosure) -> Enclosure:
    """Return x y, entry by entry."""
    a, b = _broadcast(x, y)
    u, v, n = a[:, :1], b[:, :1], x.d + 1
    blocks = [multiply(u, v)]
    if x.order:
        blocks.append(outward(multiply(u, b[:, 1:n]) + multiply(v, a[:, 1:n])))
    if x.order > 1:
        i, j = pairs(x.d)
        ga, gb = a[:, 1:n], b[:, 1:n]
        mixed = multiply(ga[:, i], gb[:, j]) + multiply(ga[:, j], gb[:, i])
        straight = multiply(u, b[:, n:]) + multiply(v, a[:, n:])
        blocks.append(outward(outward(mixed, 2.0) + outward(straight, 2.0)))
    return x.like(torch.cat(blocks, 1))


def _broadcast(x: Enclosure, y: Enclosure) -> tuple[Interval, Interval]:
    n = max(x.ndim, y.ndim)
    return padded(x, n), padded(y, n)


def padded(x: Enclosure, n: int) -> Interval:
    """Return the rows with axes of length 1 before those of x, so that it has n."""
    ones = [1] * (n - x.ndim)
    return x.rows.reshape(*x.rows.shape[:2], *ones, *x.shape)


def linear(x: Enclosure, map_: Callable[[Tensor], Tensor]) -> Enclosure:
    """Return the same selection of entries in each row."""
    return x.like(map_(x.rows))


def constant(c: Tensor | float, like: Enclosure) -> Tensor:
    """Return a tensor or a number that does not depend on x, in the dtype of `like`."""
    c = torch.as_tensor(c, dtype=None if isinstance(c, Tensor) else torch.float64)
    if c.is_complex():
        msg = "complex numbers have no interval extension here"
        raise NotEnclosed(msg)
    c = c.to(like.rows)
    if bool(c.isnan().any()):
        # As a number it would be enclosed by a line, and a sigmoid of that by [0, 1].
        msg = "a constant that is NaN has no interval extension here"
        raise NotEnclosed(msg)
    return c


def constant_rows(c: Tensor | float, like: Enclosure) -> Interval:
    """Return the rows of a tensor that does not depend on x."""
    c = constant(c, like)
    rows = like.rows.new_zeros(2, row_count(like.d, like.order), *c.shape)
    rows[:, 0] = exact(c)
    return rows
