"""Four tasks, one network, real data: how each method that weighs the losses changes each task.

Two of scikit-learn's handwritten digits are drawn into one image, overlapping, as in MultiMNIST.
From it one network predicts the left digit, the right digit and their sum, and redraws the left
digit. The losses are two cross entropies of about 2, a squared error of about 100 and one of about
0.2. The network is trained with the sum of the losses, with constant weights, the inverse of
these sizes, and with each other method of mtl_scalarize: same data, same initial weights, same
order of batches, same optimizer. (The mean is not there: AdamW steps by it as by the sum.)

    python examples/digits.py                  # about four minutes on one core
    python examples/digits.py --method FAMO    # beside Sum, one method or several
    python examples/digits.py --method FAMO --update-every 1    # FAMO looks again after every step
    python examples/digits.py --quick          # a few seconds, to see that it runs

draws the picture `digits.png` and prints:

              left digit right digit         sum  redrawing         all
method           % right     % right  abs. error MSE x 1000  delta-m, % seconds
───────────────────────────────────────────────────────────────────────────────
Sum           94.8 ± 0.9  94.3 ± 1.4 1.43 ± 0.11 29.3 ± 0.7   0.0 ± 0.0     7.7
Constant      95.6 ± 0.6  95.3 ± 1.3 1.67 ± 0.12 11.4 ± 0.2 -11.5 ± 2.0     7.2
LogSum        96.1 ± 1.8  95.1 ± 1.6 1.78 ± 0.09 16.3 ± 0.3  -5.2 ± 3.4     7.1
GeometricMean 96.3 ± 0.6  95.2 ± 1.7 1.84 ± 0.10 14.1 ± 0.5  -6.3 ± 2.4     7.1
Random        93.8 ± 0.9  93.4 ± 1.5 1.57 ± 0.04 33.8 ± 1.5   6.9 ± 2.1     7.4
STCH          96.1 ± 0.4  95.3 ± 1.1 1.72 ± 0.12 11.1 ± 0.4 -11.0 ± 1.6     7.7
UW            95.8 ± 0.9  95.1 ± 1.8 1.70 ± 0.10 17.2 ± 0.9  -5.9 ± 1.6     6.5
IMTLL         95.3 ± 0.4  95.0 ± 1.7 1.73 ± 0.05 17.4 ± 1.2  -5.0 ± 2.8     5.8
DWA           94.7 ± 1.0  94.5 ± 1.1 1.44 ± 0.11 29.0 ± 0.7  -0.2 ± 0.6     5.7
ReLoBRaLo     95.2 ± 0.7  94.5 ± 1.1 1.47 ± 0.14 29.7 ± 1.8   0.9 ± 2.8     6.5
FAMO          95.8 ± 0.5  95.5 ± 1.2 1.55 ± 0.16 11.6 ± 0.5 -13.6 ± 2.5     5.6

On digits never trained on, mean ± standard deviation over the seeds.
delta-m: average relative change of the four metrics against Sum;
negative is better. seconds: of one training, the fastest of the seeds.
"""

import argparse
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from rich import box
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, l1_loss, mse_loss
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from mtl_scalarize import (
    DWA,
    FAMO,
    IMTLL,
    STCH,
    UW,
    Constant,
    GeometricMean,
    LogSum,
    Random,
    ReLoBRaLo,
    Scalarizer,
    Sum,
)

SHIFT = 3  # of the right digit, in pixels, to the right and down: 5 x 5 of its 8 x 8 overlap
SIZE = 8 + SHIFT
BATCH_SIZE = 200
LEARNING_RATE = 2e-3

CONSOLE = Console(width=110)
picture_style = matplotlib.rc_context(
    {
        "font.size": 14,
        "lines.linewidth": 2.5,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "axes.spines.right": False,
        "axes.spines.top": False,
        # Room around titles and labels.
        "savefig.bbox": "tight",
        "savefig.pad_inches": 0.25,
    }
)
# The side of the baseline that is better, in every panel alike.
BETTER = "#d3e6f5"
TOO_SHORT = "quick run: too short to compare methods"


class Task(NamedTuple):
    name: str
    metric: str  # on the test set
    sign: int  # 1 where more is better, -1 where less is
    digits: int  # after the decimal point
    colour: str


TASKS = (
    Task("left digit", "left digit\n% right", 1, 1, "#0072b2"),
    Task("right digit", "right digit\n% right", 1, 1, "#009e73"),
    Task("sum of the digits", "sum\nabs. error", -1, 2, "#d55e00"),
    Task("redrawing the left digit", "redrawing\nMSE x 1000", -1, 1, "#aa3377"),
)
ALL = Task("all", "all\ndelta-m, %", -1, 1, "#444444")


# The inverse of how large each loss is before training.
INVERSE_SIZES = torch.tensor([0.5, 0.5, 0.01, 5.0])

# Each is called with the number of tasks. "Constant" and "STCH" are for the four tasks above.
METHODS: dict[str, Callable[..., Scalarizer]] = {
    "Sum": Sum,
    "Constant": lambda tasks: Constant(INVERSE_SIZES),
    "LogSum": lambda tasks: LogSum(shape=tasks),
    "GeometricMean": GeometricMean,
    "Random": Random,
    "STCH": lambda tasks: STCH(0.1, INVERSE_SIZES),
    "UW": UW,
    "IMTLL": IMTLL,
    "DWA": lambda tasks: DWA(shape=tasks),
    "ReLoBRaLo": ReLoBRaLo,
    "FAMO": FAMO,
}


class Pairs(NamedTuple):
    """N images of two digits, and the targets of each task."""

    image: Tensor  # (N, SIZE, SIZE), from 0 to 1
    left: Tensor  # (N,), from 0 to 9
    right: Tensor  # (N,), from 0 to 9
    total: Tensor  # (N,), from 0 to 18
    drawing: Tensor  # (N, 8, 8), from 0 to 1: the left digit alone

    def take(self, index: Tensor) -> "Pairs":
        return Pairs(*(values[index] for values in self))

    def double(self) -> "Pairs":
        return Pairs(*(v.double() if v.is_floating_point() else v for v in self))


class Outputs(NamedTuple):
    """The network's predictions for N images."""

    left: Tensor  # (N, 10) logits
    right: Tensor  # (N, 10) logits
    total: Tensor  # (N,)
    drawing: Tensor  # (N, 8, 8)


def load_pairs(
    seed: int, device: torch.device | str = "cpu", train_size: int = 8000, test_size: int = 2000
) -> tuple[Pairs, Pairs]:
    """Pairs to train on and pairs to test on; no handwritten digit is in both sets."""
    train, test = load_parts(seed, device, {1400: train_size, 397: test_size})
    return train, test


def load_parts(seed: int, device: torch.device | str, sizes: Mapping[int, int]) -> list[Pairs]:
    """Pairs drawn from so many digits of their own each, 1,797 in all."""
    generator = torch.Generator().manual_seed(seed)
    digits = load_digits()
    images = torch.as_tensor(digits.images, dtype=torch.float32) / 16
    labels = torch.as_tensor(digits.target)

    def draw(pool: Tensor, size: int) -> Pairs:
        left, right = pool[torch.randint(len(pool), (2, size), generator=generator)]
        canvas = torch.zeros(2, size, SIZE, SIZE)
        canvas[0, :, :8, :8] = images[left]
        canvas[1, :, SHIFT:, SHIFT:] = images[right]
        total = (labels[left] + labels[right]).float()
        pairs = Pairs(canvas.amax(dim=0), labels[left], labels[right], total, images[left])
        return Pairs(*(values.to(device) for values in pairs))

    pools = torch.randperm(len(images), generator=generator).split([*sizes])
    return [draw(pool, size) for pool, size in zip(pools, sizes.values(), strict=True)]


class Network(nn.Module):
    """A body that all tasks share, and a linear head for each, all four in one matrix."""

    def __init__(self, width: int = 192) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Flatten(),
            nn.Linear(SIZE * SIZE, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
        )
        self.heads = nn.Linear(width, 10 + 10 + 1 + 8 * 8)

    def forward(self, image: Tensor) -> Outputs:
        heads = self.heads(self.body(image))
        left, right, total, drawing = torch.split(heads, [10, 10, 1, 8 * 8], dim=-1)
        return Outputs(left, right, total.squeeze(-1), drawing.reshape(-1, 8, 8))


def task_losses(outputs: Outputs, pairs: Pairs) -> Tensor:
    """The four losses, shape (4,), none of them rescaled."""
    return torch.stack(
        [
            cross_entropy(outputs.left, pairs.left),
            cross_entropy(outputs.right, pairs.right),
            mse_loss(outputs.total, pairs.total),
            mse_loss(outputs.drawing, pairs.drawing),
        ]
    )


def make_optimizer(network: nn.Module, scalarizer: Scalarizer) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = [
        {"params": network.parameters()},
        # UW's and IMTL-L's parameters; the other methods have none. They are logarithms that have
        # to travel several units: at the network's learning rate Adam would need thousands of
        # steps. Weight decay would pull the task weights back towards equality.
        {"params": scalarizer.parameters(), "lr": 1e-2, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE)


def make_schedule(optimizer: torch.optim.Optimizer, steps: int) -> LambdaLR:
    """For longer programs than this one: the network's learning rate falls to 0 along a cosine."""

    def cosine(step: int) -> float:
        return (1 + math.cos(math.pi * step / steps)) / 2

    # The second group keeps its rate: without one, its parameters would stand still.
    return LambdaLR(optimizer, [cosine, lambda step: 1.0])


@torch.no_grad()
def evaluate(network: Callable[[Tensor], Outputs], pairs: Pairs) -> Tensor:
    """The four metrics, shape (4,), in the units of TASKS."""
    outputs = network(pairs.image)
    return torch.stack(
        [
            100 * (outputs.left.argmax(dim=-1) == pairs.left).float().mean(),
            100 * (outputs.right.argmax(dim=-1) == pairs.right).float().mean(),
            l1_loss(outputs.total, pairs.total),
            1000 * mse_loss(outputs.drawing, pairs.drawing),
        ]
    )


def train(
    method: str,
    pairs: Pairs,
    epochs: int,
    seed: int,
    on_epoch: Callable[[], Any] = lambda: None,
    update_every: int = 10,
) -> tuple[Network, Tensor]:
    """A network trained by `method`, and the task weights, averaged over an epoch: (epochs, 4)."""
    device = pairs.image.device
    torch.manual_seed(seed)
    network = Network().to(device)
    scalarizer = METHODS[method](len(TASKS)).to(device)
    optimizer = make_optimizer(network, scalarizer)

    def losses_of(batch: Pairs) -> Tensor:
        return task_losses(network(batch.image), batch)

    order = torch.Generator().manual_seed(seed)
    history = torch.zeros(epochs, len(TASKS), device=device)
    for epoch in range(epochs):
        shuffled = torch.randperm(len(pairs.image), generator=order).to(device)
        batches = torch.split(shuffled, BATCH_SIZE)
        for index, places in enumerate(batches):
            batch = pairs.take(places)
            optimizer.zero_grad()
            scalarizer(losses_of(batch)).backward()
            history[epoch] += scalarizer.weights / len(batches)  # before the step changes them
            optimizer.step()
            if index % update_every == 0:
                scalarizer.update(partial(losses_of, batch))  # only FAMO calls it
        scalarizer.step()  # only DWA does something here
        on_epoch()
    return network, history


def delta_m(metrics: Tensor, baseline: Tensor) -> Tensor:
    """The average relative change of the metrics in %; negative is better than the baseline."""
    signs = torch.tensor([task.sign for task in TASKS])
    return (-100 * signs * (metrics - baseline) / baseline).mean(dim=-1)


class Results(NamedTuple):
    """Of each method."""

    methods: Sequence[str]  # Sum first
    metrics: Tensor  # (methods, seeds, 5): of each task, and delta-m
    shares: Tensor  # (methods, epochs, 4): the task weights over their sum, mean over the seeds
    seconds: Tensor  # (methods,): of one training, the fastest of the seeds


def compare(
    methods: Sequence[str], epochs: int, seeds: int, device: torch.device, update_every: int
) -> Iterator[Results]:
    """Train with every method, and yield after each seed what is known by then.

    A seed stands for one split, its pairs, initial weights, order.
    """
    metrics = torch.zeros(len(methods), seeds, len(TASKS))
    weights = torch.zeros(len(methods), seeds, epochs, len(TASKS))
    seconds = torch.zeros(len(methods), seeds)
    with tqdm(total=len(methods) * seeds * epochs, unit="epoch", mininterval=1) as bar:
        for seed in range(seeds):
            train_pairs, test_pairs = load_pairs(seed, device)
            for row, method in enumerate(methods):
                bar.set_description(f"{method}, seed {seed}", refresh=False)
                start = time.perf_counter()
                network, history = train(
                    method, train_pairs, epochs, seed, bar.update, update_every
                )
                weights[row, seed] = history.cpu()  # waits for the device
                seconds[row, seed] = time.perf_counter() - start
                metrics[row, seed] = evaluate(network, test_pairs).cpu()
            yield results_of(
                methods, *(values[:, : seed + 1] for values in (metrics, weights, seconds))
            )


def results_of(
    methods: Sequence[str], metrics: Tensor, weights: Tensor, seconds: Tensor
) -> Results:
    """Of metrics (methods, seeds, 4), weights (methods, seeds, epochs, 4), seconds."""
    delta = delta_m(metrics, metrics[0]).unsqueeze(-1)
    shares = weights / weights.sum(dim=-1, keepdim=True)
    metrics = torch.cat([metrics, delta], dim=-1)
    return Results(methods, metrics, shares.mean(dim=1), seconds.amin(dim=1))


def mean_and_std(values: Tensor, digits: int) -> str:
    mean = f"{values.mean():.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {values.std():.{digits}f}"


def make_table(*columns: str, left: int = 1, gap: int = 0, **options: Any) -> Table:
    """An empty table: so many columns flush left, the others flush right."""
    table = Table(box=box.SIMPLE, padding=(0, gap, 0, 0), show_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right", **options)
    return table


def print_metrics(method: str, network: nn.Module, pairs: Pairs) -> None:
    """A table of one row: the metrics of a trained network."""
    table = make_table("\nmethod", *(task.metric for task in TASKS))
    metrics = zip(evaluate(network, pairs).tolist(), TASKS, strict=True)
    table.add_row(method, *(f"{value:.{task.digits}f}" for value, task in metrics))
    CONSOLE.print("", table)


def print_table(results: Results) -> None:
    table = make_table("\nmethod", *(task.metric for task in (*TASKS, ALL)), "\nseconds")
    for method, metrics, _, seconds in zip(*results, strict=True):
        columns = zip(metrics.T, (*TASKS, ALL), strict=True)
        cells = [mean_and_std(values, task.digits) for values, task in columns]
        table.add_row(method, *cells, f"{seconds:.1f}")
    CONSOLE.print(table)
    print("\nOn digits never trained on, mean ± standard deviation over the seeds.")
    print("delta-m: average relative change of the four metrics against Sum;")
    print("negative is better. seconds: of one training, the fastest of the seeds.")


@picture_style
def draw_picture(results: Results, path: Path, quick: bool) -> None:
    """Above, the shares of the task weights in training; below, the metrics after it.

    A picture of two methods beside the baseline is narrow enough for a phone.
    """
    others = list(zip(results.methods, results.shares, strict=True))[1:]
    narrow = len(others) <= 2
    figure = Figure(figsize=(6.6, 11.5) if narrow else (18, 15.5), layout="constrained")
    above, below = figure.subfigures(
        2, 1, squeeze=False, hspace=0.06, height_ratios=[4, 6] if narrow else [4, 5]
    )[:, 0]

    above.suptitle(
        "How each method shares out its weights in training",
        size=16 if narrow else 18,
        weight="bold",
    )
    rows = math.ceil(len(others) / 6)
    grid = above.subplots(rows, math.ceil(len(others) / rows), sharey=True, squeeze=False)
    panels = list(grid.flat)
    for axes in panels[len(others) :]:
        axes.remove()
    for axes, (method, shares) in zip(panels, others, strict=False):
        axes.axhline(1 / len(TASKS), color="black", linewidth=1, linestyle="--", label="Sum")
        for task, share in zip(TASKS, shares.T, strict=True):
            axes.plot(range(1, len(share) + 1), share, ".-", color=task.colour, label=task.name)
        axes.set(title=method, xlabel="epoch", yscale="log", ylim=(3e-4, 1.3))
        axes.xaxis.get_major_locator().set_params(integer=True)
    above.supylabel("share of the weights", size=14)
    panels[0].yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    handles, labels = panels[0].get_legend_handles_labels()
    above.legend(handles, labels, loc="outside lower center", ncols=2 if narrow else 5)

    title = TOO_SHORT if quick else "Results on digits never trained on"
    below.suptitle(title, size=16 if narrow else 18, weight="bold")
    metrics = TASKS if narrow else (*TASKS, ALL)
    grid = below.subplots(2 if narrow else 1, 2 if narrow else 5, sharey=True, squeeze=False)
    for k, (axes, task) in enumerate(zip(grid.flat, metrics, strict=True)):
        draw_metric(axes, results.metrics[:, :, k], task)
    axes = grid[0, 0]
    axes.set_yticks(range(len(results.methods)), results.methods)
    axes.set_ylim(len(results.methods) - 0.5, -0.8)
    better = Patch(color=BETTER, label="better than Sum")
    below.legend(handles=[better], loc="outside lower center")
    figure.savefig(path, dpi=80 if narrow else 100)


def draw_metric(axes: Axes, values: Tensor, task: Task) -> None:
    """One metric of all methods: a small dot for each seed, and a large one for their mean."""
    means = values.mean(dim=1)
    axes.axvline(means[0].item(), color="black", linewidth=1, linestyle="--", zorder=1)
    axes.plot(values, range(len(values)), "o", color=task.colour, alpha=0.3)
    axes.plot(means, range(len(means)), "o", color=task.colour, markersize=13)
    for row, mean in enumerate(means.tolist()):
        text = f"{mean:.{task.digits}f}"
        label = axes.annotate(
            text, (mean, row), (0, 11), textcoords="offset points", ha="center", zorder=1.5
        )
        label.set_bbox({"color": "white", "alpha": 0.8, "pad": 1, "linewidth": 0})
    axes.set_title(task.metric, color=task.colour, weight="bold")
    axes.set_xlabel("more is better →" if task.sign > 0 else "← less is better")
    axes.margins(x=0.12)
    left, right = axes.get_xlim()
    axes.axvspan(means[0].item(), right if task.sign > 0 else left, color=BETTER, zorder=0)
    axes.set_xlim(left, right)  # which the shade has widened


def add_method_flag(parser: argparse.ArgumentParser, methods: Sequence[str]) -> None:
    parser.add_argument(
        "--method", nargs="+", choices=methods, help=f"beside the {methods[0]}; default: all"
    )


def add_update_every_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--update-every",
        type=count,
        default=10,
        metavar="N",
        help="steps from one of FAMO's second looks to the next; default: 10",
    )


def chosen(methods: Sequence[str], args: argparse.Namespace) -> list[str]:
    """The first, which is the baseline, and those of `--method`."""
    first, *others = methods
    return [first, *(name for name in others if args.method is None or name in args.method)]


def run_program(main: Callable[[], None]) -> None:
    """Run a program. Ctrl-C ends it with one line, after what its `finally` prints."""
    try:
        main()
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"expected an integer from 1 to 10000, found {text!r}")
    return int(text)


def positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text!r}")
    return number


def available_device(text: str) -> torch.device:
    try:
        torch.zeros(1, device=text).item()
    except (AssertionError, ImportError, RuntimeError) as error:
        raise argparse.ArgumentTypeError(f"no device {text!r} on this machine") from error
    return torch.device(text)


def writable_directory(text: str) -> Path:
    path = Path(text)
    try:
        path.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=path).close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot write to {text!r}: {error.strerror}") from error
    return path


def picture_path(text: str) -> Path:
    path = Path(text)
    if path.suffix not in {".pdf", ".png", ".svg"}:
        raise argparse.ArgumentTypeError(f"expected a .png, .pdf or .svg file, found {text!r}")
    try:
        is_new = not path.exists()
        path.open("ab").close()
        if is_new:
            path.unlink()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot write {text!r}: {error.strerror}") from error
    return path


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Compare the methods of mtl_scalarize on digits.")
    add_method_flag(parser, list(METHODS))
    add_update_every_flag(parser)
    parser.add_argument("--quick", action="store_true", help="2 seeds of 3 epochs")
    parser.add_argument("--epochs", type=count, help="of each training; default: 30")
    parser.add_argument("--seeds", type=count, help="how many; default: 5")
    parser.add_argument("--device", type=available_device, default="cpu", help="default: cpu")
    parser.add_argument("--out", type=picture_path, default="digits.png", help="the picture's path")
    args = parser.parse_args(argv)
    seeds, epochs = (2, 3) if args.quick else (5, 30)
    # On so small a network a second thread gains little, and loses a lot where it has to share its
    # core. One gives the same numbers on any number of cores.
    torch.set_num_threads(1)
    methods = chosen(list(METHODS), args)
    seeds, epochs = args.seeds or seeds, args.epochs or epochs
    results = None
    try:
        for finished in compare(methods, epochs, seeds, args.device, args.update_every):
            results = finished
    finally:  # also of the seeds before Ctrl-C
        if results is not None:
            print_table(results)
            draw_picture(results, args.out, args.quick)
    if args.quick:
        print(f"\n{TOO_SHORT}")
    print(f"\npicture: {args.out}")


if __name__ == "__main__":
    run_program(main)
