"""The eager cost of weighing K losses over that of torchjd; what we aim at for K = 3 and 40 is at
most 0.8 (UW), 1.0 (IMTL-L), 0.7 (DWA) and 0.6 (FAMO).

One step is forward, backward and what updates the method's state, on one thread: no network, which
would hide it. UW's and IMTL-L's parameters are stepped by the user's optimizer, the same for both,
and are left out. The floor is `losses.sum().backward()`.

    python benchmarks/overhead.py

CPU AMD EPYC, cores 2, load 2.2, torch 2.13.0+cpu, Python 3.11.7

One eager step, K = 3
method   ours, us   torchjd, us       ours / floor     ours / torchjd                    target
───────────────────────────────────────────────────────────────────────────────────────────────
UW           41.2          45.6   3.17 (2.79-3.63)   0.90 (0.80-1.03)   <= 0.8: missed by 12.5%
IMTL-L       34.3          30.2   2.70 (2.52-2.92)   1.13 (1.04-1.24)     <= 1: missed by 13.1%
DWA          23.7          32.0   1.89 (1.75-2.09)   0.74 (0.67-0.82)    <= 0.7: missed by 5.3%
FAMO        132.4         147.8    10.2 (9.2-12.1)   0.88 (0.68-1.02)   <= 0.6: missed by 46.7%

One eager step, K = 40
method   ours, us   torchjd, us       ours / floor     ours / torchjd                    target
───────────────────────────────────────────────────────────────────────────────────────────────
UW           41.0          46.3   3.18 (2.93-3.51)   0.88 (0.81-0.98)   <= 0.8: missed by 10.3%
IMTL-L       34.6          30.5   2.73 (2.57-2.92)   1.14 (1.06-1.22)     <= 1: missed by 13.6%
DWA          23.6          31.9   1.87 (1.77-2.00)   0.74 (0.69-0.79)    <= 0.7: missed by 5.3%
FAMO        137.4         144.0    10.8 (9.5-12.3)   0.92 (0.76-1.06)   <= 0.6: missed by 53.5%

One eager step, K = 1000
method   ours, us   torchjd, us       ours / floor     ours / torchjd
─────────────────────────────────────────────────────────────────────
UW           41.3          46.2   3.34 (3.15-3.52)   0.89 (0.84-0.95)
IMTL-L       35.3          30.9   2.85 (2.67-3.08)   1.14 (1.06-1.24)
DWA          25.9          33.8   2.02 (1.85-2.22)   0.76 (0.69-0.84)
FAMO        165.8         156.3   12.7 (11.2-14.2)   1.06 (0.90-1.21)

Operators in one step, counted by the profiler
method   floor   ours   torchjd
───────────────────────────────
UW          13     36        41
IMTL-L      13     22        20
DWA         13     28        31
FAMO        13    105        86
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
