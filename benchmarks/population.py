"""256 FAMO configurations train as one program: at least 20 times (eager `vmap`) and 40 times
(compiled `vmap`) as many a second as a loop over torchjd's modules, on two cores.

A configuration is a point of a grid of FAMO's learning rate and weight decay, and trains a MLP
16-32-32-4 of its own on a batch of 32. One step is all that FAMO asks for: losses, weights,
gradient, SGD, the losses again, update of the logits. Before anything is timed, ten steps of all
three have to lead to the same losses. On a GPU they are 4,096, of which the loop trains 256.

    python benchmarks/population.py

CPU Intel(R) Xeon(R) Processor, cores 2, load 1.9, torch 2.13.0+cpu, Python 3.11.7

One step of 256 configurations
                      configurations / s     times the loop       target
────────────────────────────────────────────────────────────────────────
torchjd, loop                      1,069
ours, vmap                        43,693   40.9 (36.4-46.2)   >= 20: met
ours, compiled vmap               86,988   80.7 (68.0-88.1)   >= 40: met
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import harness
import torch
from harness import Cell, Options, Row, Table
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vjp, vmap
from torchjd.scalarization import FAMO

from mtl_scalarize import FAMOState, famo_delta, famo_init, famo_update, famo_weights

SIDES = {"cpu": 16, "cuda": 64}  # of the grid
LOOPED = 256  # configurations: a loop over more takes as long for each
TASKS = 4
LEARNING_RATE = 0.05

# One step of every configuration; what comes back are the losses of each.
Step = Callable[[], Sequence[Tensor] | Tensor]


class Problem(NamedTuple):
    inputs: Tensor
    targets: Tensor
    lr: Tensor  # of FAMO, one for each configuration
    weight_decay: Tensor  # likewise


def make_problem(device: torch.device) -> Problem:
    torch.manual_seed(0)
    side = SIDES[device.type]
    grid = torch.cartesian_prod(torch.logspace(-3, -1, side), torch.logspace(-5, -2, side))
    problem = Problem(torch.randn(32, 16), torch.randn(32, TASKS), *grid.unbind(dim=1))
    return Problem(*(tensor.to(device) for tensor in problem))


def make_networks(problem: Problem) -> list[nn.Module]:
    """One for each configuration, the same each time."""
    torch.manual_seed(1)
    return [
        nn.Sequential(
            nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, TASKS)
        ).to(problem.inputs.device)
        for _ in problem.lr
    ]


def vmapped(problem: Problem, *, compiled: bool) -> Step:
    """All configurations as one program."""
    networks = make_networks(problem)
    parameters, _ = stack_module_state(networks)
    parameters = {name: values.detach() for name, values in parameters.items()}
    one = famo_init(TASKS, device=problem.inputs.device)
    state = FAMOState(*(field.repeat(len(networks), 1) for field in one))

    def losses_of(parameters: dict[str, Tensor]) -> Tensor:
        outputs = functional_call(networks[0], parameters, problem.inputs)
        return (outputs - problem.targets).square().mean(dim=0)

    def step_of_one(
        parameters: dict[str, Tensor], state: FAMOState, lr: Tensor, weight_decay: Tensor
    ) -> tuple[dict[str, Tensor], FAMOState, Tensor]:
        losses, pullback = vjp(losses_of, parameters)
        (gradient,) = pullback(famo_weights(losses, state.logits))
        parameters = {
            name: values - LEARNING_RATE * gradient[name] for name, values in parameters.items()
        }
        delta = famo_delta(losses, losses_of(parameters))
        state = famo_update(state, delta, lr=lr, weight_decay=weight_decay)
        return parameters, state, losses

    step_of_all = vmap(step_of_one)
    if compiled:
        step_of_all = torch.compile(step_of_all, fullgraph=True)

    def step() -> Tensor:
        nonlocal parameters, state
        parameters, state, losses = step_of_all(parameters, state, problem.lr, problem.weight_decay)
        return losses

    return step


def looped(problem: Problem) -> Step:
    """One configuration after the other, each with modules of its own."""
    trainings = [
        (
            network,
            FAMO(TASKS, lr=lr, weight_decay=weight_decay).to(problem.inputs.device),
            torch.optim.SGD(network.parameters(), lr=LEARNING_RATE),
        )
        for network, lr, weight_decay in zip(
            make_networks(problem), problem.lr.tolist(), problem.weight_decay.tolist(), strict=True
        )
    ]

    def step_of_one(
        network: nn.Module, scalarizer: FAMO, optimizer: torch.optim.Optimizer
    ) -> Tensor:
        losses = (network(problem.inputs) - problem.targets).square().mean(dim=0)
        optimizer.zero_grad()
        scalarizer(losses).backward()
        optimizer.step()
        with torch.no_grad():
            scalarizer.update((network(problem.inputs) - problem.targets).square().mean(dim=0))
        return losses.detach()

    return lambda: [step_of_one(*training) for training in trainings]


def measure(options: Options) -> Iterator[Table]:
    problem = make_problem(options.device)
    first = problem._replace(lr=problem.lr[:LOOPED], weight_decay=problem.weight_decay[:LOOPED])
    steps = {
        "torchjd, loop": looped(first),
        "ours, vmap": vmapped(problem, compiled=False),
        "ours, compiled vmap": vmapped(problem, compiled=True),
    }
    losses = [[torch.stack([*step()]) for _ in range(10)][-1] for step in steps.values()]
    for others in losses[1:]:
        torch.testing.assert_close(others[:LOOPED], losses[0], rtol=1e-3, atol=1e-5)

    times = harness.interleave(
        steps,
        rounds=3 if options.quick else 20,
        seconds=0.1,
        threads={"torchjd, loop": 1},  # faster than on two: its operators are too small to share
    )
    targets = {"ours, vmap": 20, "ours, compiled vmap": 40}
    of_one = {
        name: [time / (len(problem.lr) if name in targets else LOOPED) for time in seconds]
        for name, seconds in times.items()
    }
    rows: list[Row] = []
    for name, seconds in of_one.items():
        row: dict[str, Cell] = {
            "": name,
            "configurations / s": f"{1 / statistics.median(seconds):,.0f}",
        }
        if name in targets:
            gain = harness.ratio(of_one["torchjd, loop"], seconds)
            row["times the loop"] = gain
            row["target"] = harness.at_least(targets[name], gain)
        rows.append(row)
    yield Table(f"One step of {len(problem.lr)} configurations", rows)


if __name__ == "__main__":
    harness.run("population", __doc__, measure)
