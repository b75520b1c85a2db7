"""Configuration of the documentation, built offline and strictly by `make docs`."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

import inventories  # noqa: E402
import pages  # noqa: E402

import otflow  # noqa: E402

PYPROJECT = tomllib.loads((HERE.parent / "pyproject.toml").read_text("utf-8"))

# ---- project -------------------------------------------------------------------------

project = "otflow"
author = "otflow developers"
project_copyright = "2026, otflow developers"
version = release = otflow.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinxcontrib.bibtex",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
    "markdown_part",
    "offline_mathjax",
    "source_links",
    "survey_map",
    "thumbnails",
    "type_links",
]
templates_path = ["_templates"]
exclude_patterns = [
    "_build",
    "api/backreferences",
    "sg_execution_times.rst",
    "tutorials/sg_execution_times.rst",
]
nitpicky = True
# Private to their package: type variables, states of schemes, base classes of networks
# and contracts.
nitpick_ignore = [
    ("py:class", "collections.abc.Mapping[str"),
    ("py:class", "otflow._moving.Move"),
    ("py:class", "otflow._words.Word"),
    ("py:class", "otflow.meanfield.losses.Loss"),
    ("py:class", "otflow.measures.bundle.Bundle"),
    ("py:class", "otflow.numerics.enclosures.Enclosure"),
    ("py:class", "otflow.numerics.enclosed_sums.Enclosed"),
    ("py:obj", "otflow.callbacks.base.M"),
    ("py:class", "otflow.callbacks.base.M"),
    ("py:class", "otflow.callbacks.files._Writer"),
    ("py:class", "otflow.callbacks.rows.OfRows"),
    ("py:class", "otflow.callbacks.rows.Row"),
    ("py:class", "otflow.flow.M"),
    ("py:class", "otflow.metrics.maps._Side"),
    ("py:class", "otflow.functionals.discrepancy._Discrepancy"),
    ("py:class", "otflow.functionals.wrapped.Wrapped"),
    ("py:class", "otflow.functionals.proximal_maps.ProximalMap"),
    ("py:class", "otflow.measures.gaussian.quadrature.Nodes"),
    ("py:class", "otflow.metrics.barycenters.Kind"),
    ("py:class", "otflow.metrics.barycenters.M_co"),
    ("py:obj", "otflow.metrics.barycenters.M_co"),
    ("py:class", "otflow.metrics.geodesics.Kind"),
    ("py:obj", "otflow.proximal.base.M"),
    ("py:class", "otflow.proximal.base.M"),
    ("py:class", "otflow.proximal.grid.finite_volume.solver.Warm"),
    ("py:class", "otflow.proximal.grid.sinkhorn.warm.Warm"),
    ("py:obj", "otflow.proximal.tangent.M"),
    ("py:class", "otflow.proximal.tangent.M"),
    ("py:class", "otflow.schemes.adaptive._State"),
    ("py:obj", "otflow.schemes.base.M"),
    ("py:class", "otflow.schemes.base.M"),
    ("py:class", "otflow.schemes.forward_backward._Plan"),
    ("py:class", "otflow.schemes.jko._Plan"),
    ("py:class", "otflow.schemes.mobility._State"),
    ("py:obj", "otflow.trajectory.M"),
    ("py:class", "otflow.estimators.base.MeanFieldEstimator"),
    ("py:class", "numpy.dtype"),
    ("py:class", "sklearn.base.ClassifierMixin"),
    ("py:class", "sklearn.base.MultiOutputMixin"),
    ("py:class", "sklearn.base.RegressorMixin"),
    ("py:class", "otflow.meanfield.network.Network"),
    ("py:class", "otflow.meanfield.networks.dense.Weights"),
    ("py:class", "otflow.meanfield.population._KernelEnergy"),
    ("py:class", "otflow.proximal.grid.base.GridProximal"),
    ("py:class", "otflow.testing.capabilities.CapabilityLaws"),
]
default_role = None
highlight_language = "python"

# ---- API pages -----------------------------------------------------------------------

autosummary_generate = True
autosummary_ignore_module_all = False
autosummary_imported_members = True
# An object that stands at the top level is documented there, and only there.
autosummary_context = {"at_the_top": pages.at_the_top(otflow)}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = True
# What scikit-learn writes by itself refers to its own manual.
autodoc_default_options = {
    "exclude-members": "set_fit_request,set_partial_fit_request,set_score_request"
}

numpydoc_show_class_members = False
numpydoc_attributes_as_param_list = True
numpydoc_xref_param_type = False
numpydoc_validation_checks = set(PYPROJECT["tool"]["otflow"]["docstrings"]["always"])
# A method may inherit its docstring; tools/check_docstrings.py asks that there is one.
numpydoc_validation_checks -= {"GL08"}
numpydoc_validation_exclude = {r"\.__\w+__$"}

# ---- references to other projects and to the literature ------------------------------

intersphinx_mapping = inventories.write(HERE / "_build" / "inventories")
intersphinx_timeout = 1
bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "plain"
bibtex_reference_style = "author_year"

# ---- tutorials -----------------------------------------------------------------------

sphinx_gallery_conf = {
    "examples_dirs": "../tutorials",
    "gallery_dirs": "tutorials",
    "filename_pattern": r"plot_",
    "within_subsection_order": "gallery_order.ByNumber",
    "doc_module": ("otflow",),
    "backreferences_dir": "api/backreferences",
    "inspect_global_variables": True,
    "image_scrapers": ("gallery_alt.scraper",),
    "image_srcset": ["2x"],
    # Where a cell ends with a legend, the page does not print its address.
    "ignore_repr_types": r"matplotlib\.(axes|legend|lines|text)",
    "abort_on_example_error": True,
    "matplotlib_animations": (True, "html5"),
    "reset_modules": ("gallery_reset.reset",),
    "remove_config_comments": True,
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "min_reported_time": 1,
}

# ---- pages ---------------------------------------------------------------------------

WITH_A_BAR = (
    "architecture",
    "changelog",
    "concepts",
    "conventions",
    "extending",
    "faq",
    "install",
    "reading_a_certificate",
    "seconds",
    "solvers",
)

html_theme = "pydata_sphinx_theme"
html_title = f"otflow {version}"
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_css_files = ["otflow.css"]
html_copy_source = False
# What the theme reads before a reader has chosen; without it, it complains.
html_context = {"default_mode": "auto"}
html_show_sourcelink = False
html_theme_options = {
    "logo": {
        "text": "otflow",
        "image_light": "_static/logo.svg",
        "image_dark": "_static/logo.svg",
        "alt_text": "otflow: the first page",
    },
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "navigation_with_keys": False,
    "show_prev_next": True,
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "tango",
    "header_links_before_dropdown": 5,
    # Code of 88 columns needs the room of the right-hand side bar; prose can spare it.
    "secondary_sidebar_items": {page: ["page-toc"] for page in WITH_A_BAR},
}
# Pages without a section of their own: an empty bar would take the width of code.
# The tables of "distances" and "survey" take the whole width.
WITHOUT = ("distances", "survey", "index", "references", "cite")
html_sidebars = {page: [] for page in (*WITH_A_BAR, *WITHOUT)}
