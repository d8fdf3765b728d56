"""The module of smooth Tchebycheff scalarization."""

import torch.distributed as dist
from torch import Tensor

from ..functional.checks import check_scalar
from ..functional.stch import stch, stch_weights
from .names import Shape
from .scalarizer import Losses, Scalarizer


class STCH(Scalarizer):
    r"""Smooth Tchebycheff scalarization: a smooth maximum, so that the worst task weighs most.

    .. math::
        \mu \log \sum_i \exp \left( \frac{\lambda_i (\ell_i - z_i)}{\mu} \right)

    - :math:`\ell_i` is the loss of task :math:`i`;
    - :math:`\lambda_i` is its preference;
    - :math:`z_i` is the best value it can have, its component of the ideal point;
    - :math:`\mu` is the smoothing: the smaller, the closer to the maximum.

    The function is :func:`~mtl_scalarize.stch`, which names the paper.

    Args:
        mu: :math:`\mu > 0`, in the unit of the losses times their preference. The paper uses 0.01
            to 1.
        weights: the preference :math:`\lambda`, of shape S, kept as ``preference``. None:
            :math:`1/m` for each of the m tasks that are present.
        reference: the ideal point :math:`z`, of shape S. None: 0.
        shape: the shape S of the losses, or the names of the tasks: see :class:`Scalarizer`. None:
            losses of any shape, as a tensor.
        process_group: see :class:`Scalarizer`.

    Raises:
        TypeError: ``weights`` or ``reference`` is not a real tensor.
        ValueError: ``mu`` is not positive, or ``weights`` or ``reference`` is not of shape S.

    Example:
        >>> import torch
        >>> scalarizer = STCH(mu=0.1)
        >>> scalar = scalarizer(torch.tensor([4.0, 1.0]))
        >>> scalarizer.weights
        tensor([5.0000e-01, 1.5295e-07])
    """

    settings = ("mu", "preference", "reference")

    preference: Tensor | None
    reference: Tensor | None

    def __init__(
        self,
        mu: float,
        weights: Tensor | None = None,
        reference: Tensor | None = None,
        *,
        shape: Shape | None = None,
        process_group: "dist.ProcessGroup | None" = None,
    ) -> None:
        check_scalar("mu", mu, positive=True)
        super().__init__(shape)
        self.mu = mu
        self.register_hyperparameter("preference", weights)
        self.register_hyperparameter("reference", reference)
        self.process_group = process_group

    def forward(self, losses: Losses, mask: Tensor | None = None) -> Tensor:
        losses, mask = self.prepare(losses, mask)
        options = self.mu, self.preference, 0.0 if self.reference is None else self.reference
        scalar = stch(losses, *options, mask=mask)
        self.report(stch_weights, losses.detach().clone(), *options, mask=mask)
        return scalar

    def extra_repr(self) -> str:
        shape = "" if self.shape is None else f", {super().extra_repr()}"
        return f"mu={self.mu}, weights={self.preference}, reference={self.reference}{shape}"
