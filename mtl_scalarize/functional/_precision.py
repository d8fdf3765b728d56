"""In which dtype arithmetic runs: at least float32, whatever the losses' dtype."""

import torch
from torch import Tensor


def at_least_float32(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype that ``dtypes`` promote to, and never less than float32."""
    result = torch.float32
    for dtype in dtypes:
        if dtype is not result:
            result = torch.promote_types(result, dtype)
    return result


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of a new state, if ``dtype`` is asked for: at least float32.

    Raises:
        TypeError: ``dtype`` is not a floating dtype of torch.
    """
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"`dtype` should be a floating dtype of torch. Found {dtype!r}.")
    return at_least_float32(dtype)


def default_dtype() -> torch.dtype:
    """The dtype of a module's new state: torch's default, and never less than float32."""
    return at_least_float32(torch.get_default_dtype())


def in_common_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the dtype that they promote to, and never less than float32."""
    for tensor in tensors:
        if tensor.dtype is not torch.float32:
            dtype = at_least_float32(*[tensor.dtype for tensor in tensors])
            return tuple(tensor.to(dtype) for tensor in tensors)
    return tensors


def scalar_in(dtype: torch.dtype, value: float | Tensor) -> float | Tensor:
    """A hyperparameter in ``dtype``: a 0-d tensor of another dtype would promote 0-d losses."""
    return value.to(dtype) if isinstance(value, Tensor) else value


def plus(tensor: Tensor, value: float | Tensor) -> Tensor:
    """``tensor + value`` in the dtype of ``tensor``; the number 0 costs no operation."""
    if isinstance(value, Tensor):
        return tensor + value.to(tensor.dtype)
    return tensor + value if value else tensor
