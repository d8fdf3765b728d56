"""How Sphinx builds the site: `make docs`."""

import ast
import subprocess
import sys
from importlib.metadata import version as version_of
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from docutils import nodes
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from printouts import as_markdown
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


class Card(NamedTuple):
    """What the gallery shows of an example: a finding, and a panel of a picture.

    The figures are those of the example's docstring.
    """

    finding: str
    panel: tuple[float, float, float, float] | None = None  # left, top, right, bottom; 0 to 1
    picture: str = ""  # if it is not the example's


# In this order. An example without a card follows, with the first line of its docstring.
CARDS = {
    "worth": Card(
        "Trials of constant weights that a method is worth: 1 to 5 with four tasks; with eleven "
        "tasks and AdamW 41 (FAMO), 111 (LogSum), over 256 (UW); less in a wide network.",
        (0.0, 0.49, 0.5, 0.98),
    ),
    "qm9": Card(
        "Eleven properties of molecules, % worse than a network for each: LogSum -0.3, UW 4.7, "
        "FAMO 19.4, Sum 55.7.",
        (0.0, 0.0, 1.0, 0.29),
    ),
    "compounds": Card(
        "Sixteen properties, most labels missing, % worse than a network for each: 148.4 with the "
        "gaps filled in, 1.4 with masks (Sum); -7.7 with masks and stratified batches (LogSum).",
        (0.0, 0.51, 1.0, 1.0),
    ),
    "digits": Card(
        "Mean change of four metrics against Sum: FAMO -13.6 %, Constant with the inverse of the "
        "first losses -11.5 %, LogSum -5.2 %.",
        (0.0, 0.705, 1.0, 1.0),
        "digits_three",
    ),
    "helmholtz": Card(
        "A physics-informed network, relative error: best constant weight 0.022, FAMO with a "
        "floor 0.030, Sum 0.335.",
        (0.0, 0.6, 1.0, 1.0),
    ),
    "gradnorm_toy": Card(
        "The worst of ten tasks, its test loss over that before training: FAMO 0.68, LogSum "
        "0.73, Sum 1.51.",
        (0.0, 0.0, 1.0, 1.0),
    ),
    "famo_toy": Card(
        "Starts that reach the Pareto front, of five: FAMO 5, Sum 4, LogSum, UW and STCH 3.",
        (0.0, 0.0, 1.0, 0.51),
    ),
    "priorities": Card(
        "A priority of 16 brings a task's error from 1.85 to 1.55 (FAMO). A factor before the "
        "loss does nothing (LogSum).",
        (0.0, 0.0, 0.5, 1.0),
    ),
    "population": Card(
        "256 configurations of FAMO as one program are 4.7 times as fast as one by one.",
        (0.0, 0.0, 0.46, 0.9),
    ),
    "hypergradient": Card(
        "The gradient through 20 steps of training tunes FAMO's learning rate and DWA's "
        "temperature.",
        (0.0, 0.0, 0.35, 0.93),
    ),
    "instances": Card(
        "Every image a task, 30 % wrong labels: UW 96.2 % right, Mean 93.5 %. A wrong label "
        "weighs a hundredth of a right one."
    ),
    "detection": Card(
        "Most batches lack most tasks. The loss of the task that is always there: UW and Sum "
        "0.29, FAMO 0.32, Mean 0.41. LogSum breaks."
    ),
}


def _parts_of(program: Path) -> dict[str, Any]:
    tree = ast.parse(program.read_text())
    shows, _, text = (ast.get_docstring(tree) or "").partition("\n\n")
    card = CARDS.get(program.stem, Card(shows))
    return {
        "name": program.stem,
        "shows": shows,
        "text": as_markdown(text),
        "first_line": tree.body[1].lineno,
        "picture": program.with_suffix(".png").exists(),
        "card": card,
    }


# To add an example to the gallery, put it in examples/. The first paragraph of its docstring says
# what it shows; a picture beside it has the same name. Link to it as `examples/NAME.py`: on the
# site, this leads to its page.
DOCS = Path(__file__).parent
EXAMPLES = DOCS.parent / "examples"
NAMES = [*CARDS, *sorted({path.stem for path in EXAMPLES.glob("*.py")} - {*CARDS})]
PROGRAMS = [_parts_of(EXAMPLES / f"{name}.py") for name in NAMES]


def _write_pages(app: Any) -> None:
    template = (DOCS / "program.jinja").read_text()
    (DOCS / "examples").mkdir(exist_ok=True)
    for program in PROGRAMS:
        page = app.builder.templates.render_string(template, program)
        (DOCS / "examples" / f"{program['name']}.md").write_text(page)
        _crop(program["card"], program["name"])


def _crop(card: Card, name: str) -> None:
    if card.panel is not None:
        folder = DOCS / "_output" / "cards"
        folder.mkdir(parents=True, exist_ok=True)
        with Image.open(EXAMPLES / f"{card.picture or name}.png") as picture:
            sides = zip(card.panel, 2 * picture.size, strict=True)
            picture.crop([round(share * side) for share, side in sides]).save(
                folder / f"{name}.png"
            )


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
