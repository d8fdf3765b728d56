"""The demo: what it promises of its data, its flags, and its output."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from examples import digits

PROGRAM = Path(digits.__file__)


def test_no_handwritten_digit_is_both_trained_and_tested_on() -> None:
    train, test = digits.load_pairs(seed=0, train_size=8000, test_size=2000)
    train_digits = {image.numpy().tobytes() for image in train.drawing}
    test_digits = {image.numpy().tobytes() for image in test.drawing}
    assert len(train_digits) > 1000
    assert len(test_digits) > 300
    assert not train_digits & test_digits


def test_the_tasks_tell_of_the_two_digits_in_the_image() -> None:
    pairs, _ = digits.load_pairs(seed=1, train_size=50, test_size=1)
    torch.testing.assert_close(pairs.total, (pairs.left + pairs.right).float())
    # Where the right digit does not reach, the image is the left digit.
    shift = digits.SHIFT
    torch.testing.assert_close(pairs.image[:, :shift, :8], pairs.drawing[:, :shift])
    assert (pairs.image[:, :8, :8] >= pairs.drawing).all()


def test_the_losses_differ_by_orders_of_magnitude() -> None:
    pairs, _ = digits.load_pairs(seed=0, train_size=200, test_size=1)
    torch.manual_seed(0)
    losses = digits.task_losses(digits.Network()(pairs.image), pairs)
    assert losses.shape == (4,)
    assert losses.max() / losses.min() > 100


@pytest.mark.parametrize("method", digits.METHODS)
def test_training_is_deterministic_and_learns(method: str) -> None:
    train, test = digits.load_pairs(seed=0, train_size=2000, test_size=500)
    network, weights = digits.train(method, train, epochs=3, seed=0)
    again, _ = digits.train(method, train, epochs=3, seed=0)
    torch.testing.assert_close(network.state_dict(), again.state_dict(), rtol=0, atol=0)
    assert weights.shape == (3, 4)
    assert (weights > 0).all()
    untrained, _ = digits.train(method, train, epochs=0, seed=0)
    after, before = (digits.task_losses(net(test.image), test) for net in (network, untrained))
    assert (after < before).all()


def test_the_quick_demo_prints_a_table_and_draws_a_picture(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    run = subprocess.run(
        [sys.executable, PROGRAM, "--quick", "--out", picture],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    for method in digits.METHODS:
        assert method in run.stdout
    assert "delta-m" in run.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--epochs", "0"], "argument --epochs: expected an integer from 1"),
        (["--epochs", "many"], "argument --epochs: expected an integer from 1"),
        (["--seeds", "-1"], "argument --seeds"),
        (["--device", "abacus"], "argument --device: no device 'abacus' on this machine"),
        (["--out", "missing/folder/digits.png"], "argument --out: cannot write"),
        (["--out", "digits.txt"], "argument --out: expected a .png"),
        (["--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_a_bad_flag_gets_one_clear_line(
    flags: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        digits.main(flags)
    assert stop.value.code == 2
    *usage, last = capsys.readouterr().err.splitlines()
    assert complaint in last
    assert "Traceback" not in "".join(usage)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_gets_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        digits.main(["--device", "cuda"])
    assert "no device 'cuda' on this machine" in capsys.readouterr().err
