"""The eager cost of weighing K losses over that of torchjd; the target is at most 0.9 (FAMO, STCH),
0.95 (UW), 1.0 (GeometricMean), 1.1 (IMTL-L, DWA, Constant, Random) and 1.4 (Sum, Mean).

One step is forward, backward and what updates the method's state, on one thread: no network, which
would hide it. UW's and IMTL-L's parameters are stepped by the user's optimizer, the same for both,
and are left out. The floor is `losses.sum().backward()`. Losses by name are 40 tensors in a
mapping, which the call stacks; torchjd has no such call.

    python benchmarks/overhead.py

CPU Intel(R) Xeon(R) Processor, cores 2, load 1.0, torch 2.13.0+cpu, Python 3.11.7

One eager step, K = 3
method          ours, us   torchjd, us       ours / floor     ours / torchjd                  target
────────────────────────────────────────────────────────────────────────────────────────────────────
UW                  98.3          96.8   3.96 (3.51-4.66)   1.01 (0.89-1.17)      <= 0.95: missed by
                                                                                                6.7%
IMTL-L              86.0          75.3   3.29 (2.90-3.78)   1.13 (1.01-1.29)       <= 1.1: missed by
                                                                                                3.1%
DWA                104.4          83.2   3.90 (3.50-4.38)   1.25 (1.05-1.40)       <= 1.1: missed by
                                                                                               13.6%
FAMO               356.7         348.5   11.7 (10.4-13.6)   1.02 (0.76-1.16)       <= 0.9: missed by
                                                                                               13.7%
Sum                 45.3          34.3   1.54 (1.37-1.72)   1.32 (1.18-1.49)             <= 1.4: met
Mean                71.3          44.8   2.33 (2.07-2.66)   1.59 (1.43-1.78)       <= 1.4: missed by
                                                                                               13.9%
Constant            52.3          42.2   1.85 (1.61-2.06)   1.24 (1.13-1.38)       <= 1.1: missed by
                                                                                               13.1%
Random              72.1          66.5   2.49 (2.17-2.83)   1.09 (0.96-1.21)             <= 1.1: met
GeometricMean       81.8          83.3   2.87 (2.51-3.20)   0.99 (0.87-1.11)               <= 1: met
STCH               143.3         155.1   5.14 (4.60-5.82)   0.92 (0.81-1.04)       <= 0.9: missed by
                                                                                                2.2%
LogSum              98.2                 3.61 (3.18-4.05)
ReLoBRaLo          296.5                  10.5 (9.4-12.0)

One eager step, K = 40
method          ours, us   torchjd, us       ours / floor     ours / torchjd                  target
────────────────────────────────────────────────────────────────────────────────────────────────────
UW                 106.4         105.4   4.05 (3.50-4.60)   1.00 (0.90-1.14)      <= 0.95: missed by
                                                                                                5.3%
IMTL-L              86.6          76.5   3.31 (2.95-3.75)   1.14 (1.02-1.26)       <= 1.1: missed by
                                                                                                3.4%
DWA                101.9          83.6   3.97 (3.53-4.59)   1.22 (1.08-1.38)       <= 1.1: missed by
                                                                                               11.1%
FAMO               320.6         317.1   12.9 (11.0-15.3)   1.01 (0.87-1.18)       <= 0.9: missed by
                                                                                               12.7%
Sum                 37.1          28.0   1.48 (1.30-1.68)   1.32 (1.15-1.53)             <= 1.4: met
Mean                61.0          37.3   2.36 (2.05-2.68)   1.63 (1.41-1.83)       <= 1.4: missed by
                                                                                               16.4%
Constant            48.0          38.1   1.84 (1.64-2.11)   1.26 (1.08-1.47)       <= 1.1: missed by
                                                                                               14.9%
Random              57.6          52.5   2.45 (2.04-2.93)   1.09 (0.85-1.40)             <= 1.1: met
GeometricMean       73.9          74.8   2.86 (2.45-3.22)   0.99 (0.87-1.12)               <= 1: met
STCH               131.0         142.2   5.38 (4.69-6.28)   0.92 (0.81-1.05)       <= 0.9: missed by
                                                                                                2.3%
LogSum              83.5                 3.64 (3.14-4.18)
ReLoBRaLo          255.9                 11.6 (10.3-13.3)

One eager step, K = 1000
method          ours, us   torchjd, us       ours / floor     ours / torchjd                  target
────────────────────────────────────────────────────────────────────────────────────────────────────
UW                 107.9         107.6   4.11 (3.59-4.74)   1.00 (0.88-1.14)      <= 0.95: missed by
                                                                                                5.7%
IMTL-L              88.3          76.9   3.35 (2.89-3.87)   1.15 (0.99-1.35)       <= 1.1: missed by
                                                                                                4.8%
DWA                109.1          85.9   4.13 (3.52-4.83)   1.26 (1.12-1.46)       <= 1.1: missed by
                                                                                               14.6%
FAMO               385.1         355.8   13.6 (11.5-15.6)   1.08 (0.91-1.22)       <= 0.9: missed by
                                                                                               19.7%
Sum                 43.1          32.0   1.52 (1.33-1.73)   1.36 (1.16-1.52)             <= 1.4: met
Mean                63.3          40.1   2.38 (2.10-2.65)   1.59 (1.42-1.79)       <= 1.4: missed by
                                                                                               13.8%
Constant            51.6          41.3   1.86 (1.67-2.08)   1.25 (1.11-1.42)       <= 1.1: missed by
                                                                                               13.3%
Random              79.0          73.7   2.60 (2.28-2.98)   1.07 (0.98-1.20)             <= 1.1: met
GeometricMean       85.5          89.1   2.85 (2.52-3.37)   0.95 (0.85-1.11)               <= 1: met
STCH               147.9         164.8   5.45 (4.67-6.24)   0.90 (0.78-1.02)             <= 0.9: met
LogSum              98.5                 3.66 (3.22-4.13)
ReLoBRaLo          316.8                 12.0 (10.5-13.6)

One eager step of UW, K = 40, by name
losses                    us      over a tensor   over stacked by hand
──────────────────────────────────────────────────────────────────────
a tensor               109.7   1.00 (1.00-1.00)       0.41 (0.36-0.47)
stacked by hand        262.6   2.43 (2.13-2.76)       1.00 (1.00-1.00)
by name                321.7   2.94 (2.60-3.45)       1.22 (1.08-1.37)
by name, one missing   358.6   3.26 (2.94-3.80)       1.36 (1.21-1.55)

Operators in one step, counted by the profiler
method          floor   ours   torchjd
──────────────────────────────────────
UW                 13     32        41
IMTL-L             13     21        20
DWA                13     38        31
FAMO               13    136        86
Sum                13     14        13
Mean               13     23        24
Constant           13     14        13
Random             13     20        20
GeometricMean      13     29        39
STCH               13     74       100
LogSum             13     37
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
