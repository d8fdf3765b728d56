"""Tasks by name: in place of a shape, in a call, and in a checkpoint."""

import json
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..functional.checks import as_shape, check_tensors

Names = tuple[str, ...]

#: What a module takes as its shape: an int, a sequence of ints, or the names of the tasks.
Shape = int | Sequence[int] | Sequence[str]


def as_names(shape: Shape) -> Names | None:
    """The names that ``shape`` consists of; None if it is one of numbers."""
    if isinstance(shape, (int, str)) or not isinstance(shape, Sequence) or not len(shape):
        return None
    names = tuple(name for name in shape if isinstance(name, str))
    if not names:
        return None
    if len(names) < len(shape):
        raise TypeError(f"`shape` should be all names or all ints. Found `shape = {shape!r}`.")
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise ValueError(f"`shape` should name each task once. Found {twice!r} twice.")
    return names


def as_named_shape(shape: Shape) -> tuple[int, ...]:
    """The shape that ``shape`` stands for: n names stand for ``(n,)``."""
    names = as_names(shape)
    if names is not None:
        return (len(names),)
    try:
        return as_shape(shape)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            "`shape` should be an int or a sequence of ints or of names. "
            f"Found `shape = {shape!r}`."
        ) from None


def in_order(
    losses: Mapping[str, Tensor], names: Names, device: torch.device
) -> tuple[Tensor, list[bool]]:
    """The losses as one tensor, with 0 for a task that is missing, and which are there.

    Raises:
        TypeError: a loss is not a floating-point tensor.
        ValueError: a name is unknown, or a loss is not of shape ().
    """
    for name, loss in losses.items():
        if name not in names:
            raise ValueError(f"`losses` should be of {_listed(names)}. Found {name!r}.")
        label = f"losses[{name!r}]"
        check_tensors(None, **{label: loss})
        if loss.ndim:
            raise ValueError(
                f"`{label}` should be a 0-d tensor. Found `{label}.shape = {tuple(loss.shape)}`."
            )
    present = [name in losses for name in names]
    # Half, so that it widens no loss, whatever the default dtype: the ranks reduce one dtype.
    zero = torch.zeros((), dtype=torch.half, device=device)
    return torch.stack([losses.get(name, zero) for name in names]), present


def mask_of(present: Sequence[bool], mask: Tensor | None, like: Tensor) -> Tensor:
    """A mask of these on the device of ``like``, together with the ``mask`` that was given."""
    # Filled there one by one: a tensor made of a list would be copied, and the host would wait.
    there = torch.stack([torch.full((), here, device=like.device) for here in present])
    return there if mask is None else there & mask


def encode(names: Names) -> Tensor:
    """Names as a tensor, which is what a ``state_dict`` holds."""
    return torch.tensor(list(json.dumps(names).encode()), dtype=torch.uint8)


def order_of(found: object, names: Names, key: str) -> list[int]:
    """Where each of ``names`` stands in the names that a checkpoint holds.

    Raises:
        ValueError: these are not the same names.
    """
    try:
        decoded = json.loads(bytes(found.tolist()))  # type: ignore[attr-defined]
    except (AttributeError, TypeError, ValueError):
        decoded = None
    if not isinstance(decoded, list) or not all(isinstance(name, str) for name in decoded):
        raise ValueError(f"`{key}` should hold the names of the tasks. Found {found!r}.")
    if sorted(decoded) != sorted(names):
        raise ValueError(
            f"`{key}` should be {_listed(names)}, in any order. Found {_listed(decoded)}."
        )
    return [decoded.index(name) for name in names]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
