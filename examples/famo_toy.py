"""FAMO's toy problem: two losses of two numbers, and which methods reach the Pareto front.

The problem is CAGrad's (Liu et al. 2021). Above x2 = 0 each loss has a narrow valley of its own, in
which a descent may be caught; below, both are wide bowls, and the front runs from the lowest point
of one to that of the other. FAMO's paper (Liu et al. 2023, section 5.1) multiplies the first loss
by 0.1, and starts from five points.

The protocol is that of the official code: Adam with a learning rate of 1e-3, 50,000 steps; FAMO
with a learning rate of 0.025, no weight decay, the lower bounds -2.1 and -21, and an update after
every step. (There are no batches here: the losses after a step are those before the next.)
Gradients are not clipped: the official code clips them to norm 1, but before they are computed.
`--clip 1` clips them after. In the second loss a tanh has the sign of the code; the papers print
the other.

The others are there to compare. UW and IMTL-L cannot balance negative losses, so they get the
losses minus FAMO's lower bounds; their scales are learned at 0.025, too. LogSum has FAMO's bounds,
and nothing to learn. STCH has them for an ideal point, their inverse sizes for a preference, and a
mu of 0.1. DWA compares epochs, and there are none here. All starts of a method are one program by
`vmap`, compiled.

    python examples/famo_toy.py            # half a minute on one core
    python examples/famo_toy.py --clip 1   # gradients of norm 1 at most
    python examples/famo_toy.py --quick    # a few seconds, to see that it runs

draws the picture `famo_toy.png` and prints:

method             start   first loss   second loss   from the front   reached
────────────────────────────────────────────────────────────────────────────────
Sum          (-8.5, 7.5)        -0.38        -19.83            0.001       yes
                  (0, 0)        -0.38        -19.83            0.001       yes
                  (9, 9)         0.73          0.46           12.299        no
            (-7.5, -0.5)        -0.38        -19.83            0.001       yes
                 (9, -1)        -0.38        -19.83            0.001       yes
LogSum       (-8.5, 7.5)        -0.01          6.67           11.111        no
                  (0, 0)        -0.25        -19.93            0.006       yes
                  (9, 9)         0.69          0.86           11.427        no
            (-7.5, -0.5)        -0.25        -19.93            0.006       yes
                 (9, -1)        -1.99         -2.48            0.006       yes
STCH         (-8.5, 7.5)         0.03          2.39            9.046        no
                  (0, 0)        -1.51        -15.09            0.000       yes
                  (9, 9)         0.24          0.71            9.058        no
            (-7.5, -0.5)        -1.51        -15.09            0.000       yes
                 (9, -1)        -1.51        -15.09            0.000       yes
UW           (-8.5, 7.5)         0.13          6.88           11.381        no
                  (0, 0)        -1.99         -2.48            0.006       yes
                  (9, 9)         0.56          0.02           10.261        no
            (-7.5, -0.5)        -0.25        -19.93            0.006       yes
                 (9, -1)        -1.99         -2.48            0.006       yes
IMTLL        (-8.5, 7.5)         0.11          6.87           11.370        no
                  (0, 0)        -1.99         -2.48            0.006       yes
                  (9, 9)         0.55          0.16           10.234        no
            (-7.5, -0.5)        -0.25        -19.93            0.006       yes
                 (9, -1)        -1.99         -2.48            0.006       yes
FAMO         (-8.5, 7.5)        -1.47        -15.51            0.002       yes
                  (0, 0)        -1.52        -14.97            0.000       yes
                  (9, 9)        -1.56        -14.57            0.004       yes
            (-7.5, -0.5)        -1.37        -16.33            0.006       yes
                 (9, -1)        -1.72        -12.34            0.008       yes

Reached, of 5 starts: Sum 4, LogSum 3, STCH 3, UW 3, IMTLL 3, FAMO 5.
From the front: in the plane of the two numbers, in which it is 14 long.
Reached: within 0.1 of the front.

The other descents are caught in a valley. FAMO and STCH end in the middle of the front, LogSum, UW
and IMTL-L near its ends, and Sum near the end at which the second, larger loss is least.
With `--clip 1` Sum reaches 3, the others as many as without. (One thread of an AMD EPYC.
Within a valley the last bit of a logarithm matters: another processor may end at another point.)
"""

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from digits import (
    CONSOLE,
    TOO_SHORT,
    add_method_flag,
    chosen,
    make_table,
    picture_path,
    picture_style,
    positive,
    run_program,
)
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import grad, vjp, vmap
from torch.utils._pytree import tree_map
from tqdm import tqdm

from mtl_scalarize import (
    famo_delta,
    famo_init,
    famo_update,
    famo_weights,
    imtll_loss,
    imtll_weights,
    log_sum_weights,
    stch_weights,
    sum_weights,
    uw_loss,
    uw_weights,
)

STARTS = torch.tensor(
    [[-8.5, 7.5], [0.0, 0.0], [9.0, 9.0], [-7.5, -0.5], [9.0, -1.0]], dtype=torch.float64
)
MIN_LOSSES = torch.tensor([-2.1, -21.0], dtype=torch.float64)
LEARNING_RATE = 1e-3  # of the two numbers
METHOD_LEARNING_RATE = 0.025  # of FAMO's logits, and of the scales of UW and IMTL-L
STEPS, QUICK_STEPS = 50_000, 200
FRAMES = 1000  # of each path, for the picture
COMPILE_FROM = 5_000  # steps: compiling takes as long as these many without
REACHED = 0.1  # distance to the front, in the plane of the two numbers

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")  # of the starts


def losses_of(x: Tensor) -> Tensor:
    """The two losses, shape (..., 2), of the points `x`, shape (..., 2)."""
    x1, x2 = x.unbind(-1)
    bend = torch.tanh(-x2)
    valley_1 = torch.log((0.5 * (-x1 - 7) - bend).abs().clamp(min=5e-6)) + 6
    valley_2 = torch.log((0.5 * (-x1 + 3) + bend + 2).abs().clamp(min=5e-6)) + 6
    bowl_1 = ((-x1 + 7) ** 2 + 0.1 * (-x2 - 8) ** 2) / 10 - 20
    bowl_2 = ((-x1 - 7) ** 2 + 0.1 * (-x2 - 8) ** 2) / 10 - 20
    height = torch.tanh(0.5 * x2)
    # One start lies where `clamp` has the derivative 1 in torch 2.13, and 0 in 2.15.
    above, below = torch.where(height >= 0, height, 0), torch.where(height <= 0, -height, 0)
    return torch.stack(
        [0.1 * (above * valley_1 + below * bowl_1), above * valley_2 + below * bowl_2], dim=-1
    )


def pareto_front() -> Tensor:
    """Points along the front, shape (1001, 2): in each, some weighted sum of the losses is least.

    With s of the one bowl and 1 - s of the other that is at x1 = 14 s - 7; x2 is sought on a grid.
    """
    share = torch.linspace(0, 1, 1001, dtype=torch.float64).unsqueeze(1)
    x2 = torch.linspace(-9, -8, 1001, dtype=torch.float64)
    points = torch.stack(torch.broadcast_tensors(14 * share - 7, x2), dim=-1)
    first, second = losses_of(points).unbind(-1)
    least = (share * first / 0.1 + (1 - share) * second).argmin(dim=1)
    return points[torch.arange(len(points)), least]


class Moments(NamedTuple):
    """Adam's state."""

    mean: Tensor
    square: Tensor
    step: Tensor


def no_moments(like: Tensor) -> Moments:
    return Moments(torch.zeros_like(like), torch.zeros_like(like), torch.zeros_like(like[0]))


def adam(values: Tensor, gradient: Tensor, moments: Moments, lr: float) -> tuple[Tensor, Moments]:
    mean = torch.lerp(moments.mean, gradient, 0.1)
    square = torch.lerp(moments.square, gradient * gradient, 0.001)
    step = moments.step + 1
    root = (square / (1 - 0.999**step)).sqrt()
    return values - lr * mean / (1 - 0.9**step) / (root + 1e-8), Moments(mean, square, step)


class Method(NamedTuple):
    """A method as pure functions of a state of its own."""

    start: Any
    weights: Callable[[Tensor, Any], Tensor]  # from the losses and the state
    update: Callable[[Any, Tensor, Tensor], Any]  # from the losses before and after the step


class Scales(NamedTuple):
    """The state of UW and IMTL-L."""

    logarithm: Tensor
    moments: Moments


def learned(loss: Callable[..., Tensor], weights: Callable[..., Tensor]) -> Method:
    """UW or IMTL-L, from its functions."""

    def update(state: Scales, before: Tensor, after: Tensor) -> Scales:
        gradient = grad(loss, argnums=1)(before - MIN_LOSSES, state.logarithm)
        return Scales(*adam(state.logarithm, gradient, state.moments, METHOD_LEARNING_RATE))

    zeros = torch.zeros_like(MIN_LOSSES)
    return Method(
        Scales(zeros, no_moments(zeros)), lambda losses, state: weights(state.logarithm), update
    )


def fixed(weights: Callable[[Tensor], Tensor]) -> Method:
    """A method without state."""
    return Method((), lambda losses, _: weights(losses), lambda state, *_: state)


METHODS = {
    "Sum": fixed(sum_weights),
    "LogSum": fixed(lambda losses: log_sum_weights(losses, MIN_LOSSES)),
    "STCH": fixed(lambda losses: stch_weights(losses, 0.1, -1 / MIN_LOSSES, MIN_LOSSES)),
    "UW": learned(uw_loss, uw_weights),
    "IMTLL": learned(imtll_loss, imtll_weights),
    "FAMO": Method(
        famo_init(2, dtype=torch.float64),
        lambda losses, state: famo_weights(losses, state.logits, MIN_LOSSES),
        lambda state, before, after: famo_update(
            state,
            famo_delta(before, after, MIN_LOSSES),
            lr=METHOD_LEARNING_RATE,
            weight_decay=0.0,
        ),
    ),
}


class Descent(NamedTuple):
    """Everything that a step changes."""

    x: Tensor
    moments: Moments
    state: Any


def take_step(method: Method, clip: float, descent: Descent) -> Descent:
    losses, pullback = vjp(losses_of, descent.x)
    (gradient,) = pullback(method.weights(losses, descent.state))
    gradient = gradient * (clip / torch.linalg.vector_norm(gradient)).clamp(max=1)
    x, moments = adam(descent.x, gradient, descent.moments, LEARNING_RATE)
    return Descent(x, moments, method.update(descent.state, losses, losses_of(x)))


def descend(
    method: Method, steps: int, clip: float = math.inf, on_step: Callable[[], Any] = lambda: None
) -> Tensor:
    """The paths from all STARTS, shape (frames, starts, 2), down to where they end."""
    step = vmap(partial(take_step, method, clip))
    if steps >= COMPILE_FROM:
        step = torch.compile(step, fullgraph=True)
    same = no_moments(STARTS[0]), method.start
    descents = Descent(STARTS, *tree_map(lambda v: torch.stack([v] * len(STARTS)), same))
    frames = [STARTS]
    for i in range(1, steps + 1):
        descents = step(descents)
        if i % max(1, steps // FRAMES) == 0:
            frames.append(descents.x)
        on_step()
    return torch.stack(frames)


def distance_to(front: Tensor, x: Tensor) -> Tensor:
    return torch.cdist(x, front).amin(dim=-1)


def print_table(ends: dict[str, Tensor], front: Tensor) -> None:
    columns = "method", "start", "first loss", "second loss", "from the front", "reached"
    table = make_table(*columns, gap=2)
    totals = []
    for method, x in ends.items():
        away = distance_to(front, x)
        totals.append(f"{method} {(away < REACHED).sum()}")
        for row, (start, losses) in enumerate(zip(STARTS, losses_of(x), strict=True)):
            table.add_row(
                "" if row else method,
                "({:g}, {:g})".format(*start),
                *(f"{loss:.2f}" for loss in losses),
                f"{away[row]:.3f}",
                "yes" if away[row] < REACHED else "no",
            )
    CONSOLE.print(table)
    print(f"\nReached, of {len(STARTS)} starts: {', '.join(totals)}.")
    print("From the front: in the plane of the two numbers, in which it is 14 long.")
    print(f"Reached: within {REACHED} of the front.")


@picture_style
def draw_picture(paths: dict[str, Tensor], front: Tensor, path: Path, quick: bool) -> None:
    """The paths of each method: above over the two numbers, below over the two losses."""
    figure = Figure(figsize=(18, 10), layout="constrained")
    above, below = figure.subplots(2, len(paths), sharex="row", sharey="row")
    for axes, (method, path_of) in zip(above, paths.items(), strict=True):
        draw_contours(axes)
        draw_paths(axes, path_of, front, lambda x: x)
        arrived = (distance_to(front, path_of[-1]) < REACHED).sum()
        outcome = "" if quick else f"\n{arrived} of {len(STARTS)} arrive"
        axes.set_title(f"{method}{outcome}", weight="bold")
        axes.set_xlabel("$x_1$")
    for axes, path_of in zip(below, paths.values(), strict=True):
        draw_paths(axes, path_of, front, losses_of)
        axes.set_xlabel("first loss")
    above[0].set_ylabel("$x_2$")
    below[0].set_ylabel("second loss")
    handles, labels = above[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    if quick:
        figure.suptitle(TOO_SHORT)
    figure.savefig(path, dpi=80)


def draw_contours(axes: Axes) -> None:
    """Of the sum of both losses before the first is multiplied by 0.1."""
    grid = torch.linspace(-11, 11, 441, dtype=torch.float64)
    first, second = losses_of(torch.cartesian_prod(grid, grid)).unbind(-1)
    total = (first / 0.1 + second).reshape(len(grid), -1).T
    levels = [*range(-35, 10, 5), *range(6, 18, 2)]  # the valleys are shallower than the bowls
    axes.contourf(grid, grid, total, levels, cmap="Greys", vmin=-35, vmax=70, extend="both")


def draw_paths(axes: Axes, paths: Tensor, front: Tensor, place: Callable[[Tensor], Tensor]) -> None:
    axes.plot(*place(front).T, color="black", linewidth=7, alpha=0.6, label="Pareto front")
    reached = (distance_to(front, paths[-1]) < REACHED).tolist()
    for colour, path, arrived in zip(COLOURS, place(paths).unbind(1), reached, strict=True):
        axes.plot(*path.T, color=colour, linewidth=2.5)
        axes.plot(*path[0], "o", color=colour, markeredgecolor="black", markersize=11)
        axes.plot(
            *path[-1],
            "*" if arrived else "X",
            color=colour,
            markeredgecolor="black",
            markersize=22 if arrived else 14,
            zorder=3,
        )
    for marker, size, label in (
        ("o", 11, "start"),
        ("*", 20, "end, on the front"),
        ("X", 14, "end, elsewhere"),
    ):
        axes.plot([], [], marker, color="white", mec="black", markersize=size, label=label)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Solve FAMO's toy problem from its five starts.")
    add_method_flag(parser, list(METHODS))
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps")
    parser.add_argument(
        "--clip",
        type=positive,
        default=math.inf,
        metavar="NORM",
        help="that a gradient may have; default: any",
    )
    parser.add_argument(
        "--out", type=picture_path, default="famo_toy.png", help="the picture's path"
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    steps = QUICK_STEPS if args.quick else STEPS
    front, paths = pareto_front(), {}
    methods = chosen(list(METHODS), args)
    try:
        with tqdm(total=len(methods) * steps, unit="step", unit_scale=True, mininterval=1) as bar:
            for name in methods:
                bar.set_description(name)
                paths[name] = descend(METHODS[name], steps, args.clip, bar.update)
    finally:  # also of the methods before Ctrl-C
        if paths:
            print_table({name: path[-1] for name, path in paths.items()}, front)
            draw_picture(paths, front, args.out, args.quick)
    if args.quick:
        print(f"\n{TOO_SHORT}")
    print(f"\npicture: {args.out}")


if __name__ == "__main__":
    run_program(main)
