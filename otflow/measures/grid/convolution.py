"""Convolution of a kernel with the masses of a grid, by fast Fourier transform."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict, deque
from collections.abc import Iterator
from weakref import ReferenceType, ref

import torch
from torch import Tensor

from otflow._autodiff import check_finite
from otflow._typing import Ground
from otflow._warn import warn
from otflow.errors import InvalidFunctional, KernelWarning
from otflow.kernels import Gaussian, Kernel
from otflow.measures.grid.box import Box
from otflow.measures.grid.kernels import (
    HAT,
    gaussian_table,
    hat_nodes,
    seen_along_axes,
)
from otflow.measures.sums import kernel_at_the_door, linear
from otflow.numerics.quadrature import gauss_legendre, product_rule

__all__ = ["Convolution", "convolution"]

# Pairs of cells up to so many cells apart get the graded quadrature.
NEAR = 2
# How far W(0) may be from its average over a cell, in units of its difference from the
# value at the next cell. The coarse rule reads W(0) itself; above SUSPECT by that rule,
# the fine rule decides.
MOST_OFF, SUSPECT = 0.5, 0.3
# Share of a kernel that the sum over centres, or the rule of three nodes, may miss.
MISSED = 0.01
# With cells of so many deviations of a Gaussian the sum over centres is wrong by two
# parts in 1000, 2 exp(-2 pi^2 / NARROW^2). The number is odd on purpose: a user's ratio
# of cell and deviation should not lie at the switch.
NARROW = 1.69
# With more evaluations than this, only cells up to FAR apart get the rule.
BUDGET = 40_000_000
FAR = 16


class Convolution:
    r"""The map from masses to :math:`(W * \mu)(x_i) = \sum_j \bar W_{i-j}\, w_j`.

    W stands for its even part, :math:`\tfrac12(W(z) + W(-z))`. For a finite kernel that
    is smooth on the scale of a cell, :math:`\bar W_k` is the value at the centres.
    Otherwise it is the average over the pair of cells,

    .. math:: \bar W_k = \frac1{|c|^2} \int_c\int_{c + kh} W(y - x)\, dx\, dy,

    that of a cell with itself included. Then the energy of a density that is constant
    in the cells is exact. A kernel is averaged if it is infinite at 0, narrow or
    guarded.

    A Gaussian is narrow if :math:`\sigma < h/1.69`; its average is in closed form.
    Another kernel is narrow if its sum over the centres along an axis misses its
    integral by more than one part in 100, and by more than a kink at 0 does. A guard,
    as in :math:`z^2 + 10^{-16}`, keeps a kernel finite at 0. A user's kernel counts as
    guarded if W(0) differs from the average over a cell and itself by more than half of
    its difference from W at the next cell. For a smooth kernel that ratio is a sixth,
    for :math:`|z|` a third.

    The transform of the kernel is kept, so that a further call costs two transforms of
    the masses.

    Parameters
    ----------
    box : Box
        The grid.
    W : callable
        Takes differences z (..., d) to (...).
    like : Tensor
        Gives dtype and device.
    diagonal : bool, optional
        Deprecated; it goes in the next release. A finite kernel counts between a cell
        and itself unless it is declared singular.

    Attributes
    ----------
    box
        As above.

    Raises
    ------
    InvalidFunctional
        If W is too singular to be integrated, as :math:`|z|^{-p}` for p >= d.

    Warns
    -----
    KernelWarning
        If features away from 0 are too narrow for the averages that are affordable.

    Notes
    -----
    Time O(n log n), memory O(2^d n); the graded quadrature is for few pairs of cells.
    Averages of singular kernels are right to 6 digits or more, unless cells are more
    than 4 times as long as wide. Features narrower than an eighth of a cell are seen
    only at 0.

    Examples
    --------
    >>> import torch, otflow as of
    >>> box = of.measures.Box.of(0.0, 1.0, 4)
    >>> masses = torch.full((4,), 0.25)
    >>> W = of.measures.Convolution(box, lambda z: z.square().sum(-1), masses)
    >>> W(masses).round(decimals=2)
    tensor([0.2200, 0.0900, 0.0900, 0.2200])
    """

    def __init__(
        self, box: Box, W: Ground, like: Tensor, *, diagonal: bool | None = None
    ) -> None:
        self.box = box
        self._padded = [2 * n for n in box.shape]
        kernel = kernel_at_the_door(W, diagonal)
        if not isinstance(kernel, Kernel):
            msg = f"{kernel!r} is no function of differences; call mu.convolve(W)"
            raise TypeError(msg)
        table = linear(kernel, lambda V: _table(box, V, like))
        check_finite(table, "an interaction kernel between the cells")
        self._transform = torch.fft.rfftn(table)

    def is_same(self, other: Convolution) -> bool:
        """Return whether both are the same map."""
        return self.box == other.box and torch.equal(self._transform, other._transform)

    def __call__(self, weights: Tensor) -> Tensor:
        """Return W * mu at the centres; differentiable in the masses.

        Parameters
        ----------
        weights : Tensor, shape (n,)
            Masses of the cells.

        Returns
        -------
        Tensor, shape (n,)
            The potential of the masses.
        """
        axes = tuple(range(self.box.dim))
        mass = weights.reshape(self.box.shape)
        transform = torch.fft.rfftn(mass, s=self._padded, dim=axes) * self._transform
        whole: Tensor = torch.fft.irfftn(transform, s=self._padded, dim=axes)
        return whole[tuple(slice(n) for n in self.box.shape)].reshape(-1)


_MOST_KEPT = 4
_KEPT: OrderedDict[tuple[object, ...], Convolution] = OrderedDict()
# Of kernels without a key: the kernel, the grid, the values at the centres, the map.
_SEEN: deque[tuple[ReferenceType[Kernel], Box, Tensor, Convolution]]
_SEEN = deque(maxlen=_MOST_KEPT)


def convolution(box: Box, W: Kernel, like: Tensor) -> Convolution:
    """Return a `Convolution`; kernels of equal key share one.

    The values of a kernel without a key may change. Such a kernel shares the map that
    it had when its values at the differences of the centres were the same to the bit.
    """
    known = W.key()
    if known is None:
        return _of_values(box, W, like)
    key = (known, box, like.dtype, like.device)
    if key not in _KEPT:
        # Autograd cannot use later what torch.inference_mode() has made.
        with torch.inference_mode(False), torch.no_grad():
            _KEPT[key] = Convolution(box, W, like)
        if len(_KEPT) > _MOST_KEPT:
            _KEPT.popitem(last=False)
    return _KEPT[key]


def _of_values(box: Box, W: Kernel, like: Tensor) -> Convolution:
    """Return the map of a kernel without a key.

    To ask whether a kernel is narrow or guarded takes a hundred times its values.
    """
    values = _at(W, _lengths(box, like, one_side=W.is_radial))
    if values.requires_grad or torch.is_inference_mode_enabled():
        return Convolution(box, W, like)
    for kernel, grid, seen, found in _SEEN:
        same = kernel() is W and grid == box and seen.device == values.device
        if same and seen.dtype == values.dtype and torch.equal(seen, values):
            return found
    made = Convolution(box, W, like)
    _SEEN.append((ref(W), box, values, made))
    return made


def _lengths(box: Box, like: Tensor, *, one_side: bool) -> list[Tensor]:
    """Return the differences of cells along each axis, in the order of an FFT."""
    steps = _steps(box, one_side=one_side)
    return [s.to(like) * h for s, h in zip(steps, box.spacing, strict=True)]


def _steps(box: Box, *, one_side: bool) -> list[Tensor]:
    return [
        torch.arange(n) if one_side else torch.fft.fftfreq(2 * n, 1 / (2 * n)).long()
        for n in box.shape
    ]


def _table(box: Box, W: Kernel, like: Tensor) -> Tensor:
    """Return the even part of W at all differences of cells, in the order of an FFT."""
    radial = W.is_radial
    # A radial kernel is known from the differences that are >= 0 along each axis.
    steps = _steps(box, one_side=radial)
    lengths = _lengths(box, like, one_side=radial)
    finite = bool(W.values(like.new_zeros(1, box.dim)).isfinite().all())
    if type(W) is Gaussian and max(box.spacing) > NARROW * W.sigma:
        table = gaussian_table(box, W, steps, like)
    elif finite and _resolved(box, W, like):
        table = _at(W, lengths)
    else:
        table = _averaged(box, W, lengths, finite=finite)
        # The pairs that are near, among the differences of cells that are listed.
        sides = zip(_reach(box), box.shape, strict=True)
        steps_near = (
            range(0 if radial else max(-r, -n), min(r + 1, n)) for r, n in sides
        )
        near = list(itertools.product(*steps_near))
        values = _near(box, W, near, like)
        table[tuple(torch.tensor(near, device=like.device).T)] = values
    # A finite kernel declared singular: a cell does not act on itself, like an atom.
    if finite and W.singular:
        table[(0,) * box.dim] = 0.0
    if radial:
        for axis, n in enumerate(box.shape):
            ring = torch.fft.fftfreq(2 * n, 1 / (2 * n)).long().abs().clamp_max(n - 1)
            table = table.index_select(axis, ring.to(like.device))
        return table
    axes = tuple(range(box.dim))
    mirrored = table.flip(axes).roll((1,) * box.dim, axes)  # the entry at minus k
    return 0.5 * (table + mirrored)


def _resolved(box: Box, W: Kernel, like: Tensor) -> bool:
    """Return whether the centres of the cells resolve a finite kernel."""
    with torch.no_grad():
        missed = seen_along_axes(box, W, like)[0]
        # The table of values at the centres raises for a kernel that is not finite.
        if not math.isfinite(missed):
            return True
        # A radial kernel that is infinite at 0 is declared singular: it has no guard.
        return missed <= MISSED and (W.is_radial or not _guarded(box, W, like))


def _guarded(box: Box, W: Kernel, like: Tensor) -> bool:
    """Return whether W at 0 is far from its average over a cell and itself."""
    at_zero = W.values(like.new_zeros(1, box.dim))
    steps = torch.diag(like.new_tensor(box.spacing))
    beside = 0.5 * (W.values(steps) + W.values(-steps))
    way = (beside - at_zero).abs().max()
    rough = _hat_rule(box, W, [like.new_zeros(1)] * box.dim, HAT).reshape(1)
    if bool((rough - at_zero).abs().max() <= SUSPECT * way):
        return False  # the rule's part at 0 hides at most that much
    exact = _near(box, W, [(0,) * box.dim], like)
    return bool((exact - at_zero).abs().max() > MOST_OFF * way)


def _reach(box: Box) -> list[int]:
    """Return how many cells along each axis count as near: more if they are narrow."""
    widest = max(box.spacing)
    return [min(8, math.ceil(NEAR * widest / h - 1e-9)) for h in box.spacing]


def _at(W: Kernel, lengths: list[Tensor]) -> Tensor:
    """Return W on the product of the coordinates along each axis, slab by slab."""
    slabs = []
    rows = max(1, 2**18 // math.prod(len(x) for x in lengths[1:]))
    for block in torch.split(lengths[0], rows):
        grids = torch.meshgrid(block, *lengths[1:], indexing="ij")
        slabs.append(W.values(torch.stack(grids, dim=-1)))
    return torch.cat(slabs)


def _averaged(box: Box, W: Kernel, lengths: list[Tensor], *, finite: bool) -> Tensor:
    """Return the averages over pairs of cells by a rule for kernels smooth there.

    A finite kernel may have features far from 0. If three nodes are too few for them,
    the finer rule is used. If that has too few nodes, or costs too much, it warns.
    """
    total = math.prod(len(x) for x in lengths)
    rule: tuple[tuple[float, float], ...] = HAT
    if finite:
        with torch.no_grad():
            _, missed, left = seen_along_axes(box, W, lengths[0])
        if missed > MISSED:
            rule = hat_nodes()
            if total * len(rule) ** box.dim > BUDGET:
                rule, left = HAT, missed
            if left > MISSED:
                msg = (
                    f"an interaction kernel has features narrower than the cells of "
                    f"the grid, away from 0: about {left:.1%} of it is left out; "
                    f"widen them, or take smaller cells or Particles"
                )
                warn(msg, KernelWarning)
    if total * len(rule) ** box.dim <= BUDGET:
        return _hat_rule(box, W, lengths, rule)
    table = _at(W, lengths)
    # The correction falls off like (h/|z|)^2: it counts for cells that are not far.
    index = [
        torch.nonzero((x / h).abs() <= FAR).reshape(-1)
        for x, h in zip(lengths, box.spacing, strict=True)
    ]
    near = [x[i] for x, i in zip(lengths, index, strict=True)]
    table[torch.meshgrid(*index, indexing="ij")] = _hat_rule(box, W, near, rule)
    return table


def _hat_rule(
    box: Box,
    W: Kernel,
    lengths: list[Tensor],
    hat: tuple[tuple[float, float], ...],
) -> Tensor:
    sums = lengths[0].new_zeros([len(x) for x in lengths])
    for rule in itertools.product(hat, repeat=box.dim):
        nodes = zip(lengths, rule, box.spacing, strict=True)
        moved = [x + t * h for x, (t, _), h in nodes]
        sums = sums + math.prod(w for _, w in rule) * _at(W, moved)
    return sums


# Pairs of near cells ------------------------------------------------------------------


def _near(box: Box, W: Kernel, pairs: list[tuple[int, ...]], like: Tensor) -> Tensor:
    """Return the averages over the pairs of cells that are k cells apart.

    The difference of two points of the cells has the density prod (1 - |z_a - k_a|), a
    polynomial in each unit cube. Cubes with the origin at a corner are cut dyadically
    towards it. The shells left over are summed as a geometric series.
    """
    scale = like.new_tensor(box.spacing)
    place = {k: i for i, k in enumerate(pairs)}
    totals = like.new_zeros(len(pairs))
    last_two = like.new_zeros(2, len(pairs))
    depth = 40 if like.dtype == torch.float64 else 20
    for corner in itertools.product(*(range(-r - 1, r + 1) for r in _reach(box))):
        met = [
            k for k in itertools.product(*((c, c + 1) for c in corner)) if k in place
        ]
        if not met:
            continue
        index = torch.tensor([place[k] for k in met], device=like.device)
        for level, z, w in _cube(corner, depth, like):
            hats = (1 - (z[:, None] - like.new_tensor(met)).abs()).prod(-1)
            sums = (w * W.values(z * scale)) @ hats
            totals = totals.index_add(0, index, sums)
            if level >= depth - 2:
                last_two[level - depth + 2, index] += sums
    before, last = last_two
    ratio = torch.where(before != 0, last / torch.where(before != 0, before, 1.0), 0.0)
    if bool((ratio > 0.99).any()):
        msg = (
            "the kernel is too singular at 0 for a density: its integral diverges, as "
            "that of |z|^-p does for p >= d; use a weaker singularity, or Particles"
        )
        raise InvalidFunctional(msg)
    rest: Tensor = last * ratio / (1 - ratio)
    return totals + rest


def _cube(
    corner: tuple[int, ...], depth: int, like: Tensor
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield level, nodes (m, d) and weights (m,) of a quadrature of a unit cube."""
    dim = len(corner)
    rule = product_rule(*gauss_legendre(10 if dim < 3 else 8), dim)
    nodes, weights = (x.to(like) for x in rule)
    if any(c not in (-1, 0) for c in corner):
        yield 0, nodes + like.new_tensor(corner), weights
        return
    signs = like.new_tensor([1.0 if c == 0 else -1.0 for c in corner])
    cubes = [b for b in itertools.product((0.0, 1.0), repeat=dim) if any(b)]
    shell = torch.cat([0.5 * (nodes + like.new_tensor(b)) for b in cubes])
    shell_weights = (weights * 0.5**dim).repeat(len(cubes))
    for level in range(depth):
        yield level, signs * shell * 0.5**level, shell_weights * 0.5 ** (dim * level)
