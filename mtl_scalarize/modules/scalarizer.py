"""What all methods share: the call, and the state."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ..distributed import share_first_state
from ..functional import check_tensors, constant_combine
from ..functional._checks import check_shape, check_state
from ..functional._precision import at_least_float32, default_dtype, in_common_dtype
from . import cautions
from .hyperparameters import Configurable
from .names import Losses, Shape, by_position, check_names, names_and_shape, save_names
from .precision import check_kept, computed, examine_loaded, keeping_float32
from .ranks import Ranks

# True inside a transform of `torch.func`, whose tensors end with it. Private, without a public
# counterpart; without it, `weights` and copies of a module would fail after a call inside one.
in_transform = torch._C._are_functorch_transforms_active


class Scalarizer(Configurable, ABC):
    """Base class of all methods: a module that turns a tensor of losses into one scalar.

    It has what every method needs: tasks by name, masks, data-parallel ranks, :attr:`weights`,
    hyperparameters, precision. A subclass defines :meth:`weigh` and, if it needs them,
    :meth:`combine`, :meth:`learn`, :meth:`learn_again` and :meth:`step`. The arithmetic is left to
    pure functions.

    Args:
        shape: the shape S of the losses; an int ``n`` means ``(n,)``. Or a sequence of n names of
            tasks: then S is ``(n,)``, and a call also takes the losses by name. None: no state
            depends on the shape, or the first losses set it.
        optional: False if None is refused.

    Raises:
        TypeError: ``shape`` is not an int or a sequence of ints or of names.
        ValueError: ``shape`` has an entry below 1, or a name twice.

    Attributes:
        shape: S, a tuple of ints, or None.
        names: the names of the tasks, or None.

    Example:
        >>> from mtl_scalarize.functional import fill_absent
        >>> class LogSum(Scalarizer):
        ...     def combine(self, losses, mask):
        ...         return fill_absent(losses, 1.0, mask=mask).log().sum()
        ...     def weigh(self, losses, mask):
        ...         return fill_absent(1 / losses, 0.0, mask=mask)
        >>> scalarizer = LogSum(["depth", "normals"])
        >>> scalarizer({"depth": torch.tensor(1.0), "normals": torch.tensor(2.0)})
        tensor(0.6931)
        >>> scalarizer.task_weights()
        {'depth': tensor(1.), 'normals': tensor(0.5000)}
    """

    #: What the task weights of a call depend on: its "losses"; or the "state" alone, so that the
    #: gradient of a batch is the mean of the gradients of its equal parts; or "nothing".
    weights_depend_on: str = "losses"

    #: What the losses should be above, where it is not ``min_losses``. None: any will do.
    lower_bound: float | None = None

    def __init__(self, shape: Shape | None = None, *, optional: bool = True) -> None:
        super().__init__()
        self.names, self.shape = names_and_shape(shape, optional=optional)
        self._ranks = Ranks()
        self._cautions = cautions.Cautions()
        # The losses and the mask of the last call. Empty after one inside a transform.
        self._last_call: tuple[Tensor, Tensor | None] | tuple[()] | None = None
        self.register_state_dict_post_hook(save_names)  # type: ignore[no-untyped-call]
        for hook in (check_names, examine_loaded):
            self.register_load_state_dict_pre_hook(hook)  # type: ignore[no-untyped-call]

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
        losses, mask = self.prepare(losses, mask)
        detached = losses.detach()
        if self.learning:
            self.learn(detached, mask)
        scalar = self.combine(losses, mask)
        self.keep("_last_call", (detached, mask))
        return scalar

    if TYPE_CHECKING:  # nn.Module's own returns Any

        def __call__(self, losses: Losses, mask: Tensor | None = None) -> Tensor: ...

    # Hooks of a subclass. Losses are one tensor, averaged over the ranks, at least float32.

    def combine(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        """The scalar, of shape (). By default the sum of the losses times :meth:`weigh`."""
        weights = self.weigh(losses, mask)
        if weights is None:  # of a sum, for `constant_combine`
            raise TypeError("`weigh` should return the task weights. Found None.")
        return constant_combine(losses, weights, mask=mask)

    @abstractmethod
    def weigh(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        """The task weights, of shape S: the derivative of :meth:`combine` in the losses."""

    def learn(self, losses: Tensor, mask: Tensor | None) -> None:
        """What a training call changes in the state, before it combines."""

    def learn_again(self, losses: Tensor, mask: Tensor | None) -> None:
        """What :meth:`update` changes in the state."""

    # Other public methods.

    def update(self, losses: Losses | Callable[[], Losses], mask: Tensor | None = None) -> None:
        """Learn from the losses after the optimizer's step. Only :class:`FAMO` does.

        Args:
            losses: the losses computed again on the same batch, as in a call. Or a function that
                returns them: it is called only if the method needs them, and without gradients.
            mask: boolean, of shape S, True where the task is present. None: as in the last call.

        Raises:
            TypeError: ``losses`` is not a floating-point tensor, or a mapping without names.
            ValueError: a shape differs from the module's, ``mask`` is not boolean, or a name is
                unknown.
        """
        if type(self).learn_again is Scalarizer.learn_again or self._idle("update"):
            return
        mask = self._ranks.own_mask if mask is None else mask
        losses = computed(losses)
        if not (torch.compiler.is_compiling() or in_transform()):
            self._cautions.warn(cautions.losses_of_the_call(losses, self._last_call))
        with torch.enable_grad():  # `prepare` takes a call without gradients for a validation
            losses, mask = self.prepare(losses, mask)
        self.learn_again(losses.detach(), mask)

    def step(self) -> None:
        """Close the epoch. Only :class:`DWA` needs it.

        On ranks that are synchronized every rank must call it, after equally many calls on losses.

        Raises:
            ValueError: another rank made a call on losses meanwhile.
        """

    def reset(self) -> None:
        """Restore the initial state, whatever the memory holds (as after ``to_empty``)."""
        self._last_call = self._ranks.own_mask = None

    @property
    def weights(self) -> Tensor:
        """The task weights, d scalar / d losses at the losses of the last call, of their dtype.

        Detached, of shape S. They are computed when read, from the present state. There is no such
        attribute before the first call, and after a call inside a transform of :mod:`torch.func`.

        Raises:
            AttributeError: there are no weights to read.
        """
        if not self._last_call:
            raise AttributeError  # with the message of `__getattr__`, which Python tries next
        with torch.no_grad():
            return self.weigh(*self._last_call).to(self._last_call[0].dtype, copy=True)

    def task_weights(self) -> dict[str, Tensor]:
        """The :attr:`weights` by name, each of shape ().

        Raises:
            AttributeError: the scalarizer has not been called yet.
            ValueError: the tasks have no names.
        """
        if self.names is None:
            raise ValueError("`task_weights` are by name. Found a scalarizer without names.")
        return dict(zip(self.names, self.weights.unbind(), strict=True))

    def synchronize(self, group: "dist.ProcessGroup | None" = None) -> None:
        """Balance by the losses of all data-parallel ranks, as one process on the whole batch does.

        Every rank must call it, after construction, and then make every training call. A call in
        ``eval()`` or without gradients uses the rank's own losses alone. The ranks compare their
        scalarizers and take the state of the first rank.

        Args:
            group: the process group. None: that of all ranks.

        Raises:
            ValueError: ``group`` is not an initialised process group of this rank, or the
                scalarizers of its ranks differ in class, names, shape, dtype or a hyperparameter.
        """
        alike = {"class": type(self).__name__, "names": self.names, "shape": self.shape}
        self._ranks = Ranks(share_first_state(self, alike | self._given, group))

    @property
    def learning(self) -> bool:
        """True if a call learns: in training mode, with gradients enabled."""
        return self.training and torch.is_grad_enabled()

    # How a call gets there.

    def prepare(self, losses: Losses, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Check the arguments, and return the losses as the hooks take them, and the mask."""
        if not isinstance(losses, Tensor):
            by_name = losses
            losses, mask = by_position(by_name, mask, self.names)
            self._cautions.warn(cautions.constant_for_absent(by_name))
        if mask is not None:
            check_tensors(mask, losses=losses)
        if torch.compiler.is_compiling():
            self._examine(losses)
        else:
            way = self.training, torch.is_grad_enabled(), in_transform(), losses.requires_grad
            call: tuple[object, ...] = losses.shape, losses.dtype, losses.device, way
            if self._parameters:  # which may be frozen meanwhile
                call += tuple(
                    [each is None or each.requires_grad for each in self._parameters.values()]
                )
            if call not in self._examined:
                self._examine(losses)
                self._examined.add(call)
        (losses,) = in_common_dtype(losses)
        return self._ranks.average(losses, mask) if self.learning else (losses, mask)

    def _examine(self, losses: Tensor) -> None:
        """Run the checks that are needed once for each shape, dtype, device and mode."""
        check_tensors(None, losses=losses)
        if not (torch.compiler.is_compiling() or losses.numel()):
            raise ValueError(
                "`losses` should have at least one entry. Found none: pass over a batch without "
                "tasks, or pass all losses and a mask that is False everywhere."
            )
        check_shape("losses", losses, self.shape, "scalarizer")
        check_kept(self._parameters | self._buffers, losses)
        self.move_hyperparameters(lambda _: losses.device)
        if torch.is_grad_enabled() and not in_transform():
            method, state = type(self).__name__, (self._parameters, self._buffers)
            self._cautions.warn(cautions.wasted_call(method, losses, self.training, *state))
            self._cautions.warn(cautions.unlikely_shape(losses, self.shape))
            if self.training and self.weights_depend_on != "nothing" and not self._ranks.group:
                self._cautions.warn(cautions.ranks_alone(method))

    def _idle(self, verb: str) -> bool:
        """True, with a warning, in ``eval()``, where ``update`` and ``step`` learn nothing."""
        self._cautions.warn(cautions.called_in_eval(type(self).__name__, verb, self.training))
        return not self.training

    def keep(self, name: str, value: object) -> None:
        """Store a value for :attr:`weights`, but no tensor of a transform or an export."""
        # torch.compile below 2.12 takes `is_exporting()` for True.
        if torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling():
            return
        # Not by `setattr`, which looks for parameters, buffers and modules first.
        self.__dict__[name] = () if in_transform() else value

    # What nn.Module and Python call.

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Scalarizer":
        """As nn.Module does for ``.to()``, ``.half()`` and the like, but keep the precision."""
        super()._apply(keeping_float32(fn), recurse)  # type: ignore[no-untyped-call]
        self.move_hyperparameters(lambda tensor: fn(tensor.new_empty(0)).device)
        self._examined.clear()
        return self

    def __getattr__(self, name: str) -> Any:
        if name == "weights":
            if self._last_call:  # then `weigh` raised an AttributeError of its own
                self.weigh(*self._last_call)
            raise AttributeError(f"No `weights` of {self}: it was not called, or in a transform.")
        return super().__getattr__(name)


class Stateful(Scalarizer):
    """Base class of the methods that keep a state of their own, without an optimizer.

    The state is a NamedTuple of tensors; each field is a persistent buffer of the same name.
    """

    def __init__(self, shape: Shape | None = None, *, optional: bool = True) -> None:
        super().__init__(shape, optional=optional)
        self._create(torch.empty((0,) if self.shape is None else self.shape, dtype=default_dtype()))
        self.register_load_state_dict_pre_hook(take_saved_shape)  # type: ignore[no-untyped-call]

    @abstractmethod
    def initial_state(self, shape: tuple[int, ...]) -> NamedTuple:
        """The state before the first call, for losses of this shape, on the default device."""

    @property
    def state(self) -> Any:
        """The state, as the pure functions take it."""
        return self._state_type(*[self._buffers[name] for name in self._state_type._fields])

    def write(self, new: Sequence[Tensor]) -> None:
        """Write a new state into the buffers.

        In place, so that a captured CUDA graph, an exported program and a stack of modules under
        ``vmap`` all advance the state that they were given.
        """
        check_state(new, self._state_type)
        old = self.state
        check_shape("state", new[0], old[0].shape, "scalarizer")
        for buffer, value in zip(old, new, strict=True):
            if value is not buffer:
                buffer.copy_(value)

    def reset(self) -> None:
        super().reset()
        with torch.device(self.state[0].device):
            self.write(self.initial_state(tuple(self.state[0].shape)))

    def prepare(self, losses: Losses, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.shape is None and isinstance(losses, Tensor):
            check_tensors(mask, losses=losses)
            self._cautions.warn(cautions.unlikely_shape(losses, self.shape))
            self.shape = tuple(losses.shape)
            self._create(losses)
        return super().prepare(losses, mask)

    def _create(self, like: Tensor) -> None:
        """Create the buffers for losses like these."""
        with torch.inference_mode(False):  # or the buffers could not learn
            state = self.initial_state(tuple(like.shape))
            for name, value in state._asdict().items():
                dtype = at_least_float32(like.dtype) if value.is_floating_point() else None
                self.register_buffer(name, value.to(like.device, dtype))
        self._state_type: type[Any] = type(state)


def take_saved_shape(module: Stateful, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """Hook for ``load_state_dict``: where no shape was given, that of the checkpoint is taken."""
    saved = state_dict.get(prefix + module.state._fields[0])
    if module.shape is None and saved is not None and saved.numel():
        module.shape = tuple(saved.shape)
        module._create(saved)
