"""How Sphinx builds the site: `make docs`."""

import subprocess
import sys
from importlib.metadata import version as version_of
from importlib.util import find_spec
from pathlib import Path
from typing import Any

project = "mtl-scalarize"
author = "The mtl-scalarize authors"
copyright = f"2026, {author}"
version = release = version_of("mtl-scalarize")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]

# Guides are Markdown; docstrings stay what they are, reST with Google's sections.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
add_function_parentheses = False
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 116

# A name in a docstring that leads nowhere is an error, but for those of other packages: the build
# asks no other site for its inventory.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(collections|matplotlib|nn|numpy|pandas|torch|typing)\..*"),
    ("py:.*", r"(Any|Callable|Figure|Mapping|Module|ProcessGroup|Sequence|Tensor)"),
    ("py:.*", r"(bool|dict|float|int|object|str|tuple|type|None|[A-Z]\w*Error)"),
]

html_theme = "furo"
html_title = f"{project} {version}"
html_favicon = "favicon.svg"
html_copy_source = False
html_show_sphinx = False
pygments_style = "tango"

# One file with its fonts inside, in place of a CDN: the site works without a network.
_mathjax = find_spec("sphinx-mathjax-offline")
assert _mathjax is not None, 'needs the docs tools: pip install ".[docs]"'
assert _mathjax.origin is not None
html_static_path = ["narrow.css", str(Path(_mathjax.origin).parent / "static/mathjax/tex-svg.js")]
html_css_files = ["narrow.css"]
mathjax_path = "tex-svg.js"


def _without_type(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    # What stands before a colon in an attribute's first line, napoleon takes for its type: so the
    # first line is an empty comment.
    if what in ("attribute", "property"):
        lines[:0] = ["..", ""]


def _run_first_training(app: Any) -> None:
    """Make the output and the picture that `first.md` shows."""
    folder = Path(app.srcdir) / "_output"
    folder.mkdir(exist_ok=True)
    with (folder / "first_training.txt").open("w") as output:
        program = [sys.executable, Path(app.srcdir) / "first_training.py"]
        subprocess.run(program, cwd=folder, stdout=output, check=True)


def setup(app: Any) -> None:
    """Called by Sphinx. A priority below 500 is before napoleon."""
    app.connect("builder-inited", _run_first_training)
    app.connect("autodoc-process-docstring", _without_type, priority=400)
