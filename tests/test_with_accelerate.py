"""The Accelerate example: each method, its checkpoints, and two processes in mixed precision."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist

EXAMPLES = Path(__file__).parent.parent / "examples"
METHODS = ("plain sum", "UW", "IMTL-L", "DWA", "FAMO", "FAMO amortized")
STEPS = 10  # an epoch of the shortened data
PARTS = ("custom_checkpoint_0.pkl", "optimizer.bin", "scheduler.bin")

accelerate_state = pytest.importorskip("accelerate.state", reason="needs accelerate")

Train = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)  # as when Python runs a program of that folder
        module = import_module("examples.with_accelerate")
        short = partial(module.load_pairs, train_size=STEPS * module.BATCH_SIZE, test_size=200)
        patch.setattr(module, "load_pairs", short)
        yield module


def saved(directory: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    checkpoint = {name: torch.load(directory / name, weights_only=True) for name in PARTS}
    return {**checkpoint, "network": load_file(directory / "model.safetensors")}


@pytest.fixture
def train(example: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Train:
    """Run the program for three epochs, the first in which DWA has weights; what it saved last."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")

    def run(*flags: str, directory: str = "whole") -> dict[str, Any]:
        try:
            example.main(["--epochs=3", f"--dir={tmp_path / directory}", *flags])
        finally:
            accelerate_state.AcceleratorState._reset_state(reset_partial_state=True)
        return saved(tmp_path / directory / "epoch-3")

    return run


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_bit_identical_to_one_that_never_stopped(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    whole = train(f"--method={method}")
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{method} ")
    behind = tmp_path / "whole" / "epoch-2"
    parts = train(f"--method={method}", f"--resume={behind}", directory="parts")
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["epoch-3"]
    torch.testing.assert_close(parts, whole, rtol=0, atol=0)


def test_a_checkpoint_of_another_method_is_refused(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train("--method=UW")
    for method in ("IMTL-L", "FAMO"):
        with pytest.raises(SystemExit):
            train(f"--method={method}", f"--resume={tmp_path / 'whole' / 'epoch-2'}")
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.endswith(f"epoch-2 holds no checkpoint of --method {method}")


def test_the_learned_parameters_keep_their_rate_while_that_of_the_network_decays(
    train: Train,
) -> None:
    network, learned = train("--method=UW")["optimizer.bin"]["param_groups"]
    assert network["lr"] < 1e-6
    assert (learned["lr"], learned["weight_decay"]) == (1e-2, 0.0)
    assert len(learned["params"]) == 1


def test_the_state_counts_every_epoch_and_every_step(train: Train) -> None:
    dwa, famo = (train(f"--method={method}", directory=method) for method in ("DWA", "FAMO"))
    assert dwa["custom_checkpoint_0.pkl"]["epochs"].tolist() == [3] * 4
    assert famo["custom_checkpoint_0.pkl"]["step"].tolist() == [3 * STEPS] * 4


@pytest.mark.parametrize("method", ["UW", "DWA", "FAMO"])
def test_mixed_precision_trains_and_leaves_the_state_in_float32(
    train: Train, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    exact = train(f"--method={method}")["custom_checkpoint_0.pkl"]
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # as the launcher does
    mixed = train(f"--method={method}", directory="bf16")["custom_checkpoint_0.pkl"]
    assert torch.bfloat16 not in {value.dtype for value in mixed.values()}
    assert any(not torch.equal(mixed[name], exact[name]) for name in exact)
    torch.testing.assert_close(mixed, exact, rtol=0.1, atol=0.1)


@pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch is built without gloo"
)
def test_two_launched_processes_end_with_the_same_state(tmp_path: Path) -> None:
    launcher = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2")
    flags = ("--main_process_port=0", "--mixed_precision=bf16")
    finished = subprocess.run(
        [sys.executable, *launcher, *flags, EXAMPLES / "with_accelerate.py", "--quick"],
        env=os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    assert "processes: 2, largest difference between their scalarizers: 0.0e+00" in finished.stdout
    assert finished.stdout.count("abs. error") == 1, "more than one rank speaks"
    state = saved(tmp_path / "checkpoints" / "epoch-2")["custom_checkpoint_0.pkl"]
    assert state["step"].tolist() == [80] * 4


@pytest.mark.parametrize(
    ("flag", "complaint"),
    [
        ("--method=guess", "argument --method: invalid choice: 'guess'"),
        ("--epochs=0", "argument --epochs: expected an integer from 1"),
        ("--resume=nothing", "argument --resume: no directory 'nothing'"),
        ("--resume=.", ". holds no checkpoint of --method FAMO"),
        (f"--dir={__file__}", "argument --dir: cannot write to"),
    ],
)
def test_a_bad_flag_gets_one_clear_line(
    example: ModuleType,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    flag: str,
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        example.main([flag])
    assert stop.value.code == 2
    assert complaint in capsys.readouterr().err.splitlines()[-1]


def test_a_missing_accelerate_gets_one_clear_line(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.delitem(sys.modules, "examples.with_accelerate")
    with pytest.raises(SystemExit) as stop:
        import_module("examples.with_accelerate")
    complaint = "with_accelerate.py: error: needs accelerate: pip install accelerate"
    assert stop.value.code == complaint
