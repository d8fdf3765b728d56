"""Lightning's ``LightningModule``, with a scalarizer."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..check import check_optimizer
from ..modules import Scalarizer
from ..modules.scalarizer import Losses

if TYPE_CHECKING:
    from lightning import LightningModule as _Base
else:
    _Base = object  # so that it serves `pytorch_lightning` as well, and needs neither


class MultiTaskModule(_Base):
    """What a ``LightningModule`` with a scalarizer needs, for automatic optimisation.

    Name it before ``LightningModule``, set the attribute ``scalarizer``, and define :meth:`losses`
    and ``configure_optimizers``. This class does the rest, for every method:

    - in a distributed training, the scalarizer has the process group;
    - it learns once a step, and DWA closes its epoch, before a checkpoint is written, so that a
      resumed run is bit-identical. Checkpoints hold its state as a part of the module;
    - the losses for FAMO's second look are computed in the precision of the first;
    - if its tasks have names, the losses and the task weights are logged, as ``loss/<name>`` and
      ``weight/<name>``;
    - an optimizer without the parameters of UW or IMTL-L, or one that decays them, is an error.

    With ``accumulate_grad_batches`` above 1, a step of Sum, Mean, Constant, UW, IMTL-L and DWA has
    the mean of the gradients of its parts, and DWA counts each part as a batch. Every other method
    needs the losses of the whole batch first, which Lightning does not give: it is refused.

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

    def __init_subclass__(cls, **options: Any) -> None:
        """Check that the hooks of ``LightningModule`` do not hide those of this class."""
        super().__init_subclass__(**options)
        before = [base.__name__ for base in cls.__mro__[: cls.__mro__.index(MultiTaskModule)]]
        if "LightningModule" in before:
            raise TypeError(
                f"`MultiTaskModule` should come before `LightningModule` in `{cls.__name__}`."
            )

    def losses(self, batch: Any) -> Losses:
        """Compute the losses of a batch, as the scalarizer takes them; to be defined.

        FAMO calls it a second time after the step.

        Args:
            batch: what ``training_step`` is given.
        """
        raise NotImplementedError(f"`{type(self).__name__}` should define `losses(batch)`.")

    def on_fit_start(self) -> None:
        """Check the optimizer, and give the scalarizer the process group."""
        super().on_fit_start()
        check_optimizer(self, *self.trainer.optimizers)
        # In a single process this is None.
        self.scalarizer.process_group = torch.distributed.group.WORLD

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Combine the losses.

        Raises:
            ValueError: gradients are accumulated with a method that cannot take parts.
        """
        if self.trainer.accumulate_grad_batches > 1 and not self.scalarizer.linear:
            raise ValueError(
                f"`accumulate_grad_batches` should be 1 with {type(self.scalarizer).__name__}, "
                "whose weights follow from the losses of the whole batch. Found "
                f"{self.trainer.accumulate_grad_batches}."
            )
        self._batch = batch
        losses = self.losses(batch)
        scalar = self.scalarizer(losses)
        if self.scalarizer.names is not None:
            if isinstance(losses, Tensor):
                losses = dict(zip(self.scalarizer.names, losses, strict=True))
            weights = self.scalarizer.task_weights()
            for kind, values in (("loss", losses), ("weight", weights)):
                self.log_dict({f"{kind}/{name}": value for name, value in values.items()})
        return scalar

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        """Take the step, and let the scalarizer learn from it.

        Not in ``on_train_batch_end`` and ``on_train_epoch_end``: a checkpoint that counts steps is
        written before them.
        """
        super().optimizer_step(*args, **options)
        with self.trainer.precision_plugin.forward_context():
            self.scalarizer.update(self._losses_again)
        if self.trainer.is_last_batch:
            self.scalarizer.step()

    def _losses_again(self) -> Losses:
        if not hasattr(self, "_batch"):
            raise ValueError(
                "`training_step` should call `super().training_step(batch, batch_idx)`: FAMO looks "
                "at the losses of this batch a second time."
            )
        return self.losses(self._batch)
