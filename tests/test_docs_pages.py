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


def test_every_tutorial_has_a_thumbnail_that_is_put_into_words():
    chosen = tomllib.loads((ROOT / "tutorials/thumbnails.toml").read_text("utf-8"))
    figures = tomllib.loads((ROOT / "tutorials/alt.toml").read_text("utf-8"))
    assert chosen.keys() == figures.keys()
    assert {p.stem for p in (ROOT / "tutorials").glob("plot_*.py")} == chosen.keys()
    for name, text in chosen.items():
        left, top, right, bottom = text["part"]
        assert 0 <= left < right <= 1, name
        assert 0 <= top < bottom <= 1, name
        assert 1 <= text["figure"] <= len(figures[name])
        assert not figures[name][text["figure"] - 1].startswith("Film"), name
        assert len(text["shows"]) > 40, name
    block = re.search(r"\.\. thumbnails::\n\n((?:   .+\n)+)", page("index"))
    assert block
    assert len(block[1].split()) >= 8
    assert set(block[1].split()) <= chosen.keys()


def test_a_thumbnail_is_its_part_of_the_figure():
    image = pytest.importorskip("PIL.Image")
    extension("thumbnails")
    cut, size = sys.modules["thumbnails"].cut, sys.modules["thumbnails"].SIZE
    figure = image.new("RGB", (200, 70), "red")
    figure.paste("blue", (100, 0, 200, 70))
    card = cut(figure, [0.5, 0.0, 1.0, 1.0])
    assert card.size == size
    assert {colour for _, colour in card.getcolors()} == {(0, 0, 255)}
    wide = cut(figure, [0.0, 0.0, 1.0, 1.0])  # white above and below, nothing lost
    found = [wide.getpixel((x, size[1] // 2)) for x in (5, size[0] - 5)]
    assert found == [(255, 0, 0), (0, 0, 255)]
    assert wide.getpixel((5, 5)) == (255, 255, 255)


def rules():
    """Return the declarations of each selector of the style sheet, queries left out."""
    text = (DOCS / "_static" / "otflow.css").read_text("utf-8")
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    text = re.sub(r"@media[^{]*\{(?:[^{}]*\{[^{}]*\})*\s*\}", "", text)
    found: dict[str, dict[str, str]] = {}
    for selectors, body in re.findall(r"([^{}]+)\{([^{}]*)\}", text):
        pairs = dict(re.findall(r"([\w-]+):\s*([^;]+);", body))
        for selector in selectors.split(","):
            found.setdefault(" ".join(selector.split()), {}).update(pairs)
    return found


@pytest.mark.parametrize(
    ("selector", "name", "value"),
    [
        (".bd-article img", "max-width", "100%"),
        (".bd-article video", "max-width", "100%"),
        ("div.math", "overflow-x", "auto"),
        ('.bd-article mjx-container:not([display="true"]) > svg', "max-width", "100%"),
        (".bd-article .highlight pre", "overflow-x", "auto"),
        (".bd-article .pst-scrollable-table-container", "overflow-x", "auto"),
        (".bd-article code", "overflow-wrap", "anywhere"),
        (".bd-article a", "overflow-wrap", "anywhere"),
        (".bd-article cite", "overflow-wrap", "anywhere"),
        (".bd-article dt.sig", "overflow-wrap", "anywhere"),
        (".bd-article dt.sig span.pre", "white-space", "normal"),
        (".bd-article code span.pre", "white-space", "normal"),
        (".prev-next-area a p.prev-next-title", "overflow-wrap", "anywhere"),
    ],
)
def test_what_can_be_wide_fits_a_narrow_screen(selector, name, value):
    assert rules()[selector][name] == value


def test_links_from_source_lead_to_anchors_that_exist():
    mended = extension("source_links").mended
    page = 'href="../api/generated/otflow.schemes.Chain.html#'
    for member in ("", ".step"):
        found = mended(f'<a class="viewcode-back" {page}otflow.Chain{member}">')
        assert found == f'<a class="viewcode-back" {page}otflow.schemes.Chain{member}">'
    right = f'{page}otflow.schemes.Chain.step"'
    assert mended(right) == right
    other = 'href="../api/generated/otflow.schemes.html#otflow.chain"'
    assert mended(other) == other


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
