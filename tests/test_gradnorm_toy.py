"""GradNorm's toy problem: its targets, and what balancing does for the tasks of small scale."""

import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

from examples import digits
from mtl_scalarize import FAMO

EXAMPLES = Path(digits.__file__).parent


@pytest.fixture(scope="module")
def toy() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)  # as when Python runs a program of that folder
        yield import_module("examples.gradnorm_toy")


def test_tasks_differ_in_their_scale_and_share_the_rest(toy: ModuleType) -> None:
    examples, test = toy.make_examples(seed=0, train_size=500)
    assert examples.inputs.shape == (500, 250)
    assert examples.targets.shape == (500, 10, 100)
    assert not torch.isin(test.inputs, examples.inputs).all()
    torch.testing.assert_close(toy.SCALES[[0, -1]], torch.tensor([1.0, 100.0]))

    unscaled = examples.targets / toy.SCALES.unsqueeze(1)
    assert unscaled.abs().max() <= 1
    arguments = torch.atanh(unscaled.double().clamp(-0.999, 0.999))
    # Of 250 products of standard deviation 0.01 times that of a sum; the clamp takes a little.
    expected = 0.01 * (250 * (10**2 + 3.5**2)) ** 0.5
    assert expected == pytest.approx(1.675, abs=1e-3)
    torch.testing.assert_close(
        arguments.std(dim=(0, 2)), torch.full((10,), expected).double(), rtol=0.03, atol=0
    )
    correlation = torch.corrcoef(arguments.transpose(0, 1).flatten(1))
    off_diagonal = correlation[~torch.eye(10, dtype=torch.bool)]
    shared = 10**2 / (10**2 + 3.5**2)
    torch.testing.assert_close(
        off_diagonal, torch.full_like(off_diagonal, shared), rtol=0.03, atol=0
    )


def test_the_same_seed_makes_the_same_examples(toy: ModuleType) -> None:
    one, same, other = (toy.make_examples(seed, 10)[0].targets for seed in (1, 1, 2))
    torch.testing.assert_close(one, same, rtol=0, atol=0)
    assert not torch.isclose(one, other).any(dim=(0, 2)).all()


def test_the_network_is_that_of_the_paper(toy: ModuleType) -> None:
    sizes = [tuple(weight.shape) for weight in toy.Network().parameters() if weight.ndim == 2]
    assert sizes == [(100, 250), (100, 100), (100, 100), (100, 100), (1000, 100)]
    assert toy.Network()(torch.zeros(3, 250)).shape == (3, 10, 100)


@pytest.fixture(scope="module")
def ends(toy: ModuleType) -> dict[str, torch.Tensor]:
    """Of each method, the normalised test losses after a short training."""
    examples, test = toy.make_examples(seed=0, train_size=2000)
    histories = {name: toy.train(name, examples, test, 6, seed=0) for name in toy.METHODS}
    for history in histories.values():
        assert history.shape == (7, 10)
        assert (history[0] == 1).all()
    return {name: history[-1] for name, history in histories.items()}


def test_famo_leaves_no_task_behind(ends: dict[str, torch.Tensor]) -> None:
    assert ends["plain sum"].max() > 1.2  # worse than before training
    for method in ("FAMO", "FAMO amortized"):
        assert ends[method].max() < 1
        assert ends[method].mean() < ends["plain sum"].mean() - 0.05


@pytest.mark.parametrize("amortized", [False, True])
def test_famo_is_shown_what_each_step_did(
    amortized: bool, toy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    scalarizer = FAMO(10, amortized=amortized)
    monkeypatch.setitem(toy.METHODS, "FAMO", lambda: scalarizer)
    toy.train("FAMO", *toy.make_examples(seed=0, train_size=300), epochs=1, seed=0)
    assert scalarizer.step.tolist() == [2 if amortized else 3] * 10


def test_uw_is_in_between_and_dwa_is_as_the_plain_sum(ends: dict[str, torch.Tensor]) -> None:
    for method in ("UW", "IMTL-L"):
        assert ends["FAMO"].max() < ends[method].max() < ends["plain sum"].max()
    torch.testing.assert_close(ends["DWA"], ends["plain sum"], rtol=0.05, atol=0.05)
    assert (ends["DWA"] != ends["plain sum"]).any()


def test_the_quick_run_prints_a_table_and_draws_a_picture(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / "gradnorm_toy.py", "--quick", "--seeds", "1"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        cwd=tmp_path,
    )
    for text in ("FAMO amortized", "scale 2.78", "mean", "worst", "picture: gradnorm_toy.png"):
        assert text in run.stdout
    assert "100%" in run.stderr
    assert (tmp_path / "gradnorm_toy.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--seeds", "0"], "argument --seeds: expected an integer from 1"),
        (["--out", "missing/folder/toy.png"], "argument --out: cannot write"),
        (["--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_a_bad_flag_gets_one_clear_line(
    flags: list[str], complaint: str, toy: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        toy.main(flags)
    assert stop.value.code == 2
    *usage, last = capsys.readouterr().err.splitlines()
    assert complaint in last
    assert "Traceback" not in "".join(usage)
