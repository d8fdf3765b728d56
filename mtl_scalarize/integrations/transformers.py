"""Hugging Face's ``Trainer``, with a scalarizer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_pt_utils import find_batch_size
from transformers.trainer_utils import get_last_checkpoint

from ..check import check_optimizer
from ..functional._checks import a_kind_of
from ..history import History
from ..modules import Scalarizer
from ._batch import Given, Means, is_empty, last_call, losses_and_mask, with_counts
from ._start import start

#: The scalarizer's state in a checkpoint, beside ``model.safetensors`` and ``optimizer.pt``.
SCALARIZER_FILE = "scalarizer.pt"


class MultiTaskTrainer(Trainer):
    """A ``Trainer`` whose model returns several losses, which a scalarizer combines.

    The model returns a mapping with the entry ``"losses"``: a tensor with one loss per task, or a
    mapping of name to 0-d loss. For another model, override :meth:`compute_losses`. This class does
    the rest, for every method:

    - the scalarizer is on the device, and in a distributed training it is synchronized, unless you
      did so yourself;
    - its parameters are in the optimizer, with a learning rate of their own and no weight decay.
      ``max_grad_norm`` clips the gradients of the model alone;
    - the scalarizer learns from a step before a checkpoint of this step is written. Its state is in
      every checkpoint, as ``scalarizer.pt``, and a resumed run is bit-identical;
    - FAMO looks again after the first step and after every ``update_every``-th from there;
    - if its tasks have names, the logs have the losses and the task weights, as ``loss_<name>`` and
      ``weight_<name>``, each the mean over the steps since the last log that have the task;
    - ``eval_loss`` is the sum, which keeps its meaning while the task weights change, and
      ``eval_loss_<name>`` the loss of each task, over the batches that have it.

    With ``gradient_accumulation_steps`` above 1, a step of Sum, Mean, Constant, UW, IMTL-L and DWA
    has the mean of the gradients of its parts, and DWA counts each part as a batch. That is the
    step of the whole batch only if all parts have equally many labels of every task. Every other
    method needs the losses of the whole batch, and so do these if the first part of a step lacks a
    task or :meth:`compute_losses` says how many labels it has. Then a forward pass of all parts
    without gradients comes first, and the step is that of the whole batch. (Dropout draws anew in
    the second pass.)

    Args:
        *args: as for ``Trainer``.
        scalarizer: combines the losses. It stays outside of the model.
        scalarizer_lr: the learning rate of the parameters of UW and IMTL-L. The schedule of the
            model's learning rate applies to it.
        update_every: the number of optimizer steps from one call of FAMO's ``update`` to the next,
            a positive int. Every tenth step is often as good as every step, at a tenth of the
            second forward passes. If one task is solved early, take 1.
        history: records each training step, if given.
        **options: as for ``Trainer``. An optimizer given as ``optimizers`` must have the parameters
            of the scalarizer, without weight decay.

    Raises:
        TypeError: ``scalarizer`` is not a :class:`~mtl_scalarize.Scalarizer`.
        ValueError: ``compute_loss_func`` or ``label_smoothing_factor`` is given, which would have
            no effect; or there are several GPUs in one process; or ``update_every`` is not a
            positive int; or the scalarizers of the ranks differ; or the scalarizer has parameters
            to learn and the training is one of DeepSpeed or FSDP2.

    Example::

        trainer = MultiTaskTrainer(model, args, train_dataset=data, scalarizer=FAMO(["a", "b"]))
        trainer.train()
    """

    _scalar: Tensor  # of the whole batch, if the step is in parts
    _weights: Tensor  # its derivative in the losses of a part, times the number of parts

    def __init_subclass__(cls, **options: Any) -> None:
        """Check that no other base class has a ``compute_loss``, which this one would hide."""
        super().__init_subclass__(**options)
        behind = cls.__mro__[cls.__mro__.index(MultiTaskTrainer) + 1 : cls.__mro__.index(Trainer)]
        for base in behind:
            if "compute_loss" in vars(base):
                raise TypeError(
                    f"`{cls.__name__}` hides `compute_loss` of `{base.__name__}`: override "
                    "`compute_losses` in its place."
                )

    def __init__(
        self,
        *args: Any,
        scalarizer: Scalarizer,
        scalarizer_lr: float = 1e-2,
        update_every: int = 10,
        history: History | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(scalarizer, Scalarizer):
            raise TypeError(
                f"`scalarizer` should be a scalarizer, such as `FAMO(3)`. Found {scalarizer!r}."
            )
        super().__init__(*args, **options)
        if self.compute_loss_func is not None or self.label_smoother is not None:
            raise ValueError(
                "`compute_loss_func` and `label_smoothing_factor` have no effect on the losses, "
                "which are those of `compute_losses`: leave them out."
            )
        learned = any(True for _ in scalarizer.parameters())
        if learned and (self.is_deepspeed_enabled or getattr(self.accelerator, "is_fsdp2", False)):
            raise ValueError(
                f"{type(scalarizer).__name__} learns parameters of its own, which DeepSpeed and "
                "FSDP2 do not step beside the model: take LogSum or FAMO."
            )
        if self.args.n_gpu > 1:
            raise ValueError(
                f"Each process should have one GPU. Found {self.args.n_gpu}: start the program by "
                "`torchrun --nproc-per-node gpu`, or hide the others by CUDA_VISIBLE_DEVICES."
            )
        self.scalarizer = scalarizer.to(self.args.device)
        start(self.scalarizer, update_every)
        self.scalarizer_lr = scalarizer_lr
        self.update_every = update_every
        self.history = history
        self.looking_again = False
        self._logged, self._evaluation = Means(), Means()
        self._parts: list[dict[str, Any]] = []
        # Or the Trainer would not divide the scalar by the number of parts.
        self.model_accepts_loss_kwargs = False
        self.add_callback(_AfterStep(self))

    def compute_losses(
        self, model: nn.Module, inputs: dict[str, Any]
    ) -> tuple[Given, Mapping[str, Any]]:
        """Compute the losses of a batch; to override for a model without the output ``"losses"``.

        It is called a second time by FAMO after some of the steps, and with gradient accumulation
        by some methods before each: it should give the same losses for the same batch. Then
        ``self.looking_again`` is True, so that a metric is not updated twice.

        Args:
            model: the model, as it is wrapped for the training.
            inputs: the batch, on the device.

        Returns:
            The losses, as the scalarizer takes them, and the other outputs of the model. In place
            of the losses, ``(losses, mask)``, or ``(losses, mask, counts)`` with the number of
            labels that each loss is the mean over, as a tensor or by name. The mask may be None.

        Raises:
            ValueError: the model returned no mapping, or one without ``"losses"``.
        """
        outputs = model(**inputs)
        by_name = isinstance(outputs, Mapping)
        if not by_name or "losses" not in outputs:
            found = ", ".join(map(repr, outputs)) if by_name else a_kind_of(outputs)
            raise ValueError(
                "The model should return a mapping with 'losses', a mapping or a tensor; or "
                f"override `compute_losses`. Found {found}."
            )
        others = dict(outputs)
        return others.pop("losses"), others

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> Any:
        """The scalar of the losses in training, and their sum in evaluation."""
        given, outputs = self.compute_losses(model, inputs)
        if not torch.is_grad_enabled():
            loss = self._evaluated(given, inputs)
        elif len(self._parts) > 1 and self._needs_the_whole_batch(given):
            loss = self._share_of_part(given)
        else:
            loss = self.scalarizer(*losses_and_mask(given))
            self._note()
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """The Trainer's, with the mean of each task's loss over the batches that have the task."""
        options = prediction_loss_only, ignore_keys, metric_key_prefix
        self._evaluation = Means()
        output = super().evaluation_loop(dataloader, description, *options)
        if self._evaluation.totals is not None:
            self._evaluation.totals = self.accelerator.reduce(self._evaluation.totals, "sum")
            (means,) = self._evaluation.read()
            output.metrics[f"{metric_key_prefix}_loss"] = means.nansum().item()
            for name, mean in zip(self.scalarizer.names or (), means.tolist(), strict=False):
                output.metrics[f"{metric_key_prefix}_loss_{name}"] = mean
        return output

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **options: Any,
    ) -> Any:
        """The Trainer's. Of a batch without labels, too, the losses are no prediction."""
        if ignore_keys is None:
            config = getattr(self.model, "config", None)
            ignore_keys = getattr(config, "keys_to_ignore_at_inference", ["past_key_values"])
        ignore_keys = [*ignore_keys, "losses"]
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys, **options)

    def get_batch_samples(self, *args: Any) -> Any:
        """The parts of the next step."""
        self._parts, number = super().get_batch_samples(*args)
        self._whole: bool | None = None  # whether the step begins with a look at all of them
        return self._parts, number

    def create_optimizer(self, *args: Any, **options: Any) -> torch.optim.Optimizer:
        """The Trainer's optimizer, with a group for the parameters of the scalarizer."""
        given = self.optimizer is not None
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **options)
        learned = list(self.scalarizer.parameters())
        if learned and not given:
            group = {"params": learned, "lr": self.scalarizer_lr, "weight_decay": 0.0}
            optimizer.add_param_group(group)
        check_optimizer(self.scalarizer, optimizer)
        return optimizer

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **options: Any
    ) -> Any:
        """Train, from the state of the scalarizer in the checkpoint if there is one."""
        if self.model_init is not None:
            self.scalarizer.reset()
        folder = resume_from_checkpoint
        if folder is True:
            folder = get_last_checkpoint(self.args.output_dir)
        if folder:
            file = Path(folder) / SCALARIZER_FILE
            if file.is_file():
                state = torch.load(file, map_location="cpu", weights_only=True)
                self.scalarizer.load_state_dict(state)
            elif self.scalarizer.state_dict():
                raise ValueError(
                    f"{folder} should be a checkpoint of a `MultiTaskTrainer`. Found no "
                    f"{SCALARIZER_FILE} in it: to go on from a plain Trainer, load the model's "
                    "weights from it, and train without `resume_from_checkpoint`."
                )
        return super().train(resume_from_checkpoint, *args, **options)

    def save_model(self, output_dir: str | None = None, *args: Any, **options: Any) -> None:
        """Save the model and the state of the scalarizer."""
        if self.args.should_save:  # first, because the Trainer's may push the folder to the hub
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(self.scalarizer.state_dict(), folder / SCALARIZER_FILE)
        super().save_model(output_dir, *args, **options)

    def log(self, logs: dict[str, float], *args: Any) -> None:
        """Log also the losses and the task weights, if the tasks have names."""
        if "loss" in logs and self.scalarizer.names is not None and self._logged.totals is not None:
            for kind, values in zip(("loss", "weight"), self._logged.read(), strict=True):
                for name, value in zip(self.scalarizer.names, values.tolist(), strict=True):
                    logs[f"{kind}_{name}"] = value
        super().log(logs, *args)

    def _note(self) -> None:
        """Keep what :meth:`log` and a history show of the call just made, of all ranks."""
        losses, mask = last_call(self.scalarizer)
        present = torch.ones_like(losses) if mask is None else mask.to(losses.dtype)
        self._logged.add(torch.stack([losses, self.scalarizer.weights]), present)
        if self.history is not None:
            self.history.record(losses, mask)

    def _evaluated(self, given: Given, inputs: Any) -> Tensor:
        """The sum of the losses, which are also kept for the means over the evaluation."""
        if is_empty(given):
            return torch.zeros((), device=self.args.device)
        losses, number, _ = with_counts(given, self.scalarizer.names)
        if not (isinstance(given, tuple) and len(given) > 2):
            number = number * find_batch_size(inputs)
        self._evaluation.add(losses[None], number)
        return losses.sum()

    def _needs_the_whole_batch(self, given: Given) -> bool:
        """Decide at the first of the parts of a step, and look at all of them if it does."""
        if self._whole is None:
            *_, said = with_counts(given, self.scalarizer.names)
            self._whole = said or self.scalarizer.weights_depend_on == "losses"
            if self._whole:
                self._begin_parts()
        return self._whole

    @torch.no_grad()
    def _whole_batch(self) -> tuple[Tensor, Tensor]:
        """The losses of the whole batch, and how many labels it has of each task."""
        found = []
        self.looking_again = True
        try:
            for part in self._parts:
                given, _ = self.compute_losses(self.model_wrapped, self._prepare_inputs(part))
                found.append(with_counts(given, self.scalarizer.names)[:2])
        finally:
            self.looking_again = False
        number = torch.stack([number for _, number in found]).sum(dim=0)
        total = torch.stack([losses * number for losses, number in found]).sum(dim=0)
        return total / number.where(number > 0, 1.0), number

    def _begin_parts(self) -> None:
        """Compute the scalar of the whole batch, before the first of its parts."""
        losses, number = self._whole_batch()
        losses = losses.requires_grad_()
        self._scalar = self.scalarizer(losses, number > 0)
        self._note()
        (weights,) = torch.autograd.grad(self._scalar, losses, retain_graph=True)
        self._weights = len(self._parts) * weights / number.where(number > 0, 1.0)

    def _share_of_part(self, given: Given) -> Tensor:
        """The scalar as value; over the parts, the mean of the gradients is the scalar's."""
        losses, number, _ = with_counts(given, self.scalarizer.names)
        share = (self._weights * number * losses).sum()
        # The gradient of what the scalarizer's own parameters learn comes with the first part.
        share = share + len(self._parts) * self._scalar
        self._scalar = self._scalar.detach()
        return share - share.detach() + self._scalar


class _AfterStep(TrainerCallback):
    """Learns from each step and closes each epoch, before a checkpoint is written."""

    def __init__(self, trainer: MultiTaskTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        scalarizer = self.trainer.scalarizer
        scalarizer.zero_grad()  # the Trainer does so for the model alone
        if (state.global_step - 1) % self.trainer.update_every == 0:
            scalarizer.update(lambda: self.trainer._whole_batch()[0])
        if float(state.epoch).is_integer():
            scalarizer.step()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # A dataset without a length, or an epoch that a callback has ended.
        if not (float(state.epoch).is_integer() or control.should_training_stop):
            self.trainer.scalarizer.step()
