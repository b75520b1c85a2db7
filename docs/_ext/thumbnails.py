"""Small pictures of the tutorials: the telling part of a figure, and words for it.

``tutorials/thumbnails.toml`` names the part of a figure for each tutorial, as shares of
its width and height, and says what it shows. The parts are cut from the figures of
double resolution. The directive ``thumbnails`` shows some of them as cards. A build
that runs no tutorial has no pictures; its cards show the titles alone.
"""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from PIL import Image
from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from sphinx.application import Sphinx

__all__ = ["TEXTS", "cut", "title_of"]

TUTORIALS = Path(__file__).parents[2] / "tutorials"
TEXTS: dict[str, dict[str, Any]] = tomllib.loads(
    (TUTORIALS / "thumbnails.toml").read_text("utf-8")
)
SIZE = (640, 448)


def title_of(tutorial: Path) -> str:
    """Return the first line of a tutorial."""
    text = ast.get_docstring(ast.parse(tutorial.read_text("utf-8")))
    if not text:
        message = f"{tutorial.name} has no title"
        raise ValueError(message)
    return text.splitlines()[0]


def cut(figure: Image.Image, part: list[float]) -> Image.Image:
    """Return a part of a figure (left, top, right, bottom) on a white card."""
    width, height = figure.size
    left, top, right, bottom = part
    piece = figure.convert("RGB").crop(
        (
            round(left * width),
            round(top * height),
            round(right * width),
            round(bottom * height),
        )
    )
    scale = min(SIZE[0] / piece.width, SIZE[1] / piece.height)
    shape = round(scale * piece.width), round(scale * piece.height)
    card = Image.new("RGB", SIZE, "white")
    place = (SIZE[0] - shape[0]) // 2, (SIZE[1] - shape[1]) // 2
    card.paste(piece.resize(shape, Image.Resampling.LANCZOS), place)
    return card


def has_pictures(app: Sphinx) -> bool:
    """Return whether this build draws the figures, or keeps those of one before."""
    runs = str(app.config.sphinx_gallery_conf.get("plot_gallery", True))
    return runs not in {"False", "0"}


def thumbnail(name: str) -> str:
    """Return where the gallery keeps the small picture of a tutorial."""
    return f"tutorials/images/thumb/sphx_glr_{name}_thumb.png"


def draw(app: Sphinx) -> None:
    """Cut the small pictures, after the gallery has drawn the figures."""
    if not has_pictures(app):
        return
    for name, text in TEXTS.items():
        stem = f"sphx_glr_{name}_{text['figure']:03d}"
        source = Path(app.srcdir, "tutorials", "images", f"{stem}_2_00x.png")
        with Image.open(source) as figure:
            cut(figure, text["part"]).save(Path(app.srcdir, thumbnail(name)))


def describe(app: Sphinx, document: nodes.document) -> None:
    """Put each small picture that the gallery shows into words."""
    del app  # Sphinx's calling convention
    words = {thumbnail(name): text["shows"] for name, text in TEXTS.items()}
    for image in document.findall(nodes.image):
        shows = words.get(image["uri"].lstrip("/"))
        if shows:
            image["alt"] = shows


class Thumbnails(SphinxDirective):
    """A row of tutorials."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return the cards."""
        row = nodes.container(classes=["otflow-thumbnails"])
        for name in filter(None, map(str.strip, self.content)):
            if name not in TEXTS:
                message = f"no tutorial {name} in thumbnails.toml"
                raise self.error(message)
            card = nodes.container(classes=["otflow-thumbnail"])
            picture = thumbnail(name)
            if has_pictures(self.env.app) and Path(self.env.srcdir, picture).exists():
                card += nodes.image(uri=f"/{picture}", alt=TEXTS[name]["shows"])
            title = title_of(TUTORIALS / f"{name}.py")
            card += self.parse_text_to_nodes(f":doc:`{title} </tutorials/{name}>`")
            row += card
        return [row]


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directive; cut the pictures after the gallery, whose priority is 500."""
    app.add_directive("thumbnails", Thumbnails)
    app.connect("builder-inited", draw, priority=900)
    app.connect("doctree-read", describe)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
