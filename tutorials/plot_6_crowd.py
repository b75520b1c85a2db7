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

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra
from sklearn.datasets import load_sample_image

import otflow as of

picture = load_sample_image("china.jpg")[::6, 60:540:6]  # 72 x 80
photo = of.GridDensity.from_image(
    picture, lower=(0.0, 0.0), upper=(1.0, 0.9), invert=True, walls=True,
    dtype=torch.float64,
)  # fmt: skip
heat = of.flow(of.Entropy(), photo, of.JKO(), dt=2e-4, steps=8)

fig, panels = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
for ax, k in zip(panels, (0, 1, 8), strict=True):
    of.plotting.density(heat.snapshots[k], ax=ax)
    ax.set_title(f"heat, t = {float(heat.times[k]):.1e}")
plt.show()

# %%
# The room
# --------
# A wall with a door in its middle. The potential is the length of the shortest way to
# the far right, found on the graph of free cells; a straight line would lead into the
# wall.

width, height, h = 96, 48, 1 / 48
blocked = torch.zeros(width, height, dtype=torch.bool)
blocked[46:50] = True
blocked[46:50, 20:28] = False
free = ~blocked.numpy()


def distance_to_exit():
    """Return the length of the shortest way to the right end, (width, height)."""
    # SciPy 1.12 finds ways on graphs with numbers of 32 bits only.
    index = np.arange(width * height, dtype=np.int32).reshape(width, height)
    rows, columns, lengths = [], [], []
    for dx, dy in [(1, 0), (0, 1), (1, 1), (1, -1), (2, 1), (1, 2), (2, -1), (1, -2)]:
        a = index[: width - dx, max(0, -dy) : height - max(0, dy)]
        b = index[dx:, max(0, dy) : height + min(0, dy)]
        both = free.ravel()[a] & free.ravel()[b]
        rows.append(a[both])
        columns.append(b[both])
        lengths.append(np.full(both.sum(), h * np.hypot(dx, dy)))
    pairs = (np.concatenate(rows), np.concatenate(columns))
    graph = coo_array((np.concatenate(lengths), pairs), (width * height,) * 2).tocsr()
    ways = dijkstra(graph, directed=False, indices=index[-1], min_only=True)
    ways[~np.isfinite(ways)] = ways[np.isfinite(ways)].max()  # inside the wall
    return torch.from_numpy(ways)


ways = distance_to_exit()
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
# Nobody vanishes, nobody is squeezed, nobody stands in the wall, the room empties, and
# whoever is beyond the middle of the wall has passed the door.

last = run.final
assert run.info[-1]["solver"] == "FiniteVolume"
assert all(report["certified"] for report in run.info)
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
