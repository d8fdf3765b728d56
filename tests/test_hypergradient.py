"""Gradients through training: they are derivatives, and tuning by them lowers the loss."""

import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.func import grad

from examples import digits
from mtl_scalarize import DWA, FAMO

EXAMPLES = Path(digits.__file__).parent
NAMES = ["FAMO", "DWA from 2", "DWA from 0.1"]


@pytest.fixture(scope="module")
def hypergradient() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)  # as when Python runs a program of that folder
        yield import_module("examples.hypergradient")


@pytest.fixture(scope="module", params=range(len(NAMES)), ids=NAMES)
def experiment(request: pytest.FixtureRequest, hypergradient: ModuleType) -> Any:
    return hypergradient.make_experiments(hypergradient.make_problem())[request.param]


def test_the_gradient_agrees_with_central_differences(
    experiment: Any, hypergradient: ModuleType
) -> None:
    gradient = grad(experiment.loss)(experiment.start)
    differences = hypergradient.central_differences(experiment.loss, experiment.start)
    torch.testing.assert_close(gradient, differences, rtol=1e-6, atol=1e-9)
    for values in gradient.values():
        assert (values.abs() > 1e-3).all()


def test_unrolled_training_is_that_of_the_modules(
    experiment: Any, hypergradient: ModuleType
) -> None:
    problem, is_famo = experiment.problem, experiment.name == "FAMO"
    parameters = {n: v.clone().requires_grad_() for n, v in problem.start.items()}
    if is_famo:
        scalarizer, lr = FAMO(4, lr=0.025).double(), hypergradient.FAMO_LEARNING_RATE
    else:
        scalarizer = DWA(experiment.start["temperature"].item(), shape=4).double()
        lr = hypergradient.DWA_LEARNING_RATE
    optimizer = torch.optim.SGD(parameters.values(), lr=lr)
    steps = 0
    for _ in range(hypergradient.EPOCHS):
        for batch in problem.batches:
            losses = problem.losses(parameters, batch)
            optimizer.zero_grad()
            # FAMO's scalar has FAMO's weights as its derivative; so has DWA's.
            scalarizer(losses).backward()
            optimizer.step()
            steps += 1
            if is_famo:
                with torch.no_grad():
                    scalarizer.update(problem.losses(parameters, batch))
        if not is_famo:
            scalarizer.step()
    assert steps == 20
    unrolled = experiment.train(problem, experiment.start)
    torch.testing.assert_close(
        unrolled, {n: v.detach() for n, v in parameters.items()}, rtol=1e-9, atol=1e-12
    )


def test_tuning_lowers_the_validation_loss(experiment: Any, hypergradient: ModuleType) -> None:
    descent = hypergradient.tune(experiment, iterations=8)
    assert descent.validation.shape == descent.test.shape == (9,)
    assert descent.validation[-1] < descent.validation[0] - 5e-4
    tuned = {name: values[-1] for name, values in descent.hyper.items()}
    torch.testing.assert_close(experiment.loss(tuned), descent.validation[-1])
    for name, values in experiment.start.items():
        torch.testing.assert_close(descent.hyper[name][0], values)  # `start` was not written


def test_the_quick_run_prints_tables_and_draws_a_picture(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / "hypergradient.py", "--quick"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        cwd=tmp_path,
    )
    for text in ("lr", "logits, left digit", "temperature", "central difference", "tuned"):
        assert text in run.stdout
    assert "DWA from 0.1" in run.stderr
    assert (tmp_path / "hypergradient.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--iterations", "0"], "argument --iterations: expected an integer from 1"),
        (["--iterations", "many"], "argument --iterations: expected an integer from 1"),
        (["--out", "missing/folder/hypergradient.png"], "argument --out: cannot write"),
        (["--out", "hypergradient.txt"], "argument --out: expected a .png"),
        (["--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_a_bad_flag_gets_one_clear_line(
    flags: list[str], complaint: str, hypergradient: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        hypergradient.main(flags)
    assert stop.value.code == 2
    *usage, last = capsys.readouterr().err.splitlines()
    assert complaint in last
    assert "Traceback" not in "".join(usage)
