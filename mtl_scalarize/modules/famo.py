"""The module of FAMO."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..functional.checks import as_shape, check_hyperparameter, check_tensors
from ..functional.famo import (
    FAMOState,
    famo_combine,
    famo_delta,
    famo_init,
    famo_update,
    famo_weights,
)
from ..functional.presence import measured
from .names import Shape
from .scalarizer import Losses, Scalarizer, default_dtype, shown


class FAMO(Scalarizer):
    r"""Fast Adaptive Multitask Optimization: lets all losses fall at about the same rate.

    .. math::
        c \sum_i z_i \log(\ell_i - b_i + \epsilon), \qquad z = \mathrm{softmax}(w), \qquad
        c = \Big( \sum_j \frac{z_j}{\ell_j - b_j + \epsilon} \Big)^{-1}

    - :math:`\ell_i` is the loss of task :math:`i`, above its lower bound :math:`b_i`. A loss below
      its bound makes the scalar and all gradients nan: give ``min_losses`` if a loss can be
      negative. A loss *at* its bound takes all the weight, and no other task trains: if a loss can
      reach its floor, as a hinge loss reaches 0, give a bound below the floor, by the size under
      which the loss no longer matters, such as -0.1 for a loss of about 1;
    - :math:`w_i` is its logit, learned here and not by your optimizer;
    - :math:`c` makes the step a convex combination of the task gradients, and is held constant in
      the backward pass; :math:`\epsilon = 10^{-8}`.

    After your optimizer's step, call :meth:`update` with the losses of the same batch, computed
    again. With ``amortized=True`` there is no second forward pass and nothing to update: each call
    first learns from how the losses changed since the call before. If the batches differ, that
    change also contains the difference between the batches.

    FAMO compares the tasks of one batch. If each batch has one task, in turn, it learns nothing.

    The functions are :func:`~mtl_scalarize.famo_combine`, which names the paper, and those beside
    it.

    Args:
        shape: the shape S of the losses, or the names of the tasks: see :class:`Scalarizer`.
        min_losses: the lower bounds :math:`b`, of shape S, or one number for all. None: 0.
        lr: learning rate of the logits, non-negative. The paper uses 0.025.
        weight_decay: pull of the logits to 0, non-negative. The default is that of the paper's
            Algorithm 2; the official code uses 1e-5.
        amortized: True if each call measures the change since the call before.
        process_group: see :class:`Scalarizer`.

    Raises:
        TypeError: ``min_losses`` is neither a number nor a tensor.
        ValueError: ``min_losses`` is not of shape S, or ``lr`` or ``weight_decay`` is negative.

    Example:
        >>> model = torch.nn.Linear(3, 2)
        >>> scalarizer = FAMO(2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> features = torch.randn(8, 3)
        >>> losses_of = lambda: model(features).square().mean(dim=0)  # one loss per output
        >>> scalarizer(losses_of()).backward()
        >>> optimizer.step()
        >>> scalarizer.update(losses_of)
        >>> scalarizer.weights.sum().round(decimals=4)
        tensor(1.)
    """

    settings = ("lr", "weight_decay", "amortized", "min_losses")

    logits: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    updates: Tensor
    previous_losses: Tensor  # those to compare with next; nan where there are none
    min_losses: float | Tensor

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
        check_hyperparameter("lr", lr)
        check_hyperparameter("weight_decay", weight_decay)
        super().__init__(shape)
        self.lr = lr
        self.weight_decay = weight_decay
        self.amortized = amortized
        for name, value in famo_init(as_shape(self.shape), dtype=default_dtype())._asdict().items():
            self.register_buffer(name, value)
        self.register_buffer("previous_losses", torch.empty_like(self.logits))
        self.register_hyperparameter("min_losses", 0.0 if min_losses is None else min_losses)
        self._awaits_update = False
        self._called_on: weakref.ref[Tensor] | None = None
        self.reset()
        self.process_group = process_group

    def forward(self, losses: Losses, mask: Tensor | None = None) -> Tensor:
        given = losses
        losses, mask = self.prepare(losses, mask)
        if self.learning and self.amortized:
            self._learn(losses, mask)
        scalar = famo_combine(losses, self.logits, self.min_losses, mask=mask)
        losses, logits = losses.detach(), self.logits.detach()
        self.report(famo_weights, losses.clone(), logits.clone(), self.min_losses, mask=mask)
        if self.learning:
            # An amortized call compares a task with the last call that it was in.
            absent = self.previous_losses if self.amortized else torch.nan
            where, _ = measured(losses, mask=mask)
            self.store([self.previous_losses], [torch.where(where, losses, absent)])
            if self._awaits_update:
                self.warn_once(
                    "FAMO learned nothing from its last call in training: call "
                    "`scalarizer.update(...)` once after every step of the optimizer (unless the "
                    "step was skipped), or make it with `amortized=True`."
                )
            self._note(_awaits_update=not (self.amortized or torch.compiler.is_compiling()))
            if self._awaits_update and (first := _first(given)) is not None:
                self._note(_called_on=weakref.ref(first))
        return scalar

    def update(self, losses: Losses | Callable[[], Losses], mask: Tensor | None = None) -> None:
        """Learn from how the losses changed since the last call; once after each model update.

        It does nothing in ``eval()`` and with ``amortized=True``. A second update after the same
        call does nothing either.

        Args:
            losses: the losses computed again on the same batch, of shape S, or by name. Or a
                function that returns them, called without gradients.
            mask: boolean, of shape S, True where the task is present. None: as in the last call;
                in a process group, pass it again if a checkpoint was loaded since that call. A task
                that was absent from the last call is passed over in any case.

        Raises:
            TypeError: ``losses`` is not a floating-point tensor, or a mapping without names.
            ValueError: a shape differs from the module's, ``mask`` is not boolean, a name is
                unknown, or the scalarizer has not been called before.
        """
        if not self.training and self._awaits_update:
            self.warn_once(
                "`update` learned nothing, for FAMO is in `eval()`: call "
                "`scalarizer.train()` before."
            )
        if self.amortized or not self.training:
            return
        self._awaits_update = False
        if self._last_call is None:
            raise ValueError("`update` should follow a call on the losses. Found no call so far.")
        if callable(losses):
            with torch.no_grad():
                losses = losses()
        given = losses
        losses, mask = self.by_position(losses, self._rank_mask if mask is None else mask)
        if self._called_on is not None and self._called_on() is _first(given):
            self.warn_once(
                "`update` was given the losses of the call itself, which show no change: compute "
                "them again, `scalarizer.update(lambda: losses_of(batch))`."
            )
        if self._call_dtype is not None and losses.is_floating_point():
            losses = losses.to(self._call_dtype)  # or the rounding of the call would be a change
        self._learn(*self.over_ranks(losses, mask))
        self.previous_losses.fill_(torch.nan)

    def reset(self) -> None:
        super().reset()
        self.store(self.state, famo_init(self.logits.shape))
        self.previous_losses.fill_(torch.nan)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_called_on": None}

    @property
    def state(self) -> FAMOState:
        """The state as the functional core takes it."""
        fields = [self._buffers[name] for name in FAMOState._fields]
        return FAMOState(*fields)  # type: ignore[arg-type]  # no buffer is None

    def extra_repr(self) -> str:
        bounds = shown("min_losses", self.min_losses, 0.0)
        amortized = ", amortized=True" if self.amortized else ""
        return (
            f"shape={self.names or self.shape}{bounds}, lr={self.lr}, "
            f"weight_decay={self.weight_decay}{amortized}"
        )

    def _learn(self, losses: Tensor, mask: Tensor | None) -> None:
        previous = self.previous_losses
        check_tensors(mask, logits=self.logits, losses=losses)
        # In the dtype in which the losses before were stored: the difference would otherwise be
        # one of rounding, and Adam makes a full step of whatever it is given.
        delta = famo_delta(previous, losses.detach().to(previous.dtype), self.min_losses)
        state = self.state
        new = famo_update(state, delta, lr=self.lr, weight_decay=self.weight_decay, mask=mask)
        self.store(state, new)


def _first(losses: Losses) -> Tensor | None:
    """One tensor of the losses, to recognise them by."""
    if isinstance(losses, Tensor):
        return losses
    return next(iter(losses.values()), None)
