"""In which dtype arithmetic runs: at least float32, whatever the losses' dtype."""

import torch
from torch import Tensor

_FULL = frozenset({torch.float32, torch.float64})
_CONSTANTS: dict[tuple[float, torch.dtype], Tensor] = {}


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


def constant(value: float, dtype: torch.dtype) -> float | Tensor:
    """``value`` as an operand of an eager operator.

    The operator makes a tensor of a Python number each time, which on a few tasks costs more than
    its arithmetic: ``x + 1e-8`` takes 2.2 us, ``x + constant(1e-8, x.dtype)`` 1.0 us. A 0-d tensor
    on the CPU combines with tensors of any device. A compiler wants to see the number.
    """
    if torch.compiler.is_compiling():
        return value
    try:
        return _CONSTANTS[value, dtype]
    except KeyError:
        made = torch.tensor(value, dtype=dtype, device="cpu")
        return _CONSTANTS.setdefault((value, dtype), made)
