r"""Symmetries of neurons: changes of parameters that keep the function.

A neuron is a row (a_1..a_m, w_1..w_d[, b]): output weights, input weights, bias.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from otflow._validation import (
    check_finite,
    check_kind,
    check_option,
    non_negative_int,
    positive,
    true_or_false,
)

__all__ = [
    "Even",
    "Periodic",
    "Product",
    "Scale",
    "Sign",
    "Symmetry",
    "Trivial",
    "of_activation",
]


def __dir__() -> list[str]:
    return __all__


class Symmetry(ABC):
    r"""A group that acts on neurons without changing what they compute.

    The distance between two neurons up to the symmetry is :math:`\min_g d(\theta,
    g\,\theta')`. If the group changes distances, :math:`\theta` and :math:`\theta'` are
    canonical representatives.

    A group is complete if any two neurons that compute the same are images of one
    another. The groups of `of_activation` are complete for neurons with output weights
    and input weights that are not all zero. A neuron without input weights is a
    constant, which many neurons compute.

    Examples
    --------
    >>> import otflow as of
    >>> isinstance(of.metrics.symmetries.Sign(), of.metrics.symmetries.Symmetry)
    True
    """

    def canonical(self, theta: Tensor) -> Tensor:
        """Return the canonical representative of each neuron; by default itself.

        Parameters
        ----------
        theta : Tensor, shape (N, p)
            Neurons.

        Returns
        -------
        Tensor, shape (N, p)
            Neurons that compute the same, in the graph of `theta`.
        """
        return theta

    @abstractmethod
    def orbit(self, theta: Tensor) -> list[Tensor]:
        """Return the images of canonical neurons under the isometries of the group.

        Of infinitely many isometries those suffice that can bring a canonical neuron
        nearest to another one.

        Parameters
        ----------
        theta : Tensor, shape (N, p)
            Canonical neurons.

        Returns
        -------
        list of Tensor, each of shape (N, p)
            The images, the neurons themselves first.
        """

    def __repr__(self) -> str:
        values = ", ".join(f"{k}={v!r}" for k, v in vars(self).items())
        return f"{type(self).__name__}({values})"


class Trivial(Symmetry):
    """No symmetry but permutation.

    Examples
    --------
    >>> import torch, otflow as of
    >>> len(of.metrics.symmetries.Trivial().orbit(torch.ones(1, 3)))
    1
    """

    def orbit(self, theta: Tensor) -> list[Tensor]:
        return [theta]


class Sign(Symmetry):
    r"""Odd activations (tanh, erf): :math:`(a, w, b) \sim (-a, -w, -b)`.

    The change of sign is an isometry of every norm, so each neuron is canonical.

    Examples
    --------
    >>> import torch, otflow as of
    >>> of.metrics.symmetries.Sign().orbit(torch.tensor([[1.0, 2.0]]))
    [tensor([[1., 2.]]), tensor([[-1., -2.]])]
    """

    def orbit(self, theta: Tensor) -> list[Tensor]:
        return [theta, -theta]


class Even(Symmetry):
    r"""Even activations (cos, a bump): :math:`(a, w, b) \sim (a, -w, -b)`.

    Parameters
    ----------
    outputs : int
        Number m of output weights at the head of each row.

    Attributes
    ----------
    outputs
        As above.

    Examples
    --------
    >>> import torch, otflow as of
    >>> of.metrics.symmetries.Even().orbit(torch.tensor([[1.0, 2.0]]))
    [tensor([[1., 2.]]), tensor([[ 1., -2.]])]
    """

    def __init__(self, outputs: int = 1) -> None:
        self.outputs = non_negative_int(outputs, "outputs", minimum=1)

    def orbit(self, theta: Tensor) -> list[Tensor]:
        a, v = _split(theta, self)
        return [theta, torch.cat([a, -v], dim=1)]


class Periodic(Symmetry):
    r"""Waves (sin, cos): half a turn of the bias is a change of sign.

    .. math:: (a, w, b) \sim (-a, w, b + \pi), \qquad
        (a, w, b) \sim (\mp a, -w, -b)

    with the sign - for sin, which is odd, and + for cos, which is even. Both are
    isometries. The canonical bias lies in :math:`[0, \pi)`. The last entry of a row is
    the bias; waves without a bias have `Sign` or `Even` alone.

    Parameters
    ----------
    outputs : int
        Number m of output weights at the head of each row.
    even : bool
        Whether the wave is cos; by default it is sin.

    Attributes
    ----------
    outputs, even
        As above.

    Notes
    -----
    Beside a canonical neuron only the six images are nearest to another one whose bias
    is at most half a turn away: the neuron and its mirror image, each turned by -1, 0
    and 1 half turns.

    Examples
    --------
    >>> import torch, otflow as of
    >>> neuron = torch.tensor([[1.0, 2.0, 0.5 + torch.pi]])
    >>> of.metrics.symmetries.Periodic().canonical(neuron)
    tensor([[-1.0000,  2.0000,  0.5000]])
    """

    def __init__(self, outputs: int = 1, *, even: bool = False) -> None:
        self.outputs = non_negative_int(outputs, "outputs", minimum=1)
        self.even = true_or_false(even, "even")

    def canonical(self, theta: Tensor) -> Tensor:
        """Return each neuron with a bias in one half turn."""
        _split(theta, self)
        return self._turned(theta, -(theta[:, -1:].detach() / math.pi).floor())

    def orbit(self, theta: Tensor) -> list[Tensor]:
        a, v = _split(theta, self)
        mirror = self.canonical(torch.cat([a if self.even else -a, -v], dim=1))
        turns = [theta.new_full((1, 1), k) for k in (0.0, -1.0, 1.0)]
        return [self._turned(y, k) for y in (theta, mirror) for k in turns]

    def _turned(self, theta: Tensor, turns: Tensor) -> Tensor:
        m = self.outputs
        sign = 1 - 2 * turns.remainder(2)
        parts = [sign * theta[:, :m], theta[:, m:-1], theta[:, -1:] + math.pi * turns]
        return torch.cat(parts, dim=1)


class Scale(Symmetry):
    r"""Positively homogeneous activations, :math:`\varphi(sz) = s^k\varphi(z)`.

    .. math:: (a, w, b) \sim (a / s^k, sw, sb), \qquad s > 0

    with degree k = 1 for relu, leaky relu and abs, and degree k for relu to the power
    k. Scaling changes distances, so the canonical representative is balanced:
    :math:`|a| = |(w, b)| / \sqrt k`, of the same product
    :math:`|a|\,|(w, b)|^k`; there :math:`|a|^2 + |(w, b)|^2` is least. A neuron that
    computes 0 (:math:`a = 0` or :math:`(w, b) = 0`) is represented by 0.

    Parameters
    ----------
    outputs : int
        Number m of output weights at the head of each row.
    degree : float
        Degree k > 0.

    Attributes
    ----------
    outputs, degree
        As above.

    Examples
    --------
    >>> import torch, otflow as of
    >>> of.metrics.symmetries.Scale().canonical(torch.tensor([[1.0, 4.0]]))
    tensor([[2., 2.]])
    """

    def __init__(self, outputs: int = 1, degree: float = 1.0) -> None:
        self.outputs = non_negative_int(outputs, "outputs", minimum=1)
        self.degree = positive(degree, "degree")

    def canonical(self, theta: Tensor) -> Tensor:
        r"""Return each neuron balanced, :math:`|a| = |(w, b)| / \sqrt k`.

        Neurons may have any finite size: no norm or ratio overflows or underflows.

        Raises
        ------
        ValueError
            If there are no input weights.
        NonFinite
            If a balanced weight exceeds the range of the dtype.
        """
        a, w = _split(theta, self)
        dead = ((a == 0).all(dim=1) | (w == 0).all(dim=1))[:, None]
        # Directions times powers of |a| and |w|: the ratio |w| / |a| may overflow.
        (u, p), (v, q) = (_polar(y.masked_fill(dead, 1.0)) for y in (a, w))
        k = self.degree
        if k == 1:
            size_of_a = size_of_w = (p, q)
        else:
            # |a'|^(k + 1) k^(k/2) = |a| |w|^k, and p, q are the roots of |a| and |w|.
            share, root = 2 / (k + 1), k**0.5
            size_of_w = (p**share * root ** (1 / (k + 1)), q ** (k * share))
            size_of_a = (size_of_w[0] / root, size_of_w[1])
        parts = [u * size_of_a[0] * size_of_a[1], v * size_of_w[1] * size_of_w[0]]
        balanced = torch.cat(parts, dim=1).masked_fill(dead, 0.0)
        check_finite(balanced, "a balanced weight")
        return balanced

    def orbit(self, theta: Tensor) -> list[Tensor]:
        return [theta]


class Product(Symmetry):
    """Symmetries that hold together and commute, such as `Scale` and `Even` for abs.

    Parameters
    ----------
    *parts : Symmetry
        The symmetries.

    Attributes
    ----------
    parts : tuple of Symmetry
        As above.

    Examples
    --------
    >>> import torch, otflow as of
    >>> both = of.metrics.symmetries.of_activation("abs")
    >>> both.orbit(both.canonical(torch.tensor([[1.0, 4.0]])))
    [tensor([[2., 2.]]), tensor([[ 2., -2.]])]
    """

    def __init__(self, *parts: Symmetry) -> None:
        for part in parts:
            check_kind(part, Symmetry, "a part", cure="give Product(Scale(), Even())")
        self.parts = parts

    def canonical(self, theta: Tensor) -> Tensor:
        for part in self.parts:
            theta = part.canonical(theta)
        return theta

    def orbit(self, theta: Tensor) -> list[Tensor]:
        images = [theta]
        for part in self.parts:
            images = [image for each in images for image in part.orbit(each)]
        return images

    def __repr__(self) -> str:
        return f"Product({', '.join(map(repr, self.parts))})"


def _split(theta: Tensor, symmetry: Scale | Even | Periodic) -> tuple[Tensor, Tensor]:
    """Return the output weights and the rest, which must not be empty."""
    m = symmetry.outputs
    if theta.shape[1] <= m:
        msg = (
            f"neurons of {theta.shape[1]} parameters have no input weights beside "
            f"{m} output weights; check {type(symmetry).__name__}(outputs=...)"
        )
        raise ValueError(msg)
    return theta[:, :m], theta[:, m:]


def _polar(y: Tensor) -> tuple[Tensor, Tensor]:
    """Return directions of rows that are not zero, and the roots of their norms."""
    # Divided by the largest entry first: then no square overflows or is lost.
    largest = y.detach().abs().amax(dim=1, keepdim=True)
    y = y / largest
    norms = y.norm(dim=1, keepdim=True)
    return y / norms, norms.sqrt() * largest.sqrt()


ODD = (
    *("tanh", "erf", "atan", "arctan", "asinh", "arcsinh", "sinh", "softsign"),
    *("hardtanh", "tanhshrink", "softshrink", "hardshrink"),
)
# For GELU, SiLU and softplus phi(z) - phi(-z) is linear, for sigmoid the sum is
# constant, for relu6 phi(z) + phi(6 - z) is: such laws tie several neurons, not one.
NONE = (
    *("sigmoid", "logsigmoid", "softplus", "gelu", "silu", "swish", "mish", "elu"),
    *("selu", "celu", "relu6", "hardsigmoid", "hardswish"),
)
# The parity of an even function; the other one is odd.
EVEN = 1
HOMOGENEOUS = {"relu": 1.0, "leaky_relu": 1.0, "prelu": 1.0, "relu2": 2.0, "relu3": 3.0}


def _known(outputs: int, bias: bool) -> dict[str, Symmetry]:
    """Return the groups of the known activations, by name."""
    odd, even, scale = Sign(), Even(outputs), Scale(outputs)
    return {
        **{name: Scale(outputs, degree) for name, degree in HOMOGENEOUS.items()},
        **dict.fromkeys(ODD, odd),
        **dict.fromkeys(NONE, Trivial()),
        "gaussian": even,
        "sin": Periodic(outputs) if bias else odd,
        "cos": Periodic(outputs, even=True) if bias else even,
        "abs": Product(scale, even),
        "square": Product(Scale(outputs, 2.0), even),
        "identity": Product(scale, odd),
        "linear": Product(scale, odd),
    }


def of_activation(activation: Any, outputs: int = 1, *, bias: bool = True) -> Symmetry:
    r"""Return the symmetry of one neuron :math:`a\,\varphi(w\cdot x + b)`.

    .. list-table::
       :header-rows: 1

       * - Activation
         - Group
       * - ``relu``, ``leaky_relu``, ``prelu``; ``relu2``, ``relu3`` (powers)
         - `Scale`, of degree 1, 2, 3
       * - ``tanh``, ``erf``, ``atan``, ``asinh``, ``sinh``, ``softsign``,
           ``hardtanh``, ``tanhshrink``, ``softshrink``, ``hardshrink``
         - `Sign`
       * - ``gaussian``, :math:`e^{-z^2}` or any width
         - `Even`
       * - ``sin``, ``cos``
         - `Periodic`; without a bias `Sign` and `Even`
       * - ``abs``, ``square``
         - `Product` of `Scale` and `Even`
       * - ``identity``, ``linear``
         - `Product` of `Scale` and `Sign`
       * - ``sigmoid``, ``softplus``, ``gelu``, ``silu``, ``mish``, ``elu``, ``selu``,
           ``celu``, ``relu6``, ``logsigmoid``, ``hardsigmoid``, ``hardswish``
         - `Trivial`

    For GELU, SiLU and softplus :math:`\varphi(z) - \varphi(-z)` is linear. That ties
    several neurons to each other, and is no symmetry of a single one.

    Parameters
    ----------
    activation : str or callable
        A name, a unit of `otflow.meanfield`, a function of torch or a module of
        ``torch.nn``. A callable is known by its name, and evaluated: its group is
        checked at some places. Parameters may give it more symmetries, which are
        found at arguments from 1e-30 to 1e30: ``LeakyReLU(-1)`` is the modulus,
        ``LeakyReLU(1)`` the identity, ``ELU(0)`` the relu. Or a
        `~otflow.meanfield.TwoLayer`, which tells `outputs` and `bias` itself.
    outputs : int
        Number of output weights at the head of each row. It is not checked against
        neurons: a wrong number gives the symmetry of other networks.
    bias : bool
        Whether the last entry of a row is a bias.

    Returns
    -------
    Symmetry
        The group, complete for neurons that are not constant.

    Raises
    ------
    ValueError
        If the activation is unknown, or does not have the group of its name, as
        ``Hardtanh(-1, 2)``, or does not act on each entry, as ``PReLU(3)``.
    TypeError
        If it is a class.

    Examples
    --------
    >>> import torch, otflow as of
    >>> of.metrics.symmetries.of_activation("relu", outputs=10)
    Scale(outputs=10, degree=1.0)
    >>> of.metrics.symmetries.of_activation(torch.nn.GELU())
    Trivial()
    """
    if isinstance(activation, type):
        msg = f"activation must be a function or a name; write {activation.__name__}()"
        raise TypeError(msg)
    if all(hasattr(activation, name) for name in ("activation", "outputs", "bias")):
        network = activation  # this floor lies below that of networks
        return of_activation(
            network.activation, network.outputs or 1, bias=network.bias
        )
    known = _known(outputs, true_or_false(bias, "bias"))
    if isinstance(activation, str) or not callable(activation):
        return known[check_option(activation, "activation", known)]
    name = _name_of(activation)
    spelled = {key.replace("_", ""): key for key in known}
    key = spelled.get(name.lower().replace("_", ""))
    if key is None:
        msg = (
            f"the symmetry of the activation {name} is not known; name one that has "
            f"the same group, e.g. of_activation('tanh') for an odd function, or "
            f"'gelu' for one without symmetry"
        )
        raise ValueError(msg)
    group = known[key]
    try:
        holds, more = _holds(_known(1, bias)[key], activation), _laws(activation)
    except Exception as error:
        msg = (
            f"{name} does not act on each entry of a tensor ({error}); name the "
            f"activation, of_activation({key!r})"
        )
        raise ValueError(msg) from error
    if not holds:
        msg = (
            f"{activation!r} does not have the symmetry of {key}, {group!r}; give the "
            f"group itself, e.g. symmetries.Trivial() if it has none"
        )
        raise ValueError(msg)
    parity, degree = more
    # With some parameters there are more symmetries: LeakyReLU(-1) is the modulus.
    if degree is None and (parity is None or not isinstance(group, Trivial)):
        return group
    parts: list[Symmetry] = [] if degree is None else [Scale(outputs, degree)]
    if parity is not None:
        parts.append(Even(outputs) if parity == EVEN else Sign())
    return parts[0] if len(parts) == 1 else Product(*parts)


def _name_of(activation: Any) -> str:
    for attribute in ("name", "__name__"):
        name = getattr(activation, attribute, None)
        if isinstance(name, str):
            return name
    return type(activation).__name__


def _like(activation: Any) -> Tensor:
    """Return a tensor of the dtype and on the device that an activation takes."""
    parameters = getattr(activation, "parameters", lambda: iter(()))()
    return next(parameters, torch.zeros(1, dtype=torch.float64))


def _laws(activation: Any) -> tuple[int | None, float | None]:
    """Return the parity and the degree that an activation shows at all sizes."""
    like = _like(activation)
    z = torch.logspace(-30, 30, 601, dtype=torch.float64).to(like)
    z = torch.cat([z, torch.zeros_like(z[:1])])

    def same(a: Tensor, b: Tensor) -> bool:
        return bool(((a == b) | ((a - b).abs() <= 64 * eps * b.abs())).all())

    with torch.no_grad():
        # Copies, for activations that work in place.
        right, left = activation(z.clone()), activation(-z)
        eps = torch.finfo(right.dtype).eps
        if not bool((right != 0).any() or (left != 0).any()):
            return None, None  # all neurons compute 0
        parity = next((p for p in (EVEN, -EVEN) if same(left, p * right)), None)
        for degree in (1.0, 2.0, 3.0):
            power = z**degree
            if same(right, right[300] * power) and same(left, left[300] * power):
                return parity, degree
    return parity, None


def _holds(group: Symmetry, activation: Any) -> bool:
    """Return whether images of some neurons with one input compute the same."""
    like = _like(activation)
    k = torch.arange(1, 33, dtype=like.dtype, device=like.device)
    # Multiples of irrational numbers, modulo 1, are spread evenly.
    theta = torch.stack([(k * root).remainder(1) for root in (2**0.5, 3**0.5, 5**0.5)])
    theta = (6 * theta - 3).T
    x = torch.linspace(-3, 3, 25, dtype=like.dtype, device=like.device)

    def computed(theta: Tensor) -> Tensor:
        a, w, b = theta.T[:, :, None]
        value: Tensor = a * activation(w * x + b)
        return value

    with torch.no_grad():
        images = group.orbit(group.canonical(theta))
        value, eps = computed(theta), torch.finfo(activation(x.clone()).dtype).eps
        size = 64 * eps * float(value.abs().max())
        return all(float((computed(y) - value).abs().max()) <= size for y in images)
