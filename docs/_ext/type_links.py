"""Types in signatures link to the page where a reader finds them.

A signature names a class by the module that defines it. Some projects define a class in
one module and document it in another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sphinx import addnodes

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx

# defined or written as: documented as
DOCUMENTED = {
    "torch._C.Generator": "torch.Generator",
    "torch.utils.data.dataloader.DataLoader": "torch.utils.data.DataLoader",
    "torch.nn.modules.container.Sequential": "torch.nn.Sequential",
    "torch.nn.modules.module.Module": "torch.nn.Module",
    "torch.optim.optimizer.Optimizer": "torch.optim.Optimizer",
    "Axes": "matplotlib.axes.Axes",
    "FuncAnimation": "matplotlib.animation.FuncAnimation",
}


def redirect(app: Sphinx, document: nodes.document) -> None:
    """Point each reference to the documented name."""
    del app  # Sphinx's calling convention
    for reference in document.findall(addnodes.pending_xref):
        target = reference.get("reftarget")
        if target in DOCUMENTED:
            reference["reftarget"] = DOCUMENTED[target]


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the redirection."""
    app.connect("doctree-read", redirect)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
