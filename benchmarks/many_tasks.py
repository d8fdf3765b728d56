"""From 2 to 10^7 tasks (every instance a task), time and memory grow in proportion to K, as those
of a copy do; at 10^7 the target is a compiled step 4 (UW), 2.3 (IMTL-L), 3 (DWA) and 2.2 (FAMO)
times as fast as torchjd's, and an eager FAMO step of at most twice its time.

One step is forward, backward and what updates the method's state. The unit of time is a copy of the
losses, the unit of memory their size; peak memory is what a step holds at once beyond what it
found (against torchjd: torchjd's / ours eager / ours compiled). The share of the bandwidth of a
copy counts only what has to move at the least.

    python benchmarks/many_tasks.py

CPU AMD EPYC, cores 2, load 2.7, torch 2.13.0+cpu, Python 3.11.7

Time of an eager step over that of a copy of the losses
K            copy, us                  UW              IMTL-L                 DWA            FAMO
─────────────────────────────────────────────────────────────────────────────────────────────────
2                 0.9       113 (100-135)   94.4 (83.4-110.8)        106 (89-121)   347 (299-390)
100               0.9       117 (101-151)        103 (84-134)        105 (88-165)   362 (300-581)
10,000            1.8   91.8 (74.0-118.5)    73.9 (59.7-94.7)   87.1 (69.1-113.6)   360 (295-436)
100,000           7.5    57.1 (45.7-72.1)    50.0 (42.1-61.2)    71.9 (59.5-89.4)   545 (367-749)
1,000,000        48.2   74.8 (64.9-128.2)   67.8 (58.3-110.2)       118 (105-149)   756 (584-974)
10,000,000    3,350.7    48.8 (35.1-65.5)    36.3 (29.4-54.2)   67.8 (48.0-104.1)   242 (192-438)

Peak memory of an eager step over the bytes of the losses
K             UW   IMTL-L   DWA   FAMO
──────────────────────────────────────
2            6.5      7.0   7.8   17.8
100          5.0      6.0   7.3   17.2
10,000       5.0      6.0   7.3   17.2
100,000      5.0      6.0   7.3   17.2
1,000,000    5.0      6.0   7.3   17.2
10,000,000   5.0      6.0   7.3   17.2

A step at K = 10,000,000 against torchjd's
method    torchjd / eager   torchjd / compiled                    target        peak memory
───────────────────────────────────────────────────────────────────────────────────────────
UW       1.23 (0.99-1.29)     4.28 (3.36-4.42)                 >= 4: met    5.0 / 5.0 / 3.0
IMTL-L   0.82 (0.76-1.13)     2.00 (1.82-3.41)   >= 2.3: missed by 12.9%    5.0 / 6.0 / 2.0
DWA      0.51 (0.46-0.83)     2.54 (2.45-4.39)     >= 3: missed by 15.3%    3.0 / 7.3 / 2.0
FAMO     0.43 (0.42-0.48)     2.10 (1.65-2.46)    >= 2.2: missed by 4.3%   9.0 / 17.2 / 4.0

A compiled step at K = 10,000,000 against a copy of the losses
method    compiled / copy   least possible   of the bandwidth
─────────────────────────────────────────────────────────────
UW       14.0 (12.7-16.5)              3.0                21%
IMTL-L   32.6 (11.9-40.9)              3.0                 9%
DWA       15.2 (7.7-29.7)              5.0                33%
FAMO     74.4 (40.8-94.1)             10.5                14%
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
