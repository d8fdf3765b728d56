"""The sweep as one program: every member is trained as if it were alone."""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.func import functional_call
from torch.utils._pytree import tree_map

from examples import digits
from mtl_scalarize import DWA, FAMO

EXAMPLES = Path(digits.__file__).parent
EPOCHS = 4  # the temperature matters from the third on


@pytest.fixture(scope="module")
def population() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)  # as when Python runs a program of that folder
        yield import_module("examples.population")


def in_float64(tree: Any) -> Any:
    """Adam divides by the gradient's size: in float32 the rounding of a small one shows."""
    return tree_map(lambda v: v.double() if v.is_floating_point() else v, tree)


@pytest.fixture(scope="module")
def pairs() -> digits.Pairs:
    return in_float64(digits.load_pairs(seed=0, train_size=200, test_size=1)[0])


@pytest.fixture(scope="module", params=["famo_sweep", "dwa_sweep"])
def sweep(request: pytest.FixtureRequest, population: ModuleType) -> Any:
    sweep = getattr(population, request.param)(side=3)
    return sweep._replace(start=in_float64(sweep.start), hyper=in_float64(sweep.hyper))


@pytest.fixture(scope="module")
def trained(population: ModuleType, sweep: Any, pairs: digits.Pairs) -> Any:
    method = sweep.method.of_population()
    return population.train(method, sweep.start, sweep.hyper, pairs, EPOCHS)


def test_a_member_is_trained_as_if_alone(
    population: ModuleType, sweep: Any, trained: Any, pairs: digits.Pairs
) -> None:
    for index in range(len(trained.step)):
        one = population.take((sweep.start, sweep.hyper), index)
        alone = population.train(sweep.method, *one, pairs, EPOCHS)
        member = population.take(trained, index)
        tree_map(partial(torch.testing.assert_close, rtol=1e-9, atol=1e-10), member, alone)


def test_different_configurations_end_differently(
    population: ModuleType, sweep: Any, trained: Any
) -> None:
    distinct = sweep.hyper["lr"] if sweep.name == "FAMO" else sweep.hyper["temperature"]
    weights = torch.cat([v.flatten(1) for v in trained.parameters.values()], dim=1)
    distances = torch.cdist(weights, weights)
    for i, j in torch.combinations(torch.arange(len(weights))).tolist():
        if distinct[i] != distinct[j]:
            assert distances[i, j] > 1e-6


def test_a_member_is_trained_as_by_the_modules(
    population: ModuleType, sweep: Any, trained: Any, pairs: digits.Pairs
) -> None:
    for index in range(len(trained.step)):
        start, hyper = population.take((sweep.start, sweep.hyper), index)
        parameters = {name: v.clone().requires_grad_() for name, v in start.parameters.items()}
        kwargs = {name: value.item() for name, value in hyper.items()}
        scalarizer = (FAMO(4, **kwargs) if sweep.name == "FAMO" else DWA(**kwargs)).double()
        optimizer = torch.optim.Adam(parameters.values(), lr=population.LEARNING_RATE)
        network = digits.Network(population.WIDTH)
        order = torch.Generator().manual_seed(0)

        def losses(batch: digits.Pairs) -> torch.Tensor:
            outputs = functional_call(network, parameters, batch.image)  # noqa: B023
            return digits.task_losses(outputs, batch)

        for _ in range(EPOCHS):
            shuffled = torch.randperm(len(pairs.image), generator=order)
            for part in torch.split(shuffled, population.BATCH_SIZE):
                batch = pairs.take(part)
                optimizer.zero_grad()
                scalarizer(losses(batch)).backward()
                optimizer.step()
                if sweep.name == "FAMO":
                    with torch.no_grad():
                        scalarizer.update(losses(batch))
            if sweep.name == "DWA":
                scalarizer.step()
        member = population.take(trained.parameters, index)
        torch.testing.assert_close(
            member, {n: v.detach() for n, v in parameters.items()}, rtol=1e-9, atol=1e-10
        )


def test_the_grids_contain_the_values_of_the_papers(population: ModuleType) -> None:
    for side in (1, 2, 5, 16):
        famo, dwa = population.famo_sweep(side), population.dwa_sweep(side)
        assert famo.name_of(famo.paper) == "lr 0.025, decay 0.001"
        assert dwa.name_of(dwa.paper) == "temperature 2"
        assert dwa.name_of(side) == "temperature inf"
        assert len(famo.start.step) == side**2
        assert len(dwa.start.step) == (side + 1) * side


def test_the_quick_sweep_prints_tables_and_draws_a_picture(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / "population.py", "--quick"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        cwd=tmp_path,
    )
    for text in ("plain sum", "FAMO, best", "DWA, worst", "as one program", "extrapolated"):
        assert text in run.stdout
    assert "FAMO, 36 as one program" in run.stderr
    assert (tmp_path / "population.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--epochs", "0"], "argument --epochs: expected an integer from 1"),
        (["--side", "33"], "argument --side: expected an integer from 1 to 32, found '33'"),
        (["--side", "0"], "argument --side: expected an integer from 1 to 32, found '0'"),
        (["--device", "abacus"], "argument --device: no device 'abacus' on this machine"),
        (["--out", "missing/folder/population.png"], "argument --out: cannot write"),
        (["--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_a_bad_flag_gets_one_clear_line(
    flags: list[str], complaint: str, population: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        population.main(flags)
    assert stop.value.code == 2
    *usage, last = capsys.readouterr().err.splitlines()
    assert complaint in last
    assert "Traceback" not in "".join(usage)
