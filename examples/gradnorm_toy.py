"""GradNorm's toy problem: ten regressions that differ in little but their scale.

Task i is to learn f_i(x) = sigma_i tanh((B + epsilon_i) x), from 250 numbers to 100 (Chen et al.
2018, section 4): all tasks share B, and each has an epsilon_i of its own. The losses are mean
squared errors, so that the last task's loss is 10,000 times the first's where both are learned
equally well. The results are the paper's normalised losses: a task's test loss over that before
training. (The paper adds them up; the mean below is a tenth of that sum.) The network is the
paper's, too: four layers of 100 ReLU units that all tasks share, and a linear head for each.

The paper leaves some choices open. Here the scales are log-spaced from 1 to 100; the paper draws
them from "a wide normal distribution". Its N(0, 10) and N(0, 3.5), of B and the epsilons, are taken
as standard deviations. The network's inputs are standard normal, and x is a hundredth of them: with
x itself standard normal nearly every tanh would be 1 or -1. There are 5000 training examples, for
20 epochs with batches of 100, and 1000 test examples. A seed sets B, the epsilons, the examples,
the initial weights and the order of the batches: the same for every method.

Nothing is tuned for any method. Adam has its usual learning rate of 1e-3 for the network, and 0.025
for a method's own parameters: the rate of FAMO's logits in FAMO's paper and of UW's weights in
GradNorm's.

    python examples/gradnorm_toy.py                  # about five minutes on one core
    python examples/gradnorm_toy.py --method UW      # beside Sum, one method or several
    python examples/gradnorm_toy.py --method FAMO --update-every 1     # FAMO looks at every step
    python examples/gradnorm_toy.py --quick          # a few seconds, to see that it runs

draws the picture `gradnorm_toy.png` and prints:

method         scale 1   scale 4.64   scale 21.5    scale 100         mean        worst
────────────────────────────────────────────────────────────────────────────────────────
Sum        1.51 ± 0.06  0.85 ± 0.01  0.79 ± 0.01  0.76 ± 0.01  0.91 ± 0.01  1.51 ± 0.06
Constant   0.59 ± 0.01  0.59 ± 0.01  0.62 ± 0.01  0.73 ± 0.00  0.62 ± 0.01  0.73 ± 0.00
LogSum     0.58 ± 0.01  0.57 ± 0.01  0.60 ± 0.01  0.73 ± 0.00  0.61 ± 0.01  0.73 ± 0.00
UW         0.99 ± 0.02  0.86 ± 0.00  0.84 ± 0.01  0.83 ± 0.01  0.87 ± 0.00  0.99 ± 0.02
IMTLL      0.99 ± 0.02  0.86 ± 0.00  0.84 ± 0.01  0.83 ± 0.01  0.87 ± 0.00  0.99 ± 0.02
DWA        1.51 ± 0.06  0.85 ± 0.01  0.79 ± 0.01  0.76 ± 0.01  0.91 ± 0.01  1.51 ± 0.06
ReLoBRaLo  1.32 ± 0.21  0.86 ± 0.02  0.80 ± 0.02  0.78 ± 0.02  0.90 ± 0.03  1.32 ± 0.21
FAMO       0.64 ± 0.01  0.61 ± 0.00  0.62 ± 0.01  0.68 ± 0.01  0.63 ± 0.00  0.68 ± 0.01

Test loss over what it was before training: less is better, 1 is nothing learned.
Mean ± standard deviation over the seeds; mean and worst are of all ten tasks.

Sum, and DWA and ReLoBRaLo with it, learns the large tasks and ruins the smallest. LogSum,
FAMO and constant weights are better at every task, even at the largest. UW and IMTL-L, the same but
for a factor that Adam does not see, are late: the first gradients of their scales are as large as
the losses, Adam remembers them, and its steps get ever smaller. With seed 0, UW's log-variance of
the largest task ends at 4.7; the logarithm of that loss is 8.5. FAMO ends where it is, whether
it looks again after every step, every tenth, or every twentieth: mean 0.63, 0.63, 0.62. (One thread
of an AMD EPYC.)
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from digits import (
    CONSOLE,
    TOO_SHORT,
    add_method_flag,
    add_update_every_flag,
    chosen,
    count,
    make_table,
    mean_and_std,
    picture_path,
    picture_style,
    run_program,
)
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from mtl_scalarize import DWA, FAMO, IMTLL, UW, Constant, LogSum, ReLoBRaLo, Scalarizer, Sum

SCALES = torch.logspace(0, 2, 10)
INPUTS, OUTPUTS, WIDTH, DEPTH = 250, 100, 100, 4
SHARED_STD, OWN_STD, INPUT_STD = 10.0, 3.5, 0.01
TEST_SIZE, BATCH_SIZE = 1000, 100
LEARNING_RATE, SCALARIZER_LEARNING_RATE = 1e-3, 0.025

# Each is called with the number of tasks. "Constant" is what one would take who knows the scales.
METHODS: dict[str, Callable[[int], Scalarizer]] = {
    "Sum": Sum,
    "Constant": lambda _: Constant(SCALES**-2),
    "LogSum": lambda tasks: LogSum(shape=tasks),
    "UW": UW,
    "IMTLL": IMTLL,
    "DWA": lambda tasks: DWA(shape=tasks),
    "ReLoBRaLo": ReLoBRaLo,
    "FAMO": FAMO,
}
# UW and IMTL-L coincide, as do DWA, ReLoBRaLo and Sum.
LINES = {
    "Sum": ("#000000", "-"),
    "Constant": ("#999999", "-"),
    "LogSum": ("#009e73", "-"),
    "UW": ("#0072b2", "-"),
    "IMTLL": ("#56b4e9", "--"),
    "DWA": ("#e69f00", "--"),
    "ReLoBRaLo": ("#882255", ":"),
    "FAMO": ("#d55e00", "-"),
}
SHOWN = slice(None, None, 3)  # of the tasks, in the table


class Examples(NamedTuple):
    """N inputs, and the targets of each task."""

    inputs: Tensor  # (N, INPUTS)
    targets: Tensor  # (N, tasks, OUTPUTS)


def make_examples(seed: int, train_size: int) -> tuple[Examples, Examples]:
    """Examples to train on and examples to test on, of the same functions."""
    generator = torch.Generator().manual_seed(seed)
    shared = SHARED_STD * torch.randn(OUTPUTS, INPUTS, generator=generator)
    own = OWN_STD * torch.randn(len(SCALES), OUTPUTS, INPUTS, generator=generator)

    def draw(size: int) -> Examples:
        inputs = torch.randn(size, INPUTS, generator=generator)
        arguments = torch.einsum("toi, ni -> nto", shared + own, INPUT_STD * inputs)
        return Examples(inputs, SCALES.unsqueeze(1) * torch.tanh(arguments))

    return draw(train_size), draw(TEST_SIZE)


class Network(nn.Sequential):
    """A trunk that all tasks share, and a linear head for each, all ten in one matrix."""

    def __init__(self) -> None:
        widths = [INPUTS] + [WIDTH] * DEPTH
        layers = [nn.Linear(*pair) for pair in pairwise(widths)]
        trunk = [module for layer in layers for module in (layer, nn.ReLU())]
        heads = nn.Linear(WIDTH, len(SCALES) * OUTPUTS)
        super().__init__(*trunk, heads, nn.Unflatten(-1, (len(SCALES), OUTPUTS)))


def task_losses(network: nn.Module, examples: Examples) -> Tensor:
    """The mean squared error of each task, shape (tasks,)."""
    return (network(examples.inputs) - examples.targets).square().mean(dim=(0, 2))


def train(
    method: str,
    examples: Examples,
    test: Examples,
    epochs: int,
    seed: int,
    on_epoch: Callable[[], Any] = lambda: None,
    update_every: int = 10,
) -> Tensor:
    """The normalised test losses before training and after each epoch: (epochs + 1, tasks)."""
    torch.manual_seed(seed)
    network, scalarizer = Network(), METHODS[method](len(SCALES))
    optimizer = torch.optim.Adam(
        [
            {"params": network.parameters(), "lr": LEARNING_RATE},
            {"params": scalarizer.parameters(), "lr": SCALARIZER_LEARNING_RATE},
        ]
    )
    with torch.no_grad():
        history = [task_losses(network, test)]
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        shuffled = torch.randperm(len(examples.inputs), generator=order)
        for index, places in enumerate(shuffled.split(BATCH_SIZE)):
            batch = Examples(examples.inputs[places], examples.targets[places])
            optimizer.zero_grad()
            scalarizer(task_losses(network, batch)).backward()
            optimizer.step()
            if index % update_every == 0:
                scalarizer.update(partial(task_losses, network, batch))
        scalarizer.step()
        with torch.no_grad():
            history.append(task_losses(network, test))
        on_epoch()
    return torch.stack(history) / history[0]


def compare(
    methods: Sequence[str], train_size: int, epochs: int, seeds: int, update_every: int
) -> Iterator[Tensor]:
    """Train with every method: normalised test losses, (methods, seeds, epochs + 1, tasks).

    They are yielded after each seed, of the seeds so far.
    """
    results = torch.zeros(len(methods), seeds, epochs + 1, len(SCALES))
    with tqdm(total=len(methods) * seeds * epochs, unit="epoch", mininterval=1) as bar:
        for seed in range(seeds):
            examples, test = make_examples(seed, train_size)
            for row, method in enumerate(methods):
                bar.set_description(f"{method}, seed {seed}", refresh=False)
                results[row, seed] = train(
                    method, examples, test, epochs, seed, bar.update, update_every
                )
            yield results[:, : seed + 1]


def print_table(methods: Sequence[str], ends: Tensor) -> None:
    """From the normalised test losses after training, (methods, seeds, tasks)."""
    scales = [f"scale {scale:.3g}" for scale in SCALES[SHOWN].tolist()]
    table = make_table("method", *scales, "mean", "worst", gap=1)
    for method, tasks in zip(methods, ends, strict=True):
        columns = [*tasks[:, SHOWN].T, tasks.mean(dim=-1), tasks.amax(dim=-1)]
        table.add_row(method, *(mean_and_std(values, 2) for values in columns))
    CONSOLE.print(table)
    print("\nTest loss over what it was before training: less is better, 1 is nothing learned.")
    print("Mean ± standard deviation over the seeds; mean and worst are of all ten tasks.")


@picture_style
def draw_picture(methods: Sequence[str], results: Tensor, path: Path, quick: bool) -> None:
    """In training, the mean and the worst of the tasks; after it, each task."""
    figure = Figure(figsize=(18, 7), layout="constrained")
    mean, worst, tasks = figure.subplots(1, 3, sharey=True)
    epochs = range(results.shape[2])
    draw_lines(mean, methods, epochs, results.mean(dim=-1))
    draw_lines(worst, methods, epochs, results.amax(dim=-1))
    draw_lines(tasks, methods, SCALES, results[:, :, -1], ".")
    mean.set(xlabel="epoch", ylabel="test loss over that before training\n← less is better")
    mean.set_ylim(0.4, 2.2)  # one seed of ReLoBRaLo leaves it for an epoch
    mean.set_title("mean of the tasks", weight="bold")
    worst.set(xlabel="epoch")
    worst.set_title("worst task", weight="bold")
    tasks.set(xlabel="scale of the task", xscale="log")
    tasks.set_title("each task after training", weight="bold")
    tasks.xaxis.set_major_formatter(lambda scale, _: f"{scale:g}")
    for axes in (mean, worst):
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*mean.get_legend_handles_labels(), loc="outside lower center", ncols=8)
    if quick:
        figure.suptitle(TOO_SHORT)
    figure.savefig(path, dpi=80)


def draw_lines(
    axes: Axes, methods: Sequence[str], places: Sequence[float], values: Tensor, marker: str = ""
) -> None:
    """The mean over the seeds of each method, and around it their standard deviation."""
    for method, runs in zip(methods, values, strict=True):
        colour, style = LINES[method]
        mean, spread = runs.mean(dim=0), runs.std(dim=0, correction=min(1, len(runs) - 1))
        axes.plot(places, mean, style, marker=marker, markersize=14, color=colour, label=method)
        axes.fill_between(places, mean - spread, mean + spread, color=colour, alpha=0.15, lw=0)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Compare the methods on GradNorm's toy problem.")
    add_method_flag(parser, list(METHODS))
    add_update_every_flag(parser)
    parser.add_argument("--quick", action="store_true", help="2 seeds of 3 epochs, 1000 examples")
    parser.add_argument("--seeds", type=count, help="how many; default: 10")
    parser.add_argument(
        "--out", type=picture_path, default="gradnorm_toy.png", help="the picture's path"
    )
    args = parser.parse_args(argv)
    train_size, epochs, seeds = (1000, 3, 2) if args.quick else (5000, 20, 10)
    torch.set_num_threads(1)  # gives the same numbers on any number of cores
    methods = chosen(list(METHODS), args)
    seeds, results = args.seeds or seeds, None
    try:
        for finished in compare(methods, train_size, epochs, seeds, args.update_every):
            results = finished
    finally:  # also of the seeds before Ctrl-C
        if results is not None:
            print_table(methods, results[:, :, -1])
            draw_picture(methods, results, args.out, args.quick)
    if args.quick:
        print(f"\n{TOO_SHORT}")
    print(f"\npicture: {args.out}")


if __name__ == "__main__":
    run_program(main)
