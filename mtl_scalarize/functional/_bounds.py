"""How far losses are above their lower bounds."""

from torch import Tensor

from ._precision import plus
from ._presence import fill_absent

# Keeps the logarithm finite at the lower bound; the value of FAMO's official implementation.
EPS = 1e-8


def above_bound(
    losses: Tensor,
    min_losses: float | Tensor,
    eps: float | Tensor,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    r""":math:`d = \ell - b + \epsilon`, and 1 for an absent task, whose logarithm is 0."""
    return fill_absent(plus(plus(losses, -min_losses), eps), 1.0, mask=mask)
