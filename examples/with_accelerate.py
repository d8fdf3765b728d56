"""The digits demo under `accelerate launch`: the plain loop, every method, mixed precision, resume.

A scalarizer needs two lines: `synchronize()`, so that the ranks balance together, and
`register_for_checkpointing`, because it is not part of the prepared network. It is not prepared
itself: UW's and IMTL-L's gradients are the same on every rank without DDP.

    accelerate launch --num_processes 2 examples/with_accelerate.py      # on two GPUs
    accelerate launch --cpu --mixed_precision bf16 examples/with_accelerate.py --method DWA
    accelerate launch --cpu examples/with_accelerate.py --resume runs/accelerate/epoch-10
    python examples/with_accelerate.py --quick                           # no launcher, one process

With `--cpu`, Accelerate starts one process, whatever `--num_processes` says, unless MPI is there.
These lines start two processes, which balance over Gloo (half a minute on two cores):

    export ACCELERATE_USE_CPU=1
    accelerate launch --multi_gpu --num_processes 2 examples/with_accelerate.py --method UW

prints:

processes: 2, largest difference between their scalarizers: 0.0e+00

       left digit right digit        sum  redrawing
method    % right     % right abs. error MSE x 1000
───────────────────────────────────────────────────
UW           96.1        94.8       1.73       17.7

On one process or two, a resumed run is bit-identical to one that never stopped; on more, the same
up to rounding.
"""

import argparse
import gc
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from digits import (
    BATCH_SIZE,
    METHODS,
    TASKS,
    Network,
    Pairs,
    count,
    load_pairs,
    make_optimizer,
    make_schedule,
    print_metrics,
    run_program,
    task_losses,
    writable_directory,
)
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from mtl_scalarize import Scalarizer

try:
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration
except ImportError:
    sys.exit("with_accelerate.py: error: needs accelerate: pip install accelerate")


def largest_difference(scalarizer: Scalarizer, accelerator: Accelerator) -> float:
    """Between any two ranks, of anything in the scalarizer's state."""
    # FAMO's losses of the last call are nan once `update` has used them.
    values = [value.flatten().double().nan_to_num() for value in scalarizer.state_dict().values()]
    state = torch.cat([torch.zeros(1, device=accelerator.device), *values])
    ranks = accelerator.gather(state.unsqueeze(0))
    return (ranks.amax(dim=0) - ranks.amin(dim=0)).max().item()


def existing_directory(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"no directory {text!r}")
    return Path(text)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the digits demo with Accelerate.")
    parser.add_argument("--method", choices=METHODS, default="FAMO", help="default: FAMO")
    parser.add_argument("--quick", action="store_true", help="2 epochs")
    parser.add_argument("--epochs", type=count, help="default: 30")
    parser.add_argument("--seed", type=count, default=1, help="default: 1")
    parser.add_argument(
        "--dir",
        type=writable_directory,
        default="runs/accelerate",
        help="default: runs/accelerate",
    )
    parser.add_argument("--resume", type=existing_directory, help="one of that directory")
    args = parser.parse_args(argv)
    epochs = args.epochs or (2 if args.quick else 30)
    torch.set_num_threads(1)  # as in digits.py
    torch.manual_seed(args.seed)

    # The batches are those of one process, split over the ranks; the schedule then takes one step
    # a batch, not one for each rank. The order follows from the seed and the epoch.
    accelerator = Accelerator(
        dataloader_config=DataLoaderConfiguration(
            split_batches=True, use_seedable_sampler=True, data_seed=args.seed
        )
    )
    train_pairs, test_pairs = load_pairs(args.seed)
    loader = DataLoader(TensorDataset(*train_pairs), BATCH_SIZE, shuffle=True)
    network = Network()
    scalarizer = METHODS[args.method](len(TASKS)).to(accelerator.device)
    if accelerator.num_processes > 1:
        scalarizer.synchronize()
    optimizer = make_optimizer(network, scalarizer)
    schedule = make_schedule(optimizer, epochs * len(loader))
    network, optimizer, loader, schedule = accelerator.prepare(network, optimizer, loader, schedule)
    accelerator.register_for_checkpointing(scalarizer)
    if args.resume is not None:
        try:
            accelerator.load_state(args.resume)
        except (OSError, RuntimeError, ValueError):
            parser.error(f"{args.resume} holds no checkpoint of --method {args.method}")
    behind = schedule.scheduler.last_epoch // len(loader)

    def losses_of(batch: Pairs) -> Tensor:
        return task_losses(network(batch.image), batch)

    for epoch in tqdm(range(behind, epochs), disable=not accelerator.is_main_process):
        loader.set_epoch(epoch)
        for index, tensors in enumerate(loader):
            batch = Pairs(*tensors)
            optimizer.zero_grad()
            accelerator.backward(scalarizer(losses_of(batch)))
            optimizer.step()
            schedule.step()
            if index % 10 == 0:
                scalarizer.update(partial(losses_of, batch))
        scalarizer.step()
        accelerator.save_state(args.dir / f"epoch-{epoch + 1}")

    size, difference = accelerator.num_processes, largest_difference(scalarizer, accelerator)
    accelerator.print(
        f"processes: {size}, largest difference between their scalarizers: {difference:.1e}"
    )
    if accelerator.is_main_process:
        pairs = Pairs(*(values.to(accelerator.device) for values in test_pairs))
        print_metrics(args.method, accelerator.unwrap_model(network), pairs)
    # The DDP model is in a cycle, and keeps the process group: gloo's threads could then abort the
    # end of the program.
    accelerator.free_memory()
    network = optimizer = None
    gc.collect()
    accelerator.end_training()


if __name__ == "__main__":
    run_program(main)
