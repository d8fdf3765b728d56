"""Hypothesis profiles (`--hypothesis-profile=long`, and `mutants` for mutmut), and `--long`."""

import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

collect_ignore = ["typing_sample.py"]  # no module of tests: it is wrong on purpose

# A loaded machine is not a failing property.
settings.register_profile("default", deadline=None, print_blob=True)
settings.register_profile("long", parent=settings.get_profile("default"), max_examples=10_000)
settings.register_profile("mutants", parent=settings.get_profile("default"), max_examples=20)
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="runs of 100,000 steps, not of 10,000")


@pytest.fixture
def steps(request: pytest.FixtureRequest) -> int:
    """How many steps a long run takes."""
    return 100_000 if request.config.getoption("--long") else 10_000


@pytest.fixture
def no_accelerator_left() -> Iterator[None]:
    """Accelerate keeps its settings for the process; a later test has others."""
    yield
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)
