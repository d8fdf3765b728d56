"""The eager cost of weighing K losses over that of torchjd; the target is at most 1.1 (IMTL-L), 0.8
(FAMO) and 1.0 (the others).

One step is forward, backward and what updates the method's state, on one thread: no network, which
would hide it. UW's and IMTL-L's parameters are stepped by the user's optimizer, the same for both,
and are left out. The floor is `losses.sum().backward()`.

    python benchmarks/overhead.py

CPU AMD EPYC, cores 2, load 1.4, torch 2.13.0+cpu, Python 3.11.7

One eager step, K = 3
method   ours, us   torchjd, us       ours / floor     ours / torchjd                    target
───────────────────────────────────────────────────────────────────────────────────────────────
UW          110.2          91.8   4.53 (3.69-5.63)   1.17 (1.00-1.47)     <= 1: missed by 17.4%
IMTL-L       88.9          60.7   3.82 (3.10-4.55)   1.46 (1.23-1.70)   <= 1.1: missed by 32.9%
DWA         112.4          78.6   4.41 (3.39-5.36)   1.37 (1.13-1.79)     <= 1: missed by 37.0%
FAMO        333.2         369.0   13.2 (10.6-16.7)   0.92 (0.70-1.22)   <= 0.8: missed by 15.6%

One eager step, K = 40
method   ours, us   torchjd, us       ours / floor     ours / torchjd                    target
───────────────────────────────────────────────────────────────────────────────────────────────
UW          134.5         114.5   4.44 (3.91-5.56)   1.18 (1.04-1.36)     <= 1: missed by 18.1%
IMTL-L      108.3          74.3   3.90 (3.31-4.76)   1.48 (1.22-1.80)   <= 1.1: missed by 34.4%
DWA          94.4          70.1   4.15 (3.57-4.65)   1.35 (1.22-1.50)     <= 1: missed by 35.4%
FAMO        290.7         306.8   12.9 (11.5-14.8)   0.95 (0.81-1.13)   <= 0.8: missed by 19.3%

One eager step, K = 1000
method   ours, us   torchjd, us       ours / floor     ours / torchjd                    target
───────────────────────────────────────────────────────────────────────────────────────────────
UW          106.0          90.3   4.70 (4.24-5.40)   1.17 (1.02-1.34)     <= 1: missed by 17.5%
IMTL-L       90.8          61.9   4.12 (3.67-4.58)   1.47 (1.30-1.67)   <= 1.1: missed by 33.4%
DWA         100.3          72.1   4.38 (3.77-5.03)   1.39 (1.20-1.59)     <= 1: missed by 39.3%
FAMO        342.2         340.5   14.1 (11.6-16.5)   1.05 (0.90-1.21)   <= 0.8: missed by 31.4%

Operators in one step, counted by the profiler
method   floor   ours   torchjd
───────────────────────────────
UW          13     40        41
IMTL-L      13     29        20
DWA         13     39        31
FAMO        13    147        86
"""

from collections.abc import Iterator, Mapping

import harness
import torch
from harness import Cell, Options, Row, Table
from torch import Tensor
from workloads import METHODS, OTHERS, Method, Step, bare_step

ALL = METHODS | OTHERS
TARGETS = {"IMTL-L": 1.1, "FAMO": 0.8}  # ours / torchjd; 1.0 for the others


def steps_of(method: Method, losses: Tensor) -> dict[str, Step]:
    steps = {
        "floor": bare_step(torch.sum, losses),
        "ours": bare_step(method.ours(len(losses)), losses),
    }
    if method.torchjd is not None:
        steps["torchjd"] = bare_step(method.torchjd(len(losses)), losses)
    return steps


def count_operators(steps: Mapping[str, Step]) -> dict[str, int]:
    """How many operators of aten one call of each step runs, those inside others included."""
    return {
        name: sum(event["name"].startswith("aten::") for event in events)
        for name, events in harness.trace(steps).items()
    }


def time_methods(losses: Tensor, rounds: int) -> list[Row]:
    rows: list[Row] = []
    for name, method in ALL.items():
        times = harness.interleave(steps_of(method, losses), rounds=rounds)
        row: dict[str, Cell] = {"method": name, "ours, us": harness.microseconds(times["ours"])}
        if "torchjd" in times:
            row["torchjd, us"] = harness.microseconds(times["torchjd"])
        row["ours / floor"] = harness.ratio(times["ours"], times["floor"])
        if "torchjd" in times:
            against_torchjd = harness.ratio(times["ours"], times["torchjd"])
            row["ours / torchjd"] = against_torchjd
            row["target"] = harness.at_most(TARGETS.get(name, 1.0), against_torchjd)
        rows.append(row)
    return rows


def measure(options: Options) -> Iterator[Table]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for tasks in (3, 40, 1000):
        losses = torch.rand(tasks, device=options.device) + 0.5
        rows = time_methods(losses, rounds=20 if options.quick else 300)
        yield Table(f"One eager step, K = {tasks}", rows)

    losses = torch.rand(3, device=options.device) + 0.5
    counts = {name: count_operators(steps_of(method, losses)) for name, method in ALL.items()}
    yield Table(
        "Operators in one step, counted by the profiler",
        [{"method": name, **count} for name, count in counts.items()],
    )


if __name__ == "__main__":
    harness.run("overhead", __doc__, measure)
