"""Ranks that balance together add to a step 1.3 to 1.9 times what their all-reduces take alone, on
two and on four ranks and within wide ranges: one of 2K numbers, losses and presence, or two with
FAMO's `update`. On one rank, which has nobody to wait for, it is about 5 times as much: 0.35 to
0.67 ms.

One step is forward, losses, weights, backward, AdamW and the method's state (FAMO's `update` after
every step), of a MLP 64-256-256-8 under `DistributedDataParallel`, on a batch of 128 a rank with
one loss per output; "together" is after `synchronize()`, "alone" without it. A larger network sees
a fraction of that ratio. What the group adds is measured without the network, in whose noise it
would drown. The ranks are processes of this machine on gloo, each on one thread: four of them share
two cores.

    python benchmarks/collective.py

CPU AMD EPYC, cores 2, load 1.7, torch 2.13.0+cpu, Python 3.11.7

One step on 1 rank
method           alone, us   together / alone   all-reduce, us   group adds, us   adds / all-reduce
───────────────────────────────────────────────────────────────────────────────────────────────────
UW                 1,487.2   1.29 (1.23-1.34)             76.5            349.7    4.58 (3.78-5.98)
IMTLL              1,487.9   1.32 (1.26-1.40)             74.6            363.8    4.77 (3.97-6.79)
DWA                1,553.3   1.32 (1.20-1.40)             82.9            359.3    4.54 (3.59-6.12)
FAMO               2,130.7   1.39 (1.30-1.50)            150.4            667.7    4.66 (3.82-5.73)

One step on 2 ranks
method           alone, us   together / alone   all-reduce, us   group adds, us   adds / all-reduce
───────────────────────────────────────────────────────────────────────────────────────────────────
UW                 3,351.4   1.78 (0.89-3.24)          1,051.5          1,124.5    1.27 (0.33-3.60)
IMTLL              3,638.8   1.61 (0.75-2.48)            835.8          1,720.1    1.92 (0.52-6.79)
DWA                3,644.9   1.48 (0.76-2.77)          1,355.3          1,267.3    1.41 (0.30-6.34)
FAMO               4,252.8   1.73 (1.18-3.06)          1,868.8          3,816.4    1.91 (0.73-4.83)

One step on 4 ranks
method           alone, us   together / alone   all-reduce, us   group adds, us   adds / all-reduce
───────────────────────────────────────────────────────────────────────────────────────────────────
UW                11,429.5   1.64 (1.10-2.28)          5,506.2          9,175.4    1.57 (0.92-2.36)
IMTLL             10,553.4   1.74 (1.05-2.59)          6,114.4          7,455.2    1.35 (0.86-2.40)
DWA               10,906.2   1.62 (1.18-2.31)          5,333.8          8,688.7    1.61 (1.02-2.46)
FAMO              13,070.7   2.33 (1.79-2.65)         11,134.7         17,783.5    1.68 (0.96-2.50)
"""

import gc
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import harness
import torch

# An optimizer imports it. Imported when there is a process group, it keeps that: see `be_a_rank`.
import torch._dynamo
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from harness import Options, Row, Table
from torch.nn.parallel import DistributedDataParallel
from workloads import Step, bare_step, mlp_and_batch

from mtl_scalarize import DWA, FAMO, IMTLL, UW, Scalarizer

TASKS = 8
CALLS = 3  # in one measurement: as many on every rank, or they would wait for each other for ever
PATIENCE = 600  # seconds for all that so many ranks have to do; 60 for one collective

METHODS: dict[str, Callable[..., Scalarizer]] = {
    "UW": UW,
    "IMTLL": IMTLL,
    "DWA": DWA,
    "FAMO": FAMO,
}


def training_step(scalarizer: Scalarizer) -> Step:
    network, inputs, targets = mlp_and_batch(torch.device("cpu"))
    parallel = DistributedDataParallel(network)
    parameters = [*network.parameters(), *scalarizer.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def losses() -> torch.Tensor:
        return (parallel(inputs) - targets).square().mean(dim=0)

    def step() -> None:
        optimizer.zero_grad()
        scalarizer(losses()).backward()
        optimizer.step()
        scalarizer.update(losses)

    return step


def repeat(step: Step, calls: int) -> Step:
    def steps() -> None:
        for _ in range(calls):
            step()

    return steps


def time_steps(method: str, rounds: int) -> dict[str, list[float]]:
    """The seconds of each step on this rank, while all ranks take the same."""
    make = partial(METHODS[method], shape=TASKS)

    def make_together() -> Scalarizer:
        scalarizer = make()
        scalarizer.synchronize()
        return scalarizer

    losses, zeros = torch.rand(TASKS) + 0.5, torch.zeros(TASKS)
    steps = {
        "alone": training_step(make()),
        "together": training_step(make_together()),
        "bare, alone": bare_step(make(), losses),
        "bare, together": bare_step(make_together(), losses),
        "all-reduces": repeat(lambda: dist.all_reduce(zeros), 2 if method == "FAMO" else 1),
    }
    # `seconds=0`: one call a measurement, however long it takes on which rank.
    steps = {name: repeat(step, CALLS) for name, step in steps.items()}
    times = harness.interleave(steps, rounds=rounds, seconds=0)
    return {name: [seconds / CALLS for seconds in measured] for name, measured in times.items()}


def be_a_rank(rank: int, size: int, rounds: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    warnings.filterwarnings("ignore", ".*is not synchronized")  # it is what is measured
    store = dist.FileStore(str(folder / "store"), size)
    patience = timedelta(seconds=60)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=patience)
    times = {method: time_steps(method, rounds) for method in METHODS}
    if rank == 0:
        torch.save(times, folder / "times")
    gc.collect()  # with the last reference to it the group ends its threads; left over, they abort
    dist.destroy_process_group()


def time_on(size: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """What `time_steps` finds on so many ranks, for every method."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ranks = multiprocessing.spawn(be_a_rank, (size, rounds, folder), nprocs=size, join=False)
        deadline = time.monotonic() + PATIENCE
        while not ranks.join(timeout=deadline - time.monotonic()):  # True once all have ended
            if time.monotonic() >= deadline:
                for process in ranks.processes:
                    process.kill()
                raise TimeoutError(f"{size} ranks were not done after {PATIENCE} seconds")
        return torch.load(folder / "times")


def row(method: str, times: dict[str, list[float]]) -> Row:
    added = [
        together - alone
        for together, alone in zip(times["bare, together"], times["bare, alone"], strict=True)
    ]
    return {
        "method": method,
        "alone, us": harness.microseconds(times["alone"]),
        "together / alone": harness.ratio(times["together"], times["alone"]),
        "all-reduce, us": harness.microseconds(times["all-reduces"]),
        "group adds, us": harness.microseconds(added),
        "adds / all-reduce": harness.ratio(added, times["all-reduces"]),
    }


def measure(options: Options) -> Iterator[Table]:
    if options.device.type != "cpu":
        raise SystemExit("collective.py: the ranks are processes on gloo, on the CPU")
    for size in (1, 2, 4):
        times = time_on(size, rounds=5 if options.quick else 60)
        plural = "s" if size > 1 else ""
        yield Table(f"One step on {size} rank{plural}", [row(*item) for item in times.items()])


if __name__ == "__main__":
    harness.run("collective", __doc__, measure)
