"""Inventories of the few foreign objects that the documentation links to.

Sphinx would download each project's whole inventory. These short ones are written when
the configuration is read, so that a build needs no network and no link can go stale
unnoticed: a name that is not listed here is an error in a nitpicky build.
"""

from __future__ import annotations

import zlib
from pathlib import Path

# project: (address, {"role name": "page#anchor", "$" standing for the name itself})
PROJECTS = {
    "python": (
        "https://docs.python.org/3/",
        {
            "class abc.ABC": "library/abc.html#$",
            "class collections.abc.Callable": "library/collections.abc.html#$",
            "class collections.abc.Collection": "library/collections.abc.html#$",
            "class collections.abc.Iterable": "library/collections.abc.html#$",
            "class collections.abc.Iterator": "library/collections.abc.html#$",
            "class collections.abc.Mapping": "library/collections.abc.html#$",
            "class collections.abc.Sequence": "library/collections.abc.html#$",
            "class bool": "library/functions.html#$",
            "class enum.StrEnum": "library/enum.html#$",
            "class dict": "library/stdtypes.html#$",
            "class float": "library/functions.html#$",
            "class int": "library/functions.html#$",
            "class list": "library/stdtypes.html#$",
            "class logging.Logger": "library/logging.html#$",
            "class object": "library/functions.html#$",
            "class os.PathLike": "library/os.html#$",
            "class pathlib.Path": "library/pathlib.html#$",
            "class str": "library/stdtypes.html#$",
            "class tuple": "library/stdtypes.html#$",
            "class typing.Generic": "library/typing.html#$",
            "class typing.NamedTuple": "library/typing.html#$",
            "class typing.Protocol": "library/typing.html#$",
            "exception ArithmeticError": "library/exceptions.html#$",
            "exception Exception": "library/exceptions.html#$",
            "exception KeyboardInterrupt": "library/exceptions.html#$",
            "exception RuntimeError": "library/exceptions.html#$",
            "exception TypeError": "library/exceptions.html#$",
            "exception ValueError": "library/exceptions.html#$",
            "exception Warning": "library/exceptions.html#$",
            "exception UserWarning": "library/exceptions.html#$",
        },
    ),
    "numpy": (
        "https://numpy.org/doc/stable/",
        {
            "class numpy.ndarray": "reference/generated/$.html",
            "function numpy.asarray": "reference/generated/$.html",
        },
    ),
    "scipy": (
        "https://docs.scipy.org/doc/scipy/",
        {
            "function scipy.optimize.linear_sum_assignment": (
                "reference/generated/$.html"
            ),
        },
    ),
    "torch": (
        "https://docs.pytorch.org/docs/stable/",
        {
            "class torch.Generator": "generated/$.html",
            "class torch.Tensor": "tensors.html#$",
            "class torch.device": "tensor_attributes.html#$",
            "class torch.dtype": "tensor_attributes.html#$",
            "class torch.nn.Linear": "generated/$.html",
            "class torch.nn.Module": "generated/$.html",
            "class torch.nn.Sequential": "generated/$.html",
            "class torch.utils.data.DataLoader": "data.html#$",
            "class torch.optim.LBFGS": "generated/$.html",
            "class torch.optim.Optimizer": "optim.html#$",
            "function torch.func.grad": "generated/$.html",
            "function torch.func.vmap": "generated/torch.vmap.html",
            "function torch.linspace": "generated/$.html",
            "function torch.manual_seed": "generated/$.html",
            "function torch.nn.functional.softplus": "generated/$.html",
            "function torch.rand": "generated/$.html",
            "function torch.randn": "generated/$.html",
            "function torch.tensor": "generated/$.html",
        },
    ),
    "matplotlib": (
        "https://matplotlib.org/stable/",
        {
            "class matplotlib.animation.FuncAnimation": (
                "api/_as_gen/$.html#matplotlib.animation.FuncAnimation"
            ),
            "class matplotlib.axes.Axes": "api/_as_gen/$.html#matplotlib.axes.Axes",
            "class matplotlib.figure.Figure": "api/figure_api.html#$",
            "function matplotlib.pyplot.subplots": (
                "api/_as_gen/$.html#matplotlib.pyplot.subplots"
            ),
        },
    ),
}

HEADER = """\
# Sphinx inventory version 2
# Project: {project}
# Version:
# The remainder of this file is compressed using zlib.
"""


def write(directory: Path) -> dict[str, tuple[str, str]]:
    """Write one inventory a project and return the value of `intersphinx_mapping`."""
    directory.mkdir(parents=True, exist_ok=True)
    mapping = {}
    for project, (address, objects) in PROJECTS.items():
        rows = []
        for key, location in objects.items():
            role, name = key.split(" ")
            rows.append(f"{name} py:{role} 1 {location.replace('$', name)} -\n")
        inventory = directory / f"{project}.inv"
        inventory.write_bytes(
            HEADER.format(project=project).encode()
            + zlib.compress("".join(sorted(rows)).encode())
        )
        mapping[project] = (address, str(inventory))
    return mapping
