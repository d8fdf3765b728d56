"""The eager cost of weighing K losses: at most 0.8 (UW), 1.0 (IMTL-L), 0.7 (DWA) and 0.6 (FAMO)
times that of torchjd at K = 3 and 40.

One step is forward, backward and what updates the method's state, on one thread: no network, which
would hide it. UW's and IMTL-L's parameters are stepped by the user's optimizer, the same for both,
and are left out. The floor is `losses.sum().backward()`.

    python benchmarks/overhead.py

PRINTOUT
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
