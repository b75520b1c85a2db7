"""Links from the pages of source code back to the documentation, with right anchors.

Sphinx names the anchors of all objects of a file by one package. Where a file holds a
function that is documented at the top level and a class that is documented below, the
links to one of them lead nowhere in their page. The page has the name of its object.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

__all__ = ["mended"]

BACK = re.compile(r'(href="[^"#]*/generated/([\w.]+)\.html#)([\w.]+)"')


def mended(body: str) -> str:
    """Return the code of a page of source with the anchors of the documentation."""

    def mend(match: re.Match[str]) -> str:
        address, page, anchor = match.groups()
        name = page.rsplit(".", 1)[-1]
        _, found, member = f"{anchor}.".partition(f".{name}.")
        if not found:  # a member of a module has no page of its own
            return match[0]
        target = f"{page}.{member}".rstrip(".")
        return f'{address}{target}"'

    return BACK.sub(mend, body)


def on_page(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Mend a page of source."""
    del app, templatename, doctree  # Sphinx's calling convention
    if pagename.startswith("_modules/") and "body" in context:
        context["body"] = mended(context["body"])


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the mending."""
    app.connect("html-page-context", on_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
