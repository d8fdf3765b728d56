"""The peer as oracle: whatever torchjd 0.18.0 computes, both layers compute.

Both run in float64 and should differ by rounding only. RELATIVE allows what a hundred steps,
each of which feeds the rounding of the one before into a network and into Adam's quotient, may
make of it; no step is compared more loosely than the last one.
"""

import contextlib
from collections.abc import Callable
from operator import attrgetter
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torchjd import scalarization as peer

import mtl_scalarize as mtl

RELATIVE = 1e-10
F64 = torch.float64
TASKS = 3
BOUNDS = torch.tensor([-0.5, 0.0, 0.01], dtype=F64)  # FAMO's min_losses


class CoreUW(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.log_var = nn.Parameter(torch.zeros(TASKS, dtype=F64))

    def forward(self, losses: Tensor) -> Tensor:
        return mtl.uw_loss(losses, self.log_var)


class CoreIMTLL(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(TASKS, dtype=F64))

    def forward(self, losses: Tensor) -> Tensor:
        return mtl.imtll_loss(losses, self.log_scale)


class CoreDWA(nn.Module):
    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature, self.state = temperature, mtl.dwa_init((TASKS,), dtype=F64)

    def forward(self, losses: Tensor) -> Tensor:
        scalar = mtl.dwa_combine(losses, self.state, self.temperature)
        self.state = mtl.dwa_accumulate(self.state, losses.detach())
        return scalar

    def step(self) -> None:
        self.state = mtl.dwa_step(self.state)


class CoreFAMO(nn.Module):
    def __init__(self, min_losses: Tensor | float = 0.0, **hyperparameters: Any) -> None:
        super().__init__()
        self.state, self.before = mtl.famo_init((TASKS,), dtype=F64), torch.empty(0)
        self.min_losses, self.hyperparameters = min_losses, hyperparameters

    def forward(self, losses: Tensor) -> Tensor:
        self.before = losses.detach()
        return mtl.famo_combine(losses, self.state.logits, self.min_losses)

    def update(self, losses: Tensor) -> None:
        delta = mtl.famo_delta(self.before, losses.detach(), self.min_losses)
        self.state = mtl.famo_update(self.state, delta, **self.hyperparameters)


class Method(NamedTuple):
    """One row: how to build the method in torchjd, and here in the shell and on the core alone."""

    theirs: Callable[[], Any]
    module: Callable[[], Any]
    core: Callable[[], Any]


FAMO_VARIANT: dict[str, Any] = {"lr": 0.1, "weight_decay": 1e-2}
METHODS = {
    "UW": Method(lambda: peer.UW(TASKS), lambda: mtl.UW(TASKS), CoreUW),
    "IMTL-L": Method(lambda: peer.IMTLL(TASKS), lambda: mtl.IMTLL(TASKS), CoreIMTLL),
    "DWA": Method(peer.DWA, mtl.DWA, lambda: CoreDWA(2.0)),
    "DWA at temperature 0.3": Method(
        lambda: peer.DWA(0.3), lambda: mtl.DWA(0.3), lambda: CoreDWA(0.3)
    ),
    "DWA of known shape": Method(peer.DWA, lambda: mtl.DWA(shape=TASKS), lambda: CoreDWA(2.0)),
    "FAMO": Method(lambda: peer.FAMO(TASKS), lambda: mtl.FAMO(TASKS), CoreFAMO),
    "FAMO with min_losses": Method(
        lambda: peer.FAMO(TASKS, BOUNDS),
        lambda: mtl.FAMO(TASKS, BOUNDS),
        lambda: CoreFAMO(BOUNDS),
    ),
    "FAMO with its own lr and weight_decay": Method(
        lambda: peer.FAMO(TASKS, **FAMO_VARIANT),
        lambda: mtl.FAMO(TASKS, **FAMO_VARIANT),
        lambda: CoreFAMO(**FAMO_VARIANT),
    ),
}
every_method_in_both_layers = pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        pytest.param(method.theirs, getattr(method, layer), id=f"{name}-{layer}")
        for name, method in METHODS.items()
        for layer in ("module", "core")
    ],
)


class Trajectory(NamedTuple):
    """What is compared; the first dimension counts steps."""

    scalars: Tensor
    task_weights: Tensor  # d scalar / d losses
    learned: Tensor  # log-variances, log-scales or logits; empty for DWA
    network: Tensor  # the parameters at the end; empty where there is no network


EPOCH_WISE = (peer.DWA, mtl.DWA, CoreDWA)
LEARNED = ("log_var", "log_scale", "_w", "logits", "state.logits")


def learned_state(scalarizer: nn.Module) -> Tensor:
    for path in LEARNED:
        with contextlib.suppress(AttributeError):
            found: Tensor = attrgetter(path)(scalarizer)
            return found.detach().clone()
    return torch.empty(0)


def train(
    scalarizer: Any,
    losses_at: Callable[[int], Tensor],
    *,
    steps: int,
    steps_an_epoch: int,
    network: nn.Module | None = None,
    lr: float,
) -> Trajectory:
    """An ordinary training loop; `losses_at(i)` are the losses of batch i as they are now.

    Without a network the losses after a step are those of the next batch.
    """
    scalarizer = scalarizer.double()
    trained = [] if network is None else list(network.parameters())
    # By name, since torchjd's FAMO lists its logits among its parameters.
    scales = [p for name, p in scalarizer.named_parameters() if name.startswith("log_")]
    optimizer = torch.optim.SGD([*trained, *scales, torch.zeros(0)], lr=lr)
    scalars, task_weights, learned = [], [], []
    for step in range(steps):
        losses = losses_at(step).requires_grad_()
        losses.retain_grad()
        optimizer.zero_grad()
        scalar = scalarizer(losses)
        scalar.backward()
        optimizer.step()
        if hasattr(scalarizer, "update"):
            scalarizer.update(losses_at(step if network else step + 1).detach())
        if isinstance(scalarizer, EPOCH_WISE) and (step + 1) % steps_an_epoch == 0:
            scalarizer.step()
        assert losses.grad is not None
        scalars.append(scalar.detach())
        task_weights.append(losses.grad)
        learned.append(learned_state(scalarizer))
    final = [parameter.detach().flatten() for parameter in trained]
    return Trajectory(
        torch.stack(scalars),
        torch.stack(task_weights),
        torch.stack(learned),
        torch.cat([torch.empty(0, dtype=F64), *final]),
    )


def assert_same(ours: Trajectory, theirs: Trajectory) -> None:
    """Relative to the largest entry: a scalar may cross zero, a logit starts there."""
    for name, actual, expected in zip(Trajectory._fields, ours, theirs, strict=True):
        largest = expected.abs().max().item() if expected.numel() else 0.0
        torch.testing.assert_close(
            actual,
            expected,
            rtol=RELATIVE,
            atol=RELATIVE * largest,
            msg=lambda message, name=name: f"{name}: {message}",
        )


@every_method_in_both_layers
def test_a_hundred_training_steps_are_those_of_torchjd(
    theirs: Callable[[], Any], ours: Callable[[], Any]
) -> None:
    def trajectory(scalarizer: nn.Module) -> Trajectory:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, TASKS)).double()
        features = torch.randn(20, 16, 4, dtype=F64)
        targets = torch.randn(20, 16, TASKS, dtype=F64) * torch.tensor([0.3, 1.0, 3.0])

        def losses_at(step: int) -> Tensor:
            return (network(features[step % 20]) - targets[step % 20]).square().mean(0)

        start = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
        end = train(scalarizer, losses_at, steps=100, steps_an_epoch=20, network=network, lr=0.05)
        assert end.scalars.isfinite().all()
        assert (end.network - start).norm() > 0.1 * start.norm()  # it did train
        return end

    assert_same(trajectory(ours()), trajectory(theirs()))


@every_method_in_both_layers
@given(
    # Seeds, since losses drawn one by one are often all alike: the deltas then cancel, FAMO's
    # gradient is a rounding error, and Adam makes a step of it (see test_reference.py).
    seed=st.integers(0, 2**32 - 1),
    spread=st.floats(0.1, 1.0),
    steps=st.integers(1, 20),
    steps_an_epoch=st.integers(1, 5),
)
def test_any_sequence_of_losses_gives_the_trajectory_of_torchjd(
    theirs: Callable[[], Any],
    ours: Callable[[], Any],
    seed: int,
    spread: float,
    steps: int,
    steps_an_epoch: int,
) -> None:
    normal = torch.randn(steps + 1, TASKS, generator=torch.Generator().manual_seed(seed), dtype=F64)
    losses = 0.02 + (spread * normal).exp()  # above every entry of BOUNDS

    def trajectory(scalarizer: nn.Module) -> Trajectory:
        return train(
            scalarizer,
            lambda step: losses[step].clone(),
            steps=steps,
            steps_an_epoch=steps_an_epoch,
            lr=0.01,
        )

    assert_same(trajectory(ours()), trajectory(theirs()))


@pytest.mark.parametrize("library", [peer, mtl], ids=["torchjd", "mtl_scalarize"])
@given(losses=st.lists(st.floats(0.01, 100.0), min_size=TASKS, max_size=TASKS))
def test_famo_in_float32_sees_no_change_in_float64_losses_that_did_not_change(
    library: Any, losses: list[float]
) -> None:
    """Stored as float32, the losses before the step would differ from those after it.

    Adam makes a step of nearly `lr` of a delta as small as that rounding.
    """
    famo = library.FAMO(TASKS)
    famo(torch.tensor(losses, dtype=F64))
    famo.update(torch.tensor(losses, dtype=F64))
    assert torch.equal(learned_state(famo), torch.zeros(TASKS))
