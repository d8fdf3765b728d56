"""Sixteen properties of chemical compounds, of which most are unknown.

DOC
"""

import argparse
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import digits
import numpy as np
import torch
from digits import (
    CONSOLE,
    TOO_SHORT,
    add_method_flag,
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
from matplotlib.figure import Figure
from sklearn.feature_extraction.text import HashingVectorizer
from torch import Tensor, nn
from tqdm import tqdm

from mtl_scalarize import STCH, LogSum, Scalarizer

try:
    import pandas as pd
    from joblib import Memory
except ImportError as error:
    sys.exit(f"compounds.py: error: needs {error.name}: pip install {error.name}")

BATCH_SIZE = 100
WIDTH = 128
RATES = (1e-3, 3e-3)
ELEMENTS = ("C", "H", "N", "O", "S", "P", "F", "Cl", "Br", "I", "Si")
FLOOR = 0.1  # added to the losses: below it, a loss matters less
FEW = 0.1  # of the compounds: a target that fewer have has few labels


class Target(NamedTuple):
    name: str
    column: str  # in its file
    skewed: bool = False  # learned as a logarithm
    low: float = -np.inf  # what lies outside is an error in the file
    high: float = np.inf


CHEMSEP, COMMON, NOTEBOOK, FUELS = (
    "Misc/ChemSep8.32.xml",
    "Misc/common_chemistry_data.tsv",
    "Phase Change/OpenNotebook Melting Points.tsv",
    "Misc/Travis_Kessler_Combustdb_{}.tsv",
)
IDENTIFIERS = "Identifiers/chemical identifiers pubchem {}.tsv"
SOURCES: dict[str, tuple[Target, ...]] = {
    NOTEBOOK: (Target("melting", "Tm"),),
    COMMON: (
        Target("boiling", "Tb", high=1000),
        Target("volume", "Vml", skewed=True, low=1e-5, high=2e-3),
    ),
    CHEMSEP: (
        Target("critical T", "CriticalTemperature"),
        Target("critical p", "CriticalPressure", skewed=True),
        Target("critical V", "CriticalVolume", skewed=True),
        Target("acentric", "AcentricityFactor"),
        Target("dipole", "DipoleMoment"),
        Target("formation", "HeatOfFormation"),
        Target("entropy", "AbsEntropy"),
        Target("fusion", "HeatOfFusionAtMeltingPoint", skewed=True, low=1e5),
        Target("combustion", "HeatOfCombustion"),
        Target("solubility", "SolubilityParameter"),
    ),
    FUELS: (Target("cetane", "CETANE"), Target("RON", "RON"), Target("MON", "MON")),
}
TARGETS = [target for targets in SOURCES.values() for target in targets]
NAMES = [target.name for target in TARGETS]
HALVED = "RON"
# The targets are standardised: the losses are about 1 before training, and "Constant" would be Sum.
METHODS: dict[str, Callable[[int], Scalarizer]] = {
    **{name: method for name, method in digits.METHODS.items() if name != "Constant"},
    "LogSum, floor": lambda tasks: LogSum(min_losses=-FLOOR, shape=tasks),
    "STCH": partial(STCH, 0.1),
}

SHOWN = {
    "Sum": ("#000000", "o"),
    "UW": ("#009e73", "^"),
    "FAMO": ("#d55e00", "s"),
    "LogSum": ("#0072b2", "v"),
}
VARIED = ("Sum", "LogSum", "LogSum, floor", "UW", "FAMO")

Array = np.ndarray[Any, np.dtype[Any]]


class Compounds(NamedTuple):
    features: Array  # (N, F)
    targets: Array  # (N, 16), nan where unknown


class Split(NamedTuple):
    """All standardised by mean and standard deviation of the compounds to train on."""

    train: Compounds
    validation: Compounds
    test: Compounds


class Outcome(NamedTuple):
    """Of one training, of some tasks."""

    errors: Array  # (2, tasks): mean absolute error on validation and test, in deviations
    shares: Array  # (tasks,): task weights over their sum, mean over the steps with the task
    absent: Array  # (tasks,): share of the batches that lack the task


def packaged() -> Path:
    # Not imported: it wants packages that are not needed here.
    return Path(str(distribution("chemicals").locate_file("chemicals")))


def numbers_of(folder: Path, source: str) -> Any:
    """The table of a source by CAS number, without its hyphens."""
    if source == CHEMSEP:
        compounds = ElementTree.parse(folder / source).iter("compound")
        wanted = ["CAS", *(target.column for target in SOURCES[source])]
        rows = [
            {name: item.get("value") for name in wanted if (item := one.find(name)) is not None}
            for one in compounds
        ]
        table = pd.DataFrame(rows)
    elif source == FUELS:
        columns = [target.column for target in SOURCES[source]]
        tables = [pd.read_csv(folder / source.format(name), sep="\t") for name in columns]
        table = pd.concat([one.drop_duplicates("CAS").set_index("CAS") for one in tables], axis=1)
        table = table.reset_index()
    else:
        table = pd.read_csv(folder / source, sep="\t")
    table["CAS"] = table["CAS"].astype(str).str.replace("-", "").astype(int)
    return table.drop_duplicates("CAS").set_index("CAS").astype(float)


def structures(folder: Path) -> Any:
    """Formula and SMILES by CAS number."""
    rows = []
    for size in ("large", "small"):  # lines of different lengths: synonyms are at their ends
        with (folder / IDENTIFIERS.format(size)).open(encoding="utf-8") as lines:
            rows += [line.split("\t", 5)[1:5] for line in lines]
    table = pd.DataFrame(rows, columns=["CAS", "formula", "mass", "smiles"])
    table["CAS"] = table["CAS"].str.replace("-", "").astype(int)
    return table.drop_duplicates("CAS").set_index("CAS")


def describe(formulas: Sequence[str], smiles: Sequence[str]) -> Array:
    """Logarithms of the counts of each element, and of each hashed run of up to four letters."""
    letters = HashingVectorizer(
        analyzer="char",
        ngram_range=(1, 4),
        n_features=1024,
        lowercase=False,
        norm=None,
        alternate_sign=False,
    )
    series = pd.Series(formulas)
    atoms = [
        series.str.extract(rf"{element}(?![a-z])(\d*)")[0].replace("", "1").fillna("0").astype(int)
        for element in ELEMENTS
    ]
    counts = np.column_stack([*atoms, letters.transform(smiles).toarray()])
    return np.log1p(counts).astype(np.float32)


def load(folder: Path, size: int) -> Compounds:
    """All compounds with a known structure and target, or so many of them, drawn at random."""
    columns = []
    for source, targets in SOURCES.items():
        table = numbers_of(folder, source)
        for target in targets:
            values = table[target.column]
            values = values.where(values.between(target.low, target.high))
            columns.append((np.log(values) if target.skewed else values).rename(target.name))
    known = pd.concat(columns, axis=1).dropna(how="all")
    table = known.join(structures(folder), how="inner")
    if not len(table):
        raise ValueError(f"{str(folder)!r} has no compound whose structure is known")
    table = table.sample(min(size, len(table)), random_state=0)
    features = describe(table["formula"].tolist(), table["smiles"].tolist())
    return Compounds(features, table[NAMES].to_numpy())


def split(compounds: Compounds, seed: int) -> Split:
    """Six tenths to train on, two to validate and two to test."""
    order = np.random.default_rng(seed).permutation(len(compounds.features))
    parts = np.split(order, [len(order) * 6 // 10, len(order) * 8 // 10])
    features, targets = compounds
    mean, spread = features[parts[0]].mean(axis=0), features[parts[0]].std(axis=0)
    varies = spread > 0.01
    features = ((features - mean)[:, varies] / spread[varies]).clip(-4, 4)
    mean, spread = np.nanmean(targets[parts[0]], axis=0), np.nanstd(targets[parts[0]], axis=0)
    targets = ((targets - mean) / spread).clip(-5, 5).astype(np.float32)
    train, validation, test = (Compounds(features[part], targets[part]) for part in parts)
    return Split(train, validation, test)


def halved(data: Split, seed: int) -> Split:
    """Without half of the labels of one target to train on."""
    targets = data.train.targets.copy()
    column = NAMES.index(HALVED)
    rows = np.flatnonzero(~np.isnan(targets[:, column]))
    targets[np.random.default_rng(seed).permutation(rows)[: len(rows) // 2], column] = np.nan
    return data._replace(train=data.train._replace(targets=targets))


def draw_batches(known: Tensor, steps: int, stratified: bool) -> Any:
    """Positions of the compounds of each step; stratified batches have two of every task."""
    every_task = [column.nonzero()[:, 0] for column in known.T] if stratified else []
    places = torch.randperm(len(known))
    for _ in range(steps):
        if len(places) < BATCH_SIZE:
            places = torch.cat([places, torch.randperm(len(known))])
        batch, places = places[:BATCH_SIZE], places[BATCH_SIZE:]
        added = [of_task[torch.randint(len(of_task), (2,))] for of_task in every_task]
        yield torch.cat([*added, batch])[:BATCH_SIZE]


def train(
    data: Split,
    tasks: Sequence[int],
    method: str,
    rate: float,
    seed: int,
    steps: int,
    filled: bool = False,
    stratified: bool = False,
) -> Outcome:
    """Train one network for these tasks; `filled`: unknown targets are their mean, 0."""
    parts = [
        (torch.from_numpy(part.features), torch.from_numpy(part.targets)[:, tasks]) for part in data
    ]
    features, targets = parts[0]
    some = targets.isfinite().any(dim=1)
    features, targets = features[some], targets[some]
    known = targets.isfinite()
    targets = targets.nan_to_num()
    known = torch.ones_like(known) if filled else known
    torch.manual_seed(seed)
    network = nn.Sequential(
        *(nn.Linear(features.shape[1], WIDTH), nn.SiLU(), nn.Dropout(0.1)),
        *(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Dropout(0.1)),
        nn.Linear(WIDTH, len(tasks)),
    )
    scalarizer = METHODS[method](len(tasks))
    optimizer = make_optimizer(network, scalarizer)
    optimizer.param_groups[0]["lr"] = rate
    schedule = make_schedule(optimizer, steps)
    epoch = -(-len(features) // BATCH_SIZE)

    def losses_of(places: Tensor) -> Tensor:
        """Each the mean over the compounds whose target is known."""
        squares = (network(features[places]) - targets[places]).square() * known[places]
        return squares.sum(dim=0) / known[places].sum(dim=0).clamp(min=1)

    shares, present = torch.zeros(2, len(tasks))
    for index, places in enumerate(draw_batches(known, steps, stratified)):
        mask = known[places].any(dim=0)
        optimizer.zero_grad()
        scalarizer(losses_of(places), mask).backward()
        weights = scalarizer.weights
        shares += weights / weights.sum()
        present += mask
        optimizer.step()
        if index % 10 == 0:
            scalarizer.update(partial(losses_of, places), mask)
        schedule.step()
        if index % epoch == epoch - 1:
            scalarizer.step()
    network.eval()
    with torch.no_grad():
        errors = [(network(x) - y).abs().nanmean(dim=0).numpy() for x, y in parts[1:]]
    shares, absent = (shares / present).numpy(), (1 - present / steps).numpy()
    return Outcome(np.stack(errors), shares, absent)


class Tuned(NamedTuple):
    """Trainings at the learning rate that was best on the validation set of the first seed."""

    rate: float
    errors: Array  # (seeds, 2, tasks)
    shares: Array  # (seeds, tasks)
    absent: Array  # (seeds, tasks)


class Results(NamedTuple):
    known: Array  # (16,): how many compounds to train on have the target, in the first split
    few: Array  # (16,): True where these are few
    alone: Tuned  # a network for each target
    methods: Mapping[str, Tuned]
    variants: Mapping[str, Mapping[str, Tuned]]  # of what, of which method


def changes(errors: Array, alone: Array) -> Array:
    """Relative change of each error in %; negative is better than a network for that task alone."""
    return 100 * (errors - alone) / alone


def compare(methods: Sequence[str], splits: Sequence[Split], steps: int, memory: Memory) -> Results:
    """Train alone, with every method, and in each variant; or read it from `memory`."""
    remembered, seeds, tasks = memory.cache(train), range(len(splits)), range(len(TARGETS))
    varied = [name for name in methods if name in VARIED]
    halves = [halved(data, seed) for seed, data in enumerate(splits)]
    tuned = len(TARGETS) + len(methods)
    total = tuned * (len(RATES) + len(seeds) - 1) + 3 * len(varied) * len(seeds)
    with tqdm(total=total, unit="training", smoothing=0) as bar:

        def run(
            data: Split, tasks: Sequence[int], method: str, rate: float, seed: int, **options: bool
        ) -> Outcome:
            bar.set_description(f"{method}, seed {seed}")
            outcome = remembered(data, list(tasks), method, rate, seed, steps, **options)
            bar.update()
            return outcome

        def tune(method: str, tasks: Sequence[int], judge: Callable[[Outcome], float]) -> Tuned:
            first = {rate: run(splits[0], tasks, method, rate, 0) for rate in RATES}
            rate = min(RATES, key=lambda rate: np.nan_to_num(judge(first[rate]), nan=np.inf))
            others = [run(splits[seed], tasks, method, rate, seed) for seed in seeds[1:]]
            return stack(rate, [first[rate], *others])

        def stack(rate: float, outcomes: Sequence[Outcome]) -> Tuned:
            return Tuned(rate, *map(np.stack, zip(*outcomes, strict=True)))

        singles = [tune("Sum", [k], lambda outcome: outcome.errors[0, 0]) for k in tasks]
        fields = zip(*(single[1:] for single in singles), strict=True)
        alone = Tuned(0.0, *(np.concatenate(values, axis=-1) for values in fields))

        def judge(outcome: Outcome) -> float:
            return float(changes(outcome.errors[0], alone.errors[0, 0]).mean())

        results = {method: tune(method, tasks, judge) for method in methods}
        variants = {
            name: {
                method: stack(
                    results[method].rate,
                    [
                        run(data[seed], tasks, method, results[method].rate, seed, **options)
                        for seed in seeds
                    ],
                )
                for method in varied
            }
            for name, data, options in (
                ("filled", splits, {"filled": True}),
                ("stratified", splits, {"stratified": True}),
                ("halved", halves, {}),
            )
        }
    known = np.isfinite(splits[0].train.targets)
    return Results(known.sum(axis=0), known.mean(axis=0) < FEW, alone, results, variants)


def print_tables(results: Results) -> None:
    alone, few = results.alone.errors[:, 1], results.few

    def cell(tuned: Tuned, tasks: Array) -> str:
        change = changes(tuned.errors[:, 1], alone)[:, tasks].mean(axis=1)
        return mean_and_std(torch.from_numpy(change), 1)

    table = make_table(
        "\nmethod",
        "all\ndelta-m, %",
        f"{few.sum()} with few labels\ndelta-m, %",
        f"{(~few).sum()} with many\ndelta-m, %",
        "learning\nrate",
        gap=2,
    )
    for name, tuned in results.methods.items():
        cells = [cell(tuned, tasks) for tasks in (few | True, few, ~few)]
        table.add_row(name, *cells, f"{tuned.rate:g}")
    CONSOLE.print(table)
    print("\nOn compounds never trained on. delta-m: mean relative change of the errors against a")
    print("network for each target, ± standard deviation over the seeds; negative is better.\n")

    shown = [name for name in SHOWN if name in results.methods]
    table = make_table(
        "\ntarget",
        "\nlabels",
        "absent,\n% of batches",
        "single\ntask",
        *(f"\n{name}" for name in shown),
        gap=2,
    )
    absent = 100 * next(iter(results.methods.values())).absent.mean(axis=0)
    for k, target in enumerate(TARGETS):
        errors = [alone, *(results.methods[name].errors[:, 1] for name in shown)]
        cells = [f"{error[:, k].mean():.3f}" for error in errors]
        table.add_row(target.name, str(results.known[k]), f"{absent[k]:.0f}", *cells)
    CONSOLE.print(table)
    print("\nMean absolute error in standard deviations of the target, mean over the seeds.\n")

    rare = NAMES.index(HALVED)
    table = make_table(
        "\nmethod",
        "masks\ndelta-m, %",
        "filled with\nthe mean",
        "batches that\nlack no task",
        f"{HALVED}'s error:\nall labels",
        "half of\nthem",
        f"{HALVED}'s share of the weights, %:\nmasks, lacking no task",
        gap=2,
    )
    for name in results.variants["filled"]:
        masks = results.methods[name]
        filled, stratified, half = (of[name] for of in results.variants.values())
        cells = [cell(tuned, few | True) for tuned in (masks, filled, stratified)]
        errors = [torch.from_numpy(tuned.errors[:, 1, rare]) for tuned in (masks, half)]
        shares = [f"{100 * t.shares[:, rare].mean():.1f}" for t in (masks, stratified)]
        cells += [mean_and_std(error, 2) for error in errors]
        table.add_row(name, *cells, ", ".join(shares))
    CONSOLE.print(table)
    print("\nFilled: an unknown target is its mean, for every compound of the batch. The share is")
    print("that of the batches with the task, mean over the training.")


@picture_style
def draw_picture(results: Results, path: Path, quick: bool) -> None:
    """Delta-m of the methods, and the change of each target over its number of labels."""
    figure = Figure(figsize=(8, 11), layout="constrained")
    if quick:
        figure.suptitle(TOO_SHORT)
    above, below = figure.subplots(2, 1, height_ratios=[5, 6])
    alone = results.alone.errors[:, 1]
    change = {name: changes(tuned.errors[:, 1], alone) for name, tuned in results.methods.items()}
    above.axvline(0, color="black", linewidth=1, linestyle="--")
    for row, values in enumerate(change.values()):
        above.plot(values.mean(axis=1), [row] * len(values), "o", color="#0072b2", alpha=0.3)
        above.plot(values.mean(), row, "o", color="#0072b2", markersize=13)
    above.set_yticks(range(len(change)), [*change])
    above.invert_yaxis()
    above.set_xscale("symlog", linthresh=20)
    above.xaxis.set_major_formatter("{x:g}")
    above.set_title("mean change of the errors, %")
    above.set_xlabel("← less is better; 0: a network for each target")
    below.axhline(0, color="black", linewidth=1, linestyle="--")
    for name, (colour, marker) in SHOWN.items():
        if name in change:
            values = change[name].mean(axis=0)
            below.plot(results.known, values, marker, color=colour, label=name, markersize=9)
    below.set(xscale="log", yscale="symlog")
    below.set_yscale("symlog", linthresh=20)
    for axis in (below.xaxis, below.yaxis):
        axis.set_major_formatter("{x:g}")
    below.set_title("change of each target's error, %")
    below.set_xlabel("compounds to train on with this label")
    below.legend()
    figure.savefig(path, dpi=80)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Compare the methods where labels are missing.")
    add_method_flag(parser, list(METHODS))
    parser.add_argument("--quick", action="store_true", help="2 seeds, 20 steps, 6000 compounds")
    parser.add_argument("--steps", type=count, help="of each training; default: 1500")
    parser.add_argument("--seeds", type=count, help="how many; default: 3")
    parser.add_argument("--data", type=Path, help="the folder `chemicals`; default: as installed")
    parser.add_argument(
        "--cache", type=writable_directory, default="runs/compounds", help="default: runs/compounds"
    )
    parser.add_argument(
        "--out", type=picture_path, default="compounds.png", help="the picture's path"
    )
    args = parser.parse_args(argv)
    seeds, steps, size = (2, 20, 6000) if args.quick else (3, 1500, 100_000)
    seeds, steps = args.seeds or seeds, args.steps or steps
    torch.set_num_threads(1)
    try:
        compounds = load(args.data or packaged(), size)
    except PackageNotFoundError:
        parser.error("needs chemicals: pip install '.[compounds]'")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    # joblib's advice on a slow machine: it describes the arrays beside each result.
    warnings.filterwarnings("ignore", "Persisting input arguments")
    splits = [split(compounds, seed) for seed in range(seeds)]
    memory = Memory(args.cache, verbose=0)
    results = compare(chosen(list(METHODS), args), splits, steps, memory)
    print_tables(results)
    draw_picture(results, args.out, args.quick)
    if args.quick:
        print(f"\n{TOO_SHORT}")
    print(f"\npicture: {args.out}")


if __name__ == "__main__":
    run_program(main)
