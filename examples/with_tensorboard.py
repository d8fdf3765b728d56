"""The digits demo with its losses and task weights as TensorBoard scalars.

    python examples/with_tensorboard.py                        # every method; half a minute
    tensorboard --logdir runs/tensorboard                      # then open localhost:6006
    python examples/with_tensorboard.py --method FAMO --every 1 --dir every-step
    python examples/with_tensorboard.py --quick --dir quick

Each method is a run of its own, so that TensorBoard draws them over one another: `loss/...` and
`weight/...` of each task, every tenth step, and `metric/...` on digits never trained on, every
epoch. The scale of the weights is the method's: UW's and IMTL-L's grow as the losses fall, DWA's
sum to 4 and FAMO's to 1. Compare their ratios, and switch the axis to logarithmic.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial

import torch
from digits import (
    BATCH_SIZE,
    METHODS,
    TASKS,
    TOO_SHORT,
    Network,
    Pairs,
    count,
    evaluate,
    load_pairs,
    make_optimizer,
    run_program,
    task_losses,
    writable_directory,
)
from torch import Tensor
from tqdm import tqdm

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError:
    sys.exit("with_tensorboard.py: error: needs tensorboard: pip install tensorboard")


def add_scalars(writer: SummaryWriter, group: str, values: Tensor, step: int) -> None:
    """One curve a task. The writer's own method of this name would open a run for each."""
    for task, value in zip(TASKS, values.tolist(), strict=True):
        writer.add_scalar(f"{group}/{task.name}", value, step)


def train(
    method: str,
    pairs: tuple[Pairs, Pairs],
    epochs: int,
    seed: int,
    writer: SummaryWriter,
    every: int,
) -> None:
    train_pairs, test_pairs = pairs
    torch.manual_seed(seed)
    network = Network()
    scalarizer = METHODS[method](len(TASKS))
    optimizer = make_optimizer(network, scalarizer)

    def losses_of(batch: Pairs) -> Tensor:
        return task_losses(network(batch.image), batch)

    order = torch.Generator().manual_seed(seed)
    step = 0
    for _ in tqdm(range(epochs), desc=method, unit="epoch"):
        for places in torch.randperm(len(train_pairs.image), generator=order).split(BATCH_SIZE):
            batch = train_pairs.take(places)
            losses = losses_of(batch)
            optimizer.zero_grad()
            scalarizer(losses).backward()
            if step % every == 0:  # before the optimizer's step, which changes the weights
                add_scalars(writer, "loss", losses, step)
                add_scalars(writer, "weight", scalarizer.weights, step)
            optimizer.step()
            if step % 10 == 0:
                scalarizer.update(partial(losses_of, batch))
            step += 1
        scalarizer.step()
        add_scalars(writer, "metric", evaluate(network, test_pairs), step)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Record the digits demo for TensorBoard.")
    parser.add_argument("--method", choices=METHODS, help="default: each in turn")
    parser.add_argument("--quick", action="store_true", help="3 epochs")
    parser.add_argument("--epochs", type=count, help="default: 30")
    parser.add_argument("--every", type=count, default=10, help="steps; default: 10")
    parser.add_argument("--seed", type=count, default=1, help="default: 1")
    parser.add_argument(
        "--dir",
        type=writable_directory,
        default="runs/tensorboard",
        help="default: runs/tensorboard",
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # as in digits.py
    methods = list(METHODS) if args.method is None else [args.method]
    for method in methods:
        if (args.dir / method).exists():  # TensorBoard would join the curves of old and new
            parser.error(f"{args.dir / method} is there already: remove it, or give another --dir")
    pairs = load_pairs(args.seed)
    for method in methods:
        with SummaryWriter(args.dir / method) as writer:
            epochs = args.epochs or (3 if args.quick else 30)
            train(method, pairs, epochs, args.seed, writer, args.every)
    if args.quick:
        print(TOO_SHORT)
    print(f"tensorboard --logdir {args.dir}")


if __name__ == "__main__":
    run_program(main)
