"""The recorder of losses and weights."""

import itertools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from functions import DEVICES, synchronization_forbidden
from torch import Tensor

from mtl_scalarize import (
    DWA,
    FAMO,
    IMTLL,
    UW,
    GeometricMean,
    History,
    LogSum,
    Scalarizer,
    Sum,
)

pytest.importorskip("matplotlib")

#: A test of losses that a method warns of.
named_when_read = pytest.mark.filterwarnings("ignore:The loss of task .* lower bound")


def step(history: History, losses: Any, mask: Tensor | None = None) -> None:
    history.scalarizer(losses, mask)
    history.record(losses, mask)


def recorded(history: History, steps: int, mask: Tensor | None = None) -> Tensor:
    """Record so many steps of losses, and return them all."""
    generator = torch.Generator().manual_seed(0)
    losses = 0.1 + torch.rand(steps, *history.scalarizer.weights.shape, generator=generator)
    for row in losses:
        step(history, row, mask)
    return losses


def history_of(tasks: int, capacity: int = 10**12) -> History:
    """With the default capacity, it cannot allocate memory ahead."""
    scalarizer = FAMO(tasks)
    scalarizer(torch.ones(tasks))
    return History(scalarizer, capacity=capacity)


def test_it_keeps_losses_and_weights_of_every_step() -> None:
    history = History(FAMO(3))
    losses = torch.tensor([[1.0, 2.0, 4.0], [0.5, 2.0, 4.0], [0.4, 1.9, 4.0]])
    weights = []
    for row in losses:
        step(history, row.requires_grad_())
        weights.append(history.scalarizer.weights)
    assert len(history) == 3
    torch.testing.assert_close(history.losses, losses.detach(), rtol=0, atol=0)
    torch.testing.assert_close(history.weights, torch.stack(weights), rtol=0, atol=0)
    torch.testing.assert_close(history.normalized_losses, losses.detach() / losses[0].detach())
    assert not history.losses.requires_grad


@pytest.mark.parametrize("capacity", [2, 4, 8])
@pytest.mark.parametrize("steps", [*range(1, 20), 1_000])
def test_what_is_kept_is_bounded_and_evenly_spaced(steps: int, capacity: int) -> None:
    history = history_of(1, capacity)
    losses = recorded(history, steps)
    strides = (2**power for power in range(10))
    kept = next(kept for stride in strides if len(kept := range(0, steps, stride)) <= capacity)
    assert history.to_dict()["step"].tolist() == list(kept)
    assert len(history._rows) == len(kept)
    torch.testing.assert_close(history.losses, losses[list(kept)], rtol=0, atol=0)


@pytest.mark.parametrize("steps", [0, 5, 11])
def test_a_loaded_history_goes_on_as_if_never_stopped(steps: int, tmp_path: Path) -> None:
    whole, first = history_of(3, capacity=4), history_of(3, capacity=4)
    losses = torch.rand(20, 3) + 0.1
    for row in losses[:steps]:
        first.record(row)
    torch.save(first.state_dict(), tmp_path / "history")
    second = history_of(3, capacity=4)
    second.load_state_dict(torch.load(tmp_path / "history", weights_only=True))
    for row in losses[steps:]:
        second.record(row)
    for row in losses:
        whole.record(row)
    torch.testing.assert_close(second.state_dict(), whole.state_dict(), rtol=0, atol=0)
    with pytest.raises(ValueError, match="a record of 2 tasks"):
        history_of(2).load_state_dict(whole.state_dict())


@pytest.mark.parametrize(
    ("make", "bound", "found", "outcome"),
    [
        (lambda names: FAMO(names, 0.5), 0.5, 0.4, "nan"),
        (lambda names: LogSum([0.0, 0.5], shape=names), 0.5, 0.4, "nan"),
        (lambda names: LogSum(shape=names), 0.0, 0.0, "grows"),
        (FAMO, 0.0, 0.0, "grows"),
        (UW, 0.0, -0.1, "grows"),
        (IMTLL, 0.0, 0.0, "grows"),
        (GeometricMean, 0.0, -0.1, "nan"),
        (GeometricMean, 0.0, 0.0, "nan"),
    ],
)
def test_a_loss_at_or_below_its_bound_is_named_once_when_read(
    make: Callable[..., Scalarizer], bound: float, found: float, outcome: str
) -> None:
    history = History(make(["depth", "normals"]))
    for second in (0.6, torch.nan, found, found):
        step(history, torch.tensor([1.0, second]))
    where = rf"{'below' if found < bound else 'at'} its lower bound at step 2: {found:.4g}, "
    message = f"'normals' is {where}.* {bound:.4g}.* {outcome}"
    with pytest.warns(UserWarning, match=message) as seen:
        history.to_dict()
    if "mutmut" not in sys.modules:  # whose frames stand between the two
        assert seen[0].filename == __file__
    history.plot()  # says nothing more: warnings are errors


def test_a_loss_within_its_eps_is_fine() -> None:
    for scalarizer in (UW(1, eps=1e-3), LogSum(0.1, eps=1e-3), DWA(), Sum()):
        history = History(scalarizer)
        step(history, torch.full((1,), 0.1 if isinstance(scalarizer, LogSum) else 0.0))
        assert len(history.losses)  # says nothing: warnings are errors


def test_an_absent_task_is_recorded_as_nan() -> None:
    history = history_of(3)
    losses = recorded(history, 2, torch.tensor([True, False, True]))
    assert history.losses[:, 1].isnan().all()
    assert history.weights[:, 1].isnan().all()
    torch.testing.assert_close(history.losses[:, ::2], losses[:, ::2], rtol=0, atol=0)


def test_a_running_mean_of_the_weights_passes_over_absent_tasks() -> None:
    history = History(LogSum(shape=["depth", "normals"]), capacity=4)
    assert history.mean_weights() == {}
    for depth, normals in ((1.0, 1.0), (0.5, torch.nan), (0.25, 0.5), (0.5, torch.nan)):
        losses = torch.tensor([depth, normals])
        step(history, losses, losses.isfinite())
    assert history.mean_weights(3) == pytest.approx({"depth": 8 / 3, "normals": 2.0})
    assert math.isnan(history.mean_weights(1)["normals"])


def test_a_notebook_shows_the_figure() -> None:
    history = history_of(2)
    assert history._repr_png_() is None
    recorded(history, 3)
    assert history._repr_png_().startswith(b"\x89PNG")


@named_when_read
def test_normalised_by_the_first_loss_that_is_finite_and_not_zero() -> None:
    history, nan, inf = History(UW(3)), torch.nan, torch.inf
    for row in ([0.0, nan, nan], [inf, 3.0, nan], [4.0, 6.0, nan], [2.0, 1.5, nan]):
        step(history, torch.tensor(row))
    expected = [[0.0, nan, nan], [inf, 1.0, nan], [1.0, 2.0, nan], [0.5, 0.5, nan]]
    torch.testing.assert_close(history.normalized_losses, torch.tensor(expected), equal_nan=True)


def test_columns_have_the_names_of_the_tasks() -> None:
    history = History(UW(["depth", "normals"]))
    step(history, {"normals": torch.tensor(2.0), "depth": torch.tensor(1.0)})
    columns = {name: column.item() for name, column in history.to_dict().items()}
    weights = {"weight/depth": 0.5, "weight/normals": 0.5}
    assert columns == {"step": 0, "loss/depth": 1.0, "loss/normals": 2.0, **weights}


def test_columns_of_tasks_without_names_have_their_positions() -> None:
    history = History(DWA(shape=(2, 2)))
    step(history, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert history.names == ("0", "1", "2", "3")
    assert history.to_dict()["loss/2"].tolist() == [3.0]


def test_a_data_frame_has_the_step_as_index() -> None:
    pytest.importorskip("pandas")
    history = history_of(2, capacity=4)
    recorded(history, 6)
    frame = history.to_pandas()
    assert frame.index.name == "step"
    assert frame.index.tolist() == [0, 2, 4]
    assert list(frame) == ["loss/0", "loss/1", "weight/0", "weight/1"]


def test_nothing_recorded_is_empty_but_a_history() -> None:
    history = History(UW(["a", "b"]))
    assert history
    assert len(history) == 0
    for values in (history.losses, history.weights, history.normalized_losses):
        assert values.shape == (0, 2)
    columns = history.to_dict()
    assert {len(column) for column in columns.values()} == {0}
    assert columns["step"].dtype == "int64"


PANELS = ["weight", "loss", "loss / first loss"]


def values_of(history: History) -> list[Tensor]:
    return [history.weights, history.losses, history.normalized_losses]


@pytest.mark.parametrize("tasks", [2, 10])
def test_up_to_ten_tasks_are_lines(tasks: int) -> None:
    history = history_of(tasks, capacity=8)
    recorded(history, 20)  # of which every fourth is kept
    figure = history.plot()
    assert [axis.get_ylabel() for axis in figure.axes] == PANELS
    assert [axis.get_xlabel() for axis in figure.axes] == ["", "", "step"]
    assert [axis.get_yscale() for axis in figure.axes] == ["linear", "log", "log"]  # FAMO's shares
    for axis, values in zip(figure.axes, values_of(history), strict=True):
        for line, column in zip(axis.lines, values.T, strict=True):
            assert line.get_xdata().tolist() == [0, 4, 8, 12, 16]
            torch.testing.assert_close(torch.tensor(line.get_ydata()), column)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(history.names)


def test_names_with_an_underscore_are_in_the_legend() -> None:
    history = History(UW(["_depth", "normals"]))
    step(history, torch.ones(2))
    (legend,) = history.plot().legends
    assert [text.get_text().strip() for text in legend.get_texts()] == ["_depth", "normals"]


@named_when_read
@pytest.mark.parametrize("tasks", [11, 40])
def test_more_tasks_are_the_rows_of_heat_maps(tasks: int) -> None:
    history = history_of(tasks, capacity=8)
    recorded(history, 20)  # of which every fourth is kept
    history.scalarizer(2 * torch.ones(tasks))
    history.record(torch.tensor([0.0, torch.nan, *[3.0] * (tasks - 2)]))
    figure = history.plot()
    figure.draw_without_rendering()
    maps, bars = figure.axes[:3], figure.axes[3:]
    assert [bar.get_ylabel() for bar in bars] == PANELS
    assert [bar.get_yscale() for bar in bars] == ["linear", "log", "log"]
    assert not figure.legends
    for axis, values in zip(maps, values_of(history), strict=True):
        drawn = torch.tensor(axis.collections[0].get_array().filled(torch.nan))
        torch.testing.assert_close(drawn, values.T, equal_nan=True)
        assert axis.get_xlim() == (0, 24)
        assert axis.get_yticks().tolist() == [row + 0.5 for row in range(tasks)]
        labels = axis.get_yticklabels()
        assert [label.get_text() for label in labels] == list(history.names)
        boxes = [label.get_window_extent() for label in labels]
        assert all(below.y1 <= above.y0 for above, below in itertools.pairwise(boxes))


@named_when_read
@pytest.mark.parametrize("tasks", [2, 11])
def test_losses_that_are_not_positive_are_drawn_on_a_linear_scale(tasks: int) -> None:
    history = History(UW(tasks, init=-1.0))
    step(history, torch.tensor([-1.0, torch.inf, *[0.0] * (tasks - 2)]))
    scales = {axis.get_ylabel(): axis.get_yscale() for axis in history.plot().axes}
    assert scales["weight"] == "log"
    assert scales["loss"] == "linear"


@pytest.mark.parametrize("tasks", [2, 11])
@pytest.mark.parametrize("smooth", [7, 9, 1000])
def test_a_smoothed_curve_is_the_mean_of_the_finite_values_around(tasks: int, smooth: int) -> None:
    history = history_of(tasks, capacity=8)
    recorded(history, 20)  # of which every fourth is kept
    history.record(torch.tensor([torch.nan, torch.inf, *[3.0] * (tasks - 2)]))
    figure = history.plot(smooth=smooth, title="by hand")
    assert figure.get_suptitle() == "by hand"
    steps = history.to_dict()["step"]
    near = [abs(steps - step) <= smooth / 2 for step in steps]
    for axis, values in zip(figure.axes, values_of(history), strict=False):
        finite = values.where(values.isfinite(), torch.nan)
        expected = torch.stack([finite[rows].nanmean(dim=0) for rows in near]).T
        if axis is figure.axes[2]:  # whose lines begin at 1
            values, expected = (each / expected[:, :1].T for each in (values, expected.T))
            expected = expected.T
        if tasks == 2:
            curves = torch.stack([torch.tensor(line.get_ydata()) for line in axis.lines])
            drawn, raw = curves[:2], curves[2:]
            torch.testing.assert_close(raw, values.T, equal_nan=True)
        else:
            drawn = torch.tensor(axis.collections[0].get_array().filled(torch.nan))
        torch.testing.assert_close(drawn, expected, equal_nan=True)


@pytest.mark.parametrize("smooth", [0, -1, 2.0, "9"])
def test_smooth_is_a_positive_int(smooth: object) -> None:
    with pytest.raises(ValueError, match=f"Found `smooth = {smooth}`"):
        history_of(2).plot(smooth=smooth)


@pytest.mark.parametrize("smooth", [1, 9])
@pytest.mark.parametrize("tasks", [2, 11])
def test_an_empty_history_plots(tasks: int, smooth: int) -> None:
    figure = History(UW([f"task {i}" for i in range(tasks)])).plot(smooth=smooth)
    figure.draw_without_rendering()
    assert [axis.get_ylabel() for axis in figure.axes][-3:] == PANELS


@pytest.mark.parametrize(
    ("package", "method"),
    [("numpy", "to_dict"), ("pandas", "to_pandas"), ("matplotlib", "plot")],
)
def test_a_missing_package_gets_the_line_that_installs_it(
    package: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (package, "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"This needs {package}: pip install {package}$"):
        getattr(history_of(2), method)()


@pytest.mark.parametrize("capacity", [0, -2, 3, 4.0])
def test_capacity_is_positive_and_even(capacity: float) -> None:
    with pytest.raises(ValueError, match=f"Found `capacity = {capacity}`"):
        History(UW(2), capacity=capacity)


def test_a_record_that_is_refused_leaves_no_trace() -> None:
    history = history_of(2)
    for losses in (torch.tensor(7.0), torch.ones(3)):
        with pytest.raises(ValueError, match=r"shape \(2,\), the shape of `weights`"):
            history.record(losses)
    with pytest.raises(ValueError, match="`mask` should be a boolean tensor"):
        history.record(torch.ones(2), torch.ones(2))
    history.record(torch.ones(2))
    assert history.to_dict()["step"].tolist() == [0]


def test_what_is_recorded_stays_readable() -> None:
    history = History(LogSum())
    step(history, torch.ones(2))
    with pytest.raises(ValueError, match=r"of 2 tasks.*Found 3: make a new `History`"):
        step(history, torch.ones(3))
    step(history, torch.ones(2, dtype=torch.float64))
    assert history.losses.shape == (2, 2)
    single = History(UW(()))
    step(single, torch.tensor(2.0))
    assert single.to_dict()["loss/0"].tolist() == [2.0]


def test_a_record_loaded_into_a_smaller_one_is_evenly_spaced() -> None:
    large, small = history_of(1), history_of(1, capacity=4)
    recorded(large, 10)
    small.load_state_dict(large.state_dict())
    recorded(small, 10)
    assert small.to_dict()["step"].tolist() == [0, 8, 16]


def test_the_first_record_may_be_in_inference_mode() -> None:
    history = history_of(2)
    with torch.inference_mode():
        step(history, torch.ones(2))
    recorded(history, 3)
    assert len(history) == 4


def test_there_is_nothing_to_record_before_a_call() -> None:
    with pytest.raises(AttributeError, match="No `weights` of UW"):
        History(UW(2)).record(torch.ones(2))


@pytest.mark.parametrize("device", DEVICES[1:])
def test_recording_does_not_wait_for_the_device(device: str) -> None:
    history = History(UW(["a", "b"]).to(device), capacity=4)
    losses = {"a": torch.ones((), device=device)}
    with synchronization_forbidden():
        for _ in range(10):
            step(history, losses)
    assert history.losses.device.type == "cpu"
