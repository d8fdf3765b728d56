"""The registry: one row a method, with what the tests need to know of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torchjd.scalarization as peer
from models import DWAModel, FAMOModel, IMTLLModel, Model, ReLoBRaLoModel, UWModel
from torch import Tensor, nn

from mtl_scalarize import (
    COSMOS,
    DWA,
    FAMO,
    IMTLL,
    PBI,
    STCH,
    UW,
    Constant,
    GeometricMean,
    LogSum,
    Mean,
    Random,
    ReLoBRaLo,
    Scalarizer,
    Sum,
    constant_combine,
    cosmos,
    cosmos_weights,
    geometric_mean,
    geometric_mean_weights,
    log_sum,
    log_sum_weights,
    mean_weights,
    pbi,
    pbi_weights,
    random_weights,
    stch,
    stch_weights,
    sum_weights,
)
from mtl_scalarize.functional import fill_absent

Shape = int | Sequence[int] | Sequence[str]
Batch = tuple[Tensor, Tensor | None]
Run = Callable[[Sequence[Batch]], list[tuple[Tensor, Tensor]]]

#: Batches in an epoch.
EPOCH = 3


@dataclass(frozen=True)
class Method:
    """A method: how to make its module, and what a run of it should give."""

    name: str
    #: Makes its module, from a shape or names and keyword arguments.
    make: Callable[..., Scalarizer] = field(repr=False)
    #: Its `repr` for the shape (3,).
    repr: str
    #: The same run by the pure functions: a scalar and task weights for each batch.
    functional: Run = field(repr=False)
    #: torchjd's module for so many tasks, if it has the method.
    peer: Callable[..., nn.Module] | None = field(repr=False)
    #: The keys of its state_dict, sorted; of a stateless method, none.
    keys: tuple[str, ...] = ()
    #: Those of them that an optimizer learns.
    parameters: tuple[str, ...] = ()
    #: Those of them that a call writes for every task, absent or not.
    rewritten: tuple[str, ...] = ()
    #: Whether `update` learns.
    updates: bool = False
    #: Whether the first losses set the shape.
    lazy: bool = False
    #: Whether a call in training first learns from its own losses.
    learns_first: bool = False
    #: Whether a call in training draws a number for each task.
    draws: bool = False
    #: Whether it takes no notice of a loss of minus infinity, being a maximum.
    is_maximum: bool = False

    def __str__(self) -> str:
        return self.name


def learn(scalarizer: Scalarizer, index: int, batch: Batch) -> tuple[Tensor, Tensor]:
    """One step of a user's loop, which is the same for every method, draws included."""
    torch.manual_seed(index)
    losses, mask = batch
    scalar = scalarizer(losses, mask)
    weights = scalarizer.weights
    if list(scalarizer.parameters()):
        scalarizer.zero_grad()
        scalar.backward()
        with torch.no_grad():
            for parameter in scalarizer.parameters():
                parameter -= 0.1 * parameter.grad
    scalarizer.update(lambda: after(losses), mask)
    if index % EPOCH == EPOCH - 1:
        scalarizer.step()
    return scalar.detach(), weights


def seeded(function: Callable[..., Any], *arguments: Any) -> Any:
    """A call that draws the same numbers every time."""
    torch.manual_seed(0)
    return function(*arguments)


def after(losses: Tensor) -> Tensor:
    """The losses after the model's update: every task falls, each at its own rate."""
    rates = torch.linspace(0.5, 0.9, losses.numel(), dtype=losses.dtype, device=losses.device)
    return losses.detach() * rates.reshape(losses.shape)


def run(model_of: type[Model], batches: Sequence[Batch]) -> list[tuple[Tensor, Tensor]]:
    """The same loop, over a model."""
    model, out = model_of(batches[0][0].shape, batches[0][0].dtype), []
    for index, (losses, mask) in enumerate(batches):
        torch.manual_seed(index)
        model.learn(losses, mask)
        out.append((model.combine(losses, mask), model.weigh(losses, mask)))
        model.descend(losses, mask)
        model.update(after(losses), mask)
        if index % EPOCH == EPOCH - 1:
            model.step()
    return out


def _values(
    scalar: Callable[..., Tensor], weights: Callable[..., Tensor], batches: Sequence[Batch]
) -> list[tuple[Tensor, Tensor]]:
    """A method without state."""
    return [(scalar(row, mask=mask), weights(row, mask=mask)) for row, mask in batches]


def _weighted(
    weights: Callable[..., Tensor], batches: Sequence[Batch]
) -> list[tuple[Tensor, Tensor]]:
    """A method without state that is a weighted sum."""
    out = []
    for index, (losses, mask) in enumerate(batches):
        torch.manual_seed(index)
        of_tasks = weights(losses, mask=mask)
        out.append((constant_combine(losses, of_tasks, mask=mask), of_tasks))
    return out


def preference(shape: Shape) -> Tensor:
    """What a user prefers: another number for each task."""
    named = isinstance(shape, Sequence) and any(isinstance(each, str) for each in shape)
    sizes = [len(shape)] if named else shape if isinstance(shape, Sequence) else [shape]
    sizes = torch.Size(sizes)
    return torch.linspace(0.5, 2.0, sizes.numel(), device="cpu").reshape(sizes)


def _preferring(
    scalar: Callable[..., Tensor], weights: Callable[..., Tensor], penalty: float
) -> Run:
    """A method without state that takes a preference."""

    def of(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda losses, mask: function(losses, penalty, preference(losses.shape), mask=mask)

    return partial(_values, of(scalar), of(weights))


def _constant(shape: Shape, **options: Any) -> Constant:
    if isinstance(shape, Sequence) and any(isinstance(name, str) for name in shape):
        weights = dict(zip(shape, preference(len(shape)).tolist(), strict=True))
        return Constant(weights, **options)
    return Constant(preference(shape), **options)


_DWA = {
    "functional": partial(run, DWAModel),
    "keys": ("count", "epoch_weights", "last", "mean", "previous"),
}
_FAMO_KEYS = ("first_moment", "logits", "pending", "previous_losses", "second_moment", "updates")

METHODS = [
    Method(
        "UW",
        UW,
        "UW(shape=(3,))",
        partial(run, UWModel),
        peer.UW,
        keys=("log_var",),
        parameters=("log_var",),
    ),
    Method(
        "IMTLL",
        IMTLL,
        "IMTLL(shape=(3,))",
        partial(run, IMTLLModel),
        peer.IMTLL,
        keys=("log_scale",),
        parameters=("log_scale",),
    ),
    Method(
        "DWA",
        lambda shape, **options: DWA(shape=shape, **options),
        "DWA(shape=(3,))",
        peer=lambda tasks, **options: peer.DWA(**options),
        **_DWA,
    ),
    Method(
        "DWA without shape",
        lambda shape, **options: DWA(**options),
        "DWA()",
        peer=lambda tasks, **options: peer.DWA(**options),
        lazy=True,
        **_DWA,
    ),
    Method(
        "FAMO",
        FAMO,
        "FAMO(shape=(3,))",
        partial(run, FAMOModel),
        peer.FAMO,
        keys=_FAMO_KEYS,
        rewritten=("pending", "previous_losses"),
        updates=True,
    ),
    Method(
        "ReLoBRaLo",
        partial(ReLoBRaLo, temperature=0.5, alpha=0.5, rho=0.5),
        "ReLoBRaLo(shape=(3,), temperature=0.5, alpha=0.5, rho=0.5)",
        partial(run, ReLoBRaLoModel),
        None,
        keys=("first", "last", "running_weights"),
        learns_first=True,
    ),
    Method(
        "Sum", Sum, "Sum(shape=(3,))", partial(_weighted, sum_weights), lambda tasks: peer.Sum()
    ),
    Method(
        "Mean",
        Mean,
        "Mean(shape=(3,))",
        partial(_weighted, mean_weights),
        lambda tasks: peer.Mean(),
    ),
    Method(
        "Constant",
        _constant,
        "Constant(shape=(3,), weights=[0.5, 1.25, 2.0])",
        partial(
            _weighted,
            lambda losses, mask: fill_absent(preference(losses.shape).to(losses), 0.0, mask=mask),
        ),
        lambda tasks: peer.Constant(preference(tasks)),
    ),
    Method(
        "Random",
        Random,
        "Random(shape=(3,))",
        partial(
            _weighted, lambda losses, mask: random_weights(torch.randn_like(losses), mask=mask)
        ),
        lambda tasks: peer.Random(),
        learns_first=True,
        draws=True,
    ),
    Method(
        "LogSum",
        lambda shape, **options: LogSum(shape=shape, **options),
        "LogSum(shape=(3,))",
        partial(_values, log_sum, log_sum_weights),
        None,
    ),
    Method(
        "GeometricMean",
        GeometricMean,
        "GeometricMean(shape=(3,))",
        partial(_values, geometric_mean, geometric_mean_weights),
        lambda tasks: peer.GeometricMean(),
    ),
    Method(
        "STCH",
        lambda shape, **options: STCH(0.5, shape=shape, **options),
        "STCH(shape=(3,), mu=0.5)",
        partial(_values, partial(stch, mu=0.5), partial(stch_weights, mu=0.5)),
        lambda tasks, **options: peer.STCH(0.5, **options),
        is_maximum=True,
    ),
    Method(
        "COSMOS",
        lambda shape, **options: COSMOS(0.5, preference(shape), shape=shape, **options),
        "COSMOS(shape=(3,), lambda_=0.5, weights=[0.5, 1.25, 2.0])",
        _preferring(cosmos, cosmos_weights, 0.5),
        lambda tasks: peer.COSMOS(0.5, preference(tasks).double()),
    ),
    Method(
        "PBI",
        lambda shape, **options: PBI(0.5, preference(shape), shape=shape, **options),
        "PBI(shape=(3,), theta=0.5, weights=[0.5, 1.25, 2.0])",
        _preferring(pbi, pbi_weights, 0.5),
        lambda tasks: peer.PBI(0.5, preference(tasks).double()),
    ),
]

#: Those that keep state, learned by an optimizer or by themselves.
STATEFUL = [method for method in METHODS if method.keys]
#: Those that can have names: all that take a shape.
NAMED = [method for method in METHODS if not method.lazy]
