"""What hypothesis draws: tensors of K losses, scales and masks that share one dtype and one shape.

A *kind* is a function from dtype and shape to a strategy; `alike(dtype, kind, kind, ...)` draws a
shape once and one value of each kind with it.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from hypothesis.strategies import SearchStrategy
from torch import Tensor

Shape = tuple[int, ...]
Kind = Callable[[torch.dtype, Shape], SearchStrategy[Any]]

#: Losses and weights lie between 10 to the minus this and 10 to this.
DECADES = {torch.float32: 30, torch.float64: 280}
#: What the package promises of them, relative to the exact value.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}

shapes = hnp.array_shapes(min_dims=0, max_dims=2, min_side=1, max_side=3)
not_finite = st.sampled_from([math.nan, math.inf, -math.inf])
temperatures = st.floats(0.1, 10.0)


def filled_with(elements: SearchStrategy[float]) -> Kind:
    """The kind of tensors whose entries are drawn one by one."""

    def kind(dtype: torch.dtype, shape: Shape) -> SearchStrategy[Tensor]:
        arrays = hnp.arrays(np.float64, shape, elements=elements, fill=st.nothing())
        return arrays.map(lambda array: torch.from_numpy(array).to(dtype))

    return kind


def magnitudes(dtype: torch.dtype) -> SearchStrategy[float]:
    """Of every size, as many small ones as large, and of usual sizes."""
    most = DECADES[dtype]
    return (st.floats(-most, most) | st.floats(-3, 3)).map(lambda decade: 10.0**decade)


def losses(dtype: torch.dtype, shape: Shape) -> SearchStrategy[Tensor]:
    return filled_with(magnitudes(dtype))(dtype, shape)


def losses_or_not_finite(dtype: torch.dtype, shape: Shape) -> SearchStrategy[Tensor]:
    return filled_with(magnitudes(dtype) | not_finite)(dtype, shape)


def losses_or_zero(dtype: torch.dtype, shape: Shape) -> SearchStrategy[Tensor]:
    return filled_with(magnitudes(dtype) | st.just(0.0))(dtype, shape)


def scales(dtype: torch.dtype, shape: Shape) -> SearchStrategy[Tensor]:
    """Log-variances and log-scales, of every weight in the domain."""
    most = (DECADES[dtype] - 1) * math.log(10)
    return filled_with(numbers(most) | numbers(3))(dtype, shape)


def numbers(most: float) -> SearchStrategy[float]:
    """Of either sign, and 0 or above the subnormal numbers, which are outside of the domain."""
    return st.floats(-most, most).filter(lambda number: number == 0.0 or abs(number) > 1e-12)


logits = filled_with(numbers(20))


def masks(dtype: torch.dtype, shape: Shape) -> SearchStrategy[Tensor | None]:
    """No mask, or any: all tasks present and all absent included."""
    return st.none() | hnp.arrays(np.bool_, shape).map(torch.from_numpy)


def alike(
    dtype: torch.dtype, *kinds: Kind, shapes: SearchStrategy[Shape] = shapes
) -> SearchStrategy[tuple[Any, ...]]:
    """One value of each kind, all of one drawn shape."""
    return shapes.flatmap(lambda shape: st.tuples(*(kind(dtype, shape) for kind in kinds)))
