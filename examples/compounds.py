"""Sixteen properties of chemical compounds, most of them unknown.

One network predicts the properties of 17,071 compounds from their formula and their SMILES, which
is a line of text for a molecule's structure. The melting point is known for two of three compounds,
the octane number (RON) for one of a hundred: most batches of 100 have one or two compounds with it,
and many have none. A task's loss is the mean over the compounds of the batch whose target is known;
a mask tells the scalarizer which tasks the batch lacks. The targets are standardised, some as
logarithms. The learning rate of each method is the better one of two on validation, with the first
seed. A seed stands for one split, its initial weights and its batches.

    pip install '.[compounds]'                     # brings the tables, 22 MB
    python examples/compounds.py                   # 20 minutes on a busy core
    python examples/compounds.py --method UW FAMO  # beside Sum, one method or several
    python examples/compounds.py --quick           # half a minute, to see that it runs

A finished training is kept in `runs/compounds` until the code of `train` changes. The program draws
the picture `compounds.png` and prints (one core of an AMD EPYC, busy with other work):

                         all   13 with few labels   3 with many   learning
method            delta-m, %           delta-m, %    delta-m, %       rate
────────────────────────────────────────────────────────────────────────────
Sum                1.4 ± 3.8           -1.6 ± 5.5    14.0 ± 4.2      0.001
LogSum          122.8 ± 40.2         140.1 ± 47.7    47.7 ± 7.5      0.001
GeometricMean    60.7 ± 27.3          68.3 ± 32.6    27.8 ± 5.7      0.001
Random             8.8 ± 4.8            6.4 ± 6.2    19.1 ± 1.1      0.001
STCH              51.8 ± 7.3           48.4 ± 9.3    66.7 ± 5.4      0.001
UW                -2.0 ± 3.2           -4.5 ± 4.6     9.0 ± 3.4      0.001
IMTLL             -2.0 ± 3.2           -4.5 ± 4.6     9.0 ± 3.4      0.001
DWA                1.5 ± 3.8           -1.3 ± 5.5    13.9 ± 4.1      0.001
ReLoBRaLo         14.8 ± 8.1            8.9 ± 4.2   40.6 ± 25.6      0.001
FAMO               8.3 ± 2.1            7.0 ± 3.5    13.8 ± 3.7      0.001
LogSum, floor     -3.8 ± 2.2           -6.2 ± 3.1     6.6 ± 3.8      0.001

On compounds never trained on. delta-m: mean relative change of the errors against a
network for each target, ± standard deviation over the seeds; negative is better.

                           absent,   single
target       labels   % of batches     task     Sum      UW    FAMO   LogSum, floor   LogSum
──────────────────────────────────────────────────────────────────────────────────────────────
melting        6838              0    0.348   0.374   0.374   0.388           0.367    0.449
boiling        4668              0    0.396   0.408   0.410   0.427           0.397    0.483
volume         2438              0    0.123   0.161   0.142   0.150           0.140    0.237
critical T      218             12    0.218   0.199   0.193   0.231           0.191    0.483
critical p      218             12    0.233   0.211   0.199   0.215           0.213    0.494
critical V      218             12    0.216   0.201   0.191   0.199           0.196    0.478
acentric        218             12    0.304   0.280   0.271   0.309           0.278    0.473
dipole          205             13    0.337   0.343   0.343   0.433           0.371    0.659
formation       218             12    0.182   0.205   0.205   0.242           0.194    0.691
entropy         218             12    0.179   0.192   0.184   0.199           0.178    0.486
fusion          192             15    0.639   0.513   0.509   0.514           0.485    0.904
combustion      218             12    0.102   0.136   0.119   0.131           0.109    0.479
solubility      218             12    0.326   0.352   0.344   0.390           0.340    0.935
cetane          138             25    0.432   0.347   0.346   0.466           0.358    0.670
RON             105             37    0.520   0.482   0.488   0.474           0.450    0.761
MON             105             37    0.511   0.462   0.465   0.489           0.420    0.796

Mean absolute error in standard deviations of the target, mean over the seeds.

                 delta-m, %                            RON's error               share, %
method                masks        filled  stratified   all labels         half     masks  in strata
─────────────────────────────────────────────────────────────────────────────────────────────────────
Sum               1.4 ± 3.8  148.4 ± 26.1  -4.4 ± 1.7  0.48 ± 0.10  0.55 ± 0.09       7.3        6.2
LogSum         122.8 ± 40.2  188.4 ± 31.9  -7.7 ± 2.2  0.76 ± 0.17  1.25 ± 0.87      10.6        3.3
UW               -2.0 ± 3.2  130.1 ± 23.7  -6.5 ± 1.8  0.49 ± 0.10  0.54 ± 0.10       3.6        2.8
FAMO              8.3 ± 2.1  164.4 ± 33.3  -6.8 ± 3.8  0.47 ± 0.15  0.53 ± 0.17       9.0        2.4
LogSum, floor    -3.8 ± 2.2  143.4 ± 25.6  -6.9 ± 2.3  0.45 ± 0.10  0.47 ± 0.15       7.2        5.3

Filled: an unknown target is its mean. Stratified: each batch has two compounds of
every target. Half: of the labels of RON to train on. Share: RON's, of the
weights in the batches that have it, mean over the training.

What to take from it:

- Fill nothing in. A missing label that is replaced by the mean teaches the mean: every method is
  more than twice as bad as a network for each target.
- With one or two labels in a batch, a loss is often close to 0 by chance, and LogSum and
  GeometricMean then give it almost all the weight: the worst results here. A floor under the losses
  (`min_losses=-0.1`) is the cure: with it LogSum is as good as UW, which needs none.
- Better for every method are stratified batches: two compounds with each target, and the
  rest at random. FAMO's weights sum to 1 over the tasks that are present, so that a rare
  task weighs too much where others are absent: 15 points of delta-m.
- Sharing a network helps the targets with few labels, and costs the others.

The tables are those of the package `chemicals` 1.5.2 whose licence is clear:

- melting points: Bradley, Williams and Lang, "Jean-Claude Bradley Open Melting Point Dataset",
  2014, CC0;
- boiling points and molar volumes of the liquid: "CAS Common Chemistry", CC BY-NC 4.0;
- ten constants: Kooijman and Taylor, "ChemSep v8.3 pure component data", 2021, Artistic License
  2.0; some of them are estimates;
- cetane and octane numbers: Kessler, "CombustDB"; all octane and 388 of 408 cetane numbers are also
  in the authors' package `ecnet` 4.1.5, under the MIT license;
- formulas and SMILES: PubChem.

Left out are the tables from handbooks and journals (CRC, Yaws, Perry, Poling, VDI, Landolt-
Boernstein, DIPPR and others), whose publishers have rights in them, and all predicted values.
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
from matplotlib.axes import Axes
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

SHOWN = ("Sum", "UW", "FAMO", "LogSum, floor", "LogSum")  # target by target
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
        "delta-m, %\nmasks",
        "\nfilled",
        "\nstratified",
        f"{HALVED}'s error\nall labels",
        "\nhalf",
        "share, %\nmasks",
        "\nin strata",
        gap=1,
    )
    for name in results.variants["filled"]:
        masks = results.methods[name]
        filled, stratified, half = (of[name] for of in results.variants.values())
        cells = [cell(tuned, few | True) for tuned in (masks, filled, stratified)]
        errors = [torch.from_numpy(tuned.errors[:, 1, rare]) for tuned in (masks, half)]
        shares = [f"{100 * t.shares[:, rare].mean():.1f}" for t in (masks, stratified)]
        cells += [mean_and_std(error, 2) for error in errors]
        table.add_row(name, *cells, *shares)
    CONSOLE.print(table)
    print("\nFilled: an unknown target is its mean. Stratified: each batch has two compounds of")
    print(f"every target. Half: of the labels of {HALVED} to train on. Share: {HALVED}'s, of the")
    print("weights in the batches that have it, mean over the training.")


@picture_style
def draw_picture(results: Results, path: Path, quick: bool) -> None:
    """Delta-m of all methods, and of some by what is done about the missing labels."""
    figure = Figure(figsize=(8, 10), layout="constrained")
    if quick:
        figure.suptitle(TOO_SHORT)
    above, below = figure.subplots(2, 1, height_ratios=[6, 5])
    alone = results.alone.errors[:, 1]

    def draw(axes: Axes, methods: Mapping[str, Tuned], colour: str, **options: Any) -> None:
        delta = [changes(tuned.errors[:, 1], alone).mean(axis=1) for tuned in methods.values()]
        rows = range(len(methods))
        axes.plot(np.stack(delta), rows, "o", color=colour, alpha=0.3)
        means = [values.mean() for values in delta]
        axes.plot(means, rows, "o", color=colour, markersize=13, **options)
        axes.set_yticks(rows, [*methods])

    draw(above, results.methods, "#0072b2")
    above.set_title("delta-m: mean change of the errors, %")
    masks = {name: results.methods[name] for name in results.variants["filled"]}
    draw(below, masks, "#0072b2", label="masks")
    draw(below, results.variants["filled"], "#d55e00", label="filled with the mean")
    draw(below, results.variants["stratified"], "#009e73", label="masks, stratified batches")
    below.set_title("by what is done about missing labels")
    figure.legend(*below.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    for axes in (above, below):
        axes.axvline(0, color="black", linewidth=1, linestyle="--")
        axes.invert_yaxis()
        axes.set_xscale("symlog", linthresh=10)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("← less is better; 0: a network for each target")
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
