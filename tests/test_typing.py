"""A user's code type-checks where it is right, and does not where it is wrong."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SAMPLE = Path(__file__).parent / "typing_sample.py"


def test_the_right_lines_are_errors() -> None:
    pytest.importorskip("mypy")
    lines = enumerate(SAMPLE.read_text().splitlines(), start=1)
    wrong = {number for number, line in lines if line.endswith("  # wrong")}
    command = [sys.executable, "-m", "mypy", "--strict", "--output=json", SAMPLE]
    finished = subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=SAMPLE.parent.parent
    )
    reports = map(json.loads, finished.stdout.splitlines())
    assert {report["line"] for report in reports if report["severity"] == "error"} == wrong != set()
