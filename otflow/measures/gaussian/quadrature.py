"""White nodes for a standard Gaussian; energies from logarithms of densities."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from otflow._autodiff import check_finite
from otflow._graphs import kept
from otflow._memory import check_memory
from otflow._typing import Ground
from otflow._validation import check_energy, non_negative_int
from otflow.errors import NonFinite
from otflow.numerics.quadrature import product_rule

__all__ = [
    "Nodes",
    "finer_nodes",
    "gaussian_nodes",
    "integrate_energy",
    "scattered_nodes",
]

# Up to this dimension a tensor rule is affordable; its nodes per axis. Even numbers:
# no node at the mean, where a kernel's kink or pole may be.
TENSOR_DIM = 3
PER_AXIS = {1: 32, 2: 20, 3: 12}

# Nodes of the low-discrepancy rule above it: twice a power of two, and at least
# PER_DIMENSION for each dimension. Whitening turns d by d second moments into the
# identity; with fewer nodes than that it would bend the nodes out of shape.
LOW_DISCREPANCY = 2048
PER_DIMENSION = 8
# Dimensions for which Sobol's sequence is tabulated.
MAX_DIM = 21201
# Half the width of a trapezoidal rule: the mass beyond is about exp(-50).
HALF_WIDTH = 10.0
# Beyond it the exponential, or its inverse, leaves the normal numbers of float64.
LARGEST_LOG = 708.0


@dataclass(frozen=True)
class Nodes:
    r"""Nodes z_k and masses with :math:`\sum_k w_k f(z_k) \approx E f(z)`.

    Their mean is zero and their second moment the identity, to round-off.

    Parameters
    ----------
    points : Tensor, shape (k, d)
        Nodes, float64, on the CPU.
    weights : Tensor, shape (k,)
        Masses, of sum 1.
    rule : str
        Name of the rule, number of nodes, degree of exactness.
    degree : int
        That degree: in each coordinate for d <= 3, in all of them above.

    Attributes
    ----------
    points, weights, rule, degree
        As above.
    """

    points: Tensor
    weights: Tensor
    rule: str
    degree: int


def gaussian_nodes(dim: int, nodes: int | None = None) -> Nodes:
    """Return the rule for a dimension: tensor Gauss-Hermite to d = 3, then Sobol.

    Parameters
    ----------
    dim : int
        Dimension, >= 1.
    nodes : int, optional
        For d <= 3, nodes per axis, at least 2. Above, the number of all nodes, even and
        more than 2 d; by default the larger of 2,048 and 8 d rounded up to a power of
        two.

    Returns
    -------
    Nodes
        The same ones at each call.

    Raises
    ------
    ValueError
        If `nodes` is too small, too large or odd, or d is above 21,201, where Sobol's
        sequence ends.
    MemoryError
        If the nodes of all axes do not fit into the memory.
    """
    if dim <= TENSOR_DIM:
        per_axis = PER_AXIS[dim] if nodes is None else nodes
        return _tensor(dim, non_negative_int(per_axis, "nodes", minimum=2))
    if nodes is None:
        nodes = max(LOW_DISCREPANCY, 1 << (PER_DIMENSION * dim - 1).bit_length())
    return scattered_nodes(dim, nodes)


def finer_nodes(dim: int, nodes: int) -> Nodes:
    r"""Return a rule of any number of nodes: trapezoidal to d = 3, then Sobol.

    Where f is analytic, equal steps converge like Gauss-Hermite. Elsewhere their nodes
    are closer: :math:`20/k` apart in place of :math:`\pi/\sqrt k`.

    Parameters
    ----------
    dim : int
        Dimension, >= 1.
    nodes : int
        Nodes per axis for d <= 3, even and at least 8; above as in `gaussian_nodes`.

    Returns
    -------
    Nodes
        The same ones at each call.

    Raises
    ------
    ValueError
        If `nodes` is too small or odd, or d is above 21,201.
    MemoryError
        If the nodes of all axes do not fit into the memory.
    """
    if dim > TENSOR_DIM:
        return gaussian_nodes(dim, nodes)
    return _trapezoidal(dim, _even(nodes, 8))


def scattered_nodes(dim: int, nodes: int, seed: int = 0) -> Nodes:
    """Return low-discrepancy nodes in any dimension, scrambled by a seed.

    They lie on no lines and are as dense as the law. So they see features narrower than
    the distance of equal steps.

    Parameters
    ----------
    dim : int
        Dimension, from 1 to 21,201.
    nodes : int
        Number of all nodes, even and more than 2 dim.
    seed : int
        Seed of the scrambling.

    Returns
    -------
    Nodes
        The same ones at each call.

    Raises
    ------
    ValueError
        If `nodes` is too small or odd, or `dim` is above 21,201.
    MemoryError
        If the nodes do not fit into the memory.
    """
    if dim > MAX_DIM:
        msg = (
            f"a Gaussian in dimension {dim} has no quadrature rule: Sobol's sequence "
            f"ends at {MAX_DIM}; draw samples, and flow them as Particles"
        )
        raise ValueError(msg)
    return _antithetic(dim, _even(nodes, 2 * dim + 2), seed)


def _even(nodes: int, minimum: int) -> int:
    """Return a number of nodes that come in pairs; raise ValueError if it is odd."""
    count = non_negative_int(nodes, "nodes", minimum=minimum)
    if count % 2:
        msg = f"nodes must be even, they come in pairs z, -z; got {count}"
        raise ValueError(msg)
    return count


def _check_room(count: int, dim: int, what: str) -> None:
    """Raise MemoryError if a few copies of a rule do not fit into the memory."""
    copies = 6  # nodes, masses, moved nodes, values and their gradients
    take = "take fewer nodes; they count on each axis up to d = 3"
    check_memory(8 * copies * count * (dim + 1), what, take, torch.device("cpu"))


def integrate_energy(e: Ground, logs: Tensor, weights: Tensor) -> Tensor:
    r"""Return :math:`\sum_k w_k\, e(\exp l_k)` from logarithms l of densities.

    It is summed in float64: in many dimensions a density leaves the range of float32.

    Raises
    ------
    NonFinite
        If a density, or the energy, leaves the range of float64.
    """
    most, least = float(logs.detach().max()), float(logs.detach().min())
    if most > LARGEST_LOG or least < -LARGEST_LOG:
        msg = (
            f"densities from exp({least:.6g}) to exp({most:.6g}) leave the range of "
            f"float64; use Entropy() or PowerEntropy(m), which need only their "
            f"logarithms, or measure lengths in another unit"
        )
        raise NonFinite(msg)
    energy = weights.double() @ check_energy(e, logs.double().exp())
    value = energy.to(logs)
    check_finite(value.detach(), "the energy of a density")
    return value


@kept
def _tensor(dim: int, per_axis: int) -> Nodes:
    if per_axis > 100:
        msg = (
            f"nodes must be at most 100 per axis, got {per_axis}: the masses of the "
            f"outer nodes underflow"
        )
        raise ValueError(msg)
    z, w = np.polynomial.hermite_e.hermegauss(per_axis)
    degree = 2 * per_axis - 1
    rule = (
        f"Gauss-Hermite, {per_axis} nodes per axis: exact for polynomials of degree "
        f"{degree} in each coordinate of the factor"
    )
    return Nodes(*_product(dim, z, w), rule, degree)


@kept
def _trapezoidal(dim: int, per_axis: int) -> Nodes:
    # At this width the mass cut off is about the aliasing error of equal steps.
    width = min(math.sqrt(math.pi * per_axis), HALF_WIDTH)
    z = np.linspace(-width, width, per_axis)
    rule = (
        f"trapezoidal, {per_axis} nodes per axis, whitened: exact for polynomials of "
        f"degree 3 in each coordinate of the factor"
    )
    return Nodes(*_product(dim, z, np.exp(-0.5 * z * z)), rule, 3)


def _product(
    dim: int, z: np.ndarray[Any, Any], w: np.ndarray[Any, Any]
) -> tuple[Tensor, Tensor]:
    """Return the nodes and masses of a product of rules, each made even and white."""
    z, w = 0.5 * (z - z[::-1]), w + w[::-1]
    w = w / w.sum()
    z = z / np.sqrt(w @ z**2)
    axis, masses = torch.from_numpy(z), torch.from_numpy(w)
    _check_room(len(axis) ** dim, dim, f"{len(axis)} nodes on each of {dim} axes")
    return product_rule(axis, masses, dim)


@kept
def _antithetic(dim: int, count: int, seed: int = 0) -> Nodes:
    # Scrambled by a fixed seed. The plain sequence misses the radius in many
    # dimensions: E|z|^4 is wrong by half at d = 32 with 4,096 nodes, scrambled by 1%.
    _check_room(count, dim, f"{count} nodes in dimension {dim}")
    engine = torch.quasirandom.SobolEngine(  # type: ignore[no-untyped-call]
        dim, scramble=True, seed=seed
    )
    uniform = engine.draw(count // 2, dtype=torch.float64)
    edge = 2.0**-31  # half a cell of the generator: 0 and 1 have no quantile
    half = torch.special.ndtri(uniform.clamp(edge, 1 - edge))
    z = torch.cat([half, -half])
    factor = torch.linalg.cholesky(z.T @ z / count)
    z = torch.linalg.solve_triangular(factor, z.T, upper=False).T.contiguous()
    rule = (
        f"antithetic Sobol, {count} nodes, whitened: exact for polynomials of degree "
        f"3, the rest about as {count}^-1"
    )
    return Nodes(z, z.new_full((count,), 1.0 / count), rule, 3)
