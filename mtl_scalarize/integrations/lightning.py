"""Lightning's ``LightningModule``, with a scalarizer."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..check import check_optimizer
from ..modules import Scalarizer
from ..modules.names import Losses
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
      precision of the call;
    - if its tasks have names, the losses and the task weights are logged, as ``loss/<name>`` and
      ``weight/<name>``;
    - an optimizer without the parameters of UW or IMTL-L, or one that decays them, is an error.

    With ``accumulate_grad_batches`` above 1, a step of Sum, Mean, Constant, UW, IMTL-L and DWA has
    the mean of the gradients of its parts, and DWA counts each part as a batch. Every other method
    needs the losses of the whole batch first, which Lightning does not give: it is refused.

    Attributes:
        scalarizer: combines the losses.
        update_every: the number of optimizer steps from one call of FAMO's ``update`` to the next,
            a positive int. Every tenth step is often as good as every step, at a tenth of the
            second forward passes. Where one task is solved early, it is not: take 1.

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
    update_every: int = 10

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

        FAMO calls it a second time after some of the steps.

        Args:
            batch: what ``training_step`` is given.
        """
        raise NotImplementedError(f"`{type(self).__name__}` should define `losses(batch)`.")

    def on_fit_start(self) -> None:
        """Check the optimizer, and synchronize the scalarizer if there are several ranks.

        Raises:
            ValueError: the optimizer lacks a parameter of the scalarizer or decays it,
                ``update_every`` is not a positive int, or the scalarizers of the ranks differ.
        """
        super().on_fit_start()
        check_optimizer(self, *self.trainer.optimizers)
        start(self.scalarizer, self.update_every)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Combine the losses.

        Raises:
            ValueError: gradients are accumulated with a method that cannot take parts.
        """
        in_parts = self.trainer.accumulate_grad_batches > 1
        if in_parts and self.scalarizer.weights_depend_on == "losses":
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
        # The step just taken is not counted yet: its index is the number of those before it.
        if self.trainer.global_step % self.update_every == 0:
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
