"""What is in the wheel and in the sdist."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

for tool in ("build.env", "hatchling"):
    pytest.importorskip(tool, reason=f"needs {tool}")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    return folder


def test_the_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "mtl_scalarize").rglob("*.py")}
    package = {name for name in names if ".dist-info/" not in name}
    assert package == sources | {"mtl_scalarize/py.typed"}
    assert any(name.endswith("licenses/LICENSE") for name in names - package)


def test_the_sdist_holds_what_the_tests_need(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {"README.md", "LICENSE", "Makefile", "constraints.txt", "tests/conftest.py"}
    assert not any(name.startswith((".ci", ".venv", "dist")) for name in names)
