"""How far losses are above their lower bounds."""

from torch import Tensor

from .precision import scalar_in
from .presence import fill_absent

# Keeps the logarithm finite at the lower bound; the value of FAMO's official implementation.
EPS = 1e-8


def distances(losses: Tensor, min_losses: float | Tensor, *, mask: Tensor | None = None) -> Tensor:
    r""":math:`\ell - b + \epsilon`, and 1 for an absent task, whose logarithm is 0."""
    above = losses - scalar_in(losses.dtype, min_losses) + EPS
    return fill_absent(above, 1.0, mask=mask)
