"""Python and PyTorch as they may be elsewhere: other flags, no NumPy, no distributed, read-only."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from methods import METHODS

ROOT = Path(__file__).parent.parent

TRAINING = """
import torch
import mtl_scalarize as mtl
from mtl_scalarize import *

torch.manual_seed(0)
losses = torch.tensor([3.0, 1.0], requires_grad=True)
shaped = (UW, IMTLL, DWA, FAMO, LogSum, GeometricMean, ReLoBRaLo, Sum, Mean, Random)
given = STCH(0.5), COSMOS(0.5, [1.0, 2.0]), PBI(0.5, [1.0, 2.0]), Constant([1.0, 2.0])
for scalarizer in [*given, *(method(shape=2) for method in shaped)]:
    for _ in range(3):
        scalarizer(losses).backward()
        scalarizer.update(losses / 2)
        scalarizer.step()
    print(scalarizer, *scalarizer.weights.tolist())
"""

# torch takes its extension for one that was built without distributed.
WITHOUT_DISTRIBUTED = """
import importlib.machinery

class Loader(importlib.machinery.ExtensionFileLoader):
    def exec_module(self, module):
        super().exec_module(module)
        del module._c10d_init, module._rpc_init

class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "torch._C":
            spec = super().find_spec(name, path, target)
            spec.loader = Loader(name, spec.origin)
            return spec

import sys
sys.meta_path.insert(0, Finder)
"""


def printed(program: str, *flags: str, **variables: str) -> str:
    """By a Python of its own, which finds the package as a clone that is not installed."""
    command = [sys.executable, "-W", "error", *flags, "-c", program]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    finished = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=environment, cwd="/"
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def expected() -> str:
    found = printed(TRAINING)
    methods = {type(method.make((3,))).__name__ for method in METHODS}
    assert {line.partition("(")[0] for line in found.splitlines()} == methods
    return found


@pytest.mark.parametrize(
    ("before", "flags", "variables"),
    [
        pytest.param("", ["-O"], {}, id="-O"),
        pytest.param("", [], {"PYTHONOPTIMIZE": "2"}, id="without docstrings"),
        pytest.param("", [], {"LC_ALL": "C", "PYTHONUTF8": "0"}, id="the C locale"),
        pytest.param(
            "import sys; sys.modules['numpy'] = None",
            ["-W", "ignore:Failed to initialize NumPy"],  # torch says so
            {},
            id="without NumPy",
        ),
        pytest.param(WITHOUT_DISTRIBUTED, [], {}, id="without distributed"),
    ],
)
def test_a_training_is_the_same(
    before: str, flags: list[str], variables: dict[str, str], expected: str
) -> None:
    assert printed(before + TRAINING, *flags, **variables) == expected


def test_the_import_brings_nothing_but_the_package() -> None:
    """Not torch._dynamo, inductor and sympy, which are a second and a hundred megabytes."""
    program = """
import sys, torch
before = set(sys.modules)
import mtl_scalarize
print({name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names)
"""
    assert printed(program) == "{'mtl_scalarize'}\n"
