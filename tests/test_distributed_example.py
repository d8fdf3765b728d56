"""The data-parallel example: what it promises of its ranks, its checkpoints and its errors."""

import importlib
import multiprocessing
import os
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist

TESTS = Path(__file__).parent
EXAMPLES = TESTS.parent / "examples"
PROGRAM = EXAMPLES / "distributed.py"
LAUNCHER = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch is built without gloo"
)


def run(*arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    inherited = {name: value for name, value in os.environ.items() if name not in LAUNCHER}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=inherited | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def launch_in_turns(runs: Sequence[Sequence[str]], *, size: int) -> None:
    """Run the program on so many ranks, once with each list of flags.

    A rank is a new process each time, but forked from this one, which must have imported torch and
    not used it: the imports take several times as long as the training.
    """
    import distributed

    importlib.import_module("torch._dynamo")  # as the first optimizer does
    fork = multiprocessing.get_context("fork")
    for flags in runs:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        ranks = []
        for rank in range(size):
            os.environ.update(shared, RANK=str(rank))
            ranks.append(fork.Process(target=distributed.main, args=(flags,), daemon=True))
            ranks[-1].start()
        for process in ranks:
            process.join(60)
            if process.exitcode != 0:
                sys.exit(f"{flags}: exit status {process.exitcode}")


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES)  # where the program runs
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)
    return importlib.import_module("examples.distributed")


def test_two_ranks_take_the_steps_of_one_process() -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    finished = run(*launcher, PROGRAM, "--quick", "--verify")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("abs. error") == 1, "more than one rank speaks"
    rows = re.findall(r"^(?:between|2 ranks) .* (\S+) +(\S+)$", finished.stdout, flags=re.M)
    spread, difference = ([float(number) for number in row] for row in rows)
    assert spread == [0.0, 0.0]
    assert max(difference) < 1e-10


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_a_resumed_run_is_bit_identical_to_one_that_never_stopped(tmp_path: Path) -> None:
    # On three ranks: two have but one order to sum in.
    runs = [
        ["--batch-size=198", f"--method={method}", f"--epochs={epochs}", f"--checkpoint={path}"]
        for method in ("DWA", "FAMO")
        for whole, parts in [(tmp_path / f"{method} whole", tmp_path / f"{method} parts")]
        for epochs, path in [(4, whole), (2, parts), (4, parts)]
    ]
    code = f"import test_distributed_example as test; test.launch_in_turns({runs}, size=3)"
    finished = run("-c", code, PYTHONPATH=f"{TESTS}{os.pathsep}{EXAMPLES}")
    assert finished.returncode == 0, finished.stderr
    assert re.findall(r"^(DWA|FAMO|resumed .*)", finished.stdout, flags=re.M) == [
        *("DWA", "DWA", f"resumed {tmp_path / 'DWA parts'} after 2 epochs", "DWA"),
        *("FAMO", "FAMO", f"resumed {tmp_path / 'FAMO parts'} after 2 epochs", "FAMO"),
    ]
    for method in ("DWA", "FAMO"):
        whole, parts = (
            torch.load(tmp_path / f"{method} {name}", weights_only=True)
            for name in ("whole", "parts")
        )
        assert whole["epochs"] == parts["epochs"] == 4
        torch.testing.assert_close(parts["training"], whole["training"], rtol=0, atol=0)
    assert len(list(tmp_path.iterdir())) == 4  # nothing is left aside


def test_one_process_needs_no_launcher(
    example: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    example.main(["--epochs", "1", "--method", "UW"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("UW")


def test_an_interrupted_save_leaves_the_checkpoint_before(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "run.pt"
    example.save({"epochs": 1}, path)

    def save_half(checkpoint: object, file: Any) -> None:
        file.write(b"half of it")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", save_half)
        with pytest.raises(KeyboardInterrupt):
            example.save({"epochs": 2}, path)
    assert torch.load(path, weights_only=True) == {"epochs": 1}
    example.save({"epochs": 3}, path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_launcher_variable_gets_one_clear_line() -> None:
    finished = run(PROGRAM, RANK="0", WORLD_SIZE="2", MASTER_PORT="29500")
    assert finished.returncode == 1
    assert finished.stderr == (
        "distributed.py: error: RANK is set, but MASTER_ADDR not: launch the ranks with torchrun\n"
    )


@pytest.mark.parametrize(
    ("flags", "environment", "complaint"),
    [
        ([], {"WORLD_SIZE": "2"}, "WORLD_SIZE is set, but RANK and MASTER_ADDR and MASTER_PORT"),
        ([], dict.fromkeys(LAUNCHER, "x"), "the ranks do not find each other: invalid literal"),
        (["--checkpoint={path}"], {}, "run.pt is not a checkpoint of this program"),
        pytest.param(
            ["--backend=nccl"],
            {},
            "--backend nccl needs a torch with NCCL and a GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_what_cannot_be_done_gets_one_clear_line(
    example: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    flags: list[str],
    environment: dict[str, str],
    complaint: str,
) -> None:
    path = tmp_path / "run.pt"
    path.write_bytes(b"not a checkpoint")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stop:
        example.main([flag.format(path=path) for flag in flags])
    assert isinstance(stop.value.code, str)  # which Python writes to stderr, and exits with 1
    assert complaint in stop.value.code
    assert "\n" not in stop.value.code


def test_a_checkpoint_of_another_training_is_refused(example: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    example.save({"settings": {"method": "UW"}, "epochs": 1, "training": {}}, path)
    with pytest.raises(SystemExit, match=r"is of another training: .*UW.*FAMO"):
        example.main([f"--checkpoint={path}", "--method=FAMO"])


@pytest.mark.parametrize("seed", ["-1", "one", "9" * 30])
def test_a_bad_seed_gets_one_clear_line(
    example: ModuleType, capsys: pytest.CaptureFixture[str], seed: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        example.main([f"--seed={seed}"])
    assert stop.value.code == 2
    assert "argument --seed: expected an integer" in capsys.readouterr().err.splitlines()[-1]


def test_a_batch_that_the_ranks_cannot_share_equally_is_refused(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = example.Ranks(torch.device("cpu"), rank=1, size=3)
    monkeypatch.setattr(example, "join_ranks", lambda backend: ranks)
    with pytest.raises(SystemExit, match="--batch-size should be a multiple of 3"):
        example.main(["--batch-size=200"])
