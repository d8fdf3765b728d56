"""A user's code type-checks where it is right, and does not where it is wrong."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

SAMPLE = Path(__file__).parent / "typing_sample.py"
WRONG = [
    number
    for number, line in enumerate(SAMPLE.read_text().splitlines(), start=1)
    if line.endswith("  # wrong")
]


def run(*command: object) -> str:
    finished = subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=SAMPLE.parent.parent,
    )
    return finished.stdout or finished.stderr


def mypy() -> list[int]:
    found = run("mypy", "--strict", "--output=json", SAMPLE)
    reports = [json.loads(line) for line in found.splitlines()]
    return [report["line"] for report in reports if report["severity"] == "error"]


def pyright() -> list[int]:
    found = run("pyright", "--outputjson", "--pythonpath", sys.executable, SAMPLE)
    if not found.startswith("{"):  # it comes from npm on its first run
        pytest.skip(f"pyright does not run here: {found.strip().splitlines()[-1]}")
    reports = json.loads(found)["generalDiagnostics"]
    return [report["range"]["start"]["line"] + 1 for report in reports]


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_the_right_lines_are_errors(checker: Callable[[], list[int]]) -> None:
    if find_spec(checker.__name__) is None:
        pytest.skip(f"needs {checker.__name__}")
    assert checker() == WRONG


def test_there_are_wrong_lines() -> None:
    assert len(WRONG) == 20
