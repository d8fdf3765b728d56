"""The eager cost of weighing K losses over that of torchjd; what we aim at for K = 3 and 40 is at
most 0.8 (UW), 1.0 (IMTL-L), 0.7 (DWA) and 0.6 (FAMO).

One step is forward, backward and what updates the method's state, on one thread: no network, which
would hide it. UW's and IMTL-L's parameters are stepped by the user's optimizer, the same for both,
and are left out. The floor is `losses.sum().backward()`.

    python benchmarks/overhead.py

CPU AMD EPYC, cores 2, load 0.6, torch 2.13.0+cpu, Python 3.11.7

One eager step, K = 3
method   ours, us   torchjd, us        ours / floor     ours / torchjd                    target
────────────────────────────────────────────────────────────────────────────────────────────────
UW           34.5          43.9    2.78 (2.64-3.01)   0.79 (0.75-0.86)               <= 0.8: met
IMTL-L       29.8          29.6    2.38 (2.26-2.51)   1.01 (0.95-1.07)      <= 1: missed by 0.7%
DWA          23.3          31.4    1.86 (1.76-1.97)   0.74 (0.69-0.79)    <= 0.7: missed by 6.3%
FAMO        124.8         156.5   9.48 (8.66-10.94)   0.79 (0.61-0.95)   <= 0.6: missed by 31.8%

One eager step, K = 40
method   ours, us   torchjd, us        ours / floor     ours / torchjd                    target
────────────────────────────────────────────────────────────────────────────────────────────────
UW           35.1          44.1    2.80 (2.62-3.02)   0.79 (0.74-0.86)               <= 0.8: met
IMTL-L       29.8          29.2    2.38 (2.20-2.55)   1.01 (0.92-1.09)      <= 1: missed by 1.3%
DWA          23.3          31.5    1.85 (1.77-1.95)   0.74 (0.69-0.78)    <= 0.7: missed by 5.1%
FAMO        121.1         145.8   9.57 (8.97-10.60)   0.83 (0.75-0.94)   <= 0.6: missed by 38.4%

One eager step, K = 1000
method   ours, us   torchjd, us       ours / floor     ours / torchjd
─────────────────────────────────────────────────────────────────────
UW           37.0          46.1   2.94 (2.82-3.08)   0.80 (0.76-0.84)
IMTL-L       31.0          30.5   2.51 (2.41-2.62)   1.02 (0.97-1.06)
DWA          25.1          32.8   1.99 (1.87-2.10)   0.76 (0.72-0.82)
FAMO        142.4         148.6   11.4 (10.8-12.1)   0.96 (0.87-1.03)

Operators in one step, counted by the profiler
method   floor   ours   torchjd
───────────────────────────────
UW          13     35        41
IMTL-L      13     21        20
DWA         13     28        31
FAMO        13     99        86
"""

from collections.abc import Iterator, Mapping

import harness
import torch
from harness import Cell, Options, Row, Table
from torch import Tensor
from workloads import METHODS, Method, Step, bare_step

TARGETS = {"UW": 0.8, "IMTL-L": 1.0, "DWA": 0.7, "FAMO": 0.6}  # ours / torchjd at K = 3 and 40


def steps_of(method: Method, losses: Tensor) -> dict[str, Step]:
    return {
        "floor": bare_step(torch.sum, losses),
        "ours": bare_step(method.ours(len(losses)), losses),
        "torchjd": bare_step(method.torchjd(len(losses)), losses),
    }


def count_operators(steps: Mapping[str, Step]) -> dict[str, int]:
    """How many operators of aten one call of each step runs, those inside others included."""
    return {
        name: sum(event["name"].startswith("aten::") for event in events)
        for name, events in harness.trace(steps).items()
    }


def time_methods(losses: Tensor, rounds: int) -> list[Row]:
    rows: list[Row] = []
    for name, method in METHODS.items():
        times = harness.interleave(steps_of(method, losses), rounds=rounds)
        against_torchjd = harness.ratio(times["ours"], times["torchjd"])
        row: dict[str, Cell] = {
            "method": name,
            "ours, us": harness.microseconds(times["ours"]),
            "torchjd, us": harness.microseconds(times["torchjd"]),
            "ours / floor": harness.ratio(times["ours"], times["floor"]),
            "ours / torchjd": against_torchjd,
        }
        if len(losses) <= 40:
            row["target"] = harness.at_most(TARGETS[name], against_torchjd)
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
    counts = {name: count_operators(steps_of(method, losses)) for name, method in METHODS.items()}
    yield Table(
        "Operators in one step, counted by the profiler",
        [{"method": name, **count} for name, count in counts.items()],
    )


if __name__ == "__main__":
    harness.run("overhead", __doc__, measure)
