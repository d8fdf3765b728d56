"""Every public function of the core, with and without a mask, and example arguments for it."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, get_type_hints

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor

from mtl_scalarize import DWAState, FAMOState, ReLoBRaLoState, functional

TASKS = 4
#: This task is absent from every masked example, and its loss is nan: it should not be read.
ABSENT = 1

GPU = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
#: The devices that a test runs on.
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]

#: What an argument is, by name: a new one needs a line here, and an example below.
ROLES = {
    "losses": "losses",
    "before": "losses",
    "after": "losses",
    "delta": "losses",
    "earlier": "losses",
    "noise": "losses",
    "log_var": "state",
    "log_scale": "state",
    "logits": "state",
    "state": "state",
    "last": "state",
    "previous": "state",
    "weights": "state",
    "priorities": "priorities",
    "temperature": "temperature",
    "mu": "temperature",
    "lambda_": "penalty",
    "theta": "penalty",
    "alpha": "temperature",
    "lookback": "lookback",
    "lr": "lr",
    "weight_decay": "weight_decay",
    "min_losses": "min_losses",
    "reference": "min_losses",
    "eps": "eps",
    "mask": "mask",
    "shape": "shape",
    "dtype": "options",
    "device": "options",
}


class Draw:
    """Example arguments, floating ones in float64, for one seed."""

    def __init__(self, seed: int, device: str, tasks: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.device = device
        self.tasks = tasks

    def argument(self, name: str, kind: type, masked: bool) -> Any:
        """The argument `name`, annotated `kind`."""
        match name:
            case "state":
                return self.state(kind)
            case "losses" | "before" | "after" | "delta" | "noise" | "earlier":
                signed = name in ("delta", "noise")
                losses = self.number(self.tasks) if signed else self.positive(self.tasks)
                absent = torch.arange(self.tasks, device=self.device) == ABSENT
                return torch.where(absent, torch.nan, losses) if masked else losses
            case "log_var" | "log_scale" | "logits":
                return self.number(self.tasks)
            case "last" | "previous" | "weights" | "priorities":
                return self.positive(self.tasks)
            case "temperature" | "mu" | "lambda_" | "theta":
                return self.positive()
            case "alpha" | "lookback":  # up to 1
                return 0.4 * self.positive()
            case "lr" | "weight_decay" | "eps":
                return 0.1 * self.positive()
            case "min_losses" | "reference":  # below any loss
                return 0.1 * self.positive(self.tasks)
            case "mask":  # the first task is present
                tasks = torch.arange(self.tasks, device=self.device)
                return ((self.positive(self.tasks) < 1.5) | (tasks == 0)) & (tasks != ABSENT)
            case "shape":
                return self.tasks
            case "dtype":
                return torch.float64
            case "device":
                return self.device
        raise NotImplementedError(f"an example of `{name}` is missing")

    def positive(self, *shape: int) -> Tensor:
        drawn = 0.5 + 2 * torch.rand(shape, generator=self.generator, dtype=torch.float64)
        return drawn.to(self.device)

    def number(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(self.device)

    def integer(self, low: int, high: int) -> Tensor:
        drawn = torch.randint(low, high, (self.tasks,), generator=self.generator)
        return drawn.to(self.device)

    def state(self, kind: type) -> Any:
        """A state: of `kind`, in the middle of a training."""
        if kind is DWAState:
            count = self.integer(0, 3)
            means = [self.positive(self.tasks) for _ in range(4)]
            return DWAState((count > 0) * means[0], count, *means[1:])
        if kind is FAMOState:
            return FAMOState(
                logits=self.number(self.tasks),
                first_moment=0.1 * self.number(self.tasks),
                second_moment=0.1 * self.positive(self.tasks),
                updates=self.integer(1, 5),
            )
        return ReLoBRaLoState(*(self.positive(self.tasks) for _ in range(3)))


@dataclass(frozen=True)
class Row:
    """A public function, with a mask or without."""

    function: Callable[..., Any]
    masked: bool

    def __str__(self) -> str:
        return self.function.__name__ + (" masked" if self.masked else "")

    @property
    def arguments(self) -> list[str]:
        names = inspect.signature(self.function).parameters
        return [name for name in names if self.masked or name != "mask"]

    def of_role(self, role: str) -> list[str]:
        return [name for name in self.arguments if ROLES[name] == role]

    def inputs(self, seed: int = 0, device: str = "cpu", tasks: int = TASKS) -> dict[str, Any]:
        """Its arguments by name."""
        draw, kinds = Draw(seed, device, tasks), get_type_hints(self.function)
        return {name: draw.argument(name, kinds[name], self.masked) for name in self.arguments}

    def takes_tensors(self) -> bool:
        return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(self.inputs()))


#: What the methods' functions are made of, and tested with them.
SHARED = {f"mtl_scalarize.functional.{name}" for name in ("_checks", "_presence")}


def _rows() -> list[Row]:
    public = [getattr(functional, name) for name in functional.__all__]
    methods = [f for f in public if inspect.isfunction(f) and f.__module__ not in SHARED]
    return [
        Row(function, masked)
        for function in methods
        for masked in (False, True)
        if not masked or "mask" in inspect.signature(function).parameters
    ]


ROWS = _rows()


def stack(trees: Iterable[Any]) -> Any:
    """Trees of tensors, leaf by leaf along a new first dimension."""
    return pytree.tree_map(lambda *leaves: torch.stack(leaves), *trees)


def flat(
    function: Callable[..., Any], inputs: dict[str, Any]
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """`function` as one vector's function of one vector, and that vector, at `inputs`.

    The vectors hold all the floating entries: of every argument, and of everything returned.
    """
    leaves, structure = pytree.tree_flatten(inputs)
    places = [i for i, leaf in enumerate(leaves) if _is_floating(leaf)]

    sizes = [leaves[place].numel() for place in places]

    def of_vector(vector: Tensor) -> Tensor:
        filled = list(leaves)
        for place, piece in zip(places, vector.split(sizes), strict=True):
            filled[place] = piece.reshape(leaves[place].shape)
        returned = pytree.tree_leaves(function(**pytree.tree_unflatten(filled, structure)))
        return torch.cat([leaf.flatten() for leaf in returned if _is_floating(leaf)])

    return of_vector, torch.cat([leaves[place].flatten() for place in places])


def value_and_gradients(function: Callable[..., Any], inputs: dict[str, Any]) -> tuple[Any, Any]:
    """What comes out, and the derivative of its sum in every floating input."""
    inputs = pytree.tree_map_only(Tensor, lambda leaf: leaf.clone(), inputs)
    floating = [leaf.requires_grad_() for leaf in pytree.tree_leaves(inputs) if _is_floating(leaf)]
    returned = function(**inputs)
    through = [leaf.sum() for leaf in pytree.tree_leaves(returned) if leaf.requires_grad]
    return returned, torch.autograd.grad(
        through, floating, materialize_grads=True
    ) if through else ()


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


@contextmanager
def synchronization_forbidden() -> Iterator[None]:
    """Inside, whatever makes the host wait for the GPU raises."""
    try:
        torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
