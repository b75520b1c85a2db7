r"""The flows that the galleries of GeomLoss and POT show, step by step, in time.

GeomLoss moves each of N points by ``-lr * N * gradient``. Its losses have the factors
of the functionals here: half the squared kernel distance, and a divergence that tends
to :math:`\tfrac12 W_2^2`. So its ``lr`` is the time step dt.

POT moves points by ``-lr * gradient``, without the weights 1/n, so dt = lr / n for the
loss itself. ``ot.emd2`` is :math:`W_2^2 = 2F`: dt = 2 lr / n. Its sliced loss is
:math:`SW_2 = \sqrt{2F}` without the square, whose gradient is that of F over the
distance: dt = lr / (n SW_2), so time does not pass evenly.
"""

from __future__ import annotations

import geomloss
import ot
import pytest
import torch
from torch import Tensor

import otflow as of

F64 = torch.float64
pytestmark = pytest.mark.slow  # hundreds of steps of two libraries


def descend(loss, x: Tensor, rate: float, steps: int) -> Tensor:
    """Return the points after each step of -rate times the gradient, by autograd."""
    path = [x]
    for _ in range(steps):
        at = path[-1].clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(at), at)
        path.append(path[-1] - rate * slope)
    return torch.stack(path)


def flow(F, x: Tensor, dt: float, steps: int) -> Tensor:
    """Return the points after each explicit Euler step."""
    options = {"dt": dt, "steps": steps, "record": {"x": lambda mu: mu.points}}
    return of.flow(F, of.Particles(x), of.ExplicitEuler(), **options).records["x"]


def gap(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


# GeomLoss -----------------------------------------------------------------------------


def intervals():
    """Return the 50 points in (0, 0.2) that flow to 50 points in (0.6, 1)."""
    t = torch.linspace(0, 1, 50, dtype=F64)[:, None]
    return 0.2 * t, 0.6 + 0.4 * t


def blobs():
    """Return 100 points of a bent blob in the unit square, and 100 of a ring."""
    g = torch.Generator().manual_seed(0)
    t = torch.rand(100, 2, generator=g, dtype=F64)
    bent = torch.stack([0.1 + 0.3 * t[:, 0], 0.6 + 0.2 * t[:, 1] + t[:, 0] ** 2 / 9], 1)
    angle = 2 * torch.pi * torch.rand(100, generator=g, dtype=F64)
    ring = torch.stack([angle.cos(), angle.sin()], 1)
    wide = 0.15 + 0.03 * torch.rand(100, 1, generator=g, dtype=F64)
    return bent, torch.tensor([0.7, 0.35], dtype=F64) + wide * ring


GALLERY = {"1D": (intervals, 0.01), "2D": (blobs, 0.05)}


@pytest.mark.parametrize("name", GALLERY)
@pytest.mark.parametrize("sigma", [0.5, 0.1])
def test_geomloss_s_gaussian_flow_is_that_of_mmd(name, sigma):
    make, dt = GALLERY[name]
    (x, y), steps = make(), round(5 / dt)
    loss = geomloss.SamplesLoss("gaussian", blur=sigma)
    theirs = descend(lambda z: loss(z, y), x, dt * len(x), steps)
    ours = flow(of.MMDTo(y, of.kernels.Gaussian(sigma)), x, dt, steps)
    assert gap(ours[-1], ours[0]) > 0.1
    assert gap(ours, theirs) < 1e-11


@pytest.mark.parametrize("name", GALLERY)
def test_geomloss_s_energy_flow_is_that_of_the_energy_distance(name):
    # GeomLoss rounds distances below 1e-4 up to it. The only difference begins where
    # points first come so close.
    make, dt = GALLERY[name]
    (x, y), steps = make(), round(5 / dt)
    loss = geomloss.SamplesLoss("energy")
    theirs = descend(lambda z: loss(z, y), x, dt * len(x), steps)
    ours = flow(of.EnergyDistanceTo(y), x, dt, steps)
    assert gap(ours[-1], ours[0]) > 0.4
    assert gap(ours[:10], theirs[:10]) < 1e-11
    assert gap(ours, theirs) < 2e-3


@pytest.mark.parametrize("name", GALLERY)
@pytest.mark.parametrize(
    ("blur", "reach"), [(1.0, None), (0.1, None), (0.01, None), (0.01, 0.3)]
)
def test_geomloss_s_sinkhorn_flow_tends_to_that_of_the_divergence(name, blur, reach):
    """With a finer annealing its one sweep for each blur is closer to the solution."""
    make, dt = GALLERY[name]
    (x, y), steps = make(), round(0.5 / dt)
    ours = flow(of.SinkhornDivergenceTo(y, blur, reach), x, dt, steps)
    errors = []
    for scaling in (0.5, 0.98):
        options = {"p": 2, "blur": blur, "reach": reach, "scaling": scaling}
        loss = geomloss.SamplesLoss("sinkhorn", **options)
        theirs = descend(lambda z, f=loss: f(z, y), x, dt * len(x), steps)
        errors.append(float((ours - theirs).abs().mean()))
    assert gap(ours[-1], ours[0]) > 0.1
    # At a blur of 1 there is nothing to anneal.
    assert errors[1] < 0.2 * errors[0] or errors[1] < 1e-5
    assert errors[1] < 6e-4


# POT ----------------------------------------------------------------------------------


def pictures():
    """Return the pixels of a cross, and those of a disk 60 pixels beside it."""
    k = torch.arange(20, dtype=F64)
    pixels = torch.cartesian_prod(k, k)
    apart = (pixels - 9.5).abs()
    cross = pixels[(apart < 3).any(1)]
    disk = pixels[apart.norm(dim=1) < 8] + torch.tensor([60.0, 0.0])
    return cross, disk


def test_pot_s_sliced_flow_has_its_own_clock():
    x, y = pictures()
    assert len(x) != len(y)
    g = torch.Generator().manual_seed(42)
    mu, at, time = of.Particles(x), x, 0.0
    for k in range(50):
        units = torch.nn.functional.normalize(
            torch.randn(20, 2, generator=g, dtype=F64), dim=1
        )
        rate = 1e3 / (1 + k / 50)

        def distance(z, units=units):
            return ot.sliced_wasserstein_distance(z, y, projections=units.T)

        at = descend(distance, at, rate, 1)[-1]
        F = of.SlicedWassersteinTo(y, units)
        value = float(F.value(mu))
        assert (2 * value) ** 0.5 == pytest.approx(float(distance(mu.points)), rel=1e-9)
        dt = rate / (len(x) * (2 * value) ** 0.5)
        mu = of.flow(F, mu, of.ExplicitEuler(), dt=dt, steps=1).final
        time += dt
        assert gap(mu.points, at) < 1e-8 * 60
    assert time > 10
    assert value < 1e-3 * 60**2


@pytest.mark.parametrize("n", [80, 100])
def test_pot_s_exact_flow_has_twice_the_speed(n):
    # The law of the data in its example of a generator: a ring with noise.
    g = torch.Generator().manual_seed(1)
    angle = 2 * torch.pi * torch.rand(100, generator=g, dtype=F64)
    y = torch.stack([angle.cos(), angle.sin()], 1)
    y = y + 0.1 * torch.randn(100, 2, generator=g, dtype=F64)
    x = 0.3 * torch.randn(n, 2, generator=g, dtype=F64)
    a, b = (torch.full((len(z),), 1 / len(z), dtype=F64) for z in (x, y))
    lr, steps = 0.05 * n, 20
    theirs = descend(lambda z: ot.emd2(a, b, ot.dist(z, y)), x, lr, steps)
    ours = flow(of.SquaredDistanceTo(y), x, 2 * lr / n, steps)
    assert gap(ours, theirs) < 1e-9
    left = (1 - 2 * lr / n) ** steps  # while the plan stays optimal
    value = of.SquaredDistanceTo(y).value
    ends = [float(value(of.Particles(z))) ** 0.5 for z in (ours[-1], ours[0])]
    if n == len(y):
        assert ends[0] == pytest.approx(left * ends[1], rel=1e-9)
