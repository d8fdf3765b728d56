"""From 2 to 10^7 tasks (every instance a task), time and memory grow in proportion to K, as those
of a copy do; at 10^7 the target is a compiled step 4 (UW), 2.3 (IMTL-L), 3 (DWA) and 2.2 (FAMO)
times as fast as torchjd's, and an eager FAMO step of at most twice its time.

One step is forward, backward and what updates the method's state. The unit of time is a copy of the
losses, the unit of memory their size; peak memory is what a step holds at once beyond what it
found (against torchjd: torchjd's / ours eager / ours compiled). The share of the bandwidth of a
copy counts only what has to move at the least.

    python benchmarks/many_tasks.py

CPU AMD EPYC, cores 2, load 1.7, torch 2.13.0+cpu, Python 3.11.7

Time of an eager step over that of a copy of the losses
K            copy, us                  UW              IMTL-L                 DWA              FAMO
───────────────────────────────────────────────────────────────────────────────────────────────────
2                 0.7    53.9 (51.0-55.5)    45.6 (44.2-47.5)    31.8 (30.8-33.2)     169 (160-185)
100               0.7    55.0 (53.0-57.7)    48.1 (46.3-49.9)    32.1 (30.9-33.4)     184 (177-199)
10,000            1.2    57.0 (53.9-61.2)    41.9 (40.1-45.9)    38.9 (37.1-41.1)     343 (317-368)
100,000           3.4   52.4 (48.8-120.1)    38.9 (36.4-55.6)    39.8 (37.9-46.0)   1138 (514-3874)
1,000,000        44.4    58.6 (51.3-86.4)    36.5 (30.9-39.9)    45.3 (40.1-58.0)    926 (681-1230)
10,000,000    1,423.6        102 (87-183)   63.1 (53.2-180.5)   66.1 (55.3-117.5)    925 (589-1215)

Peak memory of an eager step over the bytes of the losses
K             UW   IMTL-L   DWA   FAMO
──────────────────────────────────────
2            7.5      6.0   4.8   17.2
100          6.0      5.0   4.3   17.2
10,000       6.0      5.0   4.3   17.2
100,000      6.0      5.0   4.3   17.2
1,000,000    6.0      5.0   4.3   17.2
10,000,000   6.0      5.0   4.3   17.2

A step at K = 10,000,000 against torchjd's
method    torchjd / eager   torchjd / compiled                  target        peak memory
─────────────────────────────────────────────────────────────────────────────────────────
UW       0.92 (0.91-1.64)     6.24 (3.84-7.24)               >= 5: met    5.0 / 6.0 / 3.0
IMTL-L   0.84 (0.70-0.91)     2.27 (2.03-2.41)   >= 5: missed by 54.7%    5.0 / 5.0 / 3.0
DWA      0.95 (0.63-1.60)     3.25 (3.01-5.33)   >= 5: missed by 35.1%    3.0 / 4.3 / 2.0
FAMO     0.35 (0.24-0.45)     2.24 (1.91-3.87)   >= 5: missed by 55.2%   9.0 / 16.2 / 3.0

A compiled step at K = 10,000,000 against a copy of the losses
method     compiled / copy   least possible   of the bandwidth
──────────────────────────────────────────────────────────────
UW        23.5 (20.1-25.7)              3.0                13%
IMTL-L    22.3 (18.9-26.0)              3.0                13%
DWA       16.8 (16.4-25.0)              6.0                36%
FAMO     94.1 (57.2-152.8)             10.5                11%
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
    "IMTL-L": 2 + 4,
    "DWA": 2 + 2 + 6,  # losses and weights; weights and a gradient; in and out: mean, int64 count
    # losses, logits, bounds, and a copy of the losses; the first three and a gradient; old and new
    # losses, bounds; in and out: logits, two moments, int64 step
    "FAMO": 4 + 4 + 3 + 10,
}

TARGETS = {"UW": 4, "IMTL-L": 2.3, "DWA": 3, "FAMO": 2.2}  # torchjd / compiled


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
    yield from compare_with_copy(rounds, options.device)
    largest = max(rounds)
    yield from compare_with_torchjd(largest, rounds[largest], options.device)


if __name__ == "__main__":
    harness.run("many_tasks", __doc__, measure)
