"""A process group adds to a step 1.2 to 2.0 times what its all-reduces take alone, on two and on
four ranks and within wide ranges: one of K floats, or two for FAMO. (Measured when a call sent
K floats; it sends 2K now, losses and presence.) On one rank, which has nobody
to wait for, it adds about 3 times as much as they take: 0.24 to 0.49 ms.

One step is forward, losses, weights, backward, AdamW and the method's state, of a MLP 64-256-256-8
under `DistributedDataParallel`, on a batch of 128 a rank with one loss per output; "together" is
with the scalarizer's `process_group`, "alone" without it. A larger network sees a fraction of that
ratio. What the group adds is measured without the network, in whose noise it would drown. The
ranks are processes of this machine on gloo, each on one thread: four of them share two cores.

    python benchmarks/collective.py

CPU AMD EPYC, cores 2, load 1.1, torch 2.13.0+cpu, Python 3.11.7

One step on 1 rank
method           alone, us   together / alone   all-reduce, us   group adds, us   adds / all-reduce
───────────────────────────────────────────────────────────────────────────────────────────────────
UW                 1,644.0   1.23 (1.04-1.38)             88.0            271.8    3.02 (2.42-3.95)
IMTL-L             1,535.0   1.19 (1.07-1.37)             83.1            242.6    2.89 (2.32-3.77)
DWA                1,494.3   1.23 (1.14-1.40)             86.2            259.0    3.09 (2.51-3.85)
FAMO               2,151.0   1.29 (1.17-1.42)            160.1            485.5    2.98 (2.44-3.82)
FAMO amortized     2,261.0   1.22 (1.05-1.35)             90.0            297.4    3.15 (2.23-4.19)

One step on 2 ranks
method           alone, us   together / alone   all-reduce, us   group adds, us   adds / all-reduce
───────────────────────────────────────────────────────────────────────────────────────────────────
UW                 4,301.3   1.41 (0.86-2.93)          1,264.2          1,166.5    1.24 (0.30-5.18)
IMTL-L             3,730.5   1.49 (0.86-2.25)          1,152.8          1,407.4    1.21 (0.30-4.46)
DWA                3,239.1   1.72 (0.87-3.05)            486.9            952.0    1.97 (0.44-6.47)
FAMO               4,767.0   1.49 (0.94-2.56)          2,294.1          2,289.7    1.17 (0.36-4.21)
FAMO amortized     4,334.9   1.29 (0.81-2.35)          1,496.1          1,322.8    1.40 (0.38-4.14)

One step on 4 ranks
method           alone, us   together / alone   all-reduce, us   group adds, us   adds / all-reduce
───────────────────────────────────────────────────────────────────────────────────────────────────
UW                10,532.0   1.76 (1.37-2.34)          5,927.4          7,080.2    1.24 (0.73-1.96)
IMTL-L            11,014.1   1.68 (1.22-2.34)          5,806.3          7,515.5    1.19 (0.78-2.47)
DWA               11,273.3   1.67 (1.12-2.40)          6,046.8          7,327.8    1.19 (0.68-2.20)
FAMO              13,147.6   2.05 (1.56-2.83)         11,535.8         14,334.7    1.25 (0.84-1.87)
FAMO amortized    11,851.8   1.63 (1.24-2.11)          5,768.7          8,290.0    1.47 (0.91-2.98)
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
