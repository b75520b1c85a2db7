"""The pages of the documentation: one home for each text, pictures with words."""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import otflow
from otflow.proximal import Guarantee
from otflow.proximal.certificate import CERTIFYING, WORDS
from tools.pictures import DRAWINGS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def page(name):
    return (DOCS / f"{name}.rst").read_text("utf-8")


def extension(name):
    sys.path.insert(0, str(DOCS / "_ext"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


@pytest.mark.parametrize("name", DRAWINGS)
def test_each_picture_is_what_its_script_draws(name):
    drawn = DRAWINGS[name]()
    ET.fromstring(drawn)
    assert (DOCS / "_static" / name).read_text("utf-8") == drawn


def test_every_image_exists_and_is_put_into_words():
    found = 0
    for path in DOCS.glob("*.rst"):
        text = path.read_text("utf-8")
        pattern = r"\.\. (?:image|figure):: (\S+)\n((?: +:.*\n(?: +[^:\s].*\n)*)*)"
        for name, options in re.findall(pattern, text):
            assert (DOCS / name.lstrip("/")).exists(), name
            alt = re.search(r":alt: (.+)", options)
            assert alt, name
            assert len(alt[1]) > 20, name
            found += 1
    assert found >= 5


def test_the_thumbnails_name_tutorials_and_say_what_they_show():
    block = re.search(r"\.\. thumbnails::\n\n((?:   .+\n)+)", page("index"))
    assert block
    chosen = extension("thumbnails").chosen(block[1].splitlines())
    assert len(chosen) >= 4
    for name, shows in chosen.items():
        assert (ROOT / "tutorials" / f"{name}.py").exists(), name
        assert len(shows) > 20, name


def test_the_extras_of_the_install_page_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    rows = re.findall(r"   \* - ``(\w+)``\n     - (.+)\n", page("install"))
    wanted = {}
    for extra in extras.keys() - {"test", "mutants", "docs", "lint"}:
        text = re.sub(r"otflow\[([\w,]+)\]", r"\1", ",".join(extras[extra]))
        names = [re.split(r"[>=<]", part)[0] for part in text.split(",")]
        wanted[extra] = sorted(names)
    assert {extra: sorted(names.split(", ")) for extra, names in rows} == wanted
    assert f"Python {project['requires-python'].removeprefix('>=')}" in page("install")


def test_the_entry_to_cite_is_that_of_the_citation_file():
    cff = (ROOT / "CITATION.cff").read_text("utf-8")
    facts = dict(re.findall(r'^([\w-]+): "?([^"\n]+?)"?$', cff, re.MULTILINE))
    entry = dict(re.findall(r"^     (\w+) = \{+(.+?)\}+,$", page("cite"), re.MULTILINE))
    for word in ("title", "version", "license"):
        assert entry[word] == facts[word]
    assert f'- name: "{entry["author"]}"' in cff
    assert entry["version"] == otflow.__version__


def test_the_page_on_certificates_has_every_word():
    text = page("reading_a_certificate")
    for word in (*WORDS, "noise", "iterations", "dt", "solver", "order", "modulus"):
        assert f"``{word}``" in text, word
    rows = re.findall(r"   \* - ``([\w-]+)``\n     - .+\n     - (yes|no)", text)
    assert {word: said == "yes" for word, said in rows} == {
        str(word): word in CERTIFYING for word in Guarantee
    }


def test_the_table_in_seconds_comes_from_its_script():
    from benchmarks.seconds import HEAD, problems

    table = page("seconds").split(".. include:: ")[1].split("\n")[0]
    text = (DOCS / table).read_text("utf-8")
    assert re.findall(r"   [* ] - (.+)", text)[: len(HEAD)] == HEAD
    assert text.count("   * - ") == 1 + len(list(problems()))
    assert "CPU cores" in text


def test_pages_show_the_readme_and_the_changelog_themselves():
    part = extension("markdown_part")
    title = re.search(r"README.md\n   :section: (.+)", page("index"))
    assert title
    table = part.to_rst(part.section((ROOT / "README.md").read_text("utf-8"), title[1]))
    assert ".. list-table::" in table
    assert "     - GeomLoss" in table
    assert ".. markdown-part:: ../CHANGELOG.md" in page("changelog")


def test_markdown_becomes_restructuredtext():
    to_rst = extension("markdown_part").to_rst
    assert to_rst("## A `b`\n") == "\nA ``b``\n=======\n\n"
    assert to_rst("`a`s and [b](https://c.d)") == (
        "``a``\\ s and `b <https://c.d>`__\n"
    )
    assert to_rst("- one `x\n  y`\n- two\n") == "\n- one ``x\n  y``\n\n- two\n"
    assert "     - 2" in to_rst("| a | b |\n|---|---|\n| 1 | 2 |\n")
    with pytest.raises(ValueError, match="no heading"):
        extension("markdown_part").section("# A\n", "B")
