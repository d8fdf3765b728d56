"""Tasks by name: in place of a shape, in a call, and in a checkpoint."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..functional._checks import as_shape, check_device, check_tensors

Names = tuple[str, ...]

#: What a scalarizer takes: the losses as one tensor, or as 0-d tensors by name.
Losses = Tensor | Mapping[str, Tensor]

#: What a module takes as its shape: an int, a sequence of ints, or the names of the tasks.
Shape = int | Sequence[int] | Sequence[str]


def names_and_shape(
    shape: Shape | None, *, optional: bool
) -> tuple[Names | None, tuple[int, ...] | None]:
    """The names of the tasks, or None, and the shape: n names mean ``(n,)``."""
    if shape is None and optional:
        return None, None
    entries = list(shape) if isinstance(shape, Iterable) and not isinstance(shape, str) else []
    # Plain strings: `torch.load(weights_only=True)` reads no `numpy.str_` and no `Enum`.
    names = tuple(str.__str__(entry) for entry in entries if isinstance(entry, str))
    if not names:
        sizes = as_shape(shape)
        if 0 in sizes or (isinstance(shape, list) and not shape):
            raise ValueError(f"`shape` should have at least one task. Found `shape = {shape!r}`.")
        return None, sizes
    if len(set(names)) < len(entries) or not isinstance(shape, Sequence):
        raise ValueError(
            f"`shape` should be a list or tuple of different names. Found `shape = {shape!r}`."
        )
    return names, (len(names),)


def by_position(
    losses: Losses, mask: Tensor | None, names: Names | None
) -> tuple[Tensor, Tensor | None]:
    """Losses by name as one tensor, and the mask of the present ones; None if all are present.

    Raises:
        TypeError: ``losses`` is neither a tensor nor a mapping, or a mapping although there are no
            names, or a loss is not a floating-point tensor.
        ValueError: there is no loss, a name is unknown, a loss is not of shape (), or ``mask`` is
            not of the shape of the losses.
    """
    if isinstance(losses, Tensor):
        return losses, mask
    if not isinstance(losses, Mapping):
        check_tensors(None, losses=losses)  # which refuses them
    if names is None:
        raise TypeError(
            "`losses` should be a tensor: the tasks have no names. Found a mapping: pass its names "
            f"to the constructor, `shape={list(losses)!r}`."
        )
    known, given = set(names), losses.keys()  # the `len` of a TensorDict is its batch size
    for name in given:
        loss, key = losses[name], f"losses[{name!r}]"
        if name not in known:
            raise ValueError(f"`losses` should be of the tasks {quoted(names)}. Found {name!r}.")
        if loss is None or isinstance(loss, (int, float)):
            raise TypeError(
                f"`{key}` should be a tensor. Found {loss}: leave an absent task out, and pass a "
                "loss itself, not its `.item()`."
            )
        check_tensors(None, **{key: loss})
        if loss.ndim:
            reduced = f"{loss!r}: take its mean" if loss.numel() > 1 else f"{loss!r}: squeeze it"
            raise ValueError(f"`{key}` should be a 0-d tensor. Found {reduced}.")
    if not given:
        raise ValueError(
            f"`losses` should have at least one of {quoted(names)}. Found none: pass over a batch "
            "without tasks or, on several ranks, pass a tensor and a mask that is False everywhere."
        )
    like = next(iter(losses.values())).detach()
    for name in given:
        check_device(f"losses[{name!r}]", losses[name], like.device, "move all to one device")
    if len(given) == len(names):
        stacked = torch.stack([losses[name] for name in names])
        check_tensors(mask, losses=stacked)
        return stacked, mask
    # Made on the device: the host would wait for the copy of a tensor made of a list.
    zero = torch.zeros_like(like)
    truth = [torch.full_like(like, here, dtype=torch.bool) for here in (False, True)]
    stacked = torch.stack([losses[name] if name in given else zero for name in names])
    check_tensors(mask, losses=stacked)
    present = torch.stack([truth[name in given] for name in names])
    return stacked, present if mask is None else present & mask


def quoted(names: Iterable[str]) -> str:
    """The names as an error shows them."""
    return ", ".join(map(repr, names))


def save_names(
    module: Any, state_dict: object, prefix: str, local_metadata: dict[str, Any]
) -> None:
    """Hook for ``state_dict``: the names go into its metadata."""
    if module.names is not None:
        local_metadata["names"] = list(module.names)


def check_names(
    module: Any, state_dict: object, prefix: str, local_metadata: Mapping[str, Any], *_: object
) -> None:
    """Hook for ``load_state_dict``: a checkpoint of other names, or in another order, is refused.

    Raises:
        ValueError: the names in the metadata are not those of the module.
    """
    names = tuple(local_metadata.get("names") or module.names or ())
    if module.names is not None and names != module.names:
        raise ValueError(
            f"`state_dict` should be of the tasks {quoted(module.names)}, in this order. "
            f"Found {quoted(names)}."
        )
