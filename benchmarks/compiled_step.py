"""Compiled whole, a training step with UW, IMTL-L, DWA or amortized FAMO is one graph, and takes at
most 1.05 times as long as the same step with a plain sum.

The step is forward, losses, weights, backward, SGD and the method's state, of a MLP 64-256-256-8 on
a batch of 128 with one loss per output. Before anything is timed, thirty compiled steps, in three
epochs, have to lead where thirty eager ones lead. torchjd's modules are put through the same.

    python benchmarks/compiled_step.py

CPU AMD EPYC, cores 2, load 1.2, torch 2.13.0+cpu, Python 3.11.7

One compiled step
method           ours, us   graphs   ours / plain sum                 target     torchjd / plain sum
────────────────────────────────────────────────────────────────────────────────────────────────────
UW                  833.5        1   1.02 (0.93-1.11)           <= 1.05: met        1.00 (0.90-1.13)
IMTL-L              939.9        1   1.01 (0.92-1.11)           <= 1.05: met        0.99 (0.89-1.09)
DWA                 574.2        1   1.02 (0.93-1.12)           <= 1.05: met      hits the recompile
                                                                                               limit
FAMO                769.5        1   1.45 (1.34-1.60)                               cannot be traced
FAMO amortized      583.4        1   1.08 (0.95-1.20)     <= 1.05: missed by        does not have it
                                                                        2.7%
"""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import harness
import torch
import torchjd.scalarization as torchjd
from harness import Options, Row, Table
from torch import Tensor, nn
from torch._dynamo import exc
from torch._dynamo.testing import CompileCounterWithBackend
from workloads import METHODS, looks_again, looks_back, mlp_and_batch

from mtl_scalarize import FAMO

TASKS = 8
LEARNING_RATE = 1e-3
TARGET = 1.05  # ours / the plain sum, where there is no second forward pass

Make = Callable[[int], Any]
Step = Callable[[], Tensor]


def amortized(tasks: int) -> FAMO:
    return FAMO(tasks, amortized=True)


def training_step(scalarizer: Any, device: torch.device) -> Step:
    """A step that returns its losses; every training starts at the same place."""
    network, inputs, targets = mlp_and_batch(device)
    leaves = list(network.parameters())
    if isinstance(scalarizer, nn.Module):
        scalarizer.to(device)
        if not isinstance(scalarizer, torchjd.FAMO):  # which keeps its logits to itself
            leaves += scalarizer.parameters()
    recomputes = looks_again(scalarizer)

    def step() -> Tensor:
        losses = (network(inputs) - targets).square().mean(dim=0)
        gradients = torch.autograd.grad(scalarizer(losses), leaves)
        with torch.no_grad():
            for leaf, gradient in zip(leaves, gradients, strict=True):
                leaf -= LEARNING_RATE * gradient  # torch.optim would break the graph
            if recomputes:
                scalarizer.update((network(inputs) - targets).square().mean(dim=0))
        return losses.detach()

    if isinstance(scalarizer, torchjd.FAMO):
        step()  # makes its optimizer, which no graph can do
    return step


def train(step: Step, scalarizer: Any) -> Tensor:
    """The losses at the end of three epochs of ten steps."""
    for _ in range(3):
        for _ in range(10):
            losses = step()
        if looks_back(scalarizer):
            scalarizer.step()
    return losses


def compiled(make: Callable[[], Any], device: torch.device) -> tuple[Step, int]:
    """A step compiled and found to do what the eager one does, and the number of its graphs."""
    scalarizer = make()
    expected = train(training_step(scalarizer, device), scalarizer)
    scalarizer = make()
    counter = CompileCounterWithBackend("inductor")
    step = torch.compile(
        training_step(scalarizer, device), backend=counter, fullgraph=True, isolate_recompiles=True
    )
    torch.testing.assert_close(train(step, scalarizer), expected, rtol=1e-4, atol=1e-5)
    return step, counter.frame_count


def compiled_or_why_not(make: Callable[[], Any], device: torch.device) -> Step | str:
    try:
        return compiled(make, device)[0]
    except exc.FailOnRecompileLimitHit:
        return "hits the recompile limit"
    except exc.Unsupported:
        return "cannot be traced"


def measure(options: Options) -> Iterator[Table]:
    torch._dynamo.config.trace_autograd_ops = True  # else `torch.autograd.grad` breaks the graph
    torch._logging.set_logs(dynamo=logging.CRITICAL)  # what fails is in the table
    makers: dict[str, tuple[Make, Make | None]] = {**METHODS, "FAMO amortized": (amortized, None)}
    plain, _ = compiled(lambda: torch.sum, options.device)
    rows: list[Row] = []
    for name in ["UW"] if options.quick else makers:
        make_ours, make_torchjd = makers[name]
        ours, graphs = compiled(partial(make_ours, TASKS), options.device)
        peer: Step | str = "does not have it"
        if make_torchjd is not None:
            peer = compiled_or_why_not(partial(make_torchjd, TASKS), options.device)
        steps = {"plain": plain, "ours": ours}
        if not isinstance(peer, str):
            steps["torchjd"] = peer

        times = harness.interleave(steps, rounds=20 if options.quick else 500)
        against_plain = harness.ratio(times["ours"], times["plain"])
        row: Row = {
            "method": name,
            "ours, us": harness.microseconds(times["ours"]),
            "graphs": graphs,
            "ours / plain sum": against_plain,
            "target": "" if name == "FAMO" else harness.at_most(TARGET, against_plain),
            "torchjd / plain sum": peer
            if isinstance(peer, str)
            else harness.ratio(times["torchjd"], times["plain"]),
        }
        rows.append(row)
    yield Table("One compiled step", rows)


if __name__ == "__main__":
    harness.run("compiled_step", __doc__, measure)
