"""Eleven properties of molecules: every method on QM9, the benchmark of the field's papers.

One network predicts eleven properties of small organic molecules from their atoms and distances. On
the standardised targets the losses that can be reached differ a thousandfold: a sum leaves
the energies behind, whose losses are soon small. Papers train a network of message passing on
110,000 molecules. This one is a multilayer perceptron on fixed descriptors and 10,000 molecules;
2,000 others choose the learning rate of each method, of two, with the first seed; 4,000 test it. A
seed stands for one split, its initial weights and its order of batches. "Constant" and "STCH" know
what can be had: their weights are the inverse squares of the validation errors of a network for
each target.

    pip install '.[qm9]'                      # brings the data, 104 MB
    python examples/qm9.py                    # 35 minutes on a busy core
    python examples/qm9.py --method UW FAMO   # beside Sum, one method or several
    python examples/qm9.py --method FAMO --update-every 1    # FAMO looks again after every step
    python examples/qm9.py --quick            # half a minute, to see that it runs

A finished training is kept in `runs/qm9` until the code of `train` changes: after a kill, start the
program again. It draws the picture `qm9.png` and prints (one core of an AMD EPYC, busy
with other work: the seconds are upper bounds):

                      test   mean   learning              published
method          delta-m, %   rank       rate   seconds   delta-m, %
─────────────────────────────────────────────────────────────────────
single tasks           0.0                          97          0.0
Sum             55.7 ± 1.2    6.7      0.001         6        179.8
Constant         8.6 ± 0.3    5.6      0.003        17
LogSum          -0.3 ± 0.3    2.0      0.003        18         39.7
GeometricMean    1.7 ± 0.6    3.2      0.003        20
Random          65.1 ± 1.3    8.8      0.001        14        222.6
STCH            69.3 ± 2.8    8.7      0.003        18
UW               4.7 ± 0.7    4.0      0.001        12         58.4
IMTLL            4.7 ± 0.7    4.5      0.001        13
DWA             55.9 ± 1.3    7.5      0.001        15        173.0
ReLoBRaLo       66.0 ± 6.7    8.4      0.001        16
FAMO            19.4 ± 0.5    6.5      0.001        20         38.9

On molecules never trained on. delta-m: mean relative change of the errors against a
network for each target, ± standard deviation over the seeds; negative is better. Rank:
among the methods, mean over the targets. seconds: of one training, the fastest of the
seeds. published: another network and budget, on the whole data set.

              dipole polariz. HOMO LUMO   R2 ZPVE  U0   U   H   G        Cv
method             D     a0^3  meV  meV a0^2  meV meV meV meV meV cal/mol K
───────────────────────────────────────────────────────────────────────────
single tasks   0.520    0.479  148  176  4.4  9.0 149 150 151 145     0.161
Sum            0.517    0.575  153  198  9.9 21.6 252 252 258 240     0.221
Constant       0.603    0.543  177  217  4.8  9.2 149 149 150 145     0.178
LogSum         0.547    0.483  153  185  5.8  9.6 127 128 129 125     0.165
GeometricMean  0.561    0.491  161  195  5.4  9.2 134 135 136 132     0.165
Random         0.529    0.597  159  207 10.3 23.4 269 273 275 258     0.236
STCH           0.865    0.808  269  337  6.8 14.5 245 249 248 239     0.290
UW             0.550    0.495  160  195  5.7  9.6 143 144 145 139     0.166
IMTLL          0.550    0.495  160  195  5.7  9.6 143 144 145 139     0.166
DWA            0.517    0.576  153  198  9.9 21.6 253 252 258 240     0.222
ReLoBRaLo      0.514    0.573  154  199  9.2 24.4 285 287 292 270     0.236
FAMO           0.536    0.557  164  207  7.0 11.6 172 172 175 168     0.188

Mean absolute error, mean over the seeds.

       FAMO's   weight       network's    dipole, HOMO,         test
learning rate    decay   learning rate   LUMO: share, %   delta-m, %
──────────────────────────────────────────────────────────────────────
            0        0           0.003              0.5          6.5
       0.0025    1e-05           0.003              0.7          6.2
       0.0025    0.001           0.003              0.7          6.1
       0.0025      0.1           0.003              0.6          6.4
        0.025    1e-05           0.001              9.0         29.5
        0.025    0.001           0.001              3.6         20.1
        0.025      0.1           0.003              0.6          6.3
         0.25    1e-05           0.001             38.3         69.3
         0.25    0.001           0.001              7.2         27.0
         0.25      0.1           0.003              0.6          6.4

FAMO by its own settings, on the first seed; the paper's are 0.025 and 0.001.
share: of the task weights, mean over the training.

The published order (Qin, Wang, Liao, Yan, "NTKMTL", NeurIPS 2025) is the same but for FAMO: there
it is level with LogSum, here it stands behind UW. The last table shows how. With a learning rate of
0 FAMO weighs by the inverse of the losses, as LogSum does. What it learns favours the losses that
fall slowly, those of the dipole moment and the orbitals, and delta-m rises with their share: it is
a mean over targets, of which most fall far. 0.1 of weight decay all but stops FAMO's learning. Why
the network of the papers does not suffer from it is not measured here.
"""

import argparse
import sys
import time
import warnings
from ast import literal_eval
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple

import digits
import numpy as np
import torch
from digits import (
    CONSOLE,
    TOO_SHORT,
    add_method_flag,
    add_update_every_flag,
    chosen,
    count,
    make_optimizer,
    make_schedule,
    make_table,
    mean_and_std,
    picture_path,
    picture_style,
    run_program,
    writable_directory,
)
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm, LogNorm, Normalize
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import one_hot, pad
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from mtl_scalarize import STCH, Constant

try:
    import pandas as pd
    from joblib import Memory
except ImportError as error:
    sys.exit(f"qm9.py: error: needs {error.name}: pip install {error.name}")

MEV = 27211.386  # in one hartree
CHARGES = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}
MOST_ATOMS = 29
GRID = torch.linspace(np.log(0.9), np.log(10.0), 32)  # logarithms of distances in angstroms
CHUNK = 500  # molecules described at a time
WIDTH = 256
BATCH_SIZE = 100
RATES = (1e-3, 3e-3)
FAMO_RATES = (0.0025, 0.025, 0.25)
FAMO_DECAYS = (1e-5, 1e-3, 1e-1)

Array = np.ndarray[Any, np.dtype[Any]]


class Target(NamedTuple):
    name: str
    unit: str
    column: str  # in the files
    factor: float  # from the files' unit to ours
    digits: int  # after the decimal point
    atoms: Sequence[float] = (0, 0, 0, 0, 0)  # the energy of an atom of H, C, N, O, F alone


# The energies are those of atomisation: less the energies of the atoms, which are the data set's.
U0 = (-0.500273, -37.846772, -54.583861, -75.064579, -99.718730)
U = (-0.498857, -37.845355, -54.582445, -75.063163, -99.717314)
H = (-0.497912, -37.844411, -54.581501, -75.062219, -99.716370)
G = (-0.510927, -37.861317, -54.598897, -75.079532, -99.733544)
TARGETS = (
    Target("dipole", "D", "Dipole_debye", 1.0, 3),
    Target("polariz.", "a0^3", "Polarizability_bohr3", 1.0, 3),
    Target("HOMO", "meV", "HOMO_au", MEV, 0),
    Target("LUMO", "meV", "LUMO_au", MEV, 0),
    Target("R2", "a0^2", "R2_bohr2", 1.0, 1),
    Target("ZPVE", "meV", "ZPVE_au", MEV, 1),
    Target("U0", "meV", "InternalEnergy_0K_au", MEV, 0, U0),
    Target("U", "meV", "InternalEnergy_298K_au", MEV, 0, U),
    Target("H", "meV", "Enthalphy_298K_au", MEV, 0, H),
    Target("G", "meV", "GibbsFreeEnergy_298K_au", MEV, 0, G),
    Target("Cv", "cal/mol K", "Heatcapacity_Cv_cal_mol_K", 1.0, 3),
)

# "Constant" and "STCH" are given what a loss is worth: see `compare`.
METHODS = digits.METHODS | {
    "Constant": lambda tasks, worth: Constant(torch.tensor(worth)),
    "STCH": lambda tasks, worth: STCH(0.1, torch.tensor(worth)),
}
# Change in % on the whole data set with a network of message passing, by the table of Qin, Wang,
# Liao, Yan, "NTKMTL", NeurIPS 2025, https://arxiv.org/abs/2510.18258
PUBLISHED = {
    "Sum": 179.8,
    "Random": 222.6,
    "DWA": 173.0,
    "UW": 58.4,
    "LogSum": 39.7,
    "FAMO": 38.9,
}


class Molecules(NamedTuple):
    features: Array  # (N, F)
    targets: Array  # (N, 11)


class Split(NamedTuple):
    """All standardised by mean and standard deviation of the molecules to train on."""

    train: Molecules
    validation: Molecules
    test: Molecules
    spread: Array  # (11,), the standard deviation of each target in its unit


class Outcome(NamedTuple):
    """Of one training, of some tasks."""

    errors: Array  # (3, tasks): mean absolute error on each part of the split, in the units
    shares: Array  # (epochs, tasks), the task weights over their sum, mean over an epoch
    seconds: float


def describe(elements: Sequence[str], places: Sequence[str]) -> Tensor:
    """Numbers that do not change when a molecule is moved, turned or renumbered: (N, F)."""
    names = list(CHARGES)
    kinds = [one_hot(torch.tensor([names.index(e) for e in literal_eval(t)]), 5) for t in elements]
    atoms = pad_sequence(
        kinds, batch_first=True
    ).float()  # (N, atoms, 5), zeros where there is none
    points = [torch.tensor(literal_eval(text)) for text in places]
    positions = pad_sequence(points, batch_first=True)
    distances = torch.cdist(positions, positions)
    distances.diagonal(dim1=1, dim2=2).fill_(torch.inf)

    charges = atoms @ torch.tensor([*CHARGES.values()]).float()
    coulomb = charges.unsqueeze(1) * charges.unsqueeze(2) / distances.clamp(min=0.1)
    coulomb += torch.diag_embed(charges**2.4 / 2)
    eigenvalues = torch.linalg.eigvalsh(coulomb).abs().sort(descending=True).values

    # Each distance between two elements is a bump on a logarithmic scale.
    bumps = torch.exp(-(((distances.log().unsqueeze(-1) - GRID) / (GRID[1] - GRID[0])) ** 2) / 2)
    pairs = torch.einsum("nia,nijg,njb->nabg", atoms, bumps, atoms)
    first, second = torch.triu_indices(5, 5)
    eigenvalues = pad(eigenvalues, (0, MOST_ATOMS - eigenvalues.shape[1]))
    return torch.cat([atoms.sum(dim=1), eigenvalues, pairs[:, first, second].flatten(1)], dim=1)


def packaged() -> Path:
    # Not imported: it wants a `pkg_resources` that setuptools no longer has.
    return Path(str(distribution("qm9pack").locate_file("qm9pack/data")))


def load(directory: Path, size: int) -> Molecules:
    """Molecules drawn at random; nothing is standardised."""
    columns = ["Elements", "XYZ_Ang", *(target.column for target in TARGETS)]
    paths = sorted(directory.glob("qm9_part*.csv"))
    if not paths:
        raise ValueError(f"no qm9_part*.csv in {str(directory)!r}")
    table = pd.concat([pd.read_csv(path, usecols=columns) for path in paths])
    if len(table) < size:
        raise ValueError(f"{str(directory)!r} has {len(table)} molecules, fewer than {size}")
    table = table.sample(size, random_state=0)
    features = torch.cat(
        [
            describe(*(table[column][start : start + CHUNK] for column in columns[:2]))
            for start in tqdm(range(0, size, CHUNK), desc="descriptors", leave=False)
        ]
    ).numpy()
    energies = np.array([target.atoms for target in TARGETS])
    factors = [target.factor for target in TARGETS]
    targets = table[columns[2:]].to_numpy() - features[:, :5] @ energies.T
    return Molecules(features, targets * factors)


def split(molecules: Molecules, seed: int) -> Split:
    """Five eighths to train on, one to validate and two to test."""
    order = np.random.default_rng(seed).permutation(len(molecules.features))
    parts = np.split(order, [len(order) * 5 // 8, len(order) * 6 // 8])
    features, targets = molecules
    mean, spread = features[parts[0]].mean(axis=0), features[parts[0]].std(axis=0)
    varies = spread > 0.01
    features = ((features - mean)[:, varies] / spread[varies]).clip(-4, 4)
    mean, spread = targets[parts[0]].mean(axis=0), targets[parts[0]].std(axis=0)
    targets = ((targets - mean) / spread).astype(np.float32)
    train, validation, test = (Molecules(features[part], targets[part]) for part in parts)
    return Split(train, validation, test, spread)


def make_network(inputs: int, outputs: int, width: int = WIDTH) -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(inputs, width), nn.SiLU()),
        *(nn.Linear(width, width), nn.SiLU()),
        nn.Linear(width, outputs),
    )


def train(
    data: Split,
    tasks: Sequence[int],
    method: str,
    options: Mapping[str, Any],
    rate: float,
    seed: int,
    epochs: int,
    update_every: int = 10,
) -> Outcome:
    """Train one network for these tasks, with `options` of the method."""
    train, validation, test = (
        (torch.from_numpy(part.features), torch.from_numpy(part.targets)[:, tasks])
        for part in data[:3]
    )
    torch.manual_seed(seed)
    network = make_network(train[0].shape[1], len(tasks))
    scalarizer = METHODS[method](len(tasks), **options)
    optimizer = make_optimizer(network, scalarizer)
    optimizer.param_groups[0]["lr"] = rate
    batches = -(-len(train[0]) // BATCH_SIZE)
    schedule = make_schedule(optimizer, epochs * batches)

    def losses_of(features: Tensor, targets: Tensor) -> Tensor:
        return (network(features) - targets).square().mean(dim=0)

    shares = torch.zeros(epochs, len(tasks))
    start = time.perf_counter()
    for epoch in range(epochs):
        for index, places in enumerate(torch.randperm(len(train[0])).split(BATCH_SIZE)):
            losses_of_batch = partial(losses_of, *(values[places] for values in train))
            optimizer.zero_grad()
            scalarizer(losses_of_batch()).backward()
            weights = scalarizer.weights
            shares[epoch] += weights / weights.sum() / batches
            optimizer.step()
            if index % update_every == 0:
                scalarizer.update(losses_of_batch)
            schedule.step()
        scalarizer.step()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        errors = [(network(x) - y).abs().mean(dim=0).numpy() for x, y in (train, validation, test)]
    return Outcome(np.stack(errors) * data.spread[list(tasks)], shares.numpy(), seconds)


class Tuned(NamedTuple):
    """Trainings at the learning rate that was best on the validation set of the first seed."""

    rate: float
    errors: Array  # (seeds, 3, tasks)
    shares: Array  # (seeds, epochs, tasks)
    seconds: float  # of the fastest


def tune(run: Callable[..., Outcome], judge: Callable[[Outcome], float], seeds: int) -> Tuned:
    """Call `run(rate=, seed=)`: the first seed with every rate, the others with the best."""
    first = {rate: run(rate=rate, seed=0) for rate in RATES}
    rate = min(RATES, key=lambda rate: np.nan_to_num(judge(first[rate]), nan=np.inf))
    outcomes = [first[rate], *(run(rate=rate, seed=seed) for seed in range(1, seeds))]
    errors, shares, seconds = zip(*outcomes, strict=True)
    return Tuned(rate, np.stack(errors), np.stack(shares), min(seconds))


def changes(errors: Array, alone: Array) -> Array:
    """Relative change of each error in %; negative is better than a network for that task alone."""
    return 100 * (errors - alone) / alone


class Results(NamedTuple):
    alone: Array  # (seeds, 3, 11), errors of a network for each task
    seconds: float  # of these networks together
    methods: Mapping[str, Tuned]
    famo: Mapping[tuple[float, float], Tuned]  # one seed, by FAMO's own learning rate and decay


def compare(
    methods: Sequence[str],
    splits: Sequence[Split],
    epochs: int,
    memory: Memory,
    update_every: int,
) -> Results:
    """Train alone, with every method, and with FAMO's other settings; or read it from `memory`."""
    remembered = memory.cache(train)
    seeds, tasks = len(splits), range(len(TARGETS))
    settings = [(0.0, 0.0), *((lr, decay) for lr in FAMO_RATES for decay in FAMO_DECAYS)]
    settings = settings if "FAMO" in methods else []
    tuned = len(TARGETS) + len(methods)
    total = tuned * (len(RATES) + seeds - 1) + len(settings) * len(RATES)
    with tqdm(total=total, unit="training", smoothing=0) as bar:

        def run(
            method: str, tasks: Sequence[int], seed: int, rate: float, **options: Any
        ) -> Outcome:
            bar.set_description(f"{method}, seed {seed}")
            # It is left out where it changes nothing: that training is remembered as the same.
            every = {"update_every": update_every} if method == "FAMO" else {}
            outcome = remembered(
                splits[seed], list(tasks), method, options, rate, seed, epochs, **every
            )
            bar.update()
            return outcome

        singles = [
            tune(partial(run, "Sum", [k]), lambda outcome: outcome.errors[1, 0], seeds)
            for k in tasks
        ]
        alone = np.concatenate([single.errors for single in singles], axis=-1)
        # What a loss is worth: the inverse of the square of the error that can be had.
        spread = np.mean([part.spread for part in splits], axis=0)
        worth = ((spread / alone[:, 1].mean(axis=0)) ** 2).astype(np.float32)

        def judge(outcome: Outcome) -> float:
            return float(changes(outcome.errors[1], alone[0, 1]).mean())

        results = {}
        for method in methods:
            options = {"worth": worth} if method in {"Constant", "STCH"} else {}
            results[method] = tune(partial(run, method, tasks, **options), judge, seeds)
        famo = {
            (lr, decay): tune(partial(run, "FAMO", tasks, lr=lr, weight_decay=decay), judge, 1)
            for lr, decay in settings
        }
    return Results(alone, sum(single.seconds for single in singles), results, famo)


def print_tables(results: Results) -> None:
    methods, alone = results.methods, results.alone
    means = {name: tuned.errors[:, 2].mean(axis=0) for name, tuned in methods.items()}
    ranks = dict(zip(means, pd.DataFrame(means).rank(axis=1).mean(), strict=True))
    table = make_table(
        "\nmethod",
        "test\ndelta-m, %",
        "mean\nrank",
        "learning\nrate",
        "\nseconds",
        "published\ndelta-m, %",
        gap=2,
    )
    table.add_row("single tasks", "0.0", "", "", f"{results.seconds:.0f}", "0.0")
    for name, tuned in methods.items():
        deltas = torch.from_numpy(changes(tuned.errors[:, 2], alone[:, 2]).mean(axis=-1))
        published = str(PUBLISHED.get(name, ""))
        rank, rate, seconds = f"{ranks[name]:.1f}", f"{tuned.rate:g}", f"{tuned.seconds:.0f}"
        table.add_row(name, mean_and_std(deltas, 1), rank, rate, seconds, published)
    CONSOLE.print(table)
    print("\nOn molecules never trained on. delta-m: mean relative change of the errors against a")
    print("network for each target, ± standard deviation over the seeds; negative is better. Rank:")
    print("among the methods, mean over the targets. seconds: of one training, the fastest of the")
    print("seeds. published: another network and budget, on the whole data set.\n")

    table = make_table("\nmethod", *(f"{target.name}\n{target.unit}" for target in TARGETS))
    for name, errors in {"single tasks": alone[:, 2].mean(axis=0), **means}.items():
        cells = zip(errors, TARGETS, strict=True)
        table.add_row(name, *(f"{error:.{target.digits}f}" for error, target in cells))
    CONSOLE.print(table)
    print("\nMean absolute error, mean over the seeds.\n")

    if results.famo:
        columns = (
            "FAMO's\nlearning rate",
            "weight\ndecay",
            "network's\nlearning rate",
            "dipole, HOMO,\nLUMO: share, %",
            "test\ndelta-m, %",
        )
        table = make_table(*columns, left=0, gap=2)
        for (lr, decay), tuned in results.famo.items():
            delta = changes(tuned.errors[0, 2], alone[0, 2]).mean()
            slow = 100 * tuned.shares[..., [0, 2, 3]].sum(axis=-1).mean()
            settings = f"{lr:g}", f"{decay:g}", f"{tuned.rate:g}"
            table.add_row(*settings, f"{slow:.1f}", f"{delta:.1f}")
        CONSOLE.print(table)
        print("\nFAMO by its own settings, on the first seed; the paper's are 0.025 and 0.001.")
        print("share: of the task weights, mean over the training.")


@picture_style
def draw_picture(results: Results, path: Path, quick: bool) -> None:
    """By method: delta-m, the change of each target, and its share of the weights."""
    figure = Figure(figsize=(12, 18), layout="constrained")
    if quick:
        figure.suptitle(TOO_SHORT)
    top, middle, bottom = figure.subplots(3, 1, height_ratios=[4, 5, 5])
    change = np.stack(
        [changes(tuned.errors[:, 2], results.alone[:, 2]) for tuned in results.methods.values()]
    )
    delta, rows = change.mean(axis=-1), range(len(change))
    top.axvline(0, color="black", linewidth=1, linestyle="--")
    top.plot(delta, rows, "o", color="#0072b2", alpha=0.3)
    top.plot(delta.mean(axis=1), rows, "o", color="#0072b2", markersize=13)
    top.set_yticks(rows, [*results.methods])
    top.invert_yaxis()
    top.set_title("delta-m: mean change of the errors, %")
    top.set_xlabel("← less is better; 0: a network for each target")

    middle.set_title("change of each target's error, %")
    heat_map(
        middle,
        results,
        change.mean(axis=1).round() + 0.0,
        CenteredNorm(halfrange=100),
        "RdBu_r",
        "{:.0f}",
    )
    bottom.set_title("share of the task weights, mean over the training, %")
    shares = np.stack([tuned.shares.mean(axis=(0, 1)) for tuned in results.methods.values()])
    heat_map(bottom, results, 100 * shares, LogNorm(0.1, 100, clip=True), "viridis", "{:.1f}")
    figure.savefig(path, dpi=80)


def heat_map(
    axes: Axes, results: Results, values: Array, norm: Normalize, colours: str, text: str
) -> None:
    """Methods by targets, each with its number."""
    image = axes.imshow(values, norm=norm, cmap=colours, aspect="auto", alpha=0.6)
    bar = axes.figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01, extend="both")
    bar.ax.yaxis.set_major_formatter("{x:g}")
    axes.grid(visible=False)
    axes.set_xticks(range(len(TARGETS)), [target.name for target in TARGETS], rotation=45)
    axes.set_yticks(range(len(values)), [*results.methods])
    for (row, column), value in np.ndenumerate(values):
        axes.text(column, row, text.format(value), ha="center", va="center")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Compare the methods on eleven targets of QM9.")
    add_method_flag(parser, list(METHODS))
    add_update_every_flag(parser)
    parser.add_argument("--quick", action="store_true", help="2 seeds, 2 epochs, 320 molecules")
    parser.add_argument("--epochs", type=count, help="of each training; default: 40")
    parser.add_argument("--seeds", type=count, help="how many; default: 3")
    parser.add_argument("--molecules", type=number_of_molecules, help="default: 16000")
    parser.add_argument("--data", type=Path, help="where qm9_part1.csv is; default: in qm9pack")
    parser.add_argument(
        "--cache", type=writable_directory, default="runs/qm9", help="default: runs/qm9"
    )
    parser.add_argument("--out", type=picture_path, default="qm9.png", help="the picture's path")
    args = parser.parse_args(argv)
    seeds, epochs, size = (2, 2, 320) if args.quick else (3, 40, 16_000)
    seeds, epochs, size = args.seeds or seeds, args.epochs or epochs, args.molecules or size
    torch.set_num_threads(1)
    try:
        molecules = load(args.data or packaged(), size)
    except PackageNotFoundError:
        parser.error("needs qm9pack: pip install qm9pack")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    # joblib's advice on a slow machine: it describes the arrays beside each result.
    warnings.filterwarnings("ignore", "Persisting input arguments")
    splits = [split(molecules, seed) for seed in range(seeds)]
    methods = chosen(list(METHODS), args)
    memory = Memory(args.cache, verbose=0)
    results = compare(methods, splits, epochs, memory, args.update_every)
    print_tables(results)
    draw_picture(results, args.out, args.quick)
    if args.quick:
        print(f"\n{TOO_SHORT}")
    print(f"\npicture: {args.out}")


def number_of_molecules(text: str) -> int:
    if not text.isdecimal() or not 80 <= int(text) <= 130_831:
        raise argparse.ArgumentTypeError(f"expected an integer from 80 to 130831, found {text!r}")
    return int(text)


if __name__ == "__main__":
    run_program(main)
