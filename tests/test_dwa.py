"""What is particular to DWA."""

import pytest
import torch
from torch import Tensor

from mtl_scalarize import DWA, dwa_accumulate, dwa_init, dwa_step, dwa_weights


def epoch(scalarizer: DWA, losses: list[float], mask: list[bool] | None = None) -> Tensor:
    """One epoch of one batch; the weights that it used."""
    scalarizer(torch.tensor(losses), None if mask is None else torch.tensor(mask))
    weights = scalarizer.weights
    scalarizer.step()
    return weights


def test_weights_are_uniform_for_two_epochs_and_follow_the_rates_from_the_third() -> None:
    scalarizer = DWA(temperature=0.5)
    assert epoch(scalarizer, [4.0, 1.0]).tolist() == [1.0, 1.0]
    assert epoch(scalarizer, [2.0, 0.9]).tolist() == [1.0, 1.0]
    expected = 2 * torch.softmax(torch.tensor([0.5, 0.9]) / 0.5, 0)
    torch.testing.assert_close(epoch(scalarizer, [1.0, 1.0]), expected)


def test_a_task_that_appears_late_weighs_one_until_two_epochs_are_behind_it() -> None:
    scalarizer = DWA()
    late = [True, True, False]
    epoch(scalarizer, [4.0, 1.0, 0.0], late)
    epoch(scalarizer, [2.0, 0.9, 0.0], late)
    for losses in ([1.0, 0.8, 5.0], [0.5, 0.7, 4.0]):  # the third task's own first two epochs
        weights = epoch(scalarizer, losses)
        assert weights[2] == 1
        assert weights[0] < 1 < weights[1]
        torch.testing.assert_close(weights.sum(), torch.tensor(3.0))
    weights = epoch(scalarizer, [1.0, 1.0, 1.0])
    expected = 3 * torch.softmax(torch.tensor([0.5, 0.7 / 0.8, 0.8]) / 2, 0)
    torch.testing.assert_close(weights, expected)


def test_a_task_is_averaged_over_the_batches_in_which_it_is_present() -> None:
    state = dwa_init(2)
    for losses, mask in [([1.0, 8.0], [True, False]), ([3.0, 5.0], [True, True])]:
        state = dwa_accumulate(state, torch.tensor(losses), mask=torch.tensor(mask))
    assert dwa_step(state).last.tolist() == [2.0, 5.0]
    assert state.count.dtype == dwa_init(2).count.dtype == torch.int64


def test_an_epoch_without_batches_changes_nothing() -> None:
    scalarizer = DWA()
    scalarizer.step()  # before there is a shape
    for losses in ([4.0, 1.0], [2.0, 0.9]):
        epoch(scalarizer, losses)
    expected = {name: value.clone() for name, value in scalarizer.state_dict().items()}
    scalarizer.step()
    torch.testing.assert_close(scalarizer.state_dict(), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("last", "previous"), [(1.0, 0.0), (-1.0, 0.0), (0.0, 0.0), (1e300, 1e-300)]
)
def test_a_task_without_a_finite_rate_weighs_one(last: float, previous: float) -> None:
    averages = torch.tensor([[1.0, last, 3.0], [2.0, previous, 2.0]], dtype=torch.float64)
    weights = dwa_weights(*averages)
    expected = 2 * torch.softmax(torch.tensor([0.5, 1.5], dtype=torch.float64) / 2, 0)
    torch.testing.assert_close(weights[[0, 2]], expected)
    assert weights[1] == 1


def test_another_temperature_takes_effect_at_the_next_step() -> None:
    scalarizer = DWA()
    for losses in ([4.0, 1.0], [2.0, 0.9]):
        epoch(scalarizer, losses)
    scalarizer.temperature = 0.1
    averages = torch.tensor([[1.0, 1.0], [2.0, 0.9], [4.0, 1.0]])
    torch.testing.assert_close(epoch(scalarizer, [1.0, 1.0]), dwa_weights(*averages[1:], 2.0))
    torch.testing.assert_close(epoch(scalarizer, [1.0, 1.0]), dwa_weights(*averages[:2], 0.1))


def test_step_may_come_between_the_call_and_its_backward() -> None:
    scalarizer = DWA()
    for losses in ([4.0, 1.0], [2.0, 0.9]):
        epoch(scalarizer, losses)
    losses = torch.tensor([5.0, 0.1], requires_grad=True)
    scalar = scalarizer(losses)
    weights = scalarizer.weights
    scalarizer.step()
    scalar.backward()
    torch.testing.assert_close(losses.grad, weights, rtol=0, atol=0)
    assert not torch.equal(scalarizer.weights, weights)


def test_without_shape_it_takes_shape_and_dtype_from_the_first_losses() -> None:
    scalarizer = DWA()
    assert not scalarizer.mean.numel()
    scalarizer(torch.ones(2, 3, dtype=torch.float64))
    assert scalarizer.last.shape == (2, 3)
    assert scalarizer.last.dtype == torch.float64


def test_without_shape_it_takes_the_device_too() -> None:
    first, loaded = DWA(), DWA()
    first(torch.ones(2, device="meta"))
    loaded.load_state_dict(first.state_dict())
    for scalarizer in (first, loaded):
        assert {value.device.type for value in scalarizer.buffers()} == {"meta"}


def test_a_task_without_a_rate_has_a_gradient_of_zero() -> None:
    last = torch.tensor([1.0, 0.0, torch.inf, 2.0], requires_grad=True)
    previous = torch.tensor([2.0, 0.0, 1.0, 1.0], requires_grad=True)
    weights = dwa_weights(last, previous)
    for gradient in torch.autograd.grad(weights[0], [last, previous]):
        assert gradient.isfinite().all()
        assert (gradient != 0).tolist() == [True, False, False, True]


def test_an_average_that_changes_sign_has_a_negative_rate_and_a_finite_weight() -> None:
    scalarizer = DWA(temperature=1.0)
    for losses in ([1.0, 2.0], [-2.0, 1.0]):
        epoch(scalarizer, losses)
    expected = 2 * torch.softmax(torch.tensor([-2.0, 0.5]), 0)
    torch.testing.assert_close(epoch(scalarizer, [1.0, 1.0]), expected)


def test_an_average_of_zero_is_a_rate_of_zero_and_then_none() -> None:
    scalarizer = DWA(temperature=1.0)
    for losses in ([1.0, 2.0], [0.0, 1.0]):
        epoch(scalarizer, losses)
    expected = 2 * torch.softmax(torch.tensor([0.0, 0.5]), 0)
    torch.testing.assert_close(epoch(scalarizer, [3.0, 1.0]), expected)
    assert epoch(scalarizer, [1.0, 1.0]).tolist() == [1.0, 1.0]
