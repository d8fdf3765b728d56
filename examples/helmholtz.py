"""A physics-informed network: a loss of thousands, and four that can be met exactly.

A network u(x, y) learns to solve a Helmholtz equation on the square from -1 to 1, as in Wang, Teng
and Perdikaris (2021, https://arxiv.org/abs/2001.04536): Laplacian u + u = q, with u = 0 on the
edges. The source q makes sin(pi x) sin(4 pi y) the solution. The five losses are the mean square of
the residual, about 7,000 at the start, and that of u on each edge; each step draws new points. The
four boundary losses are met exactly by u = 0, which has a relative L2 error of 1.

A step of training is a pure function of the network, the optimizer's state, the method's state and
one setting of the method. `vmap` turns it into the step of a population, and the population is one
compiled program. It tries, each from 3 initial weights,

- 9 fixed weights of the boundary losses; a weight of 1 is `Sum`;
- 5 temperatures of ReLoBRaLo, and of SoftAdapt (Heydari et al. 2019,
  https://arxiv.org/abs/1912.12355), which is `relobralo_update` with `alpha=0`;
- 6 floors under the losses of UW, LogSum and FAMO: the size below which a loss does not matter. It
  is `eps` of UW, and `-min_losses` of the others. A floor of 1e-8 is none. After every tenth step
  FAMO looks at the losses again, on the same points.

The best configuration is then trained once more by the modules. It goes on with L-BFGS, in double
precision, on fixed points, with the weights frozen by `scalarizer.eval()`.

    python examples/helmholtz.py            # about ten minutes on one core
    python examples/helmholtz.py --quick    # a few seconds, to see that it runs

Killed and started again with the same flags, the population goes on from its last checkpoint. The
program draws the picture `helmholtz.png` and prints, of each method, the default and the best:

                                      relative   residual   boundary   boundary weight /
method         setting                L2 error       loss       loss          residual's
──────────────────────────────────────────────────────────────────────────────────────────
fixed weight   weight 1          0.335 ± 0.092        2.4       0.11                   1
fixed weight   weight 316        0.022 ± 0.003        2.6    0.00091             3.2e+02
ReLoBRaLo      temperature 0.1   0.385 ± 0.195        4.4       0.16                 1.9
ReLoBRaLo      temperature 1     0.289 ± 0.058        3.6      0.093                 1.5
SoftAdapt      temperature 1     0.385 ± 0.025        3.4       0.15                 1.1
SoftAdapt      temperature 10    0.367 ± 0.084        2.9       0.13                   1
UW             floor 1e-08       1.000 ± 0.000    6.9e+03    1.4e-08             1.4e+10
UW             floor 100         0.397 ± 0.519    9.1e+02      0.023                  68
LogSum         floor 1e-08       2.235 ± 2.139    6.9e+03        1.7               1e+11
LogSum         floor 1           0.068 ± 0.016          1     0.0074                   2
FAMO           floor 1e-08       1.001 ± 0.001    6.9e+03    2.9e-07               2e+10
FAMO           floor 1           0.030 ± 0.004        1.3     0.0019                  22

The best, fixed weight, weight 316, once more by the modules, seed 0:
relative L2 error 0.0215 after Adam, 0.0027 after L-BFGS

Mean ± standard deviation over the seeds, after 2,500 steps. UW, LogSum and FAMO without a floor
give almost all the weight to edges that are met exactly, and the residual stays where it was; one
seed of LogSum ends at an error of 4.7. A floor of 1 brings LogSum to a fifth of the error of a sum,
and FAMO to an eleventh. With a floor of 100, UW ends at 0.09 and 0.11 from two seeds, and stays at
1 from the third. A fixed weight, found by the same program, brings a fifteenth. ReLoBRaLo and
SoftAdapt compare how fast the losses fall, and their weights stay nearly equal. (One core of an AMD
EPYC, busy with other work.)
"""

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from digits import (
    BETTER,
    CONSOLE,
    TOO_SHORT,
    count,
    make_schedule,
    make_table,
    mean_and_std,
    picture_path,
    picture_style,
    run_program,
)
from famo_toy import Moments, Scales, adam, no_moments
from matplotlib.figure import Figure
from resume import open_directory, resume, save, writing_to
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vjp, vmap
from torch.utils._pytree import tree_leaves, tree_map
from tqdm import tqdm

from mtl_scalarize import (
    FAMO,
    UW,
    Constant,
    FAMOState,
    LogSum,
    ReLoBRaLo,
    Scalarizer,
    famo_delta,
    famo_init,
    famo_update,
    famo_weights,
    log_sum_weights,
    relobralo_init,
    relobralo_update,
    uw_loss,
    uw_weights,
)

WIDTH = 50
STEEPNESS = 4  # of the first layer at the start, times torch's own
INSIDE, EDGE = 128, 32  # points in the square, and on each edge; new ones in each step
TASKS = 5  # the residual, and the four edges
LEARNING_RATE = 5e-3  # falls to 0 along a cosine
SCALES_LEARNING_RATE = 1e-2  # of UW's log-variances
RHO = 0.999  # how often ReLoBRaLo does not look back to the first losses
SIDE = 65  # of the grid on which u is compared with the solution
FRESH = 2**32  # the seed of points that no step draws
UPDATE_EVERY = 10  # steps from one of FAMO's second looks to the next
COMPILE_FROM = 500  # steps: compiling takes as long as these many gain
NONE = 1e-8  # a floor that is none

LABELS = {  # of the settings
    "weight": "weight of each boundary loss",
    "temperature": "temperature",
    "floor": "floor under each loss",
}
COLOURS = "#444444", "#0072b2", "#56b4e9", "#d55e00", "#009e73", "#cc79a7"  # of the methods

Parameters = dict[str, Tensor]


def make_network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    first, *others = (nn.Linear(inputs, WIDTH) for inputs in (2, WIDTH, WIDTH))
    layers = [first, nn.Tanh(), *(part for layer in others for part in (layer, nn.Tanh()))]
    for layer in others:
        nn.init.xavier_normal_(layer.weight)
    with torch.no_grad():  # the solution has four waves: steep units find them sooner
        first.weight.mul_(STEEPNESS)
        first.bias.mul_(STEEPNESS)
    return nn.Sequential(*layers, nn.Linear(WIDTH, 1))


# The network without its parameters, which are in a Population.
NETWORK = make_network(0).to("meta")


def field(parameters: Parameters, points: Tensor) -> Tensor:
    """The network's u at points of shape (..., 2)."""
    return functional_call(NETWORK, parameters, points).squeeze(-1)


def solution(points: Tensor) -> Tensor:
    x, y = points.unbind(-1)
    return torch.sin(math.pi * x) * torch.sin(4 * math.pi * y)


def residual(u: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    """By how much `u` misses the equation at one point."""

    def second_derivative(direction: Tensor) -> Tensor:
        return direction @ jvp(grad(u), (point,), (direction,))[1]

    laplacian = vmap(second_derivative)(torch.eye(2, dtype=point.dtype)).sum()
    return laplacian + u(point) - (1 - 17 * math.pi**2) * solution(point)


class Points(NamedTuple):
    inside: Tensor  # (N, 2)
    edges: Tensor  # (4, M, 2)


def draw_points(generator: torch.Generator, inside: int = INSIDE, edge: int = EDGE) -> Points:
    left, right, below, above = 2 * torch.rand(4, edge, generator=generator) - 1
    end = torch.ones(edge)
    edges = (-end, left), (end, right), (below, -end), (above, end)
    return Points(
        2 * torch.rand(inside, 2, generator=generator) - 1,
        torch.stack([torch.stack(coordinates, dim=-1) for coordinates in edges]),
    )


def losses_of(parameters: Parameters, points: Points) -> Tensor:
    """The mean square of the residual and, on each edge, of u: shape (5,)."""
    u = partial(field, parameters)
    inside = vmap(partial(residual, u))(points.inside).square().mean(dim=0, keepdim=True)
    return torch.cat([inside, u(points.edges).square().mean(dim=1)])


class Method(NamedTuple):
    """A method as a pure function, for a population, and as a module, for one network."""

    setting: str  # which number a population tries
    values: Tensor
    default: int  # the row that the table shows beside the best
    start: Any  # the state before training
    # From the losses, the state, the setting and a random number: task weights and new state.
    balance: Callable[[Tensor, Any, Tensor, Tensor], tuple[Tensor, Any]]
    module: Callable[[float], Scalarizer]
    # From the losses before and after a step, on the same points, the state and the setting: new
    # state. None: the method does not look again.
    update: Callable[[Tensor, Tensor, Any, Tensor], Any] | None = None

    def name_of(self, row: int) -> str:
        return f"{self.setting} {self.values[row]:.3g}"


def fixed(losses: Tensor, state: Any, weight: Tensor, drawn: Tensor) -> tuple[Tensor, Any]:
    return torch.cat([torch.ones_like(weight).unsqueeze(0), weight.expand(TASKS - 1)]), state


def relobralo(losses: Tensor, state: Any, temperature: Tensor, drawn: Tensor) -> tuple[Tensor, Any]:
    state = relobralo_update(state, losses, drawn >= RHO, temperature=temperature)
    return state.running_weights, state


def softadapt(losses: Tensor, state: Any, temperature: Tensor, drawn: Tensor) -> tuple[Tensor, Any]:
    state = relobralo_update(state, losses, 0, alpha=0, temperature=temperature)
    return state.running_weights, state


def uw(losses: Tensor, state: Scales, floor: Tensor, drawn: Tensor) -> tuple[Tensor, Scales]:
    gradient = grad(uw_loss, argnums=1)(losses, state.logarithm, eps=floor)
    new = Scales(*adam(state.logarithm, gradient, state.moments, SCALES_LEARNING_RATE))
    return uw_weights(state.logarithm), new


def log_sum(losses: Tensor, state: Any, floor: Tensor, drawn: Tensor) -> tuple[Tensor, Any]:
    return log_sum_weights(losses, -floor), state


def famo(
    losses: Tensor, state: FAMOState, floor: Tensor, drawn: Tensor
) -> tuple[Tensor, FAMOState]:
    return famo_weights(losses, state.logits, -floor), state


def look_again(before: Tensor, after: Tensor, state: FAMOState, floor: Tensor) -> FAMOState:
    return famo_update(state, famo_delta(before, after, -floor))


WEIGHTS, TEMPERATURES = torch.logspace(0, 4, 9), torch.logspace(-2, 2, 5)
FLOORS = torch.tensor([NONE, 1e-2, 1.0, 1e1, 1e2, 1e3])
FIRST = torch.tensor([7e3, 0.1, 0.1, 0.1, 0.1]).log()  # where UW's log-variances start
of_temperature = partial(Method, "temperature", TEMPERATURES)
of_floor = partial(Method, "floor", FLOORS, 0)
METHODS = {
    "fixed weight": Method(
        "weight", WEIGHTS, 0, (), fixed, lambda weight: Constant(torch.tensor([1.0, *4 * [weight]]))
    ),
    "ReLoBRaLo": of_temperature(
        1, relobralo_init(TASKS), relobralo, partial(ReLoBRaLo, TASKS, rho=RHO)
    ),
    "SoftAdapt": of_temperature(
        2, relobralo_init(TASKS), softadapt, partial(ReLoBRaLo, TASKS, alpha=0, rho=1)
    ),
    "UW": of_floor(
        Scales(FIRST, no_moments(FIRST)), uw, lambda floor: UW(TASKS, init=FIRST, eps=floor)
    ),
    "LogSum": of_floor((), log_sum, lambda floor: LogSum(-floor)),
    "FAMO": of_floor(famo_init(TASKS), famo, lambda floor: FAMO(TASKS, -floor), look_again),
}


class Population(NamedTuple):
    """All trainings: method by method, in it setting by setting, in it seed by seed."""

    settings: tuple[Tensor, ...]  # of each method
    states: tuple[Any, ...]  # of each method
    parameters: Parameters
    moments: dict[str, Moments]  # Adam's

    def state_dict(self) -> dict[str, list[Tensor]]:
        return {"tensors": tree_leaves(self)}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        for tensor, value in zip(tree_leaves(self), state["tensors"], strict=True):
            tensor.copy_(value)


def copies(state: Any, count: int) -> Any:
    return tree_map(lambda tensor: torch.stack(count * [tensor]), state)


def begin(seeds: int) -> Population:
    settings = [method.values.repeat_interleave(seeds) for method in METHODS.values()]
    sizes = [*map(len, settings)]
    states = [copies(m.start, size) for m, size in zip(METHODS.values(), sizes, strict=True)]
    networks = [dict(make_network(seed).named_parameters()) for seed in range(seeds)]
    parameters = {
        name: torch.stack(sum(sizes) // seeds * [network[name].detach() for network in networks])
        for name in networks[0]
    }
    moments = {name: vmap(no_moments)(values) for name, values in parameters.items()}
    return Population(tuple(settings), tuple(states), parameters, moments)


def balance(
    population: Population, losses: Tensor, drawn: Tensor
) -> tuple[Tensor, tuple[Any, ...]]:
    """The task weights of all members, shape (members, 5), and the new states."""
    settings, states, *_ = population
    parts = zip(
        METHODS.values(), losses.split([*map(len, settings)]), states, settings, strict=True
    )
    balanced = [
        vmap(method.balance, in_dims=(0, 0, 0, None))(*part, drawn) for method, *part in parts
    ]
    weights, new = zip(*balanced, strict=True)
    return torch.cat(weights), new


def take_step(
    population: Population, points: Points, rate: Tensor, drawn: Tensor
) -> tuple[Population, Tensor]:
    """The population after the step, and its losses before it, shape (members, 5)."""
    settings, _, parameters, moments = population
    losses, pullback = vjp(vmap(partial(losses_of, points=points)), parameters)
    weights, states = balance(population, losses, drawn)
    (gradient,) = pullback(weights)
    move = vmap(partial(adam, lr=rate))
    moved = {name: move(parameters[name], gradient[name], moments[name]) for name in parameters}
    parameters = {name: values for name, (values, _) in moved.items()}
    moments = {name: new for name, (_, new) in moved.items()}
    return Population(settings, states, parameters, moments), losses


def update(population: Population, before: Tensor, points: Points) -> Population:
    """Let the methods learn that look at the losses again, after the step from these losses."""
    sizes = [*map(len, population.settings)]
    parameters = {name: values.split(sizes) for name, values in population.parameters.items()}
    states = [*population.states]
    for row, (method, losses) in enumerate(zip(METHODS.values(), before.split(sizes), strict=True)):
        if method.update is not None:
            members = {name: parts[row] for name, parts in parameters.items()}
            after = vmap(partial(losses_of, points=points))(members)
            states[row] = vmap(method.update)(losses, after, states[row], population.settings[row])
    return population._replace(states=tuple(states))


class Settings(NamedTuple):
    """A checkpoint of a training with other settings is refused."""

    steps: int
    seeds: int

    def rate(self, step: int) -> float:
        return LEARNING_RATE * (1 + math.cos(math.pi * step / self.steps)) / 2


def train(population: Population, settings: Settings, directory: Path, every: int) -> Population:
    """Train a population, from its checkpoint if there is one."""
    with writing_to(directory):
        open_directory(directory)
        behind = resume(population, directory, settings)
    take = take_step
    if settings.steps >= COMPILE_FROM:
        take = torch.compile(take_step, fullgraph=True)
    with tqdm(total=settings.steps, initial=behind, unit="step", mininterval=1) as bar:
        bar.set_description(f"{sum(map(len, population.settings))} trainings as one program")
        for step in range(behind, settings.steps):
            generator = torch.Generator().manual_seed(step)
            points, drawn = draw_points(generator), torch.rand((), generator=generator)
            population, losses = take(population, points, torch.tensor(settings.rate(step)), drawn)
            if step % UPDATE_EVERY == 0:
                population = update(population, losses, points)
            bar.update()
            done = step + 1
            if done % every == 0 or done == settings.steps:
                checkpoint = {"settings": settings._asdict(), "step": done}
                with writing_to(directory):
                    path = directory / f"step-{done:08d}.pt"
                    save({**checkpoint, "training": population.state_dict()}, path, keep=1)
    return population


def train_alone(
    network: nn.Module, scalarizer: Scalarizer, settings: Settings, on_step: Callable[[], Any]
) -> None:
    """One training by the module and by torch's Adam, on the points of the population."""
    groups = [
        {"params": network.parameters()},
        {"params": scalarizer.parameters(), "lr": SCALES_LEARNING_RATE},
    ]
    optimizer = torch.optim.Adam(groups, lr=LEARNING_RATE)
    schedule = make_schedule(optimizer, settings.steps)
    for step in range(settings.steps):
        points = draw_points(torch.Generator().manual_seed(step))
        losses = partial(losses_of, dict(network.named_parameters()), points)
        optimizer.zero_grad()
        scalarizer(losses()).backward()
        optimizer.step()
        if step % UPDATE_EVERY == 0:
            scalarizer.update(losses)
        schedule.step()
        on_step()


def polish(
    network: nn.Module, scalarizer: Scalarizer, evaluations: int, on_step: Callable[[], Any]
) -> None:
    """L-BFGS on one function: fixed points, and the weights that the training ended with."""
    network.double()  # the line search compares scalars that are almost equal
    scalarizer.double().eval()
    drawn = draw_points(torch.Generator().manual_seed(FRESH), 2048, 128)
    points = Points(*(part.double() for part in drawn))
    optimizer = torch.optim.LBFGS(
        network.parameters(),
        max_iter=evaluations,
        max_eval=evaluations,
        history_size=50,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        scalar = scalarizer(losses_of(dict(network.named_parameters()), points))
        scalar.backward()
        on_step()
        return scalar

    optimizer.step(closure)


def grid() -> Tensor:
    along = torch.linspace(-1, 1, SIDE)
    return torch.cartesian_prod(along, along)


def error_of(u: Tensor) -> Tensor:
    """The relative L2 error of the values `u`, shape (..., SIDE * SIDE)."""
    exact = solution(grid())
    return torch.linalg.vector_norm(u - exact, dim=-1) / torch.linalg.vector_norm(exact)


class Outcome(NamedTuple):
    """Of a method, by setting and seed."""

    u: Tensor  # (settings, seeds, SIDE * SIDE)
    error: Tensor  # (settings, seeds)
    losses: Tensor  # (settings, seeds, 5), on points never trained on
    weights: Tensor  # (settings, seeds, 5), from these losses

    @property
    def best(self) -> int:
        return int(self.error.mean(dim=1).argmin())


def evaluate(population: Population, seeds: int) -> dict[str, Outcome]:
    """The outcome of each method."""
    points = draw_points(torch.Generator().manual_seed(FRESH + 1), 1024, 128)
    u = vmap(partial(field, points=grid()), chunk_size=8)(population.parameters)
    losses = vmap(partial(losses_of, points=points), chunk_size=8)(population.parameters)
    weights, _ = balance(population, losses, torch.zeros(()))
    sizes = [*map(len, population.settings)]
    parts = zip(*(all_.split(sizes) for all_ in (u, error_of(u), losses, weights)), strict=True)
    return {
        name: Outcome(*(values.unflatten(0, (-1, seeds)) for values in part))
        for name, part in zip(METHODS, parts, strict=True)
    }


def print_table(outcomes: dict[str, Outcome]) -> None:
    columns = (
        "relative\nL2 error",
        "residual\nloss",
        "boundary\nloss",
        "boundary weight /\nresidual's",
    )
    table = make_table("\nmethod", "\nsetting", *columns, left=2, gap=2)
    for name, (_, error, losses, weights) in outcomes.items():
        method = METHODS[name]
        for row in dict.fromkeys([method.default, outcomes[name].best]):
            ratio = weights[row, :, 1:].mean(dim=-1) / weights[row, :, 0]
            table.add_row(
                name,
                method.name_of(row),
                mean_and_std(error[row], 3),
                f"{losses[row, :, 0].mean():.2g}",
                f"{losses[row, :, 1:].mean():.2g}",
                f"{ratio.mean():.2g}",
            )
    CONSOLE.print(table)


def best_of(outcomes: dict[str, Outcome]) -> str:
    return min(outcomes, key=lambda name: outcomes[name].error.mean(dim=1).amin().item())


def finish(method: Method, row: int, settings: Settings, evaluations: int) -> None:
    """One configuration once more, by the modules, and then L-BFGS."""
    network, scalarizer = make_network(0), method.module(method.values[row].item())
    with tqdm(total=settings.steps + evaluations, unit="step", mininterval=1) as bar:
        bar.set_description("the best once more, by modules")
        train_alone(network, scalarizer, settings, bar.update)
        before = error_of(field(dict(network.named_parameters()), grid()))
        polish(network, scalarizer, evaluations, bar.update)
    after = error_of(field(dict(network.named_parameters()), grid().double()))
    print(f"relative L2 error {before:.3g} after Adam, {after:.2g} after L-BFGS")


@picture_style
def draw_picture(outcomes: dict[str, Outcome], path: Path, quick: bool) -> None:
    """Above, the error of each method over its setting; below, some fields."""
    figure = Figure(figsize=(18, 12), layout="constrained")
    if quick:
        figure.suptitle(TOO_SHORT)
    above, below = figure.subfigures(2, 1, height_ratios=[1.3, 1])
    panels = dict(zip(LABELS, above.subplots(1, len(LABELS), sharey=True), strict=True))
    for setting, axes in panels.items():
        axes.axhline(1, color="black", linewidth=1, linestyle="--", label="u = 0")
        axes.set(xscale="log", yscale="log", xlabel=LABELS[setting])
    for (name, method), colour in zip(METHODS.items(), COLOURS, strict=True):
        axes, error = panels[method.setting], outcomes[name].error
        axes.plot(method.values, error.mean(dim=1), color=colour, label=name)
        axes.plot(method.values, error, "o", color=colour, alpha=0.4)
    low, high = panels["weight"].get_ylim()
    plain_sum = outcomes["fixed weight"].error[0].mean().item()
    for axes in panels.values():
        axes.axhspan(low, plain_sum, color=BETTER, zorder=0, label="better than Sum")
        axes.set_ylim(low, high)
    lines = [axes.get_legend_handles_labels() for axes in panels.values()]
    legend = {name: line for part in lines for line, name in zip(*part, strict=True)}
    above.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=4)
    panels["weight"].set_ylabel("relative L2 error: of each seed, and their mean\n← less is better")

    best = best_of(outcomes)
    fields = {
        "the solution": solution(grid()),
        "Sum": outcomes["fixed weight"].u[0, 0],
        "FAMO with a floor": outcomes["FAMO"].u[outcomes["FAMO"].best, 0],
        f"{best}, {METHODS[best].name_of(outcomes[best].best)}": (
            outcomes[best].u[outcomes[best].best, 0]
        ),
    }
    for axes, (title, u) in zip(below.subplots(1, 4, sharey=True), fields.items(), strict=True):
        axes.set(title=title, xticks=(-1, 0, 1), yticks=(-1, 0, 1))
        axes.grid(visible=False)
        values: Any = u.reshape(SIDE, SIDE).T.numpy()
        options: Any = {"extent": (-1, 1, -1, 1), "origin": "lower", "cmap": "RdBu_r"}
        image = axes.imshow(values, vmin=-1.5, vmax=1.5, **options)
    below.colorbar(image, ax=below.axes, extend="both", shrink=0.7, label="u")
    figure.savefig(path, dpi=100)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Weigh the losses of a physics-informed network.")
    parser.add_argument("--quick", action="store_true", help="1 seed of 10 steps")
    parser.add_argument("--steps", type=count, help="of each training; default: 2500")
    parser.add_argument("--seeds", type=count, help="of the initial weights; default: 3")
    parser.add_argument(
        "--every", type=count, default=100, help="steps to a checkpoint; default: 100"
    )
    parser.add_argument("--dir", type=Path, help="of the checkpoint; default: runs/helmholtz")
    parser.add_argument(
        "--out", type=picture_path, default="helmholtz.png", help="the picture's path"
    )
    args = parser.parse_args(argv)
    steps, seeds, evaluations, name = (10, 1, 5, "-quick") if args.quick else (2500, 3, 1500, "")
    settings = Settings(args.steps or steps, args.seeds or seeds)
    directory = args.dir or Path(f"runs/helmholtz{name}")
    torch.set_num_threads(1)  # as in digits.py
    population = train(begin(settings.seeds), settings, directory, args.every)
    outcomes = evaluate(population, settings.seeds)
    print_table(outcomes)
    best = best_of(outcomes)
    method, row = METHODS[best], outcomes[best].best
    print(f"\nThe best, {best}, {method.name_of(row)}, once more by the modules, seed 0:")
    finish(method, row, settings, evaluations)
    draw_picture(outcomes, args.out, args.quick)
    print(f"\npicture: {args.out}")
    if args.quick:
        print(f"\n{TOO_SHORT}")


if __name__ == "__main__":
    run_program(main)
