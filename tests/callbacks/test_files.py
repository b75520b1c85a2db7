"""Files hold one row for each record, whole lines only, and no row twice."""

from __future__ import annotations

import csv
import json

import pytest
import torch

import otflow as of
from otflow.callbacks import CSVWriter, JSONLinesWriter
from tests.callbacks.common import CLOUD, SPRING, Scripted, flow

RECORD = {
    "mean": lambda mu: mu.points.mean(0),
    "n": lambda mu: mu.n,
    "odd, name": lambda mu: mu.points.abs().max(),
}
KINDS = {"csv": CSVWriter, "jsonl": JSONLinesWriter}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.txt"


def steps_of(path):
    """Return the steps of the rows of a file."""
    text = path.read_text("utf-8")
    assert text.endswith("\n")
    if text.startswith("{"):
        return [json.loads(line)["step"] for line in text.splitlines()]
    return [int(row["step"]) for row in csv.DictReader(text.splitlines())]


def resumed(run, callbacks, **options):
    words = {"dt": 0.1, "steps": 4} | options
    return of.flow(
        SPRING, run.final, of.ExplicitEuler(), resume=run, on_step=callbacks, **words
    )


def test_comma_separated_values_are_the_records(path):
    run = flow([CSVWriter(path)], mu=CLOUD, every=3, record=RECORD)
    rows = list(csv.DictReader(path.read_text("utf-8").splitlines()))
    assert list(rows[0]) == [
        "step",
        "time",
        "energy",
        "mean[0]",
        "mean[1]",
        "n",
        "odd, name",
    ]
    assert [int(row["step"]) for row in rows] == run.steps.tolist() == [0, 3, 6, 9, 10]
    for k, row in enumerate(rows):
        assert float(row["time"]) == run.times[k]
        assert float(row["energy"]) == run.records["energy"][k]
        assert float(row["mean[1]"]) == run.records["mean"][k, 1]
        assert int(row["n"]) == 6
        assert float(row["odd, name"]) == run.records["odd, name"][k]


NAMES = ["a, b", 'a "quoted" name', "two\nlines", "a\rreturn", "both\r\n", " a "]
NAMES += ["\tindented", "naïve π", "a\u2028b", "<b>", "#", "nan", "info", '"']


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_any_name_and_every_bit_are_read_back(kind, path, name, dtype):
    third = {name: lambda mu: mu.points.square().sum() / 3}
    words = {"mu": CLOUD.to(dtype), "record": third}
    run = flow([kind(path)], steps=3, **words)
    run = resumed(run, [kind(path, append=True)], steps=2, record=third)
    expected = [run.steps.tolist(), run.times.tolist(), run.records["energy"].tolist()]
    expected.append(run.records[name].tolist())
    if kind is JSONLinesWriter:
        with path.open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        found = [[row["step"] for row in rows], [row["time"] for row in rows]]
        found += [[row["records"][key] for row in rows] for key in ("energy", name)]
        assert found == expected
        return
    with path.open(encoding="utf-8", newline="") as file:
        head, *lines = csv.reader(file)
    assert head == ["step", "time", "energy", name]
    assert [[float(x) for x in column] for column in zip(*lines, strict=True)] == (
        expected
    )
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_csv(path)
    assert list(frame.columns) == head
    assert [frame[column].tolist() for column in head] == expected


def test_a_file_that_broke_off_within_its_head_is_begun_anew(path):
    names = {"two\nlines": lambda mu: mu.n}
    flow([CSVWriter(path)], steps=2, record=names)
    whole = path.read_bytes()
    end = whole.index(b's"\n') + 2
    for cut in range(end):
        path.write_bytes(whole[:cut])
        if b"\n" in whole[:cut]:  # rows may lie behind a quote that is open
            with pytest.raises(ValueError, match="give another path"):
                flow([CSVWriter(path, append=True)], steps=2, record=names)
            assert path.read_bytes() == whole[:cut]
        else:
            flow([CSVWriter(path, append=True)], steps=2, record=names)
            assert path.read_bytes() == whole


def test_two_records_of_one_column_lose_nothing_in_silence(path):
    record = {"x[0]": lambda mu: mu.n, "x": lambda mu: mu.points[0]}
    with pytest.raises(ValueError, match=r"two records have the column 'x\[0\]'"):
        flow([CSVWriter(path)], record=record, mu=CLOUD)
    path.unlink()
    run = flow([JSONLinesWriter(path)], record=record, mu=CLOUD)
    last = json.loads(path.read_text("utf-8").splitlines()[-1])
    assert last["records"]["x"] == run.records["x"][-1].tolist()


def test_lines_of_json_are_records_and_reports(path):
    writer = JSONLinesWriter(path)
    run = flow([writer], of.JKO(), mu=CLOUD, every=2, steps=4, record=RECORD)
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [row["step"] for row in rows] == [0, 2, 4]
    for k, row in enumerate(rows):
        records = {name: values[k].tolist() for name, values in run.records.items()}
        assert row["records"] == records
        assert row["time"] == run.times[k]
    assert [row["info"] for row in rows[:2]] == [run.info[k].to_dict() for k in (0, 2)]
    assert rows[2]["info"] is None


def test_what_json_has_no_word_for_is_written_as_text(path):
    report = {"far": float("inf"), "odd": {"x": float("nan")}, "kind": torch.float32}
    flow([JSONLinesWriter(path)], Scripted([0.0], report), steps=1)
    first = json.loads(path.read_text("utf-8").splitlines()[0])
    expected = {"far": "inf", "odd": {"x": "nan"}, "kind": "torch.float32"}
    assert {name: first["info"][name] for name in report} == expected


def test_each_row_is_there_before_the_next_step(kind, path):
    seen = []

    def look(event):
        seen.append(len(steps_of(path)))

    flow([kind(path), look], steps=3)
    assert seen == [1, 2, 3]


def test_a_file_is_not_written_over(kind, path):
    path.write_text("precious", "utf-8")
    with pytest.raises(FileExistsError, match=r"another path, or append=True"):
        flow([kind(path)])
    with pytest.raises(ValueError, match=r"has a line that .* does not write"):
        flow([kind(path, append=True)])
    assert path.read_text("utf-8") == "precious"


def test_a_missing_folder_is_named(kind, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere for a\.csv"):
        flow([kind(tmp_path / "nowhere" / "a.csv")])


@pytest.mark.parametrize(
    "text",
    [
        b"step,time,energy\n0,0.0,1.0\nnonsense\n",
        b"[1]\n",
        b"step,time,energy,\xff\n0,0.0,1.0,2\n",
        b'step,time,energy,"open\n0,0.0,1.0\n',
        b"step,time,energy\r\n0,0.0,1.0\r\n",
    ],
)
def test_a_file_of_others_is_left_alone(kind, path, text):
    path.write_bytes(text)
    with pytest.raises(ValueError, match="give another path"):
        flow([kind(path, append=True)])
    assert path.read_bytes() == text


def test_a_folder_is_no_file(kind, tmp_path):
    for append in (False, True):
        with pytest.raises(IsADirectoryError, match="give the path of a file in it"):
            flow([kind(tmp_path, append=append)])


def test_other_columns_are_refused(path):
    flow([CSVWriter(path)], record=RECORD)
    before = path.read_text("utf-8")
    with pytest.raises(ValueError, match="record the same names, or give another path"):
        flow([CSVWriter(path, append=True)])
    assert path.read_text("utf-8") == before


def test_a_second_flow_is_appended(kind, path):
    flow([kind(path)], steps=2)
    flow([kind(path, append=True)], steps=1)
    assert steps_of(path) == [0, 1, 2, 0, 1]


def test_append_makes_a_file_that_is_not_there(kind, path):
    flow([kind(path, append=True)], steps=1)
    assert steps_of(path) == [0, 1]


@pytest.mark.parametrize("every", [1, 4])
def test_a_resumed_flow_writes_the_file_of_one_run(kind, path, tmp_path, every):
    first = flow([kind(path)], every=every, steps=6)
    resumed(first, [kind(path, append=True)], every=every)
    whole = tmp_path / "whole"
    flow([kind(whole)], every=every, steps=10)
    assert path.read_text("utf-8") == whole.read_text("utf-8")


def test_rows_beyond_the_place_where_a_flow_resumes_are_made_anew(kind, path, tmp_path):
    """The first run went on to step 9, and was broken within a line."""
    kept = []

    def keep(event):
        if event.index == 4:
            kept.append(event.trajectory())

    flow([kind(path), keep], steps=9)
    with path.open("ab") as file:
        file.write(path.read_bytes().splitlines()[-1][:7])
    resumed(kept[0], [kind(path, append=True)], steps=5)
    whole = tmp_path / "whole"
    flow([kind(whole)], steps=10)
    assert path.read_text("utf-8") == whole.read_text("utf-8")


def test_only_the_last_flow_of_a_file_is_cut(kind, path):
    flow([kind(path)], steps=5)
    second = flow([kind(path, append=True)], steps=2)
    resumed(second, [kind(path, append=True)], steps=1)
    assert steps_of(path) == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]


def test_a_flow_that_fails_leaves_whole_rows_and_a_closed_file(kind, path):
    def fail(event):
        if event.index == 2:
            raise RuntimeError

    writer = kind(path)
    with pytest.raises(RuntimeError):
        flow([writer, fail])
    assert steps_of(path) == [0, 1, 2, 3]
    path.unlink()  # on some systems a file that is open stays
    flow([writer], steps=1)
    assert steps_of(path) == [0, 1]


def test_a_flow_that_diverges_leaves_its_good_rows(kind, path):
    with pytest.raises(of.errors.Diverged) as caught:
        flow([kind(path)], dt=1e60, steps=9)
    assert steps_of(path) == caught.value.trajectory.steps.tolist()


def test_append_is_true_or_false(kind, path):
    with pytest.raises(TypeError, match="append must be True or False"):
        kind(path, append="yes")


def test_a_writer_names_its_file(kind, path):
    assert repr(kind(path)) == f"{kind.__name__}({str(path)!r}, append=False)"
