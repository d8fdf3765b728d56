"""What the losses and their weights were over a training."""

import io
import math
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from .functional._checks import check_tensors
from .functional._presence import fill_absent
from .modules import Scalarizer
from .modules.cautions import warn_user
from .modules.names import by_position

if TYPE_CHECKING:
    import numpy
    import pandas
    from matplotlib.figure import Figure

#: Up to so many tasks a line each can be told apart; beyond, they are the rows of a heat map.
_MOST_LINES = 10


class History:
    """Records the losses and the task weights of a scalarizer, step by step.

    Recording does not wait for the device. When ``capacity`` steps are recorded, every second step
    is dropped, and from then on only every second step is recorded, so that the record covers the
    whole training in bounded memory.

    Reading the losses warns, by name, of a loss at or below the lower bound of its task, where the
    scalar is nan or the task weight grows without end.

    A notebook shows the figure of :meth:`plot`.

    Args:
        scalarizer: the scalarizer whose weights are recorded, by name if its tasks have names.
        capacity: the largest number of steps that are kept, an even number.

    Raises:
        ValueError: ``capacity`` is not a positive, even int.

    Example:
        >>> from mtl_scalarize import UW
        >>> scalarizer = UW(["segmentation", "depth"])
        >>> history = History(scalarizer)
        >>> for step in range(3):
        ...     losses = {"segmentation": torch.rand(()), "depth": torch.rand(())}
        ...     scalar = scalarizer(losses)
        ...     history.record(losses)
        >>> list(history.to_dict())
        ['step', 'loss/segmentation', 'loss/depth', 'weight/segmentation', 'weight/depth']
        >>> history.to_dict()["weight/depth"]
        array([0.5, 0.5, 0.5], dtype=float32)
    """

    def __init__(self, scalarizer: Scalarizer, *, capacity: int = 10_000) -> None:
        if not isinstance(capacity, int) or capacity < 2 or capacity % 2:
            raise ValueError(
                f"`capacity` should be a positive, even int. Found `capacity = {capacity}`."
            )
        self.scalarizer = scalarizer
        self.capacity = capacity
        self._seen = 0  # steps, recorded or passed over
        self._stride = 1
        self._steps: list[int] = []
        self._rows: list[Tensor] = []  # of each step: the losses and the weights, (2, K)
        self._warned = False

    def record(self, losses: Tensor | Mapping[str, Tensor], mask: Tensor | None = None) -> None:
        """Keep the losses of the call just made, and the weights that it used.

        Call it right after the scalarizer, before the optimizer's step: the weights are computed
        from the state at this moment, which the step, :meth:`Scalarizer.update
        <mtl_scalarize.Scalarizer.update>` and ``step`` change.

        Args:
            losses: the losses that the scalarizer was called with.
            mask: the mask that it was called with. An absent task is recorded as nan.

        Raises:
            TypeError: ``losses`` is not a floating-point tensor, or a mapping without names.
            AttributeError: the scalarizer has not been called yet.
            ValueError: ``losses`` or ``mask`` is not of the shape of its weights, there are not as
                many losses as recorded before, or a name is unknown.
        """
        weights = self.scalarizer.weights
        losses, mask = by_position(losses, mask, self.scalarizer.names)
        check_tensors(mask, weights=weights, losses=losses)
        if self._rows and losses.numel() != self._rows[-1].shape[1]:
            raise ValueError(
                f"`losses` should be of {self._rows[-1].shape[1]} tasks, as those recorded before. "
                f"Found {losses.numel()}: make a new `History`."
            )
        step, self._seen = self._seen, self._seen + 1
        while len(self._steps) >= self.capacity and step % self._stride == 0:
            self._steps, self._rows = self._steps[::2], self._rows[::2]
            self._stride *= 2
        if step % self._stride:
            return
        if self._rows and losses.device != self._rows[-1].device:  # after a load, or a move
            self._rows = list(torch.stack(self._rows).to(losses.device).unbind())
        both = torch.stack([losses.detach().to(weights.dtype), weights])
        self._rows.append(fill_absent(both, torch.nan, mask=mask).reshape(2, -1))
        self._steps.append(step)

    def state_dict(self) -> dict[str, Any]:
        """The record, to continue after a restart. It loads with ``weights_only=True``."""
        rows = torch.stack(self._rows) if self._rows else torch.empty(0)
        return {"seen": self._seen, "stride": self._stride, "steps": self._steps[:], "rows": rows}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue the record of a :meth:`state_dict`.

        Args:
            state_dict: of a history with the same number of tasks and any capacity.

        Raises:
            ValueError: the record has another number of tasks than the scalarizer.
        """
        rows, shape = state_dict["rows"], self.scalarizer.shape
        if shape is not None and len(rows) and rows.shape[2] != math.prod(shape):
            raise ValueError(
                f"`state_dict` should be a record of {math.prod(shape)} tasks. "
                f"Found one of {rows.shape[2]}."
            )
        self._seen, self._stride = state_dict["seen"], state_dict["stride"]
        self._steps, self._rows = list(state_dict["steps"]), list(rows.unbind())

    def __bool__(self) -> bool:
        """True, even with nothing recorded, so that ``if history:`` tells whether there is one."""
        return True

    def __len__(self) -> int:
        """The number of recorded steps."""
        return len(self._steps)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tasks, or their positions if they have no names."""
        if self.scalarizer.names is not None:
            return self.scalarizer.names
        return tuple(str(position) for position in range(self._read(0).shape[1]))

    @property
    def losses(self) -> Tensor:
        """The recorded losses, one row a step, on the CPU."""
        losses = self._read(0)
        self._warn_of_bounds(losses)
        return losses

    @property
    def weights(self) -> Tensor:
        """The recorded task weights, one row a step, on the CPU."""
        return self._read(1)

    @property
    def normalized_losses(self) -> Tensor:
        """The recorded losses over the first one of each task that is finite and not 0."""
        losses = self.losses
        return losses / _first(losses)

    def mean_weights(self, steps: int = 100) -> dict[str, float]:
        """The mean weight of each task over those of the last steps that have the task, by name.

        The weights of a single batch are noisy, and 0 for a task that the batch lacks.

        Args:
            steps: the number of steps, counted back from the last recorded step.

        Returns:
            A number for each task, nan if no step had the task.
        """
        last = [step > self._steps[-1] - steps for step in self._steps]
        means = self.weights[last].nanmean(dim=0).tolist()
        return dict(zip(self.names, means, strict=True)) if self._steps else {}

    def to_dict(self) -> "dict[str, numpy.ndarray[Any, Any]]":
        """Arrays of one length: ``step``, and each task's ``loss/<name>`` and ``weight/<name>``.

        Raises:
            ImportError: NumPy is not installed, which torch does without.
        """
        _needed("numpy")
        columns = {"step": torch.tensor(self._steps, dtype=torch.int64).numpy()}
        for kind, rows in (("loss", self.losses), ("weight", self.weights)):
            for name, column in zip(self.names, rows.T, strict=True):
                columns[f"{kind}/{name}"] = column.numpy()
        return columns

    def to_pandas(self) -> "pandas.DataFrame":
        """:meth:`to_dict` as a DataFrame, its index the step.

        Raises:
            ImportError: pandas or NumPy is not installed.
        """
        frame: pandas.DataFrame = _needed("pandas").DataFrame(self.to_dict())
        return frame.set_index("step")

    def plot(self, *, smooth: int = 1, title: str | None = None) -> "Figure":
        """Draw the weights, the losses, and the losses over their first value, over the steps.

        Up to ten tasks are lines, and more tasks are the rows of a heat map. The scale is
        logarithmic, and linear for weights that sum to 1.

        Args:
            smooth: the width of a running mean, in steps. Each point is the mean of the recorded
                values that are finite and at most ``smooth / 2`` steps away. The recorded values
                are drawn faintly behind. 1: no mean.
            title: the title of the figure.

        Raises:
            ValueError: ``smooth`` is not a positive int.
            ImportError: matplotlib is not installed.
        """
        if not isinstance(smooth, int) or smooth < 1:
            raise ValueError(f"`smooth` should be a positive int. Found `smooth = {smooth}`.")
        lines = len(self.names) <= _MOST_LINES
        height = 9.0 if lines else 0.35 * len(self.names)  # inches: the names need a line each
        figure: Figure = _needed("matplotlib.figure").Figure(
            figsize=(8, height), layout="constrained"
        )
        weights, losses = self.weights, self.losses
        smoothed = self._smoothed(losses, smooth)
        first = _first(smoothed)  # so that each line begins at 1
        panels = {
            "weight": (self._smoothed(weights, smooth), weights),
            "loss": (smoothed, losses),
            "loss / first loss": (smoothed / first, losses / first),
        }
        draw = self._draw_lines if lines else self._draw_map
        axes = figure.subplots(len(panels), sharex=True)
        for axis, (label, (mean, raw)) in zip(axes, panels.items(), strict=True):
            drawn = draw(axis, label, mean, raw if smooth > 1 else None)
        axes[-1].set_xlabel("step")
        figure.align_ylabels(axes)
        if lines:
            # A label that begins with an underscore is none for matplotlib.
            labels = [f" {name}" if name.startswith("_") else name for name in self.names]
            figure.legend(drawn, labels, loc="outside right upper")
        if title is not None:
            figure.suptitle(title)
        return figure

    def _repr_png_(self) -> bytes | None:
        """The figure, as a notebook asks for it. None if nothing is recorded, or no matplotlib."""
        if not self._rows or find_spec("matplotlib") is None:
            return None
        file = io.BytesIO()
        self.plot().savefig(file, format="png")
        return file.getvalue()

    def _smoothed(self, values: Tensor, smooth: int) -> Tensor:
        width = 2 * (smooth // 2 // self._stride) + 1  # in rows
        if smooth == 1 or not len(values):
            return values

        def mean(columns: Tensor) -> Tensor:
            return avg_pool1d(columns.T, width, 1, width // 2, count_include_pad=False).T

        usable = values.isfinite()
        return mean(values.where(usable, 0)) / mean(usable.to(values.dtype))

    def _draw_lines(self, axis: Any, label: str, values: Tensor, faint: Tensor | None) -> list[Any]:
        lines = [axis.plot(self._steps, column)[0] for column in values.T]
        for line, column in zip(lines, () if faint is None else faint.T, strict=faint is not None):
            axis.plot(self._steps, column, color=line.get_color(), alpha=0.3, zorder=1)
        axis.set_yscale(_scale_of(values))
        if axis.get_yscale() == "log":  # 0.6, and not 6 x 10^-1
            low, high = axis.get_ylim()
            subs = (1.0, 2.0, 5.0) if high < 1000 * low else (1.0,)
            axis.yaxis.set_major_locator(_needed("matplotlib.ticker").LogLocator(subs=subs))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter("")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        return lines

    def _draw_map(self, axis: Any, label: str, values: Tensor, faint: Tensor | None) -> list[Any]:
        edges = [*self._steps, self._steps[-1] + self._stride] if self._steps else [0]
        mesh = axis.pcolormesh(edges, range(len(self.names) + 1), values.T, norm=_scale_of(values))
        axis.figure.colorbar(mesh, label=label)
        axis.set_yticks([i + 0.5 for i in range(len(self.names))], self.names, fontsize=6)
        axis.invert_yaxis()
        return []

    def _read(self, kind: int) -> Tensor:
        if not self._rows:
            return torch.empty(0, len(self.scalarizer.names or ()))
        return torch.stack([row[kind] for row in self._rows]).cpu()

    def _warn_of_bounds(self, losses: Tensor) -> None:
        bounds = getattr(self.scalarizer, "min_losses", self.scalarizer.lower_bound)
        if bounds is None or self._warned or not len(losses):
            return
        bounds = torch.as_tensor(bounds).to("cpu", losses.dtype).flatten().expand(losses.shape[1])
        eps = float(getattr(self.scalarizer, "eps", 0.0))
        # An `eps` above the default says that a loss may be at its bound.
        wrong = losses + eps < bounds if eps > 1e-8 else losses <= bounds
        if wrong.any():
            self._warned = True
            row, task = wrong.nonzero()[0].tolist()
            loss, bound = losses[row, task], bounds[task]
            outcome = (
                "the scalar and its gradients are nan"
                if self.weights[row, task].isnan()
                else "the weight of the task grows without end"
            )
            warn_user(
                f"The loss of task {self.names[task]!r} is {'below' if loss < bound else 'at'} its "
                f"lower bound at step {self._steps[row]}: {loss:.4g}, and the bound is "
                f"{bound:.4g}. There {outcome}."
            )


def _first(losses: Tensor) -> Tensor:
    """Of each column, the first entry that is finite and not 0."""
    if not len(losses):
        return losses
    usable = losses.isfinite() & (losses != 0)
    return losses.gather(0, usable.int().argmax(dim=0, keepdim=True))


def _scale_of(values: Tensor) -> str:
    """Linear for shares of 1 and for what is nowhere positive."""
    sums = values.nansum(dim=1)
    shares = torch.allclose(sums, torch.ones_like(sums), rtol=1e-3)
    positive = (values.isfinite() & (values > 0)).any()
    return "log" if positive and not shares else "linear"


def _needed(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise ImportError(f"This needs {package}: pip install {package}") from None
