"""A process group adds to a step 1.2 to 1.8 times what its all-reduces take alone, on two and on
four ranks and within wide ranges: one of K floats, or two for FAMO. On one rank, which has nobody
to wait for, it adds 2.4 to 3.4 times as much as they take: 0.18 to 0.38 ms.

One step is forward, losses, weights, backward, AdamW and the method's state, of a MLP 64-256-256-8
under `DistributedDataParallel`, on a batch of 128 a rank with one loss per output; "together" is
with the scalarizer's `process_group`, "alone" without it. A larger network sees a fraction of that
ratio. What the group adds is measured without the network, in whose noise it would drown. The
ranks are processes of this machine on gloo, each on one thread: four of them share two cores.

    python benchmarks/collective.py

CPU AMD EPYC, cores 2, load 1.5, torch 2.13.0+cpu, Python 3.11.7

One step on 1 rank
method           alone, us   together / alone   all-reduce, us   group adds, us   adds / all-reduce
───────────────────────────────────────────────────────────────────────────────────────────────────
UW                 1,306.6   1.21 (1.13-1.37)             72.2            184.1    2.42 (2.00-3.42)
IMTL-L             1,352.8   1.24 (1.04-1.56)             78.2            268.8    3.43 (2.65-4.63)
DWA                1,459.5   1.23 (1.11-1.31)             78.0            238.8    3.13 (2.43-3.90)
FAMO               1,807.6   1.24 (1.14-1.34)            148.1            382.6    2.68 (2.14-3.51)
FAMO amortized     1,423.6   1.16 (1.10-1.23)             70.0            202.3    2.96 (2.48-3.73)

One step on 2 ranks
method           alone, us   together / alone   all-reduce, us   group adds, us   adds / all-reduce
───────────────────────────────────────────────────────────────────────────────────────────────────
UW                 3,791.6   1.39 (0.78-2.59)          1,120.5          1,187.8    1.39 (0.40-8.71)
IMTL-L             3,212.6   1.51 (0.84-2.50)          1,270.3            996.4    1.21 (0.21-5.40)
DWA                3,156.2   1.59 (0.93-2.69)          1,277.8            944.1    1.29 (0.26-4.14)
FAMO               5,283.2   1.75 (1.00-2.98)          2,602.3          3,325.5    1.38 (0.45-5.07)
FAMO amortized     3,424.3   1.49 (0.91-2.73)            623.8          1,332.4    1.77 (0.31-5.75)

One step on 4 ranks
method           alone, us   together / alone   all-reduce, us   group adds, us   adds / all-reduce
───────────────────────────────────────────────────────────────────────────────────────────────────
UW                11,381.7   1.63 (1.19-2.49)          5,370.0          7,859.6    1.47 (1.01-2.42)
IMTL-L            10,559.9   1.70 (1.19-2.52)          5,705.0          8,364.5    1.50 (0.71-2.35)
DWA               10,418.7   1.65 (1.13-2.51)          5,229.5          6,351.9    1.27 (0.68-2.31)
FAMO              11,795.9   2.28 (1.59-3.05)         11,254.4         14,432.3    1.24 (0.89-1.86)
FAMO amortized    11,761.6   1.63 (1.26-2.12)          5,462.7          8,059.6    1.36 (0.80-2.81)
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
    "IMTL-L": IMTLL,
    "DWA": DWA,
    "FAMO": FAMO,
    "FAMO amortized": partial(FAMO, amortized=True),
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
    make_together = partial(make, process_group=dist.group.WORLD)
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
    warnings.filterwarnings("ignore", ".*has no process group")  # it is what is measured
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
