"""Lightning's ``LightningModule``, with a scalarizer."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..check import check_optimizer
from ..functional._presence import fill_absent
from ..history import History
from ..modules import Scalarizer, Stateful
from ..modules.names import Losses
from ._batch import Given, copied, is_empty, last_call, losses_and_mask, with_counts
from ._start import start

if TYPE_CHECKING:
    from lightning import LightningModule as _Base
else:
    _Base = object  # so that it serves `pytorch_lightning` as well, and needs neither


class MultiTaskModule(_Base):
    """What a ``LightningModule`` with a scalarizer needs, for automatic optimisation.

    Name it before ``LightningModule``, set the attribute ``scalarizer``, and define :meth:`losses`
    and ``configure_optimizers``. This class does the rest, for every method:

    - in a distributed training, the scalarizer is synchronized, unless you did so yourself;
    - the scalarizer learns, and DWA closes its epoch, before a checkpoint is written, so that a
      resumed run is bit-identical. Checkpoints hold its state as a part of the module;
    - FAMO looks again after the first step and after every ``update_every``-th from there, in the
      precision of the call. What is logged meanwhile is left out;
    - if its tasks have names, the losses and the task weights are logged, as ``loss/<name>`` and
      ``weight/<name>``, in a distributed training those of all ranks;
    - an optimizer without the parameters of UW or IMTL-L, or one that decays them, is an error.

    With ``accumulate_grad_batches`` above 1, a step of Sum, Mean, Constant, UW, IMTL-L and DWA has
    the mean of the gradients of its parts, and DWA counts each part as a batch. Every other method
    needs the losses of the whole batch first, which Lightning does not provide, and is refused.

    Attributes:
        scalarizer: combines the losses.
        history: records each training step, if it is not None.
        log_tasks: False if the losses and the task weights should not be logged.
        looking_again: True while FAMO looks again, so that a metric is not updated twice.
        update_every: the number of optimizer steps from one call of FAMO's ``update`` to the next,
            a positive int. Every tenth step is often as good as every step, at a tenth of the
            second forward passes. If one task is solved early, take 1.

    Example::

        class Model(MultiTaskModule, LightningModule):
            def __init__(self):
                super().__init__()
                self.network = torch.nn.Linear(8, 3)
                self.scalarizer = FAMO(3)

            def losses(self, batch):
                return self.network(batch).square().mean(dim=0)

            def configure_optimizers(self):
                return torch.optim.Adam(self.parameters())
    """

    scalarizer: Scalarizer
    history: History | None = None
    log_tasks: bool = True
    looking_again: bool = False
    update_every: int = 10
    _backward_passes = 0  # since the last step

    def __init_subclass__(cls, **options: Any) -> None:
        """Check that the hooks of ``LightningModule`` do not hide those of this class."""
        super().__init_subclass__(**options)
        before = [base.__name__ for base in cls.__mro__[: cls.__mro__.index(MultiTaskModule)]]
        if "LightningModule" in before:
            raise TypeError(
                f"`MultiTaskModule` should come before `LightningModule` in `{cls.__name__}`."
            )

    def losses(self, batch: Any) -> Given:
        """Compute the losses of a batch, as the scalarizer takes them; to be defined.

        FAMO calls it a second time after some of the steps.

        Args:
            batch: what ``training_step`` is given.

        Returns:
            The losses; or ``(losses, mask)``, as for a batch without any labelled task; or
            ``(losses, mask, counts)``, with the number of labels that each is the mean over, by
            which :meth:`log_losses` weighs.
        """
        raise NotImplementedError(f"`{type(self).__name__}` should define `losses(batch)`.")

    def on_fit_start(self) -> None:
        """Check the optimizer, and synchronize the scalarizer if there are several ranks.

        Raises:
            ValueError: the optimizer lacks a parameter of the scalarizer or decays it,
                ``update_every`` is not a positive int, the scalarizers of the ranks differ, or
                gradients are accumulated, the optimizer is L-BFGS or FSDP2 shards the module, with
                a method that cannot work so.
        """
        super().on_fit_start()
        check_optimizer(self, *self.trainer.optimizers)
        start(self.scalarizer, self.update_every)
        method = type(self.scalarizer).__name__
        self._refuse_parts()
        lbfgs = any(isinstance(each, torch.optim.LBFGS) for each in self.trainer.optimizers)
        if lbfgs and isinstance(self.scalarizer, Stateful):
            raise ValueError(
                f"The optimizer should not be L-BFGS with {method}, which would learn at every "
                "evaluation of its closure: take Adam, or a method without state."
            )
        sharded = any(type(each).__name__ == "DTensor" for each in self.parameters())
        if sharded and list(self.scalarizer.parameters()):
            raise ValueError(
                f"{method} learns parameters of its own, which one optimizer cannot step beside "
                "those that FSDP2 shards: take LogSum or FAMO."
            )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Combine the losses."""
        self._batch = batch
        losses, mask = losses_and_mask(self.losses(copied(batch)))
        self._present = None if isinstance(losses, Tensor) else tuple(losses)
        return self.scalarizer(losses, mask)

    def on_after_backward(self) -> None:
        """Log and record the call just made, before the step changes the state.

        Not in ``training_step``, which ``torch.compile`` may compile.
        """
        super().on_after_backward()
        self._backward_passes += 1
        if not hasattr(self, "_present"):  # a training step of the user's own
            return
        losses, mask = last_call(self.scalarizer)
        if self.history is not None:
            self.history.record(losses, mask)
        if self.log_tasks and self.scalarizer.names is not None:
            losses = fill_absent(losses, torch.nan, mask=mask)
            weights = self.scalarizer.weights
            for position, name in enumerate(self.scalarizer.names):
                if name in (self._present or (name,)):
                    self.log(f"loss/{name}", losses[position])
                    self.log(f"weight/{name}", weights[position])

    def log_losses(self, batch: Any, prefix: str = "val") -> None:
        """Log the losses of a batch; to be called in ``validation_step`` or ``test_step``.

        The sum of the present losses is logged as ``<prefix>_loss``, and each loss as
        ``<prefix>_loss/<name>``, the mean over the batches that have the task, or over its labels
        if :meth:`losses` says how many. A batch without any task is passed over.

        Args:
            batch: what the step is given.
            prefix: the first part of the names.
        """
        given = self.losses(copied(batch))
        if is_empty(given):
            return
        losses, number, _ = with_counts(given, self.scalarizer.names)
        counts = number.flatten().tolist()
        if any(counts):
            self.log(f"{prefix}_loss", losses.sum(), sync_dist=True)
        counted = isinstance(given, tuple) and len(given) > 2
        for position, count in enumerate(counts):
            if count:
                name = self.scalarizer.names[position] if self.scalarizer.names else position
                size = {"batch_size": round(count)} if counted else {}
                self.log(
                    f"{prefix}_loss/{name}", losses.flatten()[position], sync_dist=True, **size
                )

    def log(self, *args: Any, **options: Any) -> None:
        """Lightning's, but for what is logged while FAMO looks again."""
        if not self.looking_again:
            super().log(*args, **options)

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        """Take the step, and let the scalarizer learn from it.

        Not in ``on_train_batch_end`` and ``on_train_epoch_end``: a checkpoint that counts steps is
        written before them.
        """
        if self._backward_passes:  # a callback has begun to accumulate
            self._refuse_parts()
        super().optimizer_step(*args, **options)
        self._backward_passes = 0
        # The step just taken is not counted yet: its index is the number of those before it.
        if self.trainer.global_step % self.update_every == 0:
            with self.trainer.precision_plugin.forward_context():
                self.scalarizer.update(self._losses_again)
        if self.trainer.is_last_batch:
            self.scalarizer.step()

    def _refuse_parts(self) -> None:
        number = self.trainer.accumulate_grad_batches
        if number > 1 and self.scalarizer.weights_depend_on == "losses":
            raise ValueError(
                f"`accumulate_grad_batches` should be 1 with {type(self.scalarizer).__name__}, "
                f"whose weights follow from the losses of the whole batch. Found {number}."
            )

    def _losses_again(self) -> Losses:
        if not hasattr(self, "_batch"):
            raise ValueError(
                "`training_step` should call `super().training_step(batch, batch_idx)`: FAMO looks "
                "at the losses of this batch a second time."
            )
        self.looking_again = True
        try:
            return losses_and_mask(self.losses(copied(self._batch)))[0]
        finally:
            self.looking_again = False
