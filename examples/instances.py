"""Training instances as tasks, one loss for each, where some labels are wrong.

A method then has state for each training instance. A batch contains a few instances: their losses
go to their places in a tensor of all losses, and the mask marks these places. The state must belong
to the instance. State for the positions in a batch belongs to another instance in every batch, and
learns nothing: see the row `UW by position`.

A small network reads single handwritten digits. It is trained on 1000, of which 30 % have a wrong
label, and then on 1000 without wrong labels; it is tested on the other 797, with right labels.

    python examples/instances.py                          # half a minute on one core
    python examples/instances.py --method UW --wrong 10
    python examples/instances.py --quick

prints:

30 % wrong           % right     mean loss     worst 5 %    worst loss         trust
────────────────────────────────────────────────────────────────────────────────────
Mean              93.5 ± 0.9   0.55 ± 0.02     2.0 ± 0.1     3.8 ± 0.6 1.000 ± 0.000
UW                96.2 ± 0.4   0.13 ± 0.01     2.2 ± 0.2     6.9 ± 0.9 0.015 ± 0.002
UW by position    93.0 ± 0.6   0.55 ± 0.02     2.0 ± 0.1     4.0 ± 0.8 0.997 ± 0.009
DWA              77.8 ± 29.8   0.85 ± 0.64     2.7 ± 1.4     4.6 ± 1.8 0.587 ± 0.522
FAMO              95.4 ± 0.6   0.15 ± 0.01     2.2 ± 0.2     6.6 ± 1.4 0.012 ± 0.002
FAMO, no floor    76.5 ± 4.6   0.67 ± 0.12     4.1 ± 0.3     7.8 ± 1.4 0.000 ± 0.000

0 % wrong            % right     mean loss     worst 5 %    worst loss         trust
────────────────────────────────────────────────────────────────────────────────────
Mean              97.0 ± 0.6   0.10 ± 0.01     1.5 ± 0.2     5.4 ± 0.4
UW                97.5 ± 0.3   0.12 ± 0.03     2.3 ± 0.6    12.9 ± 5.1
UW by position    97.4 ± 0.4   0.09 ± 0.02     1.6 ± 0.4     7.3 ± 1.1
DWA               96.2 ± 1.1   0.13 ± 0.02     1.6 ± 0.2     4.7 ± 0.5
FAMO              95.6 ± 0.8   0.14 ± 0.02     2.3 ± 0.4     7.7 ± 2.4
FAMO, no floor    77.9 ± 3.5   0.66 ± 0.07     4.4 ± 0.2     7.9 ± 1.3

On digits never trained on, mean ± standard deviation over the seeds. trust: the weight of an
instance with a wrong label over that of one with the right label, in the last epoch.

What to take from it:

- Where labels may be wrong, UW and FAMO find the wrong ones by their losses, and give them a
  hundredth of the weight. FAMO looks again after every step here: an instance is seen only once
  an epoch.
- Both need a floor, a size below which a loss does not matter: `eps` for UW, for FAMO a negative
  `min_losses`. Without it the fitted instances take all the weight, and the others are given up.
- Where no label is wrong, the plain mean is hard to beat. UW and FAMO then ignore hard instances as
  they ignore wrong labels: the worst loss is higher, not lower.
- DWA takes the ratio of two losses. The ratio of two epochs' averages is near 1; that of a single
  instance has no bound, and a few instances may take all the weight. DWA is not for instances.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

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
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from mtl_scalarize import DWA, FAMO, UW, Mean, Scalarizer

INSTANCES = 1000
BATCH_SIZE = 100  # divides them, so that every batch has a position for each


# An instance whose loss is below this, one read with 95 % certainty, counts as fitted. FAMO takes
# the logarithm of the distance of a loss to its bound: the bound is then the negative of this.
FLOOR = 0.05
METHODS: dict[str, Callable[[], Scalarizer]] = {
    "Mean": Mean,
    "UW": lambda: UW(INSTANCES, eps=FLOOR),
    "UW by position": lambda: UW(BATCH_SIZE, eps=FLOOR),
    "DWA": lambda: DWA(shape=INSTANCES),
    "FAMO": lambda: FAMO(INSTANCES, -FLOOR),
    "FAMO, no floor": lambda: FAMO(INSTANCES),
}
COLUMNS = ("% right", "mean loss", "worst 5 %", "worst loss", "trust")
DIGITS = (1, 2, 1, 1, 3)  # after the decimal point


class Digits(NamedTuple):
    image: Tensor  # (N, 64), from 0 to 1
    label: Tensor  # (N,), from 0 to 9
    is_wrong: Tensor  # (N,): whether the label is


def load(seed: int, wrong: float) -> tuple[Digits, Digits]:
    """Digits to train on, with so large a share of wrong labels, and digits to test on."""
    generator = torch.Generator().manual_seed(seed)
    digits = load_digits()
    images = torch.as_tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.as_tensor(digits.target)
    train, test = torch.randperm(len(images), generator=generator).tensor_split([INSTANCES])
    is_wrong = torch.rand(INSTANCES, generator=generator) < wrong
    other = torch.randint(1, 10, (INSTANCES,), generator=generator)
    given = torch.where(is_wrong, (labels[train] + other) % 10, labels[train])
    right = torch.zeros(len(test), dtype=torch.bool)
    return Digits(images[train], given, is_wrong), Digits(images[test], labels[test], right)


def train(method: str, digits: Digits, epochs: int, seed: int) -> tuple[nn.Module, Tensor]:
    """A network trained by `method`, and the weight of each instance in the last epoch."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    scalarizer = METHODS[method]()
    groups = [
        {"params": network.parameters()},
        # Each log-variance sees its instance only once an epoch: it needs large steps.
        {"params": scalarizer.parameters(), "lr": 0.1, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=2e-3)
    by_position = method == "UW by position"
    size = BATCH_SIZE if by_position else INSTANCES

    def losses_of(index: Tensor, place: Tensor) -> Tensor:
        losses = cross_entropy(network(digits.image[index]), digits.label[index], reduction="none")
        return losses.new_zeros(size).index_put((place,), losses)

    order = torch.Generator().manual_seed(seed)
    weights = torch.zeros(INSTANCES)
    for _ in range(epochs):
        for index in torch.randperm(INSTANCES, generator=order).split(BATCH_SIZE):
            place = torch.arange(BATCH_SIZE) if by_position else index
            mask = torch.zeros(size, dtype=torch.bool).index_fill(0, place, True)
            optimizer.zero_grad()
            scalarizer(losses_of(index, place), mask).backward()
            weights[index] = scalarizer.weights[place]
            optimizer.step()
            # After every step: after every tenth, an instance would be looked at every ten epochs.
            scalarizer.update(partial(losses_of, index, place))
        scalarizer.step()
    return network, weights


@torch.no_grad()
def evaluate(network: nn.Module, digits: Digits) -> Tensor:
    """Per cent right, and the loss: its mean, that of the worst twentieth, and the worst."""
    logits = network(digits.image)
    losses = cross_entropy(logits, digits.label, reduction="none").sort(descending=True).values
    right = 100 * (logits.argmax(dim=-1) == digits.label).float().mean()
    return torch.stack([right, losses.mean(), losses[: len(losses) // 20].mean(), losses[0]])


def compare(methods: Sequence[str], wrong: float, epochs: int, seeds: int, bar: tqdm) -> Tensor:
    """(methods, seeds, 5), in the order of COLUMNS."""
    results = torch.zeros(len(methods), seeds, len(COLUMNS))
    for seed in range(seeds):
        train_digits, test_digits = load(seed, wrong)
        for row, method in enumerate(methods):
            network, weights = train(method, train_digits, epochs, seed)
            trust = weights[train_digits.is_wrong].mean() / weights[~train_digits.is_wrong].mean()
            results[row, seed] = torch.cat([evaluate(network, test_digits), trust.reshape(1)])
            bar.update()
    return results


def table_of(methods: Sequence[str], wrong: int, results: Tensor) -> Table:
    table = make_table(f"{wrong} % wrong", *COLUMNS, min_width=13)
    for method, values in zip(methods, results, strict=True):
        cells = [mean_and_std(*column) for column in zip(values.T, DIGITS, strict=True)]
        table.add_row(method, *(cell for cell in cells if "nan" not in cell))
    return table


def percentage(text: str) -> int:
    if not text.isdecimal() or int(text) > 100:
        raise argparse.ArgumentTypeError(f"expected an integer from 0 to 100, found {text!r}")
    return int(text)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Weigh the instances of a classification.")
    add_method_flag(parser, list(METHODS))
    parser.add_argument("--quick", action="store_true", help="one seed of 10 epochs")
    parser.add_argument("--epochs", type=count, help="of each training; default: 60")
    parser.add_argument("--seeds", type=count, help="how many; default: 5")
    parser.add_argument("--wrong", type=percentage, help="of the labels; default: 30, then 0")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # as in digits.py
    seeds, epochs = (1, 10) if args.quick else (5, 60)
    seeds, epochs = args.seeds or seeds, args.epochs or epochs
    methods = chosen(list(METHODS), args)
    shares = (30, 0) if args.wrong is None else (args.wrong,)
    tables = []
    try:
        total = len(shares) * seeds * len(methods)
        with tqdm(total=total, unit="training", mininterval=1) as bar:
            for wrong in shares:
                results = compare(methods, wrong / 100, epochs, seeds, bar)
                tables.append(table_of(methods, wrong, results))
    finally:  # also of the share before Ctrl-C
        for table in tables:
            CONSOLE.print("", table)
    if args.quick:
        print(f"\n{TOO_SHORT}")


if __name__ == "__main__":
    run_program(main)
