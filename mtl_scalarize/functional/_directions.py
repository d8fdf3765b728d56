"""The direction of a vector of losses or preferences."""

import torch
from torch import Tensor


def length_and_direction(vector: Tensor) -> tuple[Tensor, Tensor]:
    """The Euclidean length, and the vector divided by it: 0 if it is 0.

    Scaled by the largest entry, whose square might overflow. The derivatives do not depend on that.
    """
    largest = vector.detach().abs().max()
    largest = torch.where(largest == 0, 1.0, largest)
    scaled = vector / largest
    length = scaled.square().sum().clamp(min=0.5).sqrt()  # at least 1, or all of it is 0
    return length * largest, scaled / length
