"""The Lightning example: each method, its hooks, its checkpoints, and two processes."""

import copy
import os
import pickle
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
from torch import Tensor

EXAMPLES = Path(__file__).parent.parent / "examples"
METHODS = ("plain sum", "UW", "IMTL-L", "DWA", "FAMO", "FAMO amortized")
STEPS = 10  # an epoch of the shortened data

# The example, but each rank saves its scalarizer. Without validation: the first forward pass of DDP
# after the last step would give the others the state of rank 0.
PROGRAM = """
import sys, torch, with_lightning as example

class Trainer(example.Trainer):
    def __init__(self, **settings):
        super().__init__(limit_val_batches=0, **settings)

    def fit(self, model, *args, **settings):
        super().fit(model, *args, **settings)
        torch.save(model.scalarizer.state_dict(), f"rank-{self.global_rank}.pt")

example.Trainer = Trainer
example.main(sys.argv[1:])
"""

pytest.importorskip("lightning", reason="needs lightning")
pytestmark = [
    # Lightning's own code asks for torch's deprecated LeafSpec.
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning"),
    # It would have the data loaded by more processes, which such small data does not need.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # The logger has written there before, or the run that is resumed.
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    # As a test resumes into another directory, to see what it saves there.
    pytest.mark.filterwarnings("ignore:The dirpath has changed from"),
]

Train = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)  # as when Python runs a program of that folder
        module = import_module("examples.with_lightning")
        short = partial(module.load_pairs, train_size=STEPS * module.BATCH_SIZE, test_size=200)
        patch.setattr(module, "load_pairs", short)
        yield module


@pytest.fixture
def train(example: ModuleType, tmp_path: Path) -> Train:
    """Run the program for three epochs, the first in which DWA has weights; what it saved last."""

    def run(*flags: str, directory: str = "whole") -> dict[str, Any]:
        path = tmp_path / directory
        example.main(["--epochs=3", f"--dir={path}", *flags])
        return torch.load(path / "epoch=2.ckpt", weights_only=True)

    return run


def scalarizer_state(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    prefix = "scalarizer."
    state = checkpoint["state_dict"].items()
    return {name[len(prefix) :]: value for name, value in state if name.startswith(prefix)}


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_bit_identical_to_one_that_never_stopped(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    whole = train(f"--method={method}")
    table = capsys.readouterr().out.splitlines()
    assert table[-1].startswith(f"{method} ")
    saved = tmp_path / "whole" / "epoch=1.ckpt"
    parts = train(f"--method={method}", f"--resume={saved}", directory="parts")
    assert [path.name for path in (tmp_path / "parts").glob("*.ckpt")] == ["epoch=2.ckpt"]
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(parts[part], whole[part], rtol=0, atol=0)
    assert whole["global_step"] == parts["global_step"] == 3 * STEPS


def test_a_checkpoint_of_another_method_is_refused(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train("--method=UW")
    with pytest.raises(SystemExit):
        train("--method=IMTL-L", f"--resume={tmp_path / 'whole' / 'epoch=1.ckpt'}")
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith("epoch=1.ckpt holds no checkpoint of --method IMTL-L")


def test_the_learned_parameters_keep_their_rate_while_that_of_the_network_decays(
    train: Train,
) -> None:
    network, learned = train("--method=UW")["optimizer_states"][0]["param_groups"]
    assert network["lr"] < 1e-6
    assert (learned["lr"], learned["weight_decay"]) == (1e-2, 0.0)
    assert len(learned["params"]) == 1


def test_the_state_counts_every_epoch_and_every_step(train: Train) -> None:
    assert scalarizer_state(train("--method=DWA"))["epochs"].tolist() == [3] * 4
    state = scalarizer_state(train("--method=FAMO", directory="FAMO"))
    assert state["step"].tolist() == [3 * STEPS] * 4


def test_a_checkpoint_amid_an_epoch_has_famos_last_update(
    example: ModuleType, tmp_path: Path
) -> None:
    model, data = example.Digits("FAMO"), example.Data(seed=1)
    callback = example.ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1)
    trainer = quiet_trainer(example, max_epochs=1, callbacks=[callback])
    trainer.fit(model, data)
    checkpoint = torch.load(tmp_path / "epoch=0-step=3.ckpt", weights_only=True)
    assert scalarizer_state(checkpoint)["step"].tolist() == [3] * 4


@pytest.mark.parametrize("method", ["DWA", "FAMO", "FAMO amortized"])
def test_validation_does_not_change_the_state(example: ModuleType, method: str) -> None:
    class Validated(example.Digits):  # type: ignore[name-defined, misc]
        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.log("val/total", self.scalarizer(self.losses(example.Pairs(*batch))))

    model, data = Validated(method), example.Data(seed=1)
    trainer = quiet_trainer(example, max_epochs=1)
    trainer.fit(model, data)
    before = copy.deepcopy(model.scalarizer.state_dict())
    trainer.validate(model, data, verbose=False)
    torch.testing.assert_close(model.scalarizer.state_dict(), before, rtol=0, atol=0)


def test_mixed_precision_measures_the_second_pass_as_the_first(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = []

    def losses(self: Any, batch: Any) -> Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return example.task_losses(self.network(batch.image), batch)

    monkeypatch.setattr(example.Digits, "losses", losses)
    example.main(["--epochs=1", "--precision=bf16-mixed", f"--dir={tmp_path}"])
    assert seen == [True] * 2 * STEPS


def test_a_module_with_a_process_group_can_be_copied_and_pickled(
    example: ModuleType, tmp_path: Path
) -> None:
    model = example.Digits("FAMO")
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", rank=0, world_size=1, store=store)
    try:
        model.setup("fit")
        assert model.scalarizer.process_group is dist.group.WORLD
        assert copy.deepcopy(model).scalarizer.process_group is dist.group.WORLD
        assert pickle.loads(pickle.dumps(model.scalarizer)).process_group is None
    finally:
        dist.destroy_process_group()
    model.setup("fit")
    assert model.scalarizer.process_group is None


@pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch is built without gloo"
)
def test_two_processes_have_one_state_that_of_a_single_process(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"  # a file: Lightning starts the second process with it
    program.write_text(PROGRAM)
    flags = ["--quick", "--method=FAMO"]
    finished = subprocess.run(
        [sys.executable, program, *flags, "--devices=2"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("abs. error") == 1, "more than one rank speaks"
    ranks = [torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1)]
    torch.testing.assert_close(*ranks, rtol=0, atol=0)

    monkeypatch.setattr(example, "load_pairs", import_module("digits").load_pairs)
    example.main([*flags, f"--dir={tmp_path / 'alone'}"])
    alone = torch.load(tmp_path / "alone" / "epoch=1.ckpt", weights_only=True)
    torch.testing.assert_close(ranks[0], scalarizer_state(alone), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("flag", "complaint"),
    [
        ("--method=guess", "argument --method: invalid choice: 'guess'"),
        ("--epochs=0", "argument --epochs: expected an integer from 1"),
        ("--devices=none", "argument --devices: invalid int value: 'none'"),
        ("--devices=1000", "argument --devices: invalid choice: 1000"),
        (f"--resume={__file__}", "test_with_lightning.py holds no checkpoint of --method FAMO"),
        (f"--dir={__file__}", "argument --dir: cannot write to"),
        ("--resume=nothing.ckpt", "argument --resume: no file 'nothing.ckpt'"),
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


def test_a_missing_lightning_gets_one_clear_line(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lightning", None)
    monkeypatch.delitem(sys.modules, "examples.with_lightning")
    with pytest.raises(SystemExit) as stop:
        import_module("examples.with_lightning")
    complaint = "with_lightning.py: error: needs lightning: pip install lightning"
    assert stop.value.code == complaint


def quiet_trainer(example: ModuleType, **settings: Any) -> Any:
    return example.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing="callbacks" in settings,
        enable_model_summary=False,
        enable_progress_bar=False,
        log_every_n_steps=1,
        **settings,
    )
