"""The digits demo as a LightningModule: every method, automatic optimisation, one process or many.

`MultiTaskModule` does what a scalarizer needs; the module below says what the losses are, and gives
UW's and IMTL-L's parameters their own learning rate.

    python examples/with_lightning.py --method UW             # 15 seconds on one core
    python examples/with_lightning.py --devices 2 --precision bf16-mixed
    python examples/with_lightning.py --method UW --resume runs/lightning/epoch=9.ckpt
    python examples/with_lightning.py --quick

The first line prints, after Lightning's own lines:

       left digit right digit        sum  redrawing
method    % right     % right abs. error MSE x 1000
───────────────────────────────────────────────────
UW           96.1        94.8       1.75       17.7

Two processes take the steps of one, up to rounding. On one or two, a run resumed from the end of an
epoch is bit-identical to one that never stopped; on more, again up to rounding. In
`runs/lightning/lightning_logs` are the losses and the task weights of every tenth step, of the
methods that have names here: all but "Constant" and "STCH".

FAMO looks again after every tenth step (`update_every` of the module), in training mode as in the
call. In `eval()`, dropout and batch norm would change the losses, and FAMO would take this for the
effect of the step. In training mode batch norm counts the batch twice and dropout draws again,
which hardly matters.
"""

import argparse
import os
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from digits import (
    BATCH_SIZE,
    METHODS,
    TASKS,
    Network,
    Pairs,
    count,
    evaluate,
    load_pairs,
    make_optimizer,
    make_schedule,
    print_metrics,
    run_program,
    task_losses,
    writable_directory,
)
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from mtl_scalarize.integrations.lightning import MultiTaskModule

try:
    from lightning import LightningDataModule, LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger
except ImportError:
    sys.exit("with_lightning.py: error: needs lightning: pip install lightning")


class Digits(MultiTaskModule, LightningModule):
    def __init__(self, method: str) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = Network()
        self.scalarizer = METHODS[method]([task.name for task in TASKS])

    def losses(self, batch: list[Tensor]) -> Tensor:
        pairs = Pairs(*batch)
        return task_losses(self.network(pairs.image), pairs)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = make_optimizer(self.network, self.scalarizer)
        schedule = make_schedule(optimizer, int(self.trainer.estimated_stepping_batches))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        pairs = Pairs(*batch)
        for task, metric in zip(TASKS, evaluate(self.network, pairs), strict=True):
            self.log(f"val/{task.name}", metric, batch_size=len(pairs.image), sync_dist=True)


class Data(LightningDataModule):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.train_pairs, self.test_pairs = load_pairs(seed)

    def train_dataloader(self) -> DataLoader[Any]:
        pairs = TensorDataset(*self.train_pairs)
        size, rank = self.trainer.world_size, self.trainer.global_rank
        # Its order follows from the seed and the epoch, so a resumed run sees what it would have.
        sampler = DistributedSampler(pairs, size, rank, shuffle=True, seed=self.seed)
        return DataLoader(pairs, BATCH_SIZE // size, sampler=sampler)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(*self.test_pairs), 1000)


def existing_file(text: str) -> Path:
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"no file {text!r}")
    return Path(text)


def method_of(checkpoint: Path) -> str | None:
    try:
        method: str = torch.load(checkpoint, weights_only=True)["hyper_parameters"]["method"]
    except (EOFError, KeyError, RuntimeError, pickle.UnpicklingError):
        return None
    return method


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the digits demo with Lightning.")
    parser.add_argument("--method", choices=METHODS, default="FAMO", help="default: FAMO")
    parser.add_argument("--quick", action="store_true", help="2 epochs")
    parser.add_argument("--epochs", type=count, help="default: 30")
    parser.add_argument(
        "--devices",
        type=int,
        choices=range(1, max(2, os.cpu_count() or 1) + 1),
        default=1,
        help="processes; default: 1",
    )
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true")
    parser.add_argument("--seed", type=count, default=1, help="default: 1")
    parser.add_argument(
        "--dir",
        type=writable_directory,
        default="runs/lightning",
        help="default: runs/lightning",
    )
    parser.add_argument("--resume", type=existing_file, help="a checkpoint in that directory")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # as in digits.py
    torch.manual_seed(args.seed)
    if args.resume is not None and method_of(args.resume) != args.method:
        parser.error(f"{args.resume} holds no checkpoint of --method {args.method}")
    model, data = Digits(args.method), Data(args.seed)
    trainer = Trainer(
        accelerator="cpu",
        devices=args.devices,
        strategy="ddp" if args.devices > 1 else "auto",
        precision=args.precision,
        max_epochs=args.epochs or (2 if args.quick else 30),
        # At the end of the training epoch, and so after DWA's step; Lightning's default depends on
        # how often you validate.
        callbacks=[
            ModelCheckpoint(
                args.dir, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True
            )
        ],
        logger=CSVLogger(args.dir),
        log_every_n_steps=10,
        enable_model_summary=False,
    )
    try:
        trainer.fit(model, data, ckpt_path=args.resume)
    except SystemExit:  # with which Lightning answers Ctrl-C
        raise KeyboardInterrupt from None

    if trainer.is_global_zero:
        print_metrics(args.method, model.network, data.test_pairs)


if __name__ == "__main__":
    run_program(main)
