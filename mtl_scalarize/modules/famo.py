"""The module of FAMO."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..functional.checks import check_scalar, check_scalar_or_shape, check_tensors
from ..functional.famo import (
    FAMOState,
    famo_delta,
    famo_init,
    famo_loss_and_weights,
    famo_update,
)
from ..functional.precision import at_least_float32
from ..functional.presence import fill_absent, measured
from .names import Shape, as_named_shape
from .scalarizer import Losses, Scalarizer, default_dtype


class FAMO(Scalarizer):
    r"""Fast Adaptive Multitask Optimization: lets all losses fall at about the same rate.

    .. math::
        c \sum_i z_i \log(\ell_i - b_i + \epsilon), \qquad z = \mathrm{softmax}(w), \qquad
        c = \Big( \sum_j \frac{z_j}{\ell_j - b_j + \epsilon} \Big)^{-1}

    - :math:`\ell_i` is the loss of task :math:`i`, above its lower bound :math:`b_i`;
    - :math:`w_i` is its logit, learned here and not by your optimizer;
    - :math:`c` makes the step a convex combination of the task gradients, and is held constant in
      the backward pass; :math:`\epsilon = 10^{-8}`.

    After your optimizer's step, compute the losses again on the same batch and call
    :meth:`update`. With ``amortized=True`` there is no second forward pass and no ``update``: each
    call first learns from how the losses changed since the call before. On changing batches that
    change also carries the batches' noise.

    Only calls in training mode (``scalarizer.train()``) with gradients enabled are learned from, so
    that a validation pass leaves the logits alone.

    Args:
        shape: the shape S of the losses; an int ``n`` means ``(n,)``. Or the names of the tasks, a
            sequence of n strings: then S is ``(n,)``, and a call may also be given the losses by
            name.
        min_losses: the lower bounds :math:`b`, of shape S, or one number for all. None: 0.
        lr: learning rate of the logits, non-negative. The paper uses 0.025.
        weight_decay: pull of the logits to 0, non-negative. The default is that of the paper's
            Algorithm 2; the official code uses 1e-5.
        amortized: whether each call measures the change since the call before, by itself.
        process_group: the data-parallel ranks that balance their losses together, such as
            ``torch.distributed.group.WORLD``: the training step is then that of one process on the
            whole batch. Every rank must then make the call, all with a mask or all without.
            Validation, in ``eval()`` or without gradients, stays with the rank's own losses. None:
            each rank by itself.

    Raises:
        TypeError: ``shape`` is not an int or a sequence of ints or of names, or ``min_losses``
            neither a number nor a tensor.
        ValueError: ``shape`` has a negative entry or a name twice, ``min_losses`` is not of that
            shape, or ``lr`` or ``weight_decay`` is negative.

    References:
        Liu, Feng, Stone and Liu. FAMO: Fast Adaptive Multitask Optimization. NeurIPS 2023.
        https://arxiv.org/abs/2306.03792

    Example:
        >>> model = torch.nn.Linear(3, 2)
        >>> scalarizer = FAMO(2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> features = torch.randn(8, 3)
        >>> losses = model(features).square().mean(dim=0)  # one loss per output
        >>> scalarizer(losses).backward()
        >>> optimizer.step()
        >>> with torch.no_grad():
        ...     scalarizer.update(model(features).square().mean(dim=0))
        >>> scalarizer.weights.sum().round(decimals=4)
        tensor(1.)
    """

    _learns_from_losses = True

    logits: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor
    min_losses: Tensor
    previous_losses: Tensor

    def __init__(
        self,
        shape: Shape,
        min_losses: float | Tensor | None = None,
        lr: float = 0.025,
        weight_decay: float = 1e-3,
        *,
        amortized: bool = False,
        process_group: "dist.ProcessGroup | None" = None,
    ) -> None:
        check_scalar("lr", lr)
        check_scalar("weight_decay", weight_decay)
        state = famo_init(as_named_shape(shape), dtype=default_dtype())
        bounds = 0.0 if min_losses is None else min_losses
        check_scalar_or_shape("min_losses", bounds, state.logits.shape, "logits")
        if not isinstance(bounds, Tensor):
            bounds = torch.full_like(state.logits, bounds)
        bounds = bounds.detach().to(at_least_float32(bounds.dtype)).expand_as(state.logits)
        super().__init__(process_group, shape)
        self.lr = lr
        self.weight_decay = weight_decay
        self.amortized = amortized
        for name, value in state._asdict().items():
            self.register_buffer(name, value)
        self.register_buffer("min_losses", bounds.clone())
        # Not a number where there is none to compare with; `famo_update` passes over such a task.
        self.register_buffer("previous_losses", torch.full_like(state.logits, torch.nan))
        self._has_previous = False
        self._own_mask: Tensor | None = None

    def forward(self, losses: Losses, mask: Tensor | None = None) -> Tensor:
        if not isinstance(losses, Tensor):
            losses, mask = self._by_position(losses, mask)
        learning = self._is_learning()
        if learning:
            if self.process_group is not None:
                self._own_mask = mask
            losses, mask = self._of_all_ranks(losses, mask)
            if self.amortized:
                self._learn(losses, mask)
        logits, min_losses = self._fetch(("logits", "min_losses"))
        loss, weights = famo_loss_and_weights(losses, logits, min_losses, mask)
        self._report(weights)
        if learning:
            self._remember(losses.detach(), mask)
        return loss

    def update(self, losses: Losses, mask: Tensor | None = None) -> None:
        """Learn from how the losses changed since the last call; once after each model update.

        Args:
            losses: the losses computed again on the same batch, of shape S, or by name.
            mask: boolean, of shape S, True where the task is present. None: as in the last call; a
                task that was absent from it is passed over in any case.

        Raises:
            TypeError: ``losses`` is not a floating-point tensor, or a mapping without names.
            ValueError: a shape differs from the module's, ``mask`` is not boolean, a name is
                unknown, the scalarizer has not been called before, or it is amortized.
        """
        if self.amortized:
            raise ValueError(
                "`update` is for `amortized=False`. Found `amortized=True`: each call updates."
            )
        if not self._has_previous:
            raise ValueError("`update` should follow a call on the losses. Found no call so far.")
        if not isinstance(losses, Tensor):
            losses, mask = self._by_position(losses, mask)
        if mask is None and self.process_group is not None:
            mask = self._own_mask
        self._learn(*self._of_all_ranks(losses, mask))

    def reset(self) -> None:
        self._store(self.state, famo_init(self.logits.shape))
        self.previous_losses.fill_(torch.nan)
        self._has_previous = False
        self._weights = None

    @property
    def state(self) -> FAMOState:
        """The state as the functional core takes it."""
        return FAMOState(*self._fetch(FAMOState._fields))

    def _learn(self, losses: Tensor, mask: Tensor | None) -> None:
        previous, min_losses, *fields = self._fetch(
            ("previous_losses", "min_losses", *FAMOState._fields)
        )
        check_tensors(None, previous_losses=previous, losses=losses)
        # In the dtype that the losses before were stored in: the difference would otherwise be
        # that of the rounding, and Adam makes a full step of whatever it is given.
        delta = famo_delta(previous, losses.detach().to(previous.dtype), min_losses)
        state = FAMOState(*fields)
        self._store(
            state, famo_update(state, delta, lr=self.lr, weight_decay=self.weight_decay, mask=mask)
        )

    def _remember(self, losses: Tensor, mask: Tensor | None) -> None:
        (previous,) = self._fetch(("previous_losses",))
        if self.amortized:  # a task that is not measured now is compared with when it last was
            losses = torch.where(measured(losses, mask)[0], losses, previous)
        else:  # the second forward pass may find a number where there is no task
            losses = fill_absent(mask, losses, torch.nan)
        previous.copy_(losses)
        # Written and not read: a compiler would make a second graph of what follows from the flag.
        self.__dict__["_has_previous"] = True

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        error_msgs = args[-1]
        complaints = len(error_msgs)
        super()._load_from_state_dict(*args, **kwargs)
        if len(error_msgs) == complaints:
            self._has_previous = True  # or nan, in a checkpoint from before the first call
            self._own_mask = None

    def __repr__(self) -> str:
        amortized = ", amortized=True" if self.amortized else ""
        return (
            f"FAMO(shape={self.names or tuple(self.logits.shape)}, lr={self.lr}, "
            f"weight_decay={self.weight_decay}{amortized})"
        )
