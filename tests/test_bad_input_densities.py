"""Every mistake with a density: a typed error with its cause and its cure."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import otflow as of
from otflow.testing.clouds import normal
from tests.refusals import refused

NAN, INF = float("nan"), float("inf")
EYE = torch.eye(2, dtype=torch.float64)
ZERO = torch.zeros(2, dtype=torch.float64)


def changed(entry, value):
    """Return the uniform density on 4 x 5 cells with one entry changed."""
    rho = torch.ones(4, 5, dtype=torch.float64)
    rho[entry] = value
    return rho


def grid(rho, **options):
    """Return a density on the unit square."""
    return of.GridDensity(rho, 0.0, 1.0, **{"walls": True, **options})


def bump(n=64, **options):
    """Return a smooth density on the unit interval."""
    return of.GridDensity.from_function(
        lambda x: torch.exp(-50 * (x - 0.5).square().sum(-1)),
        *(0.0, 1.0, (n,)),
        dtype=torch.float64,
        **options,
    )


# Densities on grids -------------------------------------------------------------------

DENSITIES = {
    "negative": (
        lambda: grid(changed((2, 3), -1.0)),
        "the density must be non-negative, got -1 at cell (2, 3)",
    ),
    "NaN": (
        lambda: grid(changed((0, 1), NAN)),
        "the density must be finite, got nan at cell (0, 1)",
    ),
    "infinite": (
        lambda: grid(changed((0, 1), INF), normalize=True),
        "the density must be finite, got inf at cell (0, 1)",
    ),
    "no mass": (
        lambda: grid(torch.zeros(4, 5), normalize=True),
        "the density is zero everywhere: a probability measure needs mass 1",
    ),
    "another mass": (
        lambda: grid(changed((0, 1), 3.0)),
        "the density must integrate to 1, got 1.1; pass normalize=True",
    ),
    "mass beyond a wall": (
        lambda: of.GridDensity.from_samples(
            torch.tensor([[0.5], [1.5]]), 0.0, 1.0, (8,), walls=True
        ),
        "point 1 lies outside the box: coordinate 0 is 1.5, not in [0, 1]; enlarge",
    ),
    "an empty box": (
        lambda: of.GridDensity(torch.ones(4), 1.0, 1.0),
        "lower must lie below upper on every axis, got (1.0,) and (1.0,)",
    ),
    "four dimensions": (
        lambda: grid(torch.ones(2, 2, 2, 2)),
        "a grid has one to 3 axes, got shape (2, 2, 2, 2); in higher dimension use",
    ),
    "mass in an obstacle": (
        lambda: grid(changed((0, 0), 1.0), obstacles=changed((1, 1), 9.0) > 5),
        "there is density 1 inside an obstacle; multiply it by ~obstacles",
    ),
    "obstacles everywhere": (
        lambda: grid(changed((0, 0), 1.0), obstacles=torch.ones(4, 5) > 0),
        "obstacles fill the whole box: no cell is free",
    ),
    "obstacles of another shape": (
        lambda: grid(changed((0, 0), 1.0), obstacles=torch.ones(5, 4) > 2),
        "obstacles must be a bool array of shape (4, 5), got torch.bool of shape (5",
    ),
}


@pytest.mark.parametrize("case", DENSITIES)
def test_density(case):
    make, message = DENSITIES[case]
    with refused(ValueError, message):
        make()


def test_obstacles_that_disconnect_mass():
    wall = torch.zeros(4, 5, dtype=torch.bool)
    wall[2] = True
    rho = torch.where(wall, 0.0, torch.ones(4, 5))
    message = "obstacles disconnect the mass: 2 separate rooms hold the shares 0.667, "
    with refused(ValueError, message + "0.333; open a door between them, or flow each"):
        grid(rho, obstacles=wall, normalize=True)
    wall[2, 4] = False  # a door
    grid(torch.where(wall, 0.0, 1.0), obstacles=wall, normalize=True)
    rho[3] = 0  # or all the mass in one room
    wall[2, 4] = True
    grid(torch.where(wall, 0.0, rho), obstacles=wall, normalize=True)


def test_a_box_that_is_too_small_warns():
    rho = torch.ones(10, dtype=torch.float64)
    message = r"20.00% of the mass lies beside the border .* walls=True"
    with pytest.warns(of.errors.BoxWarning, match=message):
        of.GridDensity(rho, 0.0, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        of.GridDensity(rho, 0.0, 1.0, walls=True)
        mu = bump()  # 4e-6 of the mass at the border
    with pytest.warns(of.errors.BoxWarning, match="it is too small; enlarge it"):
        mu.diffuse(0.05, torch.Generator())


def test_a_box_too_small_warns_once_in_a_flow():
    bell = lambda x: torch.exp(-2 * x.square().sum(-1))
    mu = of.GridDensity.from_function(bell, -2.2, 2.2, 22, dtype=torch.float64)
    with pytest.warns(of.errors.BoxWarning) as caught:
        of.flow(of.Entropy(), mu, of.JKO(), dt=0.1, steps=8)
    assert len(caught) == 1


def test_a_step_above_the_cfl_limit():
    mu = bump()
    F = of.Potential(lambda x: 3 * x.sum(-1))
    message = r"dt = 0.1 is above the CFL limit .* take \|dt\| <= 0.005.*, or use JKO"
    with pytest.raises(of.errors.Diverged, match=message):
        mu.push(F.velocity(mu), 0.1)
    with pytest.raises(of.errors.Diverged, match="CFL limit"):
        of.flow(F, mu, of.ExplicitEuler(), dt=0.1, steps=3)
    mu.push(F.velocity(mu), 0.005)


# Pictures -----------------------------------------------------------------------------

IMAGES = {
    "a list": (
        [[1.0, 2.0]],
        TypeError,
        "image must be an array, got list; read a file",
    ),
    "a file name": ("china.jpg", TypeError, "image must be an array, got str; read"),
    "one row of pixels": (
        np.ones((1, 7)),
        ValueError,
        "image must be at least 2 pixels high and wide, got shape (1, 7)",
    ),
    "one axis": (np.ones(7), ValueError, "(H, W), (H, W, 3) or (H, W, 4), got (7,)"),
    "two channels": (np.ones((7, 5, 2)), ValueError, "got (7, 5, 2); drop other axes"),
    "channels first": (
        np.ones((3, 7, 5)),
        ValueError,
        "got (3, 7, 5); drop other axes, or move the colours to the last axis",
    ),
    "four axes": (np.ones((2, 7, 5, 3)), ValueError, "got (2, 7, 5, 3); drop other"),
    "integers": (
        np.ones((7, 5), dtype=np.int64),
        TypeError,
        "image must be uint8 (0 to 255), bool or floating point, got int64; convert",
    ),
    "complex numbers": (np.ones((7, 5), dtype=complex), TypeError, "got complex128"),
    "strings": (np.full((7, 5), "a"), TypeError, "got <U1; convert it"),
    "NaN": (np.full((7, 5), NAN), ValueError, "image must be finite everywhere; mend"),
    "negative": (np.full((7, 5), -1.0), ValueError, "image must be non-negative every"),
    "black": (
        np.zeros((7, 5), dtype=np.uint8),
        ValueError,
        "the density is zero everywhere",
    ),
    "white, inverted": (None, ValueError, "image must lie in [0, 1] for invert"),
}


@pytest.mark.parametrize("case", IMAGES)
def test_image(case):
    image, kind, message = IMAGES[case]
    with refused(kind, message):
        if image is None:
            of.GridDensity.from_image(np.full((7, 5), 255.0), invert=True)
        else:
            of.GridDensity.from_image(image)


def test_pictures_of_odd_size_are_welcome():
    for shape in ((7, 5), (2, 31), (7, 5, 3), (7, 5, 4)):
        mu = of.GridDensity.from_image(np.full(shape, 9, dtype=np.uint8))
        assert mu.shape == (shape[1], shape[0])


# Quantiles and Gaussians --------------------------------------------------------------

QUANTILES = {
    "crossing": (
        [0.0, 2.0, 1.0],
        None,
        "must increase strictly, but edges[1] = 2 >= edges[2] = 1; sort them, and",
    ),
    "coincident": ([0.0, 1.0, 1.0], None, "but edges[1] = 1 >= edges[2] = 1; sort"),
    "NaN": ([0.0, NAN, 1.0], None, "edges must be finite, got nan at index (1, 0)"),
    "one": ([0.0], None, "edges must have shape (n + 1,) with n >= 1 cells"),
    "weightless cell": ([0.0, 1.0, 2.0], [1.0, 0.0], "weights[1] is 0: a cell between"),
    "negative mass": ([0.0, 1.0, 2.0], [1.5, -0.5], "weights must be non-negative"),
    "no mass": ([0.0, 1.0, 2.0], [0.0, 0.0], "weights are all zero"),
}


@pytest.mark.parametrize("case", QUANTILES)
def test_quantiles(case):
    edges, masses, message = QUANTILES[case]
    weights = None if masses is None else torch.tensor(masses)
    with refused(ValueError, message):
        of.Quantiles(torch.tensor(edges), weights)


def test_quantiles_that_cross_in_a_step():
    mu = of.Quantiles(torch.linspace(0, 1, 9, dtype=torch.float64))
    F = of.Potential(lambda x: 50 * x.square().sum(-1))
    with pytest.raises(
        of.errors.Diverged, match=r"quantiles \d+ and \d+ crossed; .* or use JKO\(\)"
    ):
        mu.push(F.velocity(mu), 1.0)


COVARIANCES = {
    "indefinite": (
        EYE - 0.6,
        "must be positive definite, its smallest eigenvalue is -0.",
    ),
    "singular": (torch.ones(2, 2).double(), "add a multiple of the identity above"),
    "zero": (0 * EYE, "covariance must be positive definite"),
    "not symmetric": (
        EYE + torch.tensor([[0.0, 0.5], [0.0, 0.0]]).double(),
        "covariance must be symmetric, entries differ from their mirror images by 0.5",
    ),
    "a vector": (torch.ones(2).double(), "got (2,); use torch.diag(covariance)"),
    "of another size": (torch.eye(3).double(), "must have shape (2, 2), got (3, 3)"),
    "NaN": (EYE * NAN, "covariance must be finite, got nan at index (0, 0)"),
}


@pytest.mark.parametrize("case", COVARIANCES)
def test_covariance(case):
    covariance, message = COVARIANCES[case]
    with refused(ValueError, message):
        of.Gaussian(ZERO, covariance)


# Energies -----------------------------------------------------------------------------


def test_diffusion_that_is_too_fast_for_the_dimension():
    rho = torch.ones(3, 3, 3, dtype=torch.float64)
    for m in (0.2, 1 / 3):
        F = of.PowerEntropy(m)
        for mu in (
            grid(rho),
            of.Gaussian(torch.zeros(3).double(), torch.eye(3).double()),
        ):
            with refused(
                ValueError, f"m = {m:g} is at most (d - 2)/d = 0.333333 in dim"
            ):
                of.flow(F, mu, of.JKO(), dt=0.1, steps=1)


def test_a_bound_below_the_mean_density():
    message = "max_density = 0.9 is below the mean density 1: mass 1 does not fit"
    F = of.Potential(lambda x: x.sum(-1)) + of.Congestion(0.9)
    mu = grid(torch.ones(4, 5, dtype=torch.float64))
    with refused(ValueError, message):
        of.flow(F, mu, of.JKO(), dt=0.1, steps=1)


def test_a_start_above_the_bound():
    F = of.Potential(lambda x: x.sum(-1)) + of.Congestion(2.0)
    with pytest.raises(
        of.errors.NonFinite, match=r"reaches 3.9.*above max_density = 2: .* raise the"
    ):
        F.value(bump())


def test_a_blur_that_does_not_fit_the_grid():
    F, mu = of.PowerEntropy(2.0), bump()

    def solve(eps, F=F):
        return of.proximal.GridSinkhorn(eps=eps).solve(F, mu, 0.01)

    with refused(ValueError, "is too small for the grid: a kernel so narrow does not"):
        solve(1e-6)
    with refused(ValueError, "eps = 1 is too large for the box: its kernel spans more"):
        solve(1.0)
    for eps in (0.0, -1.0, NAN):
        with pytest.raises(ValueError, match=r"^eps must be"):
            solve(eps)
    with refused(
        ValueError, "the entropy's total factor is negative: temperature -0.5"
    ):
        solve(1e-3, F + -0.5 * of.Entropy())


@pytest.mark.parametrize(
    "mu",
    [
        bump(),
        of.Quantiles(torch.linspace(0, 1, 9, dtype=torch.float64)),
        of.Gaussian(ZERO, EYE),
    ],
    ids=lambda mu: type(mu).__name__,
)
def test_an_internal_energy_with_a_negative_factor(mu):
    with refused(
        ValueError, "-1 * PowerEntropy(2) is concave: an internal energy with"
    ):
        of.flow(-1 * of.PowerEntropy(2.0), mu, of.JKO(), dt=0.1, steps=1)


def test_particles_have_no_density():
    for F in (of.Entropy(), of.PowerEntropy(2.0), of.Congestion(1.0), of.Internal(abs)):
        with refused(of.errors.Unsupported, "represent the measure by a density (Grid"):
            of.flow(F, of.Particles(normal(5, 2)), of.JKO(), dt=0.1, steps=1)
