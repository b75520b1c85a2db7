"""Cards that lead to tutorials, with the pictures that the gallery has made.

A line ``plot_6_crowd: A dense crowd at a door.`` of the directive names a tutorial and
says what its picture shows. A build that runs no tutorial has no pictures; its cards
show the titles alone.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from sphinx.application import Sphinx

__all__ = ["chosen", "title_of"]


def chosen(lines: list[str]) -> dict[str, str]:
    """Return what the picture of each tutorial shows."""
    pairs = (line.split(":", 1) for line in lines if line.strip())
    return {name.strip(): text.strip() for name, text in pairs}


def title_of(tutorial: Path) -> str:
    """Return the first line of a tutorial."""
    text = ast.get_docstring(ast.parse(tutorial.read_text("utf-8")))
    if not text:
        message = f"{tutorial.name} has no title"
        raise ValueError(message)
    return text.splitlines()[0]


class Thumbnails(SphinxDirective):
    """A row of tutorials."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return the cards."""
        source = Path(self.env.srcdir)
        row = nodes.container(classes=["otflow-thumbnails"])
        for name, shows in chosen(list(self.content)).items():
            tutorial = source.parent / "tutorials" / f"{name}.py"
            if not tutorial.exists():
                message = f"no tutorial {name}"
                raise self.error(message)
            card = nodes.container(classes=["otflow-thumbnail"])
            page = f"/tutorials/{name}"
            picture = f"tutorials/images/thumb/sphx_glr_{name}_thumb.png"
            if self.made(source / picture):
                card += nodes.image(uri=f"/{picture}", alt=shows)
            card += self.parse_text_to_nodes(f":doc:`{title_of(tutorial)} <{page}>`")
            row += card
        return [row]

    def made(self, picture: Path) -> bool:
        """Return whether the gallery has drawn the picture in this build or before."""
        runs = str(self.config.sphinx_gallery_conf.get("plot_gallery", True))
        return runs not in {"False", "0"} and picture.exists()


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directive."""
    app.add_directive("thumbnails", Thumbnails)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
