"""Sphinx configuration: `make docs`."""

from __future__ import annotations

import re
from typing import Any

import triptych

project = "Triptych"
copyright = "the Triptych authors"
release = version = triptych.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "Triptych"
myst_heading_anchors = 3

# Docstrings have the sections Arguments, Returns, Raises and Source, and put code in single backticks.
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# 'Returns' as plain text: the standard section takes the words before a colon for a type.
napoleon_custom_sections = ["Source", "Returns"]
default_role = "literal"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True


def escape_stars(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keeps `*` and `|` in docstrings from being read as markup, outside of code."""
    for i, line in enumerate(lines):
        pieces = re.split(r"(`+[^`]*`+)", line)
        lines[i] = "".join(p if p.startswith("`") else re.sub(r"([*|])(?=\S)", r"\\\1", p) for p in pieces)


def setup(app: Any) -> None:
    """Escapes docstrings before napoleon turns their sections into markup."""
    app.connect("autodoc-process-docstring", escape_stars, priority=100)
