"""Closed forms of enclosures: fields of kernels, correlations of neurons."""

from typing import Any

import pytest
import torch

import otflow as of
from otflow.kernels import PowerLaw, Quadratic, Riesz
from otflow.numerics.enclosures import Enclosure
from otflow.optimality.enclosing import variation_on_boxes

F64 = torch.float64
KERNELS: dict[str, Any] = {
    "Gaussian": of.kernels.Gaussian(0.4),
    "narrow": of.kernels.Gaussian(0.02),
    "multiquadric": of.kernels.InverseMultiquadric(0.5),
    "steep multiquadric": of.kernels.InverseMultiquadric(3.0, power=40.0),
    "energy": of.kernels.Energy(),
    "quadratic": Quadratic(),
    "power law": PowerLaw(4, 2),
    "kinked power law": PowerLaw(3, 1),
    "logarithm": of.kernels.Log(),
    "Riesz": Riesz(1.0),
    "combination": of.kernels.Gaussian(0.4) - 2 * of.kernels.Energy(),
}


def normal(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=F64)


def derivatives(f, x):
    """Values, gradients and Hessians of f at points, as rows."""
    leaf = x.clone().requires_grad_()
    value = f(leaf)
    (slope,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
    rows = [value, *slope.T]
    for i in range(x.shape[1]):
        (bend,) = torch.autograd.grad(slope[:, i].sum(), leaf, retain_graph=True)
        rows += [bend[:, j] for j in range(i, x.shape[1])]
    return torch.stack([row.detach() for row in rows])


def contained(found, exact, slack):
    slack = slack * (1 + exact.abs())
    assert bool((found.rows[0] <= exact + slack).all())
    assert bool((found.rows[1] >= exact - slack).all())


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("width", [0.0, 1e-3, 0.3])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_fields_of_kernels_lie_in_their_enclosures(name, d, width, offset):
    W = KERNELS[name]
    y, masses = offset + normal(12, d, seed=1), normal(12, seed=2)
    x = offset + normal(60, d, seed=3)
    low, high = x - width * normal(60, d, seed=4).abs(), x + width
    box = Enclosure.of(low, high, 2)

    def field(at):
        s = (at[:, None] - y).square().sum(-1)
        terms = W.terms()
        return sum(c * (V.profile(s) * masses).sum(-1) for c, V in terms)

    found = W.enclosed_field(box, y, masses)
    exact = derivatives(field, x)
    # The derivatives by autodiff are off by round-off, the more so of a narrow kernel.
    scale = 2500.0 if name == "narrow" else 1.0
    contained(found, exact, 1e-12 * scale)
    if width == 0.0 and name not in ("logarithm", "Riesz", "energy"):
        # Taylor's formula pays for the width of the cloud, in units of the kernel.
        assert float((found.rows[1] - found.rows[0]).max()) < 1e-7 * scale
    lower = Enclosure.of(x, x, 0)
    contained(W.enclosed_field(lower, y, masses), exact[:1], 1e-14)


def test_fields_shrink_by_the_order_of_taylors_formula():
    y, masses = normal(12, 2, seed=1), normal(12, seed=2)
    x = normal(20, 2, seed=3)
    widths = []
    for size in (0.02, 0.01):
        box = Enclosure.of(x, x + size, 2)
        rows = of.kernels.Gaussian(0.4).enclosed_field(box, y, masses).rows
        widths.append(float((rows[1] - rows[0])[3:].mean()))
    assert widths[1] < 0.55 * widths[0]


def test_masses_of_both_signs_cancel():
    mu = of.Particles(normal(30, 2, seed=1))
    F = of.MMDTo(mu, of.kernels.Gaussian(0.5)) + 0.5 * of.MMDTo(
        mu, of.kernels.Gaussian(0.5)
    )
    x = normal(10, 2, seed=2)
    box = Enclosure.of(x, x + 0.01, 2)
    together = variation_on_boxes(F, mu)(box)
    apart = F.enclosed_variation(mu)(box)
    wide = [float((t.rows[1] - t.rows[0]).max()) for t in (together, apart)]
    assert wide[0] < 0.3 * wide[1]
    contained(together, torch.zeros(6, 10, dtype=F64), 0.0)


class Mine(of.kernels.RadialKernel):
    """A kernel of a user's own, by its profile and slope alone."""

    def profile(self, s):
        return 1 / (1 + s)

    def slope(self, s):
        return -1 / (1 + s) ** 2


class Wide(of.kernels.Gaussian):
    """A subclass with another profile."""

    def profile(self, s):
        return 1 / (1 + s)

    def slope(self, s):
        return -1 / (1 + s) ** 2


@pytest.mark.parametrize("W", [Mine(), Wide(1.0)], ids=["own", "subclass"])
def test_kernels_of_ones_own_are_enclosed_by_their_profile(W):
    y, masses = normal(8, 2, seed=1), normal(8, seed=2)
    x = normal(30, 2, seed=3)
    found = W.enclosed_field(Enclosure.of(x, x + 0.1, 2), y, masses)

    def field(at):
        return (W.profile((at[:, None] - y).square().sum(-1)) * masses).sum(-1)

    contained(found, derivatives(field, x), 1e-13)


@pytest.mark.parametrize("unit", ["relu", "tanh", "sigmoid", "erf"])
@pytest.mark.parametrize("outputs", [None, 2])
@pytest.mark.parametrize("width", [0.0, 0.1])
def test_neurons_lie_in_their_enclosures(unit, outputs, width):
    X = normal(9, 2, seed=1)
    y = normal(9, seed=2) if outputs is None else normal(9, 2, seed=2)
    network = of.meanfield.TwoLayer(unit, outputs=outputs)
    F = of.meanfield.Risk(network, X, y)
    p = (outputs or 1) + 3
    mu = of.Particles(normal(7, p, seed=3))
    x = normal(40, p, seed=4)
    found = F.enclosed_variation(mu)(Enclosure.of(x, x + width, 2))
    contained(found, derivatives(lambda at: F.first_variation(mu, at), x), 1e-13)
    if width == 0.0:
        assert float((found.rows[1] - found.rows[0]).max()) < 1e-12
    # The closed form and the operations one by one are enclosures of the same.
    own = of.meanfield.CustomLayer(
        lambda inputs, theta: network.sigma(network.encode(inputs), theta),
        outputs=outputs,
    )
    other = of.meanfield.Risk(own, X, y)
    slow = other.enclosed_variation(mu)(Enclosure.of(x, x + width, 2))
    low = torch.maximum(slow.rows[0], found.rows[0])
    high = torch.minimum(slow.rows[1], found.rows[1])
    assert bool((low <= high).all())
