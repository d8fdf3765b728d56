"""A process group adds to a step 1.1 to 1.7 times what its all-reduces take alone, on two and on
four ranks and within wide ranges: one of K floats, or two for FAMO. On one rank, which has nobody
to wait for, it adds 2.5 to 3.4 times as much as they take: 0.14 to 0.33 ms.

One step is forward, losses, weights, backward, AdamW and the method's state, of a MLP 64-256-256-8
under `DistributedDataParallel`, on a batch of 128 a rank with one loss per output; "together" is
with the scalarizer's `process_group`, "alone" without it. A larger network sees a fraction of that
ratio. What the group adds is measured without the network, in whose noise it would drown. The
ranks are processes of this machine on gloo, each on one thread: four of them share two cores.

    python benchmarks/collective.py

CPU AMD EPYC, cores 2, load 2.6, torch 2.13.0+cpu, Python 3.11.7

One step on 1 rank
method           alone, us   together / alone   all-reduce, us   group adds, us   adds / all-reduce
───────────────────────────────────────────────────────────────────────────────────────────────────
UW                 1,178.4   1.18 (1.14-1.24)             60.6            147.2    2.48 (2.09-2.96)
IMTL-L             1,101.4   1.19 (1.14-1.25)             56.0            138.7    2.48 (2.29-3.08)
DWA                1,195.3   1.20 (1.15-1.25)             64.8            180.4    2.59 (2.08-3.22)
FAMO               1,671.0   1.24 (1.12-1.40)            121.1            325.2    2.82 (2.18-4.36)
FAMO amortized     1,331.6   1.15 (1.10-1.23)             58.6            192.0    3.35 (2.60-4.13)

One step on 2 ranks
method           alone, us   together / alone   all-reduce, us   group adds, us   adds / all-reduce
───────────────────────────────────────────────────────────────────────────────────────────────────
UW                 3,176.3   1.38 (0.87-2.48)            937.3          1,144.3    1.32 (0.36-5.88)
IMTL-L             3,109.8   1.30 (0.75-2.44)          1,291.1          1,338.1    1.49 (0.31-6.22)
DWA                2,723.7   1.50 (0.92-2.99)          1,238.0          1,161.7    1.11 (0.19-6.22)
FAMO               3,338.7   1.53 (1.07-3.40)          2,416.7          2,493.5    1.11 (0.38-4.23)
FAMO amortized     2,977.1   1.57 (0.88-2.54)          1,261.8          1,227.9    1.35 (0.22-9.04)

One step on 4 ranks
method           alone, us   together / alone   all-reduce, us   group adds, us   adds / all-reduce
───────────────────────────────────────────────────────────────────────────────────────────────────
UW                10,619.0   1.67 (0.99-2.81)          6,400.5          8,531.2    1.15 (0.68-2.53)
IMTL-L            15,014.4   1.65 (0.81-2.87)          6,919.3         10,130.5    1.49 (0.88-2.99)
DWA               12,632.3   1.72 (1.15-2.65)          6,559.3          9,401.0    1.54 (0.70-2.59)
FAMO              15,079.6   2.17 (1.48-3.43)         12,363.0         18,755.2    1.47 (0.85-2.17)
FAMO amortized    11,314.0   1.67 (1.11-2.67)          6,080.3          8,994.9    1.67 (0.86-3.12)
"""

import gc
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import harness
import torch

# An optimizer imports it. Imported when there is a process group, it keeps that: see `be_a_rank`.
import torch._dynamo
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from harness import Options, Row, Table
from torch.nn.parallel import DistributedDataParallel
from workloads import Step, bare_step, looks_again, mlp_and_batch

from mtl_scalarize import DWA, FAMO, IMTLL, UW, Scalarizer

TASKS = 8
CALLS = 3  # in one measurement: as many on every rank, or they would wait for each other for ever
PATIENCE = 600  # seconds for all that so many ranks have to do; 60 for one collective

METHODS: dict[str, Callable[["dist.ProcessGroup | None"], Scalarizer]] = {
    "UW": lambda group: UW(TASKS, process_group=group),
    "IMTL-L": lambda group: IMTLL(TASKS, process_group=group),
    "DWA": lambda group: DWA(shape=TASKS, process_group=group),
    "FAMO": lambda group: FAMO(TASKS, process_group=group),
    "FAMO amortized": lambda group: FAMO(TASKS, amortized=True, process_group=group),
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
        if looks_again(scalarizer):
            with torch.no_grad():
                scalarizer.update(losses())

    return step


def repeat(step: Step, calls: int) -> Step:
    def steps() -> None:
        for _ in range(calls):
            step()

    return steps


def time_steps(method: str, rounds: int) -> dict[str, list[float]]:
    """The seconds of each step on this rank, while all ranks take the same."""
    make, group = METHODS[method], dist.group.WORLD
    losses, zeros = torch.rand(TASKS) + 0.5, torch.zeros(TASKS)
    reduces = 2 if looks_again(make(None)) else 1
    steps = {
        "alone": training_step(make(None)),
        "together": training_step(make(group)),
        "bare, alone": bare_step(make(None), losses),
        "bare, together": bare_step(make(group), losses),
        "all-reduces": repeat(lambda: dist.all_reduce(zeros), reduces),
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
