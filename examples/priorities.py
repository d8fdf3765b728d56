"""What the user wants more of: priorities in, trade-offs out, each method's as one program.

Data and losses are those of `digits.py`, and the small network is that of `population.py`.

- Ratio in, ratio out: one of four tasks, the sum of the digits, has the priority p. Multiplying its
  loss by p instead does nothing under LogSum.
- The whole trade-off: two tasks that compete, the sum of the digits and redrawing the left digit,
  with 64 priorities from 1/16 and 16 to 16 and 1/16. The other two tasks have priority 0: they are
  watched and not trained. Does any method leave the front of constant weights (Xin et al. 2022)?

Every priority is a training of its own, and those of a method are one `vmap`ped program.

    python examples/priorities.py            # eight minutes on one core
    python examples/priorities.py --quick    # a few seconds, to see that it runs

draws the picture `priorities.png` and prints:

absolute error of the sum      p = 1/16       p = 1/4         p = 1         p = 4        p = 16
─────────────────────────────────────────────────────────────────────────────────────────────────
LogSum                      2.78 ± 0.05   2.65 ± 0.10   2.18 ± 0.05   1.83 ± 0.05   1.72 ± 0.07
UW                          2.53 ± 0.13   2.35 ± 0.09   2.00 ± 0.05   1.81 ± 0.10   1.90 ± 0.06
FAMO                        2.74 ± 0.04   2.38 ± 0.04   1.85 ± 0.03   1.59 ± 0.03   1.55 ± 0.10
LogSum, loss times p        2.19 ± 0.03   2.18 ± 0.05   2.18 ± 0.05   2.18 ± 0.05   2.18 ± 0.05

                               on the joint   not dominated by    hypervolume over
method                                front   constant weights   constant weights'
────────────────────────────────────────────────────────────────────────────────────
constant weights                  2.3 ± 0.6           22 ± 4 %       1.000 ± 0.000
LogSum                            7.3 ± 4.0          51 ± 10 %       1.046 ± 0.018
UW                                4.0 ± 3.5          34 ± 16 %       0.998 ± 0.056
FAMO                              0.0 ± 0.0           11 ± 2 %       0.945 ± 0.047
STCH                              2.3 ± 0.6          31 ± 23 %       1.002 ± 0.007
COSMOS                            4.3 ± 1.5          51 ± 16 %       0.976 ± 0.035
constant weights, other seed      6.0 ± 9.5          34 ± 30 %       1.002 ± 0.075

Of 64 priorities each; ± is the standard deviation over the seeds.
Less is better in both metrics. The hypervolume is measured from twice their means,
(4.52, 56.1). Other seed: from other initial weights.

(2 cores of an AMD EPYC, 3 seeds.) A priority does what it says, and a factor before the loss does
nothing. No method leaves the front of constant weights by more than other initial weights do.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from digits import (
    CONSOLE,
    INVERSE_SIZES,
    TASKS,
    TOO_SHORT,
    Pairs,
    available_device,
    count,
    evaluate,
    load_pairs,
    make_table,
    mean_and_std,
    picture_path,
    picture_style,
    run_program,
)
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from population import (
    NETWORK,
    TEST_SIZE,
    TRAIN_SIZE,
    Hyper,
    Method,
    Training,
    adam,
    losses_of,
    stack,
    start,
    train,
)
from torch import Tensor
from torch.func import functional_call, grad, vjp, vmap
from torch.utils._pytree import tree_map
from tqdm import tqdm

from mtl_scalarize import (
    constant_combine,
    cosmos,
    famo_delta,
    famo_init,
    famo_update,
    famo_weights,
    log_sum,
    stch,
    uw_loss,
)

SUM, REDRAWING = 2, 3  # places in TASKS
RATIOS = (1 / 16, 1 / 4, 1.0, 4.0, 16.0)
RANGE = 16.0  # of the priorities of the two tasks, and of their inverse

Scalar = Callable[[Tensor, Tensor, Tensor], Tensor]  # of losses, log-variances and priorities


def trained_by(scalar: Scalar) -> Method:
    """By Adam, which also learns the log-variances of UW."""

    def on_batch(training: Training, batch: Pairs, hyper: Hyper) -> Training:
        def loss(parameters: dict[str, Tensor]) -> Tensor:
            network = {name: parameters[name] for name in parameters if name != "log_var"}
            return scalar(losses_of(network, batch), parameters["log_var"], hyper["priorities"])

        return adam(training, grad(loss)(training.parameters))

    return Method(on_batch, lambda training, hyper: training)


def famo_batch(training: Training, batch: Pairs, hyper: Hyper) -> Training:
    def losses_at(parameters: dict[str, Tensor]) -> Tensor:
        return losses_of(
            {name: parameters[name] for name in parameters if name != "log_var"}, batch
        )

    losses, pullback = vjp(losses_at, training.parameters)
    (gradient,) = pullback(famo_weights(losses, training.state.logits, **hyper))
    training = adam(training, gradient)
    delta = famo_delta(losses, losses_at(training.parameters))
    return training._replace(state=famo_update(training.state, delta, **hyper))


METHODS = {
    "constant weights": trained_by(
        lambda losses, _, p: constant_combine(INVERSE_SIZES * losses, priorities=p)
    ),
    "LogSum": trained_by(lambda losses, _, p: log_sum(losses, priorities=p)),
    "UW": trained_by(lambda losses, log_var, p: uw_loss(losses, log_var, priorities=p)),
    "FAMO": Method(famo_batch, lambda training, hyper: training),
    "STCH": trained_by(lambda losses, _, p: stch(INVERSE_SIZES * losses, 0.1, priorities=p)),
    "COSMOS": trained_by(
        lambda losses, _, p: cosmos(INVERSE_SIZES * losses, 1.0, 1.0, priorities=p)
    ),
}
MISTAKE = "LogSum, loss times p"
IN_RATIOS = {
    **{name: METHODS[name] for name in ("LogSum", "UW", "FAMO")},
    MISTAKE: trained_by(lambda losses, _, p: log_sum(p * losses)),
}
COLOURS = ("#444444", "#0072b2", "#009e73", "#d55e00", "#aa3377", "#e69f00")


class Trained(NamedTuple):
    """The metrics of every priority and seed: (priorities, seeds, 4)."""

    method: str
    metrics: Tensor


def metrics_for(
    method: Method,
    priorities: Tensor,
    pairs: tuple[Pairs, Pairs],
    epochs: int,
    seeds: int,
    on_batch: Callable[[], object],
) -> Tensor:
    """Train with every row of `priorities` from every seed, as one program: (rows, seeds, 4)."""

    def begin(seed: int) -> Training:
        training = start(seed, famo_init(len(TASKS)))
        zero = {"log_var": torch.zeros(len(TASKS))}
        more = {name: getattr(training, name) | zero for name in ("parameters", "mean", "square")}
        return training._replace(**more)

    everyone = stack([begin(seed) for _ in priorities for seed in range(seeds)])
    hyper = {"priorities": priorities.repeat_interleave(seeds, dim=0)}
    device = pairs[0].image.device
    everyone, hyper = tree_map(lambda values: values.to(device), (everyone, hyper))
    trained = train(method.of_population(), everyone, hyper, pairs[0], epochs, on_batch)

    def metrics_of(parameters: dict[str, Tensor]) -> Tensor:
        return evaluate(partial(functional_call, NETWORK, parameters), pairs[1])

    networks = {name: values for name, values in trained.parameters.items() if name != "log_var"}
    metrics: Tensor = vmap(metrics_of, chunk_size=32)(networks)
    return metrics.cpu().unflatten(0, (len(priorities), seeds))


def of_one_task() -> Tensor:
    priorities = torch.ones(len(RATIOS), len(TASKS))
    priorities[:, SUM] = torch.tensor(RATIOS)
    return priorities


def of_two_tasks(points: int) -> Tensor:
    ratios = RANGE ** torch.linspace(-1, 1, points)
    priorities = torch.zeros(points, len(TASKS))
    priorities[:, SUM], priorities[:, REDRAWING] = ratios, 1 / ratios
    return priorities


def not_dominated(points: Tensor, by: Tensor) -> Tensor:
    """Which of (N, 2) no other of (M, 2) beats in both columns, of which less is better."""
    no_worse = (by[None] <= points[:, None]).all(dim=-1)
    better = (by[None] < points[:, None]).any(dim=-1)
    return ~(no_worse & better).any(dim=1)


def hypervolume(points: Tensor, corner: Tensor) -> float:
    """The area that the points dominate below and left of the corner."""
    inside = points[(points < corner).all(dim=-1)]
    area, low = 0.0, corner[1].item()
    for x, y in inside[inside[:, 0].argsort()].tolist():
        area += max(0.0, low - y) * (corner[0].item() - x)
        low = min(low, y)
    return area


def as_fraction(ratio: float) -> str:
    return f"1/{1 / ratio:g}" if ratio < 1 else f"{ratio:g}"


def print_ratios(trained: Sequence[Trained]) -> None:
    names = [f"p = {as_fraction(ratio)}" for ratio in RATIOS]
    table = make_table("absolute error of the sum", *names, gap=2)
    for method, metrics in trained:
        cells = [mean_and_std(runs, 2) for runs in metrics[:, :, SUM]]
        table.add_row(method, *cells)
    CONSOLE.print(table)


def two_metrics(trained: Trained) -> Tensor:
    """Of the tasks that compete: (seeds, points, 2)."""
    return trained.metrics[:, :, [SUM, REDRAWING]].transpose(0, 1)


def print_fronts(trained: Sequence[Trained]) -> None:
    columns = (
        "on the joint\nfront",
        "not dominated by\nconstant weights",
        "hypervolume over\nconstant weights'",
    )
    table = make_table("\nmethod", *columns, gap=2)
    points = [two_metrics(each) for each in trained]
    corner = torch.cat(points, dim=1).mean(dim=(0, 1)) * 2
    constant = points[0]
    rows = [(method, own) for (method, _), own in zip(trained, points, strict=True)]
    if len(constant) > 1:  # the effect of chance: each seed against the next one's constant weights
        rows.append((f"{trained[0].method}, other seed", constant.roll(1, dims=0)))
    for method, own in rows:
        on_front, free, volumes = [], [], []
        for seed, of_seed in enumerate(own):
            everyone = torch.cat([each[seed] for each in points])
            on_front.append(not_dominated(of_seed, everyone).sum())
            free.append(100 * not_dominated(of_seed, constant[seed]).float().mean())
            volumes.append(hypervolume(of_seed, corner) / hypervolume(constant[seed], corner))
        runs = [torch.tensor(each, dtype=torch.float) for each in (on_front, free, volumes)]
        cells = mean_and_std(runs[0], 1), f"{mean_and_std(runs[1], 0)} %", mean_and_std(runs[2], 3)
        table.add_row(method, *cells)
    CONSOLE.print(table)
    print(f"\nOf {points[0].shape[1]} priorities each; ± is the standard deviation over the seeds.")
    print("Less is better in both metrics. The hypervolume is measured from twice their means,")
    print(f"({corner[0]:.2f}, {corner[1]:.1f}). Other seed: from other initial weights.")


@picture_style
def draw_picture(
    ratios: Sequence[Trained], fronts: Sequence[Trained], path: Path, quick: bool
) -> None:
    figure = Figure(figsize=(18, 8), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_ratios(left, ratios)
    right.set_title("Two tasks: each point a priority", weight="bold")
    for colour, each in zip(COLOURS, fronts, strict=True):
        points = two_metrics(each).mean(dim=0)
        best = points[not_dominated(points, points)]
        best = best[best[:, 0].argsort()].numpy()
        right.plot(*points.T.numpy(), "o", color=colour, alpha=0.25, markersize=5)
        right.plot(*best.T, "o-", color=colour, label=each.method, markersize=7, linewidth=1.5)
    right.set(
        xlabel="sum: absolute error", ylabel="redrawing: MSE x 1000", xscale="log", yscale="log"
    )
    for axis in (right.xaxis, right.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("{x:g}")
    right.legend()
    if quick:
        figure.suptitle(TOO_SHORT)
    figure.savefig(path, dpi=80)


def draw_ratios(axes: Axes, trained: Sequence[Trained]) -> None:
    axes.set_title("Four tasks: the sum has priority p", weight="bold")
    colours = dict(zip(METHODS, COLOURS, strict=True)) | {MISTAKE: COLOURS[1]}
    for method, metrics in trained:
        runs = metrics[:, :, SUM]
        style = "o--" if method == MISTAKE else "o-"
        axes.plot(RATIOS, runs.mean(dim=1).numpy(), style, color=colours[method], label=method)
        axes.plot(RATIOS, runs.numpy(), ".", color=colours[method], alpha=0.4)
    axes.set(xlabel="p", ylabel="absolute error of the sum", xscale="log")
    axes.set_xticks(RATIOS, [as_fraction(ratio) for ratio in RATIOS])
    axes.minorticks_off()
    axes.legend()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Priorities in, trade-offs out.")
    parser.add_argument("--quick", action="store_true", help="4 points, 1 seed of 1 epoch")
    parser.add_argument("--epochs", type=count, help="of each training; default: 50")
    parser.add_argument("--seeds", type=count, help="how many; default: 3")
    parser.add_argument("--points", type=count, help="of each front; default: 64")
    parser.add_argument("--device", type=available_device, default="cpu", help="default: cpu")
    parser.add_argument(
        "--out", type=picture_path, default="priorities.png", help="the picture's path"
    )
    args = parser.parse_args(argv)
    points, seeds, epochs = (4, 1, 1) if args.quick else (64, 3, 50)
    points, seeds, epochs = args.points or points, args.seeds or seeds, args.epochs or epochs
    torch.set_num_threads(1)  # gives the same numbers on any number of cores
    pairs = load_pairs(0, args.device, TRAIN_SIZE, TEST_SIZE)
    work = [(name, method, of_one_task()) for name, method in IN_RATIOS.items()]
    work += [(name, method, of_two_tasks(points)) for name, method in METHODS.items()]
    steps = epochs * -(-TRAIN_SIZE // 100)
    trained = []
    with tqdm(total=len(work) * steps, unit="step", mininterval=1) as bar:
        for name, method, priorities in work:
            bar.set_description(f"{name}, {len(priorities)} priorities")
            found = metrics_for(method, priorities, pairs, epochs, seeds, bar.update)
            trained.append(Trained(name, found))
    ratios, fronts = trained[: len(IN_RATIOS)], trained[len(IN_RATIOS) :]
    print_ratios(ratios)
    print()
    print_fronts(fronts)
    if args.quick:
        print(f"\n{TOO_SHORT}")
    draw_picture(ratios, fronts, args.out, args.quick)
    print(f"\npicture: {args.out}")


if __name__ == "__main__":
    run_program(main)
