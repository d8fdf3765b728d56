"""One row a public function, one column a transform: which cells hold, and why the others cannot.

The cells are tested where the columns are: `vmap`, derivatives and host reads in
`test_transforms.py`, the compiler in `test_compile.py`. Each runs on every device of `DEVICES`.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, get_type_hints

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor

import mtl_scalarize
from mtl_scalarize import DWAState, FAMOState

TASKS = 4
#: This task is absent from every masked example, and its loss is nan: it should not be read.
ABSENT = 1

GPU = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]

VMAPS = (
    "vmap losses",
    "vmap state",
    "vmap temperature",
    "vmap lr",
    "vmap weight_decay",
    "vmap min_losses",
    "vmap mask",
    "vmap all",
    "vmap nested",
)
DERIVATIVES = ("grad", "vjp", "jvp", "jacrev", "jacfwd", "hessian", "gradcheck", "gradgradcheck")
TRANSFORMS = (*VMAPS, *DERIVATIVES, "no host sync")
COMPILED = ("compile", "one graph", "any number of tasks", "export")
COLUMNS = (*TRANSFORMS, *COMPILED)

# `+` holds; any other mark is a reason why the cell cannot, spelled out below.
MATRIX = """
                             vmap over           derivatives       no   com- one   any  ex-
                             l s t r d b m A N   g v j R F H 1 2   sync pile graph K    port

uw_loss                      + + . . . . . + +   + + + + + + + +   +    +    +     +    +
uw_loss masked               + + . . . . + + +   + + + + + + + +   +    +    +     +    +
uw_weights                   . + . . . . . + +   + + + + + + + +   +    +    +     +    +
uw_weights masked            . + . . . . + + +   + + + + + + + +   +    +    +     +    +
imtll_loss                   + + . . . . . + +   + + + + + + + +   +    +    +     +    +
imtll_loss masked            + + . . . . + + +   + + + + + + + +   +    +    +     +    +
imtll_weights                . + . . . . . + +   + + + + + + + +   +    +    +     +    +
imtll_weights masked         . + . . . . + + +   + + + + + + + +   +    +    +     +    +
dwa_weights                  . + + . . . . + +   + + + + + + + +   +    +    +     +    +
dwa_combine                  + + + . . . . + +   + + + + + + + +   +    +    +     +    +
dwa_combine masked           + + + . . . + + +   + + + + + + + +   +    +    +     +    +
dwa_init                     0 0 0 0 0 0 0 0 0   0 0 0 0 0 0 0 0   +    +    +     +    +
dwa_accumulate               + + . . . . . + +   + + + + + + + +   +    +    +     +    +
dwa_accumulate masked        + + . . . . + + +   + + + + + + + +   +    +    +     +    +
dwa_step                     . + . . . . . + +   + + + + + + + +   +    +    +     +    +
famo_weights                 + + . . . + . + +   + + + + + + + +   +    +    +     +    +
famo_weights masked          + + . . . + + + +   + + + + + + + +   +    +    +     +    +
famo_combine                 + + . . . + . + +   + + + + + + c c   +    +    +     +    +
famo_combine masked          + + . . . + + + +   + + + + + + c c   +    +    +     +    +
famo_delta                   + . . . . + . + +   + + + + + + + +   +    +    +     +    +
famo_init                    0 0 0 0 0 0 0 0 0   0 0 0 0 0 0 0 0   +    +    +     +    +
famo_update                  + + . + + . . + +   + + + + + + + +   +    +    +     +    +
famo_update masked           + + . + + . + + +   + + + + + + + +   +    +    +     +    +
"""

REASONS = {
    ".": "takes no argument of this kind",
    "0": "takes no tensor: there is nothing to map over or to differentiate in",
    "c": "its factor c is constant in the backward pass, not in the value: finite differences of "
    "the value and of the gradient are others; grad ... hessian are held against a constant c",
}

ROLES = {
    "losses": "losses",
    "before": "losses",
    "after": "losses",
    "delta": "losses",
    "log_var": "state",
    "log_scale": "state",
    "logits": "state",
    "state": "state",
    "last": "state",
    "previous": "state",
    "epochs": "state",
    "temperature": "temperature",
    "lr": "lr",
    "weight_decay": "weight_decay",
    "min_losses": "min_losses",
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
            case "state" if kind is DWAState:
                return self.dwa_state()
            case "state":
                return self.famo_state()
            case "losses" | "before" | "after" | "delta":
                losses = self.number(self.tasks) if name == "delta" else self.positive(self.tasks)
                absent = torch.arange(self.tasks, device=self.device) == ABSENT
                return torch.where(absent, torch.nan, losses) if masked else losses
            case "log_var" | "log_scale" | "logits":
                return self.number(self.tasks)
            case "last" | "previous":
                return self.positive(self.tasks)
            case "epochs":
                return self.integer(2, 5)
            case "temperature":
                return self.positive()
            case "lr" | "weight_decay":
                return 0.1 * self.positive()
            case "min_losses":  # below any loss
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

    def dwa_state(self) -> DWAState:
        count = self.integer(0, 3)
        return DWAState(
            loss_sum=count * self.positive(self.tasks),
            count=count,
            last=self.positive(self.tasks),
            previous=self.positive(self.tasks),
            epochs=self.integer(1, 4),
        )

    def famo_state(self) -> FAMOState:
        return FAMOState(
            logits=self.number(self.tasks),
            exp_avg=0.1 * self.number(self.tasks),
            exp_avg_sq=0.1 * self.positive(self.tasks),
            step=self.integer(1, 5),
        )


@dataclass(frozen=True)
class Row:
    """A public function, with a mask or without."""

    function: Callable[..., Any]
    masked: bool
    marks: tuple[str, ...]

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

    def mark(self, column: str) -> str:
        return self.marks[COLUMNS.index(column)]


def _read_matrix() -> list[Row]:
    rows = []
    for line in MATRIX.splitlines():
        name, marks = line[:29].split(), line[29:].split()
        if name:
            masked = name[1:] == ["masked"]
            rows.append(Row(getattr(mtl_scalarize, name[0]), masked, tuple(marks)))
    return rows


ROWS = _read_matrix()


def cells(columns: Iterable[str]) -> list[Any]:
    """Every row under `columns`, on every device, each cell a parameter set of its own name."""
    return [
        pytest.param(row, column, device, marks=marks, id=f"{row}-{column}-{device}")
        for row in ROWS
        for column in columns
        for device, marks in (("cpu", []), ("cuda", GPU))
    ]


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
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
