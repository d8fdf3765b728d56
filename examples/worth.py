"""How many trials of constant weights is a method worth?

Tuned constant weights often match every method that balances (Kurin et al. 2022, Xin et al. 2022),
but they have to be found. Here 256 vectors of constant weights, log-uniform around the inverse of
the first losses and two decades wide, each at three learning rates, train as one `vmap`ped and
compiled program: the network of `digits.py` with its four tasks, or that of `qm9.py` with its
eleven. The best of N of them, chosen on validation and measured on test, improves with N. Every
method trains at its defaults, at the learning rate of the three that is best on validation. It is
worth as many trials as bring constant weights to its result.

    python examples/worth.py                           # half an hour on two cores
    python examples/worth.py --problem digits QM9      # two hours; pip install '.[qm9]'
    python examples/worth.py --problem digits QM9 --width 512 --vectors 32 --seeds 1    # an hour
    python examples/worth.py --quick                   # a minute, to see that it runs

What is finished is kept in `runs/worth` until the code of `measure` changes: a stopped run goes on.
The program draws the picture `worth.png` and prints (2 cores of an AMD EPYC, busy with other work):

digits, AdamW, width 64: 3 seeds, 20 epochs, 256 vectors

method                  delta-m, %   worth in trials   each seed's   seconds
──────────────────────────────────────────────────────────────────────────────
Sum                      0.0 ± 0.0                 1           1-2       0.8
Constant                -5.5 ± 3.8                 2           2-4       0.7
LogSum                  -5.0 ± 2.8                 2           1-3       0.7
GeometricMean           -3.6 ± 5.2                 2           1-2       0.7
Random                  12.4 ± 3.2                 1             1       0.7
STCH                    -6.0 ± 2.3                 3           2-3       0.7
UW                       1.2 ± 2.8                 1             1       0.8
IMTLL                    0.3 ± 1.4                 1           1-2       0.7
DWA                      0.1 ± 0.6                 1           1-2       0.7
ReLoBRaLo                2.6 ± 6.1                 1             1       0.7
FAMO                    -8.2 ± 2.9                 5             5       0.6
best of 1 constant      -2.5 ± 4.1                 1                     0.6
best of 4 constant      -7.9 ± 3.0                 4                     2.5
best of 16 constant    -10.5 ± 2.3                16                     9.9
best of 64 constant    -12.0 ± 1.9                64                    39.6
best of 256 constant   -13.1 ± 1.7               256                   158.2

digits, SGD, width 64: 3 seeds, 20 epochs, 256 vectors

method                   delta-m, %   worth in trials   each seed's   seconds
───────────────────────────────────────────────────────────────────────────────
Sum                       0.0 ± 0.0                 1             1       0.4
Constant               -84.5 ± 32.5                 5           4-7       0.4
LogSum                 -73.8 ± 28.3                 2           1-2       0.4
GeometricMean          -77.4 ± 31.0                 2           2-5       0.4
Random                   22.0 ± 6.5                 1             1       0.4
STCH                   -75.0 ± 33.9                 2             2       0.5
UW                     -45.0 ± 28.3                 1             1       0.5
IMTLL                  -71.1 ± 28.2                 2           1-2       0.4
DWA                      3.5 ± 12.7                 1             1       0.5
ReLoBRaLo               12.8 ± 18.4                 1             1       0.6
FAMO                   -62.9 ± 31.8                 1             1       0.5
best of 1 constant     -67.4 ± 29.2                 1                     0.6
best of 4 constant     -83.6 ± 30.8                 4                     2.2
best of 16 constant    -88.2 ± 31.0                16                     8.9
best of 64 constant    -89.7 ± 31.5                64                    35.7
best of 256 constant   -89.8 ± 31.0               256                   142.9

QM9, AdamW, width 64: 3 seeds, 20 epochs, 256 vectors

method                   delta-m, %   worth in trials   each seed's   seconds
───────────────────────────────────────────────────────────────────────────────
Sum                       0.0 ± 0.0                 3           2-4       4.2
LogSum                  -17.8 ± 2.5               111      34-> 256       1.4
GeometricMean           -18.1 ± 1.1               140      48-> 256       1.5
Random                   10.2 ± 2.3                 2           1-2       1.4
STCH                   263.8 ± 31.5                 1             1       1.0
UW                      -19.2 ± 5.7             > 256      33-> 256       1.5
IMTLL                   -19.2 ± 5.7             > 256      33-> 256       1.3
DWA                       0.4 ± 0.1                 3           2-4       1.3
ReLoBRaLo                 1.9 ± 0.3                 3           2-3       1.7
FAMO                    -15.8 ± 1.9                41         19-96       2.0
best of 1 constant       12.0 ± 3.8                 1                     2.0
best of 4 constant       -4.7 ± 3.2                 4                     8.1
best of 16 constant     -12.8 ± 2.7                16                    32.2
best of 64 constant     -16.8 ± 2.5                64                   129.0
best of 256 constant    -18.5 ± 2.0               256                   516.0

QM9, SGD, width 64: 3 seeds, 20 epochs, 256 vectors

method                    delta-m, %   worth in trials   each seed's   seconds
────────────────────────────────────────────────────────────────────────────────
Sum                        0.0 ± 0.0                 7           6-8       0.6
LogSum                   47.4 ± 12.6                 1             1       0.3
GeometricMean             -1.7 ± 5.4                 8          5-13       0.3
Random                   21.3 ± 20.2                 2           1-4       0.3
STCH                     368.3 ± 4.1                 1             1       0.3
UW                     347.5 ± 350.7                 1           1-2       0.3
IMTLL                  333.9 ± 245.7                 1             1       0.3
DWA                        0.3 ± 0.5                 7           6-8       0.3
ReLoBRaLo                  0.1 ± 1.1                 7           6-9       0.4
FAMO                      19.5 ± 6.4                 2           2-3       0.3
best of 1 constant        29.2 ± 0.6                 1                     0.6
best of 4 constant         4.6 ± 0.9                 4                     2.2
best of 16 constant       -6.1 ± 1.3                16                     8.9
best of 64 constant      -11.7 ± 1.1                64                    35.7
best of 256 constant     -13.7 ± 1.4               256                   142.7

delta-m: mean relative change of the metrics against Sum, on test; negative is better.
Worth: the least N of which the best, chosen on validation, is as good on average.
seconds: of one training of a method; of N trials as one program.

In the picture, 80 % of the draws of N trials end in the grey band. Methods above are left out.

What it says:

- With four tasks a search is cheap: 1 to 5 trials of constant weights are as good as any method,
  and the best of 256 is better than all of them.
- With eleven tasks and AdamW, methods that correct for scale are worth 41 trials (FAMO), 111
  (LogSum), 140 (GeometricMean) and more than 256 (UW, IMTLL). STCH without weights, Random, DWA and
  ReLoBRaLo are worth no more than Sum.
- Under SGD, the scale of the scalar is the length of a step. The gradients of LogSum, UW and IMTLL
  grow as the losses fall, and on QM9 even the smallest of the three rates may be too large: they
  are worth one trial, FAMO two, GeometricMean eight, and Sum seven.
- In a wider network the methods are worth less (512 units, 32 vectors, one seed). On the digits
  under AdamW FAMO and STCH are worth two trials, Constant four, all others one; under SGD Constant
  and GeometricMean three, UW and ReLoBRaLo two, all others one. On QM9 under AdamW GeometricMean is
  worth 11, FAMO 10, DWA 5, Sum 4, and all others one, also LogSum and UW: for them the smallest
  rate is too large. With `--rate 1e-4 3e-4 1e-3`, LogSum (-7.6 %) is worth more than 32 trials, UW
  and IMTLL 11, and the rest as many as before. On QM9 under SGD Sum is worth 10, DWA 9,
  GeometricMean 4, FAMO 2, and all others one.
"""

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from digits import (
    CONSOLE,
    INVERSE_SIZES,
    METHODS,
    TASKS,
    TOO_SHORT,
    Network,
    available_device,
    count,
    evaluate,
    load_parts,
    make_table,
    mean_and_std,
    picture_path,
    picture_style,
    positive,
    run_program,
    task_losses,
    writable_directory,
)
from joblib import Memory
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from tqdm import tqdm

from mtl_scalarize import STCH, Scalarizer, constant_combine

BATCH_SIZE = 200
MOLECULES = 8000  # of QM9: 5,000 to train on, 1,000 to choose by, 2,000 to test on
DECADES = 2  # that a weight is drawn from
DRAWS = 2000  # of N trials out of all
MOMENTUM, BETAS, DECAY = 0.9, (0.9, 0.999), 0.01  # of SGD; of AdamW, as torch's defaults
SCALARIZER_RATE = 1e-2  # of UW's and IMTL-L's parameters

Parameters = dict[str, Tensor]


class Problem(NamedTuple):
    """Data, network, losses and metrics. Of an example, the first field is the network's input."""

    load: Callable[[int, str], Sequence[Any]]  # a seed's parts: to train on, validation, test
    network: Callable[[int, Any], nn.Module]  # of a width, for such examples
    losses: Callable[[Any, Any], Tensor]  # (K,), of outputs and examples
    evaluate: Callable[[Callable[[Tensor], Any], Any], Tensor]  # the metrics
    signs: Tensor  # of each metric: 1 where more is better, -1 where less is
    inverse_sizes: Tensor  # (K,): of the losses before training
    methods: Mapping[str, Callable[..., Scalarizer]]  # Sum is the first


class Setting(NamedTuple):
    """A problem, a network and its optimizer, and how much is tried."""

    problem: str
    optimizer: str
    width: int
    rates: tuple[float, ...]
    vectors: int
    epochs: int

    def __str__(self) -> str:
        return f"{self.problem}, {self.optimizer}, width {self.width}"


class Outcome(NamedTuple):
    """Metrics on validation and test, (2, M), of each method and each vector at its best rate."""

    methods: Tensor  # (methods, 2, M); Sum is the first
    vectors: Tensor  # (vectors, 2, M)
    seconds: Tensor  # (methods + 1,): of one training; the last of all vectors together


def digits_problem() -> Problem:
    return Problem(
        load=lambda seed, device: load_parts(seed, device, {1200: 8000, 200: 2000, 397: 2000}),
        network=lambda width, _: Network(width),
        losses=task_losses,
        evaluate=evaluate,
        signs=torch.tensor([float(task.sign) for task in TASKS]),
        inverse_sizes=INVERSE_SIZES,
        methods=METHODS,
    )


class Molecules(NamedTuple):
    features: Tensor  # (N, F), standardised
    targets: Tensor  # (N, 11), standardised

    def take(self, index: Tensor) -> "Molecules":
        return Molecules(self.features[index], self.targets[index])


def qm9_problem() -> Problem:
    """The losses are about 1 before training: `Constant` would be `Sum`, and is left out."""
    qm9 = import_module("qm9")

    def load(seed: int, device: str) -> list[Molecules]:
        parts = qm9.split(qm9.load(qm9.packaged(), MOLECULES), seed)[:3]
        return [Molecules(*(torch.from_numpy(v).to(device) for v in part)) for part in parts]

    def of_networks(network: Callable[[Tensor], Tensor], part: Molecules) -> Tensor:
        with torch.no_grad():
            return (network(part.features) - part.targets).abs().mean(dim=0)

    tasks = len(qm9.TARGETS)
    return Problem(
        load=load,
        network=lambda width, part: qm9.make_network(part.features.shape[1], tasks, width),
        losses=lambda outputs, part: (outputs - part.targets).square().mean(dim=0),
        evaluate=of_networks,
        signs=-torch.ones(tasks),
        inverse_sizes=torch.ones(tasks),
        methods={n: m for n, m in METHODS.items() if n != "Constant"}
        | {"STCH": partial(STCH, 0.1)},
    )


PROBLEMS = {"digits": digits_problem, "QM9": qm9_problem}


def batches(examples: Any, epochs: int, seed: int) -> list[Any]:
    order = torch.Generator().manual_seed(seed)
    return [
        examples.take(index.to(examples[0].device))
        for _ in range(epochs)
        for index in torch.randperm(len(examples[0]), generator=order).split(BATCH_SIZE)
    ]


def step_of_one(
    problem: Problem, optimizer: str, network: nn.Module
) -> Callable[..., tuple[Parameters, Parameters, Parameters]]:
    """A step of the training with one vector of constant weights, as a pure function."""

    def loss_of(parameters: Parameters, batch: Any, weights: Tensor) -> Tensor:
        losses = problem.losses(functional_call(network, parameters, batch[0]), batch)
        return constant_combine(losses, priorities=weights)

    def step(
        parameters: Parameters,
        first: Parameters,
        second: Parameters,
        batch: Any,
        number: Tensor,
        weights: Tensor,
        rate: Tensor,
    ) -> tuple[Parameters, Parameters, Parameters]:
        slopes = grad(loss_of)(parameters, batch, weights)
        if optimizer == "SGD":
            first = {name: MOMENTUM * first[name] + slope for name, slope in slopes.items()}
            parameters = {name: p - rate * first[name] for name, p in parameters.items()}
            return parameters, first, second
        first = {n: torch.lerp(first[n], slope, 1 - BETAS[0]) for n, slope in slopes.items()}
        second = {n: torch.lerp(second[n], slope**2, 1 - BETAS[1]) for n, slope in slopes.items()}
        scale, scale_sq = 1 - BETAS[0] ** number, 1 - BETAS[1] ** number
        parameters = {
            name: (1 - rate * DECAY) * p
            - rate * first[name] / scale / ((second[name] / scale_sq).sqrt() + 1e-8)
            for name, p in parameters.items()
        }
        return parameters, first, second

    return step


def draw_vectors(problem: Problem, number: int) -> Tensor:
    """Constant weights, (number, K): the same for every seed and setting."""
    generator = torch.Generator().manual_seed(0)
    shape = number, len(problem.inverse_sizes)
    decades = DECADES * (torch.rand(shape, generator=generator) - 0.5)
    return problem.inverse_sizes * 10**decades


def train_vectors(
    setting: Setting, parts: Sequence[Any], seed: int, on_step: Callable[[], object]
) -> Tensor:
    """Metrics of all vectors at all rates as one program: (rates, vectors, 2, M)."""
    problem, device = PROBLEMS[setting.problem](), parts[0][0].device
    weights = draw_vectors(problem, setting.vectors).repeat(len(setting.rates), 1).to(device)
    rates = torch.tensor(setting.rates).repeat_interleave(setting.vectors).to(device)
    torch.manual_seed(seed)
    network = problem.network(setting.width, parts[0]).to(device)
    start = {name: p.detach() for name, p in network.named_parameters()}
    parameters = {name: p.expand(len(rates), *p.shape).clone() for name, p in start.items()}
    first, second = ({n: torch.zeros_like(p) for n, p in parameters.items()} for _ in range(2))
    step = step_of_one(problem, setting.optimizer, network)
    step = torch.compile(vmap(step, in_dims=(0, 0, 0, None, None, 0, 0)), fullgraph=True)
    for number, batch in enumerate(batches(parts[0], setting.epochs, seed), start=1):
        at = torch.tensor(float(number), device=device)
        parameters, first, second = step(parameters, first, second, batch, at, weights, rates)
        on_step()

    def metrics_of(parameters: Parameters) -> Tensor:
        trained = partial(functional_call, network, parameters)
        return torch.stack([problem.evaluate(trained, part) for part in parts[1:]])

    metrics: Tensor = vmap(metrics_of, chunk_size=32)(parameters)
    return metrics.cpu().unflatten(0, (len(setting.rates), setting.vectors))


def train_method(
    method: str, setting: Setting, rate: float, parts: Sequence[Any], seed: int
) -> Tensor:
    """Metrics of one method at one rate: (2, M)."""
    problem, device = PROBLEMS[setting.problem](), parts[0][0].device
    torch.manual_seed(seed)
    network = problem.network(setting.width, parts[0]).to(device)
    scalarizer = problem.methods[method](len(problem.inverse_sizes)).to(device)
    learned = {"params": scalarizer.parameters(), "lr": SCALARIZER_RATE, "weight_decay": 0.0}
    groups = [{"params": network.parameters()}, learned]
    if setting.optimizer == "SGD":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, rate, momentum=MOMENTUM)
    else:
        optimizer = torch.optim.AdamW(groups, rate, BETAS, weight_decay=DECAY)
    steps = -(-len(parts[0][0]) // BATCH_SIZE)  # in an epoch
    for number, batch in enumerate(batches(parts[0], setting.epochs, seed)):

        def losses_of(batch: Any = batch) -> Tensor:
            return problem.losses(network(batch[0]), batch)

        optimizer.zero_grad()
        scalarizer(losses_of()).backward()
        optimizer.step()
        if number % 10 == 0:
            scalarizer.update(losses_of)
        if number % steps == steps - 1:
            scalarizer.step()
    return torch.stack([problem.evaluate(network, part) for part in parts[1:]]).cpu()


def delta_m(metrics: Tensor, baseline: Tensor, signs: Tensor) -> Tensor:
    """The mean relative change of the metrics in %; negative is better than the baseline."""
    return (-100 * signs * (metrics - baseline) / baseline).mean(dim=-1).nan_to_num(nan=torch.inf)


def at_best_rate(metrics: Tensor, baseline: Tensor, signs: Tensor) -> Tensor:
    """Of (rates, ..., 2, M), those at the rate that is best on validation: (..., 2, M)."""
    score = delta_m(metrics, baseline, signs)[..., 0]
    best = score.argmin(dim=0).reshape(1, *score.shape[1:], 1, 1)
    return metrics.take_along_dim(best.expand(1, *metrics.shape[1:]), dim=0)[0]


def measure(setting: Setting, seed: int, device: str) -> Outcome:
    problem = PROBLEMS[setting.problem]()
    parts = problem.load(seed, device)
    steps = setting.epochs * -(-len(parts[0][0]) // BATCH_SIZE)
    found, seconds = [], []
    with tqdm(
        total=len(problem.methods) + steps, desc=f"{setting}, seed {seed}", leave=False
    ) as bar:
        for method in problem.methods:
            start = time.perf_counter()
            runs = [train_method(method, setting, rate, parts, seed) for rate in setting.rates]
            found.append(torch.stack(runs))
            seconds.append((time.perf_counter() - start) / len(runs))
            bar.update()
        # Sum, at the rate that is least bad against Sum at the first rate.
        sums = found[0]
        baseline = sums[delta_m(sums[:, 0], sums[0, 0], problem.signs).argmin()]
        start = time.perf_counter()
        vectors = train_vectors(setting, parts, seed, bar.update)
        seconds.append(time.perf_counter() - start)
    methods = torch.stack([at_best_rate(runs, baseline, problem.signs) for runs in found])
    vectors = at_best_rate(vectors, baseline, problem.signs)
    return Outcome(methods, vectors, torch.tensor(seconds))


def best_of(outcome: Outcome, signs: Tensor) -> tuple[Tensor, Tensor]:
    """Delta-m on test in %: of each method (methods,), and of the best of N vectors (draws, N)."""
    baseline = outcome.methods[0]
    validation, test = delta_m(outcome.vectors, baseline, signs).unbind(dim=1)
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(DRAWS, len(test), generator=generator).argsort(dim=1)
    best = validation[order].cummin(dim=1).indices
    return delta_m(outcome.methods, baseline, signs)[:, 1], test[order.gather(1, best)]


def worth(curve: Tensor, value: Tensor) -> int:
    """The least N whose curve is as good as the value; 0 if there is none."""
    reached = (curve <= value).nonzero()
    return int(reached[0]) + 1 if len(reached) else 0


class Result(NamedTuple):
    """Of one setting, delta-m on test in %."""

    setting: Setting
    methods: Mapping[str, Tensor]  # (seeds,)
    draws: Tensor  # (seeds, DRAWS, N): of the best of N vectors
    seconds: Sequence[float]  # as those of `Outcome`, of the fastest seed


def result_of(setting: Setting, outcomes: Sequence[Outcome]) -> Result:
    problem = PROBLEMS[setting.problem]()
    values, draws = zip(*(best_of(outcome, problem.signs) for outcome in outcomes), strict=True)
    methods = dict(zip(problem.methods, torch.stack(values, dim=1), strict=True))
    seconds = torch.stack([outcome.seconds for outcome in outcomes]).amin(dim=0)
    return Result(setting, methods, torch.stack(draws), seconds.tolist())


def print_table(result: Result) -> None:
    setting, curves = result.setting, result.draws.mean(dim=1)

    def trials(numbers: Sequence[int]) -> str:
        texts = [f"> {setting.vectors}" if not number else str(number) for number in numbers]
        return texts[0] if len(set(texts)) == 1 else f"{texts[0]}-{texts[-1]}"

    table = make_table("method", "delta-m, %", "worth in trials", "each seed's", "seconds", gap=2)
    for (method, runs), cost in zip(result.methods.items(), result.seconds, strict=False):
        of_seeds = [worth(curve, run) for curve, run in zip(curves, runs, strict=True)]
        of_seeds.sort(key=lambda number: number or math.inf)
        cells = trials([worth(curves.mean(dim=0), runs.mean())]), trials(of_seeds)
        table.add_row(method, mean_and_std(runs, 1), *cells, f"{cost:.1f}")
    for number in (1, 4, 16, 64, 256):
        if number <= setting.vectors:
            runs = mean_and_std(curves[:, number - 1], 1)
            cost = f"{result.seconds[-1] / setting.vectors * number:.1f}"
            table.add_row(f"best of {number} constant", runs, str(number), "", cost)
    print(f"\n{setting}: {len(curves)} seeds, {setting.epochs} epochs, {setting.vectors} vectors\n")
    CONSOLE.print(table)


@picture_style
def draw_picture(results: Sequence[Result], path: Path, quick: bool) -> None:
    columns = min(2, len(results))
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(8 * columns, 7 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for axes, result in zip(grid, results, strict=False):
        draw_panel(axes, result)
    for axes in [*grid]:
        axes.remove()
    if quick:
        figure.suptitle(TOO_SHORT)
    figure.savefig(path, dpi=70)


def draw_panel(axes: Axes, result: Result) -> None:
    """The curve of the best of N, and a line for each method, named at its right end."""
    numbers = range(1, result.setting.vectors + 1)
    draws = result.draws.flatten(0, 1)
    low, high = draws.quantile(torch.tensor([0.1, 0.9]), dim=0).numpy()
    axes.fill_between(numbers, low, high, color="#bbbbbb", alpha=0.5, linewidth=0)
    axes.plot(numbers, draws.mean(dim=0), color="black", linewidth=3)
    means = {method: runs.mean().item() for method, runs in result.methods.items()}
    bottom = min(*means.values(), float(draws.mean(dim=0).min()))
    top = max(0.0, float(draws[:, 0].mean()))
    bottom, top = bottom - 0.06 * (top - bottom), top + 0.2 * (top - bottom)
    axes.set(title=str(result.setting), xlabel="N, trials of constant weights", xscale="log")
    axes.set(xlim=(1, len(numbers)), ylim=(bottom, top))
    axes.set_ylabel("delta-m on test, %  (less is better)")
    axes.xaxis.set_major_formatter("{x:g}")
    at = bottom
    for method, mean in sorted(means.items(), key=lambda item: item[1]):
        if mean > top:  # off the picture
            continue
        axes.axhline(mean, color=COLOURS.get(method, "#999999"), linestyle="--", linewidth=1.5)
        at = max(mean, at)  # where the name does not cover the one below
        axes.annotate(
            method,
            (1, mean),
            (1.04, (at - bottom) / (top - bottom)),
            ("axes fraction", "data"),
            "axes fraction",
            color=COLOURS.get(method, "#666666"),
            va="center",
            arrowprops={"arrowstyle": "-", "color": "#999999", "relpos": (0, 0.5)},
        )
        at += 0.06 * (top - bottom)


RATES = {"AdamW": (1e-3, 3e-3, 1e-2), "SGD": (1e-3, 1e-2, 1e-1)}
COLOURS = {"FAMO": "#d55e00", "LogSum": "#0072b2", "Constant": "#000000", "Sum": "#000000"}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="How many trials is a method worth?")
    parser.add_argument("--quick", action="store_true", help="8 vectors, 1 seed of 1 epoch")
    parser.add_argument("--epochs", type=count, help="of each training; default: 20")
    parser.add_argument("--seeds", type=count, help="how many; default: 3")
    parser.add_argument("--vectors", type=count, help="of constant weights; default: 256")
    parser.add_argument("--problem", nargs="+", choices=list(PROBLEMS), default=["digits"])
    parser.add_argument("--width", type=count, nargs="+", default=[64], help="default: 64")
    parser.add_argument("--optimizer", nargs="+", choices=list(RATES), default=list(RATES))
    parser.add_argument(
        "--rate", type=positive, nargs="+", help="to choose from; default: 3, by the optimizer"
    )
    parser.add_argument("--device", type=available_device, default="cpu", help="default: cpu")
    parser.add_argument(
        "--cache", type=writable_directory, default="runs/worth", help="keeps what is finished"
    )
    parser.add_argument("--out", type=picture_path, default="worth.png", help="the picture's path")
    args = parser.parse_args(argv)
    vectors, seeds, epochs = (8, 1, 1) if args.quick else (256, 3, 20)
    vectors, seeds, epochs = args.vectors or vectors, args.seeds or seeds, args.epochs or epochs
    remembered = Memory(args.cache, verbose=0).cache(measure)
    results = []
    try:
        for problem, width, optimizer in product(args.problem, args.width, args.optimizer):
            rates = tuple(args.rate or RATES[optimizer])
            setting = Setting(problem, optimizer, width, rates, vectors, epochs)
            outcomes = [remembered(setting, seed, str(args.device)) for seed in range(seeds)]
            results.append(result_of(setting, outcomes))
            print_table(results[-1])
    except PackageNotFoundError:
        parser.error("QM9 needs qm9pack: pip install '.[qm9]'")
    print(
        "\ndelta-m: mean relative change of the metrics against Sum, on test; negative is better."
    )
    print("Worth: the least N of which the best, chosen on validation, is as good on average.")
    print("seconds: of one training of a method; of N trials as one program.")
    if args.quick:
        print(f"\n{TOO_SHORT}")
    draw_picture(results, args.out, args.quick)
    print(f"\npicture: {args.out}")


if __name__ == "__main__":
    run_program(main)
