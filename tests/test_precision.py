"""What dtype comes out of which."""

import pytest
import torch

from mtl_scalarize import (
    dwa_accumulate,
    dwa_init,
    dwa_step,
    dwa_weights,
    famo_combine,
    famo_delta,
    famo_init,
    famo_update,
    famo_weights,
)

F32, F64 = torch.float32, torch.float64


@pytest.mark.parametrize("shape", [(), (3,)], ids=str)
def test_a_state_keeps_its_dtype(shape: tuple[int, ...]) -> None:
    """Whatever that of the losses, and of hyperparameters in tensors: two 0-d tensors promote."""
    hyper = torch.tensor(0.5, dtype=F64)
    state = famo_init(shape, dtype=F32)
    for delta in (torch.ones(shape, dtype=F64), torch.ones(shape, dtype=torch.float16)):
        updated = famo_update(state, delta, lr=hyper, weight_decay=hyper)
        assert [field.dtype for field in updated] == [field.dtype for field in state]
    averages = dwa_init(shape, dtype=F32)
    stepped = dwa_step(dwa_accumulate(averages, torch.ones(shape, dtype=F64)))
    assert [field.dtype for field in stepped] == [field.dtype for field in averages]


def test_a_bound_does_not_widen_the_losses() -> None:
    losses, bound = torch.tensor(2.0), torch.tensor(0.5, dtype=F64)
    assert famo_weights(losses, torch.tensor(0.0), bound).dtype == F32
    assert famo_combine(losses, torch.tensor(0.0), bound).dtype == F32
    assert famo_delta(losses, losses, bound).dtype == F32


def test_weights_of_dwa_have_the_wider_dtype_of_both_averages() -> None:
    for first, second in [(F32, F64), (F64, F32)]:
        weights = dwa_weights(torch.ones(2, dtype=first), torch.ones(2, dtype=second), 1.0)
        assert weights.dtype == F64


def test_weights_of_a_batch_without_any_task_have_a_gradient_of_zero() -> None:
    losses, logits = torch.ones(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    with torch.autograd.set_detect_anomaly(True):
        weights = famo_weights(losses, logits, mask=torch.zeros(2, dtype=torch.bool))
        gradients = torch.autograd.grad(weights.sum(), [losses, logits])
    assert [gradient.tolist() for gradient in gradients] == [[0.0, 0.0]] * 2
