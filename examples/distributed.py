"""Data-parallel training that equals training in one process, and may be stopped at any time.

The demo of `digits.py` on several ranks, with any method. Each rank takes its slice of every batch,
`DistributedDataParallel` averages the gradients, and `scalarizer.synchronize()` lets the ranks
balance together: the task weights then follow from the losses of the whole batch, and are the same
on every rank.

    torchrun --nproc-per-node 2 examples/distributed.py --method UW        # 20 seconds on two cores
    torchrun --nproc-per-node 2 examples/distributed.py --checkpoint run.pt     # again: it goes on
    torchrun --nproc-per-node 2 examples/distributed.py --quick --verify
    python examples/distributed.py                                       # no launcher, one process

The third line works in float64, trains in one process as well, and prints:

       left digit right digit        sum  redrawing
method    % right     % right abs. error MSE x 1000
───────────────────────────────────────────────────
FAMO         92.3        93.4       2.28       24.1

                       network's  scalarizer's
difference            parameters         state
──────────────────────────────────────────────
between any two ranks    0.0e+00       0.0e+00
2 ranks - one process    4.5e-15       1.2e-15

The differences come from sums taken in another order. They grow during training, slowly here, and
without bound where training is chaotic: compare a few epochs, not thirty.

A run resumed on the same number of ranks is bit-identical to one that never stopped. On another
number of ranks, or without a launcher, it is the same up to rounding. All ranks have to see the
checkpoint at the same path.
"""

import argparse
import gc
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch

# The first optimizer imports it anyway. Imported when there is a process group, it keeps that, and
# with it Gloo's threads, which may then abort the program at its end.
import torch._dynamo
import torch.distributed as dist
from digits import (
    BATCH_SIZE,
    CONSOLE,
    METHODS,
    TASKS,
    Network,
    Pairs,
    count,
    load_pairs,
    make_optimizer,
    make_table,
    print_metrics,
    run_program,
    task_losses,
)
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from mtl_scalarize import Scalarizer

LAUNCHER = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets


class Ranks(NamedTuple):
    """This process among those that train together."""

    device: torch.device
    group: "dist.ProcessGroup | None" = None  # None: it is alone
    rank: int = 0
    size: int = 1


class Training(NamedTuple):
    """Everything that a step changes."""

    network: Network
    scalarizer: Scalarizer
    optimizer: torch.optim.Optimizer
    order: torch.Generator  # of the pairs, the same on every rank

    def state(self) -> dict[str, Any]:
        modules = {name: getattr(self, name).state_dict() for name in self._fields[:3]}
        return modules | {"order": self.order.get_state()}

    def load(self, state: dict[str, Any]) -> None:
        for name in self._fields[:3]:
            getattr(self, name).load_state_dict(state[name])
        self.order.set_state(state["order"])


def fail(message: str) -> NoReturn:
    sys.exit(f"distributed.py: error: {message}")


def join_ranks(backend: str) -> Ranks:
    """Meet the other ranks; without a launcher there are none."""
    missing = [name for name in LAUNCHER if name not in os.environ]
    alone = len(missing) == len(LAUNCHER)
    if missing and not alone:
        there = next(name for name in LAUNCHER if name in os.environ)
        fail(f"{there} is set, but {' and '.join(missing)} not: launch the ranks with torchrun")
    device = torch.device("cpu")
    if backend == "nccl":
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        if not dist.is_nccl_available() or torch.cuda.device_count() <= local_rank:
            fail("--backend nccl needs a torch with NCCL and a GPU for each rank; take gloo")
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if alone:
        return Ranks(device)
    try:
        dist.init_process_group(backend, timeout=timedelta(minutes=1))
    except (RuntimeError, ValueError) as error:
        fail(f"the ranks do not find each other: {str(error).splitlines()[0]}")
    return Ranks(device, dist.group.WORLD, dist.get_rank(), dist.get_world_size())


def begin(method: str, seed: int, ranks: Ranks, dtype: torch.dtype) -> Training:
    torch.manual_seed(seed)
    network = Network().to(ranks.device, dtype)
    scalarizer = METHODS[method](len(TASKS)).to(ranks.device, dtype)
    if ranks.group is not None:
        scalarizer.synchronize(ranks.group)
    optimizer = make_optimizer(network, scalarizer)
    return Training(network, scalarizer, optimizer, torch.Generator().manual_seed(seed))


def train(
    training: Training,
    pairs: Pairs,
    epochs: range,
    batch_size: int,
    ranks: Ranks,
    on_epoch: Callable[[int], Any] = lambda epoch: None,
) -> None:
    network, scalarizer, optimizer, order = training
    parallel = network if ranks.group is None else DistributedDataParallel(network)

    def losses_of(batch: Pairs) -> Tensor:
        return task_losses(parallel(batch.image), batch)

    # DDP fixes the order of its sums after the first backward pass. This extra pass comes before
    # the first step; without it a resumed run would differ in the last bits.
    losses_of(pairs.take(torch.arange(1))).sum().backward()
    for epoch in epochs:
        shuffled = torch.randperm(len(pairs.image), generator=order).to(ranks.device)
        batches = shuffled.split(batch_size)[: len(shuffled) // batch_size]
        for index, whole in enumerate(batches):
            batch = pairs.take(whole.chunk(ranks.size)[ranks.rank])
            optimizer.zero_grad()
            scalarizer(losses_of(batch)).backward()
            optimizer.step()
            if index % 10 == 0:
                scalarizer.update(partial(losses_of, batch))
        scalarizer.step()
        on_epoch(epoch)


def save(checkpoint: dict[str, Any], path: Path) -> None:
    """Replace the file as a whole: an interrupted save leaves the one before."""
    aside = path.with_name(f"{path.name}.new")
    with aside.open("wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def resume(training: Training, path: Path, settings: dict[str, Any]) -> int:
    """Load the checkpoint, if there is one; return how many epochs are behind it."""
    if not path.exists():
        return 0
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        found = checkpoint["settings"]
    except (EOFError, KeyError, RuntimeError, TypeError, pickle.UnpicklingError):
        fail(f"{path} is not a checkpoint of this program")
    if found != settings:
        fail(f"{path} is of another training: {found}, and this one is {settings}")
    training.load(checkpoint["training"])
    return int(checkpoint["epochs"])


def flat_state(module: nn.Module, device: torch.device) -> Tensor:
    # FAMO's losses of the last call are nan once `update` has used them.
    values = [value.double().flatten().nan_to_num() for value in module.state_dict().values()]
    return torch.cat([torch.zeros(1, device=device), *values])  # Sum has no state


def spread(values: Tensor, ranks: Ranks) -> float:
    """The largest difference between any two ranks."""
    if ranks.group is None:
        return 0.0
    gathered = [torch.empty_like(values) for _ in range(ranks.size)]
    dist.all_gather(gathered, values, group=ranks.group)
    stacked = torch.stack(gathered)
    return (stacked.amax(dim=0) - stacked.amin(dim=0)).max().item()


def checkpoint_path(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"cannot write {text!r}")
    return path


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the digits demo on one or several ranks.")
    parser.add_argument("--method", choices=METHODS, default="FAMO", help="default: FAMO")
    parser.add_argument("--quick", action="store_true", help="4 epochs")
    parser.add_argument("--epochs", type=count, help="default: 30")
    parser.add_argument("--batch-size", type=count, default=BATCH_SIZE, help="of all ranks")
    parser.add_argument("--seed", type=count, default=1, help="default: 1")
    parser.add_argument("--backend", choices=("gloo", "nccl"), default="gloo", help="default: gloo")
    parser.add_argument("--checkpoint", type=checkpoint_path, help="saved each epoch; resumed from")
    parser.add_argument(
        "--verify", action="store_true", help="in float64, and then compare with one process"
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # the ranks share the cores
    ranks = join_ranks(args.backend)

    epochs = args.epochs or (4 if args.quick else 30)
    dtype = torch.float64 if args.verify else torch.float32
    train_pairs, test_pairs = load_pairs(args.seed, ranks.device)
    if args.verify:
        train_pairs, test_pairs = train_pairs.double(), test_pairs.double()
    most = len(train_pairs.image)
    if args.batch_size % ranks.size != 0 or args.batch_size > most:
        fail(f"--batch-size should be a multiple of {ranks.size}, the ranks, and at most {most}")

    training = begin(args.method, args.seed, ranks, dtype)
    settings = {name: getattr(args, name) for name in ("method", "batch_size", "seed")}
    settings["dtype"] = str(dtype)
    behind = 0 if args.checkpoint is None else resume(training, args.checkpoint, settings)
    if behind > epochs:
        fail(f"{args.checkpoint} is further than --epochs {epochs}: {behind} are behind it")
    if behind and ranks.rank == 0:
        print(f"resumed {args.checkpoint} after {behind} epochs")
    with tqdm(
        total=epochs, initial=behind, unit="epoch", mininterval=1, disable=ranks.rank != 0
    ) as bar:

        def on_epoch(epoch: int) -> None:
            weights = training.scalarizer.weights.tolist()
            shown = " ".join(f"{weight:.2g}" for weight in weights)
            bar.set_postfix_str(f"weights {shown}", refresh=False)
            bar.update()
            if args.checkpoint is not None and ranks.rank == 0:
                state = {"settings": settings, "epochs": epoch + 1, "training": training.state()}
                save(state, args.checkpoint)

        train(training, train_pairs, range(behind, epochs), args.batch_size, ranks, on_epoch)

    states = [
        flat_state(module, ranks.device) for module in (training.network, training.scalarizer)
    ]
    spreads = [spread(state, ranks) for state in states]
    if ranks.group is not None:
        gc.collect()  # the DDP model is in a cycle, and keeps the group and its threads
        dist.destroy_process_group()
    if ranks.rank != 0:
        return

    print_metrics(args.method, training.network, test_pairs)
    if args.verify:
        alone = begin(args.method, args.seed, Ranks(ranks.device), dtype)
        train(alone, train_pairs, range(epochs), args.batch_size, Ranks(ranks.device))
        differences = [
            (state - flat_state(module, ranks.device)).abs().max().item()
            for state, module in zip(states, alone[:2], strict=True)
        ]
        table = make_table("\ndifference", " network's\nparameters", " scalarizer's\nstate")
        table.add_row("between any two ranks", *(f"{value:.1e}" for value in spreads))
        table.add_row(f"{ranks.size} ranks - one process", *(f"{one:.1e}" for one in differences))
        CONSOLE.print("", table)


if __name__ == "__main__":
    run_program(main)
