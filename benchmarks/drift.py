"""Over a million steps, float32 stays within 1e-4 of float64. In the task weights rounding does not
add up; in DWA's mean it does, and only as long as one epoch lasts.

Measured are FAMO's task weights, DWA's (an epoch has 100 batches), and the mean that DWA keeps over
an epoch of a million batches. All see the same losses, four noisy curves that fall from 1e3 to 1e-3
and level off, each at its own pace; FAMO's second look finds each loss a little lower. Printed, and
drawn over the steps, is the largest relative difference so far of float32 from float64.

    python benchmarks/drift.py --out drift.png        # half an hour; the picture is beside it

FAMO's weights: 2.3e-06 after 1,000,000 steps
DWA's weights: 4.4e-07 after 1,000,000 steps
DWA's mean: 6.0e-05 after 1,000,000 steps
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from rich.console import Console
from torch import Tensor

from mtl_scalarize import DWA, FAMO, Scalarizer

TASKS = 4


class Measure(NamedTuple):
    """Whose numbers are compared, which, and how many steps an epoch has."""

    make: Callable[[], Scalarizer]
    read: Callable[[Scalarizer], Tensor]
    epoch: int


MEASURES = {
    "FAMO's weights": Measure(lambda: FAMO(TASKS), lambda famo: famo.weights, 100),
    "DWA's weights": Measure(lambda: DWA(shape=TASKS), lambda dwa: dwa.weights, 100),
    "DWA's mean": Measure(lambda: DWA(shape=TASKS), lambda dwa: dwa.mean, 10**9),
}


class Drift(NamedTuple):
    """How far the numbers in float32 are from those in float64, relative to these."""

    steps: list[int]
    so_far: list[float]  # the largest relative difference up to that step

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


def drift(measure: Measure, steps: int) -> Drift:
    narrow, wide = measure.make().float(), measure.make().double()
    largest, found = torch.zeros((), dtype=torch.float64), Drift([], [])
    for step, (losses, after) in enumerate(losses_and_those_after(steps), start=1):
        for scalarizer, dtype in ((narrow, torch.float32), (wide, torch.float64)):
            scalarizer(losses.to(dtype))
            scalarizer.update(after.to(dtype))
            if step % measure.epoch == 0:
                scalarizer.step()
        difference = measure.read(narrow) / measure.read(wide) - 1
        largest = torch.maximum(largest, difference.abs().amax())
        if step % max(1, steps // 1_000) == 0 or step == steps:
            found.steps.append(step)
            found.so_far.append(largest.item())
    return found


def plot(drifts: dict[str, Drift], out: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, found in drifts.items():
        axes.loglog(found.steps, found.so_far, label=name)
    axes.set_xlabel("step")
    axes.set_ylabel("largest relative difference so far")
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
    for name, measure in MEASURES.items():
        with console.status(f"{name}, {args.steps:,} steps"):
            drifts[name] = drift(measure, args.steps)
        console.print(f"{name}: {drifts[name].largest:.1e} after {args.steps:,} steps")
    plot(drifts, args.out)


if __name__ == "__main__":
    main()
