"""Transport distances to a given measure, exact and entropic."""

from __future__ import annotations

import torch
from torch import Tensor

from otflow._algebra import Curvature
from otflow._graphs import with_value
from otflow._typing import ArrayLike
from otflow._validation import positive
from otflow.errors import Unsupported
from otflow.functionals.base import Functional
from otflow.functionals.targets import as_atoms, as_target, atoms_of, check_space
from otflow.measures import Gaussian, GridDensity, Measure, Particles, Quantiles
from otflow.metrics import sinkhorn_divergence, wasserstein2_squared
from otflow.metrics.columns import cheapest
from otflow.metrics.plans import check_tolerance, couple
from otflow.metrics.sides import length_of
from otflow.metrics.steps import Steps

__all__ = ["SinkhornDivergenceTo", "SquaredDistanceTo"]


class SquaredDistanceTo(Functional):
    r"""Half the squared distance, :math:`F(\mu) = \tfrac12 W_2^2(\mu, \nu)`.

    The first variation is half the potential of the optimal plan
    :cite:p:`santambrogio2015optimal`, which off the atoms is the c-transform
    :math:`F'[\mu](x) = \tfrac12 \min_j (|x - y_j|^2 - g_j)`. The velocity is
    :math:`T(x_i) - x_i`, where :math:`T(x_i) = \frac1{a_i}\sum_j P_{ij} y_j` is the
    barycentre of what the plan P sends :math:`x_i` to. Off the atoms it is :math:`y_j -
    x`, where j attains the minimum. It runs over the atoms of the target with mass.

    A JKO step goes along the geodesic to :math:`\nu`, and multiplies the distance by
    :math:`1/(1 + dt)`. An explicit Euler step multiplies it by :math:`1 - dt`. Both
    hold exactly for equal atoms, as many as the target has, for Gaussians, and for
    quantiles.

    Parameters
    ----------
    nu : Particles, Tensor, ndarray, Gaussian, Quantiles or GridDensity
        The target; points (n, d) stand for equal weights 1/n. A `Gaussian` is the
        target of Gaussians, a density on the line (`Quantiles`, or a `GridDensity` in
        dimension 1) that of densities, and atoms that of particles and densities. As in
        `otflow.metrics.wasserstein2`, a density on the line is constant on its cells,
        and a `GridDensity` in dimension 2 or 3 stands for atoms at the centres.
    tolerance : float
        Relative accuracy of the squared distance between atoms that suffices, in
        [0, 1); see `otflow.metrics.transport_plan`. Exact by default.

    Attributes
    ----------
    target : Measure
        The measure nu.
    tolerance : float
        As above.

    Raises
    ------
    Unsupported
        If one of the measure and the target is a `Gaussian` and the other is not, or
        if the measure is made of particles and the target is a density on the line.
    TypeError, ValueError
        If dtypes, devices or dimensions differ.

    See Also
    --------
    SinkhornDivergenceTo : Smooth in the weights.
    otflow.SlicedWassersteinTo : For many points.

    Notes
    -----
    On `Quantiles` the distance is that of their `inner`, as in a JKO step:
    :math:`F = \tfrac12\sum_i \ell_i (q_i - Q_\nu(s_i))^2`, where :math:`s_i` is the
    level of :math:`q_i` and :math:`Q_\nu` the quantile function of the target. It
    differs from :math:`\tfrac12 W_2^2` of the densities in second order in the size of
    the cells, and is 0 at the cells of the target at these levels.

    F is convex along mixtures: plans from :math:`\mu_0` and :math:`\mu_1` to
    :math:`\nu` mix to a plan from the mixture, whose cost is the mean of theirs.

    The functional is 1-convex among densities on the line. It is not among other
    measures: in dimension 2 and above :math:`-F` is :math:`-1`-convex along geodesics,
    and F has kinks where the plan is not unique :cite:p:`ambrosio2008gradient`.

    Costs are those of `otflow.metrics.wasserstein2_squared`: O(n log n) on the line,
    about O(n^3) elsewhere, and O(d^3) between Gaussians.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.SquaredDistanceTo(torch.tensor([[0.0], [2.0]]))
    >>> mu = of.Particles(torch.tensor([[3.0], [1.0]]))
    >>> F.value(mu), F.velocity(mu)
    (tensor(0.5000), tensor([[-1.],
            [-1.]]))
    """

    def __init__(self, nu: Measure | ArrayLike, *, tolerance: float = 0.0) -> None:
        self.target = as_target(nu)
        self.tolerance = check_tolerance(tolerance)

    def value(self, mu: Measure) -> Tensor:
        nu = self.target
        # Atoms and densities on the line have a distance too, but no modulus: atoms can
        # be coupled across one another. `modulus` does not know what it is asked for.
        mixed = isinstance(mu, Gaussian) != isinstance(nu, Gaussian)
        if mixed or (isinstance(mu, Particles) and _on_line(nu)):
            msg = (
                f"no distance from a {type(mu).__name__} in dimension {mu.dim} to a "
                f"{type(nu).__name__} in dimension {nu.dim} is known; {_cure(mu, nu)}"
            )
            raise Unsupported(msg)
        check_space(mu, nu)
        steps = Steps.of(nu) if isinstance(mu, Quantiles) else None
        if isinstance(mu, Quantiles) and steps is not None:
            apart = mu.edges - quantiles_at(steps, mu.weights).to(mu.edges)
            return 0.5 * (mu.lumped @ apart.square())
        return 0.5 * wasserstein2_squared(mu, nu, tolerance=self.tolerance)  # type: ignore[arg-type]

    def _velocity_at(self, mu: Measure, x: Tensor) -> Tensor:
        r"""Return :math:`y_j - x` for a j that attains the minimum in F'(x)."""
        nu = self.target
        if not (_has_atoms(mu) and _has_atoms(nu)):
            return super()._velocity_at(mu, x)
        check_space(mu, nu)
        at, p, q = (
            (z - nu.points[0]).detach().to("cpu", torch.float64)
            for z in (x, mu.points, nu.points)
        )
        a, b = (m.weights.detach().to("cpu", torch.float64) for m in (mu, nu))
        # Nothing goes to an atom without mass, such as an empty cell of a picture.
        full = (b > 0).nonzero()[:, 0]
        q, b = q[full], b[full]
        g = couple(p, a / a.sum(), q, b / b.sum(), self.tolerance).g
        index = full[cheapest(at, q, g, 1)[1][:, 0]]
        return nu.points[index.to(x.device)] - x

    def modulus(self, dim: int) -> float | None:
        return 1.0 if dim == 1 and _on_line(self.target) else None

    def why_modulus(self, dim: int) -> str:
        if _on_line(self.target):
            return (
                "since W2 between densities on the line is a distance of a flat space"
            )
        if dim == 1:
            return (
                "since it is 1-convex along geodesics on the line alone, and a modulus "
                "holds along every coupling: analysis.falsify tells both apart"
            )
        return "since the squared distance is not convex along geodesics off the line"

    def mixture_curvature(self) -> Curvature:
        return Curvature.CONVEX

    def why_mixture(self) -> str:
        return "since plans of two measures mix to a plan of their mixture"

    def __repr__(self) -> str:
        return f"SquaredDistanceTo({self.target!r})"


class SinkhornDivergenceTo(Functional):
    r"""The debiased Sinkhorn divergence to a measure, about :math:`\tfrac12 W_2^2`.

    .. math:: F(\mu) = S_\varepsilon(\mu, \nu) = \mathrm{OT}_\varepsilon(\mu, \nu)
        - \tfrac12\mathrm{OT}_\varepsilon(\mu, \mu)
        - \tfrac12\mathrm{OT}_\varepsilon(\nu, \nu), \qquad
        \varepsilon = \mathrm{blur}^2, \quad c(x, y) = \tfrac12|x - y|^2

    :cite:p:`feydy2019interpolating`. F is smooth in points and weights, at least 0, and
    0 at the target alone. The first variation is the difference of the potentials of
    the first two terms.

    Parameters
    ----------
    nu : Particles, Tensor or ndarray
        The target; points (n, d) stand for equal weights 1/n.
    blur : float
        Length below which details are not seen, > 0.
    reach : float, optional
        Length beyond which mass is destroyed and created rather than moved; balanced by
        default.

    Attributes
    ----------
    target : Particles
        The measure nu.
    blur, reach
        As above.

    Raises
    ------
    ValueError
        If blur or reach is not positive, or dimensions or devices differ.
    TypeError
        If the target has no atoms, or dtypes differ.
    Unsupported
        If the measure has no atoms.

    See Also
    --------
    SquaredDistanceTo : The limit of a blur of 0.

    Notes
    -----
    Costs and other errors are those of `otflow.metrics.sinkhorn_divergence`: time and
    memory O((n + m)^2).

    Without a `reach`, F is convex along mixtures: :math:`e^{-c/\varepsilon}` is a
    Gaussian kernel, which is positive and universal, and then the divergence is convex
    in each of its measures, on every bounded set (Theorem 1 of
    :cite:t:`feydy2019interpolating`). With a `reach` no curvature is declared.

    Examples
    --------
    >>> import torch, otflow as of
    >>> x = torch.tensor([[0.0], [1.0]])
    >>> F = of.SinkhornDivergenceTo(x + 4.0, blur=0.01)
    >>> F.value(of.Particles(x))
    tensor(8.)
    """

    def __init__(
        self, nu: Particles | ArrayLike, blur: float, reach: float | None = None
    ) -> None:
        self.target = as_atoms(nu, "SinkhornDivergenceTo")
        self.blur = length_of(blur, "SquaredDistanceTo")
        self.reach = None if reach is None else positive(reach, "reach")

    def value(self, mu: Measure) -> Tensor:
        atoms = atoms_of(mu, self.target, "SinkhornDivergenceTo")
        return sinkhorn_divergence(atoms, self.target, blur=self.blur, reach=self.reach)

    def mixture_curvature(self) -> Curvature | None:
        return Curvature.CONVEX if self.reach is None else None

    def why_mixture(self) -> str:
        if self.reach is None:
            return "since exp(-c/blur^2) is a Gaussian, a positive universal kernel"
        return "since convexity is known for balanced transport: leave reach out"

    def __repr__(self) -> str:
        reach = "" if self.reach is None else f", reach={self.reach:g}"
        return f"SinkhornDivergenceTo({self.target!r}, blur={self.blur:g}{reach})"


def quantiles_at(steps: Steps, masses: Tensor) -> Tensor:
    r"""Return the quantiles of a density on the line at the ends of cells of masses.

    At a level where the quantile function jumps they are the mean of both ends of the
    jump. Levels count from the nearer end, so that small masses at both ends are exact.

    Parameters
    ----------
    steps : Steps
        The density.
    masses : Tensor, shape (n,)
        Positive masses of sum 1.

    Returns
    -------
    Tensor, shape (n + 1,)
        Quantiles, float64, increasing, with the graphs of both.
    """
    full = steps.masses.detach() > 0
    left, right, m = steps.left[full], steps.right[full], steps.masses[full]
    masses = masses.double() / masses.double().sum()
    below = _from_below(left, right, m, masses)
    above = -_from_below(-right.flip(0), -left.flip(0), m.flip(0), masses.flip(0))
    is_low = torch.cat([masses.new_zeros(1), masses.detach().cumsum(0)]) <= 0.5
    return torch.where(is_low, below, above.flip(0))


def _from_below(left: Tensor, right: Tensor, m: Tensor, masses: Tensor) -> Tensor:
    levels = torch.cat([masses.new_zeros(1), masses.cumsum(0)])
    ends = m.cumsum(0)
    starts = ends - m
    # A level is a sum of positive masses: its error is relative to it. A level that
    # meets the end of a cell up to round-off is that end.
    s = levels.detach()
    slack = (len(m) + len(masses)) * torch.finfo(m.dtype).eps * s
    last = len(m) - 1
    values = []
    for cell, meets, at in (
        (torch.searchsorted(ends.detach(), s - slack), 1, right),
        (torch.searchsorted(ends.detach(), s + slack, right=True), 0, left),
    ):
        j = cell.clamp(0, last)
        edge = (ends if meets else starts)[j]
        share = (levels - starts[j]) / m[j]
        share = with_value(share, share.clamp(0.0, 1.0))
        near = (edge.detach() - s).abs() <= slack
        # The derivative in masses at the end of a cell is that within the cell.
        share = with_value(share, torch.where(near, float(meets), share))
        inside = left[j] + share * (right[j] - left[j])
        values.append(with_value(inside, torch.where(near, at[j], inside)))
    return 0.5 * (values[0] + values[1])


def _has_atoms(mu: Measure) -> bool:
    """Return whether a measure stands for atoms in a distance."""
    return isinstance(mu, Particles) or (isinstance(mu, GridDensity) and mu.dim > 1)


def _on_line(mu: Measure) -> bool:
    """Return whether a measure is a density on the line."""
    return isinstance(mu, Quantiles) or (isinstance(mu, GridDensity) and mu.dim == 1)


def _cure(mu: Measure, nu: Measure) -> str:
    """Return how two measures become comparable, by a change of the target."""
    if isinstance(mu, Gaussian):
        draws = "nu.points" if isinstance(nu, Particles) else "nu.sample(1000, g)"
        return f"give a Gaussian target, e.g. Gaussian.from_samples({draws})"
    if _on_line(mu):
        return "give a density, e.g. Quantiles.from_samples(nu.sample(1000, g), 100)"
    return "draw atoms of the target: Particles(nu.sample(1000, generator))"
