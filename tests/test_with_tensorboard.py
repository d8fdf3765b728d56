"""The TensorBoard example: what is read back was recorded, and what was recorded is true."""

import sys
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

EXAMPLES = Path(__file__).parent.parent / "examples"
METHODS = ("plain sum", "UW", "IMTL-L", "DWA", "FAMO", "FAMO amortized")
STEPS = 10  # an epoch of the shortened data

events = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard"
)


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)  # as when Python runs a program of that folder
        module = import_module("examples.with_tensorboard")
        short = partial(module.load_pairs, train_size=STEPS * module.BATCH_SIZE, test_size=200)
        patch.setattr(module, "load_pairs", short)
        yield module


def read(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """The steps and values of every curve."""
    run = events.EventAccumulator(str(directory)).Reload()
    return {
        tag: [(event.step, event.value) for event in run.Scalars(tag)]
        for tag in run.Tags()["scalars"]
    }


def test_every_number_is_read_back_as_it_was_recorded(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recorded: dict[str, list[tuple[int, float]]] = {}
    add_scalar = example.SummaryWriter.add_scalar

    def spy(self: Any, tag: str, value: float, step: int) -> None:
        recorded.setdefault(tag, []).append((step, value))
        add_scalar(self, tag, value, step)

    monkeypatch.setattr(example.SummaryWriter, "add_scalar", spy)
    example.main(["--method=UW", "--epochs=2", f"--dir={tmp_path}"])
    found = read(tmp_path / "UW")
    assert found == recorded
    groups = {"loss": [0, 10], "weight": [0, 10], "metric": [10, 20]}
    assert {tag: [step for step, _ in values] for tag, values in found.items()} == {
        f"{group}/{task.name}": steps for group, steps in groups.items() for task in example.TASKS
    }


@pytest.mark.parametrize("method", METHODS)
def test_the_weights_are_those_that_the_demo_trains_with(
    example: ModuleType, tmp_path: Path, method: str
) -> None:
    epochs = 3  # DWA has weights in the third
    example.main([f"--method={method}", f"--epochs={epochs}", "--every=1", f"--dir={tmp_path}"])
    found = read(tmp_path / method)
    curves = [[value for _, value in found[f"weight/{task.name}"]] for task in example.TASKS]
    by_epoch: Tensor = torch.tensor(curves).T.unflatten(0, (epochs, STEPS)).mean(dim=1)
    demo = import_module("digits")
    pairs, _ = example.load_pairs(1)
    _, history = demo.train(method, pairs, epochs, seed=1)
    torch.testing.assert_close(by_epoch, history)


def test_each_method_is_a_run_and_none_is_drawn_over_another(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example.main(["--epochs=1", f"--dir={tmp_path}"])
    assert capsys.readouterr().out == f"tensorboard --logdir {tmp_path}\n"
    assert {path.name for path in tmp_path.iterdir()} == set(METHODS)
    with pytest.raises(SystemExit):
        example.main(["--epochs=1", f"--dir={tmp_path}", "--method=DWA"])
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert f"{tmp_path / 'DWA'} is there already: remove it, or give another --dir" in complaint


@pytest.mark.parametrize(
    ("flag", "complaint"),
    [
        ("--method=guess", "argument --method: invalid choice: 'guess'"),
        ("--every=0", "argument --every: expected an integer from 1"),
        (f"--dir={__file__}", "argument --dir: cannot write to"),
    ],
)
def test_a_bad_flag_gets_one_clear_line(
    example: ModuleType, capsys: pytest.CaptureFixture[str], flag: str, complaint: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        example.main([flag])
    assert stop.value.code == 2
    assert complaint in capsys.readouterr().err.splitlines()[-1]


def test_a_missing_tensorboard_gets_one_clear_line(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.delitem(sys.modules, "examples.with_tensorboard")
    with pytest.raises(SystemExit) as stop:
        import_module("examples.with_tensorboard")
    complaint = "with_tensorboard.py: error: needs tensorboard: pip install tensorboard"
    assert stop.value.code == complaint
