"""The eager cost of weighing K losses over that of torchjd; the target is at most 0.9 (FAMO, STCH),
0.95 (UW), 1.0 (GeometricMean), 1.1 (IMTL-L, DWA, Constant, Random) and 1.4 (Sum, Mean).

One step is forward, backward and what updates the method's state, on one thread: no network, which
would hide it. UW's and IMTL-L's parameters are stepped by the user's optimizer, the same for both,
and are left out. The floor is `losses.sum().backward()`. Losses by name are 40 tensors in a
mapping, which the call stacks; torchjd has no such call.

    python benchmarks/overhead.py

CPU AMD EPYC, cores 2, load 1.2, torch 2.13.0+cpu, Python 3.11.7

One eager step, K = 3
method          ours, us   torchjd, us       ours / floor     ours / torchjd                  target
────────────────────────────────────────────────────────────────────────────────────────────────────
UW                  39.2          41.2   3.32 (3.19-3.45)   0.96 (0.92-1.00)      <= 0.95: missed by
                                                                                                0.6%
IMTL-L              31.1          27.9   2.62 (2.55-2.71)   1.11 (1.08-1.15)       <= 1.1: missed by
                                                                                                1.4%
DWA                 40.2          29.2   3.39 (3.27-3.52)   1.38 (1.33-1.43)       <= 1.1: missed by
                                                                                               25.0%
FAMO               166.9         136.1   14.0 (13.4-14.8)   1.23 (1.05-1.31)       <= 0.9: missed by
                                                                                               36.8%
Sum                 15.1          12.6   1.30 (1.26-1.35)   1.20 (1.17-1.24)             <= 1.4: met
Mean                22.7          15.4   1.94 (1.89-2.00)   1.47 (1.44-1.52)       <= 1.4: missed by
                                                                                                5.3%
Constant            19.0          16.0   1.61 (1.57-1.66)   1.19 (1.15-1.22)       <= 1.1: missed by
                                                                                                7.7%
Random              24.2          19.7   2.06 (1.99-2.14)   1.22 (1.18-1.27)       <= 1.1: missed by
                                                                                               11.3%
GeometricMean       27.6          26.2   2.34 (2.26-2.44)   1.06 (1.01-1.10)    <= 1: missed by 5.6%
STCH                48.4          55.6   4.11 (3.95-4.27)   0.87 (0.83-0.91)             <= 0.9: met
LogSum              30.7                 2.61 (2.53-2.70)
ReLoBRaLo          143.4                 12.1 (11.6-12.7)

One eager step, K = 40
method          ours, us   torchjd, us       ours / floor     ours / torchjd                  target
────────────────────────────────────────────────────────────────────────────────────────────────────
UW                  39.0          40.7   3.33 (3.21-3.45)   0.96 (0.92-1.00)      <= 0.95: missed by
                                                                                                0.6%
IMTL-L              30.5          27.5   2.59 (2.49-2.77)   1.11 (1.07-1.19)       <= 1.1: missed by
                                                                                                1.1%
DWA                 40.2          28.9   3.40 (3.27-3.55)   1.39 (1.33-1.46)       <= 1.1: missed by
                                                                                               26.3%
FAMO               169.0         131.0   14.2 (13.5-14.9)   1.29 (1.21-1.38)       <= 0.9: missed by
                                                                                               43.6%
Sum                 15.3          12.7   1.31 (1.27-1.35)   1.20 (1.16-1.24)             <= 1.4: met
Mean                23.0          15.6   1.93 (1.87-2.00)   1.47 (1.42-1.53)       <= 1.4: missed by
                                                                                                5.0%
Constant            19.1          16.1   1.61 (1.56-1.66)   1.18 (1.15-1.22)       <= 1.1: missed by
                                                                                                7.6%
Random              24.4          19.9   2.05 (1.99-2.12)   1.23 (1.18-1.27)       <= 1.1: missed by
                                                                                               11.5%
GeometricMean       27.8          26.4   2.34 (2.27-2.42)   1.05 (1.02-1.09)    <= 1: missed by 5.5%
STCH                48.6          55.9   4.08 (3.90-4.29)   0.87 (0.83-0.92)             <= 0.9: met
LogSum              30.7                 2.62 (2.54-2.70)
ReLoBRaLo          144.6                 12.2 (11.7-12.8)

One eager step, K = 1000
method          ours, us   torchjd, us       ours / floor     ours / torchjd                  target
────────────────────────────────────────────────────────────────────────────────────────────────────
UW                  40.7          42.8   3.45 (3.34-3.61)   0.95 (0.91-1.00)      <= 0.95: missed by
                                                                                                0.2%
IMTL-L              32.1          28.9   2.70 (2.62-2.81)   1.11 (1.07-1.15)       <= 1.1: missed by
                                                                                                0.9%
DWA                 43.9          30.7   3.64 (3.52-3.80)   1.43 (1.37-1.50)       <= 1.1: missed by
                                                                                               30.1%
FAMO               192.7         138.6   16.2 (15.4-16.9)   1.39 (1.30-1.49)       <= 0.9: missed by
                                                                                               54.6%
Sum                 15.5          12.8   1.31 (1.27-1.34)   1.21 (1.18-1.24)             <= 1.4: met
Mean                22.8          15.7   1.95 (1.89-2.01)   1.45 (1.41-1.50)       <= 1.4: missed by
                                                                                                3.8%
Constant            19.2          16.3   1.62 (1.58-1.67)   1.18 (1.15-1.21)       <= 1.1: missed by
                                                                                                7.1%
Random              27.9          23.1   2.33 (2.25-2.39)   1.21 (1.16-1.25)       <= 1.1: missed by
                                                                                                9.7%
GeometricMean       29.2          28.4   2.45 (2.38-2.54)   1.03 (0.99-1.07)    <= 1: missed by 2.8%
STCH                50.5          61.0   4.23 (4.09-4.38)   0.83 (0.79-0.86)             <= 0.9: met
LogSum              33.0                 2.79 (2.71-2.88)
ReLoBRaLo          163.8                 13.6 (12.9-14.1)

One eager step of UW, K = 40, by name
losses                    us      over a tensor   over stacked by hand
──────────────────────────────────────────────────────────────────────
a tensor                40.8   1.00 (1.00-1.00)       0.28 (0.27-0.30)
stacked by hand        143.7   3.52 (3.37-3.65)       1.00 (1.00-1.00)
by name                183.0   4.45 (4.32-4.60)       1.27 (1.22-1.32)
by name, one missing   210.4   5.13 (4.92-5.34)       1.46 (1.41-1.51)

Operators in one step, counted by the profiler
method          floor   ours   torchjd
──────────────────────────────────────
UW                 13     32        41
IMTL-L             13     21        20
DWA                13     38        31
FAMO               13    166        86
Sum                13     14        13
Mean               13     23        24
Constant           13     14        13
Random             13     25        20
GeometricMean      13     26        39
STCH               13     52       100
LogSum             13     34
ReLoBRaLo          13    209
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
    "COSMOS": 1.1,
    "PBI": 1.1,
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
