"""How Sphinx builds the site: `make docs`."""

import ast
import subprocess
import sys
from importlib.metadata import version as version_of
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes

project = "mtl-scalarize"
author = "The mtl-scalarize authors"
copyright = f"2026, {author}"
version = release = version_of("mtl-scalarize")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_design",
]

# Guides are Markdown, and docstrings are reST with Google's sections.
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_mock_imports = ["transformers"]
autodoc_typehints_format = "short"
add_function_parentheses = False
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 116

# A reference in a docstring that leads nowhere is an error. References to other packages are passed
# over, because the build loads no inventory from another site.
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
html_static_path = ["site.css", str(Path(_mathjax.origin).parent / "static/mathjax/tex-svg.js")]
html_css_files = ["site.css"]
mathjax_path = "tex-svg.js"


def _parts_of(program: Path) -> dict[str, Any]:
    tree = ast.parse(program.read_text())
    shows, _, text = (ast.get_docstring(tree) or "").partition("\n\n")
    return {
        "name": program.stem,
        "shows": shows,
        "text": text,
        "first_line": tree.body[1].lineno,
        "picture": program.with_suffix(".png").exists(),
    }


# To add an example to the gallery, put it in examples/. The first paragraph of its docstring says
# what it shows; a picture beside it, of the same name, is its thumbnail. Link to it as
# `examples/NAME.py`: on the site, this leads to its page.
DOCS = Path(__file__).parent
PROGRAMS = [_parts_of(program) for program in sorted((DOCS.parent / "examples").glob("*.py"))]


def _write_pages(app: Any) -> None:
    template = (DOCS / "program.jinja").read_text()
    (DOCS / "examples").mkdir(exist_ok=True)
    for program in PROGRAMS:
        page = app.builder.templates.render_string(template, program)
        (DOCS / "examples" / f"{program['name']}.md").write_text(page)


def _fill_gallery(app: Any, docname: str, source: list[str]) -> None:
    if docname == "examples":
        source[0] = app.builder.templates.render_string(source[0], {"programs": PROGRAMS})


def _link_pages_and_pictures(app: Any, doctree: nodes.document) -> None:
    """Lead from a link to a program to its page, and from a picture to its full size."""
    for link in list(doctree.findall(addnodes.download_reference)):
        path = Path(link["reftarget"])
        if path.parent.name == "examples" and not app.env.docname.startswith("examples/"):
            page = f"/examples/{path.stem}"
            options = {"refdomain": "std", "reftype": "doc", "reftarget": page, "refexplicit": True}
            link.replace_self(addnodes.pending_xref("", *link.children, **options))
    for image in doctree.findall(nodes.image):
        if "sd-card-img-top" not in image["classes"]:
            image["width"] = "100%"  # Sphinx links an image that has a size to its file


def _run_first_training(app: Any) -> None:
    """Make the output and the picture that `first.md` shows."""
    folder = DOCS / "_output"
    folder.mkdir(exist_ok=True)
    with (folder / "first_training.txt").open("w") as output:
        program = [sys.executable, DOCS / "first_training.py"]
        subprocess.run(program, cwd=folder, stdout=output, check=True)


def _without_type(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    # napoleon takes the words before a colon in an attribute's first line for its type. An empty
    # comment as the first line prevents this.
    if what in ("attribute", "property"):
        lines[:0] = ["..", ""]


def setup(app: Any) -> None:
    """Called by Sphinx. A priority below 500 is before napoleon."""
    app.connect("autodoc-process-docstring", _without_type, priority=400)
    app.connect("builder-inited", _run_first_training)
    app.connect("builder-inited", _write_pages)
    app.connect("source-read", _fill_gallery)
    app.connect("doctree-read", _link_pages_and_pictures)
