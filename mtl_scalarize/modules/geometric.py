"""The module of the geometric mean."""

from torch import Tensor

from ..functional.geometric import geometric_mean, geometric_mean_weights
from .scalarizer import Scalarizer


class GeometricMean(Scalarizer):
    r"""The geometric mean of the losses that are present, the Geometric Loss Strategy (GLS).

    .. math::
        \Big( \prod_i \ell_i \Big)^{1/m}

    A negative loss makes the scalar and all its gradients nan. A loss of exactly 0 makes the
    scalar 0 and its own gradient nan. The function is :func:`~mtl_scalarize.geometric_mean`, which
    names the paper.

    Args:
        shape: the shape S of the losses, or the names of the tasks: see :class:`Scalarizer`. None:
            losses of any shape, as a tensor.

    Example:
        >>> import torch
        >>> GeometricMean()(torch.tensor([4.0, 1.0]))
        tensor(2.)
    """

    lower_bound = 0.0

    def combine(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        return geometric_mean(losses, mask=mask)

    def weigh(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        return geometric_mean_weights(losses, mask=mask)
