"""The map of the survey: what a row names exists, its numbers are those of tests."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import otflow as of
from tests.measured import ROWS, agrees, caught, compared, named, of_test
from tests.test_docs_pages import extension
from tools import measured

ROOT = Path(__file__).parent.parent
DATA = tomllib.loads((ROOT / "docs" / "survey.toml").read_text("utf-8"))
survey_map = extension("survey_map")

# Every statement of the survey has a label: letters for its parts, numbers within.
PARTS = {"A": 7, "B": 12, "C": 4, "D": 15, "F": 9, "G": 10, "H": 10, "I": 5}
READINGS = {label for reading in DATA["reading"] for label in reading["labels"]}
IDS = [row["says"][:40] for row in ROWS]


@functools.cache
def functions(file):
    tree = ast.parse((ROOT / named(file)).read_text("utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def resolved(name):
    """Return the object of a full name."""
    parts, found = name.split("."), of
    for k, part in enumerate(parts[1:], 2):
        if not hasattr(found, part):
            found = importlib.import_module(".".join(parts[:k]))
        else:
            found = getattr(found, part)
    return found


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_what_a_row_names_exists(row):
    tests = [survey_map.test_of(entry) for entry in row["tests"]]
    assert tests
    for test in tests:
        file, name = test.split("::")
        assert name in functions(file), test
    assert row["objects"]
    for name in row["objects"]:
        assert inspect.getdoc(resolved(name)), name
    assert set(row.get("corrections", ())) <= READINGS
    for name in row.get("tutorials", ()):
        assert (ROOT / "tutorials" / f"{name}.py").exists(), name
    for number in row.get("measured", ()):
        assert survey_map.plain(number["by"]) in tests, number
        compile(number["value"], number["what"], "eval")
        float(number["found"].removeprefix("< "))


def test_a_name_is_missed():
    with pytest.raises(ModuleNotFoundError):
        resolved("otflow.meanfield.NoSuchRisk")
    with pytest.raises(ModuleNotFoundError):
        resolved("otflow.Particles.no_such_verb")
    assert "test_no_such" not in functions("test_survey_map.py")


def test_every_label_of_the_survey_has_a_row():
    mapped = {label for row in ROWS for label in row["labels"]}
    statements = {f"{part}{k}" for part, n in PARTS.items() for k in range(1, n + 1)}
    assert statements - mapped == set()


def test_numbers_are_named_once():
    seen = [(n["by"], n["what"]) for row in ROWS for n in row.get("measured", ())]
    assert len(seen) == len(set(seen))
    assert seen


def test_the_page_shows_every_row():
    data = survey_map.load(ROOT / "docs" / "survey.toml")
    page = survey_map.sections(data)
    for row in ROWS:
        assert f"**{row['where']}**" in page
        assert row["says"] in page
        for entry in row["tests"]:
            assert survey_map.words(survey_map.test_of(entry)) in page
        for number in row.get("measured", ()):
            assert f"{number['what']}: **{number['found']}**" in page
    table = survey_map.readings(data)
    assert all(reading["here"].strip() in table for reading in DATA["reading"])
    assert survey_map.outside(data).count("\n- ") + 1 == len(DATA["outside"])
    text = (ROOT / "docs" / "survey.rst").read_text("utf-8")
    assert all(f".. {name}:: survey.toml" in text for name in survey_map.PARTS)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('where = "(5)"', 'were = "(5)"', "missing {'where'}, not known {'were'}"),
        ('found = "', 'bounds = "a"\nfound = "', "not known {'bounds'}"),
        ("[[reading]]\nlabels", "[[reading]]\nlabel", "missing {'labels'}"),
    ],
)
def test_a_misspelt_key_is_an_error(tmp_path, old, new, words):
    text = (ROOT / "docs" / "survey.toml").read_text("utf-8")
    assert old in text
    path = tmp_path / "survey.toml"
    path.write_text(text.replace(old, new, 1), "utf-8")
    with pytest.raises(ValueError, match=words):
        survey_map.load(path)


def test_numbers_agree_to_a_tenth_or_as_they_say():
    assert agrees({"found": "-0.5"}, -0.54)
    assert not agrees({"found": "-0.5"}, -0.56)
    assert agrees({"found": "-0.5", "within": 0.1}, -0.56)
    assert agrees({"found": "< 1e-12"}, 9e-13)
    assert not agrees({"found": "< 1e-12"}, 2e-12)
    assert not agrees({"found": "< 1e-12"}, float("nan"))
    assert not agrees({"found": "0.5"}, float("nan"))


def test_the_variables_of_a_test_are_read_at_its_end():
    def inner():
        return list(range(3))

    def example():
        number = 1.0
        inner()
        number += 1.0
        return number

    before = sys.gettrace()
    with caught(example.__code__) as frames:
        inner()
        example()
        example()
    assert sys.gettrace() is before
    assert len(frames) == 1
    assert frames[0].f_locals["number"] == 2.0


@pytest.mark.parametrize("value", ["sum(half for _ in range(2))", "both[0] + both[1]"])
def test_a_number_that_changed_fails_its_test(value):
    def example():
        half = 0.5
        both = torch.tensor([0.5, 0.5], requires_grad=True)
        assert half == both[0]

    for found, fails in (("1.05", False), ("0.5", True)):
        item = SimpleNamespace(nodeid="", obj=example, user_properties=[])
        numbers = [
            {"what": what, "value": value, "found": found} for what in ("one", "other")
        ]
        told = pytest.raises(AssertionError, match="one is 1, but docs/survey")
        with told if fails else nullcontext(), compared(item, numbers):
            example()
        assert item.user_properties == [("one", 1.0), ("other", 1.0)]


def test_a_test_that_fails_is_not_measured():
    item = SimpleNamespace(nodeid="", obj=len, user_properties=[])
    with pytest.raises(ZeroDivisionError), compared(item):
        raise ZeroDivisionError


@pytest.mark.slow  # a process of its own
def test_the_tool_prints_the_numbers_of_a_row():
    command = [sys.executable, "-m", "tools.measured", "G3"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    words = (
        r"geodesic of two exact networks: now 0\.26\d*, found 0\.2640, theory 0\.2640"
    )
    assert re.search(words, run.stdout), run.stdout


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("nowhere", "no row has the label nowhere"),
        ("D1", "nothing is measured in the rows D1"),
    ],
)
def test_the_tool_tells_what_it_cannot_print(label, words, capsys):
    with pytest.raises(SystemExit):
        measured.main([label])
    assert words in capsys.readouterr().err


def test_the_hook_finds_the_numbers_of_a_test():
    by = next(n["by"] for row in ROWS for n in row.get("measured", ()))
    assert of_test(f"tests/{by}")
    assert not of_test(f"tests/{by}[of another parameter]")


@pytest.mark.slow
def test_each_number_is_compared_by_a_test_that_is_collected():
    """A wrong id of parameters would be a number that no run compares."""
    wanted = {named(n["by"]) for row in ROWS for n in row.get("measured", ())}
    files = sorted({test.split("::")[0] for test in wanted})
    listing = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "", *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert wanted <= set(listing.stdout.splitlines())
