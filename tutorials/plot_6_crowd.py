r"""
A crowd leaves a room
=====================

People want to walk down the gradient of their distance to the exit, and cannot stand
closer than a given density. As a gradient flow :cite:p:`maury2010macroscopic`: minimise

.. math:: F(\mu) = \int D \, d\mu \quad\text{subject to}\quad \rho \le \bar\rho .

Walls are obstacles on the grid. Where the crowd reaches the bound a pressure appears,
the dual variable of the constraint. Beside obstacles ``JKO()`` steps by finite volumes
:cite:p:`cances2020variational`: mass moves through faces between free cells only, so
none can cross a wall. The crowd of this tutorial is a photograph.
"""

# %%
# A photograph as a density
# -------------------------
# Dark is dense. The picture of a Chinese temple comes with scikit-learn. Under the heat
# equation its details fade first: the entropy falls fastest in the first step.

import heapq
import math

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_sample_image

import otflow as of

picture = load_sample_image("china.jpg")[::6, 60:540:6]  # 72 x 80
photo = of.GridDensity.from_image(
    picture, lower=(0.0, 0.0), upper=(1.0, 0.9), invert=True, walls=True,
    dtype=torch.float64,
)  # fmt: skip
heat = of.flow(of.Entropy(), photo, of.JKO(), dt=2e-4, steps=8)

fig, panels = plt.subplots(1, 3, figsize=(9, 2.9), layout="constrained")
for ax, k in zip(panels, (0, 1, 8), strict=True):
    of.plotting.density(heat.snapshots[k], ax=ax)
    ax.set_title(f"heat, t = {float(heat.times[k]):g}")
plt.show()

# %%
# The room
# --------
# A wall with a door in its middle. The potential D is the length of the shortest way to
# the far right, which solves :math:`|\nabla D| = 1` among the free cells. Fast marching
# accepts cells in the order of their distance, each from the upwind neighbours in both
# directions. Ways along the edges of a graph would have a few directions only, and
# crowds would walk on these.

width, height, h = 96, 48, 1 / 48
blocked = torch.zeros(width, height, dtype=torch.bool)
blocked[46:50] = True
blocked[46:50, 20:28] = False


def distance_to_exit():
    """Return the distance to the right end by fast marching, (width, height)."""
    far = torch.full((width + 2, height + 2), math.inf, dtype=torch.float64).tolist()
    heap = [(0.0, width, j) for j in range(1, height + 1)]
    while heap:
        way, i, j = heapq.heappop(heap)
        if far[i][j] < math.inf:
            continue  # accepted before
        far[i][j] = way
        for a, b in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
            inside = 0 < a <= width and 0 < b <= height
            if inside and not blocked[a - 1, b - 1] and far[a][b] == math.inf:
                u = min(far[a - 1][b], far[a + 1][b])
                v = min(far[a][b - 1], far[a][b + 1])
                if abs(u - v) < h:
                    new = (u + v + math.sqrt(2 * h**2 - (u - v) ** 2)) / 2
                else:
                    new = min(u, v) + h
                heapq.heappush(heap, (new, a, b))
    return torch.tensor(far, dtype=torch.float64)[1:-1, 1:-1]


ways = distance_to_exit()
ways[blocked] = ways[~blocked].max()  # inside the wall
ways = ways.reshape(-1)
crowd = torch.zeros(width, height, dtype=torch.float64)
crowd[3:43, 6:42] = photo.grid.reshape(40, 2, 36, 2).mean((1, 3))  # half the size
start = of.GridDensity(
    crowd, (0.0, 0.0), (2.0, 1.0), obstacles=blocked, walls=True, normalize=True
)
bound = float(start.density().max())  # the darkest place is full already
# The distance is known at the centres of the cells, and only there.
D = of.Potential(lambda x: ways[start.box.cell_of(x)])
F = D + of.Congestion(bound)

# %%
# Out through the door
# --------------------
# Each step knows the mass that went through each face of the grid.

inside = lambda mu: mu.weights.reshape(width, height)[:46].sum()
run = of.flow(F, start, of.JKO(), dt=0.05, steps=36, record={"inside": inside})
print(run)
through_door = sum(
    start.box.split_faces(report["fluxes"])[0][47, 20:28].sum() for report in run.info
)

fig, panels = plt.subplots(2, 2, figsize=(9, 5), layout="constrained")
for ax, k in zip(panels.flat, (0, 8, 20, 36), strict=True):
    of.plotting.density(run.snapshots[k], ax=ax, maximum=bound)
    ax.set_title(f"t = {float(run.times[k]):.2g}, "
                 f"{100 * float(run.records['inside'][k]):.0f} % inside")  # fmt: skip
plt.show()

# %%
# Watch it
# --------

animation = of.plotting.animate(run, frames=37)
plt.show()

# %%
# What must hold
# --------------
# The distance is that of the straight ways by the corners of the door, to two cells.
# Nobody vanishes, nobody is squeezed, nobody stands in the wall, the room empties, and
# whoever is beyond the middle of the wall has passed the door.

last = run.final
assert run.info[-1]["solver"] == "FiniteVolume"
assert all(report["certified"] for report in run.info)
x, y = start.points.T
corner = torch.hypot(46 * h - x, (y - 0.5).abs() - 4 * h) + 95.5 * h - 46 * h
around = (x < 46 * h) & ((y - 0.5).abs() > 4 * h)  # straight to a corner of the door
shortest = torch.where(around, corner, 95.5 * h - x)
assert (ways - shortest)[start.is_free].abs().max() < 2 * h
assert (run.records["inside"].diff() <= 1e-9).all()
assert run.records["inside"][-1] < 0.5 * run.records["inside"][0]
beyond = last.weights.reshape(width, height)[48:].sum()
assert abs(beyond - through_door) < 1e-12
for mu in run.snapshots:
    assert abs(float(mu.weights.sum()) - 1) < 1e-12
    assert float(mu.density().max()) <= bound
    assert float(mu.weights[~mu.is_free].sum()) == 0
assert (heat.records["energy"].diff() < 0).all()
first, *_, final = heat.records["energy"].diff()
assert first < 2 * final < 0
