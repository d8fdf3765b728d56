"""A step of few tasks costs as much as the kernels that it launches, on a GPU more than anywhere.
Compiled, a step launches a few; captured as a CUDA graph, it is one launch.

A step is forward, backward and update of the state, of 3 losses, without a network. Its time stands
over that of the plain sum, eager: forward and backward, no more. On a GPU the profiler counts the
kernels and copies that the host launches, and on a CPU the operators of an eager step, those inside
others included.

    python benchmarks/launches.py --device cuda
"""

import re
from collections.abc import Iterator
from typing import Any

import harness
import torch
from harness import Cell, Options, Row, Table
from overhead import ALL, count_operators
from torch import Tensor
from workloads import Method, Step, bare_step

TASKS = 3
PLAIN = Method(lambda _: lambda losses: losses.sum())


def captured(step: Step) -> Step:
    """The step as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # as PyTorch asks for before a capture
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def ways(method: Method, losses: Tensor) -> dict[str, Step]:
    """Each way to take a step of the method."""
    torch.compiler.reset()
    steps = {
        "eager": bare_step(method.ours(TASKS), losses),
        "compiled": bare_step(method.ours(TASKS), losses, compiled=True),
    }
    if losses.is_cuda:
        steps["captured"] = captured(bare_step(method.ours(TASKS), losses))
    if method.torchjd is not None:
        steps["torchjd"] = bare_step(method.torchjd(TASKS), losses)
    return steps


def is_launch(event: dict[str, Any]) -> bool:
    on_host = event.get("cat") in ("cuda_runtime", "cuda_driver")
    return on_host and re.search("Launch|Memcpy|Memset", event["name"]) is not None


def launches(steps: dict[str, Step], device: torch.device) -> dict[str, int]:
    """How many each step makes: on a CPU operators, of which a compiled step has none."""
    if device.type == "cpu":
        return count_operators({way: step for way, step in steps.items() if way != "compiled"})
    traced = harness.trace(steps, device).items()
    return {way: sum(map(is_launch, events)) for way, events in traced}


def measure(options: Options) -> Iterator[Table]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    losses = torch.rand(TASKS, device=options.device) + 0.5
    plain = bare_step(PLAIN.ours(TASKS), losses)
    counts: list[Row] = []
    times: list[Row] = []
    for name, method in {"Sum": PLAIN, **ALL}.items():
        steps = ways(method, losses)
        counts.append({"method": name, **launches(steps, options.device)})
        seconds = harness.interleave({"plain": plain, **steps}, rounds=20 if options.quick else 200)
        row: dict[str, Cell] = {"method": name, "eager, us": harness.microseconds(seconds["eager"])}
        row |= {way: harness.ratio(seconds[way], seconds["plain"]) for way in steps}
        times.append(row)
    what = "Launches" if losses.is_cuda else "Operators"
    yield Table(f"{what} of one step, K = {TASKS}", counts)
    yield Table(f"Time of one step over that of the plain sum, eager, K = {TASKS}", times)


if __name__ == "__main__":
    harness.run("launches", __doc__, measure)
