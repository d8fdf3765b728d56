"""Detection: most of the batches lack all tasks but one.

A detector learns in every batch whether there is an object, and only from objects what they are
like. In a batch without any object, the first task is alone. What does a method do with it then?

Here the data are made up: eight features, an object in about three of ten samples, and six numbers
that describe it. A batch has two samples, and every second batch no object.

    python examples/detection.py                    # three minutes on one core
    python examples/detection.py --method FAMO UW
    python examples/detection.py --quick

prints:

method                   object           parts                   alone        together
───────────────────────────────────────────────────────────────────────────────────────
Sum                 0.29 ± 0.01     0.32 ± 0.01             1.00 ± 0.00     1.00 ± 0.00
Constant, 1/7       0.29 ± 0.01     0.32 ± 0.01             0.14 ± 0.00     0.14 ± 0.00
UW                  0.29 ± 0.01     0.32 ± 0.01             1.67 ± 0.04     1.66 ± 0.04
Mean                0.41 ± 0.02     0.34 ± 0.03             1.00 ± 0.00     0.14 ± 0.00
FAMO                0.32 ± 0.01     0.55 ± 0.08             1.00 ± 0.00     0.36 ± 0.05
FAMO, floor         0.37 ± 0.02     0.47 ± 0.04             1.00 ± 0.00     0.35 ± 0.04
LogSum              6.99 ± 0.01     1.37 ± 0.66                   9e+07     0.15 ± 0.01
LogSum, floor       0.44 ± 0.01     0.45 ± 0.03             7.19 ± 0.08     4.85 ± 0.26

object: binary cross entropy on new samples; parts: mean squared error on new objects. alone and
together: the mean weight of the task `object` in batches without and with objects. Mean ± standard
deviation over the seeds.

What to take from it:

- Mean and FAMO give the tasks of a batch weights that sum to 1: a lone task weighs 1, and beside
  the six others it weighs a part of that. The batches without objects count for more, and the
  network sees too few objects. `Constant` with 1/7 is the mean without this effect.
- A batch without objects is easy, and its loss close to 0, where the weight of LogSum has no bound:
  a single step may ruin the network. A floor helps, but the easy batches still weigh more.
- UW, Constant and Sum weigh a task alike in all batches. Take one of them for such data, or make
  batches so large that each has an object.
"""

import argparse
from collections.abc import Callable, Sequence

import torch
from digits import (
    CONSOLE,
    TOO_SHORT,
    add_method_flag,
    chosen,
    count,
    make_table,
    mean_and_std,
    run_program,
)
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from tqdm import tqdm

from mtl_scalarize import FAMO, UW, Constant, LogSum, Mean, Scalarizer, Sum

FEATURES, PARTS = 8, 6
TASKS = ["object", *(f"part {number}" for number in range(1, PARTS + 1))]
SAMPLES, BATCH_SIZE = 4000, 2
FLOOR = 0.1
METHODS: dict[str, Callable[[], Scalarizer]] = {
    "Sum": lambda: Sum(TASKS),
    "Constant, 1/7": lambda: Constant(dict.fromkeys(TASKS, 1 / len(TASKS))),
    "UW": lambda: UW(TASKS),
    "Mean": lambda: Mean(TASKS),
    "FAMO": lambda: FAMO(TASKS),
    "FAMO, floor": lambda: FAMO(TASKS, -FLOOR),
    "LogSum": lambda: LogSum(shape=TASKS),
    "LogSum, floor": lambda: LogSum(-FLOOR, shape=TASKS),
}
COLUMNS = ("object", "parts", "alone", "together")

Samples = tuple[Tensor, Tensor, Tensor]


def draw(number: int, generator: torch.Generator) -> Samples:
    """Features, whether there is an object, and its parts."""
    features = torch.randn(number, FEATURES, generator=generator)
    noise = 0.5 * torch.randn(number, generator=generator)
    mixing = torch.randn(FEATURES, PARTS, generator=torch.Generator().manual_seed(0))
    return features, features[:, 0] + noise > 0.6, torch.sin(features @ mixing)


def losses_of(network: nn.Module, samples: Samples) -> dict[str, Tensor]:
    """Those of the parts only if there is an object."""
    features, is_object, parts = samples
    outputs = network(features)
    losses = [binary_cross_entropy_with_logits(outputs[:, 0], is_object.float())]
    if is_object.any():
        losses += (outputs[is_object, 1:] - parts[is_object]).square().mean(dim=0)
    return dict(zip(TASKS, losses, strict=False))


def train(method: str, epochs: int, seed: int) -> Tensor:
    """The results of one training, in the order of COLUMNS."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, len(TASKS)))
    scalarizer = METHODS[method]()
    groups = [
        {"params": network.parameters()},
        {"params": scalarizer.parameters(), "lr": 0.01, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.Adam(groups, lr=3e-3)
    samples = draw(SAMPLES, generator)
    weights: dict[bool, list[Tensor]] = {True: [], False: []}
    for _ in range(epochs):
        order = torch.randperm(SAMPLES, generator=generator).split(BATCH_SIZE)
        for step, index in enumerate(order):
            batch = samples[0][index], samples[1][index], samples[2][index]
            losses = losses_of(network, batch)
            optimizer.zero_grad()
            scalarizer(losses).backward()
            weights[len(losses) == 1].append(scalarizer.weights[0])
            optimizer.step()
            if step % 10 == 0:
                scalarizer.update(lambda batch=batch: losses_of(network, batch))
        scalarizer.step()
    with torch.no_grad():
        first, *others = losses_of(network, draw(20_000, generator)).values()
    means = [torch.stack(weights[alone]).mean() for alone in (True, False)]
    return torch.stack([first, torch.stack(others).mean(), *means])


def cell(values: Tensor) -> str:
    return f"{values.mean():.0e}" if values.mean() > 1000 else mean_and_std(values, 2)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train where most batches lack most tasks.")
    add_method_flag(parser, list(METHODS))
    parser.add_argument("--quick", action="store_true", help="one seed of one epoch")
    parser.add_argument("--epochs", type=count, help="of each training; default: 5")
    parser.add_argument("--seeds", type=count, help="how many; default: 3")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # as in digits.py
    seeds, epochs = (1, 1) if args.quick else (3, 5)
    seeds, epochs = args.seeds or seeds, args.epochs or epochs
    table = make_table("method", *COLUMNS, min_width=14)
    try:
        with tqdm(total=seeds * len(chosen(list(METHODS), args)), unit="training") as bar:
            for method in chosen(list(METHODS), args):
                results = []
                for seed in range(seeds):
                    results.append(train(method, epochs, seed))
                    bar.update()
                columns = torch.stack(results).T
                table.add_row(method, *map(cell, columns))
    finally:  # also of the methods before Ctrl-C
        if table.row_count:
            CONSOLE.print("", table)
    if args.quick:
        print(f"\n{TOO_SHORT}")


if __name__ == "__main__":
    run_program(main)
