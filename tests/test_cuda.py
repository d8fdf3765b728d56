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

from mtl_scalarize import Scalarizer

pytestmark = GPU

REPLAYS = 100

#: The first call of a lazy method makes its state, which waits once and which no capture can.
WITH_SHAPE = [method for method in METHODS if not method.lazy]


def batches_of_a_run(steps: int, masked: bool) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    losses = (0.5 + torch.rand(steps, TASKS, generator=generator)).cuda()
    masks = (torch.rand(steps, TASKS, generator=generator) < 0.7).cuda()
    return [(losses[i].requires_grad_(), masks[i] if masked else None) for i in range(steps)]


def step(scalarizer: Scalarizer, batch: Batch, *, last: bool = False) -> list[Tensor]:
    """A step of the training, the last one of an epoch or not: scalar, gradient and weights."""
    losses, mask = batch
    scalar = scalarizer(losses, mask)
    gradient, *gradients = torch.autograd.grad(scalar, [losses, *scalarizer.parameters()])
    with torch.no_grad():
        for parameter, slope in zip(scalarizer.parameters(), gradients, strict=True):
            parameter -= 0.1 * slope
    scalarizer.update(lambda: losses.square(), mask)
    weights = scalarizer.weights
    if last:
        scalarizer.step()
    return [scalar.detach(), gradient, weights]


@pytest.mark.parametrize("masked", [False, True], ids=["all present", "masked"])
@pytest.mark.parametrize("method", WITH_SHAPE, ids=str)
def test_no_step_waits_for_the_gpu(method: Method, masked: bool) -> None:
    scalarizer = method.make(TASKS).cuda()
    batches = batches_of_a_run(3 * EPOCH, masked)
    with synchronization_forbidden():
        for index, batch in enumerate(batches):
            step(scalarizer, batch, last=index % EPOCH == EPOCH - 1)
        scalarizer.reset()


def captured(function: Callable[[], list[Tensor]]) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    """A function as a graph, and the tensors that each replay writes its results to."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function()
    return graph, results


def warm_up(function: Callable[[], object]) -> None:
    """On a side stream, as PyTorch asks for before a capture."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)


@pytest.mark.parametrize("masked", [False, True], ids=["all present", "masked"])
@pytest.mark.parametrize("method", WITH_SHAPE, ids=str)
def test_a_captured_step_replays_as_the_eager_one(method: Method, masked: bool) -> None:
    eager, replayed = (method.make(TASKS).cuda() for _ in range(2))
    losses = torch.ones(TASKS, device="cuda", requires_grad=True)
    mask = torch.ones(TASKS, device="cuda", dtype=torch.bool) if masked else None
    warm_up(lambda: step(replayed, (losses, mask), last=True))
    replayed.reset()
    graphs = {
        last: captured(lambda last=last: step(replayed, (losses, mask), last=last))
        for last in (False, True)
    }
    for index, batch in enumerate(batches_of_a_run(REPLAYS, masked)):
        with torch.no_grad():
            losses.copy_(batch[0])
            if masked:
                mask.copy_(batch[1])
        last = index % EPOCH == EPOCH - 1
        graph, found = graphs[last]
        random_state = torch.cuda.get_rng_state()
        graph.replay()
        torch.cuda.set_rng_state(random_state)  # the eager step draws the same
        expected = step(eager, batch, last=last)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(
        replayed.state_dict(), eager.state_dict(), rtol=1e-6, atol=1e-7, equal_nan=True
    )
