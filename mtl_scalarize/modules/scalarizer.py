"""What the four modules share."""

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..distributed import all_reduce_losses_and_mask
from ..functional.checks import check_tensors
from ..functional.precision import at_least_float32
from .names import Names, Shape, as_names, encode, in_order, mask_of, order_of

#: What a scalarizer takes: the losses as one tensor, or as 0-d tensors by name.
Losses = Tensor | Mapping[str, Tensor]


class Scalarizer(nn.Module, ABC):
    """Base class: a module that turns a tensor of losses into one scalar.

    A subclass keeps all its state in parameters and buffers, and its ``forward`` fetches that
    state, calls a pure function of :mod:`mtl_scalarize.functional` and stores what comes back.

    Args:
        process_group: the data-parallel ranks that balance their losses together. None: each rank
            by itself.
        shape: what the constructor was given, which may be the names of the tasks.
    """

    #: Of the ``state_dict``, which carries it. Raise it when the keys or their meaning change, and
    #: migrate what has an older one in ``_load_from_state_dict``.
    _version = 1

    #: Whether a call itself changes the state, by losses that each rank has its own of.
    _learns_from_losses = False

    #: What a checkpoint knows the tasks by, where they have names.
    task_names: Tensor

    def __init__(
        self, process_group: "dist.ProcessGroup | None" = None, shape: Shape | None = None
    ) -> None:
        super().__init__()
        self.process_group = process_group
        self.names: Names | None = None if shape is None else as_names(shape)
        if self.names is not None:
            self.register_buffer("task_names", encode(self.names))
        self._may_drift = self._learns_from_losses  # until the first call has had a look
        self._weights: Tensor | None = None

    @abstractmethod
    def forward(self, losses: Losses, mask: Tensor | None = None) -> Tensor:
        """Combine the losses.

        Args:
            losses: the losses, of shape S. Where the tasks have names, a mapping of name to 0-d
                loss will do; a task that is not in it is absent.
            mask: boolean, of shape S, True where the task is present in this batch. An absent task
                contributes nothing to the scalar nor to any gradient, and its state stays as it
                is. None: all are present.

        Returns:
            The scalar, of shape (), at least float32.

        Raises:
            TypeError: ``losses`` is not a floating-point tensor, or a mapping without names.
            ValueError: a shape differs from the module's, ``mask`` is not boolean, or a name is
                unknown.
        """

    if TYPE_CHECKING:  # nn.Module's own returns Any

        def __call__(self, losses: Losses, mask: Tensor | None = None) -> Tensor: ...

    @abstractmethod
    def reset(self) -> None:
        """Go back to the start: the state of a new module."""

    @property
    def weights(self) -> Tensor:
        """The task weights that the last call used, of shape S, detached: d scalar / d losses.

        Raises:
            ValueError: the scalarizer has not been called yet.
        """
        if self._weights is None:
            raise ValueError("`weights` are those of the last call. Found no call so far.")
        return self._weights

    def task_weights(self) -> dict[str, Tensor]:
        """The :attr:`weights` by name, each of shape ().

        Raises:
            ValueError: the tasks have no names, or the scalarizer has not been called yet.
        """
        if self.names is None:
            raise ValueError("`task_weights` are by name. Found a scalarizer without names.")
        return dict(zip(self.names, self.weights.unbind(), strict=True))

    def _by_position(
        self, losses: Mapping[str, Tensor], mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Losses by name as the pure functions take them."""
        if not isinstance(losses, Mapping):
            check_tensors(None, losses=losses)  # which refuses them
        if self.names is None:
            raise TypeError(
                "`losses` should be a tensor, for the tasks of this scalarizer have no names. "
                "Found a mapping."
            )
        stacked, present = in_order(losses, self.names, self.task_names.device)
        # Another rank may lack a task where this one has all, and all must have a mask or none.
        if self.process_group is None and all(present):
            return stacked, mask
        return stacked, mask_of(present, mask, stacked)

    def _report(self, weights: Tensor) -> None:
        """Keep the weights of this call; an exported program has no attribute to keep them in."""
        if not torch.compiler.is_exporting():
            # Not by `setattr`: nn.Module would look for a parameter or buffer first, for 1 us.
            self.__dict__["_weights"] = weights

    def _is_learning(self) -> bool:
        """Whether a call may change the state: a validation pass must not."""
        return self.training and torch.is_grad_enabled()

    def _of_all_ranks(self, losses: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The losses and the presence of all ranks together, where there is a process group."""
        if self.process_group is not None:
            return all_reduce_losses_and_mask(losses, self.process_group, mask)
        if not torch.compiler.is_compiling() and self._may_drift:
            self._may_drift = False
            self._warn_if_ranks_drift()
        return losses, mask

    def _warn_if_ranks_drift(self) -> None:
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            warnings.warn(
                f"{type(self).__name__} has no process group: each of the {dist.get_world_size()} "
                "ranks balances by its own losses alone. "
                "Pass `process_group=torch.distributed.group.WORLD`.",
                stacklevel=6,  # the caller, behind `forward` and nn.Module's own two frames
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> "Scalarizer":
        memo[id(self.process_group)] = self.process_group  # cannot be copied, only shared
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: all but the process group, which belongs to this process."""
        return {**self.__dict__, "process_group": None}

    def _fetch(self, names: Iterable[str]) -> list[Tensor]:
        """The buffers of these names; by attribute each would take 0.4 us more."""
        return [self._buffers[name] for name in names]  # type: ignore[misc]  # none is None here

    def _store(self, state: Iterable[Tensor], new: Iterable[Tensor]) -> None:
        """Write what changed of ``new`` into the buffers ``state``.

        In place, so that a captured CUDA graph, an exported program and a stack of modules under
        ``vmap`` all advance the state that they were given.
        """
        for buffer, value in zip(state, new, strict=True):
            if value is not buffer:
                buffer.copy_(value)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As ``nn.Module`` does, but all or nothing: if it raises, the state is what it was."""
        with self._unchanged_by_failure():
            return super().load_state_dict(state_dict, strict, assign)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        try:
            state_dict = self._reordered(state_dict, prefix)
        except ValueError as error:
            error_msgs.append(str(error))
            return
        misfits = list(self._misfits(state_dict, prefix, local_metadata.get("version")))
        error_msgs.extend(misfits)
        if not misfits:  # else nothing is loaded, also where this is a part of a larger model
            super()._load_from_state_dict(
                state_dict,
                prefix,
                local_metadata,
                strict,
                missing_keys,
                unexpected_keys,
                error_msgs,
            )

    def _reordered(self, state_dict: dict[str, Any], prefix: str) -> dict[str, Any]:
        """The state in the order of our names; of tasks without names, as it is."""
        key = prefix + "task_names"
        if self.names is None:
            return state_dict
        found = {key: self.task_names, **state_dict}  # a state without names is taken by position
        order = order_of(found[key], self.names, key)
        for name in {**self._parameters, **self._buffers}:
            value = found.get(prefix + name)
            if isinstance(value, Tensor) and value.ndim == 1 and len(value) == len(order):
                found[prefix + name] = value[order]
        return {**found, key: self.task_names}

    def _misfits(
        self, state_dict: dict[str, Any], prefix: str, version: int | None
    ) -> Iterator[str]:
        """What is wrong with a state. ``nn.Module`` would find some of it, and convert the rest."""
        if version is not None and version > self._version:
            yield (
                f"the state of {type(self).__name__} should have version {self._version} or less. "
                f"Found version {version}, of a later release: upgrade mtl-scalarize."
            )
        for name, expected in {**self._parameters, **self._buffers}.items():
            key = prefix + name
            if (
                expected is None
                or key not in state_dict
                or name in self._non_persistent_buffers_set
            ):
                continue
            found = state_dict[key]
            if not isinstance(found, Tensor):
                yield f"`{key}` should be a tensor. Found a {type(found).__name__}."
            elif found.shape != expected.shape:
                yield (
                    f"`{key}` should have shape {tuple(expected.shape)}. "
                    f"Found `{key}.shape = {tuple(found.shape)}`."
                )
            elif found.dtype.is_complex or (
                found.is_floating_point() is not expected.is_floating_point()
            ):
                kind = "a floating-point" if expected.is_floating_point() else "an integer"
                yield f"`{key}` should be {kind} tensor. Found `{key}.dtype = {found.dtype}`."

    @contextmanager
    def _unchanged_by_failure(self) -> Iterator[None]:
        tensors = {**self._parameters, **self._buffers}
        values = {
            name: tensor.detach().clone() for name, tensor in tensors.items() if tensor is not None
        }
        attributes = self.__dict__.copy()
        for name in ("_parameters", "_buffers", "_non_persistent_buffers_set"):
            attributes[name] = attributes[name].copy()
        try:
            yield
        except BaseException:
            self.__dict__.update(attributes)
            with torch.no_grad():
                for name, value in values.items():
                    getattr(self, name).copy_(value)
            raise

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Scalarizer":
        """As ``nn.Module`` does for ``.to()``, ``.half()`` and the like, but keep the precision.

        A model that is cast to half precision must not take the balance of its tasks along.
        """

        def apply(tensor: Tensor) -> Tensor:
            applied = fn(tensor)
            if not tensor.is_floating_point():
                return applied
            dtype = at_least_float32(applied.dtype)
            return applied if applied.dtype is dtype else tensor.to(applied.device, dtype)

        super()._apply(apply, recurse)  # type: ignore[no-untyped-call]
        if self._weights is not None:
            self._weights = apply(self._weights)
        return self


def default_dtype() -> torch.dtype:
    """The dtype of new state: torch's default, and never less than float32."""
    return at_least_float32(torch.get_default_dtype())
