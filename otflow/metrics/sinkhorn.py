r"""The debiased Sinkhorn divergence: a smooth approximation of half of W2 squared."""

from __future__ import annotations

import torch
from torch import Tensor

from otflow._lazy import lazy_import
from otflow._validation import positive
from otflow.metrics.inputs import Cloud, CloudLike, check_memory, clouds

__all__ = ["sinkhorn_divergence"]


def sinkhorn_divergence(
    mu: CloudLike,
    nu: CloudLike,
    *,
    blur: float,
    scaling: float = 0.9,
    reach: float | None = None,
) -> Tensor:
    r"""Return :math:`S_\varepsilon(\mu,\nu) = OT_\varepsilon(\mu,\nu) - \tfrac12 OT_\varepsilon(\mu,\mu) - \tfrac12 OT_\varepsilon(\nu,\nu)`.

    Here :math:`OT_\varepsilon` has the cost :math:`|x-y|^2/2`, **with** the 1/2, and
    :math:`\varepsilon = \mathrm{blur}^2`, so :math:`S_\varepsilon \to W_2^2/2` as the
    blur vanishes :cite:p:`feydy2019interpolating`: twice it to compare with
    `wasserstein2_squared`; divide it by dt, not 2 dt, in a JKO step. Differentiable
    once in points and weights.

    Parameters
    ----------
    mu, nu : Particles, Tensor or ndarray
        Measures; points (n, d) stand for equal weights 1/n.
    blur : float
        Scale below which distances are blurred, > 0, in the units of the points. Near
        the spacing of the points it is a good approximation, above it a fast one.
    scaling : float
        Factor between the successive blurs of the annealing, in (0, 1). Towards 1 more
        accurate and slower; 0.5, the default of GeomLoss, can be 27 % off.
    reach : float, optional
        Unbalanced transport: mass that would travel much further is destroyed and
        created instead, at the cost :math:`\mathrm{reach}^2\,\mathrm{KL}` of either
        marginal. Balanced by default.

    Returns
    -------
    Tensor
        0-d, in the dtype and on the device of `mu`. The divergence is non-negative;
        what the finite number of iterations leaves may be slightly below 0.

    Raises
    ------
    ValueError
        If dimensions or devices differ, a point is not finite, blur or reach is not
        positive, scaling is not in (0, 1), or the blur is too small for the dtype.
    TypeError
        If dtypes differ, or a measure is not made of atoms.
    MemoryError
        If the kernel matrices would exceed half of the memory of the device.

    See Also
    --------
    otflow.metrics.wasserstein2_squared : Exact, with kinks; up to some 5,000 points.

    Notes
    -----
    GeomLoss's ``SamplesLoss(p=2)`` on dense matrices, in the dtype of the points: time
    O((n + m)^2 d) per iteration, of which there are about 2 log(diameter / blur) / -log
    scaling; memory 10 max(n, m)^2 numbers. Weights are divided by their sums.

    Examples
    --------
    >>> import torch, otflow as of
    >>> x = torch.tensor([[0.0], [1.0]])
    >>> of.metrics.sinkhorn_divergence(x, x + 2.0, blur=0.05)
    tensor(2.0000)
    """
    blur = positive(blur, "blur")
    reach = None if reach is None else positive(reach, "reach")
    scaling = positive(scaling, "scaling")
    if scaling >= 1:
        msg = f"scaling must lie in (0, 1), got {scaling}; try 0.9"
        raise ValueError(msg)
    p, q = clouds(mu, nu)
    x, y = p.points, q.points
    together = torch.cat([x.detach(), y.detach()])
    lower, upper = together.amin(0), together.amax(0)
    diameter = float((upper - lower).norm())
    _check_blur(blur, diameter, x.dtype)
    check_memory(
        10 * x.element_size() * max(len(x), len(y)) ** 2,
        f"a Sinkhorn divergence of {len(x)} and {len(y)} points",
        "take fewer points: Particles(mu.sample(n, generator))",
        x.device,
    )
    # GeomLoss expands |x - y|^2, which cancels away from the origin.
    centre = 0.5 * (lower + upper)
    loss = lazy_import("geomloss").SamplesLoss(
        "sinkhorn",
        p=2,
        blur=blur,
        reach=reach,
        # Annealing starts here; from 0, with all points equal, GeomLoss fails.
        diameter=max(diameter, blur),
        scaling=scaling,
        debias=True,
        # "auto" would ask for KeOps from 25e6 pairs on, installed or not.
        backend="tensorized",
    )
    recording = torch.is_grad_enabled()
    with torch.set_grad_enabled(recording):  # GeomLoss leaves gradients switched on
        value: Tensor = loss(_weights(p), x - centre, _weights(q), y - centre)
    return value if recording else value.detach()


def _weights(cloud: Cloud) -> Tensor:
    if cloud.weights is None:
        n = len(cloud.points)
        return cloud.points.new_full((n,), 1.0 / n)
    return cloud.weights / cloud.weights.sum()


def _check_blur(blur: float, diameter: float, dtype: torch.dtype) -> None:
    # Exponents are |x - y|^2 / 2 blur^2; their round-off must stay below 1.
    least = diameter * float(torch.finfo(dtype).eps) ** 0.5
    if blur < least or blur < float(torch.finfo(dtype).tiny) ** 0.5:
        msg = (
            f"blur = {blur:g} is too small in {dtype} for points {diameter:.3g} apart: "
            f"the kernel is all round-off below {least:.2g}; take a larger blur"
        )
        raise ValueError(msg)
