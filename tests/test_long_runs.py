"""What becomes of a scalarizer over very many steps. `--long` takes ten times as many."""

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn

from benchmarks.drift import drift_of_dwa, drift_of_famo
from mtl_scalarize import DWA, IMTLL, UW, dwa_accumulate, dwa_init, dwa_step

LEARNED = [UW, IMTLL]
OPTIMIZERS: list[Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]] = [
    lambda parameters: torch.optim.SGD(parameters, lr=0.5),
    lambda parameters: torch.optim.Adam(parameters, lr=0.02),
]


def learn(
    scalarizer: UW | IMTLL, optimizer: torch.optim.Optimizer, losses: list[float], steps: int
) -> list[Tensor]:
    """So many steps on the same losses: the scalar, all gradients and the weights of the last."""
    leaf = torch.tensor(losses, requires_grad=True)
    for _ in range(steps):
        optimizer.zero_grad()
        leaf.grad = None
        scalar = scalarizer(leaf)
        scalar.backward()
        optimizer.step()
    (parameter,) = scalarizer.parameters()
    return [scalar.detach(), leaf.grad, parameter.grad, parameter.detach(), scalarizer.weights]


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS, ids=["SGD", "Adam"])
@pytest.mark.parametrize("method", LEARNED)
def test_a_loss_that_is_always_zero_stays_finite(
    method: type[UW] | type[IMTLL],
    make_optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
    steps: int,
) -> None:
    scalarizer = method(2)
    seen = learn(scalarizer, make_optimizer(scalarizer.parameters()), [0.0, 1.0], steps)
    assert all(value.isfinite().all() for value in seen)
    zero, one = scalarizer.weights.tolist()
    assert 1e29 < zero < 1e31  # as far as it can get
    assert one == pytest.approx(0.5 if method is UW else 1.0)  # the other task is where it was


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS, ids=["SGD", "Adam"])
@pytest.mark.parametrize("method", LEARNED)
def test_eps_bounds_the_weight_of_a_zero_loss_and_lets_it_return(
    method: type[UW] | type[IMTLL],
    make_optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
) -> None:
    scalarizer = method(1, eps=0.01)
    optimizer = make_optimizer(scalarizer.parameters())
    factor = 0.5 if method is UW else 1.0
    learn(scalarizer, optimizer, [0.0], 1_000)
    assert scalarizer.weights.item() == pytest.approx(factor / 0.01, rel=0.1)
    learn(scalarizer, optimizer, [1.0], 1_000)
    assert scalarizer.weights.item() == pytest.approx(factor / 1.01, rel=0.1)


def test_an_epoch_of_ten_million_batches_does_not_stall() -> None:
    batches = 10_000_000
    state = dwa_init((), dtype=torch.float32)
    state = state._replace(
        loss_sum=state.loss_sum + 0.1 * (batches - 1_000), count=state.count + batches - 1_000
    )
    for _ in range(1_000):  # each less than half an ulp of such a sum in float32
        state = dwa_accumulate(state, torch.tensor(0.2))
    assert state.count == batches
    expected = (0.1 * (batches - 1_000) + 0.2 * 1_000) / batches
    assert dwa_step(state).last.item() == pytest.approx(expected, rel=1e-7)


def test_the_module_counts_as_many() -> None:
    scalarizer = DWA(shape=1)
    scalarizer.loss_sum.fill_(2.0**24)
    scalarizer.count.fill_(2**24)
    for _ in range(1_000):
        scalarizer(torch.ones(1))
    assert scalarizer.loss_sum.item() == scalarizer.count.item() == 2**24 + 1_000


def test_float32_does_not_drift_from_float64(steps: int) -> None:
    """The losses of both are the same numbers; see `benchmarks/drift.py` for 10^6 steps."""
    famo = drift_of_famo(steps)
    assert 0 < famo.largest < 1e-5
    dwa = drift_of_dwa(steps)
    assert 0 < dwa.largest < 1e-6
