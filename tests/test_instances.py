"""The example with instances as tasks: what it promises of its data, its methods and its table."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mtl_scalarize import FAMO

EXAMPLES = Path(__file__).parent.parent / "examples"
METHODS = ("plain mean", "UW", "UW by position", "DWA", "FAMO", "FAMO amortized", "FAMO, no floor")


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)  # as when Python runs a program of that folder
        yield import_module("examples.instances")


def test_only_digits_to_train_on_have_wrong_labels_and_only_those_marked(
    example: ModuleType,
) -> None:
    train, test = example.load(seed=0, wrong=0.3)
    clean, same = example.load(seed=0, wrong=0.0)
    assert train.is_wrong.float().mean() == pytest.approx(0.3, abs=0.05)
    assert torch.equal(train.is_wrong, train.label != clean.label)
    assert not test.is_wrong.any()
    assert not clean.is_wrong.any()
    torch.testing.assert_close((train.image, test), (clean.image, same), rtol=0, atol=0)


def test_losses_go_to_their_places(example: ModuleType) -> None:
    losses = torch.tensor([5.0, 7.0], requires_grad=True)
    placed, mask = example.in_place(losses, torch.tensor([3, 1]), 4)
    assert placed.tolist() == [0.0, 7.0, 0.0, 5.0]
    assert mask.tolist() == [False, True, False, True]
    placed.prod().backward()
    assert losses.grad is not None


@pytest.mark.parametrize("method", METHODS)
def test_training_is_deterministic_and_learns(example: ModuleType, method: str) -> None:
    train, test = example.load(seed=0, wrong=0.0)
    network, weights = example.train(method, train, epochs=3, seed=0)
    again, same = example.train(method, train, epochs=3, seed=0)
    torch.testing.assert_close(network.state_dict(), again.state_dict(), rtol=0, atol=0)
    assert torch.equal(weights, same)
    assert (weights > 0).all()
    untrained, _ = example.train(method, train, epochs=0, seed=0)
    assert example.evaluate(network, test)[1] < example.evaluate(untrained, test)[1]


@pytest.mark.parametrize("amortized", [False, True])
def test_famo_learns_of_an_instance_only_when_it_is_in_the_batch(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, amortized: bool
) -> None:
    epochs = 3
    scalarizer = FAMO(example.INSTANCES, example.BOUNDS, amortized=amortized)
    monkeypatch.setitem(example.METHODS, "FAMO", lambda: scalarizer)
    example.train("FAMO", example.load(seed=0, wrong=0.0)[0], epochs, seed=0)
    measured = epochs - amortized  # which has nothing to compare with in the first
    assert scalarizer.step.tolist() == [measured] * example.INSTANCES


@pytest.mark.parametrize("method", ["UW", "FAMO", "FAMO amortized"])
def test_wrong_labels_are_trusted_less_and_the_right_ones_read_better(
    example: ModuleType, method: str
) -> None:
    train, test = example.load(seed=0, wrong=0.3)
    network, weights = example.train(method, train, epochs=60, seed=0)
    plain_network, _ = example.train("plain mean", train, epochs=60, seed=0)
    assert weights[train.is_wrong].mean() < 0.1 * weights[~train.is_wrong].mean()
    right, loss, *_ = example.evaluate(network, test)
    plain_right, plain_loss, *_ = example.evaluate(plain_network, test)
    assert right > plain_right
    assert loss < plain_loss / 2


def test_the_quick_program_prints_both_tables(
    example: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    example.main(["--quick"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines if "─" not in line] == [
        *("", "30 % wrong", *METHODS),
        *("", "0 % wrong", *METHODS),
    ]


def test_one_method_is_shown_beside_the_plain_mean(
    example: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    example.main(["--method=UW", "--wrong=10", "--seeds=2", "--epochs=1"])
    _, header, _, *rows = capsys.readouterr().out.splitlines()
    assert header.split("  ")[0] == "10 % wrong"
    assert [row.split("  ")[0] for row in rows] == ["plain mean", "UW"]


@pytest.mark.parametrize(
    ("flag", "complaint"),
    [
        ("--method=guess", "argument --method: invalid choice: 'guess'"),
        ("--seeds=0", "argument --seeds: expected an integer from 1"),
        ("--wrong=101", "argument --wrong: expected an integer from 0 to 100"),
        ("--wrong=-1", "argument --wrong: expected an integer from 0 to 100"),
    ],
)
def test_a_bad_flag_gets_one_clear_line(
    example: ModuleType, capsys: pytest.CaptureFixture[str], flag: str, complaint: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        example.main([flag])
    assert stop.value.code == 2
    assert complaint in capsys.readouterr().err.splitlines()[-1]
