"""FAMO that looks at the losses again after every tenth step takes 1.06 times as long as a plain
sum on a small transformer, where it takes 1.38 times as long if it looks after every step.

One step is forward, losses, weights, backward, AdamW and the method's state, in eager mode; ten are
timed together. The networks are a MLP 64-256-256-8 on a batch of 128, and a transformer of two
layers, 64 wide, on 16 sequences of 32. torchjd's FAMO looks again after every step. The second
table trains the network of examples/digits.py, ten seeds each way, on one thread; its losses are
those after the last epoch, as ratios within a seed.

    python benchmarks/second_forward.py

CPU AMD EPYC, cores 2, load 2.4, torch 2.13.0+cpu, Python 3.11.7

An eager step with FAMO / with a plain sum, by how often FAMO looks again
network       plain sum, us       every tenth            target        every step            torchjd
────────────────────────────────────────────────────────────────────────────────────────────────────
MLP                   704.8              1.17   <= 1.06: missed              1.59   1.51 (1.47-1.55)
                                  (1.13-1.20)          by 10.1%       (1.55-1.63)
transformer         4,784.0              1.06   <= 1.06: missed              1.38   1.37 (1.31-1.46)
                                  (1.01-1.13)           by 0.4%       (1.31-1.47)

Final losses on the digits task, FAMO every tenth step / every step, 10 seeds
loss                            in training        in the test
──────────────────────────────────────────────────────────────
left digit                 0.55 (0.47-0.59)   0.96 (0.81-1.03)
right digit                0.44 (0.39-0.62)   0.97 (0.87-1.09)
sum of the digits          1.09 (0.98-1.35)   1.04 (0.91-1.27)
redrawing the left digit   1.15 (1.07-1.21)   1.14 (1.06-1.20)
geometric mean             0.72 (0.70-0.83)   1.01 (0.96-1.06)
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
import torch
import torchjd.scalarization as torchjd
from harness import Options, Row, Table
from torch import Tensor, nn
from workloads import Step, mlp_and_batch, ten_steps

from mtl_scalarize import FAMO

TASKS = 8
TARGET = 1.06  # FAMO with a second look after every tenth step / the plain sum

Batch = tuple[nn.Module, Tensor, Tensor]


class Transformer(nn.Module):
    """Two layers of width 64 over sequences of embeddings, and one output for each task."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(64, TASKS)

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.head(self.encoder(embeddings).mean(dim=1))


def transformer_and_batch(device: torch.device) -> Batch:
    """The network, the same each time, with 16 sequences of 32 and targets for its 8 tasks."""
    torch.manual_seed(0)
    tensors = torch.randn(16, 32, 64), torch.randn(16, TASKS)
    inputs, targets = (tensor.to(device) for tensor in tensors)
    return Transformer().to(device), inputs, targets


def training(batch: Batch, scalarizer: Any, *, every: int | None) -> Step:
    """Ten steps, with FAMO's second look after each of them, after the first, or never."""
    network, inputs, targets = batch
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)

    def losses() -> Tensor:
        return (network(inputs) - targets).square().mean(dim=0)

    def step() -> None:
        optimizer.zero_grad()
        scalarizer(losses()).backward()
        optimizer.step()
        if every == 1:
            look_again()

    def look_again() -> None:
        with torch.no_grad():
            scalarizer.update(losses())

    return ten_steps(step, look_again if every == 10 else None)


def steps_of(make: Callable[[torch.device], Batch], device: torch.device) -> dict[str, Step]:
    return {
        "sum": training(make(device), torch.sum, every=None),
        "torchjd": training(make(device), torchjd.FAMO(TASKS).to(device), every=1),
        "every step": training(make(device), FAMO(TASKS).to(device), every=1),
        "every tenth": training(make(device), FAMO(TASKS).to(device), every=10),
    }


def time_steps(options: Options) -> Table:
    networks = {
        "MLP": mlp_and_batch,
        "transformer": transformer_and_batch,
    }
    rows: list[Row] = []
    for name, make in networks.items():
        times = harness.interleave(
            steps_of(make, options.device), rounds=10 if options.quick else 100, seconds=0.005
        )
        seldom = harness.ratio(times["every tenth"], times["sum"])
        rows.append(
            {
                "network": name,
                "plain sum, us": harness.microseconds([ten / 10 for ten in times["sum"]]),
                "every tenth": seldom,
                "target": harness.at_most(TARGET, seldom),
                "every step": harness.ratio(times["every step"], times["sum"]),
                "torchjd": harness.ratio(times["torchjd"], times["sum"]),
            }
        )
    return Table("An eager step with FAMO / with a plain sum, by how often FAMO looks again", rows)


def compare_final_losses(options: Options) -> Table:
    sys.path.append(str(Path(__file__).parents[1] / "examples"))
    import digits

    torch.set_num_threads(1)  # the results then do not depend on how many there are
    seeds, epochs = (2, 2) if options.quick else (10, 30)

    def final_losses(update_every: int) -> Tensor:
        """(seeds, 2, tasks + 1): in training and in the test, of each task and their geo. mean."""
        losses = []
        for seed in range(seeds):
            splits = digits.load_pairs(seed, options.device)
            network, _ = digits.train(
                "FAMO", splits[0], epochs=epochs, seed=seed, update_every=update_every
            )
            with torch.no_grad():
                losses += [digits.task_losses(network(pairs.image), pairs) for pairs in splits]
        of_tasks = torch.stack(losses).unflatten(0, (seeds, 2))
        return torch.cat([of_tasks, of_tasks.log().mean(dim=-1, keepdim=True).exp()], dim=-1)

    always, seldom = final_losses(1), final_losses(10)
    names = [*(task.name for task in digits.TASKS), "geometric mean"]
    return Table(
        f"Final losses on the digits task, FAMO every tenth step / every step, {seeds} seeds",
        [
            {"loss": name}
            | {
                split: harness.ratio(
                    seldom[:, row, column].tolist(), always[:, row, column].tolist()
                )
                for row, split in enumerate(("in training", "in the test"))
            }
            for column, name in enumerate(names)
        ],
    )


def measure(options: Options) -> Iterator[Table]:
    yield time_steps(options)
    yield compare_final_losses(options)


if __name__ == "__main__":
    harness.run("second_forward", __doc__, measure)
