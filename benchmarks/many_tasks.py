"""From 2 to 10^7 tasks (every instance a task), time and memory grow in proportion to K, as those
of a copy do; what we aim at for 10^7 is a compiled step 5 times as fast as torchjd's.

One step is forward, backward and what updates the method's state. The unit of time is a copy of the
losses, the unit of memory their size; peak memory is what a step holds at once beyond what it
found (against torchjd: torchjd's / ours eager / ours compiled). The share of the bandwidth of a
copy counts only what has to move at the least.

    python benchmarks/many_tasks.py

CPU AMD EPYC, cores 2, load 2.3, torch 2.13.0+cpu, Python 3.11.7

Time of an eager step over that of a copy of the losses
K            copy, us                  UW              IMTL-L                 DWA               FAMO
────────────────────────────────────────────────────────────────────────────────────────────────────
2                 0.7    47.3 (44.2-50.5)    41.2 (38.4-45.0)    31.6 (29.8-34.5)      158 (147-187)
100               0.7   51.9 (11.5-537.6)   44.7 (27.8-457.0)    32.0 (7.2-108.2)      193 (50-1610)
10,000            1.2                60.5                43.6   40.6 (10.6-135.3)     415 (97-19805)
                            (14.7-5764.3)       (10.1-1746.5)
100,000           3.7    56.6 (5.5-458.3)    34.3 (5.9-134.8)    43.3 (8.2-224.2)   1538 (109-14295)
1,000,000        53.7        174 (16-579)   28.9 (10.3-536.3)   37.7 (11.0-175.3)     2466 (62-4090)
10,000,000    7,957.2    37.5 (33.1-42.9)    21.6 (19.8-25.6)    24.7 (22.8-29.4)      192 (140-237)

Peak memory of an eager step over the bytes of the losses
K             UW   IMTL-L   DWA   FAMO
──────────────────────────────────────
2            6.5      6.0   4.8   17.2
100          5.0      5.0   4.3   17.2
10,000       5.0      5.0   4.3   17.2
100,000      5.0      5.0   4.3   17.2
1,000,000    5.0      5.0   4.3   17.2
10,000,000   5.0      5.0   4.3   17.2

A step at K = 10,000,000 against torchjd's
method    torchjd / eager   torchjd / compiled                  target        peak memory
─────────────────────────────────────────────────────────────────────────────────────────
UW       1.00 (0.86-1.05)     4.02 (3.43-4.95)   >= 5: missed by 19.6%    5.0 / 5.0 / 3.0
IMTL-L   1.07 (0.88-1.26)     3.59 (2.96-4.06)   >= 5: missed by 28.2%    5.0 / 5.0 / 3.0
DWA      0.85 (0.78-1.05)     2.74 (2.56-3.02)   >= 5: missed by 45.1%    3.0 / 4.3 / 2.0
FAMO     0.39 (0.35-0.43)     1.96 (1.78-2.00)   >= 5: missed by 60.7%   9.0 / 16.2 / 3.0

A compiled step at K = 10,000,000 against a copy of the losses
method     compiled / copy   least possible   of the bandwidth
──────────────────────────────────────────────────────────────
UW         10.6 (9.7-27.5)              3.0                28%
IMTL-L    7.69 (7.67-8.54)              3.0                39%
DWA      8.27 (7.09-15.48)              6.0                73%
FAMO      39.3 (35.8-55.8)             10.5                27%
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
    "DWA": 2 + 2 + 8,  # losses and weights; weights and a gradient; the float64 sum, int64 count
    # losses, logits, bounds, and a copy of the losses; the first three and a gradient; old and new
    # losses, bounds; in and out: logits, two moments, int64 step
    "FAMO": 4 + 4 + 3 + 10,
}


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
                "target": harness.at_least(5, gain),
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
