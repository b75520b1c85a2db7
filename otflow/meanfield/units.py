"""Neuron nonlinearities with their slopes in closed form."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from otflow._autodiff import entrywise_derivative
from otflow._claims import forget
from otflow._validation import check_map, check_option
from otflow.errors import InvalidFunctional

__all__ = ["UNITS", "Elementwise", "Unit", "applied", "as_activation", "is_unit"]

Elementwise: TypeAlias = Callable[[Tensor], Tensor]
"""A function applied entry by entry, differentiable by torch."""


# Names on which no value of a unit depends.
HARMLESS = frozenset(("homogeneous", "name", "slope_from_value"))


def _slope(self: Elementwise, z: Tensor, value: Tensor, out: Tensor) -> Tensor:  # noqa: ARG001  # its signature is that of `slope`
    """Write the slope by autodiff: that of a parent is one of other values."""
    return out.copy_(entrywise_derivative(self, z.clone()))


class Unit(ABC):
    r"""An elementwise nonlinearity :math:`\varphi` with its slope :math:`\varphi'`.

    A subclass states both, and `meanfield.Risk` evaluates velocities without autodiff.
    An activation that is a plain function needs no slope; autodiff differentiates it.

    Attributes
    ----------
    name : str
        Name of the activation in texts.
    homogeneous : bool
        Whether :math:`\varphi(cz) = c\,\varphi(z)` for c > 0, so that :math:`\varphi(z)
        = z\,\varphi'(z)`, as for relu. A network tries a declaration of your own at
        some places, and raises InvalidFunctional where it is false.
    slope_from_value : bool
        Whether `slope` reads the value alone and not z, as those of relu and tanh do.
        A pass over data then keeps one of the two. A network tries that as well.

    Examples
    --------
    >>> import torch, otflow as of
    >>> class Softplus(of.meanfield.Unit):
    ...     name = "softplus"
    ...
    ...     def __call__(self, z):
    ...         return torch.nn.functional.softplus(z)
    ...
    ...     def slope(self, z, value, out):
    ...         return torch.sigmoid(z, out=out)
    >>> of.meanfield.TwoLayer(Softplus())
    TwoLayer(Softplus())
    """

    name: ClassVar[str]
    homogeneous: ClassVar[bool] = False
    slope_from_value: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        """Forget what a parent knows of its values, if the subclass changes these."""
        super().__init_subclass__(**options)
        # That a slope reads no z is said of that slope.
        forget(cls, {"slope_from_value": False}, among=["__call__", "slope"])
        base = {"evaluate": vars(Unit)["evaluate"], "slope": _slope}
        forget(cls, base, among=["__call__"])
        forget(cls, {"homogeneous": False}, HARMLESS)

    @abstractmethod
    def __call__(self, z: Tensor) -> Tensor:
        r"""Return :math:`\varphi(z)`, differentiable by torch.

        Parameters
        ----------
        z : Tensor
            Arguments, of any shape.

        Returns
        -------
        Tensor
            Values, of the shape and dtype of `z`.
        """

    @abstractmethod
    def slope(self, z: Tensor, value: Tensor, out: Tensor) -> Tensor:
        r"""Write :math:`\varphi'(z)` into `out` and return it.

        Parameters
        ----------
        z : Tensor
            Arguments.
        value : Tensor
            The values ``self(z)``.
        out : Tensor
            Where to write; it may be the tensor `z` or `value`.

        Returns
        -------
        Tensor
            `out`.
        """

    def evaluate(self, z: Tensor, out: Tensor) -> Tensor:
        r"""Write :math:`\varphi(z)` into `out` and return it.

        Parameters
        ----------
        z : Tensor
            Arguments.
        out : Tensor
            Where to write; it may be the tensor `z`.

        Returns
        -------
        Tensor
            `out`.
        """
        return out.copy_(applied(self, z))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Relu(Unit):
    r""":math:`\varphi(z) = \max(z, 0)`, with slope 0 at 0."""

    name = "relu"
    homogeneous = True
    slope_from_value = True

    def __call__(self, z: Tensor) -> Tensor:
        return torch.relu(z)

    def evaluate(self, z: Tensor, out: Tensor) -> Tensor:
        return torch.clamp(z, min=0, out=out)

    def slope(self, z: Tensor, value: Tensor, out: Tensor) -> Tensor:
        return torch.sign(value, out=out)


class Tanh(Unit):
    r""":math:`\varphi = \tanh`, with slope :math:`1 - \varphi^2`."""

    name = "tanh"
    slope_from_value = True

    def __call__(self, z: Tensor) -> Tensor:
        return torch.tanh(z)

    def evaluate(self, z: Tensor, out: Tensor) -> Tensor:
        return torch.tanh(z, out=out)

    def slope(self, z: Tensor, value: Tensor, out: Tensor) -> Tensor:
        return torch.mul(value, value, out=out).neg_().add_(1)


class Sigmoid(Unit):
    r""":math:`\varphi(z) = 1/(1 + e^{-z})`, with slope :math:`\varphi - \varphi^2`."""

    name = "sigmoid"
    slope_from_value = True

    def __call__(self, z: Tensor) -> Tensor:
        return torch.sigmoid(z)

    def evaluate(self, z: Tensor, out: Tensor) -> Tensor:
        return torch.sigmoid(z, out=out)

    def slope(self, z: Tensor, value: Tensor, out: Tensor) -> Tensor:
        return torch.addcmul(value, value, value, value=-1, out=out)


class Erf(Unit):
    r""":math:`\varphi = \mathrm{erf}`, of slope :math:`\frac{2}{\sqrt\pi}e^{-z^2}`."""

    name = "erf"

    def __call__(self, z: Tensor) -> Tensor:
        return torch.erf(z)

    def evaluate(self, z: Tensor, out: Tensor) -> Tensor:
        return torch.erf(z, out=out)

    def slope(self, z: Tensor, value: Tensor, out: Tensor) -> Tensor:
        # Subnormal numbers make exp and later products ten times slower. So the slope
        # has a lower bound, 1e-31 in single precision.
        finfo = torch.finfo(z.dtype)
        lowest = math.log(finfo.tiny / finfo.eps)
        exponent = torch.mul(z, z, out=out).neg_().clamp_(min=lowest)
        return exponent.exp_().mul_(2 / math.sqrt(math.pi))


UNITS: Mapping[str, Unit] = MappingProxyType(
    {unit.name: unit for unit in (Relu(), Tanh(), Sigmoid(), Erf())}
)
"""The built-in units, by name."""


def applied(activation: Elementwise, z: Tensor) -> Tensor:
    """Return the values of an activation; InvalidFunctional if their shape differs."""
    what = "an activation acts entry by entry: it"
    h = activation(z)
    return check_map(h, z, z.shape, what, "arguments z", "torch.tanh is one")


def is_unit(activation: Elementwise, *names: str) -> bool:
    """Return whether an activation is a built-in unit of one of these names.

    A copy of it is, and one that was pickled.
    """
    return any(type(activation) is type(UNITS[name]) for name in names)


def as_activation(activation: str | Elementwise) -> Elementwise:
    """Return the built-in unit of that name, or the user's own function."""
    if isinstance(activation, type):
        msg = f"activation must be a function; write {activation.__name__}()"
        raise TypeError(msg)
    if not isinstance(activation, str) and callable(activation):
        if isinstance(activation, Unit) and activation.homogeneous:
            _check_homogeneous(activation)
        if isinstance(activation, Unit) and activation.slope_from_value:
            _check_slope(activation)
        return activation
    other = "any function of tensors is one too, as torch.nn.functional.gelu itself"
    return UNITS[check_option(activation, "activation", UNITS, also=other)]


def _check_homogeneous(unit: Unit) -> None:
    """Raise InvalidFunctional where twice the argument is not twice the value."""
    z = torch.tensor([-3.0, -1.0, -0.2, 0.5, 1.0, 7.0], dtype=torch.float64)
    twice, double = 2 * unit(z), unit(2 * z)
    # A factor of a unit may be rounded to single precision.
    wrong = (twice - double).abs() > 1e-5 * (twice.abs() + double.abs())
    if bool(wrong.any()):
        k = int(wrong.nonzero()[0])
        msg = (
            f"{unit!r} is declared homogeneous, but phi({2 * float(z[k]):g}) = "
            f"{float(double[k]):.6g} is not twice phi({float(z[k]):g}) = "
            f"{float(twice[k]) / 2:.6g}; leave homogeneous = False, and use "
            f"meanfield.VariationBall in place of PathBall"
        )
        raise InvalidFunctional(msg)


def _check_slope(unit: Unit) -> None:
    """Raise InvalidFunctional where a slope reads the argument against its word."""
    z = torch.tensor([-3.0, -1.0, -0.2, 0.5, 1.0, 7.0], dtype=torch.float64)
    value = unit(z)
    slope = unit.slope(z.clone(), value.clone(), torch.empty_like(z))
    other = unit.slope(value.clone(), value.clone(), torch.empty_like(z))
    if not torch.equal(slope, other):
        k = int((slope != other).nonzero()[0])
        msg = (
            f"{unit!r} declares slope_from_value, but its slope at {float(z[k]):g} "
            f"changes from {float(slope[k]):.6g} to {float(other[k]):.6g} where z is "
            f"replaced by the value; leave slope_from_value = False"
        )
        raise InvalidFunctional(msg)
