"""Landscapes between measures: no barrier along mixtures, one along geodesics."""

import math
import re

import pytest
import torch

import otflow as of
from otflow.analysis import landscape
from otflow.errors import NonFinite, Unsupported
from otflow.meanfield import PopulationRisk, Risk, TwoLayer


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


WELLS = of.Potential(lambda x: (1 - x.square()).square().sum(-1))


def test_a_double_well_has_its_barrier_on_the_geodesic_alone():
    a, b = (of.Particles(torch.full((3, 2), x, dtype=torch.float64)) for x in (-1, 1))
    view = landscape(WELLS, a, b, times=41)
    # Straight from -1 to 1 in two dimensions: 2 (1 - s^2)^2, s = 2 t - 1.
    exact = 2 * (1 - (2 * view.times - 1).square()).square()
    torch.testing.assert_close(view.geodesic, exact)
    assert view.mixture.abs().max() < 1e-15
    assert view.barrier("geodesic") == pytest.approx(2.0)
    assert view.climb("geodesic") == pytest.approx(2.0)
    assert view.barrier("mixture") == view.climb("mixture") == 0.0


@pytest.mark.parametrize("loss", ["square", "logistic"])
def test_no_network_lies_in_a_spurious_valley_along_mixtures(loss):
    """From anywhere the risk falls on the straight line to a minimiser."""
    X = normal(30, 2, seed=1)
    network = TwoLayer("relu", bias=False)
    best = of.Particles(normal(4, 3, seed=2))
    f = network(best, X)
    # The least logistic loss at labels f/|f| is not attained; that of its own
    # probabilities would be. So the logistic risk is asked for a barrier only.
    y = f if loss == "square" else torch.where(f > 0, 1.0, -1.0)
    F = Risk(network, X, y, loss=loss)
    for seed in range(10):
        start = of.Particles(3 * normal(5 + seed, 3, seed=10 + seed))
        view = landscape(F, start, best, times=17)
        round_off = 1e-14 * float(view.mixture.max())
        assert view.barrier("mixture") <= round_off
        if loss == "square":
            assert view.climb("mixture") <= round_off
            # F is quadratic: F((1-t) mu + t nu*) = (1 - t)^2 F(mu).
            fall = (1 - view.times).square() * view.mixture[0]
            torch.testing.assert_close(view.mixture, fall, atol=1e-12, rtol=1e-10)


def test_two_scales_of_one_network_have_a_barrier_on_the_geodesic():
    """Neurons (a, w) and (a/c, c w) are one ReLU network; their means are another."""
    X, theta = normal(30, 2, seed=1), normal(4, 3, seed=2)
    F = Risk(
        TwoLayer("relu", bias=False),
        X,
        TwoLayer("relu", bias=False)(of.Particles(theta), X),
    )
    scales = torch.tensor([1 / 4, 4.0, 4.0], dtype=torch.float64)
    view = landscape(F, of.Particles(theta), of.Particles(theta * scales))
    assert view.mixture.max() < 1e-28
    # Half-way each neuron is (5 a / 8, 5 w / 2): 25/16 of its output.
    half = (25 / 16 - 1) ** 2 * F(of.Particles(0 * theta))
    assert view.geodesic[10] == pytest.approx(float(half), rel=1e-12)


def ends(width, seeds, teacher, steps=600):
    """Train students of a width on the population risk; return them and the risk."""
    F = PopulationRisk(teacher, "relu", "gaussian")
    found = []
    for seed in seeds:
        theta = normal(width, teacher.dim, seed=seed)
        theta[:, 0] = theta[:, 0].sign()
        theta[:, 1:] /= theta[:, 1:].norm(dim=1, keepdim=True)
        run = of.flow(F, of.Particles(theta), of.ExplicitEuler(), dt=0.2, steps=steps)
        found.append(run.final)
    return F, found


@pytest.mark.slow
def test_valleys_vanish_and_barriers_fall_with_the_width():
    teacher = normal(3, 6, seed=5)
    teacher[:, 0] = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
    teacher[:, 1:] /= teacher[:, 1:].norm(dim=1, keepdim=True)
    teacher = of.Particles(teacher)
    worst, barriers = {}, {}
    for width in (3, 12, 48, 192):
        F, found = ends(width, range(8 if width < 100 else 4), teacher)
        zero = F(of.Particles(torch.zeros_like(teacher.points)))
        worst[width] = max(float(F(mu) / zero) for mu in found)
        pairs = zip(found[::2], found[1::2], strict=True)
        views = [landscape(F, a, b) for a, b in pairs]
        assert all(v.barrier("mixture") < 1e-12 for v in views)
        barriers[width] = sum(v.barrier("geodesic") for v in views)
        barriers[width] /= len(views) * float(zero)
    # As wide as the teacher, one start of eight is caught where little is learnt.
    # From 48 neurons on no start is.
    assert worst[3] > 0.5
    assert max(worst[48], worst[192]) < 0.02
    # Found 2e-2, 2e-3, 3e-4: wide networks of other starts are close to one another.
    assert barriers[12] > 3 * barriers[48] > 9 * barriers[192]


def test_ends_are_those_of_both_paths_and_dtypes_are_kept():
    a, b = (of.Particles(normal(4, 2, seed=s).float()) for s in (1, 2))
    view = landscape(WELLS, a, b, times=[0.0, 0.1, 1.0])
    assert view.mixture.dtype == view.times.dtype == torch.float32
    for values in (view.mixture, view.geodesic):
        assert values[0] == WELLS(a)
        assert values[-1] == WELLS(b)
    weights = torch.tensor([0.5, 0.5])
    other = of.Particles(torch.ones(2, 2), weights)
    assert landscape(WELLS, a, other).geodesic[-1] == 0.0
    leaf = of.Particles(a.points.clone().requires_grad_())
    assert not landscape(WELLS, leaf, b).mixture.requires_grad


def test_grids_have_a_landscape():
    rho, sigma = (
        of.GridDensity.from_function(
            lambda x, c=c: torch.exp(-8 * (x - c).square().sum(-1)), -3.0, 3.0, (30, 30)
        ).to(torch.float64)
        for c in (-1.0, 1.0)
    )
    view = landscape(WELLS, rho, sigma, times=3)
    assert view.barrier("mixture") < 1e-12
    assert view.geodesic[1] > 1.5
    assert re.fullmatch(
        r"Landscape\(3 times, from [\d.]+ to [\d.]+; barriers: mixture \S+, geodesic "
        rf"{view.barrier('geodesic'):.4g}\)",
        repr(view),
    )


def test_bad_input_raises_with_a_cure():
    a, b = of.Particles(normal(3, 1)), of.Particles(normal(3, 1, seed=1))
    with pytest.raises(ValueError, match=r"must run from 0 to 1, got 0 to 0\.5"):
        landscape(WELLS, a, b, times=[0.0, 0.25, 0.5])
    words = r"path must be one of \['geodesic', 'mixture'\]"
    with pytest.raises(ValueError, match=words):
        landscape(WELLS, a, b).barrier("straight")
    gaussian = of.Gaussian(torch.zeros(1), torch.eye(1))
    with pytest.raises(Unsupported, match="mix draws of both"):
        landscape(WELLS, gaussian, gaussian)
    with pytest.raises(TypeError):
        landscape(WELLS, a, b.points)
    with pytest.raises(TypeError, match="dtype"):
        landscape(WELLS, a, of.Particles(normal(3, 1).float()))
    pole = of.Potential(lambda x: torch.where(x[:, 0] > 0, math.inf, x[:, 0]))
    with pytest.raises(NonFinite):
        landscape(pole, a, b)


def test_a_barrier_between_ends_at_both_ends_of_the_numbers():
    """Their difference is no number, and the height above the line is one."""
    V = of.Potential(lambda x: 1.5e308 * (2 * x[:, 0]).clamp(-1, 1))
    a, b = (of.Particles(torch.full((1, 1), x, dtype=torch.float64)) for x in (-1, 1))
    view = landscape(V, a, b, times=9)
    assert view.barrier("geodesic") == pytest.approx(0.75e308)
    assert view.barrier("mixture") <= 1e-15 * 1.5e308


def test_a_landscape_of_the_ends_alone_has_no_barrier():
    ends = torch.tensor([0.0, 1.0])
    view = of.analysis.Landscape(ends, ends + 1, 2 - ends)
    assert view.barrier("mixture") == view.barrier("geodesic") == 0.0
    assert (view.climb("mixture"), view.climb("geodesic")) == (1.0, 0.0)


@pytest.mark.parametrize("path", ["straight", None, ["mixture"], 0])
def test_an_unknown_path_raises(path):
    ends = torch.tensor([0.0, 1.0])
    view = of.analysis.Landscape(ends, ends, ends)
    for height in (view.barrier, view.climb):
        with pytest.raises((ValueError, TypeError), match="path must be"):
            height(path)
