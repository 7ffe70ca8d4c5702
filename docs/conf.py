"""Sphinx configuration."""

from __future__ import annotations

import inspect
import shutil
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

# the notebooks live in tutorials/, where people look for them; Sphinx reads only what lies below docs/
TUTORIALS = HERE / "tutorials"
shutil.rmtree(TUTORIALS, ignore_errors=True)
shutil.copytree(
    HERE.parent / "tutorials",
    TUTORIALS,
    ignore=shutil.ignore_patterns(".*", "*.py", "*.tmp", "isodiff_demo", "model", "*.h5ad"),
)

info = metadata("isodiff")
project = info["Name"]
author = "The isodiff developers"
copyright = f"2026, {author}"
version = release = info["Version"]

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "Thumbs.db", "**.ipynb_checkpoints", "tutorials/README.md"]
suppress_warnings = [
    "config.cache",  # autosummary_context holds a function
    "mystnb.unknown_mime_type",
]

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
maximum_signature_line_length = 90
add_module_names = False
# members are listed by the templates
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_url_schemes = ("http", "https", "mailto")
nb_execution_mode = "off"  # notebooks are stored executed; tests/test_tutorials.py runs them
nb_merge_streams = True

# Every reference has to lead somewhere. Other libraries' names do not: their inventories are on the network, which a build
# may not have. Nor do private classes and aliases of types, which signatures name.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:(?!mod).*", r"(?!isd\.)[A-Za-z_]+\..*"),
    (r"py:(class|obj)", r"(?!isd\.).*"),
    (r"py:class", r"isd\.\w+\._\w+\.\w+"),
]

html_theme = "sphinx_book_theme"
html_title = "isodiff"
html_static_path = ["_static"]
html_theme_options = {"show_navbar_depth": 1, "path_to_docs": "docs"}


def own_members(obj: type, names: list[str]) -> list[str]:
    """Of the members of a class, those that are ours: what is inherited from scvi-tools, torch or Python stays theirs."""
    return [
        name
        for name in names
        if any(name in vars(base) for base in inspect.getmro(obj) if base.__module__.partition(".")[0] == "isd")
    ]


def _own_members_of(fullname: str, names: list[str]) -> list[str]:
    module, _, cls = fullname.rpartition(".")
    return own_members(getattr(__import__(module, fromlist=[cls]), cls), names)


autosummary_context = {"own_members_of": _own_members_of}


def _member_of_this_page(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """Resolve ``:meth:`sample```, which is right in a docstring, in the page's table of members, too."""
    page = env.docname.rpartition("/")[2]
    if node.get("refdomain") != "py" or not page.startswith("isd."):
        return None
    return env.get_domain("py").resolve_xref(
        env, env.docname, app.builder, node["reftype"], f"{page}.{node['reftarget']}", node, contnode
    )


def setup(app: Any) -> None:
    """Sphinx calls this."""
    app.connect("missing-reference", _member_of_this_page)
