"""Tasks by name: in place of a shape, and in a call."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ..functional.checks import as_shape, check_tensors

Names = tuple[str, ...]

#: What a module takes as its shape: an int, a sequence of ints, or the names of the tasks.
Shape = int | Sequence[int] | Sequence[str]


def names_and_shape(shape: Shape) -> tuple[Names | None, tuple[int, ...]]:
    """The names that ``shape`` consists of, if it does, and the shape: n names mean ``(n,)``."""
    entries = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else ()
    names = tuple(entry for entry in entries if isinstance(entry, str))
    if not names:
        if not isinstance(shape, (Sequence, str)) and isinstance(shape, Iterable):
            raise TypeError(
                "`shape` should be an int, or a list of ints or of names. "
                f"Found a {type(shape).__name__}: use `list(...)`, in an order that stays."
            )
        return None, as_shape(shape)
    if len(names) < len(entries):
        raise TypeError(f"`shape` should be all names or all ints. Found `shape = {shape!r}`.")
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"`shape` should name each task once. Found {twice!r} twice.")
    return names, (len(names),)


def stack_by_name(losses: Mapping[str, Tensor], names: Names) -> tuple[Tensor, Tensor | None]:
    """The losses as one tensor, and the mask of those that are there; None if all are.

    Raises:
        TypeError: a loss is not a floating-point tensor.
        ValueError: there is no loss, a name is unknown, or a loss is not of shape ().
    """
    known = set(names)
    for name, loss in losses.items():
        if name not in known:
            raise ValueError(f"`losses` should be of {listed(names)}. Found {name!r}.")
        label = f"losses[{name!r}]"
        check_tensors(None, **{label: loss})
        if loss.ndim:
            raise ValueError(
                f"`{label}` should be a 0-d tensor. Found `{label}.shape = {tuple(loss.shape)}`."
            )
    if not losses:
        raise ValueError(
            f"`losses` should have at least one of {listed(names)}. Found an empty mapping: for a "
            "batch without any task, pass the losses that the network gives as a tensor, and a "
            "mask that is False everywhere."
        )
    like = next(iter(losses.values())).detach()
    stacked = torch.stack([losses.get(name, torch.zeros_like(like)) for name in names])
    if len(losses) == len(names):
        return stacked, None
    # Filled on the device one by one: the host would wait for the copy of a tensor made of a list.
    present = [torch.full_like(like, name in losses, dtype=torch.bool) for name in names]
    return stacked, torch.stack(present)


def listed(names: Sequence[str]) -> str:
    """The names in an error."""
    return ", ".join(map(repr, names))
