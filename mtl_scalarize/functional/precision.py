"""In which dtype arithmetic runs: at least float32, whatever the losses' dtype."""

import torch
from torch import Tensor

_FULL = frozenset({torch.float32, torch.float64})


def at_least_float32(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype that ``dtypes`` promote to, and never less than float32."""
    result = torch.float32
    for dtype in dtypes:
        if dtype is not result:
            result = torch.promote_types(result, dtype)
    return result


def in_common_dtype(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Both tensors in the dtype they promote to, and never less than float32."""
    dtype = first.dtype
    if dtype is second.dtype and dtype in _FULL:
        return first, second
    dtype = at_least_float32(dtype, second.dtype)
    return first.to(dtype), second.to(dtype)


def scalar_in(dtype: torch.dtype, value: float | Tensor) -> float | Tensor:
    """A hyperparameter in ``dtype``, so that a 0-d tensor does not promote 0-d losses."""
    return value.to(dtype) if isinstance(value, Tensor) else value


# Made on import, outside any mode, so that none of them belongs to the first call's transform.
with torch.inference_mode(False):
    _CONSTANTS = {
        (value, dtype): torch.tensor(value, dtype=dtype, device="cpu")
        for dtype in _FULL
        for value in (
            *(0.0, 1e-30, 1e-8, 0.5, 0.9, 0.999, 1.0, 2.0, torch.nan),
            torch.finfo(dtype).min,
        )
    }


def constant(value: float, like: Tensor) -> float | Tensor:
    """``value`` as an operand for ``like`` in an eager operator.

    The operator makes a tensor of a Python number each time, which on a few tasks costs more than
    its arithmetic: ``x + 1e-8`` takes 2.2 us, ``x + constant(1e-8, x)`` 1.0 us. A 0-d tensor on the
    CPU combines with tensors of any device. A compiler, or a fake tensor, wants the number.
    """
    if type(like) is not Tensor or torch.compiler.is_compiling():
        return value
    return _CONSTANTS.get((value, like.dtype), value)
