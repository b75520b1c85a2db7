"""Which particles act in which layer of a residual network, and with what share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

__all__ = ["TIMES", "Layers", "cells_of", "check_times", "reflected", "share_out"]

TIMES: Final = ("fixed", "free")


@dataclass(frozen=True)
class Layers:
    """The entries (particle, layer) of a residual network, layer by layer.

    Parameters
    ----------
    atoms : Tensor, shape (E,)
        Index of the particle of each entry. The entries of a layer lie together.
    cells : tuple of slice
        The entries of each layer, in the order of time; a layer may have none.
    shares : Tensor, shape (E,)
        Share of the particle that acts in this layer, with the graph of the times.
    slopes : Tensor, shape (E,)
        Derivative of the share in the time coordinate; no graph.
    """

    atoms: Tensor
    cells: tuple[slice, ...]
    shares: Tensor
    slopes: Tensor

    @property
    def parts(self) -> tuple[slice, ...]:
        """The entries of each layer that has some."""
        return tuple(cell for cell in self.cells if cell.stop > cell.start)

    @property
    def most(self) -> int:
        """The number of entries of the largest layer."""
        return max(int(cell.stop - cell.start) for cell in self.cells)


def cells_of(t: Tensor, layers: int) -> Tensor:
    """Return the cell of each layer time in [0, 1]; that of 1 is the last one."""
    return (t.detach() * layers).floor().long().clamp(0, layers - 1)


def check_times(t: Tensor) -> None:
    """Raise ValueError unless fixed layer times lie in [0, 1]."""
    wrong = ~((t >= 0) & (t <= 1))
    if bool(wrong.any()):
        k = int(wrong.nonzero()[0])
        msg = (
            f"fixed layer times, the first coordinates, lie in [0, 1], got "
            f"{float(t.detach()[k]):g} at atom {k}; take them of layer_times(), "
            f"fix them with schemes.Mobility(scheme, network.mobility(inputs, "
            f"time=0.0)) under noise, or use times='free'"
        )
        raise ValueError(msg)


def reflected(coordinates: Tensor) -> Tensor:
    """Return layer times: the distances of coordinates to the nearest even number."""
    # As it stands, a coordinate in [0, 1] would lose its last bit.
    within = (coordinates >= 0) & (coordinates <= 1)
    folded = 1 - (coordinates.remainder(2.0) - 1).abs()
    return torch.where(within, coordinates, folded)


def share_out(coordinates: Tensor, layers: int, times: str) -> Layers:
    """Share particles out among the layers, by their time coordinates.

    With fixed times a particle acts in the layer of which the cell holds its time. Else
    it acts in the two layers whose times enclose its own, with shares linear in it.
    Cost: a sort of the entries, and the sizes of the layers go to the host.

    Parameters
    ----------
    coordinates : Tensor, shape (N,)
        Time coordinates.
    layers : int
        Number L of layers.
    times : str
        "fixed" or "free".

    Returns
    -------
    Layers
        N entries with fixed times, 2 N else.
    """
    atoms = torch.arange(len(coordinates), device=coordinates.device)
    t = reflected(coordinates)
    if times == "fixed" or layers == 1:
        shares, slopes = torch.ones_like(t.detach()), torch.zeros_like(t.detach())
        return _sorted(atoms, cells_of(t, layers), shares, slopes, layers)
    sign = (1 - coordinates.detach().remainder(2.0)).sign()
    place = t * layers - 0.5
    inside = (place >= 0) & (place <= layers - 1)
    place = place.clamp(0, layers - 1)
    before = place.detach().floor().clamp(max=layers - 2)
    later = place - before
    rate = torch.where(inside, layers * sign, 0.0).detach()
    layer = before.long()
    return _sorted(
        atoms.repeat(2),
        torch.cat([layer, layer + 1]),
        torch.cat([1 - later, later]),
        torch.cat([-rate, rate]),
        layers,
    )


def _sorted(
    atoms: Tensor, layer: Tensor, shares: Tensor, slopes: Tensor, layers: int
) -> Layers:
    """Return entries in the order of their layers, those of one layer as given."""
    order = torch.sort(layer, stable=True)[1]
    cells, start = [], 0
    for size in torch.bincount(layer, minlength=layers).tolist():
        cells.append(slice(start, start + size))
        start += size
    return Layers(atoms[order], tuple(cells), shares[order], slopes[order])
