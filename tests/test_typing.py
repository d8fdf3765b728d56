"""A user's code type-checks where it is right, and does not where it is wrong."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SAMPLE = Path(__file__).parent / "typing_sample.py"
LINES = enumerate(SAMPLE.read_text().splitlines(), start=1)
WRONG = {number for number, line in LINES if line.endswith("  # wrong")}


def run(tool: str, *options: object) -> str:
    pytest.importorskip(tool, reason=f"needs {tool}")
    command = [sys.executable, "-m", tool, *map(str, options)]
    finished = subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=SAMPLE.parent.parent
    )
    return finished.stdout or finished.stderr


def mypy() -> set[int]:
    reports = map(json.loads, run("mypy", "--strict", "--output=json", SAMPLE).splitlines())
    return {report["line"] for report in reports if report["severity"] == "error"}


def pyright() -> set[int]:
    found = run("pyright", "--outputjson", "--pythonpath", sys.executable, SAMPLE)
    if not found.startswith("{"):  # it comes from npm on its first run
        pytest.skip(f"pyright does not run here: {found.strip().splitlines()[-1]}")
    reports = json.loads(found)["generalDiagnostics"]
    return {report["range"]["start"]["line"] + 1 for report in reports}


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_the_right_lines_are_errors(checker: Callable[[], set[int]]) -> None:
    assert checker() == WRONG != set()
