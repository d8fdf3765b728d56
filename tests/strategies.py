"""What hypothesis draws: tensors of K losses, scales and masks that share one shape.

A *kind* is a function from a shape to a strategy; `alike(kind, kind, ...)` draws a shape once
and one value of each kind with it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from hypothesis.strategies import SearchStrategy
from torch import Tensor

Shape = tuple[int, ...]
Kind = Callable[[Shape], SearchStrategy[Any]]

shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=1, max_side=3)
vectors = hnp.array_shapes(min_dims=1, max_dims=1, min_side=1, max_side=6)

# Losses of every size that the identities promise to hold for, as many small ones as large.
magnitudes = st.floats(-30, 30).map(lambda exponent: 10.0**exponent)
not_finite = st.sampled_from([float("nan"), float("inf"), -float("inf")])
temperatures = st.floats(0.1, 10.0)


def filled_with(elements: SearchStrategy[float]) -> Kind:
    """The kind of float64 tensors whose entries are drawn one by one from `elements`."""

    def kind(shape: Shape) -> SearchStrategy[Tensor]:
        arrays = hnp.arrays(np.float64, shape, elements=elements, fill=st.nothing())
        return arrays.map(torch.from_numpy)

    return kind


def alike(*kinds: Kind, shapes: SearchStrategy[Shape] = shapes) -> SearchStrategy[tuple[Any, ...]]:
    """One value of each kind, all of one drawn shape."""
    return shapes.flatmap(lambda shape: st.tuples(*(kind(shape) for kind in kinds)))


def several(*kinds: Kind, least: int = 0, most: int = 4) -> Kind:
    """The kind of lists of tuples, one entry of each kind a tuple."""
    return lambda shape: st.lists(
        st.tuples(*(kind(shape) for kind in kinds)), min_size=least, max_size=most
    )


def masks(shape: Shape) -> SearchStrategy[Tensor | None]:
    """No mask, or any: all tasks present and all absent included."""
    return st.none() | hnp.arrays(np.bool_, shape).map(torch.from_numpy)


def number_or_tensor(numbers: SearchStrategy[float]) -> SearchStrategy[float | Tensor]:
    """A hyperparameter as a user may pass it: a Python number or a 0-d tensor."""
    tensors = numbers.map(lambda number: torch.tensor(number, dtype=torch.float64))
    return numbers | tensors


positive_losses = filled_with(magnitudes)
any_losses = filled_with(magnitudes | st.floats(-5.0, 5.0) | not_finite)
# Log-variances, log-scales and logits. Halves of the smallest numbers are rounded: none of those.
scales = filled_with(st.floats(-30.0, 30.0).filter(lambda s: s == 0.0 or abs(s) > 1e-300))
