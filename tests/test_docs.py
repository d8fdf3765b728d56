"""The Python blocks of README and guides run, and the site has no dead link and no gap."""

import ast
import posixpath
import re
import subprocess
import sys
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from methods import METHODS

import mtl_scalarize
from mtl_scalarize import functional

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
TOOLS = ("sphinx", "myst_parser", "furo", "sphinx_design", "sphinx-mathjax-offline")

# A block may stand in a list, and is then indented as a whole.
FENCE = re.compile(r"^( *)```python\n(.*?)^\1```$", flags=re.M | re.S)
BLOCKS = {
    f"{page.stem}-{number}": re.sub(rf"^{indent}", "", block, flags=re.M)
    for page in PAGES
    for number, (indent, block) in enumerate(FENCE.findall(page.read_text()))
}


def run(block: str) -> dict[str, Any]:
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(block, "block", "exec"), scope)
    return scope


# Lightning's own code uses torch's deprecated LeafSpec.
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")
@pytest.mark.usefixtures("no_accelerator_left")
@pytest.mark.parametrize("name", BLOCKS)
def test_block_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if ".plot(" in BLOCKS[name]:
        pytest.importorskip("matplotlib")
    for framework in re.findall(r"^from (accelerate|lightning|transformers) ", BLOCKS[name], re.M):
        pytest.importorskip(framework)
    monkeypatch.chdir(tmp_path)  # some save a checkpoint or a picture
    # As torchrun would set them. Port 0 is any that is free.
    ranks = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}
    for variable, value in ranks.items():
        monkeypatch.setenv(variable, value)
    with warnings.catch_warnings():
        # Those of this package that other tests let pass; they point at the block.
        warnings.filterwarnings("error", module="__main__")
        run(BLOCKS[name])


def test_readme_and_every_guide_have_a_block() -> None:
    pages = {name.rpartition("-")[0] for name in BLOCKS}
    assert pages >= {"README"} | {path.stem for path in (DOCS / "guides").glob("*.md")}


@pytest.mark.parametrize(
    "page",
    ["README.md", *(f"docs/guides/{name}.md" for name in ("absent", "choosing", "functional"))],
)
def test_no_table_forgets_a_method(page: str) -> None:
    text = (ROOT / page).read_text().replace("IMTL-L", "IMTLL")
    first_cells = " ".join(re.findall(r"^\|([^|]*)\|", text, re.M))
    methods = {type(method.make((3,))).__name__ for method in METHODS}
    assert set(re.findall(r"\w+", first_cells)) >= methods


def test_the_method_of_the_guide_needs_public_names_only_and_keeps_the_contract(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    block = BLOCKS["adding-0"]
    source = re.search(r"^class Inverse\(.*?(?=\n\n\n)", block, re.M | re.S)[0]
    assert len([line for line in source.splitlines() if line]) <= 14
    assert set(re.findall(r"\b_\w+", source)) == {"__init__"}

    guide = ModuleType("guide")
    monkeypatch.setitem(sys.modules, "guide", guide)  # where torch.compile looks for its functions
    exec(compile(block, "guide", "exec"), vars(guide))
    make = guide.Inverse
    eager, named, compiled = make(2), make(["depth", "normals"]), make(2)
    graph = torch.compile(compiled, backend="eager", fullgraph=True)
    mask = torch.tensor([True, False])
    for loss in (4.0, 0.5):
        losses = torch.tensor([loss, torch.nan], requires_grad=True)
        scalar = eager(losses, mask)
        scalar.backward()
        assert torch.equal(losses.grad, eager.weights)
        assert torch.equal(named({"depth": losses[0]}), scalar)
        assert torch.equal(graph(losses, mask), scalar)
    assert torch.equal(named.average, eager.average)
    assert eager.average[0] != 1 == eager.average[1]  # the second was always absent
    eager.eval()(torch.ones(2))
    assert torch.equal(compiled.average, eager.average)


def test_printed_tables_become_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS)
    as_markdown = import_module("printouts").as_markdown
    printed = """\
              left digit   13 with         all
method           % right      many  delta-m, %
──────────────────────────────────────────────
Sum           94.8 ± 0.9         1   0.0 ± 0.0
LogSum, floor 96.2 ± 0.7        10  -5.5 ± 1.5

prints:

a line | as it is"""
    assert as_markdown(printed).replace("\N{NO-BREAK SPACE}", " ").splitlines() == [
        "| method | left digit % right | 13 with many | all delta-m, % |",
        "| :-- | --: | --: | --: |",
        "| Sum | 94.8 ± 0.9 | 1 | 0.0 ± 0.0 |",
        "| LogSum, floor | 96.2 ± 0.7 | 10 | -5.5 ± 1.5 |",
        *("", "prints:", "", "```text", "a line | as it is", "```"),
    ]


def test_the_gallery_shows_figures_of_the_docstrings(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(DOCS)
    for name, card in import_module("conf").CARDS.items():
        docstring = ast.get_docstring(ast.parse((ROOT / f"examples/{name}.py").read_text()))
        figures = set(re.findall(r"-?\d[\d.]*(?<!\.)", card.finding))
        assert figures <= set(re.findall(r"-?\d[\d.]*(?<!\.)", docstring)), name


def test_the_site_is_whole_and_loads_nothing_from_another(tmp_path: Path) -> None:
    for tool in TOOLS:
        if find_spec(tool) is None:
            pytest.skip(f"needs {tool}: pip install '.[docs]'")
    # Sphinx warns of links, anchors, pictures and names that lead nowhere.
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", DOCS, tmp_path]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr

    for_authors = {*functional.__all__} - {*mtl_scalarize.__all__}
    methods = [name for name in vars(mtl_scalarize.Scalarizer) if not name.startswith("_")]
    names = [*mtl_scalarize.__all__, *(f"functional.{name}" for name in for_authors)]
    names += [f"Scalarizer.{name}" for name in methods]
    from sphinx.util.inventory import InventoryFile

    with (tmp_path / "objects.inv").open("rb") as stream:
        reference = InventoryFile.load(stream, "", posixpath.join)
    documented = {name for kind in reference.values() for name in kind}
    assert documented >= {f"mtl_scalarize.{name}" for name in names}

    loads = r"""(<(?!a )\w+ [^>]*(src|href)="|url\(["']?|@import ["'])(https?:)?//"""
    for path in [*tmp_path.rglob("*.html"), *tmp_path.rglob("*.css")]:
        assert not re.search(loads, path.read_text()), path.name
