"""Ship one file of MathJax with the pages, so that formulas show without a network.

The package `sphinx-mathjax-offline` brings the whole of MathJax, 22 MB; the single file
with SVG output and every TeX extension, 2 MB, is enough and also works from `file://`.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sphinx.errors import ExtensionError

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PACKAGE = "sphinx-mathjax-offline"
SCRIPT = "mathjax/tex-svg-full.js"


def copy_script(app: Sphinx, exception: Exception | None) -> None:
    """Copy the script beside the built pages."""
    if exception is not None or app.builder.format != "html":
        return
    package = importlib.util.find_spec(PACKAGE)
    if package is None or package.origin is None:
        message = f"the package {PACKAGE} is not installed"
        raise ExtensionError(message)
    target = Path(app.outdir, "_static", SCRIPT)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(package.origin).parent / "static" / SCRIPT, target)


def setup(app: Sphinx) -> dict[str, Any]:
    """Point Sphinx at the local script."""
    app.setup_extension("sphinx.ext.mathjax")
    app.config.mathjax_path = SCRIPT
    app.connect("build-finished", copy_script)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
