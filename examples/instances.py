"""Training instances as tasks, one loss for each: what comes of it where labels are wrong.

A method's state is then one number or more for each training instance. A batch holds a few of them:
its losses go to their places in a tensor of all, and the mask says which they are. The state must
belong to the instance. Made for the positions in a batch, it belongs to another instance in every
batch, and learns nothing; that is the row `UW by position`.

A small network reads single handwritten digits, 1000 to train on, of which 30 % are given a wrong
label, and then none. Tested on the 797 others, with their right labels.

    python examples/instances.py                          # half a minute on one core
    python examples/instances.py --method UW --wrong 10
    python examples/instances.py --quick

prints:

30 % wrong           % right     mean loss     worst 5 %    worst loss         trust
────────────────────────────────────────────────────────────────────────────────────
plain mean        93.5 ± 0.9   0.55 ± 0.02     2.0 ± 0.1     3.8 ± 0.6 1.000 ± 0.000
UW                96.2 ± 0.4   0.13 ± 0.01     2.2 ± 0.2     6.9 ± 0.9 0.015 ± 0.002
UW by position    93.0 ± 0.6   0.55 ± 0.02     2.0 ± 0.1     4.0 ± 0.8 0.997 ± 0.009
DWA              77.9 ± 29.8   0.85 ± 0.64     2.7 ± 1.4     4.6 ± 1.8 0.588 ± 0.522
FAMO              95.4 ± 0.6   0.15 ± 0.01     2.2 ± 0.2     6.6 ± 1.4 0.012 ± 0.002
FAMO amortized    95.8 ± 0.5   0.15 ± 0.01     2.0 ± 0.1     5.7 ± 1.1 0.021 ± 0.002
FAMO, no floor    76.5 ± 4.6   0.67 ± 0.12     4.1 ± 0.3     7.8 ± 1.4 0.000 ± 0.000

0 % wrong            % right     mean loss     worst 5 %    worst loss         trust
────────────────────────────────────────────────────────────────────────────────────
plain mean        97.0 ± 0.6   0.10 ± 0.01     1.5 ± 0.2     5.4 ± 0.4
UW                97.5 ± 0.3   0.12 ± 0.03     2.3 ± 0.6    12.9 ± 5.1
UW by position    97.4 ± 0.4   0.09 ± 0.02     1.6 ± 0.4     7.3 ± 1.1
DWA               96.2 ± 1.1   0.13 ± 0.02     1.6 ± 0.2     4.7 ± 0.5
FAMO              95.6 ± 0.8   0.14 ± 0.02     2.3 ± 0.4     7.7 ± 2.4
FAMO amortized    96.2 ± 0.8   0.13 ± 0.02     2.1 ± 0.3     7.9 ± 2.6
FAMO, no floor    77.9 ± 3.5   0.66 ± 0.07     4.4 ± 0.2     7.9 ± 1.3

On digits never trained on, mean ± standard deviation over the seeds. trust: the weight of an
instance with a wrong label over that of one with the right label, in the last epoch.

What to take from it:

- Where labels may be wrong, UW and FAMO see it from the losses: a wrong one gets a hundredth of the
  weight. Take FAMO amortized: it then compares an instance with itself, an epoch ago.
- Both need a floor, a size below which a loss does not matter: `eps` for UW, for FAMO a negative
  `min_losses`. Without it what is fitted takes all the weight, and the rest is given up.
- Where no label is wrong, the plain mean is hard to beat. What is hard is then ignored just as what
  was wrong: the worst loss is higher, not lower. None of these is a way to raise the worst case.
- DWA takes the ratio of two losses. That of two epochs' averages is near 1; that of one instance
  has no bound, and a few of them may take all the weight. It is not for instances.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from digits import count, mean_and_std
from rich import box
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from mtl_scalarize import DWA, FAMO, UW, Scalarizer

INSTANCES = 1000
BATCH_SIZE = 100  # divides them, so that every batch has a position for each


class PlainMean(Scalarizer):
    """The baseline: every instance of the batch counts alike."""

    def forward(self, losses: Tensor, mask: Tensor | None = None) -> Tensor:
        present = torch.ones_like(losses) if mask is None else mask.to(losses.dtype)
        weights = present / present.sum()
        self._report(weights)
        return (weights * losses).sum()

    def reset(self) -> None:
        self._weights = None


# An instance whose loss is below this, one read with 95 % certainty, counts as fitted.
FLOOR = 0.05
# FAMO takes the logarithm of what a loss is above its bound.
BOUNDS = torch.full((INSTANCES,), -FLOOR)
METHODS: dict[str, Callable[[], Scalarizer]] = {
    "plain mean": PlainMean,
    "UW": lambda: UW(INSTANCES, eps=FLOOR),
    "UW by position": lambda: UW(BATCH_SIZE, eps=FLOOR),
    "DWA": lambda: DWA(shape=INSTANCES),
    "FAMO": lambda: FAMO(INSTANCES, BOUNDS),
    "FAMO amortized": lambda: FAMO(INSTANCES, BOUNDS, amortized=True),
    "FAMO, no floor": lambda: FAMO(INSTANCES),
}
COLUMNS = ("% right", "mean loss", "worst 5 %", "worst loss", "trust")
DIGITS = (1, 2, 1, 1, 3)  # after the decimal point


class Digits(NamedTuple):
    image: Tensor  # (N, 64), from 0 to 1
    label: Tensor  # (N,), from 0 to 9
    is_wrong: Tensor  # (N,): the label


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


def in_place(losses: Tensor, place: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The losses of a batch at their places among all, and which places these are."""
    mask = torch.zeros(size, dtype=torch.bool).index_fill(0, place, True)
    return losses.new_zeros(size).index_put((place,), losses), mask


def train(method: str, digits: Digits, epochs: int, seed: int) -> tuple[nn.Module, Tensor]:
    """A network trained by `method`, and the weight of each instance in the last epoch."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    scalarizer = METHODS[method]()
    groups = [
        {"params": network.parameters()},
        # Each log-variance is shown its instance once an epoch only: it needs large steps.
        {"params": scalarizer.parameters(), "lr": 0.1, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=2e-3)
    order = torch.Generator().manual_seed(seed)
    weights = torch.zeros(INSTANCES)
    for _ in range(epochs):
        for index in torch.randperm(INSTANCES, generator=order).split(BATCH_SIZE):
            image, label = digits.image[index], digits.label[index]
            by_position = method == "UW by position"
            place = torch.arange(BATCH_SIZE) if by_position else index
            size = BATCH_SIZE if by_position else INSTANCES

            losses = cross_entropy(network(image), label, reduction="none")
            optimizer.zero_grad()
            scalarizer(*in_place(losses, place, size)).backward()
            optimizer.step()
            weights[index] = scalarizer.weights[place]
            if isinstance(scalarizer, FAMO) and not scalarizer.amortized:
                with torch.no_grad():
                    losses = cross_entropy(network(image), label, reduction="none")
                    scalarizer.update(*in_place(losses, place, size))
        if isinstance(scalarizer, DWA):
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


def make_table(methods: Sequence[str], wrong: int, results: Tensor) -> Table:
    table = Table(box=box.SIMPLE, padding=0, show_edge=False)
    for column in (f"{wrong} % wrong", *COLUMNS):
        table.add_column(column, justify="right" if table.columns else "left", min_width=13)
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
    parser.add_argument("--method", choices=METHODS, help="beside the plain mean; default: all")
    parser.add_argument("--quick", action="store_true", help="one seed of 10 epochs")
    parser.add_argument("--epochs", type=count, help="of each training; default: 60")
    parser.add_argument("--seeds", type=count, help="how many; default: 5")
    parser.add_argument("--wrong", type=percentage, help="of the labels; default: 30, then 0")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # as in digits.py
    seeds, epochs = (1, 10) if args.quick else (5, 60)
    seeds, epochs = args.seeds or seeds, args.epochs or epochs
    methods = [name for name in METHODS if args.method in (None, name) or name == "plain mean"]
    shares = (30, 0) if args.wrong is None else (args.wrong,)
    tables = []
    with tqdm(total=len(shares) * seeds * len(methods), unit="training", mininterval=1) as bar:
        for wrong in shares:
            results = compare(methods, wrong / 100, epochs, seeds, bar)
            tables.append(make_table(methods, wrong, results))
    for table in tables:
        Console(width=100).print("", table)


if __name__ == "__main__":
    main()
