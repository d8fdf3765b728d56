"""The site builds without a warning, its links lead somewhere, and its Python blocks run."""

import os
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from filelock import FileLock

import mtl_scalarize

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
TOOLS = ("sphinx", "myst_parser", "furo", "sphinx-mathjax-offline")

# A block may stand in a list, and is then indented as a whole.
FENCE = re.compile(r"^( *)```python\n(.*?)^\1```$", flags=re.M | re.S)
BLOCKS = [
    pytest.param(re.sub(rf"^{indent}", "", block, flags=re.M), id=f"{path.stem}-{number}")
    for path in sorted(DOCS.rglob("*.md"))
    for number, (indent, block) in enumerate(FENCE.findall(path.read_text()))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_block_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # one saves a checkpoint
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # As torchrun would set them.
    for name, value in {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": "0",
        "WORLD_SIZE": "1",
    }.items():
        monkeypatch.setenv(name, value)
    exec(compile(block, "docs", "exec"), {"__name__": "__main__"})


def test_there_are_blocks_to_run() -> None:
    pages = {str(block.id).rpartition("-")[0] for block in BLOCKS}
    assert pages >= {path.stem for path in (DOCS / "guides").glob("*.md")}


class Page(HTMLParser):
    """What a page of HTML links to, what may be linked to in it, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.pictures: list[str] = []
        self.formulas = 0
        self.text = ""
        self._open: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value is not None}
        if "id" in found:
            self.ids.append(found["id"])
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag in ("img", "script", "source") and "src" in found:
            self.loaded.append(found["src"])
        if tag == "link" and "href" in found:
            self.loaded.append(found["href"])
        if tag == "img" and "src" in found:
            self.pictures.append(Path(found["src"]).name)
        if tag not in ("br", "hr", "img", "input", "link", "meta", "source"):
            self._open.append(tag if "math" not in found.get("class", "").split() else "math")
            self.formulas += self._open[-1] == "math"

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
            command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning"]
            finished = subprocess.run(
                [*command, DOCS, folder], capture_output=True, text=True, timeout=300
            )
            assert finished.returncode == 0, finished.stderr
            done.touch()
    return folder


@pytest.fixture(scope="module")
def site(folder: Path) -> Site:
    return {path: Page(path) for path in folder.rglob("*.html")}


def targets(site: Site) -> Iterator[tuple[Path, str]]:
    """All that the pages link to or load, and from where."""
    for path, page in site.items():
        for target in page.links + page.loaded:
            yield path, target


def test_links_and_anchors_lead_somewhere(site: Site) -> None:
    broken = []
    for path, target in targets(site):
        parts = urlsplit(target)
        if parts.scheme or parts.netloc:
            continue
        there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        anchor = unquote(parts.fragment)
        if not there.is_file() or (anchor and there in site and anchor not in site[there].ids):
            broken.append((path.name, target))
    assert broken == []


def test_an_anchor_is_one_place(site: Site) -> None:
    twice = {
        path.name: [i for i, n in Counter(page.ids).items() if n > 1] for path, page in site.items()
    }
    assert not any(twice.values()), twice


def test_nothing_is_loaded_from_elsewhere(folder: Path, site: Site) -> None:
    assert [url for page in site.values() for url in page.loaded if urlsplit(url).netloc] == []
    for sheet in folder.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", sheet.read_text()), sheet


def test_every_public_name_is_in_the_reference(folder: Path, site: Site) -> None:
    ids = {i for path, page in site.items() if path.parent.name == "reference" for i in page.ids}
    assert {f"mtl_scalarize.{name}" for name in mtl_scalarize.__all__} <= ids


def test_every_example_and_its_picture_is_shown(folder: Path, site: Site) -> None:
    page = site[folder / "examples.html"]
    assert {path.name for path in (ROOT / "examples").glob("*.png")} <= set(page.pictures)
    programs = {Path(link).name for link in page.links}
    assert {path.name for path in (ROOT / "examples").glob("*.py")} <= programs


def test_no_markup_is_left_in_the_text(site: Site) -> None:
    for path, page in site.items():
        left = re.findall(r":\w+:`|\.\. \w+::|\$\$|\\\w+\{|\{\w+\}`|^>>> ", page.text, flags=re.M)
        assert left == [], path.name


def test_there_are_formulas(folder: Path, site: Site) -> None:
    for name in ("reference/modules", "reference/functions", "guides/adding"):
        assert site[folder / f"{name}.html"].formulas >= 2, name
