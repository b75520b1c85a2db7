"""The figures of the tutorials, with alternative texts written by hand."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from sphinx_gallery.scrapers import matplotlib_scraper

TEXTS = Path(__file__).parents[2] / "tutorials" / "alt.toml"


def scraper(block: Any, block_vars: dict[str, Any], gallery_conf: Any) -> str:
    """Return the markup of a block's figures; alt.toml holds a text for each."""
    before = len(block_vars["image_path_iterator"])
    markup: str = matplotlib_scraper(block, block_vars, gallery_conf)
    texts = tomllib.loads(TEXTS.read_text("utf-8"))
    mine = iter(texts.get(Path(block_vars["src_file"]).stem, [])[before:])

    def describe(match: re.Match[str]) -> str:
        text = next(mine, None)
        if text is None:
            return match[0]
        return (
            f'<video aria-label="{text}"' if match[0] == "<video" else f":alt: {text}"
        )

    return re.sub(r":alt: .*|<video\b", describe, markup)
