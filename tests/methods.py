"""One row a method: what the contract tests need to know of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mtl_scalarize import (
    DWA,
    FAMO,
    IMTLL,
    UW,
    Scalarizer,
    dwa_accumulate,
    dwa_combine,
    dwa_init,
    dwa_step,
    dwa_weights,
    famo_combine,
    famo_delta,
    famo_init,
    famo_update,
    famo_weights,
    imtll_loss,
    imtll_weights,
    uw_loss,
    uw_weights,
)

Shape = int | Sequence[int]
Batch = tuple[Tensor, Tensor | None]

#: Batches between two calls of `DWA.step`.
EPOCH = 3


@dataclass(frozen=True)
class Method:
    """A method: how to make its module, what it is called, and what a run of it should give."""

    name: str
    make: Callable[[Shape], Scalarizer]
    repr: str
    keys: tuple[str, ...]
    parameters: tuple[str, ...]
    #: The same run by the pure functions: a scalar and task weights for each batch.
    functional: Callable[[Sequence[Batch]], list[tuple[Tensor, Tensor]]] = field(repr=False)

    def __str__(self) -> str:
        return self.name


def learn(scalarizer: Scalarizer, index: int, batch: Batch) -> tuple[Tensor, Tensor]:
    """One step of a user's loop: call, backward, optimizer, and the method's own verb."""
    losses, mask = batch
    scalar = scalarizer(losses, mask)
    if list(scalarizer.parameters()):
        scalarizer.zero_grad()
        scalar.backward()
        with torch.no_grad():
            for parameter in scalarizer.parameters():
                parameter -= 0.1 * parameter.grad
    if isinstance(scalarizer, DWA) and index % EPOCH == EPOCH - 1:
        scalarizer.step()
    if isinstance(scalarizer, FAMO) and not scalarizer.amortized:
        scalarizer.update(after(losses))
    return scalar.detach(), scalarizer.weights


def after(losses: Tensor) -> Tensor:
    """The losses after the model's update: every task falls, each at its own rate."""
    rates = torch.linspace(0.5, 0.9, losses.numel(), dtype=losses.dtype, device=losses.device)
    return losses.detach() * rates.reshape(losses.shape)


def _learned(
    loss: Callable[..., Tensor], weights: Callable[..., Tensor]
) -> Callable[[Sequence[Batch]], list[tuple[Tensor, Tensor]]]:
    def run(batches: Sequence[Batch]) -> list[tuple[Tensor, Tensor]]:
        parameter, out = torch.zeros_like(batches[0][0]), []
        for losses, mask in batches:
            out.append((loss(losses, parameter, mask=mask), weights(parameter, mask=mask)))
            gradient = torch.func.grad(loss, argnums=1)(losses, parameter, mask=mask)
            parameter = parameter - 0.1 * gradient
        return out

    return run


def _dwa(batches: Sequence[Batch]) -> list[tuple[Tensor, Tensor]]:
    state, out = dwa_init(batches[0][0].shape, dtype=batches[0][0].dtype), []
    for index, (losses, mask) in enumerate(batches):
        weights = dwa_weights(state.last, state.previous)
        weights = weights if mask is None else torch.where(mask, weights, 0.0)
        out.append((dwa_combine(losses, state, mask=mask), weights))
        state = dwa_accumulate(state, losses, mask=mask)
        if index % EPOCH == EPOCH - 1:
            state = dwa_step(state)
    return out


def _famo(batches: Sequence[Batch]) -> list[tuple[Tensor, Tensor]]:
    state, out = famo_init(batches[0][0].shape, dtype=batches[0][0].dtype), []
    for losses, mask in batches:
        scalar = famo_combine(losses, state.logits, mask=mask)
        out.append((scalar, famo_weights(losses, state.logits, mask=mask)))
        state = famo_update(state, famo_delta(losses, after(losses)), mask=mask)
    return out


def _famo_amortized(batches: Sequence[Batch]) -> list[tuple[Tensor, Tensor]]:
    state, out = famo_init(batches[0][0].shape, dtype=batches[0][0].dtype), []
    previous = torch.full_like(batches[0][0], torch.nan)
    for losses, mask in batches:
        state = famo_update(state, famo_delta(previous, losses), mask=mask)
        scalar = famo_combine(losses, state.logits, mask=mask)
        out.append((scalar, famo_weights(losses, state.logits, mask=mask)))
        previous = losses if mask is None else torch.where(mask, losses, previous)
    return out


FAMO_KEYS = ("exp_avg", "exp_avg_sq", "logits", "min_losses", "previous_losses", "step")
DWA_KEYS = ("count", "epochs", "last", "loss_sum", "previous")

METHODS = [
    Method(
        "UW",
        UW,
        "UW(shape=(3,))",
        ("log_var",),
        ("log_var",),
        _learned(uw_loss, uw_weights),
    ),
    Method(
        "IMTLL",
        IMTLL,
        "IMTLL(shape=(3,))",
        ("log_scale",),
        ("log_scale",),
        _learned(imtll_loss, imtll_weights),
    ),
    Method(
        "DWA",
        lambda shape: DWA(shape=shape),
        "DWA(temperature=2.0, shape=(3,))",
        DWA_KEYS,
        (),
        _dwa,
    ),
    Method(
        "DWA without shape",
        lambda shape: DWA(),
        "DWA(temperature=2.0)",
        DWA_KEYS,
        (),
        _dwa,
    ),
    Method(
        "FAMO",
        FAMO,
        "FAMO(shape=(3,), lr=0.025, weight_decay=0.001)",
        FAMO_KEYS,
        (),
        _famo,
    ),
    Method(
        "FAMO amortized",
        lambda shape: FAMO(shape, amortized=True),
        "FAMO(shape=(3,), lr=0.025, weight_decay=0.001, amortized=True)",
        FAMO_KEYS,
        (),
        _famo_amortized,
    ),
]
