"""A crowd leaves a room by its door; where it is packed there is a pressure."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import coo_array, diags_array, eye_array
from scipy.sparse.csgraph import dijkstra
from scipy.sparse.linalg import spsolve
from torch import Tensor

import otflow as of
from demo.style import sheet
from demo.table import Row, certificates

# Cells of the hall and their side; columns of the wall, rows of its door.
WIDTH, HEIGHT, SIDE = 80, 40, 1 / 40
WALL, DOOR = slice(48, 51), slice(16, 24)
# Density of the crowd at the start over the largest density.
LOOSE = 0.6


@dataclass(frozen=True)
class Crowd:
    """The flow of a crowd out of a room."""

    bound: float
    ways: Tensor  # distance to the exit from each cell, (n,)
    run: of.Trajectory
    dt: float
    seconds: float

    @property
    def through_door(self) -> float:
        """Mass that passed the faces in the middle of the door."""
        box, middle = self.run.final.box, WALL.start + 1
        return sum(
            float(box.split_faces(report["fluxes"])[0][middle - 1, DOOR].sum())
            for report in self.run.info
        )

    @property
    def outside(self) -> float:
        """Mass beyond the middle of the wall."""
        return float(
            self.run.final.weights.reshape(WIDTH, HEIGHT)[WALL.start + 1 :].sum()
        )

    @property
    def in_wall(self) -> float:
        """The most mass that ever stood in the wall."""
        return max(float(mu.weights[~mu.is_free].sum()) for mu in self.run.snapshots)

    def inside(self, k: int) -> float:
        """Return the mass in the room after k steps."""
        return float(
            self.run.snapshots[k].weights.reshape(WIDTH, HEIGHT)[: WALL.start].sum()
        )

    def pressure(self, k: int) -> Tensor:
        r"""Return the pressure of step k >= 1, from the fluxes of its report.

        The fluxes of a step are :math:`f = dt\,\rho_K\,(\phi_K - \phi_L)/h^2` with

        .. math:: \phi_K = D_K + p_K - \frac{dt}2 \sum_{L:\,\phi_L < \phi_K}
            \frac{(\phi_K - \phi_L)^2}{h^2},

        where p is the multiplier of the bound. So the fluxes determine :math:`\phi` up
        to a constant, which p = 0 in loose cells determines.

        Returns
        -------
        Tensor, shape (n,)
            NaN in cells that hold less than a hundredth of the bound.
        """
        mu, box = self.run.snapshots[k], self.run.final.box
        rho = mu.density().numpy()
        index = torch.arange(mu.n, dtype=torch.float64).reshape(WIDTH, HEIGHT)
        low = box.join_faces([index[:-1], index[:, :-1]]).long().numpy()
        high = box.join_faces([index[1:], index[:, 1:]]).long().numpy()
        flux = self.run.info[k - 1]["fluxes"].numpy() / SIDE**2
        giver = np.where(flux > 0, low, high)
        seen = rho > 1e-2 * self.bound
        # phi_low - phi_high across each face that gives to or takes from such a cell.
        drop = flux * SIDE**2 / (self.dt * np.maximum(rho[giver], 1e-2 * self.bound))
        spent = np.bincount(giver, (drop / SIDE) ** 2, minlength=mu.n)
        used = seen[low] & seen[high]
        low, high, giver, drop = (a[used] for a in (low, high, giver, drop))
        faces, rows = len(low), np.arange(len(low))
        signs = np.concatenate([np.ones(faces), -np.ones(faces)])
        where = (np.tile(rows, 2), np.concatenate([low, high]))
        slope = coo_array((signs, where), shape=(faces, mu.n)).tocsr()[:, seen]
        weight = diags_array(rho[giver])
        normal = slope.T @ weight @ slope + 1e-9 * eye_array(int(seen.sum()))
        phi = np.full(mu.n, np.nan)
        phi[seen] = spsolve(normal.tocsc(), slope.T @ (weight @ drop))
        p = phi - self.ways.numpy() + 0.5 * self.dt * spent
        loose = seen & (rho < 0.9 * self.bound)
        return torch.from_numpy(p - np.median(p[loose]))

    @property
    def row(self) -> Row:
        """The line of the table."""
        energy = self.run.records["energy"]
        return Row(
            "crowd, JKO",
            energy=f"{float(energy[0]):.4f} to {float(energy[-1]):.4f}",
            certificate=certificates(self.run),
            seconds=self.seconds,
        )


def blocked() -> Tensor:
    """Return which cells the wall covers."""
    wall = torch.zeros(WIDTH, HEIGHT, dtype=torch.bool)
    wall[WALL] = True
    wall[WALL, DOOR] = False
    return wall


def ways_out(wall: Tensor) -> Tensor:
    """Return the length of the shortest way from each cell to the right end, (n,)."""
    free = ~wall.numpy()
    index = np.arange(free.size).reshape(free.shape)
    rows, columns, lengths = [], [], []
    for dx, dy in [(1, 0), (0, 1), (1, 1), (1, -1), (2, 1), (1, 2), (2, -1), (1, -2)]:
        a = index[: WIDTH - dx, max(0, -dy) : HEIGHT - max(0, dy)]
        b = index[dx:, max(0, dy) : HEIGHT + min(0, dy)]
        both = free.ravel()[a] & free.ravel()[b]
        rows.append(a[both])
        columns.append(b[both])
        lengths.append(np.full(both.sum(), SIDE * np.hypot(dx, dy)))
    pairs = (np.concatenate(rows), np.concatenate(columns))
    graph = coo_array((np.concatenate(lengths), pairs), (free.size,) * 2).tocsr()
    ways = dijkstra(graph, directed=False, indices=index[-1], min_only=True)
    ways[~np.isfinite(ways)] = ways[np.isfinite(ways)].max()  # in the wall
    return torch.from_numpy(ways)


def leave_room(steps: int, dt: float = 0.05) -> Crowd:
    """Let a crowd, evenly spread over the room, walk to the right end of the hall."""
    wall = blocked()
    crowd = torch.zeros(WIDTH, HEIGHT, dtype=torch.float64)
    crowd[4:40, 4:36] = 1.0
    start = of.GridDensity(
        crowd, (0.0, 0.0), (WIDTH * SIDE, HEIGHT * SIDE), obstacles=wall, walls=True,
        normalize=True,
    )  # fmt: skip
    bound = float(start.density().max()) / LOOSE
    ways = ways_out(wall)
    # The distance is known at the centres of the cells, and only there.
    F = of.Potential(lambda x: ways[start.box.cell_of(x)]) + of.Congestion(bound)
    began = time.perf_counter()
    run = of.flow(F, start, of.JKO(), dt=dt, steps=steps)
    return Crowd(bound, ways, run, dt, time.perf_counter() - began)


def draw(crowd: Crowd, path: Path) -> None:
    """Draw the density, and the pressure below it, at three times."""
    last = len(crowd.run.snapshots) - 1
    chosen = (last // 8, last // 2, (7 * last) // 8)
    pressures = [crowd.pressure(k) for k in chosen]
    top = max(float(p.nan_to_num().max()) for p in pressures)
    box = (0.0, WIDTH * SIDE, 0.0, HEIGHT * SIDE)
    wall = np.where(blocked().numpy(), 1.0, np.nan).T
    with sheet(path, 2, 3, size=(13, 5.2)) as (figure, axes):
        for row, name, cmap, most in (
            (0, "density / bound", "YlGnBu", 1.0),
            (1, "pressure", "inferno_r", top),
        ):
            for ax, k, p in zip(axes[row], chosen, pressures, strict=True):
                rho = crowd.run.snapshots[k].density() / crowd.bound
                cells = rho if row == 0 else p.nan_to_num()
                shown = cells.reshape(WIDTH, HEIGHT).T.numpy()
                style = {"origin": "lower", "extent": box, "vmin": 0.0}
                image = ax.imshow(shown, cmap=cmap, vmax=most, **style)
                ax.imshow(wall, cmap="gray", vmax=2.5, **style)
                ax.set(xticks=[], yticks=[])
                ax.spines[:].set_visible(True)
                if row == 0:
                    share = f"{100 * crowd.inside(k):.0f} % inside"
                    ax.set_title(f"t = {float(crowd.run.times[k]):.2f}: {share}")
            figure.colorbar(image, ax=axes[row], label=name, shrink=0.9, pad=0.01)
        figure.suptitle("A crowd leaves by the door; no mass crosses the wall")
