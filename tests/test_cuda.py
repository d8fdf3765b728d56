"""What is particular to a GPU: nothing waits for it, and a captured step can be replayed.

That the functions are right there is in `test_transforms.py` and `test_compile.py`, whose cells
run on every device.
"""

from collections.abc import Callable

import pytest
import torch
from functions import GPU, TASKS, synchronization_forbidden
from methods import EPOCH, METHODS, Batch, Method
from torch import Tensor

from mtl_scalarize import DWA, FAMO, Scalarizer

pytestmark = GPU

REPLAYS = 100

#: DWA without a shape finds it in its first call, which no captured step can be.
CAPTURABLE = [method for method in METHODS if method.name != "DWA without shape"]


def batches_of_a_run(steps: int, masked: bool) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    losses = (0.5 + torch.rand(steps, TASKS, generator=generator)).cuda()
    masks = (torch.rand(steps, TASKS, generator=generator) < 0.7).cuda()
    return [(losses[i].requires_grad_(), masks[i] if masked else None) for i in range(steps)]


def batch_step(scalarizer: Scalarizer, losses: Tensor, mask: Tensor | None) -> list[Tensor]:
    """All that a batch asks of a scalarizer; gives the scalar, its gradient and the weights."""
    scalar = scalarizer(losses, mask)
    gradient, *gradients = torch.autograd.grad(scalar, [losses, *scalarizer.parameters()])
    with torch.no_grad():
        for parameter, slope in zip(scalarizer.parameters(), gradients, strict=True):
            parameter -= 0.1 * slope
    if isinstance(scalarizer, FAMO) and not scalarizer.amortized:
        scalarizer.update(losses.detach().square())
    return [scalar.detach(), gradient, scalarizer.weights]


def epoch_step(scalarizer: Scalarizer) -> list[Tensor]:
    if isinstance(scalarizer, DWA):
        scalarizer.step()
    return []


@pytest.mark.parametrize("masked", [False, True], ids=["all present", "masked"])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_no_step_waits_for_the_gpu(method: Method, masked: bool) -> None:
    scalarizer = method.make((TASKS,)).cuda()
    batches = batches_of_a_run(3 * EPOCH, masked)
    with synchronization_forbidden():
        for index, (losses, mask) in enumerate(batches):
            batch_step(scalarizer, losses, mask)
            if index % EPOCH == EPOCH - 1:
                epoch_step(scalarizer)
        scalarizer.reset()


def captured(step: Callable[[], list[Tensor]]) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    """`step` as a graph, and the tensors that each replay writes its results to."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    return graph, results


def warm_up(step: Callable[[], list[Tensor]]) -> None:
    """On a side stream, as PyTorch asks for before a capture."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)


@pytest.mark.parametrize("masked", [False, True], ids=["all present", "masked"])
@pytest.mark.parametrize("method", CAPTURABLE, ids=str)
def test_a_captured_step_replays_as_the_eager_one(method: Method, masked: bool) -> None:
    eager, replayed = (method.make((TASKS,)).cuda() for _ in range(2))
    losses = torch.ones(TASKS, device="cuda", requires_grad=True)
    mask = torch.ones(TASKS, device="cuda", dtype=torch.bool) if masked else None

    def on_a_batch() -> list[Tensor]:
        return batch_step(replayed, losses, mask)

    def on_an_epoch() -> list[Tensor]:
        return epoch_step(replayed)

    warm_up(on_a_batch)
    warm_up(on_an_epoch)
    replayed.reset()
    batch, found = captured(on_a_batch)
    epoch = captured(on_an_epoch)[0] if isinstance(replayed, DWA) else None

    for index, (next_losses, next_mask) in enumerate(batches_of_a_run(REPLAYS, masked)):
        with torch.no_grad():
            losses.copy_(next_losses)
            if mask is not None:
                mask.copy_(next_mask)
        batch.replay()
        expected = batch_step(eager, next_losses, next_mask)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
        if epoch is not None and index % EPOCH == EPOCH - 1:
            epoch.replay()
            epoch_step(eager)
    torch.testing.assert_close(
        replayed.state_dict(), eager.state_dict(), rtol=1e-6, atol=1e-7, equal_nan=True
    )
