"""Argument checks. They read types, shapes and dtypes, never a tensor's values."""

import operator
from collections.abc import Sequence

import torch
from torch import Tensor


def check_tensors(mask: Tensor | None, /, **tensors: Tensor) -> None:
    """Check that tensors are floating and of one shape, and the mask boolean and of that shape.

    Args:
        mask: the mask, or None.
        tensors: by the name that an error calls them. The first sets the shape of all.

    Raises:
        TypeError: a tensor is not a floating-point tensor, or the mask not a tensor.
        ValueError: a shape is not that of the first tensor, or the mask is not boolean.

    Example:
        >>> check_tensors(None, losses=torch.ones(3), weights=torch.ones(2))
        Traceback (most recent call last):
        ValueError: `weights` should have shape (3,), the shape of `losses`. Found ...
    """
    owner = ""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            stack = name == "losses" and isinstance(tensor, (list, tuple))
            advice = ": use `torch.stack(losses)`" if stack else ""
            raise TypeError(
                f"`{name}` should be a floating-point tensor. "
                f"Found a {type(tensor).__name__}{advice}."
            )
        if not tensor.is_floating_point():
            raise TypeError(
                f"`{name}` should be a floating-point tensor. "
                f"Found `{name}.dtype = {tensor.dtype}`."
            )
        if not owner:
            owner, shape = name, tensor.shape
        elif tensor.shape != shape:
            check_shape(name, tensor, shape, owner)
    if mask is not None:
        if not isinstance(mask, Tensor):
            raise TypeError(f"`mask` should be a boolean tensor. Found a {type(mask).__name__}.")
        if mask.dtype != torch.bool:
            raise ValueError(
                f"`mask` should be a boolean tensor. Found `mask.dtype = {mask.dtype}`."
            )
        check_shape("mask", mask, shape, owner)


def check_shape(name: str, tensor: Tensor, shape: Sequence[int], owner: str) -> None:
    """Check that ``tensor`` has exactly ``shape``: broadcasting would hide a mistake."""
    if tensor.shape != tuple(shape):
        raise ValueError(
            f"`{name}` should have shape {tuple(shape)}, the shape of `{owner}`. "
            f"Found `{name}.shape = {tuple(tensor.shape)}`."
        )


def check_scalar(name: str, value: float | Tensor, *, positive: bool = False) -> None:
    """Check a hyperparameter: a 0-d tensor, or a number that is non-negative (or positive)."""
    if isinstance(value, Tensor):
        if value.ndim != 0:
            raise ValueError(
                f"`{name}` should be a number or a 0-d tensor. "
                f"Found `{name}.shape = {tuple(value.shape)}`."
            )
        return
    if not isinstance(value, (int, float)):
        raise TypeError(
            f"`{name}` should be a number or a 0-d tensor. Found a {type(value).__name__}."
        )
    # Written so that nan fails too.
    if not (value > 0 if positive else value >= 0):
        expected = "strictly positive" if positive else "non-negative"
        raise ValueError(f"`{name}` should be {expected}. Found `{name} = {value}`.")


def check_share(name: str, value: float | Tensor) -> None:
    """Check a hyperparameter: a 0-d tensor, or a number from 0 to 1."""
    check_scalar(name, value)
    if not isinstance(value, Tensor) and value > 1:
        raise ValueError(f"`{name}` should be at most 1. Found `{name} = {value}`.")


def check_hyperparameter(name: str, value: float | Tensor, *, positive: bool = False) -> None:
    """`check_scalar` for the constructor of a module, which may read the value."""
    check_scalar(name, value, positive=positive)
    check_has_values(name, value)
    if isinstance(value, Tensor):
        if value.requires_grad:
            raise ValueError(
                f"`{name}` should not require gradients, for the state of a module keeps no graph: "
                f"use the pure functions. Found `{name}.requires_grad = True`."
            )
        check_scalar(name, value.item(), positive=positive)


def check_has_values(name: str, value: float | Tensor) -> None:
    """Check that a module can keep the value for its `reset`."""
    if isinstance(value, Tensor) and value.is_meta:
        raise ValueError(
            f"`{name}` should have values. Found a tensor on the meta device: make it with "
            '`device="cpu"`.'
        )


def check_scalar_or_shape(
    name: str, value: float | Tensor, shape: Sequence[int] | None, owner: str
) -> None:
    """Check what is one number for all tasks, or one for each in a tensor of ``shape``, if any."""
    if not isinstance(value, (Tensor, int, float)):
        raise TypeError(f"`{name}` should be a number or a tensor. Found a {type(value).__name__}.")
    if isinstance(value, Tensor):
        if value.is_complex():
            raise TypeError(f"`{name}` should be real. Found `{name}.dtype = {value.dtype}`.")
        if value.ndim > 0 and shape is not None:
            check_shape(name, value, shape, owner)


def as_shape(shape: object) -> tuple[int, ...]:
    """The shape that ``shape`` stands for: an int ``n`` means ``(n,)``."""
    sizes = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    try:
        if isinstance(shape, (str, bool)):
            raise TypeError
        # A compiler's symbolic size is an int, and `index` would make a number of it.
        sizes = tuple(size if isinstance(size, int) else operator.index(size) for size in sizes)
    except TypeError:
        raise TypeError(
            f"`shape` should be an int or a sequence of ints. Found `shape = {shape!r}`."
        ) from None
    if any(size < 0 for size in sizes):
        raise ValueError(f"`shape` should have no negative entry. Found `shape = {shape!r}`.")
    return sizes
