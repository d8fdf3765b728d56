"""What the benchmarks share: timing in turns, ratios, traces, tables, one JSON, the machine."""

import argparse
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.benchmark import Timer

# As wide as the docstrings in which the printouts are kept.
CONSOLE = Console(width=100, highlight=False)


class Options(NamedTuple):
    """What the command line says."""

    quick: bool  # a few seconds, to see that it runs: the numbers mean little
    json: Path | None
    device: torch.device


class Ratio(NamedTuple):
    """How two things compare, over the rounds in which both were measured."""

    median: float
    low: float  # the 10th percentile
    high: float  # the 90th

    def __str__(self) -> str:
        digits = max(0, 3 - len(str(int(self.median))))
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"


Cell = str | int | float | Ratio
Row = Mapping[str, Cell]  # from the names of columns


class Table(NamedTuple):
    title: str
    rows: Sequence[Row]


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    seconds: float = 0.002,
    threads: Mapping[str, int] | None = None,
) -> dict[str, list[float]]:
    """Time the candidates in turns: the seconds of one call of each, in every round.

    Whatever slows the machine down for a while slows all of them down, and every other round goes
    the other way round, so that none is always the first. A measurement lasts about `seconds`: less
    than a scheduler's turn, so that a pair is seldom torn apart. A candidate runs on the threads
    that torch is set to, or on those that `threads` gives it.
    """
    threads = dict.fromkeys(candidates, torch.get_num_threads()) | dict(threads or {})
    timers = {
        name: Timer("run()", globals={"run": run}, num_threads=threads[name])
        for name, run in candidates.items()
    }
    calls = {name: max(1, round(seconds / timer.timeit(1).mean)) for name, timer in timers.items()}
    times: dict[str, list[float]] = {name: [] for name in timers}
    order = list(timers)
    for _ in range(rounds):
        for name in order:
            times[name].append(timers[name].timeit(calls[name]).mean)
        order.reverse()
    return times


def trace(
    steps: Mapping[str, Callable[[], object]], device: torch.device | None = None
) -> dict[str, list[dict[str, Any]]]:
    """What the profiler sees during one call of each step: its events in order of time.

    On the CPU, and if `device` is a GPU, what the CPU launches there.
    """
    for step in steps.values():
        step()
    activities = [ProfilerActivity.CPU]
    if device is not None and device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, profile_memory=True) as profiler:
        for name, step in steps.items():
            with record_function(name):
                step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    events.sort(key=lambda event: event["ts"])
    return {
        span["name"]: [
            event for event in events if span["ts"] <= event["ts"] <= span["ts"] + span["dur"]
        ]
        for span in events
        if span["name"] in steps and span["cat"] == "user_annotation"  # the host's
    }


def ratio(ours: Sequence[float], peer: Sequence[float]) -> Ratio:
    """Ours over the peer's, paired by round."""
    pairs = [one / other for one, other in zip(ours, peer, strict=True)]
    deciles = statistics.quantiles(pairs, n=10, method="inclusive")
    return Ratio(deciles[4], deciles[0], deciles[8])


def microseconds(times: Sequence[float]) -> str:
    """The median of `times`, which are in seconds."""
    return f"{1e6 * statistics.median(times):,.1f}"


def at_most(limit: float, measured: Ratio) -> str:
    """Whether a target was reached, and if not, by how much it was missed."""
    excess = measured.median / limit - 1
    return f"<= {limit:g}: " + ("met" if excess <= 0 else f"missed by {excess:.1%}")


def at_least(limit: float, measured: Ratio) -> str:
    """As `at_most`."""
    shortfall = 1 - measured.median / limit
    return f">= {limit:g}: " + ("met" if shortfall <= 0 else f"missed by {shortfall:.1%}")


def run(name: str, doc: str | None, measure: Callable[[Options], Iterable[Table]]) -> None:
    """The command line of a benchmark: print its tables as they come, and add them to the JSON."""
    options = _parse(doc or name)
    machine = describe_machine(options.device)
    CONSOLE.print(", ".join(f"{key} {value}" for key, value in machine.items()))
    tables = []
    try:
        with CONSOLE.status(name):
            for table in measure(options):
                CONSOLE.print(f"\n{table.title}", _as_rich(table), sep="\n")
                tables.append(table)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    if options.json is not None:
        key = name if options.device.type == "cpu" else f"{name} on {options.device.type}"
        _merge(options.json, key, {"machine": machine, "quick": options.quick}, tables)


def describe_machine(device: torch.device) -> dict[str, str | int | float]:
    """What the numbers depend on. The load is that of the minute before the benchmark."""
    machine: dict[str, str | int | float] = {
        "CPU": _cpu_model(),
        "cores": os.cpu_count() or 1,
        "load": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "Python": platform.python_version(),
    }
    if device.type == "cuda":
        machine["GPU"] = torch.cuda.get_device_name(device)
    return machine


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _parse(doc: str) -> Options:
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it runs")
    parser.add_argument("--json", type=Path, metavar="PATH", help="add the results to this file")
    parser.add_argument("--device", type=torch.device, default="cpu", help="cpu or cuda")
    arguments = parser.parse_args()
    return Options(arguments.quick, arguments.json, arguments.device)


def _as_rich(table: Table) -> RichTable:
    columns = list(dict.fromkeys(column for row in table.rows for column in row))
    rich = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for index, column in enumerate(columns):
        rich.add_column(column, justify="right" if index else "left")
    for row in table.rows:
        rich.add_row(*(str(row.get(column, "")) for column in columns))
    return rich


def _merge(path: Path, key: str, header: dict[str, object], tables: Sequence[Table]) -> None:
    results = json.loads(path.read_text()) if path.exists() else {}
    results[key] = header | {
        table.title: [
            {
                column: cell._asdict() if isinstance(cell, Ratio) else cell
                for column, cell in row.items()
            }
            for row in table.rows
        ]
        for table in tables
    }
    path.write_text(json.dumps(results, indent=2) + "\n")
