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


def losses_and_those_after(steps: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each step, in float32: the losses of a batch, and of the same batch after the update."""
    generator = torch.Generator().manual_seed(0)
    first = torch.logspace(3, -3, TASKS)
    pace = torch.logspace(-5, -2, TASKS)
    for step in range(steps):
        noise, fall = torch.rand(2, TASKS, generator=generator)
        losses = (first * (0.1 + torch.exp(-pace * step)) * (0.5 + noise)).to(device)
        yield losses, losses * (1 - 0.01 * fall.to(device))


def drift(measure: Measure, steps: int, device: torch.device) -> Drift:
    narrow, wide = (measure.make().to(device, dtype) for dtype in (torch.float32, torch.float64))
    largest, found = torch.zeros((), dtype=torch.float64, device=device), Drift([], [])
    for step, (losses, after) in enumerate(losses_and_those_after(steps, device), start=1):
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
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it runs")
    parser.add_argument("--steps", type=int, help="default: 1,000,000")
    parser.add_argument("--device", type=torch.device, default="cpu", help="cpu or cuda")
    parser.add_argument("--out", type=Path, default="drift.png", help="default: drift.png")
    args = parser.parse_args()
    steps = args.steps or (2_000 if args.quick else 1_000_000)
    torch.set_num_threads(1)
    console = Console(width=100, highlight=False)
    drifts = {}
    for name, measure in MEASURES.items():
        with console.status(f"{name}, {steps:,} steps"):
            drifts[name] = drift(measure, steps, args.device)
        console.print(f"{name}: {drifts[name].largest:.1e} after {steps:,} steps")
    plot(drifts, args.out)


if __name__ == "__main__":
    main()
