"""The eager cost of weighing K losses over that of torchjd; the target is at most 0.9 (FAMO, STCH),
0.95 (UW), 1.0 (GeometricMean), 1.1 (IMTL-L, DWA, Constant, Random) and 1.4 (Sum, Mean).

One step is forward, backward and what updates the method's state, on one thread: no network, which
would hide it. UW's and IMTL-L's parameters are stepped by the user's optimizer, the same for both,
and are left out. The floor is `losses.sum().backward()`. Losses by name are 40 tensors in a
mapping, which the call stacks; torchjd has no such call.

    python benchmarks/overhead.py

CPU AMD EPYC, cores 2, load 0.7, torch 2.13.0+cpu, Python 3.11.7

One eager step, K = 3
method          ours, us   torchjd, us       ours / floor     ours / torchjd                  target
────────────────────────────────────────────────────────────────────────────────────────────────────
UW                 101.6          83.0   4.63 (4.34-5.04)   1.23 (1.12-1.33)   <= 1: missed by 22.5%
IMTL-L              86.3          57.4   3.90 (3.59-4.24)   1.50 (1.39-1.63)       <= 1.1: missed by
                                                                                               36.3%
DWA                 96.5          66.7   4.39 (4.09-4.71)   1.45 (1.34-1.57)   <= 1: missed by 44.7%
FAMO               297.8         277.8   13.7 (12.3-14.7)   1.07 (0.96-1.17)       <= 0.8: missed by
                                                                                               33.7%
Sum                 43.5          24.1   1.99 (1.77-2.11)   1.77 (1.64-1.91)   <= 1: missed by 77.0%
Mean                53.2          32.1   2.41 (2.21-2.61)   1.65 (1.49-1.79)   <= 1: missed by 64.7%
Constant            39.7          30.6   1.82 (1.66-2.20)   1.30 (1.13-1.52)   <= 1: missed by 29.6%
Random              62.6          47.0   2.70 (2.31-3.17)   1.33 (1.08-1.60)   <= 1: missed by 32.8%
GeometricMean       68.9          60.7   3.11 (2.86-3.40)   1.13 (1.02-1.24)   <= 1: missed by 13.3%
STCH               122.0         136.3   5.43 (4.91-6.02)   0.89 (0.80-1.00)               <= 1: met
LogSum              93.4                 4.07 (3.65-4.80)
ReLoBRaLo          263.7                 11.5 (10.1-13.7)

One eager step, K = 40
method          ours, us   torchjd, us       ours / floor     ours / torchjd                  target
────────────────────────────────────────────────────────────────────────────────────────────────────
UW                 102.4          84.2   4.65 (4.31-5.09)   1.21 (1.12-1.34)   <= 1: missed by 21.5%
IMTL-L              87.3          57.2   4.01 (3.70-4.30)   1.53 (1.41-1.66)       <= 1.1: missed by
                                                                                               38.9%
DWA                 96.9          67.5   4.45 (4.04-5.04)   1.45 (1.28-1.65)   <= 1: missed by 45.0%
FAMO               306.4         291.8   13.5 (11.9-15.8)   1.06 (0.92-1.20)       <= 0.8: missed by
                                                                                               32.5%
Sum                 44.4          24.8   2.00 (1.83-2.34)   1.80 (1.61-2.05)   <= 1: missed by 79.9%
Mean                53.1          31.9   2.43 (2.15-2.81)   1.67 (1.46-1.92)   <= 1: missed by 67.2%
Constant            41.1          31.8   1.86 (1.70-2.05)   1.29 (1.17-1.44)   <= 1: missed by 29.2%
Random              63.7          47.6   2.71 (2.27-3.25)   1.34 (1.10-1.62)   <= 1: missed by 33.5%
GeometricMean      111.2          98.0   3.01 (2.57-3.76)   1.14 (0.96-1.38)   <= 1: missed by 14.0%
STCH               122.2         136.1   5.41 (5.00-6.25)   0.89 (0.80-1.03)               <= 1: met
LogSum              92.2                 4.03 (3.55-4.51)
ReLoBRaLo          263.4                 11.5 (10.1-12.9)

One eager step, K = 1000
method          ours, us   torchjd, us       ours / floor     ours / torchjd                  target
────────────────────────────────────────────────────────────────────────────────────────────────────
UW                 110.2          90.3   4.84 (4.41-5.50)   1.21 (1.07-1.39)   <= 1: missed by 21.0%
IMTL-L              91.5          60.2   4.09 (3.74-4.60)   1.51 (1.37-1.71)       <= 1.1: missed by
                                                                                               37.7%
DWA                106.0          71.0   4.70 (4.21-5.26)   1.49 (1.32-1.67)   <= 1: missed by 48.8%
FAMO               327.4         299.1   14.5 (13.3-15.8)   1.09 (0.99-1.18)       <= 0.8: missed by
                                                                                               36.8%
Sum                 46.4          25.6   2.04 (1.79-2.35)   1.81 (1.58-2.08)   <= 1: missed by 80.9%
Mean                55.6          32.8   2.43 (2.13-2.80)   1.65 (1.18-1.92)   <= 1: missed by 64.5%
Constant            41.2          32.1   1.84 (1.68-2.04)   1.28 (1.16-1.42)   <= 1: missed by 27.8%
Random              63.9          49.6   2.87 (2.66-3.09)   1.28 (1.19-1.39)   <= 1: missed by 28.3%
GeometricMean       70.5          63.0   3.15 (2.98-3.38)   1.10 (1.01-1.17)    <= 1: missed by 9.7%
STCH               127.5         145.0   5.72 (5.29-6.15)   0.88 (0.82-0.94)               <= 1: met
LogSum              92.7                 4.19 (3.95-4.45)
ReLoBRaLo          281.1                 12.7 (11.9-13.3)

Operators in one step, counted by the profiler
method          floor   ours   torchjd
──────────────────────────────────────
UW                 13     40        41
IMTL-L             13     29        20
DWA                13     39        31
FAMO               13    154        86
Sum                13     18        13
Mean               13     23        24
Constant           13     13        13
Random             13     22        20
GeometricMean      13     29        39
STCH               13     77       100
LogSum             13     45
ReLoBRaLo          13    203
"""

from collections.abc import Callable, Iterator, Mapping

import harness
import torch
from harness import Cell, Options, Row, Table
from torch import Tensor
from workloads import METHODS, OTHERS, Method, Step, bare_step

from mtl_scalarize import UW

ALL = METHODS | OTHERS
TARGETS = {  # ours / torchjd
    "UW": 0.95,
    "IMTL-L": 1.1,
    "DWA": 1.1,
    "FAMO": 0.9,
    "Sum": 1.4,
    "Mean": 1.4,
    "Constant": 1.1,
    "Random": 1.1,
    "GeometricMean": 1.0,
    "STCH": 0.9,
}


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
            row["target"] = harness.at_most(TARGETS[name], against_torchjd)
        rows.append(row)
    return rows


def steps_by_name(values: Tensor) -> dict[str, Step]:
    """The same losses as a tensor and by name."""
    names = [f"task {index}" for index in range(len(values))]
    whole = values.clone().requires_grad_()
    apart = {
        name: value.clone().requires_grad_()
        for name, value in zip(names, values.unbind(), strict=True)
    }
    incomplete = {name: apart[name] for name in names[1:]}

    def step_on(losses_of: Callable[[], Tensor | Mapping[str, Tensor]]) -> Step:
        scalarizer = UW(names).to(values.device)
        leaves = [whole, *apart.values(), *scalarizer.parameters()]

        def step() -> None:
            scalarizer(losses_of()).backward()
            for leaf in leaves:
                leaf.grad = None

        return step

    return {
        "a tensor": step_on(lambda: whole),
        "stacked by hand": step_on(lambda: torch.stack(list(apart.values()))),
        "by name": step_on(lambda: apart),
        "by name, one missing": step_on(lambda: incomplete),
    }


def time_names(values: Tensor, rounds: int) -> list[Row]:
    times = harness.interleave(steps_by_name(values), rounds=rounds)
    return [
        {
            "losses": name,
            "us": harness.microseconds(seconds),
            "over a tensor": harness.ratio(seconds, times["a tensor"]),
            "over stacked by hand": harness.ratio(seconds, times["stacked by hand"]),
        }
        for name, seconds in times.items()
    ]


def measure(options: Options) -> Iterator[Table]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rounds = 20 if options.quick else 300
    for tasks in (3, 40, 1000):
        losses = torch.rand(tasks, device=options.device) + 0.5
        yield Table(f"One eager step, K = {tasks}", time_methods(losses, rounds))

    losses = torch.rand(40, device=options.device) + 0.5
    yield Table("One eager step of UW, K = 40, by name", time_names(losses, rounds))

    losses = torch.rand(3, device=options.device) + 0.5
    counts = {name: count_operators(steps_of(method, losses)) for name, method in ALL.items()}
    yield Table(
        "Operators in one step, counted by the profiler",
        [{"method": name, **count} for name, count in counts.items()],
    )


if __name__ == "__main__":
    harness.run("overhead", __doc__, measure)
