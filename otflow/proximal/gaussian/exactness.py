"""Proofs that the quadrature of a Gaussian integrates a functional exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from otflow._typing import Ground
from otflow.functionals import (
    Entropy,
    Functional,
    Interaction,
    OfExpectation,
    Potential,
    PowerEntropy,
    SquaredDistanceTo,
)
from otflow.functionals.inheritance import redefined
from otflow.kernels import Gaussian as GaussianKernel
from otflow.kernels import Kernel, PairKernel, Quadratic
from otflow.measures import Gaussian
from otflow.measures.gaussian.polar import MOST_DEGREE
from otflow.proximal.gaussian.polynomials import (
    CASTS,
    CONSTANT,
    DIVISIONS,
    LARGEST,
    LINEAR,
    OPERANDS,
    PRODUCTS,
    SHAPES,
    SHAPING,
    TURNED,
)

__all__ = [
    "integrates_exactly",
    "polynomial_degree",
]

METHODS = LINEAR | LARGEST | PRODUCTS | CASTS | CONSTANT | DIVISIONS | {"square", "pow"}
# Highest exponent of a power. No rule integrates a higher degree: Gauss and Hermite
# have at most 100 nodes per axis.
HIGHEST = 200
# Integers and half precisions round values: a result of theirs is no polynomial.
PRECISE = (torch.float32, torch.float64)


class _NotShownError(Exception):
    """A function is not shown to be a polynomial."""


class _Polynomial:
    """A tensor of polynomials of bounded degree in the coordinates of x.

    It takes the place of a tensor in a ground function. It accepts only operations that
    lead from polynomials to polynomials. Any other operation ends the proof, and so
    does a look at a value.
    """

    def __init__(self, value: Tensor, degree: int) -> None:
        self._value, self._degree = value, degree

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> _Polynomial:
        name = getattr(function, "__name__", "")
        # An operator such as __radd__ is read as its function. A single underscore
        # stays: add_ writes into a tensor.
        if name.startswith("__"):
            name = name.strip("_")
            name = name[1:] if name in TURNED else name
        return cls._apply(name, function, args, kwargs or {})

    @classmethod
    def _apply(
        cls,
        name: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> _Polynomial:
        # The derivatives at the nodes would leave out what runs without gradient.
        if not torch.is_grad_enabled():
            raise _NotShownError(name)
        cls._check_keywords(name, args, kwargs)
        degrees = [cls._degree_of(a) for a in (*args, *kwargs.values())]
        if name in LINEAR or name in LARGEST:
            degree = max(degrees)
        elif name in PRODUCTS:
            degree = sum(degrees)
        elif name in CASTS:
            degree = degrees[0]
        elif name in CONSTANT:
            degree = 0
        elif name == "square":
            degree = 2 * max(degrees)
        elif name == "pow" and args[1] in range(HIGHEST):  # 2.0 is in range(3)
            degree = int(args[1]) * degrees[0]
        # A quotient is a polynomial where the divisor is a constant.
        elif name in DIVISIONS and not degrees[1]:
            degree = degrees[0]
        else:
            raise _NotShownError(name)
        # The value is formed too: shapes and dtypes must be those of a true run.
        plain = [cls._plain(a) for a in args]
        value = function(*plain, **{k: cls._plain(a) for k, a in kwargs.items()})
        if not isinstance(value, Tensor) or value.dtype not in PRECISE:
            raise _NotShownError(name)
        return cls(value, degree)

    @classmethod
    def _check_keywords(
        cls, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Raise on a keyword that is not known to keep a polynomial a polynomial."""
        for key, value in kwargs.items():
            operand = key in OPERANDS and name in LINEAR | LARGEST | PRODUCTS
            if not operand and (key not in SHAPING or cls._degree_of(value)):
                raise _NotShownError(name)
            if key == "dtype" and name not in CASTS | CONSTANT:
                raise _NotShownError(name)
        # view(dtype) reads bits. In a product of a list of tensors the degrees add up,
        # while `_degree_of` takes their maximum.
        kinds = any(isinstance(a, torch.dtype) for a in args) and name not in CASTS
        listed = any(isinstance(a, (tuple, list)) and cls._degree_of(a) for a in args)
        if kinds or (listed and name in PRODUCTS):
            raise _NotShownError(name)

    @classmethod
    def _degree_of(cls, x: Any) -> int:
        if isinstance(x, _Polynomial):
            return x._degree
        if isinstance(x, (tuple, list)):
            return max((cls._degree_of(y) for y in x), default=0)
        return 0

    @classmethod
    def _plain(cls, x: Any) -> Any:
        if isinstance(x, _Polynomial):
            return x._value
        if isinstance(x, (tuple, list)):
            return type(x)(cls._plain(y) for y in x)
        return x

    def __getattr__(self, name: str) -> Any:
        if name in SHAPES:
            return getattr(self._value, name)
        if name in ("T", "mT"):
            return _Polynomial(getattr(self._value, name), self._degree)
        if name in METHODS:
            method = getattr(Tensor, name)
            return lambda *a, **k: self._apply(name, method, (self, *a), k)
        raise _NotShownError(name)

    def size(self, *args: int) -> Any:
        return self._value.size(*args)

    def __len__(self) -> int:
        return len(self._value)

    def __getitem__(self, index: Any) -> _Polynomial:
        if isinstance(index, _Polynomial):
            raise _NotShownError
        return _Polynomial(self._value[index], self._degree)

    def __neg__(self) -> _Polynomial:
        return _Polynomial(-self._value, self._degree)

    def _look(self, *_: Any) -> NoReturn:
        raise _NotShownError

    __bool__ = __float__ = __int__ = __index__ = __array__ = _look
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _look
    __hash__ = _look


def _operator(name: str, function: Callable[..., Any], turned: bool) -> Any:
    def operator(self: _Polynomial, other: Any) -> _Polynomial:
        args = (other, self) if turned else (self, other)
        return _Polynomial._apply(name, function, args, {})

    return operator


for _name in ("add", "sub", "mul", "div", "pow", "matmul"):
    _word = "truediv" if _name == "div" else _name
    for _turned in (False, True):
        _method = _operator(_name, getattr(torch, _name), _turned)
        setattr(_Polynomial, f"__{'r' * _turned}{_word}__", _method)


def polynomial_degree(f: Ground, like: Tensor) -> int | None:
    """Return an upper bound on the degree of a ground function; None if none is shown.

    The function runs on an object that accepts only operations of polynomials and
    counts the degree. The object stands for points (2, d), of the dtype and device of
    `like`.

    Parameters
    ----------
    f : callable
        The ground function, from points (n, d) to values.
    like : Tensor, shape (d,)
        A point.

    Returns
    -------
    int or None
        The bound. None says that no proof was found, not that f is no polynomial.

    Examples
    --------
    >>> import torch
    >>> from otflow.proximal.gaussian.exactness import polynomial_degree
    >>> x = torch.zeros(3)
    >>> polynomial_degree(lambda x: 0.5 * (x - 1).square().sum(-1), x)
    2
    >>> polynomial_degree(lambda x: x.abs().sum(-1), x) is None
    True
    """
    # Two points, so that no axis of the batch is taken for a single one. Their values
    # do not matter: a look at them ends the proof.
    points = torch.ones(2, like.shape[-1], dtype=like.dtype, device=like.device)
    try:
        with torch.enable_grad():
            found = f(_Polynomial(points, 1))  # type: ignore[arg-type]
    # A user's function may raise anything on an object that is no tensor.
    except Exception:
        return None
    if isinstance(found, _Polynomial):
        return found._degree
    return 0 if isinstance(found, Tensor) else None


def integrates_exactly(F: Functional, mu: Gaussian) -> bool:
    r"""Whether the nodes of `mu` are shown to integrate F exactly.

    Entropy, powers of the density, the distance to a Gaussian and Gaussian kernels have
    closed forms. Potentials,
    kernels and features must be shown to be polynomials of a degree that the rule
    integrates exactly.
    """

    def fits(f: Ground, most: int = mu.degree) -> bool:
        degree = polynomial_degree(f, mu.mean)
        return degree is not None and degree <= most

    for c, term in F.terms():
        # Terms with factor 0 are no part of F, whatever they are.
        known = c == 0 or isinstance(term, (Entropy, PowerEntropy, SquaredDistanceTo))
        if redefined(term) is not None:
            known = c == 0
        elif isinstance(term, Potential):
            known = known or fits(term.V)
        elif isinstance(term, Interaction):
            # Not `isinstance`: a subclass may have another profile.
            known = known or type(term.W) in (GaussianKernel, Quadratic)
            W = term.W
            if isinstance(W, Kernel) or not isinstance(W, PairKernel):
                known = known or fits(W, min(mu.degree, MOST_DEGREE))
        elif isinstance(term, OfExpectation):
            known = known or fits(term.Phi)
        if not known:
            return False
    return True
