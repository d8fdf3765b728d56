"""What all methods share."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..distributed import all_reduce_losses, of_first_rank, share_state
from ..functional.checks import (
    check_has_values,
    check_scalar_or_shape,
    check_shape,
    check_tensors,
)
from ..functional.precision import at_least_float32
from .cautions import caution_of_constants, caution_of_ranks, caution_of_waste, warn_user
from .names import Names, Shape, listed, names_and_shape, stack_by_name

#: What a scalarizer takes: the losses as one tensor, or as 0-d tensors by name.
Losses = Tensor | Mapping[str, Tensor]


class Scalarizer(nn.Module, ABC):
    """Base class of all methods: a module that turns a tensor of losses into one scalar.

    It has what every method needs: tasks by name, masks, data-parallel ranks, :attr:`weights`,
    checkpoints, and precision. A subclass keeps its state in parameters and persistent buffers, and
    leaves the arithmetic to pure functions.

    Args:
        shape: the shape S of the losses; an int ``n`` means ``(n,)``. Or the names of the tasks, a
            sequence of n strings: S is ``(n,)``, and a call also takes the losses by name. None: no
            state depends on the shape, or the first losses set it.
        process_group: the data-parallel ranks that balance their losses together, such as
            ``torch.distributed.group.WORLD``. A training step is then that of one process on the
            whole batch. Every rank must make every training call; a call in ``eval()`` or without
            gradients stays with the rank's own losses. None: each rank by itself. Giving the group,
            here or later as the attribute, is a collective: every rank takes the state of the
            group's first rank.

    Raises:
        TypeError: ``shape`` is not an int or a sequence of ints or of names.
        ValueError: ``shape`` has a negative entry or a name twice, ``process_group`` is not a group
            of this rank, or the scalarizers of its ranks differ in class, names, shape or dtype.

    Attributes:
        shape: S, a tuple of ints, or None.
        names: the names of the tasks, or None.

    Example:
        >>> from mtl_scalarize.functional import check_tensors, fill_absent
        >>> def log_sum(losses, *, mask=None):
        ...     check_tensors(mask, losses=losses)
        ...     return fill_absent(losses, 1.0, mask=mask).log().sum()
        >>> def log_sum_weights(losses, *, mask=None):
        ...     return fill_absent(1 / losses, 0.0, mask=mask)
        >>> class LogSum(Scalarizer):
        ...     def forward(self, losses, mask=None):
        ...         losses, mask = self.prepare(losses, mask)
        ...         scalar = log_sum(losses, mask=mask)
        ...         self.report(log_sum_weights, losses.detach().clone(), mask=mask)
        ...         return scalar
        >>> scalarizer = LogSum(["depth", "normals"])
        >>> scalarizer({"depth": torch.tensor(1.0), "normals": torch.tensor(2.0)})
        tensor(0.6931)
        >>> scalarizer.task_weights()
        {'depth': tensor(1.), 'normals': tensor(0.5000)}
    """

    #: The names of the hyperparameters that all ranks of a process group must have alike.
    settings: tuple[str, ...] = ()
    #: Whether the task weights depend on neither losses nor state, so that ranks need no group.
    fixed_weights: bool = False
    #: Whether the task weights of a call do not depend on its losses, so that the gradients of a
    #: batch in equal parts are the mean of those of the parts.
    linear: bool = False

    __jit_unused_properties__: list[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Hide from TorchScript what it cannot compile, so that it can compile the model around."""
        super().__init_subclass__(**kwargs)
        torch.jit.unused(cls.forward)
        cls.__jit_unused_properties__ = [
            name for name in dir(cls) if isinstance(getattr(cls, name, None), property)
        ]

    def __init__(
        self, shape: Shape | None = None, *, process_group: "dist.ProcessGroup | None" = None
    ) -> None:
        super().__init__()
        self.names: Names | None = None
        self.shape: tuple[int, ...] | None = None
        if shape is not None:
            self.names, self.shape = names_and_shape(shape)
        self._group = _Group(None)
        # This rank's mask and dtype in the last call, for the method's second look at that batch.
        self._rank_mask: Tensor | None = None
        self._call_dtype: torch.dtype | None = None
        self._deferred = False
        self._warned: set[str] = set()
        # The attributes that `register_hyperparameter` made, as they are given back after meta.
        self._tensors: dict[str, Tensor] = {}
        # The function that gives the weights of the last call, its arguments and the mask. None
        # before a call. Empty if there are no weights to read: that call was inside a transform of
        # `torch.func`, or before a load or a copy.
        self._last_call: (
            tuple[Callable[..., Tensor], tuple[Any, ...], Tensor | None] | tuple[()] | None
        ) = None
        self.process_group = process_group

    @abstractmethod
    def forward(self, losses: Losses, mask: Tensor | None = None) -> Tensor:
        """Combine the losses.

        Args:
            losses: the losses, of shape S. If the tasks have names, also a mapping of name to 0-d
                loss; a task that is not in the mapping is absent.
            mask: boolean, of shape S, True where the task is present in this batch. An absent task
                contributes nothing to the scalar or to any gradient, and its state does not
                change. None: all are present.

        Returns:
            The scalar, of shape (), at least float32.

        Raises:
            TypeError: ``losses`` is not a floating-point tensor, or a mapping without names.
            ValueError: a shape differs from the module's, ``mask`` is not boolean, or a name is
                unknown.
        """

    if TYPE_CHECKING:  # nn.Module's own returns Any

        def __call__(self, losses: Losses, mask: Tensor | None = None) -> Tensor: ...

    def update(self, losses: Losses | Callable[[], Losses], mask: Tensor | None = None) -> None:
        """Learn from the losses after the optimizer's step. Only :class:`FAMO` does.

        Args:
            losses: the losses computed again on the same batch, as in a call. Or a function that
                returns them: it is called only if the method needs them, and without gradients.
            mask: boolean, of shape S, True where the task is present. None: as in the last call.
        """

    def step(self) -> None:
        """Close the epoch. Only :class:`DWA` needs it."""

    def reset(self) -> None:
        """Make a new scalarizer of this one, from whatever is in its memory.

        A subclass with state extends this: it fills its parameters and buffers.
        """
        self._last_call = self._rank_mask = self._call_dtype = None

    def reset_parameters(self) -> None:
        """:meth:`reset` under the name that FSDP and meta initialisation look for."""
        self.reset()

    @property
    def weights(self) -> Tensor:
        """The task weights that the last call used, of shape S, detached: d scalar / d losses.

        They are computed when read. There is no such attribute before the first call, of a copy or
        after a load until the next call, and after a call inside a transform of :mod:`torch.func`.

        Raises:
            AttributeError: there are no weights to read.
        """
        if self._last_call:
            function, arguments, mask = self._last_call
            with torch.no_grad():
                return function(*arguments, mask=mask).clone()
        raise AttributeError  # with the message of `__getattr__`, which Python tries next

    def __getattr__(self, name: str) -> Any:
        if name == "weights":
            raise AttributeError(
                f"`weights` are those of the last call. Found no call of this {type(self).__name__}"
                " since it was made, copied or loaded, or one inside a transform of `torch.func`: "
                "use the pure function there."
            )
        return super().__getattr__(name)

    def task_weights(self) -> dict[str, Tensor]:
        """The :attr:`weights` by name, each of shape ().

        Raises:
            AttributeError: the scalarizer has not been called yet.
            ValueError: the tasks have no names.
        """
        if self.names is None:
            raise ValueError("`task_weights` are by name. Found a scalarizer without names.")
        return dict(zip(self.names, self.weights.unbind(), strict=True))

    # What a subclass uses.

    @property
    def learning(self) -> bool:
        """True if a call may change the state: in training mode, with gradients enabled.

        False where activation checkpointing makes a call a second time, within a backward pass. Of
        a call that was first made without gradients (``use_reentrant=True``), the second learns.
        """
        return self._in_training and (self._deferred or not _in_backward())

    def prepare(self, losses: Losses, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What the pure functions take: the losses as one tensor, and those of all ranks.

        A ``forward`` begins with it.

        Args:
            losses: as ``forward`` was given them.
            mask: as ``forward`` was given it.

        Returns:
            The losses, of shape S, and their mask. In a training call in a process group, they are
            those of the whole batch (:func:`~mtl_scalarize.all_reduce_losses`).

        Raises:
            TypeError: ``losses`` is neither a tensor nor a mapping, or a mapping without names.
            ValueError: a name is unknown, the mask of losses by name does not fit, or something
                else than the scalarizer has cast its state below float32. Losses given as a tensor
                are left to the checks of the pure functions.
        """
        losses, mask = self.by_position(losses, mask)
        for name in self._tensors:  # FSDP moves the state by itself, not by `_apply`
            tensor = getattr(self, name)
            if tensor.device != losses.device and not losses.is_meta:
                self._note(**{name: tensor.to(losses.device)})
        if not torch.compiler.is_compiling() and not _in_backward():
            self._note(_deferred=self.training and not torch.is_grad_enabled())
        if self.shape is not None and losses.shape != self.shape:
            check_shape("losses", losses, self.shape, "scalarizer")
        self._check_precision()
        if not in_transform():
            caution_of_waste(self, losses)
        if not self._in_training:
            return losses, mask
        own_mask = None if self.process_group is None else mask
        self._note(_rank_mask=own_mask, _call_dtype=losses.dtype)
        return self.over_ranks(losses, mask)

    def by_position(self, losses: Losses, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The first half of :meth:`prepare`: losses by name become one tensor."""
        if isinstance(losses, Tensor):
            return losses, mask
        if not isinstance(losses, Mapping):
            check_tensors(None, losses=losses)  # which refuses them
        if self.names is None:
            raise TypeError(
                "`losses` should be a tensor, for the tasks of this scalarizer have no names. "
                "Found a mapping."
            )
        by_name = losses
        losses, present = stack_by_name(by_name, self.names)
        if self._in_training:
            caution_of_constants(self, by_name)
        check_tensors(mask, losses=losses)
        if mask is None:
            return losses, present
        return losses, mask if present is None else present & mask

    def over_ranks(self, losses: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The second half of :meth:`prepare`: the losses and the mask of the whole batch."""
        if self.process_group is None:
            caution_of_ranks(self)
            return losses, mask
        check_tensors(mask, losses=losses)
        state = next((tensor for _, tensor in self._state()), None)
        if state is not None:
            check_shape("losses", losses, state.shape, "state")
            losses = losses.to(state.dtype)
        if mask is None:  # another rank may lack a task, or be at the end of its epoch
            mask = torch.ones_like(losses, dtype=torch.bool)
        return all_reduce_losses(losses, self.process_group, mask=mask)

    def of_first_rank(self, drawn: Tensor) -> Tensor:
        """Random numbers that all ranks should share: in a process group, those of its first rank.

        Every rank must call it, in a training call. Without a process group it returns ``drawn``.

        Args:
            drawn: as many numbers on every rank.

        Returns:
            A tensor like ``drawn``.
        """
        return drawn if self.process_group is None else of_first_rank(drawn, self.process_group)

    def report(self, function: Callable[..., Tensor], *arguments: Any, mask: Tensor | None) -> None:
        """Keep what :attr:`weights` needs: ``function(*arguments, mask=mask)``, run when read.

        A ``forward`` calls it once.

        Args:
            function: a pure function that returns the task weights, of shape S.
            arguments: what this call used of the losses and the state, detached. Of what may be
                changed in place before the weights are read, a copy.
            mask: what :meth:`prepare` returned.
        """
        if torch.compiler.is_exporting():
            return  # an exported program has no attribute to keep them in
        mask = None if mask is None else mask.clone()
        # The tensors of a transform are wrappers that end with it.
        call = () if in_transform() else (function, arguments, mask)
        self._note(_last_call=call)

    def store(self, state: Iterable[Tensor], new: Iterable[Tensor]) -> None:
        """Write the tensors ``new`` into the buffers ``state``.

        In place, so that a captured CUDA graph, an exported program and a stack of modules under
        ``vmap`` all advance the state that they were given.

        Args:
            state: buffers of this scalarizer.
            new: as many tensors, of the same shapes, detached.
        """
        for buffer, value in zip(state, new, strict=True):
            if value is not buffer:
                buffer.copy_(value)

    def register_hyperparameter(self, name: str, value: float | Tensor | None) -> None:
        """Keep what the constructor was given as the attribute ``name``.

        A tensor follows the module to another device. It is no buffer, for other tools fill with
        values of their own what a checkpoint lacks.

        Args:
            name: what the attribute, and an error, calls it.
            value: a number for all tasks, or a tensor with one for each. Or None.

        Raises:
            TypeError: ``value`` is neither a number nor a real tensor.
            ValueError: it is not of the :attr:`shape`, or on the meta device.
        """
        if isinstance(value, Tensor):
            check_has_values(name, value)
            value = value.detach().to(at_least_float32(value.dtype), copy=True)
            self._tensors[name] = value
        if value is not None:
            check_scalar_or_shape(name, value, self.shape, "losses")
        self._note(**{name: value})

    # What the tools of torch call.

    def extra_repr(self) -> str:
        """The shape, or the names, if there is one."""
        return "" if self.shape is None else f"shape={self.names or self.shape}"

    @property
    def process_group(self) -> "dist.ProcessGroup | None":
        """The data-parallel ranks that balance their losses together. None: each rank alone."""
        return self._group.value

    @process_group.setter
    def process_group(self, value: "dist.ProcessGroup | None") -> None:
        if value is not None:
            description: dict[str, object] = {"class": type(self).__name__}
            description |= {"names": repr(self.names), "shape": self.shape}
            description["dtype"] = next((tensor.dtype for _, tensor in self._state()), None)
            for name in self.settings:
                setting = getattr(self, name)
                description[name] = repr(
                    setting.tolist() if isinstance(setting, Tensor) else setting
                )
            share_state(self, description, value)
        self._group = _Group(value)

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: a copy has no weights to read."""
        # Of nn.Module: without what `compile()` has made, which would call the original.
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return {**state, "_last_call": None if self._last_call is None else ()}

    @property
    def _in_training(self) -> bool:
        return self.training and torch.is_grad_enabled()

    def _note(self, **attributes: Any) -> None:
        """Set plain attributes, without nn.Module's look for parameters and buffers."""
        self.__dict__.update(attributes)

    def _state(self) -> Iterator[tuple[str, Tensor]]:
        """The floating-point parameters and buffers, by name."""
        for name, tensor in (self._parameters | self._buffers).items():
            if tensor is not None and tensor.numel() and tensor.is_floating_point():
                yield name, tensor

    def _check_precision(self) -> None:
        for name, tensor in (*self._parameters.items(), *self._buffers.items()):
            if tensor is not None and tensor.itemsize < 4 and tensor.is_floating_point():
                raise ValueError(
                    f"`{name}` should be at least float32. Found `{name}.dtype = {tensor.dtype}`, "
                    "which something around the scalarizer has cast it to: keep the scalarizer "
                    "outside of the module that is wrapped, or exclude it from mixed precision."
                )

    def warn_once(self, message: str) -> None:
        """Warn at the user's line, if not yet of the same. In a compiled graph, do nothing."""
        if not torch.compiler.is_compiling() and message not in self._warned:
            self._warned.add(message)
            warn_user(message)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", None)
        if self.names is not None and metadata is not None:
            metadata[prefix[:-1]]["names"] = list(self.names)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        names = local_metadata.get("names")
        if names is not None and self.names is not None and tuple(names) != self.names:
            raise ValueError(
                f"`state_dict` should be of the tasks {listed(self.names)}, in this order. "
                f"Found {listed(names)}."
            )
        for name, _ in self._state():  # `assign=True` would keep a dtype below float32
            loaded = state_dict.get(prefix + name)
            if isinstance(loaded, Tensor):
                state_dict[prefix + name] = loaded.to(at_least_float32(loaded.dtype))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        self._last_call, self._rank_mask, self._call_dtype = (), None, None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Scalarizer":
        """As ``nn.Module`` does for ``.to()``, ``.half()`` and the like, but keep the precision."""
        for name, given in self._tensors.items():
            tensor = getattr(self, name)
            like = fn(tensor.new_empty(0))
            tensor = given if tensor.is_meta else tensor
            self._note(**{name: tensor.to(like.device, at_least_float32(like.dtype))})

        def at_least_single(tensor: Tensor) -> Tensor:
            applied = fn(tensor)
            if not tensor.is_floating_point():
                return applied
            dtype = at_least_float32(applied.dtype)
            return applied if applied.dtype is dtype else tensor.to(applied.device, dtype)

        return super()._apply(at_least_single, recurse)  # type: ignore[no-untyped-call,no-any-return]


class _Group:
    """A process group. It cannot be copied, so copies share it, and pickling leaves it behind."""

    def __init__(self, value: "dist.ProcessGroup | None") -> None:
        self.value = value

    def __deepcopy__(self, memo: object) -> "_Group":
        return self

    def __reduce__(self) -> tuple[type["_Group"], tuple[None]]:
        return _Group, (None,)


def _in_backward() -> bool:
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def in_transform() -> bool:
    """Whether a transform of `torch.func` is at work."""
    return torch._C._are_functorch_transforms_active()


def shown(name: str, value: float | Tensor, default: float) -> str:
    """A hyperparameter as a part of a `repr`, if it is not the default."""
    if isinstance(value, Tensor):
        few = value.numel() <= 8 and not value.is_meta
        return f", {name}={value if few else f'<tensor of shape {tuple(value.shape)}>'}"
    return "" if value == default else f", {name}={value}"


def fill(parameter: Tensor, value: float | Tensor) -> None:
    """Write a hyperparameter into a parameter, which ``fully_shard`` may have split."""
    value = torch.as_tensor(value, dtype=parameter.dtype, device=parameter.device)
    if value.ndim and hasattr(parameter, "device_mesh"):
        from torch.distributed.tensor import DTensor, Replicate

        mesh = parameter.device_mesh
        value = DTensor.from_local(value, mesh, [Replicate()] * mesh.ndim, run_check=False)
    parameter.copy_(value)


def default_dtype() -> torch.dtype:
    """The dtype of new state: torch's default, and never less than float32."""
    return at_least_float32(torch.get_default_dtype())
