"""The recorder of losses and weights."""

import itertools
import sys
from pathlib import Path

import pytest
import torch
from functions import DEVICES, synchronization_forbidden
from torch import Tensor

from mtl_scalarize import DWA, FAMO, UW, History

pytest.importorskip("matplotlib")

from matplotlib.colors import LogNorm
from matplotlib.layout_engine import ConstrainedLayoutEngine


def recorded(history: History, steps: int, mask: Tensor | None = None) -> Tensor:
    """Record so many steps of losses, and return them all."""
    generator = torch.Generator().manual_seed(0)
    losses = 0.1 + torch.rand(steps, *history.scalarizer.weights.shape, generator=generator)
    for row in losses:
        history.scalarizer(row, mask)
        history.record(row, mask)
    return losses


def history_of(tasks: int, capacity: int = 100) -> History:
    scalarizer = FAMO(tasks)
    scalarizer(torch.ones(tasks))
    return History(scalarizer, capacity=capacity)


def test_it_keeps_losses_and_weights_of_every_step() -> None:
    scalarizer = FAMO(3, amortized=True)
    history = History(scalarizer)
    losses = torch.tensor([[1.0, 2.0, 4.0], [0.5, 2.0, 4.0], [0.4, 1.9, 4.0]])
    weights = []
    for row in losses:
        scalarizer(row.requires_grad_())
        history.record(row)
        weights.append(scalarizer.weights)
    assert len(history) == 3
    torch.testing.assert_close(history.losses, losses.detach(), rtol=0, atol=0)
    torch.testing.assert_close(history.weights, torch.stack(weights), rtol=0, atol=0)
    torch.testing.assert_close(history.normalized_losses, losses.detach() / losses[0].detach())
    assert not history.losses.requires_grad


def test_memory_is_bounded_and_the_whole_training_stays_in_view() -> None:
    history = history_of(2, capacity=8)
    losses = recorded(history, 1_000)
    kept = history.to_dict()["step"].tolist()
    assert kept == list(range(0, 1_000, 128))
    torch.testing.assert_close(history.losses, losses[kept], rtol=0, atol=0)
    assert len(history._rows) == 8


@pytest.mark.parametrize("steps", range(1, 20))
def test_what_is_kept_is_evenly_spaced(steps: int) -> None:
    history = history_of(1, capacity=4)
    losses = recorded(history, steps)
    kept = history.to_dict()["step"].tolist()
    stride = 1 if steps <= 4 else 2 if steps <= 8 else 4 if steps <= 16 else 8
    assert kept == list(range(0, steps, stride))
    torch.testing.assert_close(history.losses, losses[kept], rtol=0, atol=0)


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
    assert second.state_dict().keys() == whole.state_dict().keys()
    torch.testing.assert_close(second.state_dict(), whole.state_dict(), rtol=0, atol=0)
    with pytest.raises(ValueError, match="a record of 2 tasks"):
        history_of(2).load_state_dict(whole.state_dict())


def test_an_empty_history_is_one_and_takes_no_memory() -> None:
    assert history_of(1)
    history = history_of(2, capacity=10**12)
    recorded(history, 1)
    assert len(history) == 1


def test_a_loss_below_its_bound_is_named_once_when_read() -> None:
    scalarizer = FAMO(["depth", "normals"], min_losses=0.5)
    history = History(scalarizer)
    for second in (0.6, torch.nan, 0.4, 0.3):
        losses = torch.tensor([1.0, second])
        scalarizer(losses)
        history.record(losses)
    message = r"'normals' is below its `min_losses` at step 2: 0\.4 < 0\.5"
    with pytest.warns(UserWarning, match=message) as seen:
        history.to_dict()
    assert seen[0].filename == __file__
    history.plot()  # says nothing more: warnings are errors


def test_an_absent_task_is_recorded_as_nan() -> None:
    history = history_of(3)
    losses = recorded(history, 2, torch.tensor([True, False, True]))
    assert history.losses[:, 1].isnan().all()
    assert history.weights[:, 1].isnan().all()
    torch.testing.assert_close(history.losses[:, ::2], losses[:, ::2], rtol=0, atol=0)


def test_normalised_by_the_first_loss_that_is_finite_and_not_zero() -> None:
    scalarizer = UW(["a", "b", "c"])
    history = History(scalarizer)
    for a, b in [(0.0, None), (float("nan"), 3.0), (4.0, 6.0), (2.0, 1.5)]:
        losses = {"a": torch.tensor(a)} | ({} if b is None else {"b": torch.tensor(b)})
        scalarizer(losses)
        history.record(losses)
    a, b, c = history.normalized_losses.T
    torch.testing.assert_close(a, torch.tensor([0.0, torch.nan, 1.0, 0.5]), equal_nan=True)
    torch.testing.assert_close(b, torch.tensor([torch.nan, 1.0, 2.0, 0.5]), equal_nan=True)
    assert c.isnan().all()


def test_columns_have_the_names_of_the_tasks() -> None:
    scalarizer = UW(["depth", "normals"])
    history = History(scalarizer)
    losses = {"normals": torch.tensor(2.0), "depth": torch.tensor(1.0)}
    scalarizer(losses)
    history.record(losses)
    columns = {name: column.tolist() for name, column in history.to_dict().items()}
    assert columns == {
        "step": [0],
        "loss/depth": [1.0],
        "loss/normals": [2.0],
        "weight/depth": [0.5],
        "weight/normals": [0.5],
    }


def test_columns_of_tasks_without_names_have_their_positions() -> None:
    history = History(DWA(shape=(2, 2)))
    history.scalarizer(torch.ones(2, 2))
    history.record(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
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


def test_nothing_recorded_is_empty() -> None:
    history = History(UW(["a", "b"]))
    assert len(history) == 0
    assert (
        history.losses.shape == history.weights.shape == history.normalized_losses.shape == (0, 2)
    )
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
    figure.draw_without_rendering()
    assert [axis.get_ylabel() for axis in figure.axes] == PANELS
    assert [axis.get_xlabel() for axis in figure.axes] == ["", "", "step"]
    assert {axis.get_yscale() for axis in figure.axes} == {"log"}
    for axis, values in zip(figure.axes, values_of(history), strict=True):
        assert [line.get_label() for line in axis.lines] == list(history.names)
        for line, column in zip(axis.lines, values.T, strict=True):
            assert line.get_xdata().tolist() == [0, 4, 8, 12, 16]
            torch.testing.assert_close(torch.tensor(line.get_ydata()), column)
    assert figure.get_size_inches().tolist() == [8, 9]
    assert isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine)
    (legend,) = figure.legends
    assert legend.get_window_extent().x0 > figure.axes[0].get_window_extent().x1  # beside them
    assert [text.get_text() for text in legend.get_texts()] == list(history.names)


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
    assert not figure.legends
    assert figure.get_size_inches().tolist() == pytest.approx([8, 0.35 * tasks])
    assert isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine)
    assert figure.axes[0].get_shared_x_axes().joined(figure.axes[0], figure.axes[2])
    for axis, bar, values in zip(maps, bars, values_of(history), strict=True):
        assert [label.get_text() for label in axis.get_yticklabels()] == list(history.names)
        assert axis.get_yticks().tolist() == [row + 0.5 for row in range(tasks)]
        assert axis.yaxis_inverted()
        (mesh,) = axis.collections
        assert bar._colorbar.mappable is mesh
        assert abs(bar.get_position().y0 - axis.get_position().y0) < 0.05  # beside its map
        drawn = torch.tensor(mesh.get_array().filled(torch.nan))
        torch.testing.assert_close(drawn, values.T, equal_nan=True)
        assert mesh.get_coordinates()[0, :, 0].tolist() == [0, 4, 8, 12, 16, 20, 24]
        shown = values[values > 0]
        assert isinstance(mesh.norm, LogNorm)
        assert (mesh.norm.vmin, mesh.norm.vmax) == (shown.min().item(), shown.max().item())


def test_losses_that_are_not_positive_are_drawn_on_a_linear_scale() -> None:
    for tasks in (2, 11):
        scalarizer = UW(tasks)
        scalarizer(torch.ones(tasks))
        history = History(scalarizer)
        history.record(torch.tensor([-1.0, torch.inf, *[0.0] * (tasks - 2)]))
        figure = history.plot()
        figure.draw_without_rendering()
        axis = figure.axes[1]
        assert axis.get_yscale() == "linear"
        assert all(not isinstance(mesh.norm, LogNorm) for mesh in axis.collections)


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
        if tasks == 2:
            assert [line.get_label() for line in axis.lines[::2]] == list(history.names)
            curves = torch.stack([torch.tensor(line.get_ydata()) for line in axis.lines])
            drawn, raw = curves[::2], curves[1::2]
            torch.testing.assert_close(raw, values.T, equal_nan=True)
        else:
            drawn = torch.tensor(axis.collections[0].get_array().filled(torch.nan))
        torch.testing.assert_close(drawn, expected, equal_nan=True)
    History(UW(2)).plot(smooth=smooth)  # nothing to smooth is no error


@pytest.mark.parametrize("smooth", [0, -1, 2.0, "9"])
def test_smooth_is_a_positive_int(smooth: object) -> None:
    with pytest.raises(ValueError, match=f"Found `smooth = {smooth}`"):
        history_of(2).plot(smooth=smooth)


def test_names_in_a_tall_plot_do_not_overlap() -> None:
    history = history_of(40)
    recorded(history, 5)
    figure = history.plot()
    figure.draw_without_rendering()
    labels = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert all(lower.y1 <= upper.y0 for upper, lower in itertools.pairwise(labels))


@pytest.mark.parametrize("tasks", [2, 11])
def test_an_empty_history_plots(tasks: int) -> None:
    figure = History(UW([f"task {i}" for i in range(tasks)])).plot()
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


def test_two_steps_are_a_history() -> None:
    history = history_of(1, capacity=2)
    recorded(history, 5)
    assert history.to_dict()["step"].tolist() == [0, 4]


@pytest.mark.parametrize("capacity", [0, -2, 3, 4.0])
def test_capacity_is_positive_and_even(capacity: float) -> None:
    with pytest.raises(ValueError, match=f"Found `capacity = {capacity}`"):
        History(UW(2), capacity=capacity)


@pytest.mark.parametrize(
    ("losses", "mask", "message"),
    [
        (torch.tensor(7.0), None, r"`losses` should have shape \(2,\), the shape of `weights`"),
        (torch.ones(3), None, r"`losses` should have shape \(2,\), the shape of `weights`"),
        (torch.ones(2), torch.ones(2), "`mask` should be a boolean tensor"),
    ],
)
def test_a_record_that_is_refused_leaves_no_trace(
    losses: Tensor, mask: Tensor | None, message: str
) -> None:
    history = history_of(2)
    with pytest.raises(ValueError, match=message):
        history.record(losses, mask)
    history.record(torch.ones(2))
    assert history.to_dict()["step"].tolist() == [0]


def test_the_first_record_may_be_in_inference_mode() -> None:
    history = history_of(2)
    with torch.inference_mode():
        history.scalarizer(torch.ones(2))
        history.record(torch.ones(2))
    recorded(history, 3)
    assert len(history) == 4


def test_there_is_nothing_to_record_before_a_call() -> None:
    with pytest.raises(AttributeError, match="Found no call of this UW since"):
        History(UW(2)).record(torch.ones(2))


@pytest.mark.parametrize("device", DEVICES[1:])
def test_recording_does_not_wait_for_the_device(device: str) -> None:
    scalarizer = UW(["a", "b"]).to(device)
    history = History(scalarizer, capacity=4)
    losses = {"a": torch.ones((), device=device)}
    with synchronization_forbidden():
        for _ in range(10):
            scalarizer(losses)
            history.record(losses)
    assert history.losses.device.type == "cpu"
