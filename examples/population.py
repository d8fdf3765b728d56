"""256 trainings as one program: a sweep of FAMO's hyperparameters, and one of DWA's temperature.

Data, network and losses are those of `digits.py`. One step of training is a pure function of the
network's parameters, the optimizer's state, the scalarizer's state and its hyperparameters. `vmap`
turns it into the step of a whole population, in which each member has its own of all four:

- FAMO: 16 learning rates by 16 weight decays, from the same initial weights;
- DWA: 16 temperatures by 16 initial weights, which show the effect of chance, and an infinite
  temperature: this is the sum, with which all are compared.

The networks share one core and are therefore small: 32 wide, a sixth of those of `digits.py`.

    python examples/population.py            # six minutes on one core
    python examples/population.py --quick    # a few seconds, to see that it runs

draws the picture `population.png` and prints:

                                     left digit right digit         sum   redrawing         all
method        hyperparameters           % right     % right  abs. error  MSE x 1000  delta-m, %
───────────────────────────────────────────────────────────────────────────────────────────────
Sum                                  86.7 ± 4.5  86.7 ± 4.1 1.68 ± 0.09  43.7 ± 3.6   0.0 ± 0.0
FAMO, paper's lr 0.025, decay 0.001        91.0        91.3        1.85        28.9        -6.2
FAMO, best    lr 0.44, decay 0.0018        93.7        93.2        1.73        25.2       -11.5
FAMO, worst   lr 0.79, decay 0.0018        85.6        86.2        4.71        26.6        39.4
DWA, paper's  temperature 2          86.5 ± 4.4  87.3 ± 3.3 1.67 ± 0.09  43.9 ± 4.0  -0.2 ± 1.7
DWA, best     temperature 20         87.4 ± 3.9  87.4 ± 2.6 1.66 ± 0.10  43.8 ± 3.4  -0.7 ± 2.0
DWA, worst    temperature 0.02      63.5 ± 15.0 65.1 ± 12.2 2.21 ± 0.27 69.8 ± 33.3 36.5 ± 22.0

On digits never trained on; ± is the standard deviation over the initial weights,
where there are several. delta-m: average relative change of the four metrics against
Sum; negative is better. Best and worst are by delta-m on these same digits.

       trainings   as one program   one by one   ratio
────────────────────────────────────────────────────────
FAMO         256          283.9 s     1333.5 s     4.7
DWA          272          221.1 s     1266.7 s     5.7

One by one: the same functions without vmap. At most 8 were timed; the time of
all is extrapolated from the fastest. Both ways run on one thread.

(One thread of an AMD EPYC, busy with other work.)
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from digits import (
    ALL,
    CONSOLE,
    TASKS,
    TOO_SHORT,
    Network,
    Pairs,
    available_device,
    count,
    delta_m,
    evaluate,
    load_pairs,
    make_table,
    mean_and_std,
    picture_path,
    picture_style,
    run_program,
    task_losses,
)
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import functional_call, grad, vjp, vmap
from torch.utils._pytree import tree_map
from tqdm import tqdm

from mtl_scalarize import (
    DWAState,
    FAMOState,
    dwa_accumulate,
    dwa_combine,
    dwa_init,
    dwa_step,
    famo_delta,
    famo_init,
    famo_update,
    famo_weights,
)

TRAIN_SIZE, TEST_SIZE, BATCH_SIZE = 4000, 1000, 100
WIDTH = 32
LEARNING_RATE = 5e-3
DECADES = 4  # that a grid spans, with the paper's value in its middle
SAMPLE = 8  # trainings run one by one, to estimate the time of all

Parameters = dict[str, Tensor]
Hyper = dict[str, Tensor]  # keyword arguments of the scalarizer's functions

# The network without its parameters, which are in a Training.
NETWORK = Network(WIDTH).to("meta")


class Training(NamedTuple):
    """Everything that changes in training. In a population every tensor has one more dimension."""

    parameters: Parameters
    mean: Parameters  # Adam's, of the gradient
    square: Parameters  # Adam's, of the squared gradient
    step: Tensor
    state: Any  # FAMO's or DWA's


class Method(NamedTuple):
    """How to train one network or, `vmap`ped, a population of them."""

    on_batch: Callable[[Training, Pairs, Hyper], Training]
    on_epoch: Callable[[Training, Hyper], Training]

    def of_population(self) -> "Method":
        return Method(vmap(self.on_batch, in_dims=(0, None, 0)), vmap(self.on_epoch))


def losses_of(parameters: Parameters, batch: Pairs) -> Tensor:
    return task_losses(functional_call(NETWORK, parameters, batch.image), batch)


def adam(training: Training, gradient: Parameters) -> Training:
    step = training.step + 1
    mean = {name: torch.lerp(training.mean[name], g, 0.1) for name, g in gradient.items()}
    square = {name: torch.lerp(training.square[name], g * g, 0.001) for name, g in gradient.items()}
    correction, correction_sq = 1 - 0.9**step, (1 - 0.999**step).sqrt()
    parameters = {
        name: values
        - LEARNING_RATE / correction * mean[name] / (square[name].sqrt() / correction_sq + 1e-8)
        for name, values in training.parameters.items()
    }
    return Training(parameters, mean, square, step, training.state)


def famo_batch(training: Training, batch: Pairs, hyper: Hyper) -> Training:
    losses, pullback = vjp(lambda parameters: losses_of(parameters, batch), training.parameters)
    (gradient,) = pullback(famo_weights(losses, training.state.logits))
    training = adam(training, gradient)
    delta = famo_delta(losses, losses_of(training.parameters, batch))
    return training._replace(state=famo_update(training.state, delta, **hyper))


def dwa_batch(training: Training, batch: Pairs, hyper: Hyper) -> Training:
    def loss(parameters: Parameters) -> tuple[Tensor, Tensor]:
        losses = losses_of(parameters, batch)
        return dwa_combine(losses, training.state), losses

    gradient, losses = grad(loss, has_aux=True)(training.parameters)
    return adam(training, gradient)._replace(state=dwa_accumulate(training.state, losses))


def dwa_epoch(training: Training, hyper: Hyper) -> Training:
    return training._replace(state=dwa_step(training.state, **hyper))


FAMO = Method(famo_batch, lambda training, hyper: training)
DWA = Method(dwa_batch, dwa_epoch)


def train(
    method: Method,
    training: Training,
    hyper: Hyper,
    pairs: Pairs,
    epochs: int,
    on_batch: Callable[[], Any] = lambda: None,
) -> Training:
    """One training or a population: the loop is the same. All see the same batches."""
    order = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        shuffled = torch.randperm(len(pairs.image), generator=order).to(pairs.image.device)
        for index in torch.split(shuffled, BATCH_SIZE):
            training = method.on_batch(training, pairs.take(index), hyper)
            on_batch()
        training = method.on_epoch(training, hyper)
    return training


class Sweep(NamedTuple):
    """A population at its start: each configuration in a number of runs, one after the other."""

    name: str
    method: Method
    start: Training
    hyper: Hyper
    runs: int  # of each configuration, from different initial weights
    paper: int  # which configuration is the paper's
    template: str  # of a configuration's name

    def name_of(self, configuration: int) -> str:
        hyper = {name: values[configuration * self.runs] for name, values in self.hyper.items()}
        return self.template.format(**hyper)


def take(population: Any, index: int) -> Any:
    """One member of a population, or its hyperparameters, or both."""
    return tree_map(lambda values: values[index], population)


def start(seed: int, state: FAMOState | DWAState) -> Training:
    torch.manual_seed(seed)
    parameters = {name: values.detach() for name, values in Network(WIDTH).named_parameters()}
    zeros = {name: torch.zeros_like(values) for name, values in parameters.items()}
    return Training(parameters, zeros, zeros, torch.zeros(()), state)


def stack(trainings: Sequence[Training]) -> Training:
    stacked: Training = tree_map(lambda *tensors: torch.stack(tensors), *trainings)
    return stacked


def around(paper: float, side: int) -> Tensor:
    """A logarithmic grid; its entry `side // 2` is the paper's value."""
    return paper * 10 ** ((torch.arange(side) - side // 2) * (DECADES / side))


def famo_sweep(side: int) -> Sweep:
    lr, weight_decay = torch.cartesian_prod(around(0.025, side), around(1e-3, side)).T
    population = stack([start(0, famo_init(len(TASKS)))] * len(lr))
    hyper = {"lr": lr, "weight_decay": weight_decay}
    paper = (side + 1) * (side // 2)
    return Sweep("FAMO", FAMO, population, hyper, 1, paper, "lr {lr:.2g}, decay {weight_decay:.2g}")


def dwa_sweep(side: int) -> Sweep:
    """The last temperature is infinite: the weights are 1, and the scalar is the sum."""
    temperatures = torch.cat([around(2.0, side), torch.tensor([torch.inf])])
    seeds = [start(seed, dwa_init(len(TASKS))) for seed in range(side)]
    population = stack(seeds * len(temperatures))
    hyper = {"temperature": temperatures.repeat_interleave(side)}
    return Sweep("DWA", DWA, population, hyper, side, side // 2, "temperature {temperature:.2g}")


class Outcome(NamedTuple):
    metrics: Tensor  # (configurations, runs, 4), on digits never trained on
    seconds: float  # of all trainings as one program
    seconds_alone: float  # of one training, the fastest of a sample


def run(sweep: Sweep, epochs: int, device: torch.device, bar: "tqdm[None]") -> Outcome:
    """Train all as one program, and some one by one to see how long that takes."""
    train_pairs, test_pairs = load_pairs(0, device, TRAIN_SIZE, TEST_SIZE)
    everyone = tree_map(lambda values: values.to(device), (sweep.start, sweep.hyper))
    size = len(sweep.start.step)

    def timed(method: Method, one_or_all: tuple[Training, Hyper], many: int) -> tuple[Any, float]:
        begin = time.perf_counter()
        training = train(method, *one_or_all, train_pairs, epochs, lambda: bar.update(many))
        training.step.cpu()  # waits for the device
        return training, time.perf_counter() - begin

    def one_by_one(sample: Sequence[int]) -> float:
        bar.set_description(f"{sweep.name}, one by one")
        return min(timed(sweep.method, take(everyone, index), 1)[1] for index in sample)

    # Half of the sample before and half after: the load of the machine may change in between.
    sample = torch.linspace(0, size - 1, SAMPLE).long().tolist()
    before = one_by_one(sample[::2])
    bar.set_description(f"{sweep.name}, {size} as one program")
    population, seconds = timed(sweep.method.of_population(), everyone, size)
    after = one_by_one(sample[1::2])

    def metrics_of(parameters: Parameters) -> Tensor:
        return evaluate(partial(functional_call, NETWORK, parameters), test_pairs)

    metrics: Tensor = vmap(metrics_of, chunk_size=32)(population.parameters)
    return Outcome(metrics.cpu().reshape(-1, sweep.runs, len(TASKS)), seconds, min(before, after))


def print_metrics(sweeps: Sequence[Sweep], metrics: Sequence[Tensor]) -> None:
    columns = "\nmethod", "\nhyperparameters", *(task.metric for task in (*TASKS, ALL))
    table = make_table(*columns, left=2)

    def add_row(name: str, hyper: str, runs: Tensor) -> None:
        columns = zip(runs.T, (*TASKS, ALL), strict=True)
        table.add_row(name, hyper, *(mean_and_std(values, task.digits) for values, task in columns))

    add_row("Sum", "", metrics[1][-1])
    for sweep, values in zip(sweeps, metrics, strict=True):
        ranking = values[:, :, -1].mean(dim=1).argsort().tolist()
        for which, i in (("paper's", sweep.paper), ("best", ranking[0]), ("worst", ranking[-1])):
            add_row(f"{sweep.name}, {which}", sweep.name_of(i), values[i])
    CONSOLE.print(table)
    print("\nOn digits never trained on; ± is the standard deviation over the initial weights,")
    print("where there are several. delta-m: average relative change of the four metrics against")
    print("Sum; negative is better. Best and worst are by delta-m on these same digits.\n")


def print_times(sweeps: Sequence[Sweep], outcomes: Sequence[Outcome]) -> None:
    table = make_table("", "trainings", "as one program", "one by one", "ratio", gap=2)
    for sweep, outcome in zip(sweeps, outcomes, strict=True):
        size = len(sweep.start.step)
        one_by_one = size * outcome.seconds_alone
        times = f"{outcome.seconds:.1f} s", f"{one_by_one:.1f} s"
        table.add_row(sweep.name, str(size), *times, f"{one_by_one / outcome.seconds:.1f}")
    CONSOLE.print(table)
    print(
        f"\nOne by one: the same functions without vmap. At most {SAMPLE} were timed; the time of"
    )
    print("all is extrapolated from the fastest. Both ways run on one thread.")


def ticks(paper: float, side: int) -> tuple[Sequence[int], Sequence[str]]:
    places = range(0, side, max(1, side // 4))
    return places, [f"{value:.2g}" for value in around(paper, side)[places].tolist()]


@picture_style
def draw_picture(famo: Tensor, dwa: Tensor, path: Path, quick: bool) -> None:
    """Delta-m: `famo` by learning rate and weight decay, `dwa` by temperature and seed."""
    side = len(famo)
    figure = Figure(figsize=(18, 8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.set_title(f"FAMO: {side} learning rates by {side} weight decays", weight="bold", pad=36)
    left.set(xlabel="learning rate of the logits", ylabel="weight decay")
    left.set_xticks(*ticks(0.025, side))
    left.set_yticks(*ticks(1e-3, side))
    right.set_title(f"DWA: {side} temperatures by {side} initial weights", weight="bold", pad=36)
    right.set(xlabel="temperature", ylabel="seed of the initial weights")
    right.set_xticks(*ticks(2.0, side))
    right.yaxis.get_major_locator().set_params(integer=True)

    # Of the best. The few trainings that failed would leave all the others one colour.
    limit = torch.cat([famo.flatten(), dwa.flatten()]).min().abs().item()
    for axes, values in ((left, famo), (right, dwa)):
        image = axes.imshow(
            values.T.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, origin="lower", aspect="auto"
        )
        axes.grid(visible=False)
    bar = figure.colorbar(image, ax=(left, right), extend="both")
    bar.set_label("delta-m, %\n← better, blue        Sum        worse, red →")

    marks: Any = {"markersize": 18, "color": "white", "markeredgecolor": "black", "linestyle": ""}
    left.plot(side // 2, side // 2, "o", label="the paper's", **marks)
    left.plot(*divmod(int(famo.argmin()), side), "*", label="best", **marks)
    # Here it is a column that is marked.
    marks |= {"transform": right.get_xaxis_transform(), "clip_on": False}
    right.plot(side // 2, 1.03, "o", **marks)
    right.plot(int(dwa.mean(dim=1).argmin()), 1.03, "*", **marks)
    figure.legend(loc="outside lower center", ncols=2)
    if quick:
        figure.suptitle(TOO_SHORT)
    figure.savefig(path, dpi=110)


def grid_side(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 32:
        raise argparse.ArgumentTypeError(f"expected an integer from 1 to 32, found {text!r}")
    return int(text)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Sweep FAMO and DWA, each sweep as one program.")
    parser.add_argument("--quick", action="store_true", help="a grid of 6 by 6, 4 epochs")
    parser.add_argument("--epochs", type=count, help="of each training; default: 50")
    parser.add_argument("--side", type=grid_side, help="of the grid; default: 16, for 16 by 16")
    parser.add_argument("--device", type=available_device, default="cpu", help="default: cpu")
    parser.add_argument(
        "--out", type=picture_path, default="population.png", help="the picture's path"
    )
    args = parser.parse_args(argv)
    side, epochs = (6, 4) if args.quick else (16, 50)
    side, epochs = args.side or side, args.epochs or epochs
    torch.set_num_threads(1)  # gives the same numbers, and a fair race, on any number of cores
    sweeps = famo_sweep(side), dwa_sweep(side)
    trainings = sum(len(sweep.start.step) + SAMPLE for sweep in sweeps)
    steps = epochs * -(-TRAIN_SIZE // BATCH_SIZE)
    with tqdm(total=trainings * steps, unit="step", unit_scale=True, mininterval=1) as bar:
        outcomes = [run(sweep, epochs, args.device, bar) for sweep in sweeps]
    plain_sum = outcomes[1].metrics[-1]
    famo, dwa = (
        torch.cat([m, delta_m(m, plain_sum[: m.shape[1]]).unsqueeze(-1)], dim=-1)
        for m in (outcome.metrics for outcome in outcomes)
    )
    print_metrics(sweeps, (famo, dwa))
    print_times(sweeps, outcomes)
    if args.quick:
        print(f"\n{TOO_SHORT}")
    draw_picture(famo[:, 0, -1].reshape(side, side), dwa[:-1, :, -1], args.out, args.quick)
    print(f"\npicture: {args.out}")


if __name__ == "__main__":
    run_program(main)
