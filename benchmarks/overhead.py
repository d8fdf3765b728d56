"""The eager cost of weighing K losses over that of torchjd; the target is at most 0.9 (FAMO, STCH),
0.95 (UW), 1.0 (GeometricMean), 1.1 (IMTL-L, DWA, Constant, Random), 1.4 (Sum, Mean) and 2 (COSMOS,
PBI).

One step is forward, backward and what updates the method's state, on one thread: no network, which
would hide it. UW's and IMTL-L's parameters are stepped by the user's optimizer, the same for both,
and are left out. The floor is `losses.sum().backward()`. Losses by name are 40 tensors in a
mapping, which the call stacks; torchjd has no such call.

    python benchmarks/overhead.py

CPU AMD EPYC, cores 2, load 1.3, torch 2.13.0+cpu, Python 3.11.7

One eager step, K = 3
method          ours, us   torchjd, us       ours / floor     ours / torchjd                  target
────────────────────────────────────────────────────────────────────────────────────────────────────
UW                  40.8          41.9   3.34 (3.20-3.52)   0.97 (0.93-1.03)      <= 0.95: missed by
                                                                                                2.5%
IMTLL               32.6          28.4   2.67 (2.57-2.78)   1.14 (1.10-1.19)       <= 1.1: missed by
                                                                                                3.9%
DWA                 39.3          30.4   3.20 (3.06-3.38)   1.29 (1.22-1.37)       <= 1.1: missed by
                                                                                               17.0%
FAMO               169.8         141.5   13.7 (12.9-14.6)   1.20 (1.00-1.29)       <= 0.9: missed by
                                                                                               33.6%
Sum                 16.2          13.3   1.34 (1.28-1.39)   1.22 (1.17-1.27)             <= 1.4: met
Mean                21.5          16.2   1.77 (1.71-1.89)   1.33 (1.29-1.42)             <= 1.4: met
Constant            30.3          16.6   2.48 (2.37-2.59)   1.82 (1.75-1.89)       <= 1.1: missed by
                                                                                               65.4%
Random              26.3          20.8   2.17 (2.08-2.34)   1.26 (1.21-1.33)       <= 1.1: missed by
                                                                                               14.9%
GeometricMean       28.7          26.7   2.37 (2.28-2.45)   1.08 (1.04-1.12)    <= 1: missed by 7.7%
STCH                50.0          56.3   4.13 (3.98-4.29)   0.89 (0.85-0.93)             <= 0.9: met
COSMOS              90.2          53.7   7.37 (7.04-7.73)   1.68 (1.60-1.78)               <= 2: met
PBI                 93.9          49.4   7.66 (7.33-8.08)   1.89 (1.78-2.00)               <= 2: met
LogSum              32.5                 2.65 (2.54-2.80)
ReLoBRaLo          140.4                 11.5 (11.0-12.3)

One eager step, K = 40
method          ours, us   torchjd, us       ours / floor     ours / torchjd                  target
────────────────────────────────────────────────────────────────────────────────────────────────────
UW                  41.1          42.1   3.37 (3.24-3.50)   0.98 (0.94-1.02)      <= 0.95: missed by
                                                                                                2.7%
IMTLL               32.3          28.4   2.65 (2.57-2.75)   1.14 (1.10-1.18)       <= 1.1: missed by
                                                                                                3.6%
DWA                 39.2          30.1   3.22 (3.09-3.36)   1.30 (1.23-1.37)       <= 1.1: missed by
                                                                                               18.5%
FAMO               170.0         132.7   13.9 (13.2-14.6)   1.28 (1.18-1.37)       <= 0.9: missed by
                                                                                               42.5%
Sum                 16.2          13.3   1.34 (1.30-1.38)   1.21 (1.18-1.25)             <= 1.4: met
Mean                21.6          16.1   1.76 (1.71-1.83)   1.34 (1.29-1.39)             <= 1.4: met
Constant            30.0          16.5   2.47 (2.37-2.58)   1.82 (1.75-1.90)       <= 1.1: missed by
                                                                                               65.8%
Random              25.9          20.5   2.14 (2.08-2.20)   1.26 (1.22-1.31)       <= 1.1: missed by
                                                                                               14.7%
GeometricMean       28.8          26.8   2.34 (2.27-2.43)   1.07 (1.04-1.12)    <= 1: missed by 7.5%
STCH                50.6          56.8   4.12 (3.98-4.33)   0.89 (0.85-0.94)             <= 0.9: met
COSMOS              88.3          53.4   7.25 (7.03-7.61)   1.66 (1.60-1.75)               <= 2: met
PBI                 92.9          48.7   7.62 (7.31-7.97)   1.91 (1.82-1.99)               <= 2: met
LogSum              32.0                 2.64 (2.55-2.73)
ReLoBRaLo          142.2                 11.7 (11.2-12.5)

One eager step, K = 1000
method          ours, us   torchjd, us       ours / floor     ours / torchjd                  target
────────────────────────────────────────────────────────────────────────────────────────────────────
UW                  43.0          44.3   3.50 (3.38-3.64)   0.97 (0.93-1.01)      <= 0.95: missed by
                                                                                                2.0%
IMTLL               33.9          29.7   2.78 (2.67-2.87)   1.14 (1.10-1.18)       <= 1.1: missed by
                                                                                                3.8%
DWA                 43.2          31.7   3.45 (3.29-3.62)   1.36 (1.29-1.43)       <= 1.1: missed by
                                                                                               23.8%
FAMO               199.9         145.6   15.9 (14.8-16.9)   1.38 (1.24-1.48)       <= 0.9: missed by
                                                                                               53.0%
Sum                 16.7          13.7   1.34 (1.28-1.40)   1.21 (1.17-1.27)             <= 1.4: met
Mean                22.5          16.9   1.79 (1.72-1.85)   1.33 (1.28-1.39)             <= 1.4: met
Constant            33.2          17.3   2.62 (2.48-2.81)   1.92 (1.82-2.05)       <= 1.1: missed by
                                                                                               74.6%
Random              30.4          24.5   2.40 (2.30-2.52)   1.24 (1.18-1.31)       <= 1.1: missed by
                                                                                               13.0%
GeometricMean       31.3          29.7   2.46 (2.35-2.57)   1.06 (1.01-1.10)    <= 1: missed by 5.6%
STCH                54.3          64.0   4.23 (4.01-4.57)   0.84 (0.79-0.92)             <= 0.9: met
COSMOS              99.4          59.0   7.71 (7.27-8.25)   1.68 (1.58-1.80)               <= 2: met
PBI                102.0          52.9   7.90 (7.44-8.57)   1.92 (1.81-2.08)               <= 2: met
LogSum              37.5                 2.92 (2.68-3.14)
ReLoBRaLo          168.4                 13.0 (12.2-13.9)

One eager step of UW, K = 40, by name
losses                    us      over a tensor   over stacked by hand
──────────────────────────────────────────────────────────────────────
a tensor                43.9   1.00 (1.00-1.00)       0.29 (0.27-0.31)
stacked by hand        151.9   3.45 (3.26-3.64)       1.00 (1.00-1.00)
by name                192.1   4.36 (4.19-4.59)       1.27 (1.20-1.34)
by name, one missing   221.3   5.02 (4.77-5.28)       1.45 (1.38-1.53)

Operators in one step, counted by the profiler
method          floor   ours   torchjd
──────────────────────────────────────
UW                 13     32        41
IMTLL              13     21        20
DWA                13     38        31
FAMO               13    166        86
Sum                13     14        13
Mean               13     22        24
Constant           13     32        13
Random             13     25        20
GeometricMean      13     26        39
STCH               13     52       100
COSMOS             13    115        68
PBI                13    119        56
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
    "IMTLL": 1.1,
    "DWA": 1.1,
    "FAMO": 0.9,
    "Sum": 1.4,
    "Mean": 1.4,
    "Constant": 1.1,
    "Random": 1.1,
    "GeometricMean": 1.0,
    "STCH": 0.9,
    "COSMOS": 2,
    "PBI": 2,
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
