"""Over a million steps, the task weights that FAMO and DWA keep in float32 stay close to those in
float64: rounding does not add up.

Both are given the same losses, four noisy curves that fall from 1e3 to 1e-3 and level off, each at
its own pace; FAMO learns from a second loss a little below each, and an epoch of DWA has 100
batches. Printed, and drawn over the steps, is the largest relative difference of any weight so far.

    python benchmarks/drift.py --out drift.png        # 10 minutes; the picture is beside this file

FAMO: 3.7e-06 after 1,000,000 steps
DWA: 1.0e-07 after 1,000,000 steps
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import matplotlib.pyplot as plt
import torch
from rich.console import Console
from torch import Tensor

from mtl_scalarize import DWA, FAMO, Scalarizer

TASKS, EPOCH = 4, 100
Learner = TypeVar("Learner", bound=Scalarizer)


class Drift(NamedTuple):
    """How far the weights in float32 are from those in float64, relative to these."""

    steps: list[int]
    so_far: list[float]  # the largest relative difference of any weight up to that step

    @property
    def largest(self) -> float:
        return self.so_far[-1]


def losses_and_those_after(steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each step, in float32: the losses of a batch, and of the same batch after the update."""
    generator = torch.Generator().manual_seed(0)
    first = torch.logspace(3, -3, TASKS)
    pace = torch.logspace(-5, -2, TASKS)
    for step in range(steps):
        noise, fall = torch.rand(2, TASKS, generator=generator)
        losses = first * (0.1 + torch.exp(-pace * step)) * (0.5 + noise)
        yield losses, losses * (1 - 0.01 * fall)


def drift_of_famo(steps: int) -> Drift:
    return _drift(steps, lambda: FAMO(TASKS), lambda famo, step, after: famo.update(after))


def drift_of_dwa(steps: int) -> Drift:
    def close_epoch(dwa: DWA, step: int, after: Tensor) -> None:
        if step % EPOCH == 0:
            dwa.step()

    return _drift(steps, lambda: DWA(shape=TASKS), close_epoch)


def _drift(
    steps: int, make: Callable[[], Learner], learn: Callable[[Learner, int, Tensor], None]
) -> Drift:
    narrow, wide = make().float(), make().double()
    largest, drift = torch.zeros((), dtype=torch.float64), Drift([], [])
    for step, (losses, after) in enumerate(losses_and_those_after(steps), start=1):
        for scalarizer, dtype in ((narrow, torch.float32), (wide, torch.float64)):
            scalarizer(losses.to(dtype))
            learn(scalarizer, step, after.to(dtype))
        largest = torch.maximum(largest, (narrow.weights / wide.weights - 1).abs().amax())
        if step % max(1, steps // 1_000) == 0 or step == steps:
            drift.steps.append(step)
            drift.so_far.append(largest.item())
    return drift


def plot(drifts: dict[str, Drift], out: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, drift in drifts.items():
        axes.loglog(drift.steps, drift.so_far, label=name)
    axes.set_xlabel("step")
    axes.set_ylabel("largest relative difference of a task weight so far")
    axes.set_title("float32 against float64")
    axes.legend()
    figure.savefig(out, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1_000_000, help="default: 1,000,000")
    parser.add_argument("--out", type=Path, default="drift.png", help="default: drift.png")
    args = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=100, highlight=False)
    drifts = {}
    for name, measure in {"FAMO": drift_of_famo, "DWA": drift_of_dwa}.items():
        with console.status(f"{name}, {args.steps:,} steps"):
            drifts[name] = measure(args.steps)
        console.print(f"{name}: {drifts[name].largest:.1e} after {args.steps:,} steps")
    plot(drifts, args.out)


if __name__ == "__main__":
    main()
