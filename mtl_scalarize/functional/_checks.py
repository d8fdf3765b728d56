"""Argument checks. They read types, shapes and dtypes, never a tensor's values."""

import math
import operator
from collections.abc import Mapping, Sequence
from typing import NoReturn

import torch
from torch import Tensor

#: The dtypes of losses and weights. Those below are widened to float32.
_FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_tensors(mask: Tensor | None, /, **tensors: Tensor) -> None:
    """Check that tensors are floating, and the mask boolean, all of one shape and on one device.

    Args:
        mask: the mask, or None.
        tensors: by the name that an error calls them. The first sets shape and device of all.

    Raises:
        TypeError: a tensor is not a floating-point tensor, or the mask not a tensor.
        ValueError: a shape or a device is not that of the first tensor, or the mask is not boolean.

    Example:
        >>> check_tensors(None, losses=torch.ones(3), weights=torch.ones(2))
        Traceback (most recent call last):
        ValueError: `weights` should have shape (3,), the shape of `losses`. Found ...
    """
    first = None
    for tensor in tensors.values():
        if not isinstance(tensor, Tensor) or tensor.dtype not in _FLOATING:
            _explain(mask, tensors)
        if first is None:
            first = tensor
        elif tensor.shape != first.shape or tensor.device != first.device:
            _explain(mask, tensors)
    if mask is not None and not (
        isinstance(mask, Tensor)
        and mask.dtype is torch.bool
        and first is not None
        and mask.shape == first.shape
        and mask.device == first.device
    ):
        _explain(mask, tensors)


def a_kind_of(value: object) -> str:
    """The type of ``value`` with an article, as errors show it."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOaeio' else 'a'} {name}"


def _explain(mask: object, tensors: Mapping[str, Tensor]) -> NoReturn:
    """Raise the error of `check_tensors`."""
    owner, first = "", torch.empty(0)
    for name, tensor in tensors.items():
        expected = f"`{name}` should be a floating-point tensor."
        if not isinstance(tensor, Tensor):
            listed = type(tensor) in (list, tuple) and all(isinstance(e, Tensor) for e in tensor)
            advice = ": use `torch.stack(losses)`" if name == "losses" and listed else ""
            raise TypeError(f"{expected} Found {a_kind_of(tensor)}{advice}.")
        if tensor.dtype not in _FLOATING:
            raise TypeError(f"{expected} Found `{name}.dtype = {tensor.dtype}`.")
        if owner:
            check_shape(name, tensor, first.shape, owner)
            check_device(name, tensor, first.device, f"move it to that of `{owner}`")
        else:
            owner, first = name, tensor
    expected = "`mask` should be a boolean tensor."
    if not isinstance(mask, Tensor):
        raise TypeError(f"{expected} Found {a_kind_of(mask)}.")
    if mask.dtype != torch.bool:
        advice = ""
        if mask.ndim and mask.shape == first.shape:
            advice = ": use `mask.bool()`"
        elif mask.is_floating_point():  # perhaps `scalarizer(a, b)`
            advice = ": pass all losses as one tensor, `torch.stack(losses)`"
        raise ValueError(f"{expected} Found `mask.dtype = {mask.dtype}`{advice}.")
    check_shape("mask", mask, first.shape, owner)
    check_device("mask", mask, first.device, f"move it to that of `{owner}`")
    raise AssertionError


def check_shape(name: str, tensor: Tensor, shape: Sequence[int] | None, owner: str) -> None:
    """Check that ``tensor`` has exactly ``shape``, if any: broadcasting would hide a mistake."""
    if shape is not None and tensor.shape != tuple(shape):
        raise _shape_error(name, tensor, shape, owner)


def _shape_error(name: str, tensor: Tensor, shape: Sequence[int], owner: str) -> ValueError:
    single = name == "losses" and tensor.ndim == 0
    advice = ", a single loss, which balances nothing: pass `torch.stack(losses)`" if single else ""
    return ValueError(
        f"`{name}` should have shape {tuple(shape)}, the shape of `{owner}`. "
        f"Found `{name}.shape = {tuple(tensor.shape)}`{advice}."
    )


def check_device(name: str, tensor: Tensor, device: torch.device, advice: str) -> None:
    """Check that ``tensor`` is on ``device``."""
    if tensor.device != device:
        raise ValueError(f"`{name}` should be on {device}. Found {tensor.device}: {advice}.")


def check_state(state: object, kind: type) -> None:
    """Check that a state is one of its method."""
    if not isinstance(state, kind):
        raise TypeError(
            f"`state` should be a {kind.__name__}. Found {a_kind_of(state)}: a module has it as "
            "`scalarizer.state`."
        )


def check_scalar(name: str, value: float | Tensor) -> None:
    """Check a hyperparameter: a 0-d tensor, or a finite number that is not negative."""
    _check_number(name, value, (0.0, math.inf), expected="non-negative and finite")


def check_positive(name: str, value: float | Tensor) -> None:
    """Check a hyperparameter: a 0-d tensor, or a finite number above 0."""
    above_zero = math.ulp(0.0)
    _check_number(name, value, (above_zero, math.inf), expected="strictly positive and finite")


def check_unit_interval(name: str, value: float | Tensor) -> None:
    """Check a hyperparameter: a 0-d tensor, or a number from 0 to 1."""
    _check_number(name, value, (0.0, 1.0), expected="from 0 to 1")


def _check_number(
    name: str, value: float | Tensor, value_range: tuple[float, float], expected: str
) -> None:
    if isinstance(value, Tensor):
        if value.ndim:
            raise ValueError(
                f"`{name}` should be a number or a 0-d tensor. "
                f"Found `{name}.shape = {tuple(value.shape)}`."
            )
        return
    if not isinstance(value, (int, float)):
        raise TypeError(f"`{name}` should be a number or a 0-d tensor. Found {a_kind_of(value)}.")
    low, high = value_range
    if not (low <= value <= high and value < math.inf):  # written so that nan fails too
        raise ValueError(f"`{name}` should be {expected}. Found `{name} = {value}`.")


def check_scalar_or_shape(
    name: str, value: float | Tensor, shape: Sequence[int] | None, owner: str
) -> None:
    """Check what is one finite number for all tasks, or one for each in a tensor of ``shape``."""
    if isinstance(value, Tensor):
        if value.is_complex() or value.dtype is torch.bool:
            advice = ": a mask is given as `mask=`" if value.dtype is torch.bool else ""
            raise TypeError(
                f"`{name}` should be real numbers. Found `{name}.dtype = {value.dtype}`{advice}."
            )
        if value.ndim > 0:
            check_shape(name, value, shape, owner)
    elif not isinstance(value, (int, float)):
        raise TypeError(f"`{name}` should be a number or a tensor. Found {a_kind_of(value)}.")
    elif not -math.inf < value < math.inf:
        raise ValueError(f"`{name}` should be finite. Found `{name} = {value}`.")


def check_priorities(
    name: str, value: float | Tensor, shape: Sequence[int] | None, owner: str
) -> None:
    """As :func:`check_scalar_or_shape`, and that a number is not negative."""
    check_scalar_or_shape(name, value, shape, owner)
    if not isinstance(value, Tensor) and value < 0:
        raise ValueError(f"`{name}` should be non-negative. Found `{name} = {value}`.")


def as_shape(shape: object) -> tuple[int, ...]:
    """The shape that ``shape`` stands for: an int ``n`` means ``(n,)``."""
    sizes = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    try:
        if isinstance(shape, (str, bool)):
            raise TypeError
        # A compiler's symbolic size is an int, and `index` would make a number of it.
        symbolic = (int, torch.SymInt)
        sizes = tuple(
            size if isinstance(size, symbolic) else operator.index(size) for size in sizes
        )
    except TypeError:
        advice = ": pass a list of names" if isinstance(shape, str) else ""
        raise TypeError(
            f"`shape` should be an int or a sequence of ints. Found `shape = {shape!r}`{advice}."
        ) from None
    if any(size < 0 for size in sizes):
        raise ValueError(f"`shape` should have no negative entry. Found `shape = {shape!r}`.")
    return sizes
