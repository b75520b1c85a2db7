"""Figures: what is drawn is what was measured, where it was asked for."""

from __future__ import annotations

import base64
import itertools
import re
import subprocess
import sys

import imageio_ffmpeg
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.animation import FuncAnimation
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle, StepPatch

import otflow as of
from otflow import plotting
from otflow.testing.clouds import normal


@pytest.fixture(autouse=True)
def _off_screen():
    """Draw off screen and leave neither figures nor settings behind."""
    mpl.use("agg")
    settings = dict(mpl.rcParams)
    yield
    plt.close("all")
    assert dict(mpl.rcParams) == settings, "a global setting was changed"
    assert mpl.get_backend().lower() == "agg"


def spring(x):
    return 0.5 * x.square().sum(-1)


def run_in(
    d: int, scheme: of.schemes.Scheme | None = None, n: int = 12
) -> of.Trajectory:
    mu = of.Particles(normal(n, d, seed=1))
    scheme = scheme or of.ExplicitEuler()
    return of.flow(of.Potential(spring), mu, scheme, dt=0.1, steps=10, generator=0)


def dots(ax: Axes) -> PathCollection:
    """Return the particles that were drawn last."""
    found = ax.collections[-1]
    assert isinstance(found, PathCollection)
    return found


def steps(ax: Axes) -> StepPatch:
    """Return the density that was drawn last."""
    found = ax.patches[-1]
    assert isinstance(found, StepPatch)
    return found


def data(drawn):
    """Return what a line or a step function was drawn from."""
    return drawn.get_data()


def figure_of(animation: FuncAnimation) -> Figure:
    return vars(animation)["_fig"]


DRAW = {
    "energy": lambda ax: plotting.energy(run_in(2), ax=ax),
    "particles, line": lambda ax: plotting.particles(run_in(1).final, ax=ax),
    "particles, plane": lambda ax: plotting.particles(run_in(2).final, ax=ax),
    "trails, line": lambda ax: plotting.trails(run_in(1), ax=ax),
    "trails, plane": lambda ax: plotting.trails(run_in(2), ax=ax),
}


@pytest.mark.parametrize("name", DRAW)
def test_draws_where_it_is_told(name):
    figure, (ax, other) = plt.subplots(1, 2)
    assert DRAW[name](ax) is ax
    assert plt.get_fignums() == [figure.number]
    assert not other.has_data()


@pytest.mark.parametrize("name", DRAW)
def test_makes_one_labelled_figure_of_its_own(name):
    ax = DRAW[name](None)
    assert isinstance(ax.figure, Figure)
    assert plt.get_fignums() == [ax.figure.number]
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    assert ax.has_data()
    ax.figure.canvas.draw()


def test_a_figure_is_drawn_from_float32_too():
    mu = of.Particles(torch.randn(5, 2))
    ax = plotting.particles(mu)
    np.testing.assert_array_equal(dots(ax).get_offsets(), mu.points)


# Energy -------------------------------------------------------------------------------


def test_energy_is_the_record_against_time():
    run = run_in(2)
    line = plotting.energy(run, label="spring").lines[-1]
    np.testing.assert_array_equal(line.get_xdata(), run.times)
    np.testing.assert_array_equal(line.get_ydata(), run.records["energy"])
    assert line.get_label() == "spring"


def test_energy_above_a_minimum_on_a_logarithmic_axis():
    run = run_in(2)
    ax = plotting.energy(run, minimum=-1.0, log=True)
    np.testing.assert_array_equal(ax.lines[-1].get_ydata(), run.records["energy"] + 1)
    assert ax.get_yscale() == "log"
    assert ax.get_ylabel() == "energy - -1"


def test_curves_in_one_figure_differ_in_colour():
    ax = plotting.energy(run_in(2))
    plotting.energy(run_in(1), ax=ax)
    plotting.energy(run_in(1), ax=ax, color="black")
    first, second, third = (line.get_color() for line in ax.lines)
    assert first != second
    assert third == "black"


def test_any_scalar_record_is_drawn():
    spread = {
        "variance": lambda mu: mu.points.var(),
        "mean": lambda mu: mu.points.mean(0),
    }
    mu = of.Particles(normal(5, 2))
    F = of.Potential(spring)
    run = of.flow(F, mu, of.ExplicitEuler(), dt=0.1, steps=3, record=spread)
    ax = plotting.energy(run, record="variance")
    np.testing.assert_array_equal(ax.lines[-1].get_ydata(), run.records["variance"])
    assert ax.get_ylabel() == "variance"
    with pytest.raises(ValueError, match=r"'mean' has shape \(4, 2\): not one number"):
        plotting.energy(run, record="mean")
    with pytest.raises(ValueError, match="no record 'entropy'; there are"):
        plotting.energy(run, record="entropy")


def test_a_logarithm_of_what_is_not_positive_is_refused():
    run = run_in(2)
    least = float(run.records["energy"][-1])
    with pytest.raises(ValueError, match="0 at time 1; pass a smaller minimum"):
        plotting.energy(run, minimum=least, log=True)
    assert plt.get_fignums() == [], "no empty figure is left behind"


# Particles ----------------------------------------------------------------------------


def test_area_is_proportional_to_weight():
    w = torch.tensor([0.5, 0.25, 0.25, 0.0], dtype=torch.float64)
    mu = of.Particles(normal(4, 2), w)
    drawn = dots(plotting.particles(mu))
    np.testing.assert_array_equal(drawn.get_offsets(), mu.points)
    np.testing.assert_allclose(drawn.get_sizes() / drawn.get_sizes().sum(), w)
    drawn = dots(plotting.particles(mu, size=9.0))
    np.testing.assert_allclose(drawn.get_sizes().mean(), 9.0)


def test_more_particles_have_smaller_markers():
    few, many = (
        dots(plotting.particles(of.Particles(normal(n, 2)))).get_sizes()[0]
        for n in (100, 1000)
    )
    assert many < few


def test_the_histogram_shows_the_mass():
    x = torch.tensor([[0.0], [1.0], [1.01], [3.0]], dtype=torch.float64)
    w = torch.tensor([0.1, 0.2, 0.2, 0.5], dtype=torch.float64)
    ax = plotting.particles(of.Particles(x, w))
    bars = [bar for bar in ax.patches if isinstance(bar, Rectangle)]
    assert len(bars) == len(ax.patches)
    masses = [bar.get_height() * bar.get_width() for bar in bars]
    assert sum(masses) == pytest.approx(1)
    assert max(masses) == pytest.approx(0.5)
    offsets = np.asarray(dots(ax).get_offsets())
    np.testing.assert_array_equal(offsets[:, 0], x[:, 0])


def test_one_atom_is_drawn():
    for d in (1, 2):
        ax = plotting.particles(of.Particles(torch.zeros(1, d)))
        ax.figure.canvas.draw()
        np.testing.assert_array_equal(np.asarray(dots(ax).get_offsets())[:, 0], [0.0])


def test_lengths_are_the_same_on_both_axes_of_the_plane():
    assert plotting.particles(run_in(2).final).get_aspect() == 1.0


def test_more_dimensions_need_a_choice():
    mu = of.Particles(normal(6, 4))
    with pytest.raises(ValueError, match=r"dimension 4 .* choose .* axes=\(0, 1\)"):
        plotting.particles(mu)
    ax = plotting.particles(mu, axes=(3, 1))
    np.testing.assert_array_equal(
        ax.collections[-1].get_offsets(), mu.points[:, [3, 1]]
    )
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x[3]", "x[1]")
    ax = plotting.particles(mu, axes=(2,))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x[2]", "density")


@pytest.mark.parametrize(
    ("axes", "error", "message"),
    [
        ((0, 4), ValueError, "from 0 to 3"),
        ((0, 1, 2), ValueError, "choose one or two"),
        ((), ValueError, "choose one or two"),
        (1, ValueError, "choose one or two"),
        ((0, -1), ValueError, "at least 0"),
        ((0, 1.0), TypeError, "must be an integer"),
    ],
)
def test_a_bad_choice_of_axes_is_refused(axes, error, message):
    with pytest.raises(error, match=message):
        plotting.particles(of.Particles(normal(6, 4)), axes=axes)


def test_a_bad_size_is_refused():
    with pytest.raises(ValueError, match="size must be positive"):
        plotting.particles(run_in(2).final, size=0)


# Trails -------------------------------------------------------------------------------


def test_trails_in_the_plane_are_the_recorded_positions():
    run = run_in(2)
    ax = plotting.trails(run)
    lines, ends = ax.collections[-2], dots(ax)
    assert isinstance(lines, LineCollection)
    for i, path in enumerate(lines.get_segments()):
        np.testing.assert_array_equal(path, [mu.points[i] for mu in run.snapshots])
    np.testing.assert_array_equal(ends.get_offsets(), run.final.points)


def test_trails_on_the_line_go_along_time():
    run = run_in(1)
    ax = plotting.trails(run, count=3)
    (*_, drawn, _) = ax.collections
    assert isinstance(drawn, LineCollection)
    lines = drawn.get_segments()
    assert len(lines) == 3
    np.testing.assert_array_equal(lines[0][:, 0], run.times)
    np.testing.assert_array_equal(
        lines[0][:, 1], [mu.points[0, 0] for mu in run.snapshots]
    )
    np.testing.assert_array_equal(lines[-1][-1, 1], run.final.points[-1, 0])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("time", "x[0]")


def test_atoms_that_come_and_go_have_no_trails():
    class Halve(of.schemes.Scheme):
        def step(self, F, mu, dt, state, generator):
            return of.schemes.Step(of.Particles(mu.points[: mu.n // 2]), state)

    run = of.flow(
        of.Potential(spring), of.Particles(normal(16, 2)), Halve(), dt=1.0, steps=2
    )
    with pytest.raises(ValueError, match="number of points changes"):
        plotting.trails(run)
    animation = plotting.animate(run)  # a film can
    animation.to_jshtml()
    assert len(dots(figure_of(animation).axes[0]).get_sizes()) == 4


# Animation ----------------------------------------------------------------------------


def frames_of(animation):
    """Draw every frame; return titles, positions and areas."""
    ax = figure_of(animation).axes[0]
    seen = []
    for frame in animation.new_frame_seq():
        animation._func(frame)
        drawn = dots(ax)
        seen.append((ax.get_title(), drawn.get_offsets(), drawn.get_sizes()))
    animation.to_jshtml()  # it has been drawn: no warning when it is dropped
    return seen


@pytest.mark.slow
def test_an_animation_shows_the_snapshots_with_time_and_energy():
    run = run_in(2, of.chain(of.ExplicitEuler(), of.BirthDeath(rate=3.0)))
    seen = frames_of(plotting.animate(run))
    assert len(seen) == len(run.snapshots)
    for k, (title, positions, areas) in enumerate(seen):
        mu, energy = run.snapshots[k], run.records["energy"][k]
        assert title == f"t = {run.times[k]:.3g},  energy = {energy:.4g}"
        np.testing.assert_array_equal(positions, mu.points)
        np.testing.assert_allclose(areas / areas.sum(), mu.weights)


@pytest.mark.parametrize(("frames", "times"), [(3, [0.0, 0.5, 1.0]), (1, [1.0])])
def test_frames_are_thinned_and_the_end_is_shown(frames, times):
    seen = frames_of(plotting.animate(run_in(2), frames=frames))
    assert [title.split(",")[0] for title, *_ in seen] == [
        f"t = {t:.3g}" for t in times
    ]


@pytest.mark.slow
def test_the_limits_hold_every_snapshot_and_do_not_move():
    run = run_in(2)
    animation = plotting.animate(run)
    ax = figure_of(animation).axes[0]
    limits = (ax.get_xlim(), ax.get_ylim())
    frames_of(animation)
    assert (ax.get_xlim(), ax.get_ylim()) == limits
    x = torch.cat([mu.points for mu in run.snapshots])
    for axis, (low, high) in enumerate(limits):
        assert low < x[:, axis].min()
        assert x[:, axis].max() < high
    widths = [high - low for low, high in limits]
    assert widths[0] == pytest.approx(widths[1])
    np.testing.assert_array_equal(
        figure_of(animation).get_size_inches() * figure_of(animation).dpi, 400
    )


def test_an_animation_draws_into_given_axes():
    figure, ax = plt.subplots()
    animation = plotting.animate(run_in(3), axes=(0, 2), ax=ax)
    assert figure_of(animation) is figure
    assert ax.get_ylabel() == "x[2]"
    frames_of(animation)


def test_snapshots_at_other_times_than_the_records_are_drawn_at_theirs():
    mu, words = of.Particles(normal(4, 2)), {"dt": 0.1, "steps": 9, "snapshots": 3}
    F, scheme = of.Potential(spring), of.ExplicitEuler()
    run = of.flow(F, mu, scheme, every=2, **words)
    titles = [title for title, *_ in frames_of(plotting.animate(run))]
    energy = dict(zip(run.steps.tolist(), run.records["energy"], strict=True))
    assert titles[0] == f"t = 0,  energy = {energy[0]:.4g}"
    assert titles[1] == "t = 0.3"  # not recorded
    assert titles[2] == f"t = 0.6,  energy = {energy[6]:.4g}"
    ax = plotting.trails(of.flow(F, of.Particles(normal(3, 1)), scheme, **words))
    lines = ax.collections[-2]
    assert isinstance(lines, LineCollection)
    np.testing.assert_allclose(lines.get_segments()[0][:, 0], [0, 0.3, 0.6, 0.9])


@pytest.mark.parametrize("draw", [plotting.trails, plotting.animate])
def test_a_flow_without_snapshots_is_not_drawn(draw):
    mu = of.Particles(normal(4, 2))
    scheme = of.ExplicitEuler()
    run = of.flow(of.Potential(spring), mu, scheme, dt=0.1, steps=2, snapshots="none")
    with pytest.raises(ValueError, match="leave snapshots out of flow"):
        draw(run)


def test_points_that_never_move_have_a_window():
    mu = of.Particles(torch.full((3, 2), 7.0))
    run = of.flow(
        of.Potential(lambda x: 0 * x[:, 0]), mu, of.ExplicitEuler(), dt=1, steps=1
    )
    animation = plotting.animate(run)
    low, high = figure_of(animation).axes[0].get_xlim()
    assert low < 7 < high
    frames_of(animation)


@pytest.mark.slow
def test_a_path_of_measures_is_animated_with_its_times():
    ends = of.Particles(normal(5, 2)), of.Particles(normal(7, 2, seed=1))
    path = of.metrics.geodesic(*ends, torch.linspace(0, 1, 5))
    seen = frames_of(plotting.animate(path))
    assert [title for title, *_ in seen] == [f"t = {k / 4:g}" for k in range(5)]
    for mu, (_, positions, areas) in zip(path, seen, strict=True):
        np.testing.assert_array_equal(positions, mu.points)
        np.testing.assert_allclose(areas / areas.sum(), mu.weights)
    seen = frames_of(plotting.animate(list(ends), times=[2, 5], frames=1))
    assert [title for title, *_ in seen] == ["t = 5"]
    pair = bell((8, 8)), bell((8, 8))
    for kind in (pair, [of.Quantiles(torch.arange(3.0))] * 2):
        animation = plotting.animate(kind)
        assert animation.to_jshtml().count("data:image/png") == 2


@pytest.mark.parametrize(
    ("kind", "words", "wrong", "options"),
    [
        (ValueError, "holds no measure to draw", list, {}),
        (
            TypeError,
            r"path\[1\] must be a Measure",
            lambda: [cloud(), normal(3, 2)],
            {},
        ),
        (
            TypeError,
            "draw one kind of measure",
            lambda: [cloud(), bell((4, 4), walls=True)],
            {},
        ),
        (
            ValueError,
            "one per measure, 2 of them",
            lambda: [cloud()] * 2,
            {"times": [0]},
        ),
        (TypeError, "leave times out", lambda: run_in(2), {"times": [0, 1]}),
    ],
)
def test_a_path_that_cannot_be_animated_says_why(kind, words, wrong, options):
    with pytest.raises(kind, match=words):
        plotting.animate(wrong(), **options)


def cloud():
    return of.Particles(normal(3, 2))


def test_particles_on_the_line_are_not_animated():
    with pytest.raises(of.errors.Unsupported, match="use trails"):
        plotting.animate(run_in(1))


# Wrong arguments ----------------------------------------------------------------------


@pytest.mark.parametrize("draw", [plotting.energy, plotting.trails, plotting.animate])
def test_a_measure_is_not_a_trajectory(draw):
    with pytest.raises(TypeError, match="must be a Trajectory, got Particles"):
        draw(of.Particles(torch.zeros(2, 2)))


def test_a_trajectory_is_not_a_measure():
    with pytest.raises(TypeError, match=r"must be a Measure, got Trajectory; .* final"):
        plotting.particles(run_in(2))


def test_a_flow_that_recorded_nothing_says_why():
    mu = of.Particles(torch.zeros(2, 2))
    with pytest.raises(of.errors.Diverged) as caught:
        of.flow(
            of.Potential(lambda x: x.sum(-1) / 0), mu, of.ExplicitEuler(), dt=1, steps=1
        )
    with pytest.raises(ValueError, match="no recorded time: the flow diverged"):
        plotting.energy(caught.value.trajectory)


@pytest.mark.slow
def test_importing_it_does_not_import_matplotlib():
    code = "import sys, otflow.plotting; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# Densities ----------------------------------------------------------------------------


def bell(shape, lower=-3.0, upper=3.0, **options):
    """Return a Gaussian density on a grid."""
    return of.GridDensity.from_function(
        lambda x: (-x.square().sum(-1)).exp(),
        lower,
        upper,
        shape,
        dtype=torch.float64,
        **options,
    )


def test_a_density_on_the_line_is_drawn_by_steps_of_its_mass():
    mu = bell(30)
    ax = of.plotting.density(mu, label="grid")
    values, edges, _ = steps(ax).get_data()
    assert edges[0] == -3
    assert edges[-1] == 3
    assert (values * np.diff(edges)).sum() == pytest.approx(1)
    np.testing.assert_allclose(values, mu.density())
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x[0]", "density")


def test_quantiles_are_drawn_by_their_cells():
    edges = torch.tensor([0.0, 1.0, 1.5, 4.0], dtype=torch.float64)
    values, found, _ = steps(of.plotting.density(of.Quantiles(edges))).get_data()
    np.testing.assert_allclose(found, edges)
    np.testing.assert_allclose(values * np.diff(found), 1 / 3)


def test_a_gaussian_is_a_bell_or_ellipses():
    covariance = torch.tensor([[4.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    mu = of.Gaussian(torch.tensor([1.0, -1.0], dtype=torch.float64), covariance)
    x, y = map(np.asarray, of.plotting.density(mu, axes=(0,)).lines[-1].get_data())
    mass = torch.trapezoid(torch.tensor(y), torch.tensor(x))
    assert float(mass) == pytest.approx(1, abs=1e-3)
    assert x[y.argmax()] == pytest.approx(1)
    one, two = (line.get_data() for line in of.plotting.density(mu).lines[-2:])
    for line, deviations in ((one, 1), (two, 2)):
        a, b = map(np.asarray, line)
        z = np.stack([a - 1, b + 1])
        squared = (z * np.linalg.solve(covariance.numpy(), z)).sum(0)
        np.testing.assert_allclose(squared, deviations**2)


def test_a_picture_has_x_to_the_right_and_y_up():
    mu = of.GridDensity.from_function(
        lambda x: (x[:, 0] > 0).double() * (x[:, 1] > 2).double(),
        (-1.0, 0.0),
        (1.0, 3.0),
        (8, 6),
        walls=True,
        dtype=torch.float64,
    )
    image = of.plotting.density(mu).images[-1]
    assert tuple(image.get_extent()) == (-1, 1, 0, 3)
    assert image.origin == "lower"
    values = image.get_array()
    assert values is not None
    assert values.shape == (6, 8)
    assert values[5, 7] > 0
    assert values[0, 7] == values[5, 0] == 0
    swapped = of.plotting.density(mu, axes=(1, 0)).images[-1]
    np.testing.assert_array_equal(swapped.get_array(), values.T)


def test_a_marginal_keeps_the_mass():
    mu = bell((8, 10, 12))
    values, edges, _ = steps(of.plotting.density(mu, axes=(1,))).get_data()
    assert (values * np.diff(edges)).sum() == pytest.approx(1)
    picture = of.plotting.density(mu, axes=(0, 2)).images[-1].get_array()
    assert picture is not None
    assert picture.shape == (12, 8)
    assert picture.sum() * mu.box.spacing[0] * mu.box.spacing[2] == pytest.approx(1)
    with pytest.raises(ValueError, match="dimension 3 cannot be drawn whole"):
        of.plotting.density(mu)


def test_obstacles_are_shown():
    blocked = torch.zeros(6, 5, dtype=torch.bool)
    blocked[2, 1:4] = True
    images = of.plotting.density(bell((6, 5), walls=True, obstacles=blocked)).images
    assert len(images) == 2
    assert int((~np.ma.getmaskarray(images[-1].get_array())).sum()) == 3


def test_atoms_have_no_density_to_draw():
    with pytest.raises(of.errors.Unsupported, match=r"plotting\.particles"):
        of.plotting.density(of.Particles(torch.zeros(3, 1)))


def test_a_flow_on_a_grid_is_animated_as_pictures():
    start = bell((12, 12), walls=True)
    run = of.flow(of.Entropy(), start, of.ExplicitEuler(), dt=0.01, steps=4)
    animation = of.plotting.animate(run, frames=3)
    ax = figure_of(animation).axes[0]
    assert animation.to_jshtml().count("data:image/png") == 3
    largest = max(float(mu.density().max()) for mu in run.snapshots)
    assert ax.images[0].get_clim() == (0, largest)
    np.testing.assert_allclose(ax.images[0].get_array(), run.final.grid.T)


@pytest.mark.parametrize("kind", ["grid", "marginal", "quantiles", "gaussian"])
def test_a_density_on_the_line_is_animated_as_a_curve(kind):
    bell = lambda x: torch.exp(-2 * (x - 0.3).square().sum(-1))
    mu = {
        "grid": lambda: of.GridDensity.from_function(bell, -4.0, 4.0, 40),
        "marginal": lambda: of.GridDensity.from_function(bell, -4.0, 4.0, (40, 40)),
        "quantiles": lambda: of.Quantiles.from_function(
            bell, -2.0, 2.5, n=60, grading=2
        ),
        "gaussian": lambda: of.Gaussian(torch.tensor([0.3]), torch.tensor([[0.25]])),
    }[kind]()
    F = of.Potential(lambda x: 0.5 * x.square().sum(-1)) + of.Entropy()
    run = of.flow(F, mu, of.JKO(), dt=0.2, steps=3)
    animation = plotting.animate(run, axes=(0,))
    ax = figure_of(animation).axes[0]
    assert animation.to_jshtml().count("data:image/png") == 4  # it ends on the last
    (drawn,) = map(data, ax.lines or ax.patches)
    last = of.plotting.density(run.final, axes=(0,))
    (wanted,) = map(data, last.lines or last.patches)
    for a, b in zip(drawn, wanted, strict=True):
        np.testing.assert_array_equal(a, b)
    assert ax.get_xlabel() == "x[0]"
    assert ax.get_ylim()[1] > float(drawn[kind == "gaussian"].max())


def test_obstacles_are_drawn_where_they_are():
    blocked = torch.zeros(4, 2, dtype=torch.bool)
    blocked[3, 0] = True  # right, below
    rho = torch.ones(4, 2, dtype=torch.float64).masked_fill(blocked, 0.0)
    mu = of.GridDensity(rho, 0, (4, 2), obstacles=blocked, walls=True, normalize=True)
    for axes, place in (((0, 1), (0, 3)), ((1, 0), (3, 0))):
        shade = of.plotting.density(mu, axes=axes).images[1].get_array()
        shown = ~np.ma.getmaskarray(shade)
        assert [tuple(k) for k in np.argwhere(shown)] == [place]


# Files --------------------------------------------------------------------------------


def small_film():
    """Return an animation of two tiny frames."""
    return plotting.animate(run_in(2, of.ExplicitEuler()), frames=2)


def played(path):
    """Return the codec of a film and the pictures into which it decodes."""
    frames, _ = imageio_ffmpeg.count_frames_and_secs(str(path))
    player = imageio_ffmpeg.get_ffmpeg_exe()
    command = [player, "-i", path, "-f", "rawvideo", "-pix_fmt", "gray", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    codec = re.findall(rb"Video: (\w+)", done.stderr)[0].decode()
    return codec, np.frombuffer(done.stdout, np.uint8).reshape(frames, -1)


def test_a_film_is_written_by_the_ffmpeg_of_the_package(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # none of the system's
    animation = plotting.animate(run_in(2), frames=5)
    animation.save(str(tmp_path / "a.mp4"), dpi=40)
    codec, pictures = played(tmp_path / "a.mp4")
    assert codec == "h264"
    assert len(pictures) == 5
    assert all(np.any(a != b) for a, b in itertools.pairwise(pictures))


def test_a_notebook_shows_a_film(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    tag = plotting.animate(run_in(2), frames=3).to_html5_video()
    assert tag.startswith("<video")
    data = re.findall(r'src="data:video/mp4;base64,([^"]+)"', tag)[0]
    (tmp_path / "b.mp4").write_bytes(base64.b64decode(data))
    codec, pictures = played(tmp_path / "b.mp4")
    assert (codec, len(pictures)) == ("h264", 3)


def test_without_ffmpeg_a_film_is_refused_with_a_cure_that_works(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    film = small_film()
    with pytest.raises(of.errors.Unsupported, match=r"otflow\[plot\]', or .*\.gif"):
        film.save(tmp_path / "a.mp4")
    with pytest.raises(of.errors.Unsupported, match=r"call to_jshtml"):
        film.to_html5_video()
    assert "<img" in film.to_jshtml()
    film.save(str(tmp_path / "a.gif"), dpi=40)
    assert (tmp_path / "a.gif").read_bytes()[:3] == b"GIF"
