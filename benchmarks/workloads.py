"""What the benchmarks put to work: the scalarizers, ours and torchjd's, their steps, a network."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torchjd.scalarization as torchjd
from torch import Tensor, nn

import mtl_scalarize as ours

Step = Callable[[], object]


class Method(NamedTuple):
    """A method's module for K tasks, from either package."""

    ours: Callable[[int], nn.Module]
    torchjd: Callable[[int], nn.Module] | None = None


METHODS = {
    "UW": Method(ours.UW, torchjd.UW),
    "IMTLL": Method(ours.IMTLL, torchjd.IMTLL),
    "DWA": Method(lambda tasks: ours.DWA(shape=tasks), lambda _: torchjd.DWA()),
    "FAMO": Method(ours.FAMO, torchjd.FAMO),
}
#: Those without state, and what torchjd does not have.
OTHERS = {
    "Sum": Method(lambda _: ours.Sum(), lambda _: torchjd.Sum()),
    "Mean": Method(lambda _: ours.Mean(), lambda _: torchjd.Mean()),
    "Constant": Method(
        lambda tasks: ours.Constant(torch.ones(tasks)),
        lambda tasks: torchjd.Constant(torch.ones(tasks)),
    ),
    "Random": Method(lambda _: ours.Random(), lambda _: torchjd.Random()),
    "GeometricMean": Method(lambda _: ours.GeometricMean(), lambda _: torchjd.GeometricMean()),
    "STCH": Method(lambda _: ours.STCH(0.1), lambda _: torchjd.STCH(0.1)),
    "COSMOS": Method(
        lambda tasks: ours.COSMOS(1.0, torch.ones(tasks)),
        lambda tasks: torchjd.COSMOS(1.0, torch.ones(tasks)),
    ),
    "PBI": Method(
        lambda tasks: ours.PBI(5.0, torch.ones(tasks)),
        lambda tasks: torchjd.PBI(5.0, torch.ones(tasks)),
    ),
    "LogSum": Method(lambda _: ours.LogSum()),
    "ReLoBRaLo": Method(ours.ReLoBRaLo),
}


def looks_back(scalarizer: object) -> bool:
    """Whether there is a `step` to call at the end of an epoch."""
    return isinstance(scalarizer, ours.DWA | torchjd.DWA)


def looks_again(scalarizer: object) -> bool:
    """Whether there is an `update` to call with the losses after the model's step."""
    return isinstance(scalarizer, ours.FAMO | torchjd.FAMO)


def bare_step(scalarizer: Any, losses: Tensor, *, compiled: bool = False) -> Step:
    """Forward, backward and update of the state, without a network and amid a run.

    UW's and IMTL-L's parameters are stepped by the user's optimizer, and left out.
    """
    losses = losses.clone().requires_grad_()
    leaves = [losses]
    if isinstance(scalarizer, nn.Module):
        scalarizer.to(losses.device)
        # Whose weights do not follow.
        if isinstance(scalarizer, torchjd.Constant | torchjd.COSMOS | torchjd.PBI):
            scalarizer.weights = scalarizer.weights.to(losses.device)
        leaves += scalarizer.parameters()
    combine = torch.compile(scalarizer, fullgraph=True) if compiled else scalarizer

    def step() -> None:
        combine(losses).backward()
        for leaf in leaves:
            leaf.grad = None

    if looks_back(scalarizer):
        for _ in range(2):  # epochs: until then all weights are 1
            step()
            scalarizer.step()
    if not looks_again(scalarizer):
        return step

    update = torch.compile(scalarizer.update, fullgraph=True) if compiled else scalarizer.update
    # Down and up in turns: after a million steps the logits are still where those of a run are.
    change = (0.1 * torch.randn_like(losses)).exp()
    after = itertools.cycle([losses.detach() / change, losses.detach() * change])

    def step_and_update() -> None:
        step()
        update(next(after))

    return step_and_update


def ten_steps(step: Step, look_again: Step | None = None) -> Step:
    """Ten steps as one call. After the first of them FAMO looks at the losses again."""

    def steps() -> object:
        last = step()
        if look_again is not None:
            look_again()
        for _ in range(9):
            last = step()
        return last

    return steps


def mlp_and_batch(device: torch.device) -> tuple[nn.Module, Tensor, Tensor]:
    """A network 64-256-256-8, the same each time, with 128 inputs and targets for its 8 tasks."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 8)
    )
    tensors = torch.randn(128, 64), torch.randn(128, 8)
    inputs, targets = (tensor.to(device) for tensor in tensors)
    return network.to(device), inputs, targets
