"""How many trials of constant weights is a method worth?

Tuned constant weights often match every method that balances (Kurin et al. 2022, Xin et al. 2022),
but they have to be found. Here 256 vectors of constant weights, log-uniform around the inverse of
the first losses and two decades wide, each at three learning rates, train on the digits of
`digits.py` as one `vmap`ped and compiled program. The best of N of them, chosen on validation and
measured on test, improves with N. Every method trains at its defaults, at the learning rate of the
three that is best on validation. It is worth as many trials as bring constant weights to its
result.

    python examples/worth.py            # half an hour on two cores
    python examples/worth.py --quick    # a few seconds, to see that it runs

What is finished is kept in `--cache`, from which a stopped run goes on. The program draws the
picture `worth.png` and prints:

AdamW, width 64: 3 seeds, 20 epochs
method                  delta-m, %   worth in trials   each seed's   seconds
──────────────────────────────────────────────────────────────────────────────
Sum                      0.0 ± 0.0                 1           1-2       0.9
Constant                -5.5 ± 3.8                 2           2-4       0.9
LogSum                  -5.0 ± 2.8                 2           1-3       0.9
GeometricMean           -3.6 ± 5.2                 2           1-2       0.9
Random                  12.4 ± 3.2                 1             1       0.8
STCH                    -6.0 ± 2.3                 3           2-3       0.9
UW                       1.2 ± 2.8                 1             1       0.9
IMTLL                    0.3 ± 1.4                 1           1-2       0.9
DWA                      0.1 ± 0.6                 1           1-2       0.8
ReLoBRaLo                2.6 ± 6.1                 1             1       1.0
FAMO                    -8.2 ± 2.9                 5             5       0.8
best of 1 constant      -2.5 ± 4.1                 1                     0.7
best of 4 constant      -7.9 ± 3.0                 4                     2.6
best of 16 constant    -10.5 ± 2.3                16                    10.5
best of 64 constant    -12.0 ± 1.9                64                    42.2
best of 256 constant   -13.1 ± 1.7               256                   168.6

SGD, width 64: 3 seeds, 20 epochs
method                   delta-m, %   worth in trials   each seed's   seconds
───────────────────────────────────────────────────────────────────────────────
Sum                       0.0 ± 0.0                 1             1      28.4
Constant               -84.5 ± 32.5                 5           4-7       0.5
LogSum                 -73.8 ± 28.3                 2           1-2       0.5
GeometricMean          -77.4 ± 31.0                 2           2-5       0.5
Random                   22.0 ± 6.5                 1             1       0.5
STCH                   -75.0 ± 33.9                 2             2       0.5
UW                     -45.0 ± 28.3                 1             1       0.5
IMTLL                  -71.1 ± 28.2                 2           1-2       0.5
DWA                      3.5 ± 12.7                 1             1       0.5
ReLoBRaLo               12.8 ± 18.4                 1             1       1.2
FAMO                   -62.9 ± 31.8                 1             1       0.6
best of 1 constant     -67.4 ± 29.2                 1                     0.7
best of 4 constant     -83.6 ± 30.8                 4                     3.0
best of 16 constant    -88.2 ± 31.0                16                    11.9
best of 64 constant    -89.7 ± 31.5                64                    47.7
best of 256 constant   -89.8 ± 31.0               256                   190.6

delta-m: average relative change of the four metrics against the plain sum, on test;
negative is better. Worth: the least N of which the best, chosen on validation, is as
good on average. seconds: of one training of a method; of N trials as one program.

(2 cores of an AMD EPYC, which another program shared.) Under AdamW the methods are worth one to
five trials, FAMO the most. Under SGD, where the scale of a loss is the length of a step, one random
vector near the inverse losses is better than FAMO, and the inverse losses are worth five.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from digits import (
    CONSOLE,
    INVERSE_SIZES,
    METHODS,
    TASKS,
    TOO_SHORT,
    Network,
    Pairs,
    available_device,
    count,
    delta_m,
    evaluate,
    load_parts,
    make_table,
    mean_and_std,
    picture_path,
    picture_style,
    task_losses,
    writable_directory,
)
from joblib import Memory
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import functional_call, grad, vmap
from tqdm import tqdm

from mtl_scalarize import constant_combine

BATCH_SIZE = 200
DECADES = 2  # that a weight is drawn from
DRAWS = 2000  # of N trials out of all
MOMENTUM, BETAS, DECAY = 0.9, (0.9, 0.999), 0.01  # of SGD; of AdamW, as torch's defaults
SCALARIZER_RATE = 1e-2  # of UW's and IMTL-L's parameters

Parameters = dict[str, Tensor]


class Setting(NamedTuple):
    """Of a network and its optimizer, and how much of it is tried."""

    optimizer: str
    width: int
    rates: tuple[float, ...]
    vectors: int
    epochs: int

    def __str__(self) -> str:
        return f"{self.optimizer}, width {self.width}"


class Outcome(NamedTuple):
    """Metrics on validation and test, (2, 4), of each method and each vector at its best rate."""

    methods: Tensor  # (methods, 2, 4); the plain sum is the first
    vectors: Tensor  # (vectors, 2, 4)
    seconds: Tensor  # (methods + 1,): of one training; the last of all vectors together


def batches(pairs: Pairs, epochs: int, seed: int) -> list[Pairs]:
    order = torch.Generator().manual_seed(seed)
    return [
        pairs.take(index.to(pairs.image.device))
        for _ in range(epochs)
        for index in torch.randperm(len(pairs.image), generator=order).split(BATCH_SIZE)
    ]


def step_of_one(
    optimizer: str,
    width: int,
) -> Callable[..., tuple[Parameters, Parameters, Parameters]]:
    """A step of the training with one vector of constant weights, as a pure function."""
    network = Network(width).to("meta")

    def losses_of(parameters: Parameters, batch: Pairs, weights: Tensor) -> Tensor:
        losses = task_losses(functional_call(network, parameters, batch.image), batch)
        return constant_combine(losses, priorities=weights)

    def step(
        parameters: Parameters,
        first: Parameters,
        second: Parameters,
        batch: Pairs,
        number: Tensor,
        weights: Tensor,
        rate: Tensor,
    ) -> tuple[Parameters, Parameters, Parameters]:
        slopes = grad(losses_of)(parameters, batch, weights)
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


def train_vectors(
    setting: Setting, parts: Sequence[Pairs], seed: int, on_step: Callable[[], object]
) -> Tensor:
    """Metrics of all vectors at all rates as one program: (rates, vectors, 2, 4)."""
    device = parts[0].image.device
    generator = torch.Generator().manual_seed(0)  # the same vectors for every seed and setting
    decades = DECADES * (torch.rand(setting.vectors, len(TASKS), generator=generator) - 0.5)
    weights = (INVERSE_SIZES * 10**decades).repeat(len(setting.rates), 1).to(device)
    rates = torch.tensor(setting.rates).repeat_interleave(setting.vectors).to(device)
    torch.manual_seed(seed)
    start = {name: p.detach().to(device) for name, p in Network(setting.width).named_parameters()}
    parameters = {name: p.expand(len(rates), *p.shape).clone() for name, p in start.items()}
    first, second = ({n: torch.zeros_like(p) for n, p in parameters.items()} for _ in range(2))
    step = vmap(step_of_one(setting.optimizer, setting.width), in_dims=(0, 0, 0, None, None, 0, 0))
    step = torch.compile(step, fullgraph=True)
    for number, batch in enumerate(batches(parts[0], setting.epochs, seed), start=1):
        at = torch.tensor(float(number), device=device)
        parameters, first, second = step(parameters, first, second, batch, at, weights, rates)
        on_step()

    network = Network(setting.width).to("meta")

    def metrics_of(parameters: Parameters) -> Tensor:
        return torch.stack(
            [evaluate(lambda x: functional_call(network, parameters, x), p) for p in parts[1:]]
        )

    metrics: Tensor = vmap(metrics_of, chunk_size=32)(parameters)
    return metrics.cpu().unflatten(0, (len(setting.rates), setting.vectors))


def train_method(
    method: str, setting: Setting, rate: float, parts: Sequence[Pairs], seed: int
) -> Tensor:
    """Metrics of one method at one rate: (2, 4)."""
    device = parts[0].image.device
    torch.manual_seed(seed)
    network = Network(setting.width).to(device)
    scalarizer = METHODS[method](len(TASKS)).to(device)
    learned = {"params": scalarizer.parameters(), "lr": SCALARIZER_RATE, "weight_decay": 0.0}
    groups = [{"params": network.parameters()}, learned]
    if setting.optimizer == "SGD":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, rate, momentum=MOMENTUM)
    else:
        optimizer = torch.optim.AdamW(groups, rate, BETAS, weight_decay=DECAY)
    steps = -(-len(parts[0].image) // BATCH_SIZE)  # in an epoch
    for number, batch in enumerate(batches(parts[0], setting.epochs, seed)):

        def losses_of(batch: Pairs = batch) -> Tensor:
            return task_losses(network(batch.image), batch)

        optimizer.zero_grad()
        scalarizer(losses_of()).backward()
        optimizer.step()
        if number % 10 == 0:
            scalarizer.update(losses_of)
        if number % steps == steps - 1:
            scalarizer.step()
    return torch.stack([evaluate(network, part) for part in parts[1:]]).cpu()


def at_best_rate(metrics: Tensor, baseline: Tensor) -> Tensor:
    """Of (rates, ..., 2, 4), those at the rate that is best on validation: (..., 2, 4)."""
    score = delta_m(metrics, baseline)[..., 0].nan_to_num(nan=torch.inf)
    best = score.argmin(dim=0).reshape(1, *score.shape[1:], 1, 1)
    return metrics.take_along_dim(best.expand(1, *metrics.shape[1:]), dim=0)[0]


def measure(setting: Setting, seed: int, device: str) -> Outcome:
    parts = load_parts(seed, device, {1200: 8000, 200: 2000, 397: 2000})
    steps = setting.epochs * -(-8000 // BATCH_SIZE)
    found, seconds = [], []
    with tqdm(total=len(METHODS) + steps, desc=f"{setting}, seed {seed}", leave=False) as bar:
        for method in METHODS:
            start = time.perf_counter()
            runs = [train_method(method, setting, rate, parts, seed) for rate in setting.rates]
            found.append(torch.stack(runs))
            seconds.append((time.perf_counter() - start) / len(runs))
            bar.update()
        # The sum, at the rate that is least bad against the sum at each rate.
        baseline = found[0][delta_m(found[0][:, 0], found[0][:1, 0]).nan_to_num(nan=9e9).argmin()]
        start = time.perf_counter()
        vectors = train_vectors(setting, parts, seed, bar.update)
        seconds.append(time.perf_counter() - start)
    methods = torch.stack([at_best_rate(runs, baseline) for runs in found])
    return Outcome(methods, at_best_rate(vectors, baseline), torch.tensor(seconds))


def best_of(outcome: Outcome) -> tuple[Tensor, Tensor]:
    """Delta-m on test in %: of each method (methods,), and of the best of N vectors (draws, N)."""
    baseline = outcome.methods[0]
    validation, test = delta_m(outcome.vectors, baseline).nan_to_num(nan=torch.inf).unbind(dim=1)
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(DRAWS, len(test), generator=generator).argsort(dim=1)
    best = validation[order].cummin(dim=1).indices
    return delta_m(outcome.methods, baseline)[:, 1], test[order.gather(1, best)]


def worth(curve: Tensor, value: Tensor) -> int:
    """The least N whose curve is as good as the value; 0 if there is none."""
    reached = (curve <= value).nonzero()
    return int(reached[0]) + 1 if len(reached) else 0


def print_table(setting: Setting, outcomes: Sequence[Outcome]) -> list[tuple[Tensor, Tensor]]:
    """And return what `best_of` gives for each seed."""
    results = [best_of(outcome) for outcome in outcomes]
    values = torch.stack([methods for methods, _ in results], dim=1)
    curves = torch.stack([draws.mean(dim=0) for _, draws in results])
    seconds = torch.stack([outcome.seconds for outcome in outcomes]).mean(dim=0)

    def trials(numbers: Sequence[int]) -> str:
        texts = [f"> {setting.vectors}" if not number else str(number) for number in numbers]
        return texts[0] if len(set(texts)) == 1 else f"{texts[0]}-{texts[-1]}"

    table = make_table("method", "delta-m, %", "worth in trials", "each seed's", "seconds", gap=2)
    for method, runs, cost in zip(METHODS, values, seconds, strict=False):
        of_seeds = [worth(curve, run) for curve, run in zip(curves, runs, strict=True)]
        of_seeds.sort(key=lambda number: number or math.inf)
        cells = trials([worth(curves.mean(dim=0), runs.mean())]), trials(of_seeds)
        table.add_row(method, mean_and_std(runs, 1), *cells, f"{cost:.1f}")
    for number in (1, 4, 16, 64, 256):
        if number <= setting.vectors:
            runs = curves[:, number - 1]
            cost = f"{seconds[-1] / setting.vectors * number:.1f}"
            table.add_row(
                f"best of {number} constant", mean_and_std(runs, 1), str(number), "", cost
            )
    print(f"\n{setting}: {len(outcomes)} seeds, {setting.epochs} epochs")
    CONSOLE.print(table)
    return results


@picture_style
def draw_picture(
    panels: Sequence[tuple[Setting, list[tuple[Tensor, Tensor]]]], path: Path, quick: bool
) -> None:
    figure = Figure(figsize=(9 * len(panels), 9), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (setting, results) in zip(grid, panels, strict=True):
        draws = torch.cat([draws for _, draws in results])
        numbers = range(1, setting.vectors + 1)
        low, high = draws.quantile(torch.tensor([0.1, 0.9]), dim=0).numpy()
        axes.fill_between(numbers, low, high, color="#bbbbbb", alpha=0.5, linewidth=0)
        axes.plot(numbers, draws.mean(dim=0), color="black", label="best of N constant weights")
        values = torch.stack([methods for methods, _ in results]).mean(dim=0)
        for index in values.argsort().tolist():
            method = [*METHODS][index]
            (line,) = axes.plot(
                numbers, [values[index].item()] * setting.vectors, "--", label=method
            )
            line.set_linewidth(1.5)
        axes.set(title=str(setting), xlabel="N, trials", xscale="log")
        axes.set_ylabel("delta-m on test, %  (less is better)")
        axes.set_ylim(
            min(values.min().item(), low.min()) - 3, max(10.0, float(draws.mean(dim=0)[0]))
        )
        axes.xaxis.set_major_formatter("{x:g}")
        axes.legend(fontsize=11, ncols=2, loc="upper right")
    if quick:
        figure.suptitle(TOO_SHORT)
    figure.savefig(path, dpi=80)


RATES = {"AdamW": (1e-3, 3e-3, 1e-2), "SGD": (1e-3, 1e-2, 1e-1)}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="How many trials is a method worth?")
    parser.add_argument("--quick", action="store_true", help="8 vectors, 1 seed of 1 epoch")
    parser.add_argument("--epochs", type=count, help="of each training; default: 20")
    parser.add_argument("--seeds", type=count, help="how many; default: 3")
    parser.add_argument("--vectors", type=count, help="of constant weights; default: 256")
    parser.add_argument("--width", type=count, nargs="+", help="of the network; default: 64")
    parser.add_argument("--optimizer", nargs="+", choices=list(RATES), default=list(RATES))
    parser.add_argument("--device", type=available_device, default="cpu", help="default: cpu")
    parser.add_argument(
        "--cache", type=writable_directory, default="worth-cache", help="keeps what is finished"
    )
    parser.add_argument("--out", type=picture_path, default="worth.png", help="the picture's path")
    args = parser.parse_args(argv)
    vectors, seeds, epochs = (8, 1, 1) if args.quick else (256, 3, 20)
    vectors, seeds, epochs = args.vectors or vectors, args.seeds or seeds, args.epochs or epochs
    remembered = Memory(args.cache, verbose=0).cache(measure)
    panels = []
    for optimizer in args.optimizer:
        for width in args.width or [64]:
            setting = Setting(optimizer, width, RATES[optimizer], vectors, epochs)
            outcomes = [remembered(setting, seed, str(args.device)) for seed in range(seeds)]
            panels.append((setting, print_table(setting, outcomes)))
    print("\ndelta-m: average relative change of the four metrics against the plain sum, on test;")
    print("negative is better. Worth: the least N of which the best, chosen on validation, is as")
    print("good on average. seconds: of one training of a method; of N trials as one program.")
    if args.quick:
        print(f"\n{TOO_SHORT}")
    draw_picture(panels, args.out, args.quick)
    print(f"\npicture: {args.out}")


if __name__ == "__main__":
    main()
