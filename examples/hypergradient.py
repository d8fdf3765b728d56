"""Gradients through training: FAMO's learning rate and initial logits, and DWA's temperature.

Data, network and losses are those of `digits.py`, but smaller: a network 16 wide is trained by 20
steps of SGD on 256 pairs, five epochs of four batches. Each loss is divided by its value before
training, so that all start at 1. The validation loss is the mean of the four after the last step.
It is a function of the scalarizer's hyperparameters, and every step is a pure function, so
`torch.func.grad` differentiates it through all 20 steps. This program

- compares the gradient with central differences, in float64;
- tunes the hyperparameters by gradient descent, the positive ones by their logarithm: FAMO's from
  the paper's values, DWA's temperature from the paper's and from a low one;
- draws the validation loss over the temperature, to show whether the descent went the right way.

    python examples/hypergradient.py            # half a minute on one core
    python examples/hypergradient.py --quick    # a few seconds, to see that it runs

draws the picture `hypergradient.png` and prints:

derivative by                         at      gradient   central difference   relative error
──────────────────────────────────────────────────────────────────────────────────────────────
lr                                 0.025    0.95914863           0.95914863            3e-10
logits, left digit                     0    0.08163619           0.08163619            7e-10
logits, right digit                    0    0.08301315           0.08301315            2e-09
logits, sum of the digits              0   -0.11608540          -0.11608540            1e-11
logits, redrawing the left digit       0   -0.03197162          -0.03197162            1e-08
temperature                            2    0.00253422           0.00253422            3e-09
temperature                          0.1   -0.56139623          -0.56139624            3e-10

20 steps with FAMO take 43 ms, the gradient 89 ms.
Central differences of the 5 numbers run the 20 steps 10 times.

               hyperparameters                            validation loss   test loss
───────────────────────────────────────────────────────────────────────────────────────
Sum            temperature inf                                     0.6291      0.6278
FAMO           lr 0.025, logits 0 0 0 0                            0.7069      0.7004
  tuned        lr 0.042, logits -0.85 -0.27 0.59 -0.077            0.6133      0.6121
DWA from 2     temperature 2                                       0.6225      0.6207
  tuned        temperature 0.94                                    0.6196      0.6172
DWA from 0.1   temperature 0.1                                     0.7111      0.7042
  tuned        temperature 0.9                                     0.6200      0.6176
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from digits import (
    CONSOLE,
    TASKS,
    TOO_SHORT,
    Network,
    Pairs,
    count,
    load_pairs,
    make_table,
    picture_path,
    picture_style,
    run_program,
    task_losses,
)
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import functional_call, grad, grad_and_value, vjp, vmap
from torch.utils._pytree import tree_map
from torch.utils.benchmark import Timer
from tqdm import tqdm

from mtl_scalarize import (
    dwa_accumulate,
    dwa_init,
    dwa_step,
    famo_delta,
    famo_init,
    famo_update,
    famo_weights,
)

WIDTH, BATCHES, EPOCHS = 16, 4, 5
# Of SGD. DWA's weights sum to 4, FAMO's to 1. At much higher rates the result of a training jumps
# with the hyperparameters, and its gradient says nothing.
DWA_LEARNING_RATE, FAMO_LEARNING_RATE = 0.4, 1.0
OUTER_LEARNING_RATE = 0.05  # of Adam, on the hyperparameters
# Of the central differences, each way. With 1e-5 that of the learning rate already crosses a kink:
# a ReLU that switches in one of the 20 steps.
DIFFERENCE = 1e-6
POSITIVE = {"lr", "temperature"}
COLOURS = "#444444", "#332288", "#ddaa33"  # of the experiments

Parameters = dict[str, Tensor]
Hyper = dict[str, Tensor]

# The network without its parameters, which are in a Problem.
NETWORK = Network(WIDTH).to("meta")


class Problem(NamedTuple):
    start: Parameters
    unit: Tensor  # the losses before training, (4,)
    batches: list[Pairs]
    validation: Pairs
    test: Pairs

    def losses(self, parameters: Parameters, pairs: Pairs) -> Tensor:
        return task_losses(functional_call(NETWORK, parameters, pairs.image), pairs) / self.unit


def make_problem(seed: int = 0) -> Problem:
    train, held_out = (pairs.double() for pairs in load_pairs(seed, train_size=256, test_size=2000))
    torch.manual_seed(seed)
    network = Network(WIDTH).double()
    start = {name: values.detach() for name, values in network.named_parameters()}
    with torch.no_grad():
        unit = task_losses(network(train.image), train)
    batches = [train.take(index) for index in torch.arange(256).chunk(BATCHES)]
    validation, test = (held_out.take(index) for index in torch.arange(2000).chunk(2))
    return Problem(start, unit, batches, validation, test)


def sgd(parameters: Parameters, gradient: Parameters, lr: float) -> Parameters:
    return {name: values - lr * gradient[name] for name, values in parameters.items()}


def train_famo(problem: Problem, hyper: Hyper) -> Parameters:
    parameters = problem.start
    state = famo_init(len(TASKS), dtype=torch.float64)._replace(logits=hyper["logits"])
    for batch in problem.batches * EPOCHS:
        losses, pullback = vjp(lambda p, batch=batch: problem.losses(p, batch), parameters)
        (gradient,) = pullback(famo_weights(losses, state.logits))
        parameters = sgd(parameters, gradient, FAMO_LEARNING_RATE)
        delta = famo_delta(losses, problem.losses(parameters, batch))
        state = famo_update(state, delta, lr=hyper["lr"])
    return parameters


def train_dwa(problem: Problem, hyper: Hyper) -> Parameters:
    parameters = problem.start
    state = dwa_init(len(TASKS), dtype=torch.float64)
    for _ in range(EPOCHS):
        for batch in problem.batches:
            losses, pullback = vjp(lambda p, batch=batch: problem.losses(p, batch), parameters)
            (gradient,) = pullback(state.epoch_weights)
            parameters = sgd(parameters, gradient, DWA_LEARNING_RATE)
            state = dwa_accumulate(state, losses)
        state = dwa_step(state, hyper["temperature"])
    return parameters


class Experiment(NamedTuple):
    """A method of training, and the hyperparameters that its tuning starts from."""

    name: str
    problem: Problem
    train: Callable[[Problem, Hyper], Parameters]
    start: Hyper

    def losses(self, hyper: Hyper) -> tuple[Tensor, Tensor]:
        """After training: on the validation pairs and, for comparison, on the test pairs."""
        problem, parameters = self.problem, self.train(self.problem, hyper)
        validation, test = (
            problem.losses(parameters, pairs).mean() for pairs in (problem.validation, problem.test)
        )
        return validation, test

    def loss(self, hyper: Hyper) -> Tensor:
        return self.losses(hyper)[0]


def make_experiments(problem: Problem) -> list[Experiment]:
    famo = {"lr": number(0.025), "logits": torch.zeros(len(TASKS), dtype=torch.float64)}
    return [
        Experiment("FAMO", problem, train_famo, famo),
        Experiment("DWA from 2", problem, train_dwa, {"temperature": number(2.0)}),
        Experiment("DWA from 0.1", problem, train_dwa, {"temperature": number(0.1)}),
    ]


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def central_differences(loss: Callable[[Hyper], Tensor], hyper: Hyper) -> Hyper:
    def derivative(name: str, direction: Tensor) -> Tensor:
        step = DIFFERENCE * direction.reshape(hyper[name].shape)
        above, below = (loss({**hyper, name: hyper[name] + sign * step}) for sign in (1, -1))
        return (above - below) / (2 * DIFFERENCE)

    def derivatives(name: str, values: Tensor) -> Tensor:
        directions = torch.eye(values.numel(), dtype=values.dtype)
        return torch.stack([derivative(name, d) for d in directions]).reshape(values.shape)

    return {name: derivatives(name, values) for name, values in hyper.items()}


class Descent(NamedTuple):
    """A tuning, before each of its iterations and after the last: (iterations + 1, ...)."""

    validation: Tensor
    test: Tensor
    hyper: Hyper


class Scan(NamedTuple):
    """DWA with many temperatures, trained as one program: (temperatures,)."""

    temperatures: Tensor
    validation: Tensor


def tune(
    experiment: Experiment, iterations: int, on_iteration: Callable[[], Any] = lambda: None
) -> Descent:
    def hyper_of(free: Hyper) -> Hyper:
        return {name: v.exp() if name in POSITIVE else v.clone() for name, v in free.items()}

    def losses(free: Hyper) -> tuple[Tensor, Tensor]:
        return experiment.losses(hyper_of(free))

    free = {n: v.log() if n in POSITIVE else v.clone() for n, v in experiment.start.items()}
    optimizer = torch.optim.Adam(free.values(), lr=OUTER_LEARNING_RATE)
    trace = []
    for _ in range(iterations + 1):
        gradient, (validation, test) = grad_and_value(losses, has_aux=True)(free)
        trace.append(Descent(validation, test, hyper_of(free)))
        for name, values in free.items():
            values.grad = gradient[name]
        optimizer.step()
        on_iteration()
    descent: Descent = tree_map(lambda *values: torch.stack(values), *trace)
    return descent


def print_check(experiments: Sequence[Experiment]) -> None:
    """Each derivative of the validation loss, next to its central difference."""
    columns = "derivative by", "at", "gradient", "central difference", "relative error"
    table = make_table(*columns, gap=2)
    for experiment in experiments:
        gradients = grad(experiment.loss)(experiment.start)
        differences = central_differences(experiment.loss, experiment.start)
        for name, values in experiment.start.items():
            labels = [f"{name}, {task.name}" for task in TASKS] if values.ndim else [name]
            numbers = (v.flatten().tolist() for v in (values, gradients[name], differences[name]))
            for label, at, gradient, difference in zip(labels, *numbers, strict=True):
                error = f"{abs(gradient / difference - 1):.0e}"
                table.add_row(label, f"{at:g}", f"{gradient:.8f}", f"{difference:.8f}", error)
    CONSOLE.print(table)


def print_cost(experiment: Experiment) -> None:
    def milliseconds(function: Callable[[Hyper], Any]) -> float:
        timer = Timer("function(start)", globals={"function": function, "start": experiment.start})
        return 1e3 * timer.blocked_autorange(min_run_time=0.5).median

    alone, gradient = milliseconds(experiment.loss), milliseconds(grad(experiment.loss))
    size = sum(values.numel() for values in experiment.start.values())
    print(f"\n20 steps with {experiment.name} take {alone:.0f} ms, the gradient {gradient:.0f} ms.")
    print(f"Central differences of the {size} numbers run the 20 steps {2 * size} times.\n")


def print_descents(experiments: Sequence[Experiment], descents: Sequence[Descent]) -> None:
    table = make_table("", "hyperparameters", "validation loss", "test loss", left=2, gap=2)

    def add_row(name: str, hyper: Hyper, validation: Tensor, test: Tensor) -> None:
        numbers = {n: " ".join(f"{x:.2g}" for x in v.flatten().tolist()) for n, v in hyper.items()}
        label = ", ".join(f"{n} {text}" for n, text in numbers.items())
        table.add_row(name, label, f"{validation:.4f}", f"{test:.4f}")

    uniform = {"temperature": number(torch.inf)}
    add_row("Sum", uniform, *experiments[1].losses(uniform))
    for experiment, descent in zip(experiments, descents, strict=True):
        for name, i in ((experiment.name, 0), ("  tuned", -1)):
            hyper = {name: values[i] for name, values in descent.hyper.items()}
            add_row(name, hyper, descent.validation[i], descent.test[i])
    CONSOLE.print(table)


@picture_style
def draw_picture(
    experiments: Sequence[Experiment],
    descents: Sequence[Descent],
    scan: Scan,
    path: Path,
    quick: bool,
) -> None:
    figure = Figure(figsize=(18, 8), layout="constrained")
    panels = figure.subplot_mosaic(
        [["curves", "logits", "scan"], ["curves", "lr", "scan"]], height_ratios=[3, 1]
    )
    curves, logits, lr, landscape = (panels[name] for name in ("curves", "logits", "lr", "scan"))

    curves.set_title("Validation loss after 20 steps", weight="bold")
    for experiment, descent, colour in zip(experiments, descents, COLOURS, strict=True):
        curves.plot(descent.validation, color=colour, label=experiment.name)
        curves.plot(descent.test, color=colour, linestyle=":", linewidth=1.5)
    curves.plot([], color="grey", linestyle=":", linewidth=1.5, label="on the test pairs")
    curves.set(xlabel="iteration of the tuning", ylabel="validation loss\n← less is better")
    curves.legend()

    logits.set_title("FAMO's hyperparameters", weight="bold")
    hyper = descents[0].hyper
    for task, values in zip(TASKS, hyper["logits"].T, strict=True):
        logits.plot(values, color=task.colour, label=task.name)
    logits.set_ylabel("initial logits")
    logits.tick_params(labelbottom=False)
    lr.plot(hyper["lr"], color=COLOURS[0])
    lr.set(xlabel="iteration of the tuning", ylabel="learning rate", ylim=(0, None))
    figure.legend(*logits.get_legend_handles_labels(), loc="outside lower center", ncols=4)

    landscape.set_title("DWA's temperature", weight="bold")
    landscape.plot(scan.temperatures, scan.validation, color="grey", linewidth=1.5, label="scan")
    for experiment, descent, colour in list(zip(experiments, descents, COLOURS, strict=True))[1:]:
        trail = descent.hyper["temperature"], descent.validation
        landscape.plot(*trail, ".-", color=colour, linewidth=1, label=experiment.name)
        landscape.plot(*(values[-1] for values in trail), "o", color=colour, markersize=13)
    landscape.set(xlabel="temperature", xscale="log", ylabel="validation loss")
    landscape.xaxis.set_major_formatter("{x:g}")
    landscape.legend()
    if quick:
        figure.suptitle(TOO_SHORT)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Tune FAMO and DWA by gradients through training.")
    parser.add_argument("--quick", action="store_true", help="5 iterations")
    parser.add_argument("--iterations", type=count, help="of the tuning; default: 100")
    parser.add_argument(
        "--out", type=picture_path, default="hypergradient.png", help="the picture's path"
    )
    args = parser.parse_args(argv)
    iterations = args.iterations or (5 if args.quick else 100)
    torch.set_num_threads(1)  # the matrices are too small for more
    experiments = make_experiments(make_problem())
    print_check(experiments)
    print_cost(experiments[0])
    descents = []
    with tqdm(total=len(experiments) * (iterations + 1), unit="iteration", mininterval=1) as bar:
        for experiment in experiments:
            bar.set_description(experiment.name)
            descents.append(tune(experiment, iterations, bar.update))
    print_descents(experiments, descents)
    if args.quick:
        print(f"\n{TOO_SHORT}")
    temperatures = torch.logspace(-1.2, 1.2, 121, dtype=torch.float64)
    validation = vmap(lambda t: experiments[1].loss({"temperature": t}))(temperatures)
    draw_picture(experiments, descents, Scan(temperatures, validation), args.out, args.quick)
    print(f"\npicture: {args.out}")


if __name__ == "__main__":
    run_program(main)
