"""What becomes of a scalarizer over very many steps. `--long` takes ten times as many."""

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import nn

from mtl_scalarize import IMTLL, UW, dwa_accumulate, dwa_init

pytest.importorskip("matplotlib")
pytest.importorskip("rich")

from benchmarks.drift import MEASURES, drift

Learned = Callable[..., UW | IMTLL]
OptimizerOf = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

learned_methods = pytest.mark.parametrize(
    ("method", "factor"), [pytest.param(UW, 0.5, id="UW"), pytest.param(IMTLL, 1.0, id="IMTL-L")]
)
optimizers = pytest.mark.parametrize(
    "make_optimizer",
    [
        pytest.param(lambda parameters: torch.optim.SGD(parameters, lr=0.5), id="SGD"),
        pytest.param(lambda parameters: torch.optim.Adam(parameters, lr=0.02), id="Adam"),
    ],
)


def learn(
    scalarizer: UW | IMTLL, optimizer: torch.optim.Optimizer, losses: list[float], steps: int
) -> list[float]:
    """The weights after so many steps on the same losses, all that led to them being finite."""
    leaf = torch.tensor(losses, requires_grad=True)
    for _ in range(steps):
        optimizer.zero_grad()
        leaf.grad = None
        scalar = scalarizer(leaf)
        scalar.backward()
        optimizer.step()
    (parameter,) = scalarizer.parameters()
    for value in (scalar, leaf.grad, parameter.grad, parameter):
        assert value.isfinite().all()
    return scalarizer.weights.tolist()


@optimizers
@learned_methods
def test_a_loss_that_is_always_zero_stays_finite(
    method: Learned, factor: float, make_optimizer: OptimizerOf, steps: int
) -> None:
    scalarizer = method(2, eps=1e-30)
    zero, one = learn(scalarizer, make_optimizer(scalarizer.parameters()), [0.0, 1.0], steps // 2)
    assert 1e29 < zero < 1e31  # as far as it can get
    assert one == pytest.approx(factor)  # the other task is where it was


@learned_methods
def test_eps_bounds_the_weight_of_a_zero_loss_and_lets_it_return(
    method: Learned, factor: float
) -> None:
    scalarizer = method(1, eps=0.01)
    optimizer = torch.optim.Adam(scalarizer.parameters(), lr=0.02)
    assert learn(scalarizer, optimizer, [0.0], 1_000) == pytest.approx([factor / 0.01], rel=0.1)
    assert learn(scalarizer, optimizer, [1.0], 1_000) == pytest.approx([factor / 1.01], rel=0.1)


def test_counts_of_batches_are_exact_beyond_the_integers_of_float32() -> None:
    state = dwa_init(1)
    state = state._replace(count=state.count + 2**24)
    for _ in range(3):
        state = dwa_accumulate(state, torch.ones(1))
    assert state.count.item() == 2**24 + 3


@pytest.mark.parametrize(
    ("measured", "limit"),
    [("FAMO's weights", 1e-5), ("DWA's weights", 1e-4), ("DWA's mean", 1e-4)],
)
def test_float32_does_not_drift_from_float64(measured: str, limit: float, steps: int) -> None:
    """The losses of both are the same numbers; see `benchmarks/drift.py` for 10^6 steps."""
    assert 0 < drift(MEASURES[measured], steps, torch.device("cpu")).largest < limit
