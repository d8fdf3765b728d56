"""The Python blocks of README and guides run, and the site has no dead link and no gap."""

import os
import re
import subprocess
import sys
import warnings
from collections import Counter
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch
from filelock import FileLock  # comes with torch

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


def test_the_method_of_the_guide_needs_public_names_only_and_keeps_the_contract() -> None:
    block = BLOCKS["adding-0"]
    source = block[block.index("class ") :].partition("\n\n\n")[0]
    assert len(source.splitlines()) <= 20
    assert set(re.findall(r"\b_\w+", source)) == {"__init__"}

    make = run(block)["Inverse"]
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
    assert torch.equal(compiled.average, eager.average)
    assert eager.average[0] != 1 == eager.average[1]  # the second was always absent
    eager.eval()(torch.ones(2))
    assert torch.equal(compiled.average, eager.average)


class Page(HTMLParser):
    """What a page of HTML links to, what may be linked to in it, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value is not None}
        self.ids += [found["id"]] if "id" in found else []
        target = found.get("href", found.get("src"))
        if target is not None:
            (self.links if tag == "a" else self.loaded).append(target)
        if tag not in ("br", "hr", "img", "input", "link", "meta", "source"):
            self._open.append("math" if "math" in found.get("class", "").split() else tag)

    def handle_endtag(self, tag: str) -> None:
        if self._open:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if not {"math", "pre", "script", "style"} & set(self._open):
            self.text += data


Site = dict[Path, Page]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    missing = [tool for tool in TOOLS if find_spec(tool) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: pip install '.[docs]'")
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder, done = shared / "site", shared / "site.done"
    with FileLock(shared / "site.lock"):  # one worker builds for all
        if not done.exists():
            command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", DOCS, folder]
            finished = subprocess.run(command, capture_output=True, text=True, timeout=300)
            assert finished.returncode == 0, finished.stderr
            done.touch()
    return folder


@pytest.fixture(scope="module")
def site(folder: Path) -> Site:
    return {path: Page(path) for path in folder.rglob("*.html")}


def test_links_and_anchors_lead_to_one_place(site: Site) -> None:
    broken = []
    for path, page in site.items():
        for target in page.links + page.loaded:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            if not there.is_file() or (anchor and there in site and anchor not in site[there].ids):
                broken.append((path.name, target))
        assert max(Counter(page.ids).values()) == 1, f"{path.name}: two places of one name"
    assert broken == []


def test_nothing_is_loaded_from_elsewhere(folder: Path, site: Site) -> None:
    assert [url for page in site.values() for url in page.loaded if urlsplit(url).netloc] == []
    for sheet in folder.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", sheet.read_text()), sheet


def test_every_public_name_is_in_the_reference(folder: Path, site: Site) -> None:
    ids = {i for path, page in site.items() if path.parent.name == "reference" for i in page.ids}
    names = {f"mtl_scalarize.{name}" for name in mtl_scalarize.__all__}
    for_authors = set(functional.__all__) - set(mtl_scalarize.__all__)
    names |= {f"mtl_scalarize.functional.{name}" for name in for_authors}
    public = [name for name in vars(mtl_scalarize.Scalarizer) if not name.startswith("_")]
    names |= {f"mtl_scalarize.Scalarizer.{name}" for name in public}
    assert names <= ids


def test_every_example_has_a_card_and_a_page_with_its_picture(folder: Path, site: Site) -> None:
    gallery = site[folder / "examples.html"]
    for program in (ROOT / "examples").glob("*.py"):
        assert f"examples/{program.stem}.html" in gallery.links
        page = site[folder / "examples" / f"{program.stem}.html"]
        assert program.name in {Path(target).name for target in page.links}
        picture = program.with_suffix(".png")
        for shown in (gallery.loaded, page.loaded):
            assert (picture.name in {Path(target).name for target in shown}) == picture.exists()


def test_a_picture_leads_to_its_full_size_and_a_program_to_its_page(
    folder: Path, site: Site
) -> None:
    for path, page in site.items():
        if path != folder / "examples.html":  # whose thumbnails lead to pages
            assert {target for target in page.loaded if "_images" in target} <= {*page.links}
    assert "examples/population.html" in site[folder / "index.html"].links


def test_no_markup_is_left_in_the_text(site: Site) -> None:
    for path, page in site.items():
        left = re.findall(r":\w+:`|\.\. \w+::|\$\$|\\\w+\{|\{\w+\}`|^>>> ", page.text, flags=re.M)
        assert left == [], path.name
