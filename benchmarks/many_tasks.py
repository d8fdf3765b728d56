"""From 2 to 10^7 tasks (every instance a task; on a GPU to 10^8), time and memory grow in
proportion to K, as those of a copy do; at 10^7 the target is a compiled step 4 (UW), 2.3 (IMTL-L),
3 (DWA) and 2.2 (FAMO) times as fast as torchjd's, and an eager FAMO step of at most twice its time.

One step is forward, backward and what updates the method's state. The unit of time is a copy of the
losses, the unit of memory their size; peak memory is what a step holds at once beyond what it
found (against torchjd: torchjd's / ours eager / ours compiled). The share of the bandwidth of a
copy counts only what has to move at the least.

    python benchmarks/many_tasks.py

CPU Intel(R) Xeon(R) Processor, cores 2, load 1.0, torch 2.13.0+cpu, Python 3.11.7

Time of an eager step over that of a copy of the losses
K            copy, us                 UW              IMTL-L                DWA            FAMO
───────────────────────────────────────────────────────────────────────────────────────────────
2                 0.7       128 (87-160)   97.0 (69.0-131.6)       123 (84-155)   405 (302-509)
100               0.7      149 (137-167)       123 (110-136)      145 (133-158)   463 (428-513)
10,000            1.6   81.3 (75.5-90.9)    66.7 (61.5-73.2)       102 (93-115)   425 (390-487)
100,000           9.7   54.0 (40.6-62.5)    46.4 (34.1-53.7)       101 (83-114)   380 (305-480)
1,000,000       321.2   15.2 (12.3-19.9)    14.4 (11.3-17.7)   30.6 (27.0-41.7)   151 (131-185)
10,000,000    5,406.4   28.8 (27.3-44.7)    23.4 (22.1-37.5)   52.1 (50.3-80.0)   247 (223-347)

Peak memory of an eager step over the bytes of the losses
K             UW   IMTL-L   DWA   FAMO
──────────────────────────────────────
2            5.5      6.0   6.2   16.8
100          4.0      5.0   6.2   16.2
10,000       4.0      5.0   6.2   16.2
100,000      4.0      5.0   6.2   16.2
1,000,000    4.0      5.0   6.2   16.2
10,000,000   4.0      5.0   6.2   16.2

A step at K = 10,000,000 against torchjd's
method    torchjd / eager   torchjd / compiled                    target        peak memory
───────────────────────────────────────────────────────────────────────────────────────────
UW       1.38 (1.32-1.45)     4.50 (4.39-4.67)                 >= 4: met    5.0 / 4.0 / 2.0
IMTLL    0.99 (0.98-1.03)     3.42 (3.29-3.54)               >= 2.3: met    5.0 / 5.0 / 2.0
DWA      0.48 (0.47-0.48)     3.56 (3.52-3.75)                 >= 3: met    3.0 / 6.2 / 1.0
FAMO     0.34 (0.33-0.41)     1.72 (1.65-1.77)   >= 2.2: missed by 21.9%   9.0 / 16.2 / 3.0

A compiled step at K = 10,000,000 against a copy of the losses
method     compiled / copy   least possible   of the bandwidth
──────────────────────────────────────────────────────────────
UW       9.60 (8.89-11.83)              3.0                31%
IMTLL     7.26 (6.65-9.17)              3.0                41%
DWA      6.93 (6.47-10.08)              5.0                72%
FAMO      53.7 (51.0-79.2)             10.5                20%
"""

from collections.abc import Iterator, Mapping
from itertools import accumulate

import harness
import torch
from harness import Options, Row, Table
from torch import Tensor
from workloads import METHODS, Step, bare_step

# What has to move at the least, in units of K float32: forward, backward and update each read their
# inputs and write their outputs once.
TRAFFIC = {
    "copy": 2,
    "UW": 2 + 4,  # losses and log_var; the same, and a gradient for each
    "IMTLL": 2 + 4,
    "DWA": 2 + 2 + 6,  # losses and weights; weights and a gradient; in and out: mean, int64 count
    # losses, logits, bounds, and a copy of the losses; the first three and a gradient; old and new
    # losses, bounds; in and out: logits, two moments, int64 step
    "FAMO": 4 + 4 + 3 + 10,
}

TARGETS = {"UW": 4, "IMTLL": 2.3, "DWA": 3, "FAMO": 2.2}  # torchjd / compiled


def peak_memory(steps: Mapping[str, Step], losses: Tensor) -> dict[str, float]:
    """The most that one call of each step holds at once beyond what it found, over the losses."""
    if losses.is_cuda:
        peaks = {name: peak_cuda_memory(step, losses.device) for name, step in steps.items()}
    else:
        peaks = {
            name: max(
                accumulate(
                    event["args"]["Bytes"] for event in events if event["name"] == "[memory]"
                )
            )
            for name, events in harness.trace(steps).items()
        }
    return {name: round(peak / losses.nbytes, 1) for name, peak in peaks.items()}


def peak_cuda_memory(step: Step, device: torch.device) -> int:
    step()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    return torch.cuda.max_memory_allocated(device) - before


def copy_of(losses: Tensor) -> Step:
    copy = torch.empty_like(losses)
    return lambda: copy.copy_(losses)


def compare_with_copy(rounds: Mapping[int, int], device: torch.device) -> Iterator[Table]:
    times_over_copy: list[Row] = []
    peaks: list[Row] = []
    for tasks in rounds:
        losses = torch.rand(tasks, device=device) + 0.5
        steps = {name: bare_step(method.ours(tasks), losses) for name, method in METHODS.items()}
        times = harness.interleave({"copy": copy_of(losses), **steps}, rounds=rounds[tasks])
        times_over_copy.append(
            {"K": f"{tasks:,}", "copy, us": harness.microseconds(times["copy"])}
            | {name: harness.ratio(times[name], times["copy"]) for name in steps}
        )
        peaks.append({"K": f"{tasks:,}", **peak_memory(steps, losses)})
    yield Table("Time of an eager step over that of a copy of the losses", times_over_copy)
    yield Table("Peak memory of an eager step over the bytes of the losses", peaks)


def compare_with_torchjd(tasks: int, rounds: int, device: torch.device) -> Iterator[Table]:
    against_torchjd: list[Row] = []
    bandwidths: list[Row] = []
    losses = torch.rand(tasks, device=device) + 0.5
    for name, method in METHODS.items():
        steps = {
            "torchjd": bare_step(method.torchjd(tasks), losses),
            "eager": bare_step(method.ours(tasks), losses),
            "compiled": bare_step(method.ours(tasks), losses, compiled=True),
        }
        times = harness.interleave({"copy": copy_of(losses), **steps}, rounds=rounds)
        gain = harness.ratio(times["torchjd"], times["compiled"])
        memory = peak_memory(steps, losses)
        against_torchjd.append(
            {
                "method": name,
                "torchjd / eager": harness.ratio(times["torchjd"], times["eager"]),
                "torchjd / compiled": gain,
                "target": harness.at_least(TARGETS[name], gain),
                "peak memory": " / ".join(map(str, memory.values())),
            }
        )
        copies = harness.ratio(times["compiled"], times["copy"])
        bandwidths.append(
            {
                "method": name,
                "compiled / copy": copies,
                "least possible": TRAFFIC[name] / TRAFFIC["copy"],
                "of the bandwidth": f"{TRAFFIC[name] / TRAFFIC['copy'] / copies.median:.0%}",
            }
        )
    yield Table(f"A step at K = {tasks:,} against torchjd's", against_torchjd)
    yield Table(f"A compiled step at K = {tasks:,} against a copy of the losses", bandwidths)


def measure(options: Options) -> Iterator[Table]:
    torch.manual_seed(0)
    rounds = {2: 100, 10**2: 100, 10**4: 100, 10**5: 50, 10**6: 15, 10**7: 5}
    if options.quick:
        rounds = dict.fromkeys((2, 10**4, 10**6), 3)
    if options.device.type == "cuda":
        rounds[10**8] = 5
    yield from compare_with_copy(rounds, options.device)
    largest = max(rounds)
    yield from compare_with_torchjd(largest, rounds[largest], options.device)


if __name__ == "__main__":
    harness.run("many_tasks", __doc__, measure)
