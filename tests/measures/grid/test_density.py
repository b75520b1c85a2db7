"""Densities on a grid: the inherited laws, the ways to make one, what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import otflow as of
from otflow.testing import MeasureContract
from otflow.testing.clouds import normal
from otflow.testing.differences import mean_derivative


def bump(x):
    return torch.exp(-x.square().sum(-1))


class GridContract(MeasureContract):
    capabilities = frozenset(
        {"density", "mass_gradient", "diffuse", "reweight", "sample"}
    )

    def tangent(self, mu, seed=0):
        return 0.5 * normal(mu.box.n_faces, seed=seed + 77, dtype=mu.dtype)

    def coordinates(self, mu):
        return mu.weights

    def derivative_along(self, value, mu, v):
        # An upwind flux has two one-sided derivatives; `inner` is their mean.
        return mean_derivative(lambda t: value(mu.push(v, t)))

    def test_diffuse(self):
        for dtype in (torch.float32, torch.float64):
            mu = self.make(dtype)
            first, other = (
                mu.diffuse(0.3, torch.Generator().manual_seed(seed)) for seed in (1, 2)
            )
            assert type(first) is type(mu)
            assert first.dtype == dtype
            assert float(first.weights.sum()) == pytest.approx(1, abs=1e-6)
            assert torch.equal(first.weights, other.weights)  # there is no noise
            assert not torch.equal(first.weights, mu.weights)
            still = mu.diffuse(0.0, torch.Generator())
            assert torch.equal(still.weights, mu.weights)

    def test_transport_keeps_mass_and_sign_and_is_exact_at_time_zero(self):
        for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
            mu = self.make(dtype)
            v = self.tangent(mu)
            assert torch.equal(mu.transport(v, 0.0).weights, mu.weights)
            assert isinstance(mu, of.GridDensity)
            for dt in (0.01, -0.3, 10.0):
                moved = mu.transport(v, dt)
                assert moved.dtype == dtype
                assert bool((moved.weights >= 0).all())
                assert float(moved.weights.sum()) == pytest.approx(1, abs=tolerance)
                assert bool((moved.weights[~mu.is_free] == 0).all())


class TestLine(GridContract):
    def make(self, dtype=torch.float64):
        return of.GridDensity.from_function(
            bump, -1.5, 2.0, 21, walls=True, dtype=dtype
        )


class TestPlane(GridContract):
    def make(self, dtype=torch.float64):
        return of.GridDensity.from_function(
            bump, -2, [2.0, 1.5], (9, 7), walls=True, dtype=dtype
        )


class TestSpace(GridContract):
    def make(self, dtype=torch.float64):
        return of.GridDensity.from_function(
            bump, -1, 1.5, (4, 5, 3), walls=True, dtype=dtype
        )


def room():
    """Return obstacles that leave two halves joined by a door."""
    mask = torch.zeros(9, 8, dtype=torch.bool)
    mask[4] = True
    mask[4, 3:5] = False
    mask[1, 1] = True
    return mask


class TestObstacles(GridContract):
    def make(self, dtype=torch.float64):
        return of.GridDensity.from_function(
            bump, -2, 2, (9, 8), obstacles=room(), walls=True, dtype=dtype
        )

    def test_density(self):  # type: ignore[override]  # of one dtype
        mu = self.make()
        assert bool((mu.density()[mu.is_free] > 0).all())
        assert bool((mu.density()[~mu.is_free] == 0).all())


# Construction -------------------------------------------------------------------------


def test_cells_are_numbered_in_c_order_with_x_first():
    rho = torch.arange(6, dtype=torch.float64).reshape(3, 2)
    mu = of.GridDensity(rho, [0, 0], [3, 4], walls=True, normalize=True)
    assert mu.shape == (3, 2)
    assert mu.points.tolist()[:3] == [[0.5, 1.0], [0.5, 3.0], [1.5, 1.0]]
    torch.testing.assert_close(mu.weights, rho.reshape(-1) / 15)
    torch.testing.assert_close(mu.grid, rho / 15 / 2)
    where = torch.tensor([[2.9, 3.9], [0.0, 0.0]], dtype=torch.float64)
    assert mu.density_at(where).tolist() == pytest.approx([5 / 30, 0])


def test_a_density_of_integral_one_is_taken_as_it_is():
    rho = np.full((4, 5), 1 / 6)
    mu = of.GridDensity(rho, 0, [2, 3], walls=True)
    assert float(mu.weights.sum()) == pytest.approx(1, abs=1e-15)
    assert mu.box.cell_volume == pytest.approx(0.3)


def test_from_function_vanishes_in_obstacles():
    mu = of.GridDensity.from_function(bump, -2, 2, (9, 8), obstacles=room(), walls=True)
    assert bool((mu.weights.reshape(9, 8)[room()] == 0).all())
    assert float(mu.weights.sum()) == pytest.approx(1, abs=1e-6)


def test_samples_are_counted_in_their_cells():
    x = torch.tensor([[0.1], [0.2], [0.9], [1.0]], dtype=torch.float64)
    mu = of.GridDensity.from_samples(x, 0, 1, 4, walls=True)
    assert mu.weights.tolist() == [0.5, 0, 0, 0.5]
    assert mu.dtype == torch.float64


def test_smoothed_samples_have_the_variance_of_the_bandwidth():
    x = torch.tensor([[-0.0125], [0.0125]], dtype=torch.float64)
    mu = of.GridDensity.from_samples(x, -2, 2, 160, bandwidth=0.3)
    assert bool((mu.weights > 0).all())
    spread = mu.expectation(lambda x: x.square().sum(-1))
    assert float(spread) == pytest.approx(0.3**2 + 0.0125**2, abs=1e-9)


def test_samples_come_back_from_the_density():
    mu = of.GridDensity.from_function(bump, -3, 3, (12, 12), dtype=torch.float64)
    x = mu.sample(40_000, torch.Generator().manual_seed(0))
    back = of.GridDensity.from_samples(x, -3, 3, (12, 12))
    deviation = (mu.weights / 40_000).sqrt()
    assert bool(((back.weights - mu.weights).abs() < 5 * deviation + 1e-4).all())
    # Uniform within the cell: a cell's mean is its centre.
    inside = x[(mu.box.cell_of(x) == 65)]
    width = mu.box.spacing[0]
    error = (inside.mean(0) - mu.points[65]).abs().max()
    assert float(error) < 5 * width / math.sqrt(12 * len(inside))


def test_no_sample_falls_where_there_is_no_mass():
    rho = torch.tensor([0.0, 1.0, 0.0, 3.0, 0.0], dtype=torch.float32)
    mu = of.GridDensity(rho, 0, 5, normalize=True)
    x = mu.sample(5000, torch.Generator().manual_seed(1))[:, 0]
    assert bool((((x >= 1) & (x <= 2)) | ((x >= 3) & (x <= 4))).all())


# Pictures -----------------------------------------------------------------------------


def test_a_picture_has_x_to_the_right_and_y_up():
    image = np.zeros((2, 3), dtype=np.uint8)
    image[0, 0] = 30  # top left
    image[1, 2] = 10  # bottom right
    mu = of.GridDensity.from_image(image)
    assert mu.shape == (3, 2)
    right, top = mu.box.upper
    assert right == 1.0
    assert top == pytest.approx(2 / 3)
    assert mu.walls
    grid = mu.weights.reshape(mu.shape)
    assert float(grid[0, 1]) == pytest.approx(0.75)
    assert float(grid[2, 0]) == pytest.approx(0.25)


def test_a_dark_part_has_the_mass_of_an_inverted_picture():
    image = np.ones((3, 2))
    image[2, 0] = 0.0  # bottom left
    mu = of.GridDensity.from_image(image, invert=True)
    assert mu.weights.reshape(2, 3)[0, 0] == 1


def test_colours_count_by_their_luminance_and_opacity():
    image = np.zeros((2, 2, 4), dtype=np.float32)
    image[..., 3] = 1
    image[0, 0, 1] = 1  # green, top left
    image[0, 1, :3] = 1  # white, top right
    image[1, 1] = [1, 1, 1, 0.5]  # half transparent, bottom right
    grid = of.GridDensity.from_image(image, dtype=torch.float64)
    found = grid.weights.reshape(2, 2) / grid.weights.reshape(2, 2)[1, 1]
    expected = torch.tensor([[0, 0.7152], [0.5, 1]], dtype=torch.float64)
    torch.testing.assert_close(found, expected)
    opaque = of.GridDensity.from_image(image[..., :3], dtype=torch.float64)
    assert float(opaque.weights.reshape(2, 2)[1, 0]) == pytest.approx(1 / 2.7152)


def test_a_mask_and_a_tensor_are_pictures():
    mask = torch.tensor([[True, False], [True, True]])
    for image in (mask, mask.numpy(), mask.float()):
        mu = of.GridDensity.from_image(image)
        torch.testing.assert_close(mu.weights, torch.tensor([1.0, 1.0, 1.0, 0.0]) / 3)


def test_another_shape_averages_and_keeps_mass():
    image = normal(7, 10, seed=5).exp().numpy()
    fine = of.GridDensity.from_image(image, dtype=torch.float64)
    coarse = of.GridDensity.from_image(image, shape=(5, 7), dtype=torch.float64)
    pairs = fine.weights.reshape(5, 2, 7).sum(1)
    torch.testing.assert_close(coarse.weights.reshape(5, 7), pairs)
    odd = of.GridDensity.from_image(image, shape=(4, 3), dtype=torch.float64)
    for axis in range(2):  # the means move by no more than a cell
        left, right = (mu.expectation(lambda x, a=axis: x[:, a]) for mu in (fine, odd))
        assert float(left) == pytest.approx(float(right), abs=odd.box.spacing[axis])


def test_a_photograph_is_a_density():
    datasets = pytest.importorskip("sklearn.datasets")
    photograph = datasets.load_sample_image("china.jpg")
    mu = of.GridDensity.from_image(photograph, shape=(64, 43))
    assert mu.shape == (64, 43)
    assert float(mu.weights.sum()) == pytest.approx(1, abs=1e-5)
    # The sky, on top, is brighter than the roofs.
    grid = mu.grid
    assert float(grid[:, 30:].mean()) > 1.5 * float(grid[:, :15].mean())


BAD_IMAGES = [
    ("china.jpg", TypeError, r"got str; read a file first"),
    (np.zeros(5), ValueError, r"shape \(H, W\), .* got \(5,\)"),
    (np.zeros((4, 4, 2)), ValueError, r"got \(4, 4, 2\); .*last axis"),
    (np.zeros((3, 4, 4, 4)), ValueError, r"got \(3, 4, 4, 4\)"),
    (np.zeros((1, 9)), ValueError, r"at least 2 pixels"),
    (np.ones((4, 4), dtype=np.int64), TypeError, r"got int64; convert it"),
    (np.ones((4, 4), dtype=complex), TypeError, r"got complex128"),
    (np.full((4, 4), np.nan), ValueError, r"finite everywhere"),
    (-np.ones((4, 4)), ValueError, r"non-negative everywhere"),
    (np.zeros((4, 4)), ValueError, r"zero everywhere"),
]


@pytest.mark.parametrize(("image", "error", "match"), BAD_IMAGES)
def test_odd_images_are_refused(image, error, match):
    with pytest.raises(error, match=match):
        of.GridDensity.from_image(image)


def test_an_image_above_one_cannot_be_inverted():
    with pytest.raises(ValueError, match=r"\[0, 1\] for invert .* divide it by"):
        of.GridDensity.from_image(2.0 * np.ones((4, 4)), invert=True)


# What is refused ----------------------------------------------------------------------

GOOD = torch.full((4, 4), 1.0, dtype=torch.float64)


def spoiled(index, value):
    rho = GOOD.clone()
    rho[index] = value
    return rho


BAD = [
    (lambda: of.GridDensity(spoiled((1, 2), -1.0), 0, 1), r"non-negative, got -1 at"),
    (lambda: of.GridDensity(spoiled((0, 0), math.nan), 0, 1), r"finite, got nan at"),
    (lambda: of.GridDensity(spoiled((0, 3), math.inf), 0, 1), r"finite, got inf at"),
    (lambda: of.GridDensity(0 * GOOD, 0, 1), r"zero everywhere"),
    (lambda: of.GridDensity(2 * GOOD, 0, 1), r"integrate to 1, got 2; pass normalize"),
    (lambda: of.GridDensity(GOOD, 1, 1), r"lower must lie below upper"),
    (lambda: of.GridDensity(GOOD, [0, 0, 0], 1), r"lower must have 2 entries"),
    (
        lambda: of.GridDensity(GOOD.reshape(2, 2, 2, 2), 0, 1),
        r"one to 3 axes, .* use Particles",
    ),
    (lambda: of.GridDensity(GOOD[0], 0, 0.25, obstacles=GOOD > 0), r"shape \(4,\)"),
    (lambda: of.GridDensity(GOOD, 0, 1, obstacles=GOOD > 0), r"fill the whole box"),
    (
        lambda: of.GridDensity(
            GOOD, 0, 1, obstacles=torch.eye(4, dtype=torch.bool), walls=True
        ),
        r"inside an obstacle; multiply it by ~obstacles",
    ),
    (
        lambda: of.GridDensity(
            spoiled(1, 0.0), 0, 1, obstacles=spoiled(1, 0.0) == 0, normalize=True
        ),
        r"disconnect the mass: 2 separate rooms .* open a door",
    ),
    (
        lambda: of.GridDensity.from_function(lambda x: x, 0, 1, 5),
        r"f must map the centres .*\.sum\(-1\)",
    ),
    (
        lambda: of.GridDensity.from_samples(normal(5, 2), -0.01, 0.01, (3, 3)),
        r"outside the box: .* enlarge the box or drop the point",
    ),
    (lambda: of.GridDensity.from_samples(normal(5, 2), -9, 9, 3), r"shape \(m, 1\)"),
    (
        lambda: of.GridDensity.from_samples(
            normal(5, 2), -9, 9, (3, 3), bandwidth=-1.0
        ),
        r"bandwidth must be non-negative",
    ),
    (lambda: made().push(torch.zeros(3), 0.1), r"shape \(24,\), one entry a face"),
    (lambda: made().reweight(torch.zeros(3), 0.1), r"shape \(16,\), one entry a cell"),
    (lambda: made().density_at(normal(3, 2) + 9), r"outside the box"),
    (lambda: made().mass_gradient(lambda m: m.weights.sum(), normal(3, 1)), r"\(m, 2"),
    (
        lambda: made().displacement_to(
            of.GridDensity.from_function(bump, 0, 1, (4, 5), walls=True)
        ),
        r"same grid",
    ),
]


def made():
    return of.GridDensity(GOOD, 0, 1, walls=True)


@pytest.mark.parametrize(("call", "match"), BAD)
def test_bad_input_is_refused_with_its_cure(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_wrong_kinds_are_refused():
    with pytest.raises(TypeError, match="bool array"):
        of.GridDensity(GOOD, 0, 1, obstacles=GOOD)
    with pytest.raises(TypeError, match="walls must be True or False"):
        of.GridDensity(GOOD, 0, 1, walls=1)
    with pytest.raises(TypeError, match="float32 or float64"):
        of.GridDensity(GOOD.long(), 0, 1)
    with pytest.raises(TypeError, match="generator must be"):
        made().sample(3, None)


def test_a_box_that_is_too_small_warns_unless_walls_are_meant():
    with pytest.warns(of.errors.BoxWarning, match=r"50.00% .* enlarge it, or .*walls"):
        of.GridDensity(GOOD, 0, 1)
    made()  # no warning: pytest makes it an error


def test_mass_that_reaches_the_border_warns():
    mu = of.GridDensity.from_function(bump, -4, 4, 64, dtype=torch.float64)
    v = torch.full((63,), 1.0, dtype=torch.float64)
    with pytest.warns(of.errors.BoxWarning, match="too small"):
        mu.transport(v, 3.5)


def test_other_masses_on_the_same_grid_share_it():
    mu = made()
    nu = mu.with_weights(mu.weights.flip(0))
    assert nu.points is mu.points
    assert nu.box is mu.box
    mu.check_same_grid(nu)
    with pytest.raises(of.errors.Diverged, match="smaller dt") as caught:
        mu.moved(-mu.weights)
    assert caught.value.measure is mu
    with pytest.raises(of.errors.Diverged, match=r"mass from 1 to 0\.75: .* a wall"):
        mu.moved(0.75 * mu.weights)


MASSES = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)


@pytest.mark.parametrize(
    ("masses", "kind", "words"),
    [
        (torch.ones(4).double(), ValueError, r"sum to 1, got 4; .*with_free_weights"),
        (MASSES * (1 + 2e-9), ValueError, "sum to 1"),
        (MASSES.float() * (1 + 3e-5), ValueError, "sum to 1"),
        (MASSES * math.nan, ValueError, "must be finite"),
        (
            MASSES - torch.tensor([0.3, 0, 0, -0.3]),
            ValueError,
            "non-negative, got -0.2",
        ),
        (MASSES.reshape(2, 2), ValueError, r"shape \(4,\).*reshape\(-1\)"),
        (MASSES[:3] / 0.6, ValueError, r"shape \(4,\)"),
        (MASSES.float(), TypeError, r"torch\.float32 .*\.to\(torch\.float64\)"),
        ([0.1, 0.2, 0.3, 0.4], TypeError, "torch.Tensor or numpy.ndarray"),
        (0 * MASSES, ValueError, "zero everywhere"),
    ],
)
def test_other_masses_are_checked_as_a_constructor_checks_them(masses, kind, words):
    dtype = torch.float32 if "1.00003" in f"{sum(masses)}" else torch.float64
    mu = of.GridDensity(MASSES.to(dtype) * 4, 0, 1, walls=True)
    with pytest.raises(kind, match=words):
        mu.with_weights(masses)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_masses_within_the_tolerance_of_a_constructor_are_kept(dtype):
    off = 8e-6 if dtype == torch.float32 else 8e-10
    masses = (MASSES * (1 + off)).to(dtype)
    mu = of.GridDensity(masses * 4, 0, 1, walls=True)
    assert torch.equal(mu.with_weights(masses).weights, masses)
    for cured in (masses / masses.sum(), masses):
        assert torch.equal(mu.with_free_weights(7 * cured).weights, 7 * cured)


def test_no_other_mass_may_be_put_into_an_obstacle():
    wall = torch.tensor([False, False, False, True])
    mu = of.GridDensity(torch.tensor([1.0, 2.0, 1.0, 0.0]), 0, 1, obstacles=wall)
    with pytest.raises(ValueError, match="inside an obstacle"):
        mu.with_weights(MASSES.float())
