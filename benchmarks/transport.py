"""Plans between many atoms: seconds to a bracket, beside POT on all pairs."""

from __future__ import annotations

import time

import torch

from benchmarks.timing import Row, at_most
from otflow.metrics import Plan, transport_plan

Clouds = tuple[torch.Tensor, torch.Tensor]


def squares(n: int, d: int, shift: float) -> Clouds:
    """Return two clouds of one law on the unit cube, the second shifted."""
    g = torch.Generator().manual_seed(0)
    x, y = (torch.rand(n, d, generator=g, dtype=torch.float64) for _ in "xy")
    y[:, 0] += shift
    return x, y


def normals(n: int, d: int, shift: float) -> Clouds:
    """Return two clouds of one normal law, the second shifted."""
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, d, generator=g, dtype=torch.float64) for _ in "xy")
    y[:, 0] += shift
    return x, y


def timed(clouds: Clouds, tolerance: float) -> tuple[float, Plan]:
    """Return the seconds that a plan takes, and the plan."""
    start = time.perf_counter()
    plan = transport_plan(*clouds, tolerance=tolerance)
    return time.perf_counter() - start, plan


def beside_pot() -> list[Row]:
    """Compare a bracket of 1 % with the exact distance of POT, n = 4000."""
    import ot

    rows = []
    for name, shift in (("one law", 0.0), ("shifted", 0.5)):
        x, y = squares(4000, 2, shift)
        masses = torch.full((4000,), 1 / 4000, dtype=torch.float64).numpy()
        start = time.perf_counter()
        ot.emd2(masses, masses, ot.dist(x.numpy(), y.numpy()), numItermax=10**7)
        whole = time.perf_counter() - start
        for tolerance, most in ((0.01, 1 / 3), (0.0, 1.0)):
            seconds, plan = timed((x, y), tolerance)
            assert plan.bracket.relative <= max(tolerance, 1e-9)
            label = f"plan, n = 4000, d = 2, {name}, to {tolerance:g}: / ot.emd2"
            rows.append(at_most(label, seconds / whole, most))
    return rows


def large() -> list[Row]:
    """Measure the seconds to a bracket of a given width."""
    rows = []
    for name, clouds, tolerance, most in (
        ("n = 20000, d = 2, one law", squares(20_000, 2, 0.0), 0.02, 10),
        ("n = 20000, d = 2, shifted", squares(20_000, 2, 0.5), 0.02, 10),
        ("n = 10000, d = 10, shifted normal", normals(10_000, 10, 1.0), 0.3, 60),
        ("n = 100000, d = 2, one law", squares(100_000, 2, 0.0), 0.1, 60),
        ("n = 100000, d = 3, one law", squares(100_000, 3, 0.0), 0.1, 60),
    ):
        seconds, plan = timed(clouds, tolerance)
        width = plan.bracket.relative
        assert width <= tolerance
        label = f"plan, {name}, to {tolerance:.0%} ({width:.1e}): seconds"
        rows.append(at_most(label, seconds, most, " s"))
    return rows


def run() -> list[Row]:
    """Return the rows of both."""
    transport_plan(*squares(1100, 2, 0.0))  # POT is loaded before the clock starts
    return [*beside_pot(), *large()]
