"""The eager cost of weighing K losses over that of torchjd; the target is at most 1.0 (UW), 1.1
(IMTL-L), 1.0 (DWA) and 0.8 (FAMO).

One step is forward, backward and what updates the method's state, on one thread: no network, which
would hide it. UW's and IMTL-L's parameters are stepped by the user's optimizer, the same for both,
and are left out. The floor is `losses.sum().backward()`.

    python benchmarks/overhead.py

CPU AMD EPYC, cores 2, load 0.7, torch 2.13.0+cpu, Python 3.11.7

One eager step, K = 3
method   ours, us   torchjd, us         ours / floor     ours / torchjd                    target
─────────────────────────────────────────────────────────────────────────────────────────────────
UW           40.6          46.0     3.13 (2.98-3.36)   0.89 (0.84-0.95)   <= 0.8: missed by 10.7%
IMTL-L       34.8          30.8     2.71 (2.58-2.86)   1.14 (1.07-1.21)     <= 1: missed by 13.5%
DWA          23.8          32.1     1.86 (1.78-1.95)   0.74 (0.70-0.78)    <= 0.7: missed by 6.3%
FAMO        128.5         150.3   10.00 (9.40-10.83)   0.86 (0.75-0.93)   <= 0.6: missed by 43.4%

One eager step, K = 40
method   ours, us   torchjd, us       ours / floor     ours / torchjd                    target
───────────────────────────────────────────────────────────────────────────────────────────────
UW           39.7          45.0   3.12 (2.95-3.27)   0.88 (0.83-0.93)   <= 0.8: missed by 10.3%
IMTL-L       34.4          30.2   2.71 (2.59-2.85)   1.14 (1.08-1.19)     <= 1: missed by 13.8%
DWA          23.5          31.8   1.84 (1.74-1.93)   0.74 (0.70-0.79)    <= 0.7: missed by 5.6%
FAMO        132.0         145.5    10.2 (9.6-10.8)   0.91 (0.83-0.98)   <= 0.6: missed by 51.4%

One eager step, K = 1000
method   ours, us   torchjd, us       ours / floor     ours / torchjd
─────────────────────────────────────────────────────────────────────
UW           42.8          47.7   3.30 (3.18-3.47)   0.90 (0.86-0.95)
IMTL-L       36.5          31.8   2.84 (2.74-2.97)   1.14 (1.10-1.20)
DWA          25.5          33.0   1.98 (1.92-2.07)   0.77 (0.74-0.81)
FAMO        164.7         154.6   12.7 (12.0-13.3)   1.06 (0.98-1.14)

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

TARGETS = {"UW": 1.0, "IMTL-L": 1.1, "DWA": 1.0, "FAMO": 0.8}  # ours / torchjd


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
            "target": harness.at_most(TARGETS[name], against_torchjd),
        }
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
