"""The modules of the weighted sum: the plain sum, the mean, and weights of the user's own."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from ..functional.checks import check_tensors
from ..functional.constant import constant_combine, mean_weights, sum_weights
from ..functional.presence import fill_absent
from .scalarizer import Losses, Scalarizer, default_dtype


class Sum(Scalarizer):
    r"""The plain sum of the losses: what every other method should be compared with.

    .. math::
        \sum_i \ell_i

    Args:
        shape: the shape S of the losses, or the names of the tasks: see :class:`Scalarizer`. None:
            losses of any shape, as a tensor.
        process_group: see :class:`Scalarizer`.

    Example:
        >>> Sum()(torch.tensor([4.0, 1.0]))
        tensor(5.)
    """

    fixed_weights = True
    linear = True

    def forward(self, losses: Losses, mask: Tensor | None = None) -> Tensor:
        losses, mask = self.prepare(losses, mask)
        scalar = constant_combine(losses, sum_weights(losses, mask=mask), mask=mask)
        self.report(sum_weights, losses.detach(), mask=mask)
        return scalar


class Mean(Scalarizer):
    r"""The mean of the losses, over the tasks that are present.

    .. math::
        \frac{1}{m} \sum_i \ell_i

    Args:
        shape: the shape S of the losses, or the names of the tasks: see :class:`Scalarizer`. None:
            losses of any shape, as a tensor.
        process_group: see :class:`Scalarizer`.

    Example:
        >>> Mean()(torch.tensor([4.0, 1.0]))
        tensor(2.5000)
    """

    fixed_weights = True
    linear = True

    def forward(self, losses: Losses, mask: Tensor | None = None) -> Tensor:
        losses, mask = self.prepare(losses, mask)
        scalar = constant_combine(losses, mean_weights(losses, mask=mask), mask=mask)
        self.report(mean_weights, losses.detach(), mask=mask)
        return scalar


class Constant(Scalarizer):
    r"""The sum of the losses with weights of your own.

    .. math::
        \sum_i w_i \ell_i

    The function is :func:`~mtl_scalarize.constant_combine`.

    Args:
        weights: the weights :math:`w`: a tensor of the shape of the losses, or a mapping of name to
            number, which gives the tasks their names. Kept as ``preference``, which follows the
            module to another device and is in no checkpoint.
        process_group: see :class:`Scalarizer`.

    Raises:
        TypeError: ``weights`` is neither a real tensor nor a mapping.

    Example:
        >>> scalarizer = Constant({"depth": 0.5, "normals": 2.0})
        >>> scalarizer({"depth": torch.tensor(4.0), "normals": torch.tensor(1.0)})
        tensor(4.)
    """

    fixed_weights = True
    linear = True
    settings = ("preference",)

    preference: Tensor

    def __init__(
        self,
        weights: Tensor | Mapping[str, float],
        *,
        process_group: "dist.ProcessGroup | None" = None,
    ) -> None:
        if isinstance(weights, Mapping):
            super().__init__(list(weights))
            # Not on the meta device, where a model may be made: the values would be lost.
            device = "cpu" if torch.get_default_device().type == "meta" else None
            numbers = list(weights.values())
            weights = torch.tensor(numbers, dtype=default_dtype(), device=device)
        else:
            if not isinstance(weights, Tensor):
                check_tensors(None, weights=weights)  # which refuses them
            super().__init__(weights.shape)
        self.register_hyperparameter("preference", weights)
        self.process_group = process_group

    def forward(self, losses: Losses, mask: Tensor | None = None) -> Tensor:
        losses, mask = self.prepare(losses, mask)
        scalar = constant_combine(losses, self.preference, mask=mask)
        self.report(fill_absent, self.preference, 0.0, mask=mask)
        return scalar

    def extra_repr(self) -> str:
        if self.names is None:
            return f"weights={self.preference}"
        numbers = self._tensors["preference"].tolist()  # as given: on meta there are no values
        return f"weights={dict(zip(self.names, numbers, strict=True))}"
