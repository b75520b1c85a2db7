"""Tables, the summary and the page of a run say what is in the run."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import otflow as of
from otflow.proximal import Certificate
from otflow.schemes.reports import certified
from otflow.testing.clouds import normal

F64 = torch.float64
SPRING = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
CLOUD = of.Particles(normal(6, 2))
RECORD = {
    "mean": lambda mu: mu.points.mean(0),
    "gram": lambda mu: mu.points.T @ mu.points,
    "many": lambda mu: torch.tensor(mu.n),
}


def run_of(scheme=None, F=SPRING, mu=CLOUD, **options):
    words = {"dt": 0.5, "steps": 4, "generator": 0} | options
    return of.flow(F, mu, scheme or of.ExplicitEuler(), **words)


class Halve(of.schemes.Scheme):
    def step(self, F, mu, dt, state, generator):
        return of.schemes.Step(of.Particles(mu.points[: mu.n // 2]), state)


class Stuck(of.schemes.Scheme):
    """A scheme whose solver fails and says why, at every second step."""

    def init(self, F, mu):
        return 0

    def step(self, F, mu, dt, state, generator):
        info = {
            "energy_before": 1.0,
            "energy_after": 1.0,
            "residual": 0.25 + state,
            "converged": state % 2 == 1,
            "guarantee": "stationary",
        }
        if not info["converged"]:
            info |= {"cause": "a <kink>", "cure": "smooth it"}
        return of.schemes.Step(mu, state + 1, info)


# pandas -------------------------------------------------------------------------------


def test_the_records_are_columns_over_time():
    run = run_of(record=RECORD, every=2)
    frame = run.to_pandas()
    assert frame.index.name == "time"
    np.testing.assert_array_equal(frame.index, [0.0, 1.0, 2.0])
    gram = [f"gram[{i},{j}]" for i in (0, 1) for j in (0, 1)]
    assert list(frame.columns) == ["energy", "mean[0]", "mean[1]", *gram, "many"]
    np.testing.assert_array_equal(frame["energy"], run.records["energy"])
    np.testing.assert_array_equal(frame["gram[0,1]"], run.records["gram"][:, 0, 1])
    assert frame["many"].dtype == np.int64


def test_the_reports_are_rows_of_steps():
    run = run_of(of.JKO(), every=2)
    frame = run.to_pandas("info")
    assert frame.index.name == "step"
    assert len(frame) == 4
    assert list(frame.columns[:3]) == ["energy_before", "energy_after", "w2"]
    for word in ("w2", "residual", "certified", "guarantee", "bound", "solver", "dt"):
        expected = [report.to_dict()[word] for report in run.info]
        assert frame[word].tolist() == expected, word
    assert set(frame.columns) == set(run.info[0])


def test_reports_that_differ_have_holes():
    run = run_of()
    info = (Certificate.of_start(1.0), Certificate.of({"rounds": 3, "dt": 0.5}))
    frame = dataclasses.replace(run, info=info).to_pandas("info")
    assert pd.isna(frame["rounds"][0])
    assert frame["rounds"][1] == 3
    assert pd.isna(frame["energy_before"][1])


def test_parts_stay_with_their_step():
    frame = run_of(of.chain(of.JKO(), of.BirthDeath())).to_pandas("info")
    assert frame["parts"][0][0]["guarantee"] == "exact"


def test_a_frame_does_not_share_the_memory_of_the_run():
    run = run_of()
    frame = run.to_pandas()
    frame.loc[:, "energy"] = -1.0
    assert (run.records["energy"] >= 0).all()


def test_a_name_of_two_columns_is_refused():
    record = {"a": lambda mu: mu.points.mean(0), "a[0]": lambda mu: mu.points.mean()}
    with pytest.raises(ValueError, match="two records have the column"):
        run_of(record=record).to_pandas()
    with pytest.raises(ValueError, match="did you mean 'info'"):
        run_of().to_pandas("infos")


@pytest.mark.parametrize("name", [1, None, ("a", "b"), b"a", ""])
def test_the_name_of_a_record_is_a_text(name):
    """Tables, files and the text of a run take it for one."""
    error = ValueError if name == "" else TypeError
    with pytest.raises(error, match=r"^the name of a record must be a text"):
        run_of(record={name: lambda mu: mu.n})


def test_a_record_with_the_name_of_an_axis_is_refused():
    record = {"a": lambda mu: mu.points.mean(0), "a_0": lambda mu: mu.n}
    with pytest.raises(ValueError, match=r"^the record 'a_0' has the name"):
        run_of(record=record).to_xarray()


# xarray -------------------------------------------------------------------------------


def test_the_dataset_holds_records_and_snapshots():
    run = run_of(of.chain(of.ExplicitEuler(), of.BirthDeath()), record=RECORD)
    data = run.to_xarray()
    assert dict(data.sizes) == {
        "time": 5,
        "particle": 6,
        "dim": 2,
        "mean_0": 2,
        "gram_0": 2,
        "gram_1": 2,
    }
    for k, mu in enumerate(run.snapshots):
        at = data.sel(time=float(run.times[k]))
        np.testing.assert_array_equal(at["points"], mu.points)
        np.testing.assert_array_equal(at["weights"], mu.weights)
        np.testing.assert_array_equal(at["gram"], run.records["gram"][k])
    assert data.attrs == {
        "status": "finished",
        "message": "made all 4 steps",
        "steps": 4,
        "seed": "0",
    }


def test_snapshots_at_other_times_have_an_axis_of_their_own():
    run = run_of(steps=9, every=2, snapshots=3)
    data = run.to_xarray()
    assert data["energy"].dims == ("time",)
    assert data["points"].dims == ("snapshot_time", "particle", "dim")
    np.testing.assert_array_equal(data["snapshot_time"], run.snapshot_times)
    np.testing.assert_array_equal(data["points"][1], run.snapshots[1].points)
    bare = run_of(snapshots="none").to_xarray()
    assert "points" not in bare


def test_points_that_never_change_are_stored_once():
    rho = of.GridDensity.from_function(
        lambda x: (-x.square().sum(-1)).exp(), -4, 4, 30, dtype=F64
    )
    run = run_of(F=SPRING + of.Entropy(), mu=rho, dt=1e-3)
    points = run.to_xarray()["points"]
    assert points.shape == (5, 30, 1)
    assert points.data.strides[0] == 0
    np.testing.assert_array_equal(points[3], rho.points)


def test_float32_stays_float32():
    data = run_of(mu=of.Particles(torch.randn(4, 2))).to_xarray()
    assert data["points"].dtype == data["energy"].dtype == np.float32


def test_a_changing_number_of_points_fills_no_dataset():
    run = run_of(Halve(), steps=2)
    with pytest.raises(ValueError, match=r"from 1 to 6, so .* run\.to_pandas"):
        run.to_xarray()
    assert len(run.to_pandas()) == 3


@pytest.mark.parametrize("name", ["points", "weights", "particle", "dim"])
def test_a_record_with_the_name_of_a_coordinate_is_refused(name):
    run = run_of(record={name: lambda mu: mu.points.mean()})
    with pytest.raises(ValueError, match="give the record another name"):
        run.to_xarray()
    assert name in run.to_pandas()


def test_a_flow_that_recorded_nothing_has_empty_tables():
    with pytest.raises(of.errors.Diverged) as caught:
        run_of(F=of.Potential(lambda x: x.sum(-1) / 0))
    run = caught.value.trajectory
    assert len(run.to_pandas()) == len(run.to_pandas("info")) == 0
    assert run.to_xarray().sizes["time"] == 0
    assert "status" in run.summary()
    assert "no time was recorded" in run._repr_html_()


@pytest.mark.parametrize(
    ("package", "call"), [("pandas", "to_pandas()"), ("xarray", "to_xarray()")]
)
def test_without_the_package_the_extra_is_named(package, call):
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "import torch, otflow as of\n"
        "F = of.Potential(lambda x: x.square().sum(-1))\n"
        "run = of.flow(F, of.Particles(torch.ones(1, 1)), of.ExplicitEuler(),"
        " dt=0.1, steps=1)\n"
        f"try:\n    run.{call}\n"
        "except ImportError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "pip install 'otflow[table]'" in done.stdout


# Summary ------------------------------------------------------------------------------


def lines(run):
    """Return the facts of a summary by their names; cures as a list."""
    rows = [line.split("  ", 1) for line in run.summary().splitlines()]
    found = {name: text.strip() for name, text in rows}
    return found | {"cure": [text.strip() for name, text in rows if name == "cure"]}


def test_a_summary_says_what_was_certified():
    run = run_of(of.JKO())
    found = lines(run)
    assert found["status"] == "finished: made all 4 steps"
    assert found["steps"] == "4"
    assert found["time"] == "0 to 2"
    energies = run.records["energy"]
    assert found["energy"] == f"{energies[0]:.6g} -> {energies[-1]:.6g}"
    assert found["converged"] == found["certified"] == "4 of 4 steps (100 %)"
    assert found["guarantees"] == "exact 4"
    worst = max(report.residual for report in run.info)
    assert found["worst residual"] == f"{worst:.3g}"
    assert found["energy rose"] == "in 0 steps"
    assert found["cure"] == []


def test_a_summary_of_an_explicit_scheme_claims_nothing():
    found = lines(run_of())
    assert found["certified"] == "no step solved anything"
    assert "converged" not in found


def test_a_summary_names_the_cures():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", of.errors.NotConvergedWarning)
        run = run_of(Stuck(), steps=5)
    found = lines(run)
    assert found["converged"] == "2 of 5 steps (40 %)"
    assert found["certified"] == "2 of 5 steps (40 %)"
    assert found["guarantees"] == "none 3, stationary 2"
    assert found["worst residual"] == "4.25"
    assert found["cure"] == ["a <kink>: smooth it (3 steps)"]


def test_a_summary_names_the_cure_of_a_rise():
    steep = of.Potential(lambda x: 3.0 * x.square().sum(-1))
    found = lines(run_of(F=steep))
    assert found["energy rose"] == "in 4 steps"
    assert found["cure"] == ["take a smaller dt, or ExplicitEuler(backtracking=True)"]


def test_not_every_step_is_not_all():
    """199 certified steps of 200 are not 100 %."""
    run = run_of()
    good = Certificate(converged=True, guarantee=of.proximal.Guarantee.EXACT)
    bad = dataclasses.replace(good, guarantee=of.proximal.Guarantee.NONE)
    found = lines(dataclasses.replace(run, info=(good,) * 199 + (bad,)))
    assert found["certified"] == "199 of 200 steps (99 %)"


@pytest.mark.parametrize(
    ("parts", "verdict"),
    [((), None), ((None,), None), (("exact", None), True), (("exact", "none"), False)],
)
def test_a_step_of_parts_is_certified_if_each_part_that_claims_is(parts, verdict):
    inner = tuple(
        Certificate(guarantee=None if g is None else of.proximal.Guarantee(g))
        for g in parts
    )
    assert certified(Certificate(entries={"parts": inner})) is verdict


# The page of a notebook ---------------------------------------------------------------


def test_the_page_shows_curve_facts_and_certificates():
    page = run_of(of.JKO())._repr_html_()
    assert page.count("<svg") == 1
    assert page.count("<table>") == 2
    assert "<td>exact</td><td>4</td><td>4 of 4</td><td>4 of 4</td>" in page


def test_the_curve_is_the_energy_and_thin():
    run = run_of(steps=1200, dt=0.01)
    page = run._repr_html_()
    points = page.split('points="')[1].split('"')[0].split()
    assert len(points) == 500
    heights = [float(point.split(",")[1]) for point in points]
    assert heights == sorted(heights)  # the energy falls; pixels are counted from above
    assert "500 of 1201 records" in page


def test_the_page_is_safe_and_does_not_raise():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", of.errors.NotConvergedWarning)
        run = run_of(Stuck(), record={"<b>": lambda mu: mu.points.mean()})
    page = run._repr_html_()
    assert "<kink>" not in page
    assert "a &lt;kink&gt;" in page
    assert "<b>" not in page
    broken = dataclasses.replace(run, records={})
    assert "no picture (KeyError" in broken._repr_html_()


def test_a_run_of_no_step_has_a_page():
    page = run_of(steps=0)._repr_html_()
    assert "no picture" not in page
    assert page.count("<circle") == 1


def test_a_dataset_can_be_written_by_xarray():
    data = run_of(generator=2**64 - 1).to_xarray()
    assert xr.Dataset.from_dict(data.to_dict()).equals(data)
