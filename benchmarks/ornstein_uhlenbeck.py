"""The Ornstein-Uhlenbeck table of Mokrov et al. (2021), by exact steps on Gaussians.

From N(0, I) the flow of KL(. | N(b, S)) is followed to t = 0.9 and compared with the
exact law there, for 15 random targets in each dimension. The targets are drawn by the
law of the published experiment, with seeds of our own: b is standard normal and
S = Q (diag(u) + 1 1^T) Q^T, u uniform on [0, 1], Q the eigenvectors of M^T M for a
matrix M of uniform numbers (scikit-learn's ``make_spd_matrix``).

``python -m benchmarks.ornstein_uhlenbeck`` prints the table, with ``--rst`` as
reStructuredText. SymKL is KL(p|q) + KL(q|p). The published figures compare densities
estimated from samples, by kernels for the particles, so that they hold the error of
that estimate too; ours are of the laws themselves. W2 and the gap of the energy say
how far the laws are.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import otflow as of
from benchmarks.timing import Row, at_most, show

TIME, DT, TARGETS = 0.9, 0.05, 15
DIMENSIONS = tuple(range(1, 13))

# Mean SymKL at t = 0.9 over 15 targets, dt = 0.05; from the records of the authors.
PUBLISHED = {
    "ICNN": (
        *(0.0007, 0.0038, 0.0046, 0.0075, 0.0086, 0.0133),
        *(0.0092, 0.0136, 0.0134, 0.0144, 0.0177, 0.0182),
    ),
    "EM 50k": (
        *(0.0005, 0.0066, 0.032, 0.105, 0.254, 0.50),
        *(0.86, 1.32, 1.86, 2.48, 3.14, 3.83),
    ),
    "dual JKO": (
        *(0.007, 0.39, 0.48, 0.29, 0.20, 1.39),
        *(0.64, 1.38, 1.30, 1.54, 2.13, 1.92),
    ),
}


@dataclass(frozen=True)
class Error:
    """Distance of a law from the exact one, and its cost."""

    symmetric_kl: float
    w2: float
    energy_gap: float
    seconds: float

    @staticmethod
    def mean(errors: Sequence[Error]) -> Error:
        """Return the mean of each figure, and the least of the times."""
        columns = zip(*(vars(e).values() for e in errors), strict=True)
        kl, w2, gap, _ = (sum(c) / len(errors) for c in columns)
        return Error(kl, w2, gap, min(e.seconds for e in errors))


@dataclass(frozen=True)
class Problem:
    """One target N(b, S), with the law at t = 0.9."""

    F: of.Functional
    start: of.Gaussian
    exact: of.Gaussian

    @classmethod
    def draw(cls, d: int, seed: int) -> Problem:
        """Return the problem of a random target."""
        generator = torch.Generator().manual_seed(1000 * d + seed)
        M, u = (
            torch.rand(*size, generator=generator, dtype=torch.float64)
            for size in ((d, d), (d,))
        )
        b = torch.randn(d, generator=generator, dtype=torch.float64)
        Q = torch.linalg.eigh(M.T @ M).eigenvectors
        S = Q @ (torch.diag(u) + 1.0) @ Q.T
        values, axes = torch.linalg.eigh(0.5 * (S + S.T))
        A = (axes / values) @ axes.T
        F = of.KL(lambda x: 0.5 * ((x - b) @ A * (x - b)).sum(-1))
        zero, eye = torch.zeros_like(b), torch.eye(d, dtype=torch.float64)
        # S_t = S + e^{-At} (I - S) e^{-At}: everything commutes with S.
        decay = (-TIME / values).exp()
        spread = values + decay.square() * (1 - values)
        mean = b - (axes * decay) @ axes.T @ b
        law = _gaussian(mean, (axes * spread) @ axes.T)
        return cls(F, of.Gaussian(zero, eye, nodes=_nodes(d)), law)

    def run(self, scheme: of.schemes.Scheme, dt: float = DT) -> Error:
        """Follow the flow by a scheme on Gaussians."""
        steps = round(TIME / dt)
        began = time.perf_counter()
        run = of.flow(self.F, self.start, scheme, dt=dt, steps=steps, every=steps)
        return self.compare(run.final, time.perf_counter() - began)

    def sample(self, n: int, dt: float) -> Error:
        """Follow it by Langevin particles; their law is that of their moments."""
        generator = torch.Generator().manual_seed(0)
        mu = of.Particles(self.start.sample(n, generator))
        steps = round(TIME / dt)
        began = time.perf_counter()
        run = of.flow(
            self.F, mu, of.Langevin(), dt=dt, steps=steps, every=steps, generator=1
        )
        seconds = time.perf_counter() - began
        law = of.Gaussian.from_samples(run.final.points, nodes=_nodes(self.start.dim))
        return self.compare(law, seconds)

    def compare(self, nu: of.Gaussian, seconds: float) -> Error:
        """Measure the distance of a law to the exact one."""
        exact = self.exact
        return Error(
            symmetric_kl=_kl(nu, exact) + _kl(exact, nu),
            w2=float(nu.norm(nu.displacement_to(exact))),
            energy_gap=abs(float(self.F.value(nu) - self.F.value(exact))),
            seconds=seconds,
        )


def _nodes(d: int) -> int:
    """Return a number of nodes: few, as everything here is quadratic."""
    return 2 if d <= 3 else 2 * d + 2


def _gaussian(mean: Tensor, covariance: Tensor) -> of.Gaussian:
    covariance = 0.5 * (covariance + covariance.T)
    return of.Gaussian(mean, covariance, nodes=_nodes(len(mean)))


def _kl(p: of.Gaussian, q: of.Gaussian) -> float:
    """Return KL(p | q) by a solve with the factor of q."""
    ratio = torch.linalg.solve(q.factor, p.factor)
    shift = torch.linalg.solve(q.factor, p.mean - q.mean)
    logs = 2 * torch.linalg.slogdet(ratio).logabsdet
    d = len(shift)
    return float(0.5 * (ratio.square().sum() + shift.square().sum() - d - logs))


def table(
    schemes: dict[str, of.schemes.Scheme], dimensions: Sequence[int] = DIMENSIONS
) -> dict[int, dict[str, Error]]:
    """Return the mean error of each scheme in each dimension."""
    rows: dict[int, dict[str, Error]] = {}
    for d in dimensions:
        problems = [Problem.draw(d, seed) for seed in range(TARGETS)]
        rows[d] = {
            name: Error.mean([problem.run(scheme) for problem in problems])
            for name, scheme in schemes.items()
        }
    return rows


def jko_schemes() -> dict[str, of.schemes.Scheme]:
    """Return JKO steps of order one, two and three."""
    return {f"JKO {order}": of.JKO(order=order) for order in (1, 2, 3)}


def columns(rows: dict[int, dict[str, Error]]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the body of the table as text."""
    names = list(next(iter(rows.values())))
    head = ["d", *(f"{n}: SymKL" for n in names), *PUBLISHED]
    head += [f"{names[0]}: W2", f"{names[0]}: energy gap", f"{names[0]}: ms"]
    body = []
    for d, errors in rows.items():
        first = errors[names[0]]
        body.append(
            [
                str(d),
                *(f"{errors[n].symmetric_kl:.1e}" for n in names),
                *(f"{published[d - 1]:g}" for published in PUBLISHED.values()),
                f"{first.w2:.1e}",
                f"{first.energy_gap:.1e}",
                f"{1e3 * first.seconds:.0f}",
            ]
        )
    return head, body


def plain(head: list[str], body: list[list[str]]) -> str:
    """Return the table for a terminal."""
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in [head, *body]
    ]
    return "\n".join(lines)


def rst(head: list[str], body: list[list[str]]) -> str:
    """Return the table in reStructuredText."""
    lines = [".. list-table::", "   :header-rows: 1", "   :class: otflow-numbers", ""]
    for row in [head, *body]:
        for i, cell in enumerate(row):
            lines.append(f"   {'*' if i == 0 else ' '} - {cell}")
    return "\n".join(lines)


def particles(d: int, n: int = 10_000, dt: float = 0.005) -> str:
    """Return a line on Langevin particles, for one target."""
    problem = Problem.draw(d, 0)
    cloud = problem.sample(n, dt)
    law = problem.run(of.Langevin(), dt)
    return (
        f"Langevin, d = {d}, dt = {dt:g}, one target: {n} particles SymKL of their "
        f"moments {cloud.symmetric_kl:.1e}, W2 {cloud.w2:.1e}, {cloud.seconds:.1f} s; "
        f"the law of infinitely many {law.symmetric_kl:.1e}, {law.w2:.1e}, "
        f"{law.seconds:.1f} s"
    )


def ratios(rows: dict[int, dict[str, Error]]) -> list[Row]:
    """Return our SymKL over the published one."""
    found = []
    for d, errors in rows.items():
        for name, error in errors.items():
            ratio = error.symmetric_kl / PUBLISHED["ICNN"][d - 1]
            label = f"Ornstein-Uhlenbeck, d = {d}, {name}: SymKL / published ICNN"
            found.append(at_most(label, ratio, 1.0))
    return found


def run() -> list[Row]:
    """Return the ratios in two dimensions of the table."""
    return ratios(table(jko_schemes(), (2, 12)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ornstein_uhlenbeck")
    parser.add_argument("--rst", action="store_true", help="print reStructuredText")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # matrices of 12 x 12 at most
    rows = table(jko_schemes())
    head, body = columns(rows)
    print((rst if options.rst else plain)(head, body))
    if not options.rst:
        for d in (2, 12):
            print(particles(d))
        show(ratios({d: rows[d] for d in (2, 12)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
